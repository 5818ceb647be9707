"""The command ``fusemix`` with all its subcommands; heavy libraries are imported when a command runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from fusemix import __version__
from fusemix.cli import terminal
from fusemix.cli.audit import audit
from fusemix.cli.classify import classify
from fusemix.cli.command import Command, SetCommand, call, help_of
from fusemix.cli.conditioner import conditioner
from fusemix.cli.deploy_space import deploy_space
from fusemix.cli.diagnose import diagnose
from fusemix.cli.ensemble import ensemble
from fusemix.cli.evaluate import evaluate
from fusemix.cli.export import export
from fusemix.cli.extract import extract
from fusemix.cli.generate import GenerateCommand, generate
from fusemix.cli.import_latents import import_latents
from fusemix.cli.index import IndexCommand, index
from fusemix.cli.join import join
from fusemix.cli.move import move
from fusemix.cli.push import push
from fusemix.cli.reproduce import reproduce
from fusemix.cli.search import search
from fusemix.cli.subset import subset
from fusemix.cli.table import table
from fusemix.cli.train import train

OWN, TABLES, MORE = "Your own data, in this order", "Tables, latents and encoders", "Models and experiments"
COMMANDS = {
    OWN: {"extract": extract, "train": train, "evaluate": evaluate, "index": index, "search": search},
    TABLES: {
        "table": table,
        "join": join,
        "subset": subset,
        "import": import_latents,
        "diagnose": diagnose,
        "audit": audit,
        "move": move,
    },
    MORE: {
        "classify": classify,
        "generate": generate,
        "conditioner": conditioner,
        "ensemble": ensemble,
        "export": export,
        "push": push,
        "deploy-space": deploy_space,
        "reproduce": reproduce,
    },
}
KINDS = {"train": SetCommand, "index": IndexCommand, "generate": GenerateCommand}

app = typer.Typer(add_completion=False)
for panel, commands in COMMANDS.items():
    for name, function in commands.items():
        app.command(name, cls=KINDS.get(name, Command), help=help_of(function), rich_help_panel=panel)(function)


def _show_version(wanted: bool) -> None:
    if wanted:
        terminal.result(f"fusemix {__version__}")
        raise typer.Exit


@app.callback()
def fusemix(
    version: bool = typer.Option(False, "--version", help="Show the version and exit.", callback=_show_version),  # noqa: B008
) -> None:
    """Make a multimodal model out of frozen unimodal encoders, on one small machine.

    Each command says more: fusemix train --help
    """


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``fusemix`` on these words, by default those of the process; return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return call(app, words or ["--help"], "fusemix")


if __name__ == "__main__":
    sys.exit(main())
