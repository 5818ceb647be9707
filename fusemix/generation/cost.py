"""Cost of drawing: seconds to load, seconds a step, memory."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Cost:
    """Time and memory of a decoder.

    Attributes:
        load_s: Seconds to load it, without a download.
        step_s: Seconds a denoising step of the last drawing, previews and steering included.
        peak_bytes: See :func:`peak_memory`.
    """

    load_s: float
    step_s: float
    peak_bytes: int

    def __str__(self) -> str:
        return (
            f"decoder loaded in {self.load_s:.1f} s, {self.step_s:.2f} s a step, "
            f"peak memory {self.peak_bytes / 1e9:.1f} GB"
        )


def peak_memory(device: torch.device) -> int:
    """Return the peak memory so far in bytes: allocated by torch on a GPU, else of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
