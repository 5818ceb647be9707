"""Resolution of names that are a local folder or a repository on the Hugging Face Hub."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from fusemix.hub_errors import HubError, Kind

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def local_folder(source: str | Path, what: str) -> Path | None:
    """Return the folder of that name, or None if the name is a Hub id.

    Args:
        source: A folder, or a Hub id such as ``owner/name``; a folder takes precedence.
        what: What is looked for, for the message: ``checkpoint``, ``decoder``, ``encoder``.

    Raises:
        FileNotFoundError: If there is no such folder and the name cannot be a Hub id.
    """
    if Path(source).is_dir():
        return Path(source)
    if isinstance(source, Path) or source.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(source):
        raise FileNotFoundError(f"No {what} folder at {source}; expected a folder or a Hub id 'owner/name'.")
    return None


def resolve(source: str | Path, what: str, download: Callable[[str], str | Path]) -> Path:
    """Return the local folder of a checkpoint or decoder, fetched from the Hub if it is not a folder.

    Args:
        source: As for :func:`local_folder`; a Hub id must have an owner.
        what: As for :func:`local_folder`.
        download: Fetches a Hub id and returns its folder.

    Raises:
        FileNotFoundError: If it is neither a folder nor available on the Hub.
    """
    if folder := local_folder(source, what):
        return folder
    if "/" not in str(source):
        raise FileNotFoundError(f"No {what} folder at {source}; expected a folder or a Hub id 'owner/name'.")
    try:
        return Path(download(str(source)))
    except Exception as error:  # the Hub client raises many types; all mean "not loaded", and the cause is kept
        met = HubError.of(error)
        raise FileNotFoundError(
            f"{str(source)!r} is no folder here and could not be loaded from the Hugging Face Hub "
            f"({type(error).__name__}): {_ADVICE[met.kind].format(source=source, said=met.said)}."
        ) from error


_ADVICE: dict[Kind, str] = {
    "unreachable": "it could not be reached; check the network, or give a local folder",
    "full": "there is no room on the disk; free some, or set HF_HOME to a folder on another disk",
    "gated": "its owner asks for conditions to be accepted on its page there; do that and log in (hf auth login)",
    "missing": "there is none of that name, or it is private; check the name, or log in (hf auth login)",
    "revision": "it has no such revision; check the branch, tag or commit",
    "refused": "{said}; try again later, or give a local folder",
    "other": "{said}; check the name and the network, or give a local folder",
}
