import dataclasses
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from fusemix.data.latent_store import LatentStore
from fusemix.data.latent_writer import write_latents
from fusemix.data.pair_set import PairSet
from fusemix.distributed import join_processes
from fusemix.model.adapters import FusionModel
from fusemix.model.config import VIEWS, ModelConfig, TrainConfig
from fusemix.search.calibration import load_calibrations
from fusemix.training.estimate import plan
from fusemix.training.losses import info_nce
from fusemix.training.mixup import draw_lam
from fusemix.training.start import fingerprint
from fusemix.training.trainer import Trainer, save_result, train

ROOT = Path(__file__).resolve().parents[2]
CONFIG = TrainConfig(batch_size=64, epochs=8, learning_rate=3e-3, warmup_steps=5, val_fraction=0.2)


@pytest.fixture
def stores(tmp_path):
    """300 correlated triples: three noisy linear views of one hidden vector."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(300, 10))
    made = {}
    for name, dim in (("image", 24), ("text", 16), ("audio", 12)):
        view = hidden @ rng.normal(size=(10, dim)) + 0.1 * rng.normal(size=(300, dim))
        made[name] = write_latents(tmp_path / name, view.astype(np.float32), modality=name, name=f"toy-{name}")
    return made


def model_config(stores, **changes):
    return ModelConfig(
        latent_dims={m: s.dim for m, s in stores.items()},
        encoders={m: s.encoder for m, s in stores.items()},
        embed_dim=16,
        dropout=0.1,
        **changes,
    )


def pick(stores, *names):
    return {name: stores[name] for name in names}


def test_training_beats_chance_by_a_wide_margin(stores, tmp_path):
    two = pick(stores, "image", "text")
    result = train([PairSet.join(two)], model_config(two), CONFIG, tmp_path / "run")
    n_val = 60
    assert result.finished and result.best["score"] > 20 / n_val
    assert result.history[0]["loss"] > result.history[-1]["loss"]


def test_modalities_that_never_met_meet_through_the_pivot(stores, tmp_path):
    sets = [PairSet.join(pick(stores, "image", "text")), PairSet.join(pick(stores, "audio", "text"))]
    config = dataclasses.replace(CONFIG, epochs=30)
    model = train(sets, model_config(stores), config, tmp_path / "run").model
    image = model.embed("image", stores["image"].all())
    audio = model.embed("audio", stores["audio"].all())
    top = (audio @ image.T).topk(10, dim=1).indices
    recall_at_10 = (top == torch.arange(300)[:, None]).any(dim=1).float().mean()
    assert recall_at_10 > 0.25  # chance 0.033


def test_a_new_modality_trains_into_a_frozen_space(stores, tmp_path):
    two, pair = pick(stores, "image", "text"), pick(stores, "audio", "text")
    base = train([PairSet.join(two)], model_config(two), CONFIG, tmp_path / "base").model
    config = dataclasses.replace(CONFIG, frozen=("image", "text"), epochs=30)
    wide = train([PairSet.join(pair)], model_config(stores), config, tmp_path / "wide", init=base)
    for modality in ("image", "text"):
        latents = stores[modality].all()
        assert torch.equal(base.embed(modality, latents), wide.model.embed(modality, latents))
    assert wide.best["score"] > 0.2  # of about 60 held-out pairs
    with pytest.raises(ValueError, match=r"Cannot freeze \['audio'\]"):
        bad = dataclasses.replace(config, frozen=("audio",))
        train([PairSet.join(pair)], model_config(stores), bad, tmp_path / "bad", init=base)


def test_the_same_seed_gives_the_same_weights_and_another_seed_does_not(stores, tmp_path):
    two = pick(stores, "image", "text")
    config = dataclasses.replace(CONFIG, epochs=2)
    runs = [
        train([PairSet.join(two)], model_config(two), dataclasses.replace(config, seed=seed), tmp_path / str(i))
        for i, seed in enumerate((0, 0, 1))
    ]
    assert runs[0].model.identity == runs[1].model.identity != runs[2].model.identity


@pytest.mark.parametrize("dropout_rows", [1, 5])
def test_a_stopped_run_resumes_to_the_same_weights_as_an_uninterrupted_one(stores, tmp_path, dropout_rows):
    two, config = pick(stores, "image", "text"), dataclasses.replace(CONFIG, dropout_rows=dropout_rows)
    whole = train([PairSet.join(two)], model_config(two), config, tmp_path / "whole")
    for stop_at in (3, 6, 9):  # of 24 steps, in the middle of epochs
        steps = iter(range(1, stop_at + 1))
        part = train(
            [PairSet.join(two)],
            model_config(two),
            config,
            tmp_path / "parts",
            should_stop=lambda steps=steps: next(steps, None) is None,
        )
        assert not part.finished
    resumed = train([PairSet.join(two)], model_config(two), config, tmp_path / "parts")
    assert resumed.model.identity == whole.model.identity
    assert resumed.history == whole.history


@pytest.mark.parametrize("accumulate", [1, 2])
def test_latents_held_in_memory_or_read_from_disk_give_the_same_weights_to_the_bit(stores, tmp_path, accumulate):
    sets = [pick(stores, "image", "text"), pick(stores, "audio", "text")]
    config = dataclasses.replace(CONFIG, epochs=3, accumulate=accumulate)
    results = {}
    for hold_bytes in (0, 300 * 14 * 4, 2**20):  # none, the narrowest, all
        opened = {m: LatentStore.open(store.folder) for m, store in stores.items()}
        joined = [PairSet.join({m: opened[m] for m in s}) for s in sets]
        run = train(joined, model_config(stores), config, tmp_path / str(hold_bytes), hold_bytes=hold_bytes)
        results[hold_bytes] = run.model.identity, str(run.history)
        held = [m for m, store in opened.items() if store.held]
        assert held == {0: [], 300 * 14 * 4: ["audio"], 2**20: ["image", "text", "audio"]}[hold_bytes]
    assert len(set(results.values())) == 1


def test_latents_that_are_not_held_are_read_a_step_ahead_by_another_thread(stores, tmp_path, monkeypatch):
    two, threads = pick(stores, "image", "text"), []
    whole = LatentStore.gather

    def gather(self, items, device="cpu"):
        threads.append((len(items), threading.current_thread() is threading.main_thread()))
        return whole(self, items, device)

    monkeypatch.setattr(LatentStore, "gather", gather)
    config = dataclasses.replace(CONFIG, epochs=2)
    result = train([PairSet.join(two)], model_config(two), config, tmp_path / "run", hold_bytes=0)
    steps = result.history[-1]["step"]
    batches = [alone for count, alone in threads if count == CONFIG.batch_size]
    assert batches.count(True) == 2 and batches.count(False) == 2 * (steps - 1)  # the first step has nobody before it


@pytest.mark.slow
def test_the_memory_of_a_run_does_not_grow_with_its_latents(tmp_path):
    """150 and 600 MB of float32 on disk; the second run's own memory may not follow."""
    child = (
        "import sys; from pathlib import Path; import torch; torch.set_num_threads(1)\n"
        "from fusemix.model.config import ModelConfig, TrainConfig; from fusemix.data.latent_store import LatentStore\n"
        "from fusemix.training.trainer import PairSet, train\n"
        "stores = {m: LatentStore.open(Path(sys.argv[1]) / m, verify=True) for m in ('image', 'text')}\n"
        "config = TrainConfig(batch_size=256, epochs=1, val_fraction=0.01, max_val_groups=50)\n"
        "stop = iter([False] * 5 + [True])\n"
        "train([PairSet.join(stores)], ModelConfig(latent_dims={'image': 512, 'text': 512}, embed_dim=16), config,\n"
        "      Path(sys.argv[1]) / 'run', hold_bytes=2**20, should_stop=lambda: next(stop))\n"
        "status = Path('/proc/self/status').read_text()\n"
        "print(next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith('RssAnon')))\n"
    )
    own = []
    for pieces in (4, 16):
        values = np.random.default_rng(0).normal(size=(9_000, 512)).astype(np.float32)
        for m in ("image", "text"):
            parts = (np.roll(values, i, axis=0) for i in range(pieces))
            write_latents(tmp_path / str(pieces) / m, parts, modality=m, name=m)
        command = [sys.executable, "-c", child, str(tmp_path / str(pieces))]
        own.append(float(subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout))
    assert own[1] - own[0] < 100  # MiB; 430 more lie on disk


def test_a_size_that_is_none_is_refused_with_a_sentence(stores, tmp_path):
    folders = [f"{m}={stores[m].folder}" for m in ("image", "text")]
    command = [sys.executable, str(ROOT / "scripts/train.py"), "--latents", *folders, "--out", str(tmp_path / "o")]
    done = subprocess.run([*command, "--hold-latents", "lots"], capture_output=True, text=True)
    assert done.returncode == 2 and "A size is a number" in done.stderr and "Traceback" not in done.stderr
    done = subprocess.run([*command, "--hold-latents", "1 kB", "--epochs", "1"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_last_epoch_that_none_before_clearly_beats_is_kept(stores, tmp_path, monkeypatch):
    two, scores = pick(stores, "image", "text"), iter([0.5, 0.8, 0.76, 0.4])
    monkeypatch.setattr(
        "fusemix.training.trainer.validation_recall", lambda *_: {"image+text/text_to_image": next(scores)}
    )
    config = dataclasses.replace(CONFIG, epochs=4, eval_every=1)
    run, kept = Trainer([PairSet.join(two)], model_config(two), config, tmp_path), []
    assert 30 < run.val_groups < 90  # one standard error of 0.8 is then 0.04 to 0.07
    result = run.run(report=lambda p: p.recall is not None and kept.append(p.temperature))
    assert [entry["score"] for entry in result.history] == [0.5, 0.8, 0.76, 0.4]
    assert (result.best["epoch"], result.best["score"]) == (3, 0.76)
    assert result.model.state_dict()["temperature"].item() == kept[2] != kept[3]


def test_test_rows_are_neither_trained_nor_validated_on(tmp_path):
    values = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    splits = ["train"] * 30 + ["val"] * 10 + ["test"] * 20
    pair = {m: write_latents(tmp_path / m, values, modality=m, name=m, splits=splits) for m in ("image", "text")}
    train_pairs, val_pairs = PairSet.join(pair).divide(CONFIG)
    assert train_pairs.tolist() == list(range(30)) and val_pairs.tolist() == list(range(30, 40))


def test_groups_never_cross_into_validation(stores, tmp_path):
    values = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    pair = {m: write_latents(tmp_path / m, values, modality=m, name=m, groups=np.arange(200) // 5) for m in ("x", "y")}
    joined = PairSet.join(pair)
    train_pairs, val_pairs = joined.divide(CONFIG)
    assert not set(joined.groups[train_pairs]) & set(joined.groups[val_pairs])
    assert len(train_pairs) + len(val_pairs) == 200


def test_wrong_input_is_answered_early(stores, tmp_path, monkeypatch):
    two = pick(stores, "image", "text")
    wrong = dataclasses.replace(model_config(two), latent_dims={"image": 25, "text": 16})
    with pytest.raises(ValueError, match="image latents of width 24, the model takes 25"):
        train([PairSet.join(two)], wrong, CONFIG, tmp_path / "run")
    values = stores["image"].all()
    values[7, 3] = np.nan
    monkeypatch.setattr("fusemix.data.latent_writer.check_range", lambda *_: None)  # a store of an older version
    nan = {"image": write_latents(tmp_path / "nan", values, modality="image", name="toy-image"), "text": stores["text"]}
    with pytest.raises(ValueError, match="NaN or infinite values in 1 latents, first in item 7"):
        train([PairSet.join(nan)], model_config(nan), CONFIG, tmp_path / "run")
    few = {m: write_latents(tmp_path / f"few-{m}", s.all()[:3], modality=m, name=m) for m, s in two.items()}
    with pytest.raises(ValueError, match="Only 3 rows"):
        PairSet.join(few)
    with pytest.raises(ValueError, match="at least two modalities"):
        PairSet.join(pick(stores, "image"))


def test_a_state_of_another_run_is_refused(stores, tmp_path):
    two = pick(stores, "image", "text")
    train([PairSet.join(two)], model_config(two), CONFIG, tmp_path / "run", should_stop=lambda: True)
    with pytest.raises(ValueError, match="other latents or settings"):
        train([PairSet.join(two)], model_config(two), dataclasses.replace(CONFIG, seed=5), tmp_path / "run")
    os.truncate(tmp_path / "run" / "training_state.pt", 1000)
    with pytest.raises(ValueError, match="damaged"):
        train([PairSet.join(two)], model_config(two), CONFIG, tmp_path / "run")


def test_other_latents_or_other_pairs_under_the_same_settings_are_another_run(stores, tmp_path):
    two = pick(stores, "image", "text")
    train([PairSet.join(two)], model_config(two), CONFIG, tmp_path / "run", should_stop=lambda: True)
    values = stores["text"].all().copy()
    values[5, 0] += 1
    other = {"image": stores["image"], "text": write_latents(tmp_path / "o", values, modality="text", name="toy-text")}
    joined = PairSet.join(two)
    crossed = PairSet(two, joined.items | {"text": joined.items["text"][::-1]}, joined.groups, joined.splits)
    for pairs in (PairSet.join(other), crossed):
        with pytest.raises(ValueError, match="other latents or settings"):
            train([pairs], model_config(two), CONFIG, tmp_path / "run")


def test_other_groups_another_split_or_another_start_are_another_run_too(stores, tmp_path):
    joined = PairSet.join(pick(stores, "image", "text"))
    sides = np.array(["train"] * 240 + ["val"] * 60, dtype=object)
    usual = PairSet(joined.stores, joined.items, joined.groups, sides)
    config, start = model_config(joined.stores), FusionModel(model_config(joined.stores))
    others = [
        (PairSet(joined.stores, joined.items, joined.groups // 2, sides), None),
        (PairSet(joined.stores, joined.items, joined.groups, sides[::-1]), None),
        (usual, start),
    ]
    prints = [fingerprint([pairs], config, CONFIG, init) for pairs, init in [(usual, None), *others, (usual, None)]]
    assert len(set(prints)) == 4 and prints[0] == prints[-1]


def test_an_epochs_loss_is_the_mean_of_its_steps_and_only_some_epochs_are_measured_and_saved(
    stores, tmp_path, monkeypatch
):
    losses, saved, usual = [], [], Trainer.save
    monkeypatch.setattr(Trainer, "save", lambda self: saved.append(self.step) or usual(self))
    config = dataclasses.replace(CONFIG, epochs=5, eval_every=2, save_every=3)
    two = pick(stores, "image", "text")
    result = train([PairSet.join(two)], model_config(two), config, tmp_path, report=lambda p: losses.append(p.loss))
    steps = len(losses) // 5
    assert [entry["epoch"] for entry in result.history] == [2, 4, 5] and saved == [3 * steps, 5 * steps]
    for entry in result.history:
        assert entry["loss"] == pytest.approx(np.mean(losses[(entry["epoch"] - 1) * steps : entry["epoch"] * steps]))


def test_the_weights_of_the_kept_epoch_are_returned_and_not_the_last(stores, tmp_path, monkeypatch):
    scores, seen = iter([0.2, 0.9, 0.1]), []

    def recall(model, *_):
        seen.append(model.identity)
        return {"only": next(scores)}

    monkeypatch.setattr("fusemix.training.trainer.validation_recall", recall)
    two = pick(stores, "image", "text")
    result = train([PairSet.join(two)], model_config(two), dataclasses.replace(CONFIG, epochs=3), tmp_path)
    assert result.best["epoch"] == 2 and result.model.identity == seen[1] != seen[2]


def test_a_mixed_pair_belongs_to_the_group_of_its_heavier_half(stores, tmp_path):
    two = pick(stores, "image", "text")
    config = dataclasses.replace(CONFIG, multi_positive=True, mixup_per_row=True)
    run = Trainer([PairSet.join(two)], model_config(two), config, tmp_path)
    drawn = run.draw(0)
    lam = draw_lam(1.0, len(drawn.halves[0]), np.random.default_rng(1), per_row=True)[:, 0]
    heavier = np.where(lam > 0.5, drawn.groups[0], drawn.groups[1])
    assert run.mix(drawn, np.random.default_rng(1)).groups.tolist() == heavier.tolist()


def test_every_piece_of_every_step_has_dropout_masks_of_its_own_in_both_passes(stores, tmp_path):
    two, seeds = pick(stores, "image", "text"), []
    run = Trainer([PairSet.join(two)], model_config(two), dataclasses.replace(CONFIG, accumulate=3), tmp_path)
    usual, run.forward = run.forward, lambda latents: seeds.append(torch.initial_seed()) or usual(latents)
    run.take_step(), run.take_step()
    assert seeds[:3] == seeds[3:6] and seeds[6:9] == seeds[9:] and len(set(seeds)) == 6


def test_rows_of_a_piece_lose_the_same_units_and_no_others(stores, tmp_path):
    two = pick(stores, "image", "text")
    config = dataclasses.replace(CONFIG, dropout_rows=16, mixup_alpha=None, mixed_precision="no")
    run = Trainer([PairSet.join(two)], model_config(two), config, tmp_path)
    seen = torch.ones(64, 24, requires_grad=True)
    run.model.adapters["image"].train()[0](seen)[:, 0].sum().backward()
    by_row = seen.grad
    assert torch.equal(by_row[0], by_row[15]) and not torch.equal(by_row[15], by_row[16])


def test_a_step_is_taken_at_its_rate_and_from_weights_of_the_runs_seed(stores, tmp_path):
    two, firsts = pick(stores, "image", "text"), []
    for seed in (0, 1):
        run = Trainer([PairSet.join(two)], model_config(two), dataclasses.replace(CONFIG, seed=seed), tmp_path)
        firsts.append(run.model.identity)
        for step in range(3):
            run.take_step()
            assert {group["lr"] for group in run.optimizer.param_groups} == {run.learning_rate(step)}
    assert firsts[0] != firsts[1]


def test_a_frozen_adapter_is_without_dropout_while_others_train(stores, tmp_path):
    two, seen = pick(stores, "image", "text"), []
    config = dataclasses.replace(CONFIG, frozen=("image",), mixup_alpha=None, mixed_precision="no")
    base = FusionModel(model_config(two))
    run = Trainer([PairSet.join(two)], model_config(two), config, tmp_path, init=base)
    usual = run.forward
    run.forward = lambda latents: seen.append((latents["image"], usual(latents))) or seen[-1][1]
    run.take_step()
    latents, out = seen[0]
    expected = base.eval().adapters["image"](latents)
    torch.testing.assert_close(out["image"], expected)
    assert run.model.adapters["text"].training and not out["image"].requires_grad


def test_the_loss_of_three_modalities_is_the_mean_of_their_pairs(stores, tmp_path):
    exact = dataclasses.replace(CONFIG, mixed_precision="no")
    run = Trainer([PairSet.join(stores)], model_config(stores), exact, tmp_path)
    out = {name: torch.randn(6, 16) for name in stores}
    each = [info_nce(out[a], out[b], temperature=run.model.temperature) for a, b in itertools.combinations(out, 2)]
    torch.testing.assert_close(run.loss(out, None), torch.stack(each).mean())


def test_the_closed_form_is_fitted_to_training_pairs_alone(stores, tmp_path):
    two = pick(stores, "image", "text")
    pairs = PairSet.join(two)
    run = Trainer([pairs], model_config(two, closed_form_dim=4), CONFIG, tmp_path)
    train_pairs, _ = pairs.divide(CONFIG)
    expected = stores["image"].all()[train_pairs].mean(0)
    torch.testing.assert_close(run.model.adapters["image"].mean, torch.from_numpy(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("per_row", [False, True])
def test_every_step_mixes_with_coefficients_of_its_own_which_all_modalities_share(stores, tmp_path, per_row):
    config = dataclasses.replace(CONFIG, mixup_per_row=per_row)
    run, used, usual = Trainer([PairSet.join(stores)], model_config(stores), config, tmp_path), [], Trainer.mix

    def mix(drawn, rng):
        batch = usual(run, drawn, rng)
        found = []
        for name, mixed in batch.latents.items():
            first, second = (x.double() for x in drawn.latents[name].chunk(2))
            apart = first - second
            found.append(((mixed.double() - second) * apart).sum(1) / (apart**2).sum(1))  # lam, by least squares
        for other in found[1:]:
            torch.testing.assert_close(other, found[0], rtol=0, atol=1e-4)
        assert (found[0].std() > 0.1) == per_row
        used.append(round(float(found[0][0]), 4))
        return batch

    run.mix = mix
    for _ in range(4):
        run.take_step()
    assert len(set(used)) == 4 and all(0 <= lam <= 1 for lam in used)
    run.step = 1  # and the same again at the same step
    run.take_step()
    assert used[4] == used[1]


@pytest.mark.parametrize(("start", "bounds"), [(0.05, (0.049, 0.051)), (0.5, (0.499, 0.5)), (0.001, (0.001, 0.0011))])
def test_the_temperature_never_leaves_its_bounds(stores, tmp_path, start, bounds):
    two, seen = pick(stores, "image", "text"), []
    low, high = bounds
    config = dataclasses.replace(
        CONFIG, epochs=3, learning_rate=0.1, temperature=start, min_temperature=low, max_temperature=high
    )
    result = train(
        [PairSet.join(two)], model_config(two), config, tmp_path, report=lambda p: seen.append(p.temperature)
    )
    inside = [low - 1e-9 <= value <= high + 1e-9 for value in [*seen, float(result.model.temperature.detach())]]
    assert all(inside) and {low, high} & {round(value, 6) for value in seen}  # it was held there


def test_a_third_modality_joins_a_two_path_space_that_stays_as_it_is(stores, tmp_path):
    two, shape = pick(stores, "image", "text"), {"closed_form_dim": 8, "whiten_dim": 12}
    config = dataclasses.replace(CONFIG, epochs=60)
    base = train([PairSet.join(two)], model_config(two, **shape), config, tmp_path / "base").model
    sounds, frozen = PairSet.join(pick(stores, "audio", "text")), dataclasses.replace(config, frozen=("image", "text"))
    result = train([sounds], model_config(stores, **shape), frozen, tmp_path / "run", init=base)
    audio, image = (result.model.embed(m, stores[m].all()) for m in ("audio", "image"))
    assert torch.equal(image, base.embed("image", stores["image"].all()))
    for path in (slice(0, 8), slice(8, 16)):  # each path alone finds pictures it never met; chance is 0.003
        found = (audio[:, path] @ image[:, path].T).argmax(1) == torch.arange(300)
        assert found.float().mean() > 0.3


def test_a_space_of_another_recipe_says_what_differs(stores, tmp_path):
    two, shape = pick(stores, "image", "text"), {"closed_form_dim": 4, "whiten_dim": 12}
    base = FusionModel(model_config(two, **shape))
    frozen = dataclasses.replace(CONFIG, frozen=("image", "text"))
    with pytest.raises(ValueError, match=r"views \('whitened',\), not \('whitened', 'components', 'root'\)"):
        train([PairSet.join(two)], model_config(stores, **shape, views=VIEWS), frozen, tmp_path / "run", init=base)


def test_the_loss_is_the_mean_over_the_trained_paths_each_compared_alone(stores, tmp_path):
    two = pick(stores, "image", "text")
    shape = {"closed_form_dim": 4, "whiten_dim": 12, "views": VIEWS}
    config = dataclasses.replace(CONFIG, mixed_precision="no")
    run = Trainer([PairSet.join(two)], model_config(two, **shape), config, tmp_path / "run")
    out = {name: torch.randn(6, 12, requires_grad=True) for name in two}
    each = [
        info_nce(out["image"][:, i : i + 4], out["text"][:, i : i + 4], temperature=run.model.temperature)
        for i in (0, 4, 8)
    ]
    torch.testing.assert_close(run.loss(out, None), torch.stack(each).mean())


def test_views_learn_and_each_path_finds_pairs_alone(stores, tmp_path):
    two = pick(stores, "image", "text")
    shape = {"closed_form_dim": 4, "whiten_dim": 12, "views": VIEWS}
    config = dataclasses.replace(CONFIG, epochs=40)
    model = train([PairSet.join(two)], model_config(two, **shape), config, tmp_path / "run").model
    a, b = (model.embed(m, stores[m].all()) for m in two)
    for path in (slice(i, i + 4) for i in range(0, 16, 4)):  # chance is 0.003; of four seeds one gives 0.1
        assert ((a[:, path] @ b[:, path].T).argmax(1) == torch.arange(300)).float().mean() > 0.05
    assert ((a @ b.T).argmax(1) == torch.arange(300)).float().mean() > 0.8


@pytest.mark.parametrize(
    ("recipe", "signals"),
    [
        ("views", ["KILL"]),
        pytest.param("two-path", ["KILL", "KILL", "TERM", "KILL"], marks=pytest.mark.slow),
        pytest.param("paper", ["TERM", "INT"], marks=pytest.mark.slow),
    ],
)
def test_the_command_is_killed_and_resumes_to_equal_weights(stores, tmp_path, recipe, signals):
    def command(out):
        return [
            sys.executable, str(ROOT / "scripts/train.py"), "--latents", f"image={tmp_path / 'image'}",
            f"text={tmp_path / 'text'}", "--out", str(out), "--epochs", "20", "--batch-size", "32",
            "--embed-dim", "16", "--val-fraction", "0.2", "--recipe", recipe,
        ]  # fmt: skip

    subprocess.run(command(tmp_path / "whole"), check=True, capture_output=True)
    state, saved_before = tmp_path / "killed" / "training_state.pt", None
    for name in signals:
        process = subprocess.Popen(
            command(tmp_path / "killed"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        while process.poll() is None and (not state.exists() or state.stat().st_mtime_ns == saved_before):
            time.sleep(0.02)
        assert process.returncode is None  # killed in the midst, not at its end
        os.kill(process.pid, signal.Signals[f"SIG{name}"])
        _, said = process.communicate()
        if name != "KILL":
            assert process.returncode == 130 and "Interrupted and saved" in said
        saved_before = state.stat().st_mtime_ns
        (tmp_path / "killed" / ".training_state.pt.1.tmp").write_bytes(b"torn")  # as a kill within a write leaves it
    subprocess.run(command(tmp_path / "killed"), check=True, capture_output=True)
    whole, killed = (FusionModel.from_pretrained(tmp_path / name) for name in ("whole", "killed"))
    assert whole.identity == killed.identity
    files = {p.name for p in (tmp_path / "killed").iterdir()}
    assert files == {
        "config.json", "model.safetensors", "README.md", "train_config.json", "history.json", "training.png",
    }  # fmt: skip
    if recipe == "paper":
        again = subprocess.run(command(tmp_path / "killed"), capture_output=True, text=True)
        assert again.returncode == 2 and "already holds a finished checkpoint" in again.stderr


def test_a_plan_names_steps_memory_and_hours_and_leaves_nothing_behind(stores, tmp_path):
    two = pick(stores, "image", "text")
    made = plan([PairSet.join(two)], model_config(two), CONFIG)
    model = train([PairSet.join(two)], model_config(two), CONFIG, tmp_path / "run").model
    assert made.parameters == sum(value.numel() for value in model.state_dict().values())
    assert made.steps == (300 - 66) // 64 * CONFIG.epochs
    assert made.memory_bytes > 4 * (made.parameters * 4) and 0 < made.seconds_per_step < 5
    more = plan([PairSet.join(two)], model_config(two), dataclasses.replace(CONFIG, batch_size=128))
    assert more.memory_bytes > made.memory_bytes
    command = [
        sys.executable, str(ROOT / "scripts/train.py"), "--latents", f"image={tmp_path / 'image'}",
        f"text={tmp_path / 'text'}", "--out", str(tmp_path / "planned"), "--batch-size", "32", "--plan",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "steps of" in done.stdout and not (tmp_path / "planned").exists()


def test_a_second_training_in_one_process_may_take_another_precision():
    for precision in ("no", "bf16", "no"):
        accelerator = join_processes(precision)
        assert accelerator.mixed_precision == precision
        with accelerator.autocast():
            product = torch.ones(2, 2) @ torch.ones(2, 2)
        assert product.dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)


def test_a_finished_training_keeps_probabilities_for_both_directions(stores, tmp_path):
    two = pick(stores, "image", "text")
    config = dataclasses.replace(CONFIG, val_fraction=0.5)
    result = train([PairSet.join(two)], model_config(two), config, tmp_path / "run")
    save_result(result, tmp_path / "model", config, card="", dtype=torch.float16)
    identity = FusionModel.from_pretrained(tmp_path / "model").identity
    kept = load_calibrations(tmp_path / "model", model_identity=identity)
    assert set(kept) == {("image", "text"), ("text", "image")}
    assert kept["image", "text"].measured["ece"] < 0.05


def test_too_few_validation_pairs_leave_a_checkpoint_without_probabilities(stores, tmp_path):
    two = pick(stores, "image", "text")
    result = train([PairSet.join(two)], model_config(two), CONFIG, tmp_path / "run")
    assert result.finished and not result.calibrations  # 60 pairs are held out
