"""Shared parts of the dataset readers: pairs, a tally of what was left out, finding and writing files."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from PIL import Image

from fusemix.datasets.splits import closing

_CHUNK = 1 << 20  # characters of JSON read at a time
_PICTURES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic",
    ".heif", ".jp2", ".j2k", ".tga", ".ppm", ".pgm", ".qoi", ".dds", ".psd", ".ico",
)  # fmt: skip
SOUNDS = (
    ".wav", ".w64", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".m4a", ".m4b", ".aac", ".aif", ".aiff", ".aifc", ".au",
    ".caf", ".amr", ".wma", ".wv", ".ape", ".tta", ".webm", ".mp4", ".m4v", ".mov", ".3gp", ".mka", ".mkv", ".mp2",
    ".mpga", ".mpg", ".mpeg", ".spx", ".avi", ".wmv", ".snd",
)  # fmt: skip
_MAGIC = (
    (b"\xff\xd8\xff", ".jpg"), (b"\x89PNG", ".png"), (b"GIF8", ".gif"), (b"BM", ".bmp"), (b"II*\0", ".tif"),
    (b"MM\0*", ".tif"), (b"fLaC", ".flac"), (b"OggS", ".ogg"), (b"ID3", ".mp3"), (b"\xff\xfb", ".mp3"),
    (b"\xff\xf1", ".aac"), (b"\xff\xf9", ".aac"), (b"\x1aE\xdf\xa3", ".webm"), (b"\0\0\0\x0cjP  ", ".jp2"),
)  # fmt: skip
_BOXES = {b"avif": ".avif", b"heic": ".heic", b"heix": ".heic", b"mif1": ".heic", b"M4A ": ".m4a"}


class Pair(NamedTuple):
    """One row of a table of pairs; files as absolute paths or paths below the working folder."""

    image: str = ""
    audio: str = ""
    text: str = ""
    split: str = ""
    group: str = ""


@dataclass
class Tally:
    """Counts of what a reader left out; filled while its pairs are read.

    Attributes:
        wanted: Split -> files that the annotations name.
        missing: (split, file or URL) that are not on the disk.
        left_out: Reason -> how many captions, regions or samples.
        notes: Sentences that users of the table should know.
    """

    wanted: Counter[str] = field(default_factory=Counter)
    missing: list[tuple[str, str]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def found(self, split: str, path: Path | None, name: str) -> bool:
        """Count a file that the annotations name, and record it as missing if it is; return whether it exists."""
        self.wanted[split] += 1
        if path is not None and path.is_file():
            return True
        self.missing.append((split, name))
        return False

    def sentences(self) -> list[str]:
        """Return everything recorded as sentences."""
        lost = Counter(split for split, _ in self.missing)
        lines = []
        for split, number in lost.items():
            line = f"{number:,} of {self.wanted[split]:,} files of {split or 'the set'} are missing and left out"
            lines.append(
                line + ("; figures on the rest are not those of the whole split." if split != "train" else ".")
            )
        lines += [f"{number:,} left out: {reason}." for reason, number in self.left_out.items()]
        return lines + self.notes

    def summary(self, counts: Mapping[str, int]) -> str:
        """Say in one sentence how many pairs each split has and how many items were left out."""
        lost = Counter({"files that are missing": len(self.missing)})
        return closing(counts, lost + self.left_out, what="pairs")


def picture_endings() -> tuple[str, ...]:
    """Return the endings of pictures that can be decoded: .heic and .avif only with their decoders."""
    known = Image.registered_extensions()
    return tuple(ending for ending in _PICTURES if ending in known)


_LITTER = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "Thumbs.db", "desktop.ini"})


def is_litter(name: str) -> bool:
    """Return whether a file (named with its folders) is hidden, nameless or created by an operating system."""
    path = PurePosixPath(name)
    return path.name[:1] in ("", ".") or not _LITTER.isdisjoint(path.parts)


def ending_of(data: bytes) -> str:
    """Return the file ending for the first bytes of a picture or sound; empty if the format is unknown."""
    if data[:4] == b"RIFF":
        return ".wav" if data[8:12] == b"WAVE" else ".webp"
    if data[:4] == b"FORM":
        return ".aiff"
    if data[4:8] == b"ftyp":
        return _BOXES.get(data[8:12], ".mp4")
    return next((ending for magic, ending in _MAGIC if data.startswith(magic)), "")


def write_by_hash(folder: Path, data: bytes, ending: str) -> str:
    """Write bytes to a file named by their hash, so that datasets cannot overwrite one another; return its path.

    An existing file is compared and rewritten if it differs.
    """
    digest = hashlib.sha256(data).hexdigest()[:32]
    path = folder / digest[:2] / f"{digest}{ending}"
    if not path.is_file() or path.stat().st_size != len(data) or path.read_bytes() != data:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.write_bytes(data)
        os.replace(temporary, path)
    return str(path)


def walk(root: Path, tally: Tally | None = None) -> Iterator[tuple[Path, list[str]]]:
    """Yield (folder, names of its files) for every folder below, sorted; linked folders too, each once.

    Hidden folders, and folders already visited under another name, are counted in the tally.
    """
    seen: set[tuple[int, int]] = set()
    unopened = "folders that cannot be opened"
    for where, folders, names in os.walk(root, followlinks=True, onerror=lambda error: _count(tally, unopened)):
        about = Path(where).stat()
        if (about.st_dev, about.st_ino) in seen:
            folders.clear()
            _count(tally, "folders that are linked a second time")
            continue
        seen.add((about.st_dev, about.st_ino))
        hidden = [name for name in folders if is_litter(name)]
        _count(tally, "hidden folders", len(hidden))
        links = {name for name in folders if os.path.islink(os.path.join(where, name))}  # noqa: PTH114, PTH118
        folders[:] = sorted((name for name in folders if name not in hidden), key=lambda name: (name in links, name))
        yield Path(where), sorted(names)


def _count(tally: Tally | None, reason: str, number: int = 1) -> None:
    if tally is not None and number:
        tally.left_out[reason] += number


def clean(text: Any) -> str:
    """Return a caption on one line, without spaces at its ends."""
    return " ".join(str(text).split())


def kept_captions(
    texts: Iterable[Any], tally: Tally, *, first: int | None = None, distinct: bool = False
) -> Iterator[str]:
    """Yield the captions of one item: at most ``first``, no empty ones, with ``distinct`` each once."""
    given: dict[str, None] = {}
    taken = 0
    for text in texts:
        caption = clean(text)
        if not caption:
            tally.left_out["captions that are empty"] += 1
        elif distinct and caption in given:
            tally.left_out["captions that stand twice on one picture"] += 1
        elif first is not None and taken >= first:
            tally.left_out[f"captions beyond the first {first} of an item"] += 1
        else:
            given[caption] = None
            taken += 1
            yield caption


def locate(root: Path, names: Iterable[str], *, what: str, source: str, given: Path | None = None) -> Path:
    """Find a file or folder called one of ``names``, in ``root`` or one folder below.

    Raises:
        FileNotFoundError: If there is none, with the source to get it from.
    """
    if given is not None:
        if not given.exists():
            raise FileNotFoundError(f"{what} is not at {given}.")
        return given
    names = list(names)
    if not root.is_dir():
        raise FileNotFoundError(f"{what} is missing: there is no folder {root}. {source}")
    for folder in below(root):
        for name in names:
            if (folder / name).exists():
                return folder / name
    raise FileNotFoundError(f"{what} is missing: expected {' or '.join(names)} in {root} or a folder in it. {source}")


def below(root: Path) -> list[Path]:
    """Return the root and its folders.

    Raises:
        FileNotFoundError: If the root is no folder.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"There is no folder {root}.")
    return [root, *sorted(Path(entry.path) for entry in os.scandir(root) if entry.is_dir())]


def read_json_file(path: Path) -> Any:
    """Read a JSON file; a damaged one is a ValueError that names it."""
    try:
        with open(path, encoding="utf-8-sig") as handle:
            return json.load(handle)
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); was the download incomplete?") from error


def stream_array(path: Path) -> Iterator[Any]:
    """Yield the elements of a JSON array one at a time: Visual Genome's would take gigabytes of memory.

    Raises:
        ValueError: If the file is no JSON array, or ends early.
    """
    decoder = json.JSONDecoder()
    with open(path, encoding="utf-8-sig") as handle:
        text = ""
        while not text and (more := handle.read(_CHUNK)):
            text = more.lstrip()
        if not text.startswith("["):
            raise ValueError(f"{path} is not a JSON array.")
        place, number = 1, 0
        while True:
            try:
                while text[place] in " \t\r\n,":
                    place += 1
                if text[place] == "]":
                    return
                element, end = decoder.raw_decode(text, place)
                if text[end] not in " \t\r\n,]":  # a number at the chunk's end may continue in the next
                    raise IndexError
            except (ValueError, IndexError) as error:
                more = handle.read(max(_CHUNK, len(text)))
                if not more:
                    raise ValueError(f"{path} is damaged or cut short after element {number:,}.") from error
                text, place = text[place:] + more, 0
                continue
            yield element
            place, number = end, number + 1


def index_files(folder: Path, endings: Iterable[str]) -> dict[str, list[Path]]:
    """Map file stems to files with one of the endings, anywhere below a folder, including linked folders."""
    chosen, files = frozenset(endings), defaultdict(list)
    for where, names in walk(folder):
        for name in names:
            stem, _, ending = name.rpartition(".")
            if f".{ending.lower()}" in chosen:
                files[stem].append(Path(where, name))
    return files
