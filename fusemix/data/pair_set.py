"""Latents of several modalities joined into pairs, divided into training and validation."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fusemix.data.latent_store import LatentStore
from fusemix.datasets.splits import closing, sides
from fusemix.model.config import TrainConfig
from fusemix.number_range import check_varied

MIN_PAIRS = 8


@dataclass
class PairSet:
    """Latents of two or more modalities joined row by row.

    Attributes:
        stores: Modality -> its latents.
        items: Modality -> (n_pairs,) item numbers in that store.
        groups: (n_pairs,) pairs of equal group are right answers for one another.
        splits: (n_pairs,) split names, possibly empty.
        left_out: Reason -> number of table rows that make no pair.
    """

    stores: dict[str, LatentStore]
    items: dict[str, np.ndarray]
    groups: np.ndarray
    splits: np.ndarray
    left_out: dict[str, int] = field(default_factory=dict)

    @classmethod
    def join(cls, stores: dict[str, LatentStore]) -> PairSet:
        """Join stores on their table rows.

        Raises:
            ValueError: If fewer than two stores are given, they come from different tables,
                a store is of another modality than its name, a split is not known, or too few rows are in all.
        """
        if len(stores) < 2:
            raise ValueError(f"Pairs need latents of at least two modalities, got {sorted(stores)}.")
        for name, store in stores.items():
            if store.modality != name:
                raise ValueError(f"{store.folder} holds {store.modality} latents, not {name} latents.")
        if len({store.manifest["table"] for store in stores.values()}) > 1:
            raise ValueError(
                f"The latents {[str(s.folder) for s in stores.values()]} were made from different tables, so their "
                "rows do not match; extract every modality from the same table of pairs."
            )
        first, *others = stores
        rows = stores[first].rows.rename(columns={"item": first})
        for name in others:
            _check_agree(stores[first], stores[name])
            other = stores[name].rows[["row", "item"]].rename(columns={"item": name})
            if np.array_equal(rows["row"], other["row"]) and (np.diff(other["row"]) > 0).all():
                rows[name] = other[name].to_numpy()  # the usual case; a join of millions is slow and large
            else:
                rows = rows.merge(other, on="row")
        if len(rows) < MIN_PAIRS:
            raise ValueError(
                f"Only {len(rows)} rows have {' and '.join(stores)} latents; at least {MIN_PAIRS} pairs are needed."
            )
        items = {name: rows[name].to_numpy(np.int64) for name in stores}
        code, split = pd.factorize(rows["split"], use_na_sentinel=False)
        names = np.asarray(split, dtype=object)[code]  # one string object for all rows of a split
        sides(names, " and ".join(str(store.folder) for store in stores.values()))
        alone = {f"with {name} latents alone": len(store.rows) - len(rows) for name, store in stores.items()}
        return cls(stores, items, rows["group"].to_numpy(np.int64), names, alone)

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def name(self) -> str:
        """Name of the set, e.g. ``image+text``."""
        return "+".join(self.stores)

    def latents(self, modality: str, items: np.ndarray, device: str | torch.device = "cpu") -> Tensor:
        """Return latents of items of a modality: shape (len(items), D_x), float32."""
        return self.stores[modality].gather(items, device)

    def check_finite(self) -> None:
        """Raise ValueError if any latent in use is NaN or infinite, naming the first."""
        for modality, items in self.items.items():
            bad = self.stores[modality].not_finite()
            bad = bad[np.isin(bad, items)] if len(bad) else bad
            if len(bad):
                raise ValueError(
                    f"{self.stores[modality].folder} holds NaN or infinite values in {len(bad)} latents, "
                    f"first in item {bad[0]}; extract them again."
                )

    def divide(self, config: TrainConfig) -> tuple[np.ndarray, np.ndarray]:
        """Return pair numbers (train, validation); pairs of a ``test`` split are in neither.

        The validation pairs are those of the split ``val``; without one, a fraction of the groups,
        chosen by a hash so that sets of one table hold out the same groups.

        Raises:
            ValueError: If there are too few pairs, or the latents to train on are all equal.
        """
        side = sides(self.splits, self.name)
        test, validation = side == "test", side == "val"
        if not validation.any():
            groups = np.sort(self.groups)
            groups = groups[np.diff(groups, prepend=groups[0] - 1) > 0]  # np.unique is far slower for millions
            held = [g for part in np.array_split(groups, 1 + len(groups) // 65536) for g in _held_out(part, config)]
            validation = np.isin(self.groups, held) & ~test
        train = np.flatnonzero(~validation & ~test)
        if len(train) < MIN_PAIRS or not validation.any():
            raise ValueError(
                f"{self.name}: {len(train)} pairs to train on and {int(validation.sum())} to validate on are too few; "
                f"give at least {MIN_PAIRS} training pairs and a validation split (or a larger val_fraction)."
            )
        for modality, items in self.items.items():
            store = self.stores[modality]
            name = f"The {modality} latents of {store.encoder['name']} in {store.folder}"
            check_varied(store.read, items[train], name)
        return train, np.flatnonzero(validation)

    def summary(self, config: TrainConfig) -> str:
        """Write how many pairs train, validate and are left out; see :meth:`divide`."""
        train, validation = map(len, self.divide(config))
        counts = {"train": train, "val": validation, "test": len(self) - train - validation}
        return f"{self.name}: {closing(counts, self.left_out, what='pairs')}"

    def limit_groups(self, pairs: np.ndarray, limit: int) -> np.ndarray:
        """Restrict ``pairs`` (numbers of pairs) to at most ``limit`` groups, always the same ones."""
        groups = self.groups[pairs]
        distinct = np.unique(groups)
        if len(distinct) <= limit:
            return pairs
        kept = np.random.default_rng(0).choice(distinct, limit, replace=False)
        return pairs[np.isin(groups, kept)]


def _check_agree(one: LatentStore, other: LatentStore) -> None:
    """Refuse stores that were given other splits or groups for the same rows; those of one table cannot differ."""
    if one.manifest["table"] is not None:
        return
    both = one.rows.merge(other.rows, on="row")
    for name in ("split", "group"):
        differ = np.flatnonzero((both[f"{name}_x"] != both[f"{name}_y"]).to_numpy())
        if len(differ):
            a, b = both[f"{name}_x"].iloc[differ[0]], both[f"{name}_y"].iloc[differ[0]]
            raise ValueError(
                f"{one.folder} and {other.folder} were given other {name}s for {len(differ):,} of the same rows: row "
                f"{both['row'].iloc[differ[0]]} has {a!r} and {b!r}; write both with the same {name}s."
            )


def _held_out(groups: np.ndarray, config: TrainConfig) -> list[int]:
    return [g for g in groups.tolist() if _unit_hash(config.seed, g) < config.val_fraction]


def _unit_hash(seed: int, group: int) -> float:
    return int.from_bytes(hashlib.sha256(f"{seed}-{group}".encode()).digest()[:6]) / 2**48
