"""Symmetric InfoNCE between two sets of paired embeddings: in tiles, and divided among processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

EPS = 1e-12  # smallest norm, as in F.normalize
ONE_EXP_BELOW = 40.0  # 1 / temperature; exp(-2 x 40) is still a normal float32
TILE = 2048  # rows and columns of logits held at once
ONE_TILE_UP_TO = 4096  # pairs; above, a B x B matrix costs more than computing tiles twice


def info_nce(
    a: Tensor,
    b: Tensor,
    *,
    temperature: Tensor | float,
    groups: Tensor | None = None,
    tile: int | None = None,
    factors: torch.dtype | None = None,
) -> Tensor:
    """Compute symmetric InfoNCE: row i of ``a`` should find row i of ``b`` among all rows, and vice versa.

    Both sides are L2-normalised here, so inputs need not have unit length. Both directions share one
    matrix product, and the exponentials where 1 / temperature is below 40. Large batches are computed exactly in
    tiles, in memory linear in B.

    Args:
        a: Embeddings of modality X, shape (B, D), float.
        b: Embeddings of modality Y, shape (B, D); b[i] is paired with a[i].
        temperature: Divides the cosine similarities; a scalar > 0, may carry a gradient.
        groups: (B,) integers: pairs of one group are right answers for one another, each with the
            same share of the target. Default: one group per pair. A departure from the paper, whose
            loss treats the other captions of a picture as wrong answers.
        tile: Rows and columns of logits held at once; by default all up to 4,096 pairs, else 2,048.
        factors: The dtype to which the factors of matrix products are rounded, for speed; cosines keep the
            precision of sums in float32. Default: that of ``a``.

    Returns:
        Scalar loss, the mean of both directions' cross-entropies, float32 (or float64 for
        float64 inputs).

    Raises:
        ValueError: If the shapes differ, the batch is empty, the temperature is a number that is not above 0, or the
            tile is below 1.

    Source:
        Vouitsis et al., arXiv:2312.10144; as in ``MLPContrastiveFusion.forward`` of
        layer6ai-labs/fusemix, which forms the product twice. Tiles with a running log-sum-exp:
        Cheng et al., arXiv:2410.17243 (Inf-CL), here without its processes.
    """
    if a.shape != b.shape or a.ndim != 2:
        raise ValueError(f"a and b must be matrices of one shape (B, D), got {tuple(a.shape)} and {tuple(b.shape)}.")
    if len(a) == 0:
        raise ValueError("info_nce needs at least one pair, got an empty batch.")
    if groups is not None and groups.shape != (len(a),):
        raise ValueError(f"groups must have shape ({len(a)},), got {tuple(groups.shape)}.")
    if not isinstance(temperature, Tensor) and not 0 < temperature < torch.inf:
        raise ValueError(f"temperature must be > 0 and finite, got {temperature}.")
    if tile is not None and tile < 1:
        raise ValueError(f"tile must be at least 1, got {tile}.")
    scale = 1 / torch.as_tensor(temperature, device=a.device)
    if tile is None:
        tile = len(a) if len(a) <= ONE_TILE_UP_TO else TILE
    number = None if groups is None else torch.unique(groups, return_inverse=True)[1]
    loss: Tensor = _InfoNCE.apply(a, b, scale, number, tile, factors or a.dtype)  # type: ignore[no-untyped-call]
    return loss


def info_nce_rows(
    a: Tensor,
    b: Tensor,
    all_a: Tensor,
    all_b: Tensor,
    *,
    first: int,
    temperature: Tensor | float,
    groups: Tensor | None = None,
    tile: int = TILE,
) -> Tensor:
    """Compute this process's share of :func:`info_nce`: its rows against all rows, in memory linear in all pairs.

    The mean of all processes' shares is ``info_nce(all_a, all_b)``.

    Args:
        a: This process's embeddings of modality X, shape (n, D), float; normalised here.
        b: Its embeddings of modality Y, shape (n, D).
        all_a: X of all processes with gradients, shape (N, D); rows first..first+n are ``a``.
        all_b: Y of all processes likewise, shape (N, D).
        first: Number of this process's first row among all rows.
        temperature: As in :func:`info_nce`.
        groups: (N,) integers for all rows, as in :func:`info_nce`.
        tile: Rows whose logits against all N are held at once; computed again in the backward pass.

    Returns:
        Scalar loss, the mean over this process's rows of both directions.
    """
    scale = 1 / torch.as_tensor(temperature, device=a.device)
    a, b, all_a, all_b = (F.normalize(x, dim=1) for x in (a, b, all_a, all_b))
    total = a.new_zeros(())
    for start in range(0, len(a), tile):
        end = min(start + tile, len(a))
        rows = torch.arange(first + start, first + end, device=a.device)
        for mine, theirs in ((a, all_b), (b, all_a)):
            total = total + checkpoint(_rows, mine[start:end], theirs, scale, rows, groups, use_reentrant=False)
    return total / (2 * len(a))


def _rows(mine: Tensor, theirs: Tensor, scale: Tensor, rows: Tensor, groups: Tensor | None) -> Tensor:
    logits = mine @ theirs.T * scale  # (t, N)
    if groups is None:
        return F.cross_entropy(logits, rows, reduction="sum")
    same = (groups[rows][:, None] == groups[None]).to(logits.dtype)
    return F.cross_entropy(logits, same / same.sum(1, keepdim=True), reduction="sum")


class _InfoNCE(torch.autograd.Function):
    """InfoNCE in tiles of logits, which the backward pass computes again if there are several.

    With S the logits, T the targets and B pairs, the loss is
    (sum_i lse_j S_ij + sum_j lse_i S_ij - 2 sum T S) / 2B, and its gradient by S is
    (softmax by rows + softmax by columns - 2 T) / 2B. Beyond the inputs, only their gradients and two tiles are held
    at once. Logits lie within +-scale, so that for scales below 40 no exponential of S - scale underflows, and both
    directions can share it.
    """

    @staticmethod
    def forward(
        ctx: Any, a: Tensor, b: Tensor, scale: Tensor, groups: Tensor | None, tile: int, factors: torch.dtype
    ) -> Tensor:
        n, kind = len(a), torch.float64 if a.dtype == torch.float64 else torch.float32
        shared = float(scale) < ONE_EXP_BELOW
        start = 0 if shared else -torch.inf  # sums of exponentials, or their logarithms
        rows = torch.full((n,), start, dtype=kind, device=a.device)
        columns = rows.clone()
        size = None if groups is None else torch.bincount(groups)[groups].to(kind)  # (B,)
        agreement, held = torch.zeros((), dtype=kind, device=a.device), None
        for i in _pieces(n, tile):
            a_i = _unit(a[i], factors)
            for j in _pieces(n, tile):
                values = _cosines(a_i, _unit(b[j], factors), kind).mul_(scale)  # (t, t) logits
                row, column, share = _right(groups, size, i, j, a.device)
                agreement += (values[row, column] * share).sum()
                if shared:
                    values.sub_(scale).exp_()
                    rows[i] += values.sum(1)
                    columns[j] += values.sum(0)
                else:
                    rows[i] = torch.logaddexp(rows[i], values.logsumexp(1))
                    columns[j] = torch.logaddexp(columns[j], values.logsumexp(0))
                if tile >= n:
                    held = values
                del values  # free it before the next one
        if shared:
            rows, columns = rows.log_().add_(scale), columns.log_().add_(scale)
        ctx.save_for_backward(a, b, scale, groups, size, rows, columns, held)
        ctx.tile, ctx.shared, ctx.factors = tile, shared, factors
        return (rows.sum() + columns.sum() - 2 * agreement) / (2 * n)

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Tensor | None, ...]:
        a, b, scale, groups, size, rows, columns, held = ctx.saved_tensors
        n, kind = len(a), rows.dtype
        by_a, by_b = torch.zeros_like(a, dtype=kind), torch.zeros_like(b, dtype=kind)
        for i in _pieces(n, ctx.tile):
            a_i = _unit(a[i], ctx.factors)
            for j in _pieces(n, ctx.tile):
                b_j, values = _unit(b[j], ctx.factors), held
                if held is None:
                    values = _cosines(a_i, b_j, kind).mul_(scale)
                    values = values.sub_(scale).exp_() if ctx.shared else values
                if ctx.shared:
                    by_logits = (scale - rows[i]).exp_()[:, None] + (scale - columns[j]).exp_()
                    by_logits.mul_(values)
                else:
                    by_logits = (values - rows[i, None]).exp_()
                    by_logits.add_((values - columns[j]).exp_())
                del values
                row, column, share = _right(groups, size, i, j, a.device)
                by_logits[row, column] -= 2 * share
                if ctx.factors == kind:
                    by_a[i].addmm_(by_logits, b_j)
                    by_b[j].addmm_(by_logits.T, a_i)
                else:
                    by_logits = by_logits.to(ctx.factors)
                    by_a[i] += by_logits @ b_j
                    by_b[j] += by_logits.T @ a_i
                del by_logits
        factor = gradient[0] / (2 * n)
        by_scale = torch.zeros((), dtype=kind, device=a.device)
        for i in _pieces(n, ctx.tile):
            by_scale += (by_a[i] * F.normalize(a[i], dim=1)).sum()  # sum of by_logits times cosine
            for x, by_x in ((a, by_a), (b, by_b)):
                _through_norm(x[i].to(kind), by_x[i].mul_(scale * factor))
        return by_a.to(a.dtype), by_b.to(b.dtype), by_scale * factor, None, None, None


def _unit(x: Tensor, factors: torch.dtype) -> Tensor:
    return F.normalize(x, dim=1).to(factors)


def _cosines(a: Tensor, b: Tensor, kind: torch.dtype) -> Tensor:
    """Multiply unit vectors, (t, D) each, into cosines of dtype ``kind``, (t, t).

    Half-precision products are returned in half precision, where a cosine of 0.9 stands 0.004 from its neighbours.
    What that rounding lost is the same product minus the first one, which the same kernel sums in float32.
    """
    product = a @ b.T
    if product.dtype == kind:
        return product
    lost = torch.addmm(product, a, b.T, beta=-1)
    return product.to(kind).add_(lost)


def _pieces(n: int, tile: int) -> list[slice]:
    return [slice(start, min(start + tile, n)) for start in range(0, n, tile)]


def _right(
    groups: Tensor | None, size: Tensor | None, i: slice, j: slice, device: torch.device
) -> tuple[Tensor, Tensor, Tensor | float]:
    """Return the positions of the right answers of a tile, (rows, columns), and the target of each."""
    if groups is None or size is None:
        diagonal = torch.arange(i.stop - i.start if i == j else 0, device=device)
        return diagonal, diagonal, 1.0
    row, column = (groups[i, None] == groups[None, j]).nonzero(as_tuple=True)
    return row, column, 1 / size[i][row]


def _through_norm(x: Tensor, gradient: Tensor) -> None:
    """Convert the gradient with respect to x / max(|x|, EPS) to that with respect to x, in place: (t, D) both."""
    norm = x.norm(dim=1, keepdim=True)
    unit = x / norm.clamp_min(EPS)
    along = (gradient * unit).sum(1, keepdim=True).masked_fill_(norm < EPS, 0)
    gradient.sub_(unit.mul_(along)).div_(norm.clamp_min(EPS))
