"""Three modalities in one space: do spoken captions find photos that they were never trained with?

Flickr8k's train photos, all or ``--photos`` of them (those with a spoken caption first), with their captions
(image-text); the spoken captions that come with them, in one voice (audio-text, audio-image); beside those, captions of
``CLIPS`` photos, as far as these are among them, spoken by many synthetic voices (scripts/synthesise_speech.py, which
needs flite and espeak-ng). Plain packaged encoders, the paper's recipe scaled down. Arms:

- each pair of modalities alone; ``audio-image`` alone is what direct training reaches from the clips that there are;
- ``image-text + audio-text``: jointly, text being the pivot; audio never meets a picture;
- ``audio-text, later`` and ``audio-image, later``: the space of ``image-text`` stays as it is, and audio joins it
  through captions, or straight through the clips' photos;
- ``all three`` pairs jointly.

Every arm takes as many steps as ``image-text`` alone, and a step reads a batch of every set, so each set is passed over
as often in every arm it stands in. The last weights count. Reported on dev, every direction: the spoken captions of
Flickr8k's own voice, and one caption of every dev photo spoken by the synthetic voices.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table

from fusemix.data.latent_store import LatentStore
from fusemix.data.pair_set import PairSet
from fusemix.data.pairs import PairTable
from fusemix.evaluation.metrics import ranks
from fusemix.model.adapters import FusionModel
from fusemix.model.config import ModelConfig, TrainConfig
from studies.common import StudyRun, call, console, kept, latents, points, summary, write

ENCODERS = {"image": "efficientnet-lite0", "text": "minilm-l6", "audio": "whisper-tiny.en"}
CLIPS = 2000  # train photos with a synthetic clip
BATCH = 2048  # pairs read a step of each set, which FuseMix halves
HELD_OUT = 0.02  # share of the photos that no arm trains on
BASE = "image-text"
# arm -> its sets of pairs; audio that joins later stands apart
ARMS: dict[str, tuple[str, ...]] = {
    BASE: (BASE,),
    "audio-text": ("audio-text",),
    "audio-image": ("audio-image",),
    "image-text + audio-text": (BASE, "audio-text"),
    "all three": (BASE, "audio-text", "audio-image"),
    "audio-text, later": ("audio-text",),
    "audio-image, later": ("audio-image",),
}
VOICES = ("own voice", "other voices")
AT = (1, 10)


class Arm(StudyRun):
    """The trainer for a given number of steps; nothing is measured on the way."""

    def __init__(self, *args: Any, steps: int) -> None:
        super().__init__(*args)
        self.total_steps = steps

    def evaluate(self, epoch: int) -> dict[str, float]:
        """Nothing."""
        return {}


@dataclass(frozen=True)
class Side:
    """Dev's items of a modality (of audio: in one kind of voice): latents (N, D_x) and groups (N,)."""

    modality: str
    latents: Any
    groups: np.ndarray


def run(args: argparse.Namespace) -> None:
    """Every arm with every seed, without and with the synthetic clips; JSON, a plot and a table."""
    args.work = args.work / "modalities"
    args.pairs, spoken = with_speech(args)
    args.work = args.work / f"{args.photos or 'all'}"
    stores = {m: {s: LatentStore.open(p) for s, p in latents(args, m, name).items()} for m, name in ENCODERS.items()}
    measured(args, stores, spoken)


def measured(args: argparse.Namespace, stores: dict[str, dict[str, LatentStore]], spoken: int) -> None:
    """All but the extraction; ``spoken`` is the first row with a synthetic clip."""
    whole = {m: s["train"] for m, s in stores.items()}
    sides = dev_sides({m: s["dev"] for m, s in stores.items()}, spoken)
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for synthetic in (False, True):  # first without the synthetic clips, all seeds of it
        sets = pair_sets(whole, spoken if not synthetic else None)
        clips = f"{len(sets['audio-text']):,} clips"
        for seed in args.seeds:
            base = None
            for arm, names in ARMS.items():
                of_arm = f"{args.epochs}-{arm}" if arm == BASE else f"{args.epochs}-{clips}-{arm}"
                folder = args.work / of_arm / f"seed{seed}"
                chosen = [sets[name] for name in names]
                later = base if arm.endswith("later") else None
                fresh = partial(_trained, args, sets, chosen, folder, seed, later, sides)
                recall = kept(folder / "result.json", fresh)
                if arm == BASE:
                    base = FusionModel.from_pretrained(folder / "model")
                found.setdefault(clips, {}).setdefault(arm, []).append(recall)
                console.print(f"seed {seed}, {clips}, {arm}", {k: v["10"] for k, v in recall["recall"].items()})
            write(args.out, report(args, found, sets))
    out = report(args, found, sets)
    show(out)
    plot(out, args.out.with_suffix(".png"))


def _trained(
    args: argparse.Namespace,
    sets: dict[str, PairSet],
    chosen: list[PairSet],
    folder: Path,
    seed: int,
    base: FusionModel | None,
    sides: dict[str, Side],
) -> dict[str, Any]:
    """Train one arm; its recall on dev. The model is kept where audio joins it later."""
    config = TrainConfig(epochs=args.epochs, batch_size=BATCH, eval_every=args.epochs, val_fraction=HELD_OUT, seed=seed)
    stores = {m: store for s in chosen for m, store in s.stores.items()}
    if base is not None:
        stores = {m: store for s in sets.values() for m, store in s.stores.items()}
        config = replace(config, frozen=("image", "text"))
    model = ModelConfig(
        latent_dims={m: s.dim for m, s in stores.items()},
        encoders={m: s.encoder for m, s in stores.items()},
        expansion=0.5,
    )
    arm = Arm(chosen, model, config, folder, base, steps=steps(sets[BASE], config))
    result = arm.go(None, None)
    if chosen == [sets[BASE]]:
        result.model.save_pretrained(folder / "model")
    passes = {
        s.name: arm.total_steps * b / len(p) for s, b, p in zip(chosen, arm.batches, arm.train_pairs, strict=True)
    }
    return {"seconds": round(result.seconds, 1), "passes": passes, "recall": recalls(result.model, sides)}


def steps(pairs: PairSet, config: TrainConfig) -> int:
    """Steps that so many passes over these pairs take."""
    train, _ = pairs.divide(config)
    return config.epochs * max(1, len(train) // min(config.batch_size, len(train) // 2 * 2))


def pair_sets(stores: dict[str, LatentStore], spoken: int | None) -> dict[str, PairSet]:
    """Name -> pairs; a clip's picture is the one of its group. Without the clips from row ``spoken`` on, if given."""
    rows = {m: s.rows for m, s in stores.items()}
    if spoken is not None:
        rows["audio"] = rows["audio"][rows["audio"]["row"] < spoken]
    pictures = rows["image"].drop_duplicates("group")

    def pairs(frame: pd.DataFrame, a: str, b: str) -> PairSet:
        items = {m: frame[m].to_numpy(np.int64) for m in (a, b)}
        return PairSet(
            {m: stores[m] for m in (a, b)}, items, frame["group"].to_numpy(), frame["split"].to_numpy(object)
        )

    def joined(a: str, b: str, key: str, others: pd.DataFrame) -> PairSet:
        first = rows[a].rename(columns={"item": a})
        return pairs(first.merge(others[[key, "item"]].rename(columns={"item": b}), on=key), a, b)

    return {
        BASE: joined("image", "text", "row", rows["text"]),
        "audio-text": joined("audio", "text", "row", rows["text"]),
        "audio-image": joined("audio", "image", "group", pictures),
    }


def dev_sides(stores: dict[str, LatentStore], spoken: int) -> dict[str, Side]:
    """What is searched with and in: photos, captions, and the clips of either kind of voice."""
    audio = stores["audio"].rows
    frames = {
        "image": stores["image"].rows,
        "text": stores["text"].rows,
        VOICES[0]: audio[audio["row"] < spoken],
        VOICES[1]: audio[audio["row"] >= spoken],
    }
    sides = {}
    for name, frame in frames.items():
        modality = "audio" if name in VOICES else name
        frame = frame.drop_duplicates("item")
        sides[name] = Side(modality, stores[modality].gather(frame["item"].to_numpy()), np.array(frame["group"]))
    return sides


def recalls(model: FusionModel, sides: dict[str, Side]) -> dict[str, dict[str, float]]:
    """Direction (``own voice to image``), of those the model has -> recall at 1 and 10 of queries with an answer."""
    embedded = {n: model.embed(s.modality, s.latents) for n, s in sides.items() if s.modality in model.modalities}
    out = {}
    for query, x in embedded.items():
        for gallery, y in embedded.items():
            if sides[query].modality == sides[gallery].modality:
                continue
            asked = np.isin(sides[query].groups, sides[gallery].groups)
            rank = ranks(x[asked], y, sides[query].groups[asked], sides[gallery].groups)
            out[f"{query} to {gallery}"] = {str(k): float((rank <= k).mean()) for k in AT}
    return out


def with_speech(args: argparse.Namespace) -> tuple[Path, int]:
    """The table with a further row for every synthetic clip, which names no picture; and the first of these rows."""
    path, table = args.work / f"pairs-{args.photos}.csv", PairTable.read(args.pairs)
    rows = [row for row, split in enumerate(table.splits()) if split in ("train", "dev")]
    files = {c: [table.value(c, r) if table.frame[c].iat[r] else "" for r in rows] for c in ("image", "text", "audio")}
    groups = [f"g{table.groups[row]}" for row in rows]
    frame = pd.DataFrame(files).assign(split=[table.splits()[row] for row in rows], group=groups)
    train = frame[frame["split"] == "train"]
    rng = np.random.default_rng(0)
    chosen = rng.choice(train["group"].unique(), min(CLIPS, train["group"].nunique()), replace=False)
    to_speak = frame[frame["group"].isin(chosen) | (frame["split"] == "dev")].drop(columns=["image", "audio"])
    args.work.mkdir(parents=True, exist_ok=True)
    to_speak.to_csv(args.work / "to-speak.csv", index=False)
    speech = args.work / "speech"
    if not (speech / "pairs.csv").exists():
        call("synthesise_speech.py", "--pairs", args.work / "to-speak.csv", "--per-group", 1, "--out", speech)
    clips = pd.read_csv(speech / "pairs.csv", keep_default_na=False)
    spoken_of = to_speak["group"].iloc[clips["group"]].to_numpy()  # there a group is its lowest row of to-speak.csv
    audio = [str((speech / name).resolve()) for name in clips["audio"]]
    more = clips[["text", "split"]].assign(image="", audio=audio, group=spoken_of)
    if args.photos:
        own = train[train["audio"] != ""]["group"].unique()
        others = rng.permutation(np.setdiff1d(train["group"].unique(), own))[: max(0, args.photos - len(own))]
        kept_groups = {*own, *others, *frame[frame["split"] == "dev"]["group"]}
        frame, more = (part[part["group"].isin(kept_groups)] for part in (frame, more))
    pd.concat([frame, more])[list(frame)].to_csv(path, index=False)
    return path, len(frame)


def report(
    args: argparse.Namespace, found: dict[str, dict[str, list[dict[str, Any]]]], sets: dict[str, PairSet]
) -> Any:
    """Clips -> arm -> direction -> recall; and, where a pair is trained with others, its difference from alone."""
    out: dict[str, Any] = {}
    for clips, arms in found.items():
        out[clips] = {}
        for arm, runs in arms.items():
            directions = {d: _by_seed(d, runs) for d in runs[0]["recall"]}
            entry = {"passes": runs[0]["passes"], "seconds": [r["seconds"] for r in runs], "recall": directions}
            alone = {d: name for name in sets if name != arm for d in arms.get(name, [{"recall": {}}])[0]["recall"]}
            entry["less_alone"] = {d: _by_seed(d, runs, arms[alone[d]]) for d in directions if d in alone}
            out[clips][arm] = entry
    head = {"image_text_pairs": len(sets[BASE]), "epochs": args.epochs, "batch_size": BATCH, "seeds": args.seeds}
    return {**head, "metric": "recall on dev, last weights; any item of the group is right", "clips": out}


def _by_seed(direction: str, runs: list[dict[str, Any]], less: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    return {
        f"recall_at_{k}": summary(
            [
                run["recall"][direction][str(k)] - (other["recall"][direction][str(k)] if less else 0.0)
                for run, other in zip(runs, less or runs, strict=False)
            ]
        )
        for k in AT
    }


def show(out: dict[str, Any]) -> None:
    """Print the tables: R@1 / R@10 of every direction."""
    for clips, arms in out["clips"].items():
        directions = list(arms["all three"]["recall"])
        view = Table("R@1 | R@10", *arms, title=clips)
        for direction in directions:
            cells = [arm["recall"].get(direction) for arm in arms.values()]
            view.add_row(direction, *(" | ".join(points(c[f"recall_at_{k}"]) for k in AT) if c else "" for c in cells))
        console.print(view)


def plot(out: dict[str, Any], path: Path) -> None:
    """Spoken caption -> photo, R@10: an arm a row, without and with the synthetic clips."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(9, 3.0), layout="constrained", sharey=True)
    colours = ("#c2572b", "#1f7a5c")
    for axes, voice in zip(panels, VOICES, strict=True):
        names = [a for a, e in next(iter(out["clips"].values())).items() if f"{voice} to image" in e["recall"]]
        for shift, (clips, arms), colour in zip((0.12, -0.12), out["clips"].items(), colours, strict=False):
            values = [arms[name]["recall"][f"{voice} to image"]["recall_at_10"] for name in names]
            half = [100 * (v["half_width_95"] or 0.0) for v in values]
            y = [len(names) - i + shift for i in range(len(names))]
            axes.errorbar([100 * v["mean"] for v in values], y, xerr=half, fmt="o", ms=5, color=colour, label=clips)
        axes.axvline(1.0, color="#8a8f98", linestyle=":")
        axes.set_yticks([len(names) - i for i in range(len(names))], names)
        axes.set_xlim(left=0)
        axes.set_xlabel(f"spoken caption, {voice} → photo\nR@10 among 1,000, %")
        axes.spines[["top", "right"]].set_visible(False)
    panels[1].legend(frameon=False)
    figure.savefig(path, dpi=150)
