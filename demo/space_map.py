"""Two-dimensional views of the shared space by PCA, and the neighbourhoods that were laid out with the gallery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fusemix.files import read_json

VIEWS = ("as trained", "gap removed")
NEIGHBOURHOODS = "neighbourhoods"
_NEAR = 0.25  # of the map's half width
_FILES = ("map.json", "thumbnails.webp")  # in the gallery's folder, by scripts/release/build_map.py


class Neighbourhoods:
    """Positions of the gallery's things by t-SNE, and the sheet of their thumbnails.

    Attributes:
        side: Pixels of a thumbnail.
        columns: Thumbnails in a row of the sheet.
        sheet: The sheet of thumbnails.
    """

    def __init__(self, root: Path) -> None:
        """Read ``map.json`` in the gallery's folder.

        Raises:
            ValueError: If it is damaged.
        """
        values = read_json(root / _FILES[0])
        self.side, self.columns, self.sheet = int(values["side"]), int(values["columns"]), root / _FILES[1]
        self._places: dict[str, dict[str, list[float]]] = values["places"]

    @staticmethod
    def of(root: Path | None) -> Neighbourhoods | None:
        """Return those of a gallery's folder; None if it has none, as a visitor's own gallery."""
        known = root is not None and all((root / name).is_file() for name in _FILES)
        return Neighbourhoods(root) if root is not None and known else None

    def place(self, modality: str, identity: str) -> list[float] | None:
        """Return x and y of an item, -1 to 1; None if it has no place of its own, as captions."""
        known = self._places.get(modality, {}).get(identity)
        return known[:2] if known else None

    def cell(self, identity: str) -> int:
        """Return the number of a picture's thumbnail in the sheet; -1 if it has none."""
        known = self._places["image"].get(identity, [])
        return int(known[2]) if len(known) > 2 else -1

    def between(self, places: Sequence[list[float]]) -> list[float] | None:
        """Return where a query lands: beside its best item, drawn to the others that lie near that one."""
        if not places:
            return None
        near = [place for place in places if np.hypot(*np.subtract(place, places[0])) < _NEAR]
        middle = np.average(near, axis=0, weights=1 / np.arange(1, len(near) + 1))
        return [round(float(value), 4) for value in middle]


@dataclass(frozen=True)
class Plane:
    """One two-dimensional view.

    Attributes:
        origins: Modality -> what is subtracted from its embeddings, shape (D,).
        axes: The two directions shown, orthonormal, shape (D, 2).
        low: Least value of any item along each direction, shape (2,): the left and lower edge.
        high: Greatest value: the right and upper edge.
        explained: Fraction of the variance along the two directions, 0 to 1.
    """

    origins: dict[str, np.ndarray]
    axes: np.ndarray
    low: np.ndarray
    high: np.ndarray
    explained: float

    def place(self, embeddings: np.ndarray, shares: Mapping[str, float]) -> np.ndarray:
        """Project embeddings to positions, shape (N, 2), clipped to [-1, 1].

        Args:
            embeddings: Shape (N, D).
            shares: Modality -> its share of the embedding; the sum must not be 0.
        """
        total = sum(shares.values())
        origin = sum(share / total * self.origins[modality] for modality, share in shares.items())
        middle, reach = (self.low + self.high) / 2, np.maximum((self.high - self.low) / 2, 1e-9)
        points: np.ndarray = np.clip(((embeddings - origin) @ self.axes - middle) / reach, -1, 1)
        return points


class SpaceMap:
    """Both views of a gallery: one with the modality gap, one with every modality centred.

    The projection is linear, unlike UMAP: a query is placed at once, and always at the same position.
    """

    def __init__(self, embeddings: Mapping[str, np.ndarray]) -> None:
        """Compute the planes.

        Args:
            embeddings: Modality -> shape (N, D), unit length, N >= 1.
        """
        means: dict[str, np.ndarray] = {modality: rows.mean(axis=0) for modality, rows in embeddings.items()}
        middle: np.ndarray = np.mean(list(means.values()), axis=0)
        self.planes = {
            VIEWS[0]: _plane(embeddings, {modality: middle for modality in means}),
            VIEWS[1]: _plane(embeddings, means),
        }
        self.points = {
            view: {modality: plane.place(rows, {modality: 1.0}) for modality, rows in embeddings.items()}
            for view, plane in self.planes.items()
        }

    def place(self, embedding: np.ndarray, shares: Mapping[str, float]) -> dict[str, list[float]]:
        """Return view -> [x, y] of a query, shape (D,); ``shares`` as in :meth:`Plane.place`."""
        return {
            view: [round(float(value), 4) for value in plane.place(embedding[None], shares)[0]]
            for view, plane in self.planes.items()
        }


def _plane(embeddings: Mapping[str, np.ndarray], origins: dict[str, np.ndarray]) -> Plane:
    """Compute the two directions of greatest variance, with equal weight for every modality."""
    covariance = np.mean(
        [(rows - origins[name]).T @ (rows - origins[name]) / len(rows) for name, rows in embeddings.items()], axis=0
    )  # (D, D)
    values, vectors = np.linalg.eigh(covariance)
    axes = vectors[:, [-1, -2]]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), [0, 1]])  # the same map on every machine
    places = np.concatenate([(rows - origins[name]) @ axes for name, rows in embeddings.items()])
    explained = float(values[-2:].sum() / max(values.sum(), 1e-12))
    return Plane(origins, axes, places.min(axis=0), places.max(axis=0), explained)
