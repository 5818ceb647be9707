"""Everything that makes checkpoints/default: speech, one table, latents, adapters.

    python scripts/release/train_default.py --flickr8k ../shared/flickr8k/pairs.csv --work runs/default

Data: Flickr8k's train photos with their captions, the gallery's pictures, sounds and captions, and
both's captions spoken in several synthetic voices. Flickr8k's own spoken captions are left out,
so that their voice stays unheard. Epochs are chosen on Flickr8k dev and the gallery's val rows.
Two models are trained and searched as one (fusemix/model/ensemble.py): one with two paths, in whose space the small
decoder draws, and one with views, the default recipe; the audio adapter of each last, into its frozen space of pictures
and text. Each step is one of the repository's commands and resumes when run again. A checkpoint that stands
at --out is replaced only with --replace, and only when its successor is finished.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd

from fusemix.data.pairs import PairTable
from fusemix.datasets.splits import side_of

ROOT = Path(__file__).resolve().parents[2]
# member -> flags of scripts/train.py, and what is added to the seed; small enough for 60 MB in all
MEMBERS: dict[str, tuple[tuple[object, ...], int]] = {
    "two-path": (("--recipe", "two-path", "--embed-dim", 512, "--expansion", 4), 0),
    "views": (("--recipe", "views", "--embed-dim", 1024, "--expansion", 0.25), 1),
}
BASE = ("--epochs", 30, "--eval-every", 5)
AUDIO = ("--epochs", 30, "--eval-every", 10)
GALLERY_TIMES = (
    3  # a gallery row stands this often in the table: photos are nine pictures in ten, visitors search cliparts
)
ENCODERS = {"image": "efficientnet-lite0-deep", "text": "minilm-l6", "audio": "whisper-tiny.en-sentence"}


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flickr8k", type=Path, required=True, help="its table of pairs, with splits train and dev")
    parser.add_argument("--gallery", type=Path, default=ROOT / "demo/gallery/pairs.csv")
    parser.add_argument("--work", type=Path, default=ROOT / "runs/default", help="speech, table and latents go here")
    parser.add_argument("--out", type=Path, default=ROOT / "checkpoints/default")
    parser.add_argument("--replace", action="store_true", help="put the new checkpoint in the place of one at --out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only-latents", action="store_true", help="stop before training")
    return parser.parse_args(argv)


def call(script: str, *arguments: object) -> None:
    """Run one of the repository's scripts, stopping here if it fails."""
    subprocess.run([sys.executable, str(ROOT / "scripts" / script), *map(str, arguments)], check=True)


def one_table(flickr8k: Path, gallery: Path, speech: dict[str, Path]) -> pd.DataFrame:
    """Pictures with captions, then sounds with captions; absolute paths, groups prefixed by their source.

    A sound's row names no picture: the picture it belongs to has the same group.
    """
    pictures, sounds = [], []
    for source, path in (("flickr8k", flickr8k), ("gallery", gallery)):
        table = PairTable.read(path)
        keep = [row for row, split in enumerate(table.splits()) if side_of(split) in ("train", "val")]
        rows = _rows(table, keep, source, [table.groups[row] for row in keep])
        seen = rows[rows["image"] != ""].assign(audio="")
        pictures.append(seen)
        if source == "gallery":
            pictures += [seen[seen["split"] == "train"]] * (GALLERY_TIMES - 1)
        if source == "gallery":
            sounds.append(rows[rows["audio"] != ""].assign(image=""))
        spoken = PairTable.read(speech[source])
        sounds.append(_rows(spoken, list(range(len(spoken))), source, list(spoken.frame["group"])).assign(image=""))
    return pd.concat([*pictures, *sounds])[["image", "text", "audio", "split", "group"]]


def _rows(table: PairTable, keep: list[int], source: str, groups: list[object]) -> pd.DataFrame:
    columns = [column for column in ("image", "text", "audio") if column in table.frame.columns]
    frame = pd.DataFrame({column: [_cell(table, column, row) for row in keep] for column in columns})
    splits = table.splits()
    return frame.assign(split=[splits[row] for row in keep], group=[f"{source}-{group}" for group in groups])


def _cell(table: PairTable, column: str, row: int) -> str:
    return table.value(column, row) if table.frame[column].iat[row] else ""


def main(argv: list[str] | None = None) -> int:
    """Run every step."""
    args = parse(argv)
    if args.out.exists() and not (args.replace or args.only_latents):
        print(f"error: {args.out} is there already; choose another --out, or --replace it.", file=sys.stderr)
        return 2
    args.work.mkdir(parents=True, exist_ok=True)
    speech = {name: args.work / f"speech-{name}" for name in ("flickr8k", "gallery")}
    if not (speech["flickr8k"] / "pairs.csv").exists():
        call(
            "release/synthesise_speech.py", "--pairs", args.flickr8k, "--split", "train", "--per-group", 2,
            "--out", speech["flickr8k"],
        )  # fmt: skip
    if not (speech["gallery"] / "pairs.csv").exists():
        call("release/synthesise_speech.py", "--pairs", args.gallery, "--per-group", 2, "--out", speech["gallery"])
    pairs = args.work / "pairs.csv"
    if not pairs.exists():
        frame = one_table(args.flickr8k, args.gallery, {name: out / "pairs.csv" for name, out in speech.items()})
        frame.to_csv(pairs, index=False)
    for column, encoder in ENCODERS.items():
        call("extract.py", "--pairs", pairs, "--column", column, "--encoder", encoder, "--out", args.work / column)
    if args.only_latents:
        return 0
    members = [train_member(name, args) for name in MEMBERS]
    final = args.work / "default"
    if not (final / "config.json").exists():
        call("ensemble.py", *members, "--dtype", "float16", "--max-shard-size", "9MB", "--out", final)
    if args.out.exists():
        shutil.rmtree(args.out)
    shutil.copytree(final, args.out)
    return 0


def train_member(name: str, args: argparse.Namespace) -> Path:
    """Train one member, unless it has been: pictures and text, then sounds into their space; its folder."""
    flags, more = MEMBERS[name]
    shape = (*flags, "--seed", args.seed + more)
    image, text, audio = (f"{column}={args.work / column}" for column in ENCODERS)
    base, member = args.work / f"base-{name}", args.work / name
    if (member / "model.safetensors").exists():
        return member
    if not (base / "model.safetensors").exists():
        call("train.py", "--latents", image, text, *shape, *BASE, "--out", base)
    call(
        "train.py", "--latents", audio, text, "--init", base,
        "--frozen", "image", "text", *shape, *AUDIO, "--out", member,
    )  # fmt: skip
    join_cards(base / "README.md", member / "README.md")
    return member


def join_cards(base: Path, final: Path) -> None:
    """Put what the first training says of data, settings and recall behind the card of the last."""
    body = base.read_text(encoding="utf-8").split("## Data", 1)[1].split("## Limits", 1)[0]
    earlier = "## Pictures and captions, trained first and then kept as they are\n" + body.replace("\n## ", "\n### ")
    card = final.read_text(encoding="utf-8")
    final.write_text(card.replace("## Limits", f"{earlier}## Limits", 1), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
