"""Search of paired latents for bad pairs: sides that disagree, near-duplicates across splits, hubs, empty latents.

Whether the two sides of a row agree is judged by a closed form fitted without that row's group. Its measured precision
is in docs/your-own-model.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from fusemix.evaluation.diagnose import MIN_PAIRS, NEAR, reduced
from fusemix.evaluation.forecast import CCA_DIM, CCA_RIDGE, FOLDS
from fusemix.model.cca import fit_cca

BLOCK = 1024  # rows compared with one another at a time
LOCAL = 10  # nearest others by which a similarity is scaled, and within which a hub occurs
HUB = 6.0  # times as often among the nearest as the average item: one that fits everything
SUSPECT = 1.0  # scores below are listed as disagreeing: 84 % of random pairs have one
MISFIT = 0.4  # mean agreement of a group below which all its rows are suspect, however well they agree on one side
WORST = (0.0, 0.01, 0.02, 0.05)  # shares of the rows that are left out to see what they cost
DISAGREE, LEAK, HUBS, EMPTY = "sides disagree", "in two splits", "fits everything", "empty or constant"


@dataclass(frozen=True)
class Audit:
    """Hold what was found.

    Attributes:
        score: (N,) agreement of a row's sides; 0 is the mean of random pairs, 1 their deviation; higher is better.
        reasons: Row -> what is wrong with it, in words that a page can show.
        order: (N,) rows, the worst first.
        random: Estimated number of rows whose sides do not belong together.
        recall: Share of the worst rows left out of the fit -> recall@1 of the rows that are in no such share.
    """

    score: np.ndarray
    reasons: dict[int, list[str]]
    order: np.ndarray
    random: int
    recall: dict[float, float]

    def sentence(self) -> str:
        """Write the result in a sentence or two."""
        counts = {
            kind: sum(any(reason.startswith(kind) for reason in found) for found in self.reasons.values())
            for kind in (DISAGREE, LEAK, HUBS, EMPTY)
        }
        listed = ", ".join(f"{count:,} {kind}" for kind, count in counts.items() if count)
        gains = ", ".join(f"{value:.1%} without the worst {share:.0%}" for share, value in self.recall.items() if share)
        return (
            f"{len(self.score):,} rows: {listed or 'nothing found'}; about {self.random:,} look like random pairs. "
            f"Recall@1 of the others: {self.recall[0.0]:.1%} with all rows, {gains}."
        )


def audit(
    x: np.ndarray,
    y: np.ndarray,
    groups: np.ndarray,
    splits: np.ndarray,
    *,
    names: tuple[str, str] = ("image", "text"),
    seed: int = 0,
) -> Audit:
    """Judge every row.

    Args:
        x: Latents of one modality, (N, D_x), a row for each pair; several rows may repeat an item.
        y: Of the other, (N, D_y).
        groups: (N,) integers; rows of one group are right answers for one another.
        splits: (N,) split names, possibly empty.
        names: Of the modalities, for the reasons.
        seed: Of the folds.

    Raises:
        ValueError: If there are fewer than MIN_PAIRS groups, or a row has no finite latent.
    """
    distinct, groups = np.unique(groups, return_inverse=True)
    if len(x) != len(y) or len(distinct) < MIN_PAIRS:
        raise ValueError(
            f"An audit needs at least {MIN_PAIRS} groups of pairs, because every row is judged by the others; got "
            f"{len(distinct)} groups, {len(x)} and {len(y)} latents."
        )
    sides = dict(zip(names, (x, y), strict=True))
    reasons: dict[int, list[str]] = {}
    usable = np.ones(len(x), dtype=bool)
    for name, latents in sides.items():
        for empty in np.flatnonzero(_is_empty(latents)).tolist():
            usable[empty] = False
            reasons.setdefault(empty, []).append(f"{EMPTY}: the {name} latent holds no information")
    number = {name: _items(latents) for name, latents in sides.items()}
    given = [reduced(latents[usable] - latents[usable].mean(axis=0)) for latents in sides.values()]
    items = [number[name][usable] for name in names]
    judged = _Judged(given[0], given[1], items[0], items[1], groups[usable], seed)
    score = np.full(len(x), -np.inf)
    score[usable], counted = judged.agreement()
    rows = np.flatnonzero(usable)
    order = np.argsort(score, kind="stable")
    for row in np.flatnonzero(usable & (score < SUSPECT)).tolist():
        reasons.setdefault(row, []).append(f"{DISAGREE}: agreement {score[row]:.1f}, a random pair has 0")
    for name, times in zip(names, counted, strict=True):
        for row in np.flatnonzero(times > HUB).tolist():
            text = f"{HUBS}: its {name} is among the nearest {times[row]:.0f} times as often as others"
            reasons.setdefault(int(rows[row]), []).append(text)
    for name, latents in sides.items():
        for row, other in _leaks(latents[usable], groups[usable], splits[usable]):
            text = f"{LEAK}: its {name} is nearly that of row {rows[other]} in split {splits[rows[other]]}"
            reasons.setdefault(int(rows[row]), []).append(text)
    worst = np.argsort(score[usable], kind="stable")
    recall = {}
    kept = np.ones(len(worst), dtype=bool)
    kept[worst[: int(WORST[-1] * len(worst))]] = False
    for share in WORST:
        learned = np.ones(len(worst), dtype=bool)
        learned[worst[: int(share * len(worst))]] = False
        recall[share] = float((judged.ranks(learned)[kept] == 1).mean())
    below = int((score[usable] < 0).sum())
    return Audit(score, reasons, order, 2 * below + int((~usable).sum()), recall)


@dataclass(frozen=True)
class _Judged:
    """Rows to judge: standardised latents, their item numbers and groups."""

    x: np.ndarray
    y: np.ndarray
    x_item: np.ndarray
    y_item: np.ndarray
    groups: np.ndarray
    seed: int

    def blocks(self, learned: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Embed all rows by closed forms fitted on (``learned``) rows of the other folds: rows, both sides' (n, D)."""
        rng = np.random.default_rng(self.seed)
        place = rng.permutation(self.groups.max() + 1)[self.groups]  # keeps a group together
        dim = min(CCA_DIM, self.x.shape[1], self.y.shape[1])
        for number in range(FOLDS):
            fit = (place % FOLDS != number) & (True if learned is None else learned)
            model = fit_cca(self.x[fit], self.y[fit], dim=dim, ridge=CCA_RIDGE)
            held = np.flatnonzero(place % FOLDS == number)
            held = held[np.argsort(place[held], kind="stable")]
            for rows in np.array_split(held, -(-len(held) // BLOCK)):
                yield rows, model.embed(0, self.x[rows]), model.embed(1, self.y[rows])

    def ranks(self, learned: np.ndarray | None = None) -> np.ndarray:
        """Rank each row's partner among the rows of its block in other groups, in both directions: (N, 2)."""
        ranked = np.empty((len(self.x), 2), dtype=np.int64)
        for rows, a, b in self.blocks(learned):
            similarity = a @ b.T
            right, other = similarity.diagonal()[:, None], self.groups[rows][:, None] != self.groups[rows]
            ranked[rows] = 1 + np.stack(
                [((s >= right) & other).sum(axis=1) for s in (similarity, similarity.T)], axis=1
            )
        return ranked

    def agreement(self) -> tuple[np.ndarray, list[np.ndarray]]:
        """Judge every row: its agreement, (N,), and for each side how often its item is near, over the average."""
        alone, together = np.zeros(len(self.x)), np.zeros(len(self.x))
        near = [np.zeros(len(self.x)), np.zeros(len(self.x))]
        for rows, a, b in self.blocks():
            group, items = self.groups[rows], (self.x_item[rows], self.y_item[rows])
            similarity = a @ b.T
            alone[rows] = _agreement(similarity, group[:, None] == group)
            evidence = [alone[rows]] + [_of_the_group(e, i, group) for e, i in zip((a, b), items, strict=True)]
            together[rows] = np.nansum(evidence, axis=0) / np.sqrt(np.isfinite(evidence).sum(axis=0))
            for side, s in ((1, similarity), (0, similarity.T)):
                near[side][rows] = _occurrences(s, items[side])
        mean = (np.bincount(self.groups, weights=alone) / np.maximum(np.bincount(self.groups), 1))[self.groups]
        return np.where(mean < MISFIT, np.minimum(together, mean), together), near


def _agreement(similarity: np.ndarray, same: np.ndarray) -> np.ndarray:
    """Standardise each row's similarity by that of random pairs, after scaling it locally: (n,).

    Source:
        Cross-domain similarity local scaling, Conneau et al., arXiv:1710.04087.
    """
    others = np.where(same, -2, similarity)
    k = min(LOCAL, len(others) - 1)
    near = [np.partition(s, -k, axis=1)[:, -k:].mean(axis=1) for s in (others, others.T)]
    scaled = 2 * similarity - near[0][:, None] - near[1]
    mean, deviation = _moments(scaled, scaled[same])
    return np.asarray((scaled.diagonal() - mean) / deviation)


def _moments(values: np.ndarray, without: np.ndarray) -> tuple[float, float]:
    """Return mean and deviation of a matrix without some of its entries."""
    n = values.size - without.size
    mean = (values.sum(dtype=np.float64) - without.sum(dtype=np.float64)) / n
    square = (np.square(values).sum(dtype=np.float64) - np.square(without).sum(dtype=np.float64)) / n
    return float(mean), float(np.sqrt(max(square - mean**2, 1e-12)))


def _of_the_group(embeddings: np.ndarray, item: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Standardise each row's similarity to the other items of its group on the same side: (n,), NaN if it has none."""
    _, group = np.unique(group, return_inverse=True)
    total = np.zeros((group.max() + 1, embeddings.shape[1]), dtype=np.float64)
    np.add.at(total, group, embeddings)
    _, pair = np.unique(np.stack([group, item]), axis=1, return_inverse=True)
    others = total[group] - np.bincount(pair)[pair][:, None] * embeddings
    length = np.linalg.norm(others, axis=1)
    several = np.bincount(group)[group] > np.bincount(pair)[pair]
    if not several.any():
        return np.full(len(embeddings), np.nan)
    centres = total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)
    similarity = embeddings @ centres.T
    mean, deviation = _moments(similarity, similarity[np.arange(len(group)), group])
    own = (others * embeddings).sum(axis=1) / np.maximum(length, 1e-12)
    return np.where(several, (own - mean) / deviation, np.nan)


def _occurrences(similarity: np.ndarray, item: np.ndarray) -> np.ndarray:
    """Count how often each column is among the LOCAL nearest of the rows, over the average: (n,); copies count once."""
    _, first, number = np.unique(item, return_index=True, return_inverse=True)
    k = min(LOCAL, len(first))
    nearest = np.argpartition(-similarity[:, first], k - 1, axis=1)[:, :k]
    times = np.bincount(nearest.ravel(), minlength=len(first))
    return np.asarray((times / times.mean())[number])


def _is_empty(latents: np.ndarray) -> np.ndarray:
    """Return which latents are not finite, or hold one value only: (N,)."""
    with np.errstate(invalid="ignore"):
        spread = latents.max(axis=1) - latents.min(axis=1)
        empty: np.ndarray = ~np.isfinite(latents).all(axis=1) | ~(spread > 0)
    return empty


def _items(latents: np.ndarray) -> np.ndarray:
    """Number equal latents alike: (N,)."""
    seen: dict[bytes, int] = {}
    return np.array([seen.setdefault(row.tobytes(), len(seen)) for row in np.ascontiguousarray(latents)])


def _leaks(latents: np.ndarray, groups: np.ndarray, splits: np.ndarray) -> list[tuple[int, int]]:
    """Find rows of other groups and splits with nearly the same latent: (row, its nearest), rows of val and test."""
    held = np.isin(splits, ("val", "valid", "validation", "dev", "test", "testing"))
    if not held.any() or held.all():
        return []
    unit = torch.nn.functional.normalize(torch.from_numpy((latents - latents.mean(axis=0)).astype(np.float32)), dim=1)
    learned, asked = np.flatnonzero(~held), np.flatnonzero(held)
    found = []
    for rows in np.array_split(asked, -(-len(asked) // 1024)):
        value, place = (unit[rows] @ unit[learned].T).max(dim=1)
        found += [(int(r), int(learned[p])) for r, v, p in zip(rows, value, place, strict=True) if v > NEAR]
    return [(row, other) for row, other in found if groups[row] != groups[other]]
