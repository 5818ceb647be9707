"""Latents of gallery pictures and their captions: the built-in example of the app's "Train your own" tab.

    python scripts/release/training_example.py            # writes demo/examples/latents-image.npy and latents-text.npy

Row i of both files is one pair; each caption stands once.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from fusemix.data.pairs import PairTable
from fusemix.encoders import DEFAULT_ENCODERS, load_encoder
from fusemix.files import write_atomic

ROOT = Path(__file__).resolve().parents[2]
N_PAIRS = 1500
LATER = ("Debian gcompris-", "Debian mate-", "Debian lomiri-")


def chosen_rows(table: PairTable, count: int) -> list[int]:
    """Rows with a picture and a caption, each caption once whatever its capitals, evenly from the whole table.

    The photographs that joined the gallery later (gallery_photos.py) are left out.
    """
    first: dict[str, int] = {}
    sources = table.frame.get("source")
    for row in table.rows("image"):
        if sources is not None and str(sources.iat[row]).startswith(LATER):
            continue
        if text := str(table.frame["text"].iat[row]).lower():
            first.setdefault(text, int(row))
    rows = list(first.values())
    return [rows[i] for i in np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)]


def main(argv: list[str] | None = None) -> int:
    """Encode and write; 0 when done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, default=ROOT / "demo/gallery/pairs.csv", help="table of pairs")
    parser.add_argument("--out", type=Path, default=ROOT / "demo/examples", help="folder to write into")
    parser.add_argument("--count", type=int, default=N_PAIRS, help="pairs at most")
    args = parser.parse_args(argv)
    table = PairTable.read(args.pairs)
    rows = chosen_rows(table, args.count)
    for modality in ("image", "text"):
        encoder = load_encoder(DEFAULT_ENCODERS[modality])
        latents = encoder.encode([table.value(modality, row) for row in rows]).astype(np.float16)
        path = args.out / f"latents-{modality}.npy"

        def write(temporary: Path, latents: np.ndarray = latents) -> None:
            with open(temporary, "wb") as handle:
                np.save(handle, latents, allow_pickle=False)

        write_atomic(path, write)
        print(f"{path}: {latents.shape[0]:,} latents of {encoder.name}, {path.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
