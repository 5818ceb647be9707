"""The tab's Stop button in a real browser, on a tiny decoder that is slow on purpose."""

import re
import socket
import time

import gradio as gr
import pytest
import torch
from playwright.sync_api import expect, sync_playwright

from demo.drawing import Studio
from demo.tabs.sound_to_picture import build_generate_tab
from fusemix.generation.generator import Generator
from fusemix.generation.small.pipeline import new_autoencoder, new_unet, small_pipeline
from tests.demo.test_browser import CHROMIUM, FLAGS
from tests.demo.test_sound_to_picture import FakeService

pytestmark = [
    pytest.mark.serial,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: apt-get install chromium"),
]
STEP_S = 0.4  # seconds a step takes at least


@pytest.fixture
def drawn(tmp_path):
    """(address, times at which a step was drawn) of a page with only the tab on it."""
    torch.manual_seed(0)
    parts = new_unet(4, 4, (8, 16), 8), new_autoencoder(4, 8, (0, 0, 0, 0)), torch.zeros(1, 8), torch.ones(1, 8)
    generator, steps = Generator(small_pipeline(*parts)), []
    decode = generator.decode

    def slow(latents):
        time.sleep(STEP_S)
        steps.append(time.monotonic())
        return decode(latents)

    generator.decode = slow
    service = FakeService()
    with gr.Blocks(analytics_enabled=False) as blocks:
        build_generate_tab(service, Studio(service, source="tiny", generator=generator))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    _, address, _ = blocks.queue().launch(server_port=port, prevent_thread_lock=True, quiet=True)
    yield address, steps
    blocks.close()


def test_stop_ends_the_drawing_itself_and_the_next_one_draws(drawn, tmp_path):
    address, steps = drawn
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        page = browser.new_page()
        page.goto(address)
        status = page.locator("#fm-draw-status")
        page.locator("#fm-draw").click()
        expect(status).to_contain_text("Record or drop a sound first", timeout=60_000)
        page.get_by_label("Words, alone or blended").fill("a dog")
        page.locator("#fm-draw").click()
        expect(status).to_contain_text(re.compile(r"Step [2-9] of 25"), timeout=60_000)
        expect(page.locator("#fm-made img")).to_have_count(1)  # a preview, on the first drawing too
        page.screenshot(path=tmp_path / "drawing.png", full_page=True)
        page.locator("#fm-stop").click()
        expect(status).to_contain_text("Stopped.", timeout=30_000)
        page.wait_for_timeout(4000 * STEP_S)  # a step that was under way may end
        before = len(steps)
        page.wait_for_timeout(6000 * STEP_S)
        assert len(steps) == before < 25
        expect(page.get_by_text("Error", exact=True)).to_have_count(0)
        page.locator("#fm-draw").click()
        expect(status).to_contain_text(re.compile(r"Step \d+ of 25"), timeout=60_000)
        page.locator("#fm-stop").click()  # a thread that still draws at the end of the process would abort it
        expect(status).to_contain_text("Stopped.", timeout=30_000)
        browser.close()
