"""Encoding a column of a table of pairs into a latent store; a kill loses at most one unfinished shard."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fusemix.data.latent_store import FORMAT_VERSION, MANIFEST_NAME, ROWS_NAME, LatentStore, read_manifest
from fusemix.data.latent_writer import (
    announce_shard,
    as_stored,
    aside,
    begin,
    check_dtype,
    finish,
    register_shard,
    row_index,
    write_rows,
)
from fusemix.data.pairs import Item, PairTable
from fusemix.datasets.cells import FILE_COLUMNS
from fusemix.encoders.base import Encoder
from fusemix.encoders.probe import latents_of, probe
from fusemix.files import sole_writer
from fusemix.media import MediaError

SHARD_ITEMS = 1024  # items a shard; a kill costs at most one unfinished shard
PROBE_ITEMS, PROBE_TRIED = 8, 32  # distinct usable items that the encoder is probed with, and items tried to find them

Report = Callable[[int, int], None]  # items done, items in all


def extract(
    table: PairTable,
    column: str,
    encoder: Encoder,
    folder: str | Path,
    *,
    split: str | None = None,
    dtype: str = "float32",
    batch_size: int = 32,
    workers: int = 2,
    skip_errors: bool = False,
    report: Report | None = None,
) -> LatentStore:
    """Encode every distinct item of a column into a store; call again after a kill to continue.

    Before a store is started the encoder is probed with a few items of the table
    (:func:`fusemix.encoders.probe.probe`). Under torchrun, every process encodes its share of the shards (in a
    shared folder) and the first one joins them. The store does not depend on the number of processes, which may
    change when it is continued.

    Args:
        table: The table of pairs.
        column: Its column to encode; usually the encoder's modality.
        encoder: A frozen encoder.
        folder: Of the store; an unfinished store of the same table, column, split and
            encoder there is continued, a finished one is returned as it is.
        split: Only rows of this split.
        dtype: ``float32`` or ``float16``.
        batch_size: Items per forward pass.
        workers: Decoding threads.
        skip_errors: Leave unusable items out and list them in the manifest, instead of raising.
        report: Called with (items done, items in all) after every batch; of this process, where there are several.

    Raises:
        ValueError: If the column holds files and the encoder reads text, an item cannot be used (naming its row), a
            latent leaves the range of ``dtype``, the encoder fails its probe, the folder holds another encoder's or
            another table's store, or nothing usable is left.
    """
    check_dtype(dtype)
    if column in FILE_COLUMNS and encoder.modality == "text":
        raise ValueError(f"{encoder.name} reads text, but the column {column} of {table.path} holds paths of files.")
    folder = Path(folder)
    items = table.items(column, split)
    header = {
        "format": FORMAT_VERSION,
        "encoder": encoder.info(),
        "dtype": dtype,
        "table": table.fingerprint,
        "column": column,
        "split": split,
        "n_items": len(items),
    }
    work = _Work(table, column, items, encoder, folder, dtype, batch_size, skip_errors)
    rank, processes, wait = _share()
    if rank == 0 and not (folder / MANIFEST_NAME).exists():
        work.probe()
    with sole_writer(folder) if rank == 0 else nullcontext():
        if rank == 0:
            manifest = begin(folder, header)
            if not manifest["complete"] and not (folder / ROWS_NAME).exists():
                write_rows(folder, row_index(table, column, split))
        wait()
        manifest = manifest if rank == 0 else read_manifest(folder)
        if not manifest["complete"]:
            _extract(work, manifest, workers, report, (rank, processes), wait)
        wait()
    return LatentStore.open(folder)


def _share() -> tuple[int, int, Callable[[], None]]:
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return 0, 1, lambda: None
    from fusemix.distributed import share_of_work  # imports accelerate

    return share_of_work()


@dataclass(frozen=True)
class _LeftOut:
    item: int
    row: int
    reason: str


@dataclass(frozen=True)
class _Work:
    """An extraction: the items, their encoder and the store."""

    table: PairTable
    column: str
    items: list[Item]
    encoder: Encoder
    folder: Path
    dtype: str
    batch_size: int
    skip_errors: bool

    def probe(self) -> None:
        """Probe the encoder with some of the items; ValueError if it fails. See :func:`extract`."""
        usable: list[Item] = []
        prepared: list[Any] = []
        n = len(self.items)  # spread over the table: neighbours are often alike
        for number in np.random.default_rng(0).choice(n, min(n, PROBE_TRIED), replace=False):
            item = self.items[number]
            try:
                prepared.append(self.encoder.prepare(item.value))
            except MediaError:
                continue  # reported with its row when its turn comes
            usable.append(item)
            if len(usable) == PROBE_ITEMS:
                break
        if usable:
            latents = probe(self.encoder, prepared)
            finite = np.flatnonzero(np.isfinite(latents).all(axis=1))  # the others are reported with their rows, too
            as_stored(latents[finite], self.dtype, name=lambda i: self._name(usable[finite[i]]))

    def _name(self, item: Item) -> str:
        return f"The latent of {self.table.location(item.row)} of {self.table.path}, column {self.column!r},"

    def usable(self, item: Item, number: int) -> Any:
        """Return the prepared item, or the manifest's entry for one that is left out."""
        try:
            return self.encoder.prepare(item.value)
        except MediaError as error:
            return self.left_out(item, number, error)

    def left_out(self, item: Item, number: int, error: MediaError) -> _LeftOut:
        """Return the manifest's entry for an unusable item; raise an error unless items may be left out."""
        if not self.skip_errors:
            raise ValueError(
                f"{self.table.path}, {self.table.location(item.row)}, column {self.column}: {error} "
                "(skip_errors=True leaves such rows out and lists them)"
            ) from error
        return _LeftOut(number, item.row, str(error))

    def shard(
        self, start: int, pool: ThreadPoolExecutor, done: Callable[[int], None]
    ) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """Encode the items of one shard: its latents and the items left out; ``done`` is called after every batch."""
        part = self.items[start : start + SHARD_ITEMS]
        latents = np.zeros((len(part), self.encoder.dim), dtype=np.float32)
        left_out: list[_LeftOut] = []
        for offset in range(0, len(part), self.batch_size):
            batch = part[offset : offset + self.batch_size]
            prepared = list(pool.map(self.usable, batch, range(start + offset, start + offset + len(batch))))
            left_out += [value for value in prepared if isinstance(value, _LeftOut)]
            good = [i for i, value in enumerate(prepared) if not isinstance(value, _LeftOut)]
            if good:
                made = latents_of(self.encoder, [prepared[i] for i in good])
                for i in np.flatnonzero(~np.isfinite(made).all(axis=1)):
                    why = MediaError("The encoder makes NaN or infinite values of it.")
                    left_out.append(self.left_out(batch[good[i]], start + offset + good[i], why))
                    made[i] = 0
                latents[[offset + i for i in good]] = made
            done(len(batch))
        stored = as_stored(latents, self.dtype, name=lambda i: self._name(part[i]))
        return stored, [asdict(entry) for entry in sorted(left_out, key=lambda entry: entry.item)]


def _extract(
    work: _Work,
    manifest: dict[str, Any],
    workers: int,
    report: Report | None,
    share: tuple[int, int],
    wait: Callable[[], None],
) -> None:
    rank, processes = share
    folder, n = work.folder, len(work.items)
    starts = list(range(sum(shard["items"] for shard in manifest["shards"]), n, SHARD_ITEMS))
    first = len(manifest["shards"])
    mine = [(first + i, start) for i, start in enumerate(starts) if i % processes == rank]
    total = sum(min(SHARD_ITEMS, n - start) for _, start in mine) if processes > 1 else n
    count = total - sum(min(SHARD_ITEMS, n - start) for _, start in mine)

    def done(items: int) -> None:
        nonlocal count
        count += items
        if report:
            report(count, total)

    with ThreadPoolExecutor(workers) as pool:
        for number, start in mine:
            if not aside(folder, number).exists():
                announce_shard(folder, number, *work.shard(start, pool, done))
            else:
                done(min(SHARD_ITEMS, n - start))
            if processes == 1:
                register_shard(folder, manifest, number)
    wait()
    if rank:
        return
    for number in range(len(manifest["shards"]), first + len(starts)):
        register_shard(folder, manifest, number)
    if len(manifest["skipped"]) == n:
        reason = manifest["skipped"][0]["reason"]
        raise ValueError(f"No item of column {work.column!r} could be used; the first: {reason}")
    finish(folder, manifest)
