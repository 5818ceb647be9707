"""Symmetric InfoNCE between two sets of paired embeddings."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def info_nce(a: Tensor, b: Tensor, *, temperature: Tensor | float) -> Tensor:
    """Symmetric InfoNCE: row i of ``a`` should find row i of ``b`` among all rows, and back.

    Both sides are L2-normalised here, so inputs need not be unit length. One matrix product
    serves both directions.

    Args:
        a: Embeddings of modality X, shape (B, D), float.
        b: Embeddings of modality Y, shape (B, D); b[i] is paired with a[i].
        temperature: Divides the cosine similarities; a scalar > 0, may carry a gradient.

    Returns:
        Scalar loss, the mean of both directions' cross-entropies, float32 (or float64 for
        float64 inputs).

    Raises:
        ValueError: If the shapes differ or the batch is empty.

    Source:
        Vouitsis et al., arXiv:2312.10144; as in ``MLPContrastiveFusion.forward`` of
        layer6ai-labs/fusemix, which forms the product twice.
    """
    if a.shape != b.shape or a.ndim != 2:
        raise ValueError(f"a and b must be matrices of one shape (B, D), got {tuple(a.shape)} and {tuple(b.shape)}.")
    if len(a) == 0:
        raise ValueError("info_nce needs at least one pair, got an empty batch.")
    logits = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T / temperature  # (B, B)
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    target = torch.arange(len(a), device=a.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
