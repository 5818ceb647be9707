"""What the app keeps for each visitor: in a folder nobody can guess, for a while, for so many visitors."""

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
GRACE_S = 60.0  # from the closing of a page to the deletion: a lost connection returns, a request under way is answered
IDLE_S = 300.0  # unused for so long, one visitor's things may go to make room for another's
GONE = (
    "Your files are not here any more: they go an hour after they came, or a minute after the page is closed. "
    "Send them again."
)
FULL = "Other visitors' files take all the room here right now; please come back in a few minutes."


def take(upload: Path, place: Path) -> Path:
    """Give an upload a name of our own in a new folder, and return it.

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
    """One visitor's things.

    Attributes:
        used: ``time.monotonic()`` when they were last asked for.
        busy: Whether a computation on them is under way.
    """

    used: float
    busy: bool

    def stop(self) -> None:
        """End the computation soon; nothing happens if there is none."""

    def delete(self) -> None:
        """Remove everything, from disk too."""


T = TypeVar("T", bound=Kept)


class Visitors(Generic[T]):
    """Visitor -> what is kept for them; it goes on request, soon after their page, or after a lifetime."""

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
            folder: Where those lie. What an earlier process left there longer than a lifetime ago is removed.
            lifetime_s: Seconds from the beginning until it goes.
            grace_s: Seconds from ``leave`` until it goes, unless the visitor returns.
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
        """What is kept for a visitor.

        Raises:
            MediaError: If that is nothing.
        """
        with self._lock:
            self._return(visitor or "")
            kept = self._kept.get(visitor or "")
        if kept is None:
            raise MediaError(GONE)
        return kept

    def open(self, visitor: str | None) -> T:
        """What is kept for a visitor, begun if that is nothing; the longest unused makes room if need be.

        Raises:
            MediaError: If there is no room.
        """
        if not visitor:
            raise MediaError("Your browser sent no session; reload the page.")
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
        """A visitor's page or connection is gone: computing ends, deletion follows unless they return in time."""
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
        """End a visitor's computation; nothing happens if there is none."""
        kept = self._kept.get(visitor or "")
        if kept is not None:
            kept.stop()

    def delete(self, visitor: str | None) -> bool:
        """Remove what is kept for a visitor; whether there was anything."""
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
