"""The "Sound to picture" tab: a sound, and if you like words or a picture, become a new picture step by step."""

from __future__ import annotations

import html
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from demo.drawing import DECODER_VARIABLE, STRENGTH, Frame, Request, Studio, loudness
from demo.service import Answer, Service
from demo.tabs.picture_input import PictureInput
from demo.transcripts import sentences
from fusemix.media import MediaError, shown

logger = logging.getLogger(__name__)

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SPOKEN_EXAMPLES = (
    ("spoken-boat.mp3", "“a sailing boat on the water”"),
    ("spoken-car.mp3", "“a red racing car”"),
    ("spoken-cake.mp3", "“a birthday cake”"),
)
QUEUE: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "generate"}  # search never waits for it
GPU_SECONDS = 60  # asked of ZeroGPU for one drawing
SORRY = "Something went wrong on our side and was noted; please try again."


def on_gpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """On a ZeroGPU Space, run a handler with a GPU; anywhere else the function itself."""
    if not os.environ.get("SPACES_ZERO_GPU"):
        return function
    import spaces

    wrapped: Callable[..., Any] = spaces.GPU(duration=GPU_SECONDS)(function)
    return wrapped


def waveform_html(audio: str) -> str:
    """What of a sound reaches the encoder, as bars, with its duration."""
    peaks, seconds = loudness(audio)
    bars = "".join(
        f'<rect x="{i * 5}" y="{20 - 19 * peak:.1f}" width="3" height="{max(1.0, 38 * peak):.1f}" rx="1.5"/>'
        for i, peak in enumerate(peaks)
    )
    return (
        f'<figure class="fm-wave"><svg viewBox="0 0 {5 * len(peaks)} 40" width="100%" height="48" '
        f'preserveAspectRatio="none" fill="currentColor" role="img" aria-label="Waveform">{bars}</svg>'
        f"<figcaption>The encoder hears these {seconds:.1f} seconds, as one channel at 16 kHz.</figcaption></figure>"
    )


def progress_html(frame: Frame) -> str:
    """A frame's sentence, with a bar while it draws."""
    sentence = html.escape(frame.sentence)
    if frame.done:
        return sentence
    return f'<progress max="1" value="{frame.share:.3f}" style="width:100%"></progress><br>{sentence}'


def heard_html(answer: Answer) -> str:
    """The captions nearest to a sound, and the words heard in it, as HTML."""
    hits = answer.hits.get("text", [])
    if not hits:
        return ""
    words = "".join(f"<p>{html.escape(line)}</p>" for line in sentences(answer.heard, answer.doubt))
    lines = "".join(
        f"<li>{html.escape(str(hit.item.get('text') or hit.item.get('caption') or ''))} "
        f"<small>{hit.similarity:.2f}</small></li>"
        for hit in hits
    )
    return f"{words}<p>What the model heard, as the nearest captions it knows (similarity):</p><ol>{lines}</ol>"


def pages(studio: Studio, request: Request, visitor: str = "") -> Iterator[tuple[str, str, Any]]:
    """What the tab shows while it draws: (what was heard, a sentence, pictures); failures are one sentence."""
    try:
        heard = ""
        if request.audio:
            heard = waveform_html(request.audio) + heard_html(studio.heard(request.audio))
        yield heard, "Getting ready …", gr.skip()
        for frame in studio.draw(request, visitor):
            yield heard, progress_html(frame), frame.images or gr.skip()
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
    if fault := studio.fault():
        gr.Markdown(fault)
        return
    gr.Markdown("Say something, or play a sound, and see a picture made from it. Words or a picture can be blended in.")
    with gr.Row():
        with gr.Column():
            inputs = _inputs(service.understood, studio)
            if "audio" in service.understood:
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
            sentence = gr.HTML("Your pictures will appear here.", elem_id="fm-draw-status")
            gallery = gr.Gallery(
                label="Made by the decoder",
                columns=2,
                object_fit="contain",
                format="png",
                height="auto",
                elem_id="fm-made",
                visible=False,  # an empty one is a large blank, and its label means nothing to a screen reader
            )
            heard = gr.HTML(elem_id="fm-heard")
            gr.Markdown(
                f"{studio.label} To draw with the real Stable Diffusion unCLIP, fit a conditioner to it "
                f"(`scripts/train_conditioner.py`) and name its folder in `{DECODER_VARIABLE}`."
            )

    if os.environ.get("SPACES_ZERO_GPU"):
        studio.generator()  # ZeroGPU forks for every call: what is not loaded now would be loaded each time

    def handler(page: gr.Request, *values: Any) -> Iterator[tuple[str, str, Any]]:
        yield from pages(studio, request_of(*values), page.session_hash or "")

    def stop_drawing(page: gr.Request) -> str:
        studio.stop(page.session_hash or "")
        return "Stopped."

    drawing = go.click(
        on_gpu(handler),
        inputs,
        [heard, sentence, gallery],
        api_name="generate",
        api_description="A picture from a sound, a text, a picture or a blend of them.",
        show_progress="minimal",
        **QUEUE,
    )
    go.click(lambda: gr.update(visible=True), None, gallery, queue=False, api_visibility="private")
    stop.click(stop_drawing, None, sentence, cancels=[drawing], queue=False, api_visibility="private")


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
    candidates: float,
    from_gallery: bool,
    strength: float,
    steering: float = 0.0,
) -> Request:
    """The widgets' values as a request.

    Raises:
        gr.Error: If a number is none, in one sentence.
    """
    return Request(
        audio=audio,
        text=text if isinstance(text, str) else "",
        image=image,
        share=_number("The share of the sound", share),
        steps=int(_number("The number of steps", steps)),
        guidance=_number("The guidance", guidance),
        noise_level=int(_number("The noise level", noise_level)),
        seed=int(_number("The seed", seed or 0)),
        n_images=int(_number("The number of pictures", n_images)),
        candidates=int(_number("The number of candidates", candidates)),
        from_gallery=bool(from_gallery),
        strength=_number("How much is drawn over", strength),
        steering=_number("The steering", steering),
    )


def _number(name: str, value: Any) -> float:
    """A finite number from a widget; whole numbers stay whole."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or value in (float("inf"), float("-inf"))
        or value != value
    ):
        raise gr.Error(f"{name} must be a number, not {shown(value)}.", print_exception=False)
    return value


def _inputs(understood: frozenset[str], studio: Studio) -> list[Any]:
    """The widgets, in the order of :func:`request_of`."""
    audio = gr.Audio(
        label="A sound",
        sources=["microphone", "upload"],
        type="filepath",
        editable=True,
        buttons=[],
        visible="audio" in understood,
    )
    text = gr.Textbox(label="Blend with words (or draw from words alone)", max_lines=1, max_length=2000)
    image = PictureInput(
        label="Blend with a picture",
        sources=["upload"],
        type="filepath",
        height=150,
        buttons=[],
        visible="image" in understood,
    )
    share = gr.Slider(0, 1, 0.5, step=0.05, label="Share of the sound in a blend")
    with gr.Accordion("Settings", open=False):
        steps = gr.Slider(5, 100, 25, step=1, label="Steps")
        guidance = gr.Slider(1, 12, 3, step=0.5, label="Guidance (1: none)")
        noise = gr.Slider(0, 600, 0, step=10, label="Noise level: more keeps less of what was heard")
        seed = gr.Number(0, label="Seed", precision=0)
        count = gr.Slider(1, 8, 4, step=1, label="Pictures")
        candidates = gr.Slider(1, 16, 4, step=1, label="Candidates: draw so many, show the nearest")
        gallery = gr.Checkbox(
            studio.from_gallery, label="Draw over the gallery's nearest pictures, not from noise alone"
        )
        strength = gr.Slider(0.1, 1, STRENGTH, step=0.05, label="Then: how much is drawn over them")
        steering = gr.Slider(
            0,
            0.5,
            studio.steering,
            step=0.01,
            label="Steering: how far the image encoder moves each second step towards what you asked for",
            visible=studio.steering > 0,
        )
    return [audio, text, image, share, steps, guidance, noise, seed, count, candidates, gallery, strength, steering]
