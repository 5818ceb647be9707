"""Situations from users' bug reports, of training: numbers out of range, sizes that do not divide, equal latents.

Each is answered by one sentence, or computed exactly; nothing is dropped or written that is not true.
"""

import dataclasses
import math

import numpy as np
import pytest
import torch

from fusemix.data.latent_writer import write_latents
from fusemix.data.pair_set import PairSet
from fusemix.evaluation.diagnose import geometry
from fusemix.evaluation.metrics import retrieval
from fusemix.generation.bridges import Conditioner, fit_bridge
from fusemix.model.adapters import FusionModel
from fusemix.model.cca import fit_cca
from fusemix.model.config import ModelConfig, TrainConfig
from fusemix.training.losses import info_nce
from fusemix.training.mixup import draw_lam
from fusemix.training.trainer import STATE_NAME, Trainer, train

pytestmark = pytest.mark.field
CONFIG = TrainConfig(batch_size=32, epochs=1, warmup_steps=1, val_fraction=0.2, mixed_precision="no")
RNG = np.random.default_rng(0)
HIDDEN = RNG.normal(size=(120, 6))
LATENTS = {m: (HIDDEN @ RNG.normal(size=(6, d))).astype(np.float32) for m, d in (("image", 10), ("text", 8))}


def pairs(folder, **changed):
    latents = LATENTS | changed
    return PairSet.join({m: write_latents(folder / m, x, modality=m, name=f"toy-{m}") for m, x in latents.items()})


def shape(**changes):
    return ModelConfig(**{"latent_dims": {"image": 10, "text": 8}, "embed_dim": 8, "dropout": 0.1, **changes})


def new(folder, changes=None, **latents):
    return Trainer([pairs(folder, **latents)], shape(), dataclasses.replace(CONFIG, **(changes or {})), folder / "run")


@pytest.mark.parametrize("alpha", [math.inf, math.nan, 0.0, -1.0])
def test_an_alpha_that_no_beta_distribution_has_is_refused_before_anything_is_done(alpha):
    with pytest.raises(ValueError, match="mixup_alpha must be"):
        TrainConfig(mixup_alpha=alpha)
    with pytest.raises(ValueError, match="alpha must be > 0 and finite"):
        draw_lam(alpha, 4, np.random.default_rng(0), per_row=False)


@pytest.mark.parametrize(
    "name", ["learning_rate", "weight_decay", "temperature", "closed_form_ridge", "max_temperature"]
)
@pytest.mark.parametrize("value", [math.inf, math.nan, -1.0])
def test_settings_that_are_no_numbers_or_below_zero_are_refused(name, value):
    with pytest.raises(ValueError, match=r"must be|must lie"):
        TrainConfig(**{name: value})


@pytest.mark.parametrize(("name", "value"), [("expansion", math.inf), ("dropout", math.nan), ("expansion", math.nan)])
def test_shapes_that_are_no_numbers_are_refused(name, value):
    with pytest.raises(ValueError, match="must be a finite number"):
        shape(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 1.5), ("epochs", True), ("batch_size", 32.0), ("seed", 1.5), ("accumulate", "2"), ("seed", 2**63),
        ("mixup_per_row", "no"), ("max_temperature", 1e40), ("warmup_steps", None),
    ],
)  # fmt: skip
def test_settings_of_another_kind_or_beyond_float32_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be"):
        TrainConfig(**{name: value})


def test_numbers_of_numpy_are_settings_like_others(tmp_path):
    numbers = {
        "seed": np.int64(3),
        "batch_size": np.int32(32),
        "learning_rate": np.float32(1e-3),
        "mixup_per_row": np.True_,
    }
    run = Trainer([pairs(tmp_path)], shape(embed_dim=np.int64(8), latent_dims={"image": np.int64(10), "text": 8}),
                  dataclasses.replace(CONFIG, **numbers), tmp_path / "run")  # fmt: skip
    assert (
        type(run.config.seed) is int and run.config.to_dict() == TrainConfig.from_dict(run.config.to_dict()).to_dict()
    )
    run.take_step()


@pytest.mark.parametrize("name", ["values", "train", "my.sensor", ""])
def test_a_modality_that_no_part_of_a_model_can_be_named_after_is_refused(name):
    with pytest.raises(ValueError, match=f"A modality cannot be called '{name}': "):
        shape(latent_dims={name: 10, "text": 8})


def test_latents_too_large_for_a_norm_are_named_and_not_the_learning_rate(tmp_path):
    run = new(tmp_path, text=LATENTS["text"] * np.float32(1e30))
    with pytest.raises(ValueError, match=r"the text latents reach .*e\+30, whose squares leave float32: divide"):
        run.take_step()


@pytest.mark.parametrize("ridge", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("more", [np.ones((120, 1)), LATENTS["image"][:, :1]])
def test_a_ridge_that_leaves_a_covariance_singular_is_one_sentence(ridge, more):
    latents = np.concatenate([LATENTS["image"], more], axis=1)
    with pytest.raises(ValueError, match="covariance of these latents cannot be inverted: the ridge must be"):
        fit_cca(latents, LATENTS["text"], dim=2, ridge=ridge)


def test_a_closed_form_of_no_numbers_or_no_pairs_is_one_sentence():
    for x, y in ((LATENTS["image"] * np.nan, LATENTS["text"]), (LATENTS["image"][:0], LATENTS["text"][:0])):
        with pytest.raises(ValueError, match="at least one pair, and finite values"):
            fit_cca(x, y, dim=2)


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf])
def test_a_temperature_that_divides_by_nothing_is_refused(value):
    with pytest.raises(ValueError, match="temperature must be > 0 and finite"):
        info_nce(torch.eye(3), torch.eye(3), temperature=value)


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf])
def test_a_bridge_of_no_numbers_is_refused(value):
    x, y = torch.randn(9, 4), torch.randn(9, 4)
    with pytest.raises(ValueError, match="ridge must be > 0 and finite"):
        fit_bridge("ridge", x, y, ridge=value)
    with pytest.raises(ValueError, match="norm must be > 0 and finite"):
        Conditioner({}, embed_dim=4, image_embeds_dim=4, norm=value)
    for kind in ("ridge", "moments", "covariance", "fusemix"):
        with pytest.raises(ValueError, match="to fit a bridge on are all equal"):
            fit_bridge(kind, torch.ones(9, 4), y)


def test_a_recall_of_no_query_or_of_other_widths_is_refused():
    eye, groups = torch.eye(4), np.arange(4)
    with pytest.raises(ValueError, match="ask at least one query"):
        retrieval(eye[:0], eye, groups[:0], groups)
    with pytest.raises(ValueError, match=r"Expected queries \(Q, D\) and a gallery"):
        retrieval(eye, torch.eye(5)[:4], groups, groups)


def test_a_loss_that_leaves_the_numbers_says_truly_what_is_kept(tmp_path):
    run = new(tmp_path)
    weights = {name: value.clone() for name, value in run.model.state_dict().items()}
    run.loss = lambda out, groups: sum(x.sum() for x in out.values()) * math.inf
    with pytest.raises(
        ValueError, match=r"The loss became .* at step 1; lower learning_rate\. No state had been saved"
    ):
        run.take_step()
    assert all(torch.equal(weights[name], value) for name, value in run.model.state_dict().items())
    run.save()
    with pytest.raises(ValueError, match=rf"The last state saved is kept in .*{STATE_NAME}"):
        run.take_step()


def test_a_loss_that_leaves_the_numbers_in_half_precision_names_the_precision(tmp_path):
    run = new(tmp_path, {"mixed_precision": "fp16"})
    run.loss = lambda out, groups: sum(x.sum() for x in out.values()) * math.inf
    with pytest.raises(ValueError, match="mixed_precision 'bf16' or 'no'"):
        run.take_step()


@pytest.mark.parametrize("accumulate", [3, 5, 16])
def test_pieces_that_do_not_divide_the_batch_give_the_gradient_of_the_whole(tmp_path, accumulate):
    gradients = []
    for pieces in (1, accumulate):
        run = Trainer(
            [pairs(tmp_path / str(pieces))],
            shape(dropout=0),
            dataclasses.replace(CONFIG, accumulate=pieces),
            tmp_path / "r",
        )
        batch = run.mix(run.draw(0), np.random.default_rng(1))
        run.backward(batch, seed=[0])
        gradients.append({name: p.grad for name, p in run.model.named_parameters()})
    for name, whole in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], whole, rtol=1e-4, atol=1e-6)


def test_more_pieces_than_mixed_pairs_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"compares 16 pairs .*halved by mixing.*needs at least 17 .*accumulate 17"):
        new(tmp_path, {"accumulate": 17})
    with pytest.raises(ValueError, match=r"compares 1 pairs .*needs at least 2"):
        new(tmp_path / "b", {"batch_size": 2})


@pytest.mark.parametrize("form", [0, 4])
@pytest.mark.parametrize("value", [0.0, 3.7, 1e20])
def test_latents_that_are_all_equal_are_named(tmp_path, form, value):
    equal = np.full((120, 8), value, dtype=np.float32)
    with pytest.raises(ValueError, match="The text latents of toy-text in .* are all equal"):
        train([pairs(tmp_path, text=equal)], shape(closed_form_dim=form), CONFIG, tmp_path / "run")


def test_equal_latents_are_named_by_every_closed_form():
    equal = np.full((120, 8), 0.1, dtype=np.float32)
    with pytest.raises(ValueError, match="y are all equal"):
        fit_cca(LATENTS["image"], equal, dim=2)
    with pytest.raises(ValueError, match="are all equal"):
        geometry(equal)


def test_fewer_pairs_than_a_training_needs_are_one_sentence(tmp_path):
    few = {m: x[:7] for m, x in LATENTS.items()}
    with pytest.raises(ValueError, match="at least 8"):
        pairs(tmp_path, **few)
    with pytest.raises(ValueError, match="too few"):
        new(tmp_path / "b", {"val_fraction": 0.97}, **{m: x[:20] for m, x in LATENTS.items()})


def test_weights_that_half_precision_cannot_hold_are_not_written(tmp_path):
    model = FusionModel(shape())
    with torch.no_grad():
        model.adapters["image"][-1].bias[0] = 1e6
    with pytest.raises(ValueError, match=r"adapters\.image\.2\.bias holds 1e\+06, which float16 turns to infinity"):
        model.save_pretrained(tmp_path / "m", dtype=torch.float16)
    assert not (tmp_path / "m").exists()
    model.save_pretrained(tmp_path / "m")
    with torch.no_grad():
        model.adapters["image"][-1].bias[0] = math.nan
    with pytest.raises(ValueError, match="holds nan; nothing with NaN or infinite values is stored"):
        model.save_pretrained(tmp_path / "m")
    assert FusionModel.from_pretrained(tmp_path / "m").adapters["image"][-1].bias[0] == 1e6


def test_a_checkpoint_with_infinite_weights_does_not_load(tmp_path):
    from safetensors.torch import load_file, save_file

    path = FusionModel(shape()).save_pretrained(tmp_path) / "model.safetensors"
    weights = load_file(path)
    weights["adapters.text.2.bias"][0] = math.inf
    save_file(weights, path)
    with pytest.raises(ValueError, match=r"NaN or infinite values, first in adapters\.text\.2\.bias"):
        FusionModel.from_pretrained(tmp_path)


def test_embeddings_that_leave_float32_are_no_answer():
    model = FusionModel(shape()).eval()
    with pytest.raises(
        ValueError, match=r"3 of 3 image embeddings left the range of float32: the largest latent is 3e\+38"
    ):
        model.embed("image", np.full((3, 10), 3e38, dtype=np.float32) * np.linspace(-1, 1, 10, dtype=np.float32))


def test_a_recall_of_embeddings_that_are_not_finite_is_refused_and_not_perfect():
    sides, groups = [torch.eye(4), torch.eye(4)], np.arange(4)
    for side, name in ((0, "queries"), (1, "gallery")):
        bad = [x.clone() for x in sides]
        bad[side][2] = math.nan
        with pytest.raises(ValueError, match=f"1 of 4 embeddings of the {name} are NaN or infinite"):
            retrieval(*bad, groups, groups)
