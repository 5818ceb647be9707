"""``fusemix evaluate``: a checkpoint and a table of pairs -> recall@k and median rank, with 95 % intervals."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from fusemix.cli import flags, terminal
from fusemix.cli.command import entry, guarded, named_once

if TYPE_CHECKING:
    from torch import Tensor

    from fusemix.data.latent_store import LatentStore
    from fusemix.data.pairs import PairTable
    from fusemix.encoders import Encoder
    from fusemix.evaluation.evaluate import Embed, StoredPairs
    from fusemix.model.adapters import FusionModel

FORM = "--latents MODALITY=DIR"


@guarded(stopped="Stopped; nothing was measured.")
def evaluate(
    checkpoint: flags.Checkpoint,
    query: Annotated[str, typer.Option(metavar="NAME", help="The column of the queries, such as text.")],
    gallery: Annotated[str, typer.Option(metavar="NAME", help="The column to search, such as image.")],
    pairs: Annotated[
        Path | None,
        typer.Option(
            metavar="TABLE",
            help="The table of pairs (.csv, .tsv, .jsonl, .parquet); not needed where --latents holds both columns.",
        ),
    ] = None,
    split: flags.Split = None,
    latents: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODALITY=DIR ...",
            help="Stores of latents of the same table, read instead of running the encoders.",
        ),
    ] = None,
    json: flags.Json = None,
    device: flags.Device = "cpu",
    encoders: flags.Encoders = None,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate",
            help="Also fit this direction's probabilities on these pairs, which no training saw, and write them to "
            "calibration.json in the checkpoint folder; searches then say how likely each hit is right.",
        ),
    ] = False,
    bank: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="A store of latents of the query column; its training split is used to correct hubness.",
            rich_help_panel=flags.HUBS,
        ),
    ] = None,
    neighbours: flags.Neighbours = flags.NEIGHBOURS,
    weight: flags.Weight = flags.WEIGHT,
) -> None:
    """Measure how well one modality finds another: recall@1, 5 and 10 and median rank, with 95 % intervals.

    All items of a row's group are right answers. Without a table, rows, groups and splits are read from the
    stores.

    Example: fusemix evaluate --checkpoint checkpoints/mine --pairs pairs.csv --query text --gallery image --split test
    """
    logging.basicConfig(level=logging.ERROR)
    from fusemix.encoder_identity import check_encoder
    from fusemix.evaluation.evaluate import evaluate as measure
    from fusemix.evaluation.evaluate import stored_items
    from fusemix.files import write_json
    from fusemix.model.adapters import FusionModel

    model = FusionModel.from_pretrained(checkpoint)
    columns = [query, gallery]
    for column in columns:
        if column not in model.modalities:
            raise ValueError(f"{checkpoint} embeds {list(model.modalities)}, not {column!r}.")
    table, stores = _pairs(pairs, columns, split, named_once(latents or [], FORM))
    for column in columns:
        if column in stores:
            check_encoder(column, model.config.encoders, stores[column].encoder)
    folders = named_once(encoders or [], flags.FOLDERS)
    queries = None if bank is None else _bank(bank, model, table, query, split)
    embeds = {column: stored_items(model, stores) for column in columns if column in stores}
    with terminal.bar() as bar:
        for column in columns:
            if column not in embeds:
                embeds[column] = _encoding(model, column, device, folders.get(column), bar)
        values = measure(
            table,
            lambda modality, items: embeds[modality](modality, items),
            query=query,
            gallery=gallery,
            split=split,
            bank=queries,
            neighbours=neighbours,
            weight=weight,
        )
    if calibrate:
        values["calibration"] = _calibrate(checkpoint, model, table, embeds, query, gallery, split)
    if json:
        json.parent.mkdir(parents=True, exist_ok=True)
        write_json(json, values)
    terminal.show(tabulate(values))
    if calibrate:
        terminal.result(_calibrated(values["calibration"]))
    terminal.note(table.summary(*columns, split=split))


def _calibrate(
    checkpoint: str, model: FusionModel, table: Any, embeds: Mapping[str, Embed], query: str, gallery: str, split: Any
) -> dict[str, Any]:
    """Add the direction's calibration to the checkpoint folder, and return its figures."""
    from fusemix.datasets.splits import side_of
    from fusemix.evaluation.evaluate import calibrate
    from fusemix.search.calibration import load_calibrations, save_calibrations

    folder = Path(checkpoint)
    if not folder.is_dir():
        raise ValueError(f"A calibration is written into a checkpoint folder; {checkpoint} is none, fetch it first.")
    if split is None or side_of(split) == "train":
        raise ValueError("A calibration needs pairs that no training saw: name their split, such as --split val.")
    identity = model.identity
    known = load_calibrations(folder, model_identity=identity)
    known[query, gallery] = calibrate(
        table, lambda m, items: embeds[m](m, items), query=query, gallery=gallery, split=split
    )
    save_calibrations(folder, known, model_identity=identity)
    return known[query, gallery].measured


def _calibrated(measured: Mapping[str, Any]) -> str:
    cut = next(c for c in measured["cutoffs"] if c["stated"] == 0.05)
    return (
        f"probabilities: expected calibration error {measured['ece']:.3f}, of the first hit "
        f"{measured['ece_first']:.3f}; answer or none: AUROC {measured['auroc']:.3f}; at a stated error of 5 % "
        f"{100 * cut['error']:.1f} % of queries without an answer show something, and {100 * cut['kept']:.1f} % of "
        "those with one"
    )


def tabulate(values: Mapping[str, Any]) -> Table:
    """Tabulate the figures."""
    title = f"{values['query']} -> {values['gallery']}" + (f", {values['split']}" if values["split"] else "")
    table = Table(title=title)
    for name in ("queries", "gallery", "R@1", "R@5", "R@10", "median rank"):
        table.add_column(name, justify="right")
    cells = [f"{values['n_queries']:,}", f"{values['n_gallery']:,}"]
    for key in ("recall_at_1", "recall_at_5", "recall_at_10"):
        low, high = values["ci95"][key]
        cells.append(f"{100 * values[key]:.1f} [{100 * low:.1f}, {100 * high:.1f}]")
    table.add_row(*cells, f"{values['median_rank']:g}")
    return table


def _pairs(
    pairs: Path | None, columns: list[str], split: str | None, folders: Mapping[str, str]
) -> tuple[Any, dict[str, LatentStore]]:
    """Return the table, or the pairs recorded in the stores, and the stores."""
    from fusemix.data.latent_store import LatentStore
    from fusemix.data.pairs import PairTable
    from fusemix.evaluation.evaluate import StoredPairs

    stores = {modality: LatentStore.open(folder) for modality, folder in folders.items()}
    if pairs is None:
        if missing := [column for column in columns if column not in stores]:
            raise ValueError(f"Give a table with --pairs, or the {' and '.join(missing)} latents with --latents.")
        return StoredPairs({column: stores[column] for column in columns}), stores
    table = PairTable.read(pairs, own=columns)
    for column in columns:
        table.rows(column, split)  # fail early on a wrong column or split
    for store in stores.values():
        if store.manifest["table"] not in (None, table.fingerprint):
            raise ValueError(f"{store.folder} was extracted from another table than --pairs; extract it from this one.")
    return table, stores


def _bank(folder: Path, model: FusionModel, table: PairTable | StoredPairs, query: str, split: str | None) -> Tensor:
    """Embed the bank's training queries, after checking that they are not the evaluated queries."""
    from fusemix.data.latent_store import LatentStore
    from fusemix.encoder_identity import check_encoder
    from fusemix.search.hubness import bank_items

    store = LatentStore.open(folder)
    check_encoder(query, model.config.encoders, store.encoder)
    asked = {cell.row for cell in table.cells(query, split)}
    items = bank_items(store)
    rows = store.rows[store.rows["item"].isin(items)]
    if store.manifest["table"] == table.fingerprint and asked & set(rows["row"]):
        raise ValueError(f"{folder} holds queries that are asked here; a bank is made of the training split's.")
    return model.embed(query, store.read(items))


def _encoding(model: FusionModel, column: str, device: str, folder: str | None, bar: Any) -> Embed:
    """Make an Embed that runs a column's frozen encoder with a progress bar."""
    from fusemix.evaluation.evaluate import encode_items

    encoder = _encoder(model, column, device, folder)
    task = bar.add_task(column, total=None)

    def report(modality: str, done: int, total: int) -> None:
        bar.update(task, completed=done, total=total)

    return encode_items(model, {column: encoder}, report=report)


def _encoder(model: FusionModel, column: str, device: str, folder: str | None) -> Encoder:
    from fusemix.encoders.recorded import load_recorded

    if model.config.encoders.get(column, {}).get("fingerprint", "given latents") == "given latents":
        raise ValueError(
            f"The checkpoint was trained on {column} latents made elsewhere, which no encoder here can make; "
            f"give them with --latents {column}=DIR."
        )
    return load_recorded(column, model.config.encoders, device=device, source=folder)


main = entry("evaluate", evaluate)

if __name__ == "__main__":
    sys.exit(main())
