"""Loader of the pairs of each step and their latents: held on the device, or prefetched from disk."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from fusemix.data.latent_store import LatentStore
from fusemix.data.pair_set import PairSet
from fusemix.threads import one_thread

HOLD_BYTES = 512 * 2**20  # most bytes of latents in memory by default; on a GPU half of its free memory


class PairLoader:
    """Batches of one set: functions of the seed and the step only."""

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
        """Prepare the loader; nothing is read yet.

        Args:
            pair_set: The set whose latents are read.
            pairs: (N,) numbers of the pairs to train on.
            batch: Pairs a step, over all processes.
            seed: Of the permutations.
            halved: Whether batches have two halves, to be mixed.
            held: Stores already on ``device`` (:meth:`LatentStore.hold`); others are prefetched.
            device: Device for the latents.
            processes: Number of processes that share each half.
            rank: Of this process.
        """
        self.pair_set, self.pairs, self.batch = pair_set, pairs, batch
        self.seed, self.halved, self.held, self.device = seed, halved, held, device
        self.processes, self.rank = processes, rank
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)
        self._reader = ThreadPoolExecutor(1)
        self._ahead: dict[tuple[str, int], Future[Tensor]] = {}  # by modality and step

    def draw(self, step: int) -> list[np.ndarray]:
        """Draw the pair numbers of a step's batch, over all processes, in halves to be mixed.

        The batches of an epoch are consecutive pieces of a new permutation of all pairs: every order is
        equally likely, and no pair repeats within an epoch.
        """
        epoch, piece = divmod(step, len(self.pairs) // self.batch)
        if epoch != self._epoch:
            rng = np.random.default_rng([*self.seed, epoch])
            self._epoch, self._order = epoch, rng.permutation(self.pairs)
        drawn = self._order[piece * self.batch : (piece + 1) * self.batch]
        return np.split(drawn, 2) if self.halved else [drawn]

    def share_of(self, half: np.ndarray) -> slice:
        """Return this process's part of a half; parts differ by at most one row."""
        return slice(len(half) * self.rank // self.processes, len(half) * (self.rank + 1) // self.processes)

    def latents(self, modality: str, step: int) -> Tensor:
        """Return this process's latents of a step, (rows of all its halves, D_x), float32, on the device."""
        waited = self._ahead.pop((modality, step), None)
        return (self._read(modality, self.draw(step)) if waited is None else waited.result()).to(self.device)

    def read_ahead(self, step: int) -> None:
        """Prefetch a step's latents in another thread."""
        halves = self.draw(step)
        for modality, store in self.pair_set.stores.items():
            if store not in self.held:
                self._ahead[modality, step] = self._reader.submit(self._read_alone, modality, halves)

    def _read_alone(self, modality: str, halves: list[np.ndarray]) -> Tensor:
        with one_thread():  # the training step needs the threads
            return self._read(modality, halves)

    def _read(self, modality: str, halves: list[np.ndarray]) -> Tensor:
        device = self.device if self.pair_set.stores[modality] in self.held else "cpu"
        mine = np.concatenate([half[self.share_of(half)] for half in halves])
        return self.pair_set.latents(modality, self.pair_set.items[modality][mine], device)


def stores_to_hold(sets: list[PairSet], hold_bytes: int | None, device: torch.device) -> list[LatentStore]:
    """Choose the stores to keep in memory: the smallest first, up to ``hold_bytes`` together."""
    if hold_bytes is None:
        hold_bytes = torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else HOLD_BYTES
    stores = {id(store): store for s in sets for store in s.stores.values()}.values()
    ordered = sorted(stores, key=lambda store: store.n_bytes)
    sizes = np.cumsum([store.n_bytes for store in ordered])
    return ordered[: int(np.searchsorted(sizes, hold_bytes, side="right"))]
