"""Reader of a Hugging Face dataset, saved on disk (``save_to_disk``) or by its Hub id.

Needs the extra ``datasets``; nothing else in FuseMix does. Pictures and sounds are not decoded: their bytes (or
the files they name) are copied into a folder, named by their hash. No code from a dataset's repository is run.

Known traps: the id does not fix a revision (give ``id@revision``); a list of captions in one cell becomes several
rows; rows of one class are one group, because their texts are the same; some datasets keep all rows in one part and
name the split in a column ``split``, which is then used (``nlphuji/flickr30k``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fusemix.datasets.base import Pair, Tally, ending_of, kept_captions, write_by_hash
from fusemix.datasets.cells import cell_text
from fusemix.datasets.splits import check_names
from fusemix.extras import extra

TEXT_NAMES = ("text", "caption", "captions", "sentence", "sentences", "raw", "alt_text", "label_text")


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
    """Read a dataset with columns of pictures, sounds and texts.

    Args:
        root: The folder that ``save_to_disk`` wrote, or a Hub id such as ``owner/name`` or ``owner/name@revision``.
        tally: Filled with what is left out.
        unpack: Folder for pictures and sounds, named by their hash, so that several datasets may share it;
            ``unpacked`` in the working folder by default.
        config: Of a Hub id.
        image_column: By default the one column of type Image.
        text_column: By default the first column called text, caption, sentence, ...
        audio_column: By default the one column of type Audio.
        split: Only this one.
        captions: Keep only so many captions of a cell.

    Raises:
        ImportError: If ``datasets`` is not installed.
        ValueError: If a column or split is not there, a split's name is not known, a cell cannot be understood, or it
            is not clear which column is meant.
    """
    with extra("datasets", "Reading Hugging Face datasets"):
        import datasets
    loaded = _load(datasets, root, config)
    parts = dict(loaded) if isinstance(loaded, dict) else {str(getattr(loaded, "split", None) or ""): loaded}
    if split is not None and split not in parts:
        raise ValueError(f"{root} has the splits {sorted(parts)}, not {split!r}.")
    parts = parts if split is None else {split: parts[split]}
    check_names({name: len(part) for name, part in parts.items() if "split" not in part.column_names}, root)
    base = unpack if unpack is not None else Path("unpacked")
    for name, part in parts.items():
        columns = {
            "image": (image_column, datasets.Image),
            "audio": (audio_column, datasets.Audio),
        }
        media = {kind: c for kind, (given, cls) in columns.items() if (c := _typed(part, given, cls, kind))}
        text = _text_column(part, text_column, tally)
        if len(media) + (text is not None) < 2:
            raise ValueError(f"{root} has the columns {part.column_names}; two modalities among them are needed.")
        for column in media.values():
            part = part.cast_column(column, type(part.features[column])(decode=False))
        names = getattr(part.features[text], "names", None) if text else None  # of classes
        sides = _splits(part, name, tally)
        if unread := sorted(set(part.column_names) - {text, "split", *media.values()}):
            tally.notes.append(f"Not taken from {name or 'the dataset'}: the columns {', '.join(unread)}.")
        for number, row in enumerate(part):
            files = {kind: _place(base, row[column]) for kind, column in media.items()}
            if media and not any(files.values()):
                tally.left_out["rows without a picture or a sound"] += 1
                continue
            texts = list(kept_captions(_texts(row[text], names, number) if text else [], tally, first=captions))
            if not texts and len(media) < 2:
                tally.left_out["rows without a caption"] += 1
            group = f"class {texts[0]}" if names and texts else f"{name or 'all'}-{number}"
            for caption in texts or ([""] if len(media) > 1 else []):
                yield Pair(files.get("image", ""), files.get("audio", ""), caption, sides[number], group)


def _load(datasets: Any, root: Path, config: str | None) -> Any:
    if root.is_dir():
        try:
            return datasets.load_from_disk(str(root))
        except (FileNotFoundError, ValueError) as error:
            raise ValueError(f"{root} is not a folder that save_to_disk wrote ({error}).") from error
    name, _, revision = str(root).partition("@")
    return datasets.load_dataset(name, config, revision=revision or None)


def _typed(part: Any, given: str | None, cls: Any, kind: str) -> str | None:
    """Return the column of a type, given or found."""
    names = [name for name, feature in part.features.items() if isinstance(feature, cls)]
    if given is not None:
        if given not in names:
            raise ValueError(f"{given!r} is not among the {kind} columns {names}.")
        return given
    if len(names) > 1:
        raise ValueError(f"There are {len(names)} {kind} columns, {names}; choose one by the argument {kind}_column.")
    return names[0] if names else None


def _splits(part: Any, name: str, tally: Tally) -> Sequence[str]:
    """Return the split of every row: of its column ``split``, if there is one, else the part's name."""
    if "split" not in part.column_names:
        return [name] * len(part)
    names = getattr(part.features["split"], "names", None)
    tally.notes.append(f"The splits are those of the column split, not of the part {name or 'as a whole'}.")
    return [names[cell] if names and cell is not None else str(cell_text(cell, "split", captions=False))
            for cell in part["split"]]  # fmt: skip


def _text_column(part: Any, given: str | None, tally: Tally) -> str | None:
    if given is not None:
        if given not in part.column_names:
            raise ValueError(f"There is no column {given!r}; there are {part.column_names}.")
        return given
    found = [name for name in TEXT_NAMES if name in part.column_names]
    if len(found) > 1:
        tally.notes.append(f"The captions are those of the column {found[0]}; there are {', '.join(found[1:])} too.")
    return found[0] if found else None


def _texts(cell: Any, names: list[str] | None, number: int) -> list[str]:
    """Return the captions of a cell: several, one, or the name of its class."""
    if names and isinstance(cell, int):
        return [names[cell]] if 0 <= cell < len(names) else [""]
    try:
        text = cell_text(cell, "text", captions=True)
    except ValueError as error:
        raise ValueError(f"Row {number} (counted from 0) {error}.") from error
    return text if isinstance(text, list) else [text]


def _place(base: Path, cell: Any) -> str:
    """Return the file of a picture or sound: the one it names, or its bytes in a new file; empty without either."""
    if cell is None:
        return ""
    data, path = cell.get("bytes"), cell.get("path")
    if not data:
        return str(Path(path).resolve()) if path and Path(path).is_file() else ""
    return write_by_hash(base, data, ending_of(data) or Path(path or "").suffix[:8].replace("/", ""))
