import pytest
import torch
from torch.nn import functional as F

from fusemix.model.block import Block, draw_units, gelu_dropout


def dropped(x, p):
    """Entries of 1 after GELU and dropout, divided by GELU's value and multiplied by the factor."""
    out, scale = gelu_dropout(x, p)
    return out.float() / F.gelu(torch.ones((), dtype=x.dtype)).float() * scale


@pytest.mark.parametrize("p", [0.1, 0.6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_entries_fall_with_probability_p_and_the_mean_stays(p, dtype):
    torch.manual_seed(0)
    y = dropped(torch.ones(1000, 301, dtype=dtype), p)
    kept = y != 0
    assert (1 - kept.float().mean()).item() == pytest.approx(p, abs=4 * (p * (1 - p) / y.numel()) ** 0.5)
    # no row or column is treated unlike the others
    assert kept.float().mean(1).std().item() == pytest.approx((p * (1 - p) / 301) ** 0.5, rel=0.1)
    assert kept.float().mean(0).std().item() == pytest.approx((p * (1 - p) / 1000) ** 0.5, rel=0.2)
    assert y[kept].unique().item() == pytest.approx(1 / (1 - p), rel=1e-4)


def test_neighbouring_masks_are_independent():
    torch.manual_seed(0)
    x = torch.ones(400, 500)
    first, second = ((dropped(x, 0.5) != 0).float() - 0.5 for _ in range(2))
    for a, b in ((first, second), (first[:, 1:], first[:, :-1]), (first[1:], first[:-1])):
        assert abs((a * b).mean().item()) < 4 * 0.25 / a.numel() ** 0.5


def test_the_same_seed_draws_the_same_mask_for_any_number_of_threads():
    x, masks, threads = torch.ones(300, 200), [], torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        torch.manual_seed(5)
        masks.append(dropped(x, 0.3))
    torch.set_num_threads(threads)
    assert torch.equal(*masks)
    assert not torch.equal(masks[0], dropped(x, 0.3))


def written_out(block, x, mask):
    """The formula of the block by torch's own layers; the mask holds zeros and the factor of what is kept."""
    inner = F.gelu(F.linear(block.norm(x), block.up.weight, block.up.bias)) * mask
    return x + F.linear(inner, block.down.weight, block.down.bias)


@pytest.mark.parametrize(("p", "rows"), [(0.0, 1), (0.5, 1), (0.0, 16), (0.5, 16), (0.5, 40), (0.99, 64)])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)]
)
@pytest.mark.parametrize("expansion", [4, 0.5])
def test_a_block_and_its_gradients_are_those_of_torchs_layers(p, rows, dtype, tolerance, expansion):
    torch.manual_seed(0)
    block = Block(24, expansion, p).to(torch.float64 if dtype == torch.float64 else torch.float32)
    block.dropout_rows = rows
    x = torch.randn(40, 24, dtype=block.up.weight.dtype, requires_grad=True)
    mask, units = torch.ones(40, int(24 * expansion), dtype=x.dtype), int(24 * expansion)
    torch.manual_seed(1)
    if rows == 1:
        one, scale = gelu_dropout(mask, p)
        mask = (one != 0) * scale
    elif p:
        kept = draw_units(units, p, -(-40 // rows))
        mask = torch.zeros(len(kept), units, dtype=x.dtype).scatter(1, kept, units / kept.shape[1])
        mask = mask.repeat_interleave(rows, 0)[:40]
    weights, results = torch.randn_like(x), []  # of the outputs in a sum
    for apply in (lambda: block(x), lambda: written_out(block, x, mask)):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            out = apply()
        results.append([out, *torch.autograd.grad((out * weights).sum(), [x, *block.parameters()])])
    for ours, torchs in zip(*results, strict=True):
        assert ours.dtype == torchs.dtype and ours.is_contiguous()
        assert ((ours - torchs).norm() / torchs.norm()).item() < tolerance


def test_pieces_drop_different_units_each_the_same_number_in_the_end_all():
    torch.manual_seed(0)
    kept = draw_units(100, 0.6, 300)
    assert kept.shape == (300, 40) and (kept.diff(dim=1) > 0).all() and not torch.equal(kept[0], kept[1])
    assert torch.bincount(kept.flatten()).float().std().item() == pytest.approx((300 * 0.4 * 0.6) ** 0.5, rel=0.3)
    assert draw_units(3, 0.99, 1).shape == (1, 1)  # a unit is always kept


def test_evaluation_is_torchs_own_to_the_bit_and_a_bad_dropout_is_refused():
    block, x = Block(6, 2, 0.6).eval(), torch.randn(3, 6)
    assert torch.equal(block(x), written_out(block, x, 1.0))
    with pytest.raises(ValueError, match=r"\[0, 1\), got 1"):
        Block(6, 2, 1)
