"""Modules of ours in a sentence-transformers model: frozen encoders it does not know, and trained adapters.

``SentenceTransformer(folder, trust_remote_code=True)`` imports them from the installed fusemix package; the folder
itself holds no code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from sentence_transformers.base.modules import InputModule, Module
from torch import Tensor

from fusemix.encoders.base import Encoder
from fusemix.encoders.recorded import load_recorded
from fusemix.export.heads import Head, Path, head
from fusemix.model.adapters import FusionModel
from fusemix.model.config import ModelConfig


class FuseMixEncoder(InputModule):
    """A frozen encoder that sentence-transformers has no module for: items of one modality -> latents (B, D_x)."""

    config_file_name = "fusemix_encoder.json"
    config_keys = ["info"]
    save_in_root = False

    def __init__(self, info: dict[str, Any], encoder: Encoder | None = None) -> None:
        """Load the encoder of this identity (``Encoder.info()``), unless it is given.

        Raises:
            ValueError, FileNotFoundError, ImportError: If it is not here, or is another one.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self.info = dict(info)
        self.encoder = encoder or load_recorded(info["modality"], {info["modality"]: info})

    @property
    def modalities(self) -> list[Any]:
        """The one modality."""
        return [self.info["modality"]]

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Decode the items as the encoder does; a sound is a file or ``{"array", "sampling_rate"}``."""
        return {"items": [self.encoder.prepare(_item(value)) for value in inputs], "modality": self.info["modality"]}

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Add the latents as ``sentence_embedding``."""
        return features | {"sentence_embedding": torch.from_numpy(self.encoder.encode_prepared(features["items"]))}

    def get_embedding_dimension(self) -> int:
        """Return D_x."""
        return self.encoder.dim

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Write the encoder's identity; its weights stay where they are."""
        self.save_config(output_path)


class FuseMixHead(Module):
    """The adapter of one modality: latents (B, D_x) -> embeddings (B, D) of unit length."""

    config_file_name = "fusemix_head.json"
    config_keys = ["config", "modality", "path"]

    def __init__(self, config: dict[str, Any], modality: str, path: Path = "all", loaded: Head | None = None) -> None:
        """Build the head by a model's configuration; its weights are ``loaded``'s, or come later."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.config, self.modality, self.path = config, modality, path
        self.head = loaded or head(FusionModel(ModelConfig.from_dict(config)), modality, path)

    def forward(self, features: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
        """Replace the latents by their embeddings."""
        latents = features["sentence_embedding"].to(next(self.head.buffers(), torch.empty(0)).device)
        return features | {"sentence_embedding": self.head(latents)}

    def get_embedding_dimension(self) -> int:
        """Return D."""
        return int(self.config["embed_dim"])

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write configuration and weights."""
        self.save_config(output_path)
        self.save_torch_weights(output_path, safe_serialization=safe_serialization)

    @classmethod
    def load(cls, model_name_or_path: str, *args: Any, **kwargs: Any) -> FuseMixHead:
        """Load what :meth:`save` wrote."""
        places = ("subfolder", "token", "cache_folder", "revision", "local_files_only")
        where = {key: kwargs[key] for key in places if kwargs.get(key) is not None}
        built = cls(**cls.load_config(model_name_or_path, **where))
        loaded: FuseMixHead = cls.load_torch_weights(model_name_or_path, model=built, **where)
        return loaded


def _item(value: Any) -> Any:
    if isinstance(value, dict) and "array" in value:
        return int(value["sampling_rate"]), value["array"]
    return value
