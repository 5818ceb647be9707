"""Exact nearest-neighbour search over embeddings: faiss behind one small class."""

from __future__ import annotations

import hashlib
import itertools
import json
import operator
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import faiss
import numpy as np
import torch
from huggingface_hub import snapshot_download
from safetensors.numpy import load_file
from safetensors.numpy import save as to_bytes
from torch import Tensor

from fusemix.data.real_files import RealFiles
from fusemix.files import read_json, sha256_of, write_atomic, write_json
from fusemix.hub_folders import resolve
from fusemix.search.hubness import NEIGHBOURS, WEIGHT, corrected
from fusemix.search.principal import principal

Dtype = Literal["float32", "float16", "int8"]
_BYTES: dict[Dtype, int] = {"float32": 4, "float16": 2, "int8": 1}
FORMAT_VERSION = 1
BASIS_NAME = "basis.safetensors"
INDEX_NAME = "index.json"
ITEMS_NAME = "items.jsonl"
FILES = [INDEX_NAME, "items*.jsonl", "*.faiss", "basis*.safetensors"]  # of an index folder
RESERVED = ("modality", "rank", "similarity")  # fields of a hit and of a line of items.jsonl beside an item's metadata
UNIT_TOLERANCE = 1e-3  # tolerated deviation of a stored embedding's length from 1
MAX_SHARD_BYTES = 9 * 10**6  # bytes of embeddings a file: the Hub refuses files over 10 MB in a plain git push
_LARGEST_WEIGHT = 1.0  # largest weight whose correction in float16 is exact to a thousandth
_REBUILD = "rebuild it with fusemix index"


@dataclass(frozen=True)
class Hit:
    """One search result.

    Attributes:
        modality: Of the item: ``image``, ``audio``, ``text``, ...
        item: Its metadata: id, path or text, title, caption, group, source, licence, credit.
        similarity: Cosine of query and item, in [-1, 1]; higher is closer. Comparable within one modality, not
            between two (the modality gap).
        rank: 1 for the nearest item of its modality.
        probability: That it is right, if every second query has an answer in the gallery
            (:mod:`fusemix.search.calibration`); comparable between modalities. None where nothing was calibrated.
    """

    modality: str
    item: dict[str, Any]
    similarity: float
    rank: int
    probability: float | None = None


class EmbeddingIndex:
    """Unit-length embeddings and their items, searched exactly, one faiss index per modality.

    Example:
        >>> index = EmbeddingIndex(512, model_identity=model.identity, root="demo/gallery")
        >>> index.add("image", model.embed("image", latents), items)
        >>> hits = index.search("image", query_embedding[None], top_k=5)[0]
    """

    def __init__(self, embed_dim: int, *, model_identity: str, root: str | Path | None = None) -> None:
        """Start an empty index.

        Args:
            embed_dim: Width D of the shared space.
            model_identity: ``FusionModel.identity`` of the model that makes the embeddings.
            root: Folder that the items' ``path`` is relative to; None if items are not files.
        """
        if embed_dim < 1:
            raise ValueError(f"embed_dim must be >= 1, got {embed_dim}.")
        self.embed_dim = operator.index(embed_dim)
        self.model_identity = model_identity
        self.root = Path(root).resolve() if root is not None else None
        self._files: RealFiles | None = None  # resolved paths of the root while items are added
        self._indexes: dict[str, faiss.IndexFlatIP] = {}
        self._items: dict[str, list[dict[str, Any]]] = {}
        self.corrected: dict[str, dict[str, Any]] = {}  # modality -> settings of its hubness correction

    def __len__(self) -> int:
        return sum(map(len, self._items.values()))

    @property
    def counts(self) -> dict[str, int]:
        """Modality -> number of items."""
        return {modality: len(items) for modality, items in self._items.items()}

    def items(self, modality: str) -> list[dict[str, Any]]:
        """Return the metadata of one modality's items, in the order they were added."""
        return list(self._items.get(modality, []))

    def path_of(self, item: dict[str, Any]) -> Path | None:
        """Return the file of an item; None if it is not a file.

        Raises:
            ValueError: If the index has no root, or the path leads out of it.
        """
        return item_path(self.root, item)

    def embeddings(self, modality: str) -> np.ndarray:
        """Return every embedding of one modality, in the order added: shape (N, D), float32, unit length."""
        return np.ascontiguousarray(self._stored(modality)[:, : self.embed_dim])

    def _stored(self, modality: str) -> np.ndarray:
        """Return the vectors in faiss: (N, D), or (N, D + 1) after :meth:`correct`."""
        index = self._indexes[modality]
        rows: np.ndarray = index.reconstruct_n(0, index.ntotal)
        return rows

    def add(self, modality: str, embeddings: np.ndarray | Tensor, items: Sequence[dict[str, Any]]) -> None:
        """Append items of one modality.

        Args:
            modality: A plain name (letters, digits, ``_``, ``-``); it becomes a file name.
            embeddings: Shape (N, D), any float dtype, finite, unit length.
            items: N metadata dicts of JSON values, without the keys ``modality``, ``rank`` and ``similarity``; each
                ``path`` must lie below the index's root.

        Raises:
            ValueError: If name, width, count or values are not as above.
        """
        if modality in self.corrected:
            raise ValueError(f"The hubs of {modality!r} are corrected already; add items first, correct them then.")
        rows = checked_items(modality, embeddings, items, self.embed_dim)
        check_metadata(items)
        self._check_paths([str(item["path"]) for item in items if "path" in item])
        self._append(modality, rows, items)

    def _append(self, modality: str, rows: np.ndarray, items: Sequence[dict[str, Any]]) -> None:
        index = self._indexes.setdefault(modality, faiss.IndexFlatIP(self.embed_dim))
        index.add(rows)
        self._items.setdefault(modality, []).extend(dict(item) for item in items)

    def _check_paths(self, paths: Sequence[str]) -> None:
        """Refuse files that :func:`item_path` would refuse once the index is loaded."""
        if self.root is None:
            return
        self._files = self._files or RealFiles(self.root)
        for path, real in zip(paths, self._files.paths(paths), strict=True):
            if not Path(real).is_relative_to(self.root):
                raise ValueError(
                    f"The file {path} does not lie in {self.root}, the root of the index, from which it finds its "
                    "files; give a root that holds them all."
                )

    def correct(
        self, modality: str, bank: np.ndarray | Tensor, *, neighbours: int = NEIGHBOURS, weight: float = WEIGHT
    ) -> None:
        """Apply nearest-neighbour normalisation to one modality: penalise items close to every query.

        The correction becomes one more dimension of what faiss holds, and search stays exact. Similarities of
        hits stay cosines; their order is the corrected one. Correcting again starts from the embeddings.

        Args:
            modality: Modality to correct.
            bank: Embeddings of training queries, shape (N, D), unit length; a sample of the expected kinds of
                queries, without any that results are measured with.
            neighbours: Number of nearest bank queries that are averaged for an item.
            weight: Of the correction, >= 0.

        Raises:
            KeyError: If the index holds no such modality.
            ValueError: If the bank is empty, of another width or not of unit length, or a number is out of range.

        Source:
            NNN, arXiv:2410.24114; see :mod:`fusemix.search.hubness`.
        """
        if modality not in self._indexes:
            raise KeyError(f"This index holds {sorted(self._indexes)}, not {modality!r}.")
        weight, neighbours = float(weight), operator.index(neighbours)  # JSON cannot hold numpy's numbers
        rows = torch.from_numpy(checked_items("bank", bank, [{}] * len(bank), self.embed_dim))
        plain = torch.from_numpy(self.embeddings(modality))
        _, wide = corrected(plain[:0], plain, rows, neighbours=neighbours, weight=weight)
        index = faiss.IndexFlatIP(self.embed_dim + 1)
        index.add(np.ascontiguousarray(wide.numpy()))
        self._indexes[modality] = index
        self.corrected[modality] = {"bank": len(rows), "neighbours": neighbours, "weight": weight}

    def search(
        self,
        modality: str,
        queries: np.ndarray | Tensor,
        *,
        top_k: int = 10,
        where: Mapping[str, str] | None = None,
    ) -> list[list[Hit]]:
        """Find the nearest items of one modality for each query; after :meth:`correct`, in the corrected order.

        Args:
            modality: Which items to search.
            queries: Shape (Q, D), any float dtype, finite; any length but zero, because they
                are normalised here.
            top_k: Hits per query, or all items if there are fewer.
            where: Metadata key -> the value an item must have, such as ``{"licence": "CC0-1.0"}``.

        Returns:
            For each query its hits, nearest first.

        Raises:
            KeyError: If the index holds no such modality.
            ValueError: If the shape or a value is not as above, or ``top_k`` < 1.
        """
        if modality not in self._indexes:
            raise KeyError(f"This index holds {sorted(self._indexes)}, not {modality!r}.")
        rows, top_k = checked_queries(queries, top_k, self.embed_dim), operator.index(top_k)
        where = check_where(where)
        items = self._items[modality]
        chosen: Sequence[int] = range(len(items))
        if where:
            chosen = [i for i in chosen if all(items[i].get(key) == value for key, value in where.items())]
        if not len(rows) or not chosen:
            return [[] for _ in rows]
        params = faiss.SearchParameters(sel=faiss.IDSelectorBatch(np.array(chosen))) if where else None  # type: ignore[call-arg]
        index = self._indexes[modality]
        if modality in self.corrected:
            rows = np.concatenate([rows, np.ones((len(rows), 1), np.float32)], axis=1)
        similarities, positions = index.search(rows, min(top_k, len(chosen)), params=params)
        order = np.lexsort((positions, -similarities))  # ties are in the order the items were added
        similarities = np.take_along_axis(similarities, order, axis=1)
        positions = np.take_along_axis(positions, order, axis=1)
        if modality in self.corrected:  # a hit's similarity stays a cosine
            last = np.stack([index.reconstruct_batch(found)[:, -1] for found in positions])
            similarities = similarities - last
        return [
            [
                Hit(modality, items[position], float(np.clip(similarity, -1, 1)), rank)
                for rank, (similarity, position) in enumerate(zip(row, found, strict=True), start=1)
            ]
            for row, found in zip(similarities, positions, strict=True)
        ]

    def save(self, folder: str | Path, *, dtype: Dtype = "float32", dims: int | None = None) -> Path:
        """Write ``index.json``, ``items.jsonl`` and the faiss files of each modality.

        ``index.json``, which names the others with their checksums, is written last, and no file that the present
        one names is changed: whatever is killed when, the folder holds the old index or the new one. Files over 9 MB
        are split; those that stay the same are not written again.

        Args:
            folder: Created if absent.
            dtype: Of the stored embeddings. ``float16`` halves the size and changes a similarity by less than a
                thousandth, which may swap hits that are this close; ``int8`` quarters it. It is loaded as float32 and
                searched exactly.
            dims: Principal directions to keep (:mod:`fusemix.search.principal`), of this index's own items; all by
                default. docs/scale-out.md says what they cost.

        Returns:
            The folder.

        Raises:
            ValueError: If there is no item, the dtype is unknown, ``dims`` is out of range, or the correction of hubs
                is too large for ``float16`` or comes with ``int8`` or ``dims``.
        """
        if not len(self):
            raise ValueError("The index holds nothing, so there is nothing to save; add items of a modality first.")
        if dtype not in _BYTES:
            raise ValueError(f"An index is stored as {', '.join(_BYTES)}, not {dtype!r}.")
        if dims is not None and not 1 <= dims <= self.embed_dim:
            raise ValueError(f"dims must be between 1 and the embeddings' width {self.embed_dim}, got {dims}.")
        if self.corrected and (dtype == "int8" or dims is not None):
            raise ValueError(
                "An index with corrected hubs is stored in all dimensions as float32 or float16; drop dims and int8 "
                "or the correction."
            )
        if dtype == "float16" and any(how["weight"] > _LARGEST_WEIGHT for how in self.corrected.values()):
            raise ValueError(
                f"Corrections of hubs with a weight above {_LARGEST_WEIGHT:g} are too large for float16; store this "
                "index as float32."
            )
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        files = _Files(folder)
        basis = None if dims is None else principal({m: self.embeddings(m) for m in self._items}, dims)
        shards = {modality: self._write_shards(files, modality, dtype, basis) for modality in self._items}
        manifest = {
            "format": FORMAT_VERSION,
            "model_identity": self.model_identity,
            "embed_dim": self.embed_dim,
            "counts": self.counts,
            "corrected": self.corrected,
            "root": os.path.relpath(self.root, folder.resolve()) if self.root is not None else None,
            "shards": shards,
            "dtype": dtype,
            "items": files.write(ITEMS_NAME, self._lines()),
            **({} if basis is None else {"basis": files.write(BASIS_NAME, to_bytes({"basis": basis}))}),
            "sha256": files.written,
        }
        write_json(folder / INDEX_NAME, manifest)
        for stale in (p for pattern in FILES[1:] for p in folder.glob(pattern)):
            if stale.name not in files.written:
                stale.unlink()
        return folder

    def _lines(self) -> bytes:
        """Return ``items.jsonl``."""
        entries = ({"modality": modality, **item} for modality, items in self._items.items() for item in items)
        return "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries).encode()

    def _write_shards(self, files: _Files, modality: str, dtype: Dtype, basis: np.ndarray | None) -> list[str]:
        index = self._indexes[modality]
        width = index.d if basis is None else basis.shape[1]
        rows_per_shard = max(1, MAX_SHARD_BYTES // (_BYTES[dtype] * width))
        starts = range(0, index.ntotal, rows_per_shard)
        names = []
        for number, start in enumerate(starts):
            rows = index.reconstruct_n(start, min(rows_per_shard, index.ntotal - start))
            shard = _empty_shard(width, dtype)
            if basis is not None:
                rows = np.ascontiguousarray(rows @ basis.astype(np.float32))
                rows /= np.linalg.norm(rows, axis=1, keepdims=True)
            elif dtype == "float16":  # lengths already differ a little from 1; after rounding the rows must still load
                rows[:, : self.embed_dim] /= np.linalg.norm(rows[:, : self.embed_dim], axis=1, keepdims=True)
            shard.train(rows)  # the range of each dimension, for int8
            shard.add(rows)
            name = f"{modality}.faiss" if len(starts) == 1 else f"{modality}-{number:03d}.faiss"
            names.append(files.write(name, faiss.serialize_index(shard).tobytes()))
        return names

    @classmethod
    def from_pretrained(cls, source: str | Path, *, model_identity: str) -> EmbeddingIndex:
        """Load an index from a folder or from a dataset on the Hub, into whose cache it is fetched.

        Args:
            source: A folder, or ``owner/name`` of a dataset that ``fusemix push`` made. After that name there may be
                ``@`` and a branch, tag or commit, and ``?root=`` and the folder that the items' files are in: an
                index from elsewhere never chooses itself which files of this machine are shown.
            model_identity: As for :meth:`load`.

        Raises:
            FileNotFoundError: If it is neither.
            ValueError: As :meth:`load`.
        """
        if Path(source).is_dir():
            return cls.load(source, model_identity=model_identity)
        address, _, root = str(source).partition("?root=")
        name, _, revision = address.partition("@")

        def download(repo_id: str) -> str:
            return snapshot_download(repo_id, repo_type="dataset", revision=revision or None, allow_patterns=FILES)

        given = source if isinstance(source, Path) else name  # a Path is no name on the Hub
        loaded = cls.load(resolve(given, "index", download), model_identity=model_identity)
        loaded.root = Path(root).resolve() if root else None
        return loaded

    @classmethod
    def load(cls, folder: str | Path, *, model_identity: str) -> EmbeddingIndex:
        """Load an index that a given model made.

        Args:
            folder: A folder written by :meth:`save`.
            model_identity: ``FusionModel.identity`` of the model that will make the queries.

        Raises:
            FileNotFoundError: If the folder holds no index.
            ValueError: If another model made it, its format is another, or a file is damaged.
        """
        folder = Path(folder)
        if not (folder / INDEX_NAME).is_file():
            raise FileNotFoundError(f"{folder} holds no {INDEX_NAME}; build an index with fusemix index.")
        manifest = read_json(folder / INDEX_NAME)
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT_VERSION:
            raise ValueError(f"{folder} is no index of format {FORMAT_VERSION}; {_REBUILD}.")
        if manifest.get("model_identity") != model_identity:
            raise ValueError(
                f"The index in {folder} was made by the model {str(manifest.get('model_identity'))[:12]}..., "
                f"but this model is {model_identity[:12]}...; {_REBUILD}."
            )
        try:
            try:
                return cls._read(folder, manifest)
            except (OSError, ValueError):
                if read_json(folder / INDEX_NAME) == manifest:
                    raise
                return cls.load(folder, model_identity=model_identity)  # it was replaced while it was read
        except (KeyError, TypeError, AttributeError, OSError, ValueError, RuntimeError, MemoryError) as error:
            raise ValueError(f"The index in {folder} is damaged or incomplete ({error}); {_REBUILD}.") from error

    @classmethod
    def _read(cls, folder: Path, manifest: dict[str, Any]) -> EmbeddingIndex:
        for name, expected in manifest["sha256"].items():
            if Path(name).name != name or sha256_of(folder / name) != expected:
                raise ValueError(f"{name} is not the file that was saved")
        root = None if manifest["root"] is None else folder.resolve() / manifest["root"]
        loaded = cls(int(manifest["embed_dim"]), model_identity=manifest["model_identity"], root=root)
        items: dict[str, list[dict[str, Any]]] = {modality: [] for modality in manifest["counts"]}
        for line in (folder / _named(manifest, "items", ITEMS_NAME)).read_text(encoding="utf-8").split("\n")[:-1]:
            item = json.loads(line)
            items[item.pop("modality")].append(item)
        basis = load_file(folder / _named(manifest, "basis", ""))["basis"] if "basis" in manifest else None
        for modality, names in manifest["shards"].items():
            shards = [faiss.read_index(str(folder / name)) for name in names if name in manifest["sha256"]]
            parts = [shard.reconstruct_n(0, shard.ntotal) for shard in shards]
            stored = np.concatenate(parts) if parts else np.empty((0, loaded.embed_dim), np.float32)
            stored = _restored(stored, basis, rounded=manifest.get("dtype") == "int8")
            rows = checked_items(modality, stored[:, : loaded.embed_dim], items[modality], loaded.embed_dim)
            loaded._append(modality, rows, items[modality])
            if how := manifest.get("corrected", {}).get(modality):
                loaded._restore(modality, stored, how)
        if loaded.counts != manifest["counts"]:
            raise ValueError(f"it holds {loaded.counts} items, expected {manifest['counts']}")
        return loaded

    def _restore(self, modality: str, stored: np.ndarray, how: dict[str, Any]) -> None:
        """Restore the correction that :meth:`correct` made for a modality."""
        if stored.shape[1] != self.embed_dim + 1 or not np.isfinite(stored).all():
            raise ValueError(f"the correction of {modality!r} is not among its embeddings")
        self._indexes[modality] = faiss.IndexFlatIP(self.embed_dim + 1)
        self._indexes[modality].add(np.ascontiguousarray(stored))
        self.corrected[modality] = dict(how)


class _Files:
    """The files of an index being saved, beside those of the index that lies there.

    Attributes:
        written: Name -> SHA-256 of what the new index holds.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.written: dict[str, str] = {}
        try:
            self._present: dict[str, str] = dict(read_json(folder / INDEX_NAME)["sha256"])
        except (OSError, KeyError, TypeError, ValueError):
            self._present = {}  # no index, or a damaged one

    def write(self, name: str, content: bytes) -> str:
        """Write a file under this name or, if the present index has it, a similar one; return its name."""
        digest = hashlib.sha256(content).hexdigest()
        for known, theirs in self._present.items():
            path = self.folder / known
            if theirs == digest and known not in self.written and path.is_file() and sha256_of(path) == digest:
                self.written[known] = digest
                return known
        stem, _, ending = name.rpartition(".")
        free = (f"{stem}{suffix}.{ending}" for suffix in itertools.chain([""], (f".{n}" for n in itertools.count(2))))
        chosen = next(n for n in free if n not in self._present and n not in self.written)
        write_atomic(self.folder / chosen, lambda path: path.write_bytes(content))
        self.written[chosen] = digest
        return chosen


def _named(manifest: dict[str, Any], key: str, default: str) -> str:
    """Return the name of a file; ValueError if its checksum is not known."""
    name = str(manifest.get(key, default))
    if name not in manifest["sha256"]:
        raise ValueError(f"{name} has no checksum")
    return name


def _empty_shard(dim: int, dtype: Dtype) -> faiss.Index:
    if dtype == "float32":
        return faiss.IndexFlatIP(dim)
    kind = faiss.ScalarQuantizer.QT_fp16 if dtype == "float16" else faiss.ScalarQuantizer.QT_8bit
    return faiss.IndexScalarQuantizer(dim, kind, faiss.METRIC_INNER_PRODUCT)


def _restored(stored: np.ndarray, basis: np.ndarray | None, *, rounded: bool) -> np.ndarray:
    """Return rows in all dimensions; of unit length where they were reduced or rounded coarsely."""
    rows = stored if basis is None else stored @ basis.T.astype(np.float32)
    if basis is None and not rounded:
        return rows
    whole: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return whole


def item_path(root: Path | None, item: dict[str, Any]) -> Path | None:
    """Return the file of an item below a folder; None if it is not a file.

    Raises:
        ValueError: If the folder is not known, or the path leads out of it.
    """
    if "path" not in item:
        return None
    if root is None:
        raise ValueError(f"The index knows no folder for {item['path']!r}; {_REBUILD}.")
    path: Path = (root / item["path"]).resolve()
    if not path.is_relative_to(root):
        raise ValueError(f"The item path {item['path']!r} leads out of {root}; {_REBUILD}.")
    return path


def checked_items(
    modality: str, embeddings: np.ndarray | Tensor, items: Sequence[dict[str, Any]], embed_dim: int
) -> np.ndarray:
    """Check items for an index; return contiguous float32 rows (N, D), finite and of unit length.

    Raises:
        ValueError: If name, width, count or values are not so.
    """
    if not modality.replace("_", "").replace("-", "").isalnum():
        raise ValueError(f"A modality is named with letters, digits, '_' and '-', got {modality!r}.")
    rows = _checked_rows(embeddings, "embeddings", embed_dim)
    if len(rows) != len(items):
        raise ValueError(f"Expected one item per embedding, got {len(items)} items and {len(rows)} embeddings.")
    lengths = np.linalg.norm(rows, axis=1)
    if len(rows) and np.abs(lengths - 1).max() > UNIT_TOLERANCE:
        worst = int(np.abs(lengths - 1).argmax())
        raise ValueError(
            f"Embeddings must have unit length, row {worst} has {lengths[worst]:.4g}; use FusionModel.embed."
        )
    return rows


def check_metadata(items: Sequence[Mapping[str, Any]]) -> None:
    """Refuse metadata that an index cannot store; call it before anything is stored.

    Raises:
        ValueError: If a key is one of :data:`RESERVED` or not a text, or JSON cannot hold a value.
    """
    for number, item in enumerate(items):
        if taken := [key for key in RESERVED if key in item]:
            raise ValueError(f"Item {number} has the metadata key {taken[0]!r}, which the index itself uses; rename.")
        for key, value in item.items():
            try:
                if not isinstance(key, str):
                    raise TypeError(f"a key of type {type(key).__name__}")
                json.dumps(value, allow_nan=False)
            except (TypeError, ValueError, RecursionError) as error:
                raise ValueError(
                    f"Item {number} has metadata that JSON cannot hold, {key!r} ({error}); make it text, a number, a "
                    "list or a dict of these."
                ) from error


def checked_queries(queries: np.ndarray | Tensor, top_k: int, embed_dim: int) -> np.ndarray:
    """Check queries; return float32 rows (Q, D) of unit length.

    Raises:
        TypeError: If ``top_k`` is not an integer (numpy's are accepted).
        ValueError: If the shape or a value is wrong, a row has length zero, or ``top_k`` < 1.
    """
    if operator.index(top_k) < 1:
        raise ValueError(f"top_k must be >= 1, got {top_k}.")
    rows = _checked_rows(queries, "queries", embed_dim)
    largest = np.abs(rows).max(axis=1, keepdims=True, initial=0)  # squares of very large values are infinite
    if not largest.all():
        raise ValueError("A query of length zero has no direction; encode it again.")
    rows = rows / largest
    unit: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def check_where(where: Mapping[str, str] | None) -> dict[str, str]:
    """Check a filter on metadata and return it; keys must be plain names.

    Raises:
        ValueError: If a key is no plain name or a value no text.
    """
    for key, value in (where or {}).items():
        if not str(key).isidentifier() or not isinstance(value, str):
            raise ValueError(
                f"A filter is a plain name and a text, such as licence and CC0-1.0, got {key!r}: {value!r}."
            )
    return dict(where or {})


def _checked_rows(vectors: np.ndarray | Tensor, what: str, embed_dim: int) -> np.ndarray:
    """Return contiguous float32 rows (N, D), all finite."""
    array = vectors.detach().cpu().float().numpy() if isinstance(vectors, Tensor) else np.asarray(vectors)
    if array.ndim != 2 or array.shape[1] != embed_dim:
        raise ValueError(f"Expected {what} of shape (N, {embed_dim}), got {array.shape}.")
    rows = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(rows).all():
        raise ValueError(f"The {what} hold NaN or infinite values; encode these items again.")
    return rows
