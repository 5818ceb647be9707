"""The studies' own runs: each changes what it says it changes; means and intervals are what they are called."""

import dataclasses
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fusemix.data.latent_writer import write_latents
from fusemix.data.pair_set import PairSet
from fusemix.model.config import TrainConfig
from fusemix.training.losses import info_nce
from scripts.studies import ablations, common

CONFIG = TrainConfig(batch_size=64, epochs=2, eval_every=1, save_every=100, warmup_steps=2, val_fraction=0.1)


@pytest.fixture
def pairs(tmp_path):
    """600 pairs of 300 groups: two noisy linear views of one hidden vector."""
    rng = np.random.default_rng(0)
    hidden = np.repeat(rng.normal(size=(300, 8)), 2, axis=0)
    stores = {}
    for name, dim in (("image", 24), ("text", 16)):
        view = hidden @ rng.normal(size=(8, dim)) + 0.1 * rng.normal(size=(600, dim))
        stores[name] = write_latents(
            tmp_path / name, view.astype(np.float32), modality=name, name=name, groups=np.repeat(range(300), 2).tolist()
        )
    return PairSet.join(stores)


def run_of(kind, pairs, tmp_path, **changes):
    config = dataclasses.replace(CONFIG, **changes)
    return kind([pairs], common.model_config(pairs, embed_dim=16), config, tmp_path / "r", dev=pairs)


def batch_of(run):
    return run.mix(run.draw(0), np.random.default_rng(1)).latents


def test_noise_has_the_promised_share_and_is_the_steps_own(pairs, tmp_path):
    plain = run_of(common.StudyTrainer, pairs, tmp_path / "a", mixup_alpha=None)
    noisy = run_of(ablations.Noise, pairs, tmp_path / "b", mixup_alpha=None)
    clean, first, again = batch_of(plain)["image"], batch_of(noisy)["image"], batch_of(noisy)["image"]
    assert torch.equal(first, again)
    share = ((first - clean).std(dim=0) / clean.std(dim=0)).mean()
    assert share == pytest.approx(0.5, abs=0.05)


def test_unshared_coefficients_break_the_pair_and_shared_ones_do_not(pairs, tmp_path):
    """With one coefficient both views of a mixture stay linear views of one hidden vector."""

    def misfit(kind, name):
        batch = batch_of(run_of(kind, pairs, tmp_path / name))
        image, text = (x.double().numpy() for x in batch.values())
        whole = {m: pairs.latents(m, np.arange(600)).double().numpy() for m in ("image", "text")}
        to_text, *_ = np.linalg.lstsq(whole["image"], whole["text"], rcond=None)
        return float(np.square(image @ to_text - text).mean())

    assert misfit(ablations.Unshared, "b") > 5 * misfit(common.StudyTrainer, "a")


def test_the_sigmoid_loss_matches_the_written_formula(pairs, tmp_path):
    run = run_of(ablations.Sigmoid, pairs, tmp_path)
    a, b = torch.randn(5, 4), torch.randn(5, 4)
    total = 0.0
    for i in range(5):
        for j in range(5):
            logit = float(torch.cosine_similarity(a[i], b[j], dim=0)) / 0.1 - 10
            total -= math.log(1 / (1 + math.exp(-logit if i == j else logit))) / 5
    assert run.loss({"image": a, "text": b}, None).item() == pytest.approx(total, rel=1e-4)
    assert any(p is run.model.bias for group in run.optimizer.param_groups for p in group["params"])


def test_hard_negatives_are_info_nce_at_beta_0_and_weigh_more_otherwise(pairs, tmp_path):
    run = run_of(ablations.HardNegatives, pairs, tmp_path)
    a, b = torch.randn(6, 4), torch.randn(6, 4)
    out, temperature = {"image": a, "text": b}, run.model.temperature
    run.beta = 0.0
    assert run.loss(out, None).item() == pytest.approx(info_nce(a, b, temperature=temperature).item(), rel=1e-5)
    run.beta = 2.0
    assert run.loss(out, None).item() > info_nce(a, b, temperature=temperature).item()


def test_gated_fixed_and_averaged_runs_are_what_they_say(pairs, tmp_path):
    gated = run_of(ablations.Gated, pairs, tmp_path / "g")
    weights = {id(p) for p in gated.model.adapters["image"].gate.parameters()}
    assert weights <= {id(p) for group in gated.optimizer.param_groups for p in group["params"]}
    fixed = run_of(ablations.Fixed, pairs, tmp_path / "f")
    fixed.run()
    assert float(fixed.model.temperature.detach()) == pytest.approx(0.07)
    averaged = run_of(ablations.Averaged, pairs, tmp_path / "a")
    start = {n: p.detach().clone() for n, p in averaged.model.named_parameters()}
    averaged.run()
    moved = [
        (live - start[n]).norm() > (mean - start[n]).norm() > 0
        for (n, live), (_, mean) in zip(
            averaged.model.named_parameters(), averaged.average.named_parameters(), strict=True
        )
        if "mlp" in n or "up" in n
    ]
    assert moved and all(moved)


def test_a_finished_run_is_kept_and_its_last_epoch_counts(pairs, tmp_path, monkeypatch):
    arguments = (common.StudyTrainer, pairs, pairs, common.model_config(pairs, embed_dim=16), CONFIG, tmp_path / "run")
    first = common.trained(*arguments)
    assert [step["epoch"] for step in first["curve"]] == [1, 2] and first["mean"] == first["curve"][-1]["mean"]
    assert not (tmp_path / "run/training_state.pt").exists()
    monkeypatch.setattr(common.StudyTrainer, "run", lambda *_: pytest.fail("trained twice"))
    assert common.trained(*arguments) == first


def test_intervals_are_students(tmp_path):
    value = common.summary([0.1, 0.2, 0.3])
    assert value["mean"] == pytest.approx(0.2) and value["sd"] == pytest.approx(0.1)
    assert value["half_width_95"] == pytest.approx(4.302653 * 0.1 / math.sqrt(3))
    assert common.summary([0.1])["half_width_95"] is None


def test_the_ablations_report_every_variant_beside_the_recipe(pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(ablations, "latents", lambda *_: {})
    monkeypatch.setattr(ablations, "joined", lambda *_: pairs)
    monkeypatch.setattr(ablations, "VARIANTS", [ablations.VARIANTS[0], ablations.VARIANTS[1], ablations.VARIANTS[-1]])
    out = tmp_path / "out.json"
    ablations.run(
        SimpleNamespace(seeds=[0, 1], epochs=1, work=tmp_path / "work", out=out, pairs=None, photos=250, questions=None)
    )
    written = json.loads(out.read_text())
    assert (written["pairs"], written["batch_size"]) == (500, 48)
    found = written["variants"]
    assert list(found) == ["paper's recipe", "mixing: none, half the pairs a step", "batch: a quarter"]
    assert found["paper's recipe"]["difference"]["values"] == [0.0, 0.0]
    assert found["mixing: none, half the pairs a step"]["mean_recall_at_1"]["n"] == 2
    some = SimpleNamespace(
        seeds=[0], epochs=1, work=tmp_path / "work", out=out, pairs=None, photos=250, questions=["batch"]
    )
    ablations.run(some)
    assert list(json.loads(out.read_text())["variants"]) == ["paper's recipe", "batch: a quarter"]
    some.questions = ["mixing"]  # the same seeds and the same recipe: the row that is there stays, in its place
    ablations.run(some)
    both = ["paper's recipe", "mixing: none, half the pairs a step", "batch: a quarter"]
    assert list(json.loads(out.read_text())["variants"]) == both
    other = json.loads(out.read_text())
    other["variants"]["paper's recipe"]["mean_recall_at_1"]["values"] = [0.5]  # of another machine
    out.write_text(json.dumps(other))
    ablations.run(some)
    assert list(json.loads(out.read_text())["variants"]) == both[:2]


def test_weight_decay_and_depth_reach_the_run(pairs, tmp_path):
    chosen = {f"{v.question} {v.name}": v for v in ablations.VARIANTS if v.question in ("weight decay", "depth")}
    assert list(chosen) == ["depth 4", "weight decay 0", "weight decay 0.01", "weight decay 1"]
    run = run_of(chosen["weight decay 1"].kind, pairs, tmp_path, **chosen["weight decay 1"].config)
    assert [group["weight_decay"] for group in run.optimizer.param_groups] == [1.0, 0.0]
    assert len(run_of(common.StudyTrainer, pairs, tmp_path / "b").model.adapters["image"]) == 1 + 2
    assert common.model_config(pairs, **chosen["depth 4"].model).depth == 4


SVG = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 10 10">{head}
<g {name}><path {name} fill="#ff0000" style="stroke:blue;stroke-linecap:round" d="{d}"/></g>{tail}</svg>"""
