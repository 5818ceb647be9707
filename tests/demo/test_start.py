"""``python app.py`` in a bad world: one sentence and exit code 2, or it serves without that part and says so."""

import json
import logging
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import httpx
import pytest

import app
from demo.drawing import Studio
from demo.tabs.sound_to_picture import build_generate_tab
from fusemix.model.adapters import FusionModel
from fusemix.model.config import ModelConfig

ROOT = Path(__file__).resolve().parents[2]
PYTHON, APP = shlex.quote(sys.executable), shlex.quote(f"{ROOT}/app.py")
SENTENCE = re.compile(r"[^\n]{10,700}[.!?]?")


@pytest.fixture
def start(monkeypatch, caplog):
    """Run the app's main without listening: (exit code, the errors it logged)."""
    monkeypatch.setattr(gr.Blocks, "launch", lambda self, **options: None)

    def run(checkpoint, index):
        caplog.clear()
        with caplog.at_level(logging.ERROR):
            code = app.main(["--checkpoint", str(checkpoint), "--index", str(index)])
        return code, [record for record in caplog.records if record.levelno >= logging.ERROR]

    return run


@pytest.fixture
def world(checkpoint, index_folder, tmp_path):
    """Copies to be damaged of the tiny checkpoint and index, which find their gallery."""
    folder = tmp_path / "world"
    shutil.copytree(checkpoint, folder / "checkpoint")
    shutil.copytree(index_folder, folder / "index")
    values = json.loads((index_folder / "index.json").read_text())
    values["root"] = os.path.relpath((index_folder / values["root"]).resolve(), (folder / "index").resolve())
    (folder / "index/index.json").write_text(json.dumps(values))
    return folder


def refused(answer):
    """The sentence of a start that ended with code 2."""
    code, errors = answer
    assert code == 2 and len(errors) == 1, (code, errors)
    assert errors[0].exc_info is None and SENTENCE.fullmatch(errors[0].getMessage()), errors[0].getMessage()
    return errors[0].getMessage()


def half(path):
    os.truncate(path, path.stat().st_size // 2)


DAMAGES = {
    "cut in half": half,
    "empty": lambda path: os.truncate(path, 0),
    "gone": lambda path: path.unlink(),
    "noise": lambda path: path.write_bytes(bytes(range(256)) * (path.stat().st_size // 256 + 1)),
    "null": lambda path: path.write_text("null"),
    "a list": lambda path: path.write_text("[1]"),
    "an empty object": lambda path: path.write_text("{}"),
}
FILES = [
    "checkpoint/config.json",
    "checkpoint/model.safetensors",
    "index/index.json",
    "index/items.jsonl",
    "index/image.faiss",
]


def test_the_world_of_these_tests_is_whole_before_it_is_damaged(start, world):
    assert start(world / "checkpoint", world / "index") == (0, [])


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_one_sentence_and_code_2(start, world, file, damage):
    DAMAGES[damage](world / file)
    message = refused(start(world / "checkpoint", world / "index"))
    assert str(world / Path(file).parent) in message or Path(file).name in message


@pytest.mark.parametrize("key", ["latent_dims", "encoders", "embed_dim", "depth", "expansion"])
@pytest.mark.parametrize("value", [None, "many", -1, [], {"image": "x"}])
def test_a_configuration_with_a_value_that_makes_no_sense(start, world, key, value):
    path = world / "checkpoint/config.json"
    values = json.loads(path.read_text())
    assert key in values
    path.write_text(json.dumps(values | {key: value}))
    refused(start(world / "checkpoint", world / "index"))


@pytest.mark.parametrize("key", ["model_identity", "embed_dim", "counts", "root", "shards", "sha256"])
@pytest.mark.parametrize("value", [7, "many", [], {"image": "x"}])
def test_an_index_with_a_value_that_makes_no_sense(start, world, key, value):
    path = world / "index/index.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {key: value}))
    refused(start(world / "checkpoint", world / "index"))


def test_pieces_of_weights_that_do_not_fit_together(start, world):
    FusionModel.from_pretrained(world / "checkpoint").save_pretrained(world / "checkpoint", max_shard_size="20KB")
    index = world / "checkpoint/model.safetensors.index.json"
    whole = index.read_text()
    for text in ("{}", "[]", '{"weight_map": 5}', '{"weight_map": {"a": 5}}', '{"weight_map": {"a": "../x"}}'):
        index.write_text(text)
        assert str(world / "checkpoint") in refused(start(world / "checkpoint", world / "index"))
    index.write_text(whole)
    assert start(world / "checkpoint", world / "index") == (0, [])


def test_an_index_of_another_checkpoint(start, world):
    other = FusionModel(ModelConfig.from_dict(json.loads((world / "checkpoint/config.json").read_text())))
    other.save_pretrained(world / "checkpoint")
    assert "was made by the model" in refused(start(world / "checkpoint", world / "index"))


def test_nothing_there(start, world):
    assert str(world / "none") in refused(start(world / "none", world / "index"))
    assert str(world / "none") in refused(start(world / "checkpoint", world / "none"))


def test_the_folder_of_the_gallery_is_gone(start, world):
    path = world / "index/index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"root": "../gone"}))
    assert str(world / "gone") in refused(start(world / "checkpoint", world / "index"))


@pytest.fixture(scope="module")
def shipped():
    """A service as far as the studio looks at it when the page is built."""
    model = FusionModel.from_pretrained(ROOT / "checkpoints/default")
    return SimpleNamespace(retriever=SimpleNamespace(model=model, encoders={}), understood=frozenset(model.modalities))


@pytest.fixture
def decoder(tmp_path):
    return Path(shutil.copytree(ROOT / "checkpoints/unclip-small", tmp_path / "decoder"))


def test_a_whole_decoder_has_no_fault(shipped, decoder):
    assert Studio(shipped, source=str(decoder)).fault() is None


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("unet/diffusion_pytorch_model-00002-of-00004.safetensors", "cut in half"),
        ("unet/diffusion_pytorch_model-00002-of-00004.safetensors", "gone"),
        ("vae/diffusion_pytorch_model.safetensors", "empty"),
        ("unet/diffusion_pytorch_model.safetensors.index.json", "an empty object"),
        ("model_index.json", "a list"),
        ("model_index.json", "gone"),
        ("scheduler/scheduler_config.json", "cut in half"),
        ("train_config.json", "an empty object"),
        ("conditioner.json", "null"),
        ("conditioner.safetensors", "noise"),
    ],
)
def test_a_damaged_decoder_leaves_the_page_without_drawing_and_the_tab_says_so(shipped, decoder, file, damage):
    DAMAGES[damage](decoder / file)
    with gr.Blocks() as page:
        build_generate_tab(shipped, Studio(shipped, source=str(decoder)))
    assert "nothing can be drawn here" in "".join(str(getattr(b, "value", "")) for b in page.blocks.values())
    assert not page.fns


def test_a_decoder_of_another_checkpoint_draws_nothing(shipped, decoder, caplog):
    other = FusionModel(shipped.retriever.model.config)
    service = SimpleNamespace(retriever=SimpleNamespace(model=other))
    assert "do not fit the model" in Studio(service, source=str(decoder)).fault()
    assert "another checkpoint" in caplog.text


def free_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


def mounts(*commands):
    """The command that runs a shell script whose mounts nobody else sees."""
    done = subprocess.run(["unshare", "--mount", "true"], capture_output=True) if shutil.which("unshare") else None
    if done is None or done.returncode:
        pytest.skip("this machine lets tests mount no disk")
    return ["unshare", "--mount", "bash", "-ec", "\n".join(["mount --make-rprivate /", *commands])]


def test_without_any_folder_to_write_to_the_app_says_so_and_ends():
    command = mounts(
        # read-only in place: the clone itself may lie below one of them
        "for f in /tmp /var/tmp /usr/tmp; do",
        "  if [ -d $f ]; then mount --bind $f $f; mount -o remount,bind,ro $f; fi",
        "done",
        f"cd /proc; HOME=/proc TMPDIR=/proc exec {PYTHON} {APP}",
    )
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr and "No usable temporary directory" in done.stderr


@pytest.fixture
def served(tmp_path, world):
    """The app in a process of its own, its home read-only and its uploads on a disk of 3 MB: (address, disk)."""
    disk, home, port = tmp_path / "uploads", tmp_path / "home", free_port()
    there, here, made = (shlex.quote(str(path)) for path in (disk, home, world))
    command = mounts(
        f"mkdir {there} {here}; mount -t tmpfs -o size=3m tmpfs {there}; mount -t tmpfs -o ro tmpfs {here}",
        f"export HOME={here} GRADIO_TEMP_DIR={there}; cd {here}",
        f"exec {PYTHON} {APP} --host 127.0.0.1 --port {port} --checkpoint {made}/checkpoint --index {made}/index",
    )
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    address, until = f"http://127.0.0.1:{port}", time.monotonic() + 300
    try:
        while True:
            assert process.poll() is None and time.monotonic() < until, (tmp_path / "log").read_text()
            try:
                httpx.get(address, timeout=10)
                break
            except httpx.HTTPError:
                time.sleep(0.2)
        yield SimpleNamespace(address=address, disk=Path(f"/proc/{process.pid}/root{disk}"), log=tmp_path / "log")
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def test_with_a_read_only_home_and_a_full_disk_words_are_answered_and_uploads_when_there_is_room(served, pairs):
    from gradio_client import Client, handle_file

    client = Client(served.address, verbose=False)
    picture = pairs.parent / "green.png"
    ask = {"text": "a red square", "image": handle_file(picture)}
    for kind, query in ask.items():
        assert client.predict(query, 2, api_name=f"/search_{kind}")["hits"]
    with open(served.disk / "filler", "wb", buffering=0) as filler, pytest.raises(OSError, match="No space"):
        while True:
            filler.write(bytes(4096))
    other = picture.with_name("red.png")
    with pytest.raises(Exception):  # noqa: B017 - whatever the client makes of it
        client.predict(handle_file(other), 2, api_name="/search_image")
    assert client.predict("a red square", 2, api_name="/search_text")["hits"]
    (served.disk / "filler").unlink()
    assert client.predict(handle_file(other), 2, api_name="/search_image")["hits"]["image"][0]["id"] == "red"


def test_a_space_chooses_model_and_index_by_its_variables(monkeypatch):
    monkeypatch.setenv("FUSEMIX_CHECKPOINT", "me/model")
    monkeypatch.setenv("FUSEMIX_INDEX", "me/index?root=pictures")
    args = app.parse_args([])
    assert (args.checkpoint, args.index) == ("me/model", "me/index?root=pictures")
    monkeypatch.delenv("FUSEMIX_INDEX")
    assert app.parse_args(["--checkpoint", "mine"]).checkpoint == "mine"
    assert app.parse_args([]).index == str(ROOT / "demo/index")
