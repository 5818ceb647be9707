"""Captions of a table -> spoken captions in several synthetic voices, and a table that pairs them.

    python scripts/release/synthesise_speech.py --pairs T.csv --out DIR --split train --per-group 2

The speech is synthetic (flite's recorded voices kal16, awb, rms, slt and espeak-ng with many accents,
pitches and speeds; Debian packages ``flite`` and ``espeak-ng``). Which caption gets which voice
is a function of the seed. Files that are there already are kept, so a killed run goes on.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shutil import which

import numpy as np
import pandas as pd
from rich.progress import track

from fusemix.data.pairs import PairTable

FLITE = ("slt", "rms", "awb", "kal16")
ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029")
VARIANTS = ("", "+f1", "+f2", "+f3", "+f4", "+f5", "+m1", "+m2", "+m3", "+m4", "+m5", "+m7", "+Annie", "+klatt2")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", required=True, type=Path, help="table with a text column")
    parser.add_argument("--out", required=True, type=Path, help="folder for speech/*.wav and pairs.csv")
    parser.add_argument("--split", help="only rows of this split")
    parser.add_argument("--per-group", type=int, default=1, help="captions spoken of each group")
    parser.add_argument("--workers", type=int, default=2, help="synthesisers at once")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def command(text: str, out: Path, rng: np.random.Generator) -> list[str]:
    """The synthesiser call for one caption in a drawn voice: flite 3 in 5, espeak-ng 2 in 5."""
    if rng.random() < 0.6:
        stretch = f"duration_stretch={rng.uniform(0.85, 1.2):.2f}"
        return ["flite", "-voice", str(rng.choice(FLITE)), "--setf", stretch, "-t", text, "-o", str(out)]
    voice = str(rng.choice(ACCENTS)) + str(rng.choice(VARIANTS))
    speed, pitch = str(rng.integers(135, 190)), str(rng.integers(25, 75))
    return ["espeak-ng", "-v", voice, "-s", speed, "-p", pitch, "-w", str(out), "--", text]


def main(argv: list[str] | None = None) -> int:
    """Synthesise; 0 on success, 2 on bad input."""
    args = parse(argv)
    for tool in ("flite", "espeak-ng"):
        if which(tool) is None:
            print(f"error: {tool} is not installed; on Debian: apt-get install flite espeak-ng", file=sys.stderr)
            return 2
    try:
        table = PairTable.read(args.pairs)
        cells = table.cells("text", args.split)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    (args.out / "speech").mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(args.seed).permutation(len(cells))
    taken: dict[int, int] = {}
    chosen = []
    for i in order:
        if taken.get(cells[i].group, 0) < args.per_group:
            taken[cells[i].group] = taken.get(cells[i].group, 0) + 1
            chosen.append(cells[i])
    chosen.sort(key=lambda cell: cell.row)

    def speak(row: int, text: str) -> None:
        path = args.out / "speech" / f"{row:06d}.wav"
        if not path.exists():
            partial = path.with_suffix(".part.wav")
            rng = np.random.default_rng([args.seed, row])
            subprocess.run(command(text, partial, rng), check=True, capture_output=True, timeout=60)
            partial.rename(path)

    with ThreadPoolExecutor(args.workers) as pool:
        jobs = [pool.submit(speak, cell.row, cell.value) for cell in chosen]
        for job in track(jobs, description="speech"):
            job.result()
    frame = pd.DataFrame(
        {
            "audio": [f"speech/{cell.row:06d}.wav" for cell in chosen],
            "text": [cell.value for cell in chosen],
            "image": [table.value("image", cell.row) if _has(table, "image", cell.row) else "" for cell in chosen],
            "group": [cell.group for cell in chosen],
            "split": [table.splits()[cell.row] for cell in chosen],
        }
    )
    frame.to_csv(args.out / "pairs.csv", index=False)
    print(f"{args.out}: {len(frame):,} spoken captions of {len(taken):,} groups")
    return 0


def _has(table: PairTable, column: str, row: int) -> bool:
    return column in table.frame.columns and bool(table.frame[column].iat[row] != "")


if __name__ == "__main__":
    sys.exit(main())
