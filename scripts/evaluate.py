"""A checkpoint and a table of pairs -> recall@k and median rank, with 95 % intervals.

    python scripts/evaluate.py --checkpoint checkpoints/NAME --pairs T.csv --query text --gallery image --split dev

With --bank similarities are corrected for hubs by training queries, which is reported in the JSON.
With --latents MODALITY=DIR ... the latents of earlier extractions (or imports) of the same table are read
instead of running the encoders. Where stores hold both modalities, --pairs may be left out: the stores know
which rows, groups and splits their latents belong to.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from fusemix.encoder_identity import check_encoder
from fusemix.search.hubness import NEIGHBOURS, WEIGHT, bank_items


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="folder or Hub id")
    parser.add_argument("--pairs", help="table of pairs; not needed where --latents holds both modalities")
    parser.add_argument("--query", required=True, help="column searched with")
    parser.add_argument("--gallery", required=True, help="column searched in")
    parser.add_argument("--split", help="only rows of this split")
    parser.add_argument("--latents", nargs="+", default=[], metavar="MODALITY=DIR", help="stores of the same table")
    hubs = parser.add_argument_group("correction of hubs (fusemix/search/hubness.py), off without a bank")
    hubs.add_argument(
        "--bank",
        metavar="DIR",
        help="store of latents of the query column; its training split counts, none of it asked",
    )
    hubs.add_argument("--neighbours", type=int, default=NEIGHBOURS, help="of the bank that count for a gallery item")
    hubs.add_argument("--weight", type=float, default=WEIGHT, help="of the correction")
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
    from fusemix.data.pairs import PairTable
    from fusemix.evaluation.evaluate import StoredPairs, evaluate, stored_items
    from fusemix.model.adapters import FusionModel

    model = FusionModel.from_pretrained(args.checkpoint)
    columns = (args.query, args.gallery)
    for column in columns:
        if column not in model.modalities:
            raise ValueError(f"{args.checkpoint} embeds {list(model.modalities)}, not {column!r}.")
    if args.pairs is None:
        stores = _stores(args.latents)
        if missing := [column for column in columns if column not in stores]:
            raise ValueError(f"Give a table with --pairs, or the {' and '.join(missing)} latents with --latents.")
        table: Any = StoredPairs({column: stores[column] for column in columns})
    else:
        table = PairTable.read(args.pairs, own=columns)
        for column in columns:
            table.rows(column, args.split)  # early answer to a wrong column or split
        stores = _stores(args.latents, table.fingerprint)
    for column in columns:
        if column in stores:
            check_encoder(column, model.config.encoders, stores[column].encoder)
    bank = _bank(args, model, table)
    embeds = {column: stored_items(model, stores) for column in columns if column in stores}
    with Progress(console=console, disable=len(embeds) == 2) as progress:
        for column in columns:
            if column not in embeds:
                embeds[column] = _encoding(model, column, args.device, progress)
        values = evaluate(
            table,
            lambda modality, items: embeds[modality](modality, items),
            query=args.query,
            gallery=args.gallery,
            split=args.split,
            bank=bank,
            neighbours=args.neighbours,
            weight=args.weight,
        )
    console.print(table.summary(*columns, split=args.split), highlight=False, soft_wrap=True, markup=False)
    return values


def _bank(args: argparse.Namespace, model: Any, table: Any) -> Any:
    """Embeddings of the bank's training queries, known not to be those that are asked."""
    from fusemix.data.latent_store import LatentStore

    if args.bank is None:
        return None
    store = LatentStore.open(args.bank)
    check_encoder(args.query, model.config.encoders, store.encoder)
    asked = {cell.row for cell in table.cells(args.query, args.split)}
    items = bank_items(store)
    rows = store.rows[store.rows["item"].isin(items)]
    if store.manifest["table"] == table.fingerprint and asked & set(rows["row"]):
        raise ValueError(f"{args.bank} holds queries that are asked here; a bank is made of the training split's.")
    return model.embed(args.query, store.read(items))


def _encoding(model: Any, column: str, device: str, progress: Progress) -> Any:
    """An Embed that runs a column's frozen encoder with a progress bar."""
    from fusemix.evaluation.evaluate import encode_items

    encoder = _encoder(model, column, device)
    check_encoder(column, model.config.encoders, encoder.info())
    task = progress.add_task(column, total=None)

    def report(modality: str, done: int, total: int) -> None:
        progress.update(task, completed=done, total=total)

    return encode_items(model, {column: encoder}, report=report)


def _encoder(model: Any, column: str, device: str) -> Any:
    from fusemix.encoders import DEFAULT_ENCODERS, load_encoder

    name = model.config.encoders.get(column, {}).get("name") or DEFAULT_ENCODERS.get(column)
    if name is None or model.config.encoders.get(column, {}).get("fingerprint") == "given latents":
        raise ValueError(
            f"The checkpoint was trained on {column} latents made elsewhere, which no encoder here can make; "
            f"give them with --latents {column}=DIR."
        )
    return load_encoder(name, device=device)


def _stores(pieces: list[str], fingerprint: str | None = None) -> dict[str, Any]:
    from fusemix.data.latent_store import LatentStore

    stores = {}
    for piece in pieces:
        modality, _, folder = piece.partition("=")
        stores[modality] = LatentStore.open(folder)
        if fingerprint and stores[modality].manifest["table"] not in (None, fingerprint):
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
