"""Ensembles: several trained models joined into one that embeds with all of them.

Trainings that differ in seed or recipe make different errors. Their embeddings are concatenated, so that the cosine is
the mean of theirs; an index, a conditioner or the app uses the ensemble like a single model. ``scripts.studies``
measures the gain.

Source: averaging the logits of independently trained networks (deep ensembles, arXiv:1612.01474), here of contrastive
ones, whose logits are cosines. Not in the paper.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch

from fusemix.model.adapters import FusionModel
from fusemix.model.config import ModelConfig


def join_models(models: Sequence[FusionModel]) -> FusionModel:
    """Join several models of the same encoders into one.

    Args:
        models: At least two; with the same modalities and encoders. None may be an ensemble itself.

    Returns:
        A model in evaluation mode, its ``embed_dim`` the sum of theirs; its temperature is the first one's, which
        no embedding depends on.

    Raises:
        ValueError: If the models do not fit each other.
    """
    if len(models) < 2:
        raise ValueError(f"An ensemble needs at least 2 models, got {len(models)}.")
    first = models[0].config
    for number, model in enumerate(models, start=1):
        _check(model.config, first, number)
    config = ModelConfig(
        latent_dims=first.latent_dims,
        encoders=first.encoders,
        embed_dim=sum(model.config.embed_dim for model in models),
        members=tuple(model.config.to_dict() for model in models),
    )
    joined = FusionModel(config)
    for modality in first.latent_dims:
        members: Any = joined.adapters[modality].members
        for member, model in zip(members, models, strict=True):
            member.load_state_dict(model.adapters[modality].state_dict())
    with torch.no_grad():
        joined.temperature.copy_(models[0].temperature)
    return joined.eval()


def member_parts(config: ModelConfig) -> list[slice]:
    """Return the columns of each member in an ensemble's embeddings; their direction is that of the member alone."""
    ends = list(itertools.accumulate(int(member["embed_dim"]) for member in config.members))
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def _check(config: ModelConfig, first: ModelConfig, number: int) -> None:
    if config.members:
        raise ValueError(f"Model {number} is an ensemble itself; name its members instead.")
    if set(config.latent_dims) != set(first.latent_dims):
        raise ValueError(
            f"Model {number} embeds {sorted(config.latent_dims)}, the first one {sorted(first.latent_dims)}; "
            "an ensemble needs models of the same modalities."
        )
    for modality, width in first.latent_dims.items():
        ours, theirs = config.encoders.get(modality, {}), first.encoders.get(modality, {})
        keys = ("name", "revision", "fingerprint")
        if config.latent_dims[modality] != width or any(ours.get(key) != theirs.get(key) for key in keys):
            raise ValueError(
                f"Model {number} reads {modality} latents of {ours.get('name', 'an unknown encoder')} (width "
                f"{config.latent_dims[modality]}), the first one of {theirs.get('name', 'an unknown encoder')} (width "
                f"{width}); train them on the same latents."
            )
