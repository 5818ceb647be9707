"""A folder here or a repository on the Hugging Face Hub: one rule for what a name means, and one for what failed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def local_folder(source: str | Path, what: str) -> Path | None:
    """The folder of that name, or None where the name is one of the Hub's.

    Args:
        source: A folder, or a Hub id such as ``owner/name``; what is both is the folder.
        what: What is looked for, for the message: ``checkpoint``, ``decoder``, ``encoder``.

    Raises:
        FileNotFoundError: If there is no such folder and the name can be none of the Hub's.
    """
    if Path(source).is_dir():
        return Path(source)
    if isinstance(source, Path) or source.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(source):
        raise FileNotFoundError(f"No {what} folder at {source}; expected a folder or a Hub id 'owner/name'.")
    return None


def resolve(source: str | Path, what: str, download: Callable[[str], str | Path]) -> Path:
    """The local folder of a checkpoint or decoder, fetched from the Hub if it is not a folder.

    Args:
        source: See :func:`local_folder`; a Hub id has an owner here.
        what: See there.
        download: Fetches a Hub id and says where it lies.

    Raises:
        FileNotFoundError: If it is neither a folder nor can be had from the Hub.
    """
    if folder := local_folder(source, what):
        return folder
    if "/" not in str(source):
        raise FileNotFoundError(f"No {what} folder at {source}; expected a folder or a Hub id 'owner/name'.")
    try:
        return Path(download(str(source)))
    except Exception as error:  # the Hub client raises many types; all mean "not loaded", and the cause is kept
        raise FileNotFoundError(
            f"{str(source)!r} is no folder here and could not be loaded from the Hugging Face Hub "
            f"({type(error).__name__}). Check the name and the network, or give a local folder."
        ) from error
