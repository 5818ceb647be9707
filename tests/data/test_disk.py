"""A full disk, a read-only folder, damaged and lying stores: one sentence each, and nothing is overwritten."""

import importlib.util
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fusemix.data.latent_store import LatentStore
from fusemix.data.latent_writer import write_latents
from fusemix.files import sole_writer, write_atomic
from fusemix.model.adapters import FusionModel
from fusemix.model.config import ModelConfig
from fusemix.training import trainer as train_module

ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20


def load(script):
    spec = importlib.util.spec_from_file_location(script, ROOT / "scripts" / f"{script}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def call(capsys, monkeypatch):
    """Run a script's main: (exit code, what it said)."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # the scripts' handlers are not for the test's process

    def run(script, *arguments):
        code = load(script).main([str(argument) for argument in arguments])
        return code, capsys.readouterr().err

    return run


@pytest.fixture
def disk(tmp_path):
    """A disk of one's own: ``size(bytes)`` makes or changes it, ``read_only()`` locks it."""
    folder = tmp_path / "disk"
    folder.mkdir()

    class Disk:
        path, made = folder, False

        def size(self, count):
            options = f"remount,rw,size={count}" if self.made else f"size={count}"
            done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True)
            if done.returncode:
                pytest.skip("this machine lets tests mount no disk")
            self.made = True

        def read_only(self):
            subprocess.run(["mount", "-o", "remount,ro", folder], check=True)

    disk = Disk()
    yield disk
    if disk.made:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def train(tmp_path, call):
    """scripts/train.py on 200 toy pairs, four epochs."""
    rng = np.random.default_rng(0)
    for name, dim in (("image", 64), ("text", 48)):
        values = rng.normal(size=(200, dim)).astype(np.float32)
        write_latents(tmp_path / name, iter(np.split(values, 2)), modality=name, name=f"toy-{name}")
    latents = [f"{name}={tmp_path / name}" for name in ("image", "text")]
    options = ("--epochs", 4, "--batch-size", 64, "--embed-dim", 32, "--val-fraction", 0.2)
    return lambda out, *more: call("train", "--latents", *latents, "--out", out, *options, *more)


@pytest.fixture
def extract(tmp_path, call):
    """scripts/extract.py on 300 short texts, in shards of 100."""
    pd.DataFrame({"text": [f"dog {i}" for i in range(300)]}).to_csv(tmp_path / "pairs.csv", index=False)
    options = ("--pairs", tmp_path / "pairs.csv", "--column", "text", "--encoder", "minilm-l6")
    return lambda out: call("extract", *options, "--out", out)


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr("fusemix.data.extract.SHARD_ITEMS", 100)


def refused(answer, *words):
    code, said = answer
    assert code == 2
    errors = said[said.index("error:") :].strip().splitlines()
    assert len(errors) == 1 and "Traceback" not in said, said
    for word in words:
        assert word in errors[0]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def stop_after(monkeypatch, steps):
    """Make the training script stop itself after some steps, as a signal does."""
    counted, whole = iter(range(steps)), train_module.train

    def stopping(*args, **options):
        return whole(*args, **options | {"should_stop": lambda: next(counted, None) is None})

    monkeypatch.setattr(train_module, "train", stopping)


def test_training_on_a_full_disk_keeps_its_state_and_goes_on_when_there_is_room(disk, train, monkeypatch, tmp_path):
    disk.size(16 * MIB)
    out = disk.path / "run"
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        assert train(out)[0] == 130
    before = contents(out)
    assert "training_state.pt" in before
    filler = disk.path / "filler"
    with open(filler, "wb", buffering=0) as handle, pytest.raises(OSError, match="No space"):
        while True:
            handle.write(bytes(4096))
    refused(train(out), str(out / "training_state.pt"), "No space left on device", "free some space")
    assert contents(out) == before
    filler.unlink()
    assert train(out)[0] == 0
    assert train(tmp_path / "whole")[0] == 0
    assert FusionModel.from_pretrained(out).identity == FusionModel.from_pretrained(tmp_path / "whole").identity


def test_training_into_a_read_only_folder(disk, train, monkeypatch):
    disk.size(16 * MIB)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        assert train(disk.path / "run")[0] == 130
    disk.read_only()
    before = contents(disk.path / "run")
    for out in (disk.path / "run", disk.path / "new"):
        refused(train(out), str(out), "Read-only file system", "choose a folder that you may write to")
    assert contents(disk.path / "run") == before


def test_a_file_where_the_folder_should_be(train, extract, tmp_path):
    (tmp_path / "file").write_text("mine")
    for command in (train, extract):
        for out in (tmp_path / "file", tmp_path / "file" / "below"):
            refused(command(out), str(out), "a file lies where a folder is needed")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.usefixtures("small_shards")
def test_extraction_on_a_full_disk_keeps_its_shards_and_goes_on_when_there_is_room(disk, extract, tmp_path):
    disk.size(400_000)  # two shards of 154 kB fit, three do not
    out = disk.path / "store"
    refused(extract(out), str(out / "latents-00002.npy"), "No space left on device", "free some space")
    kept = {name: value for name, value in contents(out).items() if name.endswith(".npy")}
    assert set(kept) == {"latents-00000.npy", "latents-00001.npy"}
    disk.size(MIB)
    assert extract(out)[0] == 0
    assert kept.items() <= contents(out).items()
    assert extract(tmp_path / "whole")[0] == 0
    np.testing.assert_array_equal(LatentStore.open(out).all(), LatentStore.open(tmp_path / "whole").all())


def test_extraction_into_a_read_only_folder(disk, extract):
    disk.size(MIB)
    disk.read_only()
    refused(extract(disk.path / "store"), "Read-only file system", "choose a folder that you may write to")


@pytest.mark.parametrize("script", ["train", "extract"])
def test_files_that_may_not_grow_are_refused_like_a_full_disk(script, tmp_path, train, extract):
    """Needs no mount: the system itself refuses files over 30 kB, as a quota does."""
    del train, extract  # for their data
    latents = [f"{name}={tmp_path / name}" for name in ("image", "text")]
    arguments = {
        "train": ["--latents", *latents, "--batch-size", "64"],
        "extract": ["--pairs", str(tmp_path / "pairs.csv"), "--column", "text", "--encoder", "minilm-l6"],
    }[script]
    done = subprocess.run(
        [sys.executable, str(ROOT / f"scripts/{script}.py"), *arguments, "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000)),
    )
    refused((done.returncode, done.stderr), str(tmp_path / "out"), "File too large", "free some space")
    assert not list((tmp_path / "out").glob("*.pt")) and not list((tmp_path / "out").glob("*.npy"))


def lie(**changes):
    def change(folder):
        manifest = json.loads((folder / "manifest.json").read_text())
        for key, value in changes.items():
            (manifest["shards"][0] if key in ("items", "sha256", "file") else manifest)[key] = value
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return change


def resave(values):
    return lambda folder: np.save(folder / "latents-00000.npy", values)


DAMAGES = {
    "cut short": (lambda f: os.truncate(f / "latents-00000.npy", 900), "damaged or cut short"),
    "gone": (lambda f: (f / "latents-00000.npy").unlink(), "is missing"),
    "other values": (lambda f: resave(np.load(f / "latents-00000.npy") + 1)(f), "checksum"),
    "other dtype": (lambda f: resave(np.load(f / "latents-00000.npy").astype(np.float16))(f), "holds float16"),
    "a lie of items": (lie(items=77), "the manifest says (77,"),
    "a lie of dtype": (lie(dtype="float16"), "the manifest says float16"),
    "a lie of bytes": (lie(sha256="0" * 64), "checksum"),
    "a way out": (lie(file="../x.npy"), "is missing"),
    "no encoder": (lie(encoder=None), "where encoder stands"),
    "no shards": (lie(shards=5), "where shards stands"),
    "a lie of what was left out": (lie(skipped=[7]), "where item stands"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_training_on_a_damaged_store_is_refused_and_keeps_its_state(damage, train, monkeypatch, tmp_path):
    change, words = DAMAGES[damage]
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        assert train(tmp_path / "run")[0] == 130
    change(tmp_path / "text")
    before = contents(tmp_path / "run"), contents(tmp_path / "text")
    refused(train(tmp_path / "run"), str(tmp_path / "text"), words, "extract again")
    assert before == (contents(tmp_path / "run"), contents(tmp_path / "text"))


@pytest.mark.parametrize("damage", [name for name in DAMAGES if name != "no encoder"])
def test_extraction_does_not_go_on_with_a_damaged_store(damage, tmp_path, call):
    change, words = DAMAGES[damage]
    pd.DataFrame({"text": [f"dog {i}" for i in range(12)]}).to_csv(tmp_path / "pairs.csv", index=False)
    arguments = ("--pairs", tmp_path / "pairs.csv", "--column", "text", "--encoder", "minilm-l6")
    assert call("extract", *arguments, "--out", tmp_path / "store")[0] == 0
    lie(complete=False)(tmp_path / "store")
    change(tmp_path / "store")
    before = contents(tmp_path / "store")
    code, said = call("extract", *arguments, "--out", tmp_path / "store")
    if damage == "a lie of dtype":
        words = "holds latents with dtype = float16"
    refused((code, said), str(tmp_path / "store"), words)
    assert contents(tmp_path / "store") == before


def test_a_model_that_cannot_be_written_leaves_the_one_before(disk):
    disk.size(200_000)
    config = ModelConfig(latent_dims={"image": 32, "text": 24}, embed_dim=8)
    model = FusionModel(config)
    model.save_pretrained(disk.path / "model", card="one")
    wide = FusionModel(ModelConfig(latent_dims={"image": 256, "text": 256}, embed_dim=8))
    with pytest.raises(OSError, match=r"model\.safetensors could not be written"):
        wide.save_pretrained(disk.path / "model", card="two")
    assert FusionModel.from_pretrained(disk.path / "model").identity == model.identity
    assert {p.name for p in (disk.path / "model").iterdir()} == {"config.json", "model.safetensors", "README.md"}


def test_a_model_in_pieces_replaces_a_whole_one_and_back(tmp_path):
    model = FusionModel(ModelConfig(latent_dims={"image": 32, "text": 24}, embed_dim=8))
    for size, count in (("5GB", 1), ("20KB", 3), ("5GB", 1)):
        model.save_pretrained(tmp_path, max_shard_size=size)
        assert len(list(tmp_path.glob("*.safetensors"))) >= count
        assert (count == 1) == (not list(tmp_path.glob("*index*")))
        assert FusionModel.from_pretrained(tmp_path).identity == model.identity


def test_what_a_killed_write_left_is_swept_by_the_next_writer(tmp_path):
    for name in (".latents-00000.npy.12.tmp", ".mine.tmp", "latents.npy"):
        (tmp_path / name).write_text("x")
    with sole_writer(tmp_path):
        write_atomic(tmp_path / "a", lambda path: path.write_text("a"))
    assert {path.name for path in tmp_path.iterdir()} == {".mine.tmp", "latents.npy", "a"}
