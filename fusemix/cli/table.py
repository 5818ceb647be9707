"""``fusemix table``: a standard dataset, or a folder of your own files -> a table of pairs."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fusemix.cli import terminal
from fusemix.cli.command import entry, guarded

SOME = "Of some datasets"
DATASETS = (  # of fusemix.datasets, which would import pandas
    "audiocaps", "cc3m", "clotho", "coco", "esc50", "flickr30k", "flickr8k", "folder", "huggingface", "sbu",
    "visual-genome", "webdataset",
)  # fmt: skip


def _flag(metavar: str, text: str, *names: str) -> Any:
    return typer.Option(*names, metavar=metavar, help=text, rich_help_panel=SOME)


@guarded(stopped="Interrupted; no table was written.")
def table(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help=f"One of {', '.join(DATASETS)}.")],
    root: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The dataset's folder; for huggingface also a Hub id, owner/name@revision."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The table to write: .csv, .tsv or .parquet.")
    ] = None,
    about: Annotated[
        bool, typer.Option("--about", help="Print the dataset's files, protocol and known traps, and stop.")
    ] = False,
    captions: Annotated[int | None, _flag("N", "Keep only the first N captions of an item.")] = None,
    annotations: Annotated[
        Path | None, _flag("FILE", "coco, flickr30k: Karpathy's file, if it lies elsewhere.")
    ] = None,
    karpathy: Annotated[
        list[Path] | None, _flag("FILE ...", "visual-genome: leave out what stands in the val and test of these files.")
    ] = None,
    images: Annotated[Path | None, _flag("DIR", "sbu, cc3m: the folder that img2dataset made.")] = None,
    test_fold: Annotated[int | None, _flag("1..5", "esc50: the fold that is the test split.")] = None,
    val_fold: Annotated[int | None, _flag("1..5", "esc50: the fold that is the validation split.")] = None,
    unpack: Annotated[
        Path | None, _flag("DIR", "webdataset, huggingface: where pictures and sounds are written.")
    ] = None,
    name_is_caption: Annotated[
        bool, _flag("", "folder: take the name of a file without captions as its caption.", "--name-is-caption")
    ] = False,
    split: Annotated[
        str | None, _flag("NAME", "webdataset: the split of all samples; huggingface: read only this split.")
    ] = None,
    config: Annotated[str | None, _flag("NAME", "huggingface: the configuration of a Hub id.")] = None,
    image_column: Annotated[
        str | None, _flag("NAME", "huggingface: the picture column, where it is not clear.")
    ] = None,
    text_column: Annotated[str | None, _flag("NAME", "huggingface: the text column, where it is not clear.")] = None,
    audio_column: Annotated[str | None, _flag("NAME", "huggingface: the sound column, where it is not clear.")] = None,
) -> None:
    """Make a table of pairs from a standard dataset, or from a folder of your own pictures, sounds and captions.

    Nothing is downloaded, except a Hugging Face id given as --root. Files that the annotations name but that do
    not exist are counted, left out and listed in OUT.missing.txt. docs/datasets.md says what each dataset needs.

    Example: fusemix table flickr30k --root /data/flickr30k --out /data/flickr30k/pairs.csv
    """
    given = {
        "captions": captions, "annotations": annotations, "karpathy": karpathy or None, "images": images,
        "test_fold": test_fold, "val_fold": val_fold, "unpack": unpack, "name_is_caption": name_is_caption or None,
        "split": split, "config": config, "image_column": image_column, "text_column": text_column,
        "audio_column": audio_column,
    }  # fmt: skip
    if dataset not in DATASETS:
        raise ValueError(f"There is no reader for {dataset!r}; choose one of {', '.join(DATASETS)}.")
    if about:
        _say_about(dataset)
        return
    if root is None or out is None:
        raise ValueError("Give --root, where the dataset lies, and --out, the table to write.")
    _write(dataset, root, out, _options(dataset, given, out))


def _write(dataset: str, root: Path, out: Path, options: dict[str, Any]) -> None:
    """Read and write pairs with a progress count, and report what was written and left out."""
    from fusemix.datasets import DATASETS as READERS
    from fusemix.datasets import Tally, write_table

    tally = Tally()
    pairs = READERS[dataset](root, tally, **options)
    with terminal.waiting(f"{dataset}: 0 pairs") as status:
        counts = write_table(
            pairs, out, tally, report=lambda done: status.update(terminal.cell(f"{dataset}: {done:,} pairs"))
        )
    for sentence in tally.sentences():
        terminal.note(sentence)
    terminal.result(f"{out}: {tally.summary(counts)}")
    if tally.missing:
        terminal.result(f"{out}.missing.txt: {len(tally.missing):,} files that are not there")


def _options(dataset: str, flags: dict[str, Any], out: Path) -> dict[str, Any]:
    """Convert the given flags to the reader's arguments; an unsupported flag is a ValueError."""
    from fusemix.datasets import DATASETS as READERS

    takes = set(inspect.signature(READERS[dataset]).parameters) - {"root", "tally"}
    given = {name: value for name, value in flags.items() if value is not None}
    if unknown := sorted(set(given) - takes):
        names = [f"--{name.replace('_', '-')}" for name in sorted(takes)]
        raise ValueError(f"{dataset} does not take --{unknown[0].replace('_', '-')}; it takes {', '.join(names)}.")
    return ({"unpack": out.parent / "unpacked"} if "unpack" in takes else {}) | given


def _say_about(dataset: str) -> None:
    from fusemix.datasets import DATASETS as READERS
    from fusemix.datasets import SOURCES

    reader = READERS[dataset]
    terminal.result(inspect.cleandoc(sys.modules[reader.__module__].__doc__ or "") + "\n")
    terminal.result(inspect.getdoc(reader) or "")
    if dataset in SOURCES:
        terminal.result(f"\n{SOURCES[dataset]}")


main = entry("table", table)

if __name__ == "__main__":
    sys.exit(main())
