"""FuseMix: mixup on the latents of pairs, with the same coefficient for all modalities."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def fusemix(
    latents: Sequence[Tensor], *, alpha: float, rng: np.random.Generator, per_row: bool = False
) -> tuple[Tensor, ...]:
    """Mix the first half of a batch of paired latents with the second half.

    One coefficient, lam ~ Beta(alpha, alpha), is shared by all modalities, so row i of
    the outputs is again a positive pair.

    Args:
        latents: One tensor per modality, shapes (2B, D_x); row i of each belongs to the
            same pair. Not L2-normalised.
        alpha: Beta concentration, > 0 (dimensionless). 1.0 is uniform mixing.
        rng: Source of lam; pass a seeded generator to reproduce a run.
        per_row: Draw one lam per mixed row instead of one per batch. This departs from the
            authors' code, which draws one per batch.

    Returns:
        The mixed latents, one (B, D_x) tensor per modality, in the input's dtype.

    Raises:
        ValueError: If the batches differ in length, are odd or empty, or alpha is not a finite number > 0.

    Source:
        Vouitsis et al., CVPR 2024, arXiv:2312.10144, FuseMix; as in
        ``MLPContrastiveFusion.forward`` of layer6ai-labs/fusemix.
    """
    n = len(latents[0])
    if any(len(x) != n for x in latents):
        raise ValueError(f"All modalities must hold the same number of pairs, got {[len(x) for x in latents]}.")
    if n % 2 or n == 0:
        raise ValueError(f"FuseMix needs an even batch of at least 2 pairs, got {n}; drop the odd pair.")
    return mix(latents, draw_lam(alpha, n // 2, rng, per_row=per_row))


def draw_lam(alpha: float, n: int, rng: np.random.Generator, *, per_row: bool) -> np.ndarray:
    """Draw coefficients lam ~ Beta(alpha, alpha), float64: shape (1, 1) for the batch, or (n, 1) by row."""
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha must be > 0 and finite, got {alpha}.")
    return rng.beta(alpha, alpha, size=(n, 1)) if per_row else np.full((1, 1), rng.beta(alpha, alpha))


def mix(latents: Sequence[Tensor], lam: np.ndarray) -> tuple[Tensor, ...]:
    """Mix halves: lam x first + (1 - lam) x second, for every modality: (2B, D_x) -> (B, D_x)."""
    mixed = []
    for x in latents:
        first, second = x.chunk(2)
        here = torch.from_numpy(lam).to(device=x.device, dtype=x.dtype)
        mixed.append(here * first + (1 - here) * second)
    return tuple(mixed)
