"""``fusemix move``: latents of an old encoder -> latents as a new encoder would make them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from fusemix.cli import flags, terminal
from fusemix.cli.command import entry, guarded, named_once

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from fusemix.data.latent_store import LatentStore
    from fusemix.model.adapters import FusionModel


@guarded(stopped="Stopped; nothing was moved.")
def move(
    checkpoint: flags.Checkpoint,
    old: Annotated[Path, typer.Option(metavar="DIR", help="The store of latents to move, made by the old encoder.")],
    new: Annotated[
        Path,
        typer.Option(metavar="DIR", help="A store of some of the same rows, made by the new encoder: a few hundred."),
    ],
    query: Annotated[
        str | None,
        typer.Option(
            metavar="MODALITY=DIR",
            help="Latents of another modality of these rows, to measure recall with; without them each item looks for "
            "itself.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The store of moved latents to write; without it recall is measured only."),
    ] = None,
    json: flags.Json = None,
    seed: flags.Seed = 0,
) -> None:
    """Change the encoder without encoding everything again: learn a map from some items, and say what it keeps.

    Recall is measured on items that the map has not seen, before anything is written. The checkpoint is the one trained
    on the new encoder's latents.

    Example: fusemix move --checkpoint checkpoints/new --old latents/image --new latents/image-some --out latents/moved
    """
    from fusemix.data.latent_store import LatentStore
    from fusemix.data.move import shared_items, write_moved
    from fusemix.encoder_identity import check_encoder
    from fusemix.evaluation.move import recall_kept
    from fusemix.files import write_json
    from fusemix.model.adapters import FusionModel
    from fusemix.model.latent_map import choose_map

    model = FusionModel.from_pretrained(checkpoint)
    before, after = LatentStore.open(old), LatentStore.open(new)
    if before.modality != after.modality:
        raise ValueError(f"{old} holds {before.modality} latents, {new} {after.modality} latents; give one modality.")
    check_encoder(after.modality, model.config.encoders, after.encoder)
    if out is not None and out.exists():
        raise ValueError(f"{out} is there already; choose a new folder.")
    items, groups, rows = shared_items(before, after)
    queries = _queries(model, query, rows, after) if query else (None, None)
    latents = before.read(items[0]), after.read(items[1])
    values = recall_kept(model, after.modality, *latents, groups, *queries, seed=seed)
    if json:
        write_json(json, values)
    terminal.show(tabulate(values))
    if out is not None:
        chosen = choose_map(*latents, lambda x: model.embed(after.modality, x).numpy(), seed=seed)
        moved = write_moved(before, after, chosen, out, values)
        terminal.result(f"{out}: {len(moved):,} latents moved; use them with {checkpoint} as the new encoder's")


def tabulate(values: Mapping[str, Any]) -> Table:
    """Tabulate what is kept."""
    table = Table(title=f"{values['shared']:,} shared items, {values['queries']:,} queries: {values['asked']}")
    for name in ("", "moved", "read by the new encoder", "kept"):
        table.add_column(name, justify="right")
    for k in (1, 10):
        cells = []
        for key in (f"recall_at_{k}", f"recall_at_{k}_new", f"kept_at_{k}"):
            low, high = values["ci95"][key]
            cells.append(f"{100 * values[key]:.1f} [{100 * low:.1f}, {100 * high:.1f}]")
        table.add_row(f"R@{k} %", *cells)
    return table


def _queries(model: FusionModel, query: str, rows: np.ndarray, new: LatentStore) -> tuple[Tensor, np.ndarray]:
    """Embed the queries of the shared rows: (Q, D), and their groups."""
    from fusemix.data.latent_store import LatentStore
    from fusemix.data.move import rows_beside
    from fusemix.encoder_identity import check_encoder

    ((modality, folder),) = named_once([query], "--query MODALITY=DIR").items()
    store = LatentStore.open(folder)
    if store.modality != modality or modality == new.modality:
        raise ValueError(
            f"{folder} holds {store.modality} latents; --query is for a modality beside {new.modality}, by its name."
        )
    check_encoder(modality, model.config.encoders, store.encoder)
    items, groups = rows_beside(store, new, rows)
    return model.embed(modality, store.read(items)), groups


main = entry("move", move)

if __name__ == "__main__":
    sys.exit(main())
