"""A residual block of the adapters, in few passes over memory where a processor trains it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

_LEVELS = 2**16
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of an entry


class Block(nn.Module):
    """Residual inverted bottleneck: ``x + Linear(Dropout(GELU(Linear(LayerNorm(x)))))``, widened inside.

    Source: ``Block`` of layer6ai-labs/fusemix (LayerNorm before, dropout after the GELU).

    Raises:
        ValueError: If ``dropout`` is not in [0, 1).
    """

    def __init__(self, dim: int, expansion: float, dropout: float) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}.")
        hidden = int(expansion * dim)
        self.norm = nn.LayerNorm(dim)
        self.up = Linear(dim, hidden)
        self.down = Linear(hidden, dim)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:  # (B, D_x) -> (B, D_x)
        """Apply the block."""
        hidden, scale = gelu_dropout(self.up(self.norm(x)), self.dropout if self.training else 0.0)
        out: Tensor = x + self.down(hidden, scale)
        return out


class Linear(nn.Linear):
    """torch's linear layer; in training on a processor the gradient of its weights takes half the time.

    oneDNN's half-precision products copy a transposed left factor again and again, so it is transposed once here.
    Weights are cast once, to autocast's precision if that is on.
    """

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        """Compute ``scale * x @ weight.T + bias``: (B, D_in) -> (B, D_out), in the precision of the product."""
        if self.training and x.device.type == "cpu":
            out: Tensor = _Linear.apply(x, self.weight, self.bias, scale)  # type: ignore[no-untyped-call]
            return out
        return super().forward(x * scale if scale != 1 else x)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, scale: float) -> Tensor:
        kind = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        ctx.scale, ctx.kinds = scale, (x.dtype, weight.dtype)
        x, weight = x.to(kind), weight.to(kind)
        ctx.save_for_backward(x, weight)
        return torch.addmm(bias.to(kind), x, weight.T, alpha=scale)

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), (of_x, of_weight), (by_out,) = ctx.saved_tensors, ctx.kinds, gradient
        by_bias = by_out.sum(0).to(of_weight)
        by_out = (by_out * ctx.scale if ctx.scale != 1 else by_out).to(x.dtype)
        by_x = (by_out @ weight).to(of_x) if ctx.needs_input_grad[0] else None
        if x.dtype.itemsize > 2:
            by_weight = by_out.T @ x
        elif by_out.shape[1] < x.shape[1]:  # the narrower factor is transposed
            by_weight = by_out.T.contiguous() @ x
        else:
            by_weight = (x.T.contiguous() @ by_out).T.contiguous()
        return by_x, by_weight.to(of_weight), by_bias, None


def gelu_dropout(x: Tensor, p: float) -> tuple[Tensor, float]:
    """Apply GELU, and drop entries with probability ``p``; the mean is kept by a factor that is yet to be applied.

    torch draws one Bernoulli number at a time on a processor, which took a third of a training step here. These masks
    are drawn as 16-bit words of NumPy's SFC64, seeded from torch's generator: the same seed gives the same masks, for
    any number of threads. ``p`` is met to 1/65,536. Away from the processor this is torch's own dropout.

    Args:
        x: Any shape, float.
        p: In [0, 1).

    Returns:
        The same shape and dtype, and the factor.
    """
    if p == 0 or x.device.type != "cpu":
        return F.dropout(F.gelu(x), p, training=p > 0), 1.0
    threshold = min(round(p * _LEVELS), _LEVELS - 1)
    rng = np.random.Generator(np.random.SFC64(int(torch.randint(2**62, ()))))
    words = rng.integers(2**64, size=-(-x.numel() // 4), dtype=np.uint64).view(np.int16)[: x.numel()]
    kept = torch.from_numpy(words).ge_(threshold - _LEVELS // 2).view(x.shape).to(_INTEGERS[x.element_size()])
    out: Tensor = _GeluDropout.apply(x, kept)  # type: ignore[no-untyped-call]
    return out, _LEVELS / (_LEVELS - threshold)


class _GeluDropout(torch.autograd.Function):
    """Multiplies the bits of the entries by zeros and ones: integers take half the time of floating-point numbers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Tensor) -> Tensor:
        ctx.save_for_backward(x, kept)
        out = F.gelu(x)
        out.view(kept.dtype).mul_(kept)
        return out

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Tensor, None]:
        x, kept = ctx.saved_tensors
        by_x: Tensor = torch.ops.aten.gelu_backward(gradient[0], x)
        by_x.view(kept.dtype).mul_(kept)
        return by_x, None
