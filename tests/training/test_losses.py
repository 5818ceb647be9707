import math

import pytest
import torch
from torch.nn import functional as F

from fusemix.training.losses import info_nce


def info_nce_loop(a, b, temperature):
    """The formula as written in the paper, one pair at a time."""
    a = a / a.norm(dim=1, keepdim=True)
    b = b / b.norm(dim=1, keepdim=True)
    total = 0.0
    for i in range(len(a)):
        row = [math.exp(float(a[i] @ b[j]) / temperature) for j in range(len(b))]
        col = [math.exp(float(a[j] @ b[i]) / temperature) for j in range(len(a))]
        total -= math.log(row[i] / sum(row)) + math.log(col[i] / sum(col))
    return total / (2 * len(a))


def plain(a, b, temperature, groups):
    """One matrix of logits, held by autograd."""
    logits = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T / temperature
    same = torch.eye(len(a), dtype=a.dtype) if groups is None else (groups[:, None] == groups).to(a.dtype)
    target = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


@pytest.mark.parametrize("batch", [1, 2, 7])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_info_nce_matches_the_written_formula(batch, temperature):
    torch.manual_seed(0)
    a, b = torch.randn(batch, 5), torch.randn(batch, 5)
    actual = info_nce(a, b, temperature=temperature).item()
    assert actual == pytest.approx(info_nce_loop(a, b, temperature), abs=1e-5)


def test_info_nce_is_log_batch_when_every_row_is_equal():
    same = torch.ones(8, 5)
    assert info_nce(same, same, temperature=0.07).item() == pytest.approx(math.log(8), abs=1e-5)


def test_the_gradient_is_that_of_finite_differences_temperature_included():
    torch.manual_seed(0)
    a, b = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    temperature = torch.tensor(0.3, dtype=torch.float64)
    inputs = [x.requires_grad_() for x in (a, b, temperature)]
    assert torch.autograd.gradcheck(lambda a, b, t: info_nce(a, b, temperature=t), inputs)


def test_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"one shape \(B, D\)"):
        info_nce(torch.zeros(3, 2), torch.zeros(4, 2), temperature=1.0)


@pytest.mark.parametrize("tile", [1, 3, 7, 64, None])
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("t", [0.07, 0.01])  # one exponential for both directions, and one for each
def test_any_tiles_give_the_plain_loss_and_its_gradients(tile, grouped, t):
    torch.manual_seed(0)
    groups = torch.tensor([5, 2, 5, 9, 2, 2, 7, 1, 4, 3]) if grouped else None
    results = []
    for compute in (plain, lambda a, b, t, groups: info_nce(a, b, temperature=t, groups=groups, tile=tile)):
        a, b = (torch.randn(10, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
        a[3] *= 1e-14  # shorter than the least norm that is divided by
        a, b = a.requires_grad_(), b.requires_grad_()
        temperature = torch.tensor(t, dtype=torch.float64, requires_grad=True)
        loss = compute(a, b, temperature, groups)
        (3 * loss).backward()
        a.grad[3] *= 1e-12
        results.append([loss.detach(), a.grad, b.grad, temperature.grad])
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("tile", [None, 100])
@pytest.mark.parametrize("temperature", [0.5, 0.0251, 0.0249, 0.001])  # 1 / 40 parts the two ways of summing
def test_in_float32_the_gradient_stays_within_a_hundred_thousandth(temperature, tile):
    torch.manual_seed(1)
    a, b = torch.randn(300, 32), -torch.randn(300, 32)
    a[7] = -b[7]  # a right answer that looks as wrong as can be
    a.requires_grad_()
    (ours,) = torch.autograd.grad(info_nce(a, b, temperature=temperature, tile=tile), a)
    (exact,) = torch.autograd.grad(plain(a.double(), b.double(), temperature, None), a)
    assert (ours - exact).norm() / exact.norm() < 1e-5


@pytest.mark.parametrize("tile", [None, 70])
def test_factors_in_half_precision_hardly_change_the_loss_and_its_gradient(tile):
    torch.manual_seed(0)
    a = torch.randn(200, 64, requires_grad=True)
    b = a.detach() + 3 * torch.randn(200, 64)
    loss = info_nce(a, b, temperature=0.02, tile=tile, factors=torch.bfloat16)
    exact = plain(a, b, 0.02, None)
    assert loss.item() == pytest.approx(exact.item(), rel=1e-3)
    ours, wanted = (torch.autograd.grad(x, a)[0] for x in (loss, exact))
    assert ours.dtype == torch.float32 and (ours - wanted).norm() / wanted.norm() < 6e-3  # 9e-3 with rounded cosines


@pytest.mark.parametrize("temperature", [0.01, 0.005])
def test_tiles_hold_where_every_answer_is_as_wrong_as_can_be(temperature):
    """exp(-2 / temperature) is no float32 any more, so the two directions need sums of their own."""
    a = torch.ones(8, 4) + 1e-3 * torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    losses = [info_nce(a, -a, temperature=temperature, tile=tile).item() for tile in (None, 3)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4) and math.isfinite(losses[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tile", [None, 2])
def test_half_precision_is_summed_in_float32(dtype, tile):
    a, b = (
        torch.randn(300 if tile is None else 30, 8, generator=torch.Generator().manual_seed(s)).to(dtype)
        for s in (1, 2)
    )
    loss = info_nce(a, b, temperature=0.5, tile=tile)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(info_nce(a.float(), b.float(), temperature=0.5).item(), rel=2e-3)


def test_no_pair_at_all_is_refused():
    with pytest.raises(ValueError, match="at least one pair"):
        info_nce(torch.zeros(0, 3), torch.zeros(0, 3), temperature=1.0)


def test_pairs_of_one_group_share_the_target():
    """Written out for three pairs, the first two of one group."""
    a, b = torch.eye(3), torch.eye(3)
    loss = info_nce(a, b, temperature=1.0, groups=torch.tensor([4, 4, 8])).item()
    total = math.log(math.e + 2)
    assert loss == pytest.approx((2 * (total - 0.5) + (total - 1)) / 3, abs=1e-6)


def test_large_batches_never_hold_all_logits():
    """At 6,000 pairs plain logits would take 144 MB each; the tiles' largest tensor is 17 MB."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                self.numel = max(self.numel, out.numel())
            return out

    a, b = torch.randn(6000, 4).requires_grad_(), torch.randn(6000, 4)
    with Largest() as seen:
        info_nce(a, b, temperature=0.1).backward()
    assert seen.numel <= 2048**2


@pytest.mark.parametrize(("values", "message"), [({"tile": 0}, "at least 1"), ({"groups": torch.zeros(3)}, "shape")])
def test_bad_tiles_and_groups_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        info_nce(torch.ones(2, 2), torch.ones(2, 2), temperature=1.0, **values)
