"""Zero-shot labels: the label whose embedding as text is nearest.

Phrasings ("a photo of ...") were measured and gained nothing here (docs/your-own-model.md), so there are none.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fusemix.encoders import Encoder
from fusemix.model.adapters import FusionModel


def check_labels(labels: Sequence[str]) -> None:
    """Raise ValueError unless there are two or more labels, all different and none empty."""
    if len(labels) < 2 or len(set(labels)) != len(labels) or not all(label.strip() for label in labels):
        raise ValueError(f"Give at least two different labels, separated by commas, got {list(labels)}.")


def classify(model: FusionModel, embeddings: Tensor, labels: Sequence[str], text: Encoder) -> np.ndarray:
    """Compute each item's share of every label: a softmax of cosines over the labels.

    Args:
        model: With a text adapter; its temperature divides the cosines.
        embeddings: Of the items, (N, D), unit length.
        labels: At least two, distinct.
        text: The text encoder that the model was trained on.

    Returns:
        (N, L), rows sum to 1; an order of the labels, no calibrated probabilities.

    Raises:
        ValueError: If the labels are not as above.
    """
    check_labels(labels)
    similarity = embeddings @ model.embed("text", text.encode(list(labels))).T
    return torch.softmax(similarity / model.temperature.detach(), dim=1).numpy()
