"""Regularised canonical correlation analysis (CCA): the closed-form baseline of a trained adapter.

The one CCA of the project: :func:`fit_cca` for latents as they are, and its parts for the closed form of an adapter
(:mod:`fusemix.model.closed_form`), which standardises and reads in chunks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fusemix.number_range import check_varied

SINGULAR = 1e-12  # smallest over largest eigenvalue of a covariance in float64 that can still be inverted


@dataclass(frozen=True)
class CCA:
    """Linear maps of two modalities into one space, found in closed form.

    Attributes:
        means: The two training means, shapes (D_x,) and (D_y,).
        maps: The two projections, shapes (D_x, D) and (D_y, D), scaled by the correlations.
    """

    means: tuple[np.ndarray, np.ndarray]
    maps: tuple[np.ndarray, np.ndarray]

    def embed(self, side: int, latents: np.ndarray) -> np.ndarray:
        """Embed latents of side 0 or 1: shape (N, D), float32, unit length."""
        out: np.ndarray = (latents - self.means[side]) @ self.maps[side]
        out /= np.linalg.norm(out, axis=1, keepdims=True)
        return out.astype(np.float32)


def fit_cca(x: np.ndarray, y: np.ndarray, *, dim: int = 128, ridge: float = 0.3) -> CCA:
    """Fit CCA on paired latents.

    Args:
        x: Latents of modality X, shape (N, D_x).
        y: Latents of modality Y, shape (N, D_y); y[i] is paired with x[i].
        dim: Directions kept.
        ridge: Added to each covariance's diagonal, as a multiple of its mean variance.

    Raises:
        ValueError: If the numbers of pairs differ, ``dim`` exceeds a width, a value is not finite, all latents of a
            side are equal, or a covariance cannot be inverted with this ridge.

    Source:
        Hotelling 1936; directions weighted by their canonical correlations, which serves
        cosine retrieval.
    """
    if len(x) != len(y):
        raise ValueError(f"x and y must hold the same number of pairs, got {len(x)} and {len(y)}.")
    if not 1 <= dim <= min(x.shape[1], y.shape[1]):
        raise ValueError(f"dim must be between 1 and {min(x.shape[1], y.shape[1])}, got {dim}.")
    if not len(x) or not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("x and y must hold at least one pair, and finite values; make these latents again.")
    check_varied(x.__getitem__, np.arange(len(x)), "x")
    check_varied(y.__getitem__, np.arange(len(y)), "y")
    means = x.mean(axis=0, dtype=np.float64), y.mean(axis=0, dtype=np.float64)
    x, y = x - means[0], y - means[1]
    white_x = inverse_root(*decompose(x.T @ x / len(x)), ridge)
    white_y = inverse_root(*decompose(y.T @ y / len(y)), ridge)
    return CCA(means, canonical_maps(white_x, x.T @ y / len(x), white_y, dim))


def decompose(covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find eigenvalues, rising, and eigenvectors: the slowest step of a fit, done once for each covariance."""
    values, vectors = np.linalg.eigh(covariance)
    return values, vectors


def inverse_root(values: np.ndarray, vectors: np.ndarray, ridge: float) -> np.ndarray:
    """Whiten: the symmetric inverse square root of a covariance plus ``ridge`` times its mean variance, (D_x, D_x).

    Args:
        values: The covariance's eigenvalues, (D_x,).
        vectors: Its eigenvectors, (D_x, D_x).
        ridge: A multiple of the mean variance.
    """
    return np.asarray(vectors / np.sqrt(regularised(values, ridge)) @ vectors.T)


def regularised(values: np.ndarray, ridge: float) -> np.ndarray:
    """Add ``ridge`` times their mean to the eigenvalues of a covariance, (D_x,).

    Raises:
        ValueError: If the sum is singular: a dimension that is constant or a combination of others needs a ridge.
    """
    sums: np.ndarray = values + ridge * values.mean()
    if not 0 <= ridge < np.inf or not sums.min() > SINGULAR * sums.max():
        raise ValueError(
            f"With a ridge of {ridge} the covariance of these latents cannot be inverted: the ridge must be finite, "
            "and above 0 where a dimension is constant or a combination of others; give 0.1, say."
        )
    return sums


def canonical_maps(
    white_x: np.ndarray, covariance: np.ndarray, white_y: np.ndarray, dim: int
) -> tuple[np.ndarray, np.ndarray]:
    """Find the canonical directions, each scaled by the root of its correlation: (D_x, dim) and (D_y, dim).

    Args:
        white_x: :func:`inverse_root` of X's covariance, (D_x, D_x).
        covariance: Of X with Y, (D_x, D_y).
        white_y: :func:`inverse_root` of Y's covariance, (D_y, D_y).
        dim: Directions kept.
    """
    left, correlation, right = np.linalg.svd(white_x.T @ covariance @ white_y, full_matrices=False)
    weight = np.sqrt(correlation[:dim])
    return white_x @ left[:, :dim] * weight, white_y @ right[:dim].T * weight


def ridge_map(covariance: np.ndarray, cross: np.ndarray, ridge: float) -> np.ndarray:
    """Regress centred targets on centred latents: (D_x, D).

    Args:
        covariance: Of the latents, (D_x, D_x).
        cross: Mean product of latents and targets, (D_x, D).
        ridge: Penalty as a multiple of the latents' mean variance.
    """
    width = len(covariance)
    return np.linalg.solve(covariance + ridge * np.trace(covariance) / width * np.eye(width), cross)
