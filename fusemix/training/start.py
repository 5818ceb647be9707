"""Start of a training: checks of the sets, adapters copied from another model, the run's fingerprint."""

from __future__ import annotations

import hashlib
import json

import numpy as np

from fusemix.data.latent_store import MANIFEST_NAME
from fusemix.data.pair_set import PairSet
from fusemix.model.adapters import FusionModel
from fusemix.model.config import ModelConfig, TrainConfig


def check_sets(sets: list[PairSet], model_config: ModelConfig) -> None:
    """Refuse sets that do not fit the model.

    Raises:
        ValueError: If there are none, a width or encoder differs from the model's, latents are not finite, or all
            latents of a modality are equal.
    """
    if not sets:
        raise ValueError("Give at least one set of paired latents.")
    for pair_set in sets:
        for modality, store in pair_set.stores.items():
            expected = model_config.latent_dims.get(modality)
            if expected != store.dim:
                raise ValueError(
                    f"{store.folder} holds {modality} latents of width {store.dim}, the model takes {expected}; "
                    "train with latents of one encoder per modality."
                )
            encoder = model_config.encoders.get(modality)
            if encoder is not None and encoder != store.encoder:
                raise ValueError(
                    f"{store.folder} was made by {store.encoder['name']} ({store.encoder['revision'][:12]}), but other "
                    f"{modality} latents here by {encoder['name']} ({encoder['revision'][:12]}); use one encoder."
                )
        pair_set.check_finite()


def take_over(model: FusionModel, init: FusionModel | None, frozen: tuple[str, ...]) -> None:
    """Copy the adapters of ``init`` into ``model`` and stop the gradient of the frozen ones.

    Raises:
        ValueError: If a frozen modality is unknown, or an adapter has another shape or encoder.
    """
    known = init.modalities if init is not None else ()
    if unknown := [m for m in frozen if m not in known or m not in model.modalities]:
        raise ValueError(f"Cannot freeze {unknown}: the model to start from has the adapters {list(known)}.")
    for modality in known:
        if modality not in model.modalities:
            continue
        assert init is not None
        try:
            model.adapters[modality].load_state_dict(init.adapters[modality].state_dict())
        except RuntimeError as error:
            ours, theirs = model.config, init.config
            names = ("embed_dim", "depth", "expansion", "closed_form_dim", "whiten_dim", "views")
            differ = [n for n in names if getattr(theirs, n) != getattr(ours, n)]
            other = "; ".join(f"{n} {getattr(theirs, n)!r}, not {getattr(ours, n)!r}" for n in differ)
            raise ValueError(
                f"The {modality} adapter to start from has another shape than this model's: {other}. "
                "Train with the settings and the recipe that it was trained with."
            ) from error
        if init.config.encoders.get(modality) != model.config.encoders.get(modality):
            raise ValueError(f"The {modality} adapter to start from was trained on another encoder's latents.")
    for modality in frozen:
        model.adapters[modality].requires_grad_(False)


def fingerprint(sets: list[PairSet], model_config: ModelConfig, config: TrainConfig, init: FusionModel | None) -> str:
    """Return the hex SHA-256 of everything that determines a run: settings, initial model, latents and pairs."""
    digest = hashlib.sha256(json.dumps([model_config.to_dict(), config.to_dict()], sort_keys=True).encode())
    if init is not None:
        digest.update(init.identity.encode())
    for pair_set in sets:
        for modality, store in pair_set.stores.items():
            digest.update((store.folder / MANIFEST_NAME).read_bytes())  # holds the checksums of the latents
            digest.update(np.ascontiguousarray(pair_set.items[modality]).data)
        digest.update(np.ascontiguousarray(pair_set.groups).data)
        for split in pair_set.divide(config):
            digest.update(split.data)
    return digest.hexdigest()
