"""The interface every frozen encoder fits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fusemix.files import sha256_of


class Encoder(ABC):
    """A frozen network that turns items of one modality into latents.

    Subclasses set the five attributes and implement :meth:`prepare` and
    :meth:`encode_prepared`. The latent of an item must not depend on what else is in its batch.

    Attributes:
        name: What a checkpoint's ``config.json`` calls it; no path of a machine.
        modality: ``image``, ``text``, ``audio`` or one of your own.
        dim: Width D_x of a latent.
        revision: Identity of the weights (SHA-256 or a Hub commit).
        fingerprint: Everything in preprocessing and pooling that changes a latent, in words.
    """

    name: str
    modality: str
    dim: int
    revision: str
    fingerprint: str

    @abstractmethod
    def prepare(self, item: Any) -> Any:
        """Decode and preprocess one item; safe to call from several threads.

        Raises:
            MediaError: (a ValueError) If the item cannot be used, in one sentence.
        """

    @abstractmethod
    def encode_prepared(self, prepared: Sequence[Any]) -> np.ndarray:
        """Return latents of prepared items: shape (N, dim), float32, not normalised."""

    def encode(self, items: Sequence[Any], *, batch_size: int = 32) -> np.ndarray:
        """Return latents of raw items.

        Args:
            items: Paths, decoded values or texts, as the encoder's ``prepare`` takes them.
            batch_size: Items per forward pass.

        Returns:
            Shape (N, dim), float32, not normalised.

        Raises:
            MediaError: (a ValueError) If an item cannot be used, in one sentence.
        """
        parts = [
            self.encode_prepared([self.prepare(item) for item in items[start : start + batch_size]])
            for start in range(0, len(items), batch_size)
        ]
        return np.concatenate(parts) if parts else np.empty((0, self.dim), dtype=np.float32)

    def info(self) -> dict[str, Any]:
        """Return the identity that is stored with latents and checkpoints."""
        return {
            "name": self.name,
            "modality": self.modality,
            "dim": self.dim,
            "revision": self.revision,
            "fingerprint": self.fingerprint,
        }


class Concatenation(Encoder):
    """Two or more encoders of one modality; their latents are concatenated."""

    def __init__(self, encoders: Sequence[Encoder]) -> None:
        if len({encoder.modality for encoder in encoders}) != 1:
            raise ValueError(f"Only encoders of one modality can be joined, got {[e.modality for e in encoders]}.")
        self.encoders = list(encoders)
        self.modality = encoders[0].modality
        self.name = " ++ ".join(encoder.name for encoder in encoders)
        self.dim = sum(encoder.dim for encoder in encoders)
        self.revision = "+".join(encoder.revision for encoder in encoders)
        self.fingerprint = " ++ ".join(encoder.fingerprint for encoder in encoders)

    def prepare(self, item: Any) -> list[Any]:
        """Prepare the item for each encoder."""
        return [encoder.prepare(item) for encoder in self.encoders]

    def encode_prepared(self, prepared: Sequence[list[Any]]) -> np.ndarray:
        """Return concatenated latents, shape (N, dim), float32."""
        columns = zip(*prepared, strict=True)
        parts = [encoder.encode_prepared(list(c)) for encoder, c in zip(self.encoders, columns, strict=True)]
        return np.concatenate(parts, axis=1)


def verify_weights(path: Path, expected_sha256: str) -> str:
    """Return the file's SHA-256 once it is known to be the expected one.

    Raises:
        FileNotFoundError: If the weights are absent.
        ValueError: If the file is not the one this code was tested with.
    """
    if not path.is_file():
        raise FileNotFoundError(f"No weights at {path}; reinstall the package that carries them.")
    actual = sha256_of(path)
    if actual != expected_sha256:
        raise ValueError(
            f"The weights at {path} have SHA-256 {actual[:12]}..., expected {expected_sha256[:12]}...; "
            "the file is damaged or of another version. Reinstall the pinned package (requirements.txt)."
        )
    return actual
