"""``fusemix extract``: a table of pairs -> a store of latents."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fusemix.cli import flags, terminal
from fusemix.cli.command import entry, guarded

if TYPE_CHECKING:
    from fusemix.data.latent_store import LatentStore
    from fusemix.data.pairs import PairTable


@guarded(stopped="Interrupted; run the same command again to continue.", words={"skip_errors=True": "--on-error skip"})
def extract(
    pairs: flags.Pairs,
    column: Annotated[
        str, typer.Option(metavar="NAME", help="The column to encode: image, text, audio or one of your own.")
    ],
    encoder: Annotated[
        str,
        typer.Option(metavar="NAME", help="The frozen encoder, such as minilm-l6 or hub-image:facebook/dinov2-base."),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder of the store to write or to continue.")],
    split: flags.Split = None,
    on_error: Annotated[
        Literal["stop", "skip"],
        typer.Option(help="At an item that cannot be used: stop with its row and reason, or leave it out and list it."),
    ] = "stop",
    dtype: Annotated[Literal["float32", "float16"], typer.Option(help="The type of the stored latents.")] = "float32",
    batch_size: Annotated[
        int, typer.Option(metavar="ITEMS", help="How many items go through the encoder at once.")
    ] = 32,
    workers: Annotated[int, typer.Option(metavar="N", help="How many threads decode pictures and sounds.")] = 2,
    device: flags.Device = "cpu",
) -> None:
    """Encode one column of a table of pairs with a frozen encoder, and keep the latents in a folder.

    Run the same command again to continue after a kill; at most one unfinished shard is lost.

    Several processes, each with its share: torchrun --standalone --nproc_per_node 2 -m fusemix.cli.extract --pairs ...
    With --device cuda each of them takes a GPU of its own.

    Example: fusemix extract --pairs pairs.csv --column image --encoder efficientnet-lite0 --out latents/image
    """
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a pre-empted job stops as on Ctrl-C
    from fusemix.data.pairs import PairTable

    table = PairTable.read(pairs, own=(column,))
    table.rows(column, split)  # fail early on a wrong column or split
    store = encode(
        table, column, encoder, out, device=device,
        split=split, dtype=dtype, batch_size=batch_size, workers=workers, skip_errors=on_error == "skip",
    )  # fmt: skip
    skipped = store.manifest["skipped"]
    terminal.result(
        f"{out}: {len(store) - len(skipped):,} latents of {store.dim} dimensions for {len(store.rows):,} rows, "
        f"{len(skipped)} left out"
    )
    terminal.note(table.summary(column, split=split, kept=store.rows["row"].to_numpy()))


def encode(
    table: PairTable, column: str, encoder: str, out: Path, *, device: str = "cpu", **settings: Any
) -> LatentStore:
    """Extract with a progress bar, and name the rows that were left out; ``settings`` as of the library's extract."""
    from fusemix.data.extract import extract as write
    from fusemix.encoders import load_encoder

    processes = int(os.environ.get("WORLD_SIZE", 1))
    own = device == "cuda" and processes > 1
    loaded = load_encoder(encoder, device=f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if own else device)
    with terminal.bar(rate=True) as bar:
        share = f" (1 of {processes} processes)" if processes > 1 else ""
        task = bar.add_task(f"{column} x {encoder}{share}", total=None, rate="")

        def report(done: int, total: int) -> None:
            speed = bar.tasks[task].speed
            bar.update(task, completed=done, total=total, rate=f"{speed:.0f}/s" if speed else "")

        store = write(table, column, loaded, out, report=report, **settings)
    for entry_ in store.manifest["skipped"]:
        terminal.note(f"left out {table.location(entry_['row'])}: {entry_['reason']}")
    return store


def chosen(table: PairTable, named: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the (modality, encoder) named, or the packaged encoders of the two kinds of items in a table.

    Raises:
        ValueError: If none is named and the table does not hold two kinds.
    """
    from fusemix.encoders import DEFAULT_ENCODERS

    found = list(named) or [(m, name) for m, name in DEFAULT_ENCODERS.items() if table.has(m)]
    if not named and len(found) != 2:
        raise ValueError(
            f"{table.path} holds {', '.join(m for m, _ in found) or 'no picture, text or sound'}; name two of its "
            "columns with --encoders MODALITY=ENCODER MODALITY=ENCODER."
        )
    return found


main = entry("extract", extract)

if __name__ == "__main__":
    sys.exit(main())
