"""Calibration: the probability that a hit is a right answer, from its similarity and the statistics of its list.

A cosine says little alone: it differs by direction, and the nearest of many items is near whatever is asked. What a hit
is worth also shows in the list around it: how far it stands above the items that follow, and how far from the first.
:mod:`fusemix.evaluation.calibrate` fits a logistic model of these, one per direction, on validation pairs; it lies as
``calibration.json`` beside the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fusemix.files import read_json, write_json

CALIBRATION_NAME = "calibration.json"
FORMAT_VERSION = 1
DEPTH = 50  # nearest items whose similarities are read; a smaller gallery has no probabilities
HEAD = 10  # of these, the candidates; the others are the background
FEATURES = ("constant", "similarity", "above the background", "lead", "behind the first", "log of the gallery's size")


@dataclass(frozen=True)
class Cutoff:
    """A probability of the best hit below which nothing fits.

    Attributes:
        error: Share of queries without an answer in the gallery whose best hit reaches it all the same.
        probability: The cut-off.
        kept: Share of queries with an answer whose best hit reaches it.
    """

    error: float
    probability: float
    kept: float


@dataclass(frozen=True)
class Calibration:
    """The calibration of one direction.

    Attributes:
        weights: Of :data:`FEATURES`.
        cutoffs: For stated errors, rising.
        measured: How it did on queries it was not fitted on (:func:`fusemix.evaluation.calibrate.report`).
    """

    weights: tuple[float, ...]
    cutoffs: tuple[Cutoff, ...]
    measured: dict[str, Any]

    def probabilities(self, similarities: np.ndarray, n_items: int) -> np.ndarray | None:
        """Return the probability that each hit is right, if every second query has an answer in the gallery.

        Args:
            similarities: Of the nearest items, first to last, (K,); at least :data:`DEPTH`.
            n_items: Items searched.

        Returns:
            (K,) in (0, 1); None for fewer than :data:`DEPTH` items, which say nothing about the background.
        """
        if len(similarities) < DEPTH:
            return None
        logits = features(np.asarray(similarities, dtype=np.float64)[None], n_items)[0] @ np.array(self.weights)
        values: np.ndarray = 1 / (1 + np.exp(-np.clip(logits, -30, 30)))
        return values

    def nothing_fits(self, best: float, *, error: float = 0.05) -> bool:
        """Return whether nothing in the gallery fits a query, by the probability of its best hit.

        Args:
            best: Highest probability of its hits.
            error: A stated error rate of :attr:`cutoffs`.

        Raises:
            ValueError: If no cut-off was measured for that error.
        """
        for cutoff in self.cutoffs:
            if abs(cutoff.error - error) < 1e-9:
                return best < cutoff.probability
        raise ValueError(f"Cut-offs are known for the errors {[c.error for c in self.cutoffs]}, not {error:g}.")


def features(similarities: np.ndarray, n_items: int) -> np.ndarray:
    """Compute the features of hits: similarities (Q, K) of the K nearest of n items -> (Q, K, 6), float64."""
    background = similarities[:, HEAD:DEPTH].mean(axis=1, keepdims=True)
    first = np.partition(similarities, -2, axis=1)[:, -2:]  # the second and the first; corrected lists are not sorted
    top, second = first[:, 1:], first[:, :1]
    leads = np.where(similarities == top, similarities - second, 0.0)
    ones = np.ones_like(similarities)
    parts = [ones, similarities, similarities - background, leads, top - similarities, ones * np.log(n_items)]
    return np.stack(parts, axis=2)


def load_calibrations(folder: Path, *, model_identity: str) -> dict[tuple[str, str], Calibration]:
    """Read a checkpoint folder's calibrations: (query, gallery) -> calibration; empty if it has none.

    Raises:
        ValueError: If the file is damaged, or of another model than the weights beside it.
    """
    path = folder / CALIBRATION_NAME
    if not path.is_file():
        return {}
    values = read_json(path)
    try:
        if values["format"] != FORMAT_VERSION or len(values["features"]) != len(FEATURES):
            raise ValueError(f"format {values['format']}")
        made_for = values["model_identity"]
        loaded = {
            (entry["query"], entry["gallery"]): Calibration(
                tuple(map(float, entry["weights"])), tuple(Cutoff(**c) for c in entry["cutoffs"]), entry["measured"]
            )
            for entry in values["directions"]
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no calibration ({error!r}); remove it, or make it again: {_AGAIN}.") from error
    if made_for != model_identity:
        raise ValueError(
            f"{path} was measured with other weights than those beside it; remove it, or make it again: {_AGAIN}."
        )
    return loaded


def save_calibrations(
    folder: Path, calibrations: dict[tuple[str, str], Calibration], *, model_identity: str, notes: Sequence[str] = ()
) -> Path:
    """Write ``calibration.json``, atomically."""
    directions = [
        {
            "query": query,
            "gallery": gallery,
            "weights": list(c.weights),
            "cutoffs": [vars(cutoff) for cutoff in c.cutoffs],
            "measured": c.measured,
        }
        for (query, gallery), c in calibrations.items()
    ]
    values = {"format": FORMAT_VERSION, "model_identity": model_identity, "features": list(FEATURES)}
    write_json(folder / CALIBRATION_NAME, values | {"notes": list(notes), "directions": directions})
    return folder / CALIBRATION_NAME


_AGAIN = "fusemix evaluate --calibrate"
