"""A small Stable unCLIP with the classes and files of the real one: its parts and its folder."""

from __future__ import annotations

import itertools
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, DDPMScheduler, StableUnCLIPImg2ImgPipeline, UNet2DConditionModel
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from fusemix.generation.bridges import Conditioner
from fusemix.generation.pipelines import quiet

MAX_SHARD_SIZE = "9MB"  # a plain git push to a Space refuses files over 10 MB
_PATCH_WIDTH = 48  # channels that hold a 4 x 4 block of RGB pixels


def new_autoencoder(latent_channels: int, width: int, blocks: tuple[int, ...]) -> Any:
    """Make an untrained AutoencoderTiny for small pictures; latents have 1/8 of the side. See :func:`patch_components`.

    Args:
        latent_channels: At most 48.
        width: Channels of the decoder.
        blocks: Residual blocks of the decoder at 1/8, 1/4, 1/2 and full size.
    """
    return AutoencoderTiny(
        encoder_block_out_channels=(_PATCH_WIDTH,) * 4,
        decoder_block_out_channels=(width,) * 4,
        num_encoder_blocks=(0, 0, 0, 0),
        num_decoder_blocks=blocks,
        latent_channels=latent_channels,
    )


@torch.no_grad()
def patch_components(vae: Any, pictures: np.ndarray) -> None:
    """Set a :func:`new_autoencoder`'s encoder to the principal components of 8 x 8 patches, and freeze it.

    Its convolutions, without activations between them, gather each patch's 192 values and
    project them. A component of standard deviation s is divided by sqrt(s), and all by one number that
    gives the first one standard deviation 1: coarse structure stays larger, but does
    not dominate fine structure.

    Args:
        vae: Of :func:`new_autoencoder`.
        pictures: Shape (N, S, S, 3), uint8, S a multiple of 8.

    Raises:
        ValueError: If the latent has more than 48 channels.
    """
    count = vae.config.latent_channels
    if count > _PATCH_WIDTH:
        raise ValueError(f"latent_channels must be at most {_PATCH_WIDTH}, got {count}.")
    n, side = len(pictures), pictures.shape[1] // 8
    x = pictures.astype(np.float64) / 255
    x = x.reshape(n, side, 8, side, 8, 3).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 192)  # (patches, y x c)
    values, vectors = np.linalg.eigh(np.cov((x - x.mean(0)).T))
    std = np.sqrt(values[::-1][:count].clip(1e-12))
    projection = (vectors[:, ::-1][:, :count] / np.sqrt(std * std[0])).T  # (count, 192)
    first, second, third, fourth, last = (layer for layer in vae.encoder.layers)
    for layer in (first, second, third, fourth, last):
        nn.init.zeros_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    first.weight[range(3), range(3), 1, 1] = 1
    for y, x_ in itertools.product(range(2), range(2)):  # the last four taps of a stride-2 kernel are one 2 x 2 block
        for layer, channels in ((second, 3), (third, 12)):
            block = (2 * y + x_) * channels
            layer.weight[range(block, block + channels), range(channels), 1 + y, 1 + x_] = 1
    by_pixel = torch.from_numpy(projection.reshape(count, 8, 8, 3)).float()
    for y, x_ in itertools.product(range(8), range(8)):
        channel = (2 * (y // 2 % 2) + x_ // 2 % 2) * 12 + (2 * (y % 2) + x_ % 2) * 3
        fourth.weight[:count, channel : channel + 3, 1 + y // 4, 1 + x_ // 4] = by_pixel[:, y, x_]
    last.weight[range(count), range(count), 1, 1] = 1
    last.bias.copy_(torch.from_numpy(-projection @ x.mean(0)).float())
    vae.encoder.requires_grad_(False)


def new_unet(latent_side: int, latent_channels: int, channels: tuple[int, ...], embed_dim: int) -> Any:
    """Make an untrained unCLIP UNet: class embeddings of width 2 x embed_dim, attention below the first level."""
    below = len(channels) - 1
    return UNet2DConditionModel(
        sample_size=latent_side,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=channels,
        down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D"] * below),
        up_block_types=(*["CrossAttnUpBlock2D"] * below, "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=4,  # diffusers reads this as the number of heads
        cross_attention_dim=8,  # of the zeros in place of a prompt
        class_embed_type="projection",
        projection_class_embeddings_input_dim=2 * embed_dim,
        resnet_time_scale_shift="scale_shift",
    )


def read_small_parts(folder: Path) -> tuple[Any, Any]:
    """Read UNet and autoencoder, float32, from a folder written by :func:`save_small_pipeline`.

    Raises:
        FileNotFoundError: If the folder lacks one of them.
    """
    for part in ("unet", "vae"):
        if not (folder / part / "config.json").is_file():
            raise FileNotFoundError(f"{folder} holds no {part}; expected a folder of scripts/release/train_unclip.py.")
    with quiet():
        # Else diffusers builds on torch's meta device, and so does any other thread meanwhile, such as a training.
        plain: dict[str, Any] = {"dtype": torch.float32, "low_cpu_mem_usage": False}
        unet = UNet2DConditionModel.from_pretrained(folder / "unet", **plain)
        vae = AutoencoderTiny.from_pretrained(folder / "vae", **plain)
    return unet, vae


def new_scheduler() -> Any:
    """Make a scheduler: cosine schedule, v-prediction, trailing timesteps (Lin et al., arXiv:2305.08891)."""
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
    )


def new_noising_scheduler() -> Any:
    """Make the scheduler that noises image embeddings, as in Stable unCLIP."""
    return DDPMScheduler(beta_schedule="squaredcos_cap_v2")


def noised_class_labels(image_embeds: Tensor, noise_levels: Tensor, mean: Tensor, std: Tensor, noising: Any) -> Tensor:
    """Noise image embeddings as the pipeline's ``noise_image_embeddings`` does, with a noise level for each row.

    Args:
        image_embeds: Shape (B, D).
        noise_levels: (B,), int64, 0 to 999.
        mean: (1, D), of the normaliser.
        std: (1, D), of the normaliser.
        noising: See :func:`new_noising_scheduler`.

    Returns:
        Noised embeddings concatenated with a sinusoidal embedding of the level, shape (B, 2 D).

    Source:
        diffusers ``StableUnCLIPImg2ImgPipeline.noise_image_embeddings``.
    """
    scaled = (image_embeds - mean) / std
    noised = noising.add_noise(scaled, torch.randn_like(scaled), noise_levels)
    return torch.cat([noised * std + mean, level_embedding(noise_levels, image_embeds.shape[1])], dim=1)


def level_embedding(noise_levels: Tensor, width: int) -> Tensor:
    """Return unCLIP's sinusoidal embedding of noise levels (B,): (B, width)."""
    levels: Tensor = get_timestep_embedding(noise_levels, width, flip_sin_to_cos=True, downscale_freq_shift=0)
    return levels


def small_pipeline(unet: Any, vae: Any, mean: Tensor, std: Tensor) -> Any:
    """Build a Stable unCLIP pipeline without text: UNet, autoencoder, normaliser (mean, std, (1, D)), schedulers.

    The image encoder is a stub with a few parameters; diffusers only reads its dtype.
    """
    normaliser = StableUnCLIPImageNormalizer(embedding_dim=mean.shape[1])
    normaliser.mean.data, normaliser.std.data = mean.clone(), std.clone()
    stub = CLIPVisionConfig(
        hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1,
        image_size=4, patch_size=4, projection_dim=4,
    )  # fmt: skip
    return StableUnCLIPImg2ImgPipeline(
        feature_extractor=None,
        image_encoder=CLIPVisionModelWithProjection(stub).eval(),
        image_normalizer=normaliser,
        image_noising_scheduler=new_noising_scheduler(),
        tokenizer=None,
        text_encoder=None,
        unet=unet,
        scheduler=new_scheduler(),
        vae=vae,
    )


def save_small_pipeline(
    folder: Path,
    unet: Any,
    vae: Any,
    mean: Tensor,
    std: Tensor,
    *,
    scaling_factor: float,
    conditioner: Conditioner | None = None,
) -> None:
    """Write a pipeline folder in float16 shards under 10 MB; it replaces an old one only when complete.

    Args:
        folder: Replaced if it exists.
        unet: Trained.
        vae: Trained.
        mean: (1, D) of the image embeddings.
        std: (1, D).
        scaling_factor: 1 / standard deviation of the raw latents.
        conditioner: Stored beside the pipeline.
    """
    unet, vae = (deepcopy(part).cpu().to(memory_format=torch.contiguous_format).half() for part in (unet, vae))
    vae.register_to_config(scaling_factor=scaling_factor)
    pipeline = small_pipeline(unet, vae, mean.half(), std.half())
    pipeline.image_encoder.half()
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    with quiet():
        pipeline.save_pretrained(temporary, safe_serialization=True, max_shard_size=MAX_SHARD_SIZE)
    if conditioner is not None:
        conditioner.save(temporary)
    if folder.exists():
        shutil.rmtree(folder)
    temporary.rename(folder)
