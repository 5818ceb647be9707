"""The studies' own runs: each changes what it says it changes; means and intervals are what they are called."""

import dataclasses
import json
import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from fusemix.data.latent_store import LatentStore, write_latents
from fusemix.data.pair_set import PairSet
from fusemix.data.pairs import PairTable
from fusemix.encoders import load_encoder
from fusemix.model.config import TrainConfig
from fusemix.training.losses import info_nce
from studies import ablations, common, drawing_code, encoders, interpolation, low_data, modalities, pooling, robustness
from studies.svg_code import code_latent
from train import RECIPES

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
    some.questions = ["mixing"]  # the same seeds and the same recipe: the row that is there stays, in its place
    ablations.run(some)
    both = ["paper's recipe", "mixing: none, half the pairs a step", "batch: a quarter"]
    assert list(json.loads(out.read_text())["variants"]) == both
    other = json.loads(out.read_text())
    other["variants"]["paper's recipe"]["mean_recall_at_1"]["values"] = [0.5]  # of another machine
    out.write_text(json.dumps(other))
    ablations.run(some)
    assert list(json.loads(out.read_text())["variants"]) == both[:2]


def test_a_subset_keeps_whole_photos_and_the_closed_forms_find_them(pairs, monkeypatch):
    part = common.subset(pairs, 60, seed=0)
    assert len(part) == 120 and len(np.unique(part.groups)) == 60
    assert set(common.subset(pairs, 60, seed=1).groups.tolist()) != set(part.groups.tolist())
    monkeypatch.setattr(low_data, "DIRECTIONS", 8)
    found = low_data.closed_forms(part, pairs, pairs)
    assert set(found) == {"CCA", "CCA, unpaired captions", "ridge"}
    assert min(found.values()) > 0.3  # of 300 photos; by chance 0.003


def test_few_pairs_compares_the_default_recipe_with_its_own_ridge(tmp_path, monkeypatch):
    noise = np.random.default_rng(0).normal(size=(20, 384)).astype(np.float32)
    stores = {name: write_latents(tmp_path / name, noise, modality=name, name=name) for name in ("image", "text")}
    pairs, seen = PairSet.join(stores), {}

    def trained(kind, pairs, dev, model, config, folder):
        seen[folder.name] = (model, config)
        return {"mean": 0.5}

    monkeypatch.setattr(low_data, "trained", trained)
    monkeypatch.setattr(low_data, "closed_forms", lambda *_: {"CCA": 0.25})
    found = low_data.measured(pairs, pairs, pairs, 3, 0, tmp_path)
    assert found == {"FuseMix": 0.5, "FuseMix + structure": 0.5, "two-path": 0.5, "views": 0.5, "CCA": 0.25}
    flags = RECIPES["views"]
    model, config = seen["views"]
    assert (model.embed_dim, model.expansion, config.closed_form_ridge) == tuple(flags.values())
    assert model.n_paths == 4 and seen["two-path"][0].n_paths == 2 and seen["FuseMix"][0].n_paths == 1
    assert {config.epochs for _, config in seen.values()} == {3}


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


def test_weight_decay_and_depth_reach_the_run(pairs, tmp_path):
    chosen = {f"{v.question} {v.name}": v for v in ablations.VARIANTS if v.question in ("weight decay", "depth")}
    assert list(chosen) == ["depth 4", "weight decay 0", "weight decay 0.01", "weight decay 1"]
    run = run_of(chosen["weight decay 1"].kind, pairs, tmp_path, **chosen["weight decay 1"].config)
    assert [group["weight_decay"] for group in run.optimizer.param_groups] == [1.0, 0.0]
    assert len(run_of(common.StudyRun, pairs, tmp_path / "b").model.adapters["image"]) == 1 + 2
    assert common.model_config(pairs, **chosen["depth 4"].model).depth == 4


def attended(tokens, queries):
    """Attention pooling as its docstring has it, one picture, query and position at a time."""
    out = []
    for picture in tokens:
        for number, query in enumerate(queries):
            logits = []
            for token in picture:
                normal = (token - token.mean()) / (token.var(correction=0) + 1e-5).sqrt()
                logits.append(float(normal @ query) / math.sqrt(len(token)))
            total = sum(math.exp(value) for value in logits)
            share = picture.chunk(len(queries), dim=1)[number]
            out.append(sum(math.exp(value) / total * part for value, part in zip(logits, share, strict=True)))
    return torch.cat(out).reshape(len(tokens), -1)


def test_poolings_match_the_written_formulas_and_learned_ones_start_as_the_mean():
    tokens = torch.rand(3, 5, 8, generator=torch.Generator().manual_seed(0))
    for make in pooling.LEARNED.values():
        assert torch.allclose(make(8)(tokens), tokens.mean(dim=1), atol=1e-5)
    attention = pooling.Attention(8, queries=4)
    attention.queries.data.normal_(0, 3, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(attention(tokens), attended(tokens, attention.queries.data), atol=1e-5)
    first = tokens[0, :, 0].tolist()
    cube = (sum(value**3 for value in first) / 5) ** (1 / 3)
    assert float(pooling.generalised_mean(tokens)[0, 0]) == pytest.approx(cube, rel=1e-5)
    both = pooling.mean_and_std(tokens)
    assert both.shape == (3, 16) and float(both[0, 8]) == pytest.approx(float(np.std(first)), rel=1e-5)
    assert float(pooling.mean_and_max(tokens)[0, 8]) == max(first)


def test_cached_tokens_are_what_the_encoders_average():
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8))
    tokens = pooling.LastMap().encode([photo]).reshape(49, 1280)
    assert np.allclose(tokens.mean(axis=0), load_encoder("efficientnet-lite0").encode([photo])[0], atol=1e-4)
    assert tokens.std(axis=0).max() > 0.1
    sound = (16000, rng.normal(0, 0.1, 320 * 64).astype(np.float32))  # 64 frames
    segments = pooling.Segments().encode([sound]).reshape(32, 384)
    assert np.allclose(segments.mean(axis=0), load_encoder("whisper-tiny.en").encode([sound])[0], atol=1e-4)


@pytest.fixture
def tokens(tmp_path):
    """200 photos with two captions each; what a caption says stands at one of three positions, noise at the others.

    That position is marked by the last dimension. Splits alternate by photo.
    """
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(200, 6))
    maps = 3 * rng.normal(size=(200, 3, 12))
    maps[:, :, 11] = 0
    place = rng.integers(0, 3, 200)
    maps[np.arange(200), place, :11] = hidden @ rng.normal(size=(6, 11))
    maps[np.arange(200), place, 11] = 9
    text = np.repeat(hidden, 2, axis=0) @ rng.normal(size=(6, 10))
    group = np.repeat(range(200), 2)
    pd.DataFrame({"image": [f"{g}.jpg" for g in group], "text": "x"}).to_csv(tmp_path / "pairs.csv", index=False)
    table = PairTable.read(tmp_path / "pairs.csv")
    stores = {"image": {}, "text": {}}
    for number, split in enumerate(("train", "dev")):
        row = np.flatnonzero(group % 2 == number)
        for name, x, item in (("image", maps.reshape(200, -1)[number::2], np.repeat(range(100), 2)),
                              ("text", text[row], np.arange(200))):  # fmt: skip
            frame = pd.DataFrame({"row": row, "item": item, "group": group[row], "split": split})
            store = write_latents(
                tmp_path / f"{name}-{split}", x.astype(np.float32), modality=name, name=name,
                index=lambda _, f=frame: f, table=table,
            )  # fmt: skip
            store.manifest["split"] = split
            stores[name][split] = store
    return stores


def test_tokens_are_mixed_like_the_latents_that_are_their_means(tokens, tmp_path):
    table = PairTable.read(tmp_path / "pairs.csv")
    mean = pooling.pooled(tokens["image"]["train"], "mean", 12, table, tmp_path)
    pairs = PairSet.join({"image": LatentStore.open(mean), "text": tokens["text"]["train"]})
    plain = run_of(pooling.Measured, pairs, tmp_path / "a")
    learned = run_of(lambda *a: pooling.Learned(pooling.GeneralisedMean, tokens["image"], *a), pairs, tmp_path / "b")
    first, second = batch_of(plain), batch_of(learned)
    assert second["image"].shape == (32, 3, 12)
    assert torch.allclose(second["image"].mean(dim=1), first["image"], atol=1e-5)
    assert torch.allclose(second["text"], first["text"])
    weight = plain.model.adapters["image"][-1].weight
    assert torch.equal(weight, learned.model.adapters["image"][1][-1].weight)


def test_attention_finds_the_position_that_means_leave_in_the_noise(tokens, tmp_path, monkeypatch):
    monkeypatch.setattr(pooling, "WIDTHS", {"image": 12})
    monkeypatch.setattr(pooling, "CCA", {"directions": 5, "ridge": 0.1})
    monkeypatch.setattr(pooling, "FIXED", {n: pooling.FIXED[n] for n in ("mean", "mean ++ std")})
    monkeypatch.setattr(pooling, "LEARNED", {n: pooling.LEARNED[n] for n in ("attention, one query",)})
    monkeypatch.setattr(pooling, "TrainConfig", partial(TrainConfig, learning_rate=1e-2))
    args = SimpleNamespace(seeds=[0], epochs=15, work=tmp_path / "work", pairs=tmp_path / "pairs.csv")
    *_, found = pooling.measured(args, tokens["image"], {s: store.folder for s, store in tokens["text"].items()})
    assert (found["pairs"], found["dev_pairs"], found["tokens"]) == (200, 200, 3)
    assert list(found["poolings"]) == [*pooling.FIXED, *pooling.LEARNED]
    mean, attention = found["poolings"]["mean"], found["poolings"]["attention, one query"]
    assert mean["difference"]["values"] == [0.0] and mean["cca"]["mean"] > 0.03
    assert attention["positions"][0] < 2.95 and attention["cca"] is None
    assert attention["recall"]["mean"]["mean"] > 1.5 * mean["recall"]["mean"]["mean"]


SVG = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 10 10">{head}
<g {name}><path {name} fill="#ff0000" style="stroke:blue;stroke-linecap:round" d="{d}"/></g>{tail}</svg>"""


def test_the_code_of_a_drawing_says_what_is_drawn_and_never_what_it_is_called():
    whale = SVG.format(head="", name="", tail="", d="M0 0 L4 0 l0,4 h-4 z")
    named = SVG.format(
        head="<title>whale</title><metadata><d>a whale</d></metadata><desc>whale</desc><!-- whale -->",
        name='id="whale" class="whale" label="whale"', tail="", d="M0 0 L4 0 l0,4 h-4 z",
    )  # fmt: skip
    latent = code_latent(whale)
    assert latent.shape == (1024,) and latent.dtype == np.float32 and np.array_equal(latent, code_latent(named))
    fills, strokes = latent[624:688], latent[688:752]
    assert np.flatnonzero(fills).tolist() == [3 * 16] and np.flatnonzero(strokes).tolist() == [3]
    assert np.expm1(latent[:512]).sum() == pytest.approx(sum(8 - n for n in range(4)))  # svg g path M L l h z
    ends = np.expm1(latent[752:896]).reshape(12, 12)
    assert [ends[y, x] for y, x in ((0, 0), (0, 11), (11, 11), (11, 0))] == pytest.approx([1, 1, 1, 1])
    ways = np.expm1(latent[896:1008]).reshape(16, 7)
    assert ways[:, 6].nonzero()[0].tolist() == [0, 4, 8, 12] and ways.sum() == pytest.approx(4)
    assert not np.array_equal(latent, code_latent(whale.replace("h-4", "h-2")))
    for empty, message in ((SVG.format(head="", name="", tail="", d=""), "no path"), ("<svg", "well-formed")):
        with pytest.raises(ValueError, match=message):
            code_latent(empty)


def test_drawings_are_held_out_by_title_and_luck_is_what_it_is_by_hand(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    rows, drawn = [], tmp_path / "svg"
    drawn.mkdir()
    for number in range(240):  # 120 titles of two drawings
        title, side = number // 2, 2 + number // 2 % 12
        noise = " ".join(f"l{x:.2f} {y:.2f}" for x, y in rng.normal(size=(3, 2)))
        colour = f"#{title // 12 * 24:02x}{side * 20:02x}00"
        d = f"M0 0 {'h1 ' * side}{noise}z"
        svg = SVG.format(head="", name="", tail="", d=d).replace("#ff0000", colour)
        (drawn / f"{number}.svg").write_text(svg)
        kind = "openmoji" if title % 3 == 0 else "openclipart"
        rows.append((f"{kind}-{number}", f"{number}.webp", f"{colour} {side}", f"t{title}"))
    pd.DataFrame(rows, columns=["id", "image", "text", "group"]).to_csv(tmp_path / "gallery.csv", index=False)
    files = {name: drawn / f"{name.partition('-')[2]}.svg" for name, *_ in rows}
    (drawn / "7.svg").write_text("<svg")  # left out
    path = drawing_code.drawn_rows(PairTable.read(tmp_path / "gallery.csv"), files, tmp_path / "pairs.csv")
    table = PairTable.read(path, own=("code",))
    code = drawing_code.code_store(table, tmp_path / "code")
    assert len(code) == 239 and (code.modality, code.encoder["name"]) == ("code", "svg-counts")
    hidden = rng.normal(size=(120, 8))[[int(g[1:]) for g in table.frame["group"]]]
    stores = {"code": code}
    for name, dim in (("text", 20), ("image", 24)):
        view = (hidden @ rng.normal(size=(8, dim)) + 0.05 * rng.normal(size=(239, dim))).astype(np.float32)
        index = code.rows
        stores[name] = write_latents(
            tmp_path / name, view, modality=name, name=name, index=lambda _, i=index: i, table=table
        )
    shapes = {"paper's recipe": {"expansion": 0.5}, "two paths": {"closed_form_dim": 8, "expansion": 1.0}}
    monkeypatch.setattr(drawing_code, "RECIPES", shapes)
    args = SimpleNamespace(seeds=[0], epochs=2, work=tmp_path / "work")
    found = drawing_code.measured(args, stores, table.frame["source"].to_numpy())
    recall = found["recall"]
    assert set(recall["image-text + code-text, two paths"]) == {
        f"{a} to {b}" for a in ("code", "text", "image") for b in ("code", "text", "image") if a != b
    }
    assert set(recall["code-text, CCA"]) == {"code to text", "text to code"}
    assert recall["image-text, two paths"]["image to text"]["recall_at_10"]["mean"] > 0.8
    held = drawing_code.held_out(code.rows["group"].to_numpy(), 0)
    train, test = drawing_code._split(stores, held, ("code", "text"))
    assert not set(train.groups) & set(test.groups) and len(np.unique(test.groups)) == 24
    assert set(held) != set(drawing_code.held_out(code.rows["group"].to_numpy(), 1))
    alone = drawing_code._of_collection(test, table.frame["source"].to_numpy() == "openmoji")
    assert 0 < len(alone) < len(test) and set(recall) >= {"chance, openmoji alone", "code-text, CCA, openmoji alone"}
    kinds = table.frame["source"].to_numpy()[code.rows.set_index("item")["row"].loc[alone.items["code"]]]
    assert set(kinds) == {"openmoji"}
    if len(test) == 48:  # every title has both its drawings
        n = 48
        by_hand = 1 - (n - 2) * (n - 3) * (n - 4) * (n - 5) * (n - 6) / (n * (n - 1) * (n - 2) * (n - 3) * (n - 4))
        chance = drawing_code.luck(test, table.frame["source"].to_numpy())
        assert chance["chance"]["code to text"]["recall_at_5"] == pytest.approx(by_hand)
        assert chance["source"]["code to text"]["recall_at_5"] > by_hand
