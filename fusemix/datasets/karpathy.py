"""Readers of COCO captions and Flickr30K with the splits of Karpathy and Fei-Fei (CVPR 2015).

Five captions per picture (some of COCO's have six or seven): every caption is a row, and all captions of a
picture are right answers for it. Figures called "COCO 5K" and "Flickr30K 1K" are those of split ``test`` with
the whole split as gallery; "COCO 1K" is a mean over folds and not comparable. CLIP's protocol keeps the first
five captions of each picture: ``--captions 5``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fusemix.datasets.base import Pair, Tally, below, kept_captions, locate, read_json_file

SPLITS = {"train": "train", "restval": "train", "val": "val", "test": "test"}
_SPLITS_FROM = "The splits are in caption_datasets.zip, https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip."
COCO_SOURCE = (
    f"{_SPLITS_FROM} The pictures are http://images.cocodataset.org/zips/train2014.zip and val2014.zip (or "
    "train2017.zip and val2017.zip), unpacked."
)
FLICKR30K_SOURCE = (
    f"{_SPLITS_FROM} The pictures are given out on request at https://shannon.cs.illinois.edu/DenotationGraph/."
)


def coco(root: Path, tally: Tally, *, annotations: Path | None = None, captions: int | None = None) -> Iterator[Pair]:
    """Read COCO captions: 113,287 training pictures (``restval`` counts as train), 5,000 val, 5,000 test.

    Args:
        root: Holds ``dataset_coco.json`` and the folders ``train2014`` and ``val2014``, or the same pictures in
            ``train2017`` and ``val2017`` (their names are then the picture's number alone).
        tally: Filled with what is missing.
        annotations: The JSON file, if elsewhere.
        captions: Keep only so many of a picture's captions.

    Raises:
        FileNotFoundError: If the JSON file is missing.
        ValueError: If it is not what Karpathy's files are.
    """
    path = locate(
        root, ["dataset_coco.json"], what="Karpathy's dataset_coco.json", source=COCO_SOURCE, given=annotations
    )
    folders = {folder.name: folder for parent in below(root) for folder in (parent, *_years(parent))}

    def picture(entry: dict[str, Any]) -> Path | None:
        number = f"{int(entry['cocoid']):012d}.jpg"
        for folder, name in ((entry["filepath"], entry["filename"]), ("train2017", number), ("val2017", number)):
            if folder in folders and (folders[folder] / name).is_file():
                return folders[folder] / name
        return None

    yield from _pairs(path, "coco", picture, tally, captions)


def flickr30k(
    root: Path, tally: Tally, *, annotations: Path | None = None, captions: int | None = None
) -> Iterator[Pair]:
    """Read Flickr30K: 29,000 training pictures, 1,014 val, 1,000 test, five captions each.

    Args:
        root: Holds ``dataset_flickr30k.json`` and the pictures, in ``flickr30k-images`` or another folder.
        tally: Filled with what is missing.
        annotations: The JSON file, if elsewhere.
        captions: Keep only so many of a picture's captions.

    Raises:
        FileNotFoundError: If the JSON file is missing.
        ValueError: If it is not what Karpathy's files are.
    """
    path = locate(
        root,
        ["dataset_flickr30k.json"],
        what="Karpathy's dataset_flickr30k.json",
        source=FLICKR30K_SOURCE,
        given=annotations,
    )
    folders = below(root)

    def picture(entry: dict[str, Any]) -> Path | None:
        files = (folder / entry["filename"] for folder in folders)
        return next((file for file in files if file.is_file()), None)

    yield from _pairs(path, "flickr30k", picture, tally, captions)


def held_out(path: Path) -> tuple[str, set[str]]:
    """Return the name of the dataset that a Karpathy file describes, and the pictures of its val and test splits.

    Returns:
        ``coco`` and COCO ids, or ``flickr30k`` (``flickr8k``) and Flickr photo ids, as strings.
    """
    data = _read(path)
    kept = [entry for entry in data["images"] if SPLITS[entry["split"]] != "train"]
    if data["dataset"] == "coco":
        return "coco", {str(entry["cocoid"]) for entry in kept}
    return str(data["dataset"]), {Path(entry["filename"]).stem.split("_")[0] for entry in kept}


def _years(parent: Path) -> list[Path]:
    return [parent / name for name in ("train2014", "val2014", "train2017", "val2017") if (parent / name).is_dir()]


def _read(path: Path) -> dict[str, Any]:
    data = read_json_file(path)
    try:
        unknown = {entry["split"] for entry in data["images"]} - set(SPLITS)
        data["dataset"], [entry["filename"] for entry in data["images"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is not one of Karpathy's files: it lacks {error}.") from error
    if unknown:
        raise ValueError(f"{path} has the splits {sorted(unknown)}, which Karpathy's files do not have.")
    return dict(data)


def _pairs(path: Path, name: str, picture: Any, tally: Tally, first: int | None) -> Iterator[Pair]:
    data = _read(path)
    if data["dataset"] != name:
        raise ValueError(f"{path} describes {data['dataset']!r}, not {name!r}.")
    for entry in data["images"]:
        split, file = SPLITS[entry["split"]], picture(entry)
        if tally.found(split, file, entry["filename"]):
            for text in kept_captions((sentence["raw"] for sentence in entry["sentences"]), tally, first=first):
                yield Pair(image=str(file), text=text, split=split, group=Path(entry["filename"]).stem)
