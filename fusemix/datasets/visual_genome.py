"""Reader of Visual Genome's region descriptions: 108,077 pictures, about fifty phrases each, all training data.

Known traps: a phrase describes a region of its picture, here it is paired with the whole picture; repeated phrases
of a picture are kept once. About half of the pictures are COCO's, **some of them in the val and
test splits that are evaluated on**, and others may be Flickr30K's: give Karpathy's files with ``karpathy`` and
those pictures are dropped. Without them nothing is dropped, and the table's notes say so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from fusemix.datasets.base import Pair, Tally, below, kept_captions, locate, stream_array
from fusemix.datasets.karpathy import held_out

SOURCE = (
    "It comes from https://homes.cs.washington.edu/~ranjay/visualgenome/api.html: region_descriptions.json.zip, "
    "image_data.json.zip, images.zip (VG_100K) and images2.zip (VG_100K_2), unpacked."
)


def visual_genome(
    root: Path, tally: Tally, *, karpathy: Sequence[Path] = (), captions: int | None = None
) -> Iterator[Pair]:
    """Read Visual Genome one picture at a time, because the whole JSON would take gigabytes of memory.

    Args:
        root: Holds ``region_descriptions.json``, ``image_data.json`` and folders of ``NUMBER.jpg``.
        tally: Filled with what is missing.
        karpathy: ``dataset_coco.json`` and ``dataset_flickr30k.json``, whose val and test pictures are dropped.
        captions: Keep only so many phrases of a picture.

    Raises:
        FileNotFoundError: If a JSON file is missing.
        ValueError: If one is damaged or of another form.
    """
    regions = locate(root, ["region_descriptions.json"], what="Visual Genome's region_descriptions.json", source=SOURCE)
    dropped = _tested_on(root, karpathy, tally)
    folders = [folder for folder in below(root) if folder.name.startswith("VG_100K")] or below(root)
    for picture in stream_array(regions):
        try:
            number, phrases = int(picture["id"]), [region["phrase"] for region in picture["regions"]]
        except (KeyError, TypeError) as error:
            raise ValueError(f"{regions} is not Visual Genome's: a picture lacks {error}.") from error
        if number in dropped:
            continue
        file = next((f for folder in folders if (f := folder / f"{number}.jpg").is_file()), None)
        if tally.found("train", file, f"{number}.jpg"):
            for text in kept_captions(phrases, tally, first=captions, distinct=True):
                yield Pair(image=str(file), text=text, split="train", group=f"vg-{number}")


def _tested_on(root: Path, karpathy: Sequence[Path], tally: Tally) -> set[int]:
    """Return the numbers of pictures in the val and test splits of Karpathy's files."""
    if not karpathy:
        tally.notes.append(
            "Nothing was dropped for standing in COCO's val or test: name dataset_coco.json as karpathy "
            "before you report figures on COCO."
        )
        return set()
    named = dict(held_out(path) for path in karpathy)
    data = locate(root, ["image_data.json"], what="Visual Genome's image_data.json", source=SOURCE)
    dropped = set()
    for picture in stream_array(data):
        for name, key in (("coco", "coco_id"), ("flickr30k", "flickr_id"), ("flickr8k", "flickr_id")):
            if picture.get(key) is not None and str(picture[key]) in named.get(name, ()):
                dropped.add(int(picture["image_id"]))
                tally.left_out[f"pictures that stand in {name}'s val or test"] += 1
                break
    return dropped
