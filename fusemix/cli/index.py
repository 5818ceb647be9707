"""``fusemix index``: a table of pairs -> a search index, in a folder or on a server."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fusemix.cli import flags, terminal
from fusemix.cli.command import entry, guarded, named_once

if TYPE_CHECKING:
    from fusemix.model.adapters import FusionModel
    from fusemix.search.index import EmbeddingIndex
    from fusemix.search.postgres_index import PostgresIndex


@guarded(stopped="Stopped; no index was written to a folder, and one on a server is unfinished. Run the command again.")
def index(
    checkpoint: flags.Checkpoint,
    pairs: flags.Pairs,
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
        Literal["float32", "float16"],
        typer.Option(
            help="The type of the embeddings in the folder; float16 takes half the disk and moves a similarity by "
            "less than a thousandth."
        ),
    ] = "float32",
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
    """Embed every picture, sound and caption of a table and keep them as a search index.

    Example: fusemix index --checkpoint checkpoints/mine --pairs pairs.csv --out my-index
    """
    if (out is None) == (server is None):
        raise ValueError("Give --out for a folder or --index for a server: one of them.")
    if server is not None and not server.startswith(("postgresql:", "postgres:")):
        raise ValueError(
            f"--index is the address of a server, postgresql://..., not {server!r}; --out is for a folder."
        )
    if server is not None and dtype != "float32":
        raise ValueError("--dtype is that of an index folder (--out); PostgreSQL chooses its own. Drop it.")
    if server is not None and bank:
        raise ValueError("Hubs are corrected in an index folder (--out), not in PostgreSQL; drop --bank.")
    from fusemix.data.pairs import PairTable
    from fusemix.files import check_place
    from fusemix.model.adapters import FusionModel
    from fusemix.search.build import correct_hubs, fill
    from fusemix.search.index import EmbeddingIndex
    from fusemix.search.retriever import load_encoders

    table = PairTable.read(pairs)
    model = FusionModel.from_pretrained(checkpoint)
    loaded = load_encoders(model.config, encoders=named_once(encoders or [], flags.FOLDERS))
    if out is not None:
        check_place(out)
    if not any(table.has(modality) for modality in loaded):
        raise ValueError(f"{pairs} has no filled cell in {', '.join(loaded)}, what {checkpoint} understands.")
    built = _begin(server, model, pairs.parent)
    with terminal.bar() as bar:
        for modality, encoder in loaded.items():
            task = bar.add_task(modality, total=None)

            def report(done: int, total: int, task: int = task) -> None:
                bar.update(task, completed=done, total=total)  # type: ignore[arg-type]

            fill(built, model, encoder, table, batch_size=batch_size, report=report)
    if out is not None and isinstance(built, EmbeddingIndex):
        if bank:
            correct_hubs(built, model, bank, modalities=correct or (), neighbours=neighbours, weight=weight)
        built.save(out, dtype=dtype)
    elif not isinstance(built, EmbeddingIndex):
        built.save()
        built.close()
    counts = ", ".join(f"{count:,} {modality}" for modality, count in built.counts.items())
    terminal.note(f"{out or server}: {counts} items, for the model {model.identity[:12]}...")
    terminal.note(table.summary())


def _begin(server: str | None, model: FusionModel, root: Path) -> EmbeddingIndex | PostgresIndex:
    """Create an empty index, in memory or on the server."""
    if server is None:
        from fusemix.search.index import EmbeddingIndex

        return EmbeddingIndex(model.config.embed_dim, model_identity=model.identity, root=root)
    from fusemix.search.postgres_index import PostgresIndex

    return PostgresIndex.create(server, model.config.embed_dim, model_identity=model.identity)


main = entry("index", index)

if __name__ == "__main__":
    sys.exit(main())
