"""The "Train your own" tab: trains adapters on two files of latents, with a live curve and a checkpoint to download."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pandas as pd
from gradio.utils import get_upload_folder

from demo.collection import Corpus
from demo.results import apology, file_url
from demo.sessions import Visitors
from demo.tabs.account import PushRow, sign_in_button
from demo.tabs.picture_input import FilesInput
from demo.training import MAX_DIM, MAX_EPOCHS, MAX_ROWS, MAX_SECONDS, MIN_ROWS, Stage, Training
from fusemix.media import MediaError, shown

logger = logging.getLogger(__name__)

EXAMPLE = {name: Path(__file__).parents[1] / "examples" / f"latents-{name}.npy" for name in ("image", "text")}
SORRY = "Something went wrong on our side, and we have logged it. Please try again."
TRAINING: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "train"}  # search never waits for it
OWN = "own"  # the training is on the pictures and captions of "Your files"
ADOPTED = " “Your files” is now searched with this model, by words and pictures."
_PAUSE_S = 0.25  # between two updates of the page while training
_COLOURS = ("#0d9488", "#d97706")  # legible on light and dark
_COLUMNS = ["epoch", "recall@1", "direction"]

Page = dict[Any, Any]  # widget -> its new value; the others stay as they are


def stage_html(stage: Stage) -> str:
    """Return the stage's sentence, with a progress bar until the end."""
    value = f' value="{stage.share:.3f}"' if stage.share else ""
    bar = "" if stage.done else f'<progress max="1"{value} aria-label="Trained"></progress>'
    expected = f'<p class="fm-own-note">Before training: {escape(stage.forecast)}</p>' if stage.forecast else ""
    return f'<div class="fm-progress">{expected}{bar}<p role="status">{escape(stage.sentence)}</p></div>'


def curve(stage: Stage) -> pd.DataFrame:
    """Return recall by epoch and direction, a row per value."""
    rows = [
        (entry["epoch"], value, direction.replace("_", " "))
        for entry in stage.history
        for direction, value in entry.items()
        if direction != "epoch"
    ]
    return pd.DataFrame(rows, columns=_COLUMNS)


def colours(stage: Stage) -> dict[str, str]:
    """Return direction -> colour of its line."""
    return dict(zip(dict.fromkeys(curve(stage)["direction"]), _COLOURS, strict=False))


def legend_html(stage: Stage) -> str:
    """Return a legend for the lines; Gradio's own shows no names."""
    parts = "".join(
        f'<span><i style="background:{colour}"></i>{escape(direction)}</span>'
        for direction, colour in colours(stage).items()
    )
    return f'<p class="fm-legend">{parts}</p>' if parts else ""


class TrainingTab:
    """Widgets of the tab and their events."""

    def __init__(
        self,
        demo: gr.Blocks,
        trainings: Visitors[Training] | None = None,
        corpora: Visitors[Corpus] | None = None,
    ) -> None:
        """Lay out the tab and wire it; call inside a ``gr.Tab``.

        Args:
            demo: The page; closing it deletes the visitor's training.
            trainings: Trainings by visitor; by default in Gradio's upload folder, which it serves.
            corpora: Files of the tab "Your files" by visitor, whose pictures and captions can be trained on.
        """
        self.corpora = corpora
        self.trainings = Visitors(Training, Path(get_upload_folder()) / "trainings") if trainings is None else trainings
        gr.HTML(
            '<p class="fm-lead">Upload two files of latents (.npy, .safetensors or .parquet), one latent per row; '
            "the first row of one belongs to the first row of the other, and so on; or train on the pictures and "
            "captions in “Your files”. FuseMix then trains small adapters on them, here, on one processor core. "
            f"<span>Up to {MAX_ROWS:,} pairs, {MAX_DIM:,} dimensions and {MAX_SECONDS / 60:.0f} minutes; very wide "
            "latents spend the first minutes in the closed form. Your files are deleted once they are read, the "
            "result a minute after you close the page, or after an hour.</span></p>"
        )
        sign_in_button()
        with gr.Row(equal_height=True):
            self.fields = [self._latents("First", "image", "a"), self._latents("Second", "text", "b")]
        self.epochs = gr.Slider(1, MAX_EPOCHS, 20, step=1, label="Epochs")
        self.plain = gr.Checkbox(False, label="Only the paper's adapters, without a closed form")
        with gr.Row(elem_classes=["fm-chips", "fm-keep"]):
            self.go = gr.Button("Train on my files", size="sm", elem_id="fm-train")
            self.example = gr.Button(
                "Train on the example: 1,500 pictures and captions", size="sm", elem_id="fm-train-example"
            )
            self.own = gr.Button(
                "Train on the pictures and captions in Your files",
                size="sm",
                elem_id="fm-train-own",
                visible=corpora is not None,
            )
            self.cancel = gr.Button("Cancel", variant="stop", size="sm", elem_id="fm-train-cancel", interactive=False)
        self.progress = gr.HTML(elem_id="fm-train-progress")
        self.plot = gr.LinePlot(
            pd.DataFrame([], columns=_COLUMNS),
            x="epoch",
            y="recall@1",
            color="direction",
            color_title=" ",
            y_lim=[0, None],
            height=320,
            label="Recall@1 on held-out pairs",
            visible=False,
            elem_id="fm-train-curve",
        )
        self.legend = gr.HTML()
        with gr.Column(visible=False) as self.panel:
            with gr.Row(elem_classes=["fm-chips", "fm-keep"]):
                self.download = gr.HTML()
                self.delete = gr.Button("Delete my training now", variant="stop", size="sm", elem_id="fm-train-delete")
            PushRow(lambda visitor: self.trainings.of(visitor).download, name="fusemix-adapters", private=False)
        self.ready = gr.State(False)
        self._wire(demo)

    @staticmethod
    def _latents(order: str, name: str, mark: str) -> tuple[gr.Textbox, gr.File]:
        """Lay out a name and a file."""
        with gr.Column(min_width=260):
            modality = gr.Textbox(name, label=f"{order} kind", max_lines=1, max_length=30)
            file = FilesInput(label=f"{order} file", file_count="single", height=130, elem_id=f"fm-latents-{mark}")
        return modality, file

    def _wire(self, demo: gr.Blocks) -> None:
        hidden: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        (name_a, file_a), (name_b, file_b) = self.fields
        shown = [self.progress, self.plot, self.legend, self.panel, self.download, self.cancel]
        given = [name_a, file_a, name_b, file_b]
        starts = [
            self.go.click(self.arrive, given, [file_a, file_b, self.ready, *shown], queue=False, **hidden),
            self.example.click(self.arrive_example, None, [self.ready, *shown], queue=False, **hidden),
            self.own.click(self.arrive_own, None, [self.ready, *shown], queue=False, **hidden),
        ]
        for start in starts:
            start.success(self.train, [self.ready, self.epochs, self.plain], shown, **TRAINING, **hidden)
        self.cancel.click(self.stop, None, self.progress, queue=False, api_visibility="private")
        self.delete.click(self.remove, None, shown, queue=False, api_visibility="private")
        demo.unload(self.leave)

    def arrive(
        self, name_a: str, file_a: list[str] | None, name_b: str, file_b: list[str] | None, page: gr.Request
    ) -> Page:
        """Take two uploaded files, which then wait for their turn."""
        (_, field_a), (_, field_b) = self.fields
        if not file_a or not file_b:
            return self._refused("Upload two files of latents first, or train on the example.")
        names = [str(name_a or "").strip(), str(name_b or "").strip()]
        files = dict(zip(names, (Path(file_a[0]), Path(file_b[0])), strict=True))
        return self._take(page, files, link=True) | {field_a: None, field_b: None}

    def arrive_example(self, page: gr.Request) -> Page:
        """Take the example latents that ship with the app."""
        return self._take(page, EXAMPLE, link=False)

    def arrive_own(self, page: gr.Request) -> Page:
        """Take the pictures with captions of the tab "Your files"."""
        pairs: dict[str, np.ndarray] = {}
        with suppress(MediaError):  # there are none
            pairs = self.corpora.of(page.session_hash).pairs() if self.corpora else {}
        count = len(next(iter(pairs.values()), ()))
        if count < MIN_ROWS:
            return self._refused(
                f"“Your files” holds {count} pictures with a caption, and at least {MIN_ROWS} are needed. Drop "
                "pictures there, together with a table that has the columns image (their file names) and text."
            )
        try:
            folder = self.trainings.open(page.session_hash).folder / "arrived"
        except MediaError as error:
            return self._refused(str(error))
        folder.mkdir(exist_ok=True)
        files = {modality: folder / f"{modality}.npy" for modality in pairs}
        for modality, latents in pairs.items():
            np.save(files[modality], latents)
        taken = self._take(page, files, link=False)
        return taken | {self.ready: OWN if taken[self.ready] else False}

    def _take(self, page: gr.Request, files: dict[str, Path], *, link: bool) -> Page:
        """Take files; a failure is one sentence, and nothing is trained."""
        try:
            self.trainings.open(page.session_hash).arrive(files, link=link)
        except MediaError as error:
            return self._refused(str(error))
        except Exception:
            logger.exception("A visitor's latents could not be taken in.")
            return self._refused(SORRY)
        waiting = Stage("Your latents have arrived; one visitor trains at a time …")
        return {
            self.progress: stage_html(waiting),
            self.cancel: gr.update(interactive=True),
            self.panel: gr.update(visible=False),  # the earlier checkpoint is deleted
            self.ready: True,
        }

    def _refused(self, sentence: str) -> Page:
        return {self.progress: apology(sentence), self.ready: False}

    def train(self, ready: bool | str, epochs: float, plain: bool, page: gr.Request) -> Iterator[Page]:
        """Train on the files that arrived, showing the progress; do nothing if none arrived."""
        over = {self.cancel: gr.update(interactive=False)}
        if not ready:
            yield over
            return
        yield {self.plot: gr.update(value=curve(Stage("")), visible=False), self.legend: ""}
        try:
            if isinstance(epochs, bool) or not isinstance(epochs, int | float) or epochs != int(epochs):
                raise MediaError(f"The number of epochs must be a whole number, not {shown(epochs)}.")
            training = self.trainings.of(page.session_hash)
            looked, drawn = 0.0, 0
            for stage in training.run(int(epochs), closed_form=not plain):
                if not stage.done and stage.share and time.monotonic() - looked < _PAUSE_S:
                    continue
                looked = time.monotonic()
                page_: Page = {self.progress: stage_html(stage)}
                if len(stage.history) != drawn:
                    drawn = len(stage.history)
                    page_[self.plot] = gr.update(value=curve(stage), color_map=colours(stage), visible=True)
                    page_[self.legend] = legend_html(stage)
                if stage.done and ready == OWN and self.corpora and training.model is not None:
                    self.corpora.of(page.session_hash).adopt(training.model)
                    page_[self.progress] = stage_html(replace(stage, sentence=stage.sentence + ADOPTED))
                if stage.done:
                    page_ |= over | {self.download: download_html(training), self.panel: gr.update(visible=True)}
                yield page_
        except MediaError as error:
            yield {self.progress: apology(str(error))} | over
        except Exception:
            logger.exception("A visitor's training failed.")
            yield {self.progress: apology(SORRY)} | over

    def stop(self, page: gr.Request) -> str:
        """End the training; the best weights so far stay."""
        self.trainings.stop(page.session_hash)
        return stage_html(Stage("Stopping at the next step …"))

    def remove(self, page: gr.Request) -> Page:
        """Delete everything of this visitor."""
        self.trainings.delete(page.session_hash)
        return {
            self.progress: stage_html(Stage("Your training and its checkpoint are deleted.", done=True)),
            self.plot: gr.update(value=curve(Stage("")), visible=False),
            self.legend: "",
            self.download: "",
            self.panel: gr.update(visible=False),
            self.cancel: gr.update(interactive=False),
        }

    def leave(self, page: gr.Request) -> None:
        """Handle a closed page or a lost connection."""
        self.trainings.leave(page.session_hash)


def download_html(training: Training) -> str:
    """Return a link to the checkpoint, if there is one, and how to load it."""
    path = training.download
    if path is None:
        return ""
    size = path.stat().st_size / 1e6
    return (
        f'<div class="fm-files"><a href="{escape(file_url(path))}" download="{path.name}">Download the checkpoint '
        f'(.zip, {size:.0f} MB)</a></div><p class="fm-own-note">Unpack it and load it with '
        '<code>FusionModel.from_pretrained("fusemix-checkpoint")</code>.</p>'
    )
