"""Flickr8k with its official split: 6,000 training photos, 1,000 dev, 1,000 test, five captions each.

Known traps: the token file captions some ninety photos that are in none of the three splits (one of
them, ``2258277193_586949ec62.jpg.1``, does not exist): they are left out and counted. Karpathy's split of
Flickr8k has the same sizes; name the one you use.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fusemix.datasets.base import Pair, Tally, below, kept_captions, locate

SPLITS = {"train": "Flickr_8k.trainImages.txt", "dev": "Flickr_8k.devImages.txt", "test": "Flickr_8k.testImages.txt"}
SOURCE = (
    "Flickr8k_text.zip and Flickr8k_Dataset.zip come from the University of Illinois (Hodosh, Young and Hockenmaier, "
    "2013), for research only."
)


def flickr8k(root: Path, tally: Tally, *, captions: int | None = None) -> Iterator[Pair]:
    """Read Flickr8k.

    Args:
        root: Holds ``Flickr8k.token.txt``, the three ``Flickr_8k.*Images.txt`` and a folder of photos
            (``Flicker8k_Dataset``, as its archive spells it, or any other).
        tally: Filled with what is missing.
        captions: Keep only so many of a photo's captions.

    Raises:
        FileNotFoundError: If a text file is missing.
        ValueError: If a line of the token file is not ``photo.jpg#number<TAB>caption``.
    """
    tokens = locate(root, ["Flickr8k.token.txt"], what="Flickr8k's file of captions", source=SOURCE)
    split_of: dict[str, str] = {}
    for split, name in SPLITS.items():
        listed = locate(root, [name], what=f"Flickr8k's list of {split} photos", source=SOURCE)
        split_of |= dict.fromkeys(listed.read_text(encoding="utf-8-sig").split(), split)
    texts: dict[str, list[str]] = {}
    for number, line in enumerate(tokens.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if not line.strip():
            continue
        name, tab, text = line.partition("\t")
        photo, mark, _ = name.rpartition("#")
        if not tab or not mark:
            raise ValueError(f"{tokens}, line {number}: expected photo.jpg#number, a tab and a caption, got {line!r}.")
        texts.setdefault(photo, []).append(text)
    if loose := len(set(texts) - set(split_of)):
        tally.left_out["photos that are in none of the three split files"] = loose
    folders = below(root)
    for photo, split in split_of.items():
        file = next((folder / photo for folder in folders if (folder / photo).is_file()), None)
        if tally.found(split, file, photo):
            for text in kept_captions(texts.get(photo, ()), tally, first=captions):
                yield Pair(image=str(file), text=text, split=split, group=Path(photo).stem)
