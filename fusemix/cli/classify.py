"""``fusemix classify``: files -> the nearest of your labels, without training."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from fusemix.cli import flags, terminal
from fusemix.cli.command import entry, guarded, named_once

FILES = "What to label (one of them)"


@guarded(stopped="Stopped.")
def classify(
    labels: Annotated[str, typer.Option(metavar="A,B,C", help="The labels, in words, separated by commas.")],
    checkpoint: flags.DefaultCheckpoint = str(flags.REPOSITORY / "checkpoints/default"),
    image: Annotated[
        list[str] | None, typer.Option(metavar="FILE ...", help="Picture files.", rich_help_panel=FILES)
    ] = None,
    audio: Annotated[
        list[str] | None, typer.Option(metavar="FILE ...", help="Sound files.", rich_help_panel=FILES)
    ] = None,
    encoders: flags.Encoders = None,
    device: flags.Device = "cpu",
    json: flags.Json = None,
) -> None:
    """Give each picture or sound the label that is nearest in the shared space, without any training.

    Example: fusemix classify --labels "dog,cat,bicycle" --image photos/1.jpg photos/2.jpg
    """
    given = {modality: files for modality, files in (("image", image), ("audio", audio)) if files}
    if len(given) != 1:
        raise ValueError(f"Give one of --image and --audio to label, got {len(given)}.")
    ((modality, files),) = given.items()
    names = [label.strip() for label in labels.split(",")]
    from fusemix.encoders.recorded import load_recorded
    from fusemix.files import write_json
    from fusemix.model.adapters import FusionModel
    from fusemix.search.classify import check_labels
    from fusemix.search.classify import classify as shares_of

    check_labels(names)
    model = FusionModel.from_pretrained(checkpoint)
    for needed in (modality, "text"):
        if needed not in model.modalities:
            raise ValueError(f"{checkpoint} embeds {list(model.modalities)}; labels of {modality} need {needed}, too.")
    folders, recorded = named_once(encoders or [], flags.FOLDERS), model.config.encoders
    loaded = {m: load_recorded(m, recorded, device=device, source=folders.get(m)) for m in (modality, "text")}
    shares = shares_of(model, model.embed(modality, loaded[modality].encode(files)), names, loaded["text"])
    order = (-shares).argsort(axis=1)
    table = Table("file", "label", "share", "next")
    for file, row, (best, second, *_) in zip(files, shares, order.tolist(), strict=True):
        table.add_row(terminal.cell(file), names[best], f"{row[best]:.2f}", f"{names[second]} {row[second]:.2f}")
    if json:
        rows = [
            {"file": str(Path(file)), "label": names[best[0]], "shares": dict(zip(names, map(float, row), strict=True))}
            for file, row, best in zip(files, shares, order, strict=True)
        ]
        write_json(json, {"labels": names, "items": rows})
    terminal.show(table)


main = entry("classify", classify)

if __name__ == "__main__":
    sys.exit(main())
