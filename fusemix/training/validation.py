"""Recall on held-out pairs, and the choice of the epoch by it."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from fusemix.data.pair_set import PairSet
from fusemix.evaluation.calibrate import calibrate
from fusemix.evaluation.metrics import retrieval
from fusemix.model.adapters import FusionModel
from fusemix.search.calibration import Calibration

logger = logging.getLogger(__name__)


def validation_recall(model: FusionModel, sets: list[PairSet], pairs: list[np.ndarray]) -> dict[str, float]:
    """Compute recall@1 for every set and direction, e.g. ``image+text/text_to_image``; each item counts once.

    Args:
        model: Any with ``embed``.
        sets: Joined latents.
        pairs: For each set, the numbers of the pairs to evaluate.
    """
    recall: dict[str, float] = {}
    for number, (pair_set, chosen) in enumerate(zip(sets, pairs, strict=True)):
        sides = _sides(model, pair_set, chosen)
        prefix = f"{number}:{pair_set.name}" if [s.name for s in sets].count(pair_set.name) > 1 else pair_set.name
        for a, b in itertools.permutations(sides, 2):
            values = retrieval(sides[a][0], sides[b][0], sides[a][1], sides[b][1], intervals=False)
            recall[f"{prefix}/{a}_to_{b}"] = values["recall_at_1"]
    return recall


def validation_calibrations(
    model: FusionModel, sets: list[PairSet], pairs: list[np.ndarray]
) -> dict[tuple[str, str], Calibration]:
    """Fit a calibration for every direction with enough validation pairs, by the first set that has it.

    Args:
        model: Trained.
        sets: Joined latents.
        pairs: For each set, the numbers of its validation pairs.
    """
    found: dict[tuple[str, str], Calibration] = {}
    for pair_set, chosen in zip(sets, pairs, strict=True):
        sides = _sides(model, pair_set, chosen)
        for a, b in itertools.permutations(sides, 2):
            if (a, b) not in found:
                try:
                    found[a, b] = calibrate(sides[a][0], sides[b][0], sides[a][1], sides[b][1])
                except ValueError as error:
                    logger.info("No probabilities for %s -> %s: %s", a, b, error)
    return found


def _sides(model: FusionModel, pair_set: PairSet, chosen: np.ndarray) -> dict[str, tuple[Tensor, np.ndarray]]:
    """Embed the distinct items of some pairs: modality -> (embeddings, groups)."""
    sides = {}
    for modality, items in pair_set.items.items():
        distinct, first = np.unique(items[chosen], return_index=True)
        embeddings = model.embed(modality, pair_set.latents(modality, distinct))
        sides[modality] = (embeddings, pair_set.groups[chosen][first])
    return sides


def is_not_beaten(scores: Sequence[float], groups: int) -> bool:
    """Return whether no earlier score is clearly above the last one.

    Clearly: by more than one standard error of a proportion among the held-out groups. With few groups the highest
    of several recalls is mostly luck, and later weights are better because the learning rate falls to its minimum.

    Args:
        scores: Mean recall of every evaluation so far.
        groups: Number of held-out groups.
    """
    top = max(scores)
    return scores[-1] >= top - math.sqrt(top * (1 - top) / groups)
