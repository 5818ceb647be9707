"""``fusemix diagnose``: comparison of encoders before training."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from fusemix.cli import flags, terminal
from fusemix.cli.command import entry, guarded, named
from fusemix.cli.extract import chosen
from fusemix.extras import extra

SOURCE = "What to compare (one of --latents and --pairs)"
FIGURES = {  # key -> column
    "dim": "dim",
    "intrinsic_dimension": "intrinsic",
    "norm_mean": "norm",
    "norm_variation": "± share",
    "hubness": "hubness",
    "exact_duplicates": "same",
    "near_duplicates": "nearly same",
}


@guarded(stopped="Stopped; nothing was compared.")
def diagnose(
    latents: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODALITY=DIR,DIR ...",
            help="Latent stores of one table, those of one modality separated by commas.",
            rich_help_panel=SOURCE,
        ),
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(
            metavar="TABLE", help="A table of pairs, of which a sample is encoded here.", rich_help_panel=SOURCE
        ),
    ] = None,
    encoders: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODALITY=ENCODER ...",
            help="The encoders to run on the table; a modality may occur several times.",
            show_default="the packaged ones of its two kinds",
            rich_help_panel=SOURCE,
        ),
    ] = None,
    n: Annotated[
        int, typer.Option("--n", metavar="PAIRS", help="How many pairs to compare, one of every group.")
    ] = 5000,
    split: flags.Split = None,
    seed: flags.Seed = 0,
    device: flags.Device = "cpu",
    json: flags.Json = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Also draw the figures to this PNG file.")] = None,
) -> None:
    """Say what to expect of a training, before anything is trained: recall now and with more pairs, and what limits it.

    Every encoder of one modality is compared with every one of the others: mutual nearest neighbours, CKA, intrinsic
    dimension, norms, hubs, duplicates, and how many held-out pairs a closed form (CCA) finds. Its learning curve on
    nested subsets, continued, is the forecast. Several layers of one
    network are several encoders (hub-image:...&layers=-2).

    Example: fusemix diagnose --pairs pairs.csv

    Example: fusemix diagnose --latents image=latents/a,latents/b text=latents/c --json d.json --plot d.png
    """
    if bool(latents) == (pairs is not None):
        raise ValueError("Give --latents or --pairs: one of them.")
    from fusemix.data.pairs import PairTable
    from fusemix.evaluation.diagnose import diagnose as compare
    from fusemix.evaluation.plot import plot as draw
    from fusemix.evaluation.samples import from_stores, from_table
    from fusemix.files import write_json

    if plot:
        with extra("plots", "Drawing the figures", "matplotlib"):  # fail before anything is computed
            pass
    closing = ""
    if pairs is None:
        listed = named(latents or [], "--latents MODALITY=DIR,DIR")
        folders = [(modality, folder) for modality, several in listed for folder in several.split(",")]
        read = from_stores(folders, n=n, split=split, seed=seed)
    else:
        wanted = named(encoders or [], "--encoders MODALITY=ENCODER")
        table = PairTable.read(pairs, own=list(dict(wanted)))
        wanted = chosen(table, wanted)
        columns = list(dict(wanted))
        closing = table.summary(*columns, split=split)
        read = from_table(
            table, wanted, n=n, split=split, seed=seed, device=device,
            report=lambda name, modality, count: terminal.note(f"{name}: encoding {count:,} items of {modality}"),
        )  # fmt: skip
    result = compare(read)
    for path in (json, plot):
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
    if json:
        write_json(json, result)
    if plot:
        draw(result, plot)
    for shown in (*tabulate(result), *map(tabulate_forecast, result["forecasts"])):
        terminal.show(shown)
    for found in result["forecasts"]:
        terminal.result(f"{found['verdict']} {found['limits']}")
    terminal.result(f"{result['n_pairs']:,} pairs. {result['recommendation']}")
    if closing:
        terminal.note(closing)


def tabulate(result: dict[str, Any]) -> tuple[Table, Table]:
    """Make a table of the combinations and one of the encoders."""
    combinations = Table("encoders", "CCA recall@1", "± 1 s.e.", "mutual k-NN", "CKA")
    for c in result["combinations"]:
        figures = (c[key] for key in ("cca_recall_at_1", "cca_recall_error", "mutual_knn", "cka"))
        combinations.add_row(" + ".join(c["encoders"].values()), *(f"{value:.3f}" for value in figures))
    single = Table("encoder", *FIGURES.values())
    for of_modality in result["encoders"].values():
        for name, found in of_modality.items():
            single.add_row(name, *(f"{found[key]:.4g}" for key in FIGURES))
    return combinations, single


def tabulate_forecast(found: dict[str, Any]) -> Table:
    """Tabulate the recall to expect of the closed form, with intervals in brackets, for growing numbers of pairs."""
    title = f"{' + '.join(found['encoders'].values())}: to expect among {found['gallery']:,} items"
    table = Table("pairs", "recall@1, %", "recall@10, %", title=title, title_justify="left")
    for expected in found["expected"]:
        cells = (expected[f"recall_at_{k}"] for k in (1, 10))
        table.add_row(
            f"{expected['pairs']:,}{' (now)' if expected['factor'] == 1 else ''}",
            *(f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]" for value, low, high in cells),
        )
    return table


main = entry("diagnose", diagnose)

if __name__ == "__main__":
    sys.exit(main())
