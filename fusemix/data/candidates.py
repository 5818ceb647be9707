"""Candidates for a subset: their rows, features and quality, and writing of the chosen rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from fusemix.data.latent_store import LatentStore
from fusemix.data.pairs import PairTable
from fusemix.datasets.cells import FILE_COLUMNS
from fusemix.datasets.splits import side_of, sides
from fusemix.encoder_identity import check_encoder
from fusemix.files import write_atomic
from fusemix.model.adapters import FusionModel

_PIECE = 65_536  # candidates read at once
ENDINGS = (".csv", ".tsv", ".jsonl", ".parquet")  # file endings that write_rows accepts


@dataclass(frozen=True)
class Candidates:
    """Groups of rows with the same items, which are kept or dropped together.

    Attributes:
        stores: Modality -> its latents.
        rows: Columns ``row``, ``split`` and one item number per modality, for rows that every store has.
        items: One item number per modality, each combination once.
    """

    stores: Mapping[str, LatentStore]
    rows: pd.DataFrame
    items: pd.DataFrame

    @classmethod
    def of(cls, stores: Mapping[str, LatentStore], split: str | None = None) -> Candidates:
        """Join stores of one table on their rows.

        Args:
            stores: Modality -> its latents.
            split: Only rows of this split.

        Raises:
            ValueError: If they come from different tables, or no row has latents of all.
        """
        if len({store.manifest["table"] for store in stores.values()}) > 1:
            raise ValueError("The latents were made from different tables, so their rows do not match.")
        first, *others = stores
        rows = stores[first].rows.rename(columns={"item": first})
        if split is not None:
            rows = rows[sides(rows["split"].to_numpy(), stores[first].folder) == side_of(split)]
        rows = rows[["row", first, "split"]]
        for name in others:
            rows = rows.merge(stores[name].rows[["row", "item"]].rename(columns={"item": name}), on="row")
        if rows.empty:
            raise ValueError(f"No row {f'of split {split!r} ' if split else ''}has latents of {' and '.join(stores)}.")
        return cls(stores, rows, rows[list(stores)].drop_duplicates().reset_index(drop=True))

    def __len__(self) -> int:
        return len(self.items)

    def features(self) -> np.ndarray:
        """Return the latents of all modalities, each of unit length, concatenated: (N, sum of widths), float32."""
        out = np.empty((len(self), sum(store.dim for store in self.stores.values())), dtype=np.float32)
        start = 0
        for modality, store in self.stores.items():
            items = self.items[modality].to_numpy()
            for first in range(0, len(items), _PIECE):
                part = store.read(items[first : first + _PIECE])
                lengths = np.linalg.norm(part, axis=1, keepdims=True)
                out[first : first + len(part), start : start + store.dim] = part / np.where(lengths == 0, 1, lengths)
            start += store.dim
        return out

    def numbers(self, table: PairTable, column: str) -> np.ndarray:
        """Return the numbers of a table's column in each candidate's first row, (N,), float64.

        Raises:
            ValueError: If the table has no such column, or a cell is not a number.
        """
        if column not in table.frame.columns:
            raise ValueError(f"{table.path} has no column {column!r}; it has {list(table.frame.columns)}.")
        first = self.rows.drop_duplicates(subset=list(self.stores))["row"]
        cells = pd.to_numeric(table.frame[column].iloc[first], errors="coerce")
        if cells.isna().any():
            row = int(first.to_numpy()[np.flatnonzero(cells.isna())[0]])
            raise ValueError(f"Row {row} of {table.path}: {column} is not a number.")
        return cells.to_numpy(dtype=np.float64)

    def cosines(self, model: FusionModel) -> np.ndarray:
        """Return the cosine of each candidate's two embeddings, (N,), float64.

        Raises:
            ValueError: If there are not two modalities, or the model was trained on other latents.
        """
        if len(self.stores) != 2:
            raise ValueError(f"A checkpoint scores pairs of two modalities, got latents of {list(self.stores)}.")
        for modality, store in self.stores.items():
            check_encoder(modality, model.config.encoders, store.encoder)
        parts = []
        for start in range(0, len(self), 16_384):
            some = self.items.iloc[start : start + 16_384]
            one, other = (model.embed(m, store.read(some[m].to_numpy())) for m, store in self.stores.items())
            parts.append((one * other).sum(1).numpy())
        return np.concatenate(parts).astype(np.float64)

    def rows_of(self, chosen: np.ndarray) -> pd.DataFrame:
        """Return the lines of :attr:`rows` that belong to the chosen candidates, by ascending row."""
        return self.rows.merge(self.items.iloc[chosen], on=list(self.stores)).sort_values("row")


def check_table(table: PairTable, stores: Mapping[str, LatentStore]) -> None:
    """Raise ValueError if a store was made from another table."""
    for store in stores.values():
        if store.manifest["table"] not in (None, table.fingerprint):
            raise ValueError(f"{store.folder} was made from another table than {table.path}.")


def write_rows(table: PairTable, rows: np.ndarray, out: Path, *, keep_splits: Sequence[str] = ()) -> None:
    """Write some rows of a table to a new table, with file paths that are valid from its folder.

    Args:
        table: The table.
        rows: Numbers of the rows to write.
        out: ``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet``.
        keep_splits: Rows of these splits are written too.
    """
    wanted = np.array([side_of(split) for split in keep_splits], dtype=object)
    kept = np.isin(sides(table.splits(), table.path), wanted)
    numbers = np.union1d(rows, np.flatnonzero(kept))
    frame = table.frame.iloc[numbers].copy()
    if out.parent.resolve() != table.path.parent.resolve():
        for column in set(FILE_COLUMNS) & set(frame.columns):
            cells = [table.value(column, int(row)) if table.frame[column].iat[row] else "" for row in numbers]
            frame[column] = cells
    write: dict[str, Callable[[Path], object]] = {
        ".parquet": lambda path: frame.to_parquet(path, index=False),
        ".jsonl": lambda path: frame.to_json(path, orient="records", lines=True, force_ascii=False),
        ".csv": lambda path: frame.to_csv(path, index=False),
        ".tsv": lambda path: frame.to_csv(path, sep="\t", index=False),
    }
    write_atomic(out, write[out.suffix])
