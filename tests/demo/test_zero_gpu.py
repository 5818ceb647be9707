"""ZeroGPU, with a stand-in for the package ``spaces`` that records who imports it when, and what borrows a GPU."""

import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest
import torch

from demo import zero_gpu
from demo.drawing import CONDITIONER_VARIABLE, DEFAULT_DECODER, STABLE_UNCLIP, Request, Studio
from demo.tabs.sound_to_picture import build_generate_tab, pages
from fusemix.generation.generator import Generator
from fusemix.generation.sampling import Cancelled
from tests.demo.test_sound_to_picture import DOG, FakeService
from tests.generation.test_generator import tiny_small_pipeline

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {"steps": 25, "n_images": 4}

SPACES = """
import json, os, pickle, sys

def note(**values):
    with open(os.environ["SPACES_LOG"], "a") as log:
        print(json.dumps(values), file=log)

note(event="import", before=sorted({"gradio", "torch", "numpy"} & set(sys.modules)))

def GPU(duration):
    def decorate(function):
        note(event="decorated")
        def borrowed(*values):
            from gradio.context import LocalContext
            asked = LocalContext.request.get(None) is not None
            note(event="borrowed", seconds=duration(*values), request=asked, values=[type(v).__name__ for v in values])
            for value in function(*pickle.loads(pickle.dumps(values))):
                yield pickle.loads(pickle.dumps(value))
        return borrowed
    return decorate
"""
DRIVER = """
import app
import gradio, spaces, torch
from accelerate import Accelerator
from fusemix.generation.generator import Generator
from gradio_client import Client

torch.cuda.is_available = lambda: True  # as on ZeroGPU, also outside of the calls that borrow one
load, launch = Generator.from_pretrained, gradio.Blocks.launch

def loaded(*values, device, **more):
    spaces.note(event="loaded", device=device)
    return load(*values, device="cpu", **more)

def launched(self, **options):
    spaces.note(event="launch", trains_on=Accelerator().device.type)
    _, address, _ = launch(self, prevent_thread_lock=True, quiet=True, **options)
    client = Client(address, verbose=False)
    client.predict("a sailing boat", 2, api_name="/search_text")
    spaces.note(event="searched")
    ask = [None, "a sailing boat", None, 1, 5, 3, 0, 0, 1, 1, True, 0.5, 0.1]
    _, sentence, pictures = client.predict(*ask, api_name="/generate")
    spaces.note(event="drawn", sentence=sentence, pictures=len(pictures))
    self.close()

Generator.from_pretrained, gradio.Blocks.launch = loaded, launched
raise SystemExit(app.main([]))
"""


@pytest.mark.slow
def test_the_app_as_zero_gpu_starts_it(tmp_path):
    (tmp_path / "spaces.py").write_text(SPACES)
    env = os.environ | {
        "PYTHONPATH": f"{tmp_path}:{ROOT}",
        "SPACES_ZERO_GPU": "true",
        "SPACES_LOG": str(tmp_path / "log"),
        "GRADIO_TEMP_DIR": str(tmp_path),
    }
    done = subprocess.run([sys.executable, "-c", DRIVER], env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [event.pop("event") for event in events] == [
        *("import", "loaded", "decorated", "decorated", "launch", "searched", "borrowed", "drawn")
    ]
    imported, loaded, _, _, launched, _, borrowed, drawn = events
    assert imported == {"before": []}
    assert loaded == {"device": "cuda"} and launched == {"trains_on": "cpu"}
    assert borrowed["request"] and borrowed["seconds"] == 11  # whose quota it is; 10 s and 5 steps
    assert borrowed["values"] == ["Tensor", "Tensor", "float", "list", "dict"]
    assert drawn["pictures"] == 1 and "1 repaint" in drawn["sentence"]


@pytest.fixture
def lent(monkeypatch):
    """A stand-in in this process: the durations asked for, and an error to meet."""
    record = SimpleNamespace(seconds=[], fault=None)

    def gpu(duration):
        def decorate(function):
            def borrowed(*values):
                record.seconds.append(duration(*values))
                if record.fault is not None:
                    raise record.fault
                yield from function(*values)

            return borrowed

        return decorate

    monkeypatch.setitem(sys.modules, "spaces", SimpleNamespace(GPU=gpu))
    return record


def test_a_gpu_is_asked_for_as_long_as_steps_and_pictures_take(lent):
    for small, settings in [(True, SETTINGS), (False, SETTINGS), (False, {"steps": 100, "n_images": 16})]:
        duration = partial(zero_gpu.seconds, is_small=small)
        assert zero_gpu.borrowing(lambda on_step, settings: "made", duration)(None, settings) == "made"
    assert lent.seconds == [20, 40, 120]
    assert (zero_gpu.seconds_to_embed(1000), zero_gpu.seconds_to_embed(100_000)) == (30, 120)


def test_steps_come_back_while_it_draws_and_a_visitor_who_stops_ends_it(lent):
    taken, seen = [], []

    def work(on_step, count):
        for step in range(count):
            taken.append(step)
            if on_step(step + 1, count, None):
                return "stopped"
            time.sleep(0.02)
        return "made"

    borrowed = zero_gpu.borrowing(work, lambda count: 10)
    assert borrowed(lambda *progress: seen.append(progress), 3) == "made"
    assert seen == [(1, 3, None), (2, 3, None), (3, 3, None)] and taken == [0, 1, 2]
    with pytest.raises(Cancelled):
        borrowed(lambda done, total, preview: done == 2, 1000)
    assert len(taken) < 50  # the other process has stopped as well


@pytest.mark.parametrize(
    ("title", "message", "said"),
    [  # titles and messages of spaces 0.51.3
        ("ZeroGPU quota exceeded", "You have exceeded your GPU quota (60s requested vs. 0s left)", zero_gpu.QUOTA),
        ("ZeroGPU pending credits exceeded", "…", zero_gpu.QUOTA),
        ("ZeroGPU quota exceeded", "No GPU was available after 60s. Try …", zero_gpu.BUSY),
        ("ZeroGPU queue timeout", "No GPU was available after 60s <a>…</a>", zero_gpu.BUSY),
        ("ZeroGPU client error", "No GPU was available", zero_gpu.BUSY),
        (
            "ZeroGPU illegal duration",
            "The requested GPU duration is larger than the maximum allowed",
            zero_gpu.TOO_LONG,
        ),
        ("ZeroGPU worker error", "GPU task aborted", zero_gpu.LOST),
        ("ZeroGPU worker error", "RuntimeError", zero_gpu.LOST),
    ],
)
def test_without_a_gpu_the_visitor_is_told_why_in_a_sentence_or_two(lent, title, message, said, caplog):
    lent.fault = gr.Error(message, title=title)
    with pytest.raises(ValueError) as told:
        zero_gpu.borrowing(lambda on_step, settings: None, lambda settings: 1)(None, SETTINGS)
    assert str(told.value) == said and message in caplog.text
    assert isinstance(told.value, zero_gpu.NoGpu) == (said != zero_gpu.TOO_LONG)  # asking for less helps there


def test_what_cannot_be_drawn_is_said_as_without_a_gpu(lent):
    def paint(on_step, settings):
        raise ValueError("steps must be 1 to 1000, got 0.")

    with pytest.raises(ValueError, match=r"^steps must be 1 to 1000, got 0\.$"):
        zero_gpu.borrowing(paint, lambda settings: 1)(None, SETTINGS)


@pytest.mark.parametrize("value", ["1", "true", "True"])
def test_zero_gpu_is_what_the_environment_says(monkeypatch, value):
    monkeypatch.delenv(zero_gpu.VARIABLE, raising=False)
    assert not zero_gpu.on_zero_gpu()
    monkeypatch.setenv(zero_gpu.VARIABLE, value)
    assert zero_gpu.on_zero_gpu()
    monkeypatch.setenv(zero_gpu.VARIABLE, "false")
    assert not zero_gpu.on_zero_gpu()


def test_a_decoder_that_cannot_be_loaded_there_leaves_the_page_without_drawing(monkeypatch, lent):
    def refuse(*_, **__):
        raise FileNotFoundError("'owner/name' could not be loaded from the Hugging Face Hub.")

    monkeypatch.setenv(zero_gpu.VARIABLE, "true")
    monkeypatch.setattr("fusemix.generation.pipelines.resolve", refuse)
    service = SimpleNamespace(retriever=SimpleNamespace(model=None, encoders={}), understood=frozenset({"text"}))
    with gr.Blocks() as page:
        build_generate_tab(service, Studio(service, source="owner/name"))
    shown = "".join(str(getattr(block, "value", "")) for block in page.blocks.values())
    assert "Nothing can be drawn here. 'owner/name' could not be loaded" in shown and not page.fns


@pytest.mark.parametrize(
    ("gpu", "hub", "source"),
    [(True, True, STABLE_UNCLIP), (True, False, str(DEFAULT_DECODER)), (False, True, str(DEFAULT_DECODER))],
)
def test_stable_diffusion_draws_where_there_are_a_gpu_and_the_hub(monkeypatch, gpu, hub, source, caplog):
    def model_info(self, repo_id, timeout):
        if not hub:
            raise ConnectionError("no network")

    monkeypatch.delenv("FUSEMIX_DECODER", raising=False)
    monkeypatch.setenv(CONDITIONER_VARIABLE, "folder")
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr("fusemix.generation.pipelines.resolve", lambda source, revision: Path(source))
    asked = []
    monkeypatch.setattr(
        "fusemix.generation.generator.Generator.from_pretrained",
        lambda folder, model, **more: asked.append((str(folder), more["conditioner"], more["device"])),
    )
    Studio(SimpleNamespace(retriever=SimpleNamespace(model=None))).generator()
    assert asked == [(source, "folder" if source == STABLE_UNCLIP else None, "cuda" if gpu else "cpu")]
    assert ("so the small decoder draws" in caplog.text) == (gpu and not hub)


@pytest.fixture
def stable(clip_decoder, small_model, picture_index, own_cache):
    """A Studio with a tiny Stable unCLIP, which has no conditioner yet."""
    service = FakeService()
    service.retriever.model, service.retriever.index = small_model, picture_index
    return Studio(service, str(clip_decoder), device="cpu")


def test_the_first_drawing_fits_the_conditioner_where_there_is_a_gpu(stable, lent, monkeypatch):
    refused = stable.draw(Request(text="a dog", steps=2))
    with pytest.raises(ValueError, match="needs a conditioner.*fusemix conditioner.*FUSEMIX_CONDITIONER"):
        list(refused)
    stable.device = "cuda:0"  # pretended; the networks stay where they are
    monkeypatch.setattr("fusemix.generation.pipelines.StableUnCLIPImg2ImgPipeline.to", lambda self, device: self)
    monkeypatch.setattr("fusemix.generation.pipelines.default_dtype", lambda device: torch.float32)
    stable.load_for_zero_gpu()
    sentences = [frame.sentence for frame in stable.draw(Request(text="a dog", steps=2, audio=DOG))]
    assert sentences[0].startswith("Preparing, once") and sentences[-1].startswith("1 picture in")
    assert "Step 2 of 2" in sentences and lent.seconds == [12, 11]  # CLIP, then two steps
    assert "asks for a shared GPU, for 40 s" in stable.label
    assert "It has no map for sounds of their own; that of words is used." in stable.label
    again = [frame.sentence for frame in stable.draw(Request(text="a dog", steps=2))]
    assert not any(sentence.startswith("Preparing") for sentence in again) and lent.seconds == [12, 11, 11]


def test_without_a_gpu_the_small_decoder_is_offered_and_draws(stable, lent, monkeypatch):
    small = Studio(stable.service, source="tiny", generator=Generator(tiny_small_pipeline(8)))
    monkeypatch.setitem(stable.__dict__, "small", small)
    monkeypatch.setattr(stable, "generator", lambda: stable.small.generator())
    stable.borrowed = zero_gpu.borrowing(lambda on_step, *_: [], lambda *_: 1)
    lent.fault = gr.Error("You have exceeded your quota", title="ZeroGPU quota exceeded")
    with pytest.raises(gr.Error, match="used up.*Or switch on “Draw with the small decoder” in the settings"):
        list(pages(stable, Request(text="a dog", steps=2)))
    *_, (_, sentence, pictures) = pages(stable, Request(text="a dog", steps=2, small=True))
    assert "1 picture in" in sentence and len(pictures) == 1
    for stopped, said in ((False, "1 picture in"), (True, "Stopped.")):
        stable.ask("me")  # as the page does
        assert not stopped or stable.stop("me")
        *_, frame = stable.draw(Request(text="a dog", steps=2, small=True), "me")
        assert said in frame.sentence and not stable._stops and not small._stops
