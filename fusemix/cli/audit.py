"""``fusemix audit``: pairs whose sides disagree, near-duplicates across splits, captions that fit everything."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fusemix.cli import flags, terminal
from fusemix.cli.command import entry, guarded, named_once

FORM = "--latents MODALITY=DIR MODALITY=DIR"


@guarded(stopped="Stopped; nothing was written.")
def audit(
    latents: Annotated[
        list[str],
        typer.Option(metavar="MODALITY=DIR MODALITY=DIR", help="The latent stores of two modalities of one table."),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write audit.csv and audit.html to.")],
    pairs: Annotated[
        Path | None,
        typer.Option(metavar="TABLE", help="The table that the stores were made from, for texts and thumbnails."),
    ] = None,
    seed: flags.Seed = 0,
) -> None:
    """Find the pairs that are probably wrong, before they are trained on.

    Each row is judged by a closed form that was fitted without its group. audit.csv ranks all rows, the worst first;
    audit.html shows the worst of every kind. Nothing is removed: that is yours to decide.

    Example: fusemix audit --latents image=latents/image text=latents/text --pairs pairs.csv --out audit
    """
    from fusemix.data.latent_store import LatentStore
    from fusemix.data.pairs import PairTable
    from fusemix.evaluation.audit import audit as judge
    from fusemix.evaluation.audit_page import joined_rows, write_csv, write_page

    stores = {name: LatentStore.open(folder) for name, folder in named_once(latents, FORM).items()}
    if len(stores) != 2:
        raise ValueError(f"An audit compares two modalities; expected {FORM}, got {len(stores)}.")
    first, second = stores.values()
    table = PairTable.read(pairs, own=list(stores)) if pairs else None
    tables = {store.manifest["table"] for store in stores.values()} | ({table.fingerprint} if table else set())
    if len(tables) > 1:
        raise ValueError("The stores were not made from one table, and from --pairs if given; extract them again.")
    rows = joined_rows(first.rows, second.rows)
    with terminal.waiting(f"Judging {len(rows):,} pairs"):
        result = judge(
            first.read(rows["first"].to_numpy()), second.read(rows["second"].to_numpy()), rows["group"].to_numpy(),
            rows["split"].to_numpy(), names=(first.modality, second.modality), seed=seed,
        )  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    write_csv(out / "audit.csv", result, rows, table, (first.modality, second.modality))
    write_page(out / "audit.html", result, rows, table, (first.modality, second.modality))
    terminal.result(result.sentence())
    terminal.note(f"{out / 'audit.html'} shows the worst of every kind, {out / 'audit.csv'} ranks all rows.")


main = entry("audit", audit)

if __name__ == "__main__":
    sys.exit(main())
