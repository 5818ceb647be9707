"""Everything that makes checkpoints/default: speech, one table, latents, adapters.

    python scripts/train_default.py --flickr8k ../shared/flickr8k/pairs.csv --work runs/default

Data: Flickr8k's train photos with their captions, the gallery's pictures, sounds and captions, and
both's captions spoken in several synthetic voices. Flickr8k's own spoken captions are left out,
so that their voice stays unheard. Epochs are chosen on Flickr8k dev and the gallery's val rows.
The audio adapter is trained last, into the frozen space of pictures and text.
Each step is one of the repository's commands and resumes when run again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a plain clone

import pandas as pd

from fusemix.pairs import PairTable

ROOT = Path(__file__).resolve().parents[1]
BASE = ("--epochs", 30, "--eval-every", 5)
AUDIO = ("--epochs", 30, "--eval-every", 10)
ENCODERS = {"image": "efficientnet-lite0-deep", "text": "minilm-l6", "audio": "whisper-tiny.en-words"}


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flickr8k", type=Path, required=True, help="its table of pairs, with splits train and dev")
    parser.add_argument("--gallery", type=Path, default=ROOT / "demo/gallery/pairs.csv")
    parser.add_argument("--work", type=Path, default=ROOT / "runs/default", help="speech, table and latents go here")
    parser.add_argument("--out", type=Path, default=ROOT / "checkpoints/default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only-latents", action="store_true", help="stop before training")
    return parser.parse_args(argv)


def call(script: str, *arguments: object) -> None:
    """Run one of the repository's scripts, stopping here if it fails."""
    subprocess.run([sys.executable, str(ROOT / "scripts" / script), *map(str, arguments)], check=True)


def tables(flickr8k: Path, gallery: Path, speech: dict[str, Path]) -> dict[str, pd.DataFrame]:
    """The table of pictures and captions, and that of sounds; absolute paths, groups prefixed by their source."""
    pictures, sounds = [], []
    for source, path in (("flickr8k", flickr8k), ("gallery", gallery)):
        table = PairTable.read(path)
        splits = table.splits()
        keep = [row for row in range(len(table)) if splits[row] in ("train", "dev", "val")]
        columns = ["image", "text"] if source == "flickr8k" else ["image", "text", "audio"]
        rows = pd.DataFrame({column: [_cell(table, column, row) for row in keep] for column in columns})
        rows["split"] = [splits[row] for row in keep]
        rows["group"] = [f"{source}-{table.groups[row]}" for row in keep]
        pictures.append(rows[["image", "text", "split", "group"]])
        if "audio" in rows:
            sounds.append(rows[rows["audio"] != ""])
        spoken = PairTable.read(speech[source])
        voices = pd.DataFrame(
            {c: [_cell(spoken, c, row) for row in range(len(spoken))] for c in ("image", "text", "audio")}
        )
        voices["split"] = spoken.splits()
        voices["group"] = [f"{source}-{group}" for group in spoken.frame["group"]]
        sounds.append(voices)
    order = ["image", "text", "audio", "split", "group"]
    return {"pictures": pd.concat(pictures), "sounds": pd.concat(sounds)[order]}


def _cell(table: PairTable, column: str, row: int) -> str:
    return table.value(column, row) if table.frame[column].iat[row] else ""


def main(argv: list[str] | None = None) -> int:
    """Run every step."""
    args = parse(argv)
    args.work.mkdir(parents=True, exist_ok=True)
    speech = {name: args.work / f"speech-{name}" for name in ("flickr8k", "gallery")}
    if not (speech["flickr8k"] / "pairs.csv").exists():
        call(
            "synthesise_speech.py", "--pairs", args.flickr8k, "--split", "train", "--per-group", 2,
            "--out", speech["flickr8k"],
        )  # fmt: skip
    if not (speech["gallery"] / "pairs.csv").exists():
        call("synthesise_speech.py", "--pairs", args.gallery, "--per-group", 2, "--out", speech["gallery"])
    latents = {}
    for name, frame in tables(args.flickr8k, args.gallery, {k: v / "pairs.csv" for k, v in speech.items()}).items():
        pairs = args.work / f"{name}.csv"
        if not pairs.exists():
            frame.to_csv(pairs, index=False)
        for column in ("image", "text") if name == "pictures" else ("text", "audio"):
            out = latents[name, column] = args.work / f"{name}-{column}"
            call("extract.py", "--pairs", pairs, "--column", column, "--encoder", ENCODERS[column], "--out", out)
    if args.only_latents:
        return 0
    shape = ("--embed-dim", 512, "--expansion", 2, "--seed", args.seed)
    base = args.work / "base"
    if not (base / "model.safetensors").exists():
        image, text = latents["pictures", "image"], latents["pictures", "text"]
        call("train.py", "--latents", f"image={image}", f"text={text}", *shape, *BASE, "--out", base)
    audio, text = latents["sounds", "audio"], latents["sounds", "text"]
    call(
        "train.py", "--latents", f"audio={audio}", f"text={text}", "--init", base, "--frozen", "image", "text", *shape, *AUDIO,
        "--dtype", "float16", "--max-shard-size", "9MB", "--out", args.out,
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
