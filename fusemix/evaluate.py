"""A checkpoint and a table of pairs -> the figures of a named protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from fusemix.adapters import FusionModel
from fusemix.encoders.base import Encoder
from fusemix.latents import LatentStore
from fusemix.metrics import retrieval
from fusemix.pairs import FILE_COLUMNS, Item, PairTable

PROTOCOL = (
    "any-of-group: a query is right at k if any gallery item of its group is among its k most similar; rows of one "
    "image, audio file or group value are one group; the gallery holds every distinct item of its column, queried or "
    "not; a file is one query however many rows name it, a text is one query per filled cell; ties count against the "
    "query; ci95 from 1,000 bootstrap resamples of groups"
)

Embed = Callable[[str, Sequence[Item]], Tensor]  # (modality, items) -> (N, D), unit length


def evaluate(table: PairTable, embed: Embed, *, query: str, gallery: str, split: str | None = None) -> dict[str, Any]:
    """Retrieve gallery items by query items of a table.

    Args:
        table: The pairs.
        embed: Embeds items of a column; see :func:`encode_items` and :func:`stored_items`.
        query: Column searched with, e.g. ``text``.
        gallery: Column searched in, e.g. ``image``.
        split: Only rows of this split.

    Returns:
        protocol, query, gallery, split, n_queries, n_gallery, n_without_answer, recall_at_1/5/10
        (fractions), median_rank, ci95 (name -> [low, high]).

    Raises:
        ValueError: If a column or split is missing or no query has an answer in the gallery.
    """
    if query == gallery:
        raise ValueError(f"query and gallery must be different columns, both are {query!r}.")
    queries = table.items(query, split) if query in FILE_COLUMNS else table.cells(query, split)
    targets = table.items(gallery, split)
    target_groups = np.array([item.group for item in targets])
    answered = [item for item in queries if item.group in set(target_groups.tolist())]
    if not answered:
        raise ValueError(f"No {query} of {table.path} shares a row or group with a {gallery}; there is nothing to ask.")
    values = retrieval(
        embed(query, answered), embed(gallery, targets), np.array([item.group for item in answered]), target_groups
    )
    return {
        "protocol": PROTOCOL,
        "query": query,
        "gallery": gallery,
        "split": split,
        "n_without_answer": len(queries) - len(answered),
        **values,
    }


def encode_items(
    model: FusionModel,
    encoders: dict[str, Encoder],
    *,
    report: Callable[[str, int, int], None] | None = None,
    batch_size: int = 32,
) -> Embed:
    """An :data:`Embed` that runs the frozen encoders; each distinct value is encoded once."""

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
    """An :data:`Embed` that reads latents extracted before from the same table."""

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
