"""Resolution of the file cells of a table: one path for all spellings, links followed."""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np


class RealFiles:
    """Map from cells to absolute paths, in which ``a.jpg``, ``./a.jpg``, ``sub/../a.jpg`` and a link are one.

    Each folder is resolved once: resolving millions of paths one by one would take minutes. If no file has exactly the
    name of a cell, backslashes are read as slashes, and names in another Unicode form are tried (macOS writes accents
    as separate characters); a file that is nowhere has one path in all these spellings too. Upper and lower case must
    match.

    Attributes:
        respelled: Cells whose file was found under such a name.
    """

    def __init__(self, folder: Path) -> None:
        """Take the resolved folder that relative cells refer to."""
        self.folder = folder
        self.respelled = 0
        self._known: dict[str, str] = {"": ""}
        self._folders: dict[str, tuple[str, frozenset[str]]] = {}  # as spelled -> (real path, links in it)
        self._names: dict[str, dict[str, list[str]]] = {}  # folder -> name in Unicode's NFC -> names on the disk

    def paths(self, cells: Iterable[str]) -> np.ndarray:
        """Return the absolute path of every cell, shape (n,), object; empty for empty cells. Files need not exist."""
        found = []
        for cell in cells:
            if cell not in self._known:
                self._known[cell] = self._path(cell)
            found.append(self._known[cell])
        out = np.empty(len(found), dtype=object)
        out[:] = found
        return out

    def _path(self, cell: str) -> str:
        path = os.path.join(self.folder, cell)  # noqa: PTH118
        if ("\\" in cell or not cell.isascii()) and not os.path.lexists(path):
            other = next(
                (p for s in (cell, cell.replace("\\", "/")) if (p := self._spelled(os.path.normpath(s)))), None
            )
            self.respelled += other is not None
            path = other or os.path.join(self.folder, unicodedata.normalize("NFC", cell.replace("\\", "/")))  # noqa: PTH118
        folder, name = os.path.split(path)
        if name in ("", ".", ".."):
            return os.path.realpath(path)
        if folder not in self._folders:
            self._folders[folder] = (os.path.realpath(folder), _links(folder))
        real, links = self._folders[folder]
        path = os.path.join(real, name)  # noqa: PTH118
        return os.path.realpath(path) if name in links else path

    def _spelled(self, cell: str) -> str | None:
        """Return the file whose name differs from the cell at most in its Unicode form, if there is one."""
        here = Path(cell).anchor or str(self.folder)
        for part in Path(cell).parts[bool(Path(cell).anchor) :]:
            there = os.path.join(here, part)  # noqa: PTH118
            if not os.path.lexists(there):
                alike = self._listed(here).get(unicodedata.normalize("NFC", part), [])
                if len(alike) != 1:
                    return None
                there = os.path.join(here, alike[0])  # noqa: PTH118
            here = there
        return here

    def _listed(self, folder: str) -> dict[str, list[str]]:
        if folder not in self._names:
            names = defaultdict(list)
            for name in _entries(folder):
                names[unicodedata.normalize("NFC", name)].append(name)
            self._names[folder] = dict(names)
        return self._names[folder]


def _entries(folder: str) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208
    except OSError:
        return []


def _links(folder: str) -> frozenset[str]:
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries if entry.is_symlink())
    except OSError:
        return frozenset()
