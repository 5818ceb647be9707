"""Comparison of encoders on paired latents, and a forecast of retrieval, without training.

One pair of every group is used, so that captions of one picture are not neighbours of one another. How well each
figure predicts the result of training was measured (docs/results/diagnose.json).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from fusemix.evaluation.forecast import FOLDS, forecast, held_out_ranks
from fusemix.number_range import check_varied

NEIGHBOURS = 10
NEAR = 0.999  # cosine above which two items are near duplicates
COMPONENTS = 512  # principal components of wider latents for CCA
MIN_PAIRS = 50
DUPLICATES = 0.02  # share of near-duplicates from which they are worth a word
_CHUNK = 1024

Latents = np.ndarray  # (N, D) float32


@dataclass(frozen=True)
class Geometry:
    """Neighbourhoods and figures of one encoder's latents.

    Attributes:
        neighbours: (N, NEIGHBOURS) the nearest other items by cosine of centred latents, nearest first.
        centred: (N, D) latents minus their mean.
        reduced: (N, at most COMPONENTS) standardised latents, or their principal components if they are wider.
        figures: Name -> figure.
    """

    neighbours: np.ndarray
    centred: Latents
    reduced: Latents
    figures: dict[str, float]


def sample_pairs(groups: np.ndarray, n: int, *, seed: int = 0) -> np.ndarray:
    """Sample at most ``n`` pairs, one of each group: their numbers, (n,) int64, ascending."""
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(groups))
    _, first = np.unique(np.asarray(groups)[shuffled], return_index=True)
    one_each = shuffled[first]
    return np.sort(rng.choice(one_each, min(n, len(one_each)), replace=False))


def geometry(latents: Latents) -> Geometry:
    """Compute the neighbourhoods and figures of one encoder.

    Args:
        latents: Shape (N, D), not normalised.

    Raises:
        ValueError: If there are fewer than MIN_PAIRS, one is not finite, or all are equal.
    """
    if latents.ndim != 2 or len(latents) < MIN_PAIRS:
        raise ValueError(f"Expected latents of at least {MIN_PAIRS} pairs of different groups, got {latents.shape}.")
    if not np.isfinite(latents).all():
        raise ValueError("The latents hold NaN or infinite values; extract them again.")
    check_varied(latents.__getitem__, np.arange(len(latents)), "The latents")
    norms = np.linalg.norm(latents, axis=1)
    centred = (latents - latents.mean(axis=0)).astype(np.float32)
    neighbours, similarity = nearest(centred, NEIGHBOURS)
    exact = len(latents) - len(np.unique(latents, axis=0))
    figures = {
        "dim": float(latents.shape[1]),
        "norm_mean": float(norms.mean()),
        "norm_variation": float(norms.std() / max(norms.mean(), 1e-12)),
        "intrinsic_dimension": intrinsic_dimension(centred),
        "hubness": hubness(neighbours),
        "exact_duplicates": exact / len(latents),
        "near_duplicates": float((similarity[:, 0] > NEAR).mean()),
    }
    return Geometry(neighbours, centred, reduced(centred), figures)


def compare(x: Geometry, y: Geometry, *, seed: int = 0) -> dict[str, float]:
    """Compare two encoders on the same pairs: mutual k-NN, CKA, and the closed form's recall on held-out fifths."""
    return {
        "mutual_knn": mutual_knn(x.neighbours, y.neighbours),
        "cka": cka(x.centred, y.centred),
        **cca_recall(x.reduced, y.reduced, seed=seed),
    }


def diagnose(latents: Mapping[str, Mapping[str, Latents]]) -> dict[str, Any]:
    """Compare every encoder of one modality with every one of the others.

    Args:
        latents: Modality -> encoder -> latents of the same pairs, (N, D), one pair of every group.

    Returns:
        ``encoders`` (figures by modality and encoder), ``combinations`` (best first), ``recommendation``, and
        ``forecasts``: for the best combination of each two modalities the fields of
        :class:`~fusemix.evaluation.forecast.Forecast`, its ``sentence`` and ``verdict``, and ``limits``.

    Raises:
        ValueError: If fewer than two modalities are given or the numbers of pairs differ.
    """
    if len(latents) < 2:
        raise ValueError(f"Expected latents of at least two modalities, got {sorted(latents)}.")
    if len(counts := {len(x) for encoders in latents.values() for x in encoders.values()}) != 1:
        raise ValueError(f"Every encoder must have a latent of the same pairs, got {sorted(counts)} of them.")
    seen = {m: {name: geometry(x) for name, x in encoders.items()} for m, encoders in latents.items()}
    combinations: list[dict[str, Any]] = [
        {"encoders": {a: first, b: second}, **compare(seen[a][first], seen[b][second])}
        for a, b in itertools.combinations(seen, 2)
        for first, second in itertools.product(seen[a], seen[b])
    ]
    combinations.sort(key=lambda c: -c["cca_recall_at_1"])
    return {
        "n_pairs": counts.pop(),
        "encoders": {m: {name: g.figures for name, g in encoders.items()} for m, encoders in seen.items()},
        "combinations": combinations,
        "recommendation": recommend(combinations),
        "forecasts": [_forecast(seen, best) for best in _best(combinations)],
    }


def _best(combinations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the first, best combination of each two modalities."""
    return list({tuple(c["encoders"]): c for c in reversed(combinations)}.values())[::-1]


def _forecast(seen: Mapping[str, Mapping[str, Geometry]], best: dict[str, Any]) -> dict[str, Any]:
    a, b = best["encoders"].items()
    x, y = (seen[modality][name] for modality, name in (a, b))
    made = forecast(x.reduced, y.reduced)
    told = {"sentence": made.sentence(), "verdict": made.verdict(), "limits": limits({a[0]: x, b[0]: y})}
    return {"encoders": best["encoders"], **asdict(made), **told}


def limits(sides: Mapping[str, Geometry], *, seed: int = 0) -> str:
    """Write what limits recall, beside the number of pairs: an encoder, and duplicates.

    The encoder that limits is the one of which half the dimensions cost more recall@1; more of it would help most.

    Args:
        sides: Modality -> its geometry, two of them.
        seed: Of the dimensions that are taken.
    """
    x, y = (side.reduced for side in sides.values())
    rng = np.random.default_rng(seed)
    whole = cca_recall(x, y, seed=seed)
    lost = []
    for given in ((_half(x, rng), y), (x, _half(y, rng))):
        lost.append(whole["cca_recall_at_1"] - cca_recall(*given, seed=seed)["cca_recall_at_1"])
    costs = [f"half the {name} dimensions {100 * points:.1f}" for name, points in zip(sides, lost, strict=True)]
    more, gap = list(sides)[int(np.argmax(lost))], abs(lost[0] - lost[1])
    clear = (
        f"The {more} encoder limits more" if gap > whole["cca_recall_error"] else "Neither encoder limits clearly more"
    )
    told = [f"{clear} (points of recall@1 that are lost: {', '.join(costs)})."]
    for name, side in sides.items():
        if (share := side.figures["near_duplicates"]) > DUPLICATES:
            told.append(f"{share:.0%} of the {name} items are near-duplicates, which no model tells apart.")
    return " ".join(told)


def _half(latents: Latents, rng: np.random.Generator) -> Latents:
    return latents[:, rng.permutation(latents.shape[1])[: max(1, latents.shape[1] // 2)]]


def recommend(combinations: list[dict[str, Any]]) -> str:
    """Write a sentence for each pair of modalities: the combination with the best closed form, and its margin."""
    said = []
    for pair in dict.fromkeys(tuple(c["encoders"]) for c in combinations):
        best, *others = (c for c in combinations if tuple(c["encoders"]) == pair)
        names = " with ".join(best["encoders"].values())
        found = (
            f"Take {names}: without training it finds {best['cca_recall_at_1']:.1%} of held-out pairs first among "
            f"{best['cca_gallery']:.0f}"
        )
        if not others:
            said.append(f"{found}; there was nothing to compare it with.")
            continue
        next_best = others[0]
        other = f"{' with '.join(next_best['encoders'].values())} finds {next_best['cca_recall_at_1']:.1%}"
        margin = best["cca_recall_at_1"] - next_best["cca_recall_at_1"]
        close = margin < best["cca_recall_error"] + next_best["cca_recall_error"]
        said.append(f"{found}; {other}{', too close to call from these pairs' if close else ''}.")
    return " ".join(said)


def nearest(centred: Latents, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the k nearest other items by cosine: their numbers (N, k), nearest first, and similarities (N, k)."""
    unit = torch.nn.functional.normalize(torch.from_numpy(centred), dim=1)
    numbers, similarities = [], []
    for start in range(0, len(unit), _CHUNK):
        similarity = unit[start : start + _CHUNK] @ unit.T
        similarity[torch.arange(len(similarity)), torch.arange(start, start + len(similarity))] = -torch.inf
        value, number = similarity.topk(k, dim=1)
        numbers.append(number)
        similarities.append(value)
    return torch.cat(numbers).numpy(), torch.cat(similarities).numpy()


def mutual_knn(x: np.ndarray, y: np.ndarray) -> float:
    """Compute the share of k nearest neighbours, (N, k) and (N, k), on which both encoders agree.

    Source:
        Huh et al., ICML 2024, arXiv:2405.07987 (the mutual k-NN metric), here of centred latents.
    """
    return float((x[:, :, None] == y[:, None, :]).sum() / x.size)


def cka(x: Latents, y: Latents) -> float:
    """Compute debiased linear centred kernel alignment of paired latents: 1 is equal up to rotation, 0 is chance.

    Source:
        Kornblith et al., ICML 2019, arXiv:1905.00414; unbiased HSIC of Song et al., JMLR 2012.
    """
    return float(_hsic(x, y) / np.sqrt(_hsic(x, x) * _hsic(y, y)))


def _hsic(x: Latents, y: Latents) -> float:
    """Compute the unbiased HSIC of linear kernels with zero diagonals, without a whole N x N kernel in memory."""
    n, a, b = len(x), torch.from_numpy(x), torch.from_numpy(y)
    product, row_sums = 0.0, []
    for start in range(0, n, _CHUNK):
        k, m = a[start : start + _CHUNK] @ a.T, b[start : start + _CHUNK] @ b.T
        for kernel in (k, m):
            kernel[torch.arange(len(kernel)), torch.arange(start, start + len(kernel))] = 0
        product += float((k * m).sum(dtype=torch.float64))
        row_sums.append(torch.stack([k.sum(1, dtype=torch.float64), m.sum(1, dtype=torch.float64)]))
    of_k, of_m = torch.cat(row_sums, dim=1)
    crossed = float(of_k.sum() * of_m.sum()) / ((n - 1) * (n - 2))
    return (product + crossed - 2 * float(of_k @ of_m) / (n - 2)) / (n * (n - 3))


def intrinsic_dimension(latents: Latents) -> float:
    """Estimate the dimension by TwoNN (maximum likelihood), from Euclidean distances to the two nearest other items.

    Items with a duplicate are left out; NaN if all have one.

    Source:
        Facco et al., Scientific Reports 2017, arXiv:1803.06992.
    """
    x = torch.from_numpy(latents)
    distances = []
    for start in range(0, len(x), _CHUNK):
        distance = torch.cdist(x[start : start + _CHUNK], x)
        distance[torch.arange(len(distance)), torch.arange(start, start + len(distance))] = torch.inf
        distances.append(distance.topk(2, dim=1, largest=False).values)
    first, second = torch.cat(distances).double().T
    logs = torch.log(second / first)[first > 1e-3 * second]
    return float((len(logs) - 1) / logs.sum()) if len(logs) > 1 and logs.sum() > 0 else float("nan")


def hubness(neighbours: np.ndarray) -> float:
    """Compute the skewness of the k-occurrences: 0 is even; above 2 a few items are neighbours of very many.

    Source:
        Radovanovic et al., JMLR 2010.
    """
    counts = np.bincount(neighbours.ravel(), minlength=len(neighbours)).astype(np.float64)
    off = counts - counts.mean()
    return float(np.mean(off**3) / max(np.mean(off**2), 1e-300) ** 1.5)


def cca_recall(x: Latents, y: Latents, *, seed: int = 0) -> dict[str, float]:
    """Measure recall@1 of regularised CCA by five-fold cross-validation over the pairs.

    The result is the mean of both directions; ``cca_recall_error`` is about one standard error, ``cca_gallery`` the
    number of pairs in the gallery.
    """
    first = float((held_out_ranks(x, y, seed=seed) == 1).mean())
    return {
        "cca_recall_at_1": first,
        "cca_recall_error": float(np.sqrt(max(first * (1 - first), 1 / len(x)) / len(x))),
        "cca_gallery": float(-(-len(x) // FOLDS)),
    }


def reduced(centred: Latents) -> Latents:
    """Standardise centred latents, (N, D); wider ones become their first COMPONENTS principal components."""
    spread = centred.std(axis=0)
    standard = centred / np.where(spread > 1e-6 * spread.max(initial=0), spread, np.inf)
    if standard.shape[1] <= COMPONENTS:
        return standard.astype(np.float32)
    with torch.random.fork_rng(devices=[]):  # the subspace iteration starts at random
        torch.manual_seed(0)
        _, _, directions = torch.svd_lowrank(torch.from_numpy(standard), q=min(COMPONENTS, len(standard)), niter=2)
    reduced: np.ndarray = standard @ directions.numpy()
    return reduced
