"""ZeroGPU, with a stand-in for the package ``spaces`` that records who imports it when, and what borrows a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest

from demo import zero_gpu
from demo.drawing import CONDITIONER_VARIABLE, DEFAULT_DECODER, STABLE_UNCLIP, Studio
from demo.tabs.sound_to_picture import build_generate_tab

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {"steps": 25, "n_images": 4}

SPACES = """
import json, os, pickle, sys, threading

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
            sent, made = pickle.loads(pickle.dumps(values)), []
            thread = threading.Thread(target=lambda: made.append(pickle.dumps(function(*sent))))
            thread.start()
            thread.join()
            return pickle.loads(made[0])
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
        *("import", "loaded", "decorated", "launch", "searched", "borrowed", "drawn")
    ]
    imported, loaded, _, launched, _, borrowed, drawn = events
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
                return function(*values)

            return borrowed

        return decorate

    monkeypatch.setitem(sys.modules, "spaces", SimpleNamespace(GPU=gpu))
    return record


def test_a_gpu_is_asked_for_as_long_as_steps_and_pictures_take(lent):
    for small, settings in [(True, SETTINGS), (False, SETTINGS), (False, {"steps": 100, "n_images": 16})]:
        assert zero_gpu.borrowing(lambda settings: "made", is_small=small)(settings) == "made"
    assert lent.seconds == [20, 40, 120]


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
        zero_gpu.borrowing(lambda settings: None, is_small=True)(SETTINGS)
    assert str(told.value) == said and message in caplog.text


def test_what_cannot_be_drawn_is_said_as_without_a_gpu(lent):
    def paint(settings):
        raise ValueError("steps must be 1 to 1000, got 0.")

    with pytest.raises(ValueError, match=r"^steps must be 1 to 1000, got 0\.$"):
        zero_gpu.borrowing(paint, is_small=True)(SETTINGS)


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
    monkeypatch.setattr("fusemix.generation.generator.Generator.from_pretrained", refuse)
    service = SimpleNamespace(retriever=SimpleNamespace(model=None, encoders={}), understood=frozenset({"text"}))
    with gr.Blocks() as page:
        build_generate_tab(service, Studio(service, source="owner/name"))
    shown = "".join(str(getattr(block, "value", "")) for block in page.blocks.values())
    assert "Nothing can be drawn here. 'owner/name' could not be loaded" in shown and not page.fns


@pytest.mark.parametrize(
    ("gpu", "conditioner", "source"),
    [
        (True, "folder", STABLE_UNCLIP),
        (True, None, str(DEFAULT_DECODER)),
        (False, "folder", str(DEFAULT_DECODER)),
    ],
)
def test_auto_takes_stable_diffusion_where_it_can(monkeypatch, gpu, conditioner, source):
    monkeypatch.setenv("FUSEMIX_DECODER", "auto")
    monkeypatch.setenv(CONDITIONER_VARIABLE, conditioner or "")
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    asked = []
    monkeypatch.setattr(
        "fusemix.generation.generator.Generator.from_pretrained",
        lambda source, model, **more: asked.append((source, more["conditioner"], more["device"])),
    )
    Studio(SimpleNamespace(retriever=SimpleNamespace(model=None))).generator()
    assert asked == [(source, "folder" if source == STABLE_UNCLIP else None, "cuda" if gpu else "cpu")]
