"""The index beyond one machine: a Qdrant server behind the interface of ``EmbeddingIndex``.

An address is ``qdrant://host:port/collection``, with ``qdrants://`` for TLS, and may end in ``?root=FOLDER``
(where the items' files lie on this machine) and ``&exact=1`` (no approximation). The key of a server that
wants one is read from the environment variable ``QDRANT_API_KEY``. ``qdrant:///folder/collection``, without a
host, is the client's own local mode: brute force in one process, for trials and tests.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
from torch import Tensor

from fusemix.search.index import Hit, check_where, checked_items, checked_queries, item_path

try:
    from qdrant_client import QdrantClient, models
    from qdrant_client.http.exceptions import ApiException
except ImportError as error:
    raise ImportError("An index on a Qdrant server needs its client: pip install 'qdrant-client>=1.16,<2'.") from error

SCHEMES = {"qdrant": "http", "qdrants": "https"}
API_KEY_VARIABLE = "QDRANT_API_KEY"
DEFAULT_PORT = 6333
FORMAT = "fusemix-1"  # in the collection's metadata; a collection without it is somebody else's
FILTERED = ("modality", "item.licence", "item.source")  # payload keys the server keeps an index of
BATCH = 256  # points in one upsert, and in one page of a scroll
QUERIES = 64  # in one request
TIMEOUT_S = 30
_REBUILD = "rebuild it with scripts/build_index.py --index"


@dataclass(frozen=True)
class Address:
    """Where a collection lies.

    Attributes:
        server: URL of the server, or the folder of a local one.
        collection: Its name.
        root: Folder of the items' files on this machine; None if they have none here.
        exact: Whether the server compares with every item instead of walking its graph.
        local: Whether ``server`` is a folder.
    """

    server: str
    collection: str
    root: Path | None = None
    exact: bool = False
    local: bool = False

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read ``qdrant://host:port/collection?root=FOLDER&exact=1``.

        Raises:
            ValueError: If it is not of this form.
        """
        wanted = f"expected qdrant://host:port/collection, got {text!r}."
        try:
            parts = urlsplit(text)
            host, port = parts.hostname, parts.port or DEFAULT_PORT
            options = parse_qs(parts.query, strict_parsing=bool(parts.query))
        except ValueError as error:
            raise ValueError(f"The address of the index cannot be read ({error}); {wanted}") from error
        folder, _, collection = parts.path.rpartition("/")
        if parts.scheme not in SCHEMES or not re.fullmatch(r"[\w.-]+", collection) or (host and folder):
            raise ValueError(f"The address of the index cannot be read; {wanted}")
        if parts.username or parts.password:
            raise ValueError(
                f"Give the server's key in the environment variable {API_KEY_VARIABLE}, not in the address."
            )
        if unknown := sorted(set(options) - {"root", "exact"}):
            raise ValueError(f"An index address knows the options root and exact, not {unknown}; {wanted}")
        root = Path(options["root"][0]).resolve() if "root" in options else None
        exact = options.get("exact", ["0"])[0] not in ("", "0", "false")
        if host is None and not folder:
            raise ValueError(f"The address of the index names no server; {wanted}")
        name = f"[{host}]" if host and ":" in host else host
        server = folder if host is None else f"{SCHEMES[parts.scheme]}://{name}:{port}"
        return cls(server, collection, root, exact, local=host is None)

    def __str__(self) -> str:
        return f"the collection {self.collection!r} at {self.server}"


class QdrantIndex:
    """Unit-length embeddings and their items in one collection of a Qdrant server.

    The collection's metadata names the model that made it. A search walks the server's HNSW graph, which is
    approximate, unless the address says ``exact=1``. Safe to search from several threads.

    Example:
        >>> index = QdrantIndex.create("qdrant://localhost:6333/gallery", 512, model_identity=model.identity)
        >>> index.add("image", model.embed("image", latents), items)
        >>> index.save()
        >>> hits = index.search("image", query[None], top_k=5, where={"licence": "CC0-1.0"})[0]
    """

    def __init__(self, client: QdrantClient, address: Address, embed_dim: int, *, model_identity: str) -> None:
        """Use :meth:`create` or :meth:`load`."""
        self.client = client
        self.address = address
        self.embed_dim = embed_dim
        self.model_identity = model_identity
        self.root = address.root
        self._counts: dict[str, int] = {}
        self._items: dict[str, list[dict[str, Any]]] = {}  # read once, when first asked for

    def __len__(self) -> int:
        return sum(self._counts.values())

    @classmethod
    def create(
        cls, address: str, embed_dim: int, *, model_identity: str, client: QdrantClient | None = None
    ) -> QdrantIndex:
        """Start an empty collection; one that FuseMix made before under this name is replaced.

        Args:
            address: See the module.
            embed_dim: Width D of the shared space.
            model_identity: ``FusionModel.identity`` of the model that makes the embeddings.
            client: One that is connected already, in tests.

        Raises:
            ValueError: If the address cannot be read, or the collection is somebody else's.
            ConnectionError: If the server does not answer.
        """
        if embed_dim < 1:
            raise ValueError(f"embed_dim must be >= 1, got {embed_dim}.")
        place = Address.parse(address)
        index = cls(client or _connect(place), place, embed_dim, model_identity=model_identity)
        with _spoken(place):
            if index.client.collection_exists(place.collection):
                if (_metadata(index.client, place) or {}).get("format") != FORMAT:
                    raise ValueError(f"FuseMix did not make {place}; it is left alone, choose another name.")
                index.client.delete_collection(place.collection)
            index.client.create_collection(
                place.collection,
                vectors_config=models.VectorParams(size=embed_dim, distance=models.Distance.DOT),
                metadata=index._manifest(complete=False),
            )
            if not place.local:
                for key in FILTERED:
                    index.client.create_payload_index(place.collection, key, models.PayloadSchemaType.KEYWORD)
        return index

    @classmethod
    def load(cls, address: str, *, model_identity: str, client: QdrantClient | None = None) -> QdrantIndex:
        """Open a collection that a given model made.

        Args:
            address: See the module.
            model_identity: ``FusionModel.identity`` of the model that will make the queries.
            client: One that is connected already, in tests.

        Raises:
            FileNotFoundError: If the server has no such collection.
            ValueError: If another model made it, it is incomplete, or not of FuseMix.
            ConnectionError: If the server does not answer.
        """
        place = Address.parse(address)
        client = client or _connect(place)
        with _spoken(place):
            if not client.collection_exists(place.collection):
                raise FileNotFoundError(f"There is no {place}; build it with scripts/build_index.py --index.")
            manifest = _metadata(client, place)
            if manifest is None or manifest.get("format") != FORMAT:
                raise ValueError(
                    f"FuseMix did not make {place}, or the server is older than Qdrant 1.16 and forgot; {_REBUILD}."
                )
            if manifest.get("model_identity") != model_identity:
                raise ValueError(
                    f"The model {str(manifest.get('model_identity'))[:12]}... made {place}, "
                    f"but this model is {model_identity[:12]}...; {_REBUILD}."
                )
            index = cls(client, place, int(manifest["embed_dim"]), model_identity=model_identity)
            index._counts = {str(modality): int(count) for modality, count in manifest["counts"].items()}
            held = {
                modality: client.count(place.collection, count_filter=_filter(modality), exact=True).count
                for modality in index._counts
            }
        if not manifest["complete"] or held != index._counts:
            raise ValueError(f"The building of {place} did not end: it holds {held or 'no'} items; {_REBUILD}.")
        return index

    @property
    def counts(self) -> dict[str, int]:
        """Modality -> number of items."""
        return dict(self._counts)

    def items(self, modality: str) -> list[dict[str, Any]]:
        """The metadata of one modality's items, in the order they were added; fetched once and kept."""
        if modality not in self._items:
            self._items[modality] = [point.payload["item"] for point in self._scroll(modality, vectors=False)]
        return list(self._items[modality])

    def path_of(self, item: dict[str, Any]) -> Path | None:
        """The file of an item, below the address's ``root``; None if it is no file.

        The server is not asked for the folder: whoever writes to it must not choose what this machine serves.

        Raises:
            ValueError: If the address names no root, or the path leads out of it.
        """
        return item_path(self.root, item)

    def embeddings(self, modality: str) -> np.ndarray:
        """Every embedding of one modality, in the order added: shape (N, D), float32, unit length."""
        if modality not in self._counts:
            raise KeyError(f"This index holds {sorted(self._counts)}, not {modality!r}.")
        rows = [np.asarray(point.vector, dtype=np.float32) for point in self._scroll(modality, vectors=True)]
        return np.stack(rows) if rows else np.empty((0, self.embed_dim), dtype=np.float32)

    def add(self, modality: str, embeddings: np.ndarray | Tensor, items: Sequence[dict[str, Any]]) -> None:
        """Append items of one modality, in batches that the server has stored when this returns.

        Args:
            modality: A plain name (letters, digits, ``_``, ``-``).
            embeddings: Shape (N, D), any float dtype, finite, unit length.
            items: N metadata dicts of JSON values.

        Raises:
            ValueError: If name, width, count or values are not as above.
            ConnectionError: If the server does not answer.
        """
        rows = checked_items(modality, embeddings, items, self.embed_dim)
        self._items.pop(modality, None)
        self._counts.setdefault(modality, 0)
        for start in range(0, len(rows), BATCH):
            points = [
                models.PointStruct(
                    id=len(self) + offset, vector=row.tolist(), payload={"modality": modality, "item": dict(item)}
                )
                for offset, (row, item) in enumerate(
                    zip(rows[start : start + BATCH], items[start : start + BATCH], strict=True)
                )
            ]
            with _spoken(self.address):
                self.client.upsert(self.address.collection, points, wait=True)
            self._counts[modality] += len(points)

    def save(self) -> str:
        """Note in the collection that it is complete; until then :meth:`load` refuses it. Returns where it lies."""
        with _spoken(self.address):
            self.client.update_collection(self.address.collection, metadata=self._manifest(complete=True))
        return str(self.address)

    def search(
        self,
        modality: str,
        queries: np.ndarray | Tensor,
        *,
        top_k: int = 10,
        where: Mapping[str, str] | None = None,
    ) -> list[list[Hit]]:
        """The nearest items of one modality for each query, as ``EmbeddingIndex.search`` gives them.

        Args:
            modality: Which items to search.
            queries: Shape (Q, D), any float dtype, finite; any length but zero.
            top_k: Hits per query; at most as many as there are items are returned.
            where: Metadata key -> the value an item must have, such as ``{"licence": "CC0-1.0"}``.

        Returns:
            For each query its hits, nearest first.

        Raises:
            KeyError: If the index holds no such modality.
            ValueError: If the shape or a value is not as above, or ``top_k`` < 1.
            ConnectionError: If the server does not answer.
        """
        if modality not in self._counts:
            raise KeyError(f"This index holds {sorted(self._counts)}, not {modality!r}.")
        rows = checked_queries(queries, top_k, self.embed_dim)
        limit = min(top_k, self._counts[modality])
        if not len(rows) or not limit:
            return [[] for _ in rows]
        chosen = _filter(modality, check_where(where))
        params = models.SearchParams(exact=True) if self.address.exact and not self.address.local else None
        requests = [
            models.QueryRequest(query=row.tolist(), limit=limit, filter=chosen, with_payload=True, params=params)
            for row in rows
        ]
        found: list[list[Hit]] = []
        for start in range(0, len(requests), QUERIES):
            with _spoken(self.address):
                answers = self.client.query_batch_points(self.address.collection, requests[start : start + QUERIES])
            found.extend(_hits(modality, answer.points) for answer in answers)
        return found

    def close(self) -> None:
        """Let go of the connection; a local folder is then free for another process."""
        self.client.close()

    def _manifest(self, *, complete: bool) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "model_identity": self.model_identity,
            "embed_dim": self.embed_dim,
            "counts": self.counts,
            "complete": complete,
        }

    def _scroll(self, modality: str, *, vectors: bool) -> Iterator[Any]:
        """The points of one modality by rising id, which is the order they were added in."""
        offset = None
        while True:
            with _spoken(self.address):
                points, offset = self.client.scroll(
                    self.address.collection,
                    scroll_filter=_filter(modality),
                    limit=BATCH,
                    offset=offset,
                    with_payload=not vectors,
                    with_vectors=vectors,
                )
            yield from points
            if offset is None:
                return


def _connect(place: Address) -> QdrantClient:
    if not place.local:
        key = os.environ.get(API_KEY_VARIABLE)
        return QdrantClient(url=place.server, api_key=key, timeout=TIMEOUT_S, check_compatibility=False)
    try:
        return QdrantClient(path=place.server)
    except (RuntimeError, OSError) as error:
        raise ConnectionError(f"The local Qdrant folder {place.server} cannot be opened ({error}).") from error


def _metadata(client: QdrantClient, place: Address) -> dict[str, Any] | None:
    found: dict[str, Any] | None = client.get_collection(place.collection).config.metadata
    return found


def _filter(modality: str, where: Mapping[str, str] | None = None) -> models.Filter:
    pairs = {"modality": modality} | {f"item.{key}": value for key, value in (where or {}).items()}
    return models.Filter(
        must=[models.FieldCondition(key=key, match=models.MatchValue(value=value)) for key, value in pairs.items()]
    )


def _hits(modality: str, points: Sequence[Any]) -> list[Hit]:
    """Nearest first; of equally near ones the one that was added first."""
    ordered = sorted(points, key=lambda point: (-point.score, point.id))
    return [
        Hit(modality, point.payload["item"], float(np.clip(point.score, -1, 1)), rank)
        for rank, point in enumerate(ordered, start=1)
    ]


@contextmanager
def _spoken(place: Address) -> Iterator[None]:
    """The client's many errors as one sentence."""
    try:
        yield
    except ApiException as error:
        raise ConnectionError(
            f"The Qdrant server could not answer for {place} ({str(error).splitlines()[0][:200]}); check that it runs "
            "(docker run -p 6333:6333 qdrant/qdrant) and that address and key are right."
        ) from error
