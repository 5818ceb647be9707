"""The "Sound to picture" tab, driven as plain functions by a fake service and a tiny decoder."""

from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
import torch

from demo.generate_tab import DEFAULT_DECODER, Request, Studio, build_generate_tab, heard_html, pages, request_of
from fusemix.generate import Generator
from fusemix.index import Hit
from fusemix.media import MediaError
from fusemix.unclip import new_autoencoder, new_unet, small_pipeline


class FakeService:
    """Embeds anything as a fixed unit vector and hears two captions in every sound."""

    def __init__(self) -> None:
        self.retriever = SimpleNamespace(embed=self.embed, model=None)

    def embed(self, **query):
        ((modality, value),) = query.items()
        if value == "silent.wav":
            raise MediaError("The sound is silent; check the microphone and record it again.")
        return np.eye(8, dtype=np.float32)[{"audio": 0, "text": 1, "image": 2}[modality]]

    def transcribe(self, audio):
        return "a <i>dog</i> barks"

    def search_audio(self, audio, *, top_k):
        self.embed(audio=audio)
        texts = ["a <b>dog</b>", "a cat"]
        hits = [Hit("text", {"text": t}, 0.5 - i / 10, i + 1) for i, t in enumerate(texts)]
        return SimpleNamespace(hits={"text": hits[:top_k]})


@pytest.fixture(scope="module")
def studio():
    torch.manual_seed(0)
    pipeline = small_pipeline(
        new_unet(4, 4, (8, 16), 8), new_autoencoder(4, 8, (0, 0, 0, 0)), torch.zeros(1, 8), torch.ones(1, 8)
    )
    return Studio(FakeService(), source="tiny", generator=Generator(pipeline))


def test_drawing_shows_every_step_and_ends_with_the_pictures(studio):
    frames = list(studio.draw(Request(audio="dog.wav", steps=3, n_images=2)))
    assert [frame.done for frame in frames] == [False, False, False, True]
    assert frames[0].sentence.startswith("Step 1 of 3")
    assert len(frames[-1].images) == 2
    assert frames[-1].images[0].size == (320, 320)


def test_closing_the_drawing_stops_the_decoder(studio, monkeypatch):
    finished = []
    original = studio._generator.from_image_embeds

    def watched(*args, **kwargs):
        images = original(*args, **kwargs)
        finished.append(True)
        return images

    monkeypatch.setattr(studio._generator, "from_image_embeds", watched)
    drawing = studio.draw(Request(text="a dog", steps=1000))
    next(drawing)
    drawing.close()
    import threading

    for thread in threading.enumerate():
        if thread is not threading.current_thread() and thread.daemon and "_work" in thread.name:
            thread.join(20)
    assert not finished


def test_the_page_shows_what_was_heard_with_markup_made_harmless(studio):
    *_, (heard, sentence, images) = pages(studio, Request(audio="dog.wav", steps=1))
    assert "a &lt;b&gt;dog&lt;/b&gt; <small>0.50</small>" in heard
    assert "“a &lt;i&gt;dog&lt;/i&gt; barks”" in heard
    assert sentence.startswith("1 picture in")
    assert len(images) == 1


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(), "Record or drop a sound first"),
        (Request(text="  "), "Record or drop a sound first"),
        (Request(audio="silent.wav"), "The sound is silent"),
        (Request(text="a dog", steps=0), "steps must be 1 to 1000"),
        (Request(text="a dog", audio="dog.wav", share=7.0), "must be 0 to 1"),
    ],
)
def test_failures_are_one_sentence(studio, request_, message):
    with pytest.raises(gr.Error, match=message):
        list(pages(studio, request_))


def test_unexpected_failures_are_noted_and_hidden(studio, monkeypatch, caplog):
    monkeypatch.setattr(studio._generator, "condition", lambda *a: 1 / 0)
    with pytest.raises(gr.Error, match="noted"):
        list(pages(studio, Request(text="a dog")))
    assert "ZeroDivisionError" in caplog.text


def test_widget_values_become_a_request():
    request = request_of("a.wav", None, None, 0.5, 20.0, 3.0, 10.0, None, 2.0)
    assert request == Request(audio="a.wav", steps=20, noise_level=10, n_images=2)
    assert request.queries() == {"audio": "a.wav"}


def test_the_tab_builds_with_an_endpoint_and_its_own_queue(studio):
    with gr.Blocks() as blocks:
        build_generate_tab(studio.service, studio)
    drawing = next(fn for fn in blocks.fns.values() if fn.api_name == "generate")
    assert drawing.concurrency_id == "generate"
    assert drawing.concurrency_limit == 1


def test_without_a_decoder_the_tab_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr("demo.generate_tab.DEFAULT_DECODER", tmp_path / "none")
    monkeypatch.delenv("FUSEMIX_DECODER", raising=False)
    studio = Studio(FakeService())
    assert studio.missing
    with gr.Blocks() as blocks:
        build_generate_tab(studio.service, studio)
    assert not any(fn.api_name == "generate" for fn in blocks.fns.values())
    assert any("There is no decoder" in str(getattr(block, "value", "")) for block in blocks.blocks.values())


def test_another_decoder_is_chosen_by_the_environment(monkeypatch):
    monkeypatch.setenv("FUSEMIX_DECODER", "owner/name")
    assert Studio(FakeService()).source == "owner/name"
    monkeypatch.delenv("FUSEMIX_DECODER")
    assert Studio(FakeService()).source == str(DEFAULT_DECODER)


def test_nothing_heard_shows_nothing():
    assert heard_html([]) == ""
