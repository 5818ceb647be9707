"""How many threads one small computation takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread(limit: bool = True) -> Iterator[None]:
    """One thread inside, for this thread of the program alone.

    Two threads gain a single query or a small picture little on an idle machine, and wait for each
    other on a busy one: with one of two cores taken, a query by picture needed 454 ms with two threads and
    51 ms with one.

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
