"""Selection of diverse, good or random subsets of N candidates, in memory linear in N.

A k-DPP draws a subset S of k rows with probability proportional to det(L_S), L = B B^T with B = diag(quality) times
the features: subsets of diverse, good rows are likely. Everything here
works on the D x D matrix B^T B (the dual form), never on L; it reads the features k + 2 times in blocks of rows.

L has rank at most D, so a k-DPP of plain features has at most D rows. For more, divide the candidates into random
blocks and choose within each (:func:`in_blocks`); the union is then not an exact k-DPP of all candidates.

Source:
    Kulesza and Taskar, Determinantal Point Processes for Machine Learning (2012): k-DPPs, elementary symmetric
    polynomials, the dual form. Greedy MAP: Chen, Zhang and Zhou, NeurIPS 2018, here with features in place of L.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

_BLOCK_BYTES = 64 * 2**20  # of features read at a time, as float64
RANK_TOLERANCE = 1e-10  # eigenvalues below this share of the largest count as zero

Report = Callable[[int, int], None]  # rows chosen, rows in all
Choose = Callable[[np.ndarray, int], np.ndarray]  # (candidate numbers, k) -> positions among them


def uniform(n: int, k: int, rng: np.random.Generator) -> np.ndarray:
    """Draw k of n rows, each subset equally likely: (k,) int64, ascending.

    Raises:
        ValueError: If k is not between 1 and n.
    """
    _check_size(k, n)
    return np.sort(rng.choice(n, size=k, replace=False)).astype(np.int64)


def best(scores: np.ndarray, k: int) -> np.ndarray:
    """Return the k rows with the highest scores, the first of equal ones: (k,) int64, ascending.

    Args:
        scores: (N,) numbers, higher is better.
        k: How many.

    Raises:
        ValueError: If k is not between 1 and N, or a score is not finite.
    """
    _check_size(k, len(scores))
    _check_quality(scores, len(scores), positive=False)
    return np.sort(np.argsort(-np.asarray(scores), kind="stable")[:k]).astype(np.int64)


def sample_kdpp(
    features: np.ndarray,
    k: int,
    *,
    rng: np.random.Generator,
    quality: np.ndarray | None = None,
    unit_length: bool = True,
    report: Report | None = None,
) -> np.ndarray:
    """Draw k rows from the k-DPP of the features, exactly.

    First k eigenvectors of B^T B are drawn by elementary symmetric polynomials, then rows one by one, with probability
    proportional to the squared length that remains after projecting out the rows chosen before. O(N D k) time,
    O(N + D^2) memory beside the features.

    Args:
        features: (N, D), float32 or float64; may be memory-mapped. Arithmetic over rows keeps this precision.
        k: Rows to draw; at most the rank of the features.
        rng: A seeded generator reproduces the draw.
        quality: (N,) factors > 0 of the rows; twice the quality is four times the weight of a single row.
        unit_length: Scale every row of features to length 1 first, so that only direction counts.
        report: Called after every row.

    Returns:
        (k,) int64, ascending, no row twice.

    Raises:
        ValueError: If shapes disagree, a value is not finite, a row is zero, or k is more than the rank.
    """
    scale = _row_scale(features, k, quality, unit_length)
    values, vectors = _eigen(features, scale, k)
    chosen = _draw_eigenvectors(values, k, rng)
    span = vectors[:, chosen] / np.sqrt(values[chosen])  # (D, k): features times this have orthonormal columns

    def draw(left: np.ndarray) -> int:
        total = np.cumsum(left)
        return int(np.searchsorted(total, rng.random() * total[-1], side="right"))

    return np.sort(_choose_rows(features, scale, span, k, draw, report))


def greedy_map(
    features: np.ndarray,
    k: int,
    *,
    quality: np.ndarray | None = None,
    unit_length: bool = True,
    report: Report | None = None,
) -> np.ndarray:
    """Maximise the k-DPP's probability greedily: each row adds most to log det(L_S), the first of equal ones.

    Args:
        features: As in :func:`sample_kdpp`.
        k: Rows to choose; at most the rank of the features.
        quality: As in :func:`sample_kdpp`.
        unit_length: As in :func:`sample_kdpp`; without quality, the first row then is row 0.
        report: Called after every row.

    Returns:
        (k,) int64 in the order chosen, so that the first m are the greedy subset of size m.

    Raises:
        ValueError: As :func:`sample_kdpp`.
    """
    scale = _row_scale(features, k, quality, unit_length)
    _eigen(features, scale, k)  # raises if k exceeds the rank
    return _choose_rows(features, scale, np.eye(features.shape[1]), k, lambda left: int(np.argmax(left)), report)


def in_blocks(choose: Choose, n: int, k: int, blocks: int, rng: np.random.Generator) -> np.ndarray:
    """Divide n candidates into random blocks of equal size and choose an equal share of k in each.

    Args:
        choose: Called with a block's candidate numbers and its share; gives positions in the block.
        n: Candidates.
        k: Rows in all.
        blocks: How many blocks; 1 is the exact choice.
        rng: Of the division.

    Returns:
        (k,) int64 candidate numbers, ascending.

    Raises:
        ValueError: If k is not between 1 and n, or there are more blocks than rows to choose.
    """
    _check_size(k, n)
    if not 1 <= blocks <= k:
        raise ValueError(f"blocks must be between 1 and the {k} rows to choose, got {blocks}.")
    order = rng.permutation(n) if blocks > 1 else np.arange(n)
    shares = [len(part) for part in np.array_split(np.arange(k), blocks)]
    chosen = []
    for part, share in zip(np.array_split(order, blocks), shares, strict=True):
        part = np.sort(part)
        chosen.append(part[choose(part, share)])
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def _choose_rows(
    features: np.ndarray,
    scale: np.ndarray,
    span: np.ndarray,
    k: int,
    pick: Callable[[np.ndarray], int],
    report: Report | None,
) -> np.ndarray:
    """Pick k rows one by one, by the squared length of each outside the span of the rows picked before.

    Works on y_i = scale_i features_i span, which is never stored: beside the features it holds N numbers and a basis
    of the rows picked. Those N numbers have the features' precision; a row with nothing left but rounding is
    recognised in float64 and skipped.
    """
    left = _squared_lengths(features, scale, span)  # (N,)
    basis = np.zeros((k, span.shape[1]))
    rows: list[int] = []
    while len(rows) < k:
        if not left.any():
            raise ValueError(_beyond_rank(k, len(rows)))
        row = pick(left)
        y = (np.asarray(features[row], dtype=np.float64) * scale[row]) @ span
        whole = y @ y
        for _ in range(2):  # a second pass gives orthogonality up to rounding
            y -= basis[: len(rows)].T @ (basis[: len(rows)] @ y)
        if y @ y <= RANK_TOLERANCE * whole:
            left[row] = 0
            continue
        direction = basis[len(rows)] = y / np.linalg.norm(y)
        rows.append(row)
        along = span @ direction  # (D,)
        for part in _parts(features):
            left[part] -= (scale[part] * _product(features[part], along)) ** 2
        np.maximum(left, 0, out=left)
        left[rows] = 0
        if report:
            report(len(rows), k)
    return np.array(rows, dtype=np.int64)


def _eigen(features: np.ndarray, scale: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the positive eigenvalues of B^T B, (R,), and their vectors, (D, R); k > R is a ValueError."""
    values, vectors = np.linalg.eigh(_gram(features, scale))
    positive = values > RANK_TOLERANCE * values[-1]
    if k > positive.sum():
        raise ValueError(_beyond_rank(k, int(positive.sum())))
    return values[positive], vectors[:, positive]


def _draw_eigenvectors(values: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """Draw k eigenvalues: a set J with probability proportional to the product of its values."""
    log_e = _log_elementary(values, k)
    chosen, wanted = [], k
    for n in range(len(values), 0, -1):
        if wanted == 0:
            break
        take = np.log(values[n - 1]) + log_e[wanted - 1, n - 1] - log_e[wanted, n]
        if np.log(rng.random()) < take:
            chosen.append(n - 1)
            wanted -= 1
    return np.array(chosen[::-1], dtype=np.int64)


def _log_elementary(values: np.ndarray, k: int) -> np.ndarray:
    """Compute log e_l of the first n values, shape (k + 1, n + 1): the sums of products of l of them."""
    table = np.full((k + 1, len(values) + 1), -np.inf)
    table[0] = 0.0
    for n, log_value in enumerate(np.log(values), start=1):
        table[1:, n] = np.logaddexp(table[1:, n - 1], log_value + table[:-1, n - 1])
    return table


def _row_scale(features: np.ndarray, k: int, quality: np.ndarray | None, unit_length: bool) -> np.ndarray:
    """Check the arguments and return the factors of the rows, (N,)."""
    if features.ndim != 2 or features.dtype.kind != "f":
        raise ValueError(f"features must be floats of shape (N, D), got {features.dtype} {features.shape}.")
    _check_size(k, len(features))
    scale = np.ones(len(features))
    if quality is not None:
        scale = _check_quality(quality, len(features), positive=True).astype(np.float64)
    for part in _parts(features):
        lengths = np.linalg.norm(np.asarray(features[part], dtype=np.float64), axis=1)
        bad = np.flatnonzero(~np.isfinite(lengths) | (unit_length & (lengths == 0)))
        if len(bad):
            raise ValueError(f"Row {part.start + int(bad[0])} of the features is zero, NaN or infinite.")
        if unit_length:
            scale[part] /= lengths
    return scale


def _check_quality(quality: np.ndarray, n: int, *, positive: bool) -> np.ndarray:
    quality = np.asarray(quality)
    if quality.shape != (n,):
        raise ValueError(f"There must be one quality a row, {n}, got shape {quality.shape}.")
    if not np.isfinite(quality).all() or (positive and (quality <= 0).any()):
        wrong = int(np.flatnonzero(~np.isfinite(quality) | (positive & (quality <= 0)))[0])
        raise ValueError(f"Quality must be finite{' and > 0' if positive else ''}, row {wrong} has {quality[wrong]}.")
    return quality


def _check_size(k: int, n: int) -> None:
    if not 1 <= operator.index(k) <= n:
        raise ValueError(f"A subset needs between 1 and {n} rows, got {k}.")


def _beyond_rank(k: int, rank: int) -> str:
    return (
        f"{k} rows are more than the rank of the features, {rank}: every such subset has determinant 0. Choose at most "
        f"{rank}, or divide the candidates into at least {-(-k // max(rank, 1))} blocks."
    )


def _parts(features: np.ndarray) -> list[slice]:
    step = max(1, _BLOCK_BYTES // (8 * features.shape[1]))
    return [slice(start, min(start + step, len(features))) for start in range(0, len(features), step)]


def _product(rows: Any, vector: np.ndarray) -> np.ndarray:
    product: np.ndarray = rows @ vector.astype(rows.dtype)
    return product


def _gram(features: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Compute B^T B, (D, D), float64."""
    gram = np.zeros((features.shape[1],) * 2)
    for part in _parts(features):
        rows = np.asarray(features[part], dtype=np.float64) * scale[part, None]
        gram += rows.T @ rows
    return gram


def _squared_lengths(features: np.ndarray, scale: np.ndarray, span: np.ndarray) -> np.ndarray:
    """Compute |scale_i features_i span|^2, (N,), float64."""
    lengths = np.empty(len(features))
    for part in _parts(features):
        rows = (np.asarray(features[part], dtype=np.float64) * scale[part, None]) @ span
        lengths[part] = np.einsum("nd,nd->n", rows, rows)
    return lengths
