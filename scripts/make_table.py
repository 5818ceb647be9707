"""A standard dataset, or a folder of your own files -> a table of pairs for extract.py, train.py, evaluate.py.

    python scripts/make_table.py flickr30k --root /data/flickr30k --out /data/flickr30k/pairs.csv

Nothing is downloaded (a Hugging Face id given as --root excepted). Files that the annotations name and that are not
there are counted, left out and listed in OUT.missing.txt. docs/datasets.md says what each dataset needs; `make_table.py
DATASET --about` prints its protocol and known traps.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from fusemix.datasets import DATASETS, SOURCES, Tally, write_table


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line; what a dataset does not take is refused by :func:`options`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=sorted(DATASETS))
    parser.add_argument("--root", type=Path, help="where it lies; for huggingface also a Hub id, owner/name@revision")
    parser.add_argument("--out", type=Path, help="the table: .csv, .tsv or .parquet")
    parser.add_argument("--about", action="store_true", help="say what the dataset needs, and stop")
    some = parser.add_argument_group("of some datasets")
    some.add_argument("--captions", type=int, help="keep only the first so many captions of an item")
    some.add_argument("--annotations", type=Path, help="coco, flickr30k: Karpathy's file, if it lies elsewhere")
    some.add_argument("--karpathy", type=Path, nargs="+", help="visual-genome: drop what stands in their val and test")
    some.add_argument("--images", type=Path, help="sbu, cc3m: folder that img2dataset made")
    some.add_argument("--test-fold", type=int, help="esc50: 1 to 5")
    some.add_argument("--val-fold", type=int, help="esc50: 1 to 5")
    some.add_argument("--unpack", type=Path, help="webdataset, huggingface: where pictures and sounds go")
    some.add_argument(
        "--name-is-caption",
        action="store_true",
        default=None,
        help="folder: a file without captions is called what it shows",
    )
    some.add_argument("--split", help="webdataset: of all samples; huggingface: only this one")
    some.add_argument("--config", help="huggingface: of a Hub id")
    for kind in ("image", "text", "audio"):
        some.add_argument(f"--{kind}-column", help=f"huggingface: the {kind} column, where it is not clear")
    args = parser.parse_args(argv)
    if not args.about and (args.root is None or args.out is None):
        parser.error("--root and --out are needed")
    return args


def options(args: argparse.Namespace) -> dict[str, Any]:
    """The flags that were given, as the reader's arguments; a flag it does not take is a ValueError."""
    takes = set(inspect.signature(DATASETS[args.dataset]).parameters) - {"root", "tally"}
    given = {k: v for k, v in vars(args).items() if v is not None and k not in ("dataset", "root", "out", "about")}
    if unknown := sorted(set(given) - takes):
        flags = [f"--{name.replace('_', '-')}" for name in sorted(takes)]
        raise ValueError(f"{args.dataset} does not take --{unknown[0].replace('_', '-')}; it takes {', '.join(flags)}.")
    return given


def main(argv: list[str] | None = None) -> int:
    """Write the table; 0 on success, 2 on bad input, 130 when interrupted (no table is left behind)."""
    args = parse(argv)
    reader = DATASETS[args.dataset]
    if args.about:
        print(inspect.cleandoc(sys.modules[reader.__module__].__doc__ or ""), "\n")
        print(inspect.getdoc(reader))
        print(f"\n{SOURCES.get(args.dataset, '')}".rstrip())
        return 0
    console, tally = Console(stderr=True), Tally()
    try:
        counts = run(args, tally, console)
    except (ValueError, OSError, ImportError) as error:
        console.print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        console.print("Interrupted; no table was written.")
        return 130
    for sentence in tally.sentences():
        console.print(sentence, highlight=False, soft_wrap=True)
    print(f"{args.out}: {tally.summary(counts)}")
    if tally.missing:
        print(f"{args.out}.missing.txt: {len(tally.missing):,} files that are not there")
    return 0


def run(args: argparse.Namespace, tally: Tally, console: Console) -> Counter[str]:
    """Read and write with a count of the pairs so far."""
    given = options(args)
    if "unpack" in inspect.signature(DATASETS[args.dataset]).parameters:
        given.setdefault("unpack", args.out.parent / "unpacked")
    pairs = DATASETS[args.dataset](args.root, tally, **given)
    with Progress(
        SpinnerColumn(), TextColumn("{task.description} {task.completed:,} pairs"), TimeElapsedColumn(), console=console
    ) as progress:
        task = progress.add_task(args.dataset, total=None)
        counts = write_table(pairs, args.out, tally, report=lambda done: progress.update(task, completed=done))
        progress.update(task, completed=sum(counts.values()))
    return counts


if __name__ == "__main__":
    sys.exit(main())
