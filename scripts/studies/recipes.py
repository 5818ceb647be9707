"""Comparison of recipes; two photos in a hundred of split ``train`` choose the epoch.

- ``paper``: the paper's recipe scaled to a small machine, on the plain latents;
- ``two-path``: a closed form beside the trained blocks (fusemix/model/closed_form.py), on the plain latents;
- ``two-path-deep``: the same on the latents of several depths of the same frozen image encoder;
- ``paper-deep``: the paper's recipe on those latents, its blocks without a wider middle (3,808 is wide enough);
- ``views``: a closed form beside three trained paths with views of their own (the default of scripts/train.py), in one
  training, on the plain latents; ``views-deep``: the same on the latents of several depths;
- ``views-three``: the same on the last layers of EfficientNet-Lite0, 1 and 2 side by side (the last two are optional
  packages, requirements-dev.txt);
- ``components``: two paths, whose trained blocks read 256 principal components as they are, not whitened;
- ``paper-narrow``: the paper's recipe, its middle an eighth as wide; ``both-narrow``: it beside ``two-path``;
- ``both`` and ``both-deep``: those two of one seed side by side (fusemix/model/ensemble.py). That is two trainings, so
  ``--epochs 15`` gives them as many passes over the pairs as one recipe has with 30.

Beside each stands its closed form alone (``cca``), and the mean recall@1 of the recipe with that closed form at its
side, which takes no pass over the pairs (``beside_cca``, the second setting of CCA).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from fusemix.data.latent_store import LatentStore
from fusemix.data.pair_set import PairSet
from fusemix.data.pairs import PairTable
from fusemix.evaluation.evaluate import evaluate, stored_items
from fusemix.evaluation.metrics import ranks
from fusemix.model.adapters import FusionModel
from fusemix.model.cca import fit_cca
from fusemix.model.ensemble import join_models
from scripts.studies.common import call, console, latents, write

DIRECTIONS = (("text", "image"), ("image", "text"))
TEXT = "minilm-l6"
SAME = ("--eval-every", 5, "--save-every", 5, "--val-fraction", 0.02)
# name -> (image encoder, flags of scripts/train.py)
RECIPES: dict[str, tuple[str, tuple[object, ...]]] = {
    "paper": ("efficientnet-lite0", ("--recipe", "paper", "--expansion", 4, *SAME)),
    "two-path": ("efficientnet-lite0", ("--recipe", "two-path", "--expansion", 2, *SAME)),
    "components": (
        "efficientnet-lite0",
        ("--recipe", "two-path", "--no-whiten", "--whiten-dim", 256, "--expansion", 4, *SAME),
    ),
    "views": ("efficientnet-lite0", ("--recipe", "views", "--expansion", 1, "--closed-form-ridge", 1, *SAME)),
    "views-deep": (
        "efficientnet-lite0-deep",
        ("--recipe", "views", "--expansion", 0.25, "--closed-form-ridge", 1, *SAME),
    ),
    "views-three": (
        " ++ ".join(f"efficientnet-lite{number}" for number in range(3)),
        ("--recipe", "views", "--expansion", 0.25, "--closed-form-ridge", 1, *SAME),
    ),
    "paper-narrow": ("efficientnet-lite0", ("--recipe", "paper", "--expansion", 0.5, *SAME)),
    "two-path-deep": ("efficientnet-lite0-deep", ("--recipe", "two-path", "--expansion", 2, *SAME)),
    "paper-deep": ("efficientnet-lite0-deep", ("--recipe", "paper", "--expansion", 1, *SAME)),
}
ENSEMBLES = {
    "both": ("two-path", "paper"),
    "both-narrow": ("two-path", "paper-narrow"),
    "both-deep": ("two-path-deep", "paper-deep"),
}
CCA = ((0.3, 128), (1.0, 256))  # ridge, directions


def train(out: Path, stores: dict[str, dict[str, Path]], flags: tuple[object, ...], seed: int) -> float:
    """Train one checkpoint unless it exists; return the trainer's seconds."""
    took = out / "seconds.json"
    if not took.exists():
        began = time.perf_counter()
        pieces = [f"{modality}={splits['train']}" for modality, splits in stores.items()]
        call("train.py", "--latents", *pieces, "--out", out, "--seed", seed, *flags)
        took.write_text(json.dumps(round(time.perf_counter() - began, 1)))
    return float(json.loads(took.read_text()))


def measure(table: PairTable, model: FusionModel, dev: dict[str, LatentStore]) -> dict[str, Any]:
    """Measure recall in both directions on split dev, and the mean recall@1."""
    values = {
        f"{query}_to_{gallery}": evaluate(table, stored_items(model, dev), query=query, gallery=gallery, split="dev")
        for query, gallery in DIRECTIONS
    }
    return {**values, "mean_recall_at_1": float(np.mean([v["recall_at_1"] for v in values.values()]))}


Sides = dict[
    str, tuple[Any, np.ndarray]
]  # modality -> embeddings or latents (N, D) and groups (N,) of dev's distinct items


def dev_sides(stores: dict[str, dict[str, Path]]) -> Sides:
    """Load the latents of dev, each item once."""
    dev = PairSet.join({m: LatentStore.open(s["dev"]) for m, s in stores.items()})
    found = {}
    for modality in stores:
        distinct, first = np.unique(dev.items[modality], return_index=True)
        found[modality] = (dev.latents(modality, distinct), dev.groups[first])
    return found


def closed_forms(stores: dict[str, dict[str, Path]], dev: Sides) -> dict[str, Sides]:
    """Embed dev with regularised CCA, in each setting of :data:`CCA`: unit length."""
    train = PairSet.join({m: LatentStore.open(s["train"]) for m, s in stores.items()})
    sides = [train.latents(m, train.items[m]).numpy() for m in stores]
    found = {}
    for ridge, dim in CCA:
        cca = fit_cca(*sides, dim=dim, ridge=ridge)
        found[f"ridge {ridge}, {dim} directions"] = {
            m: (_unit(cca.embed(side, dev[m][0].numpy())), dev[m][1]) for side, m in enumerate(stores)
        }
    return found


def _unit(values: np.ndarray) -> Tensor:
    return F.normalize(torch.from_numpy(values).float(), dim=1)


def mean_recall(sides: Sides) -> float:
    """Compute the mean recall@1 of both directions."""
    return float(
        np.mean([(ranks(sides[a][0], sides[b][0], sides[a][1], sides[b][1]) == 1).mean() for a, b in DIRECTIONS])
    )


def beside(model: FusionModel, dev: Sides, closed: Sides) -> float:
    """Compute the mean recall@1 of a model joined with a closed form, with equal weight for each path."""
    return mean_recall({
        m: (torch.cat([model.embed(m, latents), closed[m][0]], dim=1), groups) for m, (latents, groups) in dev.items()
    })  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Extract, train and measure every recipe and seed; write JSON, a plot and a table."""
    table = PairTable.read(args.pairs)
    text = latents(args, "text", TEXT)
    results: dict[str, Any] = {}
    for name in args.recipes or RECIPES:
        if name not in RECIPES:
            raise SystemExit(f"error: there is no recipe {name!r}; choose among {', '.join(RECIPES)}.")
        encoder, flags = RECIPES[name][0], ("--epochs", args.epochs, *RECIPES[name][1])
        stores = {"image": latents(args, "image", encoder), "text": text}
        dev = {m: LatentStore.open(s["dev"]) for m, s in stores.items()}
        sides = dev_sides(stores)
        closed = closed_forms(stores, sides)
        runs = []
        for seed in args.seeds:
            out = args.work / f"{name}-seed{seed}"
            seconds = train(out, stores, flags, seed)
            model = FusionModel.from_pretrained(out)
            with_cca = beside(model, sides, list(closed.values())[-1])
            runs.append({"seed": seed, "seconds": seconds, **measure(table, model, dev), "beside_cca": with_cca})
        cca = {setting: mean_recall(found) for setting, found in closed.items()}
        results[name] = {"encoder": encoder, "flags": list(map(str, flags)), "cca": cca, "runs": runs}
        for both, members in ENSEMBLES.items():
            if name in members and set(members) <= set(results):
                results[both] = side_by_side(args, table, {m: results[m] for m in members}, dev)
        write(args.out, results)
    show(results)
    plot(results, args.out.with_suffix(".png"))


def side_by_side(
    args: argparse.Namespace, table: PairTable, members: dict[str, dict[str, Any]], dev: dict[str, LatentStore]
) -> dict[str, Any]:
    """Measure the ensemble of the members' models for every seed; its seconds are the sum of theirs."""
    runs = []
    for number, seed in enumerate(args.seeds):
        joined = join_models([FusionModel.from_pretrained(args.work / f"{name}-seed{seed}") for name in members])
        seconds = round(sum(result["runs"][number]["seconds"] for result in members.values()), 1)
        runs.append({"seed": seed, "seconds": seconds, **measure(table, joined, dev)})
    first = next(iter(members.values()))
    return {"encoder": first["encoder"], "members": list(members), "cca": first["cca"], "runs": runs}


def spread(values: list[float]) -> str:
    """Mean and, for several seeds, the standard deviation between them, in points."""
    deviation = f" ± {100 * np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{100 * np.mean(values):.1f}{deviation}"


def show(results: dict[str, Any]) -> None:
    """Print the table."""
    view = Table(
        "recipe", "text → image R@1", "image → text R@1", "mean R@1", "CCA alone, best", "CCA beside", "seconds"
    )
    for name, result in results.items():
        runs = result["runs"]
        view.add_row(
            name,
            *(spread([run[key]["recall_at_1"] for run in runs]) for key in ("text_to_image", "image_to_text")),
            spread([run["mean_recall_at_1"] for run in runs]),
            f"{100 * max(result['cca'].values()):.1f}",
            spread([run["beside_cca"] for run in runs]) if "beside_cca" in runs[0] else "",
            f"{np.mean([run['seconds'] for run in runs]):.0f}",
        )
    console.print(view)


def plot(results: dict[str, Any], path: Path) -> None:
    """Every seed a dot, the closed form a line: mean recall@1 on dev."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.2, 3.2), layout="constrained")
    for x, (_, result) in enumerate(results.items()):
        values = [100 * run["mean_recall_at_1"] for run in result["runs"]]
        axes.scatter(
            [x] * len(values), values, color="#1f7a5c", zorder=3, label="trained, one dot a seed" if not x else ""
        )
        best = 100 * max(result["cca"].values())
        axes.hlines(best, x - 0.25, x + 0.25, color="#6b5bd2", label="closed-form CCA alone" if not x else "")
    axes.set_xticks(range(len(results)), list(results))
    axes.set_ylabel("mean R@1 on dev, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left")
    figure.savefig(path, dpi=150)
