"""The commands of docs/getting-started.md run as written, on small stand-ins for the reader's files."""

import csv
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.generation.test_generator import tiny_stable_unclip

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "getting-started.md").read_text(encoding="utf-8")
GALLERY = ROOT / "demo" / "gallery"
FUSEMIX = str(Path(sys.executable).with_name("fusemix"))
DECODER = "sd2-community/stable-diffusion-2-1-unclip-small"


def commands(number):
    section = re.split(r"^## ", PAGE, flags=re.MULTILINE)[number]
    return [line for block in re.findall(r"```\n(.*?)```", section, re.DOTALL) for line in block.splitlines()]


def rows(n):
    with open(GALLERY / "pairs.csv", newline="", encoding="utf-8") as handle:
        return [row for row in csv.DictReader(handle) if row["image"] and "tuxpaint" in row["id"]][:n]


@pytest.fixture
def desk(tmp_path):
    """The reader's working folder: the clone's own folders under their names, and room for new ones."""
    for name in ("scripts", "demo", "fusemix", "app.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "checkpoints").mkdir()
    for name in ("default", "unclip-small"):
        (tmp_path / "checkpoints" / name).symlink_to(ROOT / "checkpoints" / name)
    return tmp_path


def run(line, desk, *more):
    words = shlex.split(line)
    assert words[0] == "fusemix", line
    done = subprocess.run(
        [FUSEMIX, *words[1:], *more], cwd=desk, capture_output=True, text=True, timeout=300,
        env=environment(XDG_CACHE_HOME=str(desk / "cache")),
    )  # fmt: skip
    assert done.returncode == 0, f"{line}\n{done.stderr[-2000:]}"
    return done.stdout


def environment(**more):
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200", **more}


def serves(line, desk):
    """Whether the app that a line starts answers; it is stopped then."""
    words = shlex.split(line)
    variables = dict(words.pop(0).split("=", 1) for _ in range(sum("=" in word for word in words[:2])))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        words[words.index("--port") + 1] = port = str(free.getsockname()[1])
    app = subprocess.Popen(
        [sys.executable, *words[1:]], cwd=desk, env=environment(**variables), stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        for _ in range(240):
            assert app.poll() is None, app.stdout.read()[-2000:]
            try:
                return urllib.request.urlopen(f"http://127.0.0.1:{port}/config", timeout=5).status == 200
            except OSError:
                time.sleep(0.5)
        return False
    finally:
        app.kill()
        app.wait()


@pytest.mark.slow
def test_photos_are_found_by_voice(desk):
    (desk / "photos").mkdir()
    for row in rows(12):
        shutil.copy(GALLERY / row["image"], desk / "photos")
    shutil.copy(ROOT / "demo/examples/spoken-cake.mp3", desk / "question.wav")
    at_once, table, index, by_text, by_voice, app = commands(1)
    assert ".webp" in run(at_once, desk) and list((desk / "cache/fusemix/folders").glob("photos-*/index.json"))
    for line in (table, index):
        run(line, desk)
    assert ".webp" in run(by_text, desk) or ".jpg" in run(by_text, desk)
    assert "image" in run(by_voice, desk)
    assert serves(app, desk)


@pytest.mark.slow
def test_a_clip_of_your_own(desk):
    (desk / "plants").mkdir()
    for row in rows(60):
        path = shutil.copy(GALLERY / row["image"], desk / "plants")
        Path(path).with_suffix(".txt").write_text(row["text"])
    lines = commands(2)
    for line in lines[:4]:
        run(line, desk, *(["--n", "60"] if "diagnose" in line else []))
    assert json.loads((desk / "plants-diagnosis.json").read_text())
    run(lines[4], desk, "--epochs", "2", "--batch-size", "16")
    for line in lines[5:7]:
        run(line, desk)
    assert json.loads((desk / "plants.json").read_text())["n_gallery"] > 40
    assert "app.py" in lines[7]
    assert serves(lines[7], desk)
    assert "plants" in run(lines[8], desk)


@pytest.mark.slow
def test_a_conditioner_for_stable_diffusion(desk):
    tiny_stable_unclip(768).save_pretrained(desk / "sd")
    with open(desk / "pairs.csv", "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["image", "text", "split"])
        for i, row in enumerate(rows(24)):
            writer.writerow([GALLERY / row["image"], row["text"], "val" if i > 16 else "train"])
    train, draw, app = (
        line.replace(DECODER, "sd").replace("demo/gallery/pairs.csv", "pairs.csv").replace(" --device cuda", "")
        for line in commands(3)
    )
    run(train, desk, "--steps", "3")
    assert (desk / "checkpoints/conditioner-sd/conditioner.json").is_file()
    run(draw.replace("--audio demo/examples/spoken-cake.mp3", "--text cake"), desk, "--steps", "2")
    assert (desk / "cake.png").is_file()
    assert serves(app, desk)
