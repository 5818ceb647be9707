"""A Hugging Face dataset, saved on disk (``save_to_disk``) or by its Hub id.

Needs ``pip install datasets``; nothing else in FuseMix does. Pictures and sounds are not decoded: their bytes (or
the files they name) go into a folder as they are. No code from a dataset's repository is run.

Known traps: the id does not fix a revision (give ``id@revision``); a list of captions in one cell becomes several
rows; which split is the standard one is the dataset's matter, see its card.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fusemix.datasets.base import Pair, Tally, kept_captions

TEXT_NAMES = ("text", "caption", "captions", "sentence", "sentences", "raw", "alt_text", "label_text")
MAGIC = (
    (b"\xff\xd8\xff", ".jpg"), (b"\x89PNG", ".png"), (b"GIF8", ".gif"), (b"fLaC", ".flac"), (b"OggS", ".ogg"),
    (b"ID3", ".mp3"), (b"\xff\xfb", ".mp3"),
)  # fmt: skip


def huggingface(
    root: Path,
    tally: Tally,
    *,
    unpack: Path | None = None,
    config: str | None = None,
    image_column: str | None = None,
    text_column: str | None = None,
    audio_column: str | None = None,
    split: str | None = None,
    captions: int | None = None,
) -> Iterator[Pair]:
    """A dataset with columns of pictures, sounds and texts.

    Args:
        root: The folder that ``save_to_disk`` wrote, or a Hub id such as ``owner/name`` or ``owner/name@revision``.
        tally: Filled with what is left out.
        unpack: Where pictures and sounds go; ``unpacked`` in the working folder by default.
        config: Of a Hub id.
        image_column: By default the one column of type Image.
        text_column: By default the first column called text, caption, sentence, ...
        audio_column: By default the one column of type Audio.
        split: Only this one.
        captions: Keep only so many captions of a cell.

    Raises:
        ImportError: If ``datasets`` is not installed.
        ValueError: If a column or split is not there, or it is not clear which one is meant.
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError("Reading Hugging Face datasets needs their package: pip install datasets") from error
    loaded = _load(datasets, root, config)
    parts = dict(loaded) if isinstance(loaded, dict) else {str(getattr(loaded, "split", None) or ""): loaded}
    if split is not None and split not in parts:
        raise ValueError(f"{root} has the splits {sorted(parts)}, not {split!r}.")
    base = unpack if unpack is not None else Path("unpacked")
    for name, part in parts.items():
        if split is not None and name != split:
            continue
        columns = {
            "image": (image_column, datasets.Image),
            "audio": (audio_column, datasets.Audio),
        }
        media = {kind: c for kind, (given, cls) in columns.items() if (c := _typed(part, given, cls, kind))}
        text = _text_column(part, text_column)
        if len(media) + (text is not None) < 2:
            raise ValueError(f"{root} has the columns {part.column_names}; two modalities among them are needed.")
        for column in media.values():
            part = part.cast_column(column, type(part.features[column])(decode=False))
        for number, row in enumerate(part):
            files = {k: _place(base / (name or "all"), f"{number:08d}-{k}", row[c]) for k, c in media.items()}
            if media and not any(files.values()):
                tally.left_out["rows without a picture or a sound"] += 1
                continue
            cell = row[text] if text else []
            texts = list(kept_captions(cell if isinstance(cell, list) else [cell or ""], tally, first=captions))
            for caption in texts or ([""] if len(media) > 1 else []):
                yield Pair(files.get("image", ""), files.get("audio", ""), caption, name, f"{name or 'all'}-{number}")


def _load(datasets: Any, root: Path, config: str | None) -> Any:
    if root.is_dir():
        try:
            return datasets.load_from_disk(str(root))
        except (FileNotFoundError, ValueError) as error:
            raise ValueError(f"{root} is not a folder that save_to_disk wrote ({error}).") from error
    name, _, revision = str(root).partition("@")
    return datasets.load_dataset(name, config, revision=revision or None)


def _typed(part: Any, given: str | None, cls: Any, kind: str) -> str | None:
    """The column of a type, given or found."""
    names = [name for name, feature in part.features.items() if isinstance(feature, cls)]
    if given is not None:
        if given not in names:
            raise ValueError(f"{given!r} is not among the {kind} columns {names}.")
        return given
    if len(names) > 1:
        raise ValueError(f"There are {len(names)} {kind} columns, {names}; say which with --{kind}-column.")
    return names[0] if names else None


def _text_column(part: Any, given: str | None) -> str | None:
    if given is not None:
        if given not in part.column_names:
            raise ValueError(f"There is no column {given!r}; there are {part.column_names}.")
        return given
    return next((name for name in TEXT_NAMES if name in part.column_names), None)


def _place(folder: Path, name: str, cell: Any) -> str:
    """The file of a picture or a sound: the one it names, or its bytes under our own name; empty without either."""
    if cell is None:
        return ""
    data, path = cell.get("bytes"), cell.get("path")
    if data is None:
        return str(Path(path).resolve()) if path and Path(path).is_file() else ""
    ending = next((e for magic, e in MAGIC if data.startswith(magic)), "")
    if data[:4] == b"RIFF":
        ending = ".wav" if data[8:12] == b"WAVE" else ".webp"
    file = folder / f"{name}{ending or Path(path or '').suffix[:8].replace('/', '')}"
    if not file.is_file() or hashlib.sha256(file.read_bytes()).digest() != hashlib.sha256(data).digest():
        folder.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
        temporary.write_bytes(data)
        os.replace(temporary, file)
    return str(file)
