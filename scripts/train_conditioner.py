"""A FuseMix checkpoint and a Stable Diffusion unCLIP -> a conditioner that lets sounds and words drive it.

    python scripts/train_conditioner.py --decoder sd2-community/stable-diffusion-2-1-unclip-small \
        --pairs demo/gallery/pairs.csv --out checkpoints/conditioner-sd
    python scripts/generate.py --decoder sd2-community/stable-diffusion-2-1-unclip-small \
        --conditioner checkpoints/conditioner-sd --audio dog.wav --out dog.png

The target space is CLIP's, frozen: the decoder's own image encoder makes the targets, and for each modality
of the checkpoint a map from the shared space onto them is fitted by the pictures of the table. The kind
of map is chosen by retrieval among the held-out split's pictures; all figures go into conditioner.json.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from fusemix.data.pairs import PairTable
from fusemix.encoders import Encoder
from fusemix.generation.bridges import ACROSS, Conditioner, space_identity
from fusemix.generation.clip_target import Pairs, clip_image_embeds, fit_conditioner
from fusemix.generation.pipelines import check_pipeline, load_pipeline, resolve
from fusemix.media import load_image
from fusemix.model.adapters import FusionModel
from fusemix.search.retriever import load_encoders

ROOT = Path(__file__).resolve().parents[1]


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = parser.add_argument_group("data")
    data.add_argument("--pairs", required=True, type=Path, help="table with pictures and captions and/or sounds")
    data.add_argument("--split", default="train", help="rows to fit on")
    data.add_argument("--test-split", default="val", help="rows to choose the kind of map by")
    data.add_argument("--limit", type=int, default=5000, help="at most so many pictures of each split")
    space = parser.add_argument_group("spaces")
    space.add_argument("--checkpoint", default=str(ROOT / "checkpoints/default"), help="FusionModel: folder or Hub id")
    space.add_argument(
        "--decoder", required=True, help="Stable Diffusion unCLIP, whose CLIP is the target: folder or id"
    )
    space.add_argument("--revision", help="of the decoder, on the Hub")
    fit = parser.add_argument_group("map")
    fit.add_argument("--kinds", nargs="+", choices=ACROSS, default=list(ACROSS), help="maps to try")
    fit.add_argument("--ridge", type=float, default=1.0, help="penalty, as a multiple of the mean variance")
    fit.add_argument("--steps", type=int, default=600, help="optimizer steps of mlp and fusemix")
    fit.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="torch device of the decoder's image encoder")
    parser.add_argument("--out", required=True, type=Path, help="folder for conditioner.json and its weights")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Fit, show and save; 0 on success, 2 on bad input."""
    args = parse(argv)
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    console = Console(stderr=True)
    try:
        conditioner = run(args, console)
        args.out.mkdir(parents=True, exist_ok=True)
        conditioner.save(args.out)
    except (ValueError, OSError, ImportError, KeyError) as error:
        console.print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        return 2
    show(conditioner)
    print(f"written to {args.out}; mean length of CLIP's image embeddings {conditioner.norm:.2f}")
    return 0


def run(args: argparse.Namespace, console: Console) -> Conditioner:
    """Targets, embeddings, maps."""
    table = PairTable.read(args.pairs)
    model = FusionModel.from_pretrained(args.checkpoint)
    pipeline = load_pipeline(resolve(args.decoder, args.revision), args.device)
    check_pipeline(pipeline)
    encoders = load_encoders(model.config)
    targets: dict[str, Tensor] = {}
    pairs: dict[str, dict[str, Pairs]] = {}
    for split in (args.split, args.test_split):
        photos = table.items("image", split)[: args.limit]
        images = (load_image(photo.value) for photo in photos)
        tracked = track(images, f"{split}: CLIP", total=len(photos), console=console)
        targets[split] = clip_image_embeds(pipeline, tracked)
        row_of = {photo.group: row for row, photo in enumerate(photos)}
        pairs[split] = embed(table, split, row_of, model, encoders, console)
    return fit_conditioner(
        pairs[args.split],
        targets[args.split],
        pairs[args.test_split],
        targets[args.test_split],
        embed_dim=model.config.embed_dim,
        space=space_identity(model),
        kinds=args.kinds,
        ridge=args.ridge,
        steps=args.steps,
        seed=args.seed,
    )


def embed(
    table: PairTable,
    split: str,
    row_of: dict[int, int],
    model: FusionModel,
    encoders: dict[str, Encoder],
    console: Console,
) -> dict[str, Pairs]:
    """Shared-space embeddings of the pictures, captions and sounds that belong to the given pictures' groups."""
    found: dict[str, Pairs] = {}
    for modality in model.modalities:
        if not table.has(modality, split):
            continue
        items = [item for item in table.items(modality, split) if item.group in row_of]
        if not items:
            continue
        with console.status(f"{split}: {len(items):,} x {modality}"):
            latents = encoders[modality].encode([item.value for item in items])
        found[modality] = (model.embed(modality, latents), np.array([row_of[item.group] for item in items]))
    return found


def show(conditioner: Conditioner) -> None:
    """Every kind's recall; the chosen one is marked."""
    table = Table(title="held-out pictures found in CLIP's space, %", title_justify="left")
    for column in ("modality", "map", "R@1", "R@10", "cosine", "queries", "candidates"):
        table.add_column(column)
    for modality, kinds in conditioner.notes.items():
        for kind, note in kinds.items():
            chosen = " (chosen)" if conditioner.bridges[modality].kind == kind else ""
            recalls = (f"{100 * note[key]:.1f}" for key in ("recall_at_1", "recall_at_10"))
            table.add_row(
                modality,
                kind + chosen,
                *recalls,
                f"{note['cosine']:.3f}",
                str(note["queries"]),
                str(note["candidates"]),
            )
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
