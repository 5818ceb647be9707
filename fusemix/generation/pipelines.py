"""Loading and checking of Stable unCLIP pipelines from a folder or the Hub."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import StableUnCLIPImg2ImgPipeline
from diffusers.utils import logging as diffusers_logging
from torch import Tensor
from transformers.utils import logging as transformers_logging

from fusemix import hub_folders
from fusemix.files import read_json

CLIP_PARTS = ("image_encoder", "feature_extractor")  # they embed pictures; drawing starts from embeddings
TEXT_PARTS = ("text_encoder", "tokenizer")
ALL_BUT_CLIP = ("unet", "vae", "scheduler", "image_noising_scheduler", *TEXT_PARTS)


def load_pipeline(
    folder: Path,
    device: str,
    *,
    dtype: torch.dtype | None = None,
    offload: bool = False,
    without: Collection[str] = (),
) -> Any:
    """Load a Stable unCLIP pipeline from its folder.

    Args:
        folder: Of :func:`resolve`.
        device: A torch device string.
        dtype: Dtype of the weights; by default float16 on a GPU, float32 elsewhere.
        offload: Keep only the working part on the GPU (accelerate); no effect on a CPU.
        without: Parts that are not loaded, such as :data:`CLIP_PARTS`.

    Raises:
        FileNotFoundError: If the folder holds no pipeline.
        ValueError: If it is of another class, incomplete or damaged.
    """
    absent = {part: None for part in {*_absent_parts(folder), *without}}
    try:
        with quiet():
            pipeline = StableUnCLIPImg2ImgPipeline.from_pretrained(
                str(folder), dtype=dtype or default_dtype(device), **absent
            )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(
            f"The decoder {str(folder)!r} could not be loaded as a Stable unCLIP pipeline "
            f"({type(error).__name__}: {str(error)[:200]}); its files are incomplete or damaged."
        ) from error
    if offload and device != "cpu":
        pipeline.enable_model_cpu_offload(device=device)
    else:
        pipeline.to(device)
    return pipeline


def default_dtype(device: str) -> torch.dtype:
    """Return float16 for a GPU, float32 elsewhere."""
    return torch.float16 if device.startswith("cuda") else torch.float32


@torch.no_grad()
def encode_prompt(pipeline: Any, prompt: str) -> Tensor:
    """Encode a prompt with the pipeline's text encoder, (1, L, C); zeros, as in training, if it has none.

    Raises:
        ValueError: If a prompt is given but the pipeline has no text encoder.
    """
    if pipeline.text_encoder is not None:
        embeds: Tensor = pipeline.encode_prompt(prompt, pipeline._execution_device, 1, False)[0]
        return embeds
    if prompt:
        raise ValueError("This decoder has no text encoder, so it takes no prompt; blend a text embedding instead.")
    config = pipeline.unet.config
    return torch.zeros(1, 1, config.cross_attention_dim, device=pipeline._execution_device, dtype=pipeline.unet.dtype)


def encode_empty_prompt(folder: Path, device: str, *, dtype: torch.dtype | None = None) -> Tensor | None:
    """Load the text encoder alone, encode the empty prompt, (1, L, C), and free the text encoder again.

    Returns:
        None if the pipeline has no text encoder.

    Raises:
        FileNotFoundError: If the folder holds no pipeline.
        ValueError: If it is of another class, incomplete or damaged.
    """
    if "text_encoder" in _absent_parts(folder):
        return None
    others = ("image_normalizer", "image_noising_scheduler", "unet", "scheduler", "vae")
    return encode_prompt(load_pipeline(folder, device, dtype=dtype, without=(*CLIP_PARTS, *others)), "")


@contextmanager
def quiet() -> Iterator[None]:
    """Silence diffusers' and transformers' progress bars and warnings about absent parts."""
    levels = [library.get_verbosity() for library in (diffusers_logging, transformers_logging)]
    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, level in zip((diffusers_logging, transformers_logging), levels, strict=True):
            library.set_verbosity(level)
            library.enable_progress_bar()


def resolve(source: str | Path, revision: str | None) -> Path:
    """Return the local folder of a decoder, fetched from the Hub if it is not a folder."""
    return hub_folders.resolve(
        source, "decoder", lambda name: StableUnCLIPImg2ImgPipeline.download(name, revision=revision)
    )


def _absent_parts(folder: Path) -> list[str]:
    """Return the parts that the pipeline was saved without; diffusers needs them stated."""
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(f"{folder} holds no model_index.json; expected a diffusers pipeline folder.")
    index = read_json(folder / "model_index.json")
    found = index.get("_class_name") if isinstance(index, dict) else None
    if found not in ("StableUnCLIPImg2ImgPipeline", "StableUnCLIPPipeline"):
        raise ValueError(f"{folder} holds a {found}; expected a StableUnCLIPImg2ImgPipeline.")
    return [part for part, value in index.items() if value == [None, None]]


def check_pipeline(pipeline: Any) -> int:
    """Check that a pipeline's parts agree on the width D of its image embeddings; return D."""
    config = pipeline.unet.config
    width = int(pipeline.image_normalizer.config.embedding_dim)
    return _checked(width, config.class_embed_type, config.projection_class_embeddings_input_dim)


def check_folder(folder: Path) -> int:
    """Check the same by a folder's files, before anything large is loaded.

    Raises:
        FileNotFoundError: If the folder holds no pipeline.
        ValueError: If they do not agree, or the pipeline is of another class or incomplete.
    """
    _absent_parts(folder)
    try:
        unet, normaliser = (read_json(folder / part / "config.json") for part in ("unet", "image_normalizer"))
        taken = unet.get("projection_class_embeddings_input_dim")
        return _checked(int(normaliser["embedding_dim"]), unet.get("class_embed_type"), taken)
    except (OSError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"The decoder {str(folder)!r} is incomplete or damaged ({error}); fetch it again.") from error


def _checked(width: int, kind: Any, taken: Any) -> int:
    if kind != "projection" or taken != 2 * width:
        raise ValueError(
            f"This decoder's UNet takes class labels of width {taken} ({kind}), but its normaliser makes image_embeds "
            f"of width {width}, which need {2 * width} (projection); it is no intact Stable unCLIP."
        )
    return width
