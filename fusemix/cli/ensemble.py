"""``fusemix ensemble``: several checkpoints on the same latents -> one that searches with all of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from fusemix.cli import flags, terminal
from fusemix.cli.command import entry, guarded


@guarded(stopped="Stopped; run the same command again with another --out.")
def ensemble(
    checkpoints: Annotated[
        list[str], typer.Argument(metavar="CHECKPOINT CHECKPOINT ...", help="Two or more folders or Hub ids.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder of the new checkpoint.")],
    dtype: Annotated[Literal["float32", "float16"], typer.Option(help="The type of the stored weights.")] = "float32",
    max_shard_size: flags.MaxShardSize = "5GB",
) -> None:
    """Join several checkpoints trained on the same latents into one that searches with all of them.

    Nothing is trained. The width of the embedding is the sum of theirs, and a query runs all adapters; the encoders,
    which cost most, run once.

    Example: fusemix ensemble runs/a runs/b --out checkpoints/both
    """
    import torch

    from fusemix.model.adapters import FusionModel
    from fusemix.model.card import ensemble_card
    from fusemix.model.ensemble import join_models

    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} holds files already; choose another --out.")
    joined = join_models([FusionModel.from_pretrained(source) for source in checkpoints])
    card = ensemble_card(out.name, joined.config, [(Path(source).name, _card(source)) for source in checkpoints])
    joined.save_pretrained(out, dtype=getattr(torch, dtype), max_shard_size=max_shard_size, card=card)
    size = sum(path.stat().st_size for path in out.iterdir()) / 1e6
    terminal.result(
        f"{out}: {len(checkpoints)} models side by side, {joined.config.embed_dim} dimensions, {size:.1f} MB"
    )


def _card(source: str) -> str:
    """Read a member's card; empty if it has none."""
    path = Path(source) / "README.md"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


main = entry("ensemble", ensemble)

if __name__ == "__main__":
    sys.exit(main())
