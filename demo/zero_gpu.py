"""ZeroGPU of Hugging Face Spaces: the one function that borrows a GPU, for how long, and what is said without one.

There a GPU is lent for the length of one call, to a process forked for it. What was put on ``cuda`` before the page is
served is there in each of them, and what they load themselves ends with them. Searches run on the CPU and ask for none.
"""

from __future__ import annotations

import logging
import math
import os
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

OnStep = Callable[[int, int, Any], bool]
logger = logging.getLogger(__name__)

VARIABLE = "SPACES_ZERO_GPU"
# Asked for, in seconds; who asks for less waits less. Estimates: no GPU was at hand to measure them.
START_S = 10  # the weights' way to the GPU
STEP_S = {True: 0.1, False: 0.3}  # a step of one picture, by a small decoder with steering, and by Stable Diffusion
MAX_S = 120  # a visitor has a few minutes a day, and more than is left of them is refused
PICTURE_S = 0.02  # a picture through CLIP, read from the disk

QUOTA = "Your GPU time for today is used up; log in to Hugging Face, or draw again later."
BUSY = "All GPUs are taken at the moment; please draw again in a minute."
TOO_LONG = "This would take longer than a GPU is lent for; ask for fewer steps or pictures."
LOST = "The GPU was lost while it drew; please draw again."


def on_zero_gpu() -> bool:
    """Return whether this is a Space on ZeroGPU, by the variable that ``spaces`` reads."""
    return os.environ.get(VARIABLE, "").lower() in ("1", "t", "true")


def seconds(settings: dict[str, Any], *, is_small: bool) -> int:
    """Return the seconds of GPU to request, by steps and pictures, at most :data:`MAX_S`."""
    steps = int(settings["steps"]) * int(settings["n_images"])  # of single pictures
    return min(MAX_S, math.ceil(START_S + STEP_S[is_small] * steps))


def seconds_to_embed(pictures: int) -> int:
    """Return the seconds of GPU to request for CLIP's embeddings of so many pictures, at most :data:`MAX_S`."""
    return min(MAX_S, math.ceil(START_S + PICTURE_S * pictures))


class NoGpu(ValueError):
    """No GPU was lent, or it was lost; the message is for the visitor."""


def borrowing(work: Callable[..., Any], duration: Callable[..., int]) -> Callable[..., Any]:
    """Wrap a function so that each call borrows a GPU; to be called before the page is served.

    Args:
        work: Its first argument is called after every step with (done, all, picture or None) and returns whether to
            stop. The other arguments and what it returns are tensors, pictures and plain values, because they go to
            another process and back.
        duration: The seconds to ask for, from those other arguments.

    Returns:
        The function, with the same arguments. It raises :class:`NoGpu` if there is no GPU, ValueError in one sentence
        if ``work`` raises a ValueError, and what its first argument raises.
    """
    import gradio as gr
    import spaces

    def lent(*values: Any) -> Iterator[tuple[str, Any]]:  # runs in the process that has the GPU
        try:
            yield from _steps(work, values)
        except ValueError as error:  # of others only the name of the class comes back
            raise gr.Error(str(error), print_exception=False) from error

    borrowed = spaces.GPU(duration=duration)(lent)

    def calm(on_step: OnStep | None, *values: Any) -> Any:
        try:
            with closing(borrowed(*values)) as messages:
                for kind, value in messages:
                    if kind == "made":
                        return value
                    if on_step is not None and on_step(*value):
                        raise _cancelled()
        except gr.Error as error:
            raise _told(error.title, str(error.message)) from error
        raise NoGpu(LOST)

    return calm


def _steps(work: Callable[..., Any], values: tuple[Any, ...]) -> Iterator[tuple[str, Any]]:
    """Yield ("step", progress) for every call of the first argument of ``work``, then ("made", what it returns)."""
    messages: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
    stopped = threading.Event()

    def on_step(*progress: Any) -> bool:
        messages.put(("step", progress))
        return stopped.is_set()

    def run() -> None:
        try:
            messages.put(("made", work(on_step, *values)))
        except BaseException as error:
            messages.put(("failed", error))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        while (message := messages.get())[0] == "step":
            yield message
    finally:  # also when the visitor has left
        stopped.set()
        thread.join()
    if message[0] == "failed":
        raise message[1]
    yield message


def _cancelled() -> Exception:
    from fusemix.generation.sampling import Cancelled

    return Cancelled("Stopped.")


def _told(title: str, message: str) -> ValueError:
    """Return the error for a visitor; ``spaces`` says what it has to say in a title of its own, others in "Error"."""
    if not title.startswith("ZeroGPU"):
        return ValueError(message)
    logger.warning("%s: %s", title, message)
    if "No GPU was available" in message or "queue" in title:
        return NoGpu(BUSY)
    if "illegal duration" in title:
        return ValueError(TOO_LONG)
    return NoGpu(QUOTA if "quota" in title or "credits" in title else LOST)
