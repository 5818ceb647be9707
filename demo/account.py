"""A visitor's own account on the Hugging Face Hub: whether signing in is offered, and what is sent with their token.

The token comes with one request, from the visitor's own cookie, and ends with it: it is neither kept nor logged here.
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

from gradio.utils import get_space

from fusemix.media import MediaError

logger = logging.getLogger(__name__)

NEEDED = ("OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET", "OAUTH_SCOPES", "OPENID_PROVIDER_URL")  # set by `hf_oauth: true`
PACKAGES = ("authlib", "itsdangerous")  # of gradio[oauth]
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
SIGN_IN = "Sign in with Hugging Face first, above; that loads the page anew, so do it before you begin."


def is_offered() -> bool:
    """Return whether visitors can sign in: on a Space whose front matter has ``hf_oauth: true``."""
    return bool(get_space() and os.environ.get(NEEDED[0]))


def fault() -> str | None:
    """Return why signing in does not work although it is offered, in a sentence; None if it does."""
    lacking = [name for name in NEEDED if not os.environ.get(name)]
    if lacking:
        return f"Nobody can sign in here, because {lacking[0]} is not set; restart the Space."
    if absent := [name for name in PACKAGES if find_spec(name) is None]:
        return (
            f"Nobody can sign in here, because the package {absent[0]} is missing; put gradio[oauth] into the Space's "
            "requirements.txt."
        )
    return None


def repository(owner: str, name: str | None) -> str:
    """Return ``owner/name`` of a repository that a visitor names.

    Raises:
        MediaError: (a ValueError) If it is no name, in one sentence.
    """
    from fusemix.model.hub import check_repo_id

    name = (name or "").strip()
    if not _NAME.fullmatch(name):
        raise MediaError("Name the repository with up to 96 letters, digits, dots, - and _, such as my-model.")
    try:
        check_repo_id(f"{owner}/{name}")
    except ValueError as error:
        raise MediaError("The Hub takes no such name; leave out .. and -- and a dot or dash at the end.") from error
    return f"{owner}/{name}"


def send(archive: Path, repo_id: str, token: str, *, private: bool) -> str:
    """Send the folder in an archive of ours to a new repository.

    Args:
        archive: A .zip with one folder: a checkpoint or an index, with its card.
        repo_id: Of :func:`repository`.
        token: The visitor's.
        private: Whether only the visitor can see it.

    Returns:
        The address of the repository's commit.

    Raises:
        MediaError: (a ValueError) If the Hub does not take it, in one sentence.
    """
    from fusemix.model.hub import Upload

    with tempfile.TemporaryDirectory(prefix="fusemix-account-") as temporary:
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(temporary)
        (folder,) = Path(temporary).iterdir()
        try:
            return Upload.of(folder).push(repo_id, private=private, token=token, exist_ok=False)
        except OSError as error:
            logger.info("A visitor's repository was not made (%s).", type(error).__name__)
            raise MediaError(str(error)) from None  # what lies below may name more than the sentence does
