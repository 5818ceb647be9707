"""Several tables of pairs -> one, so that a training batch is drawn from all of them.

python scripts/join_tables.py --tables coco=coco.parquet cc3m=cc3m.parquet --splits train val --out all.parquet
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from fusemix.datasets import Tally, join_tables, write_table


def main(argv: list[str] | None = None) -> int:
    """Join; 0 on success, 2 on bad input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", required=True, metavar="NAME=FILE")
    parser.add_argument("--splits", nargs="+", default=(), help="only rows of these splits")
    parser.add_argument("--out", required=True, type=Path, help="the table: .csv, .tsv or .parquet")
    args = parser.parse_args(argv)
    console, tally = Console(stderr=True), Tally()
    try:
        pieces = [piece.partition("=") for piece in args.tables]
        tables = {name: Path(file) for name, _, file in pieces if name and file}
        if len(tables) != len(pieces):
            raise ValueError(f"--tables takes NAME=FILE, each name once, got {args.tables}.")
        with console.status("joining"):
            counts = write_table(join_tables(tables, splits=args.splits, tally=tally), args.out, tally)
    except (ValueError, OSError) as error:
        console.print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        return 2
    for sentence in tally.notes:
        console.print(sentence, highlight=False, soft_wrap=True, markup=False)
    print(f"{args.out}: {tally.summary(counts)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
