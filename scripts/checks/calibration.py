"""Measure probabilities of hits: on held-out halves of a split, and on other data than they were fitted on.

python -m scripts.checks.calibration --checkpoint checkpoints/default --latents image=DIR text=DIR --split dev
    --index demo/index --table demo/gallery/pairs.csv --json docs/results/calibration.json

Out of domain: captions of another gallery (``--index``) are asked in the split's gallery, and its held-out captions in
their own gallery with the probabilities of the split.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from fusemix.data.latent_store import LatentStore
from fusemix.evaluation.calibrate import auroc, ece, result_lists
from fusemix.evaluation.evaluate import StoredPairs, calibrate, stored_items
from fusemix.files import write_json
from fusemix.model.adapters import FusionModel
from fusemix.search.calibration import DEPTH, HEAD, Calibration
from fusemix.search.index import EmbeddingIndex


def main(argv: list[str] | None = None) -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="checkpoints/default")
    parser.add_argument("--latents", nargs=2, required=True, metavar="MODALITY=DIR")
    parser.add_argument("--split", default="dev")
    parser.add_argument("--index", default="demo/index")
    parser.add_argument("--table", default="demo/gallery/pairs.csv", help="of the index, with its held-out split")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    model = FusionModel.from_pretrained(args.checkpoint)
    stores = {m: LatentStore.open(folder) for m, folder in (piece.split("=") for piece in args.latents)}
    pairs, embed = StoredPairs(stores), stored_items(model, stores)
    index = EmbeddingIndex.load(args.index, model_identity=model.identity)
    found: dict[str, Any] = {"checkpoint": model.identity, "split": args.split, "in_domain": {}, "out_of_domain": {}}
    for query, gallery in (("text", "image"), ("image", "text")):
        made = calibrate(pairs, embed, query=query, gallery=gallery, split=args.split)
        name = f"{query}_to_{gallery}"
        found["in_domain"][name] = made.measured | {"weights": list(made.weights)}
        items = pairs.items(gallery, args.split)
        rows = embed(gallery, items)
        asked = pairs.cells(query, args.split) if query == "text" else pairs.items(query, args.split)
        inside = _best(made, embed(query, asked[::5] if query == "text" else asked), rows)
        outside = _best(made, torch.from_numpy(index.embeddings(query)), rows)
        scores = np.concatenate([inside, outside])
        found["out_of_domain"][name] = {
            "auroc": auroc(scores, np.arange(len(scores)) < len(inside)),
            "queries": [len(inside), len(outside)],
            "shown_at_5_percent": [float((b >= made.cutoffs[1].probability).mean()) for b in (inside, outside)],
            "own_gallery": _own(made, index, args.table, query, gallery),
        }
        sys.stdout.write(f"{name}: {found['in_domain'][name]}\n  {found['out_of_domain'][name]}\n")
    if args.json:
        write_json(args.json, found)
    return 0


def _best(made: Calibration, queries: torch.Tensor, gallery: torch.Tensor) -> np.ndarray:
    """Return the highest probability of each query's hits."""
    nearest = (queries @ gallery.T).topk(DEPTH, dim=1).values.numpy()
    return np.array([np.max(np.asarray(made.probabilities(row, len(gallery)))) for row in nearest])


def _own(made: Calibration, index: EmbeddingIndex, table: str, query: str, gallery: str) -> dict[str, float]:
    """Judge held-out queries of the index's own table in its whole gallery, with and without their answers."""
    split = pd.read_csv(table, dtype=str, keep_default_na=False).set_index("id")["split"].to_dict()
    sides = {m: (torch.from_numpy(index.embeddings(m)), [i["group"] for i in index.items(m)]) for m in (query, gallery)}
    number = {name: i for i, name in enumerate(sorted({g for _, groups in sides.values() for g in groups}))}
    held = np.array([split.get(item["id"]) == "val" for item in index.items(query)])
    groups = {m: np.array([number[g] for g in names]) for m, (_, names) in sides.items()}
    held &= np.isin(groups[query], groups[gallery])
    lists = result_lists(
        sides[query][0][torch.from_numpy(held)], sides[gallery][0], groups[query][held], groups[gallery], shares=(1.0,)
    )
    said = np.stack(
        [
            np.asarray(made.probabilities(row, int(n)))[:HEAD]
            for row, n in zip(lists.similarities, lists.n_items, strict=True)
        ]
    )
    return {
        "queries": int(held.sum()),
        "ece": ece(said.ravel(), lists.right[:, :HEAD].ravel()),
        "ece_first": ece(said[lists.answered, 0], lists.right[lists.answered, 0]),
        "said_first": float(said[lists.answered, 0].mean()),
        "right_first": float(lists.right[lists.answered, 0].mean()),
        "auroc": auroc(said.max(axis=1), lists.answered),
    }


if __name__ == "__main__":
    sys.exit(main())
