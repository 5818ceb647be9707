"""Which encoders fit together? Compare them on some thousand pairs, before anything is trained.

    python scripts/diagnose.py --latents image=DIR,DIR2 text=DIR,DIR2 --json d.json --plot d.png
    python scripts/diagnose.py --pairs T.csv --encoders image=efficientnet-lite0 image=efficientnet-lite0-deep \
        text=minilm-l6

Every encoder of one modality is compared with every one of the others: mutual nearest neighbours, CKA, intrinsic
dimension, norms, hubs, duplicates, and how many held-out pairs a closed form (CCA) finds. Several layers of one network
are several encoders (hub-image:...&layers=-2). docs/results/diagnose.json says which figure foretells training.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = p.add_mutually_exclusive_group(required=True)
    source.add_argument("--latents", nargs="+", metavar="MODALITY=DIR[,DIR]", help="latent stores of one table")
    source.add_argument("--pairs", type=Path, help="table of pairs, encoded here with --encoders")
    p.add_argument("--encoders", nargs="+", default=[], metavar="MODALITY=ENCODER", help="may repeat a modality")
    p.add_argument("--n", type=int, default=5000, help="pairs looked at, one of every group")
    p.add_argument("--split", help="only pairs of this split")
    p.add_argument("--seed", type=int, default=0, help="of the choice of pairs")
    p.add_argument("--device", default="cpu", help="torch device of --encoders")
    p.add_argument("--json", type=Path, help="write the figures here")
    p.add_argument("--plot", type=Path, help="draw them here (png)")
    return p.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Diagnose; 0 on success, 2 on bad input."""
    args = parse(argv)
    console = Console(stderr=True)
    try:
        from fusemix.evaluation.diagnose import diagnose

        result = diagnose(_from_stores(args) if args.latents else _from_table(args, console))
    except (ValueError, OSError, ImportError) as error:
        console.print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        return 2
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if args.plot:
        args.plot.parent.mkdir(parents=True, exist_ok=True)
        plot(result, args.plot)
    show(result)
    return 0


def _from_stores(args: argparse.Namespace) -> dict[str, dict[str, np.ndarray]]:
    from fusemix.data.latent_store import LatentStore
    from fusemix.datasets.splits import in_split
    from fusemix.evaluation.diagnose import sample_pairs

    stores: dict[str, dict[str, Any]] = {}
    for modality, folders in (_split(piece, "MODALITY=DIR") for piece in args.latents):
        for folder in folders.split(","):
            store, named = LatentStore.open(folder), stores.setdefault(modality, {})
            if store.modality != modality:
                raise ValueError(f"{folder} holds {store.modality} latents, not {modality} latents.")
            name = store.encoder["name"]
            named[f"{name} ({folder})" if name in named else name] = store
    if len({store.manifest["table"] for named in stores.values() for store in named.values()}) > 1:
        raise ValueError("The stores were made from different tables, so their rows do not match; use one table.")
    every = [store for named in stores.values() for store in named.values()]
    rows = every[0].rows[["row", "group", "split"]]
    for store in every[1:]:
        rows = rows[rows["row"].isin(store.rows["row"])]
    rows = rows.drop_duplicates("row")
    if args.split is not None:
        rows = rows[in_split(rows["split"].to_numpy(), args.split, every[0].folder)]
    rows = rows.iloc[sample_pairs(rows["group"].to_numpy(), args.n, seed=args.seed)]
    read = {}
    for modality, named in stores.items():
        items = {name: store.rows.drop_duplicates("row").set_index("row")["item"] for name, store in named.items()}
        read[modality] = {name: s.read(items[name].loc[rows["row"]].to_numpy()) for name, s in named.items()}
    return read


def _from_table(args: argparse.Namespace, console: Console) -> dict[str, dict[str, np.ndarray]]:
    from fusemix.data.pairs import PairTable
    from fusemix.encoders import load_encoder
    from fusemix.evaluation.diagnose import sample_pairs

    wanted = [_split(piece, "MODALITY=ENCODER") for piece in args.encoders]
    table = PairTable.read(args.pairs, own=[modality for modality, _ in wanted])
    rows = np.arange(len(table))
    for modality in dict.fromkeys(modality for modality, _ in wanted):
        rows = np.intersect1d(rows, table.rows(modality, args.split))
    rows = rows[sample_pairs(table.groups[rows], args.n, seed=args.seed)]
    read: dict[str, dict[str, np.ndarray]] = {}
    for modality, name in wanted:
        console.print(f"{name}: encoding {len(rows):,} items of {modality}", highlight=False)
        encoder = load_encoder(name, device=args.device)
        read.setdefault(modality, {})[name] = encoder.encode([table.value(modality, int(row)) for row in rows])
    return read


def _split(piece: str, form: str) -> tuple[str, str]:
    name, equals, value = piece.partition("=")
    if not (name and equals and value):
        raise ValueError(f"Expected {form}, got {piece!r}.")
    return name, value


def show(result: dict[str, Any]) -> None:
    """Two tables and the recommendation."""
    console = Console()
    table = Table("encoders", "CCA recall@1", "± 1 s.e.", "mutual k-NN", "CKA")
    for c in result["combinations"]:
        figures = (c[key] for key in ("cca_recall_at_1", "cca_recall_error", "mutual_knn", "cka"))
        table.add_row(" + ".join(c["encoders"].values()), *(f"{value:.3f}" for value in figures))
    console.print(table)
    keys = (
        "dim",
        "intrinsic_dimension",
        "norm_mean",
        "norm_variation",
        "hubness",
        "exact_duplicates",
        "near_duplicates",
    )
    short = ("dim", "intrinsic", "norm", "± share", "hubness", "same", "nearly same")
    table = Table("encoder", *short)
    for encoders in result["encoders"].values():
        for name, figures in encoders.items():
            table.add_row(name, *(f"{figures[key]:.4g}" for key in keys))
    console.print(table)
    console.print(f"{result['n_pairs']:,} pairs. {result['recommendation']}", highlight=False, soft_wrap=True)


def plot(result: dict[str, Any], path: Path) -> None:
    """Bars: the closed form's recall, mutual k-NN and CKA of every combination, best recall on top."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    combinations = result["combinations"][::-1]
    names = ["\n".join(c["encoders"].values()) for c in combinations]
    figure, axes = plt.subplots(
        1, 3, sharey=True, figsize=(11, 1.4 + 0.55 * len(names)), layout="constrained", squeeze=False
    )
    panels = (
        ("cca_recall_at_1", "CCA recall@1, held out (line: 1 s.e.)"),
        ("mutual_knn", "mutual k-NN"),
        ("cka", "CKA, debiased"),
    )
    for axis, (key, title) in zip(axes[0], panels, strict=True):
        error = [c["cca_recall_error"] for c in combinations] if key == "cca_recall_at_1" else None
        axis.barh(names, [c[key] for c in combinations], xerr=error, height=0.6, color="#4477aa", ecolor="#222222")
        axis.set_title(title, fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=9)
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
