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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a plain clone

import torch
from rich.console import Console

from fusemix.adapters import FusionModel
from fusemix.ensemble import join_models


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
        joined.save_pretrained(
            args.out, dtype=getattr(torch, args.dtype), max_shard_size=args.max_shard_size, card=card(args.checkpoints)
        )
    except (ValueError, OSError) as error:
        console.print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        return 2
    size = sum(path.stat().st_size for path in args.out.iterdir()) / 1e6
    print(
        f"{args.out}: {len(args.checkpoints)} models side by side, {joined.config.embed_dim} dimensions, {size:.1f} MB"
    )
    return 0


def card(sources: list[str]) -> str:
    """The model card."""
    members = "\n".join(f"- {source}" for source in sources)
    return f"""---
library_name: fusemix
license: apache-2.0
tags: [fusemix, multimodal, retrieval]
---

# Several FuseMix models side by side

Made by `scripts/ensemble.py` from these, on the same latents; their cards say how they were trained:

{members}

Load with `FusionModel.from_pretrained(folder)`. The cosine of two embeddings is the mean of the members' cosines.
"""


if __name__ == "__main__":
    sys.exit(main())
