"""Build a search index: table of pairs -> encoders -> adapters -> embeddings and items, in a folder or on a server.

Examples::

    python scripts/build_index.py --checkpoint checkpoints/default --pairs demo/gallery/pairs.csv \
        --dtype float16 --out demo/index
    python scripts/build_index.py --checkpoint checkpoints/default --pairs demo/gallery/pairs.csv \
        --index postgresql://me@localhost/mine/gallery
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fusemix.data.latent_store import LatentStore
from fusemix.data.pairs import FILE_COLUMNS, Item, PairTable
from fusemix.encoder_identity import check_encoder
from fusemix.encoders import Encoder
from fusemix.media import MediaError
from fusemix.model.adapters import FusionModel
from fusemix.search.hubness import NEIGHBOURS, WEIGHT, bank_items
from fusemix.search.index import EmbeddingIndex
from fusemix.search.retriever import load_encoders

if TYPE_CHECKING:
    from fusemix.search.postgres_index import PostgresIndex

DETAILS = ("title", "source", "licence", "credit")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="checkpoint folder or Hub id")
    parser.add_argument("--pairs", required=True, type=Path, help="table of pairs (csv, tsv, jsonl, parquet)")
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--out", type=Path, help="index folder to write")
    place.add_argument(
        "--index", help="postgresql://user@host:port/database/collection to write instead; see docs/scale-out.md"
    )
    hubs = parser.add_argument_group("correction of hubs (fusemix/search/hubness.py), off without a bank")
    hubs.add_argument(
        "--bank", action="append", default=[], metavar="DIR",
        help="store of latents of the kind that will be asked, its training split counts; several are joined",
    )  # fmt: skip
    hubs.add_argument("--neighbours", type=int, default=NEIGHBOURS, help="of the bank that count for an item")
    hubs.add_argument("--weight", type=float, default=WEIGHT, help="of the correction")
    hubs.add_argument("--correct", nargs="+", metavar="MODALITY", help="whose items (default: those of no bank)")
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "float16"),
        help="of the embeddings in --out; float16 takes half the disk and moves a similarity by less than a thousandth",
    )  # fmt: skip
    parser.add_argument("--batch-size", type=int, default=32, help="items per forward pass (default: 32)")
    return parser.parse_args(argv)


def describe(table: PairTable, modality: str, item: Item) -> dict[str, Any]:
    """Metadata of one item: what a result shows."""
    cell = {column: str(table.frame[column].iat[item.row]) for column in table.frame.columns}
    metadata: dict[str, Any] = {"id": cell.get("id") or str(item.row), "caption": cell.get("text", "")}
    metadata |= {"path": table.below(item.value)} if modality in FILE_COLUMNS else {"text": item.value}
    metadata["group"] = cell.get("group") or str(item.group)
    return metadata | {key: cell.get(key, "") for key in DETAILS}


def distinct(table: PairTable, modality: str) -> list[Item]:
    """Each file once; each text once, whatever its capitals, so that no result shows twice."""
    seen: dict[str, Item] = {}
    for item in table.items(modality):
        seen.setdefault(item.value if modality in FILE_COLUMNS else item.value.casefold(), item)
    return list(seen.values())


def fill(
    index: EmbeddingIndex | PostgresIndex,
    model: FusionModel,
    encoder: Encoder,
    table: PairTable,
    *,
    batch_size: int,
    advance: Callable[[int], None],
) -> None:
    """Encode, embed and add every distinct item of one modality.

    Raises:
        MediaError: If an item cannot be used, with its row.
    """
    items = distinct(table, encoder.modality)
    for start in range(0, len(items), batch_size):
        batch = items[start : start + batch_size]
        prepared = []
        for item in batch:
            try:
                prepared.append(encoder.prepare(item.value))
            except MediaError as error:
                where = f"{table.path}, {table.place(item.row)}, column {encoder.modality}"
                raise MediaError(f"{where}: {error}") from error
        embeddings = model.embed(encoder.modality, encoder.encode_prepared(prepared))
        index.add(encoder.modality, embeddings, [describe(table, encoder.modality, item) for item in batch])
        advance(len(batch))


def begin(args: argparse.Namespace, model: FusionModel) -> EmbeddingIndex | PostgresIndex:
    """The empty index, in memory or on the server."""
    if args.index is None:
        return EmbeddingIndex(model.config.embed_dim, model_identity=model.identity, root=args.pairs.parent)
    from fusemix.search.postgres_index import PostgresIndex

    return PostgresIndex.create(args.index, model.config.embed_dim, model_identity=model.identity)


def correct(index: EmbeddingIndex, model: FusionModel, args: argparse.Namespace) -> None:
    """Correct the hubs of the chosen modalities by the banks of training queries.

    Raises:
        ValueError: If a bank is not of this model's encoders, or nothing is left to correct.
    """
    banks = [LatentStore.open(folder) for folder in args.bank]
    for store in banks:
        check_encoder(store.modality, model.config.encoders, store.encoder)
    chosen = args.correct or [m for m in index.counts if m not in {store.modality for store in banks}]
    if unknown := [m for m in chosen if m not in index.counts]:
        raise ValueError(f"--correct names {unknown}; the index holds {sorted(index.counts)}.")
    if not chosen:
        raise ValueError("Every modality of the index has a bank; say with --correct whose hubs shall give way.")
    bank = torch.cat([model.embed(store.modality, store.read(bank_items(store))) for store in banks])
    for modality in chosen:
        index.correct(modality, bank, neighbours=args.neighbours, weight=args.weight)


def main(argv: list[str] | None = None) -> int:
    """Build the index; 0 on success, 2 when an input is at fault."""
    args = parse_args(argv)
    console = Console(stderr=True)
    try:
        if args.batch_size < 1:
            raise ValueError(f"--batch-size must be >= 1, got {args.batch_size}.")
        if args.dtype != "float32" and args.index is not None:
            raise ValueError("--dtype is that of an index folder (--out); PostgreSQL chooses its own. Drop it.")
        if args.bank and args.index is not None:
            raise ValueError("Hubs are corrected in an index folder (--out), not in PostgreSQL; drop --bank.")
        table = PairTable.read(args.pairs)
        model = FusionModel.from_pretrained(args.checkpoint)
        encoders = load_encoders(model.config)
        index = begin(args, model)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as progress:
            for modality, encoder in encoders.items():
                if modality not in table.frame.columns or not (table.frame[modality] != "").any():
                    continue
                task = progress.add_task(modality, total=len(distinct(table, modality)))
                fill(
                    index,
                    model,
                    encoder,
                    table,
                    batch_size=args.batch_size,
                    advance=lambda count, task=task: progress.advance(task, count),  # type: ignore[misc]
                )
        if isinstance(index, EmbeddingIndex):
            if args.bank:
                correct(index, model, args)
            index.save(args.out, dtype=args.dtype)
        else:
            index.save()
            index.close()
    except (ValueError, OSError, ImportError) as error:
        console.print(f"[red]{type(error).__name__}[/red]: ", end="")
        console.print(str(error), markup=False)
        return 2
    counts = ", ".join(f"{count:,} {modality}" for modality, count in index.counts.items())
    console.print(table.summary(), highlight=False, soft_wrap=True, markup=False)
    console.print(f"{args.out or args.index}: {counts} items, for the model {model.identity[:12]}...")
    return 0


if __name__ == "__main__":
    sys.exit(main())
