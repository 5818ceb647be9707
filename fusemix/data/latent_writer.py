"""Writer of latent stores that survives kills: each shard is written before its entry in the manifest."""

from __future__ import annotations

import hashlib
import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fusemix.data.latent_store import (
    DTYPES,
    FORMAT_VERSION,
    MANIFEST_NAME,
    ROWS_NAME,
    LatentStore,
    check_shard,
    damaged,
    read_manifest,
    scan_shard,
    short,
)
from fusemix.data.pairs import PairTable
from fusemix.datasets.splits import plain
from fusemix.encoder_identity import same_encoder
from fusemix.files import read_json, write_atomic, write_json
from fusemix.number_range import check_range

_ASIDE = "latents-{:05d}.json"  # marks a finished shard that is not yet in the manifest


def write_latents(
    folder: str | Path,
    batches: np.ndarray | Iterator[np.ndarray],
    *,
    modality: str,
    name: str,
    revision: str = "",
    fingerprint: str = "given latents",
    rows: np.ndarray | None = None,
    groups: Sequence[int] | None = None,
    splits: Sequence[str] | None = None,
    index: Callable[[int], pd.DataFrame] | None = None,
    table: PairTable | None = None,
    dtype: str = "float32",
) -> LatentStore:
    """Write existing latents to a store; row i of every modality is one pair.

    :func:`fusemix.data.import_latents.import_latents` does this for a file, with checks.

    Args:
        folder: A new folder; removed again if a piece is refused.
        batches: Shape (N, dim), or an iterator over such pieces; not normalised.
        modality: Any name; it becomes a modality of models trained on the store.
        name: Name of what made the latents, e.g. of a model; recorded as the encoder.
        rows: (N,) pair numbers, if not 0..N-1.
        groups: Items of equal group are right answers for one another; default: one group each.
        splits: Split name of every latent; ``val``/``dev`` validate, ``test`` is left out.
        revision: Identity of the weights that made them, if known.
        fingerprint: Preprocessing and pooling, if an encoder of the project made them.
        index: Instead of rows, groups and splits: called with the number of latents, returns a line per
            table row (row, item, group, split); several rows may share a latent.
        table: The table whose rows ``index`` or ``rows`` number, so that the store joins others made from it.
        dtype: ``float32`` or ``float16``.

    Raises:
        ValueError: If the folder already holds a store, there is no latent, lengths or widths disagree, or a value
            is not finite as it is or in ``dtype``.
    """
    folder = Path(folder)
    check_dtype(dtype)
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
        "fingerprint": fingerprint,
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
    stored = as_stored(first, dtype)  # refuse before anything is written, if possible
    manifest = begin(folder, header)
    try:
        n = 0
        for piece in itertools.chain((stored,), pieces):  # one piece in memory at a time
            piece = np.asarray(piece)
            if piece.ndim != 2 or piece.shape[1] != first.shape[1]:
                raise ValueError(f"Every piece must have shape (n, {first.shape[1]}), got {piece.shape}.")
            append_shard(folder, manifest, piece if n == 0 else as_stored(piece, dtype, start=n))
            n += len(piece)
        frame = _numbered(n, rows, groups, splits) if index is None else index(n)
    except BaseException:
        for path in (MANIFEST_NAME, *(shard["file"] for shard in manifest["shards"])):
            (folder / path).unlink(missing_ok=True)
        with suppress(OSError):  # it holds other files
            folder.rmdir()
        raise
    write_rows(folder, frame)
    manifest["complete"], manifest["n_items"] = True, n
    write_json(folder / MANIFEST_NAME, manifest)
    return LatentStore.open(folder)


def _numbered(
    n: int, rows: np.ndarray | None, groups: Sequence[int] | None, splits: Sequence[str] | None
) -> pd.DataFrame:
    number = np.arange(n)
    columns = {
        "row": number if rows is None else np.asarray(rows),
        "item": number,
        "group": number if groups is None else np.asarray(groups),
        "split": np.full(n, "", dtype=object) if splits is None else np.asarray(splits, dtype=object),
    }
    if any(len(values) != n for values in columns.values()):
        raise ValueError(f"rows, groups and splits must each have {n} entries, one per latent.")
    for name in ("row", "group"):
        if columns[name].dtype.kind not in "iu":
            raise ValueError(f"{name}s must be whole numbers, got {columns[name].dtype}; number them first.")
    if len(np.unique(columns["row"])) < n:
        raise ValueError("rows must name each pair once; latents of one pair several times would be paired crosswise.")
    columns["split"] = np.array([plain(name) for name in columns["split"]], dtype=object)
    return pd.DataFrame(columns)


def row_index(table: PairTable, column: str, split: str | None = None) -> pd.DataFrame:
    """Make a line per filled cell of a column: row, item (numbered by first appearance), group, split."""
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


def check_dtype(dtype: str) -> None:
    """Raise ValueError unless a store can hold this dtype."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {DTYPES}, got {dtype!r}.")


def as_stored(
    latents: np.ndarray, dtype: str, *, start: int = 0, name: Callable[[int], str] | None = None
) -> np.ndarray:
    """Convert latents to the store's dtype and check its range.

    Args:
        latents: Shape (n, dim).
        dtype: ``float32`` or ``float16``.
        start: Number of the first one, for the message.
        name: Name of row i for the message; ``Latent 7`` by default.

    Raises:
        ValueError: If a value is not finite, as given or in that dtype, naming its row.
    """
    if latents.dtype.kind not in "fiu":
        raise ValueError(f"Latents are numbers, preferably floating point, got {latents.dtype}; convert them first.")
    with np.errstate(over="ignore"):
        stored = latents.astype(dtype, copy=False)
    check_range(latents, stored, dtype, name or (lambda i: f"Latent {start + i} (counted from 0)"))
    return stored


def begin(folder: Path, header: dict[str, Any]) -> dict[str, Any]:
    """Start the manifest of a new store, or read that of an unfinished one and check its shards.

    Raises:
        ValueError: If the folder holds a store of another encoder, table or dtype, or a damaged one.
    """
    if not (folder / MANIFEST_NAME).exists():
        folder.mkdir(parents=True, exist_ok=True)
        manifest = {**header, "complete": False, "shards": [], "skipped": []}
        write_json(folder / MANIFEST_NAME, manifest)
        return manifest
    manifest = read_manifest(folder)
    for key, value in header.items():
        found = manifest.get(key)
        if not (same_encoder(found, value) if key == "encoder" else found == value):
            raise ValueError(
                f"{folder} holds latents with {key} = {short(found)}, this call has {short(value)}. "
                "Choose another folder or remove that one."
            )
    for shard in manifest["shards"]:
        _check_bytes(folder, manifest, shard)
    return manifest


def append_shard(folder: Path, manifest: dict[str, Any], shard: np.ndarray) -> None:
    """Write one shard, then add it to the manifest: a kill between the two is harmless."""
    manifest["shards"].append(_write_shard(folder, len(manifest["shards"]), shard))
    write_json(folder / MANIFEST_NAME, manifest)


def aside(folder: Path, number: int) -> Path:
    """Return the file in which a process announces a finished shard to the first process."""
    return folder / _ASIDE.format(number)


def announce_shard(folder: Path, number: int, shard: np.ndarray, skipped: list[dict[str, Any]]) -> None:
    """Write one shard and announce it to the process that writes the manifest."""
    write_json(aside(folder, number), _write_shard(folder, number, shard) | {"skipped": skipped})


def register_shard(folder: Path, manifest: dict[str, Any], number: int) -> None:
    """Add a shard that another process finished to the manifest."""
    shard = read_json(aside(folder, number))
    skipped = shard.pop("skipped")
    _check_bytes(folder, manifest, shard)
    manifest["skipped"].extend(skipped)
    manifest["shards"].append(shard)
    write_json(folder / MANIFEST_NAME, manifest)
    aside(folder, number).unlink()


def write_rows(folder: Path, rows: pd.DataFrame) -> None:
    """Write the store's table of rows."""
    write_atomic(folder / ROWS_NAME, lambda temporary: rows.to_parquet(temporary, index=False))


def finish(folder: Path, manifest: dict[str, Any]) -> None:
    """Mark the store in the manifest as complete."""
    for left in folder.glob("latents-*.json"):  # left by a kill after its shard was added
        left.unlink()
    manifest["complete"] = True
    write_json(folder / MANIFEST_NAME, manifest)


def _write_shard(folder: Path, number: int, shard: np.ndarray) -> dict[str, Any]:
    """Write one shard and return its entry for the manifest."""
    name = f"latents-{number:05d}.npy"
    buffer = io.BytesIO()
    np.save(buffer, shard, allow_pickle=False)
    write_atomic(folder / name, lambda temporary: temporary.write_bytes(buffer.getbuffer()))
    # of the data in memory: this detects a disk that stored something else
    digest = hashlib.sha256(buffer.getbuffer()).hexdigest()
    return {"file": name, "items": len(shard), "sha256": digest}


def _check_bytes(folder: Path, manifest: dict[str, Any], shard: dict[str, Any]) -> None:
    check_shard(folder, manifest, shard)
    if scan_shard(folder / shard["file"])[0] != shard["sha256"]:
        raise damaged(folder, shard, "has other bytes than its checksum")
