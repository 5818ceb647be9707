"""``fusemix generate``: a sound, words or a picture, or a blend of them -> a picture."""

from __future__ import annotations

import functools
import logging
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fusemix.cli import flags, terminal
from fusemix.cli.command import Command, entry, guarded, named_once

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image
    from torch import Tensor

    from fusemix.encoders import Encoder
    from fusemix.generation.generator import Generator
    from fusemix.generation.guidance import Steering
    from fusemix.model.adapters import FusionModel

WHAT, DRAWING, START, WRITTEN = (
    "What to draw (at least one)",
    "How it is drawn",
    "What it begins from",
    "What is written",
)
Scheduler = Literal["ddim", "dpm++", "unipc", "euler", "euler-a"]  # of fusemix.generation, which would import torch
GALLERY = str(flags.REPOSITORY / "demo/index")
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


def _flag(panel: str, metavar: str, text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, metavar=metavar, help=text, rich_help_panel=panel, **more)


@guarded(stopped="Interrupted; nothing was written.")
def generate(
    out: Annotated[Path, _flag(WRITTEN, "FILE", "The picture to write: .png, .jpg or .webp.")],
    audio: Annotated[
        Path | None, _flag(WHAT, "FILE", "A sound file of at most ten minutes: speech or anything else.")
    ] = None,
    text: Annotated[str | None, _flag(WHAT, "WORDS", "A sentence.")] = None,
    image: Annotated[Path | None, _flag(WHAT, "FILE", "A picture file.")] = None,
    weight: Annotated[
        float,
        _flag(
            WHAT, "SHARE", "The share of the sound (else of the words) in a blend, 0 to 1; the others share the rest."
        ),
    ] = 0.5,
    checkpoint: flags.DefaultCheckpoint = str(flags.REPOSITORY / "checkpoints/default"),
    encoders: flags.Encoders = None,
    decoder: flags.Decoder = str(flags.REPOSITORY / "checkpoints/unclip-small"),
    conditioner: Annotated[
        str | None,
        typer.Option(metavar="DIR|ID", help="A conditioner, a folder or a Hub id, if the decoder holds none."),
    ] = None,
    steps: Annotated[int, _flag(DRAWING, "N", "How many denoising steps to take.")] = 25,
    guidance: Annotated[
        float | None,
        _flag(DRAWING, "SCALE", "The scale of classifier-free guidance; 1 is none.", show_default="the decoder's"),
    ] = None,
    noise_level: Annotated[int, _flag(DRAWING, "0..999", "The noise level of the condition.")] = 0,
    seed: Annotated[int, _flag(DRAWING, "N", "The seed of the noise.")] = 0,
    candidates: Annotated[
        int, _flag(DRAWING, "N", "Draw so many pictures and keep the one nearest to the input by the image encoder.")
    ] = 1,
    steering: Annotated[
        float | None,
        _flag(
            DRAWING,
            "0..2",
            "How far every second step is moved towards the input, by the image encoder's gradient.",
            show_default="0.12 with a small decoder, else 0",
        ),
    ] = None,
    scheduler: Annotated[
        Scheduler | None,
        _flag(DRAWING, "NAME", "The sampler: ddim, dpm++, unipc, euler or euler-a.", show_default="the decoder's"),
    ] = None,
    prompt: Annotated[
        str, _flag(DRAWING, "WORDS", "A text prompt in addition, for a decoder with a text encoder.")
    ] = "",
    negative_prompt: Annotated[
        str, _flag(DRAWING, "WORDS", "A text prompt to avoid, for a decoder with a text encoder.")
    ] = "",
    device: flags.Device = "cpu",
    offload: Annotated[
        bool, typer.Option("--offload", help="Keep only the active part of the decoder on the GPU.")
    ] = False,
    start: Annotated[
        Path | None, _flag(START, "FILE", "Start from this picture, noised, instead of from pure noise.")
    ] = None,
    from_gallery: Annotated[
        str | None,
        _flag(
            START,
            "[DIR|ID]",
            "Start from the pictures of this index nearest to the input; without a folder, of demo/index.",
        ),
    ] = None,
    strength: Annotated[
        float, _flag(START, "SHARE", "The share of the steps that is drawn over the start, above 0 to 1.")
    ] = 0.6,
    size: Annotated[
        int | None,
        _flag(WRITTEN, "PIXELS", "The side of the saved picture, 16 to 4096.", show_default="the decoder's"),
    ] = None,
) -> None:
    """Draw a picture of a sound, of words, of a picture, or of a blend of them.

    Example: fusemix generate --audio rain.wav --text "a street at night" --weight 0.6 --out street.png
    """
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    given: dict[str, Path | str | None] = {"audio": audio, "text": text, "image": image}
    queries = {name: value for name, value in given.items() if value is not None}
    _check(queries, out, weight, size, start, from_gallery)
    asked = _Asked.of(checkpoint, queries, weight, device, named_once(encoders or [], flags.FOLDERS))
    if asked.eyes is None and candidates > 1:
        raise ValueError("--candidates needs an image encoder to choose with; this checkpoint understands no pictures.")
    from fusemix.generation.generator import Generator, default_steering

    generator = Generator.from_pretrained(
        decoder,
        asked.model,
        conditioner=conditioner,
        device=device,
        offload=offload,
        prompts=bool(prompt or negative_prompt),
    )
    steered = default_steering(generator, asked.eyes) if steering is None else steering
    if steered and asked.eyes is None:
        raise ValueError("--steering needs an image encoder; this checkpoint understands no pictures.")
    begun, names = _start(start, from_gallery, asked, candidates)
    began = time.perf_counter()
    with terminal.bar() as bar:
        task = bar.add_task("drawing", total=steps)
        images = generator.from_image_embeds(
            asked.condition(generator),
            steps=steps,
            guidance=guidance,
            noise_level=noise_level,
            seed=seed,
            n_images=candidates,
            prompt=prompt,
            negative_prompt=negative_prompt,
            scheduler=scheduler,
            start=begun,
            strength=strength,
            steering=asked.steering(steered),
            on_step=lambda done, total, preview: bar.update(task, completed=done, total=total),
        )
    seconds = time.perf_counter() - began
    side = f"{generator.side} x {generator.side} pixels"
    note = f"{side} from {' + '.join(queries)} by {decoder} in {seconds:.1f} s{names}"
    note += f", steered ({steered:g})" if steered else ""
    picture, why = asked.best(images)
    _save(picture, out, size)
    terminal.result(f"{out}: {note}{why}")
    terminal.note(f"{generator.cost}.")


@dataclass(frozen=True)
class _Asked:
    """Query of a drawing, in the shared space."""

    model: FusionModel
    eyes: Encoder | None  # the image encoder, where the model has one
    embeddings: dict[str, Tensor]
    weights: dict[str, float]

    @classmethod
    def of(
        cls, checkpoint: str, queries: dict[str, Path | str], weight: float, device: str, folders: dict[str, str]
    ) -> _Asked:
        """Load the model and its encoders, and embed the queries."""
        from fusemix.encoders.recorded import load_recorded
        from fusemix.generation.generator import blend_weights
        from fusemix.model.adapters import FusionModel

        model = FusionModel.from_pretrained(checkpoint)
        if missing := sorted(set(queries) - set(model.modalities)):
            raise ValueError(f"The checkpoint understands {list(model.modalities)}, not {missing}.")

        @functools.cache
        def encoder_of(modality: str) -> Encoder:
            return load_recorded(modality, model.config.encoders, device=device, source=folders.get(modality))

        eyes = encoder_of("image") if "image" in model.modalities else None
        embeddings = {m: model.embed(m, encoder_of(m).encode([query]))[0] for m, query in queries.items()}
        return cls(model, eyes, embeddings, blend_weights(list(queries), weight))

    def condition(self, generator: Generator) -> Tensor:
        """Compute the decoder's condition."""
        return generator.condition(self.embeddings, self.weights)

    @functools.cached_property
    def wanted(self) -> np.ndarray:
        """Embedding of the blend, (D,), unit length."""
        from fusemix.search.retriever import blend

        return blend({name: row.numpy() for name, row in self.embeddings.items()}, self.weights)

    def steering(self, strength: float) -> Steering | None:
        """Make the steering towards the blend; None for a strength of 0."""
        import torch

        from fusemix.generation.guidance import Steering

        if not strength or self.eyes is None:
            return None
        return Steering(self.model, self.eyes, torch.from_numpy(self.wanted), strength)

    def best(self, images: list[Image.Image]) -> tuple[Image.Image, str]:
        """Return the only picture, or the one nearest to the blend, and the reason."""
        if len(images) == 1 or self.eyes is None:
            return images[0], ""
        from fusemix.generation.generator import rank_images

        ranked = rank_images(images, self.wanted, self.model, self.eyes)
        return ranked[0][0], f", the best of {len(images)} by the image encoder (similarity {ranked[0][1]:.2f})"


def _check(
    queries: dict[str, Path | str],
    out: Path,
    weight: float,
    size: int | None,
    start: Path | None,
    from_gallery: str | None,
) -> None:
    """Check the arguments before anything is loaded; ValueError if a picture cannot be drawn or written."""
    if not queries:
        raise ValueError("Give at least one of --audio, --text and --image to draw from.")
    if out.suffix.lower() not in FORMATS:
        raise ValueError(f"--out must end in .png, .jpg or .webp, got {out.name!r}.")
    if not out.resolve().parent.is_dir():
        raise ValueError(f"There is no folder {out.resolve().parent} to write {out.name} into.")
    if not 0 <= weight <= 1:
        raise ValueError(f"--weight must be 0 to 1, got {weight}.")
    if start is not None and from_gallery is not None:
        raise ValueError("Give --start or --from-gallery, not both.")
    if size is not None and not 16 <= size <= 4096:
        raise ValueError(f"--size must be 16 to 4096 pixels, got {size}.")


def _start(
    start: Path | None, from_gallery: str | None, asked: _Asked, candidates: int
) -> tuple[list[Image.Image] | None, str]:
    """Return the pictures to start from, and a text about them for the note."""
    from fusemix.media import load_image

    if start is not None:
        return [load_image(str(start))], ""
    if from_gallery is None:
        return None, ""
    from fusemix.generation.generator import nearest_pictures
    from fusemix.search.index import EmbeddingIndex

    index = EmbeddingIndex.from_pretrained(from_gallery, model_identity=asked.model.identity)
    nearest = nearest_pictures(index, asked.wanted, candidates)
    names = ", ".join(path.name for path, _ in nearest)
    return [load_image(str(path)) for path, _ in nearest], f", begun from {names}"


def _save(image: Image.Image, path: Path, size: int | None) -> None:
    """Write the picture atomically, enlarged if ``size`` is given."""
    from PIL import Image as Pillow

    from fusemix.files import write_atomic

    if size is not None:
        image = image.resize((size, size), Pillow.Resampling.LANCZOS)
    write_atomic(path, lambda temporary: image.save(temporary, format=FORMATS[path.suffix.lower()]))


class GenerateCommand(Command):
    """A command whose ``--from-gallery`` may have no folder."""

    bare = {"--from-gallery": GALLERY}


main = entry("generate", generate, GenerateCommand)

if __name__ == "__main__":
    sys.exit(main())
