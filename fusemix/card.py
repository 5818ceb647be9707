"""The model card that lies beside every checkpoint."""

from __future__ import annotations

from typing import Any

from fusemix.config import ModelConfig, TrainConfig


def model_card(
    name: str,
    model: ModelConfig,
    train: TrainConfig,
    *,
    data: list[str],
    best: dict[str, Any],
    seconds: float,
    notes: str = "",
) -> str:
    """Markdown with Hub front matter: encoders, data, settings, validation recall, limits.

    Args:
        name: Title of the model.
        model: Its configuration.
        train: How it was trained.
        data: One line per set of pairs, with counts.
        best: The history entry of the kept epoch.
        seconds: Training time.
        notes: Further Markdown, e.g. licences of the data and held-out results.
    """
    encoders = "\n".join(
        f"| {m} | {e.get('name', '?')} | {model.latent_dims[m]} | `{str(e.get('revision', ''))[:16]}` "
        f"| {e.get('fingerprint', '')} |"
        for m, e in model.encoders.items()
    )
    recall = "\n".join(f"| {key} | {value:.3f} |" for key, value in best.items() if "/" in key)
    settings = ", ".join(f"{key} {value}" for key, value in train.to_dict().items())
    return f"""---
library_name: fusemix
license: apache-2.0
tags: [fusemix, multimodal, retrieval]
---

# {name}

Adapters that map latents of frozen encoders into one shared space of {model.embed_dim} dimensions, trained with
FuseMix (Vouitsis et al., CVPR 2024, arXiv:2312.10144). Load with `FusionModel.from_pretrained(folder)`.

| modality | frozen encoder | latent width | weights | preprocessing and pooling |
| --- | --- | --- | --- | --- |
{encoders}

## Data

{chr(10).join(f"- {line}" for line in data)}

## Training

Adapters: depth {model.depth}, expansion {model.expansion}, dropout {model.dropout}. {seconds:.0f} s on the machine
that trained it. Settings: {settings}.

## Validation recall@1

Chosen at epoch {best.get("epoch")}, on held-out groups of the training tables (not a test set).

| direction | recall@1 |
| --- | --- |
{recall}

{notes}
## Limits

The model knows what its encoders and its pairs know: {", ".join(model.latent_dims)} of the kinds listed above, and
English. It inherits the encoders' and the captions' biases. Similarities are comparable within one direction only.
"""
