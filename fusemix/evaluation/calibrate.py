"""Fit of a calibration on validation pairs, and its measurement on pairs it was not fitted on.

A fit sees every query twice: with its answers in the gallery, and with them taken out, so that "no answer" is as
frequent as "an answer"; and galleries of several sizes. Groups are divided in two halves: each half is judged by the
fit on the other half, and the calibration that is kept is fitted on both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from fusemix.search.calibration import DEPTH, HEAD, Calibration, Cutoff, features

ERRORS = (0.01, 0.05, 0.1, 0.2)  # of queries without an answer that show something all the same
MIN_QUERIES = 50
SHARES = (1.0, 0.5, 0.25)  # sizes of the galleries of a fit, of all items
SMALLEST = 2 * DEPTH  # items of a gallery of a fit
BINS = 15
_RIDGE = 1e-3


@dataclass(frozen=True)
class Lists:
    """Result lists of queries.

    Attributes:
        similarities: Of the :data:`DEPTH` nearest items, (Q, DEPTH), falling.
        right: Whether each is a right answer, (Q, DEPTH).
        n_items: Items searched by each query, (Q,).
        answered: Whether the gallery held an answer, (Q,).
        groups: Of the queries, (Q,).
    """

    similarities: np.ndarray
    right: np.ndarray
    n_items: np.ndarray
    answered: np.ndarray
    groups: np.ndarray

    def of(self, chosen: np.ndarray) -> Lists:
        """Return some of the queries."""
        return Lists(*(values[chosen] for values in vars(self).values()))

    def features(self) -> np.ndarray:
        """Return the features of the first hits, (Q, HEAD, 6)."""
        sizes, found = np.unique(self.n_items), np.empty((len(self.n_items), HEAD, 6))
        for size in sizes:
            rows = self.n_items == size
            found[rows] = features(self.similarities[rows], int(size))[:, :HEAD]
        return found


def calibrate(
    queries: Tensor, gallery: Tensor, query_groups: np.ndarray, gallery_groups: np.ndarray, *, seed: int = 0
) -> Calibration:
    """Fit the calibration of one direction and measure it.

    Args:
        queries: Embeddings of validation queries, (Q, D), unit length; never of training.
        gallery: Embeddings of validation items, (G, D), unit length.
        query_groups: (Q,) integers; a hit is right if its group is the query's.
        gallery_groups: (G,) integers.
        seed: Of the halves and the smaller galleries.

    Raises:
        ValueError: If there are too few queries with an answer, or too few items.
    """
    known = np.isin(query_groups, gallery_groups)
    if known.sum() < MIN_QUERIES or len(gallery) < SMALLEST:
        raise ValueError(
            f"A calibration needs {MIN_QUERIES} validation queries with an answer and {SMALLEST} items, there are "
            f"{int(known.sum())} and {len(gallery)}; give more validation pairs, or use similarities alone."
        )
    lists = result_lists(queries[known], gallery, query_groups[known], gallery_groups, seed=seed)
    distinct = np.unique(query_groups[known])
    first = np.isin(lists.groups, np.random.default_rng(seed).permutation(distinct)[: len(distinct) // 2])
    parts = []
    for mine in (first, ~first):
        weights = _fit(lists.of(~mine))
        parts.append((lists.of(mine), weights))
    return Calibration(tuple(_fit(lists).tolist()), _cutoffs(parts), report(parts))


def result_lists(
    queries: Tensor,
    gallery: Tensor,
    query_groups: np.ndarray,
    gallery_groups: np.ndarray,
    *,
    shares: tuple[float, ...] = SHARES,
    seed: int = 0,
) -> Lists:
    """Search galleries of several sizes, each with the answers of a query and without them.

    Args:
        queries: (Q, D), unit length.
        gallery: (G, D), unit length.
        query_groups: (Q,) integers.
        gallery_groups: (G,) integers.
        shares: Sizes of the galleries, of all groups; those below :data:`SMALLEST` items are left out.
        seed: Of the smaller galleries.
    """
    rng, found = np.random.default_rng(seed), []
    groups = np.unique(gallery_groups)
    for share in shares:
        kept = np.isin(gallery_groups, rng.permutation(groups)[: int(np.ceil(share * len(groups)))])
        if kept.sum() < SMALLEST:
            continue
        asked = np.flatnonzero(np.isin(query_groups, gallery_groups[kept]))
        items, item_groups = gallery[np.flatnonzero(kept)], gallery_groups[kept]
        for start in range(0, len(asked), 1024):
            rows = asked[start : start + 1024]
            similarity = (queries[rows] @ items.T).numpy().astype(np.float64)
            right = query_groups[rows][:, None] == item_groups[None]
            found.append(_nearest(similarity, right, query_groups[rows]))
            found.append(_nearest(np.where(right, -np.inf, similarity), np.zeros_like(right), query_groups[rows]))
    return Lists(*(np.concatenate(part) for part in zip(*(vars(lists).values() for lists in found), strict=True)))


def _nearest(similarity: np.ndarray, right: np.ndarray, groups: np.ndarray) -> Lists:
    order = np.argpartition(-similarity, DEPTH - 1, axis=1)[:, :DEPTH]
    order = np.take_along_axis(order, np.argsort(-np.take_along_axis(similarity, order, 1), axis=1, kind="stable"), 1)
    return Lists(
        np.take_along_axis(similarity, order, 1),
        np.take_along_axis(right, order, 1),
        np.isfinite(similarity).sum(axis=1),
        np.asarray(right.any(axis=1)),
        groups,
    )


def _fit(lists: Lists) -> np.ndarray:
    """Fit a logistic model of the first hits' features by maximum likelihood, with a slight ridge: (6,)."""
    from scipy.optimize import minimize
    from scipy.special import expit

    x, y = lists.features().reshape(-1, 6), lists.right[:, :HEAD].reshape(-1).astype(np.float64)
    scale = np.maximum(np.sqrt(np.mean(x**2, axis=0)), 1e-12)
    x = x / scale
    ridge = _RIDGE * np.array([0.0, 1, 1, 1, 1, 1])

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        z = x @ w
        value = np.mean(np.logaddexp(0, z) - y * z) + 0.5 * ridge @ w**2
        return float(value), x.T @ (expit(z) - y) / len(y) + ridge * w

    found = minimize(loss, np.zeros(6), jac=True, method="L-BFGS-B")
    return np.asarray(found.x / scale)


def _judged(lists: Lists, weights: np.ndarray) -> np.ndarray:
    from scipy.special import expit

    return np.asarray(expit(lists.features() @ weights))  # (Q, HEAD)


def _cutoffs(parts: list[tuple[Lists, np.ndarray]]) -> tuple[Cutoff, ...]:
    """Choose cut-offs by the best hits of queries that no fit has seen, over galleries of all sizes."""
    best = np.concatenate([_judged(lists, weights).max(axis=1) for lists, weights in parts])
    answered = np.concatenate([lists.answered for lists, _ in parts])
    bars = np.quantile(best[~answered], [1 - error for error in ERRORS])
    return tuple(
        Cutoff(error, float(bar), float((best[answered] >= bar).mean()))
        for error, bar in zip(ERRORS, bars, strict=True)
    )


def report(parts: list[tuple[Lists, np.ndarray]]) -> dict[str, Any]:
    """Measure probabilities on queries that were not fitted.

    Args:
        parts: (lists, weights fitted on others).

    Returns:
        ``queries`` (lists judged), ``ece`` of the first :data:`HEAD` hits and ``ece_first`` of the best hits (expected
        calibration error, :data:`BINS` bins of equal count), ``ece_similarity`` and ``ece_first_similarity`` of a Platt
        fit on the similarity alone, ``auroc`` of the best hit's probability for queries with an answer against queries
        without, ``auroc_similarity`` of its similarity, and for each cut-off, chosen on the other half, the measured
        rate of queries without an answer that reach it (``error``) and of those with one (``kept``).
    """
    probability = np.concatenate([_judged(lists, weights) for lists, weights in parts])
    right = np.concatenate([lists.right[:, :HEAD] for lists, _ in parts])
    answered = np.concatenate([lists.answered for lists, _ in parts])
    nearest = np.concatenate([lists.similarities[:, 0] for lists, _ in parts])
    values: dict[str, Any] = {
        "queries": len(answered),
        "ece": ece(probability.ravel(), right.ravel()),
        "ece_first": ece(probability[:, 0], right[:, 0]),
        "auroc": auroc(probability.max(axis=1), answered),
        "auroc_similarity": auroc(nearest, answered),
    }
    if len(parts) == 2:
        plain = np.concatenate([_platt(a, b) for (a, _), (b, _) in (parts, parts[::-1])])
        mine = np.concatenate([parts[1][0].right[:, :HEAD], parts[0][0].right[:, :HEAD]])
        values |= {
            "ece_similarity": ece(plain.ravel(), mine.ravel()),
            "ece_first_similarity": ece(plain[:, 0], mine[:, 0]),
            "cutoffs": list(_measured_cutoffs(parts)),
        }
    return values


def _platt(fitted: Lists, judged: Lists) -> np.ndarray:
    """Judge by a logistic model of the similarity alone, fitted on other queries: (Q, HEAD)."""
    from scipy.optimize import minimize
    from scipy.special import expit

    x, y = fitted.similarities[:, :HEAD].ravel(), fitted.right[:, :HEAD].ravel().astype(np.float64)

    def loss(w: np.ndarray) -> float:
        z = w[0] + w[1] * x
        return float(np.mean(np.logaddexp(0, z) - y * z))

    w = minimize(loss, np.array([-3.0, 1.0])).x
    return np.asarray(expit(w[0] + w[1] * judged.similarities[:, :HEAD]))


def _measured_cutoffs(parts: list[tuple[Lists, np.ndarray]]) -> Iterator[Mapping[str, float]]:
    """Yield what cut-offs chosen on one half do on the other, the mean of both ways."""
    best = [_judged(lists, weights).max(axis=1) for lists, weights in parts]
    for error in ERRORS:
        wrong, kept = [], []
        for mine, other in ((0, 1), (1, 0)):
            bar = np.quantile(best[other][~parts[other][0].answered], 1 - error)
            wrong.append((best[mine][~parts[mine][0].answered] >= bar).mean())
            kept.append((best[mine][parts[mine][0].answered] >= bar).mean())
        yield {"stated": error, "error": float(np.mean(wrong)), "kept": float(np.mean(kept))}


def ece(probability: np.ndarray, right: np.ndarray, *, bins: int = BINS) -> float:
    """Compute the expected calibration error: mean |probability - share that is right| over bins of equal count.

    Source: Naeini et al., AAAI 2015, with bins of equal count.
    """
    order = np.argsort(probability, kind="stable")
    gaps = [
        len(part) * abs(probability[part].mean() - right[part].mean())
        for part in np.array_split(order, bins)
        if len(part)
    ]
    return float(sum(gaps) / len(probability))


def auroc(score: np.ndarray, positive: np.ndarray) -> float:
    """Compute the chance that a positive's score exceeds a negative's; ties count half.

    Raises:
        ValueError: If there are no positives or no negatives.
    """
    from scipy.stats import rankdata

    n, m = int(positive.sum()), int((~positive).sum())
    if not n or not m:
        raise ValueError(f"An AUROC compares positives with negatives; there are {n} and {m}.")
    return float((rankdata(score)[positive].sum() - n * (n + 1) / 2) / (n * m))
