"""Import of latents of any modality, made by any encoder, into a latent store, with checks.

Read from a file (.npy, .safetensors, .parquet), an array, or a generator of arrays; one piece is in memory at
a time. With a table of pairs the store can be joined with stores that fusemix extract made from it.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fusemix.data.latent_store import DTYPES, LatentStore
from fusemix.data.latent_writer import row_index, write_latents
from fusemix.data.pairs import PairTable
from fusemix.number_range import check_range

PIECE_BYTES = 16 * 2**20  # read and stored at a time
ENDINGS = (".npy", ".safetensors", ".parquet")


@dataclass(frozen=True)
class LatentFile:
    """An open file of latents: its size, and its rows piece by piece."""

    path: Path
    rows: int
    dim: int
    iterate: Callable[[int], Iterator[np.ndarray]]  # rows a piece -> pieces

    def pieces(self) -> Iterator[np.ndarray]:
        """Yield all rows in order in pieces (n, dim) of about PIECE_BYTES as float32."""
        return self.iterate(max(1, PIECE_BYTES // (4 * self.dim)))


def import_latents(
    source: str | Path | np.ndarray | Iterable[np.ndarray],
    folder: str | Path,
    *,
    modality: str,
    name: str,
    revision: str = "",
    table: PairTable | None = None,
    column: str | None = None,
    key: str | None = None,
    dtype: str = "float32",
    report: Callable[[int, int | None], None] | None = None,
) -> LatentStore:
    """Check latents and write them to a new store; the folder appears complete or not at all.

    Args:
        source: A file, an array (N, dim), or arrays (n, dim) one after another; floating point, not normalised.
        folder: Of the new store.
        modality: Any name of letters, digits, ``_`` and ``-``: video, sensor, protein, ...; models trained on the store
            use it.
        name: Name of what made the latents, recorded as the encoder.
        revision: Identity of its weights, if known.
        table: The pairs the latents belong to; without one, latent i of every modality is pair i.
        column: The table's column that was encoded: the latents are those of its filled cells in table order,
            or of its distinct items in order of first appearance, depending on their number. Without a
            column there is one latent per row of the table.
        key: Tensor (safetensors) or list column (parquet) to read, if the file has several.
        dtype: Of the store: ``float32`` or ``float16``.
        report: Called with (latents done, in all or None).

    Returns:
        The store, opened.

    Raises:
        FileNotFoundError: If the source is a path and nothing is there.
        ValueError: If the folder exists, the number of latents does not fit the table, the latents are not
            two-dimensional or not floating point, or one of them is NaN or infinite (its number is named).
    """
    folder = Path(folder)
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {DTYPES}, got {dtype!r}.")
    if not re.fullmatch(r"[\w-]+", modality):
        raise ValueError(f"A modality is named with letters, digits, '_' and '-', got {modality!r}.")
    if column is not None and table is None:
        raise ValueError(f"column {column!r} needs the table it stands in; give the table too.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not empty; choose a new folder.")
    what, total, pieces = _open_source(source, key)
    if total is not None:
        _index(table, column, total, what)  # fail early on a wrong number

    def checked() -> Iterator[np.ndarray]:
        done = 0
        for piece in pieces:
            piece = _check(np.asarray(piece), what, done, dtype)
            yield piece
            done += len(piece)
            if report:
                report(done, total)

    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        write_latents(
            temporary, checked(), modality=modality, name=name, revision=revision, dtype=dtype, table=table,
            index=lambda n: _index(table, column, n, what),
        )  # fmt: skip
        if folder.exists():
            folder.rmdir()
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return LatentStore.open(folder)


def open_latents(path: str | Path, key: str | None = None) -> LatentFile:
    """Open a file of latents without reading it.

    Args:
        path: ``.npy`` (memory-mapped, nothing is unpickled), ``.safetensors`` (float16, bfloat16, float32,
            float64) or ``.parquet`` (one list column, or floating-point columns and nothing else: an id
            column is an error).
        key: Tensor or list column to read, if there are several.

    Raises:
        FileNotFoundError: If nothing is there.
        ValueError: If the ending is another, the file is damaged, or it does not hold one matrix of floats.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No file of latents at {path}.")
    kind = path.suffix.lower()
    if kind not in ENDINGS:
        raise ValueError(f"{path}: latents are read from {', '.join(ENDINGS)}, not from {kind or '(no ending)'}.")
    if kind == ".npy" and key:
        raise ValueError(f"{path} holds one array without a name; key {key!r} is for .safetensors and .parquet.")
    if kind == ".npy":
        return _open_npy(path)
    return _open_safetensors(path, key) if kind == ".safetensors" else _open_parquet(path, key)


def _open_source(
    source: str | Path | np.ndarray | Iterable[np.ndarray], key: str | None
) -> tuple[str, int | None, Iterable[Any]]:
    """Return the source's name for messages, the number of latents if known, and its pieces."""
    if isinstance(source, str | Path):
        opened = open_latents(source, key)
        return str(opened.path), opened.rows, opened.pieces()
    if isinstance(source, np.ndarray):
        _check_shape("The array of latents", source.shape)
        step = max(1, PIECE_BYTES // (4 * source.shape[1]))
        return "The array of latents", len(source), (source[i : i + step] for i in range(0, len(source), step))
    return "The latents", None, source


def _check_shape(what: str, shape: Sequence[int]) -> None:
    if len(shape) != 2:
        hint = "; pool over the middle axis first" if len(shape) == 3 else ""
        raise ValueError(f"{what} has shape {tuple(shape)}; expected (N, dim), one latent a row{hint}.")
    if 0 in shape:
        raise ValueError(f"{what} has shape {tuple(shape)}; expected at least one latent and one dimension.")


def _check(piece: np.ndarray, what: str, start: int, dtype: str) -> np.ndarray:
    """Check that a piece holds finite floats, and convert it to the store's dtype."""
    _check_shape(what, piece.shape)
    if piece.dtype.kind != "f":
        raise ValueError(f"{what} holds {piece.dtype} values; latents are floating point, so convert them first.")
    with np.errstate(over="ignore"):
        stored = piece.astype(dtype, copy=False)
    bad = np.flatnonzero(~np.isfinite(stored).all(axis=1))
    if len(bad):
        why = "NaN or infinite values"
        if np.isfinite(piece[bad[0]]).all():
            why = f"values too large for {dtype} (largest {np.abs(piece[bad[0]]).max():.3g})"
        raise ValueError(f"{what} has {why}, first in latent {start + int(bad[0])} (counted from 0).")
    check_range(piece, stored, dtype, lambda i: f"{what}: latent {start + i} (counted from 0)")
    return stored


def _index(table: PairTable | None, column: str | None, n: int, what: str) -> pd.DataFrame:
    """Make a line per table row: row, item, group, split; the number of latents decides what they belong to."""
    if table is None:
        number = np.arange(n)
        return pd.DataFrame({"row": number, "item": number, "group": number, "split": np.full(n, "", dtype=object)})
    if column is None:
        in_file = int(table.source[-1]) + 1
        if n not in (len(table), in_file):
            captions = f" ({len(table):,} with each caption of a list by itself)" if in_file != len(table) else ""
            raise ValueError(
                f"{what}: {n:,} latents for the {in_file:,} rows of {table.path}{captions}; there must be one a row, "
                "or name the column that was encoded."
            )
        number = np.arange(len(table))
        item = number if n == len(table) else table.source
        return pd.DataFrame({"row": number, "item": item, "group": table.groups, "split": table.splits()})
    index = row_index(table, column)
    items = int(index["item"].max()) + 1
    if n == len(index):
        index["item"] = np.arange(n)
    elif n != items:
        raise ValueError(
            f"{what}: {n:,} latents, but column {column!r} of {table.path} has {len(index):,} filled cells and "
            f"{items:,} distinct items; there must be one latent for each of the one or of the other."
        )
    return index


def _sliced(read: Callable[[int, int], np.ndarray], rows: int) -> Callable[[int], Iterator[np.ndarray]]:
    return lambda step: (read(start, min(start + step, rows)) for start in range(0, rows, step))


def _open_npy(path: Path) -> LatentFile:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:  # numpy's message would suggest unpickling
        raise ValueError(
            f"{path} is not a plain .npy array, or damaged; write it with numpy.save(path, an array of floats)."
        ) from error
    _check_shape(str(path), array.shape)
    rows, dim = array.shape
    return LatentFile(path, rows, dim, _sliced(lambda start, stop: np.asarray(array[start:stop]), rows))


def _open_safetensors(path: Path, key: str | None) -> LatentFile:
    from safetensors import SafetensorError, safe_open

    try:
        file = safe_open(str(path), framework="pt")  # through torch, because numpy has no bfloat16
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a safetensors file, or damaged ({error}).") from error
    tensor = file.get_slice(_choose(path, key, sorted(file.keys()), "tensors"))
    _check_shape(str(path), tensor.get_shape())
    rows, dim = tensor.get_shape()

    def read(start: int, stop: int) -> np.ndarray:
        values = tensor[start:stop]
        if values.dtype.is_floating_point and values.itemsize < 4:
            values = values.float()
        array: np.ndarray = values.numpy()
        return array

    return LatentFile(path, rows, dim, _sliced(read, rows))


def _open_parquet(path: Path, key: str | None) -> LatentFile:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is not a parquet file, or damaged ({error}).") from error
    lists = [f.name for f in file.schema_arrow if pa.types.is_list(f.type) or pa.types.is_fixed_size_list(f.type)]
    rows, columns = file.metadata.num_rows, list(file.schema_arrow.names)
    if lists or key:
        columns = [_choose(path, key, lists, "list columns")]
        first = next(file.iter_batches(batch_size=1, columns=columns), None)
        dim = len(first.column(0)[0]) if first is not None and first.column(0)[0].is_valid else 0
    else:
        columns = [name for name in columns if not re.fullmatch(r"__index_level_\d+__", name)]  # pandas' row numbers
        if strange := [n for n in columns if not pa.types.is_floating(file.schema_arrow.field(n).type)]:
            kinds = ", ".join(f"{name} ({file.schema_arrow.field(name).type})" for name in strange[:10])
            raise ValueError(
                f"{path} has the columns {kinds} beside {len(columns) - len(strange):,} of floating point; "
                "latents are floating point, so drop what is no dimension of them, or convert it."
            )
        dim = len(columns)
    _check_shape(str(path), (rows, dim))

    def iterate(step: int) -> Iterator[np.ndarray]:
        done = 0
        for batch in file.iter_batches(batch_size=step, columns=columns):
            yield _matrix(path, batch, dim, done, flat=not (lists or key))
            done += len(batch)

    return LatentFile(path, rows, dim, iterate)


def _matrix(path: Path, batch: Any, dim: int, done: int, *, flat: bool) -> np.ndarray:
    """Convert a parquet batch to a matrix (len(batch), dim)."""
    for column in batch.columns:
        if column.null_count:
            raise ValueError(f"{path} has {column.null_count} empty cells among latents {done} to {done + len(batch)}.")
    if flat:
        return np.stack([column.to_numpy(zero_copy_only=False) for column in batch.columns], axis=1)
    column = batch.column(0)
    values = column.flatten()
    lengths = np.asarray(column.value_lengths()) if hasattr(column, "value_lengths") else np.array([dim])
    if (lengths != dim).any():
        wrong = int(np.flatnonzero(lengths != dim)[0])
        raise ValueError(f"{path}: latent {done + wrong} has {lengths[wrong]} dimensions, the first has {dim}.")
    return np.asarray(values.to_numpy(zero_copy_only=False)).reshape(-1, dim)


def _choose(path: Path, key: str | None, names: list[str], kind: str) -> str:
    if key is None and len(names) == 1:
        return names[0]
    if key is None:
        raise ValueError(f"{path} holds {len(names)} {kind} ({', '.join(names[:10])}); choose one by the argument key.")
    if key not in names:
        raise ValueError(f"{path} has no {kind[:-1]} {key!r}; it holds {', '.join(names[:10]) or 'none'}.")
    return key
