"""The code on docs/your-own-encoder.md runs as written."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fusemix.data.latent_store import LatentStore
from fusemix.encoders.hub import Spec

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "your-own-encoder.md").read_text(encoding="utf-8")


@pytest.fixture
def colours(tmp_path, monkeypatch):
    """What the page's code leaves behind, run beside a gallery of three plain pictures."""
    gallery = tmp_path / "demo" / "gallery"
    gallery.mkdir(parents=True)
    for name, colour in (("red", (255, 0, 0)), ("blue", (0, 0, 255)), ("black", (0, 0, 0))):
        Image.new("RGB", (9, 7), colour).save(gallery / f"{name}.png")
    (gallery / "pairs.csv").write_text("image,text\nred.png,red\nblue.png,blue\nblack.png,black\n")
    monkeypatch.chdir(tmp_path)
    [block] = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    left = {"__name__": "page"}
    exec(compile(block, "your-own-encoder.md", "exec"), left)
    return left


def test_the_pages_encoder_makes_a_latent_store(colours, tmp_path):
    store = LatentStore.open(tmp_path / "latents" / "colours")
    np.testing.assert_array_equal(store.all().argmax(1), [48, 3, 0])  # red, blue, black
    np.testing.assert_allclose(store.all().sum(1), 1, atol=1e-6)
    assert store.encoder == colours["Colours"]().info()


def test_an_encoder_is_ten_lines(colours):
    body = re.search(r"class Colours.*?\n\n\n", PAGE, flags=re.DOTALL).group()
    assert len([line for line in body.splitlines() if line.strip()]) <= 10


def test_every_encoder_the_page_names_is_understood():
    names = re.findall(r"`(hub-(?:image|text|audio):[^`]+)`", PAGE)
    assert len(names) > 12
    for name in names:
        Spec.parse(name)
