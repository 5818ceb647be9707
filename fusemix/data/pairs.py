"""Tables of pairs: one row per pair, a column per modality, optional ``split`` and ``group``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from fusemix.data.real_files import RealFiles
from fusemix.datasets.base import Tally
from fusemix.datasets.cells import FILE_COLUMNS, ID_COLUMNS
from fusemix.datasets.reader import read_table
from fusemix.datasets.splits import check_undeclared, closing, crossing, in_split, plain, sides
from fusemix.files import sha256_of


@dataclass(frozen=True)
class Item:
    """One distinct item of a column: a file, or a text within its group."""

    value: str  # absolute path, or the text
    group: int  # items of equal group are right answers for one another
    row: int  # 0-based row of the table where it first appears


class PairTable:
    """A table of pairs in CSV, JSONL or Parquet; docs/tables.md has the rules.

    Columns ``image``, ``audio`` and ``video`` hold paths relative to the table, ``text`` holds
    captions, and any further column may serve as a modality of your own. Cells may be empty. Rows
    that name the same file, in any spelling, or the same ``group`` are one group: all its captions are right answers
    for its picture.

    Example:
        >>> table = PairTable.read("pairs.csv")
        >>> captions = table.cells("text", split="train")  # one entry per filled cell
        >>> photos = table.items("image", split="dev")  # each distinct file once

    Attributes:
        frame: Every cell as text, empty if missing; a row per caption if a cell held several.
        source: (n_rows,) int64: the row of the file, from 0 on, that each row came from.
        groups: (n_rows,) int64: the lowest row of the group.
        tally: What was left out while reading.
    """

    def __init__(self, frame: pd.DataFrame, *, path: Path, fingerprint: str, tally: Tally | None = None) -> None:
        """Store the result of :func:`~fusemix.datasets.reader.read_table`; use :meth:`read`.

        Raises:
            ValueError: If a split is not known.
        """
        self._places = frame.index
        self.source = np.cumsum(np.diff(frame.index.to_numpy(), prepend=-1) != 0) - 1
        self.frame = frame.reset_index(drop=True)
        self.path = path
        self.fingerprint = fingerprint  # SHA-256 of the table's bytes
        self.tally = tally if tally is not None else Tally()
        if "split" in self.frame.columns:
            self.frame["split"] = self.frame["split"].map(plain).astype(object)
            sides(self.splits(), path)
        self._folder = path.parent.resolve()
        files = RealFiles(self._folder)
        self._files = {column: files.paths(self.frame[column]) for column in FILE_COLUMNS if column in self.frame}
        if files.respelled:
            self.tally.notes.append(
                f"{files.respelled:,} cells name a file with backslashes or in another Unicode form than the disk."
            )
        for column, paths in self._files.items() if "split" in self.frame else ():
            if shared := crossing(self.splits(), paths):
                self.tally.notes.append(
                    f"{shared:,} files of {column} are in several splits: tested on and trained on."
                )
        named = [self.frame["group"].tolist()] if "group" in self.frame else []
        self.groups = _group_rows(len(frame), [*named, *map(np.ndarray.tolist, self._files.values())], self.source)

    @classmethod
    def read(cls, path: str | Path, *, own: Sequence[str] = ()) -> PairTable:
        """Read a table by its ending: .csv, .tsv, .jsonl or .parquet.

        Args:
            path: The table.
            own: Columns of your own modalities; a table without image, audio, video and text needs one of them. Like
                cells of ``text``, theirs may hold lists of texts.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is invalid (with the line), has no rows, an unknown split, or no usable column.
        """
        path = Path(path)
        tally = Tally()
        texts = tuple(name for name in dict.fromkeys(("text", *own)) if name not in FILE_COLUMNS)
        frame = read_table(path, tally, texts=texts)
        if not len(frame.index):
            raise ValueError(f"{path} has no rows; expected a header and at least one pair.")
        expected = dict.fromkeys(("image", "audio", "text", "video", *own))
        if not set(expected) & set(frame.columns):
            raise ValueError(
                " ".join(
                    [
                        f"{path} has columns {list(frame.columns)}; expected at least one of {', '.join(expected)}.",
                        *tally.notes,
                    ]
                )
            )
        check_undeclared(frame, path, besides=(*FILE_COLUMNS, *ID_COLUMNS, *texts))
        return cls(frame, path=path, fingerprint=sha256_of(path), tally=tally)

    def __len__(self) -> int:
        return len(self.frame)

    def location(self, row: int) -> str:
        """Return a row's location in the file: ``line 7`` (the header is line 1), in .parquet ``row 6`` (from 1)."""
        return f"{self._places.name or 'row'} {self._places[row]}"

    def splits(self) -> np.ndarray:
        """Return every row's split name in lower case, shape (n_rows,); empty strings without a ``split`` column."""
        if "split" not in self.frame.columns:
            return np.full(len(self), "", dtype=object)
        return self.frame["split"].to_numpy(dtype=object)

    def rows(self, column: str, split: str | None = None) -> np.ndarray:
        """Return 0-based numbers of the rows whose cell of ``column`` is filled, within a split.

        Raises:
            ValueError: If the column or the split does not exist, or no cell is filled.
        """
        if column not in self.frame.columns:
            raise ValueError(f"{self.path} has no column {column!r}; it has {list(self.frame.columns)}.")
        keep = self._filled(column, split)
        if not keep.any():
            where = f" in split {split!r}" if split else ""
            raise ValueError(f"{self.path} has no filled cell in column {column!r}{where}.")
        return np.flatnonzero(keep)

    def has(self, column: str, split: str | None = None) -> bool:
        """Return whether any cell of the column is filled, within an existing split."""
        return column in self.frame.columns and bool(self._filled(column, split).any())

    def _filled(self, column: str, split: str | None) -> np.ndarray:
        filled: np.ndarray = self.frame[column].to_numpy(dtype=object) != ""
        return filled if split is None else filled & in_split(self.splits(), split, self.path)

    def summary(
        self,
        *columns: str,
        split: str | None = None,
        kept: np.ndarray | None = None,
        why: str = "that could not be used",
    ) -> str:
        """Write how many rows train, validate and are left out, and why; every command ends with it.

        Args:
            columns: Columns in use: rows without a cell in one of them were left out.
            split: If only its rows were used.
            kept: Numbers of the rows that remain; by default all.
            why: Reason why the others were left out.
        """
        used = np.ones(len(self), dtype=bool)
        left: Counter[str] = Counter()
        for column in columns:
            filled = self._filled(column, None) if column in self.frame.columns else np.zeros(len(self), bool)
            left[f"without a cell in {column}"] = int((used & ~filled).sum())
            used &= filled
        if split is not None:
            inside = in_split(self.splits(), split, self.path)
            left["of other splits"] = int((used & ~inside).sum())
            used &= inside
        if kept is not None:
            left[why] = int(used.sum() - np.isin(np.flatnonzero(used), kept).sum())
            used &= np.isin(np.arange(len(self)), kept)
        left += self.tally.left_out
        return " ".join([f"{self.path}: {closing(Counter(self.splits()[used].tolist()), left)}", *self.tally.notes])

    def value(self, column: str, row: int) -> str:
        """Return a cell; for file columns the absolute path, with links resolved."""
        return str(self._values(column)[row])

    def below(self, value: str) -> str:
        """Return a file's path relative to the table's folder, for an index with that folder as root.

        Raises:
            ValueError: If the file does not lie in it.
        """
        path = Path(value)
        if not path.is_relative_to(self._folder):
            raise ValueError(
                f"{value} does not lie in {self._folder}, the folder of the table {self.path.name}, from which an "
                "index finds its files; put the table into a folder that holds all of them."
            )
        return path.relative_to(self._folder).as_posix()

    def cells(self, column: str, split: str | None = None) -> list[Item]:
        """Return every filled cell of a column, in table order."""
        return list(self._cells(column, split))

    def items(self, column: str, split: str | None = None) -> list[Item]:
        """Return every distinct item of a column: a file once, a text once per group, in table order."""
        seen: dict[tuple[str, int], Item] = {}
        for cell in self._cells(column, split):
            seen.setdefault((cell.value, cell.group), cell)
        return list(seen.values())

    def _values(self, column: str) -> np.ndarray:
        return self._files[column] if column in self._files else self.frame[column].to_numpy(dtype=object)

    def _cells(self, column: str, split: str | None) -> Iterator[Item]:
        rows = self.rows(column, split)
        values = self._values(column)
        for row in rows:
            yield Item(str(values[row]), int(self.groups[row]), int(row))


def _group_rows(n: int, columns: Sequence[Sequence[str]], source: np.ndarray) -> np.ndarray:
    """Group rows that share a cell of one of the columns or came from one row of the file (connected components)."""
    parent = np.arange(n)

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = int(parent[row])
        return row

    def join(one: int, other: int) -> None:
        a, b = root(one), root(other)
        parent[max(a, b)] = min(a, b)

    for column in columns:
        first: dict[str, int] = {}
        for row, cell in enumerate(column):
            if cell != "":
                join(first.setdefault(cell, row), row)
    for row in np.flatnonzero(np.diff(source) == 0).tolist():
        join(row, row + 1)
    return np.array([root(row) for row in range(n)], dtype=np.int64)
