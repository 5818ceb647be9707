"""A query of any modality -> encoder -> adapter -> index -> hits of every modality."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from fusemix.adapters import FusionModel
from fusemix.config import ModelConfig
from fusemix.encoders import Encoder, load_encoder
from fusemix.index import EmbeddingIndex, Hit
from fusemix.media import MediaError

MAX_QUERY_CHARS = 2000  # longest text query
# Of the softmax over captions that carries a sound to pictures; the best of 0.01 to 0.05 on Flickr8k dev speech.
BRIDGE_TEMPERATURE = 0.02


class Retriever:
    """Search an index by text, picture or sound. Safe to call from several threads.

    Example:
        >>> retriever = Retriever.from_pretrained("checkpoints/default", "demo/index")
        >>> for hit in retriever.search(text="a dog running on the grass")["image"]:
        ...     print(hit.rank, f"{hit.similarity:.2f}", hit.item["caption"])
    """

    def __init__(self, model: FusionModel, encoders: dict[str, Encoder], index: EmbeddingIndex) -> None:
        """Put the parts together.

        Args:
            model: In evaluation mode.
            encoders: Modality -> the encoder whose latents the model was trained on.
            index: Made by the same model.

        Raises:
            ValueError: If an encoder or the index does not fit the model.
        """
        for modality, encoder in encoders.items():
            check_encoder(modality, encoder, model.config)
        if index.model_identity != model.identity:
            raise ValueError("The index was made by another model; rebuild it with scripts/build_index.py.")
        self.model = model
        self.encoders = encoders
        self.index = index
        self._captions = index.embeddings("text") if "text" in index.counts else None
        self._locks = {modality: Lock() for modality in encoders}

    @classmethod
    def from_pretrained(cls, checkpoint: str | Path, index_folder: str | Path, *, device: str = "cpu") -> Retriever:
        """Load model, index and the encoders that the checkpoint names.

        Args:
            checkpoint: A folder or Hub id, as ``FusionModel.from_pretrained`` takes it.
            index_folder: Written by ``scripts/build_index.py`` with the same checkpoint.
            device: A torch device string, for the encoders.

        Raises:
            FileNotFoundError: If the checkpoint or the index is not there.
            ValueError: If a part is damaged or made for another one.
        """
        model = FusionModel.from_pretrained(checkpoint)
        index = EmbeddingIndex.load(index_folder, model_identity=model.identity)
        return cls(model, load_encoders(model.config, device=device), index)

    def embed(self, *, text: str | None = None, image: Any = None, audio: Any = None) -> np.ndarray:
        """The embedding of one query.

        Args:
            text: At most 2,000 characters.
            image: A path, bytes, PIL image or array; see ``fusemix.media.load_image``.
            audio: A path, bytes or (sample rate in Hz, samples); see ``fusemix.media.load_audio``.

        Returns:
            Shape (D,), float32, unit length.

        Raises:
            MediaError: (a ValueError) If the query cannot be used, in one sentence.
            ValueError: If not exactly one query is given, or the model lacks its modality.
        """
        given = {"text": text, "image": image, "audio": audio}
        given = {modality: value for modality, value in given.items() if value is not None}
        if len(given) != 1:
            raise ValueError(f"Give exactly one of text, image and audio, got {sorted(given) or 'none'}.")
        ((modality, value),) = given.items()
        if modality not in self.encoders:
            raise ValueError(f"This model understands {sorted(self.encoders)}, not {modality!r}.")
        if isinstance(value, str) and modality == "text" and len(value) > MAX_QUERY_CHARS:
            raise MediaError(
                f"The text has {len(value):,} characters, more than the {MAX_QUERY_CHARS:,} taken here; "
                "a sentence or two is enough."
            )
        encoder = self.encoders[modality]
        prepared = encoder.prepare(value)
        with self._locks[modality]:  # tokenizers are not thread-safe, and two cores gain nothing from two at once
            latents = encoder.encode_prepared([prepared])
        embedding: np.ndarray = self.model.embed(modality, latents)[0].numpy()
        return embedding

    def search(
        self,
        *,
        text: str | None = None,
        image: Any = None,
        audio: Any = None,
        top_k: int = 10,
        modalities: Sequence[str] | None = None,
    ) -> dict[str, list[Hit]]:
        """The nearest items of each modality.

        Args:
            text: The query, as in :meth:`embed`; exactly one of the three is given.
            image: See ``text``.
            audio: See ``text``.
            top_k: Hits per modality, >= 1.
            modalities: Which kinds of items to return; all of the index by default.

        Returns:
            Modality -> hits, nearest first. Each modality is ranked on its own: similarities
            to different modalities do not compare. A sound finds pictures through :meth:`bridge`.

        Raises:
            MediaError: (a ValueError) If the query cannot be used, in one sentence.
            ValueError: If not exactly one query is given, or the model lacks its modality.
            KeyError: If the index lacks one of ``modalities``.
        """
        query = self.embed(text=text, image=image, audio=audio)[None]  # (1, D)
        wanted = list(self.index.counts) if modalities is None else modalities
        hits = {}
        for modality in wanted:
            across = audio is not None and modality == "image"
            hits[modality] = self.index.search(modality, self.bridge(query) if across else query, top_k=top_k)[0]
        return hits

    def bridge(self, queries: np.ndarray) -> np.ndarray:
        """Carry sound queries to where text lies: the mean of the index's captions, weighted by nearness.

        Sounds were trained mostly against words, and lie apart from text in the shared space (the
        modality gap): they name what they say more surely than they find what it looks like. This is
        search-time help beside the paper; scripts/evaluate.py measures the adapters without it.

        Args:
            queries: Shape (Q, D), unit length.

        Returns:
            Shape (Q, D), float32, not normalised; the queries themselves if the index holds no captions.
        """
        if self._captions is None or not len(self._captions):
            return queries
        logits = queries @ self._captions.T / BRIDGE_TEMPERATURE  # (Q, captions)
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        carried: np.ndarray = (weights / weights.sum(axis=1, keepdims=True)) @ self._captions
        return carried


def load_encoders(config: ModelConfig, *, device: str = "cpu") -> dict[str, Encoder]:
    """Load the encoders a configuration names, and check that they are the same.

    Raises:
        ValueError: If an encoder is unknown, or not the one the model was trained on.
        ImportError: If a package that carries weights is not installed.
    """
    missing = sorted(set(config.latent_dims) - set(config.encoders))
    if missing:
        raise ValueError(f"The checkpoint names no encoder for {missing}; train it with scripts/train.py.")
    encoders = {modality: load_encoder(info["name"], device=device) for modality, info in config.encoders.items()}
    for modality, encoder in encoders.items():
        check_encoder(modality, encoder, config)
    return encoders


def check_encoder(modality: str, encoder: Encoder, config: ModelConfig) -> None:
    """Refuse an encoder other than the one the model was trained on.

    Raises:
        ValueError: If name, weights, preprocessing or width differ.
    """
    config.check_encoder(modality, encoder.info())
