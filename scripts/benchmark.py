"""Speed and memory, as ratios within one run on one machine.

    python scripts/benchmark.py loss --batches 2048 8192 20480 65536
    python scripts/benchmark.py train --peer /path/to/layer6ai-labs-fusemix

``loss``: forward and backward of the symmetric InfoNCE, plain and in tiles, each in a fresh process, with
the peak memory the loss itself adds. ``train``: optimizer steps beside the authors' own model and dataset
classes (their repository in a folder of yours; nothing of it is kept here), the two taking turns.
Writes ``docs/results/benchmark-<name>.json`` and prints a table.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run from a plain clone

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

MIB = 2**20
PLAIN_BYTES = 5 * 4  # bytes a logit costs the plain loss at its peak; decides whether it is tried


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
    return parser.parse_args(argv)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "date": time.strftime("%Y-%m-%d"),
    }


def save(args: argparse.Namespace, name: str, values: dict[str, Any]) -> None:
    """Write one benchmark's JSON."""
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"benchmark-{name}.json"
    path.write_text(json.dumps({"machine": machine(), **values}, indent=2) + "\n")
    print(path)


def loss_child(batch: int, kind: str, dim: int) -> dict[str, float]:
    """Time and added peak memory of one loss, in this process alone."""
    from fusemix.losses import TILE, info_nce

    torch.manual_seed(0)
    a, b = (torch.randn(batch, dim, requires_grad=True) for _ in range(2))
    temperature = torch.tensor(0.07, requires_grad=True)
    tile = TILE if kind == "tiled" else batch + 1  # one tile of all is still the recomputing version
    compute = info_nce if kind == "tiled" else _plain
    small = [x[:64].detach().requires_grad_() for x in (a, b)]
    compute(*small, temperature=temperature, tile=tile).backward()  # libraries loaded before the count
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    compute(a, b, temperature=temperature, tile=tile).backward()
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "added_mib": (peak - before) / 1024}


def _plain(a: torch.Tensor, b: torch.Tensor, *, temperature: torch.Tensor, tile: int) -> torch.Tensor:
    """The formula with one B x B matrix of logits held for autograd."""
    del tile
    from torch.nn import functional as F

    logits = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T / temperature
    target = torch.arange(len(a))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def run_loss(args: argparse.Namespace) -> dict[str, Any]:
    """Plain and tiled at every batch size."""
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
        rows.append(row)
    view = Table("pairs", "plain: s", "MiB added", "tiled: s", "MiB added", "time tiled / plain")
    for row in rows:
        plain, tiled = row["plain"], row["tiled"]
        known = isinstance(plain, dict)
        if known:
            row["time_ratio"] = tiled["seconds"] / plain["seconds"]
        cells = [f"{plain['seconds']:.2f}", f"{plain['added_mib']:.0f}"] if known else [plain, ""]
        ratio = f"{row['time_ratio']:.2f}" if known else ""
        view.add_row(f"{row['batch']:,}", *cells, f"{tiled['seconds']:.2f}", f"{tiled['added_mib']:.0f}", ratio)
    Console().print(view)
    save(args, "loss", {"dim": args.dim, "rows": rows})
    return {"rows": rows}


def load_peer(folder: Path) -> tuple[Any, Any]:
    """The authors' model and dataset classes, without the rest of their package and its requirements."""

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


def peer_step(args: argparse.Namespace, sides: list[np.ndarray]) -> Callable[[], None]:
    """One step of the authors' trainer: their dataset, a DataLoader, their model, AdamW as they set it."""
    model_class, dataset_class = load_peer(args.peer)
    folder = Path(tempfile.mkdtemp())
    paths = []
    for name, side in zip(("vis", "text"), sides, strict=True):
        paths.append(folder / f"{name}.pt")
        torch.save({str(i): torch.from_numpy(row.copy()) for i, row in enumerate(side)}, paths[-1])
    dataset = dataset_class(_as_it_is, _as_it_is, *map(str, paths))
    model = model_class(*args.widths, 512, num_layers_vis=args.depth, num_layers_text=args.depth, dropout=0.6)
    model.mixup_alpha = 1.0
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)

    def batches() -> Any:
        while True:
            yield from torch.utils.data.DataLoader(
                dataset, args.batch_size, shuffle=True, drop_last=True, collate_fn=dataset.collater
            )

    stream = batches()

    def step() -> None:
        loss = model(next(stream)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def our_step(args: argparse.Namespace, sides: list[np.ndarray]) -> Callable[[], object]:
    """One step of fusemix.train with the paper's recipe at the same widths, depth and batch."""
    from fusemix.config import ModelConfig, TrainConfig
    from fusemix.latents import write_latents
    from fusemix.train import PairSet, _Run

    folder = Path(tempfile.mkdtemp())
    stores = {
        m: write_latents(folder / m, side, modality=m, name="random")
        for m, side in zip(("image", "text"), sides, strict=True)
    }
    dims = dict(zip(("image", "text"), args.widths, strict=True))
    config = TrainConfig(batch_size=args.batch_size, val_fraction=0.01, warmup_steps=1)
    run = _Run([PairSet.join(stores)], ModelConfig(latent_dims=dims, depth=args.depth), config, folder / "run")

    return run.take_step


def run_train(args: argparse.Namespace) -> dict[str, Any]:
    """Take turns: peer, ours, peer, ours; report medians and the share of the processor's own rate."""
    rng = np.random.default_rng(0)
    sides = [rng.normal(size=(args.pairs, width)).astype(np.float32) for width in args.widths]
    steps: dict[str, Callable[[], object]] = {"peer": peer_step(args, sides), "ours": our_step(args, sides)}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()  # memory is allocated and libraries are loaded
    for _ in range(args.turns):
        for name, step in steps.items():
            for _ in range(args.steps):
                began = time.perf_counter()
                step()
                seconds[name].append(time.perf_counter() - began)
    median = {name: float(np.median(values)) for name, values in seconds.items()}
    side = 2048
    x = torch.randn(side, side)
    began = time.perf_counter()
    for _ in range(8):
        x @ x
    rate = 8 * 2 * side**3 / (time.perf_counter() - began)
    work = 6 * (args.batch_size // 2) * sum(args.depth * 8 * w * w + 512 * w for w in args.widths)
    values = {
        "settings": {k: getattr(args, k) for k in ("pairs", "widths", "depth", "batch_size", "steps", "turns")},
        "seconds_per_step": median,
        "ratio": median["peer"] / median["ours"],
        "matrix_product_gflop_per_s": rate / 1e9,
        "model_flops_utilisation": {name: work / t / rate for name, t in median.items()},
    }
    view = Table("", "s / step", "of the matrix-product rate")
    for name in steps:
        view.add_row(name, f"{median[name]:.2f}", f"{values['model_flops_utilisation'][name]:.0%}")
    Console().print(view, f"steps per second, ours / peer: {values['ratio']:.2f}")
    save(args, "train", values)
    return values


def main(argv: list[str] | None = None) -> int:
    """Run one benchmark."""
    args = parse(argv)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    if getattr(args, "one", None):
        print(json.dumps(loss_child(int(args.one[0]), args.one[1], args.dim)))
        return 0
    {"loss": run_loss, "train": run_train}[args.command](args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
