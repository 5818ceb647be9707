"""Embedding -> Stable unCLIP -> picture, on tiny pipelines of the real classes in the real format."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, StableUnCLIPImg2ImgPipeline, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, CLIPVisionConfig, CLIPVisionModelWithProjection

from fusemix.generation.bridges import BRIDGES, Conditioner, fit_bridge, space_identity
from fusemix.generation.generator import Generator, blend_weights, nearest_pictures, rank_images
from fusemix.generation.pipelines import load_pipeline
from fusemix.generation.sampling import SCHEDULERS, Cancelled, begin, denoise, encode_condition
from fusemix.generation.small.pipeline import (
    new_autoencoder,
    new_noising_scheduler,
    new_unet,
    noised_class_labels,
    save_small_pipeline,
    small_pipeline,
)
from fusemix.model.adapters import FusionModel
from fusemix.model.config import ModelConfig
from fusemix.search.index import EmbeddingIndex

ROOT = Path(__file__).resolve().parents[2]


def tiny_model(embed_dim: int) -> FusionModel:
    torch.manual_seed(0)
    return FusionModel(ModelConfig(latent_dims={"image": 6, "text": 5}, embed_dim=embed_dim, depth=0)).eval()


def tiny_stable_unclip(width: int) -> StableUnCLIPImg2ImgPipeline:
    """Stable unCLIP with text encoder and tokenizer, all of the real classes, a few thousand parameters."""
    torch.manual_seed(0)
    vocab = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2, "b</w>": 3}
    normaliser = StableUnCLIPImageNormalizer(embedding_dim=width)
    normaliser.mean.data, normaliser.std.data = torch.full((1, width), 0.1), torch.full((1, width), 0.5)
    vision = CLIPVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=8, patch_size=8,
        projection_dim=width,
    )  # fmt: skip
    text = CLIPTextConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=8,
        max_position_embeddings=8, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    return StableUnCLIPImg2ImgPipeline(
        feature_extractor=None,
        image_encoder=CLIPVisionModelWithProjection(vision).eval(),
        image_normalizer=normaliser,
        image_noising_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        tokenizer=CLIPTokenizer(vocab=vocab, merges=[], model_max_length=8),
        text_encoder=CLIPTextModel(text).eval(),
        unet=UNet2DConditionModel(
            sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=4, attention_head_dim=2, cross_attention_dim=8,
            class_embed_type="projection", projection_class_embeddings_input_dim=2 * width,
        ),
        scheduler=DDIMScheduler(prediction_type="v_prediction", clip_sample=False),
        vae=AutoencoderKL(
            block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=4, sample_size=16,
        ),
    )  # fmt: skip


@pytest.fixture(scope="module", params=[768, 1024])
def stable(request, tmp_path_factory):
    """A saved Stable unCLIP of the width of ViT-L or ViT-H, loaded by our class."""
    folder = tmp_path_factory.mktemp("stable")
    tiny_stable_unclip(request.param).save_pretrained(folder / "pipeline")
    return request.param, folder / "pipeline", Generator.from_pretrained(folder / "pipeline")


def tiny_small_pipeline(embed_dim: int) -> StableUnCLIPImg2ImgPipeline:
    torch.manual_seed(0)
    unet, vae = new_unet(4, 4, (8, 16), embed_dim), new_autoencoder(4, 8, (0, 0, 0, 0))
    return small_pipeline(unet, vae, torch.zeros(1, embed_dim), torch.full((1, embed_dim), 0.25))


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def embedding(width: int, seed: int = 0) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(width, generator=torch.Generator().manual_seed(seed)), dim=0)


def test_a_stable_unclip_of_either_width_makes_rgb_pictures_of_its_size(stable):
    width, _, generator = stable
    images = generator.generate(embedding(width), steps=2, n_images=2)
    assert [(image.size, image.mode) for image in images] == [((16, 16), "RGB")] * 2
    assert generator.image_embeds_dim == width
    assert generator.pipeline.unet.dtype == torch.float32


def test_the_same_seed_gives_the_same_picture_and_another_seed_another(stable):
    width, _, generator = stable
    one, again, other = (generator.generate(embedding(width), steps=3, seed=s)[0] for s in (5, 5, 6))
    assert np.array_equal(pixels(one), pixels(again))
    assert not np.array_equal(pixels(one), pixels(other))


def test_picture_i_does_not_depend_on_how_many_are_drawn(stable):
    width, _, generator = stable
    both = generator.generate(embedding(width), steps=3, seed=5, n_images=2)
    second = generator.generate(embedding(width), steps=3, seed=6)[0]
    assert np.abs(pixels(both[1]) - pixels(second)).max() <= 1


def test_the_condition_changes_the_picture(stable):
    width, _, generator = stable
    a, b = (generator.generate(embedding(width, s), steps=3, seed=1)[0] for s in (0, 1))
    assert not np.array_equal(pixels(a), pixels(b))


def test_the_prompt_changes_a_picture_of_a_decoder_with_a_text_encoder(stable):
    width, _, generator = stable
    plain, asked, avoided = (
        generator.generate(embedding(width), steps=3, seed=1, **words)[0]
        for words in ({}, {"prompt": "a"}, {"negative_prompt": "b"})
    )
    assert not np.array_equal(pixels(plain), pixels(asked))
    assert not np.array_equal(pixels(plain), pixels(avoided))


def test_the_normaliser_statistics_scale_the_noise_on_the_embedding():
    pipeline = tiny_small_pipeline(8)
    embeds = embedding(8)[None]
    noise = torch.randn(1, 8, generator=torch.Generator().manual_seed(0))
    pipeline.image_normalizer.mean.data = torch.full((1, 8), 0.3)
    alpha = pipeline.image_noising_scheduler.alphas_cumprod[400]
    labels = pipeline.noise_image_embeddings(embeds, noise_level=400, noise=noise)[:, :8]
    by_hand = (alpha.sqrt() * (embeds - 0.3) / 0.25 + (1 - alpha).sqrt() * noise) * 0.25 + 0.3
    assert torch.allclose(labels, by_hand, atol=1e-5)


def test_the_noise_level_changes_the_picture(stable):
    width, _, generator = stable
    clean, noised = (generator.generate(embedding(width), steps=3, noise_level=level)[0] for level in (0, 700))
    assert not np.array_equal(pixels(clean), pixels(noised))


def test_training_labels_are_those_of_the_pipeline():
    pipeline = tiny_small_pipeline(8)
    normaliser = pipeline.image_normalizer
    normaliser.mean.data = torch.full((1, 8), 0.3)
    embeds = torch.stack([embedding(8, s) for s in range(3)])
    torch.manual_seed(7)
    ours = noised_class_labels(
        embeds, torch.tensor([0, 0, 0]) + 250, normaliser.mean, normaliser.std, new_noising_scheduler()
    )
    torch.manual_seed(7)
    theirs = pipeline.noise_image_embeddings(embeds, noise_level=250, noise=torch.randn(3, 8))
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_model_of_another_width_is_refused_in_a_sentence(stable):
    width, folder, _ = stable
    with pytest.raises(ValueError, match=rf"width 12, but this decoder takes width {width}.*fit a conditioner"):
        Generator.from_pretrained(folder, tiny_model(12))


def test_a_pipeline_whose_parts_disagree_on_the_width_is_refused():
    pipeline = tiny_stable_unclip(768)
    pipeline.register_modules(image_normalizer=StableUnCLIPImageNormalizer(embedding_dim=1024))
    with pytest.raises(ValueError, match="class labels of width 1536.*need 2048"):
        Generator(pipeline)


def test_a_conditioner_leads_from_the_model_to_a_decoder_of_another_width(stable):
    width, folder, _ = stable
    source, target = torch.randn(40, 12), torch.randn(40, width) * 20
    conditioner = Conditioner(
        {"audio": fit_bridge("ridge", source, target)}, embed_dim=12, image_embeds_dim=width, norm=17.0
    )
    generator = Generator.from_pretrained(folder, tiny_model(12), conditioner=conditioner)
    embeds = generator.condition({"audio": source[0]})
    assert embeds.shape == (1, width)
    assert embeds.norm().item() == pytest.approx(17.0, rel=1e-5)  # not unit length: what the normaliser expects
    assert generator.generate(source[0], modality="audio", steps=2)[0].size == (16, 16)
    assert torch.equal(generator.condition({"text": source[0]}), embeds)  # it has no bridge for words of their own


def test_a_small_pipeline_draws_the_same_after_saving_and_in_a_fresh_process(tmp_path):
    pipeline = tiny_small_pipeline(8)
    pipeline.unet.half().float(), pipeline.vae.half().float()  # what float16 storage keeps
    normaliser = pipeline.image_normalizer
    save_small_pipeline(
        tmp_path / "p", pipeline.unet, pipeline.vae, normaliser.mean, normaliser.std, scaling_factor=1.0
    )
    pipeline.vae.register_to_config(scaling_factor=1.0)
    before = Generator(pipeline).generate(embedding(8), steps=4, seed=3)[0]
    code = (
        "import sys, torch; from fusemix.generation.generator import Generator\n"
        "e = torch.nn.functional.normalize(torch.randn(8, generator=torch.Generator().manual_seed(0)), dim=0)\n"
        "Generator.from_pretrained(sys.argv[1]).generate(e, steps=4, seed=3)[0].save(sys.argv[2])"
    )
    run = [sys.executable, "-c", code, str(tmp_path / "p"), str(tmp_path / "out.png")]
    subprocess.run(run, check=True, capture_output=True, cwd=ROOT)
    assert np.abs(pixels(before) - pixels(Image.open(tmp_path / "out.png"))).max() <= 2


def test_saving_replaces_the_folder_whole(tmp_path):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "stale.txt").write_text("old")
    pipeline = tiny_small_pipeline(8)
    save_small_pipeline(
        tmp_path / "p", pipeline.unet, pipeline.vae, torch.zeros(1, 8), torch.ones(1, 8), scaling_factor=1.0
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p"]
    assert not (tmp_path / "p" / "stale.txt").exists()


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_every_scheduler_draws_and_reports_every_step(name):
    generator = Generator(tiny_small_pipeline(8))
    steps = []
    generator.generate(embedding(8), steps=4, scheduler=name, on_step=lambda *step: steps.append(step) or False)
    assert [(done, total) for done, total, _ in steps] == [(i, 4) for i in (1, 2, 3, 4)]
    assert all(preview.size == (32, 32) for _, _, preview in steps)


def test_the_last_preview_is_the_picture():
    generator = Generator(tiny_small_pipeline(8))
    previews = []
    image = generator.generate(embedding(8), steps=5, on_step=lambda i, n, p: previews.append(p) or False)[0]
    assert np.abs(pixels(previews[-1]) - pixels(image)).max() <= 1


def test_drawings_at_the_same_time_are_those_drawn_alone():
    generator = Generator(tiny_small_pipeline(8))
    wanted = {steps: generator.generate(embedding(8), steps=steps)[0] for steps in (7, 12)}
    inner = []

    def meanwhile(done, total, preview):  # a second visitor's whole drawing between two steps of the first
        if done == 3:
            inner.append(generator.generate(embedding(8), steps=12)[0])

    outer = generator.generate(embedding(8), steps=7, on_step=meanwhile)[0]
    assert np.array_equal(pixels(outer), pixels(wanted[7]))
    assert np.array_equal(pixels(inner[0]), pixels(wanted[12]))


class RightUNet:
    """Puts out what belongs to known clean latents at every step."""

    def __init__(self, scheduler, clean):
        self.scheduler, self.clean = scheduler, clean

    def __call__(self, x, t, **condition):
        a = new_noising_scheduler().alphas_cumprod[int(t)]
        eps = (x - a.sqrt() * self.clean) / (1 - a).sqrt()
        v = a.sqrt() * eps - (1 - a).sqrt() * self.clean
        return ({"v_prediction": v, "epsilon": eps, "sample": self.clean}[self.scheduler.config.prediction_type],)


def small_scheduler(name, kind="v_prediction"):
    return SCHEDULERS[name].from_config({**tiny_small_pipeline(8).scheduler.config, "prediction_type": kind})


def denoised(scheduler, timesteps, latents, clean, **watched):
    pipeline, rows = tiny_small_pipeline(8), torch.zeros(len(latents), 8)
    none = torch.zeros(len(latents), 1, 8)
    generators = [torch.Generator().manual_seed(i) for i in range(len(latents))]
    condition = encode_condition(pipeline, rows, none, none, guidance=1.0, noise_level=0, generators=generators)
    unet = RightUNet(scheduler, clean)
    return denoise(unet, scheduler, timesteps, latents, condition, generators=generators, decode=lambda x: x, **watched)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (name, kind)
        for name in sorted(SCHEDULERS)
        for kind in ("v_prediction", "epsilon", "sample")
        if (name, kind) != ("euler-a", "sample")  # which diffusers itself does not know
    ],
)
def test_the_preview_is_the_picture_the_step_points_at(name, kind):
    """With the right output of the network at every step, that is the picture begun with."""
    scheduler, shown = small_scheduler(name, kind), []
    clean, noise = torch.randn(2, 4, 4, 4), torch.randn(2, 4, 4, 4)
    timesteps, x = begin(scheduler, noise, 8, clean=clean, taken=4)
    watched = {"on_step": lambda *_: False, "preview": shown.append}
    denoised(scheduler, timesteps, x, clean, **watched)
    assert len(shown) == 4
    for latents in shown:
        assert torch.allclose(latents, clean[:1], atol=2e-3)


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_a_late_start_begins_with_the_noised_latents_and_its_steps_lead_back_to_them(name):
    """With the right v at every step, the picture begun from is the picture reached."""
    scheduler = small_scheduler(name)
    clean, noise = torch.randn(1, 4, 4, 4), torch.randn(2, 4, 4, 4)
    timesteps, x = begin(scheduler, noise, 10, clean=clean, taken=4)
    assert [round(float(t)) for t in timesteps] == [399, 299, 199, 99]
    a = new_noising_scheduler().alphas_cumprod[399]
    seen = scheduler.scale_model_input(x, timesteps[0])
    assert torch.allclose(seen, a.sqrt() * clean + (1 - a).sqrt() * noise, atol=1e-4)
    timesteps, x = begin(scheduler, noise, 10, clean=clean, taken=4)  # a scheduler counts what it has scaled
    reached = denoised(scheduler, timesteps, x, clean)
    assert torch.allclose(reached, clean.expand(2, -1, -1, -1), atol=0.05)


@pytest.mark.parametrize("name", [None, *sorted(SCHEDULERS)])
@pytest.mark.parametrize("guidance", [1.0, 7.5])
@pytest.mark.parametrize("small", [True, False])
def test_the_loop_draws_what_the_pipelines_own_call_draws(name, guidance, small):
    """Diffusers' call is the peer: the same noise, embeddings and prompts give the same picture, to the bit."""
    pipeline = tiny_small_pipeline(8) if small else tiny_stable_unclip(768)
    generator, width = Generator(pipeline), 8 if small else 768
    rows = torch.stack([embedding(width, s) for s in (0, 1)])
    settings = {"steps": 4, "guidance": guidance, "noise_level": 100, "seed": 5, "scheduler": name}
    ours = generator.from_image_embeds(rows, **settings, **({} if small else {"prompt": "a", "negative_prompt": "b"}))
    if name:
        pipeline.scheduler = SCHEDULERS[name].from_config(pipeline.scheduler.config)
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    side = pipeline.unet.config.sample_size
    noise = torch.stack([torch.randn(4, side, side, generator=g) for g in generators])
    pipeline.scheduler.set_timesteps(4)
    none = torch.zeros(2, 1, 8)
    prompts = (
        {"prompt_embeds": none, "negative_prompt_embeds": none}
        if small
        else {"prompt": ["a"] * 2, "negative_prompt": ["b"] * 2}
    )
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        image_embeds=rows, **prompts, num_inference_steps=4, guidance_scale=guidance, noise_level=100,
        generator=generators, latents=noise * pipeline.scheduler.init_noise_sigma,
    ).images  # fmt: skip
    for mine, other in zip(ours, theirs, strict=True):
        assert np.array_equal(pixels(mine), pixels(other))


def test_an_ancestral_scheduler_adds_new_noise_at_every_step(monkeypatch):
    module, added = "diffusers.schedulers.scheduling_euler_ancestral_discrete.randn_tensor", []

    def watched(shape, **settings):
        added.append(randn_tensor(shape, **settings))
        return added[-1]

    monkeypatch.setattr(module, watched)
    Generator(tiny_small_pipeline(8)).generate(embedding(8), steps=5, n_images=2, scheduler="euler-a")
    drawn = torch.stack(added).flatten(0, 1).flatten(1)  # (5 steps x 2 pictures, values)
    assert len(drawn) == 10
    assert (torch.corrcoef(drawn) - torch.eye(10)).abs().max() < 0.6  # 64 values each
    for seed in (0, 1):
        Generator(tiny_small_pipeline(8)).generate(embedding(8), steps=5, n_images=2, scheduler="euler-a", seed=seed)
    assert torch.equal(torch.stack(added[:5]), torch.stack(added[5:10]))  # of the seed, and of each picture's own
    assert (torch.stack(added[5:10]) - torch.stack(added[10:])).flatten(1).norm(dim=1).min() > 1


def test_euler_takes_the_steps_of_ddim_from_the_same_noise():
    """Euler's latents are larger: noise has to arrive at its own size."""
    generator = Generator(tiny_small_pipeline(8))
    ddim, euler = (generator.generate(embedding(8), steps=10, seed=3, scheduler=s)[0] for s in ("ddim", "euler"))
    other = generator.generate(embedding(8), steps=10, seed=4, scheduler="ddim")[0]
    assert np.abs(pixels(ddim) - pixels(euler)).mean() < 0.1 < 1 < np.abs(pixels(ddim) - pixels(other)).mean()


def test_a_scheduler_that_loses_its_numbers_is_a_sentence_and_no_black_picture():
    generator = Generator(tiny_small_pipeline(8))
    assert np.isfinite(pixels(generator.generate(embedding(8), steps=4, scheduler="euler-a")[0])).all()
    with pytest.raises(ValueError, match="EulerAncestralDiscreteScheduler made NaN .* with 3 steps; take more steps"):
        generator.generate(embedding(8), steps=3, scheduler="euler-a")  # diffusers' own division by zero


def test_a_network_that_loses_its_numbers_is_named():
    generator = Generator(tiny_small_pipeline(8))
    with torch.no_grad():
        generator.pipeline.unet.conv_out.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="The decoder's network put out NaN"):
        generator.generate(embedding(8), steps=4)


def test_an_autoencoder_that_loses_its_numbers_is_named():
    """As Stable Diffusion's does in float16."""
    generator = Generator(tiny_small_pipeline(8))
    with torch.no_grad():
        generator.pipeline.vae.decoder.layers[-1].weight.fill_(float("inf"))
    with pytest.raises(ValueError, match="The decoder's autoencoder put out NaN"):
        generator.generate(embedding(8), steps=4)


@pytest.mark.parametrize(("strength", "taken"), [(0.1, 2), (0.13, 3), (0.17, 3), (0.01, 1), (1.0, 20)])
def test_a_start_takes_the_nearest_whole_number_of_steps(strength, taken):
    seen = []
    Generator(tiny_small_pipeline(8)).generate(
        embedding(8),
        steps=20,
        start=Image.new("RGB", (50, 40), "red"),
        strength=strength,
        on_step=lambda i, n, p: seen.append((i, n)) or False,
    )
    assert seen == [(i, taken) for i in range(1, taken + 1)]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_what_is_transparent_of_a_start_is_white(mode):
    generator = Generator(tiny_small_pipeline(8))
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    clear.putpixel((0, 0), (0, 0, 0, 255))
    white = Image.new("RGB", (8, 8), "white")
    white.putpixel((0, 0), (0, 0, 0))
    given = clear.convert(mode)
    assert torch.equal(generator.encode(given), generator.encode(white))
    assert not torch.allclose(generator.encode(given), generator.encode(Image.new("RGB", (8, 8))))


def test_a_decoder_is_loaded_without_what_drawing_does_not_need(stable):
    width, folder, whole = stable
    lean = Generator.from_pretrained(folder, prompts=False)
    assert not lean._empty_prompt.requires_grad  # a gradient would keep the text encoder
    parts = [lean.pipeline.image_encoder, lean.pipeline.text_encoder, lean.pipeline.tokenizer]
    assert parts == [None] * 3 and whole.pipeline.text_encoder is not None
    assert load_pipeline(folder, "cpu").image_encoder is not None  # as fitting a conditioner needs it
    one, other = (g.generate(embedding(width), steps=3, n_images=2) for g in (lean, whole))
    assert all(np.array_equal(pixels(a), pixels(b)) for a, b in zip(one, other, strict=True))
    with pytest.raises(ValueError, match="no text encoder"):
        lean.generate(embedding(width), prompt="a")


def test_a_decoder_is_loaded_in_the_dtype_asked_for_and_says_what_it_took(stable):
    width, folder, _ = stable
    generator = Generator.from_pretrained(folder, dtype=torch.bfloat16, prompts=False)
    parts = generator.pipeline.unet, generator.pipeline.vae
    assert {p.dtype for part in parts for p in part.parameters()} == {torch.bfloat16}
    assert generator.generate(embedding(width), steps=2)[0].size == (16, 16)
    cost = generator.cost
    assert cost.load_s > 0 and cost.step_s > 0 and cost.peak_bytes > 50e6
    assert re.fullmatch(r"decoder loaded in [\d.]+ s, [\d.]+ s a step, peak memory [\d.]+ GB", str(cost))


def test_large_pictures_are_decoded_one_by_one_and_are_the_same(stable, monkeypatch):
    width, folder, _ = stable
    whole = Generator.from_pretrained(folder).generate(embedding(width), steps=2, n_images=3)
    monkeypatch.setattr("fusemix.generation.generator._SMALL_SIDE", 8)
    large = Generator.from_pretrained(folder)
    assert large.pipeline.vae.use_slicing and not large.is_small
    sliced = large.generate(embedding(width), steps=2, n_images=3, guidance=3.0)
    assert all(np.abs(pixels(a) - pixels(b)).max() <= 1 for a, b in zip(whole, sliced, strict=True))


def test_several_starts_take_turns(monkeypatch):
    red, blue = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    far = {(255, 0, 0): 40.0, (0, 0, 255): -40.0}  # an untrained autoencoder sees no colours
    monkeypatch.setattr(Generator, "encode", lambda self, x: torch.full((1, 4, 4, 4), far[x.getpixel((0, 0))]))
    drawn, settings = Generator(tiny_small_pipeline(8)), {"steps": 20, "strength": 0.1}
    both = drawn.generate(embedding(8), n_images=3, start=[red, blue], **settings)
    for i, (mine, other) in enumerate(((red, blue), (blue, red), (red, blue))):
        alone, unlike = (drawn.generate(embedding(8), seed=i, start=start, **settings)[0] for start in (mine, other))
        assert np.abs(pixels(both[i]) - pixels(alone)).max() <= 1
        assert np.abs(pixels(both[i]) - pixels(unlike)).max() > 10


def test_the_nearest_pictures_have_files_and_are_not_held_out(tmp_path):
    index = EmbeddingIndex(2, model_identity="m", root=tmp_path)
    angles = np.linspace(0, 1, 6)
    items = [{"path": f"{i}.png", "title": str(i)} for i in range(5)] + [{"title": "no file"}]
    index.add("image", np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32), items)
    query = np.array([1.0, 0.0], dtype=np.float32)
    found = nearest_pictures(index, query, 2, exclude={(tmp_path / "1.png").resolve()})
    assert [(path.name, item["title"]) for path, item in found] == [("0.png", "0"), ("2.png", "2")]
    assert [path.name for path, _ in nearest_pictures(index, query, 9)] == [f"{i}.png" for i in range(5)]
    with pytest.raises(ValueError, match="no picture to begin from"):
        nearest_pictures(index, query, 1, exclude={(tmp_path / f"{i}.png").resolve() for i in range(5)})


def test_on_step_can_stop_the_drawing():
    generator, seen = Generator(tiny_small_pipeline(8)), []
    with pytest.raises(Cancelled, match="after 2 of 9"):
        generator.generate(embedding(8), steps=9, on_step=lambda i, n, p: seen.append(i) or i == 2)
    assert seen == [1, 2]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "steps must be 1 to 1000"),
        ({"n_images": 17}, "n_images must be 1 to 16"),
        ({"noise_level": 1000}, "noise_level must be 0 to 999"),
        ({"guidance": 0.5}, "guidance must be 1 to 100"),
        ({"guidance": float("nan")}, "guidance must be 1 to 100"),
        ({"scheduler": "heun"}, "No scheduler is called 'heun'"),
        ({"prompt": "a dog"}, "no text encoder"),
        ({"start": Image.new("RGB", (4, 4)), "strength": 0.0}, "strength must be above 0"),
        ({"start": []}, "start holds no picture"),
    ],
)
def test_arguments_out_of_range_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Generator(tiny_small_pipeline(8)).generate(embedding(8), **wrong)


@pytest.mark.parametrize("bad", [torch.zeros(8), torch.full((8,), float("nan")), torch.ones(9)])
def test_useless_embeddings_are_refused(bad):
    with pytest.raises(ValueError, match="only zeros|shape"):
        Generator(tiny_small_pipeline(8)).generate(bad)


def test_missing_or_foreign_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="No decoder folder"):
        Generator.from_pretrained(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="model_index.json"):
        Generator.from_pretrained(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(ValueError, match="holds a StableDiffusionPipeline"):
        Generator.from_pretrained(tmp_path)


def test_a_damaged_decoder_is_refused_in_a_sentence(tmp_path):
    pipeline = tiny_small_pipeline(8)
    save_small_pipeline(
        tmp_path / "p", pipeline.unet, pipeline.vae, torch.zeros(1, 8), torch.ones(1, 8), scaling_factor=1.0
    )
    weights = next((tmp_path / "p" / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ValueError, match="incomplete or damaged"):
        Generator.from_pretrained(tmp_path / "p")


def test_blending_goes_from_one_embedding_to_the_other():
    generator = Generator(tiny_small_pipeline(8))
    a, b = embedding(8, 0), embedding(8, 1)
    given = {"audio": a, "text": b}
    assert torch.allclose(generator.condition(given, {"audio": 1.0, "text": 0.0})[0], a, atol=1e-6)
    middle = generator.condition(given, {"audio": 0.5, "text": 0.5})[0]
    assert torch.allclose(middle, (a + b) / (a + b).norm(), atol=1e-6)
    with pytest.raises(ValueError, match="not all 0"):
        generator.condition(given, {"audio": 0.0, "text": 0.0})


def test_blend_weights_share_the_rest():
    assert blend_weights(["audio"], 0.3) == {"audio": 1.0}
    assert blend_weights(["audio", "text", "image"], 0.5) == {"audio": 0.5, "text": 0.25, "image": 0.25}


def test_candidates_are_ordered_by_the_encoder():
    class Brightness:
        def encode(self, images):
            return np.array([[np.asarray(i).mean() / 255, 1, 0, 0, 0, 0] for i in images], dtype=np.float32)

    model = tiny_model(4)
    images = [Image.new("RGB", (4, 4), (v, v, v)) for v in (0, 120, 255)]
    wanted = model.embed("image", Brightness().encode(images[2:]))[0]
    ranked = rank_images(images, wanted, model, Brightness())
    assert ranked[0][0] is images[2]
    assert ranked[0][1] == pytest.approx(1.0, abs=1e-5)
    assert [s for _, s in ranked] == sorted((s for _, s in ranked), reverse=True)


# ---- conditioner ------------------------------------------------------------------------------


def clouds(n: int = 400, width: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Two paired clouds of directions around different centres."""
    rng = torch.Generator().manual_seed(0)
    meaning = torch.randn(n, width, generator=rng) * 0.1
    source = meaning + torch.tensor([1.0, 0, 0, 0, 0, 0])
    return source, meaning @ torch.diag(torch.tensor([0.5, 1, 1, 2, 1, 1])) + torch.tensor([0, 1.0, 0, 0, 0, 0])


def test_cosine_only_changes_the_length():
    source, target = clouds()
    conditioner = Conditioner({"text": fit_bridge("cosine", source, target)}, embed_dim=6, image_embeds_dim=6, norm=3.0)
    assert torch.allclose(conditioner("text", source), 3 * source / source.norm(dim=1, keepdim=True), atol=1e-5)


@pytest.mark.parametrize("kind", ["mean_shift", "moments", "covariance", "ridge", "mlp", "fusemix"])
def test_bridges_bring_the_clouds_together(kind):
    source, target = clouds()
    made = fit_bridge(kind, source, target)(source)
    wanted = torch.nn.functional.normalize(target, dim=1)
    before = torch.nn.functional.normalize(source, dim=1).mean(0) - wanted.mean(0)
    left = 0.35 if kind == "fusemix" else 0.05  # InfoNCE ranks the targets; it does not place on them
    assert (made.mean(0) - wanted.mean(0)).norm() < left * before.norm()
    assert torch.allclose(made.norm(dim=1), torch.ones(len(made)), atol=1e-5)


def test_moments_are_those_of_the_targets_before_the_length_is_fixed():
    source, target = clouds()
    bridge = fit_bridge("moments", source, target)
    x, y = (torch.nn.functional.normalize(v, dim=1) for v in (source, target))
    raw = x @ bridge.tensors["weight"].T + bridge.tensors["bias"]
    assert torch.allclose(raw.std(0), y.std(0), atol=1e-4)
    assert torch.allclose(raw.mean(0), y.mean(0), atol=1e-5)


def test_ridge_is_the_written_formula():
    source, target = clouds(50)
    x, y = (torch.nn.functional.normalize(v.double(), dim=1) for v in (source, target))
    xc, yc = x - x.mean(0), y - y.mean(0)
    penalty = 2.0 * sum(float(xc[:, j].pow(2).mean()) for j in range(6)) / 6 * 50
    weight = (torch.linalg.inv(xc.T @ xc + penalty * torch.eye(6, dtype=torch.float64)) @ xc.T @ yc).T
    assert torch.allclose(fit_bridge("ridge", source, target, ridge=2.0).tensors["weight"], weight.float(), atol=1e-5)


def test_a_conditioner_is_the_same_after_saving(tmp_path):
    source, target = clouds()
    bridges = {kind: fit_bridge(kind, source, target, steps=5) for kind in BRIDGES}
    before = Conditioner(bridges, embed_dim=6, image_embeds_dim=6, norm=2.5, notes={"n": 400})
    before.save(tmp_path)
    after = Conditioner.load(tmp_path)
    assert after.notes == {"n": 400}
    for kind in BRIDGES:
        assert torch.equal(before(kind, source), after(kind, source))


def test_wrong_bridges_are_refused():
    source, target = clouds()
    with pytest.raises(ValueError, match="No bridge is called 'magic'"):
        fit_bridge("magic", source, target)
    with pytest.raises(ValueError, match="one space"):
        fit_bridge("moments", source, target[:, :4])
    with pytest.raises(ValueError, match="needs pairs"):
        fit_bridge("ridge", source, target[:10])
    with pytest.raises(ValueError, match="NaN"):
        fit_bridge("ridge", source * float("nan"), target)


def test_another_checkpoint_than_the_decoders_is_refused():
    model = tiny_model(8)
    conditioner = Conditioner({}, embed_dim=8, image_embeds_dim=8, space=space_identity(model))
    with torch.no_grad():
        model.adapters["text"][-1].weight += 1  # trained again into the same space: still welcome
    Generator(tiny_small_pipeline(8), model, conditioner=conditioner)
    with torch.no_grad():
        model.adapters["image"][-1].weight += 1
    with pytest.raises(ValueError, match="another checkpoint"):
        Generator(tiny_small_pipeline(8), model, conditioner=conditioner)
