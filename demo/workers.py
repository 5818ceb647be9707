"""Who waits for whom: words never wait behind pictures and sounds.

There are two queues on the way of a query: Gradio's, where its events wait for a slot, and that of the few threads
that compute. Each has a lane for what takes some 20 ms and one for what takes longer, and the threads of the second
give way to those of the first and to the server itself: so do a drawing's and a training's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from fusemix.threads import Workers

T = TypeVar("T")

AT_ONCE = 2  # pictures and sounds encoded at a time
# Gradio's lanes. In a mix an event of the quick one may bring a file, and waits in its slot for the slow threads.
QUICK: dict[str, Any] = {"concurrency_limit": 8, "concurrency_id": "quick"}
SLOW: dict[str, Any] = {"concurrency_limit": AT_ONCE, "concurrency_id": "slow"}


class Lanes:
    """The threads that run the encoders, whoever asks: one for words, :data:`AT_ONCE` for everything else."""

    def __init__(self) -> None:
        self._quick = Workers(1)  # two at once would wait for the text encoder's lock
        self._slow = Workers(AT_ONCE, low_priority=True)

    def run(self, compute: Callable[[], T], *, slow: bool) -> T:
        """What ``compute`` returns or raises.

        Args:
            compute: Must not call this itself.
            slow: Whether it opens or encodes a file.
        """
        return (self._slow if slow else self._quick).run(compute)
