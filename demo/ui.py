"""Gradio layout and event wiring of the search page; what it does is in ``service``."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from demo.generate_tab import SPOKEN_EXAMPLES, build_generate_tab
from demo.picture_input import PictureInput
from demo.results import SHOWN, apology, describe_counts, mosaic, results, status
from demo.service import MAX_TOP_K, Answer, Service
from fusemix.media import MediaError

logger = logging.getLogger(__name__)

HERE = Path(__file__).parent
TITLE = "FuseMix: type it, show it, or say it"
MAX_FILE_SIZE = "120mb"  # ten minutes of uncompressed stereo
QUEUE: dict[str, Any] = {"concurrency_limit": 2, "concurrency_id": "search"}
SORRY = "Something went wrong on our side and was noted; please try another query."

TEXT_EXAMPLES = (
    "a dog running on the grass",
    "a birthday party",
    "a ship on the sea",
    "something to play music on",
    "a fast car",
    "fresh fruit",
)
PICTURE_EXAMPLES = (
    ("tuxpaint-animals-mammals-dogs-dog", "dog"),
    ("openclipart-recreation-holiday-sailing-sunset", "sailing"),
    ("tuxpaint-hobbies-music-string-violin", "violin"),
    ("tuxpaint-food-fruit-apple-red", "apple"),
)
SOUND_EXAMPLES = (
    ("tuxpaint-animals-birds-rooster", "rooster"),
    ("tuxpaint-animals-mammals-equines-horse", "horse"),
    ("tuxpaint-hobbies-music-percussion-drumkit", "drums"),
)
MOSAIC_SIZE = 24  # pictures shown before the first query

# Gradio confines css_paths to the page's content; the margin around it is set here.
_HEAD = "<style>@media (max-width: 640px) { .gradio-container .app { padding: 12px !important; } }</style>"
# A click on "more like this" becomes an event with the item's modality and id.
_FORWARD_MORE = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('.fm-more');
  if (button) trigger('select', { modality: button.dataset.modality, id: button.dataset.id });
});
// One sound at a time.
element.addEventListener('play', (event) => {
  element.querySelectorAll('audio').forEach((audio) => { if (audio !== event.target) audio.pause(); });
}, true);
"""
# On a phone, and after "more like this", the answer may lie outside the window.
_SHOW_RESULTS = """
() => {
  const line = document.querySelector('#fm-status');
  const { top, bottom } = line.getBoundingClientRect();
  if (top < 0 || bottom > 0.8 * window.innerHeight) line.scrollIntoView({ behavior: 'smooth', block: 'start' });
}
"""


def answer_page(service: Service, search: Callable[..., Answer], query: Any, asked: str) -> tuple[str, str]:
    """The status line and the results for the page; a failure is one sentence in the status line.

    Args:
        service: Knows the items' files.
        search: One of the service's search methods.
        query: Its argument.
        asked: What the status line calls the query.

    Returns:
        HTML of the status line and of the results (empty after a failure).
    """
    try:
        answer = search(query, top_k=max(SHOWN.values()))
        return status(answer, asked), results(answer, service.path_of)
    except MediaError as error:
        return apology(str(error)), ""
    except Exception:
        logger.exception("A query failed.")
        return apology(SORRY), ""


def answer_api(search: Callable[..., Answer], query: Any, top_k: float | None = 10) -> dict[str, Any]:
    """The same for the API: JSON, or a ``gr.Error`` of one sentence.

    Args:
        search: One of the service's search methods.
        query: Its argument.
        top_k: Results of each kind, 1 to 100.

    Raises:
        gr.Error: If the query cannot be answered.
    """
    try:
        if query is None:
            raise MediaError("The query is empty; send a text, a picture or a sound.")
        if top_k is None or top_k != top_k or not 1 <= top_k <= MAX_TOP_K:
            raise MediaError(f"Ask for 1 to {MAX_TOP_K} results of each kind, not {top_k}.")
        return search(query, top_k=int(top_k)).to_json()
    except MediaError as error:
        raise gr.Error(str(error), print_exception=False) from error
    except Exception as error:
        logger.exception("A query failed.")
        raise gr.Error(SORRY, print_exception=False) from error


def launch_options(service: Service) -> dict[str, Any]:
    """What ``Blocks.launch`` needs: looks, limits, and the one folder whose files are served."""
    font = ["ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
    theme = gr.themes.Base(
        primary_hue="teal",
        neutral_hue="stone",
        radius_size="lg",
        font=font,
        font_mono=["ui-monospace", "monospace"],
    ).set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        input_background_fill="white",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_900",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
    )
    return {
        "theme": theme,
        "css_paths": [HERE / "style.css"],
        "head": _HEAD,
        "allowed_paths": [str(folder) for folder in (service.root, HERE / "examples") if folder],
        "max_file_size": MAX_FILE_SIZE,
        "footer_links": ["api"],
    }


def build_demo(service: Service) -> gr.Blocks:
    """Lay out the page and wire its events; launch it with :func:`launch_options`."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, 3600)) as demo:
        gr.HTML(
            '<header class="fm-hero"><h1>Type it, show it, or <em>say it.</em></h1>'
            f"<p>One search over {describe_counts(service.counts)}.</p></header>"
        )
        with gr.Tabs():
            with gr.Tab("Search"):
                _SearchTab(service)
            with gr.Tab("Sound to picture"):
                build_generate_tab(service)
        _about(service)
        _api(service)
    demo.queue(max_size=64)
    return demo


Page = list[Any]  # values of _SearchTab.outputs
Example = tuple[gr.Button, Callable[[], Page]]


class _SearchTab:
    """The widgets of the search page and the events between them."""

    def __init__(self, service: Service) -> None:
        self.service = service
        with gr.Row(elem_id="fm-ask"):
            self.text = gr.Textbox(
                label="What are you looking for?",
                placeholder="Describe what you are looking for …",
                show_label=False,
                container=False,
                autofocus=True,
                max_lines=1,
                scale=5,
            )
            self.go = gr.Button("Search", variant="primary", elem_id="fm-go", scale=1)
        with gr.Row(equal_height=True):
            self.picture = PictureInput(
                label="… or show a picture",
                sources=["upload", "webcam", "clipboard"],
                type="filepath",
                height=170,
                min_width=260,
                buttons=[],
                elem_id="fm-picture",
                alt_text="The picture you search with",
            )
            self.sound = gr.Audio(
                label="… or say it, or play a sound",
                sources=["microphone", "upload"],
                type="filepath",
                editable=False,
                buttons=[],
                min_width=260,
                elem_id="fm-sound",
            )
        examples = self._examples()
        self.status = gr.HTML(elem_id="fm-status")
        self.results = gr.HTML(self._glimpse(), elem_id="fm-results", js_on_load=_FORWARD_MORE)
        self.outputs = [self.text, self.picture, self.sound, self.status, self.results]
        self._wire(examples)

    def _examples(self) -> list[Example]:
        """A button per example, with what its click does."""
        gr.HTML('<p class="fm-label">Try one:</p>')
        with gr.Row(elem_classes="fm-chips"):
            examples = [self._example(text, None, self.by_text, text) for text in TEXT_EXAMPLES]
            for item, name in self._pick("image", PICTURE_EXAMPLES):
                path = self.service.path_of(item)
                examples.append(self._example(name, path, self.by_picture, str(path), show=True))
            for item, name in self._pick("audio", SOUND_EXAMPLES):
                path = self.service.path_of(item)
                examples.append(self._example(name, HERE / "icons/note.svg", self.by_sound, str(path), show=True))
            for file, name in SPOKEN_EXAMPLES:
                path = HERE / "examples" / file
                examples.append(self._example(name, HERE / "icons/speech.svg", self.by_sound, str(path), show=True))
        return examples

    @staticmethod
    def _example(name: str, icon: Path | None, search: Callable[..., Page], *query: str, **options: bool) -> Example:
        return gr.Button(name, size="sm", icon=icon), partial(search, *query, **options)

    def _pick(self, modality: str, wanted: tuple[tuple[str, str], ...]) -> list[tuple[dict[str, Any], str]]:
        """The wanted example items that this index holds."""
        items = {item["id"]: item for item in self.service.items(modality)}
        return [(items[identity], name) for identity, name in wanted if identity in items]

    def _glimpse(self) -> str:
        items = self.service.items("image")
        return mosaic(items[:: max(1, len(items) // MOSAIC_SIZE)][:MOSAIC_SIZE], self.service.path_of)

    def _wire(self, examples: list[Example]) -> None:
        shared: dict[str, Any] = {
            "outputs": self.outputs,
            "api_visibility": "private",
            "show_progress": "minimal",
            "show_progress_on": self.status,
            **QUEUE,
        }
        events = [
            gr.on([self.text.submit, self.go.click], self.by_text, self.text, trigger_mode="always_last", **shared),
            self.picture.input(self.by_picture, self.picture, **shared),
            gr.on([self.sound.upload, self.sound.stop_recording], self.by_sound, self.sound, **shared),
            self.results.select(self.by_item, None, **shared),
            *(button.click(search, None, **shared) for button, search in examples),
        ]
        for event in events:
            event.then(None, js=_SHOW_RESULTS, api_visibility="private")

    def by_text(self, text: str) -> Page:
        """Search by words; clears the other two queries."""
        page = answer_page(self.service, self.service.search_text, text, f"“{_shorten(text)}”")
        return [text, None, None, *page]

    def by_picture(self, path: str | None, *, show: bool = False) -> Page:
        """Search by a picture; ``show`` also puts it into the picture field."""
        if path is None:  # the field was cleared: what is on the page stays
            return [gr.skip()] * len(self.outputs)
        page = answer_page(self.service, self.service.search_image, path, "your picture")
        return ["", self._kept(path, page, show), None, *page]

    def by_sound(self, path: str | None, *, show: bool = False) -> Page:
        """Search by a sound; ``show`` also puts it into the sound field."""
        if path is None:
            return [gr.skip()] * len(self.outputs)
        page = answer_page(self.service, self.service.search_audio, path, "your sound")
        return ["", None, self._kept(path, page, show), *page]

    @staticmethod
    def _kept(path: str, page: tuple[str, str], show: bool) -> Any:
        """What becomes of the field the file came from: a file that cannot be used leaves it."""
        usable = page[1] != ""
        return (path if show else gr.skip()) if usable else None

    def by_item(self, event: gr.EventData) -> Page:
        """Search with a result: its picture, its sound or its words."""
        modality, identity = str(event.modality), str(event.id)
        item = next((item for item in self.service.items(modality) if item["id"] == identity), None)
        if item is None:
            return [gr.skip()] * 3 + [apology("This item is not here any more; please search again."), ""]
        if modality == "text":
            return self.by_text(item["text"])
        search = self.by_picture if modality == "image" else self.by_sound
        return search(str(self.service.path_of(item)), show=True)


def _shorten(text: str, *, limit: int = 80) -> str:
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def _api(service: Service) -> None:
    """Endpoints with stable names and JSON answers, on fields that are not shown."""
    top_k = gr.Number(10, label="top_k", precision=0, visible=False)
    answer = gr.JSON(visible=False)
    trigger = gr.Button(visible=False)
    queries = {
        "text": (gr.Textbox(label="text", visible=False), service.search_text),
        "image": (PictureInput(label="image", type="filepath", visible=False), service.search_image),
        "audio": (gr.Audio(label="audio", type="filepath", visible=False), service.search_audio),
    }
    for modality, (field, search) in queries.items():
        trigger.click(
            partial(answer_api, search),
            [field, top_k],
            answer,
            api_name=f"search_{modality}",
            api_description=f"Search by {modality}: the nearest pictures, sounds and captions.",
            **QUEUE,
        )


def _about(service: Service) -> None:
    with gr.Accordion("About: how it works, what is searched, whose it is", open=False):
        gr.Markdown(
            f"""
**How it works.** Three frozen networks, each of which knows one kind of thing, turn pictures (EfficientNet-Lite0),
words (MiniLM-L6) and sounds (Whisper tiny.en: how it sounds, and the words it hears) into latents. Small adapters,
trained with FuseMix ([Vouitsis et al., CVPR 2024](https://arxiv.org/abs/2312.10144)), bring the three into one space,
where near means alike. Your query goes the same way, and an exact search finds its neighbours.

**What the numbers say.** Similarity is the cosine between your query and an item, at most 1. It ranks items of one
kind; it does not compare a picture with a caption. A sound finds pictures by way of the captions nearest to it,
so there the number compares the picture with those captions, not with the sound itself. The time is what the
search took on this machine, from opening your query to the last result; the way over the network is not in it.

**What it cannot do.** It hears spoken English and everyday named sounds, and sees clip-art, stamps, emoji and
simple photographs; it knows no names of people and no other language well. What you send is searched with and
deleted within hours; nothing is learnt from it.

**Whose it is.** {_sources(service)} Each result names its source and licence. The spoken examples are
synthetic voices (flite, espeak-ng).
"""
        )


def _sources(service: Service) -> str:
    """Where the items come from, most first."""
    tally: dict[tuple[str, str], int] = {}
    for modality in service.counts:
        for item in service.items(modality):
            if modality != "text":
                key = (str(item.get("source", "")), str(item.get("licence", "")))
                tally[key] = tally.get(key, 0) + 1
    ordered = sorted(tally.items(), key=lambda entry: -entry[1])
    return "; ".join(f"{count:,} from {source} ({licence})" for (source, licence), count in ordered) + "."
