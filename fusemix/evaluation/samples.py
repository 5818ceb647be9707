"""Latents of the same pairs from several encoders, for :func:`fusemix.evaluation.diagnose.diagnose`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fusemix.data.latent_store import LatentStore
from fusemix.data.pairs import PairTable
from fusemix.datasets.splits import in_split
from fusemix.encoders import load_encoder
from fusemix.evaluation.diagnose import sample_pairs

Samples = dict[str, dict[str, np.ndarray]]  # modality -> encoder -> latents, shape (N, D_x), float32, row i is pair i


def from_stores(
    folders: Sequence[tuple[str, str]], *, n: int = 5000, split: str | None = None, seed: int = 0
) -> Samples:
    """Read the latents of the same pairs from stores of one table.

    Args:
        folders: (modality, folder of a store), any number of each modality.
        n: Most pairs to read, one of every group.
        split: Only pairs of this split.
        seed: Of the choice of pairs.

    Raises:
        ValueError: If a store holds another modality, or the stores come from different tables.
    """
    stores: dict[str, dict[str, LatentStore]] = {}
    for modality, folder in folders:
        store, of_modality = LatentStore.open(folder), stores.setdefault(modality, {})
        if store.modality != modality:
            raise ValueError(f"{folder} holds {store.modality} latents, not {modality} latents.")
        name = store.encoder["name"]
        of_modality[f"{name} ({folder})" if name in of_modality else name] = store
    every = [store for of_modality in stores.values() for store in of_modality.values()]
    if len({store.manifest["table"] for store in every}) > 1:
        raise ValueError("The stores were made from different tables, so their rows do not match; use one table.")
    rows = every[0].rows[["row", "group", "split"]]
    for store in every[1:]:
        rows = rows[rows["row"].isin(store.rows["row"])]
    rows = rows.drop_duplicates("row")
    if split is not None:
        rows = rows[in_split(rows["split"].to_numpy(), split, every[0].folder)]
    rows = rows.iloc[sample_pairs(rows["group"].to_numpy(), n, seed=seed)]
    read: Samples = {}
    for modality, of_modality in stores.items():
        items = {
            name: store.rows.drop_duplicates("row").set_index("row")["item"] for name, store in of_modality.items()
        }
        read[modality] = {name: s.read(items[name].loc[rows["row"]].to_numpy()) for name, s in of_modality.items()}
    return read


def from_table(
    table: PairTable,
    encoders: Sequence[tuple[str, str]],
    *,
    n: int = 5000,
    split: str | None = None,
    seed: int = 0,
    device: str = "cpu",
    report: Callable[[str, str, int], None] | None = None,
) -> Samples:
    """Encode the same pairs of a table with several encoders.

    Args:
        table: Holds the pairs.
        encoders: (modality, encoder), any number of each modality.
        n: Most pairs to encode, one of every group.
        split: Only pairs of this split.
        seed: Of the choice of pairs.
        device: Torch device of the encoders.
        report: Called with (encoder, modality, number of pairs) before each begins.
    """
    rows = np.arange(len(table))
    for modality in dict.fromkeys(modality for modality, _ in encoders):
        rows = np.intersect1d(rows, table.rows(modality, split))
    rows = rows[sample_pairs(table.groups[rows], n, seed=seed)]
    read: Samples = {}
    for modality, name in encoders:
        if report:
            report(name, modality, len(rows))
        encoder = load_encoder(name, device=device)
        read.setdefault(modality, {})[name] = encoder.encode([table.value(modality, int(row)) for row in rows])
    return read
