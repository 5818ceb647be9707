"""HTML of the page: pure functions from plain values to escaped markup."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from demo.service import Answer
from demo.transcripts import sentences
from fusemix.search.index import Hit

SHOWN = {"image": 12, "audio": 6, "text": 8}  # results of each kind on the page
_HEADINGS = {"image": "Pictures", "audio": "Sounds", "text": "Captions"}
REEL_PICTURES = 6  # of an example on the reel
NOUNS = {"image": "pictures", "audio": "sounds", "text": "captions"}

PathOf = Callable[[dict[str, Any]], Path | None]


def file_url(path: Path) -> str:
    """Address, relative to the page, under which Gradio serves an allowed file."""
    return f"gradio_api/file={quote(path.as_posix())}"


def describe_counts(counts: dict[str, int]) -> str:
    """Such as ``3,804 pictures, 260 sounds and 3,412 captions``."""
    parts = [f"{counts[modality]:,} {noun}" for modality, noun in NOUNS.items() if counts.get(modality)]
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else "nothing yet"


def status(answer: Answer, asked: str, link: str = "") -> str:
    """One line: what was asked, how long it took, among how many; with a link, a button that copies it."""
    took = f"{answer.seconds * 1000:,.0f} ms, {answer.n_items:,} items"
    copy = f'<button type="button" class="fm-copy" data-link="{escape(link)}">Copy link</button>' if link else ""
    return (
        f'<div class="fm-line"><p class="fm-status" role="status">Nearest to {escape(asked)} '
        f'<span>{took}<span class="fm-felt"></span></span></p>{copy}</div>'
        + "".join(f'<p class="fm-doubt">{escape(line)}</p>' for line in sentences(answer.heard, answer.doubt))
    )


def apology(sentence: str) -> str:
    """One calm sentence when a query cannot be answered."""
    return f'<p class="fm-status fm-apology" role="alert">{escape(sentence)}</p>'


def results(answer: Answer, path_of: PathOf, *, prefix: str = "fm-h") -> str:
    """All results of a query, one section per kind of item.

    Args:
        answer: The hits.
        path_of: Knows the items' files.
        prefix: Of the headings' ids; another one in every place of the page.
    """
    return "".join(
        _section(modality, answer.hits[modality][: SHOWN[modality]], path_of, prefix)
        for modality in SHOWN
        if answer.hits.get(modality)
    )


def mosaic(items: Iterable[dict[str, Any]], path_of: PathOf) -> str:
    """A glimpse of the gallery, shown before the first query; each picture is a query of its own."""
    pictures = "".join(
        f'<button type="button" class="fm-more fm-tile" data-modality="image" data-id="{_text(item, "id")}" '
        f'title="{_text(item, "caption")}" aria-label="Search with: {_text(item, "caption")}">'
        f'<img src="{_url(path_of, item)}" alt="" loading="lazy"></button>'
        for item in items
    )
    return pictures and f'<p class="fm-label">Or tap a picture:</p><div class="fm-mosaic">{pictures}</div>'


def reel(slides: list[tuple[str, str, Answer]], path_of: PathOf) -> str:
    """Examples with their answers, shown one after another before the first query.

    Args:
        slides: What the visitor would do ("You type"), the example's name, which a click on the
            slide searches with, and its answer.
        path_of: Knows the items' files.
    """
    parts = []
    for number, (verb, name, answer) in enumerate(slides):
        pictures = "".join(
            f'<img src="{_url(path_of, hit.item)}" alt="">' for hit in answer.hits.get("image", [])[:REEL_PICTURES]
        )
        label = escape(name)
        parts.append(
            f'<button type="button" class="fm-more fm-slide" data-modality="example" data-id="{label}" '
            f'aria-label="{escape(verb)} {label}: show all results"{" hidden" if number else ""}>'
            f'<span class="fm-asked"><small>{escape(verb)}</small> <span class="fm-typed" data-words="{label}">{label}'
            f'</span></span><span class="fm-found">{pictures}</span></button>'
        )
    if not parts:
        return ""
    return (
        '<section class="fm-reel" aria-label="Examples, one after another">'
        f'{"".join(parts)}<p class="fm-reel-keys"><button type="button" class="fm-pause" aria-pressed="false">Pause'
        '</button><button type="button" class="fm-next">Next example</button></p></section>'
    )


def _section(modality: str, hits: list[Hit], path_of: PathOf, prefix: str) -> str:
    entry = {"image": _picture, "audio": _sound, "text": _caption}[modality]
    entries = "".join(entry(hit, path_of) for hit in hits)
    return (
        f'<section class="fm-{modality}" aria-labelledby="{prefix}-{modality}">'
        f'<h2 id="{prefix}-{modality}">{_HEADINGS[modality]}</h2><ol>{entries}</ol></section>'
    )


def _picture(hit: Hit, path_of: PathOf) -> str:
    url, caption = _url(path_of, hit.item), _text(hit.item, "caption")
    return (
        f'<li title="{_origin(hit.item)}"><a href="{url}" target="_blank" rel="noopener">'
        f'<img src="{url}" alt="{caption}"></a>'
        f'<p class="fm-name">{caption}</p>{_bar(hit)}{_foot(hit)}</li>'
    )


def _sound(hit: Hit, path_of: PathOf) -> str:
    caption = _text(hit.item, "caption")
    return (
        f'<li title="{_origin(hit.item)}"><p class="fm-name">{caption}</p>'
        f'<audio controls preload="metadata" src="{_url(path_of, hit.item)}" aria-label="{caption}"></audio>'
        f"{_bar(hit)}{_foot(hit)}</li>"
    )


def _caption(hit: Hit, path_of: PathOf) -> str:
    return (
        f'<li title="{_origin(hit.item)}"><p class="fm-name">{_text(hit.item, "text")}</p>{_bar(hit)}{_foot(hit)}</li>'
    )


def _bar(hit: Hit) -> str:
    """The similarity as a number and as a bar from 0 to 1."""
    width = 100 * min(max(hit.similarity, 0.0), 1.0)
    return (
        f'<p class="fm-similarity"><span class="fm-bar" aria-hidden="true"><i style="width:{width:.0f}%"></i></span>'
        f'<span aria-label="similarity {hit.similarity:.2f}">{hit.similarity:.2f}</span></p>'
    )


def _foot(hit: Hit) -> str:
    """Licence (the whole origin on hover) and the button that searches with this item."""
    return f'<div class="fm-foot"><span class="fm-origin">{_origin(hit.item)}</span>{_more(hit)}</div>'


def _more(hit: Hit) -> str:
    """A button that searches with this item; ``ui`` listens for its click."""
    name = _text(hit.item, "caption") or _text(hit.item, "text")
    return (
        f'<button type="button" class="fm-more" data-modality="{hit.modality}" data-id="{_text(hit.item, "id")}" '
        f'aria-label="more like this: {name}">more like this</button>'
    )


def _url(path_of: PathOf, item: dict[str, Any]) -> str:
    path = path_of(item)
    return escape(file_url(path)) if path is not None else ""


def _origin(item: dict[str, Any]) -> str:
    parts = (item.get("licence"), item.get("credit"), item.get("source"))
    return escape(" · ".join(str(part) for part in parts if part))


def _text(item: dict[str, Any], key: str) -> str:
    return escape(str(item.get(key, "")))
