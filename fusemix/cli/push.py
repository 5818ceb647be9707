"""``fusemix push``: a checkpoint, decoder, conditioner or index -> the Hugging Face Hub."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from fusemix.cli import flags, terminal
from fusemix.cli.command import entry, guarded

if TYPE_CHECKING:
    from fusemix.model.hub import Upload


@guarded(stopped="Stopped; run the same command again.")
def push(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", help="A checkpoint, a small decoder, a conditioner, or an index, which becomes a dataset."
        ),
    ],
    repo_id: Annotated[
        str, typer.Argument(metavar="OWNER/NAME", help="The repository on the Hub; it is created if absent.")
    ],
    checkpoint: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER|ID",
            help="Of an index without a card: the checkpoint that made it, whose encoders the card then names.",
            show_default="checkpoints/default of the clone, if that one made it",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be sent, and send nothing.")] = False,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[
        str | None, typer.Option(metavar="BRANCH", help="The branch to write to.", show_default="main")
    ] = None,
) -> None:
    """Send a folder of ours to the Hugging Face Hub, or list what would be sent and why anything is refused.

    Example: fusemix push checkpoints/mine owner/mine --dry-run

    Example: fusemix push my-index owner/my-index --checkpoint checkpoints/mine --private
    """
    from fusemix.model.adapters import FusionModel
    from fusemix.model.hub import Upload, check_repo_id, kind_of

    check_repo_id(repo_id)
    kind = kind_of(folder)
    upload = Upload.of(folder, card=_card(folder, kind.name, repo_id.split("/")[1], checkpoint))
    if kind.name == "checkpoint":
        FusionModel.from_pretrained(folder)  # do not send a checkpoint that does not load
    terminal.result(f"{folder} is {kind} and goes into a {kind.repo_type} repository.")
    terminal.show(tabulate(upload, repo_id))
    terminal.result(f"card: {json.dumps(upload.card, ensure_ascii=False)}")
    if "license" not in upload.card:
        terminal.result("The card names no licence; the Hub will show none.")
    if dry_run:
        terminal.result("Dry run: nothing was sent.")
    else:
        terminal.result(upload.push(repo_id, private=private, revision=revision))


def _card(folder: Path, kind: str, name: str, checkpoint: str | None) -> str | None:
    """Load an index or a conditioner, which must not be sent if it does not, and write its card."""
    if kind == "conditioner":
        from fusemix.generation.bridges import Conditioner
        from fusemix.generation.card import conditioner_card

        return conditioner_card(name, Conditioner.load(folder))
    if kind != "index":
        return None
    from fusemix.files import read_json
    from fusemix.model.adapters import FusionModel
    from fusemix.search.card import index_card
    from fusemix.search.index import EmbeddingIndex

    made_by = read_json(folder / "index.json").get("model_identity")
    shipped = flags.REPOSITORY / "checkpoints/default"
    model = FusionModel.from_pretrained(checkpoint or shipped) if checkpoint or shipped.is_dir() else None
    if checkpoint is None and model is not None and model.identity != made_by:
        model = None
    index = EmbeddingIndex.load(folder, model_identity=model.identity if model else made_by)
    return index_card(name, index, folder, model.config if model else None)


def tabulate(upload: Upload, repo_id: str) -> Table:
    """Tabulate the files and their sizes."""
    table = Table(title=f"{upload.folder} -> {repo_id}", title_justify="left", title_style="bold")
    table.add_column("file", overflow="fold")
    table.add_column("bytes", justify="right")
    for name, size in upload.files.items():
        table.add_row(name, f"{size:,}")
    table.add_row(f"{len(upload.files)} files", f"{upload.n_bytes:,}", style="bold")
    return table


main = entry("push", push)

if __name__ == "__main__":
    sys.exit(main())
