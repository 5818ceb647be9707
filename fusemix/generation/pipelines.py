"""Stable unCLIP pipelines from a folder or the Hub, loaded and checked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import StableUnCLIPImg2ImgPipeline
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from fusemix import hub_folders
from fusemix.files import read_json


def load_pipeline(folder: Path, device: str, *, offload: bool = False) -> Any:
    """A Stable unCLIP pipeline from its folder: float16 on a GPU, float32 elsewhere.

    Args:
        folder: Of :func:`resolve`.
        device: A torch device string.
        offload: Keep only the working part on the GPU (accelerate); no effect on a CPU.

    Raises:
        FileNotFoundError: If the folder holds no pipeline.
        ValueError: If it is of another class, incomplete or damaged.
    """
    dtype = torch.float16 if device.startswith("cuda") else torch.float32
    absent = {part: None for part in _absent_parts(folder)}
    try:
        with quiet():
            pipeline = StableUnCLIPImg2ImgPipeline.from_pretrained(str(folder), dtype=dtype, **absent)
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


@contextmanager
def quiet() -> Iterator[None]:
    """Without diffusers' and transformers' own bars and remarks on parts that are meant to be absent."""
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
    """The local folder of a decoder, fetched from the Hub if it is not a folder."""
    return hub_folders.resolve(
        source, "decoder", lambda name: StableUnCLIPImg2ImgPipeline.download(name, revision=revision)
    )


def _absent_parts(folder: Path) -> list[str]:
    """Parts the pipeline was saved without; diffusers wants to be told that this is meant."""
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(f"{folder} holds no model_index.json; expected a diffusers pipeline folder.")
    index = read_json(folder / "model_index.json")
    found = index.get("_class_name") if isinstance(index, dict) else None
    if found not in ("StableUnCLIPImg2ImgPipeline", "StableUnCLIPPipeline"):
        raise ValueError(f"{folder} holds a {found}; expected a StableUnCLIPImg2ImgPipeline.")
    return [part for part, value in index.items() if value == [None, None]]


def check_pipeline(pipeline: Any) -> int:
    """The width D of the image embeddings a pipeline takes, once its parts are known to agree on it."""
    width = int(pipeline.image_normalizer.config.embedding_dim)
    config = pipeline.unet.config
    taken = config.projection_class_embeddings_input_dim
    if config.class_embed_type != "projection" or taken != 2 * width:
        raise ValueError(
            f"This decoder's UNet takes class labels of width {taken} ({config.class_embed_type}), but its normaliser "
            f"makes image_embeds of width {width}, which need {2 * width} (projection); it is no intact Stable unCLIP."
        )
    return width
