import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from fusemix.model.adapters import FusionModel
from fusemix.model.config import ModelConfig, TrainConfig

CONFIG = ModelConfig(latent_dims={"image": 6, "text": 4}, embed_dim=8, depth=2, expansion=3.0, dropout=0.5)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return FusionModel(CONFIG).eval()


def test_an_adapter_is_the_written_formula(model):
    x = torch.randn(3, 4)
    adapter, h = model.adapters["text"], x.clone()

    def norm(v, layer):
        mean, var = v.mean(1, keepdim=True), v.var(1, unbiased=False, keepdim=True)
        return (v - mean) / (var + layer.eps).sqrt() * layer.weight + layer.bias

    for block in list(adapter)[:2]:
        hidden = norm(h, block.norm) @ block.up.weight.T + block.up.bias
        hidden = 0.5 * hidden * (1 + torch.erf(hidden / 2**0.5))
        h = h + hidden @ block.down.weight.T + block.down.bias
    expected = norm(h, adapter[2]) @ adapter[3].weight.T + adapter[3].bias
    torch.testing.assert_close(model({"text": x})["text"], expected, rtol=1e-5, atol=1e-5)
    assert block.up.weight.shape == (12, 4)  # inverted bottleneck: wider inside


def test_embeddings_are_unit_length_without_dropout_and_do_not_depend_on_the_batch(model):
    latents = torch.randn(9, 6)
    model.train()
    whole = model.embed("image", latents)
    assert model.training
    torch.testing.assert_close(whole.norm(dim=1), torch.ones(9))
    torch.testing.assert_close(whole, model.embed("image", latents, batch_size=2))
    torch.testing.assert_close(whole, model.embed("image", latents.double().numpy()))


@pytest.mark.parametrize(
    ("modality", "latents", "error", "message"),
    [
        ("image", torch.zeros(2, 5), ValueError, r"\(N, 6\), got \(2, 5\)"),
        ("image", torch.full((2, 6), float("nan")), ValueError, "NaN"),
        ("video", torch.zeros(2, 6), KeyError, "not 'video'"),
    ],
)
def test_wrong_latents_are_refused(model, modality, latents, error, message):
    with pytest.raises(error, match=message):
        model.embed(modality, latents)


def test_a_fresh_process_gives_the_same_embeddings(model, tmp_path):
    latents = torch.randn(3, 6)
    model.save_pretrained(tmp_path / "m", card="# card")
    np.save(tmp_path / "x.npy", latents.numpy())
    code = (
        "import numpy as np, sys; from fusemix import FusionModel;"
        f"m = FusionModel.from_pretrained({str(tmp_path / 'm')!r});"
        f"np.save({str(tmp_path / 'y.npy')!r}, m.embed('image', np.load({str(tmp_path / 'x.npy')!r})).numpy());"
        "print(m.identity)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == model.identity
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), model.embed("image", latents).numpy())
    assert {p.name for p in (tmp_path / "m").iterdir()} == {"config.json", "model.safetensors", "README.md"}


def test_sharded_half_precision_weights_load_and_no_file_exceeds_the_limit(tmp_path):
    torch.manual_seed(0)
    big = FusionModel(ModelConfig(latent_dims={"image": 64, "text": 32}, embed_dim=16)).eval()
    big.save_pretrained(tmp_path, dtype=torch.float16, max_shard_size="40KB")
    weights = list(tmp_path.glob("*.safetensors"))
    assert len(weights) > 1 and max(p.stat().st_size for p in weights) < 45_000
    again, x = FusionModel.from_pretrained(tmp_path), torch.randn(5, 64)
    torch.testing.assert_close(again.embed("image", x), big.embed("image", x), atol=5e-3, rtol=0)


def test_saving_whole_over_sharded_leaves_no_old_shard(tmp_path, model):
    model.save_pretrained(tmp_path, max_shard_size="1KB")
    torch.nn.init.ones_(model.adapters["image"][3].bias)
    model.save_pretrained(tmp_path)
    assert FusionModel.from_pretrained(tmp_path).identity == model.identity


def test_a_hub_id_that_cannot_be_reached_says_so(monkeypatch):
    def refuse(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr("fusemix.model.adapters.snapshot_download", refuse)
    with pytest.raises(FileNotFoundError, match="could not be loaded from the Hugging Face Hub"):
        FusionModel.from_pretrained("someone/model")


def test_a_hub_id_is_downloaded_without_pickles(monkeypatch, model, tmp_path):
    model.save_pretrained(tmp_path / "snapshot")
    asked = {}

    def download(repo, *, revision, allow_patterns):
        asked.update(repo=repo, revision=revision, patterns=allow_patterns)
        return str(tmp_path / "snapshot")

    monkeypatch.setattr("fusemix.model.adapters.snapshot_download", download)
    assert FusionModel.from_pretrained("someone/model", revision="v1").identity == model.identity
    assert asked["repo"] == "someone/model" and asked["revision"] == "v1"
    assert not any("bin" in p or "pt" in p for p in asked["patterns"])


def test_damaged_checkpoints_are_refused_with_a_sentence(model, tmp_path):
    model.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="damaged or truncated"):
        FusionModel.from_pretrained(tmp_path)
    weights.write_bytes(whole)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"depth": 1}))
    with pytest.raises(ValueError, match="do not fit its config.json"):
        FusionModel.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        FusionModel.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="No checkpoint folder"):
        FusionModel.from_pretrained("./nowhere")


def test_configs_survive_json_and_refuse_unknown_keys():
    for config in (CONFIG, TrainConfig(seed=3, mixup_alpha=None)):
        assert type(config).from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ValueError, match="does not know"):
        ModelConfig.from_dict(CONFIG.to_dict() | {"width": 3})
    with pytest.raises(ValueError, match="at least 2 modalities"):
        dataclasses.replace(CONFIG, latent_dims={"text": 4})
    with pytest.raises(ValueError, match="even with mixup"):
        TrainConfig(batch_size=5)


@pytest.mark.parametrize("training", [False, True])
def test_embedding_leaves_a_model_in_the_mode_it_was_in(training):
    model = FusionModel(ModelConfig(latent_dims={"a": 3, "b": 3}, embed_dim=2)).train(training)
    model.embed("a", np.ones((2, 3), dtype=np.float32))
    assert model.training == training == model.adapters["a"].training
