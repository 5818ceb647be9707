"""Reader of WebDataset shards: .tar files in which members of one name and several endings are one sample.

A shard is read front to back and unpacked into a folder under names made from the files' hashes: no path from an
archive is ever used, links and devices are not followed, and nothing is unpickled. Several datasets may share
the folder. Run again after a kill, it reuses the files that exist.

Known traps: a sample's name is everything before the first dot of its last part, so ``a.b.jpg`` is sample ``a``;
its members may lie anywhere in the shard; samples with several pictures keep the first; equal pictures are one file,
and so one item with all their captions. Members other than pictures, sounds, .txt and .json (.pkl, .pth, .npy, ...),
hidden ones and those that macOS adds (``._a.jpg``), are counted and left out. A damaged shard is refused whole: its
samples would only seem to be all.
"""

from __future__ import annotations

import gzip
import json
import re
import tarfile
import unicodedata
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from fusemix.datasets.base import SOUNDS, Pair, Tally, is_litter, kept_captions, picture_endings, write_by_hash
from fusemix.datasets.cells import cell_text
from fusemix.datasets.splits import KNOWN, of_names, plain, side_of
from fusemix.media import MAX_FILE_BYTES

TEXT_KEYS = ("caption", "captions", "text", "txt")  # of a .json member
MAX_TEXT_BYTES = 1_000_000  # of a .txt or .json member
MAX_GROWTH = 100  # largest unpacked size / shard size; pictures and sounds hardly grow
MIN_GROWTH_BYTES = 10**9  # unpacked size that is allowed in any case
ENDINGS = (".tar", ".tar.gz", ".tgz")
UNCLEAR = ("eval", "evaluation", "development", "holdout", "heldout", "trainval", "minival")  # sides differ
_BLOCK = 1 << 20


class _Member(tarfile.TarInfo):
    """Header of a member; a damaged or missing one is an error, where tarfile takes it for the end of the archive."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> _Member:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"at byte {archive.offset:,}: {error}") from error


@dataclass
class _Sample:
    """The members of one sample; pictures and sounds are already on the disk."""

    files: dict[str, str] = field(default_factory=dict)  # image, audio -> path
    texts: dict[str, bytes] = field(default_factory=dict)  # .txt, .json -> bytes


def webdataset(
    root: Path, tally: Tally, *, unpack: Path | None = None, split: str | None = None, captions: int | None = None
) -> Iterator[Pair]:
    """Read the samples of every .tar (.tar.gz, .tgz) in a folder, or of one shard.

    Args:
        root: A folder of shards, or a shard.
        tally: Filled with what is left out.
        unpack: Folder for the files; ``unpacked`` beside the shards by default.
        split: Of all samples; without it, the one split name among the words of a shard's name
            (``cc3m-validation-0007.tar``) and the names of the folders in it, if there is one.
        captions: Keep only so many of a sample's captions.

    Raises:
        FileNotFoundError: If there is no shard.
        ValueError: If a shard is no .tar, cut short, damaged or grows far beyond its size, or its split is not clear.
    """
    shards = [root] if root.is_file() else _shards(root, tally)
    if split is not None and side_of(split) is None:
        raise ValueError(f"There is no split {split!r}; a split is one of {KNOWN}.")
    named = {shard: plain(split) or _split_of(shard) for shard in shards}
    base = unpack if unpack is not None else shards[0].parent / "unpacked"
    silent = 0
    for shard, word in named.items():
        for key, sample in _samples(shard, base, tally).items():
            if not sample.files:
                tally.left_out["samples without a picture or a sound"] += 1
                continue
            texts = list(kept_captions(_texts(sample.texts, shard, key, tally), tally, first=captions))
            silent += not texts
            side = word if split else of_names([word, *PurePosixPath(key).parent.parts], f"{shard}, sample {key}")
            for text in texts or [""]:
                yield Pair(
                    sample.files.get("image", ""), sample.files.get("audio", ""), text, side, f"{shard.name}/{key}"
                )

    if silent:
        tally.notes.append(
            f"{silent:,} of them have no caption (in a .txt, or in a .json with {', '.join(TEXT_KEYS)}): they can be "
            "searched, not trained on."
        )


def _shards(root: Path, tally: Tally) -> list[Path]:
    """Return the shards in a folder, sorted; whatever else is in it is counted."""
    if not root.is_dir():
        raise FileNotFoundError(f"There is no shard or folder {root}.")
    inside = sorted(path for path in root.iterdir() if not is_litter(path.name))
    shards = [path for path in inside if path.is_file() and path.name.lower().endswith(ENDINGS)]
    other = [path.name for path in inside if path not in shards and path.name != "unpacked"]
    if not shards:
        has = f"; it holds {', '.join(other[:5])}" if other else ""
        raise FileNotFoundError(f"There is no .tar shard in {root}{has} (a shard ends in {', '.join(ENDINGS)}).")
    if other:
        tally.left_out["files and folders beside the shards, which are not read"] += len(other)
    return shards


def _split_of(shard: Path) -> str:
    """Return the split that a shard's name contains."""
    words = re.findall("[a-z]+", shard.name.lower().split(".tar")[0].removesuffix(".tgz"))
    if unclear := [word for word in words if word in UNCLEAR]:
        raise ValueError(
            f"The name of {shard} says {unclear[0]}, which means different splits in different datasets; give the "
            "split of its samples."
        )
    return of_names(words, f"The name of {shard}")


def _samples(shard: Path, base: Path, tally: Tally) -> dict[str, _Sample]:
    """Map names to samples, by first appearance; the members of a sample may lie anywhere in the shard."""
    samples: dict[str, _Sample] = {}
    pictures = picture_endings()
    for name, data in _members(shard, (*pictures, *SOUNDS, ".txt", ".json"), tally):
        stem, _, rest = unicodedata.normalize("NFC", name.name).partition(".")
        ending = "." + rest.rpartition(".")[2].lower()
        sample = samples.setdefault(unicodedata.normalize("NFC", str(name.parent / stem)), _Sample())
        kind = "image" if ending in pictures else "audio" if ending in SOUNDS else ending
        if kind in sample.files or kind in sample.texts:
            tally.left_out[f"second {kind} members of a sample"] += 1
        elif kind == ending:
            sample.texts[kind] = data
        else:
            sample.files[kind] = write_by_hash(base, data, ending)
    return samples


def _members(shard: Path, endings: tuple[str, ...], tally: Tally) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Yield (name, bytes) of the members that can be used."""
    most = max(MAX_GROWTH * shard.stat().st_size, MIN_GROWTH_BYTES)
    grown, large = 0, f"{shard} grows to more than {most / 1e9:,.0f} GB unpacked; is it what you think?"
    try:
        # gzip's own module compares checksums, tarfile does not
        with _opened(shard) as file, tarfile.open(fileobj=file, mode="r|*", tarinfo=_Member) as archive:
            for member in archive:
                grown += member.size
                if grown > most:
                    raise ValueError(large)
                reason = _unusable(member, PurePosixPath(member.name), endings)
                handle = None if reason or member.isdir() else archive.extractfile(member)
                if handle is not None:
                    yield PurePosixPath(member.name), handle.read()
                elif reason:
                    tally.left_out[reason] += 1
            while block := archive.fileobj.read(_BLOCK):
                if block.strip(b"\0"):
                    raise ValueError(
                        f"{shard} goes on after its end; were archives put one after the other? Split them."
                    )
                grown += len(block)
                if grown > most:
                    raise ValueError(large)
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{shard} is not a .tar shard, or cut short or damaged ({error}).") from error


def _opened(shard: Path) -> BinaryIO:
    """Open a shard, unzipped if it is gzip's."""
    with open(shard, "rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    return cast(BinaryIO, gzip.open(shard)) if zipped else open(shard, "rb")


def _unusable(member: tarfile.TarInfo, name: PurePosixPath, endings: tuple[str, ...]) -> str:
    """Return why a member is left out; empty if it is used."""
    if member.isdir():
        return ""
    if is_litter(member.name):
        hidden = re.match(r"\.(?!_|DS_Store)", name.name)
        return "hidden members" if hidden else "members that macOS or Windows added (._ names, __MACOSX, .DS_Store)"
    if not member.isfile():
        return "members of a shard that are no plain files"
    if name.is_absolute() or ".." in name.parts:
        return "members whose names lead out of the archive"
    ending = name.suffix.lower()
    if ending not in endings:
        return f"members that end in {ending or 'nothing'} (not read, and never unpickled)"
    most = MAX_TEXT_BYTES if ending in (".txt", ".json") else MAX_FILE_BYTES
    return f"members of more than {most // 10**6} MB" if member.size > most else ""


def _texts(parts: dict[str, bytes], shard: Path, key: str, tally: Tally) -> list[str]:
    """Return the captions: the .txt member, else the captions of the .json member."""
    try:
        if ".txt" in parts:
            return [parts[".txt"].decode("utf-8-sig")]
        values: Any = json.loads(parts.get(".json", b"{}").decode("utf-8-sig"))
        found = next((values[k] for k in TEXT_KEYS if values.get(k)), "") if isinstance(values, dict) else ""
        text = cell_text(found, "text", captions=True)
    except UnicodeDecodeError:
        tally.left_out["captions that are not UTF-8 text"] += 1
        return []
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{shard}: the .json of sample {key} cannot be used ({error}).") from error
    return text if isinstance(text, list) else [text] if text else []
