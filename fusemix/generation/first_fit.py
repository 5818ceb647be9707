"""A conditioner for a Stable unCLIP, fitted once from the items of an index and kept for the next start."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from huggingface_hub import cached_assets_path
from torch import Tensor

from fusemix.files import read_json, sha256_of
from fusemix.generation.bridges import CONFIG_NAME, Conditioner, space_identity
from fusemix.generation.card import conditioner_card
from fusemix.generation.clip_target import MIN_TEST_PAIRS, Pairs, clip_image_embeds, fit_conditioner
from fusemix.generation.pipelines import ALL_BUT_CLIP, load_pipeline
from fusemix.media import load_image
from fusemix.model.adapters import FusionModel
from fusemix.search.items import ItemGroups

if TYPE_CHECKING:
    from fusemix.search.index import EmbeddingIndex
    from fusemix.search.postgres_index import PostgresIndex

logger = logging.getLogger(__name__)

MAX_PICTURES = 5000  # of the index, evenly spaced; closed forms gain little from more
HELD_OUT = 10  # one group in so many chooses and measures the map
Report = Callable[[int, int], None]  # pictures done, pictures in all
EmbedPictures = Callable[[Path, Sequence[Path], Report | None], Tensor]


@dataclass(frozen=True)
class IndexPairs:
    """The pictures of an index, and everything of the same items, in the shared space.

    Attributes:
        pictures: Files of the N pictures.
        held_out: Whether a picture belongs to a held-out group, shape (N,), bool.
        pairs: Modality -> embeddings (M, D) and the rows of their pictures (M,).
    """

    pictures: list[Path]
    held_out: np.ndarray
    pairs: dict[str, Pairs]

    @classmethod
    def of(cls, index: EmbeddingIndex | PostgresIndex, *, limit: int = MAX_PICTURES) -> IndexPairs:
        """Collect them.

        Raises:
            ValueError: If the index holds no picture with a file.
        """
        items = {modality: index.items(modality) for modality in index.counts}
        files = {row: path for row, item in enumerate(items.get("image", ())) if (path := index.path_of(item))}
        rows = list(files)[:: max(1, -(-len(files) // limit))]
        if not rows:
            raise ValueError("This index holds no pictures with files, so no conditioner can be fitted from it.")
        of_row = {row: number for number, row in enumerate(rows)}
        groups = ItemGroups(items)
        found: dict[str, list[tuple[int, int]]] = {modality: [] for modality in items}
        for faces in groups.faces:
            for number in (of_row[row] for row in faces.get("image", ()) if row in of_row):
                for modality, members in faces.items():
                    if modality == "image":
                        found[modality].append((rows[number], number))
                    else:
                        found[modality].extend((member, number) for member in members)
        pairs = {}
        for modality, links in found.items():
            if links:
                linked = np.array(sorted(set(links)))
                pairs[modality] = torch.from_numpy(index.embeddings(modality)[linked[:, 0]]), linked[:, 1]
        names = (str(items["image"][row].get("group") or items["image"][row]["id"]) for row in rows)
        held_out = np.array([zlib.crc32(name.encode()) % HELD_OUT == 0 for name in names])
        return cls([files[row] for row in rows], held_out, pairs)


def kept_folder(decoder: Path, model: FusionModel) -> Path:
    """Return where the conditioner of a decoder and a model is kept, below the Hub's cache, named by both contents."""
    encoder = sorted((decoder / "image_encoder").glob("*.safetensors")) or [decoder / "model_index.json"]
    contents = "".join(sha256_of(file) for file in encoder) + space_identity(model)
    name = sha256(contents.encode()).hexdigest()[:32]
    return Path(cached_assets_path("fusemix", namespace="conditioners", subfolder=name))


def needs_conditioner(decoder: Path) -> bool:
    """Return whether a decoder is conditioned on its own CLIP's image embeddings and brings no conditioner."""
    config = decoder / "image_encoder" / "config.json"
    normaliser = decoder / "image_normalizer" / "config.json"
    if (decoder / CONFIG_NAME).is_file() or not config.is_file() or not normaliser.is_file():
        return False
    # the small decoder has a stub here, of another width than it is conditioned on
    return bool(read_json(config).get("projection_dim") == read_json(normaliser).get("embedding_dim"))


def embed_pictures(decoder: Path, pictures: Sequence[Path], report: Report | None, *, device: str) -> Tensor:
    """Embed pictures with a decoder's own CLIP: shape (N, D_out), float32; loads CLIP and frees it again."""
    pipeline = load_pipeline(decoder, device, without=ALL_BUT_CLIP)
    total = len(pictures)
    images = (load_image(str(path)) for path in pictures)
    return clip_image_embeds(pipeline, images, report=None if report is None else lambda done: report(done, total))


def conditioner_for(
    decoder: Path,
    model: FusionModel,
    index: EmbeddingIndex | PostgresIndex,
    *,
    embed: EmbedPictures,
    report: Report | None = None,
) -> Conditioner:
    """Load the conditioner kept for a decoder and a model; the first time, fit it from an index's items and keep it.

    The map is a ridge regression (closed form), fitted on nine tenths of the groups and measured on the others; its
    recall is in the conditioner's notes. A modality without enough pairs gets no map of its own.

    Args:
        decoder: Folder of a Stable unCLIP with its CLIP.
        model: The model that made the index.
        index: With pictures, whose files are there.
        embed: Makes CLIP's image embeddings of files, such as :func:`embed_pictures` on a device.
        report: Called with the pictures done and in all.

    Raises:
        ValueError: If the index holds too few pictures.
    """
    folder = kept_folder(decoder, model)
    if (folder / CONFIG_NAME).is_file():
        return Conditioner.load(folder)
    gathered = IndexPairs.of(index)
    target = embed(decoder, gathered.pictures, report)
    train, test = (_part(gathered, side) for side in (False, True))
    kept = {m for m in train if m in test and min(len(train[m][0]), len(test[m][0])) >= MIN_TEST_PAIRS}
    if "image" not in kept:
        raise ValueError(
            f"This index has too few pictures with files to fit a conditioner ({len(gathered.pictures)}); fit it "
            "from a larger table with fusemix conditioner."
        )
    held_out = torch.from_numpy(gathered.held_out)
    found = fit_conditioner(
        {m: train[m] for m in kept},
        target[~held_out],
        {m: test[m] for m in kept},
        target[held_out],
        embed_dim=model.config.embed_dim,
        space=space_identity(model),
        kinds=("ridge",),
    )
    folder.mkdir(parents=True, exist_ok=True)
    found.save(folder)
    card = conditioner_card("conditioner", found, decoder=decoder, model=model.config)
    (folder / "README.md").write_text(card, encoding="utf-8")
    logger.info(
        "The conditioner is kept in %s; fusemix push %s OWNER/NAME sends it to the Hub, and with "
        "FUSEMIX_CONDITIONER=OWNER/NAME the next start loads it.",
        folder,
        folder,
    )
    return found


def _part(gathered: IndexPairs, held_out: bool) -> dict[str, Pairs]:
    """Return the pairs of one side, their rows counted within it."""
    inside = gathered.held_out == held_out
    number = np.cumsum(inside) - 1
    return {
        modality: (embeddings[inside[rows]], number[rows[inside[rows]]])
        for modality, (embeddings, rows) in gathered.pairs.items()
    }
