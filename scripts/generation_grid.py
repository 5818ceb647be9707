"""The README's grid: pictures made from spoken captions and sounds that no training saw, failures included.

    python scripts/generation_grid.py --spoken runs/default/speech-gallery/pairs.csv --sounds demo/gallery/pairs.csv

Clips are drawn at random by the seed from the split's rows; nothing is picked by eye.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a plain clone

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fusemix.adapters import FusionModel
from fusemix.generate import Generator
from fusemix.pairs import PairTable
from fusemix.retrieve import load_encoders

ROOT = Path(__file__).resolve().parents[1]
SIDE, LABEL, COLUMNS = 160, 44, 10  # pixels, pixels, pictures in a row


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spoken", required=True, type=Path, help="table of spoken captions (audio, text)")
    parser.add_argument("--sounds", required=True, type=Path, help="table of named sounds (audio, text)")
    parser.add_argument("--split", default="val")
    parser.add_argument("--checkpoint", default=str(ROOT / "checkpoints/default"))
    parser.add_argument("--decoder", default=str(ROOT / "checkpoints/unclip-small"))
    parser.add_argument("--steps", type=int, default=30, help="denoising steps")
    parser.add_argument("--seed", type=int, default=0, help="of the choice and of the pictures")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/generation.png")
    return parser.parse_args(argv)


def chosen(path: Path, split: str, seed: int) -> list[tuple[str, str]]:
    """Random (sound file, its caption) of the split, one an item."""
    table = PairTable.read(path)
    items = table.items("audio", split)
    order = np.random.default_rng(seed).permutation(len(items))[:COLUMNS]
    return [(items[i].value, str(table.frame["text"].iat[items[i].row])) for i in order]


def main(argv: list[str] | None = None) -> int:
    """Draw two rows and save the sheet."""
    args = parse(argv)
    model = FusionModel.from_pretrained(args.checkpoint)
    encoder = load_encoders(model.config)["audio"]
    generator = Generator.from_pretrained(args.decoder, model)
    font = ImageFont.load_default(13)
    sheet = Image.new("RGB", (COLUMNS * SIDE, 2 * (SIDE + LABEL)), "white")
    pen = ImageDraw.Draw(sheet)
    for row, table in enumerate((args.spoken, args.sounds)):
        clips = chosen(table, args.split, args.seed)
        embeddings = model.embed("audio", encoder.encode([sound for sound, _ in clips]))
        for column, (embedding, (_, caption)) in enumerate(zip(embeddings, clips, strict=True)):
            picture = generator.generate(embedding.numpy(), modality="audio", steps=args.steps, seed=args.seed)[0]
            x, y = column * SIDE, row * (SIDE + LABEL)
            sheet.paste(picture.resize((SIDE - 6, SIDE - 6), Image.Resampling.BICUBIC), (x + 3, y + 3))
            words = f"“{caption}”" if row == 0 else caption
            pen.multiline_text((x + 5, y + SIDE), "\n".join(textwrap.wrap(words, 22)[:2]), "black", font)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(args.out, optimize=True)
    print(f"{args.out}: {COLUMNS} spoken captions and {COLUMNS} sounds of split {args.split!r}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
