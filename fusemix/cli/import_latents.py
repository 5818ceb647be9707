"""``fusemix import``: latents you already have, of any modality -> a latent store."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from fusemix.cli import terminal
from fusemix.cli.command import entry, guarded

TABLE = "The pairs of the latents; without a table, latent i of every modality is pair i"


@guarded(stopped="Interrupted; nothing was written.")
def import_latents(
    source: Annotated[
        Path, typer.Option("--from", metavar="FILE", help="The latents: a .npy, .safetensors or .parquet file.")
    ],
    modality: Annotated[str, typer.Option(metavar="NAME", help="Their modality, any name: video, sensor, image.")],
    name: Annotated[str, typer.Option(metavar="NAME", help="What made them; it is recorded as their encoder.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder of the store; it must be new.")],
    revision: Annotated[
        str, typer.Option(metavar="TEXT", help="The revision of the encoder's weights, if you know it.")
    ] = "",
    key: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Which tensor (safetensors) or list column (parquet), where there are several."
        ),
    ] = None,
    dtype: Annotated[Literal["float32", "float16"], typer.Option(help="The type of the stored latents.")] = "float32",
    pairs: Annotated[
        Path | None,
        typer.Option(metavar="TABLE", help="The table of pairs the latents belong to.", rich_help_panel=TABLE),
    ] = None,
    column: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The table's column that was encoded; without it there is one latent for each row.",
            rich_help_panel=TABLE,
        ),
    ] = None,
) -> None:
    """Copy existing latents into a store, for training, evaluation and search like any other.

    Example: fusemix import --from clips.npy --modality video --name my-encoder --out latents/video --pairs pairs.csv
    """
    from fusemix.data.import_latents import import_latents as copy
    from fusemix.data.pairs import PairTable

    own = (modality,) if column is None else (column, modality)
    table = PairTable.read(pairs, own=own) if pairs else None
    with terminal.bar() as bar:
        task = bar.add_task(modality, total=None)
        store = copy(
            source,
            out,
            modality=modality,
            name=name,
            revision=revision,
            table=table,
            column=column,
            key=key,
            dtype=dtype,
            report=lambda done, total: bar.update(task, completed=done, total=total),
        )
    terminal.result(
        f"{out}: {len(store):,} {store.modality} latents of {store.dim} dimensions for {len(store.rows):,} rows"
    )
    if table is not None:
        terminal.note(table.summary(*([] if column is None else [column])))


main = entry("import", import_latents)

if __name__ == "__main__":
    sys.exit(main())
