"""Tables of pairs: one row per pair, a column per modality, optional ``split`` and ``group``."""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from fusemix.files import sha256_of

logger = logging.getLogger(__name__)

FILE_COLUMNS = ("image", "audio", "video")  # cells are paths relative to the table
VALIDATION_SPLITS = frozenset({"val", "valid", "validation", "dev"})
TEST_SPLITS = frozenset({"test"})


@dataclass(frozen=True)
class Item:
    """One distinct thing of a column: a file, or a text within its group."""

    value: str  # absolute path, or the text
    group: int  # items of equal group are right answers for one another
    row: int  # 0-based row of the table where it first stands


class PairTable:
    """A table of pairs in CSV, JSONL or Parquet.

    Columns ``image``, ``audio`` and ``video`` hold paths relative to the table, ``text`` holds
    captions, and any further column may serve as a modality of your own. Cells may be empty. Rows
    that name the same file or the same ``group`` are one group: all its captions are right answers
    for its picture.

    Example:
        >>> table = PairTable.read("pairs.csv")
        >>> captions = table.cells("text", split="train")  # one entry per filled cell
        >>> photos = table.items("image", split="dev")  # each distinct file once
    """

    def __init__(self, frame: pd.DataFrame, *, path: Path, fingerprint: str) -> None:
        self.frame = frame
        self.path = path
        self.fingerprint = fingerprint  # SHA-256 of the table's bytes
        self._folder = path.parent.resolve()
        self.groups = _group_rows(frame)  # (n_rows,) int64: the lowest row of the group

    @classmethod
    def read(cls, path: str | Path, *, own: Sequence[str] = ()) -> PairTable:
        """Read a table by its ending: .csv, .tsv, .jsonl or .parquet.

        Args:
            path: The table.
            own: Columns of your own modalities; a table without image, audio, video and text needs one of them.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it cannot be parsed, has no rows, or has no usable column.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"No table of pairs at {path}.")
        try:
            frame = _read_frame(path)
        except ValueError as error:
            raise ValueError(f"{path} cannot be read as a table of pairs: {error}") from error
        if frame.empty:
            raise ValueError(f"{path} has no rows; expected a header and at least one pair.")
        expected = dict.fromkeys(("image", "audio", "text", "video", *own))
        if not set(expected) & set(frame.columns):
            raise ValueError(
                f"{path} has columns {list(frame.columns)}; expected at least one of {', '.join(expected)}."
            )
        return cls(frame, path=path, fingerprint=sha256_of(path))

    def __len__(self) -> int:
        return len(self.frame)

    def splits(self) -> np.ndarray:
        """Split name of every row, shape (n_rows,); empty strings without a ``split`` column."""
        if "split" not in self.frame.columns:
            return np.full(len(self), "", dtype=object)
        return self.frame["split"].to_numpy(dtype=object)

    def rows(self, column: str, split: str | None = None) -> np.ndarray:
        """0-based numbers of the rows whose cell of ``column`` is filled, within a split.

        Raises:
            ValueError: If the column or the split does not exist, or no cell is filled.
        """
        if column not in self.frame.columns:
            raise ValueError(f"{self.path} has no column {column!r}; it has {list(self.frame.columns)}.")
        keep = self.frame[column].to_numpy(dtype=object) != ""
        if split is not None:
            names = self.splits()
            if not (names == split).any():
                raise ValueError(f"{self.path} has no split {split!r}; it has {sorted(set(names) - {''})}.")
            keep &= names == split
        if not keep.any():
            where = f" in split {split!r}" if split else ""
            raise ValueError(f"{self.path} has no filled cell in column {column!r}{where}.")
        return np.flatnonzero(keep)

    def value(self, column: str, row: int) -> str:
        """A cell; for file columns the absolute path."""
        return self._value(column, str(self.frame[column].iat[row]))

    def cells(self, column: str, split: str | None = None) -> list[Item]:
        """Every filled cell of a column, in table order."""
        return list(self._cells(column, split))

    def items(self, column: str, split: str | None = None) -> list[Item]:
        """Every distinct item of a column: a file once, a text once per group, in table order."""
        seen: dict[tuple[str, int], Item] = {}
        for cell in self._cells(column, split):
            seen.setdefault((cell.value, cell.group), cell)
        return list(seen.values())

    def _cells(self, column: str, split: str | None) -> Iterator[Item]:
        values = self.frame[column].to_numpy(dtype=object) if column in self.frame.columns else ()
        for row in self.rows(column, split):
            yield Item(self._value(column, str(values[row])), int(self.groups[row]), int(row))

    def _value(self, column: str, cell: str) -> str:
        if column not in FILE_COLUMNS:
            return cell
        if ".." in cell:
            return str((self._folder / cell).resolve())
        return str(self._folder / cell)  # a table of millions would take minutes to resolve one by one


def _read_frame(path: Path) -> pd.DataFrame:
    kind = path.suffix.lower()
    if kind in (".csv", ".tsv"):
        frame = _read_csv(path, "," if kind == ".csv" else "\t")
    elif kind in (".jsonl", ".ndjson"):
        frame = pd.read_json(path, lines=True, dtype=False)
    elif kind == ".parquet":
        frame = pd.read_parquet(path)
    else:
        raise ValueError(f"the ending {kind or '(none)'} is not one of .csv, .tsv, .jsonl, .parquet")
    if duplicated := sorted({str(c) for c in frame.columns[frame.columns.duplicated()]}):
        raise ValueError(f"the columns {duplicated} stand twice")
    frame.columns = [str(column).strip() for column in frame.columns]
    for column in frame.columns:
        values = frame[column].astype(object)
        frame[column] = values.where(values.notna(), "").map(lambda cell: str(cell).strip()).astype(object)
    return frame


def _read_csv(path: Path, separator: str) -> pd.DataFrame:
    """Strict: every row must have the header's number of cells, and every quote must close."""
    with open(path, newline="", encoding="utf-8-sig") as handle:
        reader = csv.reader(handle, delimiter=separator, strict=True)
        try:
            header = next(reader, None)
            if not header:
                raise ValueError("it is empty; expected a header line")
            rows = []
            for row in reader:
                if row and len(row) != len(header):
                    raise ValueError(f"line {reader.line_num} has {len(row)} cells, the header has {len(header)}")
                if row:
                    rows.append(row)
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"line {reader.line_num + 1}: {error}") from error
    return pd.DataFrame(rows, columns=header, dtype=object)


def _group_rows(frame: pd.DataFrame) -> np.ndarray:
    """Connected components of rows that share a file or a ``group`` value."""
    parent = np.arange(len(frame))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = int(parent[row])
        return row

    for column in ("group", *FILE_COLUMNS):
        if column not in frame.columns:
            continue
        first: dict[str, int] = {}
        for row, cell in enumerate(frame[column]):
            if cell == "":
                continue
            a, b = root(first.setdefault(cell, row)), root(row)
            parent[max(a, b)] = min(a, b)
    return np.array([root(row) for row in range(len(frame))], dtype=np.int64)
