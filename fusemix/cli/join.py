"""``fusemix join``: several tables of pairs -> one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fusemix.cli import terminal
from fusemix.cli.command import entry, guarded, named_once


@guarded(stopped="Interrupted; no table was written.")
def join(
    tables: Annotated[list[str], typer.Option(metavar="NAME=FILE ...", help="The tables to join, each with a name.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The table to write: .csv, .tsv or .parquet.")],
    splits: Annotated[
        list[str] | None, typer.Option(metavar="SPLIT ...", help="Take only rows of these splits.")
    ] = None,
) -> None:
    """Join several tables of pairs into one, so that each training batch is drawn from all of them.

    Example: fusemix join --tables coco=coco.parquet cc3m=cc3m.parquet --splits train val --out all.parquet
    """
    from fusemix.datasets import Tally, join_tables, write_table

    files = {name: Path(file) for name, file in named_once(tables, "--tables NAME=FILE").items()}
    if out.resolve() in {file.resolve() for file in files.values()}:
        raise ValueError(f"--out is {out}, one of the tables to join, which would be lost; choose another name.")
    tally = Tally()
    with terminal.waiting("joining"):
        counts = write_table(join_tables(files, splits=splits or (), tally=tally), out, tally)
    for sentence in tally.notes:
        terminal.note(sentence)
    terminal.result(f"{out}: {tally.summary(counts)}")


main = entry("join", join)

if __name__ == "__main__":
    sys.exit(main())
