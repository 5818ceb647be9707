"""Measure what a smaller index costs: recall and megabytes by dimensions and type, and binary codes with rescoring.

python -m scripts.checks.small_index --checkpoint checkpoints/default --latents image=DIR text=DIR --split dev
    --json docs/results/small_index.json

Directions are found on the items of the index, as ``EmbeddingIndex.save`` does: here photos and captions, which are
also the queries. Recall is the mean of both directions, by the protocol of ``fusemix evaluate``. ``binary`` searches
the signs of the kept dimensions and rescores the nearest 100 by int8.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch

from fusemix.data.latent_store import LatentStore
from fusemix.evaluation.evaluate import StoredPairs, stored_items
from fusemix.files import write_json
from fusemix.model.adapters import FusionModel
from fusemix.search.index import Dtype, EmbeddingIndex
from fusemix.search.principal import principal

DIMS = (32, 64, 128, 256, 512, 1024)
AT = (1, 10)
Sides = dict[str, np.ndarray]


def main(argv: list[str] | None = None) -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="checkpoints/default")
    parser.add_argument("--latents", nargs=2, required=True, metavar="MODALITY=DIR")
    parser.add_argument("--split", default="dev")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    model = FusionModel.from_pretrained(args.checkpoint)
    stores = {m: LatentStore.open(folder) for m, folder in (piece.split("=") for piece in args.latents)}
    pairs, embed = StoredPairs(stores), stored_items(model, stores)
    sides, groups = {}, {}
    for modality in stores:
        items = pairs.cells(modality, args.split) if modality == "text" else pairs.items(modality, args.split)
        sides[modality], groups[modality] = embed(modality, items).numpy(), np.array([i.group for i in items])
    whole = model.config.embed_dim
    rows: list[dict[str, Any]] = []
    for dims in [*(d for d in DIMS if d < whole), whole]:
        kept = None if dims == whole else dims
        for dtype in ("float32", "float16", "int8"):
            rows.append({"dims": dims, "type": dtype, **_stored(sides, groups, model.identity, dtype, kept)})  # type: ignore[arg-type]
        rows.append({"dims": dims, "type": "binary, int8 rescored", **_binary(sides, groups, dims)})
        for row in rows[-4:]:
            sys.stdout.write(f"{row}\n")
    plain = [{"dims": d, "type": "first columns", **_prefix(sides, groups, d)} for d in DIMS if d < whole]
    if args.json:
        write_json(args.json, {"checkpoint": model.identity, "split": args.split, "rows": rows + plain})
    return 0


def _recall(sides: Sides, groups: Sides, search: Callable[[str, np.ndarray], np.ndarray]) -> dict[str, float]:
    """Mean recall of both directions; ``search`` returns the nearest items' numbers, (Q, 10)."""
    hits = []
    for query, gallery in (tuple(sides), tuple(sides)[::-1]):
        right = groups[gallery][search(gallery, sides[query])] == groups[query][:, None]
        hits.append([right[:, :k].any(axis=1).mean() for k in AT])
    return {f"recall_at_{k}": float(v) for k, v in zip(AT, np.mean(hits, axis=0), strict=True)}


def _stored(sides: Sides, groups: Sides, identity: str, dtype: Dtype, dims: int | None) -> dict[str, float]:
    index = EmbeddingIndex(next(iter(sides.values())).shape[1], model_identity=identity)
    for modality, rows in sides.items():
        index.add(modality, rows, [{}] * len(rows))
    with tempfile.TemporaryDirectory() as folder:
        index.save(folder, dtype=dtype, dims=dims)
        files = [*Path(folder).glob("*.faiss"), *Path(folder).glob("basis*")]
        loaded = {m: EmbeddingIndex.load(folder, model_identity=identity).embeddings(m) for m in sides}
        size = sum(path.stat().st_size for path in files) / 1e6
    return _recall(sides, groups, lambda m, q: _top(q @ loaded[m].T)) | {"megabytes": size}


def _prefix(sides: Sides, groups: Sides, dims: int) -> dict[str, float]:
    unit = {m: rows[:, :dims] / np.linalg.norm(rows[:, :dims], axis=1, keepdims=True) for m, rows in sides.items()}
    return _recall(unit, groups, lambda m, q: _top(q @ unit[m].T))


def _binary(sides: Sides, groups: Sides, dims: int) -> dict[str, float]:
    """Search signs about each modality's mean, and rescore 100 by int8."""
    basis = principal(sides, dims).astype(np.float32)
    reduced = {m: np.ascontiguousarray(rows @ basis) for m, rows in sides.items()}
    signs = {m: np.packbits(rows > rows.mean(axis=0), axis=1) for m, rows in reduced.items()}

    def search(gallery: str, queries: np.ndarray) -> np.ndarray:
        codes = faiss.IndexBinaryFlat(dims)
        codes.add(signs[gallery])
        query = next(m for m in sides if sides[m] is queries)
        _, near = codes.search(signs[query], 100)
        exact = faiss.IndexScalarQuantizer(dims, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
        exact.train(reduced[gallery])
        exact.add(reduced[gallery])
        rows = exact.reconstruct_n(0, exact.ntotal)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        scores = np.stack([rows[found] @ asked for found, asked in zip(near, reduced[query], strict=True)])
        return np.take_along_axis(near, np.argsort(-scores, axis=1)[:, :10], axis=1)

    items = sum(map(len, sides.values()))
    size = {"megabytes": (items * dims * 9 / 8 + basis.nbytes / 2) / 1e6, "megabytes_of_codes": items * dims / 8e6}
    return _recall(sides, groups, search) | size


def _top(similarity: np.ndarray) -> np.ndarray:
    return torch.from_numpy(similarity).topk(10, dim=1).indices.numpy()


if __name__ == "__main__":
    sys.exit(main())
