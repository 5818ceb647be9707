"""Explanation of the results as HTML: closest captions, the effect of each part, and how clear the match is."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from demo.service import Answer, Service
from fusemix.search.index import Hit

_BINS = 48
_CAPTIONS = 5  # nearest captions named
_HITS = 5  # hits whose parts are shown, of each kind
_NOUNS = {"image": "pictures", "audio": "sounds", "text": "captions"}
_PARTS = {"text": "words", "image": "picture", "audio": "sound", "minus_text": "without"}


def why(answer: Answer, service: Service, shown: dict[str, int]) -> str:
    """Return the whole panel as HTML; empty if the answer has no embedding.

    Args:
        answer: Answer with its embedding and parts.
        service: Service with the embeddings of the items.
        shown: Modality -> number of hits on the page.
    """
    if answer.embedding is None:
        return ""
    similarities = {modality: rows @ answer.embedding for modality, rows in service.embeddings.items()}
    plots = "".join(
        histogram(modality, similarities[modality], [hit.similarity for hit in answer.hits[modality][:count]])
        for modality, count in shown.items()
        if answer.hits.get(modality)
    )
    return (
        f"{_captions(answer.hits.get('text', []))}{_parts(answer, service)}"
        f'<h2>Where these results stand among all items</h2><div class="fm-plots">{plots}</div>'
    )


def _captions(hits: Sequence[Hit]) -> str:
    if not hits:
        return ""
    lines = "".join(
        f"<li>{escape(str(hit.item.get('text', '')))} <span>{hit.similarity:.2f}</span></li>"
        for hit in hits[:_CAPTIONS]
    )
    return f'<h2>Captions most like your query</h2><ol class="fm-words">{lines}</ol>'


def contributions(answer: Answer, service: Service, hit: Hit) -> dict[str, float]:
    """Split a hit's similarity into one summand per part of the query.

    The query is q = sum(w_i e_i) / c, so its cosine with a hit h is sum(w_i (e_i . h)) / c.
    """
    row = service.row_of(hit.modality, hit.item["id"])
    if row is None:
        raise ValueError(f"No {hit.modality} item is called {hit.item['id']!r}.")
    target = service.embeddings[hit.modality][row]
    length = float(np.linalg.norm(sum(answer.weights[part] * e for part, e in answer.parts.items())))
    return {part: answer.weights[part] * float(e @ target) / length for part, e in answer.parts.items()}


def _parts(answer: Answer, service: Service) -> str:
    """Return a table of what each part of a blended query adds to the first hits; "" for a plain query."""
    if len(answer.parts) < 2:
        return ""
    rows = ""
    for modality in _NOUNS:
        for hit in answer.hits.get(modality, [])[:_HITS]:
            values = contributions(answer, service, hit)
            name = escape(str(hit.item.get("caption") or hit.item.get("text") or ""))
            rows += (
                f'<tr><th scope="row">{name}</th>'
                + "".join(f"<td>{_signed_bar(value, part)}</td>" for part, value in values.items())
                + f"<td>{hit.similarity:.2f}</td></tr>"
            )
    heads = "".join(f'<th scope="col">{_PARTS[part]} × {answer.weights[part]:g}</th>' for part in answer.parts)
    return (
        '<h2>What each part adds</h2><div class="fm-scroll" tabindex="0" role="region" '
        'aria-label="What each part of the query adds"><table class="fm-parts"><thead><tr><th scope="col">result</th>'
        f'{heads}<th scope="col">similarity</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _signed_bar(value: float, part: str) -> str:
    width = 50 * min(abs(value), 1.0)
    left = 50.0 if value >= 0 else 50 - width
    return (
        f'<span class="fm-signed" aria-hidden="true"><i class="fm-part-{part}" '
        f'style="left:{left:.1f}%;width:{width:.1f}%"></i></span>{value:+.2f}'
    )


def histogram(modality: str, similarities: np.ndarray, hits: Sequence[float]) -> str:
    """Draw a histogram of similarities as SVG, with the hits marked.

    Args:
        modality: Of the items.
        similarities: To every item, shape (N,), N >= 1.
        hits: Similarities of the hits shown, nearest first, at least one.
    """
    low, high = float(similarities.min()), max(float(similarities.max()), float(similarities.min()) + 1e-6)
    counts, _ = np.histogram(similarities, bins=_BINS, range=(low, high))
    heights = 60 * np.sqrt(counts / counts.max())  # the square root keeps the few at the right visible
    bars = "".join(
        f'<rect x="{4 * i}" y="{64 - height:.1f}" width="3.4" height="{height:.1f}"/>'
        for i, height in enumerate(heights)
        if height
    )
    reach = 4 * _BINS
    marks = "".join(
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="58" y2="72"/>'
        for x in (reach * (hit - low) / (high - low) for hit in hits)
    )
    mean, spread = float(similarities.mean()), float(similarities.std())
    away = (hits[0] - mean) / spread if spread > 1e-9 else 0.0
    summary = (
        f"{len(similarities):,} {_NOUNS.get(modality, modality)}: similarity {mean:.2f} on average and "
        f"{hits[0]:.2f} for the best match ({away:.1f} standard deviations higher)"
    )
    return (
        f'<figure class="fm-plot"><svg viewBox="0 0 {reach} 84" role="img" aria-label="{summary}">'
        f'<g class="fm-all">{bars}</g><g class="fm-hits">{marks}</g>'
        f'<text x="0" y="83">{low:.2f}</text><text x="{reach}" y="83" text-anchor="end">{high:.2f}</text></svg>'
        f"<figcaption>{summary}</figcaption></figure>"
    )
