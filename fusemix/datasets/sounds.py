"""Readers of AudioCaps, Clotho and ESC-50: sounds with captions or class names.

Their audio must be on the disk. AudioCaps names ten seconds of YouTube videos, which yt-dlp can download where that
is allowed; Clotho and ESC-50 are archives.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fusemix.datasets.base import SOUNDS, Pair, Tally, index_files, kept_captions, locate
from fusemix.datasets.reader import read_table

AUDIOCAPS_SOURCE = (
    "The captions are in https://github.com/cdjkim/audiocaps (dataset/train.csv, val.csv, test.csv); the sounds are "
    "cut from YouTube, by yt-dlp or a tool around it."
)
CLOTHO_SOURCE = "Clotho 2.1 is https://zenodo.org/record/4783391: the caption files and the audio archives, unpacked."
ESC50_SOURCE = "ESC-50 is https://github.com/karolpiczak/ESC-50."
CLOTHO_SPLITS = {"development": "train", "validation": "val", "evaluation": "test"}


def audiocaps(root: Path, tally: Tally, *, captions: int | None = None) -> Iterator[Pair]:
    """Read AudioCaps: one caption a training clip, five a clip of val and test.

    Sounds are found by name anywhere below the root: ``ID_START``, ``ID``, ``YID``, ``YID_START`` or the number of
    the caption (``audiocap_id``), in a folder named after the split first.

    Known traps: videos vanish, so every copy of AudioCaps is a different subset, and R@k on fewer clips is
    easier: report the number of clips. All captions of a clip are right answers. Clips of one video
    are one group.

    Args:
        root: Holds ``train.csv``, ``val.csv``, ``test.csv`` (audiocap_id, youtube_id, start_time, caption; any of
            the three may be absent) and the sounds.
        tally: Filled with what is missing.
        captions: Keep only so many of a clip's captions.

    Raises:
        FileNotFoundError: If there is no table.
        ValueError: If a table lacks a column.
    """
    first = locate(root, ["train.csv", "val.csv", "test.csv"], what="A table of AudioCaps", source=AUDIOCAPS_SOURCE)
    files = index_files(root, SOUNDS)
    for split in ("train", "val", "test"):
        path = first.with_name(f"{split}.csv")
        if not path.is_file():
            tally.notes.append(f"There is no {path.name}, so the table has no split {split}.")
            continue
        clips: dict[tuple[str, str], list[dict[str, str]]] = {}
        for row in _rows(path, ("audiocap_id", "youtube_id", "start_time", "caption")):
            clips.setdefault((row["youtube_id"], row["start_time"]), []).append(row)
        for (video, start), rows in clips.items():
            names = [f"{video}_{start}", video, f"Y{video}", f"Y{video}_{start}", *(r["audiocap_id"] for r in rows)]
            found = [file for name in names for file in files.get(name, ())]
            file = next((f for f in found if f.parent.name == split), found[0] if found else None)
            if tally.found(split, file, f"{video}_{start}"):
                for text in kept_captions((row["caption"] for row in rows), tally, first=captions):
                    yield Pair(audio=str(file), text=text, split=split, group=video)


def clotho(root: Path, tally: Tally, *, captions: int | None = None) -> Iterator[Pair]:
    """Read Clotho: five captions a sound; development is train, validation is val, evaluation is test.

    Known traps: version 1 has no validation split and fewer sounds; names with ``:`` were replaced in 2.1, so
    tables and sounds must be of one version. Sounds last 15 to 30 s.

    Args:
        root: Holds ``clotho_captions_development.csv`` and so on (file_name, caption_1 to caption_5), and the
            sounds in folders ``development``, ``validation`` and ``evaluation``.
        tally: Filled with what is missing.
        captions: Keep only so many of a sound's captions.

    Raises:
        FileNotFoundError: If there is no table.
        ValueError: If a table lacks a column.
    """
    tables = [f"clotho_captions_{name}.csv" for name in CLOTHO_SPLITS]
    first = locate(root, tables, what="A table of Clotho", source=CLOTHO_SOURCE)
    files = index_files(root, SOUNDS)
    columns = [f"caption_{i}" for i in range(1, 6)]
    for name, split in CLOTHO_SPLITS.items():
        path = first.with_name(f"clotho_captions_{name}.csv")
        if not path.is_file():
            tally.notes.append(f"There is no {path.name}, so the table has no split {split}.")
            continue
        for row in _rows(path, ("file_name", *columns)):
            found = [f for f in files.get(Path(row["file_name"]).stem, ()) if name in f.parts or name in f.parent.name]
            file = found[0] if found else None
            if tally.found(split, file, f"{name}/{row['file_name']}"):
                for text in kept_captions((row[column] for column in columns), tally, first=captions):
                    yield Pair(audio=str(file), text=text, split=split, group=f"{name}/{row['file_name']}")


def esc50(root: Path, tally: Tally, *, test_fold: int = 5, val_fold: int | None = None) -> Iterator[Pair]:
    """Read ESC-50: 2,000 clips of five seconds in fifty classes; a class's name is its text.

    All clips of a class are one group, so that R@1 from audio to text is accuracy among fifty names. The published
    figure is the mean over the five test folds: make five tables.

    Known traps: clips cut from one recording are in one fold; never split by other rules. A batch holds many clips
    of one class, which are right answers for one another: train with multi_positive.

    Args:
        root: Holds ``meta/esc50.csv`` and ``audio``.
        tally: Filled with what is missing.
        test_fold: 1 to 5, becomes split ``test``.
        val_fold: Another fold, becomes split ``val``.

    Raises:
        FileNotFoundError: If the table is missing.
        ValueError: If it lacks a column, or there is no such fold.
    """
    path = locate(root, ["meta/esc50.csv", "esc50.csv"], what="ESC-50's table", source=ESC50_SOURCE)
    rows = _rows(path, ("filename", "fold", "category"))
    split_of = {row["fold"]: "train" for row in rows}
    for fold, split in ((val_fold, "val"), (test_fold, "test")):
        if fold is not None and str(fold) not in split_of:
            raise ValueError(f"{path} has the folds {sorted(split_of)}, not {fold}.")
        if fold is not None:
            split_of[str(fold)] = split
    audio = locate(root, ["audio"], what="ESC-50's folder of clips", source=ESC50_SOURCE)
    for row in rows:
        split, file = split_of[row["fold"]], audio / row["filename"]
        if tally.found(split, file, row["filename"]):
            yield Pair(audio=str(file), text=row["category"].replace("_", " "), split=split, group=row["category"])


def _rows(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    frame = read_table(path, Tally(), texts=())
    if lacking := [column for column in columns if column not in frame.columns]:
        raise ValueError(f"{path} has the columns {list(frame.columns)}; it lacks {lacking}.")
    cells = zip(*(frame[column] for column in columns), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in cells]
