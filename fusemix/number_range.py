"""Check of numbers before they are stored: finite, and within the range of the stored dtype."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

MOST_LOST = 0.01  # largest relative error (L2) of storing values in a narrower type


def check_range(given: np.ndarray, stored: np.ndarray, dtype: str, name: Callable[[int], str]) -> None:
    """Refuse values that are not finite, or that overflow or underflow in a narrower type.

    Args:
        given: The values as computed, (N, ...), floating point.
        stored: The same values after a round trip through the type they are to be stored in.
        dtype: That type: ``float32``, ``float16`` or ``bfloat16``.
        name: What to call row i in the message.

    Raises:
        ValueError: Naming the first row at fault and its value.
    """
    if not np.isfinite(stored).all():
        at = tuple(int(i) for i in np.argwhere(~np.isfinite(stored))[0])
        if not np.isfinite(given[at]):
            raise ValueError(f"{name(at[0])} holds {given[at]}; nothing with NaN or infinite values is stored.")
        raise ValueError(
            f"{name(at[0])} holds {given[at]:.6g}, which {dtype} turns to infinity (its largest number is "
            f"{_largest(dtype):.6g}); store it as float32."
        )
    if str(given.dtype) == dtype or not (largest := float(np.abs(given).max(initial=0))):
        return
    length = float(np.linalg.norm(given / largest))
    lost = float(np.linalg.norm((given - stored) / largest))
    if lost > MOST_LOST * length:
        raise ValueError(
            f"{name(0)} and what follows hold no value above {largest:.3g}, which is too small for {dtype}: "
            f"{100 * lost / length:.0f}% would be lost; store it as float32."
        )


def _largest(dtype: str) -> float:
    import torch

    return float(torch.finfo(getattr(torch, dtype)).max)
