"""``fusemix search``: words, a picture or a sound -> the nearest items of an index."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from fusemix.cli import flags, terminal
from fusemix.cli.command import entry, guarded, named_once

if TYPE_CHECKING:
    from fusemix.search.fusion import FusedHit
    from fusemix.search.index import Hit

_DEFAULT = str(flags.REPOSITORY / "demo/index")
QUERY = "What to search with (one of them)"


@guarded(stopped="Stopped.")
def search(
    checkpoint: flags.Checkpoint,
    text: Annotated[
        str | None,
        typer.Option(metavar="WORDS", help="Words to look for, at most 2,000 characters.", rich_help_panel=QUERY),
    ] = None,
    image: Annotated[str | None, typer.Option(metavar="FILE", help="A picture file.", rich_help_panel=QUERY)] = None,
    audio: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="A sound file of at most 10 minutes.", rich_help_panel=QUERY),
    ] = None,
    index: Annotated[
        str,
        typer.Option(
            metavar="DIR|ID|ADDRESS",
            help="The index: a folder, a dataset on the Hub as owner/name or owner/name@revision, or "
            "postgresql://user@host:port/database/collection.",
            show_default="demo/index of the clone",
        ),
    ] = _DEFAULT,
    folder: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="A folder of pictures and sounds to search: its index is brought up to date first. It is kept in the "
            "cache, or in --index.",
        ),
    ] = None,
    encoders: flags.Encoders = None,
    top_k: Annotated[int, typer.Option(metavar="K", help="How many hits to show of each kind of item.")] = 10,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Search only items with this metadata, such as licence=CC0-1.0."),
    ] = None,
    fuse: Annotated[
        bool,
        typer.Option(
            "--fuse",
            help="Show one list of items, ranked by their picture, caption and sound together, as the app does.",
        ),
    ] = False,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the hits to this JSON file.")] = None,
) -> None:
    """Find the pictures, sounds and captions of an index that are nearest to words, a picture or a sound.

    Example: fusemix search --checkpoint checkpoints/default --text "a dog running on the grass" --top-k 5

    Example: fusemix search --checkpoint checkpoints/default --folder ~/Photos --text "children on a beach"
    """
    given = {"text": text, "image": image, "audio": audio}
    query = {modality: value for modality, value in given.items() if value is not None}
    if len(query) != 1:
        raise ValueError(f"Give one of --text, --image and --audio to search with, got {len(query)}.")
    if top_k < 1:
        raise ValueError(f"top_k must be >= 1, got {top_k}.")
    folders = named_once(encoders or [], flags.FOLDERS)
    if folder is not None:
        index = str(_up_to_date(checkpoint, folder, index, folders))
    conditions = named_once(where or [], "--where KEY=VALUE, such as licence=CC0-1.0", empty=True)
    from fusemix.files import write_json
    from fusemix.search.retriever import Retriever

    retriever = Retriever.from_pretrained(checkpoint, index, encoders=folders)
    started = time.perf_counter()
    if fuse:
        items = retriever.search(text=text, image=image, audio=audio, top_k=top_k, where=conditions, fuse=True)
    else:
        results = retriever.search(text=text, image=image, audio=audio, top_k=top_k, where=conditions)
    elapsed = time.perf_counter() - started
    if json:
        write_json(json, items_to_json(query, items) if fuse else to_json(query, results))
    for table in [tabulate_items(items)] if fuse else [tabulate(*found) for found in results.items()]:
        terminal.show(table)
    if conditions and not (items if fuse else any(results.values())):
        asked = " and ".join(f"{key}={value}" for key, value in conditions.items())
        terminal.note(f"No item has {asked}; the values are compared whole, with their capitals.")
    terminal.result(f"{elapsed * 1000:.0f} ms, {len(retriever.index):,} items")


def _up_to_date(checkpoint: str, folder: Path, index: str, encoders: dict[str, str]) -> Path:
    """Bring the index of a folder of files up to date, and return where it lies."""
    from fusemix.cli.index import open_folder, told, update

    place = Path(index)
    if index == _DEFAULT:
        name = hashlib.sha256(f"{checkpoint}\0{folder.resolve()}".encode()).hexdigest()[:12]
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        place = cache / "fusemix" / "folders" / f"{folder.resolve().name}-{name}"
    living = open_folder(checkpoint, folder, place, encoders)
    terminal.note(f"{folder}: {told(update(living))}")
    if not len(living):
        raise ValueError(f"{folder} holds no picture and no sound that can be searched; choose another folder.")
    return place


def tabulate(modality: str, hits: list[Hit]) -> Table:
    """Tabulate the hits of one modality."""
    table = Table(title=modality, title_justify="left", title_style="bold")
    table.add_column("rank", justify="right")
    table.add_column("similarity", justify="right")
    if likely := any(hit.probability is not None for hit in hits):
        table.add_column("right", justify="right")
    table.add_column("item")
    table.add_column("source, licence", style="dim")
    for hit in hits:
        label = hit.item.get("caption") or hit.item.get("text", "")
        second = f" at {hit.item['start_s']:.0f} s" if "start_s" in hit.item else ""
        place = f"\n{hit.item['path']}{second}" if "path" in hit.item else ""
        origin = ", ".join(filter(None, (hit.item.get("source"), hit.item.get("licence"))))
        chance = [f"{100 * (hit.probability or 0):.0f} %"] if likely else []
        table.add_row(str(hit.rank), f"{hit.similarity:.3f}", *chance, label + place, origin)
    return table


def tabulate_items(found: list[FusedHit]) -> Table:
    """Tabulate the items of a fused search."""
    table = Table(title="items", title_justify="left", title_style="bold")
    table.add_column("rank", justify="right")
    table.add_column("found by")
    table.add_column("item")
    table.add_column("source, licence", style="dim")
    for hit in found:
        item = hit.item
        place = f"\n{item['path']}" if "path" in item else ""
        origin = ", ".join(filter(None, (item.get("source"), item.get("licence"))))
        table.add_row(str(hit.rank), hit.found_by, (item.get("caption") or item.get("text", "")) + place, origin)
    return table


def items_to_json(query: dict[str, str], found: list[FusedHit]) -> dict[str, Any]:
    """Convert the items of a fused search to JSON values: rank, score, best face and metadata."""
    items = [{"rank": hit.rank, "score": hit.score, "found_by": hit.found_by, **hit.item} for hit in found]
    return {"query": query, "items": items}


def to_json(query: dict[str, str], results: dict[str, list[Hit]]) -> dict[str, Any]:
    """Convert hits to JSON values: rank, similarity, probability (null without a calibration) and metadata."""
    hits = {
        modality: [
            {"rank": hit.rank, "similarity": hit.similarity, "probability": hit.probability, **hit.item}
            for hit in found
        ]
        for modality, found in results.items()
    }
    return {"query": query, "hits": hits}


main = entry("search", search)

if __name__ == "__main__":
    sys.exit(main())
