"""``fusemix audit``: pairs whose sides disagree, near-duplicates across splits, captions that fit everything."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fusemix.cli import flags, terminal
from fusemix.cli.command import entry, guarded, named_once
from fusemix.cli.extract import chosen, encode

FORM = "--latents MODALITY=DIR MODALITY=DIR"
SOURCE = "What to judge (--latents, or --pairs alone)"


@guarded(stopped="Stopped; run the same command again: what is encoded is kept.")
def audit(
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write audit.csv and audit.html to.")],
    latents: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODALITY=DIR MODALITY=DIR",
            help="The latent stores of two modalities of one table.",
            rich_help_panel=SOURCE,
        ),
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(
            metavar="TABLE",
            help="The table: with --latents for texts and thumbnails, alone to be encoded into OUT/latents first.",
            rich_help_panel=SOURCE,
        ),
    ] = None,
    encoders: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODALITY=ENCODER MODALITY=ENCODER",
            help="The encoders of the table's columns.",
            show_default="the packaged ones of its two kinds",
            rich_help_panel=SOURCE,
        ),
    ] = None,
    device: flags.Device = "cpu",
    seed: flags.Seed = 0,
) -> None:
    """Find the pairs that are probably wrong, before they are trained on.

    Each row is judged by a closed form that was fitted without its group. audit.csv ranks all rows, the worst first;
    audit.html shows the worst of every kind. Nothing is removed: that is yours to decide. Killed while it encodes a
    table, the same command goes on.

    Example: fusemix audit --pairs pairs.csv --out audit

    Example: fusemix audit --latents image=latents/image text=latents/text --pairs pairs.csv --out audit
    """
    from fusemix.data.latent_store import LatentStore
    from fusemix.data.pairs import PairTable
    from fusemix.evaluation.audit import audit as judge
    from fusemix.evaluation.audit_page import joined_rows, write_csv, write_page

    if not latents and pairs is None or latents and encoders:
        raise ValueError(f"Give {FORM}, or --pairs TABLE to be encoded, with --encoders or without.")
    wanted = list(named_once(encoders or [], "--encoders MODALITY=ENCODER").items())
    folders = named_once(latents or [], FORM)
    table = PairTable.read(pairs, own=[*folders, *dict(wanted)]) if pairs else None
    if table and not folders:
        wanted = chosen(table, wanted)
        folders = {modality: str(out / "latents" / modality) for modality, _ in wanted}
    if len(folders) != 2:
        raise ValueError(f"An audit compares two modalities; expected two of them, got {list(folders)}.")
    if table:
        for modality, name in wanted:
            encode(table, modality, name, Path(folders[modality]), device=device, skip_errors=True)
    stores = {name: LatentStore.open(folder) for name, folder in folders.items()}
    first, second = stores.values()
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
    if wanted:
        told = ", ".join(f"{m} by {name} in {folders[m]}" for m, name in wanted)
        terminal.note(f"Encoded {told}; --latents of other commands takes these folders.")


main = entry("audit", audit)

if __name__ == "__main__":
    sys.exit(main())
