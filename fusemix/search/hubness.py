"""Search-time correction of hubs: gallery items that are near to every query give way.

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
    """How near each gallery item is to queries in general.

    Args:
        gallery: Embeddings, shape (G, D), unit length.
        bank: Embeddings of training queries, shape (N, D), unit length; never those that will be asked.
        neighbours: Of the bank, the most similar ones that count for an item; all of it where it is smaller.
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
    k = min(neighbours, len(bank))
    parts = [(rows @ bank.T).topk(k, dim=1).values.mean(dim=1) for rows in gallery.split(chunk)]
    return torch.cat(parts) if parts else gallery.new_zeros(0)


def corrected(
    queries: Tensor, gallery: Tensor, bank: Tensor, *, neighbours: int = NEIGHBOURS, weight: float = WEIGHT
) -> tuple[Tensor, Tensor]:
    """Vectors whose inner products are the corrected scores, so that any inner-product search can use them.

    Queries get a last entry of 1, gallery items one of ``-weight * hubness``: shapes (Q, D + 1) and (G, D + 1),
    not unit length.
    """
    last = -weight * hubness(gallery, bank, neighbours=neighbours)
    return (
        torch.cat([queries, queries.new_ones(len(queries), 1)], dim=1),
        torch.cat([gallery, last[:, None].to(gallery)], dim=1),
    )


def bank_items(store: LatentStore) -> np.ndarray:
    """Which items of a store may serve as a bank: those of split ``train``; all where the store knows no splits.

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
