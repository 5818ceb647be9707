"""Drawing for the "Sound to picture" tab: one decoder, a thread that can be stopped, a frame per step."""

from __future__ import annotations

import base64
import contextvars
import io
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps

from demo.near_duplicates import alike
from demo.service import Answer, Service
from demo.zero_gpu import borrowing, seconds, seconds_to_embed
from fusemix.datasets.paper_recipes import DECODER as STABLE_UNCLIP
from fusemix.files import read_json
from fusemix.media import SAMPLE_RATE, MediaError, load_audio, load_image
from fusemix.threads import lower_priority

if TYPE_CHECKING:
    from fusemix.generation.generator import Generator

logger = logging.getLogger(__name__)

DECODER_VARIABLE = "FUSEMIX_DECODER"
CONDITIONER_VARIABLE = "FUSEMIX_CONDITIONER"  # folder or Hub id, of fusemix conditioner, for a decoder without one
AUTO = "auto"  # as the decoder: Stable Diffusion unCLIP where there is a GPU, else the one that ships
DEFAULT_DECODER = Path(__file__).resolve().parents[1] / "checkpoints" / "unclip-small"
SHOWN_SIDE = 320  # pixels, to which small pictures are enlarged on the page
THUMBNAIL_SIDE = 96  # pixels, longer side, of the pictures that drawings start from
N_CAPTIONS = 5  # shown for a sound
STARTS = 4  # most gallery pictures that drawings start from
STRENGTH = 0.6  # the start is still recognisable, but clearly repainted
HUB_S = 5  # waited for the Hub's answer
WARM_UP = "warm-up"  # visitor name of the first drawing, made in the background


@dataclass(frozen=True)
class Request:
    """One drawing request.

    Attributes:
        audio: Path of a sound, or None; at least one of audio, text and image is given.
        text: Words to blend in.
        image: Path of a picture to blend in.
        share: Share of the first given of the three in a blend, 0 to 1.
        steps: Denoising steps.
        guidance: Classifier-free guidance.
        noise_level: Noise added to the embedding, 0 to 999.
        seed: Seed of the first picture.
        n_images: Pictures shown.
        candidates: Pictures drawn, at least ``n_images``; the best matches are shown.
        from_gallery: Start from the nearest gallery pictures, noised, in turn, instead of from pure noise.
        strength: How much to repaint them, in (0, 1].
        steering: How far the image encoder moves every second step towards the request; 0 for none.
        small: Whether the small decoder draws, on the CPU, instead of a larger one.
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
    small: bool = False

    def queries(self) -> dict[str, str]:
        """Return modality -> query for those given."""
        found = {"audio": self.audio, "text": (self.text or "").strip(), "image": self.image}
        return {modality: value for modality, value in found.items() if value}


@dataclass(frozen=True)
class Frame:
    """State of the page at one moment.

    Attributes:
        sentence: Current activity.
        images: Pictures with captions; empty to keep those on the page.
        share: Fraction of the drawing done, 0 to 1.
        done: Whether this is the last frame.
        starts: Gallery pictures that are repainted, shown small.
    """

    sentence: str
    images: list[tuple[Image.Image, str]] = field(default_factory=list)
    share: float = 0.0
    done: bool = False
    starts: list[Start] = field(default_factory=list)


@dataclass(frozen=True)
class Start:
    """Gallery picture that a drawing starts from, with its title, author and licence."""

    image: Image.Image
    title: str
    credit: str

    @cached_property
    def thumbnail(self) -> str:
        """Small copy of the picture as a data address: ``data:image/png;base64,…``."""
        small, file = ImageOps.contain(self.image, (THUMBNAIL_SIDE, THUMBNAIL_SIDE)), io.BytesIO()
        small.save(file, "PNG")
        return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


class Studio:
    """Drawing service with one decoder, loaded in the background or at the first request."""

    def __init__(
        self,
        service: Service,
        source: str | None = None,
        generator: Generator | None = None,
        device: str | None = None,
    ) -> None:
        """Choose the decoder.

        Args:
            service: Service whose encoders and model make the embeddings.
            source: Folder or Hub id, or ``auto``: Stable Diffusion unCLIP if there is a GPU, else
                checkpoints/unclip-small; by default the environment variable FUSEMIX_DECODER, else ``auto``.
            generator: Loaded decoder, for tests.
            device: A torch device string; by default ``cuda`` if there is a GPU, else ``cpu``.
        """
        self.service = service
        self.device = device or _device()
        self.source = source or os.environ.get(DECODER_VARIABLE) or AUTO
        if self.source == AUTO:
            self.source = (
                STABLE_UNCLIP if self.device == "cuda" and _can_be_had(STABLE_UNCLIP) else str(DEFAULT_DECODER)
            )
        is_shipped = self.source == str(DEFAULT_DECODER)
        self._conditioner = None if is_shipped else os.environ.get(CONDITIONER_VARIABLE) or None
        self._generator = generator
        self._unfitted: Path | None = None  # folder of a loaded decoder that still needs a conditioner
        self.borrowed: Callable[..., list[Image.Image]] | None = None  # on ZeroGPU, what draws in another process
        self._clip: Callable[..., Any] | None = None  # there, what embeds pictures in another process
        self._lock = threading.Lock()
        self._stops: dict[str, threading.Event] = {}  # visitors whose drawing runs or waits, in the order they asked
        self.pace = 0.0  # seconds a step of a single picture took in the last drawing; 0 before the first

    def fault(self) -> str | None:
        """Return why nothing can be drawn, in a sentence, judging by the files; None if they are fine."""
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
        """Description of the decoder in a few sentences."""
        record = Path(self.source) / "train_config.json"
        if not record.is_file():
            lent = seconds({"steps": Request.steps, "n_images": STARTS}, is_small=False)
            cost = f" Each drawing asks for a shared GPU, for {lent} s as the settings are." if self.borrowed else ""
            return f"{self.source}, a Stable Diffusion unCLIP, draws the pictures.{cost}{self._borrowed_maps()}"
        values = read_json(record)
        side, count = values["side"], values["data"]["pictures"]
        return (
            f"A small decoder makes the pictures. We trained it on {count:,} pictures of {side} × {side} pixels. It is "
            "not Stable Diffusion: starting from noise, it gets the colours and the kind of scene right, but rarely "
            "the object. That is why it repaints pictures from the gallery"
            + (", guided by the image encoder." if self.steering else ".")
        )

    def _borrowed_maps(self) -> str:
        """Say which modalities are mapped to the decoder as another one is, once it is loaded; "" for none."""
        nouns = {"audio": "sounds", "text": "words", "image": "pictures"}
        lines = ""
        if self._generator is not None and self._unfitted is None:
            for modality in sorted(self.service.understood & nouns.keys()):
                used = self._generator.conditioner.bridge_of(modality)
                if used not in (None, modality):
                    lines += f" It has no map for {nouns[modality]} of their own; that of {nouns[used]} is used."
        return lines

    @property
    def from_gallery(self) -> bool:
        """Default of ``from_gallery``: True for a small decoder and an index with pictures."""
        index = self.service.retriever.index
        return (Path(self.source) / "train_config.json").is_file() and index.counts.get("image", 0) > 0

    @property
    def steering(self) -> float:
        """Default steering; 0 if the image encoder cannot steer."""
        if not (Path(self.source) / "train_config.json").is_file():  # of scripts/release/train_unclip.py
            return 0.0
        from fusemix.generation.guidance import STRENGTH as AS_MEASURED
        from fusemix.generation.guidance import DifferentiableEncoder

        return AS_MEASURED if isinstance(self.service.retriever.encoders.get("image"), DifferentiableEncoder) else 0.0

    def generator(self) -> Generator:
        """Return the decoder, loaded once.

        Raises:
            FileNotFoundError: If it is missing.
            ValueError: If it does not fit the model.
        """
        with self._lock:
            if self._generator is None:
                from fusemix.generation.first_fit import needs_conditioner
                from fusemix.generation.generator import Generator
                from fusemix.generation.pipelines import resolve

                folder = resolve(self.source, None)
                if self._conditioner is None and needs_conditioner(folder):
                    if self.device == "cpu":
                        raise ValueError(
                            f"The decoder {self.source} needs a conditioner for this checkpoint, and without a GPU it "
                            f"takes hours to fit one; make it with fusemix conditioner, and name it in "
                            f"{CONDITIONER_VARIABLE}."
                        )
                    self._unfitted = folder
                self._generator = Generator.from_pretrained(
                    folder,
                    None if self._unfitted else self.service.retriever.model,
                    conditioner=self._conditioner,
                    device=self.device,
                    prompts=False,
                )
            return self._generator

    def conditioned(self, report: Callable[[int, int], None] | None = None) -> Generator:
        """Return the decoder with a conditioner for the model; the first time one is fitted from the index, if needed.

        Args:
            report: Called with the pictures embedded and in all, while it is fitted.

        Raises:
            As :meth:`generator`, and ValueError if the index is too small.
        """
        generator = self.generator()
        with self._lock:
            if self._unfitted is not None:
                from fusemix.generation.first_fit import conditioner_for, embed_pictures

                def embed(folder: Path, pictures: Sequence[Path], report: Any) -> Any:
                    if self._clip is None:
                        return embed_pictures(folder, pictures, report, device=_device())
                    on_step = None if report is None else lambda done, total, _: report(done, total) or False
                    return self._clip(on_step, str(folder), [str(path) for path in pictures])

                retriever = self.service.retriever
                found = conditioner_for(self._unfitted, retriever.model, retriever.index, embed=embed, report=report)
                generator.condition_by(found, retriever.model)
                self._unfitted = None
            return generator

    @cached_property
    def small(self) -> Studio | None:
        """The small decoder on the CPU, for when no GPU is lent; None if this is it, or if it does not ship."""
        if self.source == str(DEFAULT_DECODER) or not DEFAULT_DECODER.is_dir():
            return None
        return Studio(self.service, str(DEFAULT_DECODER), device="cpu")

    @property
    def is_loaded(self) -> bool:
        """True once the decoder is loaded."""
        return self._generator is not None

    def load_for_zero_gpu(self) -> None:
        """Load the decoder onto the GPU that is lent to each drawing; before the page is served.

        Raises:
            FileNotFoundError: If it is not there.
            ValueError: If it does not fit the model.
        """
        generator = self.generator()

        def seconds_of(*values: Any) -> int:
            return seconds(values[-1], is_small=generator.is_small)

        def embed(on_step: Callable[..., bool], folder: str, pictures: list[str]) -> Any:
            from fusemix.generation.first_fit import embed_pictures

            def report(done: int, total: int) -> None:
                on_step(done, total, None)

            return embed_pictures(Path(folder), [Path(path) for path in pictures], report, device=_device())

        self.borrowed = borrowing(partial(paint, self.service, generator), seconds_of)
        self._clip = borrowing(embed, lambda folder, pictures: seconds_to_embed(len(pictures)))

    def load_in_background(self) -> None:
        """Load the decoder in a low-priority thread, so that the first visitor need not wait for it.

        A small decoder also draws once, because torch and the encoders set up much at their first use. A failure
        is logged here and reported to the visitor who draws.
        """

        def load() -> None:
            lower_priority()
            try:
                if self.conditioned().is_small and "text" in self.service.understood:
                    request = Request(
                        text="a picture", steps=1, from_gallery=self.from_gallery, strength=1, steering=self.steering
                    )
                    for _ in self.draw(request, WARM_UP):
                        pass
            except Exception:
                logger.exception("The decoder could not be loaded in the background.")

        # Not a daemon: a daemon thread inside torch would abort the process when the interpreter ends.
        threading.Thread(target=load, name="fusemix-load-decoder").start()

    def listen(self, audio: str) -> Answer:
        """Return the captions nearest to a sound, and the words heard in it."""
        return self.service.search_audio(audio, top_k=N_CAPTIONS)

    def ask(self, visitor: str) -> None:
        """Register a drawing that may wait in the queue: end the visitor's earlier one, and make this one stoppable."""
        self.stop(visitor)
        self._stops.pop(visitor, None)  # the last in the row again
        self._stops[visitor] = threading.Event()

    def outlook(self, visitor: str, steps: float) -> str:
        """Say who is before a visitor and how long the drawing takes.

        Args:
            visitor: Of :meth:`ask`.
            steps: Of single pictures: steps times pictures.
        """
        before = list(self._stops).index(visitor) if visitor in self._stops else 0
        place = "Your drawing is next" if not before else f"{_count('drawing', before)} to go before yours"
        expected = (
            f"; it will take about {max(self.pace * steps, 1):.0f} s, as fast as the last one" if self.pace else ""
        )
        return f"{place}{expected} …"

    def stop(self, visitor: str) -> bool:
        """End a visitor's drawing at its next step, or before it begins; return whether there is one."""
        if visitor not in self._stops:
            return "small" in self.__dict__ and self.small is not None and self.small.stop(visitor)
        self._stops[visitor].set()
        return True

    def forget(self, visitor: str) -> None:
        """Remove the record of a visitor's running or waiting drawing."""
        self._stops.pop(visitor, None)

    def draw(self, request: Request, visitor: str = "") -> Iterator[Frame]:
        """Draw, yielding the starts, then a frame per step; :meth:`stop` or closing the iterator ends it.

        Args:
            request: Drawing request.
            visitor: Session of the visitor.

        Raises:
            MediaError: (a ValueError) If a query cannot be used, in one sentence.
            ValueError: If a setting is out of range.
            FileNotFoundError: If the decoder is missing.
        """
        if request.small and self.small is not None:
            small = self.small
            if visitor in self._stops:  # it waited here, and can be stopped there
                small._stops[visitor] = self._stops.pop(visitor)
            request = replace(request, small=False, from_gallery=small.from_gallery, steering=small.steering)
            yield from small.draw(request, visitor)
            return
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
        if self._unfitted is not None:
            yield Frame("Preparing, once: Stable Diffusion looks at the gallery's pictures, for about a minute …")
            generator = self.conditioned()
        retriever = self.service.retriever
        embeddings = self.service.pools.run(lambda: retriever.embed_parts(**queries), slow=set(queries) != {"text"})
        from fusemix.generation.generator import blend_weights

        weights = blend_weights(list(queries), request.share)
        embeds = generator.condition(embeddings, weights)
        blended = np.sum([weights[m] * embedding for m, embedding in embeddings.items()], axis=0)
        drawn = max(request.n_images, request.candidates)
        starts = self.nearest(blended, min(drawn, STARTS)) if request.from_gallery else []
        if starts:
            begun = [(start.image, f"“{start.title}”, from the gallery") for start in starts]
            yield Frame(f"Found {_count('picture', len(starts))} in the gallery to repaint …", begun)
        doubt = self.service.out_of_domain.sentence(embeddings["text"]) if set(queries) == {"text"} else ""
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
        """Return at most ``count`` different gallery pictures nearest to an embedding, shape (D,).

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
        """Return pictures with their similarity to an embedding, shape (D,), nearest first."""
        from fusemix.generation.generator import rank_images

        retriever = self.service.retriever
        return rank_images(images, embedding, retriever.model, retriever.encoders["image"])


@dataclass(frozen=True)
class _Drawing:
    """One drawing in its own thread, which puts a frame into a queue after each step."""

    studio: Studio
    generator: Generator
    embeds: Any
    blended: Any  # (D,), in the shared space
    starts: list[Start]
    request: Request
    frames: queue.Queue[Frame | BaseException]
    stop: threading.Event
    doubt: str = ""  # sentence if no caption of the index resembles the words

    def work(self) -> None:
        """Draw; put the last frame or the failure into the queue."""
        from fusemix.generation.sampling import Cancelled

        lower_priority()  # to searches
        try:
            self.frames.put(self._draw())
        except Cancelled:
            self.frames.put(Frame("Stopped.", done=True))
        except BaseException as error:  # handled in the page's thread
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
            images = self.studio.borrowed(on_step, *order)
        else:
            images = paint(self.studio.service, self.generator, on_step, *order)
        shown = [(image, self._caption(i)) for i, image in enumerate(images)]
        if request.candidates > 1:
            captions = {id(image): caption for image, caption in shown}
            ranked = self.studio.ranked(images, self.blended)[: request.n_images]
            shown = [(image, captions[id(image)]) for image, _ in ranked]
        took = time.perf_counter() - started
        if request.steps > 1:  # not the warm-up
            self.studio.pace = took / (request.steps * drawn)
        sentence = self._sentence(len(shown), drawn, took)
        pictures = [(enlarged(image), caption) for image, caption in shown]
        return Frame(sentence, pictures, 1.0, done=True, starts=self.starts)

    def _sentence(self, shown: int, drawn: int, seconds: float) -> str:
        parts = [f"{_count('repaint' if self.starts else 'picture', shown)} in {seconds:.1f} s."]
        if self.request.candidates > 1:
            which = f"Chosen from {drawn}" if drawn > shown else "Sorted"
            parts.append(f"{which} by how well they match your request.")
        if self.doubt:
            parts.insert(0, self.doubt)
        return " ".join(parts)

    def _caption(self, number: int) -> str:
        """Return the caption of picture ``number``: a repaint of a gallery picture, or a picture."""
        return f"A repaint of “{self.starts[number % len(self.starts)].title}”" if self.starts else "A picture"


def _device() -> str:
    """Return the device of the decoder: ``cuda`` or ``cpu``; on ZeroGPU ``cuda``, also outside GPU calls."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _can_be_had(repo_id: str) -> bool:
    """Return whether a repository is in the Hub's cache or the Hub answers; log why not."""
    from huggingface_hub import HfApi, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(repo_id, "model_index.json"), str):
        return True
    try:
        HfApi().model_info(repo_id, timeout=HUB_S)
    except Exception as error:  # the Hub client raises many types; all mean "not there"
        logger.warning("%s cannot be had (%s), so the small decoder draws.", repo_id, type(error).__name__)
        return False
    return True


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
    """Return a count with its noun, such as 1 repaint, 4 repaints."""
    return f"{number} {noun}{'s' if number > 1 else ''}"


def enlarged(image: Image.Image) -> Image.Image:
    """Enlarge a small picture to the size shown; return a larger one unchanged."""
    if image.width >= SHOWN_SIDE:
        return image
    return image.resize((SHOWN_SIDE, SHOWN_SIDE), Image.Resampling.BICUBIC)


def loudness(audio: str, bars: int = 60) -> tuple[list[float], float]:
    """Measure the loudness over time of the samples that the encoder receives: mono, 16 kHz.

    Args:
        audio: Path.
        bars: Number of equal intervals.

    Returns:
        Peak of each interval, scaled to a maximum of 1, and the duration in seconds.

    Raises:
        MediaError: If it cannot be used, in one sentence.
    """
    samples = np.abs(load_audio(audio))
    peaks = np.array([part.max() if len(part) else 0.0 for part in np.array_split(samples, bars)])
    return (peaks / peaks.max()).tolist(), len(samples) / SAMPLE_RATE
