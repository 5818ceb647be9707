"""Conditioners for a Stable unCLIP: targets from its own frozen CLIP image encoder, and bridges onto them.

Only the maps from the shared space are fitted; CLIP's space is fixed. This corresponds to a training
with a frozen modality, except that the frozen side has no adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from fusemix.evaluation.metrics import ranks, summarise
from fusemix.generation.bridges import ACROSS, Bridge, Conditioner, fit_bridge
from fusemix.media import load_image

MIN_TEST_PAIRS = 2

Pairs = tuple[Tensor, np.ndarray]  # embeddings (M, D_in) and rows (M,) of their pictures


@torch.inference_mode()
def clip_image_embeds(
    pipeline: Any, images: Iterable[Image.Image], *, batch_size: int = 16, report: Callable[[int], None] | None = None
) -> Tensor:
    """Compute the unnormalised CLIP projections that a Stable unCLIP was trained on, by its own image encoder.

    Args:
        pipeline: A loaded Stable unCLIP.
        images: RGB; scaled (bicubic) and cropped to the encoder's square, as in CLIP's training.
        batch_size: Pictures per forward pass.
        report: Called with the number of pictures done.

    Returns:
        Shape (N, D_out), float32, on the CPU.

    Raises:
        ValueError: If the image encoder's width differs from the pipeline's normaliser, as with the stub
            in the small decoder.
    """
    encoder = pipeline.image_encoder
    width = pipeline.image_normalizer.config.embedding_dim
    if encoder is None or encoder.config.projection_dim != width:
        found = None if encoder is None else encoder.config.projection_dim
        raise ValueError(
            f"This decoder's image encoder makes embeddings of width {found}, but it is conditioned on width {width}: "
            "it is no Stable Diffusion unCLIP with its CLIP inside. Our small decoder needs no conditioner."
        )
    side, device = encoder.config.image_size, pipeline._execution_device
    parts: list[Tensor] = []
    batch: list[np.ndarray] = []

    def flush() -> None:
        x = torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2).to(device, encoder.dtype)
        parts.append(encoder(pixel_values=x).image_embeds.float().cpu())
        batch.clear()
        if report is not None:
            report(sum(map(len, parts)))

    mean, std = np.array(OPENAI_CLIP_MEAN, dtype=np.float32), np.array(OPENAI_CLIP_STD, dtype=np.float32)
    for image in images:
        square = ImageOps.fit(load_image(image), (side, side), Image.Resampling.BICUBIC)
        batch.append((np.asarray(square, dtype=np.float32) / 255 - mean) / std)
        if len(batch) == batch_size:
            flush()
    if batch:
        flush()
    if not parts:
        raise ValueError("There is no picture to take CLIP's embeddings of.")
    return torch.cat(parts)


def fit_conditioner(
    train: Mapping[str, Pairs],
    target: Tensor,
    test: Mapping[str, Pairs],
    test_target: Tensor,
    *,
    embed_dim: int,
    space: str | None = None,
    kinds: Sequence[str] = ACROSS,
    ridge: float = 1.0,
    steps: int = 600,
    seed: int = 0,
) -> Conditioner:
    """Fit a bridge per modality onto CLIP's image embeddings, of the kind that retrieves best on held-out pairs.

    Args:
        train: Modality -> shared-space embeddings and the rows of ``target`` they belong to.
        target: CLIP's image embeddings (N, D_out), not normalised; their mean length becomes the norm.
        test: Held-out pairs: embeddings, and rows of ``test_target``.
        test_target: CLIP's image embeddings of the held-out pictures.
        embed_dim: Width of the shared space.
        space: :func:`fusemix.generation.bridges.space_identity` of the model.
        kinds: Kinds of bridges to try, of :data:`ACROSS`.
        ridge: See :func:`fusemix.generation.bridges.fit_bridge`.
        steps: As for ``ridge``.
        seed: As for ``ridge``.

    Returns:
        The conditioner; its notes hold the recall of every kind and modality.

    Raises:
        ValueError: If a kind cannot change widths or a modality has no pairs to fit or to choose by.
    """
    if foreign := sorted(set(kinds) - set(ACROSS)):
        raise ValueError(f"The bridges {foreign} cannot lead into CLIP's space; expected some of {list(ACROSS)}.")
    bridges: dict[str, Bridge] = {}
    notes: dict[str, Any] = {}
    for modality, (embeddings, rows) in train.items():
        held_out = test.get(modality)
        if held_out is None or len(held_out[0]) < MIN_TEST_PAIRS:
            raise ValueError(f"There are no held-out pairs of {modality} and pictures to choose a bridge by.")
        fitted = {
            kind: fit_bridge(kind, embeddings, target[rows], ridge=ridge, steps=steps, seed=seed) for kind in kinds
        }
        notes[modality] = {kind: retrieval(bridge, *held_out, test_target) for kind, bridge in fitted.items()}
        best = max(kinds, key=lambda kind: notes[modality][kind]["recall_at_10"])
        bridges[modality] = fitted[best]
    return Conditioner(
        bridges,
        embed_dim=embed_dim,
        image_embeds_dim=target.shape[1],
        norm=float(target.norm(dim=1).mean()),
        space=space,
        notes=notes,
    )


def retrieval(bridge: Bridge, embeddings: Tensor, rows: np.ndarray, target: Tensor) -> dict[str, float]:
    """Measure how well bridged embeddings retrieve their pictures among ``target``, and their mean cosine to them."""
    made, wanted = bridge(embeddings), F.normalize(target, dim=1)
    found = summarise(ranks(made, wanted, rows, np.arange(len(wanted))))
    cosine = float((made * wanted[torch.from_numpy(rows)]).sum(1).mean())
    return {**found, "cosine": cosine, "queries": len(made), "candidates": len(wanted)}
