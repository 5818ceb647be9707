"""A linear map from the latents of one encoder to those of another, from items that both have encoded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fusemix.model.cca import ridge_map

RIDGES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # multiples of the latents' mean variance


@dataclass(frozen=True)
class LatentMap:
    """``(x - old_mean) @ weights + new_mean``.

    Attributes:
        old_mean: (D_old,).
        new_mean: (D_new,).
        weights: (D_old, D_new).
        ridge: That it was fitted with.
    """

    old_mean: np.ndarray
    new_mean: np.ndarray
    weights: np.ndarray
    ridge: float

    def __call__(self, latents: np.ndarray) -> np.ndarray:
        """Map latents of the old encoder (N, D_old) to the new one's (N, D_new), float32."""
        moved: np.ndarray = ((latents - self.old_mean) @ self.weights + self.new_mean).astype(np.float32)
        return moved


def fit_map(old: np.ndarray, new: np.ndarray, ridge: float) -> LatentMap:
    """Fit by ridge regression, in the smaller of items and dimensions.

    Args:
        old: Latents of the old encoder, (N, D_old).
        new: Of the new encoder, (N, D_new); row i is the same item.
        ridge: Penalty as a multiple of the old latents' mean variance.
    """
    means = old.mean(axis=0, dtype=np.float64), new.mean(axis=0, dtype=np.float64)
    x, y, (n, width) = old - means[0], new - means[1], old.shape
    if n > width:
        weights = ridge_map(x.T @ x / n, x.T @ y / n, ridge)
    else:
        products = x @ x.T / n
        weights = x.T @ np.linalg.solve(products + ridge * np.trace(products) / width * np.eye(n), y / n)
    return LatentMap(means[0], means[1], weights, ridge)


def choose_map(
    old: np.ndarray, new: np.ndarray, embed: Callable[[np.ndarray], np.ndarray], *, seed: int = 0
) -> LatentMap:
    """Fit with the ridge whose moved latents embed nearest to the true ones, on a fifth of the items held out.

    Args:
        old: As in :func:`fit_map`.
        new: As in :func:`fit_map`.
        embed: Latents of the new encoder -> embeddings, (N, D), unit length.
        seed: Of the fifth.
    """
    order = np.random.default_rng(seed).permutation(len(old))
    held, rest = order[: max(1, len(order) // 5)], order[max(1, len(order) // 5) :]
    truth = embed(new[held])

    def near(ridge: float) -> float:
        return float((embed(fit_map(old[rest], new[rest], ridge)(old[held])) * truth).sum())

    return fit_map(old, new, max(RIDGES, key=near))
