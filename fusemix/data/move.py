"""Items that two encoders share, and a store of latents moved from the one to the other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fusemix.data.latent_store import CHUNK_ITEMS, FORMAT_VERSION, LatentStore
from fusemix.data.latent_writer import append_shard, as_stored, begin, finish, write_rows
from fusemix.model.latent_map import LatentMap


def shared_items(old: LatentStore, new: LatentStore) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray, np.ndarray]:
    """Return what two stores of one table share.

    Returns:
        The items of the old store and of the new one, (N,) each, an item once; their groups, (N,); the shared rows.

    Raises:
        ValueError: If the stores come from different tables.
    """
    if old.manifest["table"] != new.manifest["table"]:
        raise ValueError(f"{old.folder} and {new.folder} were made from different tables; use one table of pairs.")
    joined = old.rows.merge(new.rows[["row", "item"]], on="row", suffixes=("", "_new"))
    first = joined.drop_duplicates("item")
    pairs = first["item"].to_numpy(np.int64), first["item_new"].to_numpy(np.int64)
    return pairs, first["group"].to_numpy(np.int64, copy=True), joined["row"].to_numpy(np.int64)


def rows_beside(store: LatentStore, new: LatentStore, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the items of another modality in these rows, each once, and their groups.

    Raises:
        ValueError: If there is none, or the stores come from different tables.
    """
    asked = store.rows[store.rows["row"].isin(rows)].drop_duplicates("item")
    if store.manifest["table"] != new.manifest["table"] or asked.empty:
        raise ValueError(f"{store.folder} shares no row with the shared items; extract it from the same table.")
    return asked["item"].to_numpy(np.int64), asked["group"].to_numpy(np.int64, copy=True)


def write_moved(
    old: LatentStore, new: LatentStore, chosen: LatentMap, out: Path, measured: Mapping[str, Any]
) -> LatentStore:
    """Move a whole store, shard by shard; its manifest says from what, and what was measured.

    Args:
        old: To move.
        new: Of the encoder that the moved store counts as.
        chosen: The map.
        out: A new folder.
        measured: Of :func:`fusemix.evaluation.move.recall_kept`.
    """
    header: dict[str, Any] = {key: old.manifest[key] for key in ("table", "column", "split") if key in old.manifest}
    header |= {"format": FORMAT_VERSION, "encoder": new.encoder, "dtype": new.manifest["dtype"]}
    manifest = begin(out, header | {"moved": {"from": old.encoder, "ridge": chosen.ridge, "measured": dict(measured)}})
    for start in range(0, len(old), CHUNK_ITEMS):
        part = old.read(np.arange(start, min(start + CHUNK_ITEMS, len(old))))
        append_shard(out, manifest, as_stored(chosen(part), new.manifest["dtype"], start=start))
    write_rows(out, old.rows)
    finish(out, manifest)
    return LatentStore.open(out)
