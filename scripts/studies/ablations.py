"""Ablations of the recipe: one change at a time, compared with the paper's recipe scaled down.

Latents of the last layer; ``--photos`` of the train photos (all by default; the same for all seeds), a tenth of the
pairs a step, at most 4,096, which FuseMix halves. Without mixing a step then compares either as many pairs as with it
("half the pairs", so twice the steps) or as many as are read. The last weights count.
``--questions`` asks some anew and keeps the other rows of ``--out``, if the recipe itself comes out there to the bit.
"""

from __future__ import annotations

import argparse
import copy
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from fusemix.model.adapters import FusionModel
from fusemix.model.config import ModelConfig, TrainConfig
from fusemix.training.mixup import draw_lam, mix
from fusemix.training.trainer import Batch, Drawn
from scripts.studies.common import (
    StudyTrainer,
    console,
    joined,
    latents,
    model_config,
    points,
    subset,
    summary,
    trained,
    write,
)


class Noise(StudyTrainer):
    """No mixing; Gaussian noise on every latent, of ``share`` times the deviation of its dimension."""

    share = 0.5

    def mix(self, drawn: Drawn, rng: np.random.Generator) -> Batch:
        """Take the plain batch, with noise of the step's own generator."""
        batch = super().mix(drawn, rng)
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        noisy = {
            name: x + self.share * x.std(dim=0, keepdim=True) * torch.randn(x.shape, generator=generator)
            for name, x in batch.latents.items()
        }
        return Batch(noisy, batch.groups)


class Unshared(StudyTrainer):
    """A coefficient of its own for each modality: a mixed pair is then no true pair."""

    def mix(self, drawn: Drawn, rng: np.random.Generator) -> Batch:
        """Mix as FuseMix does, but for the coefficients."""
        assert self.config.mixup_alpha is not None
        out = {}
        for name, x in drawn.latents.items():
            lam = draw_lam(self.config.mixup_alpha, len(drawn.halves[0]), rng, per_row=False)
            (out[name],) = mix([x], lam)
        return Batch(out)


class Sigmoid(StudyTrainer):
    """The sigmoid loss in place of InfoNCE. Source: SigLIP, arXiv:2303.15343, its start (scale 10, bias -10)."""

    def build_model(self, model_config: ModelConfig) -> FusionModel:
        """Add a learned bias; the temperature starts at 0.1."""
        model = FusionModel(model_config, temperature=0.1)
        model.bias = nn.Parameter(torch.tensor(-10.0))
        return model

    def loss(self, out: dict[str, Tensor], groups: Tensor | None) -> Tensor:
        """Average over rows the sum of binary losses."""
        a, b = (F.normalize(x, dim=1) for x in out.values())
        logits = a @ b.T / self.model.temperature + self.model.get_parameter("bias")
        signs = 2 * torch.eye(len(a)) - 1
        return -F.logsigmoid(signs * logits).sum() / len(a)


class HardNegatives(StudyTrainer):
    """Negatives weighted by exp(beta x similarity), weights of mean 1. Source: Robinson et al., arXiv:2010.04592."""

    beta = 1.0

    def loss(self, out: dict[str, Tensor], groups: Tensor | None) -> Tensor:
        """InfoNCE with reweighted negatives."""
        a, b = (F.normalize(x, dim=1) for x in out.values())
        similarity = a @ b.T
        own = torch.eye(len(a), dtype=torch.bool)
        with torch.no_grad():
            weight = (self.beta * similarity).masked_fill(own, -torch.inf)
        target = torch.arange(len(a))
        losses = []
        for logits, log_weight in ((similarity, weight), (similarity.T, weight.T)):
            shift = log_weight - log_weight.logsumexp(dim=1, keepdim=True) + np.log(len(a) - 1)
            losses.append(F.cross_entropy(logits / self.model.temperature + shift.masked_fill(own, 0.0), target))
        return torch.stack(losses).mean()


class Gated(StudyTrainer):
    """SAIL's idea of a gated adapter in place of the residual one: a product of two linear maps, then a projection.

    Source: the gated linear unit of SAIL (arXiv:2412.04616) with hidden width 8 x 512; not checked against its code.
    """

    def build_model(self, model_config: ModelConfig) -> FusionModel:
        """Put other adapters into the model."""
        model = super().build_model(model_config)
        for name, dim in model_config.latent_dims.items():
            width = model_config.embed_dim
            model.adapters[name] = _Gate(dim, width, 8 * width, model_config.dropout)
        return model


class _Gate(nn.Module):
    def __init__(self, dim: int, out: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.up, self.gate, self.down = nn.Linear(dim, hidden), nn.Linear(dim, hidden), nn.Linear(hidden, out)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        out: Tensor = self.down(self.dropout(F.silu(self.gate(x)) * self.up(x)))
        return out


class Fixed(StudyTrainer):
    """A temperature that is not learned."""

    def build_model(self, model_config: ModelConfig) -> FusionModel:
        """Stop its gradient."""
        model = super().build_model(model_config)
        model.temperature.requires_grad_(False)
        return model


class Averaged(StudyTrainer):
    """Weights averaged over the last steps (exponentially, over about 30 of them) are what is evaluated."""

    decay = 1 - 1 / 30
    average: FusionModel | None = None

    def update(self) -> None:
        """Move the weights, then their average."""
        super().update()
        if self.average is None:
            self.average = copy.deepcopy(self.model)
        for mean, value in zip(self.average.parameters(), self.model.parameters(), strict=True):
            mean.data.lerp_(value.data, 1 - self.decay)

    def evaluate(self, epoch: int) -> dict[str, float]:
        """Measure the recall of the average."""
        live, self.model = self.model, self.average or self.model
        try:
            return super().evaluate(epoch)
        finally:
            self.model = live


@dataclass(frozen=True)
class Variant:
    """One change. ``question`` groups variants in the table."""

    question: str
    name: str
    config: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    kind: type[StudyTrainer] = StudyTrainer


NO_MIX: dict[str, Any] = {"mixup_alpha": None}
HALF: dict[str, Any] = {"mixup_alpha": None, "batch_size": 0.5}  # of the recipe's batch
BASE = "paper's recipe"
VARIANTS = [
    Variant("", BASE),
    Variant("mixing", "none, half the pairs a step", HALF),
    Variant("mixing", "none, all pairs a step", NO_MIX),
    Variant("mixing", "a coefficient per row", {"mixup_per_row": True}),
    Variant("mixing", "unshared coefficients", kind=Unshared),
    Variant("mixing", "Gaussian noise instead, half the pairs a step", HALF, kind=Noise),
    Variant("loss", "sigmoid", kind=Sigmoid),
    Variant("loss", "several positives", {"multi_positive": True}),
    Variant("loss", "hard negatives, beta 1", kind=HardNegatives),
    Variant("loss", "temperature 0.07, fixed", kind=Fixed),
    Variant("adapter", "none: a linear map", model={"depth": 0}),
    Variant("adapter", "depth 2", model={"depth": 2}),
    Variant("adapter", "gated", kind=Gated),
    Variant("depth", "4", model={"depth": 4}),
    Variant("dropout", "0", model={"dropout": 0.0}),
    Variant("alpha", "0.2", {"mixup_alpha": 0.2}),
    Variant("alpha", "4", {"mixup_alpha": 4.0}),
    Variant("optimiser", "averaged weights", kind=Averaged),
    Variant("optimiser", "learning rate 3e-3", {"learning_rate": 3e-3}),
    Variant("optimiser", "no mixing, half the pairs a step, learning rate 3e-3", {**HALF, "learning_rate": 3e-3}),
    Variant("optimiser", "sigmoid, learning rate 3e-3", {"learning_rate": 3e-3}, kind=Sigmoid),
    Variant("weight decay", "0", {"weight_decay": 0.0}),
    Variant("weight decay", "0.01", {"weight_decay": 0.01}),
    Variant("weight decay", "1", {"weight_decay": 1.0}),
    Variant("batch", "a quarter", {"batch_size": 0.25}),
]


def run(args: argparse.Namespace) -> None:
    """Run every variant with every seed and print the table; an interrupted study leaves out missing rows."""
    stores = {"image": latents(args, "image", "efficientnet-lite0"), "text": latents(args, "text", "minilm-l6")}
    pairs, dev = joined(stores, "train"), joined(stores, "dev")
    if args.photos:
        pairs = subset(pairs, args.photos, seed=0)
    batch = min(4096, len(pairs) // 10) // 4 * 4
    earlier = json.loads(args.out.read_text()) if args.questions and args.out.exists() else {}
    results: dict[str, list[dict[str, Any]]] = {}
    chosen = [v for v in VARIANTS if not (v.question and args.questions) or v.question in args.questions]
    for seed in args.seeds:  # seed by seed: an interrupted study is still balanced
        for variant in chosen:
            name = _label(variant)
            changes = {"epochs": args.epochs, "eval_every": 5, "val_fraction": 0.02, "seed": seed, **variant.config}
            changes["batch_size"] = int(batch * changes.get("batch_size", 1)) // 2 * 2
            config = TrainConfig(**changes)
            folder = args.work / "ablations" / f"{args.epochs}-{len(pairs)}-{name.replace('/', '')}-seed{seed}"
            model = model_config(pairs, **variant.model)
            results.setdefault(name, []).append(trained(variant.kind, pairs, dev, model, config, folder))
            out = report(args, results, {"pairs": len(pairs), "batch_size": batch}, earlier)
            console.print(f"seed {seed}, {name}: {points(out[name]['mean_recall_at_1'])}")
    show(out)


def report(
    args: argparse.Namespace, results: dict[str, list[dict[str, Any]]], data: dict[str, int], earlier: dict[str, Any]
) -> dict[str, Any]:
    """Write the results so far, with rows of an earlier file of the same settings and the same recipe."""
    out = {name: _entry(runs, results[BASE]) for name, runs in results.items()}
    head = {**data, "epochs": args.epochs, "seeds": args.seeds, "metric": "mean R@1 on dev, last epoch"}
    before = earlier.get("variants", {})
    if before:
        once, now = (rows[BASE]["mean_recall_at_1"]["values"] for rows in (before, out))
        if earlier | head != earlier or once[: len(now)] != now:
            before = {}
    rows = {**before, **out}
    order = [_label(variant) for variant in VARIANTS]
    write(args.out, head | {"variants": {name: rows[name] for name in order if name in rows}})
    return out


def _label(variant: Variant) -> str:
    return f"{variant.question}: {variant.name}" if variant.question else variant.name


def show(variants: dict[str, Any]) -> None:
    """Print the table."""
    view = Table("change", "mean R@1", "difference by seed", "seconds")
    for name, entry in variants.items():
        seconds = f"{np.mean(entry['seconds']):.0f}"
        view.add_row(name, points(entry["mean_recall_at_1"]), points(entry["difference"]), seconds)
    console.print(view)


def _entry(runs: list[dict[str, Any]], base: list[dict[str, Any]]) -> dict[str, Any]:
    means = [run["mean"] for run in runs]
    return {
        "mean_recall_at_1": summary(means),
        "difference": summary([a - b["mean"] for a, b in zip(means, base, strict=False)]),
        "seconds": [run["seconds"] for run in runs],
        "curve": [{step["epoch"]: round(step["mean"], 4) for step in run["curve"]} for run in runs],
    }
