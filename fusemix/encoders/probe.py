"""Probe of an encoder with a few items, before its latents are used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fusemix.encoders.base import Encoder

AGREE = 0.01  # largest relative difference of one item's latents between batches (reduced precision on GPUs)
DIFFER = 1e-5  # smallest relative difference of two items' latents (float32's rounding)


def probe(encoder: Encoder, prepared: Sequence[Any], *, distinct: bool = False, hint: str = "") -> np.ndarray:
    """Refuse an encoder whose latents are constant, change from run to run, or are not finite.

    (1) The latents must have shape (N, dim), and at least one must be finite; (2) they must not all be equal;
    (3) the first item, encoded alone, must give the same latent within :data:`AGREE` of its length.

    Args:
        encoder: Frozen.
        prepared: What its ``prepare`` made of different items; at least one.
        distinct: Whether the items are known to differ, even if their prepared values do not.
        hint: Likely cause to name if all latents are equal.

    Returns:
        The items' latents, shape (N, dim), float32.

    Raises:
        ValueError: In one sentence, which of these failed and what to do.
    """
    latents = latents_of(encoder, prepared)
    finite: list[int] = np.flatnonzero(np.isfinite(latents).all(axis=1)).tolist()
    if not finite:
        raise ValueError(f"The encoder {encoder.name} makes NaN or infinite values; its weights or its code are wrong.")
    first, *others = finite
    differ = (distinct and bool(others)) or any(_differs(prepared[other], prepared[first]) for other in others)
    if differ and all(_apart(latents[other], latents[first]) <= DIFFER for other in others):
        raise ValueError(
            f"The encoder {encoder.name} gives {1 + len(others)} different items the same latent, so nothing can be "
            f"told apart by it; {hint or 'see what its prepare and its pooling keep of an item'}."
        )
    alone = latents_of(encoder, [prepared[first]])[0]
    if _apart(latents[first], alone) > AGREE:
        again = latents_of(encoder, prepared)[first]
        raise ValueError(
            f"The encoder {encoder.name} gives one item another latent "
            + (
                "each time; switch off what is random in it (dropout, masking, cropping)."
                if _apart(latents[first], again) > AGREE
                else "in another batch; no item may see its batch mates (padding without a mask, batch statistics)."
            )
        )
    return latents


def latents_of(encoder: Encoder, prepared: Sequence[Any]) -> np.ndarray:
    """Encode prepared items: latents of shape (N, dim), float32.

    Raises:
        ValueError: If the shape is another or the values are not floating point.
    """
    latents = np.asarray(encoder.encode_prepared(prepared))
    if latents.shape != (len(prepared), encoder.dim) or latents.dtype.kind not in "fiu":
        raise ValueError(
            f"The encoder {encoder.name} made {latents.dtype} values of shape {latents.shape} of {len(prepared)} "
            f"items; expected floating-point latents of shape {(len(prepared), encoder.dim)}, as its dim says."
        )
    return latents.astype(np.float32)  # a copy: an encoder may fill one array again and again


def _apart(a: np.ndarray, b: np.ndarray) -> float:
    """Return the distance of two latents relative to the longer one's length."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    longer = max(np.linalg.norm(a), np.linalg.norm(b))
    return float(np.linalg.norm(a - b) / longer) if longer else 0.0


def _differs(a: Any, b: Any) -> bool:
    """Return whether two prepared items differ; True if they cannot be compared."""
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) != len(b) or any(_differs(x, y) for x, y in zip(a, b, strict=True))
    if type(a) is not type(b) or getattr(a, "shape", None) != getattr(b, "shape", None):
        return True
    try:
        return bool(np.any(np.asarray(a) != np.asarray(b)))
    except (TypeError, ValueError, RuntimeError):
        return True
