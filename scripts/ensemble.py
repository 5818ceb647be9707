"""Several checkpoints on the same latents -> one that searches with all of them.

    python scripts/train.py --latents image=I text=T --recipe two-path --out runs/a
    python scripts/train.py --latents image=I text=T --recipe paper    --out runs/b --seed 1
    python scripts/ensemble.py runs/a runs/b --out checkpoints/both

Nothing is trained. The embedding is as wide as theirs together, and a query costs as much as with all of them; the
encoders, which cost most, are run once.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from rich.console import Console

from fusemix.model.adapters import FusionModel
from fusemix.model.card import ensemble_card
from fusemix.model.config import ModelConfig
from fusemix.model.ensemble import join_models


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", help="folders or Hub ids, two or more")
    parser.add_argument("--out", required=True, type=Path, help="folder of the new checkpoint")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16"), help="of the stored weights")
    parser.add_argument(
        "--max-shard-size", default="5GB", help="largest weight file, e.g. 9MB to suit a plain git push"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Join and save; 2 on bad input."""
    args, console = parse(argv), Console(stderr=True)
    try:
        if args.out.exists() and any(args.out.iterdir()):
            raise ValueError(f"{args.out} holds files already; choose another --out.")
        joined = join_models([FusionModel.from_pretrained(source) for source in args.checkpoints])
        text = card(args.out.name, joined.config, args.checkpoints)
        joined.save_pretrained(
            args.out, dtype=getattr(torch, args.dtype), max_shard_size=args.max_shard_size, card=text
        )
    except (ValueError, OSError) as error:
        console.print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        return 2
    size = sum(path.stat().st_size for path in args.out.iterdir()) / 1e6
    print(
        f"{args.out}: {len(args.checkpoints)} models side by side, {joined.config.embed_dim} dimensions, {size:.1f} MB"
    )
    return 0


def card(name: str, config: ModelConfig, sources: list[str]) -> str:
    """The model card: what the members' cards say of their training, one after another."""
    members = []
    for source in sources:
        path = Path(source) / "README.md"
        members.append((Path(source).name, path.read_text(encoding="utf-8") if path.is_file() else ""))
    return ensemble_card(name, config, members)


if __name__ == "__main__":
    sys.exit(main())
