import numpy as np
import pytest
import torch

from fusemix.training.mixup import fusemix


def mix_loop(latents, lams):
    """The formula as written, one pair at a time: x~_i = lam_i x_i + (1 - lam_i) x_{i+B}."""
    mixed = []
    for x in latents:
        half = len(x) // 2
        mixed.append(torch.stack([lams[i] * x[i] + (1 - lams[i]) * x[half + i] for i in range(half)]))
    return mixed


@pytest.mark.parametrize("per_row", [False, True])
def test_fusemix_matches_the_written_formula_with_one_lambda_for_all_modalities(per_row):
    torch.manual_seed(0)
    latents = [
        torch.randn(8, 5, dtype=torch.float64),
        torch.randn(8, 3, dtype=torch.float64),
        torch.randn(8, 2).double(),
    ]
    rng = np.random.default_rng(7)
    lams = rng.beta(0.5, 0.5, size=4).tolist() if per_row else [rng.beta(0.5, 0.5)] * 4
    actual = fusemix(latents, alpha=0.5, rng=np.random.default_rng(7), per_row=per_row)
    for mine, expected in zip(actual, mix_loop(latents, lams), strict=True):
        torch.testing.assert_close(mine, expected, rtol=0, atol=1e-12)


def test_a_mixed_pair_is_still_a_true_pair_under_a_linear_map():
    torch.manual_seed(0)
    x, to_y = torch.randn(10, 4), torch.randn(4, 6)
    mixed_x, mixed_y = fusemix([x, x @ to_y], alpha=1.0, rng=np.random.default_rng(0), per_row=True)
    torch.testing.assert_close(mixed_x @ to_y, mixed_y)


def test_lambda_follows_the_beta_distribution():
    x = torch.cat([torch.ones(20000, 1), torch.zeros(20000, 1)])
    (lam,) = fusemix([x], alpha=2.0, rng=np.random.default_rng(0), per_row=True)
    assert lam.mean().item() == pytest.approx(0.5, abs=0.01)
    assert lam.var().item() == pytest.approx(1 / (4 * (2 * 2 + 1)), abs=0.003)  # var of Beta(2, 2)


@pytest.mark.parametrize(
    ("latents", "alpha", "message"),
    [
        ([torch.zeros(3, 2), torch.zeros(3, 2)], 1.0, "even batch"),
        ([torch.zeros(0, 2), torch.zeros(0, 2)], 1.0, "at least 2 pairs"),
        ([torch.zeros(4, 2), torch.zeros(2, 2)], 1.0, "same number of pairs"),
        ([torch.zeros(4, 2), torch.zeros(4, 2)], 0.0, "alpha must be > 0"),
        ([torch.zeros(4, 2), torch.zeros(4, 2)], float("nan"), "alpha must be > 0"),
        ([torch.zeros(4, 2), torch.zeros(4, 2)], float("inf"), "and finite"),
    ],
)
def test_bad_batches_are_refused(latents, alpha, message):
    with pytest.raises(ValueError, match=message):
        fusemix(latents, alpha=alpha, rng=np.random.default_rng(0))
