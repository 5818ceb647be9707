"""Does a better frozen image network give a better CLIP? And what are two worth beside deeper latents of one?

EfficientNet-Lite0, 1 and 2 (the last two are optional packages, requirements-dev.txt), every two and all three side by
side, and Lite0 at several depths with its mirror image, which costs as many passes through a network as two networks
do; with minilm-l6 on the captions. ``--photos`` of the train photos (2,000 by default, the same for all seeds), the
paper's recipe scaled down, a tenth of the pairs a step, the last weights; beside it regularised CCA, and what
scripts/diagnose.py measures of the same training pairs. ImageNet top-1 is what the networks' authors report of them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from fusemix.data.latent_store import LatentStore, write_latents
from fusemix.data.pair_set import PairSet
from fusemix.data.pairs import PairTable
from fusemix.evaluation.diagnose import diagnose_pair, sample_pairs
from fusemix.model.config import TrainConfig
from studies.common import (
    StudyRun,
    cca_ranks,
    console,
    joined,
    kept,
    latents,
    model_config,
    points,
    summary,
    trained,
    write,
    write_rows,
)

PHOTOS = 2000
CCA = (128, 1.0)  # directions, ridge
# name -> the encoders whose latents stand side by side
ENCODERS: dict[str, tuple[str, ...]] = {
    "lite0": ("efficientnet-lite0",),
    "lite1": ("efficientnet-lite1",),
    "lite2": ("efficientnet-lite2",),
    "lite0 ++ lite1": ("efficientnet-lite0", "efficientnet-lite1"),
    "lite0 ++ lite2": ("efficientnet-lite0", "efficientnet-lite2"),
    "lite1 ++ lite2": ("efficientnet-lite1", "efficientnet-lite2"),
    "all three": ("efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2"),
    "lite0, several depths": ("efficientnet-lite0-deep",),
}
IMAGENET = {"lite0": 75.1, "lite1": 76.7, "lite2": 77.6}  # tensorflow/tpu, models/official/efficientnet/lite/README.md
BASE = "lite0"


def run(args: argparse.Namespace) -> None:
    """Every encoder with every seed; JSON, a plot and a table."""
    photos = args.photos or PHOTOS
    args.work = args.work / f"encoders-{photos}"
    args.pairs = some_photos(args.pairs, photos, args.work / "pairs.csv")
    table = PairTable.read(args.pairs)
    text = latents(args, "text", "minilm-l6")
    single = {n: latents(args, "image", n) for n in dict.fromkeys(n for names in ENCODERS.values() for n in names)}
    stores = {}
    for name, names in ENCODERS.items():
        image = {s: together([single[n][s] for n in names], table, args.work / f"{name}-{s}") for s in ("train", "dev")}
        stores[name] = {"image": image, "text": text}
    measured(args, stores)


def measured(args: argparse.Namespace, stores: dict[str, dict[str, dict[str, Path]]]) -> None:
    """All but the extraction: train, diagnose, report."""
    found: dict[str, list[dict[str, Any]]] = {}
    sets = {name: (joined(s, "train"), joined(s, "dev")) for name, s in stores.items()}
    known = {n: kept(args.work / f"diagnose-{n}.json", lambda p=p: figures(*p)) for n, p in sets.items()}
    for seed in args.seeds:
        for name, (pairs, dev) in sets.items():
            batch = min(4096, len(pairs) // 10) // 4 * 4
            config = TrainConfig(epochs=args.epochs, batch_size=batch, eval_every=5, val_fraction=0.02, seed=seed)
            folder = args.work / f"{args.epochs}-{name}-seed{seed}"
            result = trained(StudyRun, pairs, dev, model_config(pairs), config, folder)
            found.setdefault(name, []).append(result)
            console.print(f"seed {seed}, {name}: {100 * result['mean']:.1f}")
            out = {"pairs": len(pairs), "batch_size": batch, **report(args, found, known)}
            write(args.out, out)
    show(out["encoders"])
    plot(out["encoders"], args.out.with_suffix(".png"))


def some_photos(source: Path, photos: int, path: Path) -> Path:
    """A table of so many train photos, drawn once, and of all dev photos, with their captions."""
    table = PairTable.read(source)
    groups, splits = np.asarray(table.groups), np.asarray(table.splits())
    train = np.unique(groups[splits == "train"])
    chosen = np.random.default_rng([0, photos]).choice(train, min(photos, len(train)), replace=False)
    rows = np.flatnonzero(np.isin(groups, chosen) | (splits == "dev"))
    return write_rows(table, rows, ("image", "text"), path)


def together(folders: list[Path], table: PairTable, out: Path) -> Path:
    """One store with the latents of several side by side, as the encoder ``A ++ B`` would make it."""
    if len(folders) == 1:
        return folders[0]
    stores = [LatentStore.open(folder) for folder in folders]
    if not all(s.rows.equals(stores[0].rows) for s in stores):
        raise ValueError(f"{[str(f) for f in folders]} hold latents of different items; extract them from one table.")
    if not (out / "rows.parquet").exists():
        beside = np.concatenate([store.all() for store in stores], axis=1)
        names, revisions = ([s.encoder[key] for s in stores] for key in ("name", "revision"))
        made = {"modality": stores[0].modality, "name": " ++ ".join(names), "revision": "+".join(revisions)}
        write_latents(out, beside, **made, index=lambda _: stores[0].rows, table=table)
    return out


def figures(pairs: PairSet, dev: PairSet) -> dict[str, Any]:
    """CCA's mean recall@1 on dev, and what scripts/diagnose.py measures on the training pairs."""
    rank = cca_ranks(pairs, dev, directions=CCA[0], ridge=CCA[1])
    chosen = sample_pairs(pairs.groups, 5000)
    diagnosed = diagnose_pair(*(pairs.latents(m, items[chosen]).numpy() for m, items in pairs.items.items()))
    return {"cca_on_dev": float(np.mean([(r == 1).mean() for r in rank.values()])), "diagnose": diagnosed}


def report(args: argparse.Namespace, found: dict[str, list[dict[str, Any]]], known: dict[str, Any]) -> dict[str, Any]:
    """Encoder -> recall, its difference from the smallest network seed by seed, and the figures."""
    out = {}
    for name, runs in found.items():
        values = {d: summary([run[d] for run in runs]) for d in runs[0] if d == "mean" or "_to_" in d}
        more = summary([a["mean"] - b["mean"] for a, b in zip(runs, found[BASE], strict=False)])
        seconds = [run["seconds"] for run in runs]
        out[name] = {"encoders": ENCODERS[name], "imagenet_top1": IMAGENET.get(name), "recall_at_1": values}
        out[name] |= {"difference": more, "seconds": seconds, **known[name]}
    return {"epochs": args.epochs, "seeds": args.seeds, "metric": "R@1 on dev, last epoch", "encoders": out}


def show(encoders: dict[str, Any]) -> None:
    """Print the table."""
    view = Table("image encoder", "mean R@1", "difference", "CCA", "mutual k-NN", "CKA", "CCA, held-out fifths")
    for name, entry in encoders.items():
        d = entry["diagnose"]
        view.add_row(
            name, points(entry["recall_at_1"]["mean"]), points(entry["difference"]), f"{100 * entry['cca_on_dev']:.1f}",
            f"{d['mutual_knn']:.3f}", f"{d['cka']:.3f}", f"{100 * d['cca_recall_at_1']:.1f}",
        )  # fmt: skip
    console.print(view)


def plot(encoders: dict[str, Any], path: Path) -> None:
    """Recall of training with its interval, and of CCA, an encoder a row."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.2, 3.4), layout="constrained")
    y = range(len(encoders), 0, -1)
    means = [entry["recall_at_1"]["mean"] for entry in encoders.values()]
    half = [100 * (v["half_width_95"] or 0.0) for v in means]
    trained_to = [100 * v["mean"] for v in means]
    axes.errorbar(trained_to, y, xerr=half, fmt="o", ms=5, color="#1f7a5c", label="paper's recipe, 95 %")
    axes.plot([100 * e["cca_on_dev"] for e in encoders.values()], y, "|", ms=14, color="#6b5bd2", label="CCA")
    axes.set_yticks(y, list(encoders))
    axes.set_xlabel("mean R@1 among 1,000 photos of dev, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
