"""Input fields that pass on uploaded files undecoded."""

from __future__ import annotations

from abc import ABCMeta
from typing import Any

import gradio as gr


def _uploaded_path(self: gr.Image, payload: Any) -> str | None:
    """Return the path of the upload; ``fusemix.media`` decodes it and sets the limits.

    ``gr.Image`` opens the file itself first, so that a text file or a bomb named .png would
    fail inside Gradio, without a sentence for the visitor.
    """
    if payload is None:
        return None
    if not payload.path:
        raise gr.Error("The picture did not arrive; please upload it again.", print_exception=False)
    return str(payload.path)


# Made by ABCMeta rather than by a class statement, because Gradio's own metaclass would write a
# .pyi file beside this one at every start. ``is_template``: in the browser it is a plain gr.Image.
PictureInput: type[gr.Image] = ABCMeta.__new__(
    type(gr.Image),
    "PictureInput",
    (gr.Image,),
    {"preprocess": _uploaded_path, "is_template": True, "__module__": __name__, "__doc__": __doc__},
)


def _uploaded_paths(self: gr.File, payload: Any) -> list[str]:
    """Return the paths of the uploads; ``gr.File`` would leave an empty file behind for each."""
    files = getattr(payload, "root", payload) or []
    return [str(file.path) for file in (files if isinstance(files, list) else [files])]


FilesInput: type[gr.File] = ABCMeta.__new__(
    type(gr.File),
    "FilesInput",
    (gr.File,),
    {"preprocess": _uploaded_paths, "is_template": True, "__module__": __name__, "__doc__": __doc__},
)
