"""Cells of a table: the values they may hold and their text; the rules are in docs/tables.md."""

from __future__ import annotations

import ast
import json
import re
from datetime import date
from decimal import Decimal
from numbers import Integral, Real
from typing import Any

import numpy as np
import pandas as pd

FILE_COLUMNS = ("image", "audio", "video")  # cells are paths relative to the table
ID_COLUMNS = ("group", "id")
NAMED_COLUMNS = (*FILE_COLUMNS, "text", "split", *ID_COLUMNS)
DETAILS = ("title", "source", "licence", "credit")  # what a search result shows
EXACT = 2**53  # above this, floating point merges neighbouring whole numbers
_WHOLE_FLOAT = re.compile(r"(-?(?:0|[1-9]\d*))\.0")  # how pandas writes 3 where a cell of the column is missing
_SCIENTIFIC = re.compile(r"-?\d+([.,]\d+)?e\+\d{1,3}|-?\d[.,]\d+e\d{1,3}", re.IGNORECASE)  # and long numbers
_MISSING = frozenset({"nan", "<na>", "nat", "none", "null", "na", "n/a", "#n/a", "undefined"})  # in a .csv
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://|(https?|ftp|file|data|s3|gs|hf):", re.IGNORECASE)
_NO_TEXT = re.compile("[\0\ud800-\udfff]")  # NUL, and halves of surrogate pairs, which no file can hold
_WRITTEN = re.compile(r"[\[({]|b['\"]|(array|tensor)\(|<")  # how lists, objects and bytes written as text begin
_PLAINLY_WRITTEN = re.compile(
    r"""\[\s*['"].*['"]\s*\]|\[?\s*(array|tensor)\(.*\)\s*\]?|<[\w.]+ .*( at 0x[0-9a-f]+|mode=\w+ size=\d+x\d+)>""",
    re.DOTALL | re.IGNORECASE,
)


def cell_text(value: Any, column: str, *, captions: bool) -> str | list[str]:
    """Return the text of a cell, empty if there is none; a list if it holds several captions.

    Args:
        value: As stored in the file: text, number, bool, date, None, a list, a dict, bytes.
        column: Name of the column, which decides what a cell may hold.
        captions: Whether the column holds texts, so that a cell may hold a list of them.

    Raises:
        ValueError: The message is the rest of a sentence that begins with the location of the cell.
    """
    if isinstance(value, str):
        text = value.strip()
        return _checked(text, column, captions) if text else ""
    if isinstance(value, list | tuple | np.ndarray) and captions:
        return _captions(list(value), column)
    if isinstance(value, list | tuple | dict | set | np.ndarray | bytes | bytearray | memoryview):
        raise ValueError(f"holds {_kind(value)}; expected {_wanted(column, captions)}")
    if value is None or value is pd.NA or value is pd.NaT or value != value:
        return ""
    if column in FILE_COLUMNS:
        raise ValueError(f"holds {_kind(value)}; expected {_wanted(column, captions)}")
    return _scalar(value, column)


def is_scalar(value: Any) -> bool:
    """Return whether a value is not a list, dict or bytes."""
    return not isinstance(value, list | tuple | dict | set | np.ndarray | bytes | bytearray | memoryview)


def _scalar(value: Any, column: str) -> str:
    """Write booleans as true and false, dates as ISO 8601, whole numbers (floats too) in digits."""
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, date | pd.Timestamp):
        return value.isoformat()
    if isinstance(value, np.datetime64):
        return str(value)
    if isinstance(value, Integral):
        return str(int(value))
    if isinstance(value, Decimal):
        return str(int(value)) if value.is_finite() and value == value.to_integral_value() else str(value)
    if isinstance(value, Real) and not isinstance(value, Integral):
        number = float(value)
        if column in ID_COLUMNS and abs(number) >= EXACT:
            raise ValueError(rounded(value))
        return str(int(number)) if number.is_integer() else str(value)
    return str(value)


def _checked(text: str, column: str, captions: bool) -> str:
    check_characters(text)
    if column in FILE_COLUMNS:
        _check_path(text)
    elif captions and _WRITTEN.match(text) and _is_written(text):
        raise ValueError(
            f"holds {_short(text)}, {_what(text)} written as text; give each caption a row of its own, or use .jsonl "
            "or .parquet, where a cell may hold a list"
        )
    if column in (*ID_COLUMNS, *FILE_COLUMNS) and text.casefold() in _MISSING:
        raise ValueError(
            f"holds {text!r}, as programs write a missing value; leave the cell empty, or give it another name"
        )
    if column in ID_COLUMNS and _SCIENTIFIC.fullmatch(text):
        raise ValueError(
            f"holds {_short(text)}, in a notation that merges whole numbers from 2^53 on, and in spreadsheets those of "
            "16 digits and more; write such ids as text or as whole numbers"
        )
    if column in ID_COLUMNS and (match := _WHOLE_FLOAT.fullmatch(text)):
        if len(match[1]) > 16 or abs(int(match[1])) >= EXACT:
            raise ValueError(rounded(text))
        return str(int(match[1]))
    return text


def check_characters(text: str) -> None:
    """Raise ValueError if a text holds NUL or half a surrogate pair; the message is the rest of a sentence."""
    if found := _NO_TEXT.search(text):
        if found[0] == "\0":
            raise ValueError("holds a NUL character; is the file UTF-16 without its mark, or no text? Save it as UTF-8")
        raise ValueError("holds half of a surrogate pair, which is no character; write the text again")


def _check_path(text: str) -> None:
    if _ADDRESS.match(text):
        what = "write its path alone" if text.casefold().startswith("file:") else "fetch it first"
        raise ValueError(f"holds the address {_short(text)}; expected the path of a file, so {what}")
    if _WRITTEN.match(text) and _is_written(text):
        raise ValueError(f"holds {_short(text)}, {_what(text)} written as text; expected the path of a file")


def _captions(values: list[Any], column: str) -> list[str]:
    texts = []
    for value in values:
        if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
            value = ""
        if not isinstance(value, str):
            raise ValueError(f"holds a list with {_kind(value)} in it; expected a list of texts")
        texts.append(str(cell_text(value, column, captions=True)))
    return texts


def _is_written(text: str) -> bool:
    """Return whether a text is how Python, numpy, torch or JSON write a list, an object or bytes."""
    if _PLAINLY_WRITTEN.fullmatch(text):
        return True
    try:
        value = ast.literal_eval(re.sub(r"\bnan\b", "None", text))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return False
    if isinstance(value, list | tuple | set):
        return value == [] or any(not isinstance(element, int | float) for element in value)
    return isinstance(value, bytes | dict)


def _what(text: str) -> str:
    return "an object" if text[0] in "{<" else "a list or bytes"


def _wanted(column: str, captions: bool) -> str:
    if column in FILE_COLUMNS:
        return "the path of a file"
    return "a text, or a list of texts" if captions else "a text or a number"


def _kind(value: Any) -> str:
    if isinstance(value, bytes | bytearray | memoryview):
        return f"{len(value):,} bytes"
    if isinstance(value, dict):
        return f"an object ({_short(', '.join(map(str, value)))})"
    if isinstance(value, list | tuple | set | np.ndarray):
        return f"a list of {len(value):,}"
    return f"the {'truth value' if isinstance(value, bool | np.bool_) else 'number or date'} {_short(str(value))}"


def rounded(value: Any) -> str:
    """Return the rest of a sentence about an id that floating point may have merged with others."""
    return (
        f"holds {_short(str(value))} in floating point, which merges whole numbers from 2^53 on (in 32 bits from 2^24 "
        "on); write such ids as text or as whole numbers"
    )


def _short(text: str) -> str:
    return json.dumps(text if len(text) <= 60 else f"{text[:60]}…", ensure_ascii=False)
