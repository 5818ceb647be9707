"""Latent store: memory-mapped shards of one encoder's latents, written so that a kill loses nothing.

A store is a folder::

    manifest.json       encoder identity, dtype, table, counts, shard checksums, rows left out
    rows.parquet        one line per table row: row, item, group, split
    latents-00000.npy   (rows of the shard, dim), float32 or float16, not normalised

Several rows may share an item (five captions of one photo): an item is encoded once.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import mmap
import os
import resource
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fusemix.data.pairs import Item, PairTable
from fusemix.encoders.base import Encoder
from fusemix.files import read_json, sole_writer, write_atomic, write_json
from fusemix.media import MediaError

MANIFEST_NAME = "manifest.json"
ROWS_NAME = "rows.parquet"
FORMAT_VERSION = 1
_ASIDE = "latents-{:05d}.json"  # of a shard that is finished and not yet in the manifest
SHARD_ITEMS = 1024  # items a shard; what a kill can cost is one shard in the making
OPEN_SHARDS = 4096  # files a store keeps open at most, and no more than an eighth of what a process may
SHARDS_AT_ONCE = 64  # whose rows the disk is asked for together
CHUNK_ITEMS = 8192  # items read at once where a whole store passes through memory
BLOCK_BYTES = 4 * 2**20  # read at once while checking
DTYPES = ("float32", "float16")
_EXPONENT = {"float32": (np.uint32, 0x7F800000), "float16": (np.uint16, 0x7C00)}  # all set: infinite or NaN
_MANIFEST_KEYS = {"encoder": dict, "dtype": str, "complete": bool, "shards": list, "skipped": list}
_ENCODER_KEYS = {"name": str, "modality": str, "dim": int, "revision": str, "fingerprint": str}
_SHARD_KEYS = {"file": str, "items": int, "sha256": str}
_SKIPPED_KEYS = {"item": int, "row": int, "reason": str}
_ROW_COLUMNS = ("row", "item", "group", "split")

Report = Callable[[int, int], None]  # items done, items in all


class LatentStore:
    """Latents of one modality, read through a memory map.

    Attributes:
        manifest: As saved in ``manifest.json``.
        rows: Table rows that have a latent: columns row, item, group (int64) and split (str).
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], rows: pd.DataFrame) -> None:
        self.folder = folder
        self.manifest = manifest
        self.rows = rows
        self._starts = np.cumsum([0, *(int(shard["items"]) for shard in manifest["shards"])])
        # millions of items are thousands of files, more than a process may hold open
        self._map = lru_cache(_shards_kept_open())(self._scattered)
        self._held: Tensor | None = None
        self._not_finite: np.ndarray | None = None

    def _shard(self, number: int) -> np.ndarray:
        path = self.folder / self.manifest["shards"][number]["file"]
        return np.load(path, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]

    def _scattered(self, number: int) -> _Scattered:
        return _Scattered(self._shard(number))

    @property
    def encoder(self) -> dict[str, Any]:
        """Identity of the encoder that made the latents."""
        return dict(self.manifest["encoder"])

    @property
    def modality(self) -> str:
        """Modality of the latents."""
        return str(self.encoder["modality"])

    @property
    def dim(self) -> int:
        """Width of a latent."""
        return int(self.encoder["dim"])

    def __len__(self) -> int:
        """Number of items."""
        return int(self._starts[-1])

    @property
    def held(self) -> bool:
        """Whether :meth:`hold` was called."""
        return self._held is not None

    @property
    def n_bytes(self) -> int:
        """Of all latents, as stored."""
        return len(self) * self.dim * np.dtype(self.manifest["dtype"]).itemsize

    def gather(self, items: np.ndarray, device: str | torch.device = "cpu") -> Tensor:
        """Latents of the given items: shape (len(items), dim), float32, on a device.

        From memory if :meth:`hold` was called, otherwise from the memory map; the values are the same.
        """
        items = np.asarray(items, dtype=np.int64)
        if len(items) and not 0 <= items.min() <= items.max() < len(self):
            raise IndexError(f"Items must be 0 to {len(self) - 1}, got {items.min()} to {items.max()}.")
        if self._held is not None:
            index = torch.from_numpy(items).to(self._held.device)
            return self._held.index_select(0, index).to(device).float()
        return torch.from_numpy(self._from_map(items)).to(device).float()  # torch widens float16 faster than numpy

    def _from_map(self, items: np.ndarray) -> np.ndarray:
        order = np.argsort(items, kind="stable")  # each shard is visited once, front to back
        ordered = items[order]
        out = np.empty((len(items), self.dim), dtype=self.manifest["dtype"])
        bounds = np.searchsorted(ordered, self._starts)
        touched = np.flatnonzero(np.diff(bounds))
        for some in np.array_split(touched, -(-len(touched) // SHARDS_AT_ONCE)) if len(touched) else ():
            parts = {int(shard): slice(bounds[shard], bounds[shard + 1]) for shard in some}
            maps = {shard: self._map(shard) for shard in parts}
            for shard, part in parts.items():  # the disk may answer in any order, all at once
                maps[shard].expect(ordered[part] - self._starts[shard])
            for shard, part in parts.items():
                out[order[part]] = maps[shard].values[ordered[part] - self._starts[shard]]
        return out

    def read(self, items: np.ndarray) -> np.ndarray:
        """Latents of the given items: shape (len(items), dim), float32."""
        return self.gather(items).numpy()

    def all(self) -> np.ndarray:
        """Every latent: shape (len(self), dim), float32, in memory."""
        out = torch.empty((len(self), self.dim))
        self._copy(out)
        return out.numpy()

    def hold(self, device: str | torch.device = "cpu") -> None:
        """Keep every latent in memory, as stored, on a device from now on."""
        if self._held is None:
            held = torch.empty((len(self), self.dim), dtype=getattr(torch, self.manifest["dtype"]), device=device)
            self._copy(held)
            self._held = held

    def _copy(self, out: Tensor) -> None:
        for number, start in enumerate(self._starts[:-1]):
            shard = self._shard(number)
            for first in range(0, len(shard), CHUNK_ITEMS):
                piece = np.array(shard[first : first + CHUNK_ITEMS], order="C")
                out[start + first : start + first + len(piece)] = torch.from_numpy(piece)

    def not_finite(self) -> np.ndarray:
        """Items whose latent holds NaN or an infinite number; looked for once, by reading everything."""
        if self._not_finite is None:
            self._check(checksums=False)
        assert self._not_finite is not None
        return self._not_finite

    def _check(self, *, checksums: bool) -> None:
        """Read every shard once, on all processors, for its checksum and for numbers that are not finite."""
        manifest = self.manifest

        def look(number: int) -> np.ndarray:
            shard = manifest["shards"][number]
            sha256, bad = _look_through(self.folder / shard["file"])
            if checksums and sha256 != shard["sha256"]:
                raise _damaged(self.folder, shard, "has other bytes than the manifest's checksum")
            return bad + self._starts[number]

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            found = list(pool.map(look, range(len(manifest["shards"]))))
        self._not_finite = np.concatenate([np.empty(0, np.int64), *found])

    @classmethod
    def open(cls, folder: str | Path, *, verify: bool = False) -> LatentStore:
        """Open a finished store.

        Args:
            folder: Written by :func:`extract` or :func:`write_latents`.
            verify: Also compare every shard's SHA-256 with the manifest.

        Raises:
            FileNotFoundError: If the folder holds no store.
            ValueError: If the store is unfinished, damaged or its manifest does not fit its files.
        """
        folder = Path(folder)
        if not (folder / MANIFEST_NAME).is_file():
            raise FileNotFoundError(f"{folder} holds no latent store; make one with scripts/extract.py.")
        manifest = _read_manifest(folder)
        if not manifest["complete"]:
            raise ValueError(f"The latent store {folder} is unfinished; run its scripts/extract.py command again.")
        for shard in manifest["shards"]:
            _check_shard(folder, manifest, shard)
        try:
            rows = pd.read_parquet(folder / ROWS_NAME, columns=list(_ROW_COLUMNS))
        except (OSError, ValueError) as error:
            raise ValueError(f"{folder / ROWS_NAME} is missing or damaged ({error}); extract again.") from error
        n_items = sum(shard["items"] for shard in manifest["shards"])
        if len(rows) and not (rows["item"].min() >= 0 and rows["item"].max() < n_items):
            raise ValueError(f"{folder / ROWS_NAME} names items that the store's {n_items} latents do not hold.")
        left_out = {entry["item"] for entry in manifest["skipped"]}
        store = cls(folder, manifest, rows[~rows["item"].isin(left_out)].reset_index(drop=True) if left_out else rows)
        if verify:
            store._check(checksums=True)
        return store


def _shards_kept_open() -> int:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return OPEN_SHARDS if limit == resource.RLIM_INFINITY else min(OPEN_SHARDS, limit // 8)


class _Scattered:
    """A shard mapped for rows here and there.

    The system is told not to read the megabytes around each row, and which rows come next: on a disk of this machine
    2,048 rows that were not in memory took 0.18 s instead of 0.64 s, and a third of the processor's time.
    """

    def __init__(self, shard: np.ndarray) -> None:
        self.values = np.asarray(shard)
        self._memory = shard.base if isinstance(shard.base, mmap.mmap) and hasattr(mmap, "MADV_RANDOM") else None
        self._offset = getattr(shard, "offset", 0)
        if not self.values.flags.c_contiguous:
            self._memory = None  # a row lies in as many places as it has numbers
        if self._memory is not None:
            self._memory.madvise(mmap.MADV_RANDOM)

    def expect(self, rows: np.ndarray) -> None:
        """Let the disk begin to read these rows."""
        if self._memory is None:
            return
        size = self.values.strides[0]
        for place in (self._offset + size * rows).tolist():
            start = place // mmap.PAGESIZE * mmap.PAGESIZE
            self._memory.madvise(mmap.MADV_WILLNEED, start, place + size - start)


def extract(
    table: PairTable,
    column: str,
    encoder: Encoder,
    folder: str | Path,
    *,
    split: str | None = None,
    dtype: str = "float32",
    batch_size: int = 32,
    workers: int = 2,
    skip_errors: bool = False,
    report: Report | None = None,
) -> LatentStore:
    """Encode every distinct item of a column into a store; call again after a kill to go on.

    Started by torchrun, every process encodes its share of the shards (the folder must be one that all see); the first
    one joins them. The store is the same, and any number of processes may go on with it.

    Args:
        table: The table of pairs.
        column: Its column to encode; usually the encoder's modality.
        encoder: A frozen encoder.
        folder: Of the store; an unfinished store of the same table, column, split and
            encoder there is continued, a finished one is returned as it is.
        split: Only rows of this split.
        dtype: ``float32`` or ``float16``.
        batch_size: Items per forward pass.
        workers: Threads that decode.
        skip_errors: Leave unusable items out and list them in the manifest, instead of raising.
        report: Called with (items done, items in all) after every batch; of this process, where there are several.

    Raises:
        ValueError: If an item cannot be used (naming its row), the folder holds another
            encoder's or another table's store, or nothing usable is left.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {DTYPES}, got {dtype!r}.")
    folder = Path(folder)
    items = table.items(column, split)
    header = {
        "format": FORMAT_VERSION,
        "encoder": encoder.info(),
        "dtype": dtype,
        "table": table.fingerprint,
        "column": column,
        "split": split,
        "n_items": len(items),
    }
    rank, processes, wait = _share()
    with sole_writer(folder) if rank == 0 else nullcontext():
        if rank == 0:
            manifest = _start_or_continue(folder, header)
            if not manifest["complete"] and not (folder / ROWS_NAME).exists():
                _write_rows(folder, row_index(table, column, split))
        wait()
        manifest = manifest if rank == 0 else _read_manifest(folder)
        if not manifest["complete"]:
            work = _Work(table, column, items, encoder, folder, dtype, batch_size, skip_errors)
            _extract(work, manifest, workers, report, (rank, processes), wait)
        wait()
    return LatentStore.open(folder)


def _share() -> tuple[int, int, Callable[[], None]]:
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return 0, 1, lambda: None
    from fusemix.distributed import share_of_work  # imports accelerate

    return share_of_work()


@dataclass(frozen=True)
class _Work:
    """What is encoded, by whom, and where it goes."""

    table: PairTable
    column: str
    items: list[Item]
    encoder: Encoder
    folder: Path
    dtype: str
    batch_size: int
    skip_errors: bool

    def usable(self, item: Item, number: int) -> Any:
        """The prepared item, or the manifest's entry for one left out."""
        try:
            return self.encoder.prepare(item.value)
        except MediaError as error:
            if not self.skip_errors:
                raise ValueError(
                    f"Row {item.row} of {self.table.path}, column {self.column!r}: {error} "
                    "(skip_errors=True leaves such rows out and lists them)"
                ) from error
            return _LeftOut(number, item.row, str(error))

    def shard(
        self, start: int, pool: ThreadPoolExecutor, done: Callable[[int], None]
    ) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """The latents of one shard's items, and those left out; ``done`` is told of every batch."""
        part = self.items[start : start + SHARD_ITEMS]
        latents = np.zeros((len(part), self.encoder.dim), dtype=self.dtype)
        left_out: list[dict[str, Any]] = []
        for offset in range(0, len(part), self.batch_size):
            batch = part[offset : offset + self.batch_size]
            prepared = list(pool.map(self.usable, batch, range(start + offset, start + offset + len(batch))))
            left_out += [asdict(value) for value in prepared if isinstance(value, _LeftOut)]
            good = [i for i, value in enumerate(prepared) if not isinstance(value, _LeftOut)]
            if good:
                latents[[offset + i for i in good]] = self.encoder.encode_prepared([prepared[i] for i in good])
            done(len(batch))
        return latents, left_out


def _extract(
    work: _Work,
    manifest: dict[str, Any],
    workers: int,
    report: Report | None,
    share: tuple[int, int],
    wait: Callable[[], None],
) -> None:
    rank, processes = share
    folder, n = work.folder, len(work.items)
    starts = list(range(sum(shard["items"] for shard in manifest["shards"]), n, SHARD_ITEMS))
    first = len(manifest["shards"])
    mine = [(first + i, start) for i, start in enumerate(starts) if i % processes == rank]
    total = sum(min(SHARD_ITEMS, n - start) for _, start in mine) if processes > 1 else n
    count = total - sum(min(SHARD_ITEMS, n - start) for _, start in mine)

    def done(items: int) -> None:
        nonlocal count
        count += items
        if report:
            report(count, total)

    with ThreadPoolExecutor(workers) as pool:
        for number, start in mine:
            aside = folder / _ASIDE.format(number)
            if not aside.exists():
                latents, left_out = work.shard(start, pool, done)
                write_json(aside, _write_shard(folder, number, latents) | {"skipped": left_out})
            else:
                done(min(SHARD_ITEMS, n - start))
            if processes == 1:
                _name(folder, manifest, number)
    wait()
    if rank:
        return
    for number in range(len(manifest["shards"]), first + len(starts)):
        _name(folder, manifest, number)
    for aside in folder.glob("latents-*.json"):  # named before a kill took it away
        aside.unlink()
    if len(manifest["skipped"]) == n:
        reason = manifest["skipped"][0]["reason"]
        raise ValueError(f"No item of column {work.column!r} could be used; the first: {reason}")
    manifest["complete"] = True
    write_json(folder / MANIFEST_NAME, manifest)


@dataclass(frozen=True)
class _LeftOut:
    item: int
    row: int
    reason: str


def write_latents(
    folder: str | Path,
    batches: np.ndarray | Iterator[np.ndarray],
    *,
    modality: str,
    name: str,
    revision: str = "",
    rows: np.ndarray | None = None,
    groups: Sequence[int] | None = None,
    splits: Sequence[str] | None = None,
    index: Callable[[int], pd.DataFrame] | None = None,
    table: PairTable | None = None,
    dtype: str = "float32",
) -> LatentStore:
    """Put latents you already have into a store; row i of every modality is one pair.

    :func:`fusemix.data.import_latents.import_latents` does this for a file, with checks.

    Args:
        folder: A new folder.
        batches: Shape (N, dim), or an iterator over such pieces; not normalised.
        modality: Any name; it becomes a modality of models trained on the store.
        name: What made the latents, e.g. a model's name; recorded as the encoder.
        rows: (N,) pair numbers, if not 0..N-1.
        groups: Items of equal group are right answers for one another; default: each alone.
        splits: Split name of every latent; ``val``/``dev`` validate, ``test`` is kept out.
        revision: Identity of the weights that made them, if you know it.
        index: Instead of rows, groups and splits: called with the number of latents, gives a line per
            table row (row, item, group, split); several rows may share a latent.
        table: The table that ``index`` or ``rows`` number, so that the store joins others made from it.
        dtype: ``float32`` or ``float16``.

    Raises:
        ValueError: If the folder already holds a store, there is no latent, or lengths or widths disagree.
    """
    folder = Path(folder)
    pieces = iter([batches] if isinstance(batches, np.ndarray) else batches)
    first = np.asarray(next(pieces, np.empty((0, 0))))
    if first.size == 0 and first.ndim == 2:
        raise ValueError("There are no latents; expected at least one row and one dimension.")
    if first.ndim != 2:
        raise ValueError(f"Latents must have shape (N, dim), got {first.shape}.")
    encoder = {
        "name": name,
        "modality": modality,
        "dim": int(first.shape[1]),
        "revision": revision,
        "fingerprint": "given latents",
    }
    header = {
        "format": FORMAT_VERSION,
        "encoder": encoder,
        "dtype": dtype,
        "table": table.fingerprint if table else None,
        "column": modality,
        "split": None,
    }
    if (folder / MANIFEST_NAME).exists():
        raise ValueError(f"{folder} already holds a latent store; choose a new folder.")
    manifest = _start_or_continue(folder, header)
    for piece in itertools.chain((first,), pieces):  # one piece in memory at a time
        piece = np.asarray(piece)
        if piece.ndim != 2 or piece.shape[1] != first.shape[1]:
            raise ValueError(f"Every piece must have shape (n, {first.shape[1]}), got {piece.shape}.")
        _append_shard(folder, manifest, piece.astype(dtype, copy=False), [])
    n = sum(shard["items"] for shard in manifest["shards"])
    if index is not None:
        frame = index(n)
    else:
        number = np.arange(n)
        columns = {
            "row": number if rows is None else np.asarray(rows),
            "item": number,
            "group": number if groups is None else np.asarray(groups),
            "split": np.full(n, "", dtype=object) if splits is None else np.asarray(splits, dtype=object),
        }
        if any(len(values) != n for values in columns.values()):
            raise ValueError(f"rows, groups and splits must each have {n} entries, one per latent.")
        frame = pd.DataFrame(columns)
    _write_rows(folder, frame)
    manifest["complete"], manifest["n_items"] = True, n
    write_json(folder / MANIFEST_NAME, manifest)
    return LatentStore.open(folder)


def row_index(table: PairTable, column: str, split: str | None = None) -> pd.DataFrame:
    """A line per filled cell of a column: row, item (numbered by first appearance), group, split."""
    cells = table.cells(column, split)
    number = {(item.value, item.group): i for i, item in enumerate(table.items(column, split))}
    names = table.splits()
    return pd.DataFrame(
        {
            "row": [cell.row for cell in cells],
            "item": [number[cell.value, cell.group] for cell in cells],
            "group": [cell.group for cell in cells],
            "split": [names[cell.row] for cell in cells],
        }
    )


def _start_or_continue(folder: Path, header: dict[str, Any]) -> dict[str, Any]:
    if not (folder / MANIFEST_NAME).exists():
        folder.mkdir(parents=True, exist_ok=True)
        manifest = {**header, "complete": False, "shards": [], "skipped": []}
        write_json(folder / MANIFEST_NAME, manifest)
        return manifest
    manifest = _read_manifest(folder)
    for key, value in header.items():
        if manifest.get(key) != value:
            raise ValueError(
                f"{folder} holds latents with {key} = {_short(manifest.get(key))}, this call has {_short(value)}. "
                "Choose another folder or remove that one."
            )
    for shard in manifest["shards"]:
        _check_shard(folder, manifest, shard)
        if _look_through(folder / shard["file"])[0] != shard["sha256"]:
            raise _damaged(folder, shard, "has other bytes than the manifest's checksum")
    return manifest


def _append_shard(folder: Path, manifest: dict[str, Any], shard: np.ndarray, skipped: list[dict[str, Any]]) -> None:
    """Write one shard and only then name it in the manifest: a kill between the two loses nothing."""
    manifest["shards"].append(_write_shard(folder, len(manifest["shards"]), shard))
    manifest["skipped"].extend(skipped)
    write_json(folder / MANIFEST_NAME, manifest)


def _write_shard(folder: Path, number: int, shard: np.ndarray) -> dict[str, Any]:
    """Write one shard; what the manifest says of it."""
    name = f"latents-{number:05d}.npy"
    buffer = io.BytesIO()
    np.save(buffer, shard, allow_pickle=False)
    write_atomic(folder / name, lambda temporary: temporary.write_bytes(buffer.getbuffer()))
    # of what was to be written: a disk that kept something else is found out
    digest = hashlib.sha256(buffer.getbuffer()).hexdigest()
    return {"file": name, "items": len(shard), "sha256": digest}


def _name(folder: Path, manifest: dict[str, Any], number: int) -> None:
    """Name a finished shard, which the process that made it has laid aside, in the manifest."""
    aside = folder / _ASIDE.format(number)
    shard = read_json(aside)
    skipped = shard.pop("skipped")
    _check_shard(folder, manifest, shard)
    if _look_through(folder / shard["file"])[0] != shard["sha256"]:
        raise _damaged(folder, shard, "has other bytes than its checksum")
    manifest["skipped"].extend(skipped)
    manifest["shards"].append(shard)
    write_json(folder / MANIFEST_NAME, manifest)
    aside.unlink()


def _write_rows(folder: Path, rows: pd.DataFrame) -> None:
    write_atomic(folder / ROWS_NAME, lambda temporary: rows.to_parquet(temporary, index=False))


def _read_manifest(folder: Path) -> dict[str, Any]:
    manifest = read_json(folder / MANIFEST_NAME)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT_VERSION:
        raise ValueError(f"{folder / MANIFEST_NAME} is not a latent store manifest of format {FORMAT_VERSION}.")
    encoder = manifest.get("encoder")
    parts: list[tuple[Any, dict[str, type]]] = [(manifest, _MANIFEST_KEYS), (encoder, _ENCODER_KEYS)]
    if isinstance(manifest.get("shards"), list):
        parts += [(shard, _SHARD_KEYS) for shard in manifest["shards"]]
    if isinstance(manifest.get("skipped"), list):
        parts += [(entry, _SKIPPED_KEYS) for entry in manifest["skipped"]]
    for part, keys in parts:
        least = 0 if keys is _SKIPPED_KEYS else 1
        for key, kind in keys.items():
            value = part.get(key) if isinstance(part, dict) else None
            if not _is(value, kind, least):
                raise ValueError(
                    f"{folder / MANIFEST_NAME} says {_short(value)!r} where {key} stands; it was damaged or changed. "
                    f"Remove {folder} and extract again."
                )
    return manifest


def _is(value: Any, kind: type, least: int) -> bool:
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and value >= least
    return isinstance(value, kind)


def _check_shard(folder: Path, manifest: dict[str, Any], shard: dict[str, Any]) -> None:
    """Raise unless the shard's size, shape and type are what the manifest says; its bytes are not read."""
    path, dim, dtype = folder / shard["file"], manifest["encoder"]["dim"], manifest["dtype"]
    if Path(shard["file"]).name != shard["file"] or not path.is_file():
        raise _damaged(folder, shard, "is missing")
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise _damaged(folder, shard, f"is damaged or cut short ({error})") from error
    if values.shape != (shard["items"], dim):
        raise _damaged(folder, shard, f"has shape {values.shape}, the manifest says {(shard['items'], dim)}")
    if str(values.dtype) != dtype:
        raise _damaged(folder, shard, f"holds {values.dtype}, the manifest says {dtype}")


def _look_through(path: Path) -> tuple[str, np.ndarray]:
    """One reading of a shard: its SHA-256, and the items that hold NaN or an infinite number."""
    shard = np.load(path, mmap_mode="r", allow_pickle=False)
    (n, dim), offset, size, by_columns = shard.shape, shard.offset, shard.itemsize, not shard.flags.c_contiguous
    word, exponent = _EXPONENT[str(shard.dtype)]
    digest, buffer, bad, place = hashlib.sha256(), memoryview(bytearray(BLOCK_BYTES)), [np.empty(0, np.int64)], 0
    with open(path, "rb") as handle:
        digest.update(handle.read(offset))
        while count := handle.readinto(buffer):
            digest.update(buffer[:count])
            count -= count % size  # never in the middle of a number but at a torn end, which the checksum tells
            bits = np.frombuffer(buffer[:count], word) & exponent
            if bits.size and bits.max() == exponent:
                at = place + np.flatnonzero(bits == exponent)
                bad.append(np.unique(at % n if by_columns else at // dim))
            place += count // size
    return digest.hexdigest(), np.unique(np.concatenate(bad))


def _damaged(folder: Path, shard: dict[str, Any], problem: str) -> ValueError:
    return ValueError(
        f"The latent shard {folder / shard['file']} {problem}; nothing was changed. Remove {folder} and extract again."
    )


def _short(value: Any) -> str:
    text = f"{value.get('name')} {str(value.get('revision'))[:12]}" if isinstance(value, dict) else str(value)
    return text if len(text) < 80 else text[:77] + "..."
