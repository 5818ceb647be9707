"""The shared space on paper: two flat views by PCA, and where a query falls in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

VIEWS = ("as it is", "gap closed")
_EDGE = 99.5  # percentile of the distances from the middle that the frame holds; the rest is at its rim


@dataclass(frozen=True)
class Plane:
    """One flat view.

    Attributes:
        origins: Modality -> what is subtracted from its embeddings, shape (D,).
        axes: The two directions shown, orthonormal, shape (D, 2).
        scale: Distance from the middle to the frame.
        explained: Share of the spread that the two directions show, 0 to 1.
    """

    origins: dict[str, np.ndarray]
    axes: np.ndarray
    scale: float
    explained: float

    def place(self, embeddings: np.ndarray, shares: Mapping[str, float]) -> np.ndarray:
        """Where embeddings fall: shape (N, 2), the frame is [-1, 1].

        Args:
            embeddings: Shape (N, D).
            shares: Modality -> how much of the embedding comes from it; sums to anything but 0.
        """
        total = sum(shares.values())
        origin = sum(share / total * self.origins[modality] for modality, share in shares.items())
        points: np.ndarray = np.clip((embeddings - origin) @ self.axes / self.scale, -1, 1)
        return points


class SpaceMap:
    """Both views of a gallery: one with the modality gap, one with each modality moved to the middle.

    Exact and linear, unlike UMAP: a query falls where its embedding is, at once and always at the same place.
    """

    def __init__(self, embeddings: Mapping[str, np.ndarray]) -> None:
        """Find the planes.

        Args:
            embeddings: Modality -> shape (N, D), unit length, N >= 1.
        """
        means = {modality: rows.mean(axis=0) for modality, rows in embeddings.items()}
        middle = np.mean(list(means.values()), axis=0)
        self.planes = {
            VIEWS[0]: _plane(embeddings, dict.fromkeys(means, middle)),
            VIEWS[1]: _plane(embeddings, means),
        }
        self.points = {
            view: {modality: plane.place(rows, {modality: 1.0}) for modality, rows in embeddings.items()}
            for view, plane in self.planes.items()
        }

    def place(self, embedding: np.ndarray, shares: Mapping[str, float]) -> dict[str, list[float]]:
        """View -> [x, y] of a query: shape (D,), with what it is made of as in :meth:`Plane.place`."""
        return {
            view: [round(float(value), 4) for value in plane.place(embedding[None], shares)[0]]
            for view, plane in self.planes.items()
        }


def _plane(embeddings: Mapping[str, np.ndarray], origins: dict[str, np.ndarray]) -> Plane:
    """The two directions of most spread, every modality counting the same however many items it has."""
    covariance = np.mean(
        [(rows - origins[name]).T @ (rows - origins[name]) / len(rows) for name, rows in embeddings.items()], axis=0
    )  # (D, D)
    values, vectors = np.linalg.eigh(covariance)
    axes = vectors[:, [-1, -2]]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), [0, 1]])  # the same picture on every machine
    reach = np.concatenate([np.abs((rows - origins[name]) @ axes).max(axis=1) for name, rows in embeddings.items()])
    scale = float(np.percentile(reach, _EDGE)) or 1.0
    explained = float(values[-2:].sum() / max(values.sum(), 1e-12))
    return Plane(origins, axes, scale, explained)
