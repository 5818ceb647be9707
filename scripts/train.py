"""Paired latents -> adapters. Run the same command again to resume an interrupted run.

    python scripts/train.py --latents image=DIR text=DIR [--latents audio=DIR text=DIR] --out checkpoints/NAME

Several processes: torchrun --standalone --nproc_per_node 2 scripts/train.py ... (the batch size is that of all).

Every --latents names one set of pairs; sets train together, and a modality that stands in
several of them (text, say) is the pivot of the shared space.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from fusemix.files import bytes_of
from fusemix.model.config import VIEWS, ModelConfig, TrainConfig

if TYPE_CHECKING:
    from fusemix.data.latent_store import LatentStore

DEFAULTS = TrainConfig()
# what stands for flags that are left out
RECIPES: dict[str, dict[str, float]] = {
    "views": {"embed_dim": 1024, "expansion": 1.0, "closed_form_ridge": 1.0},
    "two-path": {"embed_dim": 512, "expansion": 4.0, "closed_form_ridge": DEFAULTS.closed_form_ridge},
    "paper": {"embed_dim": 512, "expansion": 4.0, "closed_form_ridge": DEFAULTS.closed_form_ridge},
}


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line; defaults are TrainConfig's and ModelConfig's."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--latents", nargs="+", action="append", required=True, metavar="MODALITY=DIR")
    p.add_argument("--out", required=True, type=Path, help="checkpoint folder")
    p.add_argument("--max-shard-size", default="5GB", help="largest weight file, e.g. 9MB to suit a plain git push")
    p.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="of the stored weights")

    p.add_argument(
        "--recipe", choices=tuple(RECIPES), default="views",
        help="views: a closed form (CCA, ridge) beside three trained paths, each with its own view of the latents; "
        "two-path: beside one; paper: the paper's adapters alone",
    )  # fmt: skip

    model = p.add_argument_group("adapters")
    model.add_argument(
        "--embed-dim", type=int, help="width of the shared space (default: 512, with --recipe views 1024, 256 a path)"
    )
    model.add_argument("--depth", type=int, default=1, help="inverted-bottleneck blocks per adapter (paper: 4)")
    model.add_argument(
        "--expansion", type=float, help="hidden width of a block / width it reads (default: 4, with --recipe views 1)"
    )
    model.add_argument("--dropout", type=float, default=0.6)
    model.add_argument(
        "--closed-form-dim", type=int, help="of embed-dim, filled by the closed form (default: a path's share)"
    )
    model.add_argument("--whiten-dim", type=int, default=512, help="principal components the trained blocks read")
    model.add_argument("--whiten", action=argparse.BooleanOptionalAction, default=True, help="whiten those components")
    model.add_argument("--closed-form-ridge", type=float, help="of its covariances (default: 2, with --recipe views 1)")

    model.add_argument("--init", help="start from this checkpoint's adapters (folder or Hub id)")
    model.add_argument("--frozen", nargs="+", default=(), metavar="MODALITY", help="adapters of --init to keep as is")

    mix = p.add_argument_group("FuseMix")
    mix.add_argument("--mixup-alpha", type=float, default=1.0, help="Beta concentration; 0 trains without mixup")
    mix.add_argument("--mixup-per-row", action="store_true", help="one lambda per row instead of one per batch")

    run = p.add_argument_group("run")
    run.add_argument("--epochs", type=int, default=DEFAULTS.epochs, help="passes over the largest set")
    run.add_argument("--batch-size", type=int, default=DEFAULTS.batch_size, help="pairs read a step; mixing halves it")
    run.add_argument("--accumulate", type=int, default=1, help="pieces a batch is embedded in, to save memory")
    run.add_argument("--multi-positive", action="store_true", help="pairs of one group are right for one another")
    run.add_argument("--learning-rate", type=float, default=DEFAULTS.learning_rate)
    run.add_argument("--warmup-steps", type=int, default=DEFAULTS.warmup_steps)
    run.add_argument("--weight-decay", type=float, default=DEFAULTS.weight_decay)
    run.add_argument("--temperature", type=float, default=DEFAULTS.temperature, help="initial; it is learned")
    run.add_argument("--val-fraction", type=float, default=DEFAULTS.val_fraction, help="of groups, without a val split")
    run.add_argument("--eval-every", type=int, default=DEFAULTS.eval_every, help="epochs")
    run.add_argument("--save-every", type=int, default=DEFAULTS.save_every, help="epochs")
    run.add_argument("--mixed-precision", choices=("auto", "no", "bf16", "fp16"), default=DEFAULTS.mixed_precision)
    run.add_argument("--seed", type=int, default=DEFAULTS.seed)
    run.add_argument(
        "--hold-latents", metavar="SIZE",
        help="latents kept in memory by each process, e.g. 1GB; the rest is read from disk a step ahead "
        "(default: 512MiB, on a GPU half of its free memory)",
    )  # fmt: skip
    run.add_argument("--plan", action="store_true", help="say what the run will need, by ten steps, and stop")
    run.add_argument("--profile", action="store_true", help="say where the time of ten steps goes, and stop")
    run.add_argument("--tensorboard", action="store_true", help="write events of every step to OUT/runs")
    return p.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Train; 0 when finished, 2 on bad input, 130 when interrupted (the state is saved)."""
    args = parse(argv)
    for name, value in RECIPES[args.recipe].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for noisy in ("httpx", "accelerate"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    console = Console(stderr=True)
    try:
        return run(args, console)
    except (ValueError, OSError, MemoryError, ImportError) as error:
        console.print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        return 2


def run(args: argparse.Namespace, console: Console) -> int:
    """Join the latents, train with a progress bar, save the checkpoint."""
    from fusemix.data.pair_set import PairSet
    from fusemix.model.adapters import FusionModel
    from fusemix.model.card import model_card
    from fusemix.training.trainer import STATE_NAME, save_result, train

    hold = bytes_of(args.hold_latents) if args.hold_latents else None
    opened: dict[str, LatentStore] = {}
    sets = [PairSet.join(_stores(pieces, opened)) for pieces in args.latents]
    stores = {modality: store for s in sets for modality, store in reversed(s.stores.items())}
    init = FusionModel.from_pretrained(args.init) if args.init else None
    dims, encoders = dict(init.config.latent_dims) if init else {}, dict(init.config.encoders) if init else {}
    dims |= {m: store.dim for m, store in stores.items()}
    encoders |= {m: store.encoder for m, store in stores.items()}
    order = [m for m in ("image", "text", "audio") if m in dims] + sorted(set(dims) - {"image", "text", "audio"})
    model_config = ModelConfig(
        latent_dims={m: dims[m] for m in order},
        encoders={m: encoders[m] for m in order},
        embed_dim=args.embed_dim,
        depth=args.depth,
        expansion=args.expansion,
        dropout=args.dropout,
        closed_form_dim=_closed_form_dim(args, dims),
        whiten_dim=args.whiten_dim,
        views=_views(args),
    )
    config = _train_config(args)
    if list(args.out.glob("model*.safetensors")) and not (args.out / STATE_NAME).exists():
        raise ValueError(f"{args.out} already holds a finished checkpoint; choose another --out or remove it.")
    console.quiet = int(os.environ.get("RANK", 0)) > 0  # one voice for all processes
    console.print(f"processes: {os.environ.get('WORLD_SIZE', 1)}", highlight=False)
    for s in sets:
        console.print(f"{s.summary(config)} {len(set(s.groups.tolist())):,} groups.", highlight=False, soft_wrap=True)
    if args.plan:
        from fusemix.training.estimate import plan

        for sentence in plan(sets, model_config, config, hold_bytes=hold).sentences():
            print(sentence)
        return 0
    if args.profile:
        from fusemix.training.profiling import profile

        trace = args.out / "trace.json"
        for line in profile(sets, model_config, config, trace, init=init, hold_bytes=hold).lines():
            print(line)
        return 0
    board = TensorBoard(args.out / "runs") if args.tensorboard else None
    stop = _stop_on_signals()
    with Bar(
        BarColumn(30), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[status]}"), console=console,
    ) as bar:  # fmt: skip
        task = bar.add_task("", total=None, status="")

        def report(p: Any) -> None:
            status = f"loss {p.loss:.3f}  temperature {p.temperature:.4f}  {p.pairs_per_s:,.0f} pairs/s"
            bar.update(task, completed=p.step, total=p.total_steps, status=status)
            if board:
                board.add(p)
            if p.recall is not None:
                recall = "  ".join(f"{key} {value:.3f}" for key, value in p.recall.items())
                bar.console.print(f"epoch {p.epoch:3d}  {status}  recall@1: {recall}", highlight=False, soft_wrap=True)

        try:
            result = train(
                sets, model_config, config, args.out,
                init=init, hold_bytes=hold, report=report, should_stop=stop.is_set,
            )  # fmt: skip
        finally:
            if board:
                board.close()
    if not result.writer:
        return 0 if result.finished else 130
    if not result.finished:
        console.print(f"Interrupted and saved in {args.out}; run the same command again to go on.")
        return 130
    import torch

    card = model_card(
        args.out.name,
        model_config,
        config,
        data=[f"{s.name}: {len(s):,} pairs, {len(set(s.groups.tolist())):,} groups" for s in sets],
        best=result.best,
        seconds=result.seconds,
    )
    save_result(
        result, args.out, config, card=card, dtype=getattr(torch, args.dtype), max_shard_size=args.max_shard_size
    )
    plot(result.history, args.out / "training.png")
    (args.out / STATE_NAME).unlink(missing_ok=True)
    print(f"{args.out}: epoch {result.best['epoch']} kept, mean recall@1 {result.best['score']:.3f} on validation")
    return 0


class TensorBoard:
    """Loss, temperature, learning rate and validation recall of a run as TensorBoard events."""

    def __init__(self, folder: Path) -> None:
        """Raises ImportError, saying what to install, if tensorboard is absent."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "--tensorboard needs the package tensorboard, which is not installed; "
                "'pip install tensorboard', or leave the flag out (training.png is drawn without it)."
            ) from error
        self._open, self._folder = SummaryWriter, folder
        self._writer: Any = None

    def add(self, p: Any) -> None:
        """Write one step; the first after a resumption takes the place of what was written beyond it."""
        if self._writer is None:
            self._writer = self._open(str(self._folder), purge_step=p.step)
        values = {"loss": p.loss, "temperature": p.temperature, "learning_rate": p.learning_rate}
        values |= {f"recall_at_1/{key}": value for key, value in (p.recall or {}).items()}
        for name, value in values.items():
            self._writer.add_scalar(name, value, p.step)

    def close(self) -> None:
        """Flush the events."""
        if self._writer is not None:
            self._writer.close()


def plot(history: list[dict[str, Any]], path: Path) -> None:
    """Draw loss, temperature and validation recall by epoch."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    from fusemix.files import write_atomic

    epochs = [entry["epoch"] for entry in history]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    left.plot(epochs, [entry["loss"] for entry in history], color="#1f7a5c", marker="o", markersize=3)
    left.set(xlabel="epoch", ylabel="loss (training)")
    cooler = left.twinx()
    cooler.plot(epochs, [entry["temperature"] for entry in history], color="#b0623a", linestyle="--")
    cooler.set_ylabel("temperature", color="#b0623a")
    for key in sorted(k for k in history[0] if "/" in k) if history else ():
        values = [100 * entry[key] for entry in history]
        right.plot(epochs, values, marker="o", markersize=3, label=key.rsplit("/", 1)[-1].replace("_", " "))
    right.set(xlabel="epoch", ylabel="validation recall@1, %")
    right.legend(frameon=False)
    right.spines[["top", "right"]].set_visible(False)
    left.spines["top"].set_visible(False)
    cooler.spines["top"].set_visible(False)
    write_atomic(path, lambda temporary: figure.savefig(temporary, dpi=150, format="png"))
    plt.close(figure)


def _stores(pieces: list[str], opened: dict[str, LatentStore]) -> dict[str, LatentStore]:
    from fusemix.data.latent_store import LatentStore

    stores = {}
    for piece in pieces:
        modality, _, folder = piece.partition("=")
        if not modality or not folder or modality in stores:
            raise ValueError(f"--latents takes MODALITY=DIR, each modality once, got {piece!r}.")
        if folder not in opened:  # the pivot of several sets is read and held once
            opened[folder] = LatentStore.open(folder, verify=True)
        stores[modality] = opened[folder]
    return stores


def _views(args: argparse.Namespace) -> tuple[str, ...]:
    if args.recipe == "views":
        return VIEWS
    return () if args.recipe == "paper" else ("whitened",) if args.whiten else ("components",)


def _closed_form_dim(args: argparse.Namespace, dims: dict[str, int]) -> int:
    if args.recipe == "paper":
        if args.closed_form_dim:
            raise ValueError("--closed-form-dim belongs to --recipe views or two-path; the paper's adapters have none.")
        return 0
    if args.closed_form_dim is not None:
        return args.closed_form_dim
    trained = len(VIEWS) if args.recipe == "views" else 1
    widest = min(args.embed_dim // (trained + 1), *dims.values())
    even = [width for width in range(1, widest + 1) if (args.embed_dim - width) % trained == 0]
    if not even:
        raise ValueError(
            f"An --embed-dim of {args.embed_dim} cannot be shared by a closed form of at most {widest} dimensions and "
            f"{trained} trained paths; choose another --embed-dim, or --recipe two-path."
        )
    return even[-1]


def _train_config(args: argparse.Namespace) -> TrainConfig:
    names = {field.name for field in dataclasses.fields(TrainConfig)} & set(vars(args))
    values = {name: getattr(args, name) for name in names}
    values["mixup_alpha"] = args.mixup_alpha or None
    return TrainConfig(**values)


def _stop_on_signals() -> threading.Event:
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    return stop


if __name__ == "__main__":
    sys.exit(main())
