"""Writer of a table of pairs: streamed, and written completely or not at all."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

from fusemix.datasets.base import Pair, Tally
from fusemix.datasets.cells import cell_text
from fusemix.datasets.splits import check_names, plain
from fusemix.files import write_atomic

ENDINGS = (".csv", ".tsv", ".parquet")
_BATCH = 10_000  # rows a parquet row group


def write_table(
    pairs: Iterable[Pair], out: str | Path, tally: Tally, *, report: Callable[[int], None] | None = None
) -> Counter[str]:
    """Write a table that :class:`fusemix.data.pairs.PairTable` reads, and a list of the missing files beside it.

    Args:
        pairs: From a reader of this package, with the tally it fills.
        out: ``.csv``, ``.tsv`` or ``.parquet``; paths below its folder become relative to it.
        tally: Its missing files are written to ``OUT.missing.txt``.
        report: Called with the number of pairs now and then.

    Returns:
        Split -> pairs; :meth:`Tally.summary` says them in a sentence.

    Raises:
        ValueError: If the ending is another, there is not one pair to write, a split is not known, or a cell is one
            that a table must not hold (:mod:`fusemix.datasets.cells`).
        FileNotFoundError: If every file that the annotations name is missing. Errors of reading the
            pairs are raised unchanged.
    """
    out = Path(out)
    ending = out.suffix.lower()
    if ending not in ENDINGS:
        raise ValueError(f"{out}: a table ends in one of {', '.join(ENDINGS)}.")
    counts: Counter[str] = Counter()
    rows = _rows(pairs, out.parent, counts, report)
    first = list(islice(rows, 1))  # before anything is written
    if not first and tally.missing:
        raise FileNotFoundError(
            f"None of the {len(tally.missing):,} files that the annotations name exists; the first is "
            f"{tally.missing[0][1]}. Is the root the right folder, and are the archives unpacked?"
        )
    if not first:
        raise ValueError("There is not one pair to write.")
    out.parent.mkdir(parents=True, exist_ok=True)
    guarded = _guarded(chain(first, rows))

    def write(path: Path) -> None:
        _write_parquet(guarded, path) if ending == ".parquet" else _write_csv(guarded, path, ending)
        check_names(counts, "The dataset")

    try:
        write_atomic(out, write)
    except _InputError as error:
        raise error.cause from error.cause.__cause__
    listing = out.with_name(out.name + ".missing.txt")
    if tally.missing:
        lines = "".join(f"{split}\t{' '.join(name.splitlines())}\n" for split, name in tally.missing)
        write_atomic(listing, lambda path: path.write_text(lines, encoding="utf-8"))
    else:
        listing.unlink(missing_ok=True)
    return counts


class _InputError(Exception):
    """Carrier of an error raised while reading a pair, past the writer, whose own errors are about the table."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(cause)
        self.cause = cause


def _guarded(rows: Iterator[Pair]) -> Iterator[Pair]:
    try:
        yield from rows
    except Exception as error:
        raise _InputError(error) from error


def _rows(
    pairs: Iterable[Pair], folder: Path, counts: Counter[str], report: Callable[[int], None] | None
) -> Iterator[Pair]:
    root = f"{folder.absolute()}{os.sep}"

    def cell(file: str) -> str:
        """Return the path relative to the table if the file lies below it, else absolute."""
        name = str(Path(file).absolute()).removeprefix(root) if file else ""
        try:
            return name if name == cell_text(name, "image", captions=False) else f".{os.sep}{name}"
        except ValueError:  # it looks like something else
            return f".{os.sep}{name}"

    for number, pair in enumerate(pairs, start=1):
        counts[plain(pair.split)] += 1
        for column in ("text", "group"):
            try:
                cell_text(getattr(pair, column), column, captions=column == "text")
            except ValueError as error:
                of = pair.image or pair.audio or f"pair {number:,}"
                raise ValueError(f"The {column} of {of} {error}.") from error
        if report and number % 500 == 0:
            report(number)
        yield pair._replace(image=cell(pair.image), audio=cell(pair.audio))


def _write_csv(rows: Iterator[Pair], path: Path, ending: str) -> None:
    with open(path, "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, delimiter="\t" if ending == ".tsv" else ",")
        writer.writerow(Pair._fields)
        writer.writerows(rows)


def _write_parquet(rows: Iterator[Pair], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, pa.string()) for name in Pair._fields])
    with pq.ParquetWriter(path, schema) as writer:
        while batch := list(islice(rows, _BATCH)):
            columns = zip(*batch, strict=True)
            writer.write_batch(pa.record_batch([pa.array(c, pa.string()) for c in columns], schema=schema))
