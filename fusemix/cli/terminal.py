"""Printing to the terminal. All output of commands passes through here, so that it appears verbatim.

Rich interprets ``[brackets]`` as styles and ``:words:`` as emoji; paths and captions may hold both. The consoles
below interpret neither.
"""

from __future__ import annotations

import os
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.status import Status
from rich.table import Table
from rich.text import Text

_AS_IT_IS: dict[str, Any] = {"markup": False, "emoji": False, "highlight": False}
RANK = int(os.environ.get("RANK", 0))  # of this process under torchrun
RESULTS = Console(quiet=RANK > 0, **_AS_IT_IS)  # standard output
NOTES = Console(stderr=True, quiet=RANK > 0, **_AS_IT_IS)
_ERRORS = Console(stderr=True, **_AS_IT_IS)  # of every process


def result(text: str) -> None:
    """Print a line of the command's result on standard output, unwrapped."""
    _line(RESULTS, text)


def note(text: str, *, style: str = "") -> None:
    """Print a line for the user on standard error, unwrapped."""
    _line(NOTES, text, style)


def fail(sentence: str) -> None:
    """Print the reason why a command fails, in red on standard error."""
    _line(_ERRORS, f"error: {sentence}", "red")


def show(table: Table) -> None:
    """Print a table on standard output."""
    RESULTS.print(table)


def bar(*, rate: bool = False, status: bool = False) -> Progress:
    """Make a progress bar on standard error: description, bar, count, time passed, time left.

    Args:
        rate: Add a column that shows the field ``rate`` of a task.
        status: Add a last column that shows the field ``status`` of a task.
    """
    columns = [_text("{task.description}"), BarColumn(30), MofNCompleteColumn()]
    columns += [_text("{task.fields[rate]}")] if rate else []
    columns += [TimeElapsedColumn(), TimeRemainingColumn()]
    columns += [_text("{task.fields[status]}")] if status else []
    return Progress(*columns, console=NOTES)


def waiting(text: str) -> Status:
    """Show a spinner with a text until the block ends."""
    return NOTES.status(Text(text))


def cell(text: str) -> Text:
    """Make a table cell that shows a text verbatim."""
    return Text(text)


def _text(template: str) -> Any:
    return TextColumn(template, markup=False)


def _line(console: Console, text: str, style: str = "") -> None:
    encoding = console.encoding  # a file name may hold bytes that no encoding has
    readable = text.encode(encoding, "backslashreplace").decode(encoding)
    console.print(Text(readable, style=style), soft_wrap=True)
