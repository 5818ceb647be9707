"""FuseMix as an estimator: scikit-learn's habits, the project's checkpoints."""

import numpy as np
import pandas as pd
import pytest
import torch

from fusemix import FuseMix, FusionModel
from fusemix.cli import evaluate, train
from fusemix.data.latent_writer import write_latents


def paired(n=160, seed=0, noise=0.1):
    """Latents of two modalities with a common cause of six dimensions, shapes (n, 9) and (n, 7)."""
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(6, 9)), rng.normal(size=(6, 7))
    rng = np.random.default_rng(seed)
    cause = rng.normal(size=(n, 6))
    x, y = (cause @ m + noise * rng.normal(size=(n, m.shape[1])) + 1 for m in maps)
    return {"image": x.astype(np.float32), "text": y.astype(np.float32)}


def quick(recipe="two-path", **more):
    return FuseMix(recipe, **{"epochs": 4, "embed_dim": 16, "verbose": False, **more})


@pytest.fixture(scope="module")
def fitted():
    return quick().fit(paired())


@pytest.mark.parametrize(("recipe", "embed_dim"), [("closed-form", 8), ("two-path", 16), ("paper", 16), ("views", 16)])
def test_every_recipe_finds_the_partners_of_new_pairs(recipe, embed_dim):
    model = quick(recipe, embed_dim=embed_dim, epochs=20, learning_rate=1e-2).fit(paired(600))
    found = model.recall(paired(60, seed=1))
    assert set(found) == {"image_to_text", "text_to_image"}
    mean = np.mean([found[d]["recall_at_1"] for d in found])
    assert model.score(paired(60, seed=1)) == pytest.approx(mean) and mean > (0.8 if recipe == "closed-form" else 0.25)


def test_parameters_are_scikit_learns(fitted):
    model = FuseMix("paper", epochs=3)
    assert model.get_params()["epochs"] == 3 and model.set_params(epochs=5).epochs == 5
    assert repr(model) == "FuseMix(recipe='paper', epochs=5)"
    with pytest.raises(ValueError, match="Invalid parameter 'epoch' for estimator"):
        model.set_params(epoch=1)
    assert fitted.n_features_in_ == {"image": 9, "text": 7} and fitted.modalities_ == ("image", "text")


def test_scikit_learn_clones_it_and_knows_whether_it_is_fitted(fitted):
    base = pytest.importorskip("sklearn.base", reason="scikit-learn is not installed")
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    copy = base.clone(fitted)
    assert copy is not fitted and copy.get_params() == fitted.get_params()
    check_is_fitted(fitted)
    with pytest.raises(NotFittedError):
        check_is_fitted(copy)
    with pytest.raises(NotFittedError, match="not fitted yet"):
        copy.transform("image", paired()["image"])


def test_the_seed_decides_and_torch_arrays_and_frames_are_one(fitted):
    given = paired()
    mixed = {"image": torch.from_numpy(given["image"]), "text": pd.DataFrame(given["text"]).add_prefix("t")}
    again = quick().fit(mixed)
    np.testing.assert_array_equal(again.transform("image", given["image"]), fitted.transform("image", given["image"]))
    assert list(again.feature_names_in_["text"])[:2] == ["t0", "t1"]
    with pytest.raises(ValueError, match="feature names should match"):
        again.transform("text", pd.DataFrame(given["text"]).add_prefix("u"))
    other = quick(random_state=1).fit(given).transform("image", given["image"])
    assert np.abs(other - fitted.transform("image", given["image"])).max() > 0.01


def test_what_is_saved_is_a_checkpoint_that_every_command_reads(fitted, tmp_path, capsys):
    folder = fitted.save(tmp_path / "mine")
    loaded, new = FuseMix.load(folder), paired(60, seed=1)
    np.testing.assert_array_equal(loaded.transform("text", new["text"]), fitted.transform("text", new["text"]))
    assert loaded.get_params() | {"verbose": False} == fitted.get_params() | {
        "batch_size": 32, "val_fraction": 0.3, "encoders": {m: f"given {m} latents" for m in new},
    }  # fmt: skip
    assert loaded.history_ == fitted.history_ and FusionModel.from_pretrained(folder).modalities == ("image", "text")
    for modality, latents in new.items():
        write_latents(tmp_path / modality, latents, modality=modality, name=f"given {modality} latents")
    words = ["--latents", *(f"{m}={tmp_path / m}" for m in new), "--query", "text", "--gallery", "image"]
    assert evaluate.main(["--checkpoint", str(folder), *words]) == 0
    expected = loaded.recall(new)["text_to_image"]["recall_at_1"]
    assert f"{100 * expected:.1f} [" in capsys.readouterr().out


def test_the_closed_form_is_a_recipe_of_the_command_and_has_no_steps(tmp_path, capsys):
    stores = [write_latents(tmp_path / m, x, modality=m, name=m) for m, x in paired().items()]
    words = ["--latents", *(f"{s.modality}={s.folder}" for s in stores), "--recipe", "closed-form"]
    words += ["--out", str(tmp_path / "out"), "--val-fraction", "0.3"]
    assert train.main([*words, "--plan"]) == 2
    assert "has no steps to take" in capsys.readouterr().err
    assert train.main(words) == 0
    config = FuseMix.load(tmp_path / "out").model_.config
    assert config.embed_dim == config.closed_form_dim == 7 and not config.trained_parts
    assert FuseMix.load(tmp_path / "out").recipe == "closed-form"


def test_a_killed_fit_goes_on_from_its_checkpoint(fitted, tmp_path, monkeypatch):
    from fusemix.training.trainer import Trainer

    steps, take_step = [], Trainer.take_step

    def killed(self):
        steps.append(self.step)
        if len(steps) == 7:
            raise KeyboardInterrupt
        return take_step(self)

    monkeypatch.setattr(Trainer, "take_step", killed)
    with pytest.raises(KeyboardInterrupt):
        quick().fit(paired(), checkpoint=tmp_path)
    resumed = quick().fit(paired(), checkpoint=tmp_path)
    assert steps[7] > 0
    image = paired()["image"]
    np.testing.assert_array_equal(resumed.transform("image", image), fitted.transform("image", image))
    with pytest.raises(ValueError, match="belongs to a run with other latents or settings"):
        quick(epochs=5).fit(paired(), checkpoint=tmp_path)


def test_captions_of_one_photo_are_right_answers_and_the_photo_is_one_item(fitted):
    new, photos = paired(30, seed=2), np.repeat(np.arange(30), 3)
    several = {"image": new["image"][photos], "text": new["text"][photos]}
    several["text"] += 1e-3 * np.arange(90, dtype=np.float32)[:, None]
    found = fitted.recall(several, groups=[f"photo {i}" for i in photos])
    assert found["text_to_image"]["n_queries"] == 90 and found["text_to_image"]["n_gallery"] == 30
    assert found["image_to_text"]["n_queries"] == 30


def test_paths_and_texts_are_encoded_and_a_table_too(pairs, tmp_path):
    words = [f"{a} {b}" for a in ("red", "old", "wet", "tiny", "loud") for b in ("car", "dog", "sea", "tree", "house")]
    latents = np.random.default_rng(0).normal(size=(50, 5)).astype(np.float32)
    model = quick("closed-form", embed_dim=4).fit({"text": words * 2, "sensor": latents})
    assert model.n_features_in_ == {"text": 384, "sensor": 5}
    assert model.model_.config.encoders["text"]["name"] == "minilm-l6"  # so that it embeds texts after loading, too
    loaded = FuseMix.load(model.save(tmp_path / "mine"))
    np.testing.assert_allclose(loaded.transform("text", words[:3]), model.transform("text", words[:3]), atol=1e-6)
    with pytest.raises(ValueError, match="Only 3 rows have image and text"):
        FuseMix(encoders={"image": "efficientnet-lite0", "text": "minilm-l6"}).fit(pairs)
    with pytest.raises(ValueError, match="A table of pairs has its own groups"):
        FuseMix().fit(pairs, groups=[1])


def spoilt(**changes):
    given = paired()
    return given | {modality: change(given[modality]) for modality, change in changes.items()}


def with_value(value):
    def change(x):
        x[3, 2] = value
        return x

    return change


@pytest.mark.parametrize(
    ("given", "options", "sentence"),
    [
        (spoilt(image=with_value(np.nan)), {}, "Input image contains NaN, first in row 3"),
        (spoilt(text=with_value(np.inf)), {}, "Input text contains infinity or a value too large for dtype"),
        (spoilt(text=lambda x: x[:-1]), {}, r"inconsistent numbers of samples: \[160, 159\]"),
        (spoilt(text=lambda x: x[0]), {}, "Expected 2D array, got 1D array instead for text"),
        (spoilt(text=lambda x: x * 0 + 1), {}, "The text latents are all equal"),
        (spoilt(text=lambda x: [["a"]] * len(x)), {}, "The text latents are no numbers"),
        (paired(49), {}, r"Found array with 49 sample\(s\) while a minimum of 50 is required by FuseMix"),
        (paired(), {"groups": [1] * 160}, "All 160 pairs are one group"),
        (paired(), {"groups": [1] * 3}, r"inconsistent numbers of samples: \[160, 160, 3\]"),
        ({"image": paired()["image"]}, {}, "at least two modalities"),
    ],
)  # fmt: skip
def test_bad_latents_get_one_sentence(given, options, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        quick().fit(given, **options)
    assert "\n" not in str(caught.value)


def test_bad_calls_get_one_sentence(fitted):
    with pytest.raises(TypeError, match="X must map each modality to its latents"):
        quick().fit(paired()["image"])
    with pytest.raises(ValueError, match="X has 7 features, but FuseMix is expecting 9 features as input of image"):
        fitted.transform("image", paired()["text"])
    with pytest.raises(ValueError, match="embeds .* not 'sound'"):
        fitted.transform("sound", paired()["text"])
    with pytest.raises(ValueError, match="recipe must be one of"):
        quick("view").fit(paired())
    with pytest.raises(ValueError, match="random_state must be a whole number"):
        quick(random_state=None).fit(paired())
    with pytest.raises(ValueError, match="makes image latents of 1280 features, X has 9"):
        quick(encoders={"image": "efficientnet-lite0"}).fit(paired())
    with pytest.raises(ValueError, match="not fitted yet"):
        quick().score(paired())
