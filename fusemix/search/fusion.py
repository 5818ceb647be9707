"""Late fusion: the parts of a query are compared with the faces of an item, and items are ranked by the sum.

Cosines to pictures and to captions are not comparable (the modality gap). So each is standardised for the query over
the whole gallery, to standard deviations above the mean; the weighted values are added. A missing face counts as
average. The weights were learned on validation by ``scripts/release/learn_fusion.py``, which wrote
``fusion.json`` beside this file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from fusemix.files import read_json
from fusemix.search.index import Hit
from fusemix.search.items import ItemGroups

LEARNED = Path(__file__).with_name("fusion.json")
# Kinds of query parts: words, a picture, a sound, words recognised with confidence in a sound, and that sound itself.
LIKED, DISLIKED = 0.5, -0.5  # weights of items that were liked or disliked, as in Retriever.refine
PART_KINDS = ("text", "image", "audio", "heard", "voice")


@dataclass(frozen=True)
class FusedHit:
    """One item found by a search.

    Attributes:
        rank: 1 for the best.
        score: Weighted sum of the faces' standardised similarities; higher is better. It orders the items of one query
            and is not a probability.
        found_by: The face that adds most to the score: ``image``, ``audio`` or ``text``.
        faces: Face -> the item's row of that modality with its cosine (the nearest of several captions) and this
            hit's ``rank``.
        shares: Face -> its contribution to the score.
        number: Of the item in :class:`ItemGroups`.
    """

    rank: int
    score: float
    found_by: str
    faces: dict[str, Hit]
    shares: dict[str, float]
    number: int

    @property
    def item(self) -> dict[str, Any]:
        """Metadata of the item: that of its picture, else of its sound, else of its caption."""
        return next(self.faces[face].item for face in ("image", "audio", *self.faces) if face in self.faces)


class Fusion:
    """Ranking of a gallery's items by all their faces.

    Example:
        >>> fusion = Fusion({m: index.items(m) for m in index.counts}, {m: index.embeddings(m) for m in index.counts})
        >>> fusion.search({"text": embedding}, top_k=5)[0].item["caption"]
    """

    def __init__(
        self,
        items: Mapping[str, list[dict[str, Any]]],
        embeddings: Mapping[str, np.ndarray],
        weights: Mapping[str, Mapping[str, float]] | None = None,
    ) -> None:
        """Group the items; the embeddings are kept, not copied.

        Args:
            items: Modality -> metadata of its items.
            embeddings: Modality -> embeddings of its items, shape (N, D), float32, unit length.
            weights: Kind of query part -> face -> weight; those of ``fusion.json`` by default. A face that is not
                named has weight 0. The threshold for fitting sounds is known for the default weights only.

        Raises:
            ValueError: If a kind of query part is unknown, or a weight is negative or not finite.
        """
        self.weights = learned_weights() if weights is None else {kind: dict(w) for kind, w in weights.items()}
        if unknown := sorted(set(self.weights) - set(PART_KINDS)):
            raise ValueError(f"Weights are for the query parts {list(PART_KINDS)}, not {unknown}.")
        if not all(0 <= weight < np.inf for faces in self.weights.values() for weight in faces.values()):
            raise ValueError(f"Weights must be finite and not negative, got {self.weights}.")
        self.sound_bar = learned_sound_bar() if weights is None else np.inf
        self.items = dict(items)
        self.embeddings = dict(embeddings)
        self.groups = ItemGroups(items)

    def shares(
        self, parts: Mapping[str, np.ndarray], counts: Mapping[str, float] | None = None
    ) -> dict[str, np.ndarray]:
        """Compute the contribution of each face to each item's score.

        Args:
            parts: Kind of query part -> embedding, shape (D,), unit length. Beside :data:`PART_KINDS`,
                ``minus_text`` are words with a negative factor by default.
            counts: Kind -> factor of the part, 1 by default (``minus_text``: -0.5).

        Returns:
            Face -> (n_items,) float64; zero where an item lacks the face.
        """
        counts = {"minus_text": -0.5} | dict(counts or {})
        largest = max((abs(counts.get(kind, 1.0)) for kind in parts), default=0.0) or 1.0
        counts = {kind: counts.get(kind, 1.0) / largest for kind in parts}  # only their ratio matters to the order
        faces: dict[str, np.ndarray] = {}
        for face, rows in self.embeddings.items():
            total = np.zeros(len(rows))
            for kind, embedding in parts.items():
                weight = self.weights.get("text" if kind == "minus_text" else kind, {}).get(face, 0.0)
                if weight:
                    total += counts[kind] * weight * standardised(rows @ embedding)
            best = np.full(len(self.groups), -np.inf)  # the nearest of several captions counts
            np.maximum.at(best, self.groups.owners[face], total[self.groups.rows[face]])
            faces[face] = np.where(np.isfinite(best), best, 0.0)
        return faces

    def steered(
        self, shares: Mapping[str, np.ndarray], likes: Collection[int] = (), dislikes: Collection[int] = ()
    ) -> dict[str, np.ndarray]:
        """Move a ranking towards items that were liked and away from those that were not.

        The faces of a liked item are queries of their own, whose mean shares are added with the weight :data:`LIKED`;
        those of disliked items are subtracted. Source: Rocchio 1971, here on standardised similarities.

        Args:
            shares: Of :meth:`shares`.
            likes: Numbers of items.
            dislikes: Likewise.

        Returns:
            As :meth:`shares`.
        """
        total = dict(shares)
        for weight, numbers in ((LIKED, likes), (DISLIKED, dislikes)):
            for number in numbers:
                faces = self.groups.faces[number]
                known = {face: self.embeddings[face][rows[0]] for face, rows in faces.items() if face in self.weights}
                for face, share in self.shares(known).items():
                    total[face] = total[face] + weight * share / len(numbers) / max(1, len(known))
        return total

    def search(
        self,
        parts: Mapping[str, np.ndarray],
        *,
        top_k: int = 10,
        counts: Mapping[str, float] | None = None,
        where: Mapping[str, str] | None = None,
    ) -> list[FusedHit]:
        """Find the best items for a query.

        Args:
            parts: As in :meth:`shares`; at least one.
            top_k: Items returned at most, >= 1.
            counts: As in :meth:`shares`.
            where: As in :meth:`best`.

        Raises:
            ValueError: If there is no part, or ``top_k`` < 1.
        """
        if not parts or top_k < 1:
            raise ValueError(f"Expected at least one part and top_k >= 1, got {sorted(parts)} and {top_k}.")
        return list(islice(self.best(self.shares(parts, counts), parts, where=where), top_k))

    def best(
        self,
        shares: Mapping[str, np.ndarray],
        parts: Mapping[str, np.ndarray],
        *,
        where: Mapping[str, str] | None = None,
        leave_out: Collection[int] = (),
    ) -> Iterator[FusedHit]:
        """Yield every item, the best first.

        Args:
            shares: Of :meth:`shares`.
            parts: The parts that the shares were made from.
            where: Metadata key -> the value that one of an item's faces must have.
            leave_out: Numbers of items to leave out, such as the query itself.
        """
        scores = np.sum(list(shares.values()), axis=0)
        rank, skipped = 0, set(leave_out)
        for number in np.argsort(-scores, kind="stable").tolist():
            if number in skipped or (where and not self._fits(number, where)):
                continue
            rank += 1
            mine = {face: float(shares[face][number]) for face in self.groups.faces[number]}
            faces = {face: self._hit(face, number, parts, rank) for face in mine}
            leading = max(mine, key=lambda face: mine[face])
            yield FusedHit(rank, float(scores[number]), leading, faces, mine, number)

    def fitting_sounds(self, shares: Mapping[str, np.ndarray]) -> set[int]:
        """Return the numbers of the items whose sound fits the words of a query; few or none.

        Args:
            shares: Of :meth:`shares`, for words, typed or recognised; the threshold was not measured for other queries.
        """
        scores = sum(shares[face] for face in ("text", "audio") if face in shares)
        return {number for number in np.flatnonzero(scores >= self.sound_bar).tolist() if self._sounds(number)}

    def _sounds(self, number: int) -> bool:
        return "audio" in self.groups.faces[number]

    def _fits(self, number: int, where: Mapping[str, str]) -> bool:
        entries = (self.items[face][row] for face, rows in self.groups.faces[number].items() for row in rows)
        return any(all(entry.get(key) == value for key, value in where.items()) for entry in entries)

    def _hit(self, face: str, number: int, parts: Mapping[str, np.ndarray], rank: int) -> Hit:
        rows = self.groups.faces[number][face]
        leading = next(iter(parts.values()))  # of several parts, the first
        cosines = self.embeddings[face][rows] @ leading
        best = int(np.argmax(cosines))
        return Hit(face, self.items[face][rows[best]], float(np.clip(cosines[best], -1, 1)), rank)


def standardised(similarities: np.ndarray) -> np.ndarray:
    """Standardise to mean 0 and deviation 1, shape as given; zeros if all values are equal."""
    spread = float(similarities.std())
    if spread < 1e-9:
        return np.zeros(len(similarities))
    values: np.ndarray = (similarities - similarities.mean()) / spread
    return values


def learned_weights(path: Path = LEARNED) -> dict[str, dict[str, float]]:
    """Read the learned weights: kind of query part -> face -> weight."""
    return {kind: dict(faces) for kind, faces in read_json(path)["weights"].items()}


def learned_sound_bar(path: Path = LEARNED) -> float:
    """Read the learned score above which a sound fits words; ``docs/results.md`` gives its error rate."""
    return float(read_json(path)["sound_fits"])
