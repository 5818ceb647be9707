"""Reader of .csv, .tsv, .jsonl and .parquet tables: cells as text, with the location of every row in the file.

Strict: anything invalid is an error that names its line. See docs/tables.md, and :mod:`fusemix.datasets.cells` for
the values of cells.
"""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import pandas as pd

from fusemix.datasets.base import Tally
from fusemix.datasets.cells import (
    DETAILS,
    FILE_COLUMNS,
    ID_COLUMNS,
    NAMED_COLUMNS,
    cell_text,
    check_characters,
    is_scalar,
    rounded,
)

ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
CHUNK_ROWS = 10_000
EMPTY_CAPTIONS = "captions in lists that are empty"
_MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe\0\0", "utf-32"), (b"\0\0\xfe\xff", "utf-32"),
          (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))  # fmt: skip

NEARLY = {  # column -> what others call it
    "text": ("caption", "captions", "sentence", "sentences", "description", "raw"),
    "image": ("image_path", "filename", "file_name", "filepath", "file", "path", "img", "picture", "photo"),
}
_INVISIBLE = "\ufeff\u200b\u200c\u200d\u2060"  # marks and blanks of no width
_LONGEST_CELL = 2**31 - 1  # characters of a .csv's cell; the library's own limit is 131,072

_Raw = tuple[list[int], dict[str, list[Any]]]  # locations of rows, column -> values


def read_table(path: Path, tally: Tally, *, texts: Sequence[str] = ("text",)) -> pd.DataFrame:
    """Read a whole table: a line per row, or per caption if a cell holds several; every cell as text, empty if missing.

    Args:
        path: Of the table; its ending decides the format.
        tally: Filled with columns that are not read and with empty captions.
        texts: Columns whose cells may hold several captions.

    Returns:
        Columns of text (object); the index is each row's location in the file: its line, counted from 1 with the
        header, or in .parquet its row, counted from 1. Captions of one cell share it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is invalid, with the line.
    """
    chunks = list(read_chunks(path, tally, texts=texts))
    if not chunks:
        return pd.DataFrame()
    unread = {name for chunk in chunks for name in chunk.attrs["unread"]}
    for chunk in chunks:
        chunk.attrs = {}  # pandas compares them
    frame = chunks[0] if len(chunks) == 1 else pd.concat(chunks).fillna("")
    return frame.drop(columns=[name for name in frame.columns if name in unread])


def read_chunks(path: Path, tally: Tally, *, texts: Sequence[str] = ("text",)) -> Iterator[pd.DataFrame]:
    """Yield a table of any length in pieces; see :func:`read_table`.

    Columns of a .jsonl may differ from piece to piece. Columns left out are in ``attrs["unread"]``.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is a folder; give a table." if path.is_dir() else f"There is no table {path}.")
    kind = path.suffix.lower()
    place = "row" if kind == ".parquet" else "line"
    try:
        if kind in (".csv", ".tsv"):
            raw = _csv(path, "," if kind == ".csv" else "\t", texts, tally)
        elif kind in (".jsonl", ".ndjson"):
            raw = _jsonl(path, texts)
        elif kind == ".parquet":
            raw = _parquet(path, texts)
        else:
            raise ValueError(f"the ending {kind or '(none)'} is not one of {', '.join(ENDINGS)}")
        unread, columns = set[str](), dict[str, None]()
        for places, cells in raw:
            columns |= dict.fromkeys(cells)
            frame = _cleaned(places, cells, texts, place, unread, tally)
            frame.attrs["unread"] = sorted(unread)
            yield frame
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as a table of pairs: {error}") from error
    tally.notes.extend(_near_misses(columns, texts, path))
    if unread:
        listed = ", ".join(map(repr, sorted(unread)))
        tally.notes.append(f"Not read, because they hold lists, objects or bytes: the columns {listed} of {path}.")


def _near_misses(columns: Iterable[str], texts: Sequence[str], path: Path) -> Iterator[str]:
    """Yield a sentence for a column that seems to be meant as another, which the table lacks."""
    for column, others in NEARLY.items():
        near = [name for name in columns if name.casefold() in others and name not in texts]
        if near and not {*(FILE_COLUMNS if column == "image" else ("text",))} & {*columns}:
            yield f"The column {near[0]!r} of {path} is not read; call it {column} if it is one."


def open_text(path: Path) -> TextIO:
    """Open a text file as UTF-8, or as UTF-16 or UTF-32 if it begins with a byte order mark; line ends are kept."""
    with open(path, "rb") as handle:
        start = handle.read(4)
    encoding = next((name for mark, name in _MARKS if start.startswith(mark)), "utf-8")
    return open(path, newline="", encoding=encoding)


def _lines(path: Path) -> Iterator[str]:
    """Yield lines with their ends; bytes that are not text are a ValueError with their line."""
    number = 0
    with open_text(path) as handle:
        try:
            for number, line in enumerate(handle, start=1):  # noqa: B007
                if "\0" in line:
                    why = "holds a NUL character; is it UTF-16 without its mark, or no text?"
                    raise ValueError(f"line {number}: {why} Save it as UTF-8")
                yield line
        except UnicodeDecodeError as error:
            number = _undecodable(path) if handle.encoding.startswith("utf-8") else number + 1
            raise ValueError(
                f"line {number}: is not {handle.encoding} text ({error.reason}); save it as UTF-8"
            ) from error


def _undecodable(path: Path) -> int:
    """Return the line with the first byte that is not UTF-8; decoding reads ahead and would name an earlier one."""
    with open(path, "rb") as handle:
        for number, line in enumerate(re.split(rb"\r\n|\r|\n", handle.read()), start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    return 1


def _csv(path: Path, separator: str, texts: Sequence[str], tally: Tally) -> Iterator[_Raw]:
    """Read .csv and .tsv; every row must have the header's number of cells, and every quote must close."""
    rows = _csv_rows(path, separator, tally)
    _, header = next(rows, (0, None))
    if not header:
        raise ValueError("it is empty; expected a header line")
    names = _names(header, texts)
    if len(names) == 1 and any(other in names[0] for other in ";\t,"):
        raise ValueError(
            f"its header is the one column {names[0]!r}; .csv is separated by commas and .tsv by tabs, save it so"
        )
    while piece := list(islice(rows, CHUNK_ROWS)):
        places, cells = zip(*piece, strict=True)
        yield list(places), {name: list(column) for name, column in zip(names, zip(*cells, strict=True), strict=True)}


def _csv_rows(path: Path, separator: str, tally: Tally) -> Iterator[tuple[int, list[str]]]:
    """Yield (line on which the row begins, cells), the header first; blank lines are skipped."""
    csv.field_size_limit(_LONGEST_CELL)
    reader = csv.reader(_lines(path), delimiter=separator, strict=True)
    header: list[str] = []
    broken: list[int] = []
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise ValueError(
                f"line {line}: {error}; a cell that holds a quote is enclosed in quotes, its own doubled"
            ) from error
        if row is None:
            break
        if not row:
            continue
        _check_row(row, header, line, separator)
        header = header or [cell.strip(_INVISIBLE) for cell in row]
        if reader.line_num > line:
            broken.append(line)
        yield line, row
    if broken:
        tally.notes.append(
            f"Rows of {path} that go over several lines of the file, by a line break within quotes: {len(broken):,}, "
            f"the first from line {broken[0]} on."
        )


def _check_row(row: list[str], header: list[str], line: int, separator: str) -> None:
    what = "comma" if separator == "," else "tab"
    if header and len(row) != len(header):
        advice = (
            f"a cell that holds a {what} is enclosed in double quotes"
            if len(row) > len(header)
            else f"empty cells have their {what} too"
        )
        raise ValueError(f"line {line} has {len(row)} cells, the header has {len(header)}; {advice}")
    if (
        len(header) > 1
        and row[0].lstrip(_INVISIBLE) == header[0]
        and [cell.strip(_INVISIBLE) for cell in row] == header
    ):
        raise ValueError(f"line {line} repeats the header; were two tables put one after the other? Remove the line")
    if separator == "\t" and any("\t" in cell and "\n" in cell for cell in row):
        raise ValueError(f"a cell from line {line} on holds line breaks and tabs; a quote there is not closed")


def _jsonl(path: Path, texts: Sequence[str]) -> Iterator[_Raw]:
    objects = _objects(path)
    while piece := list(islice(objects, CHUNK_ROWS)):
        keys = list(dict.fromkeys(key for _, entry in piece for key in entry))
        names = _names(keys, texts)
        columns = {name: [entry.get(key) for _, entry in piece] for name, key in zip(names, keys, strict=True)}
        yield [line for line, _ in piece], columns


def _objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line, object_pairs_hook=_object)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"line {number}: is not JSON ({error.msg} at column {error.colno}); expected one object a line, in "
                "braces"
            ) from error
        except (ValueError, RecursionError) as error:
            raise ValueError(f"line {number}: {error}") from error
        if not isinstance(value, dict):
            raise ValueError(f"line {number}: holds {str(value)[:40]!r}; expected one object a line, in braces")
        yield number, value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if twice := [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]:
        raise ValueError(f"the key {twice[0]!r} stands twice")
    return dict(pairs)


def _parquet(path: Path, texts: Sequence[str]) -> Iterator[_Raw]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        keys = [name for name in file.schema_arrow.names if not re.fullmatch(r"__index_level_\d+__", name)]
        names = dict(zip(_names(keys, texts), keys, strict=True))
        done = 0
        for batch in file.iter_batches(batch_size=CHUNK_ROWS):
            columns = {}
            for name, key in names.items():
                values, kind = batch.column(key), file.schema_arrow.field(key).type
                odd = pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
                # columns that are not read stay unconverted: embeddings, pictures
                columns[name] = [{}] * len(batch) if odd and name not in _read(texts) else values.to_pylist()
                if name in ID_COLUMNS and kind in (pa.float16(), pa.float32()):
                    _check_narrow(columns[name], 2.0**24 if kind == pa.float32() else 2.0**11, done, name)
            yield list(range(done + 1, done + len(batch) + 1)), columns
            done += len(batch)
    except OverflowError as error:
        raise ValueError(f"row {done + 1} or one after it, column {key}: holds a date out of range") from error
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"it is not a parquet file, or damaged ({error})") from error


def _check_narrow(values: list[Any], bound: float, done: int, name: str) -> None:
    """Refuse ids from ``bound`` on, of which floats of 32 or 16 bits have merged some."""
    for row, value in enumerate(values, start=done + 1):
        if value is not None and abs(value) >= bound:
            raise ValueError(f"row {row}, column {name}: {rounded(value)}")


def _read(texts: Sequence[str]) -> tuple[str, ...]:
    """Return the columns with a meaning; in others, lists, objects and bytes are ignored."""
    return (*NAMED_COLUMNS, *texts)


def _names(header: Iterable[Any], texts: Sequence[str]) -> list[str]:
    """Return column names without surrounding blanks, known names in their own spelling: ``Split`` is ``split``."""
    known = {name.casefold(): name for name in (*_read(texts), *DETAILS)} | {"license": "licence"}
    names = [str(name).strip(_INVISIBLE).strip() for name in header]
    for name in names:
        check_characters(name)
    names = [known.get(name.casefold(), name) for name in names]
    if twice := sorted(name for name, count in Counter(names).items() if count > 1):
        raise ValueError(f"the columns {twice} stand twice (surrounding blanks, and case in known names, are ignored)")
    return names


def _cleaned(
    places: list[int],
    columns: dict[str, list[Any]],
    texts: Sequence[str],
    place: str,
    unread: set[str],
    tally: Tally,
) -> pd.DataFrame:
    """Convert cells to text; a row with several captions becomes several rows."""
    clean: dict[str, list[Any]] = {}
    several: dict[int, str] = {}  # row -> its column with a list
    for name, values in columns.items():
        captions = name in texts
        if name not in _read(texts) and any(not is_scalar(value) for value in values):
            unread.add(name)
            continue
        cells = clean[name] = []
        plain = not captions and name not in (*FILE_COLUMNS, *ID_COLUMNS)
        for row, value in enumerate(values):
            try:
                if plain and type(value) is str:  # millions of them
                    check_characters(value)
                    cells.append(value.strip())
                    continue
                cell = cell_text(value, name, captions=captions)
            except ValueError as error:
                raise ValueError(f"{place} {places[row]}, column {name}: {error}") from error
            if isinstance(cell, list):
                tally.left_out[EMPTY_CAPTIONS] += cell.count("")
                cell = [text for text in cell if text]
                if len(cell) > 1 and several.setdefault(row, name) != name:
                    raise ValueError(
                        f"{place} {places[row]}: the columns {several[row]} and {name} both hold lists; which of their "
                        "texts belong together? Write a row for each"
                    )
                cell = cell if len(cell) > 1 else "".join(cell)
            cells.append(cell)
    frame = pd.DataFrame(clean, index=pd.Index(places, name=place), dtype=object)
    for name in dict.fromkeys(several.values()):
        frame = frame.explode(name)
    return frame
