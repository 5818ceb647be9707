"""Threads for small computations: one per computation, a few in all."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")

_GIVING_WAY = 5  # of Linux's 19 nice levels: a third of the CPU share of a normal thread


@contextmanager
def one_thread(limit: bool = True) -> Iterator[None]:
    """Limit torch to one thread inside the block, for the calling thread only.

    On an idle machine a second thread hardly speeds up a single query or a small picture; on a busy one the two
    wait for each other: with one of two cores taken, a query by picture needed 454 ms with two threads and 51 ms
    with one. Other threads keep their number; a thread that computes for the first time meanwhile also starts with
    one and keeps it, because torch gives new threads the number set last.

    Args:
        limit: False leaves the number of threads as it is.
    """
    before = torch.get_num_threads()
    if limit:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def give_way() -> None:
    """Lower the priority of this thread for good, to a third of the CPU share of a normal thread.

    Nothing changes while a processor is idle. It cannot be undone: use it for background threads only. On systems
    other than Linux it does nothing.
    """
    if sys.platform == "linux":
        os.nice(_GIVING_WAY)  # of the calling thread


class Workers:
    """A pool of a few threads that runs computations, each with :func:`one_thread`.

    The C library keeps memory that a thread has freed for that thread. A web server answers in any of some forty
    threads, and each that has once run a network keeps its memory: 400 MB more than with two workers.
    """

    def __init__(self, count: int, *, giving_way: bool = False) -> None:
        """Prepare the pool; threads start when they are needed.

        Args:
            count: Computations at a time; further ones wait.
            giving_way: Whether they :func:`give_way` to other threads.
        """
        start = give_way if giving_way else None
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="fusemix-worker", initializer=start)
        self._process = os.getpid()

    def run(self, compute: Callable[[], T]) -> T:
        """Return what ``compute`` returns or raise its error; do not call it from inside another computation."""
        if os.getpid() != self._process:  # after a fork (ZeroGPU) the threads are gone
            return _limited(compute)
        return self._pool.submit(_limited, compute).result()


def _limited(compute: Callable[[], T]) -> T:
    with one_thread():
        return compute()
