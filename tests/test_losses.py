import math

import pytest
import torch

from fusemix.losses import info_nce


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
