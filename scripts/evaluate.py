"""A checkpoint and a table of pairs -> recall@k and median rank, with 95 % intervals.

    python scripts/evaluate.py --checkpoint checkpoints/NAME --pairs T.csv --query text --gallery image --split dev

With --latents MODALITY=DIR ... the latents of earlier extractions of the same table are read
instead of running the encoders.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a plain clone

from rich.console import Console
from rich.progress import Progress
from rich.table import Table


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="folder or Hub id")
    parser.add_argument("--pairs", required=True, help="table of pairs")
    parser.add_argument("--query", required=True, help="column searched with")
    parser.add_argument("--gallery", required=True, help="column searched in")
    parser.add_argument("--split", help="only rows of this split")
    parser.add_argument("--latents", nargs="+", default=[], metavar="MODALITY=DIR", help="stores of the same table")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--device", default="cpu", help="torch device of the encoders")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Evaluate; 0 on success, 2 on bad input."""
    args = parse(argv)
    logging.basicConfig(level=logging.ERROR)
    console = Console(stderr=True)
    try:
        values = run(args, console)
        if args.json:
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    except (ValueError, OSError, KeyError, ImportError) as error:
        console.print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        return 2
    show(values)
    return 0


def run(args: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Load, embed with progress, measure."""
    from fusemix.adapters import FusionModel
    from fusemix.evaluate import encode_items, evaluate, stored_items
    from fusemix.pairs import PairTable

    model = FusionModel.from_pretrained(args.checkpoint)
    table = PairTable.read(args.pairs)
    columns = (args.query, args.gallery)
    for column in columns:
        table.rows(column, args.split)  # early answer to a wrong column or split
        if column not in model.modalities:
            raise ValueError(f"{args.checkpoint} embeds {list(model.modalities)}, not {column!r}.")
    stores = _stores(args.latents, table.fingerprint)
    if set(columns) <= set(stores):
        for column in columns:
            model.check_encoder(column, stores[column].encoder)
        return evaluate(table, stored_items(model, stores), query=args.query, gallery=args.gallery, split=args.split)
    encoders = {}
    for column in columns:
        encoders[column] = _encoder(model, column, args.device)
        model.check_encoder(column, encoders[column].info())
    with Progress(console=console) as progress:
        tasks = {column: progress.add_task(column, total=None) for column in columns}

        def report(modality: str, done: int, total: int) -> None:
            progress.update(tasks[modality], completed=done, total=total)

        embed = encode_items(model, encoders, report=report)
        return evaluate(table, embed, query=args.query, gallery=args.gallery, split=args.split)


def _encoder(model: Any, column: str, device: str) -> Any:
    from fusemix.encoders import DEFAULT_ENCODERS, load_encoder

    name = model.config.encoders.get(column, {}).get("name") or DEFAULT_ENCODERS.get(column)
    if name is None:
        raise ValueError(f"The checkpoint names no encoder for {column!r}; give its latents with --latents.")
    return load_encoder(name, device=device)


def _stores(pieces: list[str], fingerprint: str) -> dict[str, Any]:
    from fusemix.latents import LatentStore

    stores = {}
    for piece in pieces:
        modality, _, folder = piece.partition("=")
        stores[modality] = LatentStore.open(folder)
        if stores[modality].manifest["table"] not in (None, fingerprint):
            raise ValueError(f"{folder} was extracted from another table than --pairs; extract it from this one.")
    return stores


def show(values: dict[str, Any]) -> None:
    """Print the figures as a table."""
    table = Table(
        title=f"{values['query']} -> {values['gallery']}" + (f", {values['split']}" if values["split"] else "")
    )
    for name in ("queries", "gallery", "R@1", "R@5", "R@10", "median rank"):
        table.add_column(name, justify="right")
    cells = [f"{values['n_queries']:,}", f"{values['n_gallery']:,}"]
    for key in ("recall_at_1", "recall_at_5", "recall_at_10"):
        low, high = values["ci95"][key]
        cells.append(f"{100 * values[key]:.1f} [{100 * low:.1f}, {100 * high:.1f}]")
    table.add_row(*cells, f"{values['median_rank']:g}")
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
