"""A checkpoint as an encoder of mteb (Massive Text Embedding Benchmark and its image and audio tasks)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fusemix.extras import extra
from fusemix.model.adapters import FusionModel
from fusemix.search.retriever import blend, load_encoders

_KINDS = ("text", "image", "audio")


class FuseMixMTEB:
    """mteb's ``EncoderProtocol``: batches of texts, pictures or sounds -> embeddings (N, D) of unit length.

    An item with several of these is embedded as a search with several parts is: the normalised sum.
    """

    def __init__(self, model_name: str, revision: str | None = None, device: str | None = None, **_: Any) -> None:
        """Load a checkpoint folder or Hub id, and its encoders."""
        self.model = FusionModel.from_pretrained(model_name, revision=revision)
        self.encoders = load_encoders(self.model.config, device=device or "cpu")

    @property
    def mteb_model_meta(self) -> Any:
        """Return what mteb records about the model."""
        with extra("export", "Evaluation by mteb"):
            from mteb.models import ModelMeta

        return ModelMeta.create_empty(
            {
                "name": "fusemix/checkpoint",
                "revision": self.model.identity[:16],
                "embed_dim": self.model.config.embed_dim,
                "similarity_fn_name": "cosine",
                "modalities": [kind for kind in _KINDS if kind in self.encoders],
                "loader": FuseMixMTEB,
            }
        )

    def encode(self, inputs: Any, **_: Any) -> np.ndarray:
        """Embed a data loader of batches, each a dict of lists: shape (N, D), float32.

        Raises:
            ValueError: If a batch holds nothing that the model understands.
        """
        found = [self._batch(batch) for batch in inputs]
        return np.concatenate(found) if found else np.empty((0, self.model.config.embed_dim), np.float32)

    def _batch(self, batch: dict[str, Any]) -> np.ndarray:
        parts = {}
        for kind in _KINDS:
            values = batch.get(kind)
            if kind in self.encoders and values is not None and any(value is not None for value in values):
                encoder = self.encoders[kind]
                prepared = [encoder.prepare(_item(value)) for value in values]
                parts[kind] = self.model.embed(kind, encoder.encode_prepared(prepared)).numpy()
        if not parts:
            raise ValueError(f"This model embeds {sorted(self.encoders)}; a batch of mteb's holds {sorted(batch)}.")
        if len(parts) == 1:
            return next(iter(parts.values()))
        rows = zip(*parts.values(), strict=True)
        return np.stack([blend(dict(zip(parts, row, strict=True))) for row in rows])

    def similarity(self, embeddings1: Any, embeddings2: Any) -> torch.Tensor:
        """Return cosines, (N, M)."""
        return _rows(embeddings1) @ _rows(embeddings2).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> torch.Tensor:
        """Return the cosine of each row with its counterpart, (N,)."""
        return (_rows(embeddings1) * _rows(embeddings2)).sum(dim=1)


def _rows(values: Any) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.as_tensor(values, dtype=torch.float32), dim=-1)


def _item(value: Any) -> Any:
    """Convert mteb's sound, ``{"array", "sampling_rate"}``, to ours."""
    if isinstance(value, dict) and "array" in value:
        return int(value["sampling_rate"]), np.asarray(value["array"])
    return value
