"""Directions of an embedding space in order of worth: in them, the first dimensions are a model of their own.

The paths of an adapter say much the same, each in its own dimensions. Principal directions over all of them gather what
they share in the first dimensions, so that a prefix keeps nearly all of the ranking (docs/scale-out.md).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def principal(embeddings: Mapping[str, np.ndarray], dims: int) -> np.ndarray:
    """Find the directions that keep most of the cosines, over all modalities alike.

    Args:
        embeddings: Modality -> embeddings, (N, D), unit length. Every modality counts the same.
        dims: Directions kept.

    Returns:
        (D, dims), float16, orthonormal to its precision; a row times it is the row's prefix.

    Source:
        Principal components, not centred: what is kept are inner products, not variances.
    """
    moments = [rows.T.astype(np.float64) @ rows / len(rows) for rows in embeddings.values() if len(rows)]
    _, vectors = np.linalg.eigh(np.sum(moments, axis=0))
    return np.ascontiguousarray(vectors[:, ::-1][:, :dims].astype(np.float16))
