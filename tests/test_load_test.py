"""What scripts/load_test.py writes down about memory, on a curve known by hand."""

from scripts.load_test import memory_figures


def test_growth_counts_from_the_settled_moment_and_a_sample_is_kept_every_half_minute():
    memory = [
        (float(s), 100.0 if s < 60 else 200.0 + (10 if s == 90 else 0) + (4 if s >= 118 else 0))
        for s in range(0, 121, 2)
    ]
    figures = memory_figures(memory, 60.0)
    assert (figures["start"], figures["settled"], figures["end"]) == (100.0, 200.0, 204.0)
    assert (figures["growth_percent"], figures["most_growth_percent"]) == (2.0, 5.0)
    assert (figures["least_since"], figures["most_since"]) == (200.0, 210.0)
    assert figures["samples"] == [(0.0, 100.0), (30.0, 100.0), (60.0, 200.0), (90.0, 210.0), (120.0, 204.0)]


def test_a_run_that_ended_before_memory_settled_is_judged_by_its_last_look():
    figures = memory_figures([(0.0, 100.0), (2.0, 150.0)], 60.0)
    assert (figures["settled"], figures["growth_percent"]) == (150.0, 0.0)
