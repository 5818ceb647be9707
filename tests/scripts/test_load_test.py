"""What scripts/checks/load_test.py asks, and what it writes down about memory, on a curve known by hand."""

import gradio as gr

from demo.drawing import Studio
from demo.tabs.sound_to_picture import build_generate_tab, request_of
from scripts.checks import load_test
from scripts.checks.load_test import memory_figures
from tests.demo.test_sound_to_picture import FakeService


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


def test_a_drawing_is_asked_for_with_as_many_values_as_the_tab_takes():
    studio = Studio(FakeService(), source="owner/name")
    with gr.Blocks(analytics_enabled=False) as blocks:
        build_generate_tab(studio.service, studio)
    (endpoint,) = [fn for fn in blocks.fns.values() if fn.api_name == "generate"]
    values = load_test.drawing("a dog")
    assert len(values) == len(endpoint.inputs)
    assert request_of(*values).steering > 0
