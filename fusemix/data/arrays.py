"""Checks of paired latents that are given as arrays, worded as scikit-learn words them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

Encode = Callable[[str, list[str]], np.ndarray]  # (modality, paths or texts) -> latents (N, D)


@dataclass(frozen=True)
class ArrayPairs:
    """Checked pairs.

    Attributes:
        latents: Modality -> (N, D), float32, finite; row i of every modality is one pair.
        groups: (N,) int64; pairs of one group are right answers for one another.
        names: Modality -> names of its columns, of those that came as a DataFrame.
        encoded: Modalities that came as paths or texts.
    """

    latents: dict[str, np.ndarray]
    groups: np.ndarray
    names: dict[str, np.ndarray]
    encoded: frozenset[str]


def read_pairs(X: Any, groups: Any, encode: Encode, *, least: int = 1) -> ArrayPairs:
    """Check the latents of every modality and the groups.

    Args:
        X: Modality -> what :func:`read_latents` takes.
        groups: (N,) any values, or None for a group each.
        encode: Encodes paths and texts.
        least: Fewest pairs.

    Raises:
        TypeError: If X is no mapping.
        ValueError: If it has fewer than two modalities, numbers of pairs differ or are below ``least``, or as
            :func:`read_latents`.
    """
    if not isinstance(X, Mapping):
        raise TypeError(
            f"X must map each modality to its latents, such as {{'image': X, 'text': Y}}, or be the path of a table "
            f"of pairs; got {type(X).__name__}."
        )
    if len(X) < 2:
        raise ValueError(f"Pairs need latents of at least two modalities, got {sorted(X)}.")
    latents, names = {}, {}
    for modality, values in X.items():
        if not str(modality).isidentifier():
            raise ValueError(f"A modality is named with letters, digits and _, such as image, got {modality!r}.")
        latents[modality], columns = read_latents(modality, values, encode)
        if columns is not None:
            names[modality] = columns
    counts = [len(x) for x in latents.values()] + ([] if groups is None else [len(groups)])
    if len(set(counts)) > 1:
        raise ValueError(
            f"Found input variables with inconsistent numbers of samples: {counts}; row i of every modality (and of "
            "groups) must be one pair."
        )
    if counts[0] < least:
        raise ValueError(
            f"Found array with {counts[0]} sample(s) while a minimum of {least} is required by FuseMix: so few pairs "
            "cannot be trained on and checked; collect more, or search with a trained checkpoint instead."
        )
    numbers = np.arange(counts[0]) if groups is None else pd.factorize(np.asarray(groups), use_na_sentinel=False)[0]
    return ArrayPairs(latents, numbers.astype(np.int64), names, frozenset(filter(lambda m: _are_items(X[m]), X)))


def read_latents(modality: str, values: Any, encode: Encode) -> tuple[np.ndarray, np.ndarray | None]:
    """Check latents of one modality as scikit-learn checks X, and encode paths or texts.

    Args:
        modality: For messages, and for ``encode``.
        values: (N, D) numpy array, torch tensor, DataFrame or nested list of numbers; or N paths or texts.
        encode: Encodes paths and texts.

    Returns:
        Latents (N, D), float32, finite, and the names of a DataFrame's columns.

    Raises:
        ValueError: If they are not numbers of that shape, or one is NaN, infinite or too large for float32.
    """
    if _are_items(values):
        return encode(modality, [str(value) for value in values]), None
    return _array(modality, values)


def distinct_items(latents: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number the items: equal rows of one group are one.

    Args:
        latents: (N, D), contiguous.
        groups: (N,) integers.

    Returns:
        Row of each item's first appearance, (n,), and every row's item, (N,), numbered by it.
    """
    keys = [(group, row.tobytes()) for group, row in zip(groups.tolist(), latents, strict=True)]
    item, _ = pd.factorize(pd.Series(keys, dtype=object))
    _, first = np.unique(item, return_index=True)
    return first, item


def _are_items(values: Any) -> bool:
    """Return whether values are paths or texts to be encoded, not numbers."""
    if isinstance(values, str | np.ndarray | torch.Tensor | pd.DataFrame) or not hasattr(values, "__iter__"):
        return False
    return len(values) > 0 and all(isinstance(value, str | Path) for value in values)


def _array(modality: str, values: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """Check latents as scikit-learn checks X: (N, D), finite; float32 and the columns of a DataFrame."""
    names = np.asarray(values.columns, dtype=object) if isinstance(values, pd.DataFrame) else None
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().float()
    try:
        array = np.asarray(values)
        if array.dtype.kind not in "fiub":
            array = array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"The {modality} latents are no numbers ({error}); give an array of shape (N, D).") from error
    if array.ndim != 2:
        raise ValueError(
            f"Expected 2D array, got {array.ndim}D array instead for {modality}: shape {array.shape}; latents have the "
            "shape (N, D), one a row."
        )
    if 0 in array.shape:
        raise ValueError(f"Found array with shape {array.shape} for {modality}; one row and one column is the least.")
    with np.errstate(over="ignore"):
        stored = array.astype(np.float32)
    if not np.isfinite(stored).all():
        what = "NaN" if np.isnan(stored).any() else "infinity or a value too large for dtype('float32')"
        row = int(np.flatnonzero(~np.isfinite(stored).all(axis=1))[0])
        raise ValueError(f"Input {modality} contains {what}, first in row {row}; encode or drop these items.")
    return stored, names
