r"""Readers of SBU and Conceptual Captions (CC3M): lists of URLs with captions. Nothing here downloads them.

Use a parallel downloader: ``pip install img2dataset``, then (CC3M; its file has no header line)::

    sed -i '1s/^/caption\turl\n/' Train_GCC-training.tsv
    img2dataset --url_list Train_GCC-training.tsv --input_format tsv --url_col url --caption_col caption \
        --output_format files --output_folder images --image_size 256

Its folder holds ``00000/000000012.jpg`` and ``00000.parquet`` (or a ``.json`` beside each picture), which map
URLs to files.

Known traps: URLs die, so downloads of CC3M in different years are different sets; missing files are counted,
listed and left out. Placeholder pictures behind dead URLs are not detected.
SBU and CC3M have no test split: both are training data (CC3M's validation file becomes split ``val``).
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pandas as pd

from fusemix.datasets.base import Pair, Tally, below, kept_captions, locate, read_json_file

SBU_SOURCE = (
    "It comes from https://www.cs.rice.edu/~vo9/sbucaptions/; img2dataset fetches its pictures (docs/datasets.md)."
)
CC3M_SOURCE = (
    "It comes from https://ai.google.com/research/ConceptualCaptions/download; img2dataset fetches its pictures "
    "(docs/datasets.md)."
)
ENDINGS = (".jpg", ".jpeg", ".png", ".webp")


def sbu(root: Path, tally: Tally, *, images: Path | None = None) -> Iterator[Pair]:
    """Read SBU Captions, a million Flickr URLs with one caption each.

    Args:
        root: Holds ``SBU_captioned_photo_dataset_urls.txt`` and ``..._captions.txt``, line for line, or
            ``sbu-captions-all.json`` (``image_urls`` and ``captions``).
        tally: Filled with dead URLs.
        images: Folder that img2dataset wrote, or of files named as in the URL; ``root/images`` by default.

    Raises:
        FileNotFoundError: If the lists or the folder are missing.
        ValueError: If the two lists differ in length.
    """
    lists = ["SBU_captioned_photo_dataset_urls.txt", "sbu-captions-all.json"]
    urls_path = locate(root, lists, what="SBU's list of addresses", source=SBU_SOURCE)
    if urls_path.suffix == ".json":
        data = read_json_file(urls_path)
        try:
            urls, texts = data["image_urls"], data["captions"]
        except (KeyError, TypeError) as error:
            raise ValueError(f"{urls_path} is not SBU's JSON: it lacks {error}.") from error
    else:
        captions_path = urls_path.with_name("SBU_captioned_photo_dataset_captions.txt")
        if not captions_path.is_file():
            raise FileNotFoundError(f"SBU's file of captions is missing: expected {captions_path}. {SBU_SOURCE}")
        urls = urls_path.read_text(encoding="utf-8-sig").split("\n")
        texts = captions_path.read_text(encoding="utf-8-sig").split("\n")
        urls, texts = (lines[:-1] if lines[-1] == "" else lines for lines in (urls, texts))
    if len(urls) != len(texts):
        raise ValueError(f"{urls_path} has {len(urls):,} addresses for {len(texts):,} captions; they go line by line.")
    yield from _linked(zip(urls, texts, strict=True), _Downloaded(images or root / "images"), tally, "train")


def cc3m(root: Path, tally: Tally, *, images: Path | None = None) -> Iterator[Pair]:
    """Read Conceptual Captions 3M: alt texts with names replaced, one per picture.

    Args:
        root: Holds ``Train_GCC-training.tsv`` (caption, tab, URL) and perhaps
            ``Validation_GCC-1.1.0-Validation.tsv``.
        tally: Filled with dead URLs.
        images: Folder that img2dataset wrote; ``root/images`` by default.

    Raises:
        FileNotFoundError: If the list or the folder is missing.
        ValueError: If a line is not caption, tab, URL.
    """
    train = locate(root, ["Train_GCC-training.tsv", "Train-GCC-training.tsv"], what="CC3M's list", source=CC3M_SOURCE)
    downloaded = _Downloaded(images or root / "images")
    yield from _linked(_tsv(train), downloaded, tally, "train")
    validation = train.with_name("Validation_GCC-1.1.0-Validation.tsv")
    if validation.is_file():
        yield from _linked(_tsv(validation), downloaded, tally, "val")


def _tsv(path: Path) -> Iterator[tuple[str, str]]:
    with open(path, newline="", encoding="utf-8-sig") as handle:
        for number, row in enumerate(csv.reader(handle, delimiter="\t", quoting=csv.QUOTE_NONE), start=1):
            if row == ["caption", "url"]:
                continue
            if len(row) != 2 or "://" not in row[1]:
                raise ValueError(f"{path}, line {number}: expected a caption, a tab and an address, got {row}.")
            yield row[1], row[0]


def _linked(links: Iterator[tuple[str, str]], downloaded: _Downloaded, tally: Tally, split: str) -> Iterator[Pair]:
    for url, text in links:
        file = downloaded.file(url.strip())
        if tally.found(split, file, url.strip()):
            for caption in kept_captions([text], tally):
                yield Pair(image=str(file), text=caption, split=split)


class _Downloaded:
    """Map from URL to file, from img2dataset's lists or from files named as in the URL."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise FileNotFoundError(
                f"There is no folder of pictures {folder}; make it with img2dataset (docs/datasets.md says how), or "
                "name it by the argument images."
            )
        self.folder = folder
        self._files: dict[str, str] = {}
        for listed in sorted(folder.glob("*.parquet")):
            self._read_parquet(listed)
        if not self._files:
            for shard in below(folder)[1:]:
                for meta in sorted(shard.glob("*.json")):
                    entry = read_json_file(meta)
                    if isinstance(entry, dict) and entry.get("status") == "success":
                        self._files[entry["url"]] = f"{shard.name}/{meta.stem}"

    def _read_parquet(self, path: Path) -> None:
        try:
            frame = pd.read_parquet(path, columns=["url", "key", "status"])
        except (ValueError, OSError, KeyError) as error:
            raise ValueError(f"{path} is not a list of img2dataset's with url, key and status ({error}).") from error
        done = frame[frame["status"] == "success"]
        for url, key in zip(done["url"], done["key"], strict=True):
            self._files[url] = f"{path.stem}/{key}"

    def file(self, url: str) -> Path | None:
        """Return the picture of a URL, or None."""
        if self._files:
            if url not in self._files:
                return None
            stem = self.folder / self._files[url]
            if not stem.resolve().is_relative_to(self.folder.resolve()):
                raise ValueError(f"{self.folder} lists {self._files[url]!r} for {url}, which lies outside of it.")
            return next((f for ending in ENDINGS if (f := stem.with_name(stem.name + ending)).is_file()), None)
        name = Path(urlsplit(url).path).name
        return self.folder / name if name else None
