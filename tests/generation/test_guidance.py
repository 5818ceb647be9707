"""Sampling moved towards what was asked for: the arithmetic of a step, the gradient, what it does to pictures."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from fusemix.encoders import load_encoder
from fusemix.generation.denoising import clean_latents
from fusemix.generation.generator import Generator, default_steering
from fusemix.generation.guidance import EVERY, SHIFT, STRENGTH, DifferentiableEncoder, Steering, augment, shifted
from fusemix.generation.sampling import SCHEDULERS, begin
from fusemix.media import load_image
from fusemix.model.adapters import FusionModel
from fusemix.model.config import ModelConfig
from tests.demo.test_sound_to_picture import APPLE
from tests.generation.test_generator import tiny_small_pipeline

DIM = 8


class Eyes:
    """A linear look at a picture: its colours in four quarters, which depend on mirror and shift."""

    name = "eyes"

    def encode_pixels(self, pixels):
        return F.adaptive_avg_pool2d(pixels, 2).flatten(1)  # (B, 12)

    def encode(self, images):
        arrays = [np.asarray(image, dtype=np.float32) / 255 for image in images]
        return self.encode_pixels(torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)).numpy()


@pytest.fixture
def model():
    torch.manual_seed(0)
    return FusionModel(ModelConfig(latent_dims={"image": 12, "text": 5}, embed_dim=DIM, depth=0)).eval()


def wanted(seed=0, n=1):
    return F.normalize(torch.randn(n, DIM, generator=torch.Generator().manual_seed(seed)), dim=1)


def decode(latents):
    """Latents (N, 4, 4, 4) -> pixels (N, 3, 4, 4)."""
    return latents[:, :3].sigmoid()


def grey_generator(model):
    """A tiny decoder whose pictures are neither black nor white, so that there is a gradient."""
    pipeline = tiny_small_pipeline(DIM)
    last = pipeline.vae.decoder.layers[-1]
    with torch.no_grad():
        last.weight.mul_(0.3)
        (last.bias if last.bias is not None else torch.zeros(3)).fill_(0.5)
    return Generator(pipeline, model)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (name, kind)
        for name in sorted(SCHEDULERS)
        for kind in ("v_prediction", "epsilon", "sample")
        if (name, kind) != ("euler-a", "sample")  # which diffusers itself does not know
    ],
)
def test_a_moved_step_reads_the_moved_picture_and_the_same_noise(model, name, kind):
    config = {**tiny_small_pipeline(DIM).scheduler.config, "prediction_type": kind}
    scheduler = SCHEDULERS[name].from_config(config)
    clean, noise = torch.randn(2, 4, 4, 4), torch.randn(2, 4, 4, 4)
    (t, *_), x = begin(scheduler, noise, 10, clean=clean, taken=6)
    a = scheduler.alphas_cumprod[int(t)]
    output = {"v_prediction": a.sqrt() * noise - (1 - a).sqrt() * clean, "epsilon": noise, "sample": clean}[kind]
    steering = Steering(model, Eyes(), wanted(n=2), strength=0.3)
    output, sample = steering.move(scheduler, output, t, x, decode, [torch.Generator().manual_seed(i) for i in (0, 1)])
    reached = clean_latents(scheduler, output, t, sample)
    length = (reached - clean).flatten(1).norm(dim=1)
    torch.testing.assert_close(length, 0.3 * clean.flatten(1).norm(dim=1), rtol=1e-3, atol=1e-3)
    seen = sample * a.sqrt() if name.startswith("euler") else sample
    eps = (seen - a.sqrt() * reached) / (1 - a).sqrt()
    torch.testing.assert_close(eps, noise, atol=1e-3, rtol=1e-3)


def test_only_every_second_step_is_moved_and_strength_zero_moves_none(model, monkeypatch):
    generator, taken, moved = grey_generator(model), [], []
    direction = Steering.direction
    monkeypatch.setattr(Steering, "direction", lambda *a: moved.append(len(taken)) or direction(*a))
    for strength in (0.2, 0.0):
        taken.clear()
        steering = Steering(model, Eyes(), wanted(), strength)
        generator.from_image_embeds(wanted(), steps=6, steering=steering, on_step=lambda i, n, p: taken.append(i))
    assert moved == [i for i in range(6) if i % EVERY == 0]


def test_the_direction_is_the_gradient_of_the_cosine(model):
    """Beside differences of the cosine itself, of pictures mirrored and shifted as the generator says."""
    steering = Steering(model, Eyes(), wanted(n=5))
    latents = torch.randn(5, 4, 4, 4)
    direction = steering.direction(latents, decode, [torch.Generator().manual_seed(i) for i in range(5)])

    def cosine(z):
        looks = [torch.Generator().manual_seed(i) for i in range(5)]
        seen = torch.cat([augment(x[None], look) for x, look in zip(decode(z), looks, strict=True)])
        return steering.similarity(seen, steering.wanted)

    torch.testing.assert_close(direction.flatten(1).norm(dim=1), torch.ones(5))
    with torch.no_grad():
        rising = (cosine(latents + 1e-2 * direction) - cosine(latents - 1e-2 * direction)) / 2e-2
        for _ in range(20):
            other = F.normalize(torch.randn(5, 64), dim=1).reshape(latents.shape)
            along = (cosine(latents + 1e-2 * other) - cosine(latents - 1e-2 * other)) / 2e-2
            assert (along < rising).all()
            expected = rising * (direction * other).flatten(1).sum(1)
            torch.testing.assert_close(along, expected, atol=2e-3, rtol=0.05)


def test_both_the_picture_and_its_mirror_image_are_seen(model):
    class Left(Eyes):
        def encode_pixels(self, pixels):
            seen.append(bool(pixels[..., :2].mean() > pixels[..., 2:].mean()))
            return super().encode_pixels(pixels)

    seen, look = [], torch.Generator().manual_seed(0)
    bright_left = torch.full((1, 4, 4, 4), -3.0)
    bright_left[..., :2] = 3.0
    for _ in range(12):
        Steering(model, Left(), wanted()).direction(bright_left, decode, [look])
    assert set(seen) == {True, False}


def test_pictures_are_moved_by_whole_pixels_and_their_border_continued():
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    torch.testing.assert_close(shifted(x, 1, -1)[0, 0, 2], torch.tensor([5.0, 6, 7, 7]))
    assert torch.equal(shifted(x, 0, 0), x) and torch.equal(shifted(x, 3, 0), x)


def test_every_shift_up_to_the_largest_and_the_mirror_image_are_drawn():
    x, rng = torch.zeros(1, 1, 32, 32), torch.Generator().manual_seed(0)
    x[0, 0, 12, 15] = 1.0
    seen = set()
    for _ in range(2000):
        (place,) = (augment(x, rng)[0, 0] > 0.5).nonzero().tolist()
        seen.add(tuple(place))
    shifts = range(-SHIFT, SHIFT + 1)
    columns = {15 + right for right in shifts} | {31 - (15 + right) for right in shifts}
    assert seen == {(12 + down, column) for down in shifts for column in columns}


def test_steering_sees_a_picture_at_another_place_each_time(model):
    class Spot(Eyes):
        def encode_pixels(self, pixels):
            places.append(int(pixels[0, 0].argmax()))
            return super().encode_pixels(pixels)

    places, latents, rng = [], torch.full((1, 4, 32, 32), -3.0), torch.Generator().manual_seed(0)
    latents[..., 12, 15] = 3.0
    for _ in range(12):
        Steering(model, Spot(), wanted()).direction(latents, decode, [rng])
    assert len(set(places)) > 8


def test_where_the_gradient_is_zero_nothing_moves(model):
    flat = torch.zeros(2, 4, 4, 4)
    direction = Steering(model, Eyes(), wanted()).direction(flat, lambda z: z[:, :3] * 0, [torch.Generator()] * 2)
    assert torch.equal(direction, flat)


def test_steered_pictures_are_nearer_to_what_was_asked_for_and_the_same_seed_draws_the_same(model):
    generator = grey_generator(model)
    embeds = wanted(1, n=16)
    settings = {"steps": 12, "seed": 4}

    def similarity(images):
        return (model.embed("image", Eyes().encode(images)) * embeds).sum(1)

    alone = generator.from_image_embeds(embeds, **settings)
    steered, again = (
        generator.from_image_embeds(embeds, steering=Steering(model, Eyes(), embeds, 0.3), **settings) for _ in range(2)
    )
    assert (similarity(steered) - similarity(alone)).mean() > 0.1
    assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(steered, again, strict=True))
    nothing = generator.from_image_embeds(embeds, steering=Steering(model, Eyes(), embeds, 0.0), **settings)
    assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(nothing, alone, strict=True))


def test_a_steered_picture_does_not_depend_on_how_many_are_drawn(model):
    generator = grey_generator(model)
    settings = {"steps": 8, "steering": Steering(model, Eyes(), wanted(), 0.3)}
    three = generator.from_image_embeds(wanted(), seed=4, n_images=3, **settings)
    (second,) = generator.from_image_embeds(wanted(), seed=5, **settings)
    assert np.abs(np.asarray(three[1], int) - np.asarray(second, int)).max() <= 1


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_every_scheduler_can_be_steered_also_from_a_late_start(model, name):
    generator = grey_generator(model)
    embeds = wanted(1, n=16)

    def similarity(**settings):
        images = generator.from_image_embeds(embeds, steps=12, seed=4, scheduler=name, **settings)
        return (model.embed("image", Eyes().encode(images)) * embeds).sum(1)

    steering = Steering(model, Eyes(), embeds, 0.3)
    assert (similarity(steering=steering) - similarity()).mean() > 0.05
    start = {"start": Image.new("RGB", (32, 32), "grey"), "strength": 0.6}
    assert (similarity(steering=steering, **start) - similarity(**start)).mean() > 0.05


def test_gradients_pass_through_weights_that_moved_while_drawing(model):
    """As accelerate's offloading moves them, within the call."""
    generator = grey_generator(model)
    vae = generator.pipeline.vae
    encode = vae.encode

    def moved(x):
        vae.to(torch.float64).to(torch.float32)
        return encode(x)

    vae.encode = moved
    start = Image.new("RGB", (32, 32), "grey")
    steering = Steering(model, Eyes(), wanted(), 0.3)
    assert generator.from_image_embeds(wanted(), steps=4, start=start, steering=steering)


def test_the_preview_shows_the_steered_picture(model):
    generator = grey_generator(model)
    previews = []
    (made,) = generator.from_image_embeds(
        wanted(), steps=9, steering=Steering(model, Eyes(), wanted(), 0.5), on_step=lambda i, n, p: previews.append(p)
    )
    assert np.abs(np.asarray(previews[-1], int) - np.asarray(made, int)).max() <= 1  # the last step is a steered one


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"wanted": torch.ones(1, DIM + 1)}, r"takes embeddings \(N, 8\) of the model's space, got \(1, 9\)"),
        ({"wanted": torch.full((DIM,), float("nan"))}, "holds NaN or infinite values, or zeros"),
        ({"wanted": torch.zeros(DIM)}, "holds NaN or infinite values, or zeros"),
        ({"strength": -0.1}, "must be 0 to 2"),
        ({"strength": float("nan")}, "must be 0 to 2"),
        ({"encoder": object()}, "no differentiable method `encode_pixels`"),
    ],
)
def test_what_cannot_steer_is_a_sentence(model, changes, message):
    with pytest.raises(ValueError, match=message):
        Steering(**{"model": model, "encoder": Eyes(), "wanted": wanted(), **changes})


def test_as_many_embeddings_as_pictures(model):
    generator = Generator(tiny_small_pipeline(DIM), model)
    with pytest.raises(ValueError, match="given 2 embeddings for 3 pictures"):
        generator.from_image_embeds(wanted(n=3), steps=2, steering=Steering(model, Eyes(), wanted(n=2)))


def test_small_decoders_are_steered_unless_asked_otherwise_where_the_encoder_can(model):
    generator = Generator(tiny_small_pipeline(DIM), model)
    assert default_steering(generator, Eyes()) == STRENGTH
    assert default_steering(generator, object()) == 0
    generator.is_small = False
    assert default_steering(generator, Eyes()) == 0


@pytest.mark.parametrize("name", ["efficientnet-lite0", "efficientnet-lite0-deep"])
def test_gradients_see_what_the_encoder_sees(name):
    encoder = load_encoder(name)
    assert isinstance(encoder, DifferentiableEncoder)
    image = load_image(str(APPLE)).resize((64, 64), Image.Resampling.LANCZOS)
    x = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)[None].requires_grad_()
    seen = encoder.encode_pixels(x)
    if name.endswith("deep"):  # its latent is the mean with the mirror image's
        seen = (seen + encoder.encode_pixels(x.flip(3))) / 2
    expected = torch.from_numpy(encoder.encode([image]))
    assert F.cosine_similarity(seen, expected).item() > 0.998
    torch.testing.assert_close(seen.norm(), expected.norm(), rtol=0.01, atol=0)
    (gradient,) = torch.autograd.grad(seen.sum(), x)
    assert torch.isfinite(gradient).all() and gradient.abs().sum() > 0
