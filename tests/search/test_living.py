"""The index of a folder follows it: only what changed is encoded, and no kill leaves it broken."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from fusemix.cli import index as index_command
from fusemix.cli import search as search_command
from fusemix.encoders.base import Encoder
from fusemix.files import read_json
from fusemix.media import load_audio, load_image
from fusemix.model.adapters import FusionModel
from fusemix.model.config import ModelConfig
from fusemix.search.index import EmbeddingIndex
from fusemix.search.living import Changes, FolderIndex
from tests.conftest import tone

COLOURS = ("red", "green", "blue", "white", "navy", "olive")


class Colours(Encoder):
    """The mean colour of a picture, and a count of what was encoded."""

    name, modality, dim, revision, fingerprint = "colours", "image", 3, "1", "mean colour"

    def __init__(self):
        self.seen = 0

    def prepare(self, item):
        return np.asarray(load_image(item), np.float32).mean(axis=(0, 1)) + 1

    def encode_prepared(self, prepared):
        self.seen += len(prepared)
        return np.stack(prepared)


class Pitch(Colours):
    """The loudest frequencies of a sound."""

    name, modality, dim, fingerprint = "pitch", "audio", 64, "spectrum"

    def prepare(self, item):
        return np.abs(np.fft.rfft(load_audio(item)[:8000]))[: 64 * 16].reshape(64, 16).sum(axis=1).astype(np.float32)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return FusionModel(ModelConfig(latent_dims={"image": 3, "audio": 64}, embed_dim=8)).eval()


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "trip").mkdir(parents=True)
    for number, colour in enumerate(COLOURS[:4]):
        Image.new("RGB", (8, 8), colour).save(folder / ("trip" if number % 2 else ".") / f"{colour}.png")
    return folder


def opened(model, photos, **more):
    return FolderIndex(model, {"image": Colours(), "audio": Pitch()}, photos, photos.parent / "index", **more)


def paths(model, photos, kind="image"):
    index = EmbeddingIndex.load(photos.parent / "index", model_identity=model.identity)
    return [item["path"] for item in index.items(kind)]


def test_only_what_is_new_changed_moved_or_deleted_is_worked_on(model, photos):
    assert opened(model, photos).update() == Changes(new=4, encoded=4)
    living = opened(model, photos)
    assert living.update() == Changes(same=4) and living.encoders["image"].seen == 0
    (photos / "red.png").rename(photos / "trip" / "crimson.png")
    (photos / "blue.png").unlink()
    Image.new("RGB", (9, 9), "black").save(photos / "trip" / "green.png")
    shutil.copy(photos / "trip" / "white.png", photos / "copy.png")
    os.utime(photos / "trip" / "white.png")
    Image.new("RGB", (8, 8), "gold").save(photos / "gold.png")
    (photos / "broken.jpg").write_bytes(b"no picture")
    changes = living.update()
    assert changes.skipped.keys() == {"broken.jpg"} and "not a picture" in changes.skipped["broken.jpg"]
    counts = {name: value for name, value in vars(changes).items() if name != "skipped"}
    assert counts == {"new": 2, "changed": 1, "moved": 1, "deleted": 1, "same": 1, "encoded": 2}
    assert living.encoders["image"].seen == 2
    assert sorted(paths(model, photos)) == [
        "copy.png",
        "gold.png",
        "trip/crimson.png",
        "trip/green.png",
        "trip/white.png",
    ]
    again = opened(model, photos).update()
    assert (again.same, again.any, again.encoded) == (5, False, 0)


def test_an_updated_index_holds_what_one_from_scratch_would(model, photos):
    opened(model, photos, dtype="float32").update()
    (photos / "red.png").rename(photos / "a.png")
    Image.new("RGB", (8, 8), "navy").save(photos / "trip" / "green.png")
    opened(model, photos, dtype="float32").update()
    updated = EmbeddingIndex.load(photos.parent / "index", model_identity=model.identity)
    shutil.rmtree(photos.parent / "index")
    opened(model, photos, dtype="float32").update()
    fresh = EmbeddingIndex.load(photos.parent / "index", model_identity=model.identity)
    order = [np.argsort([item["path"] for item in index.items("image")]) for index in (updated, fresh)]
    assert [updated.items("image")[i] for i in order[0]] == [fresh.items("image")[i] for i in order[1]]
    np.testing.assert_allclose(updated.embeddings("image")[order[0]], fresh.embeddings("image")[order[1]], atol=1e-6)


def test_a_long_sound_is_kept_by_windows_and_a_hit_names_the_second(model, photos):
    parts = [tone(hertz, seconds=15) for hertz in (200, 1000)] + [np.zeros(15 * 16_000), tone(1800, seconds=6)]
    soundfile.write(photos / "long.wav", np.concatenate(parts), 16_000)
    soundfile.write(photos / "short.wav", tone(500, seconds=1), 16_000)
    living = opened(model, photos)
    assert living.update().new == 6
    index = EmbeddingIndex.load(photos.parent / "index", model_identity=model.identity)
    spans = {item["id"]: (item.get("start_s"), item.get("end_s")) for item in index.items("audio")}
    assert spans == {
        "long.wav#0": (0, 15), "long.wav#15": (15, 30), "long.wav#45": (45, 51), "short.wav": (None, None),
    }  # fmt: skip  # the silent window is left out
    pitch = Pitch()
    query = model.embed("audio", pitch.encode([(16_000, tone(1800, seconds=2))]))
    assert index.search("audio", query, top_k=1)[0][0].item["start_s"] == 45
    (photos / "long.wav").rename(photos / "talk.wav")
    assert living.update().moved == 1 and "talk.wav#45" in {item["id"] for item in
        EmbeddingIndex.load(photos.parent / "index", model_identity=model.identity).items("audio")}  # fmt: skip


CHILD = """
import os, signal, sys
import fusemix.files, fusemix.search.living as living
from fusemix.model.adapters import FusionModel
from tests.search.test_living import Colours
left = int(sys.argv[3])
replace = os.replace
def dying(*given):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*given)
os.replace = dying
living._BATCH, living.SAVE_EVERY_S = 1, 0.0  # save after every file
living.FolderIndex(FusionModel.from_pretrained(sys.argv[1]), {"image": Colours()}, sys.argv[2], sys.argv[4]).update()
"""


@pytest.mark.slow  # three processes
def test_kill_9_at_any_write_leaves_the_old_index_or_the_new_one(model, photos, tmp_path):
    folder = model.save_pretrained(tmp_path / "model")
    opened(model, photos).update()
    before = set(paths(model, photos))
    for colour in COLOURS[4:]:
        Image.new("RGB", (8, 8), colour).save(photos / f"{colour}.png")
    kills = 0
    for writes in (0, 1, 3):
        arguments = [str(folder), str(photos), str(writes), str(photos.parent / "index")]
        root = Path(__file__).resolve().parents[2]
        done = subprocess.run([sys.executable, "-c", CHILD, *arguments], cwd=root, env=os.environ | {"PYTHONPATH": "."})
        kills += done.returncode == -9
        assert before <= set(paths(model, photos))
    assert kills == 3
    assert opened(model, photos).update().skipped == {} and len(paths(model, photos)) == 6
    folder = photos.parent / "index"
    assert {path.name for path in folder.iterdir()} == {"index.json", *read_json(folder / "index.json")["sha256"]}


def test_watching_follows_the_folder_until_it_is_stopped(model, photos):
    living, found, stop = opened(model, photos), [], []
    thread = Thread(
        target=living.watch, args=(found.append,), kwargs={"every_s": 0.05, "should_stop": lambda: bool(stop)}
    )
    thread.start()
    waited = time.monotonic() + 20
    while not found and time.monotonic() < waited:
        time.sleep(0.02)
    (photos / "red.png").unlink()
    while len(found) < 2 and time.monotonic() < waited:
        time.sleep(0.02)
    stop.append(1)
    thread.join(5)
    assert [(change.new, change.deleted) for change in found] == [(4, 0), (0, 1)]


def test_one_command_searches_a_folder_of_photos(checkpoint, pairs, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("red.png", "green.png", "blue.png", "green.wav", "blue.wav", "hum.wav"):
        shutil.copy(pairs.parent / name, photos)
    asked = ["--checkpoint", str(checkpoint), "--folder", str(photos), "--text", "a red square"]
    assert search_command.main(asked) == 0
    first = capsys.readouterr()
    assert "6 files encoded" in first.err and "red.png" in first.out and "hum.wav" in first.out
    assert search_command.main(asked) == 0
    assert "nothing new, 6 unchanged; 0 files encoded" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["{photos}"], "give --out, without --index and --bank"),
        (["{photos}", "--pairs", "x.csv", "--out", "i"], "a folder of files or a table with --pairs: one of them"),
        (["--pairs", "x.csv", "--out", "i", "--watch"], "--watch follows a folder of files"),
        (["{photos}/none", "--out", "{photos}/i"], "There is no folder"),
        (["{photos}", "--out", "{index}"], "was not made of a folder; choose another one"),
    ],
)
def test_a_wrong_use_is_one_sentence(checkpoint, photos, pairs, index_folder, capsys, arguments, sentence):
    if "{index}" in arguments:
        photos = pairs.parent
    given = [word.format(photos=photos, index=index_folder) for word in arguments]
    assert index_command.main([*given, "--checkpoint", str(checkpoint)]) == 2
    assert sentence in capsys.readouterr().err
