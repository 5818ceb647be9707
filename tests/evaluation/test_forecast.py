"""The forecast: its curve, its intervals, and when it says stop."""

import numpy as np
import pytest
from scipy.special import ndtr, ndtri

from fusemix.evaluation import forecast as f
from tests.evaluation.test_diagnose import paired


def test_the_curve_is_continued_as_written():
    sizes, probits = np.array([100, 200, 400, 800.0]), []
    for n in sizes:
        doublings = np.log2(n / 800)
        probits.append(-1 + 0.3 * (1 - 0.96**doublings) / -np.log(0.96))
    value, low, high = f._continued(
        0.1 + 0.9 * ndtr(probits), sizes * 1000, 3_200_000, (0.05, 0.02), 0.1
    )  # so many that the prior yields
    value, low, high = ((of_all - 0.1) / 0.9 for of_all in (value, low, high))
    assert ndtri(value) == pytest.approx(-1 + 0.3 * (1 - 0.96**2) / -np.log(0.96), abs=0.01)
    half = 1.6449 * np.hypot(0.05, 0.02 * 2)
    assert ndtri(high) - ndtri(value) == pytest.approx(half, rel=0.1) == ndtri(value) - ndtri(low)


def test_few_pairs_lean_on_the_prior_and_say_less():
    sizes, flat = np.array([5, 10, 20, 40.0]), np.full(4, 0.3)
    rises = [f._continued(flat, sizes * scale, int(80 * scale), (0.05, 0.05), 0.0) for scale in (1, 1000)]
    assert rises[0][0] > rises[1][0] + 0.02
    assert rises[0][2] - rises[0][1] > rises[1][2] - rises[1][1]


def test_a_curve_that_begins_at_chance_is_not_lifted_by_what_chance_finds():
    sizes, recall = np.array([5, 10, 20, 40.0]), np.array([0.1, 0.11, 0.15, 0.25])
    value, low, high = f._continued(recall, sizes, 40, (0.05, 0.05), 0.1)
    assert 0.2 < value < 0.28 and low < value < high
    unlearned = f._continued(np.full(4, 0.1), sizes, 80, (0.05, 0.05), 0.1)
    assert unlearned[0] < 0.16 and unlearned[1] >= 0.1
    every = f._continued(np.full(4, 0.995), sizes, 40, (0.05, 0.05), 1.0)  # the first ten of ten
    assert every[0] > 0.98


def test_the_interval_holds_what_more_pairs_then_reach():
    rng = np.random.default_rng(0)
    x, y = (np.concatenate([a, rng.normal(size=(1600, 20))], axis=1) for a in paired(1600, 1.0))
    made = f.forecast(x[:200], y[:200])
    for entry in made.expected[:3]:
        found = f.held_out_ranks(x[: int(entry["pairs"] / 0.8)], y[: int(entry["pairs"] / 0.8)])
        n = len(found) // 5
        chance_free = (found - 1) * (made.gallery - 1) / (n - 1)  # wrong ones ahead in a gallery of the forecast's size
        truth = float(np.exp(-chance_free).mean())
        value, low, high = entry["recall_at_1"]
        assert low - 0.04 < truth < high + 0.04 and low < value < high
    widths = [entry["recall_at_1"][2] - entry["recall_at_1"][1] for entry in made.expected]
    assert widths == sorted(widths)


def test_small_subsets_are_parts_of_larger_ones_and_no_pair_is_fitted_on_itself(monkeypatch):
    fitted, fit = [], f.fit_cca
    monkeypatch.setattr(f, "fit_cca", lambda x, y, **how: fitted.append(set(x[:, 0].tolist())) or fit(x, y, **how))
    x = np.random.default_rng(0).normal(size=(100, 6)).astype(np.float32)
    x[:, 0] = np.arange(100)
    f.held_out_ranks(x, x, share=0.25)
    f.held_out_ranks(x, x, share=0.5)
    f.held_out_ranks(x, x, share=1.0)
    assert [len(s) for s in fitted] == [20] * 5 + [40] * 5 + [80] * 5
    assert all(small < large for small, large in zip(fitted[:5], fitted[5:10], strict=True))
    assert all(sum(i not in s for s in fitted[10:]) == 1 for i in range(100))


def test_strangers_are_a_stop_and_partners_a_go():
    rng = np.random.default_rng(0)
    strangers = f.forecast(*(rng.normal(size=(200, 10)).astype(np.float32) for _ in range(2)))
    assert strangers.verdict().startswith("Stop: ") and "chance (2.5%)" in strangers.verdict()
    partners = f.forecast(*(a - a.mean(0) for a in paired(200, 0.3)))
    assert partners.verdict().startswith("Go") and "with 2,000 pairs" in partners.sentence()
