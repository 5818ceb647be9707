"""The "Search" tab: its widgets and their events."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import gradio as gr

from demo.query import WEIGHT_RANGE, Query, read_weight
from demo.results import MOST_FOUND, SHOWN, apology, found, mosaic, reel, status
from demo.service import Answer, Service
from demo.tabs.explore import Explorer, nearest_html
from demo.tabs.picture_input import PictureInput
from demo.tabs.sound_to_picture import SPOKEN_EXAMPLES
from demo.why import why
from demo.workers import QUICK, SLOW
from fusemix.media import MediaError
from fusemix.search.retriever import DEFAULT_WEIGHTS

logger = logging.getLogger(__name__)

HERE = Path(__file__).parents[1]
SORRY = "Something went wrong on our side, and we have logged it. Please try another query."
GONE = "This item is no longer here; please search again."

TEXT_EXAMPLES = (
    "a cat asleep",
    "a birthday party",
    "a ship on the sea",
    "something to play music on",
    "a fast car",
    "a castle by a lake",
    "a dog barking",
)
# Pictures and speech only: the audio encoder finds too little for other sounds (docs/results.md).
PICTURE_EXAMPLES = (
    ("openclipart-recreation-holiday-sailing-sunset", "sailing"),
    ("tuxpaint-hobbies-music-string-violin", "violin"),
    ("tuxpaint-hobbies-music-string-guitar-electric", "electric guitar"),
    ("tuxpaint-plants-flowers-flower1", "flower"),
)
REEL = ("a castle by a lake", "“a birthday cake”", "violin", "a ship on the sea", "a fast car")  # examples on the reel
_VERBS = {
    "text": "You type",
    "image": "You show a picture:",
    "speech": "You say",
}
# Pictures to tap before the first query; another gallery shows as many of its own, evenly spaced.
TAPPED = (
    "tuxpaint-animals-amphibians-frog",
    "tuxpaint-animals-birds-crowned-crane",
    "gcompris-erase-kingfisher",
    "tuxpaint-vehicles-farming-cartoon-tux-tractor",
    "tuxpaint-plants-flowers-rose",
    "gcompris-details-neuschwanstein",
    "tuxpaint-food-dessert-smallcake",
    "tuxpaint-town-houses-cartoon-circus",
    "tuxpaint-animals-fish-seahorse",
    "tuxpaint-hobbies-camera-35mm",
    "tuxpaint-animals-insects-cartoon-ladybug-2",
    "tuxpaint-vehicles-ship-sail-boat2",
    "tuxpaint-animals-marsupials-koala",
    "tuxpaint-people-cartoon-snowman",
    "gcompris-erase-red-panda",
    "tuxpaint-space-planets-6-saturn",
    "gcompris-details-towerbridgelondon",
    "tuxpaint-vehicles-locomotive-white-train",
    "tuxpaint-clothes-hats-purplehat",
    "tuxpaint-plants-mushrooms-cep",
    "gcompris-clickgame-sea3",
    "tuxpaint-animals-mammals-bears-toys-edward-bear",
    "gcompris-erase-meerkats",
    "tuxpaint-seasonal-christmas-tree",
)
FILES = ("image", "audio")  # parts that are files

# Note when a visitor asked, and whether by typing.
_ASKED_NOW = "(...values) => { window.fmAsked = performance.now(); window.fmTyping = false; return values; }"
_TYPED_NOW = "(...values) => { window.fmAsked = performance.now(); window.fmTyping = true; return values; }"


def _js(name: str) -> str:
    return (HERE / "js" / name).read_text(encoding="utf-8")


Page = dict[Any, Any]  # widget -> its new value; the others stay as they are


class SearchTab:
    """Widgets of the search page and their events."""

    def __init__(self, service: Service, explorer: Explorer, map_view: gr.HTML) -> None:
        """Lay out the tab; call inside a ``gr.Tab``, then :meth:`wire` once the other tabs are there.

        Args:
            service: Service that answers the queries.
            explorer: Source of a query's position on the map.
            map_view: The map, from :func:`demo.tabs.explore.map_component`.
        """
        self.service = service
        self.explorer = explorer
        self.map_view = map_view
        self.examples = {name: query for name, _, query, _ in self._examples()}
        self._ask()
        with gr.Column(elem_id="fm-fields"):
            self._files()
            self._mix()
        self.status = gr.HTML(elem_id="fm-status", js_on_load=_js("status.js"))
        self.opening = self._opening()
        self.results = gr.HTML(self.opening, elem_id="fm-results", js_on_load=_js("results.js"))
        with gr.Accordion("Why these results", open=False, visible=False, elem_id="fm-why") as self.why_box:
            self.why = gr.HTML()
        self.buttons = self._chips()
        self.ids = gr.State({})
        self.narrowed = gr.State({})  # filters and marks: where, likes, dislikes
        self.answer = gr.State(None)

    def _ask(self) -> None:
        """Lay out the field for words and the buttons beside it."""
        understood = self.service.understood
        with gr.Row(elem_id="fm-ask"):
            self.text = gr.Textbox(
                label="What are you looking for?",
                placeholder="Describe what you are looking for …",
                show_label=False,
                container=False,
                autofocus=True,
                max_lines=1,
                scale=5,
                elem_id="fm-words",
            )
            self.show = gr.Button(
                "Picture or sound",
                icon=HERE / "icons/camera.svg",
                elem_id="fm-show",
                scale=1,
                visible=bool({"image", "audio"} & understood),
            )
            self.speak = gr.Button(
                "Say it",
                icon=HERE / "icons/microphone.svg",
                elem_id="fm-speak",
                scale=1,
                visible="audio" in understood,
            )
            self.go = gr.Button("Search", variant="primary", elem_id="fm-go", scale=1)
            self.follow = gr.Button("Follow the typing", elem_id="fm-follow")
        gr.HTML('<p id="fm-notice" class="fm-apology" role="alert" hidden></p>')

    def _files(self) -> None:
        """Lay out the fields for a picture and a sound, hidden until they are needed."""
        with gr.Row(equal_height=True):
            self.picture = PictureInput(
                label="Show a picture",
                sources=["upload", "webcam", "clipboard"],
                type="filepath",
                height=170,
                min_width=260,
                buttons=[],
                elem_id="fm-picture",
                visible="image" in self.service.understood,
                alt_text="The picture you search with",
            )
            self.sound = gr.Audio(
                label="Say it, or play a sound",
                sources=["microphone", "upload"],
                type="filepath",
                editable=False,
                buttons=[],
                min_width=260,
                elem_id="fm-sound",
                visible="audio" in self.service.understood,
            )

    def _mix(self) -> None:
        """Lay out the switch that adds up the fields, and a weight for each."""
        self.mix = gr.Checkbox(False, label="Mix: add and subtract words, a picture and a sound", elem_id="fm-mix")
        with gr.Group(visible=False, elem_id="fm-weights") as self.panel:
            names = {"text": "the words", "image": "the picture", "audio": "the sound", "minus_text": "“without”"}
            with gr.Row():
                self.weights = {
                    part: _slider(part, names[part], visible=part in self.service.understood)
                    for part in ("text", "image", "audio")
                }
            with gr.Row():
                self.minus_text = gr.Textbox(
                    label="Without", placeholder="Words to subtract, such as: grass", max_lines=1, min_width=200
                )
                self.weights["minus_text"] = _slider("minus_text", names["minus_text"])

    def _examples(self) -> Iterable[tuple[str, str, Query, Path | None]]:
        """Yield name, verb, query and icon of every example that suits this gallery and model."""
        return (example for example in self._all_examples() if set(example[2].parts()) <= self.service.understood)

    def _all_examples(self) -> Iterable[tuple[str, str, Query, Path | None]]:
        for text in TEXT_EXAMPLES:
            yield text, _VERBS["text"], Query(text=text), None
        for identity, name in PICTURE_EXAMPLES:
            path = self._file_of("image", identity)
            if path is not None:
                yield name, _VERBS["image"], Query.of_file("image", str(path), identity), path
        for file, name in SPOKEN_EXAMPLES:
            query = Query.of_file("audio", str(HERE / "examples" / file), file)
            yield name, _VERBS["speech"], query, HERE / "icons/speech.svg"

    def _file_of(self, modality: str, identity: str) -> Path | None:
        """Return the file of a gallery item or a spoken example; None if it does not exist."""
        if modality == "audio" and identity in dict(SPOKEN_EXAMPLES):
            return HERE / "examples" / identity
        row = self.service.row_of(modality, identity)
        return None if row is None else self.service.path_of(self.service.items(modality)[row])

    def _chips(self) -> dict[str, gr.Button]:
        """Lay out a button per example."""
        gr.HTML('<p class="fm-label">Try one:</p>')
        with gr.Row(elem_classes="fm-chips"):
            return {name: gr.Button(name, size="sm", icon=icon) for name, _, _, icon in self._examples()}

    def _opening(self) -> str:
        """Return the page before the first query: examples with their answers, and pictures to tap."""
        verbs = {name: verb for name, verb, _, _ in self._examples()}
        slides = [
            (verbs[name], name, self.service.search(self.examples[name], top_k=SHOWN["image"]))
            for name in REEL
            if name in self.examples
        ]
        items = self.service.items("image") if "image" in self.service.counts else []
        known = {str(item["id"]): item for item in items}
        chosen = [known[name] for name in TAPPED if name in known]
        glimpse = chosen or items[:: max(1, len(items) // len(TAPPED))][: len(TAPPED)]
        return reel(slides, self.service.path_of) + mosaic(glimpse, self.service.path_of)

    @property
    def inputs(self) -> list[Any]:
        """Widgets that every event reads, in the order of :meth:`_read`."""
        return [
            self.text,
            self.picture,
            self.sound,
            self.minus_text,
            *self.weights.values(),
            self.ids,
            self.mix,
            self.narrowed,
        ]

    @property
    def outputs(self) -> list[Any]:
        """Widgets that an event may change."""
        return [*self.inputs, self.panel, self.status, self.results, self.answer]

    def wire(self, demo: gr.Blocks, nearest: gr.HTML, land: gr.Textbox) -> None:
        """Connect the events.

        Args:
            demo: The page, whose load event reads the link.
            nearest: The list under the map.
            land: The map's field for words, which says what was searched with.
        """
        private: dict[str, Any] = {"api_visibility": "private"}
        shared: dict[str, Any] = {
            "inputs": self.inputs,
            "outputs": self.outputs,
            "show_progress": "minimal",
            "show_progress_on": self.status,
            "js": _ASKED_NOW,
            **private,
        }
        quick, slow = shared | QUICK, shared | SLOW
        submitted = [self.text.submit, self.go.click, self.minus_text.submit]
        weighed = [slider.release for slider in self.weights.values()]
        typed = quick | {"js": _TYPED_NOW, "show_progress": "hidden"}
        events = [
            gr.on(submitted, self.by_text, trigger_mode="always_last", **quick),
            self.follow.click(self.by_typing, trigger_mode="always_last", **typed),
            gr.on(weighed, self.by_weight, trigger_mode="always_last", **quick),
            self.picture.input(partial(self.by_file, "image"), **slow),
            gr.on([self.sound.upload, self.sound.stop_recording], partial(self.by_file, "audio"), **slow),
            self.sound.clear(partial(self.by_file, "audio"), **slow),
            self.results.select(self.by_item, **quick),
            self.map_view.select(self.by_item, **quick),
            self.status.select(self.by_item, **quick),
            nearest.select(self.by_item, **quick),
            *(button.click(partial(self.by_example, name), **quick) for name, button in self.buttons.items()),
            demo.load(self.by_link, None, self.outputs, show_progress="hidden", **QUICK, **private),
        ]
        for event in events:
            event.then(None, js=_js("after_search.js"), **private)
            explained = [self.why_box, self.why, self.map_view, nearest, land]
            event.then(self.explain, self.answer, explained, show_progress="hidden", **QUICK, **private)
        self.mix.input(lambda on: gr.update(visible=on), self.mix, self.panel, queue=False, **private)
        self.speak.click(None, js=_js("speak.js"), **private)
        self.show.click(None, js=_js("show.js"), **private)

    def _read(self, values: tuple[Any, ...]) -> tuple[Query, bool]:
        """Read the widgets' values as a query, and whether to mix them; drop values that no widget can hold."""
        text, picture, sound, minus_text, *weights, ids, mix, narrowed = values
        read = {part: read_weight(part, weight) for part, weight in zip(self.weights, weights, strict=True)}
        query = Query(
            text=text if isinstance(text, str) else "",
            image=picture if isinstance(picture, str) else None,
            audio=sound if isinstance(sound, str) else None,
            minus_text=minus_text if isinstance(minus_text, str) else "",
            ids=ids or {},
            weights={part: weight for part, weight in read.items() if weight is not None},
            **(narrowed or {}),
        )
        return query, bool(mix)

    def by_text(self, *values: Any) -> Page:
        """Search by the words, mixed with the rest if chosen; without words, by the picture or sound on the page."""
        query, mix = self._read(values)
        if not mix:
            words = bool(query.text.strip())
            alone = Query(text=query.text, where=query.where)
            query = alone if words else replace(query, text="", minus_text="", weights={})
        return self._page(_unmarked(query), mix)

    def by_typing(self, *values: Any) -> Page:
        """Search by the words typed so far without changing the fields; do nothing without words."""
        query, mix = self._read(values)
        query = _unmarked(query if mix else Query(text=query.text, where=query.where))
        if not query.text.strip() or query.brings_file:
            return {self.status: gr.skip()}
        line, markup, answer = answer_page(self.service, query, typing=True)
        return {self.status: line, self.results: markup, self.answer: answer, self.narrowed: _narrowed(query)}

    def by_weight(self, *values: Any) -> Page:
        """Search again after a weight was moved, if there is a mix."""
        query, mix = self._read(values)
        return self._page(query, mix) if mix and query.parts() else {self.status: gr.skip()}

    def by_file(self, part: str, *values: Any) -> Page:
        """Search after the visitor added or removed a picture or sound."""
        query, mix = self._read(values)
        query = replace(query, ids={name: value for name, value in query.ids.items() if name != part})
        if getattr(query, part) is None and not (mix and query.parts()):  # cleared: the results stay
            return {self.ids: dict(query.ids)}
        alone = replace(Query.of_file(part, str(getattr(query, part)), None), where=query.where)
        return self._page(_unmarked(query) if mix else alone, mix, came=part)

    def by_example(self, name: str, *values: Any) -> Page:
        """Search with an example."""
        query, mix = self._read(values)
        return self._join(query, mix, self.examples[name])

    def by_item(self, event: gr.EventData, *values: Any) -> Page:
        """Search with a result's picture, sound or words; in a mix, add it to the rest."""
        modality, identity = str(getattr(event, "modality", "")), str(getattr(event, "id", ""))
        query, mix = self._read(values)
        if modality in ("like", "dislike", "unmark", "where"):
            return self._narrow(query if mix else replace(query, weights={}, minus_text=""), mix, modality, identity)
        if modality == "words":  # heard, and perhaps corrected
            return self._join(replace(query, audio=None), mix, Query(text=identity))
        if modality == "link":
            return self._by_address(dict(parse_qsl(identity.removeprefix("?")))) or self._start()
        if modality == "example" and identity in self.examples:
            return self._join(query, mix, self.examples[identity])
        if modality == "text":
            row = self.service.row_of("text", identity)
            if row is not None:
                return self._join(query, mix, Query(text=self.service.items("text")[row]["text"]))
        path = self._file_of(modality, identity)
        if path is None:
            return {self.status: apology(GONE), self.results: ""}
        return self._join(query, mix, Query.of_file(modality, str(path), identity))

    def _narrow(self, query: Query, mix: bool, how: str, value: str) -> Page:
        """Repeat the search with a filter set or removed, or a result marked or all unmarked."""
        if how == "where":
            key, _, wanted = value.partition("=")
            where = {name: kept for name, kept in query.where.items() if name != key}
            query = replace(query, where=where | ({key: wanted} if wanted else {}))
        else:
            query = _unmarked(query) if how == "unmark" else query.marked(how, value)
        return self._page(query, mix, shown=FILES)

    def _join(self, query: Query, mix: bool, new: Query) -> Page:
        """Search with one new part, which in a mix joins the others."""
        joined = query.joined_by(new) if mix else replace(new, where=query.where)
        return self._page(_unmarked(joined), mix, shown=new.parts())

    def by_link(self, request: gr.Request) -> Page:
        """Search with the page's link; do nothing without a query in it."""
        return self._by_address(request.query_params) or {self.status: gr.skip()}

    def _by_address(self, values: Mapping[str, Any]) -> Page:
        """Search with the values of an address; return an empty page if they hold no query."""
        query = Query.from_link(values)
        files = {modality: self._file_of(modality, identity) for modality, identity in query.ids.items()}
        if None in files.values():
            return {self.status: apology("The picture or sound in this link is no longer here; please search again.")}
        for modality, path in files.items():
            query = query.joined_by(Query.of_file(modality, str(path), query.ids[modality]))
        return self._page(query, len(query.parts()) > 1 or bool(query.weights), shown=FILES) if query.parts() else {}

    def _start(self) -> Page:
        """Return the page to its state before the first search."""
        page: Page = {self.status: "", self.results: self.opening, self.answer: None, self.ids: {}, self.mix: False}
        page[self.narrowed] = {}
        page |= {self.panel: gr.update(visible=False), self.text: "", self.minus_text: ""}
        return page | {self.picture: None, self.sound: None}

    def _page(self, query: Query, mix: bool, *, shown: Iterable[str] = (), came: str | None = None) -> Page:
        """Search, and return the new state of the page.

        Args:
            query: Query to search with.
            mix: Whether the fields are added up; otherwise those not in the query are cleared.
            shown: Parts whose files are put into their fields.
            came: Part that the visitor just added; its field is cleared if the file cannot be used.
        """
        line, markup, answer = answer_page(self.service, query)
        page: Page = {self.status: line, self.results: markup, self.answer: answer, self.ids: dict(query.ids)}
        page |= {self.mix: mix, self.panel: gr.update(visible=mix), self.text: query.text}
        page[self.narrowed] = _narrowed(query)
        page |= {self.weights[part]: query.weight(part) for part in self.weights}
        page[self.minus_text] = query.minus_text
        for part, field in zip(FILES, (self.picture, self.sound), strict=True):
            value = getattr(query, part)
            if value is None or (answer is None and came == part):
                page[field] = None
            elif part in shown:  # an item whose file is gone is searched with all the same
                page[field] = value if Path(value).is_file() else None
        return page

    def explain(self, answer: Answer | None) -> tuple[Any, Any, Any, Any, Any]:
        """Update the explanation, the query's position on the map, the nearest items and the map's field."""
        if answer is None:  # nothing was searched, or it failed
            return gr.update(visible=False), "", None, "", ""
        asked = f"“{answer.left_out}”" if answer.left_out else answer.asked
        reason = why(answer, self.service, SHOWN)
        listed = nearest_html(answer, asked, self.service.path_of)
        said = gr.update(value="", placeholder=asked.strip("“”"))  # so that words typed there begin anew
        return gr.update(visible=True), reason, self.explorer.place(answer, asked), listed, said


def _unmarked(query: Query) -> Query:
    """Return the query without the results marked as right or wrong, which belong to the search before."""
    return replace(query, likes=(), dislikes=())


def _narrowed(query: Query) -> dict[str, Any]:
    return {"where": dict(query.where), "likes": query.likes, "dislikes": query.dislikes}


def _slider(part: str, name: str, *, visible: bool = True) -> gr.Slider:
    low, high = WEIGHT_RANGE[part]
    label = f"Weight of {name}"
    return gr.Slider(low, high, DEFAULT_WEIGHTS[part], step=0.05, label=label, min_width=200, visible=visible)


def answer_page(service: Service, query: Query, *, typing: bool = False) -> tuple[str, str, Answer | None]:
    """Return the status line and the results; a failure is one sentence in the status line.

    Args:
        service: Service that answers.
        query: Query to answer.
        typing: Whether words are still being typed; then no spelling is suggested for half a word.

    Returns:
        HTML of the status line, HTML of the results (empty after a failure), and the answer (None then).
    """
    try:
        answer = service.search(query, top_k=max(SHOWN.values()) if typing else MOST_FOUND)
        if typing:
            answer = replace(answer, suggestion="", doubt="", unknown=[])
        line = status(answer, answer.asked, query.to_link(), correct=True)
        return line, found(answer, service.path_of, service.facets), answer
    except MediaError as error:
        return apology(str(error)), "", None
    except Exception:
        logger.exception("A query failed.")
        return apology(SORRY), "", None
