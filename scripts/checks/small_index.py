"""Measure what a smaller index costs: recall and megabytes by dimensions and type, and binary codes with rescoring.

    python -m scripts.checks.small_index --json docs/results/small_index.json

Directions are found on the items of the whole index, and rows reduced and rounded, as ``EmbeddingIndex.save`` does.
Recall is the mean of both directions between the held-out pictures and captions of the index's table, among one
another, by the protocol of ``fusemix evaluate``; megabytes are the whole index's embeddings and directions. ``binary``
searches signs, after a random rotation that spreads the directions over all bits, and rescores the nearest 100 by int8.

    python -m scripts.checks.small_index --beside FOLDER    # adds "beside" to the JSON

compares a second index of the same items with the first: recall@1 and @10 of held-out items in every direction, each
with a 95 % interval of the difference, over the groups asked (bootstrap), and how many of the first ten fused items of
the queries in tests/search/queries.json are the same.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pandas as pd
import torch

from fusemix.evaluation.metrics import ranks
from fusemix.files import read_json, write_json
from fusemix.model.adapters import FusionModel
from fusemix.search.index import EmbeddingIndex
from fusemix.search.principal import principal
from fusemix.search.retriever import Retriever

DIMS = (32, 64, 128, 256, 384, 512, 1024)
AT = (1, 10)
QUERIES = Path(__file__).resolve().parents[2] / "tests/search/queries.json"
TYPES = {"float32": 4.0, "float16": 2.0, "int8": 1.0, "binary, int8 rescored": 1.125}  # bytes a dimension


def main(argv: list[str] | None = None) -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="checkpoints/default")
    parser.add_argument("--index", default="demo/index")
    parser.add_argument("--table", default="demo/gallery/pairs.csv", help="of the index, with a split val")
    parser.add_argument("--beside", help="folder of a smaller index of the same items: only compare these two")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    identity = FusionModel.from_pretrained(args.checkpoint).identity
    index = EmbeddingIndex.load(args.index, model_identity=identity)
    if args.beside:
        small = EmbeddingIndex.load(args.beside, model_identity=identity)
        found = {"recall": _compared(index, small, args.table), "fused": _fused(args.checkpoint, args.index, small)}
        sys.stdout.write(f"{found}\n")
        if args.json:
            write_json(args.json, read_json(args.json) | {"beside": found})
        return 0
    held = Held(index, args.table)
    whole = index.embed_dim
    basis = principal({m: index.embeddings(m) for m in index.counts}, whole).astype(np.float32)
    rows: list[dict[str, Any]] = []
    for dims in [*(d for d in DIMS if d < whole), whole]:
        some = basis[:, :dims]
        for kind in TYPES:
            size = (len(index) * dims * TYPES[kind] + (some.nbytes / 2 if dims < whole else 0)) / 1e6
            rows.append({"dims": dims, "type": kind, **held.recall(_search(held, some, kind)), "megabytes": size})
        if dims < whole:
            rows.append({"dims": dims, "type": "first columns", **held.recall(_search(held, np.eye(whole)[:, :dims]))})
        for row in rows[-len(TYPES) - (dims < whole) :]:
            sys.stdout.write(f"{row}\n")
    if args.json:
        write_json(args.json, {"checkpoint": identity, "index": args.index, "rows": rows})
    return 0


def _compared(index: EmbeddingIndex, small: EmbeddingIndex, table: str) -> dict[str, Any]:
    """Ask both indexes with held-out items in every direction, among all items: recall and difference in points."""
    split = pd.read_csv(table, dtype=str, keep_default_na=False).set_index("id")["split"].to_dict()
    items = {m: index.items(m) for m in index.counts}
    if any(small.items(m) != of_modality for m, of_modality in items.items()):
        raise ValueError("The two indexes hold different items; build both of one table.")
    number = {name: i for i, name in enumerate(sorted({i["group"] for found in items.values() for i in found}))}
    groups = {m: np.array([number[item["group"]] for item in found]) for m, found in items.items()}
    found: dict[str, Any] = {}
    every: list[np.ndarray] = []  # of each direction (Q, 1 + len(AT)): group, gains
    for query, gallery in itertools.permutations(items, 2):
        held = np.array([split.get(item["id"]) == "val" for item in items[query]])
        rows = np.flatnonzero(held & np.isin(groups[query], groups[gallery]))
        asked = torch.from_numpy(index.embeddings(query)[rows])
        hit = []
        for one in (index, small):
            rank = ranks(asked, torch.from_numpy(one.embeddings(gallery)), groups[query][rows], groups[gallery])
            hit.append(100.0 * np.stack([rank <= k for k in AT], axis=1))
        every.append(np.column_stack([groups[query][rows], hit[1] - hit[0]]))
        recall = {f"recall_at_{k}": [float(h[:, i].mean()) for h in hit] for i, k in enumerate(AT)}
        found[f"{query}_to_{gallery}"] = {"queries": len(rows), **recall, "gain": _interval(every[-1])}
    return found | {"all": {"queries": sum(map(len, every)), "gain": _interval(np.concatenate(every))}}


def _interval(gains: np.ndarray) -> dict[str, list[float]]:
    """Return mean gain and its 95 % bootstrap interval over groups, for every k; ``gains``: (Q, 1 + len(AT))."""
    _, group = np.unique(gains[:, 0], return_inverse=True)
    n, rng = group.max() + 1, np.random.default_rng(0)
    sums = np.stack([np.bincount(group, weights=column, minlength=n) for column in gains[:, 1:].T], axis=1)
    weights = np.stack([np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(2000)])
    drawn = weights @ sums / (weights @ np.bincount(group, minlength=n))[:, None]
    low, high = np.percentile(drawn, (2.5, 97.5), axis=0)
    return {f"at_{k}": [float(gains[:, 1 + i].mean()), float(low[i]), float(high[i])] for i, k in enumerate(AT)}


def _fused(checkpoint: str, folder: str, small: EmbeddingIndex) -> dict[str, float]:
    """Compare the fused items of the judged queries of words: share of equal first ones, and of the first ten."""
    retriever = Retriever.from_pretrained(checkpoint, folder)
    lesser = Retriever(retriever.model, retriever.encoders, small)
    equal = []
    for query in (q for q in json.loads(QUERIES.read_text())["queries"] if "text" in q):
        both = [[hit.number for hit in r.search(text=query["text"], fuse=True)] for r in (retriever, lesser)]
        equal.append([both[0][0] == both[1][0], len(set(both[0]) & set(both[1])) / len(both[0])])
    return dict(zip(("first", "first_ten"), np.mean(equal, axis=0).tolist(), strict=True))


class Held:
    """Held-out pictures and captions of an index: their rows and groups, by modality."""

    def __init__(self, index: EmbeddingIndex, table: str) -> None:
        split = pd.read_csv(table, dtype=str, keep_default_na=False).set_index("id")["split"].to_dict()
        items = {m: index.items(m) for m in ("image", "text")}
        self.rows = {m: np.flatnonzero([split.get(i["id"]) == "val" for i in found]) for m, found in items.items()}
        self.groups = {m: np.array([items[m][row]["group"] for row in rows]) for m, rows in self.rows.items()}
        self.sides = {m: index.embeddings(m)[rows] for m, rows in self.rows.items()}

    def recall(self, search: Callable[[str, str], np.ndarray]) -> dict[str, float]:
        """Mean recall of both directions; ``search(query, gallery)`` returns the nearest held-out items, (Q, 10)."""
        hits = []
        for query, gallery in (("text", "image"), ("image", "text")):
            answered = np.isin(self.groups[query], self.groups[gallery])
            right = self.groups[gallery][search(query, gallery)] == self.groups[query][:, None]
            hits.append([right[answered, :k].any(axis=1).mean() for k in AT])
        return {f"recall_at_{k}": float(v) for k, v in zip(AT, np.mean(hits, axis=0), strict=True)}


def _search(held: Held, basis: np.ndarray, kind: str = "float32") -> Callable[[str, str], np.ndarray]:
    """Make a search of the held-out items, reduced and rounded."""
    reduced = {m: np.ascontiguousarray(x @ basis, dtype=np.float32) for m, x in held.sides.items()}
    stored = {m: _rounded(rows / np.linalg.norm(rows, axis=1, keepdims=True), kind) for m, rows in reduced.items()}
    if kind != "binary, int8 rescored":
        return lambda query, gallery: _top(reduced[query] @ stored[gallery].T)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(basis.shape[1],) * 2))[0]
    signs = {m: np.packbits((rows - rows.mean(axis=0)) @ turn > 0, axis=1) for m, rows in reduced.items()}

    def search(query: str, gallery: str) -> np.ndarray:
        codes = faiss.IndexBinaryFlat(basis.shape[1])
        codes.add(signs[gallery])
        _, near = codes.search(signs[query], 100)
        scores = np.stack([stored[gallery][found] @ asked for found, asked in zip(near, reduced[query], strict=True)])
        return np.take_along_axis(near, np.argsort(-scores, axis=1)[:, :10], axis=1)

    return search


def _rounded(rows: np.ndarray, kind: str) -> np.ndarray:
    """Round rows as they are stored, and give them unit length again."""
    if kind == "float32":
        return rows
    types = {"float16": faiss.ScalarQuantizer.QT_fp16}
    index = faiss.IndexScalarQuantizer(rows.shape[1], types.get(kind, faiss.ScalarQuantizer.QT_8bit))
    index.train(rows)
    index.add(rows)
    back: np.ndarray = index.reconstruct_n(0, len(rows))
    return back / np.linalg.norm(back, axis=1, keepdims=True)


def _top(similarity: np.ndarray) -> np.ndarray:
    return torch.from_numpy(similarity).topk(10, dim=1).indices.numpy()


if __name__ == "__main__":
    sys.exit(main())
