"""Shared parts of the studies: stores of latents, a trainer that keeps the last epoch, means with intervals."""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from torch import Tensor

from fusemix.data.latent_store import LatentStore
from fusemix.data.pair_set import PairSet
from fusemix.data.pairs import PairTable
from fusemix.evaluation.metrics import ranks, student_interval
from fusemix.model.cca import fit_cca
from fusemix.model.config import ModelConfig, TrainConfig
from fusemix.training.trainer import Trainer
from fusemix.training.validation import validation_recall

ROOT = Path(__file__).resolve().parents[2]

console = Console()


def call(script: str, *arguments: object) -> None:
    """Run one of the repository's scripts, stopping here if it fails."""
    subprocess.run([sys.executable, str(ROOT / "scripts" / script), *map(str, arguments)], check=True)


def latents(args: argparse.Namespace, column: str, encoder: str) -> dict[str, Path]:
    """Return split -> store, extracted if it does not exist yet."""
    stores = {split: args.work / f"{encoder}-{split}" for split in ("train", "dev")}
    for split, out in stores.items():
        chosen = ("--column", column, "--encoder", encoder, "--split", split)
        call("extract.py", "--pairs", args.pairs, *chosen, "--out", out)
    return stores


def joined(stores: dict[str, dict[str, Path]], split: str) -> PairSet:
    """Join the pairs of a split, with latents of both modalities."""
    return PairSet.join({modality: LatentStore.open(paths[split]) for modality, paths in stores.items()})


def write_rows(table: PairTable, rows: np.ndarray, columns: Sequence[str], path: Path) -> Path:
    """Write rows of a table to a new table with absolute paths, unless it exists."""
    if not path.exists():
        cells = {c: [table.value(c, r) if table.frame[c].iat[r] else "" for r in rows] for c in columns}
        path.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(cells).assign(split=table.splits()[rows]).to_csv(path, index=False)
    return path


def subset(pairs: PairSet, photos: int, seed: int) -> PairSet:
    """Choose the pairs of so many photos."""
    groups = np.unique(pairs.groups)
    chosen = np.random.default_rng([seed, photos]).choice(groups, min(photos, len(groups)), replace=False)
    rows = np.isin(pairs.groups, chosen)
    items = {name: values[rows] for name, values in pairs.items.items()}
    return PairSet(pairs.stores, items, pairs.groups[rows], pairs.splits[rows])


def model_config(pairs: PairSet, **changes: Any) -> ModelConfig:
    """Make a model configuration: the paper's adapter with one block, half as wide inside, and the given changes."""
    return ModelConfig(**{
        "latent_dims": {name: store.dim for name, store in pairs.stores.items()},
        "encoders": {name: store.encoder for name, store in pairs.stores.items()},
        "expansion": 0.5,
        **changes,
    })  # fmt: skip


class StudyTrainer(Trainer):
    """A trainer that reports recall@1 on ``dev``; no epoch is chosen, the last weights count."""

    def __init__(self, *args: Any, dev: PairSet) -> None:
        """Prepare the trainer with the pairs to report on."""
        self.dev = dev
        super().__init__(*args)

    def save(self) -> None:
        """Save no state: a study keeps finished runs only."""

    def evaluate(self, epoch: int) -> dict[str, float]:
        """Measure recall@1 on dev, by direction."""
        recall = recall_at_1(self.model, self.dev)
        self.history.append({"epoch": epoch, **recall})
        self.best, self.best_weights = self.history[-1], {}
        return recall


def recall_at_1(model: Any, pairs: PairSet) -> dict[str, float]:
    """Compute recall@1 by direction (any right answer of a group, each item once) and their ``mean``."""
    found = validation_recall(model, [pairs], [np.arange(len(pairs))])
    directions = {key.rpartition("/")[2]: value for key, value in found.items()}
    return {**directions, "mean": float(np.mean(list(directions.values())))}


def rank_by_direction(pairs: PairSet, embed: Callable[[str, np.ndarray], Tensor]) -> dict[str, np.ndarray]:
    """Compute, by direction (``image_to_text``), the rank of each query's best right answer; each item counts once.

    Args:
        pairs: Pairs whose items are queries and gallery; any item of the group is right.
        embed: (modality, item numbers) -> embeddings (N, D), unit length.
    """
    sides = {}
    for modality, items in pairs.items.items():
        distinct, first = np.unique(items, return_index=True)
        sides[modality] = embed(modality, distinct), pairs.groups[first]
    found = {}
    for a, b in itertools.permutations(sides, 2):
        found[f"{a}_to_{b}"] = ranks(sides[a][0], sides[b][0], sides[a][1], sides[b][1])
    return found


def cca_ranks(pairs: PairSet, dev: PairSet, *, directions: int, ridge: float) -> dict[str, np.ndarray]:
    """Compute :func:`rank_by_direction` on ``dev`` for regularised CCA fitted on ``pairs`` (of two modalities)."""
    names = list(pairs.stores)
    x, y = (pairs.latents(m, pairs.items[m]).numpy() for m in names)
    cca = fit_cca(x, y, dim=min(directions, x.shape[1], y.shape[1]), ridge=ridge)

    def embed(modality: str, items: np.ndarray) -> Tensor:
        return torch.from_numpy(cca.embed(names.index(modality), dev.latents(modality, items).numpy()))

    return rank_by_direction(dev, embed)


def trained(
    kind: Callable[..., StudyTrainer],
    pairs: PairSet,
    dev: PairSet,
    model: ModelConfig,
    config: TrainConfig,
    folder: Path,
) -> dict[str, Any]:
    """Train unless the result exists; keep only the last recall, its curve and the seconds."""

    def fresh() -> dict[str, Any]:
        began = time.perf_counter()
        history = kind([pairs], model, config, folder, dev=dev).run().history
        return {"seconds": round(time.perf_counter() - began, 1), "curve": history, **history[-1]}

    folder.mkdir(parents=True, exist_ok=True)
    return kept(folder / "result.json", fresh)


def kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Read the JSON file at ``path``; make and write it first if it does not exist."""
    if not path.exists():
        value = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def summary(values: list[float]) -> dict[str, Any]:
    """Compute mean, standard deviation and half width of a 95 % Student's t interval of values, one per seed."""
    return {**student_interval(values), "values": values}


def points(value: dict[str, Any]) -> str:
    """Format a summary in points: ``24.9 ± 1.5`` (95 %)."""
    half = value["half_width_95"]
    return f"{100 * value['mean']:.1f}" + (f" ± {100 * half:.1f}" if half is not None else "")


def write(path: Path, results: Any) -> None:
    """Write results as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n")
