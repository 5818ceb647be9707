"""Table of pairs -> latent store. Shows progress; run the same command again after a kill.

    python scripts/extract.py --pairs pairs.csv --column image --encoder efficientnet-lite0 --out latents/image

Several processes, each with its share: torchrun --standalone --nproc_per_node 2 scripts/extract.py ... (several GPUs:
``--device cuda`` gives each process its own).
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fusemix.data.latent_store import DTYPES, LatentStore


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", required=True, help="table of pairs: .csv, .tsv, .jsonl or .parquet")
    parser.add_argument("--column", required=True, help="its column to encode: image, text, audio, ...")
    parser.add_argument("--encoder", required=True, help="e.g. minilm-l6, or hub-image:facebook/dinov2-base")
    parser.add_argument("--out", required=True, type=Path, help="folder of the store")
    parser.add_argument("--split", help="only rows of this split")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the stored latents")
    parser.add_argument("--batch-size", type=int, default=32, help="items per forward pass")
    parser.add_argument("--workers", type=int, default=2, help="threads that decode")
    parser.add_argument("--device", default="cpu", help="torch device, e.g. cuda")
    parser.add_argument(
        "--on-error",
        choices=("stop", "skip"),
        default="stop",
        help="at an unusable item: stop with its row and reason, or skip it and list every one left out",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the extraction; 0 on success, 2 on bad input, 130 when interrupted."""
    args = parse(argv)
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    first = int(os.environ.get("RANK", 0)) == 0
    console = Console(stderr=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a pre-empted job stops as at Ctrl-C
    try:
        store = run(args, console)
    except (ValueError, OSError, ImportError) as error:
        console.print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        console.print("Interrupted; run the same command again to go on.")
        return 130
    if not first:
        return 0
    for entry in store.manifest["skipped"]:
        console.print(f"left out row {entry['row']}: {entry['reason']}", highlight=False, soft_wrap=True)
    print(
        f"{args.out}: {len(store):,} latents of {store.dim} dimensions for {len(store.rows):,} rows, "
        f"{len(store.manifest['skipped'])} left out"
    )
    return 0


def run(args: argparse.Namespace, console: Console) -> LatentStore:
    """Load the encoder and extract, with a progress bar."""
    from fusemix.data.latent_store import extract
    from fusemix.data.pairs import PairTable
    from fusemix.encoders import load_encoder

    table = PairTable.read(args.pairs, own=(args.column,))
    table.rows(args.column, args.split)  # early answer to a wrong column or split
    rank, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    own = args.device == "cuda" and processes > 1
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if own else args.device
    encoder = load_encoder(args.encoder, device=device)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=rank > 0) as progress:
        share = f" (1 of {processes} processes)" if processes > 1 else ""
        task = progress.add_task(f"{args.column} x {args.encoder}{share}", total=None, rate="")

        def report(done: int, total: int) -> None:
            speed = progress.tasks[task].speed
            progress.update(task, completed=done, total=total, rate=f"{speed:.0f}/s" if speed else "")

        store = extract(
            table,
            args.column,
            encoder,
            args.out,
            split=args.split,
            dtype=args.dtype,
            batch_size=args.batch_size,
            workers=args.workers,
            skip_errors=args.on_error == "skip",
            report=report,
        )
    if rank == 0:
        kept = store.rows["row"].to_numpy()
        console.print(escape(table.summary(args.column, split=args.split, kept=kept)), highlight=False, soft_wrap=True)
    return store


if __name__ == "__main__":
    sys.exit(main())
