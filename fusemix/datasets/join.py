"""Joining several tables of pairs into one, so that each batch is drawn from all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fusemix.datasets.base import Pair, Tally
from fusemix.datasets.cells import FILE_COLUMNS, ID_COLUMNS
from fusemix.datasets.reader import read_chunks
from fusemix.datasets.splits import KNOWN, check_names, check_undeclared, side_of, sides


def join_tables(
    tables: Mapping[str, Path], *, splits: Sequence[str] = (), tally: Tally | None = None
) -> Iterator[Pair]:
    """Yield the rows of several tables, for :func:`fusemix.datasets.write_table`, in constant memory.

    Paths become relative to the working folder, and groups get their table's name as a prefix, so that picture 7 of
    one set and picture 7 of another stay distinct. Columns other than a :class:`~fusemix.datasets.Pair`'s are left out.

    Args:
        tables: Name -> ``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet``.
        splits: Only rows of these; all by default.
        tally: Filled with what is left out.

    Raises:
        FileNotFoundError: If a table is not there.
        ValueError: If one cannot be understood, or a split is not known.
    """
    tally = tally if tally is not None else Tally()
    if unknown := [split for split in splits if side_of(split) is None]:
        raise ValueError(f"There is no split {unknown[0]!r}; a split is one of {KNOWN}.")
    wanted = {side_of(split) for split in splits}
    for path in tables.values():
        next(read_chunks(path, Tally()), None)  # before anything is written
    for name, path in tables.items():
        empty, columns = True, set[str]()
        for chunk in read_chunks(path, tally):
            empty = False
            columns |= set(chunk.columns)
            if not columns & {"image", "audio", "text"}:
                raise ValueError(f"{path} has columns {sorted(columns)}; expected at least one of image, audio, text.")
            check_undeclared(chunk, path, besides=(*FILE_COLUMNS, *ID_COLUMNS, "text"))
            together = chunk.index.duplicated(keep=False)  # captions of one cell
            chunk = chunk.reindex(columns=list(Pair._fields), fill_value="").fillna("")
            try:
                on = sides(chunk["split"].to_numpy(), path)
            except ValueError:
                check_names(_splits(path), path)  # names the rows of the whole table, not of this piece
                raise
            cells = (chunk[field].tolist() for field in Pair._fields)
            for row, side, shared, place in zip(zip(*cells, strict=True), on, together, chunk.index, strict=True):
                if wanted and side not in wanted:
                    tally.left_out[f"rows of other splits than {', '.join(splits)}"] += 1
                    continue
                image, audio, text, split, group = row
                image, audio = (str(path.parent / file) if file else "" for file in (image, audio))
                group = group or (f"{chunk.index.name} {place}" if shared else "")
                yield Pair(image, audio, text, split, f"{name}:{group}" if group else "")
        if empty:
            raise ValueError(f"{path} has no rows; expected a header and at least one pair.")
        if dropped := sorted(columns - set(Pair._fields)):
            tally.notes.append(f"{path}: the columns {', '.join(dropped)} are not taken into a joined table.")


def _splits(path: Path) -> Counter[str]:
    counts: Counter[str] = Counter()
    for chunk in read_chunks(path, Tally()):
        counts.update(chunk["split"].tolist() if "split" in chunk.columns else [""] * len(chunk))
    return counts
