"""Which pairs a step trains on, and their latents: held where the compute is, or read ahead from disk."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from fusemix.data.latent_store import LatentStore
from fusemix.data.pair_set import PairSet
from fusemix.threads import one_thread

HOLD_BYTES = 512 * 2**20  # latents held in memory at most, unless told otherwise; on a GPU half of what is free


class PairLoader:
    """The batches of one set: functions of the seed and the step, whatever is held and whatever was read before."""

    def __init__(
        self,
        pair_set: PairSet,
        pairs: np.ndarray,
        batch: int,
        *,
        seed: list[int],
        halved: bool,
        held: list[LatentStore],
        device: torch.device,
        processes: int = 1,
        rank: int = 0,
    ) -> None:
        """Nothing is read yet.

        Args:
            pair_set: Whose latents are read.
            pairs: (N,) numbers of the pairs to train on.
            batch: Pairs a step, of all processes together.
            seed: Of the orders.
            halved: Batches come in two halves, to be mixed.
            held: Stores that lie on ``device`` already (:meth:`LatentStore.hold`); the others are read ahead.
            device: Where latents are wanted.
            processes: That share each half.
            rank: Of this process.
        """
        self.pair_set, self.pairs, self.batch = pair_set, pairs, batch
        self.seed, self.halved, self.held, self.device = seed, halved, held, device
        self.processes, self.rank = processes, rank
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)
        self._reader = ThreadPoolExecutor(1)
        self._ahead: dict[tuple[str, int], Future[Tensor]] = {}  # by modality and step

    def draw(self, step: int) -> list[np.ndarray]:
        """Pair numbers of a step's batch, of all processes, in halves to be mixed.

        The batches of an epoch are consecutive pieces of a fresh permutation of all pairs: every order is
        equally likely, whatever the shards, and no pair comes twice before all have come.
        """
        epoch, piece = divmod(step, len(self.pairs) // self.batch)
        if epoch != self._epoch:
            rng = np.random.default_rng([*self.seed, epoch])
            self._epoch, self._order = epoch, rng.permutation(self.pairs)
        drawn = self._order[piece * self.batch : (piece + 1) * self.batch]
        return np.split(drawn, 2) if self.halved else [drawn]

    def share_of(self, half: np.ndarray) -> slice:
        """This process's part of a half; parts differ by at most one row."""
        return slice(len(half) * self.rank // self.processes, len(half) * (self.rank + 1) // self.processes)

    def latents(self, modality: str, step: int) -> Tensor:
        """This process's latents of a step, (rows of all its halves, D_x), float32, on the device."""
        waited = self._ahead.pop((modality, step), None)
        return (self._read(modality, self.draw(step)) if waited is None else waited.result()).to(self.device)

    def read_ahead(self, step: int) -> None:
        """Let another thread read a step's latents while an earlier one computes."""
        halves = self.draw(step)
        for modality, store in self.pair_set.stores.items():
            if store not in self.held:
                self._ahead[modality, step] = self._reader.submit(self._read_alone, modality, halves)

    def _read_alone(self, modality: str, halves: list[np.ndarray]) -> Tensor:
        with one_thread():  # the step that computes meanwhile has the threads
            return self._read(modality, halves)

    def _read(self, modality: str, halves: list[np.ndarray]) -> Tensor:
        device = self.device if self.pair_set.stores[modality] in self.held else "cpu"
        mine = np.concatenate([half[self.share_of(half)] for half in halves])
        return self.pair_set.latents(modality, self.pair_set.items[modality][mine], device)


def stores_to_hold(sets: list[PairSet], hold_bytes: int | None, device: torch.device) -> list[LatentStore]:
    """The stores to keep in memory: the smallest first, while together they take at most ``hold_bytes``."""
    if hold_bytes is None:
        hold_bytes = torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else HOLD_BYTES
    stores = {id(store): store for s in sets for store in s.stores.values()}.values()
    ordered = sorted(stores, key=lambda store: store.n_bytes)
    sizes = np.cumsum([store.n_bytes for store in ordered])
    return ordered[: int(np.searchsorted(sizes, hold_bytes, side="right"))]
