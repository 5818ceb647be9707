"""The "Explore" tab: a map of the shared space with the positions of queries."""

from __future__ import annotations

import html
import logging
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import gradio as gr

from demo.query import Query
from demo.results import NOUNS, file_url
from demo.service import Answer, Service
from demo.space_map import VIEWS, SpaceMap
from demo.workers import QUICK
from fusemix.media import MediaError

logger = logging.getLogger(__name__)

JS = Path(__file__).parents[1] / "js"
HITS = 4  # nearest items of each modality, linked to the query by a line
_PLACES = 4  # decimals of a position on the map: finer than a pixel


class Explorer:
    """Map of a service's gallery, computed when it is first shown."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._lock = Lock()

    @cached_property
    def _map(self) -> SpaceMap:
        return SpaceMap(self.service.embeddings)

    @property
    def map(self) -> SpaceMap:
        """The two planes and the positions of all items."""
        with self._lock:
            return self._map

    def points(self) -> dict[str, Any]:
        """Return positions, names and files of every item as plain values for the page."""
        groups = [
            {
                "modality": modality,
                "points": {view: places[modality].round(_PLACES).tolist() for view, places in self.map.points.items()},
                "names": [str(item.get("caption") or item.get("text") or "") for item in self.service.items(modality)],
                "files": [item.get("path", "") for item in self.service.items(modality)],
                "ids": [item["id"] for item in self.service.items(modality)],
            }
            for modality in self.service.counts
        ]
        base = f"{file_url(self.service.root)}/" if self.service.root else ""
        nouns = {modality: NOUNS[modality].rstrip("s") for modality in self.service.counts}
        return {"views": list(VIEWS), "groups": groups, "base": base, "nouns": nouns, "note": self.note()}

    def note(self) -> str:
        """Describe how much of the variance the map shows."""
        first, second = (self.map.planes[view].explained for view in VIEWS)
        return (
            f"This map shows two of {self.service.retriever.index.embed_dim} directions (PCA): {first:.0%} of the "
            f"variance as trained, {second:.0%} with the gap removed. Dots that look close may be far apart in the "
            "others."
        )

    def place(self, answer: Answer, asked: str) -> dict[str, Any] | None:
        """Return the position and the nearest items of a query, for the map's JavaScript."""
        if answer.embedding is None:
            return None
        shares: dict[str, float] = {}
        for part in answer.parts:
            modality = "text" if part == "minus_text" else part
            shares[modality] = shares.get(modality, 0.0) + abs(answer.weights[part])
        hits = [
            [modality, self.service.row_of(modality, hit.item["id"])]
            for modality, found in answer.hits.items()
            for hit in found[:HITS]
        ]
        return {"at": self.map.place(answer.embedding, shares), "asked": asked, "hits": hits}


def map_component(explorer: Explorer) -> gr.HTML:
    """Create the canvas, not yet on the page; its value is what :meth:`Explorer.place` returns."""

    def points(_: Any) -> dict[str, Any]:
        return explorer.points()

    return gr.HTML(
        value=None,
        html_template=_template(explorer.service.counts),
        js_on_load=(JS / "map.js").read_text(encoding="utf-8"),
        server_functions=[points],
        elem_id="fm-map",
        render=False,
    )


def _template(counts: dict[str, int]) -> str:
    legend = "".join(
        f'<button type="button" data-modality="{modality}" aria-pressed="true"><i class="fm-dot-{modality}"></i>'
        f"{NOUNS[modality]}</button>"
        for modality in counts
    )
    views = "".join(
        f'<button type="button" data-view="{view}" aria-pressed="{str(view == VIEWS[0]).lower()}">{view}</button>'
        for view in VIEWS
    )
    return f"""
<div class="fm-map-bar">
  <div role="group" aria-label="Kinds of items shown">{legend}</div>
  <div role="group" aria-label="View">{views}</div>
  <div role="group" aria-label="Zoom"><button type="button" data-zoom="1.5" aria-label="Zoom in">+</button><button
    type="button" data-zoom="0.667" aria-label="Zoom out">−</button><button type="button" data-reset="1">reset</button>
  </div>
</div>
<div class="fm-map-frame">
  <canvas tabindex="0" role="img" aria-label="A map of the shared space; a dot for every item. Arrow keys move, plus
    and minus zoom, 0 resets. The nearest items to a query are listed below the map."></canvas>
  <div class="fm-tip" hidden></div>
</div>
<p class="fm-map-note" role="status">Drawing the map …</p>
"""


def build_explore_tab(explorer: Explorer, map_view: gr.HTML) -> gr.HTML:
    """Lay out the tab and wire its own text field; call inside a ``gr.Tab``.

    Args:
        explorer: Source of the map.
        map_view: Result of :func:`map_component`; rendered here.

    Returns:
        The list of nearest items under the map, for the other tabs to update.
    """
    gr.HTML(
        '<p class="fm-lead">Every picture, sound and caption in the gallery is a dot; similar things are close. '
        "<strong>Type, and watch your words land.</strong> Hover over a dot to see it; click it to search with it. "
        "Pictures, sounds and captions form separate clouds: the <em>modality gap</em>. Training leaves it "
        "because each ranking holds items of one kind only. “Gap removed” moves the clouds on top of each other.</p>"
    )
    text = gr.Textbox(
        label="Words to place on the map",
        placeholder="Type, and watch where it lands …",
        show_label=False,
        container=False,
        max_lines=1,
        max_length=2000,
        elem_id="fm-land",
    )
    map_view.render()
    nearest = gr.HTML(elem_id="fm-nearest")
    text.input(
        lambda words: land(explorer, words),
        text,
        [map_view, nearest],
        trigger_mode="always_last",
        show_progress="hidden",
        api_visibility="private",
        **QUICK,
    )
    return nearest


def land(explorer: Explorer, words: str) -> tuple[Any, str]:
    """Return the position of words and the nearest items; an empty field removes the query from the map."""
    try:
        query = Query(text=words)
        if not query.parts():
            return None, ""
        answer = explorer.service.search(query, top_k=HITS)
        return explorer.place(answer, query.describe()), nearest_html(answer, query.describe())
    except MediaError as error:
        return None, f"<p>{html.escape(str(error))}</p>"
    except Exception:
        logger.exception("A query on the map failed.")
        return None, "<p>Something went wrong on our side, and we have logged it. Please try other words.</p>"


def nearest_html(answer: Answer, asked: str) -> str:
    """List the nearest items in words, for visitors who cannot see the map."""
    lines = "".join(
        f"<li><strong>{NOUNS[modality].capitalize()}:</strong> "
        + "; ".join(html.escape(str(h.item.get("caption") or h.item.get("text") or "")) for h in found[:HITS])
        + "</li>"
        for modality, found in answer.hits.items()
        if found
    )
    return f'<div role="status"><p>Nearest to {html.escape(asked)}:</p><ul>{lines}</ul></div>'
