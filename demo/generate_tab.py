"""The "Sound to picture" tab: a sound, and if you like words or a picture, become a new picture step by step."""

from __future__ import annotations

import html
import logging
import os
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from PIL import Image

from demo.service import Service
from fusemix.files import read_json
from fusemix.index import Hit
from fusemix.media import MediaError

if TYPE_CHECKING:
    from fusemix.generate import Generator

logger = logging.getLogger(__name__)

DECODER_VARIABLE = "FUSEMIX_DECODER"
DEFAULT_DECODER = Path(__file__).resolve().parents[1] / "checkpoints" / "unclip-small"
EXAMPLES = Path(__file__).resolve().parent / "examples"
SPOKEN_EXAMPLES = (
    ("spoken-dog.mp3", "“a dog running on the grass”"),
    ("spoken-car.mp3", "“a red racing car”"),
    ("spoken-cake.mp3", "“a birthday cake”"),
)
QUEUE: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "generate"}  # search never waits for it
SHOWN_SIDE = 320  # pixels: small pictures are enlarged to this on the page
HEARD = 5  # captions shown
SORRY = "Something went wrong on our side and was noted; please try again."


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
        n_images: Pictures at once.
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

    def queries(self) -> dict[str, str]:
        """Modality -> query, for those given."""
        found = {"audio": self.audio, "text": (self.text or "").strip(), "image": self.image}
        return {modality: value for modality, value in found.items() if value}


@dataclass(frozen=True)
class Frame:
    """What the page shows at one moment: a sentence, pictures, and whether this is the end."""

    sentence: str
    images: list[Image.Image]
    done: bool = False


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

    @property
    def missing(self) -> bool:
        """Whether the default decoder is asked for and not there."""
        return self._generator is None and self.source == str(DEFAULT_DECODER) and not DEFAULT_DECODER.is_dir()

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
            "This is not Stable Diffusion: an early sketch that catches colours and kind of scene, hardly the object."
        )

    def generator(self) -> Generator:
        """The decoder, loaded once.

        Raises:
            FileNotFoundError: If it is not there.
            ValueError: If it does not fit the model.
        """
        with self._lock:
            if self._generator is None:
                import torch

                from fusemix.generate import Generator

                device = "cuda" if torch.cuda.is_available() else "cpu"
                self._generator = Generator.from_pretrained(self.source, self.service.retriever.model, device=device)
            return self._generator

    def heard(self, audio: str) -> list[Hit]:
        """The captions nearest to a sound: what the model makes of it."""
        return self.service.search_audio(audio, top_k=HEARD).hits.get("text", [])

    def draw(self, request: Request) -> Iterator[Frame]:
        """Draw, yielding a frame a step; closing the iterator stops the drawing.

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
        embeddings = {modality: retriever.embed(**{modality: query}) for modality, query in queries.items()}
        from fusemix.generate import blend_weights

        embeds = generator.condition(embeddings, blend_weights(list(queries), request.share))
        frames: queue.Queue[Frame | BaseException] = queue.Queue()
        stop = threading.Event()
        work = threading.Thread(target=_work, args=(generator, embeds, request, frames, stop), daemon=True)
        work.start()
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


def _work(
    generator: Generator,
    embeds: Any,
    request: Request,
    frames: queue.Queue[Frame | BaseException],
    stop: threading.Event,
) -> None:
    """Draw in a thread of its own and put a frame into the queue after each step."""
    from fusemix.sampling import Cancelled

    started = time.perf_counter()

    def on_step(done: int, total: int, preview: Image.Image | None) -> bool:
        shown = [enlarged(preview)] if preview is not None else []
        frames.put(Frame(f"Step {done} of {total}, {time.perf_counter() - started:.1f} s", shown))
        return stop.is_set()

    try:
        images = generator.from_image_embeds(
            embeds,
            steps=request.steps,
            guidance=request.guidance,
            noise_level=request.noise_level,
            seed=request.seed,
            n_images=request.n_images,
            on_step=on_step,
        )
        seconds = time.perf_counter() - started
        sentence = f"{len(images)} picture{'s' if len(images) > 1 else ''} in {seconds:.1f} s, seed {request.seed}."
        frames.put(Frame(sentence, [enlarged(image) for image in images], done=True))
    except Cancelled:
        frames.put(Frame("Stopped.", [], done=True))
    except BaseException as error:  # handed to the page's thread, which knows what to say
        frames.put(error)


def enlarged(image: Image.Image) -> Image.Image:
    """A small picture at the size shown; larger ones as they are."""
    if image.width >= SHOWN_SIDE:
        return image
    return image.resize((SHOWN_SIDE, SHOWN_SIDE), Image.Resampling.BICUBIC)


def heard_html(hits: list[Hit], transcript: str = "") -> str:
    """The captions nearest to a sound, and the words heard in it, as HTML."""
    if not hits:
        return ""
    words = f"<p>Words heard: “{html.escape(transcript)}”</p>" if transcript else ""
    lines = "".join(
        f"<li>{html.escape(str(hit.item.get('text') or hit.item.get('caption') or ''))} "
        f"<small>{hit.similarity:.2f}</small></li>"
        for hit in hits
    )
    return f"{words}<p>What the model heard, as the nearest captions it knows (similarity):</p><ol>{lines}</ol>"


def pages(studio: Studio, request: Request) -> Iterator[tuple[str, str, Any]]:
    """What the tab shows while it draws: (what was heard, a sentence, pictures); failures are one sentence."""
    try:
        heard = (
            heard_html(studio.heard(request.audio), studio.service.transcribe(request.audio)) if request.audio else ""
        )
        yield heard, "Getting ready …", gr.skip()
        for frame in studio.draw(request):
            yield heard, html.escape(frame.sentence), frame.images or gr.skip()
    except (MediaError, FileNotFoundError, ValueError) as error:
        raise gr.Error(str(error), print_exception=False) from error
    except Exception as error:
        logger.exception("A picture failed.")
        raise gr.Error(SORRY, print_exception=False) from error


def build_generate_tab(service: Service, studio: Studio | None = None) -> None:
    """Lay out the tab and wire it; call inside a ``gr.Tab``.

    Args:
        service: As the search tab's.
        studio: By default one with the decoder of the environment; a fake one in tests.
    """
    studio = studio or Studio(service)
    if studio.missing:
        gr.Markdown(
            "There is no decoder in `checkpoints/unclip-small`, so nothing can be drawn here. Train it with "
            f"`scripts/train_unclip.py`, or set `{DECODER_VARIABLE}` to a Stable unCLIP folder or Hub id."
        )
        return
    gr.Markdown("Say something, or play a sound, and see a picture made from it. Words or a picture can be blended in.")
    with gr.Row():
        with gr.Column():
            inputs = _inputs()
            gr.Examples(
                [[str(EXAMPLES / file)] for file, _ in SPOKEN_EXAMPLES],
                inputs[0],
                example_labels=[name for _, name in SPOKEN_EXAMPLES],
                label="Try one",
            )
            with gr.Row():
                go = gr.Button("Draw", variant="primary", elem_id="fm-draw")
                stop = gr.Button("Stop", variant="stop", elem_id="fm-stop")
        with gr.Column():
            sentence = gr.HTML(elem_id="fm-draw-status")
            gallery = gr.Gallery(
                label="Made by the decoder",
                columns=2,
                object_fit="contain",
                format="png",
                height=480,
                elem_id="fm-made",
            )
            heard = gr.HTML(elem_id="fm-heard")
            gr.Markdown(
                f"{studio.label} Switch with the environment variable `{DECODER_VARIABLE}` (a folder or Hub id of a "
                "Stable unCLIP pipeline, with a conditioner for this model beside it)."
            )

    def handler(*values: Any) -> Iterator[tuple[str, str, Any]]:
        yield from pages(studio, request_of(*values))

    drawing = go.click(
        handler,
        inputs,
        [heard, sentence, gallery],
        api_name="generate",
        api_description="A picture from a sound, a text, a picture or a blend of them.",
        show_progress="minimal",
        **QUEUE,
    )
    stop.click(lambda: "Stopped.", None, sentence, cancels=[drawing], queue=False, api_visibility="private")


def request_of(
    audio: str | None,
    text: str | None,
    image: str | None,
    share: float,
    steps: float,
    guidance: float,
    noise_level: float,
    seed: float | None,
    n_images: float,
) -> Request:
    """The widgets' values as a request."""
    return Request(
        audio=audio,
        text=text or "",
        image=image,
        share=float(share),
        steps=int(steps),
        guidance=float(guidance),
        noise_level=int(noise_level),
        seed=int(seed or 0),
        n_images=int(n_images),
    )


def _inputs() -> list[Any]:
    """The widgets, in the order of :func:`request_of`."""
    audio = gr.Audio(label="A sound", sources=["microphone", "upload"], type="filepath", editable=True, buttons=[])
    text = gr.Textbox(label="Blend with words (or draw from words alone)", max_lines=1, max_length=2000)
    image = gr.Image(label="Blend with a picture", sources=["upload"], type="filepath", height=150, buttons=[])
    share = gr.Slider(0, 1, 0.5, step=0.05, label="Share of the sound in a blend")
    with gr.Accordion("Settings", open=False):
        steps = gr.Slider(5, 100, 25, step=1, label="Steps")
        guidance = gr.Slider(1, 12, 3, step=0.5, label="Guidance (1: none)")
        noise = gr.Slider(0, 600, 0, step=10, label="Noise level: more keeps less of what was heard")
        seed = gr.Number(0, label="Seed", precision=0)
        count = gr.Slider(1, 8, 4, step=1, label="Pictures")
    return [audio, text, image, share, steps, guidance, noise, seed, count]
