"""Measure what docs/your-own-model.md says of forecast, audit, clicks and labels.

    python scripts/checks/own_model.py forecast --flickr8k DIR --gallery DIR
    python scripts/checks/own_model.py audit --flickr8k DIR
    python scripts/checks/own_model.py clicks
    python scripts/checks/own_model.py labels

DIR holds the latent stores image, text and, of the gallery, audio, as ``fusemix extract`` writes them. Each writes
``docs/results/own-model-<name>.json``. Run with OMP_NUM_THREADS=1 beside other work.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[2]
FORECASTS: dict[str, tuple[tuple[str, str], tuple[int, ...], int]] = {  # sides, pairs that are forecast from, draws
    "flickr8k": (("image", "text"), (250, 600, 3000), 3),
    "pictures": (("image", "text"), (100, 200, 500), 3),
    "sounds": (("audio", "text"), (50, 75), 10),
}
SEEN, SHOWN = 10, 3  # first hits that are seen; of them, most that are liked and disliked
KINDS = {"folders": (30, 20), "words": (8, 5)}  # least pictures of a task, unseen pictures asked for


def forecast(args: argparse.Namespace) -> dict[str, Any]:
    """Compare forecasts with the closed form trained on so many pairs, on pairs that neither saw."""
    found: dict[str, Any] = {}
    for name, (modalities, sizes, draws) in FORECASTS.items():
        x, y, dev = _pairs(args.flickr8k if name == "flickr8k" else args.gallery, modalities, dev=name == "flickr8k")
        rows = []
        for n, draw in itertools.product(sizes, range(draws)):
            order = np.random.default_rng([n, draw]).permutation(len(x) - dev)
            held = np.arange(len(x) - dev, len(x)) if dev else order[len(x) * 3 // 4 :]  # dev, or another quarter
            rows += _compared(x, y, order if dev else order[: len(x) * 3 // 4], held, n)
        inside = {k: float(np.mean([row["inside"] for row in rows if row["k"] in k])) for k in ((1, 10), (1,), (10,))}
        found[name] = {"forecasts": len(rows), "inside": inside[1, 10], "at_1": inside[1,], "at_10": inside[10,]}
        found[name] |= {"pairs": len(x) - dev, "held_out": len(held), "draws": draws}
        found[name]["means"] = (
            pd.DataFrame(rows).groupby(["from", "pairs", "k"], as_index=False).mean().to_dict("records")
        )
    return found


def _compared(x: np.ndarray, y: np.ndarray, order: np.ndarray, held: np.ndarray, n: int) -> list[dict[str, Any]]:
    """Forecast from the first n pairs of an order, and fit on as many as every forecast is for."""
    from scipy.stats import hypergeom

    from fusemix.evaluation.forecast import forecast as of_pairs

    made, rows = of_pairs(*(_standard(side[order[:n]]) for side in (x, y))), []
    for entry in made.expected:
        if entry["pairs"] > len(order):
            continue
        better = _held_ranks(x, y, order[: entry["pairs"]], held) - 1  # wrong ones ahead among all that are held out
        for k in (k for k in (1, 10) if k < made.gallery):  # in a gallery of the forecast's size, of those held out
            truth = float(hypergeom.cdf(k - 1, len(held) - 1, better, min(made.gallery, len(held)) - 1).mean())
            value, low, high = entry[f"recall_at_{k}"]
            row = {
                "from": n,
                "pairs": entry["pairs"],
                "k": k,
                "truth": truth,
                "expected": value,
                "low": low,
                "high": high,
            }
            rows.append(row | {"inside": bool(low <= truth <= high)})
    return rows


def _held_ranks(x: np.ndarray, y: np.ndarray, train: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Rank held-out partners in both directions by the closed form fitted on some pairs: (2 H,)."""
    import torch

    from fusemix.evaluation.forecast import CCA_DIM, CCA_RIDGE
    from fusemix.evaluation.metrics import ranks
    from fusemix.model.cca import fit_cca

    (a, a_held), (b, b_held) = (_by_train(side[train], side[held]) for side in (x, y))
    model = fit_cca(a, b, dim=min(CCA_DIM, a.shape[1], b.shape[1]), ridge=CCA_RIDGE)
    p, q = (torch.from_numpy(model.embed(side, z)) for side, z in ((0, a_held), (1, b_held)))
    right = np.arange(len(held))
    return np.concatenate([ranks(p, q, right, right), ranks(q, p, right, right)])


def _by_train(train: np.ndarray, held: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Standardise both and take principal components of the wide, by what is trained on alone."""
    from fusemix.evaluation.diagnose import COMPONENTS

    spread = train.std(axis=0)
    scale = np.where(spread > 1e-6 * spread.max(), spread, np.inf)
    a, b = ((rows - train.mean(axis=0)) / scale for rows in (train, held))
    if a.shape[1] > COMPONENTS:
        directions = np.linalg.eigh(a.T @ a)[1][:, ::-1][:, : min(COMPONENTS, len(a))]
        a, b = a @ directions, b @ directions
    return a, b


def _pairs(folder: Path, modalities: tuple[str, str], *, dev: bool) -> tuple[np.ndarray, np.ndarray, int]:
    """Read one pair of every group, those of dev last: both sides' latents and the number of dev."""
    from fusemix.evaluation.samples import from_stores

    sides = []
    for split in ("train", "dev") if dev else (None,):
        read = from_stores([(m, str(folder / m)) for m in modalities], n=10**9, split=split)
        sides.append([next(iter(of_modality.values())) for of_modality in read.values()])
    x, y = (np.concatenate(side) for side in zip(*sides, strict=True))
    return x, y, len(sides[1][0]) if dev else 0


def _standard(latents: np.ndarray) -> np.ndarray:
    from fusemix.evaluation.diagnose import reduced

    return reduced((latents - latents.mean(axis=0)).astype(np.float32))


def audit(args: argparse.Namespace) -> dict[str, Any]:
    """Exchange 5 % of the captions of Flickr8k train and look for them: five captions a photo, and one."""
    from fusemix.data.latent_store import LatentStore
    from fusemix.evaluation.audit import audit as judge
    from fusemix.evaluation.audit_page import joined_rows
    from fusemix.evaluation.diagnose import sample_pairs

    stores = [LatentStore.open(args.flickr8k / m) for m in ("image", "text")]
    every = joined_rows(stores[0].rows, stores[1].rows).query("split == 'train'")
    found: dict[str, Any] = {}
    for name, seeds in (("five captions", (0,)), ("one caption", (0, 1, 2, 3))):
        draws = []
        for seed in seeds:
            rows = every if name[0] == "f" else every.iloc[sample_pairs(every["group"].to_numpy(), 10**9, seed=seed)]
            x, y = (s.read(rows[side].to_numpy()) for s, side in zip(stores, ("first", "second"), strict=True))
            planted = np.random.default_rng(seed).choice(len(rows), len(rows) // 20, replace=False)
            y[planted] = y[np.roll(planted, 1)]
            result = judge(x, y, rows["group"].to_numpy(), rows["split"].to_numpy(), seed=seed)
            hit = np.isin(result.order, planted)
            tenth = len(rows) // 10
            draw: dict[str, Any] = {"rows": len(rows), "planted": len(planted)}
            draw |= {"precision": float(hit[: len(planted)].mean())}
            draw |= {"of_worst_1_percent": float(hit[: tenth // 10].mean())}
            draw |= {"found_in_worst_10_percent": float(hit[:tenth].sum() / len(planted))}
            draws.append(draw | {"random": result.random, "recall": {str(k): v for k, v in result.recall.items()}})
            print(name, draws[-1], flush=True)
        precision = [draw["precision"] for draw in draws]
        spread = float(np.std(precision, ddof=1)) if len(draws) > 1 else None
        found[name] = {"precision": float(np.mean(precision)), "sd": spread, "draws": draws}
    return found


def clicks(args: argparse.Namespace) -> dict[str, Any]:
    """Ask for a kind of pictures, like and dislike among the first hits, and ask again for what was not seen."""
    from fusemix.search.index import Hit
    from fusemix.search.retriever import Retriever

    retriever = Retriever.from_pretrained(args.checkpoint, args.index)
    items, embeddings = retriever.index.items("image"), retriever.index.embeddings("image")
    found: dict[str, list[list[float]]] = {kind: [] for kind in KINDS}
    for kind, word, right in _tasks(items):
        asked_for, query = KINDS[kind][1], retriever.embed(text=word)
        seen = np.argsort(-(embeddings @ query), kind="stable")[:SEEN]
        liked, not_liked = seen[right[seen]][:SHOWN], seen[~right[seen]][:SHOWN]
        if not len(liked) or not len(not_liked) or right.sum() - right[seen].sum() < asked_for:
            continue
        hits = [[Hit("image", items[row], 0.0, 1) for row in rows] for rows in (liked, not_liked)]
        refined = (query, retriever.refine(*hits, query=query), retriever.refine(hits[0], query=query))
        orders = (np.argsort(-(embeddings @ vector), kind="stable") for vector in refined)
        found[kind].append([float(right[o[~np.isin(o, seen)][:asked_for]].mean()) for o in orders])
    names = ("query", "likes_and_dislikes", "likes")
    means = {kind: dict(zip(names, np.mean(rows, axis=0).tolist(), strict=True)) for kind, rows in found.items()}
    return {kind: {"tasks": len(found[kind]), "first": KINDS[kind][1], **means[kind]} for kind in found}


def _tasks(items: list[dict[str, Any]]) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield kind, words to ask with and the right pictures, (N,) bool: folders of clip art, last words of captions."""
    folders = [item["id"].split("-")[1] if item["source"].startswith("Debian") else "" for item in items]
    words = [item["caption"].casefold().rpartition(" ")[2] for item in items]
    for (kind, (least, _)), names in zip(KINDS.items(), (folders, words), strict=True):
        for word in sorted(set(names) - {""}):
            right = np.array([name == word for name in names])
            if right.sum() >= least:
                yield kind, word, right


def labels(args: argparse.Namespace) -> dict[str, Any]:
    """Label the gallery's validation pictures by the names of all their groups."""
    import torch

    from fusemix.search.classify import classify
    from fusemix.search.retriever import Retriever

    retriever = Retriever.from_pretrained(args.checkpoint, args.index)
    split = pd.read_csv(args.table, dtype=str, keep_default_na=False).set_index("id")["split"]
    items = retriever.index.items("image")
    held = [row for row, item in enumerate(items) if split[item["id"]] == "val"]
    groups = sorted({items[row]["group"] for row in held})
    right = np.array([groups.index(items[row]["group"]) for row in held])
    embeddings = torch.from_numpy(retriever.index.embeddings("image")[held])
    found: dict[str, Any] = {"pictures": len(held), "labels": len(groups)}
    for phrase in ("{}", "a picture of {}"):
        names = [phrase.format(group.replace("-", " ")) for group in groups]
        order = np.argsort(-classify(retriever.model, embeddings, names, retriever.encoders["text"]), axis=1)
        found[phrase] = {f"right_in_{k}": float((order[:, :k] == right[:, None]).any(axis=1).mean()) for k in (1, 5)}
    return found


def main(argv: list[str] | None = None) -> int:
    """Measure one of them and write it."""
    from fusemix.files import write_json

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[f.__name__ for f in (forecast, audit, clicks, labels)])
    parser.add_argument("--flickr8k", type=Path, help="folder of the stores image and text")
    parser.add_argument("--gallery", type=Path, help="folder of the gallery's stores image, text and audio")
    parser.add_argument("--checkpoint", default=str(ROOT / "checkpoints/default"))
    parser.add_argument("--index", default=str(ROOT / "demo/index"))
    parser.add_argument("--table", default=str(ROOT / "demo/gallery/pairs.csv"), help="of the index, for its splits")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results", help="folder of the JSON")
    args = parser.parse_args(argv)
    found = globals()[args.what](args)
    write_json(args.out / f"own-model-{args.what}.json", found)
    print({k: {n: v for n, v in f.items() if n != "means"} if isinstance(f, dict) else f for k, f in found.items()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
