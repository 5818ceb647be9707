"""WebDataset shards: .tar files in which members of one name and several endings are one sample.

A shard is read front to back and unpacked into a folder under **our own** numbers: no path from an archive is ever
used, links and devices are not followed, and nothing is unpickled. Run again after a kill, it goes on over the
files that are there.

Known traps: a sample's name is everything before the first dot of its last part, so ``a.b.jpg`` is sample ``a``;
samples with several pictures keep the first; endings that are not pictures, sounds, .txt or .json (among them
.pkl, .pyd, .pth, .npy) are counted and left out.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fusemix.datasets.base import Pair, Tally, kept_captions
from fusemix.media import MAX_FILE_BYTES

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
SOUNDS = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a")
TEXT_KEYS = ("caption", "captions", "text", "txt")  # of a .json member
SPLITS = ("train", "val", "valid", "validation", "dev", "test")


def webdataset(
    root: Path, tally: Tally, *, unpack: Path | None = None, split: str | None = None, captions: int | None = None
) -> Iterator[Pair]:
    """Samples of every .tar (.tar.gz, .tgz) in a folder, or of one shard.

    Args:
        root: A folder of shards, or a shard.
        tally: Filled with what is left out.
        unpack: Where the files go, one folder a shard; ``unpacked`` beside the shards by default.
        split: Of all samples; without it, what a shard's name begins with (train, val, test, ...), if it does.
        captions: Keep only so many of a sample's captions.

    Raises:
        FileNotFoundError: If there is no shard.
        ValueError: If a shard is no .tar, or cut short.
    """
    shards = [root] if root.is_file() else sorted(p for e in ("tar", "tar.gz", "tgz") for p in root.glob(f"*.{e}"))
    if not shards:
        raise FileNotFoundError(f"There is no .tar shard in {root}.")
    base = unpack if unpack is not None else shards[0].parent / "unpacked"
    for shard in shards:
        stem = shard.name.split(".tar")[0].removesuffix(".tgz")
        word = next((s for s in sorted(SPLITS, key=len, reverse=True) if stem.lower().startswith(s)), "")
        for number, (key, parts) in enumerate(_samples(shard, tally)):
            files = {kind: _place(base / stem, number, ending, data) for kind, ending, data in _media(parts, tally)}
            if not files:
                tally.left_out["samples without a picture or a sound"] += 1
                continue
            texts = list(kept_captions(_texts(parts, shard, key), tally, first=captions)) or [""]
            group = f"{stem}/{key}"
            for text in texts:
                yield Pair(files.get("image", ""), files.get("audio", ""), text, split or word, group)


def _samples(shard: Path, tally: Tally) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(key, ending -> bytes) of a shard's samples, one in memory at a time."""
    key = ""
    parts: dict[str, bytes] = {}
    try:
        with tarfile.open(shard, "r|*") as archive:
            for member in archive:
                if not member.isfile():
                    if not member.isdir():
                        tally.left_out["members of a shard that are no plain files"] += 1
                    continue
                folder, _, name = member.name.rpartition("/")
                stem, _, rest = name.partition(".")
                ending = "." + rest.rpartition(".")[2].lower()
                if ending not in (*IMAGES, *SOUNDS, ".txt", ".json"):
                    tally.left_out[f"members that end in {ending} (not read, and never unpickled)"] += 1
                    continue
                if member.size > MAX_FILE_BYTES:
                    tally.left_out[f"members of more than {MAX_FILE_BYTES // 2**20} MB"] += 1
                    continue
                if f"{folder}/{stem}" != key:
                    if parts:
                        yield key.lstrip("/"), parts
                    key, parts = f"{folder}/{stem}", {}
                handle = archive.extractfile(member)
                if ending in parts:
                    tally.left_out["second members of one ending in a sample"] += 1
                elif handle is not None:
                    parts[ending] = handle.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"{shard} is not a .tar shard, or cut short ({error}).") from error
    if parts:
        yield key.lstrip("/"), parts


def _media(parts: dict[str, bytes], tally: Tally) -> Iterator[tuple[str, str, bytes]]:
    """(kind, ending, bytes): at most one picture and one sound."""
    for kind, endings in (("image", IMAGES), ("audio", SOUNDS)):
        found = [ending for ending in parts if ending in endings]
        if len(found) > 1:
            tally.left_out[f"second {kind} members of a sample"] += len(found) - 1
        if found:
            yield kind, found[0], parts[found[0]]


def _texts(parts: dict[str, bytes], shard: Path, key: str) -> list[str]:
    """Captions: the .txt member, else what the .json member calls so."""
    if ".txt" in parts:
        return [parts[".txt"].decode("utf-8", errors="replace")]
    if ".json" not in parts:
        return []
    try:
        values: Any = json.loads(parts[".json"])
    except ValueError as error:
        raise ValueError(f"{shard}: the .json of sample {key} is not valid JSON ({error}).") from error
    if not isinstance(values, dict):
        return []
    found: Any = next((values[k] for k in TEXT_KEYS if values.get(k)), [])
    return [str(text) for text in found] if isinstance(found, list) else [str(found)]


def _place(folder: Path, number: int, ending: str, data: bytes) -> str:
    """Write a file under our own number unless it is there."""
    path = folder / f"{number:08d}{ending}"
    if not path.is_file() or path.stat().st_size != len(data):
        folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.write_bytes(data)
        os.replace(temporary, path)
    return str(path)
