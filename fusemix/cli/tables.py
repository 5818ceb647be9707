"""What every command that reads a table says at its end: which rows it used, and which it left out and why."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fusemix.data.pair_set import PairSet
    from fusemix.data.pairs import PairTable
    from fusemix.model.config import TrainConfig


def rows_used(table: PairTable, columns: list[str], split: str | None = None) -> str:
    """Say which rows of a table a command used: those whose cells of the columns are filled, of a split if named.

    Args:
        table: The table that was read.
        columns: Of which each row must fill at least one.
        split: The only split that was used.
    """
    import numpy as np

    filled = np.zeros(len(table), dtype=bool)
    for column in columns:
        if column in table.frame.columns:
            filled |= table.frame[column].to_numpy(dtype=object) != ""
    splits = table.splits()
    asked = np.full(len(table), True) if split is None else splits == split
    left_out = {
        f"of other splits than {split}": int((~asked).sum()),
        f"without {' or '.join(columns)}": int((asked & ~filled).sum()),
    }
    names, counts = np.unique(splits[asked & filled].astype(str), return_counts=True)
    return _sentence(
        f"{table.path}: {len(table):,} rows",
        {name or "without a split": int(count) for name, count in zip(names, counts, strict=True)},
        left_out,
    )


def pairs_used(sets: list[PairSet], config: TrainConfig) -> list[str]:
    """Say of each set of pairs how many trained, validated, were kept out and were left out."""
    import numpy as np

    sentences = []
    for s in sets:
        train, validation = s.divide(config)
        rows: np.ndarray = np.unique(np.concatenate([store.rows["row"].to_numpy() for store in s.stores.values()]))
        used = {
            "trained": len(train),
            "validated": len(validation),
            "of test kept out": len(s) - len(train) - len(validation),
        }
        left_out = {f"without latents of both {' and '.join(s.stores)}": max(0, len(rows) - len(s))}
        sentences.append(_sentence(f"{s.name}: {len(rows):,} rows", used, left_out))
    return sentences


def splits_written(out: Path, counts: Mapping[str, int]) -> str:
    """Say how many pairs of which split a table that was written holds."""
    splits = ", ".join(f"{split or 'no split'} {number:,}" for split, number in counts.items())
    return f"{out}: {sum(counts.values()):,} pairs ({splits})"


def _sentence(beginning: str, used: dict[str, int], left_out: dict[str, int]) -> str:
    """Join the counts: ``TABLE: 100 rows; used 80 (train 70, val 10); left out 20 (without text 20).``."""

    def listed(counts: dict[str, int]) -> str:
        filled = [f"{name} {count:,}" for name, count in counts.items() if count]
        return f"{sum(counts.values()):,}" + (f" ({', '.join(filled)})" if filled else "")

    return f"{beginning}; used {listed(used)}; left out {listed(left_out)}."
