"""How far do few pairs carry? Recall against the number of photos, for trained adapters and for closed forms.

Subsets of Flickr8k's train photos (each with its captions), drawn anew with each seed; latents of the last layer:

- ``CCA``: closed form, ridge 1, 128 directions; ``CCA, unpaired captions``: the same, the text side's covariance taken
  from the captions of all train photos, as if the others had come without pictures;
- ``ridge``: captions' latents regressed onto the pictures', whitened, cosine;
- ``FuseMix``: the paper's recipe scaled down; ``FuseMix + structure``: besides, similarities between the embeddings of
  one modality are pulled towards those between its latents;
- ``two-path``: a closed form beside trained blocks, ``--recipe two-path`` of scripts/train.py;
- ``views``: a closed form beside three trained paths with views of their own, ``--recipe views``, its default.

Every training has 30 passes over its pairs, batches of a quarter of them, at most 4,096. The last weights count.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fusemix.data.pair_set import PairSet
from fusemix.evaluation.metrics import ranks
from fusemix.model.cca import whitener
from fusemix.model.config import VIEWS, TrainConfig
from studies.common import (
    StudyRun,
    console,
    joined,
    kept,
    latents,
    model_config,
    points,
    subset,
    summary,
    trained,
    write,
)

DIRECTIONS = 128  # of CCA
PHOTOS = (250, 500, 1000, 2000, 4000, 6000)
COLOURS = {
    "views": "#1f7a5c",
    "two-path": "#8cc5ae",
    "FuseMix": "#c2572b",
    "FuseMix + structure": "#d9a441",
    "CCA": "#6b5bd2",
    "CCA, unpaired captions": "#a79be8",
    "ridge": "#8a8f98",
}


class Structure(StudyRun):
    """FuseMix, and the embeddings of a modality keep the similarities of its latents.

    Added to the loss, for each modality: the mean squared difference between the cosines of embeddings and those of
    centred latents, times ``share``. After the idea of STRUCTURE (neighbourhoods kept); not its code.
    """

    share = 5.0

    def mixed_batch(self, number: int, rng: np.random.Generator) -> tuple[dict[str, Tensor], Tensor | None]:
        """As ever; the latents are remembered for the loss."""
        batch, groups = super().mixed_batch(number, rng)
        self.seen = batch
        return batch, groups

    def loss(self, out: dict[str, Tensor], groups: Tensor | None) -> Tensor:
        """InfoNCE and the distance of the geometries."""
        value = super().loss(out, groups)
        for name, x in out.items():
            before, after = F.normalize(self.seen[name] - self.seen[name].mean(dim=0), dim=1), F.normalize(x, dim=1)
            value = value + self.share * F.mse_loss(after @ after.T, before @ before.T)
        return value


def run(args: argparse.Namespace) -> None:
    """Every size, method and seed; JSON and the curve."""
    stores = {"image": latents(args, "image", "efficientnet-lite0"), "text": latents(args, "text", "minilm-l6")}
    whole, dev = joined(stores, "train"), joined(stores, "dev")
    found: dict[str, dict[int, list[float]]] = {}
    for seed in args.seeds:
        for photos in (n for n in PHOTOS if n <= (args.photos or n)):
            pairs = subset(whole, photos, seed)
            folder = args.work / "low-data" / f"{args.epochs}-{photos}-seed{seed}"
            for name, value in measured(pairs, whole, dev, args.epochs, seed, folder).items():
                found.setdefault(name, {}).setdefault(photos, []).append(value)
            results = {name: {n: summary(v) for n, v in sizes.items()} for name, sizes in found.items()}
            write(args.out, {"epochs": args.epochs, "metric": "mean R@1 on dev", "methods": results})
            console.print(f"seed {seed}, {photos:,} photos", {m: points(r[photos]) for m, r in results.items()})
    plot(results, args)


def measured(pairs: PairSet, whole: PairSet, dev: PairSet, epochs: int, seed: int, folder: Any) -> dict[str, float]:
    """Method -> mean recall@1 on dev."""
    batch = min(4096, max(64, len(pairs) // 4)) // 2 * 2
    config = TrainConfig(
        epochs=epochs, batch_size=batch, eval_every=10, val_fraction=0.02, seed=seed
    )  # fmt: skip
    views = {"embed_dim": 1024, "closed_form_dim": 256, "views": VIEWS, "expansion": 1.0}
    runs: dict[str, tuple[type[StudyRun], dict[str, Any], TrainConfig]] = {
        "FuseMix": (StudyRun, {}, config),
        "FuseMix + structure": (Structure, {}, config),
        "two-path": (StudyRun, {"closed_form_dim": 256, "expansion": 2.0}, config),
        "views": (StudyRun, views, replace(config, closed_form_ridge=1.0)),
    }
    out = {
        name: trained(kind, pairs, dev, model_config(pairs, **shape), settings, folder / name)["mean"]
        for name, (kind, shape, settings) in runs.items()
    }
    return {**out, **kept(folder / "closed.json", lambda: closed_forms(pairs, whole, dev))}


def closed_forms(pairs: PairSet, whole: PairSet, dev: PairSet) -> dict[str, float]:
    """CCA, with and without the other captions, and ridge regression: mean recall@1 on dev."""
    x, y = (pairs.latents(m, pairs.items[m]).double().numpy() for m in ("image", "text"))
    every = whole.latents("text", np.unique(whole.items["text"])).double().numpy()
    sides = {}
    for name in ("image", "text"):
        distinct, first = np.unique(dev.items[name], return_index=True)
        sides[name] = (dev.latents(name, distinct).double().numpy(), dev.groups[first])
    means, y_mean = x.mean(axis=0), every.mean(axis=0)
    out = {}
    for name, covariance, centre in (
        ("CCA", np.cov(y.T, bias=True), y.mean(axis=0)),
        ("CCA, unpaired captions", np.cov(every.T, bias=True), y_mean),
    ):
        white_x, white_y = whitener(np.cov(x.T, bias=True), 1.0), whitener(covariance, 1.0)
        cross = (x - means).T @ (y - y.mean(axis=0)) / len(x)
        left, correlation, right = np.linalg.svd(white_x @ cross @ white_y, full_matrices=False)
        weight = np.sqrt(correlation[:DIRECTIONS])
        out[name] = _recall(
            sides,
            (sides["image"][0] - means) @ white_x @ left[:, :DIRECTIONS] * weight,
            (sides["text"][0] - centre) @ white_y @ right[:DIRECTIONS].T * weight,
        )
    white = whitener(np.cov(x.T, bias=True), 1.0)
    target, centred = (x - means) @ white, y - y.mean(axis=0)
    gram = centred.T @ centred
    maps = np.linalg.solve(gram + 0.1 * np.trace(gram) / len(gram) * np.eye(len(gram)), centred.T @ target)
    out["ridge"] = _recall(
        sides, (sides["image"][0] - means) @ white, (sides["text"][0] - y.mean(axis=0)) @ maps
    )  # fmt: skip
    return out


def _recall(sides: dict[str, tuple[np.ndarray, np.ndarray]], image: np.ndarray, text: np.ndarray) -> float:
    a, b = (F.normalize(torch.from_numpy(side).float(), dim=1) for side in (image, text))
    groups = sides["image"][1], sides["text"][1]
    forth, back = ranks(b, a, groups[1], groups[0]), ranks(a, b, *groups)
    return float(np.mean([(forth == 1).mean(), (back == 1).mean()]))


def plot(results: dict[str, dict[int, Any]], args: argparse.Namespace) -> None:
    """Recall against photos, a line a method, bars of one standard deviation between seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.2, 4.0), layout="constrained")
    for name, colour in COLOURS.items():
        sizes = sorted(results[name])
        values = [results[name][n] for n in sizes]
        deviations = [100 * (v["sd"] or 0.0) for v in values]
        axes.errorbar(sizes, [100 * v["mean"] for v in values], deviations, color=colour, label=name, marker="o", ms=4)
    axes.set_xscale("log")
    ticks = sorted(next(iter(results.values())))
    axes.set_xticks(ticks, [f"{n:,}" for n in ticks])
    axes.minorticks_off()
    axes.set_xlabel("photos to train on, five captions each")
    axes.set_ylabel("mean R@1 among 1,000 photos of dev, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(args.out.with_suffix(".png"), dpi=150)
