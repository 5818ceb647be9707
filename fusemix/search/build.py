"""Building a search index: table of pairs -> encoders -> adapters -> embeddings and items."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fusemix.data.latent_store import LatentStore
from fusemix.data.pairs import Item, PairTable
from fusemix.datasets.cells import DETAILS, FILE_COLUMNS
from fusemix.encoder_identity import check_encoder
from fusemix.encoders import Encoder
from fusemix.media import MediaError
from fusemix.model.adapters import FusionModel
from fusemix.search.hubness import NEIGHBOURS, WEIGHT, bank_items
from fusemix.search.index import EmbeddingIndex

if TYPE_CHECKING:
    from fusemix.search.postgres_index import PostgresIndex


def describe(table: PairTable, modality: str, item: Item) -> dict[str, Any]:
    """Make the metadata of one item, which a search result shows."""
    cell = {column: str(table.frame[column].iat[item.row]) for column in table.frame.columns}
    metadata: dict[str, Any] = {"id": cell.get("id") or str(item.row), "caption": cell.get("text", "")}
    metadata |= {"path": table.below(item.value)} if modality in FILE_COLUMNS else {"text": item.value}
    metadata["group"] = cell.get("group") or str(item.group)
    return metadata | {key: cell.get(key, "") for key in DETAILS}


def distinct(table: PairTable, modality: str) -> list[Item]:
    """Return each file once and each text once, ignoring case, so that no result shows twice; empty without any."""
    if not table.has(modality):
        return []
    seen: dict[str, Item] = {}
    for item in table.items(modality):
        seen.setdefault(item.value if modality in FILE_COLUMNS else item.value.casefold(), item)
    return list(seen.values())


def fill(
    index: EmbeddingIndex | PostgresIndex,
    model: FusionModel,
    encoder: Encoder,
    table: PairTable,
    *,
    batch_size: int = 32,
    report: Callable[[int, int], None] | None = None,
) -> None:
    """Encode, embed and add every distinct item of one modality.

    Args:
        index: Index to add the items to.
        model: Embeds the latents.
        encoder: Of the modality.
        table: Holds the items.
        batch_size: Items per forward pass.
        report: Called with (items done, items in all) after every batch.

    Raises:
        MediaError: If an item cannot be used, with its row.
        ValueError: If ``batch_size`` is below 1, or two files have one id.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be >= 1, got {batch_size}.")
    items = distinct(table, encoder.modality)
    _check_ids(table, encoder.modality, items)
    for start in range(0, len(items), batch_size):
        batch = items[start : start + batch_size]
        prepared = []
        for item in batch:
            try:
                prepared.append(encoder.prepare(item.value))
            except MediaError as error:
                where = f"{table.path}, {table.location(item.row)}, column {encoder.modality}"
                raise MediaError(f"{where}: {error}") from error
        embeddings = model.embed(encoder.modality, encoder.encode_prepared(prepared))
        index.add(encoder.modality, embeddings, [describe(table, encoder.modality, item) for item in batch])
        if report:
            report(start + len(batch), len(items))


def _check_ids(table: PairTable, modality: str, items: Sequence[Item]) -> None:
    """Refuse an id of two files: only the first would be found by it."""
    first: dict[str, Item] = {}
    for item in items if modality in FILE_COLUMNS and "id" in table.frame else ():
        identity = str(table.frame["id"].iat[item.row])
        other = first.setdefault(identity, item)
        if identity and other is not item:
            raise ValueError(
                f"{table.path} has the id {identity!r} for two files of {modality}, in {table.location(other.row)} and "
                f"{table.location(item.row)}; give each file an id of its own."
            )


def correct_hubs(
    index: EmbeddingIndex,
    model: FusionModel,
    banks: Sequence[str | Path],
    *,
    modalities: Sequence[str] = (),
    neighbours: int = NEIGHBOURS,
    weight: float = WEIGHT,
) -> None:
    """Correct the chosen modalities for hubness by banks of training queries (:mod:`fusemix.search.hubness`).

    Args:
        index: The index to correct.
        model: Embeds the banks.
        banks: Folders of latent stores, whose training splits are joined.
        modalities: Modalities to correct; by default those without a bank.
        neighbours: Number of nearest bank queries that are averaged for an item.
        weight: Of the correction.

    Raises:
        ValueError: If a bank was made by other encoders, or there is no modality to correct.
    """
    stores = [LatentStore.open(folder) for folder in banks]
    for store in stores:
        check_encoder(store.modality, model.config.encoders, store.encoder)
    chosen = list(modalities) or [m for m in index.counts if m not in {store.modality for store in stores}]
    if unknown := [m for m in chosen if m not in index.counts]:
        raise ValueError(f"Hubs of {unknown} cannot be corrected; the index holds {sorted(index.counts)}.")
    if not chosen:
        raise ValueError("Every modality of the index has a bank; name the modalities to correct for hubness.")
    bank = torch.cat([model.embed(store.modality, store.read(bank_items(store))) for store in stores])
    for modality in chosen:
        index.correct(modality, bank, neighbours=neighbours, weight=weight)
