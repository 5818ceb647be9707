"""Dropout with masks that are cheap on a CPU: random 16-bit words compared with a threshold."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

_LEVELS = 2**16


class Dropout(nn.Module):
    """Dropout with probability ``p``: the kept entries are scaled so that the mean stays.

    torch draws one Bernoulli number at a time on a CPU, which took a third of a training step here. Its masks
    are drawn here as 16-bit words of NumPy's SFC64, seeded from torch's generator: the same seed still gives
    the same masks, for any number of threads. ``p`` is met to 1/65,536, and the scale belongs to the p in use.
    Away from the CPU this is torch's own dropout.

    Raises:
        ValueError: If p is not in [0, 1).
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"dropout must be in [0, 1), got {p}.")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Apply dropout: any shape and floating dtype -> the same."""
        if not self.training or self.p == 0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.p)
        threshold = min(round(self.p * _LEVELS), _LEVELS - 1)
        rng = np.random.Generator(np.random.SFC64(int(torch.randint(2**62, ()))))
        words = rng.integers(2**64, size=-(-x.numel() // 4), dtype=np.uint64).view(np.uint16)
        mask = torch.from_numpy(words[: x.numel()] >= threshold).view(x.shape).to(x.dtype)
        return x * mask.mul_(_LEVELS / (_LEVELS - threshold))

    def extra_repr(self) -> str:
        """Return what ``print(model)`` shows."""
        return f"p={self.p}"
