"""``fusemix deploy-space``: this checkout -> a running Hugging Face Space."""

from __future__ import annotations

import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from fusemix.cli import terminal
from fusemix.cli.command import entry, guarded, named_once
from fusemix.cli.flags import REPOSITORY
from fusemix.space import ZERO_GPU

if TYPE_CHECKING:
    from fusemix.space import SpaceFolder


@guarded(stopped="Stopped; run the same command again, what was sent is not sent twice.")
def deploy_space(
    repo_id: Annotated[
        str, typer.Argument(metavar="OWNER/NAME", help="The Space on the Hub; it is created if absent.")
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and list what would be sent, and send nothing.")
    ] = False,
    private: Annotated[bool, typer.Option("--private", help="Make a new Space private.")] = False,
    hardware: Annotated[
        str, typer.Option(metavar="NAME", help="The machine; a free account has zero-a10g (ZeroGPU) alone.")
    ] = ZERO_GPU,
    variable: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Environment variables of the app, which everyone can read."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Keep the Space's files in this new folder, to try them.")
    ] = None,
) -> None:
    """Make a Hugging Face Space of this checkout: the app, its models and its gallery, nothing else.

    Example: fusemix deploy-space owner/name --dry-run
    """
    from fusemix.model.hub import check_repo_id
    from fusemix.space import SpaceFolder, check_account, check_hardware, deploy

    check_repo_id(repo_id)
    check_hardware(hardware)
    variables = named_once(variable or [], "--variable NAME=VALUE")
    space = SpaceFolder.of(REPOSITORY)
    values = space.front_matter
    terminal.result(f"{values['title']}: {values['short_description']}")
    terminal.result(f"Gradio {values['sdk_version']}, Python {values['python_version']}, {values['license']}")
    terminal.show(tabulate(space, repo_id))
    if not dry_run:
        check_account(repo_id)
    kept = None if out is None else space.write(out)
    if kept is not None:
        terminal.result(f"The Space's files are in {kept}.")
    if dry_run:
        terminal.result("Dry run: nothing was sent.")
        return
    with tempfile.TemporaryDirectory(prefix="fusemix-space-") as temporary:
        folder = kept or space.write(temporary)
        address = deploy(folder, repo_id, hardware=hardware, private=private, variables=variables)
    terminal.result(f"{address} is being built on {hardware}; the first start takes some minutes.")


def tabulate(space: SpaceFolder, repo_id: str) -> Table:
    """Files and megabytes by top folder."""
    folders: dict[str, list[int]] = defaultdict(list)
    for name, size in space.sizes.items():
        top, slash, _ = name.partition("/")
        folders[top + slash].append(size)
    table = Table(title=f"-> {repo_id}", title_justify="left", title_style="bold")
    table.add_column("folder", overflow="fold")
    table.add_column("files", justify="right")
    table.add_column("MB", justify="right")
    for folder, sizes in sorted(folders.items()):
        table.add_row(folder, f"{len(sizes):,}", f"{sum(sizes) / 1e6:,.2f}")
    everything = space.sizes.values()
    table.add_row("together", f"{len(everything):,}", f"{sum(everything) / 1e6:,.2f}", style="bold")
    return table


main = entry("deploy-space", deploy_space)

if __name__ == "__main__":
    sys.exit(main())
