"""Check of numbers before they are stored: finite, and within the range of the stored dtype."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

LEAST_SPREAD = 1e-6  # difference of two latents over their size, below which they count as equal
SAMPLE = 64  # latents from all over, which nearly always differ
CHUNK = 8192  # of the others, read at once
MOST_LOST = 0.01  # of the values' length (L2) that storing them in a narrower type may lose


def check_varied(read: Callable[[np.ndarray], np.ndarray], rows: np.ndarray, name: str) -> None:
    """Refuse latents that are all equal, from which nothing can be learned.

    Args:
        read: Gives latents by their numbers, (n,) int64 -> (n, D); called until two latents differ.
        rows: (N,) int64, numbers of the latents to compare.
        name: What to call them in the message.

    Raises:
        ValueError: If each value of every latent differs from the first latent's by at most :data:`LEAST_SPREAD`
            of that latent's root mean square.
    """
    if not len(rows):
        return
    first = read(rows[:1]).astype(np.float64)
    least = LEAST_SPREAD * np.sqrt(np.mean(first**2))
    sample = rows[:: -(-len(rows) // SAMPLE)]
    for some in (sample, *(rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK))):
        if not np.abs(read(some) - first).max() <= least:
            return
    raise ValueError(
        f"{name} are all equal ({len(rows):,} were compared), so nothing can be learned from them; the encoder "
        "answers every item alike: check its files and what it was given."
    )


def check_finite(given: np.ndarray, stored: np.ndarray, dtype: str, name: Callable[[int], str]) -> None:
    """Refuse values that are not finite, or that a narrower type turns to infinity.

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


def check_range(given: np.ndarray, stored: np.ndarray, dtype: str, name: Callable[[int], str]) -> None:
    """Refuse what :func:`check_finite` does, and rows of which a narrower type loses more than :data:`MOST_LOST`."""
    check_finite(given, stored, dtype, name)
    if str(given.dtype) == dtype or not given.size:
        return
    largest = np.abs(given).max(axis=1, keepdims=True)
    scale = np.where(largest > 0, largest, 1)  # squares of the smallest values are 0
    length = np.linalg.norm(given / scale, axis=1)
    lost = np.linalg.norm((given - stored) / scale, axis=1)
    if len(bad := np.flatnonzero(lost > MOST_LOST * length)):
        row = int(bad[0])
        raise ValueError(
            f"{name(row)} holds no value above {float(largest[row, 0]):.3g}, which is too small for {dtype}: "
            f"{100 * lost[row] / length[row]:.0f}% would be lost; store it as float32, or scale all latents alike."
        )


def _largest(dtype: str) -> float:
    import torch

    return float(torch.finfo(getattr(torch, dtype)).max)
