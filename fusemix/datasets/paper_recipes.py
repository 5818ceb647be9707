"""The paper's experiments as lists of commands: tables, latents, adapters, results.

Settings are those of the authors' public code (layer6ai-labs/fusemix, ``mlp_contrastive_fusion_pretrain``); choices
that the code does not state are marked below. Departures: the epoch is chosen on the validation split of the
training data (their code chose it on Flickr30K's test split), and Visual Genome leaves out pictures of test splits.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fusemix.datasets import DATASETS, SOURCES, Tally
from fusemix.datasets.base import locate

ENCODERS = {
    "image": "hub-image:facebook/dinov2-giant?pooling=cls",
    "text": "hub-text:BAAI/bge-large-en-v1.5?pooling=cls",
    # HTS-AT beside Whisper; the code does not state the size of Whisper
    "audio": "hub-audio:laion/clap-htsat-unfused ++ hub-audio:openai/whisper-large-v2",
}
TRAINING = (
    "--recipe=paper", "--depth=4", "--expansion=4", "--dropout=0.6", "--embed-dim=512", "--mixup-alpha=1",
    "--batch-size=40960", "--epochs=500", "--learning-rate=1e-3", "--warmup-steps=100", "--weight-decay=0.1",
    "--temperature=0.07", "--mixed-precision=no", "--eval-every=5", "--save-every=5",
)  # fmt: skip
# The paper's five million pairs leave room for some 0.8 million of Visual Genome's 5.4 million phrases. The code
# does not state which; these are the first of each picture.
TABLE_OPTIONS = {"visual-genome": ("--captions", "8")}
IMAGE_TEXT = ("coco", "visual-genome", "sbu", "cc3m")
AUDIO_TEXT = ("audiocaps", "clotho")
DECODER = "sd2-community/stable-diffusion-2-1-unclip-small"
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Recipe:
    """One experiment.

    Attributes:
        sets: Name of a set of pairs -> its two modalities and the datasets it is made of.
        tests: Datasets whose test split is reported.
        decoder: Whether a decoder is conditioned on the shared space afterwards.
    """

    sets: Mapping[str, tuple[tuple[str, str], tuple[str, ...]]]
    tests: tuple[str, ...]
    decoder: bool = False


_WITH_IMAGES, _WITH_SOUNDS = ("image", "text"), ("audio", "text")
RECIPES = {
    "flickr30k": Recipe({"image-text": (_WITH_IMAGES, IMAGE_TEXT)}, ("flickr30k",)),
    "coco": Recipe({"image-text": (_WITH_IMAGES, IMAGE_TEXT)}, ("coco",)),
    "audiocaps": Recipe({"audio-text": (_WITH_SOUNDS, AUDIO_TEXT)}, ("audiocaps",)),
    "clotho": Recipe({"audio-text": (_WITH_SOUNDS, AUDIO_TEXT)}, ("clotho",)),
    "audio-to-image": Recipe(
        {"image-text": (_WITH_IMAGES, ("coco",)), "audio-text": (_WITH_SOUNDS, AUDIO_TEXT)}, ("coco", "clotho"), True
    ),
}
MODALITIES = dict.fromkeys((*IMAGE_TEXT, "flickr30k", "flickr8k"), _WITH_IMAGES) | dict.fromkeys(
    (*AUDIO_TEXT, "esc50"), _WITH_SOUNDS
)


@dataclass(frozen=True)
class Command:
    """A command of ``fusemix`` and the file whose existence means that it is done."""

    name: str
    arguments: tuple[str, ...]
    makes: Path | None = None

    def __str__(self) -> str:
        return shlex.join(["fusemix", self.name, *self.arguments])


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The user's choices for a recipe.

    Attributes:
        roots: Dataset -> its folder.
        work: Folder for tables, latents and checkpoints.
        encoders: Modality -> encoder.
        seeds: One training run each.
        training: Further flags of ``fusemix train``; they override the paper's.
        device: Torch device of the encoders.
        train_on: Datasets to train on instead of the recipe's.
        decoder: Folder or Hub id of a Stable unCLIP.
        conditioner_pairs: Table of pictures with captions and sounds, to fit the conditioner of the decoder.
    """

    roots: Mapping[str, Path]
    work: Path
    encoders: Mapping[str, str]
    seeds: Sequence[int] = (42,)
    training: Sequence[str] = ()
    device: str = "cpu"
    train_on: Sequence[str] = ()
    decoder: str = DECODER
    conditioner_pairs: Path = ROOT / "demo/gallery/pairs.csv"


def sets_of(recipe: Recipe, setting: Setting) -> dict[str, tuple[tuple[str, str], tuple[str, ...]]]:
    """Return the recipe's sets, restricted to the datasets of ``train_on`` if given.

    Raises:
        ValueError: If a dataset is not one of the recipes', or a set has none left.
    """
    if unknown := sorted(set(setting.train_on) - set(MODALITIES)):
        raise ValueError(f"{unknown[0]!r} cannot be trained on here; choose among {', '.join(sorted(MODALITIES))}.")
    sets = {}
    for name, (modalities, datasets) in recipe.sets.items():
        chosen = tuple(d for d in setting.train_on if MODALITIES[d] == modalities) if setting.train_on else datasets
        if not chosen:
            raise ValueError(f"train_on names no dataset with {' and '.join(modalities)}.")
        sets[name] = (modalities, chosen)
    return sets


def lacking(recipe: Recipe, setting: Setting) -> list[str]:
    """List missing data, one sentence each; every dataset is read until its splits have been found."""
    needed: dict[str, set[str]] = {name: {"test"} for name in recipe.tests}
    for _, datasets in sets_of(recipe, setting).values():
        for name in datasets:
            needed.setdefault(name, set()).add("train")
    said = [f"{name}: {why}" for name, splits in needed.items() if (why := _lacks(name, setting.roots[name], splits))]
    if "visual-genome" in needed and "coco" not in needed:
        file = _karpathy_files(setting.roots)[0]
        if not file.is_file():
            said.append(f"visual-genome: {file}, whose val and test pictures are dropped. {SOURCES['coco']}")
    return said


def _lacks(name: str, root: Path, splits: set[str]) -> str:
    seen, tally = set[str](), Tally()
    try:
        for pair in DATASETS[name](root, tally):
            seen.add(pair.split)
            if splits <= seen:
                return ""
    except FileNotFoundError as error:
        return str(error)  # the message names the source
    except (OSError, ValueError) as error:
        return f"{error} {SOURCES[name]}"
    absent = f"no pair of split {' and '.join(sorted(splits - seen))} can be made from {root}"
    if tally.missing:
        absent += f"; {len(tally.missing):,} files are not there, the first {tally.missing[0][1]}"
    return f"{absent}. {SOURCES[name]} fusemix table {name} --about says more."


def commands(recipe: Recipe, setting: Setting) -> list[Command]:
    """List the commands to run, in order; each can be run again after a kill."""
    sets, work = sets_of(recipe, setting), setting.work
    tables = {name: work / f"tables/{name}.parquet" for _, datasets in sets.values() for name in datasets}
    tables |= {name: work / f"tables/{name}.parquet" for name in recipe.tests}
    done = [_make_table(name, path, setting) for name, path in tables.items()]
    stores: dict[str, dict[str, Path]] = {}
    for name, (modalities, datasets) in sets.items():
        joined = work / f"tables/{name}.parquet"
        pieces = [f"{dataset}={tables[dataset]}" for dataset in datasets]
        done.append(_command("join", "--tables", *pieces, "--splits", "train", "val", "--out", joined))
        stores[name] = {m: work / f"latents/{name}-{m}" for m in modalities}
        done += [_extract(joined, m, folder, setting, "--on-error", "skip") for m, folder in stores[name].items()]
    for test in recipe.tests:
        stores[test] = {m: work / f"latents/{test}-test-{m}" for m in MODALITIES[test]}
        done += [_extract(tables[test], m, folder, setting, "--split", "test") for m, folder in stores[test].items()]
    for seed in setting.seeds:
        checkpoint = work / f"seed{seed}"
        latents = [word for name in sets for word in ("--latents", *_pieces(stores[name]))]
        flags = [*TRAINING, f"--seed={seed}", *setting.training]
        train: tuple[object, ...] = (*latents, "--out", checkpoint, *flags)
        done.append(_command("train", *train, makes=checkpoint / "history.json"))
        for test in recipe.tests:
            for query, gallery in (MODALITIES[test][::-1], MODALITIES[test]):
                done.append(
                    _command(
                        "evaluate", "--checkpoint", checkpoint, "--pairs", tables[test], "--query", query,
                        "--gallery", gallery, "--split", "test", "--latents", *_pieces(stores[test]),
                        "--json", result(setting, seed, test, query, gallery),
                    )
                )  # fmt: skip
    if recipe.decoder:
        first = work / f"seed{setting.seeds[0]}"
        done.append(
            _command(
                "conditioner", "--checkpoint", first, "--decoder", setting.decoder, "--pairs",
                setting.conditioner_pairs, "--device", setting.device, "--out", work / "conditioner",
                makes=work / "conditioner/conditioner.json",
            )
        )  # fmt: skip
        sound = ROOT / "demo/gallery/sounds/sound-ambi-sauna.mp3"
        done.append(
            _command(
                "generate", "--checkpoint", first, "--decoder", setting.decoder, "--conditioner",
                work / "conditioner", "--audio", sound, "--device", setting.device, "--out", work / "sound.png",
            )
        )  # fmt: skip
    return done


def result(setting: Setting, seed: int, test: str, query: str, gallery: str) -> Path:
    """Return the file for the results of one direction."""
    return setting.work / f"seed{seed}/{test}_test_{query}_to_{gallery}.json"


def _command(name: str, *arguments: object, makes: Path | None = None) -> Command:
    words = tuple(map(str, arguments))
    if makes is None and "--out" in words and name != "extract":
        makes = Path(words[words.index("--out") + 1])
    return Command(name, words, makes)


def _make_table(name: str, path: Path, setting: Setting) -> Command:
    options: list[object] = [*TABLE_OPTIONS.get(name, ())]
    if name == "visual-genome":
        options += ["--karpathy", *_karpathy_files(setting.roots)]
    return _command("table", name, "--root", setting.roots[name], "--out", path, *options)


def _karpathy_files(roots: Mapping[str, Path]) -> list[Path]:
    """Return the files of COCO's splits, which must exist, and of Flickr30K's if they do."""
    files = []
    for name in ("coco", "flickr30k"):
        wanted = f"dataset_{name}.json"
        try:
            files.append(locate(roots[name], [wanted], what=wanted, source=""))
        except FileNotFoundError:
            if name == "coco":
                files.append(roots[name] / wanted)
    return files


def _extract(table: Path, modality: str, folder: Path, setting: Setting, *more: str) -> Command:
    return _command(
        "extract", "--pairs", table, "--column", modality, "--encoder", setting.encoders[modality], "--out", folder,
        "--device", setting.device, *more,
    )  # fmt: skip


def _pieces(stores: Mapping[str, Path]) -> list[str]:
    return [f"{modality}={folder}" for modality, folder in stores.items()]
