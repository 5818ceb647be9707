"""Send a checkpoint folder to the Hugging Face Hub; --dry-run only lists what would go.

Examples::

    python scripts/push_to_hub.py checkpoints/default owner/fusemix-default --dry-run
    python scripts/push_to_hub.py checkpoints/default owner/fusemix-default --revision v1
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fusemix.model.adapters import FusionModel
from fusemix.model.hub import Upload, check_repo_id


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="checkpoint of scripts/train.py, or a decoder of train_unclip.py")
    parser.add_argument("repo_id", metavar="owner/name", help="repository on the Hub; created if absent")
    parser.add_argument("--dry-run", action="store_true", help="list what would be sent, and send nothing")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--revision", help="branch to write to (default: main)")
    return parser.parse_args(argv)


def tabulate(upload: Upload, repo_id: str) -> Table:
    """Every file and its size."""
    table = Table(title=f"{upload.folder} -> {repo_id}", title_justify="left", title_style="bold")
    table.add_column("file", overflow="fold")
    table.add_column("bytes", justify="right")
    for name, size in upload.files.items():
        table.add_row(name, f"{size:,}")
    table.add_row(f"{len(upload.files)} files", f"{upload.n_bytes:,}", style="bold")
    return table


def main(argv: list[str] | None = None) -> int:
    """List, and send unless it is a dry run; 0 on success, 2 when something is at fault."""
    args = parse_args(argv)
    console = Console()
    try:
        check_repo_id(args.repo_id)
        upload = Upload.of(args.folder)
        if "model_index.json" not in upload.files:
            FusionModel.from_pretrained(args.folder)  # what does not load is not worth sending
        console.print(tabulate(upload, args.repo_id))
        console.print("card:", json.dumps(upload.card, ensure_ascii=False), markup=False, soft_wrap=True)
        if "license" not in upload.card:
            console.print("The card names no licence; the Hub will show none.", style="yellow")
        if args.dry_run:
            console.print("Dry run: nothing was sent.")
        else:
            console.print(upload.push(args.repo_id, private=args.private, revision=args.revision), soft_wrap=True)
    except (ValueError, OSError) as error:
        Console(stderr=True).print(str(error), style="red", markup=False, soft_wrap=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
