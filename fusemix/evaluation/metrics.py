"""Ranks, recall@k and confidence intervals of retrieval, computed in chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

RECALL_AT = (1, 5, 10)


def ranks(
    queries: Tensor, gallery: Tensor, query_groups: np.ndarray, gallery_groups: np.ndarray, *, chunk: int = 1024
) -> np.ndarray:
    """Compute the rank of the best right answer of each query; 1 is first.

    A gallery item is right when its group is the query's. Wrong items with the same similarity
    as the best right one are ranked before it, so that a collapsed model scores nothing.

    Args:
        queries: Embeddings, shape (Q, D), unit length.
        gallery: Embeddings, shape (G, D), unit length.
        query_groups: (Q,) integers.
        gallery_groups: (G,) integers.
        chunk: Queries per similarity matrix, which takes chunk x G floats.

    Returns:
        (Q,) int64.

    Raises:
        ValueError: If shapes disagree, an embedding is NaN or infinite (every rank would then be 1), or a query has no
            right answer in the gallery.
    """
    if len(queries) != len(query_groups) or len(gallery) != len(gallery_groups):
        raise ValueError("queries and gallery must each come with one group per row.")
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"Expected queries (Q, D) and a gallery (G, D), got {(*queries.shape,)} and {(*gallery.shape,)}."
        )
    for side, embeddings in (("queries", queries), ("gallery", gallery)):
        if bad := int((~torch.isfinite(embeddings).all(dim=1)).sum()):
            raise ValueError(
                f"{bad} of {len(embeddings)} embeddings of the {side} are NaN or infinite; make them again."
            )
    if not np.isin(query_groups, gallery_groups).all():
        raise ValueError("Every query needs a right answer in the gallery; leave the others out first.")
    groups = torch.as_tensor(gallery_groups)
    out = []
    for start in range(0, len(queries), chunk):
        similarity = queries[start : start + chunk] @ gallery.T  # (chunk, G)
        right = torch.as_tensor(query_groups[start : start + chunk])[:, None] == groups[None]
        best = similarity.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)
        out.append(((similarity >= best) & ~right).sum(dim=1) + 1)
    return torch.cat(out).numpy() if out else np.zeros(0, dtype=np.int64)


def summarise(rank: np.ndarray) -> dict[str, float]:
    """Compute recall_at_1/5/10 (fractions of queries) and median_rank."""
    if not len(rank):
        raise ValueError("There is no rank to summarise; ask at least one query.")
    values: dict[str, float] = {f"recall_at_{k}": float((rank <= k).mean()) for k in RECALL_AT}
    values["median_rank"] = float(np.median(rank))
    return values


def bootstrap(
    rank: np.ndarray, clusters: np.ndarray, *, samples: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Compute 95 % percentile intervals of :func:`summarise`, resampling whole clusters of queries.

    A resample holds as many clusters as there are, drawn with replacement; its recall is over all its queries,
    its median the smallest rank that at least half of them reach.

    Args:
        rank: (Q,) ranks.
        clusters: (Q,) integers; queries of one cluster (captions of one photo) are drawn together.
        samples: Bootstrap resamples.
        seed: Of the resampling.
    """
    rng = np.random.default_rng(seed)
    _, cluster = np.unique(clusters, return_inverse=True)
    n = int(cluster.max()) + 1
    size = np.bincount(cluster, minlength=n)
    hits = {k: np.bincount(cluster, weights=rank <= k, minlength=n) for k in RECALL_AT}
    order = np.argsort(rank, kind="stable")
    draws: dict[str, list[float]] = {name: [] for name in (*(f"recall_at_{k}" for k in RECALL_AT), "median_rank")}
    for _ in range(samples):
        weight = np.bincount(rng.integers(0, n, n), minlength=n)
        total = float(weight @ size)
        for k in RECALL_AT:
            draws[f"recall_at_{k}"].append(float(weight @ hits[k]) / total)
        reached = np.cumsum(weight[cluster[order]])
        draws["median_rank"].append(float(rank[order][np.searchsorted(reached, total / 2)]))
    return {
        name: (float(np.percentile(values, 2.5)), float(np.percentile(values, 97.5))) for name, values in draws.items()
    }


def retrieval(
    queries: Tensor, gallery: Tensor, query_groups: np.ndarray, gallery_groups: np.ndarray, *, intervals: bool = True
) -> dict[str, Any]:
    """Compute recall, median rank and (optionally) 95 % intervals under ``ci95``; see :func:`ranks`."""
    rank = ranks(queries, gallery, query_groups, gallery_groups)
    values: dict[str, Any] = {"n_queries": len(rank), "n_gallery": len(gallery), **summarise(rank)}
    if intervals:
        values["ci95"] = {name: list(pair) for name, pair in bootstrap(rank, query_groups).items()}
    return values


def student_interval(values: Sequence[float]) -> dict[str, float | None]:
    """Compute mean, deviation and the half width of a 95 % Student's t interval of values, one per seed.

    Args:
        values: At least one. Of a single one, ``sd`` and ``half_width_95`` are None.

    Returns:
        ``n``, ``mean``, ``sd`` (n - 1 degrees of freedom) and ``half_width_95``.

    Raises:
        ImportError: If scipy, which nothing else in the library needs, is not installed.
    """
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return {"n": n, "mean": mean, "sd": None, "half_width_95": None}
    from scipy.stats import t

    deviation = float(np.std(values, ddof=1))
    return {"n": n, "mean": mean, "sd": deviation, "half_width_95": float(t.ppf(0.975, n - 1)) * deviation / n**0.5}
