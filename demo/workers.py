"""Scheduling of queries, so that words never wait behind pictures and sounds.

A query passes two queues: Gradio's, where events wait for a slot, and that of the few threads that compute. Each queue
is split into a quick one (some 20 ms per query) and a slow one. Slow threads, drawings and trainings run at a lower
priority than quick threads and the server itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from fusemix.threads import Workers

T = TypeVar("T")

AT_ONCE = 2  # pictures and sounds encoded at a time
# Gradio's two queues. In a mix, a quick event may include a file; it then waits in its slot for the slow threads.
QUICK: dict[str, Any] = {"concurrency_limit": 8, "concurrency_id": "quick"}
SLOW: dict[str, Any] = {"concurrency_limit": AT_ONCE, "concurrency_id": "slow"}


class WorkerPools:
    """Threads that run the encoders for all visitors: one for words, :data:`AT_ONCE` for everything else."""

    def __init__(self) -> None:
        self._quick = Workers(1)  # two at once would wait for the text encoder's lock
        self._slow = Workers(AT_ONCE, giving_way=True)

    def run(self, compute: Callable[[], T], *, slow: bool) -> T:
        """Run ``compute`` in a pool, and return or raise what it does.

        Args:
            compute: Must not call this itself.
            slow: Whether ``compute`` opens or encodes a file.
        """
        return (self._slow if slow else self._quick).run(compute)
