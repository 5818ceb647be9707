"""Evaluation of a checkpoint on a table of pairs by a named protocol."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from fusemix.data.latent_store import LatentStore
from fusemix.data.pairs import Item
from fusemix.datasets.splits import closing, in_split
from fusemix.encoders.base import Encoder
from fusemix.evaluation.calibrate import calibrate as fit
from fusemix.evaluation.metrics import retrieval
from fusemix.model.adapters import FusionModel
from fusemix.search.calibration import Calibration
from fusemix.search.hubness import NEIGHBOURS, WEIGHT, corrected

PROTOCOL = (
    "any-of-group: a query is right at k if any gallery item of its group is among its k most similar; rows of one "
    "image, audio file or group value are one group; the gallery holds every distinct item of its column, queried or "
    "not; a file (or an item of your own modality) is one query however many rows name it, a text is one query per "
    "filled cell; ties count against the query; ci95 from 1,000 bootstrap resamples of groups"
)

Embed = Callable[[str, Sequence[Item]], Tensor]  # (modality, items) -> (N, D), unit length


class Pairs(Protocol):
    """Interface of the pairs of :func:`evaluate`: a :class:`~fusemix.data.pairs.PairTable`, or :class:`StoredPairs`."""

    path: Any

    def items(self, column: str, split: str | None = None) -> list[Item]:
        """Return every distinct item of a column."""

    def cells(self, column: str, split: str | None = None) -> list[Item]:
        """Return every filled cell of a column."""


class StoredPairs:
    """Pairs recorded in latent stores, for use without a table; see :func:`stored_items`.

    An item's value is its number in its store. Stores made from one table, or without any, share row numbers.
    """

    def __init__(self, stores: Mapping[str, LatentStore]) -> None:
        self.path = " and ".join(str(store.folder) for store in stores.values())
        self._rows = {modality: store.rows for modality, store in stores.items()}
        if len({store.manifest["table"] for store in stores.values()}) > 1:
            raise ValueError(f"{self.path} were made from different tables, so their rows do not match.")
        self.fingerprint = next((store.manifest["table"] for store in stores.values()), None)

    def cells(self, column: str, split: str | None = None) -> list[Item]:
        """Return every row with a latent of this modality.

        Raises:
            ValueError: If no store has the modality, or no row the split.
        """
        if column not in self._rows:
            raise ValueError(f"There are no {column!r} latents; there are {list(self._rows)}.")
        rows = self._rows[column]
        chosen = rows if split is None else rows[in_split(rows["split"].to_numpy(), split, f"The store of {column}")]
        lines = zip(chosen["item"], chosen["group"], chosen["row"], strict=True)
        return [Item(str(item), int(group), int(row)) for item, group, row in lines]

    def summary(self, *columns: str, split: str | None = None) -> str:
        """Write how many rows train, validate and are left out, as a table's summary does."""
        rows = self._rows[columns[0]]
        used = rows[rows["row"].isin(set.intersection(*(set(self._rows[column]["row"]) for column in columns)))]
        left = {f"without latents of {' and '.join(columns)}": len(rows) - len(used)}
        if split is not None:
            inside = used[in_split(used["split"].to_numpy(), split, self.path)]
            left["of other splits"] = len(used) - len(inside)
            used = inside
        return f"{self.path}: {closing(Counter(used['split'].tolist()), left)}"

    def items(self, column: str, split: str | None = None) -> list[Item]:
        """Return every distinct latent of this modality, at its first row."""
        seen: dict[str, Item] = {}
        for cell in self.cells(column, split):
            seen.setdefault(cell.value, cell)
        return list(seen.values())


def evaluate(
    table: Pairs,
    embed: Embed,
    *,
    query: str,
    gallery: str,
    split: str | None = None,
    bank: Tensor | None = None,
    neighbours: int = NEIGHBOURS,
    weight: float = WEIGHT,
) -> dict[str, Any]:
    """Retrieve gallery items by query items of a table.

    Args:
        table: The pairs: a :class:`~fusemix.data.pairs.PairTable`, or :class:`StoredPairs` without one.
        embed: Embeds items of a column; see :func:`encode_items` and :func:`stored_items`.
        query: Column of the queries, e.g. ``text``.
        gallery: Column to search, e.g. ``image``.
        split: Only rows of this split.
        bank: Embeddings of training queries, (N, D), unit length: correct similarities for hubness by them,
            see :mod:`fusemix.search.hubness`.
        neighbours: Nearest bank queries that are averaged.
        weight: Of the correction.

    Returns:
        protocol, query, gallery, split, n_queries, n_gallery, n_without_answer, recall_at_1/5/10
        (fractions), median_rank, ci95 (name -> [low, high]); with a bank also hubness (its settings).

    Raises:
        ValueError: If a column or split is missing or no query has an answer in the gallery.
    """
    if query == gallery:
        raise ValueError(f"query and gallery must be different columns, both are {query!r}.")
    queries = table.cells(query, split) if query == "text" else table.items(query, split)
    targets = table.items(gallery, split)
    target_groups = np.array([item.group for item in targets])
    answered = [item for item in queries if item.group in set(target_groups.tolist())]
    if not answered:
        raise ValueError(f"No {query} of {table.path} shares a row or group with a {gallery}; there is nothing to ask.")
    sides = embed(query, answered), embed(gallery, targets)
    if bank is not None:
        sides = corrected(*sides, bank, neighbours=neighbours, weight=weight)
    values = retrieval(*sides, np.array([item.group for item in answered]), target_groups)
    settings = {"bank": len(bank), "neighbours": neighbours, "weight": weight} if bank is not None else None
    return {
        "protocol": PROTOCOL,
        "query": query,
        "gallery": gallery,
        "split": split,
        "n_without_answer": len(queries) - len(answered),
        **values,
        **({"hubness": settings} if settings else {}),
    }


def calibrate(table: Pairs, embed: Embed, *, query: str, gallery: str, split: str | None = None) -> Calibration:
    """Fit and measure a direction's calibration on pairs of a table, as :func:`evaluate` asks them.

    Args:
        table: The pairs; none of them may have been trained on.
        embed: Embeds items of a column.
        query: Column of the queries.
        gallery: Column to search.
        split: Only rows of this split.

    Raises:
        ValueError: If there are too few, see :func:`fusemix.evaluation.calibrate.calibrate`.
    """
    queries = table.cells(query, split) if query == "text" else table.items(query, split)
    targets = table.items(gallery, split)
    groups = (np.array([item.group for item in items]) for items in (queries, targets))
    return fit(embed(query, queries), embed(gallery, targets), *groups)


def encode_items(
    model: FusionModel,
    encoders: dict[str, Encoder],
    *,
    report: Callable[[str, int, int], None] | None = None,
    batch_size: int = 32,
) -> Embed:
    """Make an :data:`Embed` that runs the frozen encoders; each distinct value is encoded once."""

    def embed(modality: str, items: Sequence[Item]) -> Tensor:
        distinct = list(dict.fromkeys(item.value for item in items))
        number = {value: i for i, value in enumerate(distinct)}
        parts = []
        for start in range(0, len(distinct), batch_size):
            parts.append(encoders[modality].encode(distinct[start : start + batch_size]))
            if report:
                report(modality, min(start + batch_size, len(distinct)), len(distinct))
        embeddings = model.embed(modality, np.concatenate(parts))
        return embeddings[[number[item.value] for item in items]]

    return embed


def stored_items(model: FusionModel, stores: dict[str, LatentStore]) -> Embed:
    """Make an :data:`Embed` that reads stored latents of the same table."""

    def embed(modality: str, items: Sequence[Item]) -> Tensor:
        rows = stores[modality].rows.set_index("row")["item"]
        missing = [item.row for item in items if item.row not in rows.index]
        if missing:
            raise ValueError(
                f"{stores[modality].folder} has no latent for {len(missing)} rows, first row {missing[0]}; "
                "it was extracted from another split, or those rows were left out."
            )
        numbers = rows.loc[[item.row for item in items]].to_numpy()
        return model.embed(modality, stores[modality].read(numbers))

    return embed
