"""Regularised canonical correlation analysis: the closed-form floor a trained adapter must beat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


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
        """Embeddings of side 0 or 1: shape (N, D), float32, unit length."""
        out = (latents - self.means[side]) @ self.maps[side]
        return (out / np.linalg.norm(out, axis=1, keepdims=True)).astype(np.float32)


def fit_cca(x: np.ndarray, y: np.ndarray, *, dim: int = 128, ridge: float = 0.3) -> CCA:
    """Fit CCA on paired latents.

    Args:
        x: Latents of modality X, shape (N, D_x).
        y: Latents of modality Y, shape (N, D_y); y[i] is paired with x[i].
        dim: Directions kept.
        ridge: Added to each covariance's diagonal, as a multiple of its mean variance.

    Raises:
        ValueError: If the numbers of pairs differ or ``dim`` exceeds a width.

    Source:
        Hotelling 1936; directions weighted by their canonical correlations, which serves
        cosine retrieval.
    """
    if len(x) != len(y):
        raise ValueError(f"x and y must hold the same number of pairs, got {len(x)} and {len(y)}.")
    if not 1 <= dim <= min(x.shape[1], y.shape[1]):
        raise ValueError(f"dim must be between 1 and {min(x.shape[1], y.shape[1])}, got {dim}.")
    means = x.mean(axis=0, dtype=np.float64), y.mean(axis=0, dtype=np.float64)
    x, y = x - means[0], y - means[1]
    white_x, white_y = whitener(x.T @ x / len(x), ridge), whitener(y.T @ y / len(y), ridge)
    left, correlation, right = np.linalg.svd(white_x.T @ (x.T @ y / len(x)) @ white_y)
    weight = np.sqrt(correlation[:dim])
    return CCA(means, (white_x @ left[:, :dim] * weight, white_y @ right[:dim].T * weight))


def whitener(covariance: np.ndarray, ridge: float) -> np.ndarray:
    """The symmetric inverse square root of a covariance plus ``ridge`` times its mean variance: (D_x, D_x)."""
    return inverse_root(*np.linalg.eigh(covariance), ridge)


def inverse_root(values: np.ndarray, vectors: np.ndarray, ridge: float) -> np.ndarray:
    """:func:`whitener` of a covariance of these eigenvalues (D_x,) and eigenvectors (D_x, D_x)."""
    return np.asarray(vectors / np.sqrt(values + ridge * values.mean()) @ vectors.T)
