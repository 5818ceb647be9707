"""Search service of the app in plain Python: loads everything once, answers queries, measures their time."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from demo.near_duplicates import distinct
from demo.out_of_domain import MAX_CAPTIONS, OutOfDomain
from demo.query import Query
from demo.space_map import Neighbourhoods
from demo.spelling import Spelling
from demo.transcripts import SpokenWords, spoken_words
from demo.workers import WorkerPools
from fusemix.encoders.text import MiniLML6
from fusemix.media import SAMPLE_RATE, MediaError, shown
from fusemix.search.fusion import FusedHit, Fusion
from fusemix.search.index import Hit
from fusemix.search.retriever import Retriever, blend, fusion_parts

logger = logging.getLogger(__name__)

MAX_TOP_K = 100
MAX_FUSED = 100_000  # items; a larger index is not held in memory, and results are separate lists only
MAX_DEDUPLICATED = 20_000  # pictures; a larger index is not read only to remove near-duplicates
EMPTY = "The query is empty; type a few words, show a picture or say something."
_WARM_UP_S = 1.0  # seconds of noise for the warm-up query
_SHOWN = ("id", "text", "title", "caption", "source", "licence", "credit")


@dataclass(frozen=True)
class Answer:
    """Result of one query.

    Attributes:
        query: Modality of the query.
        hits: Modality -> hits, nearest first.
        seconds: Time of the search on this machine, from decoding the query to the last hit.
        n_items: Number of items searched.
        parts: Part of the query -> its embedding, shape (D,), unit length.
        weights: Part -> its weight.
        embedding: Embedding of the whole query, shape (D,), unit length; None if it is not needed.
        asked: Description of the query.
        doubt: A sentence if no caption resembles the typed words, or speech was not understood; else empty.
        heard: Words heard for certain in a visitor's sound; empty for a gallery item.
        items: Best items by all their faces; empty for an index larger than :data:`MAX_FUSED`.
        sounds: Items with a sound that fits the words, best first; None if this cannot be judged.
        uncertain: Words heard without certainty; not used in the search.
        suggestion: The typed words with unknown ones replaced by the nearest of the gallery; else empty.
        left_out: Caption of the gallery item used as the query, which is left out of the results; else empty.
        unknown: Typed words that neither the gallery nor the text encoder knows.
        where: Filters of the results, as in the query.
        likes: Results marked as right, as in the query.
        dislikes: Results marked as wrong.
    """

    query: str
    hits: dict[str, list[Hit]]
    seconds: float
    n_items: int
    parts: dict[str, np.ndarray] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    embedding: np.ndarray | None = None
    asked: str = ""
    doubt: str = ""
    heard: str = ""
    items: list[FusedHit] = field(default_factory=list)
    sounds: list[FusedHit] | None = None
    uncertain: str = ""
    suggestion: str = ""
    left_out: str = ""
    unknown: list[str] = field(default_factory=list)
    where: Mapping[str, str] = field(default_factory=dict)
    likes: tuple[str, ...] = ()
    dislikes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain values for the API."""
        return {
            "query": self.query,
            "milliseconds": round(self.seconds * 1000, 1),
            "n_items": self.n_items,
            **({"heard": self.heard} if self.heard else {}),
            "hits": {modality: [_hit_to_json(hit) for hit in found] for modality, found in self.hits.items()},
            **({"items": [_item_to_json(found) for found in self.items]} if self.items else {}),
        }


def _item_to_json(found: FusedHit) -> dict[str, Any]:
    faces = {face: _hit_to_json(hit) for face, hit in found.faces.items()}
    for values in faces.values():
        del values["rank"]
    return {"rank": found.rank, "score": round(found.score, 4), "found_by": found.found_by, "faces": faces}


def _hit_to_json(hit: Hit) -> dict[str, Any]:
    values = {"rank": hit.rank, "similarity": round(hit.similarity, 6)}
    values |= {} if hit.probability is None else {"probability": round(hit.probability, 4)}
    values |= {key: hit.item[key] for key in _SHOWN if key in hit.item}
    if "path" in hit.item:  # relative to the gallery; under the name "path", gradio_client would try to download it
        values["file"] = hit.item["path"]
    return values


class _Speech(NamedTuple):
    """Speech in a sound: the words for the page, and the embedding, shape (D,), of certain words."""

    spoken: SpokenWords = SpokenWords()
    embedding: np.ndarray | None = None


class Service:
    """Search service; safe to call from several threads."""

    def __init__(self, retriever: Retriever) -> None:
        self.retriever = retriever
        self.pools = WorkerPools()
        self._examples: dict[tuple[str, str], np.ndarray] = {}
        self._examples_speech: dict[str, tuple[np.ndarray, _Speech]] = {}

    @classmethod
    def from_pretrained(cls, checkpoint: str | Path, index: str | Path, *, device: str = "cpu") -> Service:
        """Load model, encoders and index, and warm up with one query of each modality.

        Raises:
            FileNotFoundError: If the checkpoint, the index or the folder of its files is missing.
            ValueError: If a part is damaged or does not fit another, or the index names no folder for its files.
            ConnectionError: If the server of the index does not answer.
        """
        service = cls(Retriever.from_pretrained(checkpoint, index, device=device))
        if service.root is None and {"image", "audio"} & set(service.counts):
            raise ValueError(
                f"The index {index} knows no folder for its pictures and sounds; add ?root=FOLDER to its address, the "
                "folder of the table it was built from."
            )
        if service.root is not None and not service.root.is_dir():
            raise FileNotFoundError(
                f"The pictures and sounds of the index {index} should lie in {service.root}, but there is no such "
                "folder; fetch it, or build the index again with fusemix index."
            )
        service.warm_up()
        return service

    @property
    def understood(self) -> frozenset[str]:
        """Modalities that a query may have."""
        return frozenset(self.encoder_names)

    @property
    def encoder_names(self) -> dict[str, str]:
        """Modality -> name of the frozen encoder of its queries."""
        return {modality: encoder.name for modality, encoder in self.retriever.encoders.items()}

    @property
    def counts(self) -> dict[str, int]:
        """Modality -> number of items that can be found."""
        return self.retriever.index.counts

    @property
    def root(self) -> Path | None:
        """Folder of the items' files, which the app serves."""
        return self.retriever.index.root

    def items(self, modality: str) -> list[dict[str, Any]]:
        """Return the metadata of every item of one modality."""
        return self.retriever.index.items(modality)

    def path_of(self, item: dict[str, Any]) -> Path | None:
        """Return the file of an item, inside :attr:`root`; None for a text."""
        return self.retriever.index.path_of(item)

    @cached_property
    def files(self) -> frozenset[str]:
        """Paths of the items' files, which the page shows; whatever else lies in :attr:`root` it must not serve."""
        paths = set()
        for item in (item for modality in self.counts for item in self.items(modality)):
            with suppress(ValueError):  # it leads out of the folder
                paths.add(self.path_of(item))
        laid = Neighbourhoods.of(self.root)
        return frozenset(map(str, (paths | {laid.sheet if laid else None}) - {None}))

    @cached_property
    def embeddings(self) -> dict[str, np.ndarray]:
        """Modality -> embeddings of its items, shape (N, D), in the order of :meth:`items`."""
        return {modality: self.retriever.index.embeddings(modality) for modality in self.counts}

    @cached_property
    def fusion(self) -> Fusion:
        """Ranking of items by all their faces."""
        return Fusion({modality: self.items(modality) for modality in self.counts}, self.embeddings)

    @cached_property
    def out_of_domain(self) -> OutOfDomain:
        """Detector of words that no caption of the index resembles."""
        judged = 0 < self.counts.get("text", 0) <= MAX_CAPTIONS
        none = np.empty((0, self.retriever.model.config.embed_dim), np.float32)
        return OutOfDomain(self.embeddings["text"] if judged else none)

    @cached_property
    def facets(self) -> dict[str, dict[str, int]]:
        """``licence`` and ``source`` -> value -> number of items with it, most first; empty for a large index."""
        if len(self.retriever.index) > MAX_FUSED:
            return {}
        tallies: dict[str, Counter[str]] = {"licence": Counter(), "source": Counter()}
        for faces in self.fusion.groups.faces:
            face = next(face for face in ("image", "audio", *faces) if face in faces)
            item = self.items(face)[faces[face][0]]
            for key, tally in tallies.items():
                if item.get(key):
                    tally[str(item[key])] += 1
        return {key: dict(tally.most_common()) for key, tally in tallies.items()}

    @cached_property
    def spelling(self) -> Spelling | None:
        """Spelling corrector; None for a large index, or if the text encoder's vocabulary is not known."""
        encoder = self.retriever.encoders.get("text")
        if not isinstance(encoder, MiniLML6) or not 0 < self.counts.get("text", 0) <= MAX_CAPTIONS:
            return None
        return Spelling((str(item["text"]) for item in self.items("text")), encoder.vocabulary())

    @cached_property
    def _rows(self) -> dict[tuple[str, str], int]:
        return {
            (modality, item["id"]): row for modality in self.counts for row, item in enumerate(self.items(modality))
        }

    def row_of(self, modality: str, identity: str) -> int | None:
        """Return the row of an item in :meth:`items`; None if there is no such item."""
        return self._rows.get((modality, identity))

    def warm_up(self) -> None:
        """Answer one query of each modality, so that no visitor waits for first-use set-up."""
        _ = self.out_of_domain, self.spelling, self.facets
        noise = np.random.default_rng(0).uniform(-0.1, 0.1, int(_WARM_UP_S * SAMPLE_RATE)).astype(np.float32)
        queries: dict[str, Callable[[], Answer]] = {
            "text": lambda: self.search_text("warm-up"),
            "image": lambda: self.search_image(Image.new("RGB", (64, 64), "gray")),
            "audio": lambda: self.search_audio((SAMPLE_RATE, noise)),
        }
        for modality, query in queries.items():
            if modality in self.retriever.encoders:
                logger.info("Warm %s query: %.0f ms.", modality, query().seconds * 1000)

    def search_text(self, text: str, *, top_k: int = 10) -> Answer:
        """Search by words.

        Args:
            text: Up to 2,000 characters.
            top_k: Hits per modality, 1 to 100.

        Raises:
            MediaError: (a ValueError) If the query cannot be used, in one sentence.
        """
        return self._search("text", text, top_k)

    def search_image(self, image: Any, *, top_k: int = 10) -> Answer:
        """Search by a picture: a path, bytes, PIL image or array. Raises like :meth:`search_text`."""
        return self._search("image", image, top_k)

    def search_audio(self, audio: Any, *, top_k: int = 10) -> Answer:
        """Search by a sound: a path, bytes or (Hz, samples). Raises like :meth:`search_text`."""
        return self._search("audio", audio, top_k)

    def search(self, query: Query, *, top_k: int = 10) -> Answer:
        """Search by several parts at once.

        A file with an id in ``query.ids`` is a gallery item or an example, not a visitor's own file.

        Raises:
            MediaError: (a ValueError) If the query or ``top_k`` cannot be used, in one sentence.
        """
        _check(top_k)
        started = time.perf_counter()
        given = query.parts()
        if not given:
            raise MediaError(EMPTY)
        weights = {part: query.weight(part) for part in given}

        def compute() -> Answer:
            parts, speech = {}, _Speech()
            for part, value in given.items():
                if part == "audio":
                    parts[part], speech = self._listen(value, query.ids.get(part))
                else:
                    parts[part] = self._embed(part, value, query.ids.get(part))
            answer = self._find(parts, weights, speech, top_k, query)
            words = query.text if set(parts) == {"text"} and self.spelling else ""
            return replace(
                answer,
                doubt=self._doubt(parts, speech),
                asked=query.describe(),
                suggestion=self.spelling.correct(words) if words and self.spelling else "",
                unknown=self.spelling.unknown(words) if words and self.spelling else [],
            )

        answer = self.pools.run(compute, slow=query.brings_file)
        return replace(answer, seconds=time.perf_counter() - started)

    def _embed(self, part: str, value: str, identity: str | None) -> np.ndarray:
        """Return the embedding of one part; that of a gallery item or an example is computed once."""
        row = self.row_of(part, identity) if identity else None
        if row is not None:
            known: np.ndarray = self.embeddings[part][row]
            return known
        if not identity:
            return self.retriever.embed_parts(**{part: value})[part]
        if (part, identity) not in self._examples:
            self._examples[part, identity] = self.retriever.embed_parts(**{part: value})[part]
        return self._examples[part, identity]

    def _listen(self, audio: Any, identity: str | None) -> tuple[np.ndarray, _Speech]:
        """Return the embedding of a sound and its speech; a gallery item is not transcribed."""
        if identity and self.row_of("audio", identity) is not None:
            return self._embed("audio", audio, identity), _Speech()
        if identity and identity in self._examples_speech:
            return self._examples_speech[identity]
        embedding, transcript = self.retriever.embed_and_transcribe(audio)
        found = embedding, _Speech(spoken_words(transcript), self.retriever.embed_words(transcript))
        if identity:
            self._examples_speech[identity] = found
        return found

    def _search(self, modality: str, query: Any, top_k: int) -> Answer:
        _check(top_k)
        if query is None:
            raise MediaError(EMPTY)
        started = time.perf_counter()

        def compute() -> Answer:
            speech = _Speech()
            if modality == "audio":
                embedding, speech = self._listen(query, None)
            else:
                embedding = self.retriever.embed(**{modality: query})
            parts = {modality: embedding}
            return replace(self._find(parts, {modality: 1.0}, speech, top_k), doubt=self._doubt(parts, speech))

        answer = self.pools.run(compute, slow=modality != "text")
        return replace(answer, seconds=time.perf_counter() - started)

    def _doubt(self, parts: Mapping[str, np.ndarray], speech: _Speech) -> str:
        """Return a sentence if speech was not understood, or nothing here resembles words that stand alone."""
        if speech.spoken.doubt or len(parts) != 1:
            return speech.spoken.doubt
        words = parts.get("text", speech.embedding)
        return "" if words is None else self.out_of_domain.sentence(words)

    def _find(
        self,
        parts: dict[str, np.ndarray],
        weights: dict[str, float],
        speech: _Speech,
        top_k: int,
        query: Query | None = None,
    ) -> Answer:
        """Find the nearest hits and items, without those used as the query."""
        query = query or Query()
        embedding = blend(parts, weights)
        asked = next(iter(parts)) if len(parts) == 1 else None
        where = {key: value for key, value in query.where.items() if key != "kind"} or None
        kind = query.where.get("kind")
        lists = [modality for modality in self.counts if kind in (None, modality)]
        hits = self.retriever.search_embedding(
            embedding, top_k=2 * top_k + 1, asked=asked, where=where, modalities=lists
        )
        known = {part: row for part, identity in query.ids.items() if (row := self.row_of(part, identity)) is not None}
        for part in known.keys() & hits.keys():
            hits[part] = [hit for hit in hits[part] if hit.item["id"] != query.ids[part]]
        items: list[FusedHit] = []
        sounds: list[FusedHit] | None = None
        if len(self.retriever.index) <= MAX_FUSED:
            items, sounds = self._fuse(parts, weights, speech, top_k, query, known)
        return Answer(
            query="+".join(parts),
            hits=self._once(hits, top_k),
            seconds=0.0,
            n_items=len(self.retriever.index),
            parts=parts,
            weights=weights,
            embedding=embedding,
            heard=speech.spoken.words,
            items=items,
            sounds=sounds,
            uncertain=speech.spoken.uncertain,
            left_out=next((str(self.items(part)[row].get("caption", "")) for part, row in known.items()), ""),
            where=query.where,
            likes=query.likes,
            dislikes=query.dislikes,
        )

    def _fuse(
        self,
        parts: dict[str, np.ndarray],
        weights: dict[str, float],
        speech: _Speech,
        top_k: int,
        query: Query,
        known: Mapping[str, int],
    ) -> tuple[list[FusedHit], list[FusedHit] | None]:
        """Return the best items, and the fitting items with a sound (None if this cannot be judged)."""
        met, counts = fusion_parts(parts, weights, speech.embedding)
        shares = self.fusion.shares(met, counts)
        groups = self.fusion.groups
        fitting: Collection[int] | None = None
        if not {"image", "audio"} & met.keys():  # only for words is it known which sounds fit
            fitting = self.fusion.fitting_sounds(shares)
        likes, dislikes = self._numbers(query.likes), self._numbers(query.dislikes)
        shares = self.fusion.steered(shares, likes, dislikes)
        where = dict(query.where)
        kind = where.pop("kind", None)
        left_out = {number for part, row in known.items() for number in groups.items_of(part, row)} | set(dislikes)
        if kind:
            left_out |= {number for number, faces in enumerate(groups.faces) if kind not in faces}
        best = list(islice(self.fusion.best(shares, met, leave_out=left_out, where=where), 2 * top_k))
        sounds = None
        if fitting is not None:
            fits = kind == "audio"  # asked for, sounds are shown as they come
            best = [f for f in best if fits or "image" in f.faces or "audio" not in f.faces or f.number in fitting]
            others = left_out | (set(range(len(groups))) - set(fitting))
            sounds = (
                list(islice(self.fusion.best(shares, met, leave_out=others, where=where), top_k)) if fitting else []
            )
        if 0 < self.counts.get("image", 0) <= MAX_DEDUPLICATED:
            rows = self.embeddings["image"]
            best = distinct(best, lambda f: rows[groups.faces[f.number]["image"][0]], self.path_of)
        return best[:top_k], sounds

    def _numbers(self, marked: Collection[str]) -> list[int]:
        """Return the numbers of items given as ``modality:id``; those that are no longer here are passed over."""
        found: list[int] = []
        for modality, _, identity in (entry.partition(":") for entry in marked):
            row = self.row_of(modality, identity)
            found += self.fusion.groups.items_of(modality, row)[:1] if row is not None else []
        return list(dict.fromkeys(found))

    def _once(self, hits: dict[str, list[Hit]], top_k: int) -> dict[str, list[Hit]]:
        """Return the first ``top_k`` hits of each modality, without near-duplicate pictures."""
        if "image" in hits and 0 < self.counts.get("image", 0) <= MAX_DEDUPLICATED:
            rows = self.embeddings["image"]
            hits["image"] = distinct(hits["image"], lambda hit: rows[self._rows["image", hit.item["id"]]], self.path_of)
        return {
            modality: [replace(hit, rank=rank) for rank, hit in enumerate(found[:top_k], start=1)]
            for modality, found in hits.items()
        }


def _check(top_k: Any) -> None:
    if isinstance(top_k, bool) or not isinstance(top_k, Integral) or not 1 <= int(top_k) <= MAX_TOP_K:
        raise MediaError(f"Ask for 1 to {MAX_TOP_K} results of each kind, not {shown(top_k)}.")
