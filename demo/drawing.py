"""Draws the "Sound to picture" tab's pictures: one decoder, a thread that can be stopped, a frame a step."""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from demo.near_duplicates import alike
from demo.service import Answer, Service
from fusemix.files import read_json
from fusemix.media import SAMPLE_RATE, MediaError, load_audio, load_image
from fusemix.threads import give_way

if TYPE_CHECKING:
    from fusemix.generation.generator import Generator

logger = logging.getLogger(__name__)

DECODER_VARIABLE = "FUSEMIX_DECODER"
CONDITIONER_VARIABLE = "FUSEMIX_CONDITIONER"  # folder of scripts/train_conditioner.py, for a decoder without one
DEFAULT_DECODER = Path(__file__).resolve().parents[1] / "checkpoints" / "unclip-small"
SHOWN_SIDE = 320  # pixels: small pictures are enlarged to this on the page
HEARD = 5  # captions shown
STARTS = 4  # of the gallery's pictures that drawings begin from, at most
STRENGTH = 0.6  # what was begun from is still seen, and no longer itself


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
    """

    sentence: str
    images: list[tuple[Image.Image, str]] = field(default_factory=list)
    share: float = 0.0
    done: bool = False


@dataclass(frozen=True)
class Start:
    """A picture of the gallery that a drawing begins from, its title, and whose it is under which licence."""

    image: Image.Image
    title: str
    credit: str


class Studio:
    """Draws pictures with one decoder, loaded at the first request."""

    def __init__(self, service: Service, source: str | None = None, generator: Generator | None = None) -> None:
        """Choose the decoder.

        Args:
            service: Its encoders and model make the embeddings.
            source: Folder or Hub id; by default the environment variable FUSEMIX_DECODER, else
                checkpoints/unclip-small.
            generator: A loaded decoder, in tests.
        """
        self.service = service
        self.source = source or os.environ.get(DECODER_VARIABLE) or str(DEFAULT_DECODER)
        self._generator = generator
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
        """What made the pictures, in a sentence."""
        record = Path(self.source) / "train_config.json"
        if not record.is_file():
            return f"Decoder: {self.source} (Stable unCLIP)."
        values = read_json(record)
        side, count = values["side"], values["data"]["pictures"]
        return (
            f"Decoder: a small one trained by us on {count:,} pictures at {side} × {side} pixels. "
            "This is not Stable Diffusion: alone it catches colours and kind of scene, hardly the object. So "
            + ("the image encoder steers it, and " if self.steering else "")
            + "it draws over the gallery's nearest pictures unless you let it begin from noise."
        )

    @property
    def from_gallery(self) -> bool:
        """Whether drawings begin from the gallery unless asked otherwise: a small decoder's do, if it has pictures."""
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
                import torch

                from fusemix.generation.generator import Generator

                device = "cuda" if torch.cuda.is_available() else "cpu"
                self._generator = Generator.from_pretrained(
                    self.source,
                    self.service.retriever.model,
                    conditioner=os.environ.get(CONDITIONER_VARIABLE) or None,
                    device=device,
                )
            return self._generator

    def heard(self, audio: str) -> Answer:
        """What the model makes of a sound: the nearest captions, and the words heard in it."""
        return self.service.search_audio(audio, top_k=HEARD)

    def stop(self, visitor: str) -> None:
        """Let a visitor's drawing end at its next step; nothing happens if there is none."""
        if visitor in self._stops:
            self._stops[visitor].set()

    def draw(self, request: Request, visitor: str = "") -> Iterator[Frame]:
        """Draw, yielding a frame a step; :meth:`stop` or closing the iterator stops the drawing.

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
            raise MediaError("Record or drop a sound first, or type a few words, or add a picture.")
        generator = self.generator()
        retriever = self.service.retriever
        embeddings = self.service.lanes.run(lambda: retriever.embed_parts(**queries), slow=set(queries) != {"text"})
        from fusemix.generation.generator import blend_weights

        weights = blend_weights(list(queries), request.share)
        embeds = generator.condition(embeddings, weights)
        blended = np.sum([weights[m] * embedding for m, embedding in embeddings.items()], axis=0)
        drawn = max(request.n_images, request.candidates)
        starts = self.nearest(blended, min(drawn, STARTS)) if request.from_gallery else []
        frames: queue.Queue[Frame | BaseException] = queue.Queue()
        stop = self._stops[visitor] = threading.Event()
        doubt = self.service.familiar.sentence(embeddings["text"]) if set(queries) == {"text"} else ""
        drawing = _Drawing(self, generator, embeds, blended, starts, request, frames, stop, doubt)
        threading.Thread(target=drawing.work, daemon=True).start()
        try:
            while True:
                frame = frames.get()
                if isinstance(frame, BaseException):
                    raise frame
                yield frame
                if frame.done:
                    return
        finally:
            stop.set()
            if self._stops.get(visitor) is stop:
                del self._stops[visitor]

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

        from fusemix.generation.guidance import Steering

        request, started = self.request, time.perf_counter()
        drawn = max(request.n_images, request.candidates)

        def on_step(done: int, total: int, preview: Image.Image | None) -> bool:
            shown = [(enlarged(preview), "")] if preview is not None else []
            sentence = f"Step {done} of {total}, {time.perf_counter() - started:.1f} s"
            self.frames.put(Frame(sentence, shown, done / total))
            return self.stop.is_set()

        steering = None
        if request.steering:
            retriever = self.studio.service.retriever
            wanted = torch.as_tensor(np.asarray(self.blended), dtype=torch.float32)
            steering = Steering(retriever.model, retriever.encoders["image"], wanted, request.steering)
        images = self.generator.from_image_embeds(
            self.embeds,
            steps=request.steps,
            guidance=request.guidance,
            noise_level=request.noise_level,
            seed=request.seed,
            n_images=drawn,
            start=[start.image for start in self.starts] or None,
            strength=request.strength,
            steering=steering,
            on_step=on_step,
        )
        shown = [(image, self._after(i)) for i, image in enumerate(images)]
        if request.candidates > 1:
            after = {id(image): caption for image, caption in shown}
            ranked = self.studio.ranked(images, self.blended)[: request.n_images]
            shown = [
                (image, ", ".join(filter(None, (f"similarity {similarity:.2f}", after[id(image)]))))
                for image, similarity in ranked
            ]
        sentence = self._sentence(len(shown), drawn, time.perf_counter() - started)
        return Frame(sentence, [(enlarged(image), caption) for image, caption in shown], 1.0, done=True)

    def _sentence(self, shown: int, drawn: int, seconds: float) -> str:
        parts = [f"{shown} picture{'s' if shown > 1 else ''} in {seconds:.1f} s, seed {self.request.seed}."]
        if self.request.candidates > 1:
            how = f"The nearest of {drawn} drawn, chosen" if drawn > shown else "Nearest first,"
            parts.append(f"{how} by the same image encoder that conditions the decoder.")
        if self.starts:
            named = [f"“{start.title}”" + (f" ({start.credit})" if start.credit else "") for start in self.starts]
            parts.append(f"Drawn over the gallery's {', '.join(named)}.")
        if self.doubt:
            parts.insert(0, self.doubt)
        return " ".join(parts)

    def _after(self, number: int) -> str:
        """What picture ``number`` was drawn over, for its caption."""
        return f"after “{self.starts[number % len(self.starts)].title}”" if self.starts else ""


def enlarged(image: Image.Image) -> Image.Image:
    """A small picture at the size shown; larger ones as they are."""
    if image.width >= SHOWN_SIDE:
        return image
    return image.resize((SHOWN_SIDE, SHOWN_SIDE), Image.Resampling.BICUBIC)


def loudness(audio: str, bars: int = 60) -> tuple[list[float], float]:
    """A sound as the encoder hears it: mono, 16 kHz, whole or refused.

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
