"""Training of the small decoder's autoencoder: batches, and a loss of colours and features.

Its encoder is closed-form (:func:`fusemix.generation.small.pipeline.patch_components`); only the decoder learns.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

PERCEPTUAL_SIDE = 112  # side in pixels of reconstructions for the frozen encoder
PERCEPTUAL_BLOCKS = (2, 4, 10, 15)  # of EfficientNet-lite0's 16: strides 4, 8, 16, 32


def picture_batch(pictures: np.ndarray, rng: np.random.Generator, size: int) -> Tensor:
    """Draw random pictures, half of them mirrored, as (B, 3, S, S) in [-1, 1]."""
    batch = torch.from_numpy(np.ascontiguousarray(pictures[np.sort(rng.integers(0, len(pictures), size))]))
    x = batch.permute(0, 3, 1, 2).float() / 127.5 - 1
    mirrored = torch.from_numpy(rng.random(size) < 0.5)
    x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
    return x.contiguous(memory_format=torch.channels_last)


class Perceptual:
    """Distance between pictures in the frozen image encoder's features, each layer divided by its own norm."""

    def __init__(self, device: str) -> None:
        from fusemix.encoders import load_encoder

        self.network = load_encoder("efficientnet-lite0", device=device)._network.to(  # type: ignore[attr-defined]
            memory_format=torch.channels_last
        )

    def features(self, x: Tensor) -> list[Tensor]:  # (B, 3, S, S) in [-1, 1]
        """Return feature maps of four strides, and the pooled latent."""
        x = F.interpolate(x, size=(PERCEPTUAL_SIDE, PERCEPTUAL_SIDE), mode="bilinear", align_corners=False)
        net, out = self.network, []
        x = net._swish(net._bn0(net._conv_stem((x * 127.5 + 0.5) / 128)))
        for i, block in enumerate(net._blocks):
            x = block(x)
            if i in PERCEPTUAL_BLOCKS:
                out.append(x)
        return [*out, net._swish(net._bn1(net._conv_head(x))).mean((2, 3))]

    def __call__(self, y: Tensor, x: Tensor) -> Tensor:
        """Return the mean over layers of ``|f(y) - f(x)|^2 / |f(x)|^2``, a scalar."""
        with torch.no_grad():
            wanted = self.features(x)
        parts = [(a - b).pow(2).mean() / b.pow(2).mean() for a, b in zip(self.features(y), wanted, strict=True)]
        return torch.stack(parts).mean()


class ReconstructionLoss:
    """Squared and absolute error in orthonormal opponent colours, and the perceptual distance of half the batch.

    An AutoencoderKL trained end to end on plain L1 for 4,700 steps explained only 36 % of the
    red-green component (L1 learns grey first), hence the opponent colours.
    """

    def __init__(self, device: str, *, noise_std: float, perceptual_weight: float) -> None:
        """Load the frozen image encoder.

        Args:
            device: A torch device string.
            noise_std: Standard deviation of the noise on the latents, whose first component has deviation 1.
            perceptual_weight: Weight of :class:`Perceptual` relative to the errors.
        """
        opponent = torch.tensor([[1.0, 1, 1], [1, -1, 0], [1, 1, -2]], device=device)
        self.opponent = opponent / opponent.norm(dim=1, keepdim=True)
        self.perceptual = Perceptual(device)
        self.noise_std, self.perceptual_weight = noise_std, perceptual_weight

    def __call__(self, vae: nn.Module, x: Tensor, *, perceptual: bool) -> Tensor:
        """Return the scalar loss of the autoencoder on pictures (B, 3, S, S) in [-1, 1]."""
        z = vae.encode(x).latents  # type: ignore[operator]
        y = vae.decode(z + self.noise_std * torch.randn_like(z)).sample  # type: ignore[operator]
        error = torch.einsum("ij,bjhw->bihw", self.opponent, y - x)
        total = error.pow(2).sum(1).mean() + 0.5 * error.abs().sum(1).mean()
        if perceptual:
            half = max(1, len(x) // 2)
            total = total + self.perceptual_weight * self.perceptual(y[:half], x[:half])
        return total
