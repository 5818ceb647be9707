"""FuseMix: mixup on the latents of a pair, with the same coefficient on every side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def fusemix(
    latents: Sequence[Tensor], *, alpha: float, rng: np.random.Generator, per_row: bool = False
) -> tuple[Tensor, ...]:
    """Mix the first half of a batch of paired latents with the second half.

    One coefficient, lam ~ Beta(alpha, alpha), is shared by all modalities, so row i of
    the outputs is again a positive pair: a mixed pair is a true pair.

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
        ValueError: If the batches differ in length, are odd or empty, or alpha <= 0.

    Source:
        Vouitsis et al., CVPR 2024, arXiv:2312.10144, FuseMix; as in
        ``MLPContrastiveFusion.forward`` of layer6ai-labs/fusemix.
    """
    n = len(latents[0])
    if any(len(x) != n for x in latents):
        raise ValueError(f"All modalities must hold the same number of pairs, got {[len(x) for x in latents]}.")
    if n % 2 or n == 0:
        raise ValueError(f"FuseMix needs an even batch of at least 2 pairs, got {n}; drop the odd pair.")
    if not alpha > 0:
        raise ValueError(f"alpha must be > 0, got {alpha}.")
    if per_row:
        coefficients = torch.from_numpy(rng.beta(alpha, alpha, size=(n // 2, 1)))
    else:
        coefficients = torch.full((1, 1), float(rng.beta(alpha, alpha)), dtype=torch.float64)
    mixed = []
    for x in latents:
        first, second = x.chunk(2)
        lam = coefficients.to(device=x.device, dtype=x.dtype)
        mixed.append(lam * first + (1 - lam) * second)
    return tuple(mixed)
