"""Forecast of retrieval before training: the closed form's learning curve on nested subsets, continued to more pairs.

How often the truth lies inside the interval was measured (docs/your-own-model.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fusemix.evaluation.metrics import ranks
from fusemix.model.cca import fit_cca

CCA_DIM, CCA_RIDGE = 128, 1.0
FOLDS = 5
SHARES = (0.125, 0.25, 0.5, 1.0)  # of the training folds, nested
FACTORS = (1, 2, 5, 10)  # times the pairs there are
# The rule of the curve, in probits of recall above chance; chosen on Flickr8k (docs/your-own-model.md).
SLOPE, SLOPE_SD = 0.2, 0.08  # with every doubling of the pairs: expected before anything is measured, and how surely
DECAY = 0.96  # of the slope with every doubling
RULE_SD = {1: (0.05, 0.05), 10: (0.08, 0.09)}  # its error for recall@k: at the pairs there are, for every doubling more
ASKED = 1.3  # queries that a pair is worth: its two directions are not independent
WORTH = 0.2  # gain by more pairs, as a share of the recall, from which collecting them is advised
COVERED = 0.9  # share of forecasts whose interval should hold the truth


@dataclass(frozen=True)
class Forecast:
    """Recall to expect of the closed form.

    Attributes:
        pairs: Number of pairs it was made from.
        gallery: Number of items among which a partner is found.
        measured: An entry per subset: pairs, recall_at_1, recall_at_10 (fractions, on held-out pairs).
        expected: An entry per factor, the first for the pairs at hand: factor, pairs, and recall_at_1 and recall_at_10,
            each (value, low, high).
    """

    pairs: int
    gallery: int
    measured: list[dict[str, Any]]
    expected: list[dict[str, Any]]

    def sentence(self) -> str:
        """Write what to expect now and with more pairs."""
        told = [f"{_percent(entry['recall_at_1'])} with {entry['pairs']:,}" for entry in self.expected]
        return f"Recall@1 to expect of the closed form among {self.gallery:,} items: {', '.join(told)} pairs."

    def verdict(self) -> str:
        """Write stop or go in a sentence."""
        (value, low, _), chance = self.expected[0]["recall_at_1"], 1 / self.gallery
        if low <= 2 * chance:
            return (
                f"Stop: {value:.1%} of held-out partners are found first, too near to chance ({chance:.1%}); check "
                "that row i of both is one pair (fusemix audit), collect more pairs, or try other encoders."
            )
        gain = self.expected[1]["recall_at_1"][0] - value
        collect = ", and collect more" if gain > WORTH * value else ""
        return f"Go{collect}: {self.expected[1]['pairs']:,} pairs would add {100 * gain:.1f} points of recall@1."


def forecast(x: np.ndarray, y: np.ndarray, *, factors: Sequence[float] = FACTORS, seed: int = 0) -> Forecast:
    """Measure the closed form on nested subsets by cross-validation, and continue the curve.

    The probit of recall above chance grows with the logarithm of the pairs, a little less with every doubling; the
    slope is fitted with a prior. The interval holds the sampling of pairs and the measured error of that rule.

    Args:
        x: Standardised latents of one modality, (N, D_x), one pair of every group.
        y: Of the other, (N, D_y).
        factors: Multiples of N to forecast.
        seed: Of folds, subsets and resampling.

    """
    found = np.stack([held_out_ranks(x, y, share=share, seed=seed) for share in SHARES])  # (S, N, 2)
    sizes = np.array(SHARES) * len(x) * (1 - 1 / FOLDS)
    gallery = len(x) // FOLDS
    expected: list[dict[str, Any]] = [{"factor": f, "pairs": int(f * len(x))} for f in factors]
    measured: list[dict[str, Any]] = [{"pairs": int(size)} for size in sizes]
    for k, errors in RULE_SD.items():
        value = (found <= k).mean(axis=(1, 2))  # (S,)
        for entry, share in zip(measured, value, strict=True):
            entry[f"recall_at_{k}"] = float(share)
        value = np.clip(value, k / 2 / gallery, 1 - 0.25 / len(x))
        for entry in expected:
            entry[f"recall_at_{k}"] = _continued(value, sizes, entry["pairs"], errors, k / gallery)
    return Forecast(len(x), gallery, measured, expected)


def held_out_ranks(x: np.ndarray, y: np.ndarray, *, share: float = 1.0, seed: int = 0) -> np.ndarray:
    """Rank every pair's partner among its fold, by regularised CCA fitted on (a share of) the other folds.

    Args:
        x: (N, D_x) standardised latents.
        y: (N, D_y).
        share: Of the other folds, fitted on; smaller shares are subsets of larger ones.
        seed: Of the folds.

    Returns:
        (N, 2) ranks: of y by x and of x by y; 1 is first.
    """
    folds = np.array_split(np.random.default_rng(seed).permutation(len(x)), FOLDS)
    out = np.empty((len(x), 2), dtype=np.int64)
    for number, held in enumerate(folds):
        others = np.concatenate([fold for other, fold in enumerate(folds) if other != number])
        others = np.random.default_rng([seed, number]).permutation(others)[: max(2, int(share * len(others)))]
        model = fit_cca(x[others], y[others], dim=min(CCA_DIM, x.shape[1], y.shape[1]), ridge=CCA_RIDGE)
        a, b = (torch.from_numpy(model.embed(side, z[held])) for side, z in ((0, x), (1, y)))
        right = np.arange(len(held))
        out[held] = np.stack([ranks(a, b, right, right), ranks(b, a, right, right)], axis=1)
    return out


def _continued(
    recall: np.ndarray, sizes: np.ndarray, pairs: int, errors: tuple[float, float], chance: float
) -> tuple[float, float, float]:
    """Continue a curve of recall, (S,), at the numbers of pairs ``sizes`` to another number: value, low, high."""
    from scipy.special import ndtr, ndtri

    def bent(n: Any) -> Any:  # doublings beyond the last size, each counting a little less
        return (1 - DECAY ** np.log2(n / sizes[-1])) / -np.log(DECAY)

    chance = chance if chance < 1 else 0.0  # of the first 10 among 10 nothing is to be learned
    asked = ASKED * sizes[-1] * FOLDS / (FOLDS - 1)
    probit = ndtri(np.maximum((recall - chance) / (1 - chance), 0.5 / asked))
    variance = recall * (1 - recall) / asked / (1 - chance) ** 2 * 2 * np.pi * np.exp(probit**2)
    design = np.stack([np.ones(len(sizes)), bent(sizes)], axis=1)
    precision = design.T / variance @ design + np.diag([0, SLOPE_SD**-2])
    level_and_slope = np.linalg.solve(precision, design.T / variance @ probit + [0, SLOPE / SLOPE_SD**2])
    ahead = np.array([1, bent(pairs)])
    rule = errors[0] ** 2 + (errors[1] * np.log2(pairs / sizes[-1])) ** 2
    half = ndtri(0.5 + COVERED / 2) * np.sqrt(ahead @ np.linalg.solve(precision, ahead) + rule)
    centre = ahead @ level_and_slope
    value, low, high = (float(chance + (1 - chance) * ndtr(z)) for z in (centre, centre - half, centre + half))
    return value, low, high


def _percent(interval: Sequence[float]) -> str:
    value, low, high = interval
    return f"{100 * value:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
