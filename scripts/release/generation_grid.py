r"""The README's grid: pictures made from spoken captions and sounds that no training saw, failures included.

    python scripts/release/generation_grid.py --spoken runs/default/speech-gallery/pairs.csv \
        --sounds demo/gallery/pairs.csv

Three rows each: the gallery's picture nearest to the clip (pictures of the split do not count), what the decoder draws
over it, and what it draws from noise alone, both steered as the tab does. Clips are chosen at
random by the seed, the first drawing is shown; nothing is picked by eye.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from fusemix.data.pairs import PairTable
from fusemix.generation.generator import Generator, default_steering, nearest_pictures
from fusemix.generation.guidance import Steering
from fusemix.media import load_image
from fusemix.model.adapters import FusionModel
from fusemix.search.index import EmbeddingIndex
from fusemix.search.retriever import load_encoders

ROOT = Path(__file__).resolve().parents[2]
SIDE, LABEL, MARGIN, COLUMNS = 132, 40, 104, 10  # pixels, pixels, pixels, pictures in a row
ROWS = ("nearest in the gallery", "drawn over it", "drawn from noise alone")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spoken", required=True, type=Path, help="table of spoken captions (audio, text)")
    parser.add_argument("--sounds", required=True, type=Path, help="table of named sounds (audio, text)")
    parser.add_argument("--split", default="val")
    parser.add_argument("--checkpoint", default=str(ROOT / "checkpoints/default"))
    parser.add_argument("--decoder", default=str(ROOT / "checkpoints/unclip-small"))
    parser.add_argument("--index", type=Path, default=ROOT / "demo/index", help="whose pictures are drawn over")
    parser.add_argument("--strength", type=float, default=0.6, help="how much is drawn over them")
    parser.add_argument("--steering", type=float, help="towards the clip, 0 for none (default: the tab's)")
    parser.add_argument("--steps", type=int, default=25, help="denoising steps")
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
    """Draw the rows and save the sheet."""
    args = parse(argv)
    model = FusionModel.from_pretrained(args.checkpoint)
    encoders = load_encoders(model.config)
    encoder, eyes = encoders["audio"], encoders["image"]
    generator = Generator.from_pretrained(args.decoder, model)
    strength = default_steering(generator, eyes) if args.steering is None else args.steering
    index = EmbeddingIndex.load(args.index, model_identity=model.identity)
    aside = {Path(item.value).resolve() for item in PairTable.read(args.sounds).items("image", args.split)}
    font = ImageFont.load_default(13)
    block = len(ROWS) * SIDE + LABEL
    sheet = Image.new("RGB", (MARGIN + COLUMNS * SIDE, 2 * block), "white")
    pen = ImageDraw.Draw(sheet)
    for number, table in enumerate((args.spoken, args.sounds)):
        for row, words in enumerate(ROWS):
            at = (4, number * block + LABEL + row * SIDE + SIDE // 3)
            pen.multiline_text(at, "\n".join(textwrap.wrap(words, 13)), "black", font)
        clips = chosen(table, args.split, args.seed)
        embeddings = model.embed("audio", encoder.encode([sound for sound, _ in clips])).numpy()
        for column, (embedding, (_, caption)) in enumerate(zip(embeddings, clips, strict=True)):
            ((path, _),) = nearest_pictures(index, embedding, 1, exclude=aside)
            start = load_image(str(path))
            steering = Steering(model, eyes, torch.from_numpy(embedding), strength) if strength else None
            settings = {"modality": "audio", "steps": args.steps, "seed": args.seed, "steering": steering}
            (over,) = generator.generate(embedding, start=start, strength=args.strength, **settings)
            (alone,) = generator.generate(embedding, **settings)
            x, y = MARGIN + column * SIDE, number * block
            words = f"“{caption}”" if number == 0 else caption
            pen.multiline_text((x + 5, y + 6), "\n".join(textwrap.wrap(words, 18)[:2]), "black", font)
            for row, picture in enumerate((start.resize((64, 64), Image.Resampling.LANCZOS), over, alone)):
                shown = picture.resize((SIDE - 6, SIDE - 6), Image.Resampling.BICUBIC)
                sheet.paste(shown, (x + 3, y + LABEL + row * SIDE + 3))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(256, dither=Image.Dither.NONE).save(args.out, optimize=True)
    print(f"{args.out}: {COLUMNS} spoken captions and {COLUMNS} sounds of split {args.split!r}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
