"""The "Sound to picture" tab: draws a picture from a sound, words, a picture or a blend, step by step."""

from __future__ import annotations

import html
import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.context import Context

from demo.drawing import STRENGTH, Frame, Request, Studio, loudness
from demo.results import apology
from demo.service import Answer, Service
from demo.tabs.picture_input import PictureInput
from demo.transcripts import sentences
from demo.zero_gpu import NoGpu, on_zero_gpu
from fusemix.media import MediaError, shown

logger = logging.getLogger(__name__)

HERE = Path(__file__).resolve().parents[1]
EXAMPLES = HERE / "examples"
SPOKEN_EXAMPLES = (
    ("spoken-boat.mp3", "“a sailing boat on the water”"),
    ("spoken-car.mp3", "“a red racing car”"),
    ("spoken-cake.mp3", "“a birthday cake”"),
)
SOUND_EXAMPLES = (("sound-drum-tom-hi-hard", "a drum"),)  # sounds whose nearest gallery pictures show their source
QUEUE: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "generate"}  # search never waits for it
SMALL = "Draw with the small decoder"
SORRY = "Something went wrong on our side, and we have logged it. Please try again."


def waveform_html(audio: str) -> str:
    """Draw the part of the sound that the encoder uses, as bars, with its duration."""
    peaks, seconds = loudness(audio)
    bars = "".join(
        f'<rect x="{i * 5}" y="{20 - 19 * peak:.1f}" width="3" height="{max(1.0, 38 * peak):.1f}" rx="1.5"/>'
        for i, peak in enumerate(peaks)
    )
    return (
        f'<figure class="fm-wave"><svg viewBox="0 0 {5 * len(peaks)} 40" width="100%" height="48" '
        f'preserveAspectRatio="none" fill="currentColor" role="img" aria-label="Waveform">{bars}</svg>'
        f"<figcaption>The model hears these {seconds:.1f} seconds.</figcaption></figure>"
    )


def progress_html(frame: Frame) -> str:
    """Return a frame's sentence, a progress bar while it draws, and the pictures repainted."""
    bar = "" if frame.done else f'<progress max="1" value="{frame.share:.3f}" aria-label="Drawn"></progress>'
    return f'<div class="fm-progress">{bar}<p>{html.escape(frame.sentence)}</p></div>{_starts_html(frame)}'


def _starts_html(frame: Frame) -> str:
    """Return the gallery pictures that are repainted, small, with title and credit."""
    if not frame.starts:
        return ""
    items = "".join(
        f'<li><img src="{start.thumbnail}" alt=""><span>“{html.escape(start.title)}” '
        f"<small>{html.escape(start.credit)}</small></span></li>"
        for start in frame.starts
    )
    return f'<p class="fm-label">Repainted from the gallery:</p><ul class="fm-starts">{items}</ul>'


def heard_html(answer: Answer) -> str:
    """Return the words heard in a sound and its nearest captions as HTML."""
    hits = answer.hits.get("text", [])
    if not hits:
        return ""
    words = "".join(f"<p>{html.escape(line)}</p>" for line in sentences(answer.heard, answer.doubt))
    lines = "".join(
        f"<li>{html.escape(str(hit.item.get('text') or hit.item.get('caption') or ''))} "
        f"<small>{hit.similarity:.2f}</small></li>"
        for hit in hits
    )
    return f"{words}<p>Captions most like the sound, with their similarity:</p><ol>{lines}</ol>"


Shown = tuple[Any, str, Any]  # captions and words of the sound, status, pictures


def pages(studio: Studio, request: Request, visitor: str = "") -> Iterator[Shown]:
    """Yield the contents of the tab while it draws.

    Raises:
        gr.Error: In one sentence, if nothing can be drawn.
    """
    try:
        heard = ""
        yield heard, progress_html(Frame("Listening …" if request.audio else "Getting ready …")), []
        if request.audio:
            heard = waveform_html(request.audio) + heard_html(studio.listen(request.audio))
        for frame in studio.draw(request, visitor):
            yield heard, progress_html(frame), frame.images or gr.skip()
    except NoGpu as error:
        offer = f" Or switch on “{SMALL}” in the settings." if studio.small is not None else ""
        raise gr.Error(f"{error}{offer}", print_exception=False) from error
    except (MediaError, FileNotFoundError, ValueError) as error:
        raise gr.Error(str(error), print_exception=False) from error
    except Exception as error:
        logger.exception("A picture failed.")
        raise gr.Error(SORRY, print_exception=False) from error


def calm_pages(studio: Studio, visitor: str, values: tuple[Any, ...]) -> Iterator[Shown]:
    """Yield the same for the page; an error becomes the status, and earlier pictures stay."""
    try:
        yield from pages(studio, request_of(*values), visitor)
    except gr.Error as error:
        studio.forget(visitor)
        yield gr.skip(), apology(str(error.message)), gr.skip()


def build_generate_tab(service: Service, studio: Studio | None = None) -> None:
    """Lay out the tab and wire it; call inside a ``gr.Tab``.

    Args:
        service: Service of the search tab.
        studio: Drawing service; by default with the decoder of the environment.
    """
    studio = studio or Studio(service)
    forks = on_zero_gpu()  # a process for every drawing
    if fault := studio.fault() or (_load_for_zero_gpu(studio) if forks else None):
        gr.Markdown(fault)
        return
    with gr.Row(elem_id="fm-drawing"):
        with gr.Column():
            gr.HTML(f'<p class="fm-lead">{_lead(studio)}</p>')
            chips = _chips(offered_examples(studio)) if "audio" in service.understood else {}
            audio, text = _main_inputs(service.understood)
            with gr.Row(elem_id="fm-draw-keys"):
                go = gr.Button("Draw", variant="primary", elem_id="fm-draw")
                stop = gr.Button("Stop", elem_id="fm-stop")
        with gr.Column():
            sentence = gr.HTML('<p class="fm-lead">Your pictures will appear here.</p>', elem_id="fm-draw-status")
            gallery = gr.Gallery(
                label="Pictures",
                show_label=False,
                columns=2,
                object_fit="contain",
                format="png",
                height="auto",
                buttons=["download", "fullscreen"],
                elem_id="fm-made",
            )
            heard = gr.HTML(elem_id="fm-heard")
    inputs = [audio, text, *_more_inputs(service.understood, studio)]
    gr.HTML(f'<p class="fm-own-note">{html.escape(studio.label)}</p>')

    if not forks and Context.root_block is not None:
        Context.root_block.extra_startup_events.append(partial(_load, studio))  # once the page is served

    private: dict[str, Any] = {"api_visibility": "private"}
    outputs = [heard, sentence, gallery]

    def for_api(page: gr.Request, *values: Any) -> Iterator[Shown]:
        yield from pages(studio, request_of(*values), page.session_hash or "")

    def for_page(page: gr.Request, *values: Any) -> Iterator[Shown]:
        yield from calm_pages(studio, page.session_hash or "", values)

    def ask(steps: float, count: float, candidates: float, page: gr.Request) -> str:
        studio.ask(page.session_hash or "")
        numbers = [_number("Every setting", value) for value in (steps, count, candidates)]
        return progress_html(Frame(studio.outlook(page.session_hash or "", numbers[0] * max(numbers[1:]))))

    def stop_drawing(page: gr.Request) -> Any:
        if not studio.stop(page.session_hash or ""):
            return gr.skip()
        return progress_html(Frame("Stopping after this step …", done=True))

    def leave(page: gr.Request) -> None:
        studio.stop(page.session_hash or "")
        studio.forget(page.session_hash or "")  # or others would wait for it

    drawing: dict[str, Any] = {"fn": for_page, "inputs": inputs, "outputs": outputs, "show_progress": "hidden"}
    asked: dict[str, Any] = {
        "fn": ask,
        "inputs": [inputs[i] for i in (4, 8, 9)],
        "outputs": sentence,
        "queue": False,
        "show_progress": "hidden",
    }
    go.click(**asked, js=_TO_STATUS, **private).then(**drawing, **QUEUE, **private)
    for file, chip in chips.items():
        chosen = chip.click(partial(_choose, file), None, [audio, text, inputs[2]], show_progress="hidden", **private)
        chosen.then(**asked, js=_TO_STATUS, **private).then(**drawing, **QUEUE, **private)
    if Context.root_block is not None:
        Context.root_block.unload(leave)
    stop.click(stop_drawing, None, sentence, queue=False, show_progress="hidden", **private)  # at its next step
    gr.Button(visible=False).click(
        for_api,
        inputs,
        outputs,
        api_name="generate",
        api_description="A picture from a sound, a text, a picture or a blend of them.",
        **QUEUE,
    )


_TO_STATUS = """(...values) => {
  const status = document.getElementById("fm-draw-status");
  if (status.getBoundingClientRect().bottom > window.innerHeight * 0.7) status.scrollIntoView({ behavior: "smooth" });
  return values;
}"""


def _load_for_zero_gpu(studio: Studio) -> str | None:
    """Load the decoder; return why nothing can be drawn, in a sentence, or None. The rest of the page is served."""
    try:
        studio.load_for_zero_gpu()
    except (ValueError, OSError, ImportError) as error:
        logger.warning("Nothing can be drawn: %s", error)
        return f"Nothing can be drawn here. {error}"
    return None


async def _load(studio: Studio) -> None:
    studio.load_in_background()


def _choose(file: str) -> tuple[str, str, None]:
    """Set the widgets for an example: its sound alone."""
    return file, "", None


def _lead(studio: Studio) -> str:
    """Describe the input and the result of the tab."""
    made = (
        "The model repaints the closest gallery pictures to match what it hears."
        if studio.from_gallery
        else "The model draws a picture of what it hears."
    )
    return f"Say something or play a sound. {made}"


def offered_examples(studio: Studio) -> list[tuple[str, str]]:
    """Return file and name of each example: spoken sentences, and sounds whose pictures show their source."""
    examples = [(str(EXAMPLES / file), name) for file, name in SPOKEN_EXAMPLES]
    if studio.from_gallery:
        service = studio.service
        for identity, name in SOUND_EXAMPLES:
            row = service.row_of("audio", identity)
            path = None if row is None else service.path_of(service.items("audio")[row])
            if path is not None:
                examples.append((str(path), name))
    return examples


def _chips(examples: list[tuple[str, str]]) -> dict[str, gr.Button]:
    """Lay out a button per example, by its file."""
    gr.HTML('<p class="fm-label">Try one:</p>')
    icons = {True: HERE / "icons/speech.svg", False: HERE / "icons/note.svg"}
    with gr.Row(elem_classes="fm-chips"):
        return {file: gr.Button(name, size="sm", icon=icons[name.startswith("“")]) for file, name in examples}


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
    small: bool = False,
) -> Request:
    """Read the widgets' values as a request.

    Raises:
        gr.Error: If a value is not a number, in one sentence.
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
        strength=_number("How much to change the gallery picture", strength),
        steering=_number("The steering", steering),
        small=bool(small),
    )


def _number(name: str, value: Any) -> float:
    """Check that a widget's value is a finite number; integers stay integers."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or value in (float("inf"), float("-inf"))
        or value != value
    ):
        raise gr.Error(f"{name} must be a number, not {shown(value)}.", print_exception=False)
    return value


def _main_inputs(understood: frozenset[str]) -> tuple[gr.Audio, gr.Textbox]:
    """Lay out the fields for a sound and words."""
    audio = gr.Audio(
        label="A sound",
        sources=["microphone", "upload"],
        type="filepath",
        editable=False,
        buttons=[],
        elem_id="fm-draw-sound",
        visible="audio" in understood,
    )
    text = gr.Textbox(
        label="Words, alone or blended with the sound",
        placeholder="a lighthouse at night",
        max_lines=1,
        max_length=2000,
        visible="text" in understood,
    )
    return audio, text


def _more_inputs(understood: frozenset[str], studio: Studio) -> list[Any]:
    """Lay out the other widgets, folded away, in the order of :func:`request_of`."""
    with gr.Accordion("Blend in a picture", open=False, visible="image" in understood):
        image = PictureInput(
            label="A picture to blend in",
            sources=["upload"],
            type="filepath",
            height=150,
            buttons=[],
        )
    with gr.Accordion("Settings", open=False):
        share = gr.Slider(
            0, 1, 0.5, step=0.05, label="Share of the sound in a blend, or of the words if there is no sound"
        )
        gallery = gr.Checkbox(
            studio.from_gallery, label="Repaint the closest gallery pictures instead of starting from noise"
        )
        strength = gr.Slider(
            0.1,
            1,
            STRENGTH,
            step=0.05,
            label="How much to change the gallery picture (0.1: barely, 1: almost completely)",
        )
        count = gr.Slider(1, 8, 4, step=1, label="Pictures to show")
        candidates = gr.Slider(1, 16, 4, step=1, label="Pictures to draw; the best matches are shown")
        steps = gr.Slider(5, 100, 25, step=1, label="Steps: more steps take longer and add detail")
        guidance = gr.Slider(1, 12, 3, step=0.5, label="Guidance: how closely to follow your request (1: least)")
        steering = gr.Slider(
            0,
            0.5,
            studio.steering,
            step=0.01,
            label="Steering: how strongly the image encoder pulls the picture towards your request (0: not at all)",
            visible=studio.steering > 0,
        )
        noise = gr.Slider(0, 600, 0, step=10, label="Noise: more noise follows your request less closely")
        seed = gr.Number(0, label="Seed: a different number gives different pictures", precision=0)
        small = gr.Checkbox(False, label=f"{SMALL} (simpler pictures, no GPU needed)", visible=studio.small is not None)
    return [image, share, steps, guidance, noise, seed, count, candidates, gallery, strength, steering, small]
