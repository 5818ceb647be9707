"""An index of a folder's pictures and sounds that follows the folder: only what is new or changed is encoded.

What is known about a file (size, time, SHA-256) lies among the metadata of its items, so that index and state cannot
disagree. A file whose size and time are unchanged is not read. Any other is recognised by its content: moved, copied or
touched files keep their embeddings. A sound is kept by windows, and a hit names the second.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from fusemix.datasets.base import SOUNDS, is_litter, picture_endings, walk
from fusemix.encoders.base import Encoder
from fusemix.files import sha256_of, sole_writer
from fusemix.media import SAMPLE_RATE, MediaError, load_audio
from fusemix.model.adapters import FusionModel
from fusemix.search.index import INDEX_NAME, EmbeddingIndex

KINDS = ("image", "audio")
WINDOW_S = 15.0  # of a sound
LONGEST_S = 3 * 3600.0  # of a sound; it takes 0.7 GB while it is encoded
SAVE_EVERY_S = 30.0  # while many files are encoded
_BATCH = 16  # files


@dataclass
class Changes:
    """Count what an update found.

    Attributes:
        new: Files that were encoded, and copies of known ones.
        changed: Files with another content than before.
        moved: Files found under another name.
        deleted: Files that are gone.
        same: Files that stayed.
        skipped: File that cannot be used -> the reason.
        encoded: Files that went through an encoder.
    """

    new: int = 0
    changed: int = 0
    moved: int = 0
    deleted: int = 0
    same: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    encoded: int = 0

    @property
    def any(self) -> bool:
        """Return whether something differs from before."""
        return bool(self.new or self.changed or self.moved or self.deleted)


class _Stat(NamedTuple):
    kind: str
    size: int
    mtime_ns: int


@dataclass
class _Known:
    """A file of the index: its state and its items."""

    stat: _Stat
    sha256: str
    rows: list[np.ndarray]
    items: list[dict[str, Any]]


class FolderIndex:
    """The index of a folder.

    Example:
        >>> living = FolderIndex(model, encoders, "photos", "photos-index")
        >>> living.update().new
        1204
    """

    def __init__(
        self,
        model: FusionModel,
        encoders: Mapping[str, Encoder],
        root: str | Path,
        folder: str | Path,
        *,
        dtype: Literal["float32", "float16"] = "float16",
        workers: int = 2,
    ) -> None:
        """Open the index, if there is one.

        Args:
            model: Embeds the latents.
            encoders: ``image``, ``audio`` or both -> the model's encoder.
            root: The folder of files.
            folder: Of the index.
            dtype: As the index is stored.
            workers: Threads that decode files.

        Raises:
            FileNotFoundError: If there is no folder ``root``.
            ValueError: If the index was made by another model, of another folder or of a table, or is damaged.
        """
        self.model, self.root, self.folder = model, Path(root).resolve(), Path(folder)
        self.encoders = {kind: encoders[kind] for kind in KINDS if kind in encoders}
        if not self.root.is_dir():
            raise FileNotFoundError(f"There is no folder {root}.")
        if not self.encoders:
            raise ValueError(f"A folder's pictures and sounds need encoders of these, the model has {list(encoders)}.")
        self.dtype, self.workers, self.identity = dtype, workers, model.identity
        self._known: dict[str, _Known] = {}
        self._bad: dict[tuple[str, _Stat], str] = {}
        if (self.folder / INDEX_NAME).is_file():
            self._open(EmbeddingIndex.load(self.folder, model_identity=self.identity))

    def __len__(self) -> int:
        """Count the files."""
        return len(self._known)

    def update(self, *, report: Callable[[int, int], None] | None = None) -> Changes:
        """Bring the index up to date with the folder, and save it if something changed.

        While many files are encoded, what is done is saved every half minute: a killed update goes on from there.

        Args:
            report: Called with (files encoded, files to encode) after every batch.

        Raises:
            ValueError: If another process updates this index.
            OSError: If it cannot be written, in one sentence.
        """
        with sole_writer(self.folder):
            return self._update(report)

    def watch(self, found: Callable[[Changes], None], *, every_s: float, should_stop: Callable[[], bool]) -> None:
        """Update again and again.

        Args:
            found: Called after each update that changed something.
            every_s: Seconds between two looks at the folder.
            should_stop: Asked ten times a second.
        """
        while not should_stop():
            changes = self.update()
            if changes.any:
                found(changes)
            until = time.monotonic() + every_s
            while time.monotonic() < until and not should_stop():
                time.sleep(min(0.1, every_s))

    def _update(self, report: Callable[[int, int], None] | None) -> Changes:
        changes, seen = Changes(), dict(self._scan())
        kept = {path: known for path, known in self._known.items() if seen.get(path) == known.stat}  # in their order
        changes.same = len(kept)
        by_content = {(known.stat.kind, known.sha256): (path, known) for path, known in self._known.items()}
        waiting: list[tuple[str, _Stat]] = []
        for path, stat in seen.items():
            if reason := self._bad.get((path, stat)):
                changes.skipped[path] = reason
            elif path not in kept:
                waiting.append((path, stat))
        with ThreadPoolExecutor(self.workers) as pool:
            digests = list(pool.map(lambda entry: self._digest(entry[0]), waiting))
        unknown, touched = [], False
        for (path, stat), digest in zip(waiting, digests, strict=True):
            alike = by_content.get((stat.kind, digest)) if digest else None
            if alike is None:
                unknown.append((path, stat, digest))
                continue
            kept[path] = self._renamed(alike[1], path, stat)
            touched = True
            if alike[0] == path:
                changes.same += 1
            elif alike[0] not in seen:
                changes.moved += 1
            else:
                changes.new += 1
        gone = len(set(self._known) - set(seen))
        changes.deleted = max(0, gone - changes.moved)
        self._encode(unknown, kept, changes, report)
        if changes.any or touched:
            self._save(kept)
        self._known = kept
        return changes

    def _encode(
        self,
        files: list[tuple[str, _Stat, str]],
        kept: dict[str, _Known],
        changes: Changes,
        report: Callable[[int, int], None] | None,
    ) -> None:
        """Encode files into ``kept``, and save now and then."""
        saved = time.monotonic()
        files = sorted(files, key=lambda entry: entry[1].kind == "audio")  # batches of one kind, pictures first
        with ThreadPoolExecutor(self.workers) as pool:
            for start in range(0, len(files), _BATCH):
                batch = files[start : start + _BATCH]
                for (path, stat, digest), ready in zip(batch, pool.map(self._prepared, batch), strict=True):
                    if isinstance(ready, str):
                        changes.skipped[path] = self._bad[path, stat] = ready
                        continue
                    changes.changed += path in self._known
                    changes.new += path not in self._known
                    changes.encoded += 1
                    kept[path] = _Known(stat, digest, [], self._describe(path, stat, digest, [s for s, _ in ready]))
                    kept[path].rows = [prepared for _, prepared in ready]  # embedded below, with the batch
                self._embed([kept[path] for path, _, _ in batch if path in kept])
                if report:
                    report(min(start + _BATCH, len(files)), len(files))
                if time.monotonic() - saved > SAVE_EVERY_S:
                    self._save(kept)
                    saved = time.monotonic()

    def _embed(self, files: list[_Known]) -> None:
        """Replace the prepared items of files by their embeddings, one pass a kind."""
        for kind, encoder in self.encoders.items():
            mine = [known for known in files if known.stat.kind == kind]
            prepared = [row for known in mine for row in known.rows]
            if not prepared:
                continue
            parts = [encoder.encode_prepared(prepared[i : i + _BATCH]) for i in range(0, len(prepared), _BATCH)]
            rows = iter(self.model.embed(kind, np.concatenate(parts)).numpy())
            for known in mine:
                known.rows = [next(rows) for _ in known.rows]

    def _prepared(self, entry: tuple[str, _Stat, str]) -> list[tuple[tuple[float, float] | None, Any]] | str:
        """Decode a file to (window in seconds or None, prepared item), or return why it cannot be used."""
        path, stat, _ = entry
        encoder, file = self.encoders[stat.kind], str(self.root / path)
        try:
            if stat.kind == "image":
                return [(None, encoder.prepare(file))]
            return list(_windows(encoder, load_audio(file, max_duration_s=LONGEST_S)))
        except MediaError as error:
            return str(error)

    def _scan(self) -> Iterator[tuple[str, _Stat]]:
        """Yield the pictures and sounds below the root, without hidden files and the index itself."""
        endings = {"image": picture_endings(), "audio": SOUNDS}
        own = self.folder.resolve()
        for where, names in walk(self.root):
            if where.resolve().is_relative_to(own):
                continue
            for name in names:
                ending = Path(name).suffix.lower()
                kind = next((kind for kind in self.encoders if ending in endings[kind]), None)
                if kind is None or name.startswith(".") or is_litter(name):
                    continue
                file = where / name
                try:
                    about = file.stat()
                    inside = file.resolve().is_relative_to(self.root)
                except OSError:
                    continue  # gone, or a link that leads nowhere
                if inside and file.is_file():
                    yield file.relative_to(self.root).as_posix(), _Stat(kind, about.st_size, about.st_mtime_ns)

    def _digest(self, path: str) -> str:
        try:
            return sha256_of(self.root / path)
        except OSError:
            return ""  # gone, or not to be read: decoding says which

    @staticmethod
    def _describe(
        path: str, stat: _Stat, digest: str, windows: list[tuple[float, float] | None]
    ) -> list[dict[str, Any]]:
        """Make the metadata of a file's items."""
        words = re.sub(r"[\W_]+", " ", Path(path).stem).strip()
        common: dict[str, Any] = {"caption": words, "path": path, "group": path, "title": words}
        common |= {"size": stat.size, "mtime_ns": stat.mtime_ns, "sha256": digest}
        return [
            {"id": path, **common}
            if window is None
            else {"id": f"{path}#{window[0]:g}", **common, "start_s": window[0], "end_s": window[1]}
            for window in windows
        ]

    def _renamed(self, known: _Known, path: str, stat: _Stat) -> _Known:
        """Return a known file's items under another name or time."""
        windows = [(item["start_s"], item["end_s"]) if "start_s" in item else None for item in known.items]
        return _Known(stat, known.sha256, known.rows, self._describe(path, stat, known.sha256, windows))

    def _open(self, index: EmbeddingIndex) -> None:
        if index.root != self.root:
            raise ValueError(
                f"The index in {self.folder} is of the folder {index.root}, not of {self.root}; choose another place "
                "for this one."
            )
        for kind in index.counts:
            for row, item in zip(index.embeddings(kind), index.items(kind), strict=True):
                if kind not in self.encoders or "mtime_ns" not in item:
                    raise ValueError(f"The index in {self.folder} was not made of a folder; choose another one.")
                stat = _Stat(kind, item["size"], item["mtime_ns"])
                known = self._known.setdefault(item["path"], _Known(stat, item["sha256"], [], []))
                known.rows.append(row)
                known.items.append(item)

    def _save(self, files: Mapping[str, _Known]) -> None:
        index = EmbeddingIndex(self.model.config.embed_dim, model_identity=self.identity, root=self.root)
        for kind in self.encoders:
            mine = [known for known in files.values() if known.stat.kind == kind and known.rows]
            if mine:
                rows = np.stack([row for known in mine for row in known.rows])
                index.add(kind, rows, [item for known in mine for item in known.items])
        if len(index):
            index.save(self.folder, dtype=self.dtype)
        elif (self.folder / INDEX_NAME).is_file():
            (self.folder / INDEX_NAME).unlink()  # nothing is left


def _windows(encoder: Encoder, samples: np.ndarray) -> Iterator[tuple[tuple[float, float] | None, Any]]:
    """Cut a sound of more than a window into windows, and leave out the silent ones; a short rest joins the last."""
    size = int(WINDOW_S * SAMPLE_RATE)
    starts = [start for start in range(0, len(samples), size) if start == 0 or len(samples) - start >= size // 3]
    if len(starts) == 1:
        yield None, encoder.prepare((SAMPLE_RATE, samples))
        return
    heard = False
    for start, end in zip(starts, [*starts[1:], len(samples)], strict=True):
        try:
            ready = encoder.prepare((SAMPLE_RATE, samples[start:end]))
        except MediaError:
            continue
        heard = True
        yield (start / SAMPLE_RATE, end / SAMPLE_RATE), ready
    if not heard:
        raise MediaError("The sound is silent.")
