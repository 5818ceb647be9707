"""Draws the "Sound to picture" tab's pictures: one decoder, a thread that can be stopped, a frame a step."""

from __future__ import annotations

import base64
import contextvars
import io
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps

from demo.near_duplicates import alike
from demo.service import Answer, Service
from demo.zero_gpu import borrowing
from fusemix.datasets.paper_recipes import DECODER as STABLE_UNCLIP
from fusemix.files import read_json
from fusemix.media import SAMPLE_RATE, MediaError, load_audio, load_image
from fusemix.threads import give_way

if TYPE_CHECKING:
    from fusemix.generation.generator import Generator

logger = logging.getLogger(__name__)

DECODER_VARIABLE = "FUSEMIX_DECODER"
CONDITIONER_VARIABLE = "FUSEMIX_CONDITIONER"  # folder of scripts/train_conditioner.py, for a decoder without one
AUTO = (
    "auto"  # as the decoder: Stable Diffusion unCLIP where there are a GPU and a conditioner, else the one that ships
)
DEFAULT_DECODER = Path(__file__).resolve().parents[1] / "checkpoints" / "unclip-small"
SHOWN_SIDE = 320  # pixels: small pictures are enlarged to this on the page
THUMBNAIL_SIDE = 96  # pixels, at most, of the pictures that drawings begin from
HEARD = 5  # captions shown
STARTS = 4  # of the gallery's pictures that drawings begin from, at most
STRENGTH = 0.6  # what was begun from is still seen, and no longer itself
WARM_UP = "warm-up"  # the visitor who draws first, in the background


@dataclass(frozen=True)
class Request:
    """What a visitor asks for.

    Attributes:
        audio: Path of a sound, or None; so with text and image: at least one is given.
        text: Words to blend in.
        image: Path of a picture to blend in.
        share: Of the first of the three that is given, in a blend, 0 to 1.
        steps: Denoising steps.
        guidance: Classifier-free guidance.
        noise_level: Noise on the embedding, 0 to 999.
        seed: Of the first picture.
        n_images: Pictures shown.
        candidates: Pictures drawn, of which the ``n_images`` nearest to the request are shown; at
            least ``n_images`` are.
        from_gallery: Begin from the gallery's nearest pictures, noised, in turn, instead of from pure noise.
        strength: Then, how much is drawn over them, in (0, 1].
        steering: How far every second step is moved towards the request, as the image encoder sees it; 0: not.
    """

    audio: str | None = None
    text: str = ""
    image: str | None = None
    share: float = 0.5
    steps: int = 25
    guidance: float = 3.0
    noise_level: int = 0
    seed: int = 0
    n_images: int = 1
    candidates: int = 1
    from_gallery: bool = False
    strength: float = STRENGTH
    steering: float = 0.0

    def queries(self) -> dict[str, str]:
        """Modality -> query, for those given."""
        found = {"audio": self.audio, "text": (self.text or "").strip(), "image": self.image}
        return {modality: value for modality, value in found.items() if value}


@dataclass(frozen=True)
class Frame:
    """What the page shows at one moment.

    Attributes:
        sentence: What is going on.
        images: Pictures with a caption each, possibly empty; none to leave the last ones standing.
        share: How far the drawing is, 0 to 1.
        done: Whether this is the end.
        starts: The pictures of the gallery that are repainted, to be shown small.
    """

    sentence: str
    images: list[tuple[Image.Image, str]] = field(default_factory=list)
    share: float = 0.0
    done: bool = False
    starts: list[Start] = field(default_factory=list)


@dataclass(frozen=True)
class Start:
    """A picture of the gallery that a drawing begins from, its title, and whose it is under which licence."""

    image: Image.Image
    title: str
    credit: str

    @cached_property
    def thumbnail(self) -> str:
        """The picture, small, as an address that holds it: ``data:image/png;base64,…``."""
        small, file = ImageOps.contain(self.image, (THUMBNAIL_SIDE, THUMBNAIL_SIDE)), io.BytesIO()
        small.save(file, "PNG")
        return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


class Studio:
    """Draws pictures with one decoder, loaded in the background or at the first request."""

    def __init__(self, service: Service, source: str | None = None, generator: Generator | None = None) -> None:
        """Choose the decoder.

        Args:
            service: Its encoders and model make the embeddings.
            source: Folder or Hub id, or ``auto``: Stable Diffusion unCLIP if there is a GPU and FUSEMIX_CONDITIONER is
                set, else checkpoints/unclip-small; by default the environment variable FUSEMIX_DECODER, else
                checkpoints/unclip-small.
            generator: A loaded decoder, in tests.
        """
        self.service = service
        self.source = source or os.environ.get(DECODER_VARIABLE) or str(DEFAULT_DECODER)
        self._conditioner = os.environ.get(CONDITIONER_VARIABLE) or None
        if self.source == AUTO:
            self.source = STABLE_UNCLIP if self._conditioner and _device() == "cuda" else str(DEFAULT_DECODER)
            self._conditioner = self._conditioner if self.source == STABLE_UNCLIP else None
        self._generator = generator
        self.borrowed: Callable[..., list[Image.Image]] | None = None  # on ZeroGPU, what draws in another process
        self._lock = threading.Lock()
        self._stops: dict[str, threading.Event] = {}

    def fault(self) -> str | None:
        """Why nothing can be drawn, as a sentence, as far as a look at the files tells; None if nothing is wrong."""
        folder = Path(self.source)
        if self._generator is not None or (self.source != str(DEFAULT_DECODER) and not folder.is_dir()):
            return None  # loaded, or on the Hub
        if not folder.is_dir():
            return (
                "There is no decoder in `checkpoints/unclip-small`, so nothing can be drawn here. Train it with "
                f"`scripts/release/train_unclip.py`, or set `{DECODER_VARIABLE}` to a Stable unCLIP folder or Hub id."
            )
        from fusemix.generation.decoder_files import check_decoder

        try:
            check_decoder(folder, self.service.retriever.model)
            _ = self.label
        except (ValueError, OSError, KeyError, TypeError) as error:  # the last two: JSON of another shape
            logger.warning("Nothing can be drawn: %s", error)
            return "The decoder's files are damaged or do not fit the model, so nothing can be drawn here."
        return None

    @property
    def label(self) -> str:
        """What makes the pictures, in a few sentences."""
        record = Path(self.source) / "train_config.json"
        if not record.is_file():
            return f"Pictures are drawn by {self.source}, a Stable Diffusion unCLIP."
        values = read_json(record)
        side, count = values["side"], values["data"]["pictures"]
        return (
            f"Pictures are made by a small decoder that we trained on {count:,} pictures of {side} × {side} pixels. It "
            "is not Stable Diffusion: from noise it gets the colours and the kind of scene right, and seldom the "
            "object. That is why it repaints pictures of the gallery"
            + (", guided by the image encoder." if self.steering else ".")
        )

    @property
    def from_gallery(self) -> bool:
        """Whether pictures of the gallery are repainted unless asked otherwise: by a small decoder, if it has any."""
        index = self.service.retriever.index
        return (Path(self.source) / "train_config.json").is_file() and index.counts.get("image", 0) > 0

    @property
    def steering(self) -> float:
        """How strongly drawings are steered unless asked otherwise; 0 where the image encoder cannot steer."""
        if not (Path(self.source) / "train_config.json").is_file():  # of scripts/release/train_unclip.py
            return 0.0
        from fusemix.generation.guidance import STRENGTH as AS_MEASURED
        from fusemix.generation.guidance import DifferentiableEncoder

        return AS_MEASURED if isinstance(self.service.retriever.encoders.get("image"), DifferentiableEncoder) else 0.0

    def generator(self) -> Generator:
        """The decoder, loaded once.

        Raises:
            FileNotFoundError: If it is not there.
            ValueError: If it does not fit the model.
        """
        with self._lock:
            if self._generator is None:
                from fusemix.generation.generator import Generator

                self._generator = Generator.from_pretrained(
                    self.source,
                    self.service.retriever.model,
                    conditioner=self._conditioner,
                    device=_device(),
                    prompts=False,
                )
            return self._generator

    @property
    def is_loaded(self) -> bool:
        """Whether the decoder is there."""
        return self._generator is not None

    def load_for_zero_gpu(self) -> None:
        """Load the decoder onto the GPU that is lent to each drawing; before the page is served.

        Raises:
            FileNotFoundError: If it is not there.
            ValueError: If it does not fit the model.
        """
        generator = self.generator()
        self.borrowed = borrowing(partial(paint, self.service, generator, None), is_small=generator.is_small)

    def load_in_background(self) -> None:
        """Load the decoder in a thread that gives way to searches, so that the first visitor need not wait for it.

        A small decoder also draws once, because torch and the encoders set much up at their first use. What fails
        is logged here and told to whoever draws.
        """

        def load() -> None:
            give_way()
            try:
                if self.generator().is_small and "text" in self.service.understood:
                    request = Request(
                        text="a picture", steps=1, from_gallery=self.from_gallery, strength=1, steering=self.steering
                    )
                    for _ in self.draw(request, WARM_UP):
                        pass
            except Exception:
                logger.exception("The decoder could not be loaded in the background.")

        # Not a daemon: one that is in torch when the interpreter ends takes the process down with an abort.
        threading.Thread(target=load, name="fusemix-load-decoder").start()

    def heard(self, audio: str) -> Answer:
        """What the model makes of a sound: the nearest captions, and the words heard in it."""
        return self.service.search_audio(audio, top_k=HEARD)

    def ask(self, visitor: str) -> None:
        """A visitor asks for a drawing, which may wait for its turn: the one before ends, and this can be stopped."""
        self.stop(visitor)
        self._stops[visitor] = threading.Event()

    def stop(self, visitor: str) -> bool:
        """Let a visitor's drawing end at its next step, or before it begins; say whether there is one."""
        if visitor not in self._stops:
            return False
        self._stops[visitor].set()
        return True

    def forget(self, visitor: str) -> None:
        """Nothing of a visitor's is drawn any more, or waits to be."""
        self._stops.pop(visitor, None)

    def draw(self, request: Request, visitor: str = "") -> Iterator[Frame]:
        """Draw, yielding what is repainted, then a frame a step; :meth:`stop` or closing the iterator ends it.

        Args:
            request: What to draw.
            visitor: Whose drawing it is.

        Raises:
            MediaError: (a ValueError) If a query cannot be used, in one sentence.
            ValueError: If a setting is out of range.
            FileNotFoundError: If there is no decoder.
        """
        queries = request.queries()
        if not queries:
            raise MediaError("Record or drop a sound first, type a few words, or add a picture.")
        stop = self._stops.setdefault(visitor, threading.Event())
        try:
            yield from self._frames(queries, request, stop)
        finally:
            stop.set()
            if self._stops.get(visitor) is stop:
                self.forget(visitor)

    def _frames(self, queries: dict[str, str], request: Request, stop: threading.Event) -> Iterator[Frame]:
        if stop.is_set():
            yield Frame("Stopped.", done=True)
            return
        if not self.is_loaded:
            yield Frame("Loading the decoder …")
        generator = self.generator()
        retriever = self.service.retriever
        embeddings = self.service.lanes.run(lambda: retriever.embed_parts(**queries), slow=set(queries) != {"text"})
        from fusemix.generation.generator import blend_weights

        weights = blend_weights(list(queries), request.share)
        embeds = generator.condition(embeddings, weights)
        blended = np.sum([weights[m] * embedding for m, embedding in embeddings.items()], axis=0)
        drawn = max(request.n_images, request.candidates)
        starts = self.nearest(blended, min(drawn, STARTS)) if request.from_gallery else []
        if starts:
            begun = [(start.image, f"“{start.title}”, from the gallery") for start in starts]
            yield Frame(f"Found in the gallery: {_count('picture', len(starts))} to repaint …", begun)
        doubt = self.service.familiar.sentence(embeddings["text"]) if set(queries) == {"text"} else ""
        frames: queue.Queue[Frame | BaseException] = queue.Queue()
        drawing = _Drawing(self, generator, embeds, blended, starts, request, frames, stop, doubt)
        here = contextvars.copy_context()  # whose request it is, which ZeroGPU asks for
        threading.Thread(target=here.run, args=(drawing.work,), daemon=True).start()
        while True:
            frame = frames.get()
            if isinstance(frame, BaseException):
                raise frame
            yield frame
            if frame.done:
                return

    def nearest(self, embedding: np.ndarray, count: int) -> list[Start]:
        """The gallery's pictures nearest to an embedding (D,), at most ``count``, none twice.

        Raises:
            ValueError: If the index holds no pictures with files.
        """
        from fusemix.generation.generator import nearest_pictures

        found: list[tuple[Path, dict[str, Any]]] = []
        for path, item in nearest_pictures(self.service.retriever.index, embedding, 2 * count):
            if not any(alike(path, other) for other, _ in found):
                found.append((path, item))
        return [
            Start(
                load_image(str(path)),
                str(item.get("caption") or item.get("title") or path.stem),
                ", ".join(str(item[key]) for key in ("credit", "licence") if item.get(key)),
            )
            for path, item in found[:count]
        ]

    def ranked(self, images: list[Image.Image], embedding: np.ndarray) -> list[tuple[Image.Image, float]]:
        """Pictures with their similarity to an embedding (D,), nearest first."""
        from fusemix.generation.generator import rank_images

        retriever = self.service.retriever
        return rank_images(images, embedding, retriever.model, retriever.encoders["image"])


@dataclass(frozen=True)
class _Drawing:
    """One drawing, in a thread of its own: puts a frame into the queue after each step."""

    studio: Studio
    generator: Generator
    embeds: Any
    blended: Any  # (D,), in the shared space
    starts: list[Start]
    request: Request
    frames: queue.Queue[Frame | BaseException]
    stop: threading.Event
    doubt: str = ""  # what to say of words that are like no caption of the index

    def work(self) -> None:
        """Draw; every end, a failure too, goes into the queue."""
        from fusemix.generation.sampling import Cancelled

        give_way()  # to searches
        try:
            self.frames.put(self._draw())
        except Cancelled:
            self.frames.put(Frame("Stopped.", done=True))
        except BaseException as error:  # handed to the page's thread, which knows what to say
            self.frames.put(error)

    def _draw(self) -> Frame:
        import torch

        request, started = self.request, time.perf_counter()
        drawn = max(request.n_images, request.candidates)

        def on_step(done: int, total: int, preview: Image.Image | None) -> bool:
            caption = "The first picture so far" if drawn > 1 else "The picture so far"
            shown = [(enlarged(preview), caption)] if preview is not None else []
            left = (time.perf_counter() - started) / done * (total - done)
            sentence = f"Step {done} of {total}" + (f", about {left:.0f} s left" if left >= 1 else "")
            self.frames.put(Frame(sentence, shown, done / total, starts=self.starts))
            return self.stop.is_set()

        settings = {
            "steps": request.steps,
            "guidance": request.guidance,
            "noise_level": request.noise_level,
            "seed": request.seed,
            "n_images": drawn,
            "strength": request.strength,
        }
        wanted = torch.as_tensor(np.asarray(self.blended), dtype=torch.float32)
        order = (self.embeds, wanted, request.steering, [start.image for start in self.starts], settings)
        if self.studio.borrowed is not None:
            self.frames.put(Frame("Drawing, as soon as a GPU is free …", starts=self.starts))
            images = self.studio.borrowed(*order)
        else:
            images = paint(self.studio.service, self.generator, on_step, *order)
        shown = [(image, self._caption(i)) for i, image in enumerate(images)]
        if request.candidates > 1:
            captions = {id(image): caption for image, caption in shown}
            ranked = self.studio.ranked(images, self.blended)[: request.n_images]
            shown = [(image, captions[id(image)]) for image, _ in ranked]
        sentence = self._sentence(len(shown), drawn, time.perf_counter() - started)
        pictures = [(enlarged(image), caption) for image, caption in shown]
        return Frame(sentence, pictures, 1.0, done=True, starts=self.starts)

    def _sentence(self, shown: int, drawn: int, seconds: float) -> str:
        parts = [f"{_count('repaint' if self.starts else 'picture', shown)} in {seconds:.1f} s."]
        if self.request.candidates > 1:
            which = f"Chosen from {drawn}" if drawn > shown else "Sorted"
            parts.append(f"{which} by how well they fit your request, as the image encoder judges.")
        if self.doubt:
            parts.insert(0, self.doubt)
        return " ".join(parts)

    def _caption(self, number: int) -> str:
        """What picture ``number`` is: a repaint of which picture, or a picture."""
        return f"A repaint of “{self.starts[number % len(self.starts)].title}”" if self.starts else "A picture"


def _device() -> str:
    """Where the decoder draws: ``cuda`` also on ZeroGPU, outside of the calls that borrow a GPU too."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def paint(
    service: Service,
    generator: Generator,
    on_step: Callable[..., bool] | None,
    embeds: Any,
    wanted: Any,
    steering: float,
    starts: list[Image.Image],
    settings: dict[str, Any],
) -> list[Image.Image]:
    """Draw.

    Args:
        service: Its image encoder steers.
        generator: The decoder.
        on_step: Called after every step, or None.
        embeds: Image embeddings of the decoder, (1, D_out).
        wanted: What is steered towards, (D,) of the shared space.
        steering: How far; 0: not.
        starts: Pictures to begin from; none begins from noise.
        settings: Others of :meth:`fusemix.generation.generator.Generator.from_image_embeds`.
    """
    from fusemix.generation.guidance import Steering

    retriever = service.retriever
    towards = Steering(retriever.model, retriever.encoders["image"], wanted, steering) if steering else None
    return generator.from_image_embeds(embeds, start=starts or None, steering=towards, on_step=on_step, **settings)


def _count(noun: str, number: int) -> str:
    """Such as: 1 repaint, 4 repaints."""
    return f"{number} {noun}{'s' if number > 1 else ''}"


def enlarged(image: Image.Image) -> Image.Image:
    """A small picture at the size shown; larger ones as they are."""
    if image.width >= SHOWN_SIDE:
        return image
    return image.resize((SHOWN_SIDE, SHOWN_SIDE), Image.Resampling.BICUBIC)


def loudness(audio: str, bars: int = 60) -> tuple[list[float], float]:
    """The loudness of a sound over time, of the samples that the encoder is given: mono, 16 kHz.

    Args:
        audio: Path.
        bars: How many stretches it is cut into.

    Returns:
        The peak of each stretch, the loudest 1, and the duration in seconds.

    Raises:
        MediaError: If it cannot be used, in one sentence.
    """
    samples = np.abs(load_audio(audio))
    peaks = np.array([part.max() if len(part) else 0.0 for part in np.array_split(samples, bars)])
    return (peaks / peaks.max()).tolist(), len(samples) / SAMPLE_RATE
