"""``fusemix reproduce``: the paper's experiments, and a small comparison with a closed form, as one command each."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from fusemix.cli import flags, terminal
from fusemix.cli.command import entry, guarded, named

SMALL = {"image": "efficientnet-lite0", "text": "minilm-l6"}  # encoders of flickr8k
DIRECTIONS = (("text", "image"), ("image", "text"))
DATA, ENCODERS, RUN = "Data", "Encoders and decoder, instead of the paper's", "Run"
Experiment = Literal["flickr8k", "flickr30k", "coco", "audiocaps", "clotho", "audio-to-image"]


def _flag(panel: str, metavar: str, text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, metavar=metavar, help=text, rich_help_panel=panel, **more)


@guarded(stopped="Interrupted; run the same command again to go on.")
def reproduce(
    experiment: Annotated[
        Experiment,
        typer.Argument(help="flickr8k: the paper's recipe scaled to a small machine; the others: the paper's own."),
    ] = "flickr8k",
    training: Annotated[
        list[str] | None,
        typer.Argument(metavar="-- FLAGS", help="Flags of fusemix train, used after the paper's."),
    ] = None,
    root: Annotated[
        Path, _flag(DATA, "DIR", "The folder that holds a folder for each dataset.", show_default="data of the clone")
    ] = flags.REPOSITORY / "data",
    data: Annotated[list[str] | None, _flag(DATA, "DATASET=DIR ...", "Datasets that lie elsewhere.")] = None,
    pairs: Annotated[
        Path | None,
        _flag(DATA, "TABLE", "flickr8k: its table, with the splits train and dev.", show_default="made from --root"),
    ] = None,
    train_on: Annotated[
        list[str] | None, _flag(DATA, "DATASET ...", "Train on these datasets instead of the paper's.")
    ] = None,
    image_encoder: Annotated[str | None, _flag(ENCODERS, "NAME", "The encoder of pictures.")] = None,
    text_encoder: Annotated[str | None, _flag(ENCODERS, "NAME", "The encoder of texts.")] = None,
    audio_encoder: Annotated[str | None, _flag(ENCODERS, "NAME", "The encoder of sounds.")] = None,
    decoder: Annotated[
        str | None,
        _flag(
            ENCODERS,
            "FOLDER|ID",
            "audio-to-image: the Stable unCLIP decoder.",
            show_default="sd2-community/stable-diffusion-2-1-unclip-small",
        ),
    ] = None,
    conditioner_pairs: Annotated[
        Path | None,
        _flag(
            ENCODERS,
            "TABLE",
            "audio-to-image: the table that leads into the decoder's space.",
            show_default="demo/gallery/pairs.csv of the clone",
        ),
    ] = None,
    work: Annotated[
        Path | None,
        _flag(RUN, "DIR", "Where tables, latents and checkpoints go.", show_default="runs/EXPERIMENT of the clone"),
    ] = None,
    seeds: Annotated[
        list[int] | None,
        _flag(RUN, "N ...", "The seeds, one training each.", show_default="42 as in the paper; flickr8k: 0 1 2"),
    ] = None,
    json: Annotated[
        Path | None,
        _flag(
            RUN,
            "FILE",
            "The JSON file of the figures.",
            show_default="results.json in --work; flickr8k: docs/results/flickr8k.json of the clone",
        ),
    ] = None,
    device: flags.Device = "cpu",
    dry_run: Annotated[
        bool, _flag(RUN, "", "Print the commands and what data is missing, and stop.", "--dry-run")
    ] = False,
) -> int:
    """Run an experiment of the paper, or print it as commands of fusemix.

    The --root holds the folders coco, visual-genome, sbu, cc3m, flickr30k, audiocaps and clotho, as far as the
    experiment needs them. Finished steps are skipped: run the same command again after a kill. flickr8k trains on
    its split train, where a fiftieth of the photos chooses the epoch, and reports on its split dev, beside a closed
    form.

    Example, on a small machine: fusemix reproduce flickr30k --root /data --train-on coco --image-encoder
    efficientnet-lite0 --text-encoder minilm-l6 -- --depth 1 --epochs 30 --batch-size 4096 --mixed-precision auto
    """
    chosen = {"image": image_encoder, "text": text_encoder, "audio": audio_encoder}
    encoders = {modality: name for modality, name in chosen.items() if name is not None}
    try:
        if experiment == "flickr8k":
            if train_on or training:
                raise ValueError("flickr8k is a fixed comparison; --train-on and flags after -- belong to the others.")
            place = work or flags.REPOSITORY / "runs/reproduce"
            small = Small(pairs, _roots(root, data)["flickr8k"], place, SMALL | encoders, seeds or [0, 1, 2], device)
            return small.run(json or flags.REPOSITORY / "docs/results/flickr8k.json", dry_run=dry_run)
        from fusemix.datasets import paper_recipes as paper

        setting = paper.Setting(
            roots=_roots(root, data),
            work=work or flags.REPOSITORY / "runs" / experiment,
            encoders=paper.ENCODERS | encoders,
            seeds=seeds or [42],
            training=training or [],
            device=device,
            train_on=train_on or [],
            decoder=decoder or paper.DECODER,
            conditioner_pairs=conditioner_pairs or flags.REPOSITORY / "demo/gallery/pairs.csv",
        )
        return _paper(experiment, setting, json or setting.work / "results.json", dry_run=dry_run)
    except subprocess.CalledProcessError as error:
        terminal.note("Stopped by the command above; run this again to go on.")
        return int(error.returncode)


def _roots(root: Path, data: list[str] | None) -> dict[str, Path]:
    """Map datasets to their folders."""
    from fusemix.datasets.paper_recipes import MODALITIES

    roots = {name: root / name for name in MODALITIES}
    for name, folder in named(data or [], f"--data DATASET=DIR with one of {', '.join(roots)}"):
        if name not in roots:
            raise ValueError(f"--data takes DATASET=DIR with one of {', '.join(roots)}, got {name!r}.")
        roots[name] = Path(folder)
    return roots


def _do(command: Any, number: int, total: int) -> None:
    """Print a command and run it unless its result exists."""
    terminal.note(f"[{number}/{total}] {command}")
    if command.makes is not None and command.makes.exists():
        terminal.note(f"    done before: {command.makes}")
        return
    subprocess.run([sys.executable, "-m", f"fusemix.cli.{command.name}", *command.arguments], check=True)


def _write(target: Path, figures: dict[str, Any]) -> None:
    from fusemix.files import write_json

    target.parent.mkdir(parents=True, exist_ok=True)
    write_json(target, figures)


def _paper(experiment: str, setting: Any, target: Path, *, dry_run: bool) -> int:
    """Run an experiment of the paper: check the data, print or run the commands, report."""
    from fusemix.datasets import paper_recipes as paper

    recipe = paper.RECIPES[experiment]
    todo = paper.commands(recipe, setting)
    if dry_run:
        terminal.result("\n".join(map(str, todo)))
    with terminal.waiting("looking for the data"):
        missing = paper.lacking(recipe, setting)
    for sentence in missing:
        terminal.note(f"missing: {sentence}", style="red")
    if missing or dry_run:
        return 0 if dry_run else 2
    for number, command in enumerate(todo, start=1):
        _do(command, number, len(todo))
    runs: list[dict[str, Any]] = []
    for seed in setting.seeds:
        figures: dict[str, Any] = {"seed": seed}
        for test in recipe.tests:
            for query, gallery in (paper.MODALITIES[test][::-1], paper.MODALITIES[test]):
                file = paper.result(setting, seed, test, query, gallery)
                figures[f"{test} {query}_to_{gallery}"] = json.loads(file.read_text(encoding="utf-8"))
        runs.append(figures)
    _write(target, {"encoders": dict(setting.encoders), "runs": runs})
    terminal.show(tabulate(runs))
    return 0


def tabulate(runs: Sequence[dict[str, Any]]) -> Table:
    """Tabulate the figures of all seeds, in percent."""
    table = Table()
    for name in ("seed", "test split", "queries", "gallery", "R@1", "R@5", "R@10"):
        table.add_column(name)
    for figures in runs:
        for name, values in figures.items():
            if name != "seed":
                recall = (f"{100 * values[f'recall_at_{k}']:.1f}" for k in (1, 5, 10))
                table.add_row(str(figures["seed"]), name, str(values["n_queries"]), str(values["n_gallery"]), *recall)
    return table


@dataclass(frozen=True)
class Small:
    """Experiment flickr8k: the paper's recipe scaled to a small machine, compared with closed-form CCA."""

    given: Path | None  # its table; made from ``root`` if there is none
    root: Path
    work: Path
    encoders: dict[str, str]
    seeds: list[int]
    device: str

    @property
    def pairs(self) -> Path:
        """Table of pairs."""
        return self.given or self.work / "pairs.csv"

    def store(self, modality: str, split: str) -> Path:
        """Return the folder for the latents of a split."""
        return self.work / f"{modality}-{split}"

    def run(self, target: Path, *, dry_run: bool) -> int:
        """Extract, fit CCA, train, evaluate, write JSON."""
        first, runs = self.preparations(), {seed: self.trainings(seed) for seed in self.seeds}
        if dry_run:
            terminal.result("\n".join(map(str, [*first, *(command for each in runs.values() for command in each)])))
            return 0
        total = len(first) + sum(map(len, runs.values()))
        for number, command in enumerate(first, start=1):
            _do(command, number, total)
        results: dict[str, Any] = {"cca": self.cca(), "fusemix": []}
        number = len(first)
        for seed, (train, *evaluations) in runs.items():
            fresh, began = train.makes is not None and not train.makes.exists(), time.perf_counter()
            _do(train, number + 1, total)
            figures: dict[str, Any] = {"seed": seed}
            if fresh:
                figures["seconds"] = round(time.perf_counter() - began, 1)
            for offset, command in enumerate(evaluations, start=2):
                _do(command, number + offset, total)
                written = Path(command.arguments[command.arguments.index("--json") + 1])
                figures[written.stem] = json.loads(written.read_text(encoding="utf-8"))
            number += 1 + len(evaluations)
            results["fusemix"].append(figures)
        _write(target, results)
        for query, gallery in DIRECTIONS:
            name = f"{query}_to_{gallery}"
            values = [100 * figures[name]["recall_at_1"] for figures in results["fusemix"]]
            terminal.result(
                f"{name} R@1: CCA {100 * results['cca'][name]['recall_at_1']:.1f}; "
                f"FuseMix {sum(values) / len(values):.1f} (seeds {', '.join(f'{v:.1f}' for v in values)})"
            )
        return 0

    def preparations(self) -> list[Any]:
        """List the commands that make the table (if needed) and the latents."""
        from fusemix.datasets.paper_recipes import Command

        words = ("flickr8k", "--root", str(self.root), "--out", str(self.pairs))
        table = [Command("table", words, self.pairs)] if self.given is None else []
        device = ("--device", self.device) if self.device != "cpu" else ()
        return table + [
            Command(
                "extract",
                ("--pairs", str(self.pairs), "--column", modality, "--encoder", encoder, "--split", split,
                 "--out", str(self.store(modality, split)), *device),
            )
            for modality, encoder in self.encoders.items() if modality in SMALL
            for split in ("train", "dev")
        ]  # fmt: skip

    def trainings(self, seed: int) -> list[Any]:
        """List a seed's training and evaluations."""
        from fusemix.datasets.paper_recipes import Command

        out = self.work / f"seed{seed}"
        latents = [f"{m}={self.store(m, 'train')}" for m in SMALL]
        settings = ("--recipe", "paper", "--seed", str(seed), "--val-fraction", "0.02", "--eval-every", "5")
        words = ("--latents", *latents, "--out", str(out), *settings, "--save-every", "5")
        commands = [Command("train", words, out / "model.safetensors")]
        for query, gallery in DIRECTIONS:
            question = ("--checkpoint", str(out), "--pairs", str(self.pairs), "--query", query, "--gallery", gallery)
            stores = [f"{m}={self.store(m, 'dev')}" for m in SMALL]
            target = str(out / f"{query}_to_{gallery}.json")
            words = (*question, "--split", "dev", "--latents", *stores, "--json", target)
            commands.append(Command("evaluate", words))
        return commands

    def cca(self) -> dict[str, Any]:
        """Measure CCA on split dev, and its time in seconds."""
        import torch

        from fusemix.data.latent_store import LatentStore
        from fusemix.data.pair_set import PairSet
        from fusemix.data.pairs import PairTable
        from fusemix.evaluation.evaluate import evaluate
        from fusemix.model.cca import fit_cca

        train = PairSet.join({m: LatentStore.open(self.store(m, "train")) for m in SMALL})
        dev = {m: LatentStore.open(self.store(m, "dev")) for m in SMALL}
        began = time.perf_counter()
        cca = fit_cca(*(train.latents(m, train.items[m]).numpy() for m in SMALL), dim=128, ridge=0.3)
        figures: dict[str, Any] = {"seconds": round(time.perf_counter() - began, 1)}

        def embed(modality: str, items: Any) -> torch.Tensor:
            numbers = dev[modality].rows.set_index("row")["item"].loc[[item.row for item in items]].to_numpy()
            return torch.from_numpy(cca.embed(0 if modality == "image" else 1, dev[modality].read(numbers)))

        table = PairTable.read(self.pairs)
        for query, gallery in DIRECTIONS:
            figures[f"{query}_to_{gallery}"] = evaluate(table, embed, query=query, gallery=gallery, split="dev")
        return figures


main = entry("reproduce", reproduce)

if __name__ == "__main__":
    sys.exit(main())
