"""The paper's experiments, and the README's recall table, as one command each.

    python scripts/reproduce.py flickr30k      --root /data     # COCO, VG, SBU, CC3M -> Flickr30K test
    python scripts/reproduce.py coco           --root /data     # the same training -> COCO 5K test
    python scripts/reproduce.py audiocaps      --root /data     # AudioCaps, Clotho -> AudioCaps test
    python scripts/reproduce.py clotho         --root /data     # the same training -> Clotho evaluation
    python scripts/reproduce.py audio-to-image --root /data     # sounds into a picture decoder's space, by way of text
    python scripts/reproduce.py flickr8k       --pairs ../shared/flickr8k/pairs.csv --seeds 0 1 2

--root holds a folder per dataset (coco, visual-genome, sbu, cc3m, flickr30k, audiocaps, clotho); --dry-run prints the
commands and what is missing. What has been done is not done again: run the same command after a kill. Flags after --
go to train.py, behind the paper's. On a small machine:

    python scripts/reproduce.py flickr30k --root /data --train-on coco --image-encoder efficientnet-lite0 \
        --text-encoder minilm-l6 -- --depth 1 --epochs 30 --batch-size 4096 --mixed-precision auto

flickr8k is the paper's recipe scaled to a small machine, beside closed-form CCA: it trains on split train (a fiftieth
of its photos chooses the epoch) and reports on split dev. It is what is run when no experiment is named.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fusemix.datasets.paper_recipes import (
    DECODER,
    ENCODERS,
    MODALITIES,
    RECIPES,
    Command,
    Setting,
    commands,
    lacking,
    result,
)

ROOT = Path(__file__).resolve().parents[1]
SMALL = {"image": "efficientnet-lite0", "text": "minilm-l6"}  # of flickr8k
DIRECTIONS = (("text", "image"), ("image", "text"))


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line; what follows -- is kept for train.py."""
    words = list(sys.argv[1:] if argv is None else argv)
    cut = words.index("--") if "--" in words else len(words)
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("experiment", nargs="?", choices=["flickr8k", *RECIPES], default="flickr8k")
    p.add_argument("--root", type=Path, default=ROOT / "data", help="holds a folder per dataset")
    p.add_argument("--data", nargs="+", default=[], metavar="DATASET=DIR", help="a dataset that lies elsewhere")
    p.add_argument("--pairs", type=Path, help="flickr8k: its table, with splits train and dev; else made from --root")
    p.add_argument("--train-on", nargs="+", default=[], metavar="DATASET", help="instead of the paper's datasets")
    for modality in ("image", "text", "audio"):
        p.add_argument(f"--{modality}-encoder", help="instead of the paper's (flickr8k: of the packaged one)")
    p.add_argument("--decoder", default=DECODER, help="audio-to-image: Stable unCLIP, folder or Hub id")
    p.add_argument("--conditioner-pairs", type=Path, help="audio-to-image: table that leads there (demo/gallery)")
    p.add_argument("--work", type=Path, help="tables, latents and checkpoints go here (runs/EXPERIMENT)")
    p.add_argument("--seeds", type=int, nargs="+", help="one run each (the paper's 42; flickr8k: 0 1 2)")
    p.add_argument("--json", type=Path, help="the figures (WORK/results.json; flickr8k: docs/results/flickr8k.json)")
    p.add_argument("--device", default="cpu", help="torch device of the encoders")
    p.add_argument("--dry-run", action="store_true", help="print the commands and what is missing, and stop")
    args = p.parse_args(words[:cut])
    args.training = words[cut + 1 :]
    return args


def main(argv: list[str] | None = None) -> int:
    """Run an experiment; 0 on success, 2 when something is missing or bad, else the failed command's code."""
    args = parse(argv)
    console = Console(stderr=True)
    try:
        return flickr8k(args, console) if args.experiment == "flickr8k" else experiment(args, console)
    except (ValueError, OSError) as error:
        console.print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        return 2
    except subprocess.CalledProcessError as error:
        console.print("Stopped by the command above; run this again to go on.")
        return int(error.returncode)
    except KeyboardInterrupt:
        console.print("Interrupted; run the same command again to go on.")
        return 130


def run(command: Command, number: int, total: int, console: Console) -> None:
    """Say a command and run it unless what it makes is there."""
    console.print(f"[{number}/{total}] {command}", highlight=False, soft_wrap=True, markup=False)
    if command.makes is not None and command.makes.exists():
        console.print(f"    done before: {command.makes}", highlight=False, soft_wrap=True)
        return
    subprocess.run([sys.executable, str(ROOT / "scripts" / command.script), *command.arguments], check=True)


def experiment(args: argparse.Namespace, console: Console) -> int:
    """One of the paper's: check, print, run, tell."""
    recipe = RECIPES[args.experiment]
    roots = _roots(args)
    setting = Setting(
        roots=roots,
        work=args.work or ROOT / "runs" / args.experiment,
        encoders={m: getattr(args, f"{m}_encoder") or name for m, name in ENCODERS.items()},
        seeds=args.seeds or [42],
        training=args.training,
        device=args.device,
        train_on=args.train_on,
        decoder=args.decoder,
        conditioner_pairs=args.conditioner_pairs or ROOT / "demo/gallery/pairs.csv",
    )
    todo = commands(recipe, setting)
    if args.dry_run:
        print("\n".join(map(str, todo)))
    with console.status("looking for the data"):
        missing = lacking(recipe, setting)
    for sentence in missing:
        console.print(f"[red]missing:[/red] {sentence}", highlight=False, soft_wrap=True)
    if missing or args.dry_run:
        return 0 if args.dry_run else 2
    for number, command in enumerate(todo, start=1):
        run(command, number, len(todo), console)
    results: dict[str, Any] = {"encoders": dict(setting.encoders), "runs": []}
    for seed in setting.seeds:
        figures = {}
        for test in recipe.tests:
            for query, gallery in (MODALITIES[test][::-1], MODALITIES[test]):
                file = result(setting, seed, test, query, gallery)
                figures[f"{test} {query}_to_{gallery}"] = json.loads(file.read_text(encoding="utf-8"))
        results["runs"].append({"seed": seed, **figures})
    target = args.json or setting.work / "results.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    show(results["runs"])
    return 0


def show(runs: list[dict[str, Any]]) -> None:
    """The figures of all seeds, in percent."""
    table = Table()
    for name in ("seed", "test split", "queries", "gallery", "R@1", "R@5", "R@10"):
        table.add_column(name)
    for figures in runs:
        for name, values in figures.items():
            if name != "seed":
                recall = (f"{100 * values[f'recall_at_{k}']:.1f}" for k in (1, 5, 10))
                table.add_row(str(figures["seed"]), name, str(values["n_queries"]), str(values["n_gallery"]), *recall)
    Console().print(table)


def _roots(args: argparse.Namespace) -> dict[str, Path]:
    roots = {name: args.root / name for name in MODALITIES}
    for piece in args.data:
        name, _, folder = piece.partition("=")
        if name not in roots or not folder:
            raise ValueError(f"--data takes DATASET=DIR with one of {', '.join(roots)}, got {piece!r}.")
        roots[name] = Path(folder)
    return roots


def flickr8k(args: argparse.Namespace, console: Console) -> int:
    """Extract, fit CCA, train, evaluate, write JSON."""
    if args.train_on or args.training:
        raise ValueError("flickr8k is a fixed comparison; --train-on and flags after -- belong to the others.")
    work, seeds = args.work or ROOT / "runs/reproduce", args.seeds or [0, 1, 2]
    pairs = args.pairs or work / "pairs.csv"
    encoders = {m: getattr(args, f"{m}_encoder") or name for m, name in SMALL.items()}
    folders = {(m, s): work / f"{m}-{s}" for m in encoders for s in ("train", "dev")}
    table, extractions, runs = _flickr8k_commands(args, work, pairs, seeds, encoders, folders)
    if args.dry_run:
        print("\n".join(map(str, [*table, *extractions, *(command for each in runs.values() for command in each)])))
        return 0
    total = len(table) + len(extractions) + sum(map(len, runs.values()))
    for number, command in enumerate([*table, *extractions], start=1):
        run(command, number, total, console)
    results: dict[str, Any] = {"cca": _cca(pairs, encoders, folders), "fusemix": []}
    for number, (seed, each) in enumerate(runs.items()):
        train, *evaluations = each
        trained, began = train.makes is not None and not train.makes.exists(), time.perf_counter()
        first = len(table) + len(extractions) + number * len(each) + 1
        run(train, first, total, console)
        figures: dict[str, Any] = {"seed": seed}
        if trained:
            figures["seconds"] = round(time.perf_counter() - began, 1)
        for offset, command in enumerate(evaluations, start=1):
            run(command, first + offset, total, console)
            target = Path(command.arguments[command.arguments.index("--json") + 1])
            figures[target.stem] = json.loads(target.read_text(encoding="utf-8"))
        results["fusemix"].append(figures)
    target = args.json or ROOT / "docs/results/flickr8k.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    for query, gallery in DIRECTIONS:
        name = f"{query}_to_{gallery}"
        values = [100 * figures[name]["recall_at_1"] for figures in results["fusemix"]]
        print(
            f"{name} R@1: CCA {100 * results['cca'][name]['recall_at_1']:.1f}; "
            f"FuseMix {sum(values) / len(values):.1f} (seeds {', '.join(f'{v:.1f}' for v in values)})"
        )
    return 0


def _flickr8k_commands(
    args: argparse.Namespace,
    work: Path,
    pairs: Path,
    seeds: list[int],
    encoders: dict[str, str],
    folders: dict[tuple[str, str], Path],
) -> tuple[list[Command], list[Command], dict[int, list[Command]]]:
    """The table (if it is to be made), the extractions, and each seed's training and evaluations."""
    table = []
    if args.pairs is None:
        make = ("flickr8k", "--root", str(_roots(args)["flickr8k"]), "--out", str(pairs))
        table = [Command("make_table.py", make, pairs)]
    extractions = [
        Command(
            "extract.py",
            ("--pairs", str(pairs), "--column", modality, "--encoder", encoders[modality], "--split", split,
             "--out", str(folder), *(("--device", args.device) if args.device != "cpu" else ())),
        )
        for (modality, split), folder in folders.items()
    ]  # fmt: skip
    runs = {}
    for seed in seeds:
        out = work / f"seed{seed}"
        latents = [f"{m}={folders[m, 'train']}" for m in encoders]
        flags = ("--recipe", "paper", "--seed", str(seed), "--val-fraction", "0.02", "--eval-every", "5")
        train = ("--latents", *latents, "--out", str(out), *flags, "--save-every", "5")
        runs[seed] = [Command("train.py", train, out / "model.safetensors")]
        for query, gallery in DIRECTIONS:
            question = ("--checkpoint", str(out), "--pairs", str(pairs), "--query", query, "--gallery", gallery)
            latents = [f"{m}={folders[m, 'dev']}" for m in encoders]
            target = str(out / f"{query}_to_{gallery}.json")
            words = (*question, "--split", "dev", "--latents", *latents, "--json", target)
            runs[seed].append(Command("evaluate.py", words))
    return table, extractions, runs


def _cca(pairs: Path, encoders: dict[str, str], folders: dict[tuple[str, str], Path]) -> dict[str, Any]:
    """The closed form's figures on split dev, and its seconds."""
    import torch

    from fusemix.data.latent_store import LatentStore
    from fusemix.data.pair_set import PairSet
    from fusemix.data.pairs import PairTable
    from fusemix.evaluation.evaluate import evaluate
    from fusemix.model.cca import fit_cca

    train = PairSet.join({m: LatentStore.open(folders[m, "train"]) for m in encoders})
    dev = {m: LatentStore.open(folders[m, "dev"]) for m in encoders}
    began = time.perf_counter()
    cca = fit_cca(*(train.latents(m, train.items[m]).numpy() for m in encoders), dim=128, ridge=0.3)
    figures: dict[str, Any] = {"seconds": round(time.perf_counter() - began, 1)}

    def embed(modality: str, items: Any) -> torch.Tensor:
        numbers = dev[modality].rows.set_index("row")["item"].loc[[item.row for item in items]].to_numpy()
        return torch.from_numpy(cca.embed(0 if modality == "image" else 1, dev[modality].read(numbers)))

    table = PairTable.read(pairs)
    for query, gallery in DIRECTIONS:
        figures[f"{query}_to_{gallery}"] = evaluate(table, embed, query=query, gallery=gallery, split="dev")
    return figures


if __name__ == "__main__":
    sys.exit(main())
