"""A visitor's own training: the library's trainer on small files of latents, and the tab around it."""

import json
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from demo.sessions import Visitors
from demo.tabs.train_your_own import EXAMPLE, SORRY, TrainingTab, curve, stage_html
from demo.training import Stage, Training
from fusemix.data.pairs import PairTable
from fusemix.encoders import DEFAULT_ENCODERS
from fusemix.media import MediaError
from fusemix.model.adapters import FusionModel
from scripts.release.training_example import chosen_rows

ROOT = Path(__file__).resolve().parents[2]
ME, THEM = SimpleNamespace(session_hash="me"), SimpleNamespace(session_hash="them")


@pytest.fixture
def files(tmp_path):
    """Two files of 120 pairs that share a hidden cause."""
    rng = np.random.default_rng(0)
    cause = rng.normal(size=(120, 6))
    sensor = (cause @ rng.normal(size=(6, 20)) + 0.1 * rng.normal(size=(120, 20))).astype(np.float32)
    words = (cause @ rng.normal(size=(6, 12)) + 0.1 * rng.normal(size=(120, 12))).astype(np.float32)
    np.save(tmp_path / "sensor.npy", sensor)
    save_file({"x": words}, tmp_path / "words.safetensors")
    return {"sensor": tmp_path / "sensor.npy", "words": tmp_path / "words.safetensors"}


@pytest.fixture
def training(tmp_path):
    return Training(tmp_path / "mine")


def ran(training, files, epochs=3, **options):
    training.arrive(files, link=False)
    return list(training.run(epochs, **options))


def test_a_checkpoint_that_loads_and_finds_partners_comes_out(training, files, tmp_path):
    stages = ran(training, files, epochs=8)
    last = stages[-1]
    assert last.done and [entry["epoch"] for entry in last.history] == list(range(1, 9))
    assert set(last.history[0]) == {"epoch", "sensor_to_words", "words_to_sensor"}
    assert max(entry["sensor_to_words"] for entry in last.history) > 0.5  # chance: about 0.03
    assert "held-out pairs" in last.sentence and "sensor to words" in last.sentence
    assert all(stage.forecast.startswith(("Go", "Stop")) for stage in stages[2:])
    assert "Before training: " in stage_html(last) and "among 24 items" in last.forecast
    assert 0 < stages[3].share <= stages[-2].share == 1.0
    with zipfile.ZipFile(training.download) as archive:
        archive.extractall(tmp_path)
    folder = tmp_path / "fusemix-checkpoint"
    model = FusionModel.from_pretrained(folder)
    assert model.config.latent_dims == {"sensor": 20, "words": 12}
    a = model.embed("sensor", torch.from_numpy(np.load(files["sensor"])))
    from safetensors.torch import load_file

    b = model.embed("words", load_file(files["words"])["x"])
    assert ((a @ b.T).argmax(dim=1) == torch.arange(120)).float().mean() > 0.6
    assert json.loads((folder / "train_config.json").read_text())["epochs"] == 8
    assert "recall@1" in (folder / "README.md").read_text()


def test_cancel_ends_the_closed_form_before_its_next_decomposition(training, files, monkeypatch):
    from fusemix.model import closed_form

    decompose, cancelled = closed_form.decompose, threading.Event()

    def slow(*arguments):
        assert cancelled.wait(60)
        return decompose(*arguments)

    monkeypatch.setattr(closed_form, "decompose", slow)
    monkeypatch.setattr(closed_form, "_store_views", None)  # would be called later, and fail
    training.arrive(files, link=False)
    for stage in training.run(3):
        if "closed form" in stage.sentence:
            training.stop()
            cancelled.set()
    assert stage.done and stage.sentence.startswith("Stopped before the first epoch")
    assert training.download is None and not training.busy


def test_without_the_closed_form_the_adapters_are_the_papers(training, files, tmp_path):
    assert ran(training, files, epochs=1, closed_form=False)[-1].done
    with zipfile.ZipFile(training.download) as archive:
        assert json.loads(archive.read("fusemix-checkpoint/config.json"))["closed_form_dim"] == 0


def test_training_leaves_the_number_of_threads_alone_and_works_off_the_main_thread(training, files):
    before, stages = torch.get_num_threads(), []
    thread = threading.Thread(target=lambda: stages.extend(ran(training, files, epochs=1)))
    thread.start()
    thread.join(60)
    assert stages[-1].done and torch.get_num_threads() == before


def test_a_cancel_keeps_the_best_epoch_so_far(training, files):
    training.arrive(files, link=False)
    stages = []
    for stage in training.run(100):
        stages.append(stage)
        if len(stage.history) == 2:
            training.stop()
    assert stages[-1].sentence.startswith("Stopped after epoch") and len(stages[-1].history) < 90
    assert training.download


def test_a_cancel_before_the_first_epoch_keeps_nothing(training, files):
    training.arrive(files, link=False)
    training.stop()
    *_, last = training.run(5)
    assert last.done and "nothing to keep" in last.sentence and training.download is None


def test_the_time_is_bounded(training, files, monkeypatch):
    monkeypatch.setattr("demo.training.MAX_SECONDS", 1e-9)
    assert "nothing to keep" in ran(training, files, epochs=100)[-1].sentence


def test_leaving_the_page_ends_the_training(training, files):
    training.arrive(files, link=False)
    stages = training.run(100)
    while not next(stages).history:
        pass
    stages.close()
    assert not training.busy and not (training.folder / "work").exists()
    training.delete()
    assert not training.folder.exists()


def test_a_new_run_replaces_the_old_checkpoint_and_nothing_happens_without_files(training, files):
    ran(training, files, epochs=1)
    assert list(training.run(1)) == [] and training.download
    training.arrive(files, link=False)
    stages = training.run(1)
    next(stages), next(stages)
    assert training.download is None
    for call in (lambda: training.arrive(files), lambda: next(training.run(1))):
        with pytest.raises(MediaError, match="already running"):
            call()
    stages.close()


def test_what_a_visitor_sent_is_named_here_too_and_that_name_goes_once_read(training, files):
    training.arrive(files)
    assert files["sensor"].exists() and len(list(training.folder.rglob("sensor.npy"))) == 1
    assert list(training.run(1))[-1].done
    assert not list(training.folder.rglob("sensor.npy"))


def save(path, array):
    np.save(path, array)
    return path


def two_tensors(path):
    save_file({"x": np.ones((120, 2)), "y": np.ones((1, 2))}, path)
    return path


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda f: save(f / "a.npy", np.ones((20_001, 2), "f4")), "the limit here is 20,000 of 4,096"),
        (lambda f: save(f / "a.npy", np.ones((60, 4097), "f4")), "the limit here is 20,000 of 4,096"),
        (lambda f: save(f / "a.npy", np.ones((60, 3), "f4")), "hold 60 and 120 latents"),
        (lambda f: save(f / "a.npy", np.full((120, 3), np.nan, "f4")), "a.npy has NaN or infinite values"),
        (lambda f: save(f / "a.npy", np.ones((120, 3), "i4")), "a.npy holds int32 values"),
        (lambda f: save(f / "a.npy", np.array([{}] * 120)), "a.npy is not a plain .npy array"),
        (lambda f: f / "gone.npy", "No file of latents at gone.npy"),
        (lambda f: two_tensors(f / "a.safetensors"), "send a file with one"),
    ],
)
def test_latents_that_cannot_be_used_are_a_sentence(training, files, tmp_path, make, sentence):
    path = make(tmp_path)
    with pytest.raises(MediaError, match=sentence) as raised:
        ran(training, {"other": path, "words": files["words"]})
    assert str(tmp_path) not in str(raised.value) and "--" not in str(raised.value)
    assert not training.busy


def test_too_few_pairs_are_a_sentence(training, tmp_path):
    paths = {name: save(tmp_path / f"{name}.npy", np.ones((20, 3), "f4")) for name in ("a", "b")}
    with pytest.raises(MediaError, match="hold 20 pairs; at least 50"):
        ran(training, paths)


@pytest.mark.parametrize("names", [("../x", "text"), ("", "text"), ("a b", "text"), ("text",)])
def test_names_that_cannot_be_used_are_a_sentence(training, names, tmp_path):
    with pytest.raises(MediaError, match="Name a modality|different names"):
        training.arrive({name: tmp_path / "x.npy" for name in names})


@pytest.mark.parametrize("epochs", [0, 101])
def test_epochs_are_bounded(training, files, epochs):
    with pytest.raises(MediaError, match="Train for 1 to 100 epochs"):
        ran(training, files, epochs=epochs)


@pytest.fixture
def tab(tmp_path):
    with gr.Blocks() as demo:
        made = TrainingTab(demo, Visitors(Training, tmp_path / "trainings"))
    made.demo = demo
    yield made
    for page in (ME, THEM):
        made.trainings.delete(page.session_hash)


def test_the_tab_shows_a_growing_curve_and_a_download_and_deletes_it(tab, files):
    first = tab.arrive("sensor", [str(files["sensor"])], " words ", [str(files["words"])], ME)
    assert first[tab.ready] and first[tab.cancel]["interactive"]
    pages = list(tab.train(True, 4, False, ME))
    curves = [page[tab.plot]["value"] for page in pages if tab.plot in page]
    assert len(curves[-1]) == 8 and set(curves[-1]["direction"]) == {"sensor to words", "words to sensor"}
    assert pages[-1][tab.panel]["visible"] and not pages[-1][tab.cancel]["interactive"]
    legends = [page[tab.legend] for page in pages if tab.legend in page]
    assert legends[0] == "" and legends[-1].count("<i style") == 2 and "sensor to words" in legends[-1]
    path = tab.trainings.of("me").download
    assert str(path) in pages[-1][tab.download] and 'download="fusemix-checkpoint.zip"' in pages[-1][tab.download]
    with pytest.raises(MediaError):
        tab.trainings.of("them")
    page = tab.remove(ME)
    assert not path.exists() and page[tab.download] == "" and not page[tab.panel]["visible"]


def test_pictures_and_captions_of_your_files_are_trained_on_and_searched_with_the_result(files, tmp_path):
    adopted, pairs = [], {"image": np.load(files["sensor"]), "text": load_file(files["words"])["x"]}
    mine = SimpleNamespace(pairs=lambda: pairs, adopt=adopted.append)
    few = SimpleNamespace(pairs=lambda: {modality: rows[:49] for modality, rows in pairs.items()})
    corpora = SimpleNamespace(of={"me": mine, "them": few}.__getitem__)
    with gr.Blocks() as demo:
        tab = TrainingTab(demo, Visitors(Training, tmp_path / "trainings"), corpora)
    refused = tab.arrive_own(THEM)
    assert "holds 49 pictures with a caption, and at least 50" in refused[tab.progress] and not refused[tab.ready]
    assert tab.arrive_own(ME)[tab.ready] == "own"
    pages = list(tab.train("own", 3, False, ME))
    assert "is now searched with this model" in pages[-1][tab.progress]
    assert adopted == [tab.trainings.of("me").model] and adopted[0].modalities == ("image", "text")
    tab.arrive("a", [str(files["sensor"])], "b", [str(files["words"])], ME)
    assert "is now searched" not in list(tab.train(True, 3, False, ME))[-1][tab.progress] and len(adopted) == 1
    tab.trainings.delete("me")


def test_failures_of_the_tab_are_one_sentence(tab, files, monkeypatch, caplog):
    assert "Upload two files" in tab.arrive("a", None, "b", None, ME)[tab.progress]
    refused = tab.arrive("a", [str(files["sensor"])], "a", [str(files["words"])], ME)
    assert "different names" in refused[tab.progress] and refused[tab.ready] is False
    assert all(tab.progress not in page for page in tab.train(False, 3, False, ME))
    tab.arrive("a", [str(files["sensor"])], "b", [str(files["sensor"].with_name("gone.npy"))], ME)
    assert "No file of latents at gone.npy" in list(tab.train(True, 3, False, ME))[-1][tab.progress]
    assert "whole number" in list(tab.train(True, 2.5, False, ME))[-1][tab.progress]
    assert "Stopping" in tab.stop(ME)
    monkeypatch.setattr(Training, "run", lambda *_, **__: 1 / 0)
    assert SORRY in list(tab.train(True, 3, False, ME))[-1][tab.progress]
    assert "ZeroDivisionError" in caplog.text


def test_training_has_a_queue_of_its_own_and_no_endpoint(tab):
    by_name = {fn.fn.__name__: fn for fn in tab.demo.fns.values()}
    assert (by_name["train"].concurrency_id, by_name["train"].concurrency_limit) == ("train", 1)
    assert {fn.api_visibility for name, fn in by_name.items() if name != "leave"} == {"private"}


def test_the_example_is_what_the_encoders_make_of_the_gallery(tab, encoders):
    table = PairTable.read(ROOT / "demo/gallery/pairs.csv")
    rows = chosen_rows(table, 1500)
    for modality, path in EXAMPLE.items():
        latents = np.load(path)
        assert latents.shape == (1500, encoders[modality].dim) and DEFAULT_ENCODERS[modality]
        for row in (0, 700, 1499):
            expected = encoders[modality].encode([table.value(modality, rows[row])])[0]
            np.testing.assert_allclose(latents[row], expected, rtol=2e-2, atol=5e-3)
    assert tab.arrive_example(ME)[tab.ready] and all(path.is_file() for path in EXAMPLE.values())


def test_markup_is_harmless_and_the_bar_ends():
    assert "<b>" not in stage_html(Stage("<b>"))
    assert 'value="0.500"' in stage_html(Stage("x", 0.5)) and "<progress" not in stage_html(Stage("x", done=True))
    assert list(curve(Stage("")).columns) == ["epoch", "recall@1", "direction"]


def test_a_training_goes_after_its_lifetime(files, tmp_path):
    kept = Visitors(Training, tmp_path / "trainings", lifetime_s=0.2)
    training = kept.open("me")
    until = time.monotonic() + 10
    while training.folder.exists() and time.monotonic() < until:
        time.sleep(0.02)
    assert not training.folder.exists()
    with pytest.raises(MediaError, match="no longer here"):
        training.arrive(files)
