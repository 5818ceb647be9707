"""``fusemix index``: a table of pairs, or a folder of files -> a search index, in a folder or on a server."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fusemix.cli import flags, terminal
from fusemix.cli.command import Command, entry, guarded, named_once

if TYPE_CHECKING:
    from fusemix.data.pairs import PairTable
    from fusemix.model.adapters import FusionModel
    from fusemix.search.index import EmbeddingIndex
    from fusemix.search.living import Changes, FolderIndex
    from fusemix.search.postgres_index import PostgresIndex


@guarded(stopped="Stopped; no index was written to a folder, and one on a server is unfinished. Run the command again.")
def index(
    checkpoint: flags.Checkpoint,
    files: Annotated[
        Path | None,
        typer.Argument(
            metavar="[DIR]",
            help="A folder of pictures and sounds, instead of --pairs: only what is new, changed, moved or deleted "
            "since the last time is worked on.",
            show_default=False,
        ),
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(metavar="TABLE", help="The table of pairs: a .csv, .tsv, .jsonl or .parquet file."),
    ] = None,
    watch: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="With DIR: go on looking for changes, every so many seconds (2)."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The index folder to write; give this or --index.")
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(
            "--index",
            metavar="ADDRESS",
            help="The collection of a server to write instead: postgresql://user@host:port/database/collection "
            "(docs/scale-out.md).",
        ),
    ] = None,
    dtype: Annotated[
        Literal["float32", "float16", "int8"],
        typer.Option(
            help="The type of the embeddings in the folder; float16 takes half the disk and moves a similarity by "
            "less than a thousandth, int8 a quarter."
        ),
    ] = "float32",
    dims: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Keep only the N principal directions of the embeddings; docs/scale-out.md says what that costs.",
            show_default="all",
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(metavar="ITEMS", help="How many items go through an encoder at once.")
    ] = 32,
    encoders: flags.Encoders = None,
    bank: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR",
            help="A store of latents of the kind that will be asked; its training split counts. Several are joined.",
            rich_help_panel=flags.HUBS,
        ),
    ] = None,
    neighbours: flags.Neighbours = flags.NEIGHBOURS,
    weight: flags.Weight = flags.WEIGHT,
    correct: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODALITY ...",
            help="The modalities whose items are corrected.",
            show_default="those that no bank is of",
            rich_help_panel=flags.HUBS,
        ),
    ] = None,
) -> None:
    """Embed every picture, sound and caption of a table, or every file of a folder, and keep them as a search index.

    A folder's index follows the folder: run the command again, or let it watch. A long sound is kept by windows of 15
    seconds. Killed at any moment, it goes on from what it had saved.

    Example: fusemix index --checkpoint checkpoints/mine --pairs pairs.csv --out my-index

    Example: fusemix index photos --checkpoint checkpoints/default --out photos-index --watch
    """
    folders = named_once(encoders or [], flags.FOLDERS)
    if (files is None) == (pairs is None):
        raise ValueError("Give a folder of files or a table with --pairs: one of them.")
    if files is not None:
        if out is None or server is not None or bank:
            raise ValueError("The index of a folder of files is a folder: give --out, without --index and --bank.")
        if dims is not None or dtype == "int8":
            raise ValueError("An index that grows is kept whole, as float32 or float16; drop --dims and --dtype int8.")
        _follow(checkpoint, files, out, watch, dtype, folders)
        return
    if watch is not None:
        raise ValueError("--watch follows a folder of files; a table is indexed again by the same command.")
    assert pairs is not None
    _check_target(out, server, dtype=dtype, dims=dims, bank=bank)
    from fusemix.data.pairs import PairTable
    from fusemix.model.adapters import FusionModel
    from fusemix.search.build import correct_hubs
    from fusemix.search.index import EmbeddingIndex

    table = PairTable.read(pairs)
    model = FusionModel.from_pretrained(checkpoint)
    if not any(table.has(modality) for modality in model.config.encoders):
        understood = ", ".join(model.config.encoders)
        raise ValueError(f"{pairs} has no filled cell in {understood}, what {checkpoint} understands.")
    built = _begin(server, model, pairs.parent)
    _fill(built, model, table, batch_size, folders)
    if out is not None and isinstance(built, EmbeddingIndex):
        if bank:
            correct_hubs(built, model, bank, modalities=correct or (), neighbours=neighbours, weight=weight)
        built.save(out, dtype=dtype, dims=dims)
    elif not isinstance(built, EmbeddingIndex):
        built.save()
        built.close()
    counts = ", ".join(f"{count:,} {modality}" for modality, count in built.counts.items())
    terminal.note(f"{out or server}: {counts} items, for the model {model.identity[:12]}...")
    terminal.note(table.summary())


def _check_target(out: Path | None, server: str | None, *, dtype: str, dims: int | None, bank: Any) -> None:
    """Check that a table's index goes to one place, which can be written to and takes the settings."""
    from fusemix.files import check_place

    if (out is None) == (server is None):
        raise ValueError("Give --out for a folder or --index for a server: one of them.")
    if out is not None:
        check_place(out)
        return
    assert server is not None
    if not server.startswith(("postgresql:", "postgres:")):
        raise ValueError(
            f"--index is the address of a server, postgresql://..., not {server!r}; --out is for a folder."
        )
    if dtype != "float32" or dims is not None:
        raise ValueError("--dtype and --dims are of an index folder (--out); PostgreSQL chooses its own. Drop them.")
    if bank:
        raise ValueError("Hubs are corrected in an index folder (--out), not in PostgreSQL; drop --bank.")


def _fill(
    built: EmbeddingIndex | PostgresIndex,
    model: FusionModel,
    table: PairTable,
    batch_size: int,
    folders: Mapping[str, str],
) -> None:
    """Encode, embed and add everything in a table, with a progress bar."""
    from fusemix.search.build import fill
    from fusemix.search.retriever import load_encoders

    loaded = load_encoders(model.config, encoders=folders)
    with terminal.bar() as bar:
        for modality, encoder in loaded.items():
            task = bar.add_task(modality, total=None)

            def report(done: int, total: int, task: int = task) -> None:
                bar.update(task, completed=done, total=total)  # type: ignore[arg-type]

            fill(built, model, encoder, table, batch_size=batch_size, report=report)


def _follow(
    checkpoint: str, files: Path, out: Path, watch: float | None, dtype: Any, encoders: Mapping[str, str]
) -> None:
    """Bring a folder's index up to date, once or until Ctrl-C."""
    living = open_folder(checkpoint, files, out, encoders, dtype=dtype)
    changes = update(living)
    terminal.result(f"{out}: {told(changes)}")
    if watch is not None:
        terminal.note(f"Watching {files}; Ctrl-C ends it.")
        living.watch(lambda found: terminal.result(told(found)), every_s=watch, should_stop=lambda: False)


def open_folder(
    checkpoint: str, files: Path, out: Path, encoders: Mapping[str, str], *, dtype: Any = "float16"
) -> FolderIndex:
    """Open the index of a folder of files, with the encoders of pictures and sounds only."""
    from fusemix.encoders.recorded import load_recorded
    from fusemix.model.adapters import FusionModel
    from fusemix.search.living import KINDS, FolderIndex

    model = FusionModel.from_pretrained(checkpoint)
    recorded = model.config.encoders
    loaded = {m: load_recorded(m, recorded, source=encoders.get(m)) for m in KINDS if m in recorded}
    return FolderIndex(model, loaded, files, out, dtype=dtype)


def update(living: FolderIndex) -> Changes:
    """Update a folder's index with a progress bar, and name the files that were left out."""
    with terminal.bar() as bar:
        task = bar.add_task("files", total=None)
        changes = living.update(report=lambda done, total: bar.update(task, completed=done, total=total))
    for path, reason in changes.skipped.items():
        terminal.note(f"left out {path}: {reason}")
    return changes


def told(changes: Changes) -> str:
    """Say what an update found."""
    counts = {"new": changes.new, "changed": changes.changed, "moved": changes.moved, "deleted": changes.deleted}
    said = ", ".join(f"{number:,} {what}" for what, number in counts.items() if number) or "nothing new"
    left = f", {len(changes.skipped):,} left out" if changes.skipped else ""
    return f"{said}, {changes.same:,} unchanged{left}; {changes.encoded:,} files encoded"


def _begin(server: str | None, model: FusionModel, root: Path) -> EmbeddingIndex | PostgresIndex:
    """Create an empty index, in memory or on the server."""
    if server is None:
        from fusemix.search.index import EmbeddingIndex

        return EmbeddingIndex(model.config.embed_dim, model_identity=model.identity, root=root)
    from fusemix.search.postgres_index import PostgresIndex

    return PostgresIndex.create(server, model.config.embed_dim, model_identity=model.identity)


class IndexCommand(Command):
    """``--watch`` alone means every two seconds."""

    bare: Mapping[str, str] = {"--watch": "2"}  # noqa: RUF012


main = entry("index", index, IndexCommand)

if __name__ == "__main__":
    sys.exit(main())
