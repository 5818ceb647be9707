import math

import pytest

from fusemix.training.schedule import warmup_cosine


def rate(step, total=110, **changes):
    return warmup_cosine(step, total, **{"highest": 1.0, "lowest": 0.1, "warmup_steps": 10, **changes})


def test_the_rate_rises_linearly_and_falls_along_half_a_cosine():
    assert [rate(step) for step in (0, 4, 9)] == pytest.approx([0.19, 0.55, 1.0])
    assert rate(10) == pytest.approx(1.0)
    for step in (35, 60, 85, 109):
        assert rate(step) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * (step - 10) / 100)) / 2)


@pytest.mark.parametrize("total", [1, 4, 20])
def test_the_warm_up_takes_at_most_a_fifth_of_a_short_run(total):
    rates = [rate(step, total, warmup_steps=100) for step in range(total)]
    assert rates[max(1, total // 5) - 1] == pytest.approx(1.0) and all(0.1 <= r <= 1.0 for r in rates)
