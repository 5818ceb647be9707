"""The "Your files" tab: upload, search, download and delete your own pictures, sounds and captions."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from demo.collection import MAX_ITEMS, MAX_SECONDS, Corpus, Step
from demo.query import Query
from demo.results import apology, describe_counts, file_url, results, status
from demo.service import Service
from demo.sessions import Visitors
from demo.tabs.account import PushRow, sign_in_button
from demo.tabs.picture_input import FilesInput, PictureInput
from demo.uploads import MAX_BYTES, LeftOut
from demo.workers import QUICK, SLOW
from fusemix.media import MediaError

logger = logging.getLogger(__name__)

JS = Path(__file__).parents[1] / "js"
SORRY = "Something went wrong on our side, and we have logged it. Please try again."
EMBEDDING: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "corpus"}  # search never waits for it
EXAMPLES = {"image": 24, "audio": 6}  # gallery items in the example
MOST_LEFT_OUT = 100  # listed
_PAUSE_S = 0.25  # between two updates of the page while embedding
_NAMES = {"index": "Download the index (.zip)", "latents": "Download latents and embeddings (.zip)"}

_INTO_VIEW = """() => {
  const line = document.querySelector("#fm-own-status .fm-status");
  const { top, bottom } = line?.getBoundingClientRect() ?? { top: 0, bottom: 0 };
  if (line?.offsetParent && (top < 0 || bottom > 0.8 * innerHeight)) line.scrollIntoView({ block: "start" });
}"""

Page = dict[Any, Any]  # widget -> its new value; the others stay as they are


def progress_html(step: Step) -> str:
    """Return the step's sentence, with a progress bar until the end."""
    bar = ""
    if not step.finished:
        value = f' value="{step.done}"' if step.total else ""
        bar = f'<progress max="{max(step.total, 1)}"{value} aria-label="Embedded"></progress>'
    return f'<div class="fm-progress">{bar}<p role="status">{escape(step.sentence)}</p></div>'


def left_out_html(left_out: list[LeftOut]) -> str:
    """Return a folded list of unusable items with their reasons."""
    if not left_out:
        return ""
    lines = "".join(f"<li>{escape(entry.sentence)}</li>" for entry in left_out[:MOST_LEFT_OUT])
    if len(left_out) > MOST_LEFT_OUT:
        lines += f"<li>… and {len(left_out) - MOST_LEFT_OUT:,} more</li>"
    return f'<details class="fm-left-out"><summary>Left out: {len(left_out):,}</summary><ul>{lines}</ul></details>'


def holdings_html(corpus: Corpus) -> str:
    """Describe what can be searched, and until when."""
    return (
        f'<p class="fm-own-note">You can now search {escape(describe_counts(corpus.counts))} of your own; nobody else '
        f"can. Everything is deleted a minute after you close this page, at {corpus.until:%H:%M} UTC at the latest.</p>"
    )


def downloads_html(corpus: Corpus) -> str:
    """Return links to the archives."""
    links = "".join(
        f'<a href="{escape(file_url(path))}" download="{path.name}">{_NAMES[name]}</a>'
        for name, path in corpus.downloads.items()
    )
    return f'<div class="fm-files">{links}</div>' if links else ""


class CorpusTab:
    """Widgets of the tab and their events."""

    def __init__(self, service: Service, demo: gr.Blocks, corpora: Visitors[Corpus] | None = None) -> None:
        """Lay out the tab and wire it; call inside a ``gr.Tab``.

        Args:
            service: Service whose model and encoders embed, and whose gallery provides the example.
            demo: The page; closing it deletes the visitor's corpus.
            corpora: Corpora by visitor; by default in Gradio's upload folder, which it serves.
        """
        self.service = service
        self.corpora = (
            Visitors(partial(Corpus, service.retriever, pools=service.pools), Path(get_upload_folder()) / "corpora")
            if corpora is None
            else corpora
        )
        self._bring()
        with gr.Column(visible=False) as self.panel:
            self._search()
        self._wire(demo)

    def _bring(self) -> None:
        """Lay out the upload field and the progress."""
        gr.HTML(
            '<p class="fm-lead">Drop your own pictures and sounds, a table with a <code>text</code> column (CSV, TSV, '
            "JSONL), a .txt with one caption per line, or a .zip of them. Then search them like the gallery. "
            f"<span>Up to {MAX_ITEMS:,} items, {MAX_BYTES / 1e6:.0f} MB (120 MB per file) and "
            f"{MAX_SECONDS / 60:.0f} minutes. Only you can search them. We keep thumbnails, 16 kHz copies of sounds "
            "and embeddings for an hour at most, and train nothing on them.</span></p>"
        )
        sign_in_button()
        self.files = FilesInput(label="Your files", file_count="multiple", height=170, elem_id="fm-own-files")
        with gr.Row(elem_classes="fm-chips"):
            self.example = gr.Button("Try it with 30 files from the gallery", size="sm", elem_id="fm-own-example")
            self.cancel = gr.Button("Cancel", variant="stop", size="sm", elem_id="fm-own-cancel", interactive=False)
        self.ready = gr.State(False)
        self.progress = gr.HTML(elem_id="fm-own-progress")
        self.left_out = gr.HTML(elem_id="fm-own-left-out")

    def _search(self) -> None:
        """Lay out the search fields and the results."""
        self.holdings = gr.HTML()
        with gr.Row(elem_classes=["fm-chips", "fm-keep"]):
            self.downloads = gr.HTML()
            self.delete = gr.Button("Delete my files now", variant="stop", size="sm", elem_id="fm-own-delete")
        PushRow(lambda visitor: self.corpora.of(visitor).downloads.get("index"), name="my-collection", private=True)
        with gr.Row(elem_id="fm-own-ask"):
            self.text = gr.Textbox(
                label="Search your files",
                placeholder="Search your files …",
                show_label=False,
                container=False,
                max_lines=1,
                max_length=2000,
                scale=5,
            )
            self.go = gr.Button("Find", variant="primary", elem_id="fm-own-go", scale=1, min_width=110)
        with gr.Row(equal_height=True):
            self.picture = PictureInput(
                label="… with a picture",
                sources=["upload", "webcam", "clipboard"],
                type="filepath",
                height=150,
                min_width=260,
                buttons=[],
                elem_id="fm-own-picture",
                alt_text="The picture you search your files with",
            )
            self.sound = gr.Audio(
                label="… or with a sound",
                sources=["microphone", "upload"],
                type="filepath",
                editable=False,
                buttons=[],
                min_width=260,
                elem_id="fm-own-sound",
            )
        self.status = gr.HTML(elem_id="fm-own-status")
        self.results = gr.HTML(elem_id="fm-own", js_on_load=(JS / "results.js").read_text(encoding="utf-8"))

    def _wire(self, demo: gr.Blocks) -> None:
        private: dict[str, Any] = {"api_visibility": "private"}
        hidden: dict[str, Any] = {**private, "show_progress": "hidden"}
        growing = [self.progress, self.left_out, self.panel, self.holdings, self.downloads, self.cancel]
        arrivals = [
            self.files.upload(
                self.arrive,
                self.files,
                [self.files, self.ready, *growing],
                queue=False,
                trigger_mode="multiple",
                **hidden,
            ),
            self.example.click(self.arrive_example, None, [self.ready, *growing], queue=False, **hidden),
        ]
        for arrival in arrivals:
            arrival.success(self.embed, self.ready, growing, trigger_mode="multiple", **EMBEDDING, **hidden)
        self.cancel.click(self.stop, None, self.progress, queue=False, **private)
        everything = [*growing, self.status, self.results, self.text, self.picture, self.sound]
        self.delete.click(self.remove, None, everything, queue=False, **private)
        found = [self.status, self.results]
        asking: dict[str, Any] = {"show_progress": "minimal", "show_progress_on": self.status, **private}
        quick, slow = asking | QUICK, asking | SLOW
        searches = [
            gr.on(
                [self.text.submit, self.go.click], self.by_text, self.text, found, trigger_mode="always_last", **quick
            ),
            self.picture.input(self.by_picture, self.picture, found, **slow),
            gr.on([self.sound.upload, self.sound.stop_recording], self.by_sound, self.sound, found, **slow),
            self.results.select(self.by_item, None, found, **quick),
        ]
        for search in searches:
            search.then(None, js=_INTO_VIEW, **private)
        demo.unload(self.leave)

    def arrive(self, files: list[str] | None, page: gr.Request) -> Page:
        """Take uploaded files, which then wait for their turn."""
        return self._take(page, list(files or []), link=True) | {self.files: None}

    def arrive_example(self, page: gr.Request) -> Page:
        """Take some files of the gallery."""
        paths = []
        for modality, count in EXAMPLES.items():
            items = self.service.items(modality)
            chosen = items[:: max(1, len(items) // count)][:count]
            paths += [str(path) for item in chosen if (path := self.service.path_of(item)) is not None]
        return self._take(page, paths, link=False)

    def _take(self, page: gr.Request, paths: list[str], *, link: bool) -> Page:
        try:
            self.corpora.open(page.session_hash).arrive(paths, link=link)
        except MediaError as error:
            return {self.progress: apology(str(error)), self.ready: False}
        except Exception:
            logger.exception("A visitor's files could not be taken in.")
            return {self.progress: apology(SORRY), self.ready: False}
        waiting = Step(0, 0, "Your files have arrived; one visitor's files are processed at a time …")
        return {self.progress: progress_html(waiting), self.cancel: gr.update(interactive=True), self.ready: True}

    def embed(self, ready: bool, page: gr.Request) -> Iterator[Page]:
        """Embed the files that arrived, showing the progress; do nothing if none arrived."""
        if not ready:
            yield {self.cancel: gr.update(interactive=False)}
            return
        try:
            corpus = self.corpora.of(page.session_hash)
            shown = 0.0
            for step in corpus.embed():
                if step.finished or step.done in (0, step.total) or time.monotonic() - shown >= _PAUSE_S:
                    shown = time.monotonic()
                    yield self._grown(corpus, step)
        except MediaError as error:  # full, or deleted meanwhile
            yield {self.progress: apology(str(error)), self.cancel: gr.update(interactive=False)}
        except Exception:
            logger.exception("A visitor's files could not be embedded.")
            yield {self.progress: apology(SORRY), self.cancel: gr.update(interactive=False)}

    def _grown(self, corpus: Corpus, step: Step) -> Page:
        page: Page = {self.progress: progress_html(step), self.left_out: left_out_html(corpus.left_out)}
        if len(corpus):
            page |= {self.panel: gr.update(visible=True), self.holdings: holdings_html(corpus)}
        if step.finished:
            page |= {self.downloads: downloads_html(corpus), self.cancel: gr.update(interactive=False)}
        return page

    def stop(self, page: gr.Request) -> str:
        """End the embedding; keep what is embedded."""
        self.corpora.stop(page.session_hash)
        return progress_html(Step(0, 0, "Stopping after the current items …"))

    def remove(self, page: gr.Request) -> Page:
        """Delete everything of this visitor."""
        self.corpora.delete(page.session_hash)
        gone = (
            '<div class="fm-progress"><p role="status">Your files and everything made from them are deleted.</p></div>'
        )
        empty = [self.left_out, self.holdings, self.downloads, self.status, self.results, self.text]
        page_: Page = dict.fromkeys(empty, "") | {self.picture: None, self.sound: None}
        return page_ | {
            self.progress: gone,
            self.panel: gr.update(visible=False),
            self.cancel: gr.update(interactive=False),
        }

    def leave(self, page: gr.Request) -> None:
        """Handle a closed page or a lost connection."""
        self.corpora.leave(page.session_hash)

    def by_text(self, text: str, page: gr.Request) -> tuple[str, str]:
        """Search by words."""
        return self._answer(page, lambda _: Query(text=text))

    def by_picture(self, picture: str | None, page: gr.Request) -> tuple[Any, Any]:
        """Search by a picture; do nothing when it is removed."""
        if picture is None:
            return gr.skip(), gr.skip()
        return self._answer(page, lambda _: Query(image=picture))

    def by_sound(self, sound: str | None, page: gr.Request) -> tuple[Any, Any]:
        """Search by a sound."""
        if sound is None:
            return gr.skip(), gr.skip()
        return self._answer(page, lambda _: Query(audio=sound))

    def by_item(self, event: gr.EventData, page: gr.Request) -> tuple[str, str]:
        """Search with a result."""
        modality, identity = str(getattr(event, "modality", "")), str(getattr(event, "id", ""))
        return self._answer(page, lambda corpus: corpus.query_of(modality, identity))

    def _answer(self, page: gr.Request, query_in: Callable[[Corpus], Query]) -> tuple[str, str]:
        """Return the status line and the results; a failure is one sentence."""
        try:
            corpus = self.corpora.of(page.session_hash)
            answer = corpus.search(query_in(corpus))
            return status(answer, answer.asked), results(answer, corpus.path_of, prefix="fm-own-h")
        except MediaError as error:
            return apology(str(error)), ""
        except Exception:
            logger.exception("A query to a visitor's corpus failed.")
            return apology(SORRY), ""
