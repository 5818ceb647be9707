"""Visitors' own corpora: each is embedded, searched, packed for download and deleted separately."""

from __future__ import annotations

import io
import json
import logging
import secrets
import shutil
import threading
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from demo.query import Query
from demo.service import EMPTY, Answer
from demo.sessions import GONE, LIFETIME_S, take
from demo.transcripts import SpokenWords, spoken_words
from demo.uploads import MAX_BYTES, LeftOut, Piece, read
from demo.workers import WorkerPools
from fusemix.media import SAMPLE_RATE, MediaError, load_audio, load_image
from fusemix.model.adapters import FusionModel
from fusemix.search.card import index_card
from fusemix.search.index import EmbeddingIndex
from fusemix.search.retriever import Retriever, blend

logger = logging.getLogger(__name__)

MAX_ITEMS = 2000
MAX_SECONDS = 600.0  # of embedding, per corpus
THUMBNAIL_SIDE = 512  # pixels, longer side
BATCH = {"text": 32, "image": 4, "audio": 1}  # items per step; a search waits for one step at most
_EFFORT = {"text": 1, "image": 4, "audio": 25}  # relative cost of an item, to estimate the remaining time
INDEX_FOLDER = "fusemix-index"


@dataclass(frozen=True)
class Step:
    """Progress of the embedding.

    Attributes:
        done: Items handled, including those left out.
        total: Items in these files.
        sentence: Text for the page.
        finished: Whether this is the last step.
    """

    done: int
    total: int
    sentence: str
    finished: bool = False


@dataclass
class _Clock:
    """Speed and remaining time of one embedding."""

    total: dict[str, int]
    done: dict[str, int] = field(default_factory=lambda: dict.fromkeys(BATCH, 0))
    began: float = field(default_factory=time.monotonic)

    def sentence(self) -> str:
        """Describe the progress, such as ``120 of 400, 18.2 per second, about 15 s left``."""
        seconds = max(time.monotonic() - self.began, 1e-6)
        count = sum(self.done.values())
        work = sum(_EFFORT[m] * n for m, n in self.done.items())
        left = seconds * (sum(_EFFORT[m] * n for m, n in self.total.items()) / work - 1) if work else 0.0
        rest = f"{left:.0f} s" if left < 100 else f"{left / 60:.0f} min"
        return f"{count:,} of {sum(self.total.values()):,}, {count / seconds:.1f} per second, about {rest} left"


class Corpus:
    """One visitor's items, embedded with the app's model. Safe to search while it grows.

    Only a thumbnail of a picture and a mono 16 kHz copy of a sound are kept; the uploaded files are not.
    """

    def __init__(
        self, retriever: Retriever, folder: Path, *, pools: WorkerPools | None = None, lifetime_s: float = LIFETIME_S
    ) -> None:
        """Start empty.

        Args:
            retriever: Its model and encoders embed the items and the queries.
            folder: New folder for this corpus alone; holds everything on disk.
            pools: Threads that run the encoders, shared by the app; its own by default.
            lifetime_s: Seconds until deletion, shown to the visitor; ``Visitors`` deletes it.
        """
        folder.mkdir(parents=True)
        self.retriever = retriever
        self.model = retriever.model
        self.folder = folder
        self.pools = pools or WorkerPools()
        self.index = EmbeddingIndex(
            retriever.model.config.embed_dim, model_identity=retriever.model.identity, root=folder
        )
        self.left_out: list[LeftOut] = []
        self.used = time.monotonic()
        self.until = datetime.now(UTC) + timedelta(seconds=lifetime_s)
        self.busy = False
        self._latents: dict[str, list[np.ndarray]] = {}
        self._files: dict[str, Path] = {}
        self._seconds = 0.0
        self._bytes = 0
        self._count = 0
        self._arrived: list[Path] = []
        self._stop = threading.Event()
        self._deleted = False
        self._lock = threading.Lock()  # of the index and the folder

    def __len__(self) -> int:
        return len(self.index)

    @property
    def counts(self) -> dict[str, int]:
        """Modality -> number of items."""
        return self.index.counts

    def stop(self) -> None:
        """End the embedding after the current items; keep what is embedded, drop what waits."""
        self._stop.set()

    def delete(self) -> None:
        """Remove everything, from disk too."""
        self.stop()
        with self._lock:
            self._deleted = True
            shutil.rmtree(self.folder, ignore_errors=True)
            self._latents.clear()
            self.index = EmbeddingIndex(self.index.embed_dim, model_identity=self.index.model_identity)

    def arrive(self, uploads: Sequence[str | Path], *, link: bool = True) -> None:
        """Take in files, to be embedded next.

        Args:
            uploads: Pictures, sounds, tables, lists of captions, archives.
            link: Whether the visitor uploaded them; they are then linked here until they are embedded.

        Raises:
            MediaError: (a ValueError) If the corpus was deleted.
        """
        with self._lock:
            if self._deleted:
                raise MediaError(GONE)
            if self._stop.is_set():  # an embedding that was just stopped keeps its own
                self._stop = threading.Event()
            for upload in map(Path, uploads):
                if link and upload.is_file():
                    upload = take(upload, self.folder / "arrived" / secrets.token_hex(8))
                self._arrived.append(upload)

    def embed(self) -> Iterator[Step]:
        """Embed the files that arrived, yielding after every few items; unusable ones are listed in ``left_out``.

        Raises:
            MediaError: (a ValueError) If files of this visitor are already being embedded.
        """
        if self.busy:
            raise MediaError("Your files are already being processed; please wait or press Cancel.")
        self.busy = True
        stop = self._stop
        uploads, self._arrived = self._arrived, []
        unpacked = self.folder / "unpacked"
        try:
            yield Step(0, 0, "Reading your files …")
            if self._deleted:
                raise MediaError(GONE)
            unpacked.mkdir(exist_ok=True)
            found = read(uploads, unpacked, max_bytes=MAX_BYTES - self._bytes, stopped=stop.is_set)
            self._bytes += found.n_bytes
            self.left_out.extend(found.left_out)
            pieces = self._within_limit(found.pieces)
            yield from self._embed(pieces, stop)
        finally:
            self.busy = False
            for upload in uploads:
                if upload.is_relative_to(self.folder):
                    shutil.rmtree(upload.parent, ignore_errors=True)
            shutil.rmtree(unpacked, ignore_errors=True)

    def _within_limit(self, pieces: list[Piece]) -> list[Piece]:
        room = MAX_ITEMS - len(self)
        if len(pieces) > room:
            rest = len(pieces) - room
            self.left_out.append(LeftOut(f"{rest:,} of your items", f"exceed the limit of {MAX_ITEMS:,}"))
        return pieces[:room]

    def _embed(self, pieces: list[Piece], stop: threading.Event) -> Iterator[Step]:
        kinds = {modality: [p for p in pieces if p.modality == modality] for modality in BATCH}
        clock = _Clock({modality: len(found) for modality, found in kinds.items()})
        ending = ""
        for modality, found in kinds.items():
            for start in range(0, len(found), BATCH[modality]):
                if stop.is_set():
                    ending = "Stopped. "
                elif self._seconds >= MAX_SECONDS:
                    ending = f"Stopped after {MAX_SECONDS / 60:.0f} minutes, the limit per visitor. "
                if ending:
                    break
                batch, began = found[start : start + BATCH[modality]], time.monotonic()
                self._add(modality, batch)
                self._seconds += time.monotonic() - began
                clock.done[modality] += len(batch)
                yield Step(sum(clock.done.values()), len(pieces), clock.sentence())
        done, seconds = sum(clock.done.values()), time.monotonic() - clock.began
        self.used = time.monotonic()
        if not self._deleted:
            self._pack()
        took = f"{done:,} of {len(pieces):,} files and captions in {seconds:.1f} s."
        yield Step(done, len(pieces), ending + took, finished=True)

    def _add(self, modality: str, batch: list[Piece]) -> None:
        """Embed a batch of one modality; list unusable items in ``left_out``."""
        kept, latents, embeddings = self.pools.run(lambda: self._encode(modality, batch), slow=modality != "text")
        with self._lock:
            if self._deleted or not kept:
                return
            items = [self._keep(piece, shown) for piece, shown in kept]
            self.index.add(modality, embeddings, items)
            self._latents.setdefault(modality, []).append(latents)

    def _encode(self, modality: str, batch: list[Piece]) -> tuple[list[tuple[Piece, Any]], np.ndarray, Any]:
        """Return the usable pieces, each with what to show of it, their latents and their embeddings."""
        kept, prepared = [], []
        for piece in batch:
            try:
                shown, ready = self._prepare(piece)
                kept.append((piece, shown))
                prepared.append(ready)
            except MediaError as error:
                self.left_out.append(LeftOut(piece.name, _reason(error, piece)))
            except Exception:  # one file that breaks a decoder must not cost a visitor the others
                logger.exception("A visitor's file could not be prepared.")
                self.left_out.append(LeftOut(piece.name, "cannot be read"))
        if not kept:
            return [], np.empty((0, 0)), None
        latents = self.retriever.encode(modality, prepared)
        return kept, latents, self.model.embed(modality, latents)

    def _prepare(self, piece: Piece) -> tuple[Any, Any]:
        """Return what to show of a piece, and the encoder's input."""
        encoder = self.retriever.encoders.get(piece.modality)
        if encoder is None or piece.modality not in self.model.modalities:
            raise MediaError(f"This model understands {', '.join(self.model.modalities)} only.")
        if piece.modality == "image":
            image = load_image(piece.value)
            ready = encoder.prepare(image)
            image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
            return image, ready
        if piece.modality == "audio":
            samples = load_audio(piece.value)
            return samples, encoder.prepare((SAMPLE_RATE, samples))
        return None, encoder.prepare(piece.value)

    def _keep(self, piece: Piece, shown: Any) -> dict[str, Any]:
        """Write what is shown of an item, and return its metadata."""
        self._count += 1
        identity = f"{piece.modality}-{self._count:05d}"
        if piece.modality == "text":
            return {"id": identity, "text": piece.value, "source": piece.name}
        suffix = ".jpg" if piece.modality == "image" else ".mp3"
        path = self._files[identity] = self.folder / f"{identity}{suffix}"
        if piece.modality == "image":
            shown.save(path, quality=85)
        else:
            soundfile.write(path, shown.clip(-1, 1), SAMPLE_RATE)
        return {"id": identity, "path": piece.name, "caption": piece.caption}

    def path_of(self, item: dict[str, Any]) -> Path | None:
        """Return the thumbnail of a picture or the copy of a sound; None for a caption."""
        return self._files.get(item["id"])

    def search(self, query: Query, *, top_k: int = 12) -> Answer:
        """Search only these items.

        An id in ``query.ids`` names an item of this corpus; its stored embedding is used for that part.

        Raises:
            MediaError: (a ValueError) If the query cannot be used, or the corpus was deleted, in one sentence.
        """
        started = self.used = time.monotonic()
        given = query.parts()
        if not given:
            raise MediaError(EMPTY)
        if self._deleted:
            raise MediaError(GONE)
        weights = {part: query.weight(part) for part in given}

        def compute() -> tuple[dict[str, np.ndarray], np.ndarray, SpokenWords]:
            spoken, parts = SpokenWords(), {}
            for part, value in given.items():
                if part == "audio" and part not in query.ids and self.model is self.retriever.model:
                    parts[part], spoken = self._listen(value)
                else:
                    parts[part] = self._query(part, value, query.ids.get(part))
            return parts, blend(parts, weights), spoken

        parts, embedding, spoken = self.pools.run(compute, slow=query.brings_file)
        with self._lock:
            hits = {m: self.index.search(m, embedding[None], top_k=top_k)[0] for m in self.index.counts}
        return Answer(
            "+".join(parts),
            hits,
            time.monotonic() - started,
            len(self),
            parts,
            weights,
            embedding,
            query.describe(),
            doubt=spoken.doubt,
            heard=spoken.words,
        )

    def _listen(self, sound: str) -> tuple[np.ndarray, SpokenWords]:
        """Return the embedding of a sound, or of the words that were heard clearly in it, and these words."""
        embedding, transcript = self.retriever.embed_and_transcribe(sound)
        words = self.retriever.embed_words(transcript)
        return embedding if words is None else words, spoken_words(transcript)

    def _query(self, part: str, value: str, identity: str | None) -> np.ndarray:
        if identity is not None:
            row = next((i for i, item in enumerate(self.index.items(part)) if item["id"] == identity), None)
            if row is None:
                raise MediaError(GONE)
            with self._lock:
                known: np.ndarray = self.index.embeddings(part)[row]
            return known
        if self.model is self.retriever.model:
            return self.retriever.embed_parts(**{part: value})[part]
        modality = "text" if part == "minus_text" else part
        if modality not in self.model.modalities:
            raise MediaError(f"Your own model understands {' and '.join(self.model.modalities)}, not {modality}.")
        latents = self.retriever.encode(modality, [self.retriever.encoders[modality].prepare(value)])
        embedding: np.ndarray = self.model.embed(modality, latents)[0].numpy()
        return embedding

    def pairs(self) -> dict[str, np.ndarray]:
        """Return the latents of the pictures with a caption among the captions, and of these: row i of both is a pair.

        A picture's caption is that of a table which names its file; see :mod:`demo.uploads`.
        """
        with self._lock:
            rows = (
                {item["text"]: row for row, item in enumerate(self.index.items("text"))}
                if "text" in self.counts
                else {}
            )
            pictures = self.index.items("image") if rows and "image" in self.counts else []
            linked = [(row, rows[item["caption"]]) for row, item in enumerate(pictures) if item["caption"] in rows]
            if not linked:
                return {}
            sides = zip(("image", "text"), zip(*linked, strict=True), strict=True)
            return {modality: np.concatenate(self._latents[modality])[list(chosen)] for modality, chosen in sides}

    def adopt(self, model: FusionModel) -> None:
        """Search with another model of the same encoders' latents; items of a modality that it lacks are left out."""
        with self._lock:
            if self._deleted:
                raise MediaError(GONE)
            index = EmbeddingIndex(model.config.embed_dim, model_identity=model.identity, root=self.folder)
            for modality in self.counts:
                if modality in model.modalities:
                    latents = np.concatenate(self._latents[modality])
                    index.add(modality, model.embed(modality, latents), self.index.items(modality))
            self.index, self.model = index, model
        self._pack()

    def query_of(self, modality: str, identity: str) -> Query:
        """Return the query "more like this item".

        Raises:
            MediaError: If there is no such item.
        """
        item = next((item for item in self.index.items(modality) if item["id"] == identity), None)
        if item is None:
            raise MediaError(GONE)
        if modality == "text":
            return Query(text=item["text"])
        return Query.of_file(modality, str(self.path_of(item)), identity)

    @property
    def downloads(self) -> dict[str, Path]:
        """Archives (.zip) by name, ``index`` and ``latents``, once something is embedded."""
        paths = {name: self.folder / f"fusemix-{name}.zip" for name in ("index", "latents")}
        return {name: path for name, path in paths.items() if path.is_file()}

    def _pack(self) -> None:
        """Write the two archives.

        The index expects its items' files one folder above its own, so it finds them when unpacked beside them.
        """
        with self._lock:
            if self._deleted or not len(self):
                return
            saved = self.index.save(self.folder / INDEX_FOLDER)
            card = index_card("My collection", self.index, saved, self.retriever.model.config)
            (saved / "README.md").write_text(card, encoding="utf-8")
            with zipfile.ZipFile(self.folder / "fusemix-index.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as out:
                for path in sorted(saved.iterdir()):
                    out.write(path, f"{INDEX_FOLDER}/{path.name}")
            shutil.rmtree(saved)
            with zipfile.ZipFile(self.folder / "fusemix-latents.zip", "w") as out:
                for modality in self.counts:  # a model of the visitor's own may lack one
                    out.writestr(f"latents-{modality}.npy", _npy(np.concatenate(self._latents[modality])))
                    out.writestr(f"embeddings-{modality}.npy", _npy(self.index.embeddings(modality)))
                    lines = [json.dumps(item, ensure_ascii=False) + "\n" for item in self.index.items(modality)]
                    out.writestr(f"items-{modality}.jsonl", "".join(lines))
                encoders = {m: self.retriever.model.config.encoders.get(m, {}) for m in self.counts}
                out.writestr("encoders.json", json.dumps(encoders, indent=2))


def _reason(error: MediaError, piece: Piece) -> str:
    """Return the reason with the visitor's name for the file, without that name at the beginning."""
    reason = str(error).replace(Path(piece.value).name, piece.name) if piece.modality != "text" else str(error)
    return reason.removeprefix(f"{piece.name} ")


def _npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=False)
    return out.getvalue()
