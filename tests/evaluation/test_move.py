"""A move to another encoder keeps what a linear map can keep, and says how much before anything is written."""

import numpy as np
import pytest
import torch

from fusemix.cli import move as command
from fusemix.data.latent_store import LatentStore
from fusemix.data.latent_writer import write_latents
from fusemix.evaluation.move import recall_kept
from fusemix.files import read_json
from fusemix.model.adapters import FusionModel
from fusemix.model.config import ModelConfig
from fusemix.model.latent_map import RIDGES, choose_map, fit_map

N, OLD, NEW = 240, 20, 12


@pytest.fixture(scope="module")
def spaces():
    """Latents of N items by an old and a new encoder, the new one a noisy linear map of the old, and of their texts."""
    rng = np.random.default_rng(0)
    old = rng.normal(size=(N, OLD)) + 3
    new = old @ rng.normal(size=(OLD, NEW)) + 1.5 * rng.normal(size=(N, NEW)) - 1
    text = new @ rng.normal(size=(NEW, 8)) + 0.1 * rng.normal(size=(N, 8))
    return [x.astype(np.float32) for x in (old, new, text)]


def a_model(info):
    torch.manual_seed(0)
    return FusionModel(ModelConfig(latent_dims={"image": NEW, "text": 8}, encoders=info, embed_dim=10, depth=0)).eval()


@pytest.mark.parametrize("n", [10, 60])  # fewer items than dimensions, and more
def test_the_map_is_ridge_regression_however_it_is_solved(spaces, n):
    old, new = spaces[0][:n].astype(np.float64), spaces[1][:n].astype(np.float64)
    x, y = old - old.mean(0), new - new.mean(0)
    penalty = 0.1 * (x**2).sum() / n / OLD
    expected = np.linalg.solve(x.T @ x / n + penalty * np.eye(OLD), x.T @ y / n)
    made = fit_map(old, new, 0.1)
    np.testing.assert_allclose(made.weights, expected, atol=1e-9)
    np.testing.assert_allclose(made(old), x @ expected + new.mean(0), atol=1e-5)


def test_items_that_move_nowhere_keep_everything_and_unrelated_ones_nothing(spaces):
    model = a_model({})
    new = spaces[1]
    same = recall_kept(model, "image", new, new, np.arange(N))
    assert same["kept_at_1"] == pytest.approx(1, abs=0.02) and same["cosine"] > 0.99
    noise = np.random.default_rng(1).normal(size=(N, OLD)).astype(np.float32)
    lost = recall_kept(model, "image", noise, new, np.arange(N))
    assert lost["kept_at_1"] < 0.05 and lost["ci95"]["kept_at_1"][1] < 0.1


def test_what_is_kept_is_measured_on_items_the_map_has_not_seen(spaces):
    """With a tenth of the items, the whole map would fit noise; held out it does not."""
    model, (old, new, _) = a_model({}), spaces
    noise = np.random.default_rng(1).normal(size=(60, 100)).astype(np.float32)
    assert recall_kept(model, "image", noise, new[:60], np.arange(60))["kept_at_1"] < 0.15
    found = recall_kept(model, "image", old, new, np.arange(N))
    low, high = found["ci95"]["kept_at_1"]
    assert 0.3 < low < found["kept_at_1"] < high < 1
    assert choose_map(old, new, lambda x: model.embed("image", x).numpy()).ridge in RIDGES


def test_the_command_moves_a_store_that_the_new_checkpoint_takes(spaces, tmp_path, capsys):
    old, new, text = spaces
    groups = np.arange(N) // 2
    write_latents(tmp_path / "old", old, modality="image", name="before", groups=groups)
    some = write_latents(tmp_path / "new", new[:150], modality="image", name="after", groups=groups[:150])
    texts = write_latents(tmp_path / "text", text, modality="text", name="words", groups=groups)
    model = a_model({"image": some.encoder, "text": texts.encoder})
    checkpoint = model.save_pretrained(tmp_path / "model")
    asked = ["--checkpoint", str(checkpoint), "--old", str(tmp_path / "old"), "--new", str(tmp_path / "new")]
    more = [
        "--query",
        f"text={tmp_path / 'text'}",
        "--out",
        str(tmp_path / "moved"),
        "--json",
        str(tmp_path / "m.json"),
    ]
    assert command.main([*asked, *more, "--out", str(tmp_path / "moved")]) == 0
    assert "150 shared items, 150 queries" in capsys.readouterr().out
    moved = LatentStore.open(tmp_path / "moved", verify=True)
    assert len(moved) == N and moved.encoder == some.encoder
    assert moved.rows["group"].tolist() == groups.tolist()
    assert moved.manifest["moved"]["measured"] == read_json(tmp_path / "m.json")
    rest = slice(150, N)
    near = (model.embed("image", moved.all()[rest]) * model.embed("image", new[rest])).sum(dim=1)
    assert near.mean() > 0.8
    assert command.main([*asked, "--out", str(tmp_path / "moved")]) == 2
    assert "is there already" in capsys.readouterr().err


def test_too_few_shared_items_and_an_encoder_the_checkpoint_does_not_know_are_refused(spaces, tmp_path, capsys):
    old, new, _ = spaces
    write_latents(tmp_path / "old", old, modality="image", name="before")
    few = write_latents(tmp_path / "few", new[:40], modality="image", name="after")
    checkpoint = a_model({"image": few.encoder, "text": few.encoder}).save_pretrained(tmp_path / "model")
    asked = ["--checkpoint", str(checkpoint), "--old", str(tmp_path / "old"), "--new"]
    assert command.main([*asked, str(tmp_path / "few")]) == 2
    assert "40 items are shared by both encoders; a map needs at least 50" in capsys.readouterr().err
    assert command.main([*asked, str(tmp_path / "old")]) == 2
    assert "adapter was trained on latents of after" in capsys.readouterr().err
