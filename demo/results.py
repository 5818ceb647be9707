"""HTML of the page, as pure functions from plain values to escaped markup."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from demo.service import Answer
from demo.transcripts import sentences
from fusemix.search.fusion import FusedHit
from fusemix.search.index import Hit

SHOWN = {"image": 12, "audio": 6, "text": 8}  # results of each kind on the page
FOUND = 12  # items on the page; as many more at a time as one scrolls
MOST_FOUND = 60
_HEADINGS = {"image": "Pictures", "audio": "Sounds", "text": "Captions"}
_ALONE = {"image": "Pictures, by pixels alone", "audio": "Sounds, by sound alone", "text": "Captions, by words alone"}
_FACES = {"image": "picture", "audio": "sound", "text": "caption"}
_TELLING = 0.25  # least share of the score at which a face is named
NO_SOUND = "No sound here fits these words."
NONE_LEFT = "Nothing passes this filter; take it away above."
REEL_PICTURES = 6  # of an example on the reel
MOST_UNKNOWN = 5  # words named as not understood
NOUNS = {"image": "pictures", "audio": "sounds", "text": "captions"}

PathOf = Callable[[dict[str, Any]], Path | None]


def file_url(path: Path) -> str:
    """Return the address, relative to the page, at which Gradio serves an allowed file."""
    return f"gradio_api/file={quote(path.as_posix())}"


def describe_counts(counts: dict[str, int]) -> str:
    """Describe counts, such as ``3,804 pictures, 260 sounds and 3,412 captions``."""
    parts = [f"{counts[modality]:,} {noun}" for modality, noun in NOUNS.items() if counts.get(modality)]
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else "nothing yet"


def status(answer: Answer, asked: str, link: str = "", *, correct: bool = False) -> str:
    """Return the status line: the query, the time and the number of items; with a link, a button that copies it.

    Args:
        answer: Answer to report.
        asked: Description of the query.
        link: Link to the search; "" for none.
        correct: Whether misheard or mistyped words can be corrected there.
    """
    took = f"{answer.n_items:,} items searched in {max(answer.seconds, 0.01):.2f} s"
    copy = f'<button type="button" class="fm-copy" data-link="{escape(link)}">Copy link</button>' if link else ""
    lines = sentences("" if correct else answer.heard, answer.doubt)
    if answer.unknown and not answer.doubt:
        words = ", ".join(f"“{word}”" for word in answer.unknown[:MOST_UNKNOWN])
        lines.append(f"Not understood: {words}. Try plain English words.")
    if answer.left_out:
        lines.append(f"“{answer.left_out}” itself is left out.")
    files = "yes" if set(answer.parts) - {"text"} else "no"
    return (
        f'<div class="fm-line" data-files="{files}"><p class="fm-status" role="status">Nearest to {escape(asked)} '
        f'<span>{took}<span class="fm-felt"></span></span></p>{copy}</div>'
        + (_heard(answer.heard, answer.uncertain) if correct and (answer.heard or answer.uncertain) else "")
        + (_suggestion(answer.suggestion) if correct and answer.suggestion else "")
        + (_marks(answer) if correct else "")
        + "".join(f'<p class="fm-doubt">{escape(line)}</p>' for line in lines)
    )


def _suggestion(words: str) -> str:
    return f'<p class="fm-doubt">Did you mean <button type="button" class="fm-meant">{escape(words)}</button>?</p>'


def _marks(answer: Answer) -> str:
    """Return what the visitor marked and filtered, each with a button that takes it back."""
    names = {"image": "with a picture", "audio": "with a sound", "text": "captions"}
    chips = [
        f'<button type="button" class="fm-undo" data-modality="where" data-id="{escape(key)}=" aria-label="Remove the '
        f'filter: {escape(label)}">{escape(label)} ✕</button>'
        for key, value in answer.where.items()
        for label in [f"only {names.get(value, short_source(value))}"]
    ]
    if count := len(answer.likes) + len(answer.dislikes):
        label = f"steered by {count} {'mark' if count == 1 else 'marks'}"
        chips.append(
            '<button type="button" class="fm-undo" data-modality="unmark" data-id="all" '
            f'aria-label="Take back: {label}">{label} ✕</button>'
        )
    return f'<p class="fm-undos">{"".join(chips)}</p>' if chips else ""


def short_source(source: str) -> str:
    """Return a source without the packager and the version: ``Debian openclipart-png 1:0.18`` -> openclipart-png."""
    return re.sub(r"^(Debian|PyPI|npm) (\S+) \S*\d\S*$", r"\2", source)


def _heard(words: str, uncertain: str) -> str:
    """Return the words heard, in a field where the speaker can correct them."""
    label = "Words heard" if words else "Did you say"
    return (
        f'<form class="fm-heard"><label>{label} '
        f'<input type="text" value="{escape(words or uncertain)}" maxlength="2000"></label>'
        '<button type="submit">Search these words</button></form>'
    )


def apology(sentence: str) -> str:
    """Return a message for a query that cannot be answered."""
    return f'<p class="fm-status fm-apology" role="alert">{escape(sentence)}</p>'


def results(answer: Answer, path_of: PathOf, *, prefix: str = "fm-h") -> str:
    """Return all results of a query, one section per modality.

    Args:
        answer: Answer with the hits.
        path_of: Returns the file of an item.
        prefix: Prefix of the headings' ids, unique on the page.
    """
    return "".join(
        _section(modality, answer.hits[modality][: SHOWN[modality]], path_of, f"{prefix}-{modality}")
        for modality in SHOWN
        if answer.hits.get(modality)
    )


def found(answer: Answer, path_of: PathOf, facets: Mapping[str, Mapping[str, int]] | None = None) -> str:
    """Return the best items as one list, with a switch to the three lists by pixels, sound or words alone.

    Args:
        answer: Answer with the items; those after the first :data:`FOUND` are hidden until the visitor scrolls there.
        path_of: Returns the file of an item.
        facets: ``licence`` and ``source`` -> value -> number of items, offered as filters.
    """
    if not answer.items and not answer.where:
        return results(answer, path_of)
    shown = answer.items[:MOST_FOUND]
    items = "".join(_item(entry, path_of, answer, number >= FOUND) for number, entry in enumerate(shown))
    numbers = {entry.number for entry in shown[:FOUND]}
    sounds = [entry for entry in answer.sounds or [] if entry.number not in numbers][: SHOWN["audio"]]
    more = "".join(_item(entry, path_of, answer) for entry in sounds)
    heard = f'<section class="fm-items" aria-label="Sounds"><h2>Sounds</h2><ol>{more}</ol></section>' if more else ""
    hits = dict(answer.hits)
    if answer.sounds is not None and "audio" in hits:
        fitting = {entry.faces["audio"].item["id"] for entry in answer.sounds}
        hits["audio"] = [hit for hit in hits["audio"] if hit.item["id"] in fitting]
    alone = "".join(
        _section(modality, hits[modality][: SHOWN[modality]], path_of, f"fm-a-{modality}", _ALONE[modality])
        for modality in SHOWN
        if hits.get(modality)
    )
    if hits.get("audio") == []:
        alone += f'<section class="fm-audio"><h2>{_ALONE["audio"]}</h2><p class="fm-doubt">{NO_SOUND}</p></section>'
    scroll = '<button type="button" class="fm-scroll-on">More results</button>' if len(shown) > FOUND else ""
    none = "" if shown else f'<p class="fm-doubt">{NONE_LEFT}</p>'
    return (
        '<div class="fm-bar"><div class="fm-views" role="group" aria-label="How results are ranked">'
        '<button type="button" class="fm-view" data-view="items" aria-pressed="true">Everything together</button>'
        '<button type="button" class="fm-view" data-view="lists" aria-pressed="false">By pixels, sound or words alone'
        f"</button></div>{_tools(answer, shown, facets or {})}</div>"
        f'<div class="fm-together"><section class="fm-items" aria-label="Results"><ol>{items}</ol>{none}{scroll}'
        f'</section>{heard}</div><div class="fm-lists">{alone}</div>'
    )


def _tools(answer: Answer, shown: list[FusedHit], facets: Mapping[str, Mapping[str, int]]) -> str:
    """Return what narrows the results down, and what saves them."""
    kinds = {"image": "with a picture", "audio": "with a sound"}
    choices = {"kind": [("image", kinds["image"]), ("audio", kinds["audio"])]}
    choices |= {
        key: [(value, f"{short_source(value)} ({count:,})") for value, count in tally.items()]
        for key, tally in facets.items()
    }
    fields = "".join(
        f'<label>{key.capitalize()} <select data-key="{key}"><option value="">any</option>'
        + "".join(
            f'<option value="{escape(value)}"{" selected" if answer.where.get(key) == value else ""}>{escape(label)}'
            "</option>"
            for value, label in options
        )
        + "</select></label>"
        for key, options in choices.items()
    )
    saved = escape(json.dumps([_saved(entry) for entry in shown], ensure_ascii=False))
    return (
        f'<details class="fm-tools" data-hits="{saved}"><summary>Filter and save</summary><div>{fields}'
        '<button type="button" class="fm-save" data-kind="csv">Save as CSV</button>'
        '<button type="button" class="fm-save" data-kind="json">Save as JSON</button></div></details>'
    )


def _saved(entry: FusedHit) -> dict[str, Any]:
    """Return an item as plain values for a file."""
    item, files = entry.item, {face: hit.item.get("path", "") for face, hit in entry.faces.items() if face != "text"}
    keys = ("id", "title", "source", "licence", "credit")
    return {
        "rank": entry.rank,
        "caption": str(item.get("caption") or item.get("text") or ""),
        "found_by": entry.found_by,
        "score": round(entry.score, 3),
        "picture": files.get("image", ""),
        "sound": files.get("audio", ""),
    } | {key: str(item.get(key, "")) for key in keys}


def tiles(items: Iterable[dict[str, Any]], path_of: PathOf) -> str:
    """Return pictures as buttons that search with them."""
    return "".join(
        f'<button type="button" class="fm-more fm-tile" data-modality="image" data-id="{_text(item, "id")}" '
        f'title="{_text(item, "caption")}" aria-label="Search with: {_text(item, "caption")}">'
        f'<img src="{_url(path_of, item)}" alt="" loading="lazy"></button>'
        for item in items
    )


def mosaic(items: Iterable[dict[str, Any]], path_of: PathOf) -> str:
    """Return pictures of the gallery for the page before the first query; each one is a button that searches."""
    pictures = tiles(items, path_of)
    return pictures and f'<p class="fm-label">Or tap a picture:</p><div class="fm-mosaic">{pictures}</div>'


def reel(slides: list[tuple[str, str, Answer]], path_of: PathOf) -> str:
    """Return examples with their answers, shown one after another before the first query.

    Args:
        slides: Verb ("You type"), name of the example, which a click searches with, and its answer.
        path_of: Returns the file of an item.
    """
    parts = []
    for number, (verb, name, answer) in enumerate(slides):
        pictures = "".join(f'<img src="{_url(path_of, hit.item)}" alt="">' for hit in _pictures(answer)[:REEL_PICTURES])
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


def _pictures(answer: Answer) -> list[Hit]:
    """Return the pictures of the best items, or, without any, of the list of pictures."""
    return [f.faces["image"] for f in answer.items if "image" in f.faces] or answer.hits.get("image", [])


def _section(modality: str, hits: list[Hit], path_of: PathOf, identity: str, heading: str = "") -> str:
    entry = {"image": _picture, "audio": _sound, "text": _caption}[modality]
    entries = "".join(entry(hit, path_of) for hit in hits)
    return (
        f'<section class="fm-{modality}" aria-labelledby="{identity}">'
        f'<h2 id="{identity}">{heading or _HEADINGS[modality]}</h2><ol>{entries}</ol></section>'
    )


def _item(entry: FusedHit, path_of: PathOf, answer: Answer, later: bool = False) -> str:
    """Return an item with its picture (a button that searches), caption, sound and how it was found."""
    picture, sound, words = (entry.faces.get(face) for face in ("image", "audio", "text"))
    shown = picture or sound or words
    if shown is None:
        return ""
    name = _text(shown.item, "caption") or _text(shown.item, "text")
    look = _look(picture, path_of, lazy=later) if picture else ""
    player = _player(sound, path_of, name) if sound else ""
    kind = "fm-seen" if picture else "fm-unseen"
    foot = (
        f'<span class="fm-origin">{_origin(shown.item)}</span><div class="fm-foot">{_more(shown)}'
        f"{_votes(shown, name, answer)}</div>"
    )
    return (
        f'<li class="{kind}" title="{_origin(shown.item)}"{" hidden" if later else ""}>{look}<p class="fm-name">{name}'
        f'</p>{player}<p class="fm-by">{escape(found_by(entry))}</p>{foot}</li>'
    )


def _votes(hit: Hit, name: str, answer: Answer) -> str:
    """Return the buttons that mark a result as right or wrong, which steers the next ones."""
    identity = f"{hit.modality}:{hit.item.get('id', '')}"
    kinds = (("like", "✓", "More like", answer.likes), ("dislike", "✕", "Less like", answer.dislikes))
    return "".join(
        f'<button type="button" class="fm-vote" data-modality="{verdict}" data-id="{escape(identity)}" '
        f'aria-pressed="{str(identity in marked).lower()}" aria-label="{words} this, steer the results: {name}">{sign}'
        "</button>"
        for verdict, sign, words, marked in kinds
    )


def found_by(entry: FusedHit) -> str:
    """Name the faces that contribute most, such as ``found by its caption and picture``."""
    total = sum(max(share, 0.0) for share in entry.shares.values())
    telling = [
        _FACES.get(face, face)
        for face, share in sorted(entry.shares.items(), key=lambda pair: -pair[1])
        if share > 0 and share >= _TELLING * total
    ]
    return f"found by its {' and '.join(telling)}" if telling else "a weak match"


def _picture(hit: Hit, path_of: PathOf) -> str:
    return (
        f'<li title="{_origin(hit.item)}">{_look(hit, path_of)}<p class="fm-name">{_text(hit.item, "caption")}</p>'
        f"{_similarity(hit)}{_foot(hit)}</li>"
    )


def _sound(hit: Hit, path_of: PathOf) -> str:
    caption = _text(hit.item, "caption")
    return (
        f'<li title="{_origin(hit.item)}"><p class="fm-name">{caption}</p>{_player(hit, path_of, caption)}'
        f"{_similarity(hit)}{_foot(hit)}</li>"
    )


def _caption(hit: Hit, path_of: PathOf) -> str:
    return (
        f'<li title="{_origin(hit.item)}"><p class="fm-name">{_text(hit.item, "text")}</p>{_similarity(hit)}'
        f"{_foot(hit)}</li>"
    )


def _look(hit: Hit, path_of: PathOf, *, lazy: bool = False) -> str:
    """Return a picture as a button that searches with it."""
    caption = _text(hit.item, "caption")
    return (
        f'<button type="button" class="fm-more fm-look" data-modality="image" data-id="{_text(hit.item, "id")}" '
        f'aria-label="Search with this picture: {caption}"><img src="{_url(path_of, hit.item)}" alt="{caption}"'
        f"{' loading=lazy' if lazy else ''}></button>"
    )


def _player(hit: Hit, path_of: PathOf, name: str) -> str:
    return f'<audio controls preload="none" src="{_url(path_of, hit.item)}" aria-label="{name}"></audio>'


def _similarity(hit: Hit) -> str:
    likely = "" if hit.probability is None else f" · {100 * hit.probability:.0f} % sure"
    return f'<p class="fm-similarity">cosine {hit.similarity:.2f}{likely}</p>'


def _foot(hit: Hit) -> str:
    """Return the origin of an item and the button that searches with it."""
    return f'<div class="fm-foot"><span class="fm-origin">{_origin(hit.item)}</span>{_more(hit)}</div>'


def _more(hit: Hit) -> str:
    """Return a button that searches with this item; ``js/results.js`` handles its click."""
    name = _text(hit.item, "caption") or _text(hit.item, "text")
    return (
        f'<button type="button" class="fm-more" data-modality="{hit.modality}" data-id="{_text(hit.item, "id")}" '
        f'aria-label="More like this: {name}">More like this</button>'
    )


def _url(path_of: PathOf, item: dict[str, Any]) -> str:
    path = path_of(item)
    return escape(file_url(path)) if path is not None else ""


def _origin(item: dict[str, Any]) -> str:
    parts = (item.get("licence"), item.get("credit"), item.get("source"))
    return escape(" · ".join(str(part) for part in parts if part))


def _text(item: dict[str, Any], key: str) -> str:
    return escape(str(item.get(key, "")))
