import pytest
import torch

from fusemix.model.dropout import Dropout


@pytest.mark.parametrize("p", [0.1, 0.6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_entries_fall_with_probability_p_and_the_mean_stays(p, dtype):
    torch.manual_seed(0)
    x = torch.ones(1000, 301, dtype=dtype)
    y = Dropout(p)(x)
    kept = y != 0
    assert y.dtype == dtype
    assert (1 - kept.float().mean()).item() == pytest.approx(p, abs=4 * (p * (1 - p) / x.numel()) ** 0.5)
    # no row or column is treated unlike the others
    assert kept.float().mean(1).std().item() == pytest.approx((p * (1 - p) / 301) ** 0.5, rel=0.1)
    assert kept.float().mean(0).std().item() == pytest.approx((p * (1 - p) / 1000) ** 0.5, rel=0.2)
    assert y[kept].unique().float().item() == pytest.approx(1 / (1 - p), rel=1e-2 if dtype == torch.bfloat16 else 1e-4)


def test_neighbouring_masks_are_independent():
    torch.manual_seed(0)
    layer, x = Dropout(0.5), torch.ones(400, 500)
    first, second = ((layer(x) != 0).float() - 0.5 for _ in range(2))
    for a, b in ((first, second), (first[:, 1:], first[:, :-1]), (first[1:], first[:-1])):
        assert abs((a * b).mean().item()) < 4 * 0.25 / a.numel() ** 0.5


def test_the_gradient_passes_where_the_value_did():
    torch.manual_seed(0)
    x = torch.randn(50, 40, requires_grad=True)
    y = Dropout(0.6)(x)
    y.sum().backward()
    torch.testing.assert_close(x.grad * x, y)


def test_the_same_seed_draws_the_same_mask_for_any_number_of_threads():
    x, masks, threads = torch.ones(300, 200), [], torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        torch.manual_seed(5)
        masks.append(Dropout(0.3)(x))
    torch.set_num_threads(threads)
    assert torch.equal(*masks)
    assert not torch.equal(masks[0], Dropout(0.3)(x))


def test_evaluation_and_p_0_leave_everything_as_it_is():
    x = torch.randn(3, 5)
    assert Dropout(0.6).eval()(x) is x and Dropout(0.0)(x) is x
    with pytest.raises(ValueError, match=r"\[0, 1\), got 1"):
        Dropout(1)
