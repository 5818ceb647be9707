"""Search the index by text, picture or sound.

Examples::

    python scripts/search.py --checkpoint checkpoints/default --text "a dog running on the grass"
    python scripts/search.py --checkpoint checkpoints/default --image photo.jpg --top-k 5 --json hits.json
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fusemix.files import write_json
from fusemix.search.index import Hit
from fusemix.search.retriever import Retriever

ROOT = Path(__file__).resolve().parents[1]


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="checkpoint folder or Hub id")
    parser.add_argument(
        "--index",
        default=str(ROOT / "demo/index"),
        help="folder or postgresql://user@host:port/database/collection (default: demo/index)",
    )
    query = parser.add_mutually_exclusive_group(required=True)
    query.add_argument("--text", help="what to look for, at most 2,000 characters")
    query.add_argument("--image", help="a picture file")
    query.add_argument("--audio", help="a sound file, at most 10 minutes")
    parser.add_argument("--top-k", type=int, default=10, help="hits per kind of item (default: 10)")
    parser.add_argument(
        "--where", action="append", default=[], metavar="KEY=VALUE", help="only such items, e.g. licence=CC0-1.0"
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the hits to this file")
    return parser.parse_args(argv)


def tabulate(modality: str, hits: list[Hit]) -> Table:
    """The hits of one modality as a table for the terminal."""
    table = Table(title=modality, title_justify="left", title_style="bold")
    table.add_column("rank", justify="right")
    table.add_column("similarity", justify="right")
    table.add_column("item")
    table.add_column("source, licence", style="dim")
    for hit in hits:
        label = hit.item.get("caption") or hit.item.get("text", "")
        place = f"\n{hit.item['path']}" if "path" in hit.item else ""
        origin = ", ".join(filter(None, (hit.item.get("source"), hit.item.get("licence"))))
        table.add_row(str(hit.rank), f"{hit.similarity:.3f}", Text(label + place), Text(origin))
    return table


def to_json(query: dict[str, str], results: dict[str, list[Hit]]) -> dict[str, Any]:
    """JSON-ready results: rank and similarity beside each item's metadata."""
    hits = {
        modality: [{"rank": hit.rank, "similarity": hit.similarity, **hit.item} for hit in found]
        for modality, found in results.items()
    }
    return {"query": query, "hits": hits}


def main(argv: list[str] | None = None) -> int:
    """Search once; 0 on success, 2 when an input is at fault."""
    args = parse_args(argv)
    given = {"text": args.text, "image": args.image, "audio": args.audio}
    query = {modality: value for modality, value in given.items() if value is not None}
    try:
        if args.top_k < 1:
            raise ValueError(f"--top-k must be >= 1, got {args.top_k}.")
        if malformed := [pair for pair in args.where if "=" not in pair]:
            raise ValueError(f"--where takes KEY=VALUE, such as licence=CC0-1.0, got {malformed[0]!r}.")
        where = dict(pair.split("=", 1) for pair in args.where)
        retriever = Retriever.from_pretrained(args.checkpoint, args.index)
        started = time.perf_counter()
        results = retriever.search(**query, top_k=args.top_k, where=where)
        elapsed = time.perf_counter() - started
        if args.json:
            write_json(args.json, to_json(query, results))
    except (ValueError, OSError, ImportError) as error:
        Console(stderr=True).print(str(error), style="red", markup=False)
        return 2
    console = Console()
    for modality, hits in results.items():
        console.print(tabulate(modality, hits))
    console.print(f"{elapsed * 1000:.0f} ms, {len(retriever.index):,} items")
    return 0


if __name__ == "__main__":
    sys.exit(main())
