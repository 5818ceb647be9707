"""Measure what a move to another encoder keeps: recall of moved items beside items the new encoder has read itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusemix.evaluation.metrics import ranks
from fusemix.model.adapters import FusionModel
from fusemix.model.latent_map import choose_map

MIN_SHARED = 50
FOLDS = 5
AT = (1, 10)


def recall_kept(
    model: FusionModel,
    modality: str,
    old: np.ndarray,
    new: np.ndarray,
    groups: np.ndarray,
    queries: Tensor | None = None,
    query_groups: np.ndarray | None = None,
    *,
    seed: int = 0,
    samples: int = 1000,
) -> dict[str, Any]:
    """Move every shared item by a map that was fitted without its group, and search the moved ones.

    Args:
        model: Trained on the new encoder's latents.
        modality: Of the items.
        old: Their latents by the old encoder, (N, D_old).
        new: By the new one, (N, D_new).
        groups: (N,) integers; items of one group are held out together.
        queries: Embeddings of queries of another modality, (Q, D), unit length. Without them each item, read by the
            new encoder, looks for its own moved self.
        query_groups: (Q,) integers.
        seed: Of the folds and the resampling.
        samples: Bootstrap resamples of groups.

    Returns:
        ``shared`` and ``queries`` (counts), ``asked`` (what the queries are); for k in :data:`AT` ``recall_at_k`` of
        the moved items, ``recall_at_k_new`` of items read by the new encoder and ``kept_at_k``, their ratio, each with
        ``ci95`` (name -> [low, high]); ``cosine``, the mean cosine of a moved embedding with the true one.

    Raises:
        ValueError: If fewer than 50 items are shared.
    """
    if len(old) < MIN_SHARED:
        raise ValueError(
            f"{len(old)} items are shared by both encoders; a map needs at least {MIN_SHARED}, and a few hundred to be "
            "worth it: encode more of the old items with the new encoder."
        )

    def embed(latents: np.ndarray) -> np.ndarray:
        return model.embed(modality, latents).numpy()

    distinct = np.random.default_rng(seed).permutation(np.unique(groups))
    moved = np.empty_like(embed(new))
    for fold in np.array_split(distinct, FOLDS):
        held = np.isin(groups, fold)
        moved[held] = embed(choose_map(old[~held], new[~held], embed, seed=seed)(old[held]))
    truth = embed(new)
    alone = queries is None or query_groups is None
    asked = torch.from_numpy(truth) if queries is None or query_groups is None else queries
    mine = np.arange(len(old)) if alone else groups
    theirs = np.arange(len(old)) if query_groups is None else query_groups
    found = {"": ranks(asked, torch.from_numpy(moved), theirs, mine)}
    found["_new"] = ranks(asked, torch.from_numpy(truth), theirs, mine)
    clusters = groups if alone else theirs
    what = f"the {modality} itself" if alone else "queries of another modality"
    return {
        "shared": len(old),
        "queries": len(theirs),
        "asked": what,
        "cosine": float((moved * truth).sum(axis=1).mean()),
        **_recall(found, clusters, seed, samples),
    }


def _recall(found: dict[str, np.ndarray], clusters: np.ndarray, seed: int, samples: int) -> dict[str, Any]:
    """Compute recall, what is kept of it, and intervals by resampling groups of queries, both sides together."""
    rng = np.random.default_rng(seed)
    _, cluster = np.unique(clusters, return_inverse=True)
    n = int(cluster.max()) + 1
    values: dict[str, Any] = {}
    draws: dict[str, list[float]] = {}

    def measured(weight: np.ndarray) -> dict[str, float]:
        out = {}
        for k in AT:
            for name, rank in found.items():
                out[f"recall_at_{k}{name}"] = float(weight @ (rank <= k) / weight.sum())
            out[f"kept_at_{k}"] = out[f"recall_at_{k}"] / max(out[f"recall_at_{k}_new"], 1e-12)
        return out

    values |= measured(np.ones(len(cluster)))
    for _ in range(samples):
        for name, value in measured(np.bincount(rng.integers(0, n, n), minlength=n)[cluster].astype(float)).items():
            draws.setdefault(name, []).append(value)
    values["ci95"] = {name: [float(np.percentile(v, 2.5)), float(np.percentile(v, 97.5))] for name, v in draws.items()}
    return values
