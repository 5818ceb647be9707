"""Retrieval: a query of any modality -> encoder -> adapter -> index -> hits of every modality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from fusemix.encoder_identity import check_encoder
from fusemix.encoders import Encoder
from fusemix.encoders.recorded import load_recorded
from fusemix.encoders.speech import Transcript, WhisperTinyEnWords
from fusemix.media import MediaError
from fusemix.model.adapters import FusionModel, checkpoint_folder
from fusemix.model.config import ModelConfig
from fusemix.search.calibration import DEPTH, Calibration, load_calibrations
from fusemix.search.fusion import FusedHit, Fusion
from fusemix.search.index import EmbeddingIndex, Hit
from fusemix.search.transcripts import sure_words

if TYPE_CHECKING:
    from fusemix.search.postgres_index import PostgresIndex

MAX_QUERY_CHARS = 2000  # longest text query
# Default weight of each part of a query; a negative weight subtracts.
DEFAULT_WEIGHTS = {"text": 1.0, "image": 1.0, "audio": 1.0, "minus_text": -0.5}
LIKED, DISLIKED = 0.5, -0.5  # weights beside a query's 1 (Rocchio), chosen on the gallery: docs/your-own-model.md
_SMALLEST_SUM = 1e-3  # length below which a weighted sum of unit vectors has no direction


class Retriever:
    """Search of an index by text, picture, sound or a weighted sum of them. Safe to call from several threads.

    Example:
        >>> retriever = Retriever.from_pretrained("checkpoints/default", "demo/index")
        >>> for hit in retriever.search(text="a dog running on the grass")["image"]:
        ...     print(hit.rank, f"{hit.similarity:.2f}", hit.item["caption"])
        >>> retriever.search(image="photo.jpg", text="at night", minus_text="people", weights={"text": 0.8})
        >>> for found in retriever.search(audio="spoken.mp3", fuse=True):  # pictures, sounds and captions as one list
        ...     print(found.rank, found.item["caption"], found.found_by)
    """

    def __init__(
        self,
        model: FusionModel,
        encoders: dict[str, Encoder],
        index: EmbeddingIndex | PostgresIndex,
        calibrations: Mapping[tuple[str, str], Calibration] | None = None,
    ) -> None:
        """Put the parts together.

        Args:
            model: In evaluation mode.
            encoders: Modality -> the encoder whose latents the model was trained on.
            index: Made by the same model.
            calibrations: (query, gallery) -> what makes the hits' probabilities; none by default.

        Raises:
            ValueError: If an encoder or the index does not fit the model.
        """
        for modality, encoder in encoders.items():
            check_encoder(modality, model.config.encoders, encoder.info())
        if index.model_identity != model.identity:
            raise ValueError("The index was made by another model; rebuild it with fusemix index.")
        self.model = model
        self.encoders = encoders
        self.index = index
        self.calibrations = dict(calibrations or {})
        self._locks = {modality: Lock() for modality in encoders}

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | Path,
        index: str | Path,
        *,
        device: str = "cpu",
        revision: str | None = None,
        encoders: Mapping[str, str | Path] | None = None,
    ) -> Retriever:
        """Load model, index and the encoders that the checkpoint names.

        Args:
            checkpoint: A folder or Hub id, as ``FusionModel.from_pretrained`` takes it.
            index: Folder, address ``postgresql://user@host:port/database/collection``, written by
                ``fusemix index`` with the same checkpoint, or a dataset on the Hub
                (:meth:`EmbeddingIndex.from_pretrained`).
            device: A torch device string, for the encoders.
            revision: Branch, tag or commit of the checkpoint on the Hub.
            encoders: Modality -> local folder of its encoder, such as ``hub-image:/models/dino``, for a checkpoint
                trained with an encoder in a folder of another machine; checked by content.

        Raises:
            FileNotFoundError: If the checkpoint, the index or an encoder's folder is not there.
            ValueError: If a part is damaged or made for another one.
            ConnectionError: If the server of the index does not answer.
            ImportError: If a required package is not installed.
        """
        folder = checkpoint_folder(checkpoint, revision=revision)
        model = FusionModel.from_pretrained(folder)
        identity = model.identity
        loaded = load_index(index, model_identity=identity)
        found = load_encoders(model.config, device=device, encoders=encoders)
        return cls(model, found, loaded, load_calibrations(folder, model_identity=identity))

    def embed(self, *, text: str | None = None, image: Any = None, audio: Any = None) -> np.ndarray:
        """Embed one query.

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
        latents = self.encode(modality, [self.encoders[modality].prepare(value)])
        embedding: np.ndarray = self.model.embed(modality, latents)[0].numpy()
        return embedding

    def encode(self, modality: str, prepared: Sequence[Any]) -> np.ndarray:
        """Encode prepared items of a modality: latents of shape (N, D_x), float32, not normalised."""
        with self._locks[modality]:  # tokenizers are not thread-safe; parallel queries are no faster on two cores
            return self.encoders[modality].encode_prepared(prepared)

    def embed_and_transcribe(self, audio: Any) -> tuple[np.ndarray, Transcript]:
        """Embed a sound as :meth:`embed` does and transcribe it, with one pass of the encoder.

        The transcript is empty if the model's encoder has no decoder. Raises like :meth:`embed`.
        """
        encoder = self.encoders.get("audio")
        if audio is None or not isinstance(encoder, WhisperTinyEnWords):
            return self.embed(audio=audio), Transcript("", 0.0)
        prepared = encoder.prepare(audio)
        with self._locks["audio"]:
            latents, said = encoder.encode_and_transcribe([prepared])
        embedding: np.ndarray = self.model.embed("audio", latents)[0].numpy()
        return embedding, said[0]

    def embed_parts(
        self, *, text: str | None = None, image: Any = None, audio: Any = None, minus_text: str | None = None
    ) -> dict[str, np.ndarray]:
        """Embed each given part: name of the part -> shape (D,), float32, unit length.

        Raises like :meth:`embed`, but accepts any number of parts.
        """
        given = {"text": text, "image": image, "audio": audio, "minus_text": minus_text}
        return {
            part: self.embed(**{"text" if part == "minus_text" else part: value})
            for part, value in given.items()
            if value is not None
        }

    @cached_property
    def fusion(self) -> Fusion:
        """Ranking of items by all their faces; it holds every embedding of the index in memory."""
        counts = self.index.counts
        return Fusion(
            {modality: self.index.items(modality) for modality in counts},
            {modality: self.index.embeddings(modality) for modality in counts},
        )

    @overload
    def search(
        self,
        *,
        text: str | None = None,
        image: Any = None,
        audio: Any = None,
        minus_text: str | None = None,
        weights: Mapping[str, float] | None = None,
        top_k: int = 10,
        modalities: Sequence[str] | None = None,
        where: Mapping[str, str] | None = None,
        fuse: Literal[False] = False,
    ) -> dict[str, list[Hit]]: ...

    @overload
    def search(
        self,
        *,
        text: str | None = None,
        image: Any = None,
        audio: Any = None,
        minus_text: str | None = None,
        weights: Mapping[str, float] | None = None,
        top_k: int = 10,
        modalities: None = None,
        where: Mapping[str, str] | None = None,
        fuse: Literal[True],
    ) -> list[FusedHit]: ...

    def search(
        self,
        *,
        text: str | None = None,
        image: Any = None,
        audio: Any = None,
        minus_text: str | None = None,
        weights: Mapping[str, float] | None = None,
        top_k: int = 10,
        modalities: Sequence[str] | None = None,
        where: Mapping[str, str] | None = None,
        fuse: bool = False,
    ) -> dict[str, list[Hit]] | list[FusedHit]:
        """Find the nearest pictures, sounds and captions, each on its own, or the best items by all their faces.

        Args:
            text: A part of the query, as in :meth:`embed`; at least one part is given.
            image: See ``text``.
            audio: See ``text``. With ``fuse``, words recognised with confidence in it dominate.
            minus_text: Words to subtract.
            weights: Part -> weight, as in :func:`blend`; a part without one has its default.
            top_k: Hits per modality, or with ``fuse`` items, >= 1.
            modalities: Modalities to return; all of the index by default. Not with ``fuse``.
            where: Metadata key -> the value an item must have, such as ``{"licence": "CC0-1.0"}``.
            fuse: Rank items instead of pictures, sounds and captions (:mod:`fusemix.search.fusion`). Corrections
                for hubness apply to the separate lists only.

        Returns:
            Modality -> hits, nearest first: similarities of different modalities are not comparable, their
            probabilities are (of a query with one part, without ``where``, by a checkpoint with a calibration). With
            ``fuse`` one list of items, the best first, each with its faces.

        Raises:
            MediaError: (a ValueError) If the query cannot be used, in one sentence.
            ValueError: If no part is given, the model lacks its modality, or ``modalities`` come with ``fuse``.
            KeyError: If the index lacks one of ``modalities``.
        """
        if fuse and modalities is not None:
            raise ValueError(f"With fuse every face counts; drop modalities, got {list(modalities)}.")
        if not fuse or audio is None:
            parts = self.embed_parts(text=text, image=image, audio=audio, minus_text=minus_text)
            words = None
        else:
            parts = self.embed_parts(text=text, image=image, minus_text=minus_text)
            parts["audio"], transcript = self.embed_and_transcribe(audio)
            words = self.embed_words(transcript)
        if not fuse:
            asked = next(iter(parts)) if len(parts) == 1 else None
            return self.search_embedding(
                blend(parts, weights), top_k=top_k, modalities=modalities, where=where, asked=asked
            )
        blend(parts, weights)  # raises if the parts cancel
        met, counts = fusion_parts(parts, weights, words)
        return self.fusion.search(met, counts=counts, top_k=top_k, where=where)

    def embed_words(self, transcript: Transcript) -> np.ndarray | None:
        """Embed the words of a transcript that Whisper was confident of, as text: shape (D,); None without any."""
        words = sure_words(transcript)[:MAX_QUERY_CHARS]
        return self.embed(text=words) if words and "text" in self.encoders else None

    def refine(
        self, likes: Sequence[Hit], dislikes: Sequence[Hit] = (), *, query: np.ndarray | None = None
    ) -> np.ndarray:
        """Move a query towards hits that were liked and away from those that were not; see :meth:`search_embedding`.

        Args:
            likes: Hits of this index, of any modality.
            dislikes: Likewise.
            query: Embedding of the query that found them, shape (D,); without one the likes alone count.

        Returns:
            Shape (D,), float32, unit length.

        Raises:
            ValueError: If there is neither a like nor a query, or a hit is not of this index.

        Source:
            Rocchio 1971. A linear probe in the shared space, whitened by the index, was no better on the same clicks.
        """
        if not likes and query is None:
            raise ValueError("Give at least one hit that is liked, or the query that found the hits.")
        total = np.zeros(self.index.embed_dim) if query is None else np.asarray(query, dtype=np.float64)
        for weight, hits in ((LIKED, likes), (DISLIKED, dislikes)):
            if hits:
                total = total + weight * np.mean([self.embedding_of(hit) for hit in hits], axis=0)
        length = np.linalg.norm(total)
        if length < _SMALLEST_SUM:
            raise MediaError("What is liked and what is not cancel each other; like or dislike fewer hits.")
        refined: np.ndarray = (total / length).astype(np.float32)
        return refined

    def embedding_of(self, hit: Hit) -> np.ndarray:
        """Return the embedding of a hit, shape (D,); ValueError if this index does not hold it."""
        items = self.index.items(hit.modality)
        if hit.item not in items:
            raise ValueError(f"This index holds no {hit.modality} {hit.item}; refine with hits of its own searches.")
        row: np.ndarray = self.index.embeddings(hit.modality)[items.index(hit.item)]
        return row

    def search_embedding(
        self,
        embedding: np.ndarray,
        *,
        top_k: int = 10,
        modalities: Sequence[str] | None = None,
        where: Mapping[str, str] | None = None,
        asked: str | None = None,
    ) -> dict[str, list[Hit]]:
        """Search as :meth:`search` does, by an embedding of shape (D,); ``asked`` is the modality it comes from."""
        wanted = list(self.index.counts) if modalities is None else modalities
        found = {}
        for modality in wanted:
            known = None if where or asked is None else self.calibrations.get((asked, modality))
            depth = top_k if known is None else max(top_k, DEPTH)
            hits = self.index.search(modality, embedding[None], top_k=depth, where=where)[0]
            if known is not None:
                likely = known.probabilities(np.array([hit.similarity for hit in hits]), self.index.counts[modality])
                if likely is not None:
                    hits = [replace(hit, probability=float(p)) for hit, p in zip(hits, likely, strict=True)]
            found[modality] = hits[:top_k]
        return found


def blend(parts: Mapping[str, np.ndarray], weights: Mapping[str, float] | None = None) -> np.ndarray:
    """Compute the weighted sum of a query's parts, normalised to unit length.

    Args:
        parts: Part (of :data:`DEFAULT_WEIGHTS`) -> embedding, shape (D,), unit length.
        weights: Part -> weight, finite; a negative weight subtracts, zero leaves the part out.

    Returns:
        Shape (D,), float32, unit length.

    Raises:
        MediaError: (a ValueError) If the parts cancel, or every weight is zero.
        ValueError: If there is no part, or a weight is unknown or not finite.
    """
    chosen = DEFAULT_WEIGHTS | dict(weights or {})
    unknown = sorted((set(chosen) | set(parts)) - set(DEFAULT_WEIGHTS))
    if unknown:
        raise ValueError(f"The parts of a query are {list(DEFAULT_WEIGHTS)}, not {unknown}.")
    if not parts:
        raise ValueError(f"Give at least one of {list(DEFAULT_WEIGHTS)}, got none.")
    if not np.isfinite([chosen[part] for part in parts]).all():
        raise ValueError(f"Weights must be finite numbers, got {dict(weights or {})}.")
    largest = max(abs(float(chosen[part])) for part in parts) or 1.0  # only ratios count; scaling avoids overflow
    total = np.sum([chosen[part] / largest * embedding.astype(np.float64) for part, embedding in parts.items()], axis=0)
    length = np.linalg.norm(total)
    if length < _SMALLEST_SUM:
        raise MediaError("The parts of this query cancel each other; change a weight.")
    mixed: np.ndarray = (total / length).astype(np.float32)
    return mixed


def fusion_parts(
    parts: Mapping[str, np.ndarray], weights: Mapping[str, float] | None = None, words: np.ndarray | None = None
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Convert the parts of a query to those of :class:`fusemix.search.fusion.Fusion`, with their factors.

    Args:
        parts: Part -> embedding, shape (D,).
        weights: As in :func:`blend`.
        words: Embedding of the words recognised with confidence in the sound, if any: then they dominate, and the sound
            counts as their voice.
    """
    chosen = DEFAULT_WEIGHTS | dict(weights or {})
    met = dict(parts)
    counts = {part: chosen[part] for part in parts}
    if words is not None:
        met["heard"], met["voice"] = words, met.pop("audio")
        counts["heard"] = counts["voice"] = counts.pop("audio")
    return met, counts


def load_index(source: str | Path, *, model_identity: str) -> EmbeddingIndex | PostgresIndex:
    """Load an index that a given model made.

    Args:
        source: A folder, a dataset on the Hub (:meth:`EmbeddingIndex.from_pretrained`), or an address
            ``postgresql://user@host:port/database/collection`` (:mod:`fusemix.search.postgres_index`).
        model_identity: ``FusionModel.identity`` of the model that will make the queries.

    Raises:
        FileNotFoundError: If there is no index.
        ValueError: If another model made it, or it is damaged or incomplete.
        ConnectionError: If its server does not answer.
        ImportError: If the client of the server is not installed.
    """
    if str(source).startswith(("postgresql:", "postgres:")):
        from fusemix.search.postgres_index import PostgresIndex

        return PostgresIndex.load(str(source), model_identity=model_identity)
    return EmbeddingIndex.from_pretrained(source, model_identity=model_identity)


def load_encoders(
    config: ModelConfig, *, device: str = "cpu", encoders: Mapping[str, str | Path] | None = None
) -> dict[str, Encoder]:
    """Load the encoders that a configuration names, and check their identity.

    Args:
        config: Of a model.
        device: A torch device string.
        encoders: Modality -> local folder of its Hub encoder, such as ``hub-image:/models/dino``.

    Raises:
        FileNotFoundError: If the folder of an encoder is not found.
        ValueError: If an encoder is unknown, or not the one the model was trained on.
        ImportError: If a package that carries weights is not installed.
    """
    missing = sorted(set(config.latent_dims) - set(config.encoders))
    if missing:
        raise ValueError(f"The checkpoint names no encoder for {missing}; train it with fusemix train.")
    if unknown := sorted(set(encoders or ()) - set(config.encoders)):
        raise ValueError(f"encoders names {unknown}; the checkpoint has encoders of {sorted(config.encoders)}.")
    sources = dict(encoders or {})
    return {m: load_recorded(m, config.encoders, device=device, source=sources.get(m)) for m in config.encoders}
