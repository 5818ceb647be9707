"""The error of this package, formatting for its messages, and a check of files before they are opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

MAX_FILE_BYTES = 200 * 1024 * 1024


class MediaError(ValueError):
    """Error for a picture or a sound that cannot be used, in one sentence."""


def shown(value: Any, n_chars: int = 40) -> str:
    """Format a value of any type for a message: short, on one line."""
    if isinstance(value, int) and abs(value) >= 10**n_chars:  # Python refuses to print the longest ones
        return "a number too long to print"
    text = repr(value) if isinstance(value, str | int | float | None) else type(value).__name__
    return text if len(text) <= n_chars else f"{text[:n_chars]}…"


def one_line(name: str, n_chars: int = 80) -> str:
    """Format a file name or other untrusted text for a message."""
    text = " ".join("".join(c if c.isprintable() else " " for c in name).split())
    return text if len(text) <= n_chars else f"{text[:n_chars]}…"


def check_file(source: Any, kind: str) -> str:
    """Check that a file exists, is not empty and not too large; return its name for messages.

    Args:
        source: A path or bytes.
        kind: ``picture`` or ``sound``.

    Raises:
        MediaError: If it is of another type, missing, empty or too large.
    """
    if isinstance(source, bytes):
        size, name = len(source), f"The {kind}"
    elif isinstance(source, str | Path):
        path = Path(source)
        try:
            found = path.is_file()
        except (OSError, ValueError):
            found = False
        if not found:
            raise MediaError(f"There is no {kind} file {shown(str(source), 200)}; check the path.")
        size, name = path.stat().st_size, one_line(path.name)
    else:
        raise MediaError(f"Expected a {kind} as a path, bytes or decoded values, got {type(source).__name__}.")
    if size == 0:
        raise MediaError(f"{name} is empty (0 bytes); choose another {kind}.")
    if size > MAX_FILE_BYTES:
        raise MediaError(
            f"{name} has {size / 2**20:.0f} MB, more than the {MAX_FILE_BYTES // 2**20} MB taken here; make it smaller."
        )
    return name
