"""A folder of your own: pictures and sounds wherever they lie in it, captions in text files beside them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from fusemix.datasets.base import Pair, Tally, clean
from fusemix.datasets.sounds import ENDINGS as SOUND_ENDINGS

PICTURE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
MAX_CAPTION_BYTES = 100_000  # a longer text file is no list of captions


def folder(root: Path, tally: Tally, *, name_is_caption: bool = False) -> Iterator[Pair]:
    """Every picture and sound below a folder; one caption a line in a ``.txt`` file of the same name beside it.

    ``walk/dog.jpg``, ``walk/dog.wav`` and ``walk/dog.txt`` are one item: picture, sound and captions belong together.
    A file without captions still becomes a row: it can be searched, not trained on. There is no split:
    ``scripts/train.py`` sets pairs aside by itself.

    Known traps: pictures that are nearly the same under two names (bursts, copies) make recall too low in an
    evaluation and too high in a validation; hidden files and folders are passed over.

    Args:
        root: The folder.
        tally: Told how many files have no caption.
        name_is_caption: Where there is no text file, the name is it: ``red_bicycle-02.jpg`` says "red bicycle".

    Raises:
        FileNotFoundError: If the root is no folder, or holds no picture and no sound.
        ValueError: If a caption file is too long or not text.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"There is no folder {root}.")
    silent: list[str] = []
    empty = True
    for where, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for pair in _items(Path(where), sorted(names), root, silent, name_is_caption):
            empty = False
            yield pair
    if empty:
        raise FileNotFoundError(
            f"There is no picture or sound below {root}; expected files ending in "
            f"{', '.join(PICTURE_ENDINGS + SOUND_ENDINGS)}."
        )
    if silent:
        tally.notes.append(f"{len(silent):,} of them have no caption: they can be searched, not trained on.")


def _items(where: Path, names: list[str], root: Path, silent: list[str], name_is_caption: bool) -> Iterator[Pair]:
    files: dict[str, dict[str, list[Path]]] = {}
    for name in names:
        path = where / name
        if name.startswith(".") or path.suffix.lower() not in PICTURE_ENDINGS + SOUND_ENDINGS:
            continue
        kind = "image" if path.suffix.lower() in PICTURE_ENDINGS else "audio"
        files.setdefault(path.stem, {"image": [], "audio": []})[kind].append(path)
    for stem, found in files.items():
        captions = _captions(where / f"{stem}.txt")
        if not captions and name_is_caption:
            captions = (
                [words] if (words := clean(stem.replace("_", " ").replace("-", " ").rstrip("0123456789 "))) else []
            )
        if not captions:
            silent.append(stem)
        pictures: list[Path | None] = [*found["image"]] or [None]
        sounds: list[Path | None] = [*found["audio"]] or [None]
        group = str((where / stem).relative_to(root))
        for i in range(max(len(pictures), len(sounds), len(captions))):
            image, sound = pictures[min(i, len(pictures) - 1)], sounds[min(i, len(sounds) - 1)]
            text = captions[min(i, len(captions) - 1)] if captions else ""
            yield Pair(str(image or ""), str(sound or ""), text, "", group)


def _captions(path: Path) -> list[str]:
    if not path.is_file():
        return []
    if path.stat().st_size > MAX_CAPTION_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes; captions, one a line, were expected.")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}); save it as UTF-8.") from error
    return [caption for line in lines if (caption := clean(line))]
