"""Training data and loss of the small decoder's UNet: noisy latents with an embedding of a random modality each.

The random choice closes the modality gap by training: the UNet is conditioned on embeddings of the
picture, its captions and its sounds, noised as in unCLIP and sometimes dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusemix.generation.small.pipeline import level_embedding, new_noising_scheduler, new_scheduler, noised_class_labels


@dataclass(frozen=True, kw_only=True)
class UnclipConfig:
    """Everything that changes a run; saved as ``train_config.json`` in the pipeline folder."""

    side: int = 64  # pixels
    latent_channels: int = 12
    vae_width: int = 48  # channels of the decoder
    vae_blocks: tuple[int, ...] = (2, 2, 1, 0)  # residual blocks of the decoder at 1/8, 1/4, 1/2 and full size
    vae_steps: int = 2600
    vae_batch_size: int = 8
    vae_learning_rate: float = 2e-3
    vae_noise_std: float = 0.05  # on the latents, whose first component has standard deviation 1
    perceptual_weight: float = 0.3
    perceptual_fraction: float = 0.5  # of the steps, the last ones
    unet_channels: tuple[int, ...] = (80, 160)
    unet_steps: int = 8000
    unet_batch_size: int = 32
    unet_learning_rate: float = 1e-3
    warmup_steps: int = 200
    ema_decay: float = 0.999  # of the UNet; the autoencoder's is 0.995
    embedding_dropout: float = 0.1
    clean_fraction: float = 0.5  # share of examples whose embedding has no noise
    max_noise_level: int = 600  # of 1000
    image_fraction: float = 0.5  # share of examples conditioned on the picture's own embedding
    audio_fraction: float = 0.2  # on a sound's, where the picture has one; the rest on a caption's
    seed: int = 0


@dataclass(frozen=True)
class Conditions:
    """Shared-space embeddings, unit length, of pictures and of their captions and sounds.

    Attributes:
        image: (N, D), one per picture.
        text: (M, D) of the captions; ``text_of[i]`` are the rows of picture i.
        audio: (L, D) of the sounds; ``audio_of[i]`` are the rows of picture i.
    """

    image: np.ndarray
    text: np.ndarray
    audio: np.ndarray
    text_of: list[np.ndarray]
    audio_of: list[np.ndarray]
    identity: str  # of the shared space

    def draw(self, rows: np.ndarray, rng: np.random.Generator, config: UnclipConfig) -> Tensor:
        """Draw an embedding of a random modality for each picture of ``rows``: (B, D)."""
        out = self.image[rows].copy()
        dice = rng.random(len(rows))
        for i, row in enumerate(rows):
            captions, sounds = self.text_of[row], self.audio_of[row]
            if dice[i] < config.image_fraction:
                continue
            if len(sounds) and (dice[i] < config.image_fraction + config.audio_fraction or not len(captions)):
                out[i] = self.audio[rng.choice(sounds)]
            elif len(captions):
                out[i] = self.text[rng.choice(captions)]
        return torch.from_numpy(out)

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Compute mean and standard deviation of the pictures' embeddings, (1, D) each, for the normaliser."""
        image = torch.from_numpy(self.image)
        return image.mean(0, keepdim=True), image.std(0, keepdim=True)


class DenoisingLoss:
    """Loss of v-prediction with equal weight for every noise level.

    Without min-SNR weights: they almost remove the noisiest steps, which decide the content of a picture
    drawn from pure noise.
    """

    def __init__(
        self,
        latents: np.ndarray,
        conditions: Conditions,
        config: UnclipConfig,
        *,
        scale: float,
        device: str,
        bf16: bool = False,
    ) -> None:
        """Keep the data.

        Args:
            latents: (2, N, C, s, s), float32, raw scale: every picture's and its mirror image's.
            conditions: Of the same N pictures.
            config: The shares of modalities, noise and dropped embeddings.
            scale: Factor of the latents.
            device: A torch device string.
            bf16: Multiply in bfloat16; weights, optimizer and loss stay float32.
        """
        self.bf16 = bf16
        self.latents, self.conditions, self.config, self.scale = latents, conditions, config, scale
        self.device = device
        self.mean, self.std = conditions.statistics()
        self.alphas = new_scheduler().alphas_cumprod.clone()
        self.noising = new_noising_scheduler()

    def __call__(self, unet: nn.Module, step: int, rng: np.random.Generator) -> Tensor:
        """Return the scalar loss of a random batch."""
        size = self.config.unet_batch_size
        rows = rng.integers(0, self.latents.shape[1], size)
        x = torch.from_numpy(self.latents[rng.integers(0, 2, size), rows]) * self.scale
        levels = draw_noise_levels(rng, size, self.config)
        embeds = self.conditions.draw(rows, rng, self.config)
        labels = noised_class_labels(embeds, levels, self.mean, self.std, self.noising)
        labels[torch.from_numpy(rng.random(size) < self.config.embedding_dropout)] = 0.0
        t = torch.from_numpy(rng.integers(0, len(self.alphas), size))
        a = self.alphas[t][:, None, None, None].float()
        noise = torch.randn_like(x)
        noisy, wanted = a.sqrt() * x + (1 - a).sqrt() * noise, a.sqrt() * noise - (1 - a).sqrt() * x
        config: Any = unet.config
        prompt = torch.zeros(size, 1, config.cross_attention_dim)
        noisy, t, prompt, labels, wanted = (v.to(self.device) for v in (noisy, t, prompt, labels, wanted))
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.bf16):
            v = unet(noisy, t, prompt, class_labels=labels).sample
        return F.mse_loss(v.float(), wanted)


def draw_noise_levels(rng: np.random.Generator, size: int, config: UnclipConfig) -> Tensor:
    """Draw noise levels (B,), int64: 0 for a share of the examples, else mostly small ones."""
    levels = (rng.random(size) ** 2 * (config.max_noise_level + 1)).astype(np.int64)
    return torch.from_numpy(np.where(rng.random(size) < config.clean_fraction, 0, levels))


def spread_conditions(unet: Any, conditions: Conditions) -> None:
    """Whiten the input of the class projection, so that the condition has an effect from the first step.

    Unit-length embeddings have small values compared with the timestep half of the class labels; the
    first layer's columns are multiplied by their regularised inverse square-root covariance.
    """
    x = torch.from_numpy(conditions.image).double()
    covariance = torch.cov(x.T)
    values, vectors = torch.linalg.eigh(covariance)
    whiten = vectors @ torch.diag((values + 0.1 * values.mean()).rsqrt()) @ vectors.T
    layer = unet.class_embedding.linear_1
    width = x.shape[1]
    with torch.no_grad():
        columns = layer.weight[:, :width] @ whiten.float()
        layer.bias -= columns @ x.mean(0).float()
        layer.weight[:, :width] = columns


def carry_projection(unet: Any, old: Tensor, new: Tensor, *, ridge: float = 0.01) -> None:
    """Adapt a UNet trained on one embedding space to another one, without training.

    The first layer of the class projection is linear, so a linear map from the new embeddings
    to the old ones, fitted by ridge regression on the same pictures, is folded into its weights:
    W old + b = W (M new + m) + b. Training can then continue.

    Args:
        unet: The UNet whose first class layer is replaced.
        old: Embeddings (N, D_old) in the space it was trained on.
        new: Embeddings (N, D_new) of the same pictures in the new space.
        ridge: Penalty as a multiple of the mean variance of the new embeddings.

    Raises:
        ValueError: If the rows do not match or the UNet takes another width than D_old.
    """
    layer = unet.class_embedding.linear_1
    if len(old) != len(new) or layer.in_features != 2 * old.shape[1]:
        raise ValueError(
            f"Expected as many old as new embeddings, the old ones {layer.in_features // 2} wide, "
            f"got {tuple(old.shape)} and {tuple(new.shape)}."
        )
    levels = torch.arange(1000)
    widths = old.shape[1], new.shape[1]
    fitted = [
        _affine(new.double(), old.double(), ridge),
        _affine(level_embedding(levels, widths[1]).double(), level_embedding(levels, widths[0]).double(), 1e-6),
    ]
    parts = layer.weight.detach().double().split(widths[0], dim=1)
    carried = nn.Linear(2 * widths[1], layer.out_features)
    with torch.no_grad():
        carried.weight.copy_(torch.cat([w @ weight.T for w, (weight, _) in zip(parts, fitted, strict=True)], dim=1))
        shift = sum((w @ offset for w, (_, offset) in zip(parts, fitted, strict=True)), layer.bias.double())
        carried.bias.copy_(shift)
    unet.class_embedding.linear_1 = carried
    unet.register_to_config(projection_class_embeddings_input_dim=2 * widths[1])


def _affine(x: Tensor, y: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Fit the ridge regression y ~ x weight + offset: (D_x, D_y) and (D_y,)."""
    xc, yc = x - x.mean(0), y - y.mean(0)
    penalty = ridge * len(x) * xc.pow(2).mean() * torch.eye(x.shape[1], dtype=x.dtype)
    weight = torch.linalg.solve(xc.T @ xc + penalty, xc.T @ yc)
    return weight, y.mean(0) - x.mean(0) @ weight
