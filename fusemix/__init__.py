"""FuseMix: a multimodal model built from frozen unimodal encoders on one small machine.

The packages follow the data::

    pairs -> encoders -> latents -> mixup / adapters -> losses -> train -> evaluate
          -> index -> retrieve / generate

Importing this package is fast: the public names below and heavy libraries are loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "FuseMix": "fusemix.estimator",
    "FusionModel": "fusemix.model.adapters",
    "ModelConfig": "fusemix.model.config",
    "TrainConfig": "fusemix.model.config",
    "PairTable": "fusemix.data.pairs",
    "LatentStore": "fusemix.data.latent_store",
    "import_latents": "fusemix.data.import_latents",
    "load_encoder": "fusemix.encoders",
    "EmbeddingIndex": "fusemix.search.index",
    "Retriever": "fusemix.search.retriever",
    "train": "fusemix.training.trainer",
    "fusemix": "fusemix.training.mixup",
    "info_nce": "fusemix.training.losses",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that ``import fusemix`` stays light."""
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'fusemix' has no attribute {name!r}")
