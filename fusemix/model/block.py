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

    Attributes:
        dropout_rows: Rows that drop the same hidden units in training, whose products are then never computed; with 1
            each row draws its own, as the paper does.

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
        self.dropout, self.dropout_rows = dropout, 1

    def forward(self, x: Tensor) -> Tensor:  # (B, D_x) -> (B, D_x)
        """Apply the block."""
        if self.training and self.dropout and self.dropout_rows > 1:
            kept = draw_units(self.up.out_features, self.dropout, -(-len(x) // self.dropout_rows)).to(x.device)
            weights = self.up.weight, self.up.bias, self.down.weight, self.down.bias
            down: Tensor = _KeptUnits.apply(self.norm(x), *weights, kept, self.dropout_rows)  # type: ignore[no-untyped-call]
            return x + down
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
        kind = _product_dtype(x)
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
        return by_x, _by_weight(by_out, x).to(of_weight), by_bias, None


def draw_units(units: int, p: float, pieces: int) -> Tensor:
    """Draw the hidden units that each piece of a batch keeps: (pieces, kept), ascending, of torch's generator.

    Each piece keeps the same number, ``p`` of them dropped to the nearest unit, and at least one kept.

    Source: Graham, Reizenstein and Robinson, Efficient batchwise dropout training using submatrices, arXiv:1502.02478.
    """
    kept = max(1, units - round(p * units))
    return torch.stack([torch.randperm(units)[:kept].sort().values for _ in range(pieces)])


class _KeptUnits(torch.autograd.Function):
    """Computes the block between LayerNorm and sum over the kept units alone; a factor keeps the mean."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, up: Tensor, up_bias: Tensor, down: Tensor, down_bias: Tensor, kept: Tensor, rows: int
    ) -> Tensor:
        ctx.kinds, kind = (x.dtype, up.dtype), _product_dtype(x)
        ctx.rows, ctx.scale = rows, len(up) / kept.shape[1]
        x, up, down = x.to(kind), up.to(kind), down.to(kind)
        hidden, outs = [], []
        for piece, units in zip(x.split(rows), kept, strict=True):
            hidden.append(torch.addmm(up_bias[units].to(kind), piece, up[units].T))
            by_unit = down.index_select(1, units).T
            outs.append(torch.addmm(down_bias.to(kind), F.gelu(hidden[-1]), by_unit, alpha=ctx.scale))
        ctx.save_for_backward(x, up, down, kept, *hidden)
        return torch.cat(outs)

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, up, down, kept, *hidden = ctx.saved_tensors
        (of_x, of_weight), by_out = ctx.kinds, gradient[0]
        by_up, by_down = (torch.zeros(up.shape, dtype=of_weight, device=x.device) for _ in range(2))  # (units, D) both
        by_up_bias, by_x = torch.zeros(len(up), dtype=of_weight, device=x.device), []
        by_down_bias = by_out.sum(0).to(of_weight)
        pieces = zip(x.split(ctx.rows), (by_out * ctx.scale).to(x.dtype).split(ctx.rows), kept, hidden, strict=True)
        for piece, by_piece, units, before in pieces:
            by_hidden = torch.ops.aten.gelu_backward(by_piece @ down.index_select(1, units), before)
            by_down.index_add_(0, units, _by_weight(F.gelu(before), by_piece).to(of_weight))
            by_up.index_add_(0, units, _by_weight(by_hidden, piece).to(of_weight))
            by_up_bias.index_add_(0, units, by_hidden.sum(0).to(of_weight))
            by_x.append((by_hidden @ up[units]).to(of_x))
        return torch.cat(by_x), by_up, by_up_bias, by_down.T.contiguous(), by_down_bias, None, None


def _product_dtype(x: Tensor) -> torch.dtype:
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def _by_weight(by_out: Tensor, x: Tensor) -> Tensor:
    """Multiply (B, D_out) and (B, D_in) into the gradient of a weight, (D_out, D_in)."""
    if x.dtype.itemsize > 2 or x.device.type != "cpu":
        return by_out.T @ x
    if by_out.shape[1] < x.shape[1]:  # the narrower factor is transposed
        return by_out.T.contiguous() @ x
    return (x.T.contiguous() @ by_out).T.contiguous()


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
