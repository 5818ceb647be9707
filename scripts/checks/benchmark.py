"""Speed and memory, as ratios within one run on one machine.

    python scripts/checks/benchmark.py loss --batches 2048 8192 20480 65536
    python scripts/checks/benchmark.py train --peer /path/to/layer6ai-labs-fusemix
    python scripts/checks/benchmark.py recall --peer /path/to/layer6ai-labs-fusemix --latents FOLDER
    python scripts/checks/benchmark.py extract
    python scripts/checks/benchmark.py folder --photos FOLDER
    python scripts/checks/benchmark.py sounds
    python scripts/checks/benchmark.py search --sizes 10000 100000 1000000
    python scripts/checks/benchmark.py scale --pairs 10000 100000 1000000
    python scripts/checks/benchmark.py processes

``loss``: forward and backward of the symmetric InfoNCE, plain and in tiles, each in a fresh process, with
the peak memory the loss itself adds. ``train``: optimizer steps beside the authors' own model and dataset
classes (their repository in a folder of yours; nothing of it is kept here), the two taking turns, with the share
of the processor's own matrix-product rate that each reaches and the stages of a step of ours. ``recall``: theirs and
our recipes trained on the same latents, some seeds each: validation recall, and the time to that of our paper recipe.
``extract``: every packaged encoder into a store, beside a loop of one item at a time. ``folder``: the index of a folder
of photos beside its encoder alone. ``sounds``: Whisper on clips under 5 s, the frames that are there beside padding to
30 s: speed, latents and retrieval. ``search``: numpy, faiss exact, HNSW and IVF. ``scale``: training from latents on
disk as their number grows. These five count the processor's time of their own process, so that others on the machine
do not count: run them with OMP_NUM_THREADS=1.
Writes ``docs/results/benchmark-<name>.json`` and prints a table.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import itertools
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

MIB = 2**20
PLAIN_BYTES = 5 * 4  # peak bytes a logit of the plain loss; decides whether it fits


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results")
    commands = parser.add_subparsers(dest="command", required=True)
    loss = commands.add_parser("loss", help="memory and time of the loss, plain and in tiles")
    loss.add_argument("--batches", type=int, nargs="+", default=[2048, 8192, 20480, 65536])
    loss.add_argument("--dim", type=int, default=512)
    loss.add_argument("--memory-gib", type=float, default=12, help="plain runs that would need more are left out")
    loss.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # batch and kind, in a child process
    train = commands.add_parser("train", help="steps per second beside the authors' trainer")
    train.add_argument("--peer", type=Path, required=True, help="a checkout of layer6ai-labs/fusemix")
    train.add_argument("--pairs", type=int, default=20_000)
    train.add_argument("--widths", type=int, nargs=2, default=[768, 384], help="latent widths of image and text")
    train.add_argument("--depth", type=int, default=4)
    train.add_argument("--batch-size", type=int, default=4096, help="pairs read a step")
    train.add_argument("--steps", type=int, default=4, help="timed steps of each in every turn")
    train.add_argument("--turns", type=int, default=3)
    train.add_argument("--dropout-rows", type=int, nargs="+", default=[512], help="also ours with these shared masks")
    recall = commands.add_parser("recall", help="validation recall beside the authors' trainer after equal epochs")
    recall.add_argument("--peer", type=Path, required=True, help="a checkout of layer6ai-labs/fusemix")
    recall.add_argument("--latents", type=Path, required=True, help="folder of the stores image and text")
    recall.add_argument(
        "--width", type=int, help="principal components of each latent that both train on (default: all)"
    )
    recall.add_argument(
        "--recipes", nargs="+", default=["paper", "two-path", "views"], help="of ours, as NAME or NAME/DROPOUT_ROWS"
    )
    recall.add_argument("--goal", type=float, help="mean recall@1 to be reached (default: the paper recipe's last)")
    recall.add_argument("--depth", type=int, default=4)
    recall.add_argument("--batch-size", type=int, default=4096, help="pairs read a step")
    recall.add_argument("--epochs", type=int, default=10)
    recall.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    extract = commands.add_parser("extract", help="items per second of every packaged encoder")
    extract.add_argument("--pairs", type=Path, default=ROOT / "demo/gallery/pairs.csv")
    extract.add_argument("--items", type=int, default=96, help="of each column, spread over the table")
    extract.add_argument("--turns", type=int, default=3)
    folder = commands.add_parser("folder", help="photos a minute of the index of a folder, beside its encoder alone")
    folder.add_argument("--photos", type=Path, required=True, help="a folder of photos")
    folder.add_argument("--items", type=int, default=500)
    folder.add_argument("--turns", type=int, default=5, help="folders that they are divided into")
    folder.add_argument("--checkpoint", default=str(ROOT / "checkpoints/default"))
    sounds = commands.add_parser("sounds", help="Whisper on short clips: real frames beside 30 s windows")
    sounds.add_argument("--pairs", type=Path, default=ROOT / "demo/gallery/pairs.csv")
    sounds.add_argument("--under", type=float, default=5.0, help="seconds")
    sounds.add_argument("--limit", type=int, help="clips at most, spread over the table")
    sounds.add_argument("--name", default="sounds", help="of the JSON: benchmark-NAME.json")
    search = commands.add_parser("search", help="faiss exact, HNSW and IVF beside numpy")
    search.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    search.add_argument("--dim", type=int, default=512)
    search.add_argument("--queries", type=int, default=100)
    search.add_argument("--hnsw-up-to", type=int, default=100_000, help="larger graphs take minutes to build")
    scale = commands.add_parser("scale", help="steps per second and memory as the latents on disk grow")
    scale.add_argument("--pairs", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    scale.add_argument("--widths", type=int, nargs=2, default=[1536, 1024], help="latent widths of image and text")
    scale.add_argument("--batch-size", type=int, default=2048, help="pairs read a step")
    scale.add_argument("--steps", type=int, default=3, help="timed steps at each size in every turn")
    scale.add_argument("--turns", type=int, default=6)
    scale.add_argument("--disk", type=Path, help="where the latents lie while they are used (default: the system's)")
    scale.add_argument("--also-held", type=int, help="at this size also a process that holds all latents in memory")
    scale.add_argument("--hold-bytes", type=int, help=argparse.SUPPRESS)
    scale.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # pairs and folder, in a child process
    both = commands.add_parser("processes", help="one process with two threads beside two processes with one each")
    both.add_argument("--pairs", type=int, default=20_000)
    both.add_argument("--widths", type=int, nargs=2, default=[768, 384], help="latent widths of image and text")
    both.add_argument("--depth", type=int, default=4)
    both.add_argument("--batch-size", type=int, default=4096, help="pairs read a step")
    both.add_argument("--epochs", type=int, default=3)
    both.add_argument("--turns", type=int, default=2)
    both.add_argument("--dropout-rows", type=int, nargs="+", default=[1, 512])
    return parser.parse_args(argv)


def machine() -> dict[str, Any]:
    """Describe the machine of the measurement."""
    return {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load_average": os.getloadavg()[0],  # above the number of processors: the machine was busy
        "processors": os.cpu_count(),
        "date": time.strftime("%Y-%m-%d"),
    }


def processor() -> str:
    """Name the processor, and how it multiplies bf16."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    said = dict(line.split(":", 1) for line in lines if ":" in line)
    said = {name.strip(): value.strip() for name, value in said.items()}
    fast = [name for name in ("amx_bf16", "avx512_bf16") if name in said.get("flags", "").split()]
    return " ".join([said.get("model name", platform.machine()), *fast])


def save(args: argparse.Namespace, name: str, values: dict[str, Any]) -> None:
    """Write one benchmark's JSON."""
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"benchmark-{name}.json"
    path.write_text(json.dumps({"machine": machine(), **values}, indent=2) + "\n")
    print(path)


def loss_child(batch: int, kind: str, dim: int) -> dict[str, float]:
    """Measure time and added peak memory of one loss in this process."""
    from fusemix.training.losses import TILE, info_nce

    torch.manual_seed(0)
    a, b = (torch.randn(batch, dim, requires_grad=True) for _ in range(2))
    temperature = torch.tensor(0.07, requires_grad=True)
    tile = TILE if kind == "tiled" else batch + 1  # one tile of all is still the recomputing version
    compute = info_nce if kind == "tiled" else _plain
    small = [x[:64].detach().requires_grad_() for x in (a, b)]
    compute(*small, temperature=temperature, tile=tile).backward()  # libraries loaded before the count
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began, computed = time.perf_counter(), time.process_time()
    compute(a, b, temperature=temperature, tile=tile).backward()
    seconds, cpu = time.perf_counter() - began, time.process_time() - computed
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    gradients = 2 * a.numel() * a.element_size() / MIB  # a part of what is added
    return {"seconds": seconds, "cpu_s": cpu, "added_mib": (peak - before) / 1024, "gradients_mib": gradients}


def _plain(a: torch.Tensor, b: torch.Tensor, *, temperature: torch.Tensor, tile: int) -> torch.Tensor:
    """Compute the loss with one B x B matrix of logits held for autograd."""
    del tile
    from torch.nn import functional as F

    logits = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T / temperature
    target = torch.arange(len(a))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def run_loss(args: argparse.Namespace) -> dict[str, Any]:
    """Measure the plain and the tiled loss at every batch size."""
    rows: list[dict[str, Any]] = []
    for batch in args.batches:
        row: dict[str, Any] = {"batch": batch}
        for kind in ("plain", "tiled"):
            if kind == "plain" and batch**2 * PLAIN_BYTES > args.memory_gib * 2**30:
                row[kind] = f"left out: about {batch**2 * PLAIN_BYTES / 2**30:.0f} GiB"
                continue
            command = [sys.executable, __file__, "loss", "--dim", str(args.dim), "--one", str(batch), kind]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            row[kind] = json.loads(done.stdout.splitlines()[-1])
        if isinstance(row["plain"], dict):
            row["time_ratio"] = row["tiled"]["seconds"] / row["plain"]["seconds"]
            row["cpu_ratio"] = row["tiled"]["cpu_s"] / row["plain"]["cpu_s"]
        rows.append(row)
        print(row, file=sys.stderr, flush=True)
        save(args, "loss", {"dim": args.dim, "rows": rows})  # the largest take long
    view = Table("pairs", "plain: CPU s", "MiB added", "tiled: CPU s", "MiB added", "CPU time tiled / plain")
    for row in rows:
        plain, tiled = row["plain"], row["tiled"]
        cells = [f"{plain['cpu_s']:.2f}", f"{plain['added_mib']:.0f}"] if isinstance(plain, dict) else [plain, ""]
        ratio = f"{row['cpu_ratio']:.2f}" if "cpu_ratio" in row else ""
        view.add_row(f"{row['batch']:,}", *cells, f"{tiled['cpu_s']:.2f}", f"{tiled['added_mib']:.0f}", ratio)
    Console().print(view)
    return {"rows": rows}


def load_peer(folder: Path) -> tuple[Any, Any]:
    """Load the authors' model and dataset classes, without the rest of their package and its requirements."""

    class Model(torch.nn.Module):
        @property
        def device(self) -> torch.device:
            return next(self.parameters()).device

    def module(name: str, **values: Any) -> None:
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__dict__.update(values)

    registry = types.SimpleNamespace(register_model=lambda _: lambda cls: cls)
    for name in ("lavis", "lavis.common", "lavis.models", "lavis.models.fusion_models"):
        module(name)
    module("lavis.common.registry", registry=registry)
    module("lavis.models.base_model", BaseModel=Model)
    bag = types.SimpleNamespace
    module("lavis.models.fusion_models.fusion_outputs", FusionOutputFeatures=bag, FusionOutput=bag)
    module("lavis.models.fusion_models.utils", compute_sim_matrix=None, slerp=None)
    loaded: list[Any] = []
    for path in ("models/fusion_models/mlp_contrastive_fusion.py", "datasets/datasets/feature_pair_dataset.py"):
        source = folder / "lavis" / path
        if not source.is_file():
            raise SystemExit(f"{source} is missing; --peer takes a checkout of layer6ai-labs/fusemix.")
        spec = importlib.util.spec_from_file_location(source.stem, source)
        assert spec is not None and spec.loader is not None
        loaded.append(importlib.util.module_from_spec(spec))
        spec.loader.exec_module(loaded[-1])
    return loaded[0].MLPContrastiveFusion, loaded[1].FeaturePairDataset


def _as_it_is(latent: torch.Tensor) -> torch.Tensor:
    return latent


def peer_step(args: argparse.Namespace, sides: list[np.ndarray]) -> tuple[Any, Callable[..., None]]:
    """Make the authors' model and a step of their trainer: their dataset, a DataLoader, AdamW with their settings."""
    model_class, dataset_class = load_peer(args.peer)
    folder = Path(tempfile.mkdtemp())
    paths = []
    for name, side in zip(("vis", "text"), sides, strict=True):
        paths.append(folder / f"{name}.pt")
        torch.save({str(i): torch.from_numpy(row.copy()) for i, row in enumerate(side)}, paths[-1])
    dataset = dataset_class(_as_it_is, _as_it_is, *map(str, paths))
    widths = [side.shape[1] for side in sides]
    model = model_class(*widths, 512, num_layers_vis=args.depth, num_layers_text=args.depth, dropout=0.6)
    model.mixup_alpha = 1.0
    matrices, others = ([p for p in model.parameters() if (p.ndim > 1) is wide] for wide in (True, False))
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)

    def batches() -> Any:
        while True:
            yield from torch.utils.data.DataLoader(
                dataset, args.batch_size, shuffle=True, drop_last=True, collate_fn=dataset.collater
            )

    stream = batches()

    def step(learning_rate: float = 1e-3) -> None:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        loss = model(next(stream)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return model, step


def our_run(args: argparse.Namespace, sides: list[np.ndarray], **changes: Any) -> Any:
    """Make a run of fusemix.training.trainer with the paper's recipe at the same widths, depth and batch."""
    from fusemix.data.latent_writer import write_latents
    from fusemix.data.pair_set import PairSet
    from fusemix.model.config import ModelConfig, TrainConfig
    from fusemix.training.trainer import Trainer

    folder = Path(tempfile.mkdtemp())
    stores = {
        m: write_latents(folder / m, side, modality=m, name="random")
        for m, side in zip(("image", "text"), sides, strict=True)
    }
    dims = dict(zip(("image", "text"), args.widths, strict=True))
    config = TrainConfig(batch_size=args.batch_size, val_fraction=0.01, warmup_steps=1, **changes)
    return Trainer([PairSet.join(stores)], ModelConfig(latent_dims=dims, depth=args.depth), config, folder / "run")


def where_it_goes(run: Any, steps: int) -> dict[str, float]:
    """Profile some steps of ours: stage -> share of CPU time."""
    spent: dict[str, float] = {}

    @contextlib.contextmanager
    def stage(name: str) -> Iterator[None]:
        began = time.process_time()
        yield
        spent[name] = spent.get(name, 0.0) + time.process_time() - began

    usual, run.stage = run.stage, stage
    began = time.process_time()
    for _ in range(steps):
        run.take_step()
    whole, run.stage = time.process_time() - began, usual
    return {name: value / whole for name, value in spent.items()} | {"the rest": 1 - sum(spent.values()) / whole}


def product_rate(dtype: torch.dtype) -> float:
    """Measure the FLOP of a large matrix product per second of CPU time, with the threads set."""
    side = 2048
    x = torch.randn(side, side).to(dtype)
    x @ x  # the kernel is chosen
    began = time.process_time()
    for _ in range(8):
        x @ x
    return 8 * 2 * side**3 / (time.process_time() - began)


def run_train(args: argparse.Namespace) -> dict[str, Any]:
    """Take turns: peer, ours, peer, ours; report medians and the share of the processor's own rate."""
    load_peer(args.peer)  # fail early on a wrong folder
    from fusemix.allocator import keep_freed_memory
    from fusemix.training.precision import resolve_precision

    rng = np.random.default_rng(0)
    sides = [rng.normal(size=(args.pairs, width)).astype(np.float32) for width in args.widths]
    runs = {f"ours, {n} rows share a mask": our_run(args, sides, dropout_rows=n) for n in args.dropout_rows}
    runs = {"ours": our_run(args, sides), **runs}
    steps: dict[str, Callable[[], object]] = {"peer": peer_step(args, sides)[1]}
    steps |= {name: run.take_step for name, run in runs.items()}
    ours = "bf16" if resolve_precision("auto") == "bf16" else "float32"
    precision = {"peer": "float32"} | dict.fromkeys(runs, ours)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    computed: dict[str, list[float]] = {name: [] for name in steps}
    products: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()  # memory is allocated and libraries are loaded
    for _ in range(args.turns):
        for name, step in steps.items():
            keep_freed_memory(name != "peer")  # the setting is ours, of the whole process
            products[name].append(product_rate(torch.bfloat16 if precision[name] == "bf16" else torch.float32))
            step()  # its memory is allocated
            for _ in range(args.steps):
                began, used = time.perf_counter(), time.process_time()
                step()
                seconds[name].append(time.perf_counter() - began)
                computed[name].append(time.process_time() - used)
    stages = {name: where_it_goes(run, args.steps) for name, run in runs.items()}
    median = {name: float(np.median(values)) for name, values in seconds.items()}
    cpu = {name: float(np.median(values)) for name, values in computed.items()}
    rates = {name: float(np.median(values)) for name, values in products.items()}
    work = 6 * (args.batch_size // 2) * sum(args.depth * 8 * w * w + 512 * w for w in args.widths)
    values: dict[str, Any] = {
        "settings": {k: getattr(args, k) for k in ("pairs", "widths", "depth", "batch_size", "steps", "turns")},
        "seconds_per_step": median,
        "cpu_seconds_per_step": cpu,
        "ratio": {name: median["peer"] / median[name] for name in runs},
        "cpu_ratio": {name: cpu["peer"] / cpu[name] for name in runs},
        "precision": precision,
        "matrix_product_gflop_per_cpu_s": {name: rate / 1e9 for name, rate in rates.items()},
        "model_flops_utilisation": {name: work / cpu[name] / rates[name] for name in ("peer", "ours")},
        "stages": stages,
    }
    share = values["model_flops_utilisation"]
    view = Table("", "precision", "s / step", "CPU s / step", "steps/s beside peer", "of the matrix-product rate")
    for name in steps:
        cells = [f"{median[name]:.2f}", f"{cpu[name]:.2f}", f"{median['peer'] / median[name]:.2f}"]
        view.add_row(name, precision[name], *cells, f"{share[name]:.0%}" if name in share else "")
    Console().print(view)
    for name, parts in stages.items():
        print(f"a step of {name}: " + ", ".join(f"{part} {value:.0%}" for part, value in parts.items()))
    save(args, "train", values)
    return values


class _Peer:
    """The authors' trained model, with the interface of :func:`fusemix.training.trainer.validation_recall`."""

    def __init__(self, model: Any) -> None:
        self.sides = {"image": model.eval().proj_vis, "text": model.proj_text}

    def embed(self, modality: str, latents: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return torch.nn.functional.normalize(self.sides[modality](latents), dim=1)


def one_set(args: argparse.Namespace, folder: Path) -> Any:
    """Join training and validation pairs; each latent is reduced to its leading principal components."""
    from fusemix.data.latent_store import LatentStore
    from fusemix.data.latent_writer import write_latents
    from fusemix.data.pair_set import PairSet
    from fusemix.model.config import TrainConfig

    whole = PairSet.join({m: LatentStore.open(args.latents / m) for m in ("image", "text")})
    if args.width is None:
        return whole
    stores, (train, _) = {}, whole.divide(TrainConfig())
    for m, store in whole.stores.items():
        latents = store.all()
        used = latents[np.unique(whole.items[m][train])]
        axes = np.linalg.eigh(np.cov((used - used.mean(0)).T))[1][:, ::-1][:, : args.width].astype(np.float32)
        stores[m] = write_latents(
            folder / m,
            (latents - used.mean(0)) @ axes,
            modality=m,
            name=m,
            index=lambda _, rows=store.rows: rows,  # type: ignore[misc]  # mypy infers no lambda with a default
        )
    return PairSet.join(stores)


def curve(args: argparse.Namespace, pairs: Any, who: str, seed: int, folder: Path) -> list[list[float]]:
    """Train to the end; returns (processor seconds without evaluations, mean recall@1 of validation) by epoch."""
    from fusemix.model.config import TrainConfig
    from fusemix.model.recipes import RECIPES, recipe_config
    from fusemix.training.trainer import Trainer
    from fusemix.training.validation import validation_recall

    recipe: Any = "paper" if who == "peer" else who.partition("/")[0]
    config = TrainConfig(
        dropout_rows=int(who.partition("/")[2] or 1),
        batch_size=args.batch_size, epochs=args.epochs, seed=seed, max_val_groups=10**9,
        closed_form_ridge=RECIPES[recipe].closed_form_ridge,
    )  # fmt: skip
    dims = {m: store.dim for m, store in pairs.stores.items()}
    encoders = {m: store.encoder for m, store in pairs.stores.items()}
    began = time.process_time()
    shape = recipe_config(recipe, latent_dims=dims, encoders=encoders, depth=args.depth)
    run: Any = Trainer([pairs], shape, config, folder)
    model, step = run.model, lambda number: run.take_step()
    if who == "peer":
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002  (their coefficient is drawn from it)
        train = run.train_pairs[0]
        theirs, their_step = peer_step(args, [pairs.latents(m, pairs.items[m][train]).numpy() for m in dims])
        model, step = _Peer(theirs), lambda number: their_step(run.learning_rate(number))
        began = time.process_time()
    spent, points = time.process_time() - began, []  # what a closed form took
    for number in range(run.total_steps):
        began = time.process_time()
        step(number)
        spent += time.process_time() - began
        if (number + 1) % run.epoch_steps == 0:
            recall = validation_recall(model, run.sets, run.val_pairs)
            points.append([round(spent, 2), *recall.values()])
    return points


def run_recall(args: argparse.Namespace) -> dict[str, Any]:
    """Train all for equal epochs with one schedule, ours in its own precision; compare the last weights.

    A run that was interrupted continues with the trainings that are missing from its JSON.
    """
    settings = {k: getattr(args, k) for k in ("width", "depth", "batch_size", "epochs")}
    path = args.out / "benchmark-recall.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    curves: dict[str, dict[str, Any]] = known["curves"] if known.get("settings") == settings else {}
    with tempfile.TemporaryDirectory() as work:
        pairs = one_set(args, Path(work))
        for seed, who in itertools.product(args.seeds, ["peer", *args.recipes]):
            if str(seed) in curves.setdefault(who, {}):
                continue
            curves[who][str(seed)] = curve(args, pairs, who, seed, Path(work) / f"{who}-{seed}")
            print(who, seed, curves[who][str(seed)][-1], file=sys.stderr, flush=True)
            save(args, "recall", {"settings": settings, "curves": curves})
    last = {who: [points[-1][1:] for points in by_seed.values()] for who, by_seed in curves.items()}
    goal = float(np.mean(last["paper"])) if args.goal is None else args.goal
    view = Table("", "photo → caption", "caption → photo", "CPU s in all", f"CPU s to {100 * goal:.1f} on average")
    summary: dict[str, Any] = {}
    for who, by_seed in curves.items():
        sides = [interval([values[d] for values in last[who]]) for d in (0, 1)]
        # the first epoch from which the mean over seeds has the recall
        points = np.array(list(by_seed.values())).mean(0)
        reached = [float(p[0]) for p in points if p[1:].mean() >= goal - 1e-9]
        summary[who] = {"image_to_text": sides[0], "text_to_image": sides[1], "cpu_s": float(points[-1][0])}
        summary[who] |= {"cpu_s_to_goal": reached[0] if reached else None}
        cells = [f"{100 * x['mean']:.1f} ({100 * x['low']:.1f} to {100 * x['high']:.1f})" for x in sides]
        view.add_row(who, *cells, f"{points[-1][0]:.0f}", f"{reached[0]:.0f}" if reached else "not reached")
    Console().print(view)
    values = {"settings": settings, "goal": goal, "recall_at_1": summary, "curves": curves}
    save(args, "recall", values)
    return values


def interval(values: list[float]) -> dict[str, float]:
    """Compute the mean over seeds and its 95 % interval by Student's t."""
    from fusemix.evaluation.metrics import student_interval

    found = student_interval(values)
    mean, half = found["mean"], found["half_width_95"]
    if mean is None or half is None:
        raise SystemExit(f"An interval needs 2 seeds or more, got {len(values)}.")
    return {"mean": mean, "low": mean - half, "high": mean + half}


def run_extract(args: argparse.Namespace) -> dict[str, Any]:
    """Measure each encoder by scripts/extract.py's function and item by item, in turns."""
    import pandas as pd

    from fusemix.data.extract import extract
    from fusemix.data.pairs import PairTable
    from fusemix.encoders import PACKAGED, load_encoder

    table = PairTable.read(args.pairs)
    rows: list[dict[str, Any]] = []
    for name in PACKAGED:
        encoder = load_encoder(name)
        values = spread(list(dict.fromkeys(item.value for item in table.items(encoder.modality))), args.items)
        encoder.encode(values[:4])
        with tempfile.TemporaryDirectory() as work:
            path = Path(work) / "pairs.csv"
            pd.DataFrame({encoder.modality: values}).to_csv(path, index=False)
            pairs = PairTable.read(path)
            ways: dict[str, Callable[[int], object]] = {
                "store": lambda turn: extract(pairs, encoder.modality, encoder, Path(work) / str(turn)),  # noqa: B023
                "one_by_one": lambda turn: [encoder.encode([value]) for value in values],  # noqa: B023
            }
            seconds: dict[str, list[float]] = {way: [] for way in ways}
            for turn in range(args.turns):
                for way, run in ways.items():
                    began = time.process_time()
                    run(turn)
                    seconds[way].append(time.process_time() - began)
        rate = {way: len(values) / float(np.median(times)) for way, times in seconds.items()}
        ratio = rate["store"] / rate["one_by_one"]
        rows.append({"encoder": name, "items": len(values), "items_per_cpu_s": rate, "ratio": ratio})
    view = Table("encoder", "items", "extract: items / CPU s", "one by one", "ratio")
    for row in rows:
        rates = [f"{row['items_per_cpu_s'][way]:.1f}" for way in ("store", "one_by_one")]
        view.add_row(row["encoder"], str(row["items"]), *rates, f"{row['ratio']:.2f}")
    Console().print(view)
    save(args, "extract", {"turns": args.turns, "rows": rows})
    return {"rows": rows}


def run_folder(args: argparse.Namespace) -> dict[str, Any]:
    """Measure the index of folders of photos and, in turns, their encoder alone on the same batches."""
    from fusemix.encoders.recorded import load_recorded
    from fusemix.model.adapters import FusionModel
    from fusemix.search.living import _BATCH, FolderIndex

    model = FusionModel.from_pretrained(args.checkpoint)
    encoder = load_recorded("image", model.config.encoders)
    photos = spread(sorted(args.photos.iterdir()), args.items)
    encoder.encode([str(photo) for photo in photos[:4]])
    spent = {"encoder": np.zeros(2), "index": np.zeros(2), "nothing_new": np.zeros(2)}  # wall and processor seconds
    for turn in range(args.turns):
        part = photos[turn :: args.turns]
        with tempfile.TemporaryDirectory() as work:
            (root := Path(work) / "photos").mkdir()
            paths = [shutil.copy(photo, root) for photo in part]
            living = FolderIndex(model, {"image": encoder}, root, Path(work) / "index")
            ways: dict[str, Callable[[], object]] = {
                "encoder": lambda: [encoder.encode(paths[i : i + _BATCH]) for i in range(0, len(paths), _BATCH)],  # noqa: B023
                "index": living.update,
                "nothing_new": living.update,
            }
            for name, way in ways.items():
                began = np.array([time.perf_counter(), time.process_time()])
                way()
                spent[name] += np.array([time.perf_counter(), time.process_time()]) - began
    wall, cpu = ({name: 60 * len(photos) / s[i] for name, s in spent.items()} for i in (0, 1))
    values = {"photos": len(photos), "encoder": encoder.name, "per_minute": wall, "per_cpu_minute": cpu}
    values |= {"ratio": wall["index"] / wall["encoder"], "cpu_ratio": cpu["index"] / cpu["encoder"]}
    print(values)
    save(args, "folder", values)
    return values


def spread(values: list[Any], count: int | None) -> list[Any]:
    """Return at most ``count`` of the values, evenly from first to last."""
    if count is None or count >= len(values):
        return values
    return [values[i] for i in np.linspace(0, len(values) - 1, count).astype(int)]


def run_sounds(args: argparse.Namespace) -> dict[str, Any]:
    """Encode every short clip both ways, clip by clip in turn; the same frames are pooled in both."""
    from fusemix.data.pairs import PairTable
    from fusemix.datasets.splits import in_split
    from fusemix.encoders.audio import SAMPLES_PER_FRAME, WINDOW_S, WhisperTinyEn
    from fusemix.media import SAMPLE_RATE

    table, encoder = PairTable.read(args.pairs), WhisperTinyEn()
    cells = [cell for cell in table.cells("audio") if table.value("text", cell.row)]
    clips = [(cell.row, encoder.prepare(cell.value)) for cell in spread(cells, args.limit)]
    clips = [(row, samples) for row, samples in clips if len(samples) < args.under * SAMPLE_RATE]
    window = WINDOW_S * SAMPLE_RATE

    def padded(samples: np.ndarray) -> np.ndarray:
        frames = encoder.frames(np.pad(samples, (0, window - len(samples))))
        mean: np.ndarray = frames[: -(-len(samples) // SAMPLES_PER_FRAME)].mean(0).numpy()
        return mean

    ways = {"real_frames": lambda samples: encoder.encode_prepared([samples])[0], "padded_to_30_s": padded}
    latents: dict[str, list[np.ndarray]] = {way: [] for way in ways}
    seconds = dict.fromkeys(ways, 0.0)
    for way in ways.values():
        way(clips[0][1])
    for _, samples in clips:
        for name, way in ways.items():
            began = time.process_time()
            latents[name].append(way(samples))
            seconds[name] += time.process_time() - began
    a, b = (np.stack(latents[name]) for name in ways)
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    mean = a.mean(0)  # the common mean would hide the difference
    left, right = a - mean, b - b.mean(0)
    centred = (left * right).sum(1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)
    held = in_split(table.splits()[[row for row, _ in clips]], "val", args.pairs)
    texts = [table.value("text", row) for row, _ in clips]
    values = {
        "pairs": "/".join(args.pairs.absolute().parts[-3:]),
        "under_s": args.under,
        "clips": len(clips),
        "mean_duration_s": float(np.mean([len(samples) for _, samples in clips]) / SAMPLE_RATE),
        "clips_per_cpu_s": {name: len(clips) / seconds[name] for name in ways},
        "ratio": seconds["padded_to_30_s"] / seconds["real_frames"],
        "cosine": {"mean": float(cosine.mean()), "least": float(cosine.min()), "mean_centred": float(centred.mean())},
        "spoken_to_text": {name: recall_of(np.stack(latents[name]), texts, held) for name in ways},
    }
    view = Table("", "clips / CPU s", "recall@1", "recall@10", f"of {int(held.sum())} held-out clips")
    for name in ways:
        recall = values["spoken_to_text"][name]
        cells_ = [f"{recall[k]:.3f}" for k in ("recall_at_1", "recall_at_10")] if recall else ["", ""]
        view.add_row(name.replace("_", " "), f"{values['clips_per_cpu_s'][name]:.2f}", *cells_, "")
    Console().print(
        view,
        f"{len(clips)} clips under {args.under} s, {values['mean_duration_s']:.1f} s on average: "
        f"{values['ratio']:.1f} times the clips per second; cosine of the two latents {cosine.mean():.3f} on average, "
        f"{centred.mean():.3f} with the mean of all sounds taken away",
    )
    save(args, args.name, values)
    return values


def recall_of(audio: np.ndarray, texts: list[str], held: np.ndarray) -> dict[str, Any] | None:
    """Measure recall of a sound's caption among the held-out ones, by regularised CCA fitted on the others."""
    from fusemix.encoders import load_encoder
    from fusemix.evaluation.metrics import retrieval
    from fusemix.model.cca import fit_cca

    if held.sum() < 2 or (~held).sum() < 100:
        return None
    text = load_encoder("minilm-l6").encode(texts)
    fitted = fit_cca(audio[~held], text[~held], dim=64)
    groups = np.unique(texts, return_inverse=True)[1][held]
    sides = [torch.from_numpy(fitted.embed(side, x[held])) for side, x in enumerate((audio, text))]
    return retrieval(sides[0], sides[1], groups, groups)


def run_search(args: argparse.Namespace) -> dict[str, Any]:
    """Measure queries one at a time against every index, at every size."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    rows: list[dict[str, Any]] = []
    for size in args.sizes:
        rows += search_at(size, args)
        if size > args.hnsw_up_to:
            rows.append({"size": size, "index": "faiss HNSW", "left_out": "its graph takes many minutes to build"})
    view = Table("embeddings", "index", "queries / CPU s", "beside numpy", "recall@10 of exact", "built in (CPU)")
    for row in rows:
        if "left_out" in row:
            view.add_row(f"{row['size']:,}", row["index"], row["left_out"], "", "", "")
            continue
        numpy_rate = next(r["queries_per_cpu_s"] for r in rows if r["size"] == row["size"] and r["index"] == "numpy")
        row["ratio"] = row["queries_per_cpu_s"] / numpy_rate
        cells_ = (
            f"{row['queries_per_cpu_s']:,.0f}",
            f"{row['ratio']:.1f}",
            f"{row['recall']:.3f}",
            f"{row['built_s']:.1f} s",
        )
        view.add_row(f"{row['size']:,}", row["index"], *cells_)
    Console().print(view)
    save(args, "search", {"dim": args.dim, "queries": args.queries, "top_k": 10, "rows": rows})
    return {"rows": rows}


def search_at(size: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure every index over the same embeddings, which only the exact index holds."""
    import faiss

    exact, queries = smooth(size, args.dim, args.queries)
    base = faiss.rev_swig_ptr(exact.get_xb(), size * args.dim).reshape(size, args.dim)
    truth = exact.search(queries, 10)[1]
    makers: dict[str, Callable[[], Any]] = {"faiss exact": lambda: exact, "faiss IVF": lambda: ivf(base)}
    if size <= args.hnsw_up_to:
        makers["faiss HNSW"] = lambda: hnsw(base)
    found = [measured("numpy", size, 0.0, queries, truth, lambda query: numpy_search(base, query))]
    for name, make in makers.items():
        began = time.process_time()
        index = make()
        built = time.process_time() - began
        found.append(measured(name, size, built, queries, truth, lambda query, i=index: i.search(query, 10)[1]))  # type: ignore[misc]
    return found


def smooth(size: int, dim: int, queries: int) -> tuple[Any, np.ndarray]:
    """Make an exact index of unit embeddings that vary along few directions, as real ones do, and queries.

    48 latent variables of falling variance, a random linear map and a little noise: there are no clusters that an
    inverted file would find too easily. A query shares half of its latent variance with an embedding.
    """
    import faiss

    rng = np.random.default_rng(0)
    hidden = min(48, dim)
    view = rng.standard_normal((hidden, dim), np.float32) / np.arange(1, hidden + 1, dtype=np.float32)[:, None] ** 0.5
    exact, asked = faiss.IndexFlatIP(dim), []
    for start in range(0, size, 50_000):
        count = min(50_000, size - start)
        z = rng.standard_normal((count, hidden), np.float32)
        part = z @ view + 0.1 * rng.standard_normal((count, dim), np.float32)
        exact.add(part / np.linalg.norm(part, axis=1, keepdims=True))
        some = z[: -(-queries * count // size)]
        asked.append((some + rng.standard_normal(some.shape, np.float32)) @ view)
    found = np.concatenate(asked)[:queries]
    return exact, found / np.linalg.norm(found, axis=1, keepdims=True)


def numpy_search(base: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Find the ten nearest by one product and a partial sort: (1, 10)."""
    similarity = base @ query[0]
    top = np.argpartition(-similarity, 10)[:10]
    return top[np.argsort(-similarity[top])][None]


def hnsw(base: np.ndarray) -> Any:
    """Build a graph index, 32 links a node."""
    import faiss

    index = faiss.IndexHNSWFlat(base.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efSearch = 128
    index.add(base)
    return index


def ivf(base: np.ndarray) -> Any:
    """Build an inverted file that searches a fiftieth of its cells."""
    import faiss

    cells = int(2 * len(base) ** 0.5)
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(base.shape[1]), base.shape[1], cells, faiss.METRIC_INNER_PRODUCT)
    index.cp.niter, index.cp.max_points_per_centroid = 5, 39
    index.train(base[:: max(1, len(base) // (40 * cells))])
    index.add(base)
    index.nprobe = max(8, cells // 50)
    return index


def measured(
    name: str,
    size: int,
    built: float,
    queries: np.ndarray,
    truth: np.ndarray,
    search: Callable[[np.ndarray], np.ndarray],
) -> dict[str, Any]:
    """Measure queries per second of CPU time, one by one for at most ten seconds, and recall of the exact ten."""
    search(queries[:1])
    hits, asked, began = 0, 0, time.process_time()
    for query, nearest in zip(queries, truth, strict=True):
        hits += len(set(search(query[None])[0].tolist()) & set(nearest.tolist()))
        asked += 1
        if time.process_time() - began > 10:
            break
    rate = asked / (time.process_time() - began)
    return {"size": size, "index": name, "queries_per_cpu_s": rate, "recall": hits / (10 * asked), "built_s": built}


def scale_child(pairs: int, folder: Path, args: argparse.Namespace) -> None:
    """Train from the latents in a folder, some steps per input line; print the figures as JSON lines."""
    from fusemix.data.latent_store import LatentStore
    from fusemix.data.pair_set import PairSet
    from fusemix.model.config import ModelConfig, TrainConfig
    from fusemix.training.trainer import Trainer

    began, computed = time.perf_counter(), time.process_time()
    stores = {m: LatentStore.open(folder / m, verify=True) for m in ("image", "text")}  # as scripts/train.py does
    opened, opened_cpu = time.perf_counter() - began, time.process_time() - computed
    joined = PairSet.join(stores)
    dims = dict(zip(("image", "text"), args.widths, strict=True))
    config = TrainConfig(batch_size=args.batch_size, val_fraction=min(0.1, 500 / pairs), warmup_steps=1)
    model = ModelConfig(latent_dims=dims, depth=1)
    run = Trainer([joined], model, config, folder / "run", hold_bytes=args.hold_bytes)
    run.take_step()
    ready = time.perf_counter() - began
    loading = [0.0]

    @contextlib.contextmanager
    def timed(name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if name == "loading and mixing":
            loading[0] = time.perf_counter() - start

    run.stage = timed
    said: dict[str, Any] = {"open_and_check_s": opened, "open_and_check_cpu_s": opened_cpu, "first_step_after_s": ready}
    print(json.dumps({**said, "held_gib": sum(store.n_bytes for store in run.held) / 2**30}), flush=True)
    for _ in sys.stdin:
        steps = []
        for _ in range(args.steps):
            start, computed = time.perf_counter(), time.process_time()
            run.take_step()
            steps.append((time.perf_counter() - start, time.process_time() - computed, loading[0]))
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        own = int(status["RssAnon"].split()[0]) / 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"steps": steps, "peak_rss_mib": peak, "own_memory_mib": own}), flush=True)


def run_scale(args: argparse.Namespace) -> dict[str, Any]:
    """Measure training on synthetic fp16 latents of every size on disk, in one process for each size, in turns."""
    import shutil

    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=args.disk) as work, contextlib.ExitStack() as ended:
        running: list[tuple[dict[str, Any], subprocess.Popen[str], list[list[float]]]] = []
        for pairs in args.pairs:
            need, free = 2 * pairs * sum(args.widths), shutil.disk_usage(work).free
            rows.append({"pairs": pairs, "latents_gib": need / 2**30})
            if need > 0.8 * free:
                rows[-1]["left_out"] = f"{need / 2**30:.0f} GiB of latents, {free / 2**30:.0f} free"
                continue
            folder = Path(work) / str(pairs)
            began = time.perf_counter()
            write_random(folder, pairs, args.widths)
            rows[-1]["written_in_s"] = time.perf_counter() - began
            for hold in (None, need) if pairs == args.also_held else (None,):
                if hold is not None:
                    rows.append({"pairs": pairs, "latents_gib": need / 2**30})
                child = scale_process(pairs, folder, args, hold)
                ended.callback(child.kill)
                rows[-1] |= answer(child)
                running.append((rows[-1], child, []))
                print(rows[-1], file=sys.stderr, flush=True)
        for _ in range(args.turns):
            for row, child, steps in running:
                said = answer(child, "go")
                steps += said.pop("steps")
                row |= said
    for row, _, steps in running:
        seconds, computed, loading = np.median(np.array(steps), axis=0).tolist()
        row |= {"steps_per_s": 1 / seconds, "cpu_s_per_step": computed, "loading_share": loading / seconds}
    titles = "pairs", "latents, GiB", "held, GiB", "steps / s", "CPU s / step", "waiting for latents"
    view = Table(*titles, "own (RssAnon), MiB", "peak RSS, MiB", "opened and checked in")
    for row in rows:
        if "left_out" in row:
            view.add_row(f"{row['pairs']:,}", row["left_out"], *[""] * 7)
            continue
        speed = f"{row['steps_per_s']:.2f}", f"{row['cpu_s_per_step']:.2f}", f"{row['loading_share']:.1%}"
        memory = f"{row['own_memory_mib']:,.0f}", f"{row['peak_rss_mib']:,.0f}", f"{row['open_and_check_s']:.0f} s"
        view.add_row(f"{row['pairs']:,}", f"{row['latents_gib']:.2f}", f"{row['held_gib']:.2f}", *speed, *memory)
    Console().print(view)
    settings = {name: getattr(args, name) for name in ("widths", "batch_size", "steps", "turns")}
    save(args, "scale", {**settings, "rows": rows})
    return {"rows": rows}


def scale_process(pairs: int, folder: Path, args: argparse.Namespace, hold: int | None) -> subprocess.Popen[str]:
    """Start a process that trains from the latents in a folder on demand."""
    options = ["--batch-size", str(args.batch_size), "--steps", str(args.steps), "--widths", *map(str, args.widths)]
    options += [] if hold is None else ["--hold-bytes", str(hold)]
    command = [sys.executable, __file__, "scale", *options, "--one", str(pairs), str(folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def write_random(folder: Path, pairs: int, widths: list[int]) -> None:
    """Write latents of two modalities, float16; all shards hold the same rows in different orders."""
    from fusemix.data.latent_writer import write_latents

    for name, width in zip(("image", "text"), widths, strict=True):
        rng = np.random.default_rng(width)
        block = rng.standard_normal((min(pairs, 65_536), width), np.float32).astype(np.float16)
        pieces = (np.roll(block, at // 7, axis=0)[: pairs - at] for at in range(0, pairs, len(block)))
        write_latents(folder / name, pieces, modality=name, name="random", dtype="float16")


def answer(child: subprocess.Popen[str], word: str | None = None) -> dict[str, Any]:
    """Read the next line of a child process, after sending it a word if one is given."""
    assert child.stdin is not None and child.stdout is not None
    if word:
        child.stdin.write(word + "\n")
        child.stdin.flush()
    line = child.stdout.readline()
    if not line:
        raise SystemExit(f"The process of one size ended with {child.wait()}; see above.")
    said: dict[str, Any] = json.loads(line)
    return said


def run_processes(args: argparse.Namespace) -> dict[str, Any]:
    """Train by the command in both ways, in turns; pairs a second of whole epochs, as the progress reports them."""
    from fusemix.data.latent_writer import write_latents

    ways = {"1 process, 2 threads": (2, []), "2 processes, 1 thread each": (1, ["--nproc_per_node", "2"])}
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as work:
        rng = np.random.default_rng(0)
        for modality, width in zip(("image", "text"), args.widths, strict=True):
            rows = rng.normal(size=(args.pairs, width)).astype(np.float32)
            write_latents(Path(work) / modality, rows, modality=modality, name="random")
        for turn, rows_a_mask, way in itertools.product(range(args.turns), args.dropout_rows, ways):
            threads, launch = ways[way]
            start = ["-m", "torch.distributed.run", "--standalone", *launch] if launch else []
            out = Path(work) / f"{turn}-{rows_a_mask}-{threads}"
            command = [
                sys.executable, *start, "-m", "fusemix.cli.train", "--recipe", "paper", "--out", out, "--latents",
                f"image={work}/image", f"text={work}/text", "--depth", args.depth, "--batch-size", args.batch_size,
                "--epochs", args.epochs, "--val-fraction", 0.01, "--dropout-rows", rows_a_mask, "--eval-every", 1,
            ]  # fmt: skip
            began = time.perf_counter()
            run = subprocess.run(
                list(map(str, command)), check=True, capture_output=True, text=True,
                env=os.environ | {"OMP_NUM_THREADS": str(threads), "COLUMNS": "200"},
            )  # fmt: skip
            seconds = time.perf_counter() - began
            told = [
                float(rate.replace(",", ""))
                for rate in re.findall(r"([\d,]+) pairs/s  recall", run.stdout + run.stderr)
            ]
            name = f"{way}, dropout rows {rows_a_mask}"
            rates.setdefault(name, []).extend(told)
            print(f"{name}: {np.median(told):,.0f} pairs/s, {seconds:.0f} s in all", file=sys.stderr, flush=True)
    values = {"settings": {k: getattr(args, k) for k in ("pairs", "widths", "depth", "batch_size", "epochs", "turns")}}
    values |= {"pairs_per_s": {name: float(np.median(told)) for name, told in rates.items()}}
    save(args, "processes", values)
    return values


def main(argv: list[str] | None = None) -> int:
    """Run one benchmark."""
    args = parse(argv)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    if getattr(args, "one", None):
        count, other = int(args.one[0]), args.one[1]
        if args.command == "loss":
            print(json.dumps(loss_child(count, other, args.dim)))
        else:
            scale_child(count, Path(other), args)
        return 0
    commands: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
        "loss": run_loss,
        "train": run_train,
        "recall": run_recall,
        "extract": run_extract,
        "folder": run_folder,
        "sounds": run_sounds,
        "search": run_search,
        "scale": run_scale,
        "processes": run_processes,
    }
    commands[args.command](args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
