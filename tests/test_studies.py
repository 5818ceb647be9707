"""The studies' own runs: each changes what it says it changes; means and intervals are what they are called."""

import dataclasses
import json
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from fusemix.config import TrainConfig
from fusemix.latents import LatentStore, write_latents
from fusemix.losses import info_nce
from fusemix.pair_set import PairSet
from fusemix.pairs import PairTable
from studies import ablations, common, encoders, interpolation, low_data, modalities, robustness

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
    run = kind(
        [pairs], common.model_config(pairs, embed_dim=16), dataclasses.replace(CONFIG, **changes), tmp_path / "r"
    )
    run.dev = pairs
    return run


def batch_of(run):
    return run.mixed_batch(0, np.random.default_rng(1))[0]


def test_noise_has_the_promised_share_and_is_the_steps_own(pairs, tmp_path):
    plain = run_of(common.StudyRun, pairs, tmp_path / "a", mixup_alpha=None)
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

    assert misfit(ablations.Unshared, "b") > 5 * misfit(common.StudyRun, "a")


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
    fixed.go(None, None)
    assert float(fixed.model.temperature.detach()) == pytest.approx(0.07)
    averaged = run_of(ablations.Averaged, pairs, tmp_path / "a")
    start = {n: p.detach().clone() for n, p in averaged.model.named_parameters()}
    averaged.go(None, None)
    moved = [
        (live - start[n]).norm() > (mean - start[n]).norm() > 0
        for (n, live), (_, mean) in zip(
            averaged.model.named_parameters(), averaged.average.named_parameters(), strict=True
        )
        if "mlp" in n or "up" in n
    ]
    assert moved and all(moved)


def test_structure_costs_nothing_when_the_geometry_is_kept(pairs, tmp_path):
    run = run_of(low_data.Structure, pairs, tmp_path)
    x = torch.randn(12, 6)
    x = x - x.mean(dim=0)
    run.seen = {"image": x, "text": x}
    assert run.loss({"image": x, "text": x}, None).item() == pytest.approx(
        info_nce(x, x, temperature=run.model.temperature).item(), rel=1e-5
    )
    other = torch.randn(12, 6)
    plain = info_nce(other, x, temperature=run.model.temperature).item()
    assert run.loss({"image": other, "text": x}, None).item() > plain


def test_a_finished_run_is_kept_and_its_last_epoch_counts(pairs, tmp_path, monkeypatch):
    arguments = (common.StudyRun, pairs, pairs, common.model_config(pairs, embed_dim=16), CONFIG, tmp_path / "run")
    first = common.trained(*arguments)
    assert [step["epoch"] for step in first["curve"]] == [1, 2] and first["mean"] == first["curve"][-1]["mean"]
    assert not (tmp_path / "run/training_state.pt").exists()
    monkeypatch.setattr(common.StudyRun, "go", lambda *_: pytest.fail("trained twice"))
    assert common.trained(*arguments) == first


def test_intervals_are_students(tmp_path):
    value = common.summary([0.1, 0.2, 0.3])
    assert value["mean"] == pytest.approx(0.2) and value["sd"] == pytest.approx(0.1)
    assert value["half_width_95"] == pytest.approx(4.303 * 0.1 / math.sqrt(3))
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


def test_a_subset_keeps_whole_photos_and_the_closed_forms_find_them(pairs, monkeypatch):
    part = common.subset(pairs, 60, seed=0)
    assert len(part) == 120 and len(np.unique(part.groups)) == 60
    assert set(common.subset(pairs, 60, seed=1).groups.tolist()) != set(part.groups.tolist())
    monkeypatch.setattr(low_data, "DIRECTIONS", 8)
    found = low_data.closed_forms(part, pairs, pairs)
    assert set(found) == {"CCA", "CCA, unpaired captions", "ridge"}
    assert min(found.values()) > 0.3  # of 300 photos; by chance 0.003


def test_an_attack_stays_within_its_radius_and_beats_chance():
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(40, 12, generator=generator), torch.randn(12, 6, generator=generator)

    def embed(z):
        return torch.nn.functional.normalize(z @ weight, dim=1)

    gallery, right = embed(x), torch.eye(40, dtype=torch.bool)
    delta = robustness.attack(x, embed, gallery, right, 0.8)
    assert delta.norm(dim=1).max() <= 0.8 + 1e-5
    random = 0.8 * torch.nn.functional.normalize(torch.randn(40, 12, generator=generator), dim=1)
    kept = [int(((embed(x + d) @ gallery.T).argmax(dim=1) == torch.arange(40)).sum()) for d in (delta, random)]
    assert kept[0] < kept[1] / 2


def test_corruptions_grow_with_their_strength_and_do_not_touch_the_original():
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (224, 224, 3), dtype=np.uint8)).resize((28, 28)).resize((224, 224))
    before = np.asarray(photo, dtype=np.float32)
    for name, change in robustness.PICTURES.items():
        changed = [np.asarray(change(photo, s, np.random.default_rng(1)), dtype=np.float32) for s in (1, 2, 3)]
        errors = [float(np.abs(c - before).mean()) for c in changed]
        assert all(c.shape == before.shape for c in changed) and errors[0] > 0 and errors[0] < errors[2], name
    assert np.array_equal(before, np.asarray(photo))
    for name, change in robustness.WORDS.items():
        words = [change("a dog runs over the green grass of a park", s, np.random.default_rng(1)) for s in (1, 2, 3)]
        assert all(words) and words[2] != "a dog runs over the green grass of a park", name


def test_blends_hold_both_things_by_their_shares():
    black, white = Image.new("RGB", (4, 4), "black"), Image.new("RGB", (4, 4), "white")
    assert interpolation.blended("image", white, black, 0.75).getpixel((0, 0)) == (191, 191, 191)
    rate, sound = interpolation.blended("audio", (9, np.ones(2)), (9, np.full(4, 2.0)), 0.75)
    assert rate == 9 and sound.tolist() == [1.25, 1.25, 0.5, 0.5]
    assert interpolation.blended("text", "A dog .", "a cat", 0.5) == "A dog and a cat"


@pytest.fixture
def spoken(tmp_path):
    """120 photos with two captions each; a clip of the first caption of 60, and a synthetic one of 30 of the others.

    Rows from 240 on are the synthetic clips', as in the study's table. Splits alternate by photo.
    """
    rng = np.random.default_rng(0)
    hidden, own, made = rng.normal(size=(120, 6)), np.arange(60), np.arange(60, 90)
    rows = {
        "image": (np.arange(240), np.repeat(np.arange(120), 2), np.repeat(np.arange(120), 2)),
        "text": (np.arange(270), np.r_[np.arange(240), 2 * made], np.r_[np.repeat(np.arange(120), 2), made]),
        "audio": (np.r_[2 * own, 240 + np.arange(30)], np.arange(90), np.r_[own, made]),
    }
    stores = {}
    for name, (row, item, group) in rows.items():
        of_item = np.zeros(item.max() + 1, dtype=int)
        of_item[item] = group
        view = hidden[of_item] @ rng.normal(size=(6, 12)) + 0.05 * rng.normal(size=(len(of_item), 12))
        stores[name] = {}
        for number, split in enumerate(("train", "dev")):
            frame = pd.DataFrame({"row": row, "item": item, "group": group, "split": split})[group % 2 == number]
            stores[name][split] = write_latents(
                tmp_path / f"{name}-{split}",
                view.astype(np.float32),
                modality=name,
                name=name,
                index=lambda _, f=frame: f,
            )
    return stores


def test_a_clip_is_paired_with_its_own_caption_and_photo_and_synthetic_ones_can_be_left_out(spoken):
    train = {m: s["train"] for m, s in spoken.items()}
    few, all_clips = modalities.pair_sets(train, 240), modalities.pair_sets(train, None)
    assert [len(s) for s in few.values()] == [120, 30, 30] and [len(s) for s in all_clips.values()] == [120, 45, 45]
    direct, through = all_clips["audio-image"], all_clips["audio-text"]
    assert (direct.items["image"] == direct.groups).all()  # of one photo, item and group have one number here
    assert (through.items["text"] == 2 * through.groups).all()  # the first caption was spoken


def test_modalities_measure_every_direction_and_a_space_that_audio_joins_later_stays(spoken, tmp_path, monkeypatch):
    monkeypatch.setattr(modalities, "BATCH", 20)
    monkeypatch.setattr(modalities, "HELD_OUT", 0.1)
    chosen = ("image-text", "audio-text", "all three", "audio-text, later")
    monkeypatch.setattr(modalities, "ARMS", {arm: modalities.ARMS[arm] for arm in chosen})
    out = tmp_path / "out.json"
    modalities.measured(SimpleNamespace(seeds=[0], epochs=1, work=tmp_path / "work", out=out), spoken, 240)
    written = json.loads(out.read_text())["clips"]
    assert list(written) == ["30 clips", "45 clips"] and list(written["30 clips"]) == list(modalities.ARMS)
    arms = written["45 clips"]
    assert list(arms["image-text"]["recall"]) == ["image to text", "text to image"]
    assert len(arms["all three"]["recall"]) == 10  # two kinds of voice against pictures and captions, both ways
    later = arms["audio-text, later"]
    assert later["recall"]["text to image"] == arms["image-text"]["recall"]["text to image"]
    assert later["passes"].keys() == {"audio+text"}
    assert arms["image-text"]["passes"]["image+text"] == arms["all three"]["passes"]["image+text"]
    assert arms["audio-text"]["passes"]["audio+text"] == arms["all three"]["passes"]["audio+text"]
    less = arms["all three"]["less_alone"]["text to image"]["recall_at_1"]["values"]
    both, alone = (arms[a]["recall"]["text to image"]["recall_at_1"]["values"] for a in ("all three", "image-text"))
    assert less == pytest.approx([a - b for a, b in zip(both, alone, strict=True)])


def test_encoders_stand_side_by_side_and_are_measured(pairs, tmp_path, monkeypatch):
    names = {"lite0": ("a",), "lite0 ++ lite1": ("a", "b")}
    monkeypatch.setattr(encoders, "ENCODERS", names)
    image = pairs.stores["image"]
    table = SimpleNamespace(fingerprint=None)
    both = encoders.together([image.folder, image.folder], table, tmp_path / "both")
    assert encoders.together([image.folder], table, tmp_path / "one") == image.folder
    joined = LatentStore.open(both)
    assert np.array_equal(joined.all(), np.tile(image.all(), 2)) and joined.encoder["name"] == "image ++ image"
    text = dict.fromkeys(("train", "dev"), pairs.stores["text"].folder)
    stores = {
        n: {"image": dict.fromkeys(text, f), "text": text} for n, f in zip(names, (image.folder, both), strict=True)
    }
    out = tmp_path / "out.json"
    encoders.measured(SimpleNamespace(seeds=[0, 1], epochs=1, work=tmp_path / "work", out=out), stores)
    found = json.loads(out.read_text())["encoders"]
    assert found["lite0"]["difference"]["values"] == [0.0, 0.0]
    assert found["lite0 ++ lite1"]["recall_at_1"]["mean"]["n"] == 2
    assert found["lite0"]["cca_on_dev"] > 0.3  # of 300 photos, which it was fitted on; by chance 0.003
    assert found["lite0"]["cca_on_dev"] == pytest.approx(found["lite0 ++ lite1"]["cca_on_dev"], abs=0.02)


def test_a_study_on_some_photos_keeps_all_of_dev_and_their_captions(tmp_path):
    lines = [f"p{i}.jpg,caption {i} {k},{'dev' if i < 3 else 'train'}" for i in range(10) for k in range(2)]
    (tmp_path / "pairs.csv").write_text("\n".join(["image,text,split", *lines]))
    path = encoders.some_photos(tmp_path / "pairs.csv", 4, tmp_path / "work/pairs.csv")
    table = PairTable.read(path)
    assert [len(table.items("image", s)) for s in ("dev", "train")] == [3, 4] and len(table.cells("text")) == 14
    assert table.value("image", 0) == str(tmp_path / "p0.jpg")
