"""Several tables of pairs -> one, row by row, so that a batch is drawn from all of them."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fusemix.datasets.base import Pair


def join_tables(tables: Mapping[str, Path], *, splits: Sequence[str] = ()) -> Iterator[Pair]:
    """The rows of several tables, for :func:`fusemix.datasets.write_table`; one row is in memory at a time.

    Files are named from the working folder on, and groups get their table's name in front, so that picture 7 of
    one set and picture 7 of another stay two. Columns other than a :class:`~fusemix.datasets.Pair`'s are left out.

    Args:
        tables: Name -> ``.csv``, ``.tsv`` or ``.parquet``.
        splits: Only rows of these; all by default.

    Raises:
        FileNotFoundError: If a table is not there.
        ValueError: If it is of another kind, or damaged.
    """
    for name, path in tables.items():
        if not path.is_file():
            raise FileNotFoundError(f"There is no table {path}.")
        for row in _rows(path):
            cells = {field: str(row.get(field) or "").strip() for field in Pair._fields}
            if splits and cells["split"] not in splits:
                continue
            for kind in ("image", "audio"):
                if cells[kind]:
                    cells[kind] = str(path.parent / cells[kind])
            if cells["group"]:
                cells["group"] = f"{name}:{cells['group']}"
            yield Pair(**cells)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            for batch in pq.ParquetFile(path).iter_batches(batch_size=10_000):
                yield from batch.to_pylist()
        except pa.ArrowException as error:
            raise ValueError(f"{path} is not a parquet file, or damaged ({error}).") from error
    elif path.suffix in (".csv", ".tsv"):
        with open(path, newline="", encoding="utf-8-sig") as handle:
            yield from csv.DictReader(handle, delimiter="," if path.suffix == ".csv" else "\t", restkey="")
    else:
        raise ValueError(f"{path}: tables to join end in .csv, .tsv or .parquet.")
