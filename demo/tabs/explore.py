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
from demo.results import NOUNS, PathOf, file_url, tiles
from demo.service import Answer, Service
from demo.space_map import NEIGHBOURHOODS, VIEWS, Neighbourhoods, SpaceMap
from demo.workers import QUICK
from fusemix.media import MediaError
from fusemix.search.fusion import FusedHit

logger = logging.getLogger(__name__)

_TAP = """element.addEventListener('click', (event) => {
  const button = event.target.closest('.fm-more');
  if (button) trigger('select', { modality: button.dataset.modality, id: button.dataset.id });
});"""
JS = Path(__file__).parents[1] / "js"
PICTURES = 8  # of the nearest things, under the map
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

    @cached_property
    def neighbourhoods(self) -> Neighbourhoods | None:
        """Return the layout of things that was made with the gallery; None for another gallery."""
        return Neighbourhoods.of(self.service.root)

    @property
    def views(self) -> tuple[str, ...]:
        """Names of the views, the first one shown first."""
        return (NEIGHBOURHOODS, *VIEWS) if self.neighbourhoods else VIEWS

    def points(self) -> dict[str, Any]:
        """Return positions, names and files of every item as plain values for the page."""
        laid = self.neighbourhoods
        groups: list[dict[str, Any]] = []
        for modality in self.service.counts:
            items = self.service.items(modality)
            points: dict[str, list[Any]] = {
                view: places[modality].round(_PLACES).tolist() for view, places in self.map.points.items()
            }
            group: dict[str, Any] = {
                "modality": modality,
                "points": points,
                "names": [str(item.get("caption") or item.get("text") or "") for item in items],
                "files": [item.get("path", "") for item in items],
                "ids": [item["id"] for item in items],
            }
            if laid:
                points[NEIGHBOURHOODS] = [laid.place(modality, item["id"]) for item in items]
            if laid and modality == "image":
                group["cells"] = [laid.cell(item["id"]) for item in items]
            groups.append(group)
        sheet = {"url": file_url(laid.sheet), "side": laid.side, "columns": laid.columns} if laid else None
        base = f"{file_url(self.service.root)}/" if self.service.root else ""
        nouns = {modality: NOUNS[modality].rstrip("s") for modality in self.service.counts}
        return {
            "views": self.views,
            "groups": groups,
            "base": base,
            "nouns": nouns,
            "sheet": sheet,
            "notes": self.notes(),
        }

    def notes(self) -> dict[str, str]:
        """Say of each view what it shows."""
        size = self.service.retriever.index.embed_dim
        gap = "Pictures, sounds and captions form separate clouds: the modality gap. Training leaves it, because each "
        gap += "ranking holds items of one kind only."
        share = {
            view: f"Two of {size} directions (PCA) with {self.map.planes[view].explained:.0%} of the variance. "
            for view in VIEWS
        }
        return {
            NEIGHBOURHOODS: "Similar things are neighbours (t-SNE); distances across the map mean little.",
            VIEWS[0]: share[VIEWS[0]] + gap,
            VIEWS[1]: share[VIEWS[1]] + "The clouds are moved on top of each other.",
        }

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
        at = self.map.place(answer.embedding, shares)
        if laid := self.neighbourhoods:
            found = [place for hit in answer.items[:HITS] if (place := self._place_of(laid, hit))]
            at[NEIGHBOURHOODS] = laid.between(found) or [0.0, 0.0]
        things = [
            [face, self.service.row_of(face, hit.item["id"])]
            for found in answer.items[:HITS]
            for face, hit in list(found.faces.items())[:1]
            if face != "text"
        ]
        return {"at": at, "asked": asked, "hits": hits, "things": things}

    @staticmethod
    def _place_of(laid: Neighbourhoods, found: FusedHit) -> list[float] | None:
        places = (laid.place(face, hit.item["id"]) for face, hit in found.faces.items())
        return next((place for place in places if place), None)


def map_component(explorer: Explorer) -> gr.HTML:
    """Create the canvas, not yet on the page; its value is what :meth:`Explorer.place` returns."""

    def points(_: Any) -> dict[str, Any]:
        return explorer.points()

    return gr.HTML(
        value=None,
        html_template=_template(explorer.service.counts, explorer.views),
        js_on_load=(JS / "map.js").read_text(encoding="utf-8"),
        server_functions=[points],
        elem_id="fm-map",
        render=False,
    )


def _template(counts: dict[str, int], names: tuple[str, ...]) -> str:
    legend = "".join(
        f'<button type="button" data-modality="{modality}" aria-pressed="true"><i class="fm-dot-{modality}"></i>'
        f"{NOUNS[modality]}</button>"
        for modality in counts
    )
    views = "".join(
        f'<button type="button" data-view="{view}" aria-pressed="{str(view == names[0]).lower()}">{view}</button>'
        for view in names
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


def build_explore_tab(explorer: Explorer, map_view: gr.HTML) -> tuple[gr.HTML, gr.Textbox]:
    """Lay out the tab and wire its own text field; call inside a ``gr.Tab``.

    Args:
        explorer: Source of the map.
        map_view: Result of :func:`map_component`; rendered here.

    Returns:
        The list of nearest items under the map, and the field for words, for the other tabs to update.
    """
    gr.HTML(
        '<p class="fm-lead"><strong>Type, and watch your words land.</strong> Similar things are close. Tap one to '
        "search with it; zoom in to see more.</p>"
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
    nearest = gr.HTML(elem_id="fm-nearest", js_on_load=_TAP)
    text.input(
        lambda words: land(explorer, words),
        text,
        [map_view, nearest],
        trigger_mode="always_last",
        show_progress="hidden",
        api_visibility="private",
        **QUICK,
    )
    return nearest, text


def land(explorer: Explorer, words: str) -> tuple[Any, str]:
    """Return the position of words and the nearest items; an empty field removes the query from the map."""
    try:
        query = Query(text=words)
        if not query.parts():
            return None, ""
        answer = explorer.service.search(query, top_k=PICTURES)
        listed = nearest_html(answer, query.describe(), explorer.service.path_of)
        return explorer.place(answer, query.describe()), listed
    except MediaError as error:
        return None, f"<p>{html.escape(str(error))}</p>"
    except Exception:
        logger.exception("A query on the map failed.")
        return None, "<p>Something went wrong on our side, and we have logged it. Please try other words.</p>"


def nearest_html(answer: Answer, asked: str, path_of: PathOf = lambda _: None) -> str:
    """List the nearest things with their pictures, and the nearest items of each kind in words."""
    lines = "".join(
        f"<li><strong>{NOUNS[modality].capitalize()}:</strong> "
        + "; ".join(html.escape(str(h.item.get("caption") or h.item.get("text") or "")) for h in found[:HITS])
        + "</li>"
        for modality, found in answer.hits.items()
        if found
    )
    pictures = [hit.item for found in answer.items if (hit := found.faces.get("image"))][:PICTURES]
    return (
        f'<div role="status"><p>Nearest to {html.escape(asked)}:</p>'
        f'<div class="fm-mosaic">{tiles(pictures, path_of)}</div><ul>{lines}</ul></div>'
    )
