"""Deduplication of results: a picture that two clip-art packages share appears once on the page.

The index and every evaluation keep both. Similar embeddings alone do not make two pictures the same: an arrow to the
left and one to the right have cosine 0.997. So the pixels of near neighbours are compared too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageChops

from fusemix.media import MediaError, load_image
from fusemix.search.fusion import FusedHit
from fusemix.search.index import Hit

NEAR = 0.98  # least cosine of two embeddings at which their pixels are compared
NEAR_OF_ONE_NAME = 0.96  # the same for equal captions, articles aside: "birthday cake", "a birthday cake"
PATCHES = 16  # rows and columns into which a picture without its margin is divided
MOST_APART = 255 / 6  # between mean colours of a patch; emoji that differ in the mouth are farther apart
_BLANK = 24  # of 255: pixels that differ less from white are margin


Found = TypeVar("Found", Hit, FusedHit)


def distinct(
    hits: Sequence[Found],
    embedding_of: Callable[[Found], np.ndarray],
    path_of: Callable[[dict[str, Any]], Path | None],
) -> list[Found]:
    """Drop every picture that looks like an earlier one, and renumber the ranks.

    Args:
        hits: Pictures, or items with and without one, the best first.
        embedding_of: The embedding of a hit, shape (D,), unit length.
        path_of: The file of an item.
    """
    kept: list[Found] = []
    pictures: list[Found] = []
    rows: list[np.ndarray] = []
    for hit in hits:
        if not isinstance(hit, FusedHit) or "image" in hit.faces:
            row = embedding_of(hit)
            near = [
                pictures[i]
                for i in np.flatnonzero(np.array(rows) @ row >= NEAR_OF_ONE_NAME if rows else [])
                if rows[i] @ row >= (NEAR_OF_ONE_NAME if _name(pictures[i]) == _name(hit) != "" else NEAR)
            ]
            if any(alike(path_of(hit.item), path_of(other.item)) for other in near):
                continue
            pictures.append(hit)
            rows.append(row)
        kept.append(replace(hit, rank=len(kept) + 1))
    return kept


def _name(found: Hit | FusedHit) -> str:
    return str(found.item.get("caption", "")).casefold().removeprefix("a ").removeprefix("an ")


def alike(a: Path | None, b: Path | None) -> bool:
    """Return whether two picture files look the same apart from their margins."""
    if a is None or b is None:
        return False
    try:
        return bool(np.abs(_patches(a) - _patches(b)).max() < MOST_APART)
    except MediaError:  # a file that is gone or damaged looks like nothing
        return False


@lru_cache(maxsize=4096)
def _patches(path: Path) -> np.ndarray:
    """Return mean colours of a picture on white without its margin: shape (16, 16, 3), float32, 0 to 255."""
    image = load_image(str(path))
    margin = ImageChops.difference(image, Image.new("RGB", image.size, "white")).convert("L")
    box = margin.point(lambda value: 255 * (value > _BLANK)).getbbox()
    small = image.crop(box).resize((PATCHES, PATCHES), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32)
