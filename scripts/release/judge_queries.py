"""Share of satisfying results for sixty fixed queries, by separate lists and by fused items.

    python scripts/release/judge_queries.py --json docs/results/queries.json

``tests/search/queries.json`` lists for each query the words of a satisfying item's captions and title. Spoken queries
are synthesised (Debian packages flite and espeak-ng); a picture's own item is left out. "Before" is the list of
pictures alone, found by their pixels.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from demo.query import Query
from demo.service import Answer, Service
from fusemix.files import write_json

ROOT = Path(__file__).resolve().parents[2]
QUERIES = ROOT / "tests/search/queries.json"
FIRST = 6  # results that are judged, and how many of them should satisfy:
ENOUGH = 3


def ask(service: Service, query: dict[str, str], folder: Path) -> Answer:
    """Return the answer to one query, as the page would get it."""
    if "text" in query:
        return service.search(Query(text=query["text"]), top_k=2 * FIRST)
    if "say" in query:
        return service.search(Query(audio=str(speak(query, folder))), top_k=2 * FIRST)
    row = service.row_of("image", query["picture"])
    if row is None:
        raise ValueError(f"The index holds no picture {query['picture']!r}, which {QUERIES} asks for.")
    path = service.path_of(service.items("image")[row])
    return service.search(Query.of_file("image", str(path), query["picture"]), top_k=2 * FIRST)


def speak(query: dict[str, str], folder: Path) -> Path:
    """Synthesise the query's sentence in its voice, as a WAV file."""
    tool, voice = query["voice"].split(":")
    out = folder / "spoken.wav"
    if tool == "flite":
        command = ["flite", "-voice", voice, "-t", query["say"], "-o", str(out)]
    else:
        command = ["espeak-ng", "-v", voice, "-w", str(out), "--", query["say"]]
    subprocess.run(command, check=True, capture_output=True)
    return out


def judge(query: dict[str, str], answer: Answer) -> dict[str, Any]:
    """Judge the first results of the separate lists and of the fused items."""
    pattern = re.compile(rf"\b({query['pleases']})\b", re.IGNORECASE)
    before = [[hit.item] for hit in answer.hits["image"][:FIRST]]
    now = [[hit.item for hit in found.faces.values()] for found in answer.items[:FIRST]]
    result: dict[str, Any] = {"asked": query.get("text") or query.get("say") or query["picture"]}
    if answer.heard:
        result["heard"] = answer.heard
    for name, found in (("before", before), ("now", now)):
        pleases = [
            any(pattern.search(f"{i.get('caption', '')} {i.get('title', '')}") for i in faces) for faces in found
        ]
        result[name] = {
            "results": [faces[0].get("caption", "") for faces in found],
            "first": bool(pleases and pleases[0]),
            "enough": sum(pleases) >= ENOUGH,
        }
    return result


def main(argv: list[str] | None = None) -> int:
    """Judge; 0 on success, 2 when an input is at fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default=str(ROOT / "checkpoints/default"))
    parser.add_argument("--index", default=str(ROOT / "demo/index"))
    parser.add_argument("--json", type=Path, help="write every query's results here")
    args = parser.parse_args(argv)
    queries = json.loads(QUERIES.read_text(encoding="utf-8"))["queries"]
    try:
        service = Service.from_pretrained(args.checkpoint, args.index)
        with tempfile.TemporaryDirectory() as folder:
            judged = [judge(query, ask(service, query, Path(folder))) for query in queries]
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        Console(stderr=True).print(str(error), style="red", markup=False)
        return 2
    kinds = ["sentences and words"] * 40 + ["typos"] * 8 + ["spoken"] * 6 + ["pictures"] * 6
    table, shares = Table(title=f"{len(judged)} queries: a pleasing first result, {ENOUGH} in the first {FIRST}"), {}
    for heading in ("queries", "count", "first, before", "first, now", "three, before", "three, now"):
        table.add_column(heading)
    for kind in ("all", *dict.fromkeys(kinds)):
        mine = [result for result, own in zip(judged, kinds, strict=True) if kind in ("all", own)]
        counts = [
            sum(result[when][what] for result in mine) for what in ("first", "enough") for when in ("before", "now")
        ]
        shares[kind] = dict(zip(("first_before", "first_now", "three_before", "three_now"), counts, strict=True))
        shares[kind]["queries"] = len(mine)
        table.add_row(kind, str(len(mine)), *(f"{100 * count / len(mine):.0f} %" for count in counts))
    Console().print(table)
    if args.json:
        write_json(
            args.json, {"command": "python scripts/release/judge_queries.py", "shares": shares, "queries": judged}
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
