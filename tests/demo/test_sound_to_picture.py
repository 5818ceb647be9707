"""The "Sound to picture" tab, driven as plain functions by a fake service and a tiny decoder."""

import asyncio
import re
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import gradio as gr
import numpy as np
import pytest
import soundfile
import torch

from demo.drawing import DEFAULT_DECODER, STARTS, Request, Studio
from demo.out_of_domain import SENTENCE, OutOfDomain
from demo.service import Service
from demo.tabs.sound_to_picture import (
    SOUND_EXAMPLES,
    SPOKEN_EXAMPLES,
    build_generate_tab,
    calm_pages,
    heard_html,
    offered_examples,
    pages,
    progress_html,
    request_of,
    waveform_html,
)
from demo.workers import WorkerPools
from fusemix.encoders import load_encoder
from fusemix.generation.generator import Generator
from fusemix.generation.guidance import STRENGTH
from fusemix.generation.small.pipeline import new_autoencoder, new_unet, small_pipeline
from fusemix.model.adapters import FusionModel
from fusemix.model.config import ModelConfig
from fusemix.search.index import EmbeddingIndex, Hit
from fusemix.search.retriever import Retriever

ROOT = Path(__file__).resolve().parents[2]
DOG = str(ROOT / "demo/examples/spoken-dog.mp3")
APPLE = next((ROOT / "demo/gallery/images").glob("tuxpaint-food-fruit-apple-red.*"))
BANANA = next((ROOT / "demo/gallery/images").glob("tuxpaint-food-fruit-banana.*"))


ASKED = {"words": {"text": "ein Hund"}, "sound": {"audio": DOG}, "both": {"text": "ein Hund", "audio": DOG}}


class BrightnessEncoder:
    """A picture's latent is its mean."""

    def encode(self, images):
        return np.array([[np.asarray(image).mean() / 255] for image in images], dtype=np.float32)


class BrightnessModel:
    """The darker, the nearer to the first axis, which stands for sounds."""

    def embed(self, modality, latents):
        angle = torch.from_numpy(latents)[:, 0]
        rows = torch.zeros(len(latents), 8)
        rows[:, 0], rows[:, 3] = torch.cos(angle), torch.sin(angle)
        return rows


class FakeIndex:
    """A picture, the same from another package, and another; found by everything in this order."""

    counts: ClassVar = {"image": 3}

    def search(self, modality, queries, *, top_k):
        items = [{"caption": "Apple", "licence": "CC0", "credit": "Ann"}, {"title": "apple again"}, {"title": "Banana"}]
        return [[Hit("image", item, 0.9, i) for i, item in enumerate(items[:top_k], start=1)]]

    def path_of(self, item):
        return BANANA if item.get("title") == "Banana" else APPLE


class FakeService:
    """Embeds anything as a fixed unit vector and hears two captions in every sound."""

    understood = frozenset({"image", "text", "audio"})

    def __init__(self) -> None:
        self.retriever = SimpleNamespace(
            embed_parts=self.embed_parts,
            model=BrightnessModel(),
            encoders={"image": BrightnessEncoder()},
            index=FakeIndex(),
        )
        self.pools = WorkerPools()
        self.out_of_domain = OutOfDomain(np.empty((0, 8), np.float32))  # without captions: everything is

    def row_of(self, modality, identity):
        return None  # no item of the gallery is offered as an example

    def embed_parts(self, **queries):
        return {modality: self.embed(**{modality: value}) for modality, value in queries.items()}

    def embed(self, **query):
        ((modality, value),) = query.items()
        return np.eye(8, dtype=np.float32)[{"audio": 0, "text": 1, "image": 2}[modality]]

    def search_audio(self, audio, *, top_k):
        self.embed(audio=audio)
        texts = ["a <b>dog</b>", "a cat"]
        hits = [Hit("text", {"text": t}, 0.5 - i / 10, i + 1) for i, t in enumerate(texts)]
        return SimpleNamespace(hits={"text": hits[:top_k]}, heard="a <i>dog</i> barks", doubt="")


@pytest.fixture(scope="module")
def studio():
    torch.manual_seed(0)
    pipeline = small_pipeline(
        new_unet(4, 4, (8, 16), 8), new_autoencoder(4, 8, (0, 0, 0, 0)), torch.zeros(1, 8), torch.ones(1, 8)
    )
    return Studio(FakeService(), source="tiny", generator=Generator(pipeline))


def test_words_like_no_caption_are_drawn_and_doubted(studio, monkeypatch):
    unlike = np.zeros((200, 8), np.float32)
    unlike[:, 5] = 1  # captions on an axis of their own
    monkeypatch.setattr(studio.service, "out_of_domain", OutOfDomain(unlike))
    last_frames = {name: list(studio.draw(Request(steps=2, **asked)))[-1] for name, asked in ASKED.items()}
    assert all(frame.done and frame.images for frame in last_frames.values())
    assert {name for name, frame in last_frames.items() if frame.sentence.startswith(SENTENCE)} == {"words"}
    monkeypatch.setattr(studio.service, "out_of_domain", OutOfDomain(np.tile(np.eye(8, dtype=np.float32)[1], (200, 1))))
    assert SENTENCE not in list(studio.draw(Request(steps=2, text="ein Hund")))[-1].sentence


def test_drawing_shows_every_step_and_ends_with_the_pictures(studio):
    frames = list(studio.draw(Request(audio=DOG, steps=3, n_images=2)))
    assert [frame.done for frame in frames] == [False, False, False, True]
    assert frames[0].sentence.startswith("Step 1 of 3")
    assert [caption for _, caption in frames[0].images] == ["The first picture so far"]
    assert [caption for _, caption in frames[-1].images] == ["A picture"] * 2
    assert frames[-1].images[0][0].size == (320, 320)


def test_a_long_drawing_says_how_long_it_will_take(studio, monkeypatch):
    clock = iter(range(0, 1000, 2))
    monkeypatch.setattr("demo.drawing.time", SimpleNamespace(perf_counter=lambda: float(next(clock))))
    sentences = [frame.sentence for frame in studio.draw(Request(text="a dog", steps=3))]
    assert sentences[:3] == ["Step 1 of 3, about 4 s left", "Step 2 of 3, about 2 s left", "Step 3 of 3"]


def test_a_drawing_is_steered_towards_the_blend_where_the_encoder_lets_it(monkeypatch):
    service, given = FakeService(), []
    service.retriever.model = FusionModel(ModelConfig(latent_dims={"image": 3, "text": 3}, embed_dim=8, depth=0)).eval()
    torch.manual_seed(0)
    parts = new_unet(4, 4, (8, 16), 8), new_autoencoder(4, 8, (0, 0, 0, 0)), torch.zeros(1, 8), torch.ones(1, 8)
    generator = Generator(small_pipeline(*parts))
    plain = Studio(service, source=str(DEFAULT_DECODER), generator=generator)
    assert plain.steering == 0  # this encoder lets no gradients through
    with pytest.raises(ValueError, match="no differentiable method `encode_pixels`"):
        list(plain.draw(Request(text="a dog", steps=2, steering=0.1)))
    service.retriever.encoders["image"] = SimpleNamespace(
        encode_pixels=lambda pixels: pixels.mean((2, 3)),
        encode=lambda images: np.stack([np.asarray(i, dtype=np.float32).mean((0, 1)) / 255 for i in images]),
    )
    assert plain.steering == STRENGTH and Studio(service, source="tiny", generator=generator).steering == 0
    draw = generator.from_image_embeds
    monkeypatch.setattr(generator, "from_image_embeds", lambda *a, **k: given.append(k["steering"]) or draw(*a, **k))
    request = Request(text="a dog", audio=DOG, share=0.75, steps=2, candidates=2)
    for frames in (plain.draw(request), plain.draw(replace(request, steering=0.1))):
        assert list(frames)[-1].done
    assert given[0] is None and given[1].strength == 0.1
    expected = np.zeros(8, dtype=np.float32)
    expected[:2] = 0.75, 0.25  # the sound's share first
    torch.testing.assert_close(given[1].wanted[0], torch.from_numpy(expected / np.linalg.norm(expected)))


def test_closing_the_drawing_stops_the_decoder(studio, monkeypatch):
    finished = []
    original = studio._generator.from_image_embeds

    def watched(*args, **kwargs):
        images = original(*args, **kwargs)
        finished.append(True)
        return images

    monkeypatch.setattr(studio._generator, "from_image_embeds", watched)
    before = set(threading.enumerate())
    drawing = studio.draw(Request(text="a dog", steps=1000))
    next(drawing)
    started = set(threading.enumerate()) - before
    drawing.close()
    assert started
    for thread in started:
        thread.join(20)
    assert not finished


def test_the_page_shows_what_was_heard_with_markup_made_harmless(studio):
    first, *_, (heard, sentence, images) = pages(studio, Request(audio=DOG, steps=1))
    assert "Listening" in first[1] and first[2] == []  # what was drawn before is gone
    assert "a &lt;b&gt;dog&lt;/b&gt; <small>0.50</small>" in heard
    assert "“a &lt;i&gt;dog&lt;/i&gt; barks”" in heard
    assert "<p>1 picture in" in sentence
    assert len(images) == 1


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(), "Record or drop a sound first"),
        (Request(text="  "), "Record or drop a sound first"),
        (Request(audio="gone.wav"), "gone.wav"),
        (Request(text="a dog", steps=0), "steps must be 1 to 1000"),
        (Request(text="a dog", audio=DOG, share=7.0), "must be 0 to 1"),
    ],
)
def test_failures_are_one_sentence(studio, request_, message):
    with pytest.raises(gr.Error, match=message):
        list(pages(studio, request_))


def test_on_the_page_a_failure_is_a_sentence_in_its_place_and_no_error(studio):
    values = [None, "", None, 0.5, 5, 3.0, 0, 0, 1, 1, False, 0.6, 0.0]
    *_, (heard, sentence, images) = calm_pages(studio, "me", tuple(values))
    assert "Record or drop a sound first, type a few words, or add a picture." in sentence and "fm-apology" in sentence
    assert heard == images == gr.skip()
    *_, (_, sentence, _) = calm_pages(studio, "me", ("", "a dog", None, "half", *values[4:]))
    assert "must be a number" in sentence
    assert not studio._stops


def test_an_hour_of_silence_noise_and_a_chord_end_in_a_picture_or_a_sentence(studio, tmp_path):
    time = np.arange(16000 * 2) / 16000
    sounds = {
        "silence": np.zeros(32000),
        "noise": np.random.default_rng(0).normal(0, 0.3, 32000).clip(-1, 1),
        "music": 0.2 * sum(np.sin(2 * np.pi * f * time) for f in (220, 277, 330)),
    }
    for name, samples in sounds.items():
        soundfile.write(tmp_path / f"{name}.wav", samples, 16000)
    soundfile.write(tmp_path / "hour.wav", np.tile(sounds["noise"][:1000], 3600), 1000)
    for name in ("noise", "music"):
        *_, (heard, _, images) = pages(studio, Request(audio=str(tmp_path / f"{name}.wav"), steps=1))
        assert "The model hears these 2.0 seconds." in heard
        assert len(images) == 1
    with pytest.raises(gr.Error, match="silent"):
        list(pages(studio, Request(audio=str(tmp_path / "silence.wav"))))
    with pytest.raises(gr.Error, match="10 minutes|600|minutes"):
        list(pages(studio, Request(audio=str(tmp_path / "hour.wav"))))


def test_the_nearest_candidates_are_shown_first_and_the_choice_is_named(studio):
    everything = list(studio.draw(Request(audio=DOG, steps=2, n_images=6)))[-1].images
    chosen = list(studio.draw(Request(audio=DOG, steps=2, n_images=2, candidates=6)))[-1]
    darkest = sorted(np.asarray(image).mean() for image, _ in everything)[:2]
    assert [np.asarray(image).mean() for image, _ in chosen.images] == pytest.approx(darkest, abs=0.5)
    assert "Chosen from 6 by how well they match your request." in chosen.sentence
    *_, all_shown = studio.draw(Request(text="a dog", steps=2, n_images=2, candidates=2))
    assert "Sorted by how well they match your request" in all_shown.sentence


def test_what_is_repainted_is_shown_first_and_repaints_are_called_so(studio):
    frames = list(studio.draw(Request(text="apple", steps=10, n_images=3, from_gallery=True, strength=0.2)))
    assert len(frames) == 4  # what is repainted, two of ten steps, and the end
    assert frames[0].sentence == "Found 2 pictures in the gallery to repaint …"
    assert [caption for _, caption in frames[0].images] == ["“Apple”, from the gallery", "“Banana”, from the gallery"]
    assert frames[-1].sentence.startswith("3 repaints in ")
    assert [(s.title, s.credit) for s in frames[-1].starts] == [("Apple", "Ann, CC0"), ("Banana", "")]
    shown = progress_html(frames[-1])
    assert "“Apple” <small>Ann, CC0</small>" in shown and shown.count('<img src="data:image/png;base64,iVBOR') == 2
    repaints = ["A repaint of “Apple”", "A repaint of “Banana”", "A repaint of “Apple”"]
    assert [caption for _, caption in frames[-1].images] == repaints
    chosen = list(studio.draw(Request(text="apple", steps=5, candidates=2, from_gallery=True)))[-1]
    assert re.fullmatch(r"A repaint of “(Apple|Banana)”", chosen.images[0][1])
    alone = list(studio.draw(Request(text="apple", steps=2)))[-1]
    assert "epaint" not in progress_html(alone) and alone.images[0][1] == "A picture"


def test_only_a_small_decoder_with_a_gallery_draws_over_it_unasked(studio, monkeypatch):
    small = Studio(studio.service)  # the decoder that ships
    assert small.from_gallery
    monkeypatch.setattr(FakeIndex, "counts", {"text": 3})
    assert not small.from_gallery
    monkeypatch.undo()
    assert not studio.from_gallery  # tiny, but nothing says that it is a sketch


def test_a_visitors_stop_ends_only_that_visitors_drawing(studio):
    mine, theirs = (studio.draw(Request(text="a dog", steps=1000), visitor) for visitor in ("me", "them"))
    next(mine), next(theirs)
    assert studio.stop("me") and not studio.stop("nobody")
    sentences = [frame.sentence for frame in mine]
    assert sentences[-1] == "Stopped."
    assert len(sentences) < 900
    assert next(theirs).sentence.startswith("Step")
    theirs.close()
    assert not studio._stops


def test_what_is_stopped_while_it_waits_for_its_turn_is_not_drawn(studio):
    studio.ask("me")
    assert studio.stop("me")
    assert [frame.sentence for frame in studio.draw(Request(text="a dog"), "me")] == ["Stopped."]


def test_who_waits_is_told_their_place_and_how_long_it_takes(studio, monkeypatch):
    monkeypatch.setattr(studio, "pace", 0.0)
    for visitor in ("first", "second", "third", "second"):  # who asks again goes to the end
        studio.ask(visitor)
    places = {visitor: studio.outlook(visitor, 100) for visitor in ("first", "second", "third")}
    assert places == {
        "first": "Your drawing is next …",
        "third": "1 drawing to go before yours …",
        "second": "2 drawings to go before yours …",
    }
    list(studio.draw(Request(text="a dog", steps=4, n_images=2), "first"))
    assert studio.pace > 0 and studio.outlook("third", 1) == (
        "Your drawing is next; it will take about 1 s, as fast as the last one …"
    )
    monkeypatch.setattr(studio, "pace", 0.25)
    assert "about 25 s" in studio.outlook("second", 100)
    for visitor in ("second", "third"):
        studio.forget(visitor)


def test_a_new_drawing_ends_the_one_before(studio):
    studio.ask("me")
    drawing = studio.draw(Request(text="a dog", steps=1000), "me")
    assert next(drawing).sentence.startswith("Step 1")
    studio.ask("me")
    assert [frame.sentence for frame in drawing][-1] == "Stopped."
    assert studio.stop("me")  # the new one, which still waits
    studio.forget("me")


def test_the_decoder_is_loaded_and_warm_before_anybody_asks(studio, monkeypatch):
    loads, threads = [], []
    monkeypatch.setattr(Generator, "from_pretrained", lambda *a, **k: loads.append(k) or studio._generator)
    monkeypatch.setattr("fusemix.generation.pipelines.resolve", lambda source, revision: Path(source))
    cold = Studio(studio.service, source="tiny")
    monkeypatch.setattr("demo.drawing.lower_priority", lambda: threads.append(threading.current_thread().name))
    drawn = []
    monkeypatch.setattr(studio._generator, "from_image_embeds", lambda *a, **k: drawn.append(k["steps"]) or [])
    with gr.Blocks() as blocks:
        build_generate_tab(cold.service, cold)
    assert not loads  # building the page waits for nothing
    (start,) = blocks.extra_startup_events
    asyncio.run(start())
    loading = next(t for t in threading.enumerate() if t.name == "fusemix-load-decoder")
    loading.join(20)
    assert cold.is_loaded and threads[0] == "fusemix-load-decoder"
    assert drawn == [1]
    assert [k["prompts"] for k in loads] == [False]  # the page takes none, so the text encoder need not stay


def test_a_decoder_that_cannot_be_loaded_in_the_background_is_noted_and_told_when_asked(tmp_path, caplog):
    studio = Studio(FakeService(), source=str(tmp_path))
    studio.load_in_background()
    for thread in threading.enumerate():
        if thread.name == "fusemix-load-decoder":
            thread.join(20)
    assert "could not be loaded in the background" in caplog.text
    with pytest.raises(gr.Error, match=re.escape(f"{tmp_path} holds no model_index.json")):
        list(pages(studio, Request(text="a dog")))


def test_the_bar_and_the_waveform_show_what_is_measured(studio, tmp_path):
    soundfile.write(tmp_path / "half.wav", np.r_[np.zeros(8000), np.full(8000, 0.5)], 16000)
    bars = [float(b) for b in re.findall(r'height="([\d.]+)" rx', waveform_html(str(tmp_path / "half.wav")))]
    assert len(bars) == 60
    assert bars[10] == 1.0
    assert bars[-10] == pytest.approx(38, abs=1)
    frames = list(pages(studio, Request(text="a dog", steps=4)))
    assert any('value="0.500"' in sentence for _, sentence, _ in frames)
    assert "<progress" not in frames[-1][1]


def test_unexpected_failures_are_noted_and_hidden(studio, monkeypatch, caplog):
    monkeypatch.setattr(studio._generator, "condition", lambda *a: 1 / 0)
    with pytest.raises(gr.Error, match="logged"):
        list(pages(studio, Request(text="a dog")))
    assert "ZeroDivisionError" in caplog.text


def test_widget_values_become_a_request():
    request = request_of("a.wav", None, None, 0.5, 20.0, 3.0, 10.0, None, 2.0, 6.0, True, 0.4, 0.2)
    assert request == Request(
        audio="a.wav", steps=20, noise_level=10, n_images=2, candidates=6, from_gallery=True, strength=0.4, steering=0.2
    )
    assert request.queries() == {"audio": "a.wav"}


def test_the_tab_builds_with_an_endpoint_and_its_own_queue(studio):
    with gr.Blocks() as blocks:
        build_generate_tab(studio.service, studio)
    (endpoint,) = [fn for fn in blocks.fns.values() if fn.api_name == "generate"]
    drawing = [fn for fn in blocks.fns.values() if fn.inputs == endpoint.inputs]
    assert len(drawing) == 2 + len(SPOKEN_EXAMPLES)  # the endpoint, Draw, and every example tapped
    assert {(fn.concurrency_id, fn.concurrency_limit) for fn in drawing} == {("generate", 1)}


@pytest.mark.slow
def test_every_example_begins_from_pictures_of_what_it_says():
    model = FusionModel.from_pretrained(ROOT / "checkpoints/default")
    index = EmbeddingIndex.load(ROOT / "demo/index", model_identity=model.identity)
    retriever = Retriever(model, {"audio": load_encoder(model.config.encoders["audio"]["name"])}, index)
    studio = Studio(Service(retriever))
    named = {"boat": "boat|sail|ship", "car": r"\bcar\b|vw beetle", "cake": "cake", "drum": "drum"}
    examples = offered_examples(studio)
    assert [label for _, label in examples][len(SPOKEN_EXAMPLES) :] == [name for _, name in SOUND_EXAMPLES]
    for path, label in examples:
        starts = studio.nearest(retriever.embed(audio=path), STARTS)
        wanted = next(pattern for noun, pattern in named.items() if noun in label)
        fitting = [bool(re.search(wanted, start.title.lower())) for start in starts]
        needed = 2 if "“" in label else STARTS  # of a spoken sentence the nearest two, of a named sound all
        assert len(starts) == STARTS and all(fitting[:needed]), (label, [s.title for s in starts])


@pytest.mark.parametrize(
    ("decoder", "expected"),
    [("tiny", "draws a picture of what it hears"), (None, "repaints the closest gallery pictures")],
)
def test_the_tab_says_what_comes_of_it(studio, decoder, expected):
    with gr.Blocks() as blocks:
        build_generate_tab(studio.service, Studio(studio.service, source=decoder, generator=studio._generator))
    assert expected in "".join(str(getattr(block, "value", "")) for block in blocks.blocks.values())


def test_without_a_decoder_the_tab_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr("demo.drawing.DEFAULT_DECODER", tmp_path / "none")
    monkeypatch.delenv("FUSEMIX_DECODER", raising=False)
    studio = Studio(FakeService())
    assert "There is no decoder" in studio.fault()
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
    assert heard_html(SimpleNamespace(hits={}, heard="a dog", doubt="")) == ""
