"""From the shared space into a Stable unCLIP's own CLIP space: targets, maps, and the command end to end."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fusemix.encoders import load_encoder
from fusemix.files import read_json
from fusemix.generation.bridges import ACROSS, Conditioner, space_identity
from fusemix.generation.clip_target import clip_image_embeds, fit_conditioner
from fusemix.generation.generator import Generator
from fusemix.model.adapters import FusionModel
from fusemix.model.config import ModelConfig
from tests.generation.test_generator import pixels, tiny_small_pipeline, tiny_stable_unclip

ROOT = Path(__file__).resolve().parents[2]
PICTURES = sorted((ROOT / "demo/gallery/images").glob("tuxpaint-food-*"))[:14]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("train_conditioner", ROOT / "scripts" / "train_conditioner.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_targets_are_the_clip_projections_of_the_cropped_pictures_not_normalised():
    pipeline = tiny_stable_unclip(768)
    wide = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 16, 3), dtype=np.uint8))
    seen = []
    made = clip_image_embeds(pipeline, [wide] * 3, batch_size=2, report=seen.append)
    middle = torch.from_numpy(np.asarray(wide)[:, 4:12]).permute(2, 0, 1)[None].float() / 255
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).reshape(1, 3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).reshape(1, 3, 1, 1)
    with torch.no_grad():
        wanted = pipeline.image_encoder(pixel_values=(middle - mean) / std).image_embeds
    assert torch.allclose(made, wanted.expand(3, -1), atol=1e-5)
    assert seen == [2, 3]


def test_the_small_decoders_stub_is_no_target():
    with pytest.raises(ValueError, match=r"width 4, but it is conditioned on width 8.*needs no conditioner"):
        clip_image_embeds(tiny_small_pipeline(8), [Image.new("RGB", (8, 8))])


def rows_of(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """CLIP-like targets of length about 5, and embeddings that say half of them linearly."""
    rng = torch.Generator().manual_seed(seed)
    meaning = torch.randn(n, 6, generator=rng)
    mixing = torch.randn(6, 20, generator=torch.Generator().manual_seed(9))
    target = meaning @ mixing + 3
    return torch.nn.functional.normalize(meaning, dim=1), target, np.arange(n)


def test_every_map_finds_held_out_pictures_and_the_best_one_is_kept():
    embeddings, target, rows = rows_of(400, 0)
    held_out, test_target, test_rows = rows_of(100, 1)
    conditioner = fit_conditioner(
        {"audio": (embeddings, rows)}, target, {"audio": (held_out, test_rows)}, test_target,
        embed_dim=6, ridge=0.01, steps=100,
    )  # fmt: skip
    notes = conditioner.notes["audio"]
    assert set(notes) == set(ACROSS)
    assert all(note["recall_at_10"] > 0.3 for note in notes.values())  # chance is 0.1
    best = max(notes, key=lambda kind: notes[kind]["recall_at_10"])
    assert conditioner.bridges["audio"].kind == best
    assert conditioner.norm == pytest.approx(target.norm(dim=1).mean().item())
    with pytest.raises(ValueError, match="no held-out pairs of audio"):
        fit_conditioner({"audio": (embeddings, rows)}, target, {}, test_target, embed_dim=6)
    with pytest.raises(ValueError, match="cosine.*CLIP's space"):
        fit_conditioner({}, target, {}, test_target, embed_dim=6, kinds=["cosine"])


@pytest.mark.parametrize("width", [768, 1024])
def test_the_command_makes_a_conditioner_that_drives_the_decoder(script, tmp_path, width, capsys):
    tiny_stable_unclip(width).save_pretrained(tmp_path / "sd")
    encoders = {m: load_encoder(n).info() for m, n in (("image", "efficientnet-lite0"), ("text", "minilm-l6"))}
    torch.manual_seed(0)
    config = ModelConfig(latent_dims={"image": 1280, "text": 384}, encoders=encoders, embed_dim=8, depth=0)
    model = FusionModel(config).eval()
    model.save_pretrained(tmp_path / "model")
    lines = [f"{p},a picture of {p.stem},{'val' if i > 10 else 'train'}" for i, p in enumerate(PICTURES)]
    (tmp_path / "pairs.csv").write_text("\n".join(["image,text,split", *lines]) + "\n")
    flags = [f"--pairs={tmp_path / 'pairs.csv'}", f"--checkpoint={tmp_path / 'model'}", "--steps=3"]
    assert script.main([*flags, f"--decoder={tmp_path / 'sd'}", f"--out={tmp_path / 'cond'}"]) == 0
    record = read_json(tmp_path / "cond" / "conditioner.json")
    assert record["image_embeds_dim"] == width
    assert record["space"] == space_identity(model)
    assert set(record["notes"]) == {"image", "text"}
    generator = Generator.from_pretrained(tmp_path / "sd", model, conditioner=tmp_path / "cond")
    a, b = (model.embed("text", load_encoder("minilm-l6").encode([words]))[0] for words in ("a pear", "a car"))
    embeds = generator.condition({"text": a})
    assert embeds.norm().item() == pytest.approx(Conditioner.load(tmp_path / "cond").norm, rel=1e-4)
    pictures = [generator.generate(e, modality="text", steps=2, seed=1)[0] for e in (a, b)]
    assert not np.array_equal(*map(pixels, pictures))
    capsys.readouterr()
    flags.append(f"--out={tmp_path / 'other'}")
    assert script.main([*flags, f"--decoder={tmp_path / 'model'}"]) == 2
    assert "model_index.json" in capsys.readouterr().err
