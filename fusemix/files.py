"""Atomic file writes: a crash or a full disk never leaves a partial file."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LEFT_OVER = re.compile(r"\..+\.\d+\.tmp")  # what a killed write_atomic leaves


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Write to a temporary sibling, fsync it, then rename it over ``path``.

    Args:
        path: The final file; its folder must exist.
        write: Called with the temporary path; must create that file.

    Raises:
        OSError: If the disk is full or the folder is read-only, in one sentence; ``path`` is then unchanged. An error
            about another file, which ``write`` reads, comes through as it is.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if not _is_about(path, error):
            raise
        raise type(error)(_not_written(path, error)) from error
    except (RuntimeError, SafetensorError) as error:  # torch, faiss and safetensors write files of their own
        raise OSError(_not_written(path, error)) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_place(folder: Path) -> None:
    """Raise OSError for a folder that cannot be made or written to, before hours of work for it."""
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise NotADirectoryError(_not_written(folder, OSError(errno.ENOTDIR, "")))
    if not os.access(place, os.W_OK):
        raise PermissionError(_not_written(folder, OSError(errno.EACCES, "")))


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Lock a folder for one writing process; the lock of a killed process is released.

    Raises:
        ValueError: If another process is writing there.
        OSError: If the folder cannot be made or written to, in one sentence.
    """
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
        for path in folder.iterdir():
            if _LEFT_OVER.fullmatch(path.name) and path.is_file():
                path.unlink()
    except Timeout as error:
        raise ValueError(f"Another process is writing to {folder}; wait for it or stop it.") from error
    except OSError as error:
        raise type(error)(_not_written(folder, error)) from error
    try:
        yield
    finally:
        with suppress(OSError):
            (folder / ".lock").unlink(missing_ok=True)
        lock.release()


def _is_about(path: Path, error: OSError) -> bool:
    """Return whether an error is about writing ``path``, not about reading another file."""
    if error.errno is None:
        return False  # a message of this module
    if error.filename is not None:
        return Path(os.fsdecode(error.filename)).parent == path.parent
    return error.errno != errno.ENOENT or not path.parent.is_dir()  # other libraries name no file


def _not_written(path: Path, error: Exception) -> str:
    """Describe what failed, where, and what to do."""
    number = getattr(error, "errno", None)
    reason = os.strerror(number) if number else str(error)
    if number in _FULL:
        advice = "free some space there, or choose another folder, and run the same command again"
    elif number in (errno.EROFS, errno.EACCES, errno.EPERM):
        advice = "choose a folder that you may write to"
    elif number in (errno.ENOTDIR, errno.EEXIST):
        advice = "a file lies where a folder is needed, choose another folder"
    else:
        advice = "choose another folder, or see what is wrong with this one"
    return f"{path} could not be written: {reason}. Nothing there was changed; {advice}."


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        FileNotFoundError: If it is absent.
        ValueError: If it is not JSON, naming the file.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); it was damaged or is not ours.") from error


def bytes_of(size: str) -> int:
    """Convert a number with a unit to bytes, e.g. ``1GB``, ``512MiB`` or ``0``.

    Raises:
        ValueError: If it is not one.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *(?:([kMGT]?)(i?)B)?", size.strip())
    if match is None:
        raise ValueError(f"A size is a number and B, kB, MB, GB, TB, KiB.. TiB, such as 512MB or 1GB, got {size!r}.")
    power = " kMGT".index(match[2] or " ")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)


def sha256_of(*paths: Path) -> str:
    """Return the hex SHA-256 over the bytes of the files, in order."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
