"""How many threads one small computation takes, and which."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")

_GIVING_WAY = 5  # of 19 steps of niceness on Linux: a third of the share of a thread that does not


@contextmanager
def one_thread(limit: bool = True) -> Iterator[None]:
    """One thread inside, for this thread of the program alone.

    Two threads gain a single query or a small picture little on an idle machine, and wait for each
    other on a busy one: with one of two cores taken, a query by picture needed 454 ms with two threads and
    51 ms with one. Other threads keep their number; one that computes for the very first time meanwhile begins with
    one as well, and keeps it, because torch hands the number set last to threads it has not seen.

    Args:
        limit: Whether to limit at all.
    """
    before = torch.get_num_threads()
    if limit:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def give_way() -> None:
    """From here on this thread computes in the time that others leave it, and in a third of a share of the rest.

    Nothing changes while a processor is idle. There is no way back: this is for threads that never do anything in a
    hurry. Linux alone has it for a single thread; elsewhere nothing happens.
    """
    if sys.platform == "linux":
        os.nice(_GIVING_WAY)  # of the calling thread


class Workers:
    """A few threads that do all computations given to them, each with :func:`one_thread`.

    The C library keeps what a thread has freed for that thread. A web server answers with any of some forty, and
    each that has once run a network holds on to what that took: 400 MB more than with two workers.
    """

    def __init__(self, count: int, *, giving_way: bool = False) -> None:
        """Start none yet; each starts when it is needed.

        Args:
            count: How many computations run at a time; more wait.
            giving_way: Whether they :func:`give_way` to other threads.
        """
        start = give_way if giving_way else None
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="fusemix-worker", initializer=start)
        self._process = os.getpid()

    def run(self, compute: Callable[[], T]) -> T:
        """What ``compute`` returns or raises; do not call it from inside another computation."""
        if os.getpid() != self._process:  # forked, as ZeroGPU does: the threads stayed behind
            return _limited(compute)
        return self._pool.submit(_limited, compute).result()


def _limited(compute: Callable[[], T]) -> T:
    with one_thread():
        return compute()
