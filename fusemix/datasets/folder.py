"""Reader of your own folder: pictures and sounds anywhere below it, captions in text files beside them."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fusemix.datasets.base import SOUNDS, Pair, Tally, clean, is_litter, picture_endings, walk
from fusemix.datasets.reader import open_text
from fusemix.datasets.splits import of_names

MAX_CAPTION_BYTES = 100_000  # a longer text file is not a list of captions


@dataclass
class _Item:
    """Files of one name, but for their endings and the Unicode form of their accents."""

    images: list[Path | None] = field(default_factory=list)
    sounds: list[Path | None] = field(default_factory=list)
    texts: list[Path] = field(default_factory=list)


def folder(root: Path, tally: Tally, *, name_is_caption: bool = False) -> Iterator[Pair]:
    """Read every picture and sound below a folder; captions, one a line, from a ``.txt`` file of the same name.

    ``walk/dog.jpg``, ``walk/dog.wav`` and ``walk/dog.txt`` are one item: picture, sound and captions belong together.
    A file without captions still becomes a row: it can be searched, not trained on. What lies in a folder called
    ``train``, ``val``, ``test``, ... is of that split; without such folders, ``fusemix train`` holds out pairs itself.

    Known traps: near duplicates under two names (bursts, copies) lower recall in an evaluation and raise it in a
    validation; hidden files and folders, and formats that cannot be decoded, are skipped and counted; linked folders
    are read, each once.

    Args:
        root: The folder.
        tally: Filled with the number of files without captions, and with what was skipped.
        name_is_caption: Without a text file, use the name as caption: ``red_bicycle-02.jpg`` becomes "red bicycle".

    Raises:
        FileNotFoundError: If the root is no folder, or holds no picture and no sound.
        ValueError: If a caption file is too long or not text, or folders of two splits lie in one another.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"There is no folder {root}.")
    pictures = picture_endings()
    silent: list[str] = []
    other: Counter[str] = Counter()
    empty = True
    named: Counter[str] = Counter()
    for where, names in walk(root, tally):
        split = of_names(where.relative_to(root).parts, f"The folder {where}")
        files = _files(where, names, pictures, other, tally)
        for pair in _items(where, files, root, silent, name_is_caption):
            empty = False
            named[split] += 1
            yield pair._replace(split=split)
    if splits := sorted(set(named) - {""}):
        tally.notes.append(f"The split of {named.total() - named['']:,} pairs is their folder's: {', '.join(splits)}.")
    for ending, number in other.most_common():
        tally.left_out[f"files that are no picture or sound that can be read here ({ending})"] += number
    if empty:
        skipped = f" ({', '.join(f'{number:,} {ending}' for ending, number in other.most_common(5))})" if other else ""
        endings = ", ".join(pictures + SOUNDS)
        raise FileNotFoundError(
            f"There is no picture or sound below {root}{skipped}; expected files ending in {endings}."
        )
    if silent:
        tally.notes.append(f"{len(silent):,} of them have no caption: they can be searched, not trained on.")


def _files(
    where: Path, names: list[str], pictures: tuple[str, ...], other: Counter[str], tally: Tally
) -> dict[str, _Item]:
    """Map file stems (in Unicode's NFC) to their files; skipped files are counted."""
    items: dict[str, _Item] = {}
    for name in names:
        path, ending = where / name, Path(name).suffix.lower()
        if is_litter(name):
            tally.left_out["hidden files"] += 1
        elif not path.is_file():
            tally.left_out["links that lead to no file"] += 1
        elif ending == ".txt":
            items.setdefault(unicodedata.normalize("NFC", path.stem), _Item()).texts.append(path)
        elif ending not in pictures + SOUNDS:
            other[ending or "no ending"] += 1
        elif not _is_text(name):
            tally.left_out["files whose names are not UTF-8, so that no table can name them"] += 1
        else:
            item = items.setdefault(unicodedata.normalize("NFC", path.stem), _Item())
            (item.images if ending in pictures else item.sounds).append(path)
    found = {stem: item for stem, item in items.items() if item.images or item.sounds}
    if alone := sum(len(item.texts) for stem, item in items.items() if stem not in found):
        tally.left_out["text files with no picture or sound of their name beside them"] += alone
    return found


def _is_text(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _items(
    where: Path, files: dict[str, _Item], root: Path, silent: list[str], name_is_caption: bool
) -> Iterator[Pair]:
    for stem, found in files.items():
        captions = [caption for path in found.texts for caption in _captions(path)]
        if not captions and name_is_caption:
            captions = (
                [words] if (words := clean(stem.replace("_", " ").replace("-", " ").rstrip("0123456789 "))) else []
            )
        if not captions:
            silent.append(stem)
        pictures, sounds = found.images or [None], found.sounds or [None]
        group = str((where / stem).relative_to(root))
        for i in range(max(len(pictures), len(sounds), len(captions))):
            image, sound = pictures[min(i, len(pictures) - 1)], sounds[min(i, len(sounds) - 1)]
            text = captions[min(i, len(captions) - 1)] if captions else ""
            yield Pair(str(image or ""), str(sound or ""), text, "", group)


def _captions(path: Path) -> list[str]:
    if path.stat().st_size > MAX_CAPTION_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes; captions, one a line, were expected.")
    try:
        with open_text(path) as handle:
            lines = handle.read().splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}); save it as UTF-8.") from error
    return [caption for line in lines if (caption := clean(line))]
