"""The results of an audit as a CSV of every row and one static page with thumbnails."""

from __future__ import annotations

import base64
import csv
import io
from html import escape
from pathlib import Path

import pandas as pd
from PIL import Image

from fusemix.data.pairs import PairTable
from fusemix.datasets.cells import FILE_COLUMNS
from fusemix.evaluation.audit import DISAGREE, EMPTY, HUBS, LEAK, Audit
from fusemix.files import write_atomic
from fusemix.media import MediaError, load_image

SHOWN = 60  # rows of each kind on the page; the CSV holds all
SIDE = 140  # pixels of a thumbnail
_STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}
:root{color-scheme:light dark}
ul{display:grid;grid-template-columns:repeat(auto-fill,minmax(11rem,1fr));gap:1rem;padding:0;list-style:none}
li{border:1px solid #8885;border-radius:8px;padding:.6rem;overflow-wrap:anywhere}img{display:block;margin:auto}
small{opacity:.75;display:block}"""


def write_csv(path: Path, audit: Audit, rows: pd.DataFrame, table: PairTable | None, names: tuple[str, str]) -> None:
    """Write a line for every row, the worst first: rank, row, agreement, reasons, group, split and both cells.

    Args:
        path: The file.
        audit: What was found.
        rows: The rows that were audited, in its order: columns row, group, split.
        table: Their table, if it is known.
        names: Of the modalities.
    """

    def write(temporary: Path) -> None:
        with open(temporary, "w", newline="", encoding="utf-8") as handle:
            out = csv.writer(handle)
            out.writerow(["rank", "row", "agreement", "reasons", "group", "split", *names])
            for rank, number in enumerate(audit.order.tolist(), start=1):
                row = _number(rows, number)
                score, why = f"{audit.score[number]:.3f}", "; ".join(audit.reasons.get(number, []))
                cells = [_cell(table, name, row) for name in names]
                out.writerow([rank, row, score, why, rows["group"].iat[number], rows["split"].iat[number], *cells])

    write_atomic(path, write)


def write_page(path: Path, audit: Audit, rows: pd.DataFrame, table: PairTable | None, names: tuple[str, str]) -> None:
    """Write one HTML file that needs no other: the worst rows of every kind; arguments as for :func:`write_csv`."""
    parts = []
    for kind in (EMPTY, DISAGREE, LEAK, HUBS):
        found = [n for n in audit.order.tolist() if any(why.startswith(kind) for why in audit.reasons.get(n, []))]
        if found:
            cards = "".join(_card(n, kind, audit, rows, table, names) for n in found[:SHOWN])
            more = f", the worst {SHOWN}" if len(found) > SHOWN else ""
            parts.append(f"<h2>{escape(kind.capitalize())}: {len(found):,}{more}</h2><ul>{cards}</ul>")
    html = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Audit of pairs</title><style>{_STYLE}</style>'
        f"<h1>Audit of pairs</h1><p>{escape(audit.sentence())}</p>{''.join(parts)}</html>"
    )
    write_atomic(path, lambda temporary: temporary.write_text(html, encoding="utf-8"))


def _card(
    number: int, kind: str, audit: Audit, rows: pd.DataFrame, table: PairTable | None, names: tuple[str, str]
) -> str:
    row = _number(rows, number)
    shown = [_thumbnail(table, name, row) or f"<p>{escape(_cell(table, name, row))}</p>" for name in names]
    why = next(why for why in audit.reasons[number] if why.startswith(kind)).partition(": ")[2]
    place = table.location(row) if table else f"row {row}"
    return f"<li>{''.join(shown)}<small>{escape(why)}</small><small>{escape(place)}</small></li>"


def _number(rows: pd.DataFrame, place: int) -> int:
    return int(rows["row"].to_numpy()[place])


def _cell(table: PairTable | None, name: str, row: int) -> str:
    return str(table.frame[name].iat[row]) if table is not None and name in table.frame else ""


def _thumbnail(table: PairTable | None, name: str, row: int) -> str:
    """Return an image as an inline JPEG; empty if the cell is none or cannot be read."""
    if table is None or name not in FILE_COLUMNS or not _cell(table, name, row):
        return ""
    try:
        picture = load_image(table.value(name, row))
    except MediaError:
        return ""
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=80)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img src="data:image/jpeg;base64,{data}" alt="{escape(_cell(table, name, row), quote=True)}">'


def joined_rows(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Join the rows of two stores of one table: row, group, split, first, second (item numbers)."""
    return first.rename(columns={"item": "first"}).merge(
        second[["row", "item"]].rename(columns={"item": "second"}), on="row"
    )
