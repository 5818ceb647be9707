"""The trainer of the small decoder: a tiny run end to end, stopped and resumed, and its arithmetic."""

import importlib.util
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fusemix.encoders import load_encoder
from fusemix.generation.generator import Generator
from fusemix.generation.small.pipeline import (
    level_embedding,
    new_autoencoder,
    new_unet,
    patch_components,
    read_small_parts,
)
from fusemix.generation.small.unet_training import carry_projection, draw_noise_levels
from fusemix.model.adapters import FusionModel
from fusemix.model.config import ModelConfig

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("train_unclip", ROOT / "scripts/release/train_unclip.py")
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["train_unclip"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Six coloured pictures with captions, and an untrained model over the packaged encoders."""
    folder = tmp_path_factory.mktemp("data")
    lines = ["image,text,split"]
    for i, colour in enumerate(("red", "green", "blue", "black", "white", "gray")):
        Image.new("RGB", (24, 16), colour).save(folder / f"{i}.png")
        lines.append(f"{i}.png,a {colour} card,{'val' if i == 5 else 'train'}")
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n")
    encoders = {m: load_encoder(n).info() for m, n in (("image", "efficientnet-lite0"), ("text", "minilm-l6"))}
    torch.manual_seed(0)
    config = ModelConfig(latent_dims={"image": 1280, "text": 384}, encoders=encoders, embed_dim=8, depth=0)
    FusionModel(config).save_pretrained(folder / "model")
    return folder


def command(data: Path, run: Path, **changed: object) -> list[str]:
    flags = {
        "pairs": data / "pairs.csv", "checkpoint": data / "model", "out": run / "out", "work": run / "work",
        "side": 16, "latent-channels": 4, "vae-width": 8, "vae-blocks": "0 0 0 0", "vae-steps": 3, "vae-batch-size": 2,
        "unet-channels": "8 16", "unet-steps": 6, "unet-batch-size": 4, "save-every": 2, "sample-every": 100,
    } | changed  # fmt: skip
    return [part for name, value in flags.items() for part in (f"--{name}", *str(value).split())]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "work" / "unet.pt", weights_only=True)["average"]


@pytest.mark.slow
def test_a_run_that_is_stopped_and_resumed_ends_like_one_that_was_not(script, data, tmp_path, monkeypatch):
    assert script.main(command(data, tmp_path / "whole")) == 0
    step = script.Loop._step

    def stop_in_the_middle(self, number, *rest):
        if self.name == "unet" and number == 3:
            signal.raise_signal(signal.SIGTERM)
        return step(self, number, *rest)

    monkeypatch.setattr(script.Loop, "_step", stop_in_the_middle)
    assert script.main(command(data, tmp_path / "cut")) == 130
    assert torch.load(tmp_path / "cut" / "work" / "unet.pt", weights_only=True)["step"] == 4
    monkeypatch.setattr(script.Loop, "_step", step)
    assert script.main(command(data, tmp_path / "cut")) == 0
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)

    model = FusionModel.from_pretrained(data / "model")
    generator = Generator.from_pretrained(tmp_path / "whole" / "out", model)
    embedding = model.embed("text", np.ones((1, 384), dtype=np.float32))[0]
    assert generator.generate(embedding, modality="text", steps=2)[0].size == (16, 16)
    record = script.read_json(tmp_path / "whole" / "out" / "train_config.json")
    assert record["data"] == {"pictures": 5, "captions": 5, "sounds": 0}  # the val row is left out
    assert record["trained_unet_steps"] == 6
    other = FusionModel(model.config)
    with pytest.raises(ValueError, match="another checkpoint"):
        Generator.from_pretrained(tmp_path / "whole" / "out", other)


def test_bad_input_is_one_sentence_and_exit_2(script, data, tmp_path, capsys):
    assert script.main(command(data, tmp_path, pairs=tmp_path / "none.csv")) == 2
    assert "There is no table" in capsys.readouterr().err


def test_pictures_are_padded_to_a_square_on_white(script, tmp_path):
    Image.new("RGB", (40, 20), "black").save(tmp_path / "wide.png")
    pixels = np.asarray(script.square(str(tmp_path / "wide.png"), 16))
    assert pixels.shape == (16, 16, 3)
    assert (pixels[:3] == 255).all()
    assert (pixels[6:10] == 0).all()


def test_the_encoder_is_the_principal_components_of_patches():
    pictures = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    pictures[:, :, :, 1] = pictures[:, :1, :1, 1]  # one colour dominates
    vae = new_autoencoder(6, 8, (0, 0, 0, 0))
    patch_components(vae, pictures)
    with torch.no_grad():
        z = vae.encode(torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1).latents
    patches = np.stack([pictures[:, y : y + 8, x : x + 8].reshape(40, -1) for y in (0, 8) for x in (0, 8)], 1) / 255
    flat = patches.reshape(160, 192)
    values, vectors = np.linalg.eigh(np.cov((flat - flat.mean(0)).T))
    std = np.sqrt(values[::-1][:6])
    wanted = (flat - flat.mean(0)) @ vectors[:, ::-1][:, :6] / np.sqrt(std * std[0])
    got = z.flatten(2).transpose(1, 2).reshape(160, 6).numpy()
    assert got == pytest.approx(wanted, abs=1e-4)
    assert got[:, 0].std(ddof=1) == pytest.approx(1, abs=1e-3)


def test_noise_levels_stay_in_range_and_are_clean_as_often_as_asked(script):
    config = script.UnclipConfig(clean_fraction=0.5, max_noise_level=600)
    levels = draw_noise_levels(np.random.default_rng(0), 20_000, config)
    assert levels.min() >= 0
    assert levels.max() == 600
    assert 0.5 < (levels == 0).float().mean() < 0.55


def test_conditions_are_drawn_from_each_modality_as_often_as_asked(script):
    image, text, audio = (np.full((2, 1), v, dtype=np.float32) for v in (1, 2, 3))
    none, both = np.array([], dtype=np.int64), np.array([0, 1])
    conditions = script.Conditions(image, text, audio, [both, both], [both, none], "id")
    config = script.UnclipConfig(image_fraction=0.5, audio_fraction=0.2)
    rng = np.random.default_rng(0)
    heard = conditions.draw(np.zeros(5000, dtype=np.int64), rng, config)[:, 0]
    silent = conditions.draw(np.ones(5000, dtype=np.int64), rng, config)[:, 0]
    assert [round((heard == v).float().mean().item(), 1) for v in (1, 2, 3)] == [0.5, 0.3, 0.2]
    assert [round((silent == v).float().mean().item(), 1) for v in (1, 2, 3)] == [0.5, 0.5, 0.0]


def test_a_carried_projection_hears_the_new_space_as_it_heard_the_old():
    torch.manual_seed(0)
    unet = new_unet(4, 4, (8, 16), 8)
    new = torch.nn.functional.normalize(torch.randn(300, 8), dim=1)
    old = new @ torch.randn(8, 8) + torch.randn(8)
    levels = level_embedding(torch.full((300,), 250), 8)
    with torch.no_grad():
        before = unet.class_embedding(torch.cat([old, levels], dim=1))
        carry_projection(unet, old, new, ridge=1e-6)
        after = unet.class_embedding(torch.cat([new, levels], dim=1))
    assert torch.allclose(before, after, atol=1e-2 * before.std().item())
    with pytest.raises(ValueError, match="as many old as new"):
        carry_projection(unet, old, new[:10])


def test_a_projection_is_carried_into_a_space_of_another_width():
    unet = new_unet(4, 4, (8, 16), 8)
    carry_projection(unet, torch.randn(50, 8), torch.randn(50, 12))
    assert unet.config.projection_class_embeddings_input_dim == 24
    sample = unet(torch.randn(1, 4, 4, 4), 5, torch.zeros(1, 1, 8), class_labels=torch.randn(1, 24)).sample
    assert sample.shape == (1, 4, 4, 4)


@pytest.mark.slow
def test_training_goes_on_from_a_pipeline_in_another_space(script, data, tmp_path, capsys):
    assert script.main(command(data, tmp_path / "first")) == 0
    torch.manual_seed(1)
    other = FusionModel(FusionModel.from_pretrained(data / "model").config)
    other.save_pretrained(tmp_path / "other")
    begun = {"checkpoint": tmp_path / "other", "init-pipeline": tmp_path / "first" / "out", "unet-steps": 0}
    begun |= {"vae-steps": 0}
    assert script.main(command(data, tmp_path / "unnamed", **begun)) == 2
    assert "name that one by --init-checkpoint" in capsys.readouterr().err
    begun["init-checkpoint"] = data / "model"
    assert script.main(command(data, tmp_path / "second", **begun)) == 0
    first, second = (read_small_parts(tmp_path / run / "out") for run in ("first", "second"))
    same = [torch.equal(a, b) for a, b in zip(first[0].parameters(), second[0].parameters(), strict=True)]
    assert same.count(False) == 2  # weight and bias of the carried layer
    assert all(torch.equal(a, b) for a, b in zip(first[1].parameters(), second[1].parameters(), strict=True))
    assert first[1].config.scaling_factor == second[1].config.scaling_factor
    record = script.read_json(tmp_path / "second" / "out" / "train_config.json")
    assert record["begun_from"] == [{"unet_steps": 6, "unet_batch_size": 4}]
    Generator.from_pretrained(tmp_path / "second" / "out", other)
