"""Learning rate schedule."""

from __future__ import annotations

import math


def warmup_cosine(step: int, total_steps: int, *, highest: float, lowest: float, warmup_steps: int) -> float:
    """Return a step's learning rate: linear warm-up to the highest rate, then half a cosine.

    Args:
        step: From 0.
        total_steps: Of the whole run.
        highest: Rate at the end of the warm-up.
        lowest: Rate at the end of the cosine; the warm-up starts just above it.
        warmup_steps: Steps of the warm-up; at most a fifth of the run.

    Source:
        Loshchilov and Hutter, arXiv:1608.03983, without restarts. The authors' code (layer6ai-labs/fusemix) moves the
        cosine once an epoch; with the few, long epochs of a small machine it moves every step here.
    """
    warmup = min(warmup_steps, max(1, total_steps // 5))
    if step < warmup:
        return lowest + (highest - lowest) * (step + 1) / warmup
    part = (step - warmup) / max(1, total_steps - warmup)
    return lowest + (highest - lowest) * 0.5 * (1 + math.cos(math.pi * part))
