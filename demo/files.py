"""Guards against opening any file but an upload: none of this machine, none of the network.

Gradio opens any path and fetches any URL that a request names; it checks for an upload only if the value is marked as a
file. So :class:`GuardedBlocks` checks every value of every endpoint first, and :class:`RouteGuard` closes the routes
that the page does not use, and serves no file but uploads, examples and items of the gallery: its folder may hold more.

An upload is stored as ``<upload folder>/<digest>/<name>``; the digest is SHA-256 of a secret of this installation and
of the bytes. The upload request names no session, and visitors who send the same bytes share one file. So an upload
cannot be bound to a session: its path is the key to it, and only someone who has the bytes can learn the path.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any

import gradio as gr
from gradio.processing_utils import hash_file
from gradio.utils import get_upload_folder
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)

REFUSED = "This file was not uploaded here; please upload it."
MALFORMED = "This page cannot read the request; please reload the page and try again."
MAX_FILES = 2000  # of one request
_DIGEST = re.compile(r"[0-9a-f]{64}")
# A relay to other addresses, a dump of any session's fields to disk, a start of ffmpeg, and a stream without an end.
_CLOSED = re.compile(r"/(proxy=|deep_link|process_recording|dev/reload)", re.IGNORECASE)
_FILE = re.compile(r"/file[=/](.*)", re.DOTALL)
EXAMPLES = Path(__file__).parent / "examples"


def is_uploaded(path: Any) -> bool:
    """Return whether a path is an unchanged upload, or an unchanged copy that the page itself made to show.

    Nothing outside the upload folder is examined, so neither the answer nor its time reveals what is there.
    """
    if not isinstance(path, str) or "\0" in path:
        return False
    given, folder = PurePath(path), Path(get_upload_folder())
    digest, name = given.parent.name, given.name
    whole = str(given) == path and given.parent.parent in (folder, folder.resolve())
    if not whole or not _DIGEST.fullmatch(digest) or name == "..":
        return False
    try:
        real = folder.resolve() / digest / name
        if Path(path).resolve() != real or not real.is_file():
            return False
        state = real.stat()
        return _digest(real, state.st_ino, state.st_size, state.st_mtime_ns) == digest
    except (OSError, ValueError, RuntimeError):  # RuntimeError: circular links
        return False


@lru_cache(maxsize=10_000)
def _digest(path: Path, *_: int) -> str:
    """Return Gradio's digest of a file, cached while the file stays unchanged."""
    return hash_file(path)


def checked(value: Any, *, is_file: bool = False) -> Any:
    """Return a value of a request with its files reduced to paths that may be opened.

    Args:
        value: As JSON.
        is_file: Whether the field takes only files: an object each, a list for several.

    Raises:
        gr.Error: :data:`REFUSED`, whatever lies where it points; or if there are more than :data:`MAX_FILES`.
    """
    if is_file and isinstance(value, list) and len(value) > MAX_FILES:
        raise gr.Error(f"Send up to {MAX_FILES:,} files at once.", print_exception=False)
    if isinstance(value, list):
        return [checked(part, is_file=is_file) for part in value]
    if isinstance(value, dict) and (is_file or value.keys() & {"path", "url"}):
        path = value.get("path")
        if not is_uploaded(path):
            raise gr.Error(REFUSED, print_exception=False)
        return {"path": path, "meta": {"_type": "gradio.FileData"}}
    if isinstance(value, dict):
        return {key: checked(part) for key, part in value.items()}
    if is_file and value is not None:
        raise gr.Error(REFUSED, print_exception=False)
    return value


class GuardedBlocks(gr.Blocks):
    """Page whose endpoints open only uploads, and answer unusable input in one sentence."""

    async def process_api(self, block_fn: Any, inputs: list[Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Check that the event's data is an object, then call Gradio's method."""
        event = kwargs.get("event_data")
        if event is not None and not isinstance(event._data, dict):
            if event._data is not None:
                raise gr.Error(MALFORMED, print_exception=False)
            event._data = {}
        return await super().process_api(block_fn, inputs, *args, **kwargs)

    async def preprocess_data(
        self, block_fn: Any, inputs: list[Any], state: Any, explicit_call: bool = False
    ) -> list[Any]:
        """Check every value, then call Gradio's method; every request to every endpoint passes here."""
        if explicit_call:  # by the code of this process, not by a request
            given: list[Any] = await super().preprocess_data(block_fn, inputs, state, explicit_call)
            return given
        try:
            safe = await asyncio.to_thread(_checked_inputs, block_fn.inputs, inputs)
            values: list[Any] = await super().preprocess_data(block_fn, safe, state, explicit_call)
            return values
        except gr.Error as error:
            error.print_exception = False
            raise
        except Exception as error:
            logger.warning("A request was malformed: %s.", " ".join(str(error).split())[:200])
            raise gr.Error(MALFORMED, print_exception=False) from error


def _checked_inputs(blocks: list[Any], inputs: list[Any]) -> list[Any]:
    values = []
    for block, value in zip(blocks, inputs, strict=False):
        values.append(checked(value, is_file=isinstance(block, gr.Image | gr.Audio | gr.File)))
        if isinstance(block, gr.Textbox) and isinstance(value, list | dict):  # Gradio would make it a text
            raise gr.Error(MALFORMED, print_exception=False)
    return values


def is_served(path: str, items: Callable[[], frozenset[str]]) -> bool:
    """Return whether the page may show a file: from the upload folder, an example, or one of the gallery's items.

    Nothing is looked at on the disk.
    """
    if "\0" in path or ".." in PurePath(path).parts:
        return False
    plain = Path(re.sub("/+", "/", path))
    folders = (Path(get_upload_folder()), Path(get_upload_folder()).resolve(), EXAMPLES)
    return any(plain.is_relative_to(folder) for folder in folders) or os.path.normpath(plain) in items()


class RouteGuard:
    """ASGI middleware: closes some of Gradio's routes, and answers requests that break the others in one sentence."""

    def __init__(self, app: ASGIApp, items: Callable[[], frozenset[str]]) -> None:
        """Take the app, and the paths of the gallery's files, asked for at the first request of a file."""
        self.app = app
        self.items = items

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        # The map's server function takes no files, which Gradio would read into memory.
        has_files = dict(scope["headers"]).get(b"content-type", b"").startswith(b"multipart/")
        closed = _CLOSED.search(scope["path"]) or (has_files and "/component_server" in scope["path"])
        file = _FILE.search(scope["path"])
        if closed or (file and not await asyncio.to_thread(is_served, file[1], self.items)):
            await JSONResponse({"detail": REFUSED}, 403)(scope, receive, send)
            return
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, sending)
        except Exception as error:
            logger.warning("A request to %s was malformed: %r.", scope["path"][:80], str(error)[:200])
            if started:  # such as the stream of an event that does not exist
                await send({"type": "http.response.body", "body": b""})
                return
            await JSONResponse({"detail": MALFORMED}, 400)(scope, receive, send)


def app_options(items: Callable[[], frozenset[str]]) -> dict[str, Any]:
    """Return the keyword arguments for the FastAPI app under the page, whose gallery has these files."""
    return {"middleware": [Middleware(RouteGuard, items=items)]}  # new each time: Gradio adds to them
