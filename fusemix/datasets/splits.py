"""Split names and their meaning, and the sentence that counts the rows of each split.

Names are matched without regard to case and surrounding blanks. Rows of ``test`` are never trained on, rows of
``val`` choose the epoch, an empty name is no split: such a row trains. Any other name is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

# Not among them: "development" is Clotho's training and others' validation, "evaluation" its test, others' validation.
SIDES = {"train": ("train", "training"), "val": ("val", "valid", "validation", "dev"), "test": ("test", "testing")}
KNOWN = "; ".join(f"{side}: {' or '.join(names)}" for side, names in SIDES.items())
_SIDE_OF = {"": ""} | {name: side for side, names in SIDES.items() for name in names}


def plain(name: Any) -> str:
    """Return a split name in lower case, without surrounding blanks; None and NaN become empty."""
    return "" if name is None or (isinstance(name, float) and np.isnan(name)) else str(name).strip().casefold()


def side_of(name: Any) -> str | None:
    """Return ``train``, ``val`` or ``test`` for a split name, empty for an empty one, None for an unknown one."""
    return _SIDE_OF.get(plain(name))


def of_names(names: Iterable[str], where: Any) -> str:
    """Return the split name among the words of a file's name or the folders above it; empty if there is none.

    Raises:
        ValueError: If they name two sides.
    """
    found = list(dict.fromkeys(plain(name) for name in names if side_of(name)))
    if len({side_of(name) for name in found}) > 1:
        raise ValueError(f"{where} says {' and '.join(found)}; give the split of its samples, or rename it.")
    return found[0] if found else ""


def sides(names: Sequence[Any] | np.ndarray, where: Any) -> np.ndarray:
    """Return ``train``, ``val``, ``test`` or empty for every row, shape (n_rows,), object.

    Args:
        names: Split name of every row.
        where: What to call their table in a message.

    Raises:
        ValueError: If a name is none of :data:`SIDES`, with every name and its number of rows.
    """
    codes, distinct = pd.factorize(np.asarray(names, dtype=object), use_na_sentinel=False)
    numbers = np.bincount(codes, minlength=len(distinct)).tolist()
    check_names(dict(zip(distinct.tolist(), numbers, strict=True)), where)
    return np.array([side_of(name) for name in distinct], dtype=object)[codes]


def check_names(counts: Mapping[Any, int], where: Any) -> None:
    """Refuse names that are none of :data:`SIDES`.

    Args:
        counts: Split name -> rows.
        where: What to call their table in a message.

    Raises:
        ValueError: With every name and its number of rows.
    """
    if unknown := [name for name in counts if side_of(name) is None]:
        listed = ", ".join(f"{_shown(name)} {number:,}" for name, number in list(counts.items())[:20])
        raise ValueError(
            f"{where} has rows of split {', '.join(map(_shown, unknown[:10]))}, whose meaning is not known (rows of "
            f"each split: {listed}); call them {KNOWN}, or leave the cell empty."
        )


def check_undeclared(frame: pd.DataFrame, where: Any, *, besides: Sequence[str] = ()) -> None:
    """Refuse a table without a column ``split`` of which another column (``set``, ``partition``) holds the splits.

    Args:
        frame: Cells as text.
        where: What to call the table in a message.
        besides: Columns that are something else, whatever they hold.

    Raises:
        ValueError: If all filled cells of a column are names of splits, on two sides at least.
    """
    for column in () if "split" in frame.columns else [name for name in frame.columns if name not in besides]:
        found = frame[column].to_numpy(dtype=object)
        if side_of(next((cell for cell in found if cell), "")):  # most columns end here
            on = {side_of(name) for name in pd.unique(found) if name}
            if len(on) > 1 and None not in on:
                raise ValueError(
                    f"{where} has no column split, but its column {column!r} holds names of splits; rename it to "
                    "split, or, if all rows are to be trained on, add an empty column split."
                )


def crossing(splits: np.ndarray, files: np.ndarray) -> int:
    """Count the files with rows on several sides; both arrays have shape (n_rows,), object, empty without a file."""
    side = np.array([side_of(name) or "train" for name in splits], dtype=object)
    named = files != ""
    return int((pd.Series(side[named]).groupby(files[named]).nunique() > 1).sum())


def in_split(names: Sequence[Any] | np.ndarray, split: str, where: Any) -> np.ndarray:
    """Return whether each row belongs to ``split`` (``dev`` and ``validation`` are one): (n_rows,), bool.

    Raises:
        ValueError: If the split or a row's name is none of :data:`SIDES`, or no row belongs to it.
    """
    wanted = side_of(split)
    if wanted is None:
        raise ValueError(f"There is no split {split!r}; a split is one of {KNOWN}.")
    chosen: np.ndarray = sides(names, where) == wanted
    if not chosen.any():
        has = sorted({plain(name) for name in names} - {""})
        raise ValueError(f"{where} has no split {split!r}; it has {has or 'none'}.")
    return chosen


def closing(counts: Mapping[str, int], left_out: Mapping[str, int] | None = None, *, what: str = "rows") -> str:
    """Write the sentence with the counts of a table, which every command ends with.

    Args:
        counts: Split name -> rows that are used.
        left_out: Reason ("without a cell in image") -> rows that are not.
        what: What is counted.
    """
    on: Counter[str] = Counter()
    for name, number in counts.items():
        on[side_of(name) or ""] += number
    unnamed = on[""]
    train = f"{on['train'] + unnamed:,} train"
    if unnamed:
        train += " (without a split)" if unnamed == on.total() or not on["train"] else f" ({unnamed:,} without a split)"
    share = "" if on["val"] else " (training sets a share of the others aside)"
    reasons = [f"{number:,} {reason}" for reason, number in (left_out or {}).items() if number]
    why = f": {', '.join(reasons)}" if reasons else ""
    return (
        f"{on.total():,} {what}: {train}, {on['val']:,} validate{share}, {on['test']:,} kept out (test); "
        f"{sum((left_out or {}).values()):,} left out{why}."
    )


def _shown(name: Any) -> str:
    text = str(name).strip() if plain(name) else ""
    return repr(text if len(text) <= 40 else f"{text[:40]}…") if text else "(none)"
