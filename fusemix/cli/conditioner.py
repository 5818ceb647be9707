"""``fusemix conditioner``: a checkpoint and a Stable unCLIP -> a conditioner from sounds and words to pictures."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from fusemix.cli import flags, terminal
from fusemix.cli.command import entry, guarded, named_once

if TYPE_CHECKING:
    from torch import Tensor

    from fusemix.data.pairs import PairTable
    from fusemix.encoders import Encoder
    from fusemix.generation.bridges import Conditioner
    from fusemix.generation.clip_target import Pairs
    from fusemix.model.adapters import FusionModel

DATA, FIT = "Data", "The maps that are tried"


@guarded(stopped="Stopped; nothing was written.")
def conditioner(
    decoder: Annotated[
        str,
        typer.Option(
            metavar="FOLDER|ID", help="The Stable unCLIP whose CLIP space is the target: a folder or a Hub id."
        ),
    ],
    pairs: Annotated[
        Path,
        typer.Option(
            metavar="TABLE", help="A table of pairs with pictures and captions, sounds or both.", rich_help_panel=DATA
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder for conditioner.json and its weights.")],
    checkpoint: flags.DefaultCheckpoint = str(flags.REPOSITORY / "checkpoints/default"),
    encoders: flags.Encoders = None,
    revision: Annotated[
        str | None, typer.Option(metavar="NAME", help="The revision of the decoder on the Hub.", show_default="main")
    ] = None,
    split: Annotated[
        str, typer.Option(metavar="NAME", help="The split whose rows are fitted.", rich_help_panel=DATA)
    ] = "train",
    test_split: Annotated[
        str, typer.Option(metavar="NAME", help="The split that chooses the kind of map.", rich_help_panel=DATA)
    ] = "val",
    limit: Annotated[
        int, typer.Option(metavar="N", help="At most so many pictures of each split.", rich_help_panel=DATA)
    ] = 5000,
    kinds: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND ...",
            help="The kinds of map to try: ridge, mlp, fusemix.",
            show_default="all of them",
            rich_help_panel=FIT,
        ),
    ] = None,
    ridge: Annotated[
        float,
        typer.Option(metavar="R", help="The penalty, as a multiple of the mean variance.", rich_help_panel=FIT),
    ] = 1.0,
    steps: Annotated[
        int, typer.Option(metavar="N", help="Optimizer steps of the kinds mlp and fusemix.", rich_help_panel=FIT)
    ] = 600,
    seed: flags.Seed = 0,
    device: flags.Device = "cpu",
) -> None:
    """Fit the maps that let sounds, words and pictures drive a Stable Diffusion unCLIP through the shared space.

    The target space is CLIP's, frozen: the decoder's own image encoder makes the targets, and for each modality of the
    checkpoint a map from the shared space onto them is fitted by the pictures of the table. The kind of map is chosen
    by retrieval among the pictures of the held-out split; all figures go into conditioner.json.

    Example: fusemix conditioner --decoder sd2-community/stable-diffusion-2-1-unclip-small
    --pairs demo/gallery/pairs.csv --out checkpoints/conditioner-sd
    """
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    import torch

    from fusemix.data.pairs import PairTable
    from fusemix.generation.bridges import ACROSS, space_identity
    from fusemix.generation.card import conditioner_card
    from fusemix.generation.clip_target import fit_conditioner
    from fusemix.generation.cost import peak_memory
    from fusemix.generation.pipelines import ALL_BUT_CLIP, check_folder, load_pipeline, resolve
    from fusemix.model.adapters import FusionModel
    from fusemix.search.retriever import load_encoders

    table = PairTable.read(pairs)
    model = FusionModel.from_pretrained(checkpoint)
    folder = resolve(decoder, revision)
    check_folder(folder)
    pipeline = load_pipeline(folder, device, without=ALL_BUT_CLIP)
    loaded = load_encoders(model.config, encoders=named_once(encoders or [], flags.FOLDERS))
    targets: dict[str, Tensor] = {}
    fitted: dict[str, dict[str, Pairs]] = {}
    for name in (split, test_split):
        targets[name], fitted[name] = _split(table, name, limit, model, loaded, pipeline)
    found = fit_conditioner(
        fitted[split],
        targets[split],
        fitted[test_split],
        targets[test_split],
        embed_dim=model.config.embed_dim,
        space=space_identity(model),
        kinds=kinds or list(ACROSS),
        ridge=ridge,
        steps=steps,
        seed=seed,
    )
    out.mkdir(parents=True, exist_ok=True)
    found.save(out)
    card = conditioner_card(out.name, found, decoder=decoder, model=model.config)
    (out / "README.md").write_text(card, encoding="utf-8")
    terminal.show(tabulate(found))
    terminal.result(f"written to {out}; mean length of CLIP's image embeddings {found.norm:.2f}")
    terminal.note(
        f"fusemix push {out} OWNER/NAME sends it to the Hub; the app then takes FUSEMIX_CONDITIONER=OWNER/NAME."
    )
    terminal.note(f"peak memory {peak_memory(torch.device(device)) / 1e9:.1f} GB")
    for name in (split, test_split):
        terminal.note(table.summary("image", split=name))


def _split(
    table: PairTable, split: str, limit: int, model: FusionModel, encoders: dict[str, Encoder], pipeline: Any
) -> tuple[Tensor, dict[str, Pairs]]:
    """Embed a split's pictures with CLIP, and the pictures, captions and sounds of their groups in the shared space."""
    from fusemix.generation.clip_target import clip_image_embeds
    from fusemix.media import load_image

    photos = table.items("image", split)[:limit]
    with terminal.bar() as bar:
        tracked = bar.track(photos, total=len(photos), description=f"{split}: CLIP")
        targets = clip_image_embeds(pipeline, (load_image(photo.value) for photo in tracked))
    row_of = {photo.group: row for row, photo in enumerate(photos)}
    return targets, embed(table, split, row_of, model, encoders)


def embed(
    table: PairTable, split: str, row_of: dict[int, int], model: FusionModel, encoders: dict[str, Encoder]
) -> dict[str, Pairs]:
    """Embed the pictures, captions and sounds of the given pictures' groups in the shared space."""
    import numpy as np

    found: dict[str, Pairs] = {}
    for modality in model.modalities:
        if not table.has(modality, split):
            continue
        items = [item for item in table.items(modality, split) if item.group in row_of]
        if not items:
            continue
        with terminal.waiting(f"{split}: {len(items):,} x {modality}"):
            latents = encoders[modality].encode([item.value for item in items])
        found[modality] = (model.embed(modality, latents), np.array([row_of[item.group] for item in items]))
    return found


def tabulate(conditioner: Conditioner) -> Table:
    """Tabulate every kind's recall; the chosen one is marked."""
    table = Table(title="held-out pictures found in CLIP's space, %", title_justify="left")
    for column in ("modality", "map", "R@1", "R@10", "cosine", "queries", "candidates"):
        table.add_column(column)
    for modality, kinds in conditioner.notes.items():
        for kind, note in kinds.items():
            chosen = " (chosen)" if conditioner.bridges[modality].kind == kind else ""
            recalls = (f"{100 * note[key]:.1f}" for key in ("recall_at_1", "recall_at_10"))
            counts = (str(note["queries"]), str(note["candidates"]))
            table.add_row(modality, kind + chosen, *recalls, f"{note['cosine']:.3f}", *counts)
    return table


main = entry("conditioner", conditioner)

if __name__ == "__main__":
    sys.exit(main())
