"""Correction for hubness at search time: gallery items close to every query are penalised.

Source: NNN (nearest neighbour normalisation), Chowdhury et al., arXiv:2410.24114: a gallery item's score is its
similarity less ``weight`` times its mean similarity to the ``neighbours`` training queries most similar to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fusemix.datasets.splits import sides

if TYPE_CHECKING:
    from fusemix.data.latent_store import LatentStore

NEIGHBOURS, WEIGHT = 128, 0.5  # chosen on Flickr8k dev, see docs/results/hubness_*.json


def hubness(gallery: Tensor, bank: Tensor, *, neighbours: int = NEIGHBOURS, chunk: int = 1024) -> Tensor:
    """Compute each gallery item's mean cosine to its nearest queries of a bank.

    Args:
        gallery: Embeddings, shape (G, D), unit length.
        bank: Embeddings of training queries, shape (N, D), unit length; never test queries.
        neighbours: Number of nearest bank queries that are averaged; all of them if the bank is smaller.
        chunk: Gallery items per similarity matrix, which takes chunk x N floats.

    Returns:
        (G,) mean cosines.

    Raises:
        ValueError: If widths differ, the bank is empty or ``neighbours`` is below 1.
    """
    if gallery.ndim != 2 or bank.ndim != 2 or gallery.shape[1] != bank.shape[1]:
        raise ValueError(f"Expected a gallery (G, D) and a bank (N, D), got {(*gallery.shape,)} and {(*bank.shape,)}.")
    if not len(bank) or neighbours < 1:
        raise ValueError(f"Expected a bank of queries and at least 1 neighbour, got {len(bank)} and {neighbours}.")
    if not torch.isfinite(bank).all():
        raise ValueError("The bank of queries holds NaN or infinite values; make its embeddings again.")
    k = min(neighbours, len(bank))
    parts = [(rows @ bank.T).topk(k, dim=1).values.mean(dim=1) for rows in gallery.split(chunk)]
    return torch.cat(parts) if parts else gallery.new_zeros(0)


def corrected(
    queries: Tensor, gallery: Tensor, bank: Tensor, *, neighbours: int = NEIGHBOURS, weight: float = WEIGHT
) -> tuple[Tensor, Tensor]:
    """Extend queries and gallery so that their inner products are the corrected scores.

    Queries get a last entry of 1, gallery items one of ``-weight * hubness``: shapes (Q, D + 1) and (G, D + 1),
    not unit length.
    """
    if not 0 <= weight < float("inf"):
        raise ValueError(f"weight must be >= 0 and finite, got {weight}.")
    last = -weight * hubness(gallery, bank, neighbours=neighbours)
    return (
        torch.cat([queries, queries.new_ones(len(queries), 1)], dim=1),
        torch.cat([gallery, last[:, None].to(gallery)], dim=1),
    )


def bank_items(store: LatentStore) -> np.ndarray:
    """Return the items of a store that may serve as a bank: split ``train``, or all if the store has no splits.

    Returns:
        (N,) item numbers, ascending.

    Raises:
        ValueError: If it has splits and none of them is ``train``.
    """
    rows = store.rows
    if (rows["split"] != "").any():
        rows = rows[sides(rows["split"].to_numpy(), store.folder) == "train"]
        if not len(rows):
            raise ValueError(f"{store.folder} holds no training latents, of which a bank is made.")
    return np.unique(rows["item"].to_numpy(np.int64))
