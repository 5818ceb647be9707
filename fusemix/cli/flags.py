"""Flags that several commands have, with one help text each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

REPOSITORY = Path(__file__).resolve().parents[2]  # exists in a clone, not in an installed package

Checkpoint = Annotated[
    str, typer.Option(metavar="FOLDER|ID", help="The trained model: a checkpoint folder or a Hugging Face Hub id.")
]
DefaultCheckpoint = Annotated[
    str,
    typer.Option(
        metavar="FOLDER|ID",
        help="The trained model: a checkpoint folder or a Hugging Face Hub id.",
        show_default="checkpoints/default of the clone",
    ),
]
Decoder = Annotated[
    str,
    typer.Option(
        metavar="FOLDER|ID",
        help="The Stable unCLIP decoder that draws: a folder or a Hugging Face Hub id.",
        show_default="checkpoints/unclip-small of the clone",
    ),
]
Pairs = Annotated[
    Path, typer.Option(metavar="TABLE", help="The table of pairs: a .csv, .tsv, .jsonl or .parquet file.")
]
Split = Annotated[str | None, typer.Option(metavar="NAME", help="Use only the rows of this split.")]
Device = Annotated[
    str, typer.Option(metavar="DEVICE", help="The torch device that the encoders run on, such as cpu or cuda.")
]
Encoders = Annotated[
    list[str] | None,
    typer.Option(
        metavar="MODALITY=FOLDER ...",
        help="Local folders of the checkpoint's encoders, if it was trained with folders of another machine; "
        "they are checked by content.",
    ),
]
FOLDERS = "--encoders MODALITY=FOLDER"
Seed = Annotated[int, typer.Option(metavar="N", help="The seed of all random choices.")]
Json = Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the figures to this JSON file.")]
MaxShardSize = Annotated[
    str,
    typer.Option(metavar="SIZE", help="The largest weight file, such as 9MB to suit a plain git push."),
]

HUBS = "Correction of hubness, off without a bank"
Neighbours = Annotated[
    int,
    typer.Option(
        metavar="N", help="How many of the bank's nearest queries are averaged for an item.", rich_help_panel=HUBS
    ),
]
Weight = Annotated[
    float,
    typer.Option(metavar="W", help="The weight of the correction; 0 changes nothing.", rich_help_panel=HUBS),
]
NEIGHBOURS, WEIGHT = 128, 0.5  # of fusemix.search.hubness, which would import torch
