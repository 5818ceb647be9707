"""``fusemix train``: paired latents -> adapters."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fusemix.cli import flags, terminal
from fusemix.cli.command import SetCommand, entry, guarded, named_once
from fusemix.files import bytes_of
from fusemix.model.config import ModelConfig, TrainConfig
from fusemix.model.recipes import RECIPES, RecipeName, recipe_config

if TYPE_CHECKING:
    from fusemix.data.pair_set import PairSet
    from fusemix.model.adapters import FusionModel
    from fusemix.training.trainer import Result

D = TrainConfig()
ADAPTERS, MIX, RUN, MEMORY, LOOK = "Adapters", "FuseMix", "Run", "Speed and memory", "Look before or while it runs"
FORM = "--latents MODALITY=DIR MODALITY=DIR"


def _flag(panel: str, metavar: str, text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, metavar=metavar, help=text, rich_help_panel=panel, **more)


@guarded(stopped="Stopped before the first state was saved.", words={"the recipe ": "--recipe "})
def train(
    latents: Annotated[
        list[str],
        typer.Option(
            metavar="MODALITY=DIR MODALITY=DIR",
            help="One set of pairs: the latent stores of two or more modalities of one table. Repeat the flag for "
            "further sets; they train together, and a modality that stands in several of them joins the others.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The checkpoint folder to write.")],
    recipe: Annotated[
        RecipeName,
        typer.Option(
            metavar="NAME",
            help="views: a closed form (CCA, ridge) beside three trained paths, each with its own view of the "
            "latents; two-path: a closed form beside one trained path; paper: the paper's adapters alone; closed-form: "
            "nothing is trained, and seconds suffice.",
        ),
    ] = "views",
    dtype: Annotated[Literal["float32", "float16"], typer.Option(help="The type of the stored weights.")] = "float32",
    max_shard_size: flags.MaxShardSize = "5GB",
    embed_dim: Annotated[
        int | None,
        _flag(
            ADAPTERS,
            "D",
            "The width of the shared space, in dimensions.",
            show_default="1024, 256 a path, with the recipe views; else 512",
        ),
    ] = None,
    depth: Annotated[
        int, _flag(ADAPTERS, "N", "How many inverted-bottleneck blocks an adapter has (the paper: 4).")
    ] = 1,
    expansion: Annotated[
        float | None,
        _flag(
            ADAPTERS,
            "X",
            "The hidden width of a block as a multiple of the width it reads.",
            show_default="1 with the recipe views; else 4",
        ),
    ] = None,
    dropout: Annotated[float, _flag(ADAPTERS, "P", "The share of hidden units dropped in a training step.")] = 0.6,
    dropout_rows: Annotated[
        int,
        _flag(
            MEMORY,
            "ROWS",
            "How many rows of a batch drop the same hidden units, which are then not computed: at 512 a step takes "
            "about half the time; 1 draws for each row, as the paper does.",
        ),
    ] = D.dropout_rows,
    closed_form_dim: Annotated[
        int | None,
        _flag(
            ADAPTERS,
            "D",
            "How many dimensions of the shared space the closed form fills.",
            show_default="a path's share",
        ),
    ] = None,
    whiten_dim: Annotated[
        int, _flag(ADAPTERS, "D", "How many principal components of the latents the trained blocks read.")
    ] = 512,
    whiten: Annotated[bool, _flag(ADAPTERS, "", "Whiten those components (with the recipe two-path).")] = True,
    closed_form_ridge: Annotated[
        float | None,
        _flag(
            ADAPTERS,
            "R",
            "The ridge of the closed form's covariances, as a multiple of the mean variance.",
            show_default="1 with the recipe views; else 2",
        ),
    ] = None,
    init: Annotated[
        str | None, _flag(ADAPTERS, "FOLDER|ID", "Start from the adapters of this checkpoint: a folder or a Hub id.")
    ] = None,
    frozen: Annotated[
        list[str] | None,
        _flag(ADAPTERS, "MODALITY ...", "Do not train these modalities' adapters of the starting checkpoint."),
    ] = None,
    mixup_alpha: Annotated[
        float, _flag(MIX, "ALPHA", "The concentration of the Beta distribution that mixes pairs; 0 mixes none.")
    ] = 1.0,
    mixup_per_row: Annotated[
        bool, _flag(MIX, "", "Draw one coefficient for each row instead of one for each batch.", "--mixup-per-row")
    ] = False,
    epochs: Annotated[int, _flag(RUN, "N", "How many passes to make over the largest set.")] = D.epochs,
    batch_size: Annotated[
        int, _flag(RUN, "PAIRS", "Pairs read in a step, by all processes together; mixing halves them.")
    ] = D.batch_size,
    multi_positive: Annotated[
        bool, _flag(RUN, "", "Treat the pairs of one group as right answers for one another.", "--multi-positive")
    ] = False,
    learning_rate: Annotated[float, _flag(RUN, "RATE", "The highest learning rate.")] = D.learning_rate,
    warmup_steps: Annotated[
        int, _flag(RUN, "STEPS", "Steps until the learning rate is highest; at most a fifth of the run.")
    ] = D.warmup_steps,
    weight_decay: Annotated[float, _flag(RUN, "X", "AdamW's weight decay.")] = D.weight_decay,
    temperature: Annotated[
        float, _flag(RUN, "T", "The initial temperature, by which logits are divided; it is learned.")
    ] = D.temperature,
    val_fraction: Annotated[
        float, _flag(RUN, "SHARE", "The share of groups held out for validation if there is no split val or dev.")
    ] = D.val_fraction,
    eval_every: Annotated[int, _flag(RUN, "EPOCHS", "Validate after every so many epochs.")] = D.eval_every,
    save_every: Annotated[int, _flag(RUN, "EPOCHS", "Save the state after every so many epochs.")] = D.save_every,
    seed: Annotated[int, _flag(RUN, "N", "The seed of weights, order, mixing and validation groups.")] = D.seed,
    accumulate: Annotated[
        int, _flag(MEMORY, "PIECES", "Embed a batch in so many pieces, to save memory; all negatives are kept.")
    ] = D.accumulate,
    mixed_precision: Annotated[
        Literal["auto", "no", "bf16", "fp16"],
        _flag(MEMORY, "TYPE", "The precision of matrix products; auto is bf16 if the processor multiplies it fast."),
    ] = "auto",
    hold_latents: Annotated[
        str | None,
        _flag(
            MEMORY,
            "SIZE",
            "Latents that each process keeps in memory, such as 1GB; the rest is read from disk a step ahead.",
            show_default="512MiB, on a GPU half of its free memory",
        ),
    ] = None,
    plan: Annotated[
        bool, _flag(LOOK, "", "Take ten steps, print the run's memory, disk and time, and stop.", "--plan")
    ] = False,
    profile: Annotated[bool, _flag(LOOK, "", "Take ten steps, print their profile, and stop.", "--profile")] = False,
    tensorboard: Annotated[
        bool, _flag(LOOK, "", "Write TensorBoard events of every step to OUT/runs.", "--tensorboard")
    ] = False,
) -> int:
    """Train adapters that bring the latents of two or more modalities into one shared space.

    Run the same command again to resume a run that was stopped or killed. Rows of the splits val, valid,
    validation and dev choose the epoch that is kept, rows of test are left out.

    Several processes: torchrun --standalone --nproc_per_node 2 -m fusemix.cli.train --latents ...

    Example: fusemix train --latents image=latents/image text=latents/text --out checkpoints/mine
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for noisy in ("httpx", "accelerate"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    config = TrainConfig(
        batch_size=batch_size,
        epochs=epochs,
        learning_rate=learning_rate,
        warmup_steps=warmup_steps,
        weight_decay=weight_decay,
        temperature=temperature,
        mixup_alpha=mixup_alpha or None,
        mixup_per_row=mixup_per_row,
        multi_positive=multi_positive,
        dropout_rows=dropout_rows,
        accumulate=accumulate,
        closed_form_ridge=RECIPES[recipe].closed_form_ridge if closed_form_ridge is None else closed_form_ridge,
        val_fraction=val_fraction,
        eval_every=eval_every,
        save_every=save_every,
        mixed_precision=mixed_precision,
        frozen=tuple(frozen or ()),
        seed=seed,
    )
    sets, start = _sets(latents), _start(init)
    known = start.config if start else None
    stores = {modality: store for s in sets for modality, store in reversed(s.stores.items())}
    model_config = recipe_config(
        recipe,
        latent_dims=(known.latent_dims if known else {}) | {m: store.dim for m, store in stores.items()},
        encoders=(known.encoders if known else {}) | {m: store.encoder for m, store in stores.items()},
        embed_dim=embed_dim,
        expansion=expansion,
        closed_form_dim=closed_form_dim,
        whiten=whiten,
        depth=depth,
        dropout=dropout,
        whiten_dim=whiten_dim,
    )
    job = Job(sets, model_config, config, out, start, bytes_of(hold_latents) if hold_latents else None)
    job.check_out()
    terminal.note(f"processes: {os.environ.get('WORLD_SIZE', 1)}")
    for line in job.data():
        terminal.note(line)
    if plan or profile:
        for line in job.plan() if plan else job.profile():
            terminal.result(line)
        return 0
    result = job.train(tensorboard=tensorboard)
    if result.writer and result.finished:
        job.save(result, dtype=dtype, max_shard_size=max_shard_size)
    elif result.writer:
        terminal.note(f"Interrupted and saved in {out}; run the same command again to continue.")
    return 0 if result.finished else 130


@dataclass(frozen=True)
class Job:
    """A training with the arguments of :func:`fusemix.training.trainer.train`."""

    sets: list[PairSet]
    model: ModelConfig
    config: TrainConfig
    out: Path
    init: FusionModel | None
    hold_bytes: int | None

    def check_out(self) -> None:
        """Raise ValueError if the folder holds a finished checkpoint."""
        from fusemix.training.trainer import STATE_NAME

        if list(self.out.glob("model*.safetensors")) and not (self.out / STATE_NAME).exists():
            raise ValueError(f"{self.out} already holds a finished checkpoint; choose another --out or remove it.")

    def data(self) -> list[str]:
        """Describe each set of pairs in a line."""
        return [f"{s.name}: {len(s):,} pairs, {len(set(s.groups.tolist())):,} groups" for s in self.sets]

    def plan(self) -> list[str]:
        """Estimate memory, disk and time of the run, a sentence each."""
        from fusemix.training.estimate import plan

        return plan(self.sets, self.model, self.config, hold_bytes=self.hold_bytes).sentences()

    def profile(self) -> list[str]:
        """Profile ten steps, and return the profile as lines."""
        from fusemix.training.profiling import profile

        trace = self.out / "trace.json"
        return profile(self.sets, self.model, self.config, trace, init=self.init, hold_bytes=self.hold_bytes).lines()

    def train(self, *, tensorboard: bool) -> Result:
        """Train with a progress bar until the end or a signal."""
        from fusemix.training.curves import TensorBoard
        from fusemix.training.trainer import Progress, train

        board = TensorBoard(self.out / "runs") if tensorboard else None
        stop = _stop_on_signals()
        with terminal.bar(status=True) as bar:
            task = bar.add_task("", total=None, status="")

            def report(p: Progress) -> None:
                status = f"loss {p.loss:.3f}  temperature {p.temperature:.4f}  {p.pairs_per_s:,.0f} pairs/s"
                bar.update(task, completed=p.step, total=p.total_steps, status=status)
                if board:
                    board.add(p)
                if p.recall is not None:
                    recall = "  ".join(f"{key} {value:.3f}" for key, value in p.recall.items())
                    terminal.note(f"epoch {p.epoch:3d}  {status}  recall@1: {recall}")

            try:
                return train(
                    self.sets, self.model, self.config, self.out,
                    init=self.init, hold_bytes=self.hold_bytes, report=report, should_stop=stop.is_set,
                )  # fmt: skip
            finally:
                if board:
                    board.close()

    def save(self, result: Result, *, dtype: str, max_shard_size: str) -> None:
        """Write the checkpoint and its curves, and report the kept epoch."""
        import torch

        from fusemix.model.card import model_card
        from fusemix.training.curves import plot
        from fusemix.training.trainer import STATE_NAME, save_result

        card = model_card(
            self.out.name, self.model, self.config, data=self.data(), best=result.best, seconds=result.seconds
        )
        save_result(
            result, self.out, self.config, card=card, dtype=getattr(torch, dtype), max_shard_size=max_shard_size
        )
        try:
            plot(result.history, self.out / "training.png")
        except ImportError as error:  # history.json holds the curves, too
            terminal.note(f"training.png was not drawn. {error}")
        (self.out / STATE_NAME).unlink(missing_ok=True)
        score = result.best["score"]
        terminal.result(f"{self.out}: epoch {result.best['epoch']} kept, mean recall@1 {score:.3f} on validation")
        for s in self.sets:
            terminal.note(s.summary(self.config))


def _sets(latents: list[str]) -> list[PairSet]:
    """Join the stores of each ``--latents``; a store in several sets is opened once."""
    from fusemix.data.latent_store import LatentStore
    from fusemix.data.pair_set import PairSet

    opened: dict[str, LatentStore] = {}
    sets = []
    for pieces in latents:
        folders = named_once(pieces.split("\0"), FORM)
        for folder in folders.values():
            if folder not in opened:
                opened[folder] = LatentStore.open(folder, verify=True)
        sets.append(PairSet.join({modality: opened[folder] for modality, folder in folders.items()}))
    return sets


def _start(init: str | None) -> FusionModel | None:
    from fusemix.model.adapters import FusionModel

    return FusionModel.from_pretrained(init) if init else None


def _stop_on_signals() -> threading.Event:
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    return stop


main = entry("train", train, SetCommand)

if __name__ == "__main__":
    sys.exit(main())
