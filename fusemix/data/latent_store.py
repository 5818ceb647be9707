"""Latent store, read through a memory map: shards of one encoder's latents.

A store is a folder::

    manifest.json       encoder identity, dtype, table, counts, shard checksums, rows left out
    rows.parquet        one line per table row: row, item, group, split
    latents-00000.npy   (rows of the shard, dim), float32 or float16, not normalised

Several rows may share an item (five captions of one photo): an item is encoded once. :mod:`fusemix.data.extract` makes
stores by an encoder, :mod:`fusemix.data.latent_writer` from latents that exist already.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import resource
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fusemix.encoder_identity import portable_name
from fusemix.files import read_json

MANIFEST_NAME = "manifest.json"
ROWS_NAME = "rows.parquet"
FORMAT_VERSION = 1
OPEN_SHARDS = 4096  # most files a store keeps open, and at most an eighth of the process's limit
SHARDS_AT_ONCE = 64  # rows prefetched from disk together
CHUNK_ITEMS = 8192  # items read at once in a pass over the whole store
BLOCK_BYTES = 4 * 2**20  # read at once while checking
DTYPES = ("float32", "float16")
_EXPONENT = {"float32": (np.uint32, 0x7F800000), "float16": (np.uint16, 0x7C00)}  # all set: infinite or NaN
_MANIFEST_KEYS = {"encoder": dict, "dtype": str, "complete": bool, "shards": list, "skipped": list}
_ENCODER_KEYS = {"name": str, "modality": str, "dim": int, "revision": str, "fingerprint": str}
_SHARD_KEYS = {"file": str, "items": int, "sha256": str}
_SKIPPED_KEYS = {"item": int, "row": int, "reason": str}
_ROW_COLUMNS = ("row", "item", "group", "split")


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
        # millions of items are thousands of files, more than a process may open
        self._map = lru_cache(_shards_kept_open())(self._scattered)
        self._held: Tensor | None = None
        self._not_finite: np.ndarray | None = None

    def _shard(self, number: int) -> np.ndarray:
        path = self.folder / self.manifest["shards"][number]["file"]
        shard: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        return shard

    def _scattered(self, number: int) -> _Scattered:
        return _Scattered(self._shard(number))

    @property
    def encoder(self) -> dict[str, Any]:
        """Identity of the encoder that made the latents; older stores may hold a local path."""
        return {**self.manifest["encoder"], "name": portable_name(self.manifest["encoder"]["name"])}

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
        """Return whether :meth:`hold` was called."""
        return self._held is not None

    @property
    def n_bytes(self) -> int:
        """Size of all latents in bytes, as stored."""
        return len(self) * self.dim * int(np.dtype(self.manifest["dtype"]).itemsize)

    def gather(self, items: np.ndarray, device: str | torch.device = "cpu") -> Tensor:
        """Return latents of the given items: shape (len(items), dim), float32, on a device.

        From memory if :meth:`hold` was called, otherwise from the memory map; the values are the same.
        """
        items = np.asarray(items, dtype=np.int64)
        if len(items) and not 0 <= items.min() <= items.max() < len(self):
            raise IndexError(f"Items must be 0 to {len(self) - 1}, got {items.min()} to {items.max()}.")
        if self._held is not None:
            index = torch.from_numpy(items).to(self._held.device)
            return self._held.index_select(0, index).to(device).float()
        return torch.from_numpy(self._from_map(items)).to(device).float()  # torch converts float16 faster than numpy

    def _from_map(self, items: np.ndarray) -> np.ndarray:
        order = np.argsort(items, kind="stable")  # each shard is read once, front to back
        ordered = items[order]
        out = np.empty((len(items), self.dim), dtype=self.manifest["dtype"])
        bounds = np.searchsorted(ordered, self._starts)
        touched = np.flatnonzero(np.diff(bounds))
        for some in np.array_split(touched, -(-len(touched) // SHARDS_AT_ONCE)) if len(touched) else ():
            parts = {int(shard): slice(bounds[shard], bounds[shard + 1]) for shard in some}
            maps = {shard: self._map(shard) for shard in parts}
            for shard, part in parts.items():  # prefetch, so that the disk reads in parallel
                maps[shard].expect(ordered[part] - self._starts[shard])
            for shard, part in parts.items():
                out[order[part]] = maps[shard].values[ordered[part] - self._starts[shard]]
        return out

    def read(self, items: np.ndarray) -> np.ndarray:
        """Return latents of the given items: shape (len(items), dim), float32."""
        return self.gather(items).numpy()

    def all(self) -> np.ndarray:
        """Return every latent: shape (len(self), dim), float32, in memory."""
        out = torch.empty((len(self), self.dim))
        self._copy(out)
        return out.numpy()

    def hold(self, device: str | torch.device = "cpu") -> None:
        """Load every latent, as stored, into the memory of a device."""
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
        """Return the items whose latent is not finite; computed once by reading everything."""
        if self._not_finite is None:
            self._check(checksums=False)
        assert self._not_finite is not None
        return self._not_finite

    def _check(self, *, checksums: bool) -> None:
        """Read every shard once, in parallel, to find values that are not finite and to compare checksums."""
        manifest = self.manifest

        def look(number: int) -> np.ndarray:
            shard = manifest["shards"][number]
            sha256, bad = look_through(self.folder / shard["file"])
            if checksums and sha256 != shard["sha256"]:
                raise damaged(self.folder, shard, "has other bytes than the manifest's checksum")
            return bad + int(self._starts[number])

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            found = list(pool.map(look, range(len(manifest["shards"]))))
        self._not_finite = np.concatenate([np.empty(0, np.int64), *found])

    @classmethod
    def open(cls, folder: str | Path, *, verify: bool = False) -> LatentStore:
        """Open a finished store.

        Args:
            folder: Written by :func:`~fusemix.data.extract.extract` or
                :func:`~fusemix.data.latent_writer.write_latents`.
            verify: Also compare every shard's SHA-256 with the manifest.

        Raises:
            FileNotFoundError: If the folder holds no store.
            ValueError: If the store is unfinished, damaged or its manifest does not fit its files.
        """
        folder = Path(folder)
        if not (folder / MANIFEST_NAME).is_file():
            raise FileNotFoundError(f"{folder} holds no latent store; make one with fusemix extract.")
        manifest = read_manifest(folder)
        if not manifest["complete"]:
            raise ValueError(f"The latent store {folder} is unfinished; run its command, fusemix extract, again.")
        for shard in manifest["shards"]:
            check_shard(folder, manifest, shard)
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
    """A shard mapped for random access to rows.

    The system is advised not to read the megabytes around each row, and which rows come next: 2,048 rows that were
    not in memory took 0.18 s instead of 0.64 s on a local disk, and a third of the CPU time.
    """

    def __init__(self, shard: np.ndarray) -> None:
        self.values = np.asarray(shard)
        self._memory = shard.base if isinstance(shard.base, mmap.mmap) and hasattr(mmap, "MADV_RANDOM") else None
        self._offset = getattr(shard, "offset", 0)
        if not self.values.flags.c_contiguous:
            self._memory = None  # Fortran order: the values of a row are scattered
        if self._memory is not None:
            self._memory.madvise(mmap.MADV_RANDOM)

    def expect(self, rows: np.ndarray) -> None:
        """Prefetch these rows from disk."""
        if self._memory is None:
            return
        size = self.values.strides[0]
        for place in (self._offset + size * rows).tolist():
            start = place // mmap.PAGESIZE * mmap.PAGESIZE
            self._memory.madvise(mmap.MADV_WILLNEED, start, place + size - start)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a store and check the type of every value in use; ValueError if one is wrong."""
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
                    f"{folder / MANIFEST_NAME} says {short(value)!r} where {key} stands; it was damaged or changed. "
                    f"Remove {folder} and extract again."
                )
    return manifest


def _is(value: Any, kind: type, least: int) -> bool:
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and value >= least
    return isinstance(value, kind)


def check_shard(folder: Path, manifest: dict[str, Any], shard: dict[str, Any]) -> None:
    """Check a shard's size, shape and dtype against the manifest, without reading its data."""
    path, dim, dtype = folder / shard["file"], manifest["encoder"]["dim"], manifest["dtype"]
    if Path(shard["file"]).name != shard["file"] or not path.is_file():
        raise damaged(folder, shard, "is missing")
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise damaged(folder, shard, f"is damaged or cut short ({error})") from error
    if values.shape != (shard["items"], dim):
        raise damaged(folder, shard, f"has shape {values.shape}, the manifest says {(shard['items'], dim)}")
    if str(values.dtype) != dtype:
        raise damaged(folder, shard, f"holds {values.dtype}, the manifest says {dtype}")


def look_through(path: Path) -> tuple[str, np.ndarray]:
    """Read a shard once; return its SHA-256 and the items that are not finite."""
    shard = np.load(path, mmap_mode="r", allow_pickle=False)
    (n, dim), offset, size, by_columns = shard.shape, shard.offset, shard.itemsize, not shard.flags.c_contiguous
    word, exponent = _EXPONENT[str(shard.dtype)]
    digest, buffer, bad, place = hashlib.sha256(), memoryview(bytearray(BLOCK_BYTES)), [np.empty(0, np.int64)], 0
    with open(path, "rb") as handle:
        digest.update(handle.read(offset))
        while count := handle.readinto(buffer):
            digest.update(buffer[:count])
            count -= count % size  # chunks end within a number only in a truncated file, which the checksum detects
            bits = np.frombuffer(buffer[:count], word) & exponent
            if bits.size and bits.max() == exponent:
                at = place + np.flatnonzero(bits == exponent)
                bad.append(np.unique(at % n if by_columns else at // dim))
            place += count // size
    return digest.hexdigest(), np.unique(np.concatenate(bad))


def damaged(folder: Path, shard: dict[str, Any], problem: str) -> ValueError:
    """Make the error for a shard that does not match the manifest."""
    return ValueError(
        f"The latent shard {folder / shard['file']} {problem}; nothing was changed. Remove {folder} and extract again."
    )


def short(value: Any) -> str:
    """Shorten a value of the manifest for a message."""
    text = f"{value.get('name')} {str(value.get('revision'))[:12]}" if isinstance(value, dict) else str(value)
    return text if len(text) < 80 else text[:77] + "..."
