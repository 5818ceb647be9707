"""``fusemix push``: a checkpoint folder -> the Hugging Face Hub."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from fusemix.cli import terminal
from fusemix.cli.command import entry, guarded

if TYPE_CHECKING:
    from fusemix.model.hub import Upload


@guarded(stopped="Stopped; run the same command again.")
def push(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="A checkpoint of fusemix train, or a small decoder.")
    ],
    repo_id: Annotated[
        str, typer.Argument(metavar="OWNER/NAME", help="The repository on the Hub; it is created if absent.")
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be sent, and send nothing.")] = False,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[
        str | None, typer.Option(metavar="BRANCH", help="The branch to write to.", show_default="main")
    ] = None,
) -> None:
    """Send a checkpoint folder to the Hugging Face Hub, or list what would be sent and why anything is refused.

    Example: fusemix push checkpoints/mine owner/mine --dry-run
    """
    from fusemix.model.adapters import FusionModel
    from fusemix.model.hub import Upload, check_repo_id

    check_repo_id(repo_id)
    upload = Upload.of(folder)
    if "model_index.json" not in upload.files:
        FusionModel.from_pretrained(folder)  # do not send a checkpoint that does not load
    terminal.show(tabulate(upload, repo_id))
    terminal.result(f"card: {json.dumps(upload.card, ensure_ascii=False)}")
    if "license" not in upload.card:
        terminal.result("The card names no licence; the Hub will show none.")
    if dry_run:
        terminal.result("Dry run: nothing was sent.")
    else:
        terminal.result(upload.push(repo_id, private=private, revision=revision))


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
