"""Local folders of encoders, by the content of their weights; checkpoints store no path of a machine.

Every local folder that an encoder was loaded from is recorded in
``fusemix/encoder_folders.json`` below Hugging Face's own folder (``HF_HOME``), so that a checkpoint that was trained
here finds its encoder again.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from fusemix.files import read_json, write_json


def note(revision: str, folder: Path) -> None:
    """Record the folder of the encoder with these weights; do nothing if the file cannot be written."""
    known, where = _known(), str(folder.resolve())
    if known.get(revision) == where:
        return
    with suppress(OSError):
        _path().parent.mkdir(parents=True, exist_ok=True)
        write_json(_path(), {r: f for r, f in known.items() if Path(f).is_dir()} | {revision: where})


def find(name: str, revision: str) -> Path | None:
    """Return the folder recorded for the weights of an encoder, or of one part of ``A ++ B``; None without one.

    Args:
        name: The folder's own name; another name is another part.
        revision: As recorded, of all parts.
    """
    for piece in revision.split("+"):
        folder = Path(_known().get(piece, "/"))
        if folder.name == name and folder.is_dir():
            return folder
    return None


def _known() -> dict[str, str]:
    with suppress(OSError, ValueError):
        known = read_json(_path())
        return known if isinstance(known, dict) else {}
    return {}


def _path() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "fusemix" / "encoder_folders.json"
