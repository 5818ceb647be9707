"""The measurements of docs/your-own-model.md run at a tiny size; their figures at real sizes are in docs/results."""

import json

import numpy as np
import pytest

from fusemix.data.latent_writer import write_latents
from scripts.checks import own_model


@pytest.fixture
def folder(tmp_path):
    """Stores of 400 train and 100 dev pairs whose sides share a cause."""
    rng = np.random.default_rng(0)
    cause = rng.normal(size=(500, 6))
    splits = ["train"] * 400 + ["dev"] * 100
    for name, width in (("image", 20), ("text", 12), ("audio", 9)):
        latents = (cause @ rng.normal(size=(6, width)) + 0.3 * rng.normal(size=(500, width))).astype(np.float32)
        write_latents(tmp_path / name, latents, modality=name, name=name, splits=splits)
    return tmp_path


def test_forecasts_are_compared_with_pairs_that_neither_saw(folder, monkeypatch):
    monkeypatch.setattr(own_model, "FORECASTS", {k: (m, (100,), 3) for k, (m, *_) in own_model.FORECASTS.items()})
    assert own_model.main(["forecast", "--flickr8k", str(folder), "--gallery", str(folder), "--out", str(folder)]) == 0
    found = json.loads((folder / "own-model-forecast.json").read_text())
    assert {name: made["held_out"] for name, made in found.items()} == {"flickr8k": 100, "pictures": 125, "sounds": 125}
    for made in found.values():
        assert {row["pairs"] for row in made["means"]} == {100, 200}  # 500 and 1,000 are more than there are
        assert all(0.2 < row["truth"] <= 1 and row["low"] < row["expected"] < row["high"] for row in made["means"])
        assert made["forecasts"] == 12 and made["inside"] == (made["at_1"] + made["at_10"]) / 2


def test_planted_captions_are_found(folder):
    assert own_model.main(["audit", "--flickr8k", str(folder), "--out", str(folder)]) == 0
    one = json.loads((folder / "own-model-audit.json").read_text())["one caption"]
    assert len(one["draws"]) == 4 and one["draws"][0]["planted"] == 20
    assert 0.6 < one["precision"] <= 1 and one["draws"][0]["found_in_worst_10_percent"] > 0.8


def test_tasks_of_clicks_are_folders_of_clip_art_and_last_words(monkeypatch):
    monkeypatch.setattr(own_model, "KINDS", {"folders": (2, 1), "words": (2, 1)})
    items = [
        {"id": f"{source}-{folder}-{i}", "source": f"{kind} x", "caption": caption}
        for i, (source, folder, kind, caption) in enumerate(
            [("openclipart", "food", "Debian", "a Cake"), ("tuxpaint", "food", "Debian", "bread"),
             ("openmoji", "1f368", "PyPI", "birthday cake"), ("openmoji", "1f368", "PyPI", "cake stand")]
        )
    ]  # fmt: skip
    tasks = {(kind, word): right.tolist() for kind, word, right in own_model._tasks(items)}
    assert tasks == {("folders", "food"): [True, True, False, False], ("words", "cake"): [True, False, True, False]}
