"""Private data of visitors: one folder each that nobody can guess, for a limited time and number of visitors."""

from __future__ import annotations

import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from fusemix.media import MediaError

MAX_VISITORS = 16
LIFETIME_S = 3600.0
GRACE_S = 60.0  # from closing a page to deletion: lost connections return, running requests are answered
IDLE_S = 300.0  # data unused for this long may be deleted to make room for another visitor
GONE = (
    "Your files are no longer here: they are deleted after an hour, or a minute after you close the page. "
    "Please upload them again."
)
FULL = "The app is full right now; please come back in a few minutes."


def take(upload: Path, place: Path) -> Path:
    """Link an upload under a name of our own in a new folder, and return that path.

    Gradio names an upload by its bytes, so two visitors who send the same file, or one who sends a picture that the
    page itself shows, share it: it is never moved or deleted here, and goes with Gradio's cache within two hours.

    Args:
        upload: The file that Gradio keeps.
        place: Folder to make.
    """
    place.mkdir(parents=True)
    own = place / upload.name
    try:
        os.link(upload, own)
    except OSError:  # another disk, or one without links
        shutil.copyfile(upload, own)
    return own


class Kept(Protocol):
    """Data of one visitor.

    Attributes:
        used: ``time.monotonic()`` when it was last used.
        busy: Whether a computation on it is running.
    """

    used: float
    busy: bool

    def stop(self) -> None:
        """End the computation soon; do nothing if none is running."""

    def delete(self) -> None:
        """Remove everything, from disk too."""


T = TypeVar("T", bound=Kept)


class Visitors(Generic[T]):
    """Data by visitor, deleted on request, soon after the page is closed, or after a lifetime."""

    def __init__(
        self,
        make: Callable[[Path], T],
        folder: Path,
        *,
        lifetime_s: float = LIFETIME_S,
        grace_s: float = GRACE_S,
    ) -> None:
        """Start with none.

        Args:
            make: Called with a new folder, which it makes.
            folder: Parent of those folders. Leftovers of an earlier process older than a lifetime are removed.
            lifetime_s: Seconds from the first upload to the deletion.
            grace_s: Seconds from ``leave`` to the deletion, unless the visitor returns.
        """
        self.make = make
        self.folder = folder
        self.lifetime_s = lifetime_s
        self.grace_s = grace_s
        self._kept: dict[str, T] = {}
        self._timers: dict[str, threading.Timer] = {}
        self._departures: dict[str, threading.Timer] = {}
        self._lock = threading.Lock()
        for old in folder.glob("*/"):
            if time.time() - old.stat().st_mtime > lifetime_s:
                shutil.rmtree(old, ignore_errors=True)

    def __len__(self) -> int:
        return len(self._kept)

    def of(self, visitor: str | None) -> T:
        """Return the data of a visitor.

        Raises:
            MediaError: If there is none.
        """
        with self._lock:
            self._return(visitor or "")
            kept = self._kept.get(visitor or "")
        if kept is None:
            raise MediaError(GONE)
        return kept

    def open(self, visitor: str | None) -> T:
        """Return the data of a visitor, creating it if there is none; the longest unused makes room if need be.

        Raises:
            MediaError: If there is no room.
        """
        if not visitor:
            raise MediaError("Your browser sent no session; please reload the page.")
        with self._lock:
            self._return(visitor)
            if visitor in self._kept:
                return self._kept[visitor]
            if len(self._kept) >= MAX_VISITORS:
                self._make_room()
            kept = self._kept[visitor] = self.make(self.folder / secrets.token_hex(32))
            self._timers[visitor] = self._delete_in(self.lifetime_s, visitor)
            return kept

    def _delete_in(self, seconds: float, visitor: str) -> threading.Timer:
        timer = threading.Timer(seconds, self.delete, (visitor,))
        timer.daemon = True
        timer.start()
        return timer

    def leave(self, visitor: str | None) -> None:
        """End a visitor's computation when their page is gone; delete their data unless they return in time."""
        self.stop(visitor)
        with self._lock:
            if visitor and visitor in self._kept and visitor not in self._departures:
                self._departures[visitor] = self._delete_in(self.grace_s, visitor)

    def _return(self, visitor: str) -> None:
        departure = self._departures.pop(visitor, None)
        if departure is not None:
            departure.cancel()

    def _make_room(self) -> None:
        unused = {visitor: kept.used for visitor, kept in self._kept.items() if not kept.busy}
        oldest = min(unused, key=lambda visitor: unused[visitor], default=None)
        if oldest is None or time.monotonic() - unused[oldest] < IDLE_S:
            raise MediaError(FULL)
        self._remove(oldest)

    def stop(self, visitor: str | None) -> None:
        """End a visitor's computation; do nothing if none is running."""
        kept = self._kept.get(visitor or "")
        if kept is not None:
            kept.stop()

    def delete(self, visitor: str | None) -> bool:
        """Delete the data of a visitor; return whether there was any."""
        with self._lock:
            return self._remove(visitor or "")

    def _remove(self, visitor: str) -> bool:
        kept = self._kept.pop(visitor, None)
        for timer in (self._timers.pop(visitor, None), self._departures.pop(visitor, None)):
            if timer is not None:
                timer.cancel()
        if kept is not None:
            kept.delete()
        return kept is not None
