import itertools
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fusemix.model.adapters import FusionModel
from fusemix.model.cca import fit_cca
from fusemix.model.closed_form import Stopped, _standard, fit_closed_form
from fusemix.model.config import VIEWS, ModelConfig
from fusemix.model.ensemble import join_models

RNG = np.random.default_rng(0)
SHARED = RNG.normal(size=(400, 5))


def seen(width, noise=0.3, scale=1.0):
    """Latents that know the shared five values through a random view."""
    return ((SHARED @ RNG.normal(size=(5, width)) + noise * RNG.normal(size=(400, width))) * scale).astype(np.float32)


LATENTS = {"image": seen(12, scale=3.0), "text": seen(9), "audio": seen(7, scale=0.2)}


def new_model(**changes):
    torch.manual_seed(0)
    dims = {name: values.shape[1] for name, values in LATENTS.items()}
    shape = {"embed_dim": 10, "closed_form_dim": 4, "whiten_dim": 6, **changes}
    return FusionModel(ModelConfig(latent_dims=dims, **shape)).eval()


def linear_path(model, modality):
    out = model.embed(modality, LATENTS[modality]).numpy()[:, :4]
    return out / np.linalg.norm(out, axis=1, keepdims=True)


def test_the_first_pair_gets_cca_on_standardised_latents():
    model = new_model()
    fit_closed_form(model, [{"image": LATENTS["image"], "text": LATENTS["text"]}, LATENTS], ridge=0.5)
    x, y = ((LATENTS[m] - LATENTS[m].mean(0)) / LATENTS[m].std(0) for m in ("image", "text"))
    cca = fit_cca(x.astype(np.float64), y.astype(np.float64), dim=4, ridge=0.5)
    expected = cca.embed(0, x) @ cca.embed(1, y).T
    np.testing.assert_allclose(linear_path(model, "image") @ linear_path(model, "text").T, expected, atol=1e-4)


def test_a_later_modality_is_regressed_onto_the_space_that_stands():
    model = new_model()
    sets = [{"image": LATENTS["image"], "text": LATENTS["text"]}, {"audio": LATENTS["audio"], "text": LATENTS["text"]}]
    fit_closed_form(model, sets, regression_ridge=0.1)
    x = (LATENTS["audio"] - LATENTS["audio"].mean(0)) / LATENTS["audio"].std(0)
    target = linear_path(model, "text")
    weights = np.linalg.solve(x.T @ x / 400 + 0.1 * np.trace(x.T @ x / 400) / 7 * np.eye(7), x.T @ target / 400)
    expected = x @ weights / np.linalg.norm(x @ weights, axis=1, keepdims=True)
    np.testing.assert_allclose(linear_path(model, "audio"), expected, atol=1e-4)
    right = np.argmax(linear_path(model, "audio") @ linear_path(model, "image").T, axis=1) == np.arange(400)
    assert right.mean() > 0.1  # sounds find pictures they were never paired with; chance is 0.0025


def test_the_trained_path_reads_uncorrelated_components_of_unit_mean_variance():
    model = new_model()
    fit_closed_form(model, [{"image": LATENTS["image"], "text": LATENTS["text"]}, LATENTS], ridge=1e-6)
    adapter = model.adapters["image"]
    read = ((torch.from_numpy(LATENTS["image"]) - adapter.mean) @ adapter.whiten).double()
    torch.testing.assert_close(torch.cov(read.T, correction=0), torch.eye(6).double(), atol=1e-3, rtol=0)


def test_every_modality_is_whitened_with_the_ridge_of_the_cca_in_chunks_too(monkeypatch):
    monkeypatch.setattr("fusemix.model.closed_form.CHUNK", 150)
    model = new_model()
    fit_closed_form(model, [{"image": LATENTS["image"], "text": LATENTS["text"]}, LATENTS], ridge=0.5)
    for modality, latents in LATENTS.items():
        standard = (latents - latents.mean(0)) / latents.std(0)
        values = np.linalg.eigvalsh(standard.T @ standard / 400)[::-1]
        kept = values[:6] / (values[:6] + 0.5 * values.mean())
        adapter = model.adapters[modality]
        read = ((torch.from_numpy(latents) - adapter.mean) @ adapter.whiten).double().numpy()
        np.testing.assert_allclose(read.T @ read / 400, np.diag(kept / kept.mean()), atol=1e-3)


def test_only_so_many_pairs_are_read(monkeypatch):
    monkeypatch.setattr("fusemix.model.closed_form.MAX_PAIRS", 100)
    some, first = new_model(), new_model()
    fit_closed_form(some, [LATENTS])
    fit_closed_form(first, [{m: x[:100] for m, x in LATENTS.items()}])
    assert some.identity == first.identity


def test_a_dimension_that_hardly_varies_is_not_blown_up():
    x = np.array([[1, 1, 0.001]]) * RNG.normal(size=(500, 3))
    _, scale = _standard(x.astype(np.float32))
    assert scale[2] == pytest.approx(0.1 * np.sqrt(np.mean(x.std(0) ** 2)), rel=1e-4)
    np.testing.assert_allclose(scale[:2], x.std(0)[:2], rtol=1e-4)


def test_components_that_are_not_whitened_are_a_rotation_of_the_latents():
    model = new_model(views=("components",))
    latents = {m: x * np.logspace(-1, 1, x.shape[1], dtype=np.float32) for m, x in LATENTS.items()}
    fit_closed_form(model, [latents])
    adapter, x = model.adapters["image"], torch.from_numpy(latents["image"]).double()
    torch.testing.assert_close(adapter.rotate.T @ adapter.rotate, torch.eye(6), atol=1e-5, rtol=0)
    largest = torch.linalg.eigvalsh(torch.cov(x.T, correction=0)).flip(0)[:6]
    read = (x - x.mean(0)) @ adapter.rotate.double()
    torch.testing.assert_close(torch.cov(read.T, correction=0), largest.diag(), atol=1e-3, rtol=1e-3)


def test_a_closed_form_without_views_reads_whitened_components():
    assert new_model().config == new_model(views=("whitened",)).config
    assert ModelConfig(latent_dims={"image": 3, "text": 3}).views == ()


@pytest.mark.parametrize("view", ["whitened", "components"])
@pytest.mark.parametrize("joined", [False, True])
def test_checkpoints_from_before_views_were_named_load_as_one_path(tmp_path, view, joined):
    model = new_model(views=(view,))
    fit_closed_form(model, [LATENTS])
    saved = join_models([model, new_model()]) if joined else model
    saved.save_pretrained(tmp_path)

    def older(values):
        """As that version wrote it: views only where there were several, whitening only where it was off."""
        values = {name: value for name, value in values.items() if name != "views"}
        values["members"] = [older(member) for member in values["members"]]
        return values | ({"whiten": False} if view == "components" and not values["members"] else {})

    config = json.loads((tmp_path / "config.json").read_text())
    old = older(config)
    if joined:
        old["members"][1].pop("whiten", None)  # the second member is whitened
    (tmp_path / "config.json").write_text(json.dumps(old))
    names = {name: name.replace(".paths.0.", ".mlp.") for name in saved.state_dict()}
    if view == "components":
        names |= {name: name.replace(".rotate", ".whiten") for name in names if name.endswith(".rotate")}
    save_file({names[n]: v.contiguous() for n, v in saved.state_dict().items()}, tmp_path / "model.safetensors")
    loaded = FusionModel.from_pretrained(tmp_path)
    assert loaded.config == saved.config and loaded.identity == saved.identity
    assert torch.equal(loaded.embed("image", LATENTS["image"]), saved.embed("image", LATENTS["image"]))


def test_every_view_is_read_by_a_path_of_its_own():
    model = new_model(embed_dim=13, views=VIEWS)
    latents = {m: x * np.logspace(-1, 1, x.shape[1], dtype=np.float32) for m, x in LATENTS.items()}
    fit_closed_form(model, [latents], ridge=1e-6)
    one = new_model()
    fit_closed_form(one, [latents], ridge=1e-6)
    turned = new_model(views=("components",))
    fit_closed_form(turned, [latents], ridge=1e-6)
    for modality, values in latents.items():
        adapter, x = model.adapters[modality], torch.from_numpy(values)
        torch.testing.assert_close(adapter.linear, one.adapters[modality].linear)
        for name, other in (("whitened", one), ("components", turned)):
            expected = other.adapters[modality].view(name, x)
            torch.testing.assert_close(adapter.view(name, x), expected, atol=1e-4, rtol=1e-4)
        rooted = adapter.view("root", x)
        far = x.abs() > 0.1 * x.std()
        torch.testing.assert_close(rooted[far], (x.sign() * x.abs().sqrt())[far], atol=0, rtol=2e-3)
        out = model({modality: x})[modality]
        read = [adapter.view(name, x) for name in VIEWS]
        for part, path, seen in zip(model.config.trained_parts, adapter.paths, read, strict=True):
            torch.testing.assert_close(out[:, part], path(seen))


def test_the_root_view_has_a_slope_at_zero_and_follows_the_latents_scale():
    for scale in (1e-3, 1.0, 1e3):
        model = new_model(embed_dim=13, views=VIEWS)
        fit_closed_form(model, [{m: x * np.float32(scale) for m, x in LATENTS.items()}])
        adapter, x = model.adapters["image"], torch.zeros(1, 12, requires_grad=True)
        (slope,) = torch.autograd.grad(adapter.view("root", x).sum(), x)
        assert torch.isfinite(slope).all() and (slope > 0).all()
        typical = torch.from_numpy(LATENTS["image"]) * scale
        rooted = adapter.view("root", typical).abs().median() / scale**0.5
        assert rooted == pytest.approx(torch.from_numpy(LATENTS["image"]).abs().sqrt().median().item(), rel=1e-2)


def test_the_cosine_is_the_mean_of_the_paths_and_a_later_modality_gets_its_views_too():
    model = new_model(embed_dim=13, views=VIEWS)
    sets = [{"image": LATENTS["image"], "text": LATENTS["text"]}, {"audio": LATENTS["audio"], "text": LATENTS["text"]}]
    fit_closed_form(model, sets)
    a, b = (model.embed(m, LATENTS[m]) for m in ("audio", "text"))
    ends = (0, 4, 7, 10, 13)
    each = [
        (torch.nn.functional.normalize(a[:, i:j], dim=1) * torch.nn.functional.normalize(b[:, i:j], dim=1)).sum(1)
        for i, j in itertools.pairwise(ends)
    ]
    torch.testing.assert_close((a * b).sum(1), torch.stack(each).mean(0))
    adapter, x = model.adapters["audio"], torch.from_numpy(LATENTS["audio"])
    assert adapter.whiten.any() and 0 < adapter.floor < 1e-3
    torch.testing.assert_close(adapter.rotate.T @ adapter.rotate, torch.eye(6), atol=1e-5, rtol=0)
    assert torch.isfinite(adapter(x)).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"views": ("whitened", "upside down")}, "must be among .*'upside down'"),
        ({"views": VIEWS, "closed_form_dim": 0}, "stand beside a closed form"),
        ({"views": VIEWS, "embed_dim": 12}, "12 - 4 cannot be so divided"),
    ],
)
def test_views_that_make_no_model_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**{"latent_dims": {"a": 9, "b": 9}, "embed_dim": 13, "closed_form_dim": 4, **changes})


def test_a_model_with_views_is_saved_and_loaded(tmp_path):
    model = new_model(embed_dim=13, views=VIEWS)
    fit_closed_form(model, [LATENTS])
    loaded = FusionModel.from_pretrained(model.save_pretrained(tmp_path))
    assert loaded.config == model.config and loaded.identity == model.identity
    assert torch.equal(loaded.embed("image", LATENTS["image"]), model.embed("image", LATENTS["image"]))
    both = join_models([model, new_model()])
    assert FusionModel.from_pretrained(both.save_pretrained(tmp_path / "both")).config == both.config


def test_latents_near_zero_survive_half_precision(tmp_path):
    model = new_model(embed_dim=13, views=VIEWS)
    latents = {**LATENTS, "image": np.abs(LATENTS["image"]) * np.float32(3e-5)}
    latents["image"][:, 0] = 0
    fit_closed_form(model, [latents])
    loaded = FusionModel.from_pretrained(model.save_pretrained(tmp_path, dtype=torch.float16))
    assert loaded.adapters["image"].floor == 0  # rounded
    assert torch.isfinite(loaded.embed("image", latents["image"])).all()


def test_both_paths_weigh_the_same_and_only_the_trained_one_is_given_to_the_loss():
    model = new_model()
    fit_closed_form(model, [LATENTS])
    x = torch.from_numpy(LATENTS["text"][:3])
    embedding = model.embed("text", x)
    torch.testing.assert_close(embedding[:, :4].norm(dim=1), embedding[:, 4:].norm(dim=1))
    trained = torch.nn.functional.normalize(model({"text": x})["text"], dim=1)
    torch.testing.assert_close(trained / 2**0.5, embedding[:, 4:])


def test_known_modalities_stay_and_unreachable_ones_are_named():
    model = new_model()
    fit_closed_form(model, [{"image": LATENTS["image"], "text": LATENTS["text"]}, LATENTS])
    before = model.adapters["text"].linear.clone()
    fit_closed_form(model, [{"audio": LATENTS["audio"], "text": LATENTS["text"][::-1]}], known=("image", "text"))
    assert torch.equal(model.adapters["text"].linear, before)
    with pytest.raises(ValueError, match="No closed form for .'video'"):
        fit_closed_form(model, [{"video": LATENTS["audio"], "sensor": LATENTS["text"]}], known=("image",))


def test_a_constant_dimension_does_no_harm():
    model, latents = new_model(), dict(LATENTS)
    latents["image"] = LATENTS["image"].copy()
    latents["image"][:, 0] = 2.5
    fit_closed_form(model, [latents])
    assert torch.isfinite(model.embed("image", latents["image"])).all()


def test_a_closed_form_wider_than_the_latents_is_refused():
    with pytest.raises(ValueError, match="closed_form_dim must be between 0 and 7"):
        ModelConfig(latent_dims={"image": 12, "audio": 7}, embed_dim=10, closed_form_dim=8)


def test_the_fit_can_be_stopped_before_every_chunk_and_decomposition(monkeypatch):
    monkeypatch.setattr("fusemix.model.closed_form.CHUNK", 100)
    asked = itertools.count()
    fit_closed_form(new_model(), [LATENTS], should_stop=lambda: next(asked) < 0)
    times = next(asked)
    assert (
        times == 4 + 4 + 4 + 2
    )  # chunks of the first pair, its decompositions; of the third, its solution and its views
    for last in range(times):
        countdown = iter([False] * last + [True])
        with pytest.raises(Stopped):
            fit_closed_form(new_model(), [LATENTS], should_stop=lambda countdown=countdown: next(countdown))
