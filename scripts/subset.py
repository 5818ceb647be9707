"""Which pairs to train on: a diverse (k-DPP, greedy), a good (best) or a random (uniform) subset.

    python scripts/subset.py --latents image=latents/image text=latents/text --method kdpp -k 500 --split train \
        --pairs pairs.csv --out subset.csv

Candidates are the rows that have latents of every modality given, rows of the same items (five captions of a picture,
with --latents image=DIR alone) being one candidate; it is kept or left with all its rows. A .txt gets the row numbers
of the table, counted from 0, one a line; a .csv, .tsv, .jsonl or .parquet the table with only these rows.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fusemix.data.latent_store import LatentStore
from fusemix.data.pairs import FILE_COLUMNS, PairTable
from fusemix.data.subsets import best, greedy_map, in_blocks, sample_kdpp, uniform
from fusemix.datasets.splits import closing, side_of, sides
from fusemix.encoder_identity import check_encoder
from fusemix.files import write_atomic

METHODS = ("kdpp", "greedy", "best", "uniform")
ENDINGS = (".txt", ".csv", ".tsv", ".jsonl", ".parquet")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--latents", nargs="+", required=True, metavar="MODALITY=DIR", help="stores of one table")
    p.add_argument("--method", choices=METHODS, default="kdpp")
    p.add_argument("-k", type=int, required=True, help="candidates to keep")
    p.add_argument("--blocks", type=int, default=1, help="choose within so many random blocks; for k above the width")
    p.add_argument("--split", help="only rows of this split")
    p.add_argument("--quality", metavar="COLUMN", help="of --pairs: a number a row, > 0 for kdpp and greedy")
    p.add_argument("--score-with", metavar="CHECKPOINT", help="quality: cosine of two modalities in its shared space")
    p.add_argument("--top", type=int, help="only the so many best candidates by quality are eligible")
    p.add_argument("--pairs", help="the table the stores were made from")
    p.add_argument("--keep-splits", nargs="+", default=(), metavar="SPLIT", help="rows that stay in the written table")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--out", required=True, type=Path, help=f"one of {', '.join(ENDINGS)}")
    return p.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Choose and write; 0 on success, 2 on bad input, 130 when interrupted."""
    args = parse(argv)
    console = Console(stderr=True)
    try:
        print(run(args, console))
    except (ValueError, OSError) as error:
        console.print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        console.print("Interrupted; nothing was written.")
        return 130
    return 0


def run(args: argparse.Namespace, console: Console) -> str:
    """Candidates, features, quality, choice, file."""
    if args.out.suffix not in ENDINGS or (args.out.suffix != ".txt" and not args.pairs):
        raise ValueError(f"--out takes one of {', '.join(ENDINGS)}, a table only with --pairs; got {args.out}.")
    if args.method == "best" and not (args.quality or args.score_with):
        raise ValueError("--method best needs --quality COLUMN or --score-with CHECKPOINT.")
    if args.blocks != 1 and args.method in ("best", "uniform"):
        raise ValueError(f"--blocks belongs to kdpp and greedy; {args.method} needs none.")
    stores = _stores(args.latents)
    table = _table(args.pairs, stores, args.quality) if args.pairs else None
    rows = _rows(stores, args.split)
    candidates = rows[list(stores)].drop_duplicates().reset_index(drop=True)
    features = _features(stores, candidates)
    quality = _quality(args, stores, table, rows, candidates)
    eligible = np.arange(len(candidates))
    if args.top is not None:
        if quality is None:
            raise ValueError("--top needs --quality COLUMN or --score-with CHECKPOINT.")
        eligible = best(quality, args.top)
    chosen = eligible[_choose(args, features, quality, eligible, console)]
    kept = rows.merge(candidates.iloc[chosen], on=list(stores))
    _write(args, table, np.sort(kept["row"].to_numpy()))
    said = closing(Counter(kept["split"].tolist()), {"not chosen": len(rows) - len(kept)})
    return f"{args.out}: {len(chosen):,} of {len(candidates):,} candidates, {len(kept):,} of {len(rows):,} rows. {said}"


def _choose(
    args: argparse.Namespace, features: np.ndarray, quality: np.ndarray | None, eligible: np.ndarray, console: Console
) -> np.ndarray:
    rng = np.random.default_rng(args.seed)
    n = len(eligible)
    if args.method == "uniform":
        return uniform(n, args.k, rng)
    if args.method == "best":
        return best(quality[eligible], args.k) if quality is not None else uniform(n, args.k, rng)
    columns = (TextColumn(args.method), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task, done = progress.add_task("", total=args.k), 0

        def choose(part: np.ndarray, share: int) -> np.ndarray:
            nonlocal done
            numbers = eligible[part]
            these = features if len(numbers) == len(features) else features[numbers]
            weights = None if quality is None else quality[numbers]

            def report(now: int, total: int) -> None:
                progress.update(task, completed=done + now)

            if args.method == "kdpp":
                chosen = sample_kdpp(these, share, rng=rng, quality=weights, report=report)
            else:
                chosen = greedy_map(these, share, quality=weights, report=report)
            done += share
            return chosen

        return in_blocks(choose, n, args.k, args.blocks, rng)


def _stores(pieces: list[str]) -> dict[str, LatentStore]:
    stores: dict[str, LatentStore] = {}
    for piece in pieces:
        modality, _, folder = piece.partition("=")
        if not modality or not folder or modality in stores:
            raise ValueError(f"--latents takes MODALITY=DIR, each modality once, got {piece!r}.")
        stores[modality] = LatentStore.open(folder)
    if len({store.manifest["table"] for store in stores.values()}) > 1:
        raise ValueError("The latents were made from different tables, so their rows do not match.")
    return stores


def _table(path: str, stores: dict[str, LatentStore], quality: str | None) -> PairTable:
    table = PairTable.read(path, own=tuple(stores))
    for store in stores.values():
        if store.manifest["table"] not in (None, table.fingerprint):
            raise ValueError(f"{store.folder} was made from another table than {path}.")
    if quality and quality not in table.frame.columns:
        raise ValueError(f"{path} has no column {quality!r}; it has {list(table.frame.columns)}.")
    return table


def _rows(stores: dict[str, LatentStore], split: str | None) -> pd.DataFrame:
    """Columns row and one item number per modality: the rows that every store has, of the split."""
    first, *others = stores
    rows = stores[first].rows.rename(columns={"item": first})
    if split is not None:
        rows = rows[sides(rows["split"].to_numpy(), stores[first].folder) == side_of(split)]
    rows = rows[["row", first, "split"]]
    for name in others:
        rows = rows.merge(stores[name].rows[["row", "item"]].rename(columns={"item": name}), on="row")
    if rows.empty:
        raise ValueError(f"No row {f'of split {split!r} ' if split else ''}has latents of {' and '.join(stores)}.")
    return rows


def _features(stores: dict[str, LatentStore], candidates: pd.DataFrame) -> np.ndarray:
    """The latents of all modalities side by side, each of unit length: (N, sum of widths), float32."""
    out = np.empty((len(candidates), sum(store.dim for store in stores.values())), dtype=np.float32)
    start = 0
    for modality, store in stores.items():
        items = candidates[modality].to_numpy()
        for first in range(0, len(items), 65_536):
            part = store.read(items[first : first + 65_536])
            lengths = np.linalg.norm(part, axis=1, keepdims=True)
            out[first : first + len(part), start : start + store.dim] = part / np.where(lengths == 0, 1, lengths)
        start += store.dim
    return out


def _quality(
    args: argparse.Namespace,
    stores: dict[str, LatentStore],
    table: PairTable | None,
    rows: pd.DataFrame,
    candidates: pd.DataFrame,
) -> np.ndarray | None:
    """One number a candidate: of its first row in the table's column, or the cosine of its two embeddings."""
    if args.quality and args.score_with:
        raise ValueError("Give --quality or --score-with, not both.")
    if args.quality:
        if table is None:
            raise ValueError("--quality names a column of --pairs; give the table too.")
        first = rows.drop_duplicates(subset=list(stores))["row"]
        cells = pd.to_numeric(table.frame[args.quality].iloc[first], errors="coerce")
        if cells.isna().any():
            row = int(first.to_numpy()[np.flatnonzero(cells.isna())[0]])
            raise ValueError(f"Row {row} of {args.pairs}: {args.quality} is not a number.")
        return cells.to_numpy(dtype=np.float64)
    if not args.score_with:
        return None
    if len(stores) != 2:
        raise ValueError(f"--score-with compares two modalities, --latents gives {list(stores)}.")
    from fusemix.model.adapters import FusionModel

    model = FusionModel.from_pretrained(args.score_with)
    for modality, store in stores.items():
        check_encoder(modality, model.config.encoders, store.encoder)
    parts = []
    for start in range(0, len(candidates), 16_384):
        some = candidates.iloc[start : start + 16_384]
        one, other = (model.embed(m, store.read(some[m].to_numpy())) for m, store in stores.items())
        parts.append((one * other).sum(1).numpy())
    cosine = np.concatenate(parts).astype(np.float64)
    return cosine if args.method == "best" else np.exp(cosine)  # kdpp and greedy need factors above 0


def _write(args: argparse.Namespace, table: PairTable | None, rows: np.ndarray) -> None:
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if args.out.suffix == ".txt" or table is None:
        write_atomic(args.out, lambda path: path.write_text("".join(f"{row}\n" for row in rows)))
        return
    others = np.flatnonzero(np.isin(sides(table.splits(), args.pairs), [side_of(split) for split in args.keep_splits]))
    numbers = np.union1d(rows, others)
    frame = table.frame.iloc[numbers].copy()
    if args.out.parent.resolve() != table.path.parent.resolve():
        for column in set(FILE_COLUMNS) & set(frame.columns):
            cells = [table.value(column, int(row)) if table.frame[column].iat[row] else "" for row in numbers]
            frame[column] = cells

    def write(path: Path) -> None:
        if args.out.suffix == ".parquet":
            frame.to_parquet(path, index=False)
        elif args.out.suffix == ".jsonl":
            frame.to_json(path, orient="records", lines=True, force_ascii=False)
        else:
            frame.to_csv(path, sep="," if args.out.suffix == ".csv" else "\t", index=False)

    write_atomic(args.out, write)


if __name__ == "__main__":
    sys.exit(main())
