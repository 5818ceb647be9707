"""Comparison of recipes and of their parts: several seeds on the same pairs and passes, with intervals.

    python -m scripts.studies recipes --pairs ../shared/flickr8k/pairs.csv --seeds 0 1 2

Each study is a module of scripts/studies/: its docstring says what is compared. All train on split ``train`` and
report on ``dev``, and all resume: finished latents and runs are kept in ``--work``. Each writes
``docs/results/study-NAME.json`` (``recipes``: ``study.json``), most a plot beside it.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

STUDIES = ("recipes", "ablations")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", choices=STUDIES, default="recipes")
    parser.add_argument("--pairs", type=Path, required=True, help="a table with image, text, splits train and dev")
    parser.add_argument("--recipes", nargs="+", help="of the study 'recipes', these alone")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=30, help="of each training (default: 30)")
    parser.add_argument(
        "--photos",
        type=int,
        help="train on so many photos ('ablations', 'modalities', 'encoders', 'pooling'), on at most so many "
        "('low-data'), or corrupt so many ('robustness')",
    )
    parser.add_argument("--questions", nargs="+", help="of 'ablations': these alone, such as mixing loss")
    parser.add_argument("--work", type=Path, default=ROOT / "runs/study", help="latents and checkpoints go here")
    parser.add_argument("--checkpoint", default=str(ROOT / "checkpoints/default"), help="what the last two look at")
    parser.add_argument("--latents", type=Path, default=ROOT / "runs/default", help="of 'robustness': image/ and text/")
    parser.add_argument("--out", type=Path, help="default: docs/results/study-NAME.json")
    args = parser.parse_args(argv)
    if args.out is None:
        args.out = ROOT / "docs/results" / ("study.json" if args.name == "recipes" else f"study-{args.name}.json")
    return args


def main(argv: list[str] | None = None) -> int:
    """Run the study."""
    args = parse(argv)
    import_module(f"scripts.studies.{args.name.replace('-', '_')}").run(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
