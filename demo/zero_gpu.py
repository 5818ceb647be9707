"""ZeroGPU of Hugging Face Spaces: the one function that borrows a GPU, for how long, and what is said without one.

There a GPU is lent for the length of one call, to a process forked for it. What was put on ``cuda`` before the page is
served is there in each of them, and what they load themselves ends with them. Searches run on the CPU and ask for none.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
logger = logging.getLogger(__name__)

VARIABLE = "SPACES_ZERO_GPU"
# Asked for, in seconds; who asks for less waits less. Estimates: no GPU was at hand to measure them.
START_S = 10  # the weights' way to the GPU
STEP_S = {True: 0.1, False: 0.3}  # a step of one picture, by a small decoder with steering, and by Stable Diffusion
MAX_S = 120  # a visitor has a few minutes a day, and more than is left of them is refused

QUOTA = "Your GPU time for today is used up; log in to Hugging Face, or draw again later. Searching goes on."
BUSY = "All GPUs are taken at the moment; please draw again in a minute. Searching goes on."
TOO_LONG = "This would take longer than a GPU is lent for; ask for fewer steps or pictures."
LOST = "The GPU was lost while it drew; please draw again."


def on_zero_gpu() -> bool:
    """Return whether this is a Space on ZeroGPU, by the variable that ``spaces`` reads."""
    return os.environ.get(VARIABLE, "").lower() in ("1", "t", "true")


def seconds(settings: dict[str, Any], *, is_small: bool) -> int:
    """Return the seconds of GPU to request, by steps and pictures, at most :data:`MAX_S`."""
    steps = int(settings["steps"]) * int(settings["n_images"])  # of single pictures
    return min(MAX_S, math.ceil(START_S + STEP_S[is_small] * steps))


def borrowing(paint: Callable[..., T], *, is_small: bool) -> Callable[..., T]:
    """Wrap a function so that each call borrows a GPU; to be called before the page is served.

    Args:
        paint: Its last argument is ``settings`` with ``steps`` and ``n_images``; all arguments and what it returns are
            tensors, pictures and plain values, because they go to another process and back.
        is_small: Whether a small decoder draws.

    Returns:
        The function, which raises ValueError in one sentence if there is no GPU, or if ``paint`` raises a ValueError.
    """
    import gradio as gr
    import spaces

    def work(*values: Any) -> T:
        try:
            return paint(*values)
        except ValueError as error:  # of others only the name of the class comes back
            raise gr.Error(str(error), print_exception=False) from error

    def duration(*values: Any) -> int:
        return seconds(values[-1], is_small=is_small)

    borrowed: Callable[..., T] = spaces.GPU(duration=duration)(work)

    def calm(*values: Any) -> T:
        try:
            return borrowed(*values)
        except gr.Error as error:
            raise ValueError(_sentence(error.title, str(error.message))) from error

    return calm


def _sentence(title: str, message: str) -> str:
    """Return the message for a visitor; ``spaces`` says it in a title of its own, that of others is "Error"."""
    if not title.startswith("ZeroGPU"):
        return message
    logger.warning("%s: %s", title, message)
    if "No GPU was available" in message or "queue" in title:
        return BUSY
    if "illegal duration" in title:
        return TOO_LONG
    return QUOTA if "quota" in title or "credits" in title else LOST
