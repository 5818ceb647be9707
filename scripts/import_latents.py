"""Latents you already have, of any modality -> a latent store for train.py and evaluate.py.

    python scripts/import_latents.py --from clips.npy --modality video --name my-encoder --out latents/video \
        --pairs pairs.csv --column video

Without --pairs, latent i of every modality is pair i.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fusemix.data.latent_store import DTYPES, LatentStore


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", required=True, type=Path, help=".npy, .safetensors or .parquet")
    parser.add_argument("--modality", required=True, help="any name: video, sensor, image, ...")
    parser.add_argument("--name", required=True, help="what made the latents; recorded as their encoder")
    parser.add_argument("--revision", default="", help="of its weights, if you know it")
    parser.add_argument("--out", required=True, type=Path, help="folder of the store; must be new")
    parser.add_argument("--pairs", help="table of pairs the latents belong to")
    parser.add_argument("--column", help="its column that was encoded; without it there is one latent per table row")
    parser.add_argument("--key", help="which tensor (safetensors) or list column (parquet), where there are several")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the stored latents")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Import; 0 on success, 2 on bad input, 130 when interrupted (nothing is left behind)."""
    args = parse(argv)
    console = Console(stderr=True)
    try:
        store = run(args, console)
    except (ValueError, OSError, ImportError) as error:
        console.print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        console.print("Interrupted; nothing was written.")
        return 130
    print(f"{args.out}: {len(store):,} {store.modality} latents of {store.dim} dimensions for {len(store.rows):,} rows")
    return 0


def run(args: argparse.Namespace, console: Console) -> LatentStore:
    """Read the table, check and copy the latents with a progress bar."""
    from fusemix.data.import_latents import import_latents
    from fusemix.data.pairs import PairTable

    own = (args.modality,) if args.column is None else (args.column, args.modality)
    table = PairTable.read(args.pairs, own=own) if args.pairs else None
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(args.modality, total=None)
        store = import_latents(
            args.source,
            args.out,
            modality=args.modality,
            name=args.name,
            revision=args.revision,
            table=table,
            column=args.column,
            key=args.key,
            dtype=args.dtype,
            report=lambda done, total: progress.update(task, completed=done, total=total),
        )
    if table is not None:
        said = table.summary(*([args.column] if args.column else []))
        console.print(said, highlight=False, soft_wrap=True, markup=False)
    return store


if __name__ == "__main__":
    sys.exit(main())
