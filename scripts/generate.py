"""A sound, a text or a picture, or a blend of them -> a picture.

python scripts/generate.py --audio dog.wav --out dog.png
python scripts/generate.py --audio rain.wav --text "a street at night" --weight 0.6 --out street.png
"""

from __future__ import annotations

import argparse
import functools
import logging
import sys
import time
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

ROOT = Path(__file__).resolve().parents[1]
SCHEDULERS = (
    "ddim",
    "dpm++",
    "unipc",
    "euler",
    "euler-a",
)  # fusemix.generation.sampling.SCHEDULERS, without importing torch


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_argument_group("what to draw (at least one)")
    what.add_argument("--audio", type=Path, help="a sound file; speech or anything else, up to ten minutes")
    what.add_argument("--text", help="a sentence")
    what.add_argument("--image", type=Path, help="a picture file")
    what.add_argument(
        "--weight",
        type=float,
        default=0.5,
        help="share of the sound (else of the text) in a blend, 0 to 1; the others share the rest",
    )
    how = parser.add_argument_group("how")
    how.add_argument("--checkpoint", default=str(ROOT / "checkpoints/default"), help="FusionModel: folder or Hub id")
    how.add_argument("--decoder", default=str(ROOT / "checkpoints/unclip-small"), help="unCLIP: folder or Hub id")
    how.add_argument("--conditioner", type=Path, help="folder of a conditioner, if the decoder holds none")
    how.add_argument("--steps", type=int, default=25, help="denoising steps")
    how.add_argument("--guidance", type=float, help="1 for none; by default the decoder's own")
    how.add_argument("--noise-level", type=int, default=0, help="noise on the embedding, 0 to 999")
    how.add_argument("--seed", type=int, default=0)
    how.add_argument("--candidates", type=int, default=1, help="draw so many and keep the one the encoder likes best")
    how.add_argument("--start", type=Path, help="begin from this picture, noised, instead of from pure noise")
    how.add_argument(
        "--from-gallery",
        nargs="?",
        type=Path,
        const=ROOT / "demo/index",
        help="begin from the pictures of this index (default demo/index) that are nearest to the input",
    )
    how.add_argument("--strength", type=float, default=0.6, help="then: how much is drawn over them, above 0 to 1")
    how.add_argument(
        "--steering",
        type=float,
        help="how far each second step is moved towards what the image encoder would call your input, 0 to 2; "
        "by default 0.12 with a small decoder, else 0",
    )
    how.add_argument("--scheduler", choices=SCHEDULERS, help="by default the decoder's own")
    how.add_argument("--prompt", default="", help="extra text prompt, for a decoder with a text encoder")
    how.add_argument("--negative-prompt", default="", help="what to keep away from, for the same")
    how.add_argument("--device", default="cpu", help="torch device, e.g. cuda (float16)")
    how.add_argument("--offload", action="store_true", help="keep only the working part on the GPU")
    parser.add_argument("--size", type=int, help="side of the saved picture in pixels; enlarged if not the decoder's")
    parser.add_argument("--out", type=Path, required=True, help="the picture to write: .png, .jpg or .webp")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Draw and save; 0 on success, 2 on bad input, 130 when interrupted."""
    args = parse(argv)
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    console = Console(stderr=True)
    try:
        image, note = run(args, console)
        save(image, args.out, args.size)
    except (ValueError, OSError, ImportError, KeyError) as error:
        console.print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        console.print("Interrupted; nothing was written.")
        return 130
    print(f"{args.out}: {note}")
    return 0


def given(args: argparse.Namespace) -> dict[str, object]:
    """Modality -> query, for those on the command line.

    Raises:
        ValueError: If there is none, or the output has no picture's ending.
    """
    queries = {name: getattr(args, name) for name in ("audio", "text", "image") if getattr(args, name) is not None}
    if not queries:
        raise ValueError("Give at least one of --audio, --text and --image to draw from.")
    if args.out.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise ValueError(f"--out must end in .png, .jpg or .webp, got {args.out.name!r}.")
    if not args.out.resolve().parent.is_dir():
        raise ValueError(f"There is no folder {args.out.resolve().parent} to write {args.out.name} into.")
    if not 0 <= args.weight <= 1:
        raise ValueError(f"--weight must be 0 to 1, got {args.weight}.")
    if args.start is not None and args.from_gallery is not None:
        raise ValueError("Give --start or --from-gallery, not both.")
    if args.size is not None and not 16 <= args.size <= 4096:
        raise ValueError(f"--size must be 16 to 4096 pixels, got {args.size}.")
    return queries


def run(args: argparse.Namespace, console: Console) -> tuple[Image.Image, str]:
    """The picture, and a sentence on how it was made."""
    queries = given(args)
    import torch

    from fusemix.encoders import Encoder, load_encoder
    from fusemix.generation.generator import Generator, blend_weights, default_steering, nearest_pictures, rank_images
    from fusemix.generation.guidance import Steering
    from fusemix.media import load_image
    from fusemix.model.adapters import FusionModel
    from fusemix.search.retriever import blend

    model = FusionModel.from_pretrained(args.checkpoint)
    if missing := sorted(set(queries) - set(model.modalities)):
        raise ValueError(f"The checkpoint understands {list(model.modalities)}, not {missing}.")

    @functools.cache
    def encoder_of(modality: str) -> Encoder:
        return load_encoder(model.config.encoders[modality]["name"], device=args.device)

    eyes = encoder_of("image") if "image" in model.modalities else None
    if eyes is None and args.candidates > 1:
        raise ValueError("--candidates needs an image encoder to choose with; this checkpoint understands no pictures.")
    embeddings = {m: model.embed(m, encoder_of(m).encode([query]))[0] for m, query in queries.items()}
    generator = Generator.from_pretrained(
        args.decoder, model, conditioner=args.conditioner, device=args.device, offload=args.offload
    )
    weights = blend_weights(list(queries), args.weight)
    embeds = generator.condition(embeddings, weights)
    wanted = blend({name: row.numpy() for name, row in embeddings.items()}, weights)
    steered = default_steering(generator, eyes) if args.steering is None else args.steering
    steering = Steering(model, eyes, torch.from_numpy(wanted), steered) if steered else None
    start: list[Image.Image] | None = [load_image(str(args.start))] if args.start else None
    begun = ""
    if args.from_gallery is not None:
        from fusemix.search.index import EmbeddingIndex

        index = EmbeddingIndex.load(args.from_gallery, model_identity=model.identity)
        nearest = nearest_pictures(index, wanted, args.candidates)
        start = [load_image(str(path)) for path, _ in nearest]
        begun = ", begun from " + ", ".join(str(path.name) for path, _ in nearest)
    started = time.perf_counter()
    columns = (TextColumn("drawing"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("drawing", total=args.steps)
        images = generator.from_image_embeds(
            embeds,
            steps=args.steps,
            guidance=args.guidance,
            noise_level=args.noise_level,
            seed=args.seed,
            n_images=args.candidates,
            prompt=args.prompt,
            negative_prompt=args.negative_prompt,
            scheduler=args.scheduler,
            start=start,
            strength=args.strength,
            steering=steering,
            on_step=lambda done, total, preview: progress.update(task, completed=done, total=total),
        )
    seconds = time.perf_counter() - started
    size = f"{generator.side} x {generator.side} pixels"
    note = f"{size} from {' + '.join(queries)} by {args.decoder} in {seconds:.1f} s{begun}"
    if steering is not None:
        note += f", steered ({steered:g})"
    if args.candidates == 1:
        return images[0], note
    assert eyes is not None  # checked above
    ranked = rank_images(images, wanted, model, eyes)
    return ranked[0][0], f"{note}, the best of {args.candidates} by the image encoder (similarity {ranked[0][1]:.2f})"


def save(image: Image.Image, path: Path, size: int | None) -> None:
    """Write the picture, enlarged if asked, whole or not at all."""
    from fusemix.files import write_atomic

    if size is not None:
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    kind = {".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}.get(path.suffix.lower(), "PNG")
    write_atomic(path, lambda temporary: image.save(temporary, format=kind))


if __name__ == "__main__":
    sys.exit(main())
