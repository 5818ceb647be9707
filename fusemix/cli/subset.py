"""``fusemix subset``: latents -> a subset of pairs to train on."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fusemix.cli import flags, terminal
from fusemix.cli.command import entry, guarded, named_once

if TYPE_CHECKING:
    import numpy as np

    from fusemix.data.candidates import Candidates
    from fusemix.data.pairs import PairTable

QUALITY = "Quality of a pair"
WRITTEN = "What is written"


@guarded(stopped="Interrupted; nothing was written.")
def subset(
    latents: Annotated[
        list[str], typer.Option(metavar="MODALITY=DIR ...", help="The latent stores to choose by, of one table.")
    ],
    k: Annotated[int, typer.Option("-k", metavar="K", help="How many candidates to keep.")],
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="A .txt gets the row numbers, counted from 0, one a line; a .csv, .tsv, .jsonl or .parquet the "
            "table with only these rows.",
        ),
    ],
    method: Annotated[
        Literal["kdpp", "greedy", "best", "uniform"],
        typer.Option(
            help="kdpp: a diverse subset, drawn (k-DPP); greedy: the most diverse one; best: the highest quality; "
            "uniform: by chance."
        ),
    ] = "kdpp",
    blocks: Annotated[
        int, typer.Option(metavar="N", help="Choose within so many random blocks; for K above the latents' width.")
    ] = 1,
    split: flags.Split = None,
    seed: flags.Seed = 0,
    quality: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="A column of the table with a number in each row, above 0 for kdpp and greedy.",
            rich_help_panel=QUALITY,
        ),
    ] = None,
    score_with: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER|ID",
            help="A checkpoint in whose shared space the cosine of two modalities is the quality.",
            rich_help_panel=QUALITY,
        ),
    ] = None,
    top: Annotated[
        int | None,
        typer.Option(metavar="N", help="Choose only among the N candidates of best quality.", rich_help_panel=QUALITY),
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(metavar="TABLE", help="The table that the stores were made from.", rich_help_panel=WRITTEN),
    ] = None,
    keep_splits: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SPLIT ...", help="Write all rows of these splits too, such as val test.", rich_help_panel=WRITTEN
        ),
    ] = None,
) -> None:
    """Choose a subset of pairs to train on: diverse, of high quality, or random.

    Candidates are the rows that have latents of every modality given. Rows of the same items (five captions of a
    picture, with --latents image=DIR alone) are one candidate, kept or dropped with all its rows.

    Example: fusemix subset --latents image=latents/image text=latents/text -k 500 --pairs pairs.csv --out subset.csv
    """
    from fusemix.data.candidates import ENDINGS, Candidates, check_table, write_rows
    from fusemix.data.latent_store import LatentStore
    from fusemix.data.pairs import PairTable
    from fusemix.data.subsets import best
    from fusemix.datasets.splits import closing
    from fusemix.files import write_atomic

    if out.suffix not in (".txt", *ENDINGS) or (out.suffix != ".txt" and pairs is None):
        raise ValueError(f"--out takes one of .txt, {', '.join(ENDINGS)}, a table only with --pairs; got {out}.")
    if blocks != 1 and method in ("best", "uniform"):
        raise ValueError(f"--blocks belongs to kdpp and greedy; {method} needs none.")
    if not (quality or score_with) and (method == "best" or top is not None):
        asked = "--method best" if method == "best" else "--top"
        raise ValueError(f"{asked} needs --quality COLUMN or --score-with CHECKPOINT.")
    folders = named_once(latents, "--latents MODALITY=DIR")
    if score_with and len(folders) != 2:
        raise ValueError(f"--score-with compares two modalities, --latents gives {list(folders)}.")
    stores = {modality: LatentStore.open(folder) for modality, folder in folders.items()}
    table = None
    if pairs is not None:
        table = PairTable.read(pairs, own=tuple(stores))
        check_table(table, stores)
    candidates = Candidates.of(stores, split)
    values = _quality(candidates, table, quality, score_with, factors=method != "best")
    eligible = _all(candidates) if top is None or values is None else best(values, top)
    chosen = eligible[_choose(method, candidates.features(), values, eligible, k=k, blocks=blocks, seed=seed)]
    kept = candidates.rows_of(chosen)
    rows = kept["row"].to_numpy()
    if pairs is not None and out.resolve() == pairs.resolve():
        raise ValueError(f"--out is {out}, the table to choose from, which would be lost; choose another name.")
    out.parent.mkdir(parents=True, exist_ok=True)
    if table is None or out.suffix == ".txt":
        write_atomic(out, lambda path: path.write_text("".join(f"{row}\n" for row in rows)))
    else:
        write_rows(table, rows, out, keep_splits=keep_splits or ())
    total = len(candidates.rows)
    said = closing(Counter(kept["split"].tolist()), {"not chosen": total - len(rows)})
    terminal.result(
        f"{out}: {len(chosen):,} of {len(candidates):,} candidates, {len(rows):,} of {total:,} rows. {said}"
    )


def _all(candidates: Candidates) -> np.ndarray:
    import numpy as np

    return np.arange(len(candidates))


def _quality(
    candidates: Candidates, table: PairTable | None, column: str | None, checkpoint: str | None, *, factors: bool
) -> np.ndarray | None:
    """Return each candidate's quality: the table's column, or the cosine of its embeddings as a factor above 0."""
    import numpy as np

    if column and checkpoint:
        raise ValueError("Give --quality or --score-with, not both.")
    if column:
        if table is None:
            raise ValueError("--quality names a column of --pairs; give the table too.")
        return candidates.numbers(table, column)
    if not checkpoint:
        return None
    from fusemix.model.adapters import FusionModel

    cosines = candidates.cosines(FusionModel.from_pretrained(checkpoint))
    return np.exp(cosines) if factors else cosines


def _choose(
    method: str,
    features: np.ndarray,
    quality: np.ndarray | None,
    eligible: np.ndarray,
    *,
    k: int,
    blocks: int,
    seed: int,
) -> np.ndarray:
    import numpy as np

    from fusemix.data.subsets import best, greedy_map, in_blocks, sample_kdpp, uniform

    rng = np.random.default_rng(seed)
    if method == "uniform" or (method == "best" and quality is None):
        return uniform(len(eligible), k, rng)
    if method == "best" and quality is not None:
        return best(quality[eligible], k)
    with terminal.bar() as bar:
        task, done = bar.add_task(method, total=k), 0

        def choose(part: np.ndarray, share: int) -> np.ndarray:
            nonlocal done
            numbers = eligible[part]
            these = features if len(numbers) == len(features) else features[numbers]
            options: dict[str, Any] = {
                "quality": None if quality is None else quality[numbers],
                "report": lambda now, total: bar.update(task, completed=done + now),
            }
            if method == "kdpp":
                chosen: np.ndarray = sample_kdpp(these, share, rng=rng, **options)
            else:
                chosen = greedy_map(these, share, **options)
            done += share
            return chosen

        chooser: Callable[[np.ndarray, int], np.ndarray] = choose
        return in_blocks(chooser, len(eligible), k, blocks, rng)


main = entry("subset", subset)

if __name__ == "__main__":
    sys.exit(main())
