"""Kill -9 at random moments of training and of extraction, resume, and compare with uninterrupted runs.

    python scripts/checks/kills.py --train 25 --extract 25

A killed command is started again with the same words. When it finishes, its weights (or its latents and rows) must
equal those of the uninterrupted run bit for bit, and no temporary file may be left; then the next round begins in a
new folder, until all kills are done. Writes ``docs/results/kills.json``.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

import numpy as np
import pandas as pd

SAVED = ("training_state.pt", "latents-*.npy")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=25, help="kills of scripts/train.py")
    parser.add_argument("--extract", type=int, default=25, help="kills of scripts/extract.py")
    parser.add_argument("--epochs", type=int, default=150, help="of the training that is killed")
    parser.add_argument("--texts", type=int, default=5000, help="texts of the extraction that is killed")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/kills.json")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Kill, resume and compare; return 0 if everything is equal, else 1."""
    args = parse(argv)
    rng = np.random.default_rng(args.seed)
    found = {}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        if args.train:
            command = training(work, args.epochs)
            found["training"] = kill_and_compare(command, work / "train", args.train, rng, compare_checkpoints)
        if args.extract:
            command = extraction(work, args.texts)
            found["extraction"] = kill_and_compare(command, work / "extract", args.extract, rng, compare_stores)
    words = ["python", "scripts/checks/kills.py", "--train", str(args.train), "--extract", str(args.extract)]
    result = {
        "command": shlex.join([*words, "--seed", str(args.seed)]),
        "kills": sum(part["kills"] for part in found.values()),
        "equal": all(part["equal"] for part in found.values()),
        **found,
        "date": time.strftime("%Y-%m-%d"),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    for kind, part in found.items():
        print(
            f"{kind}: killed {part['kills']} times in {part['rounds']} rounds "
            f"({part['with_work_saved']} with work saved, {part['during_a_write']} within a write), "
            f"equal: {part['equal']}"
        )
    return 0 if result["equal"] else 1


def training(work: Path, epochs: int) -> list[str]:
    """Return the command of the training: a state of some megabytes, saved every few steps."""
    from fusemix.data.latent_writer import write_latents

    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(400, 16))
    pieces = []
    for name, dim in (("image", 128), ("text", 96)):
        view = hidden @ rng.normal(size=(16, dim)) + 0.1 * rng.normal(size=(400, dim))
        write_latents(work / "latents" / name, view.astype(np.float32), modality=name, name=f"toy-{name}")
        pieces.append(f"{name}={work / 'latents' / name}")
    options = f"--epochs {epochs} --batch-size 128 --embed-dim 64 --val-fraction 0.2 --learning-rate 0.003"
    return [sys.executable, str(ROOT / "scripts/train.py"), "--latents", *pieces, *options.split()]


def extraction(work: Path, texts: int) -> list[str]:
    """Return the command of the extraction: short, distinct texts in shards of 1,024."""
    lines = [f"{number} dogs {'run' if number % 2 else 'sleep'} on the grass" for number in range(texts)]
    pd.DataFrame({"text": lines}).to_csv(work / "pairs.csv", index=False)
    options = f"--pairs {work / 'pairs.csv'} --column text --encoder minilm-l6"
    return [sys.executable, str(ROOT / "scripts/extract.py"), *options.split()]


def kill_and_compare(
    command: list[str], folder: Path, kills: int, rng: np.random.Generator, compare: Any
) -> dict[str, Any]:
    """Kill at moments uniform over a whole run's time, start again, compare each finished round."""
    began = time.perf_counter()
    subprocess.run([*command, "--out", str(folder / "whole")], check=True, capture_output=True)
    seconds = time.perf_counter() - began
    done, rounds, half_written, with_work, equal = 0, 0, 0, 0, True
    while done < kills:
        out = folder / f"round-{rounds}"
        finished = False
        while not finished:
            wait = float(rng.uniform(0, seconds)) if done < kills else None
            finished, killed = run_for([*command, "--out", str(out)], wait)
            done += killed
            half_written += killed and any(out.glob(".*.tmp"))
            with_work += killed and any(path for name in SAVED for path in out.glob(name))
            if killed:
                print(f"kill {done} of {kills} after {wait:.2f} s", file=sys.stderr, flush=True)
        rounds += 1
        equal &= compare(folder / "whole", out)
    return {
        "kills": done,
        "rounds": rounds,
        "with_work_saved": with_work,
        "during_a_write": half_written,
        "equal": equal,
        "seconds_of_a_whole_run": round(seconds, 1),
    }


def run_for(command: list[str], seconds: float | None) -> tuple[bool, bool]:
    """Run a command for some seconds, or to its end for None; return (finished, killed)."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        _, said = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return False, process.returncode == -signal.SIGKILL
    # a kill between the last file and the end of the process leaves a finished run
    if process.returncode == 0 or "already holds a finished checkpoint" in said:
        return True, False
    raise SystemExit(f"{shlex.join(command)} ended with {process.returncode}: {said}")


def compare_checkpoints(whole: Path, other: Path) -> bool:
    """Return whether two finished checkpoints hold the same files, weights and history."""
    names = {path.name for path in whole.iterdir()}
    same = ("model.safetensors", "config.json", "train_config.json", "history.json")
    return names == {path.name for path in other.iterdir()} and all(
        (whole / name).read_bytes() == (other / name).read_bytes() for name in same
    )


def compare_stores(whole: Path, other: Path) -> bool:
    """Return whether two stores hold the same files, latents and rows."""
    from fusemix.data.latent_store import LatentStore

    if {path.name for path in whole.iterdir()} != {path.name for path in other.iterdir()}:
        return False
    a, b = LatentStore.open(whole, verify=True), LatentStore.open(other, verify=True)
    return np.array_equal(a.all(), b.all()) and a.rows.equals(b.rows)


if __name__ == "__main__":
    sys.exit(main())
