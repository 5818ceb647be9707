"""Models side by side: the cosine is the mean of theirs, and the whole is a checkpoint like any other."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fusemix.generation.bridges import Conditioner, space_identity
from fusemix.model.adapters import FusionModel
from fusemix.model.closed_form import fit_closed_form
from fusemix.model.config import ModelConfig
from fusemix.model.ensemble import join_models
from scripts import ensemble

DIMS = {"image": 12, "text": 9}


def model(seed, **changes):
    torch.manual_seed(seed)
    made = FusionModel(ModelConfig(latent_dims=changes.pop("latent_dims", DIMS), embed_dim=10, **changes))
    rng = np.random.default_rng(seed)
    pairs = {m: rng.normal(size=(60, d)).astype(np.float32) for m, d in made.config.latent_dims.items()}
    fit_closed_form(made, [pairs])
    return made.eval()


def test_every_path_counts_alike():
    two_path, paper = model(0, closed_form_dim=4, whiten_dim=6), model(1)
    both = join_models([two_path, paper])
    x, y = torch.randn(7, 12), torch.randn(7, 9)
    a, b = two_path.embed("image", x), two_path.embed("text", y)
    paths = [(a[:, :4], b[:, :4]), (a[:, 4:], b[:, 4:]), (paper.embed("image", x), paper.embed("text", y))]
    wanted = sum(F.normalize(u, dim=1) @ F.normalize(v, dim=1).T for u, v in paths) / 3
    assert both.config.embed_dim == 20
    assert torch.allclose(both.embed("image", x) @ both.embed("text", y).T, wanted, atol=1e-5)


def test_a_member_with_views_counts_for_each_of_its_paths():
    views, paper = model(0, closed_form_dim=4, whiten_dim=6, views=("whitened", "root")), model(1)
    both = join_models([views, paper])
    x, y = torch.randn(7, 12), torch.randn(7, 9)
    wanted = 0.75 * views.embed("image", x) @ views.embed("text", y).T
    wanted += 0.25 * paper.embed("image", x) @ paper.embed("text", y).T
    assert torch.allclose(both.embed("image", x) @ both.embed("text", y).T, wanted, atol=1e-5)


def test_the_command_makes_a_checkpoint_that_loads(tmp_path, capsys):
    models = [model(0, closed_form_dim=4), model(1), model(2)]
    sources = [str(m.save_pretrained(tmp_path / str(i))) for i, m in enumerate(models)]
    told = "---\nlicense: x\n---\n# one\n\n## Data\n\n- 9 pairs\n\n## Training\n\n### Deep\n\n## Limits\n\nnone\n"
    (tmp_path / "1" / "README.md").write_text(told)
    assert ensemble.main([*sources, "--out", str(tmp_path / "all")]) == 0
    assert "3 models side by side, 30 dimensions" in capsys.readouterr().out
    card = (tmp_path / "all" / "README.md").read_text()
    assert (
        card.startswith("---\nlanguage: en\nlibrary_name: fusemix\n")
        and "# all\n" in card
        and card.count("## Limits") == 1
    )
    assert "## Member 2: 1\n\n### Data\n\n- 9 pairs\n\n### Training\n\n#### Deep\n" in card
    assert card.count("without a card") == 2
    loaded, joined = FusionModel.from_pretrained(tmp_path / "all"), join_models(models)
    x = torch.randn(4, 9)
    assert torch.equal(loaded.embed("text", x), joined.embed("text", x))
    assert loaded.identity == joined.identity != models[0].identity
    assert ensemble.main([*sources, "--out", str(tmp_path / "all")]) == 2
    assert "holds files already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"latent_dims": {"image": 12, "audio": 9}}, r"Model 2 embeds \['audio', 'image'\]"),
        ({"latent_dims": {"image": 11, "text": 9}}, r"image latents of an unknown encoder \(width 11\)"),
        ({"encoders": {"text": {"name": "other", "revision": "1"}}}, "text latents of other"),
    ],
)
def test_models_that_do_not_fit_are_refused(second, message):
    with pytest.raises(ValueError, match=message):
        join_models([model(0), model(1, **second)])


def test_one_model_or_an_ensemble_is_no_member():
    with pytest.raises(ValueError, match="at least 2"):
        join_models([model(0)])
    with pytest.raises(ValueError, match="Model 2 is an ensemble itself"):
        join_models([model(0), join_models([model(0), model(1)])])


def test_what_ships_belongs_together_and_its_configuration_is_in_todays_form():
    root = Path(__file__).resolve().parents[2]
    model = FusionModel.from_pretrained(root / "checkpoints/default")
    assert json.loads((root / "checkpoints/default/config.json").read_text()) == model.config.to_dict()
    assert json.loads((root / "demo/index/index.json").read_text())["model_identity"] == model.identity
    decoder = Conditioner(
        {}, **json.loads((root / "checkpoints/unclip-small/conditioner.json").read_text(), object_hook=shape)
    )
    assert decoder.of(model).part == slice(0, 512)


def shape(values):
    """The arguments of Conditioner among the values of its file."""
    return {name: value for name, value in values.items() if name in ("embed_dim", "image_embeds_dim", "norm", "space")}


def test_a_members_decoder_reads_its_own_part_of_the_ensembles_embeddings():
    models = [model(0, closed_form_dim=4), model(1), model(2)]
    both = join_models(models)
    x = torch.randn(5, 9)
    for i in (0, 2):
        mine = Conditioner({}, embed_dim=10, image_embeds_dim=10, norm=2.0, space=space_identity(models[i]))
        wanted = 2 * models[i].embed("text", x)
        found = mine.of(both)("text", both.embed("text", x))
        assert torch.allclose(found, wanted, atol=1e-5)
        assert mine.part is None and mine.of(models[i]).part is None
    with pytest.raises(ValueError, match="another checkpoint"):
        mine.of(join_models(models[:2]))
    with pytest.raises(ValueError, match="width 30"):
        Conditioner({}, embed_dim=10, image_embeds_dim=10).of(both)
    stranger = Conditioner({}, embed_dim=30, image_embeds_dim=30, space=space_identity(model(7)))
    with pytest.raises(ValueError, match="another checkpoint"):
        stranger.of(both)
