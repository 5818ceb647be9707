"""An index on a server: PostgreSQL with pgvector behind the interface of ``EmbeddingIndex``.

An address is ``postgresql://user@host:port/database/collection``. It may end in ``?root=FOLDER`` (the local folder of
the items' files), ``&exact=1`` (compare with every item instead of walking the HNSW graph) and
``&host=FOLDER`` (the folder of a Unix socket, with no host before the path). The password is read from PGPASSWORD or
``~/.pgpass``, TLS settings from PGSSLMODE and the other variables of libpq.
"""

from __future__ import annotations

import json
import logging
import operator
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from torch import Tensor

from fusemix.extras import extra
from fusemix.search.index import Hit, check_metadata, check_where, checked_items, checked_queries, item_path

with extra("postgres", "An index in PostgreSQL"):
    import psycopg
    from pgvector import Vector
    from pgvector.psycopg import register_vector
    from psycopg import sql
    from psycopg.types.json import Jsonb

logger = logging.getLogger(__name__)

SCHEMES = ("postgresql", "postgres")
FORMAT = "fusemix-1"
SCHEMA = "fusemix"
EXACT_UP_TO = 10_000  # items of one modality: exact search takes milliseconds
WIDEST_VECTOR = 2_000  # dimensions of an HNSW graph over pgvector's float32
WIDEST_HALF = 4_000  # over its float16; stored embeddings and similarities stay float32
EF_SEARCH = 100  # candidates of the HNSW walk; at least four times top_k
MOST_EF_SEARCH = 1_000  # pgvector's own bound
CONNECT_S = 10
_REBUILD = "rebuild it with fusemix index --index"


@dataclass(frozen=True)
class Address:
    """Address of a collection.

    Attributes:
        connection: Connection string for libpq, without a password.
        collection: Name of the collection.
        root: Local folder of the items' files; None without local files.
        exact: Whether every query is compared with every item.
    """

    connection: Mapping[str, str]
    collection: str
    root: Path | None = None
    exact: bool = False

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read ``postgresql://user@host:port/database/collection?root=FOLDER&exact=1``.

        Raises:
            ValueError: If it is not of this form.
        """
        wanted = f"expected postgresql://user@host:port/database/collection, got {text!r}."
        try:
            parts = urlsplit(text)
            port = parts.port
            options = parse_qs(parts.query, strict_parsing=bool(parts.query))
        except ValueError as error:
            raise ValueError(f"The address of the index cannot be read ({error}); {wanted}") from error
        if parts.password:
            raise ValueError("Give the password in the environment variable PGPASSWORD, not in the address.")
        names = re.fullmatch(r"/([^/]+)/([\w.-]{1,40})", unquote(parts.path))
        if parts.scheme not in SCHEMES or names is None:
            raise ValueError(f"The address of the index cannot be read; {wanted}")
        if unknown := sorted(set(options) - {"root", "exact", "host"}):
            raise ValueError(f"An index address knows the options root, exact and host, not {unknown}; {wanted}")
        host = parts.hostname or options.get("host", [""])[0]
        if not host or (parts.hostname and "host" in options):
            raise ValueError(f"The address of the index must name one server; {wanted}")
        connection = {"host": host, "port": str(port or 5432), "dbname": names[1]}
        if parts.username:
            connection["user"] = unquote(parts.username)
        root = Path(options["root"][0]).resolve() if "root" in options else None
        return cls(connection, names[2], root, options.get("exact", ["0"])[0] not in ("", "0", "false"))

    def __str__(self) -> str:
        place = self.connection
        return f"the collection {self.collection!r} in {place['dbname']!r} at {place['host']}:{place['port']}"


class PostgresIndex:
    """Unit-length embeddings and their items in two tables of a PostgreSQL database with pgvector.

    A new collection is built beside the old one and replaces it in one transaction (:meth:`save`): a killed build
    leaves the old collection unchanged. Up to ``EXACT_UP_TO`` items of a modality, or
    with ``exact=1``, search is exact; beyond, it walks an HNSW graph. Safe to search from several threads; a lost
    connection is opened again at the next search.

    Example:
        >>> index = PostgresIndex.create("postgresql://me@db/mine/gallery", 512, model_identity=model.identity)
        >>> index.add("image", model.embed("image", latents), items)
        >>> index.save()
        >>> hits = index.search("image", query[None], top_k=5, where={"licence": "CC0-1.0"})[0]
    """

    def __init__(self, address: Address, embed_dim: int, *, model_identity: str, building: bool) -> None:
        """Connect; use :meth:`create` or :meth:`load`."""
        self.address = address
        self.embed_dim = embed_dim
        self.model_identity = model_identity
        self.root = address.root
        self._building = building  # the connection holds the build's lock
        self._table = sql.Identifier(SCHEMA, f"{address.collection}:building" if building else address.collection)
        self._counts: dict[str, int] = {}
        self._items: dict[str, list[dict[str, Any]]] = {}  # read once, on first use
        self._connection: psycopg.Connection[Any] | None = None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return sum(self._counts.values())

    @classmethod
    def create(cls, address: str, embed_dim: int, *, model_identity: str) -> PostgresIndex:
        """Start building a collection; an old one of this name stays searchable until :meth:`save`.

        Args:
            address: See the module.
            embed_dim: Width D of the shared space, at most 16,000.
            model_identity: ``FusionModel.identity`` of the model that makes the embeddings.

        Raises:
            ValueError: If the address cannot be read, or another process is building this collection.
            ConnectionError: If the server does not answer, or lacks pgvector.
        """
        if not 1 <= embed_dim <= 16_000:
            raise ValueError(f"embed_dim must be 1 to 16,000, got {embed_dim}.")
        place = Address.parse(address)
        index = cls(place, embed_dim, model_identity=model_identity, building=True)
        with index._transaction() as cursor:
            cursor.execute("SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", [f"fusemix:{place.collection}"])
            (free,) = cursor.fetchone() or (False,)
            if not free:
                raise ValueError(f"Another process is building {place}; wait until it has ended.")
            cursor.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(index._table))
            cursor.execute(
                sql.SQL(
                    "CREATE TABLE {} (position integer NOT NULL, modality text NOT NULL, item jsonb NOT NULL, "
                    "embedding vector({}) NOT NULL)"
                ).format(index._table, sql.Literal(embed_dim))
            )
        return index

    @classmethod
    def load(cls, address: str, *, model_identity: str) -> PostgresIndex:
        """Open a collection that a given model made.

        Args:
            address: See the module.
            model_identity: ``FusionModel.identity`` of the model that will make the queries.

        Raises:
            FileNotFoundError: If the database has no such collection.
            ValueError: If another model or another version of FuseMix made it, or items are missing.
            ConnectionError: If the server does not answer, or lacks pgvector.
        """
        place = Address.parse(address)
        index = cls(place, 1, model_identity=model_identity, building=False)
        with index._transaction() as cursor:
            cursor.execute("SELECT to_regclass('fusemix.collections') IS NOT NULL")
            if cursor.fetchone() != (True,):
                raise FileNotFoundError(f"There is no {place}; build it with fusemix index --index.")
            cursor.execute(
                "SELECT format, model_identity, embed_dim, counts FROM fusemix.collections WHERE name = %s",
                [place.collection],
            )
            found = cursor.fetchone()
            if found is None:
                raise FileNotFoundError(f"There is no {place}; build it with fusemix index --index.")
            made_as, made_by, embed_dim, counts = found
            if made_as != FORMAT:
                raise ValueError(f"Another version of FuseMix made {place}; {_REBUILD}.")
            if made_by != model_identity:
                raise ValueError(
                    f"The model {made_by[:12]}... made {place}, but this model is {model_identity[:12]}...; {_REBUILD}."
                )
            cursor.execute(sql.SQL("SELECT modality, count(*) FROM {} GROUP BY modality").format(index._table))
            held = dict(cursor.fetchall())
        index.embed_dim = embed_dim
        index._counts = {str(modality): int(count) for modality, count in counts.items()}
        if held != {modality: count for modality, count in index._counts.items() if count}:
            raise ValueError(f"Items of {place} are missing: it holds {held or 'none'} of {counts}; {_REBUILD}.")
        return index

    @property
    def counts(self) -> dict[str, int]:
        """Modality -> number of items."""
        return dict(self._counts)

    def items(self, modality: str) -> list[dict[str, Any]]:
        """Return the metadata of one modality's items in the order they were added; fetched once and kept."""
        if modality not in self._items:
            self._items[modality] = [item for (item,) in self._column("item", modality)]
        return list(self._items[modality])

    def path_of(self, item: dict[str, Any]) -> Path | None:
        """Return the file of an item, below the address's ``root``; None if it is no file.

        The folder does not come from the server: its writers must not choose which local files are served.

        Raises:
            ValueError: If the address names no root, or the path leads out of it.
        """
        return item_path(self.root, item)

    def embeddings(self, modality: str) -> np.ndarray:
        """Return every embedding of one modality in the order added: shape (N, D), float32, unit length."""
        self._known(modality)
        rows = [vector.to_numpy() for (vector,) in self._column("embedding", modality)]
        return np.stack(rows).astype(np.float32) if rows else np.empty((0, self.embed_dim), dtype=np.float32)

    def add(self, modality: str, embeddings: np.ndarray | Tensor, items: Sequence[dict[str, Any]]) -> None:
        """Append items of one modality; all of them are stored when this returns, or none.

        Args:
            modality: A plain name (letters, digits, ``_``, ``-``).
            embeddings: Shape (N, D), any float dtype, finite, unit length.
            items: N metadata dicts of JSON values.

        Raises:
            ValueError: If name, width, count or values are not as above.
            ConnectionError: If the server does not answer.
        """
        rows = checked_items(modality, embeddings, items, self.embed_dim)
        check_metadata(items)
        first = len(self)
        with self._transaction() as cursor:
            copy = sql.SQL("COPY {} (position, modality, item, embedding) FROM STDIN WITH (FORMAT BINARY)")
            with cursor.copy(copy.format(self._table)) as stream:
                stream.set_types(["int4", "text", "jsonb", "vector"])
                for offset, (row, item) in enumerate(zip(rows, items, strict=True)):
                    stream.write_row((first + offset, modality, Jsonb(dict(item)), Vector(row)))
        self._items.pop(modality, None)
        self._counts[modality] = self._counts.get(modality, 0) + len(rows)

    def save(self) -> str:
        """Build the graphs and put the collection in the place of the old one; return where it lies.

        Raises:
            ValueError: If nothing was added.
            ConnectionError: If the server does not answer.
        """
        if not len(self):
            raise ValueError("The index holds nothing, so there is nothing to save; add items of a modality first.")
        old, new = sql.Identifier(SCHEMA, self.address.collection), sql.Identifier(self.address.collection)
        with self._transaction() as cursor:
            cursor.execute(sql.SQL("CREATE INDEX ON {} (modality, position)").format(self._table))
            cursor.execute(sql.SQL("CREATE INDEX ON {} USING gin (item jsonb_path_ops)").format(self._table))
            for modality, count in self._counts.items():
                if count > EXACT_UP_TO and self.embed_dim <= WIDEST_HALF:
                    graph = "CREATE INDEX ON {} USING hnsw (({}) {}) WHERE modality = {}"
                    cursor.execute(
                        sql.SQL(graph).format(
                            self._table, self._indexed, sql.SQL(self._operators), sql.Literal(modality)
                        )
                    )
            cursor.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(old))
            cursor.execute(sql.SQL("ALTER TABLE {} RENAME TO {}").format(self._table, new))
            cursor.execute(
                "INSERT INTO fusemix.collections VALUES (%s, %s, %s, %s, %s) ON CONFLICT (name) DO UPDATE SET "
                "format = EXCLUDED.format, model_identity = EXCLUDED.model_identity, "
                "embed_dim = EXCLUDED.embed_dim, counts = EXCLUDED.counts",
                [self.address.collection, FORMAT, self.model_identity, self.embed_dim, json.dumps(self._counts)],
            )
        self._table = old
        with self._transaction() as cursor:
            cursor.execute("SELECT pg_advisory_unlock_all()")
            cursor.execute(sql.SQL("ANALYZE {}").format(self._table))
        self._building = False
        return str(self.address)

    def search(
        self,
        modality: str,
        queries: np.ndarray | Tensor,
        *,
        top_k: int = 10,
        where: Mapping[str, str] | None = None,
    ) -> list[list[Hit]]:
        """Find the nearest items of one modality for each query, as ``EmbeddingIndex.search`` does.

        Args:
            modality: Which items to search.
            queries: Shape (Q, D), any float dtype, finite; any length but zero.
            top_k: Hits per query, or all items if there are fewer.
            where: Metadata key -> the value an item must have, such as ``{"licence": "CC0-1.0"}``.

        Returns:
            For each query its hits, nearest first.

        Raises:
            KeyError: If the index holds no such modality.
            ValueError: If the shape or a value is not as above, or ``top_k`` < 1.
            ConnectionError: If the server does not answer.
        """
        self._known(modality)
        rows, top_k = checked_queries(queries, top_k, self.embed_dim), operator.index(top_k)
        chosen = check_where(where)
        exact = (
            self.address.exact
            or self._counts[modality] <= EXACT_UP_TO
            or self.embed_dim > WIDEST_HALF
            or 4 * top_k > MOST_EF_SEARCH
        )
        distance = sql.SQL("embedding") if exact else self._indexed
        wanted = sql.SQL("vector" if exact or self.embed_dim <= WIDEST_VECTOR else "halfvec")
        statement = sql.SQL(
            "SELECT position, item, -(embedding <#> {query}::vector) FROM {table} "
            "WHERE modality = {modality} AND item @> {where} ORDER BY ({distance}) <#> {query}::{wanted} LIMIT {top_k}"
        )
        found: list[list[Hit]] = []
        with self._transaction() as cursor:
            if exact:
                cursor.execute("SET LOCAL enable_indexscan = off")
            else:
                candidates = max(EF_SEARCH, 4 * top_k)
                cursor.execute(sql.SQL("SET LOCAL hnsw.ef_search = {}").format(sql.Literal(candidates)))
                cursor.execute("SET LOCAL hnsw.iterative_scan = strict_order")  # filters must not reduce the hits
            for row in rows:
                cursor.execute(
                    statement.format(
                        query=sql.Literal(Vector(row).to_text()),
                        table=self._table,
                        modality=sql.Literal(modality),
                        where=sql.Literal(json.dumps(chosen)),
                        distance=distance,
                        wanted=wanted,
                        top_k=sql.Literal(top_k),
                    )
                )
                found.append(_hits(modality, cursor.fetchall()))
        return found

    def close(self) -> None:
        """Close the connection and discard a build that was not saved."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    @property
    def _indexed(self) -> sql.Composable:
        """Expression that the HNSW graph is built over."""
        if self.embed_dim <= WIDEST_VECTOR:
            return sql.SQL("embedding")
        return sql.SQL("embedding::halfvec({})").format(sql.Literal(self.embed_dim))

    @property
    def _operators(self) -> str:
        return "vector_ip_ops" if self.embed_dim <= WIDEST_VECTOR else "halfvec_ip_ops"

    def _known(self, modality: str) -> None:
        if modality not in self._counts:
            raise KeyError(f"This index holds {sorted(self._counts)}, not {modality!r}.")

    def _column(self, name: str, modality: str) -> list[tuple[Any, ...]]:
        """Read one column of one modality's items, in the order added."""
        statement = sql.SQL("SELECT {} FROM {} WHERE modality = %s ORDER BY position")
        with self._transaction() as cursor:
            cursor.execute(statement.format(sql.Identifier(name), self._table), [modality])
            return cursor.fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[psycopg.Cursor[Any]]:
        """Open a transaction, one thread at a time; the server's errors become one sentence."""
        with self._lock:
            try:
                if self._connection is None or (self._connection.closed and not self._building):
                    self._connection = _connect(self.address, prepare=self._building)
                with self._connection.transaction(), self._connection.cursor() as cursor:
                    yield cursor
            except psycopg.Error as error:
                reason = " ".join(str(error).split())
                raise ConnectionError(
                    f"The server of {self.address} could not answer ({reason}); check the address, its user and "
                    "whether PostgreSQL with pgvector 0.8 or newer runs there (docs/scale-out.md)."
                ) from error


def _connect(address: Address, *, prepare: bool) -> psycopg.Connection[Any]:
    """Connect; with ``prepare`` also create pgvector and the list of collections, which needs the rights to."""
    where: dict[str, Any] = dict(address.connection)
    connection: psycopg.Connection[Any] = psycopg.connect(
        **where, connect_timeout=CONNECT_S, application_name="fusemix", autocommit=True
    )
    connection.add_notice_handler(_noted)
    if prepare:
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('fusemix', 0))")  # one process at a time
            connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
            connection.execute("CREATE SCHEMA IF NOT EXISTS fusemix")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS fusemix.collections (name text PRIMARY KEY, format text NOT NULL, "
                "model_identity text NOT NULL, embed_dim integer NOT NULL, counts jsonb NOT NULL)"
            )
    register_vector(connection)
    return connection


def _noted(notice: psycopg.errors.Diagnostic) -> None:
    """Log that a graph is built slowly, on the disk; other notices say that something is there already."""
    if "maintenance_work_mem" in (notice.message_primary or ""):
        logger.warning(
            "%s; PGOPTIONS='-c maintenance_work_mem=1GB' builds it in memory (docs/scale-out.md).",
            notice.message_primary,
        )


def _hits(modality: str, rows: Sequence[tuple[int, dict[str, Any], float]]) -> list[Hit]:
    """Make hits of (position, item, similarity); ties are in the order the items were added."""
    ordered = sorted(rows, key=lambda row: (-row[2], row[0]))
    return [
        Hit(modality, item, float(np.clip(similarity, -1, 1)), rank)
        for rank, (_, item, similarity) in enumerate(ordered, start=1)
    ]
