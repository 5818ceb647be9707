"""The README's recall table: the paper's recipe scaled to a small machine, beside closed-form CCA.

    python scripts/reproduce.py --pairs ../shared/flickr8k/pairs.csv --seeds 0 1 2

Trains on split ``train`` (a fiftieth of its photos chooses the epoch), reports on split ``dev``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a plain clone

import numpy as np
import torch

from fusemix.cca import fit_cca
from fusemix.evaluate import Embed, evaluate
from fusemix.latents import LatentStore
from fusemix.pairs import PairTable
from fusemix.train import PairSet

ROOT = Path(__file__).resolve().parents[1]
ENCODERS = {"image": "efficientnet-lite0", "text": "minilm-l6"}
DIRECTIONS = (("text", "image"), ("image", "text"))


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True, help="Flickr8k's table, with splits train and dev")
    parser.add_argument("--work", type=Path, default=ROOT / "runs/reproduce", help="latents and checkpoints go here")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", type=Path, default=ROOT / "docs/results/flickr8k.json")
    return parser.parse_args(argv)


def call(script: str, *arguments: object) -> None:
    """Run one of the repository's scripts, stopping here if it fails."""
    subprocess.run([sys.executable, str(ROOT / "scripts" / script), *map(str, arguments)], check=True)


def cca_embed(cca: Any, stores: dict[str, LatentStore]) -> Embed:
    """Embed table items by CCA from stored latents."""

    def embed(modality: str, items: Any) -> torch.Tensor:
        numbers = stores[modality].rows.set_index("row")["item"].loc[[item.row for item in items]].to_numpy()
        return torch.from_numpy(cca.embed(0 if modality == "image" else 1, stores[modality].read(numbers)))

    return embed


def main(argv: list[str] | None = None) -> int:
    """Extract, fit, train, evaluate, write JSON."""
    args = parse(argv)
    table = PairTable.read(args.pairs)
    folders = {(m, s): args.work / f"{m}-{s}" for m in ENCODERS for s in ("train", "dev")}
    for (modality, split), folder in folders.items():
        call(
            "extract.py", "--pairs", args.pairs, "--column", modality, "--encoder", ENCODERS[modality],
            "--split", split, "--out", folder,
        )  # fmt: skip
    train = PairSet.join({m: LatentStore.open(folders[m, "train"]) for m in ENCODERS})
    dev = {m: LatentStore.open(folders[m, "dev"]) for m in ENCODERS}
    began = time.perf_counter()
    cca = fit_cca(*(train.latents(m, train.items[m]).numpy() for m in ENCODERS), dim=128, ridge=0.3)
    results: dict[str, Any] = {"cca": {"seconds": round(time.perf_counter() - began, 1)}, "fusemix": []}
    for query, gallery in DIRECTIONS:
        results["cca"][f"{query}_to_{gallery}"] = evaluate(
            table, cca_embed(cca, dev), query=query, gallery=gallery, split="dev"
        )
    for seed in args.seeds:
        out = args.work / f"seed{seed}"
        trained, began = not (out / "model.safetensors").exists(), time.perf_counter()
        if trained:
            call(
                "train.py", "--latents", *(f"{m}={folders[m, 'train']}" for m in ENCODERS), "--out", out,
                "--recipe", "paper", "--seed", seed, "--val-fraction", 0.02, "--eval-every", 5, "--save-every", 5,
            )  # fmt: skip
        run: dict[str, Any] = {"seed": seed}
        if trained:
            run["seconds"] = round(time.perf_counter() - began, 1)
        for query, gallery in DIRECTIONS:
            target = out / f"{query}_to_{gallery}.json"
            call(
                "evaluate.py", "--checkpoint", out, "--pairs", args.pairs, "--query", query, "--gallery", gallery,
                "--split", "dev", "--latents", *(f"{m}={folders[m, 'dev']}" for m in ENCODERS), "--json", target,
            )  # fmt: skip
            run[f"{query}_to_{gallery}"] = json.loads(target.read_text())
        results["fusemix"].append(run)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(results, indent=2) + "\n")
    for query, gallery in DIRECTIONS:
        name = f"{query}_to_{gallery}"
        values = [100 * run[name]["recall_at_1"] for run in results["fusemix"]]
        print(
            f"{name} R@1: CCA {100 * results['cca'][name]['recall_at_1']:.1f}; "
            f"FuseMix {np.mean(values):.1f} (seeds {', '.join(f'{v:.1f}' for v in values)})"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
