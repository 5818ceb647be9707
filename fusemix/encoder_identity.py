"""Comparison of the encoder identities that stores and checkpoints record."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

EncoderInfo = dict[str, Any]  # name, modality, dim, revision, fingerprint
_KEYS = ("name", "revision", "fingerprint", "dim")
_FOLDER = re.compile(r"(hub-\w+:)(?:\.|/|~)[^?]*?([^/?]*)/*(?=\?| \+\+ |$)")  # a local folder's name in a Hub encoder's


def portable_name(name: str) -> str:
    """Return an encoder's name without a local path: for a folder only its own name, ``./name``."""
    return _FOLDER.sub(r"\1./\2", name)


def without_paths(config: dict[str, Any]) -> dict[str, Any]:
    """Return a model's configuration with encoder names (its members' too) that hold no local path."""
    names = {
        modality: {key: portable_name(value) if key == "name" else value for key, value in info.items()}
        for modality, info in config.get("encoders", {}).items()
    }
    members = {"members": [without_paths(member) for member in config["members"]]} if config.get("members") else {}
    return {**config, "encoders": names, **members}


def same_encoder(a: Any, b: Any) -> bool:
    """Return whether two identities are of one encoder, whatever the path and the name of its folder."""
    if not (isinstance(a, dict) and isinstance(b, dict)):
        return False
    return {**a, "name": _placeless(a.get("name"))} == {**b, "name": _placeless(b.get("name"))}


def check_encoder(modality: str, recorded: Mapping[str, EncoderInfo], info: EncoderInfo) -> None:
    """Refuse latents of another encoder than the one a model was trained on.

    Args:
        modality: Of the latents.
        recorded: Modality -> the identity that the model's configuration records.
        info: ``Encoder.info()`` of what made the latents.

    Raises:
        ValueError: If name, weights, preprocessing or width differ, or no encoder is recorded. The path and
            name of a local folder do not matter: its weights and its processor are compared by content.
    """
    expected = recorded.get(modality)
    if expected is None:
        raise ValueError(f"The model records no encoder for {modality!r}; it has {sorted(recorded)}.")
    for key in _KEYS:
        ours, theirs = expected.get(key), info[key]
        if (_placeless(ours) != _placeless(theirs)) if key == "name" else (ours != theirs):
            raise ValueError(
                f"The {modality} adapter was trained on latents of {expected.get('name')} with {key} "
                f"{ours!r}, these have {theirs!r}; extract and train again, or install the "
                "pinned packages (requirements.txt)."
            )


def _placeless(name: Any) -> str:
    return _FOLDER.sub(r"\1./", str(name))
