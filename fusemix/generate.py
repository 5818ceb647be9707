"""Embedding -> Stable unCLIP -> picture. The only module that imports diffusers.

Two decoders, one format: the real Stable Diffusion unCLIP (conditioned on CLIP projections of
width 768 or 1024), and the small pipeline of scripts/train_unclip.py, which has the same classes
and files and is conditioned on the shared space itself.
"""

from __future__ import annotations

import itertools
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderTiny,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    StableUnCLIPImg2ImgPipeline,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
from transformers.utils import logging as transformers_logging

from fusemix.adapters import FusionModel
from fusemix.conditioner import CONFIG_NAME as CONDITIONER_NAME
from fusemix.conditioner import Conditioner, space_identity
from fusemix.encoders import Encoder
from fusemix.files import read_json

logger = logging.getLogger(__name__)

SCHEDULERS: dict[str, Any] = {
    "ddim": DDIMScheduler,
    "dpm++": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
    "euler": EulerDiscreteScheduler,
    "euler-a": EulerAncestralDiscreteScheduler,
}
MAX_SHARD_SIZE = "9MB"  # a plain git push to a Space refuses files over 10 MB
MAX_IMAGES = 16  # pictures in one call
_PATCH_WIDTH = 48  # channels that hold a 4 x 4 block of RGB pixels
_SMALL_SIDE = 128  # pixels; up to here a preview of every step costs next to nothing

OnStep = Callable[[int, int, Image.Image | None], bool | None]  # steps done, steps in all, preview -> stop?


class Cancelled(Exception):
    """Raised by :meth:`Generator.generate` when ``on_step`` asked to stop."""


class Generator:
    """A Stable unCLIP pipeline driven by embeddings.

    Example:
        >>> model = FusionModel.from_pretrained("checkpoints/default")
        >>> generator = Generator.from_pretrained("checkpoints/unclip-small", model)
        >>> image = generator.generate(embedding, modality="audio", seed=0)[0]  # embedding: (D,)
    """

    def __init__(
        self,
        pipeline: Any,
        model: FusionModel | None = None,
        *,
        conditioner: Conditioner | None = None,
        name: str = "",
    ) -> None:
        """Put the parts together.

        Args:
            pipeline: Loaded, on its device.
            model: Whose embeddings will drive it; checked against the pipeline.
            conditioner: Leads from the model's embeddings to the pipeline's image embeddings;
                without one they must be of one space.
            name: Shown to visitors.

        Raises:
            ValueError: If the widths do not fit, in one sentence.
        """
        self.image_embeds_dim = _check_pipeline(pipeline)
        if conditioner is None:
            conditioner = Conditioner({}, embed_dim=self.image_embeds_dim, image_embeds_dim=self.image_embeds_dim)
        if conditioner.image_embeds_dim != self.image_embeds_dim:
            raise ValueError(
                f"The conditioner makes image embeddings of width {conditioner.image_embeds_dim}, but this decoder "
                f"takes {self.image_embeds_dim}; fit it for this decoder."
            )
        if model is not None:
            _check_model(model, conditioner, self.image_embeds_dim)
        self.pipeline = pipeline
        self.conditioner = conditioner
        self.name = name
        self.side: int = pipeline.unet.config.sample_size * pipeline.vae_scale_factor  # pixels
        self.is_small = self.side <= _SMALL_SIDE
        self._default_scheduler = pipeline.scheduler

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        model: FusionModel | None = None,
        *,
        conditioner: str | Path | Conditioner | None = None,
        device: str = "cpu",
        offload: bool = False,
        revision: str | None = None,
    ) -> Generator:
        """Load a decoder; float16 on a GPU, float32 elsewhere.

        Args:
            source: Folder or Hub id of a ``StableUnCLIPImg2ImgPipeline``.
            model: Whose embeddings will drive it; a decoder of another width is refused here.
            conditioner: A folder or object; by default the one that lies in ``source``, if any.
            device: A torch device string.
            offload: Keep only the working part on the GPU (accelerate); slower, less memory.
            revision: On the Hub.

        Raises:
            FileNotFoundError: If the decoder cannot be found or reached.
            ValueError: If it is no Stable unCLIP pipeline or does not fit the model.
        """
        folder = _resolve(source, revision)
        dtype = torch.float16 if device.startswith("cuda") else torch.float32
        absent = {part: None for part in _absent_parts(folder)}
        try:
            with _quiet():
                pipeline = StableUnCLIPImg2ImgPipeline.from_pretrained(str(folder), dtype=dtype, **absent)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise ValueError(
                f"The decoder {str(source)!r} could not be loaded as a Stable unCLIP pipeline "
                f"({type(error).__name__}: {str(error)[:200]}); its files are incomplete or damaged."
            ) from error
        if offload and device != "cpu":
            pipeline.enable_model_cpu_offload(device=device)
        else:
            pipeline.to(device)
        if conditioner is None and (folder / CONDITIONER_NAME).is_file():
            conditioner = folder
        if isinstance(conditioner, str | Path):
            conditioner = Conditioner.load(conditioner)
        return cls(pipeline, model, conditioner=conditioner, name=str(source))

    def condition(
        self,
        embeddings: Mapping[str, Tensor | np.ndarray],
        weights: Mapping[str, float] | None = None,
    ) -> Tensor:
        """Image embeddings from one embedding, or from a blend of several modalities.

        Args:
            embeddings: Modality -> embedding, shape (D,) or (1, D).
            weights: Modality -> weight >= 0; equal by default. Each is bridged first, then
                blended, then brought to the decoder's length.

        Returns:
            Shape (1, D_out), float32, of length ``conditioner.norm``.

        Raises:
            ValueError: If nothing is given, or widths, values or weights make no sense.
        """
        if not embeddings:
            raise ValueError("Give at least one embedding to make a picture from.")
        chosen = {name: 1.0 if weights is None else float(weights.get(name, 0.0)) for name in embeddings}
        if any(not w >= 0 for w in chosen.values()) or sum(chosen.values()) == 0:
            raise ValueError(f"Weights must be >= 0 and not all 0, got {chosen}.")
        total = torch.zeros(1, self.image_embeds_dim)
        for modality, value in embeddings.items():
            row = torch.as_tensor(np.asarray(value), dtype=torch.float32).reshape(1, -1)
            total = total + chosen[modality] * self.conditioner(modality, row)
        return F.normalize(total, dim=1) * self.conditioner.norm

    def generate(
        self,
        embedding: Tensor | np.ndarray,
        *,
        modality: str = "image",
        steps: int = 25,
        guidance: float | None = None,
        noise_level: int = 0,
        seed: int = 0,
        n_images: int = 1,
        prompt: str = "",
        negative_prompt: str = "",
        scheduler: str | None = None,
        on_step: OnStep | None = None,
    ) -> list[Image.Image]:
        """Pictures of an embedding.

        Args:
            embedding: Shape (D,) or (1, D), of the shared space.
            modality: Where it comes from; chooses the bridge.
            steps: Denoising steps, 1 to 1000.
            guidance: Classifier-free guidance, 1 for none; by default 3 for a small decoder, 10 else.
            noise_level: Noise put on the image embedding, 0 to 999 of the noising scheduler's
                steps: more of it, and the picture keeps less of the embedding.
            seed: Picture i is drawn with ``seed + i``, whatever ``n_images`` is.
            n_images: 1 to 16.
            prompt: A text prompt, for decoders with a text encoder.
            negative_prompt: What to keep away from, for decoders with a text encoder.
            scheduler: One of :data:`SCHEDULERS`; the decoder's own by default.
            on_step: Called after every step with (steps done, steps in all, preview of the first
                picture or None); return True to stop. Small decoders preview every step.

        Returns:
            ``n_images`` RGB pictures of the decoder's own size.

        Raises:
            ValueError: If an argument is out of range or the embedding does not fit.
            Cancelled: If ``on_step`` asked to stop.
        """
        image_embeds = self.condition({modality: embedding})
        return self.from_image_embeds(
            image_embeds, steps=steps, guidance=guidance, noise_level=noise_level, seed=seed, n_images=n_images,
            prompt=prompt, negative_prompt=negative_prompt, scheduler=scheduler, on_step=on_step,
        )  # fmt: skip

    @torch.inference_mode()
    def from_image_embeds(
        self,
        image_embeds: Tensor,
        *,
        steps: int = 25,
        guidance: float | None = None,
        noise_level: int = 0,
        seed: int = 0,
        n_images: int = 1,
        prompt: str = "",
        negative_prompt: str = "",
        scheduler: str | None = None,
        on_step: OnStep | None = None,
    ) -> list[Image.Image]:
        """Pictures of image embeddings that are already the decoder's own; see :meth:`generate`.

        Args:
            image_embeds: Shape (1, D_out) for ``n_images`` variations, or (N, D_out) for one
                picture each (then ``n_images`` must be 1).
            steps: See :meth:`generate`, as the other arguments.
            guidance: See there.
            noise_level: See there.
            seed: See there.
            n_images: See there.
            prompt: See there.
            negative_prompt: See there.
            scheduler: See there.
            on_step: See there.
        """
        self._check_request(image_embeds, steps, guidance, noise_level, n_images, scheduler)
        pipe = self.pipeline
        rows = image_embeds.expand(n_images, -1) if len(image_embeds) == 1 else image_embeds
        pipe.scheduler = (
            SCHEDULERS[scheduler].from_config(self._default_scheduler.config)
            if scheduler
            else deepcopy(self._default_scheduler)
        )
        device, dtype = pipe._execution_device, pipe.unet.dtype
        generators = [torch.Generator("cpu").manual_seed(seed + i) for i in range(len(rows))]
        side = pipe.unet.config.sample_size
        shape = (pipe.unet.config.in_channels, side, side)
        latents = torch.stack([torch.randn(shape, generator=g) for g in generators]).to(device, dtype)
        watch = _Watch(self, latents, steps, on_step) if on_step else None
        pipe.set_progress_bar_config(disable=True)
        with _few_threads(self.is_small and device.type == "cpu"):
            result = pipe(
                image_embeds=rows.to(device, dtype),
                **self._prompt_arguments(prompt, negative_prompt, len(rows), device, dtype),
                num_inference_steps=steps,
                guidance_scale=self.default_guidance if guidance is None else guidance,
                noise_level=noise_level,
                generator=generators,
                latents=latents,
                callback=watch,
            )
        return list(result.images)

    @property
    def default_guidance(self) -> float:
        """3 for a small decoder, diffusers' 10 for Stable Diffusion."""
        return 3.0 if self.is_small else 10.0

    def _check_request(
        self, rows: Tensor, steps: int, guidance: float | None, noise_level: int, n_images: int, scheduler: str | None
    ) -> None:
        if rows.ndim != 2 or rows.shape[1] != self.image_embeds_dim or not len(rows):
            raise ValueError(f"This decoder takes image_embeds (N, {self.image_embeds_dim}), got {tuple(rows.shape)}.")
        if not 1 <= steps <= 1000:
            raise ValueError(f"steps must be 1 to 1000, got {steps}.")
        if not 1 <= n_images <= MAX_IMAGES or (len(rows) > 1 and n_images != 1):
            raise ValueError(f"n_images must be 1 to {MAX_IMAGES}, and 1 with several embeddings, got {n_images}.")
        levels = self.pipeline.image_noising_scheduler.config.num_train_timesteps
        if not 0 <= noise_level < levels:
            raise ValueError(f"noise_level must be 0 to {levels - 1}, got {noise_level}.")
        if guidance is not None and not 1 <= guidance <= 100:
            raise ValueError(f"guidance must be 1 to 100, got {guidance}.")
        if scheduler is not None and scheduler not in SCHEDULERS:
            raise ValueError(f"No scheduler is called {scheduler!r}; expected one of {sorted(SCHEDULERS)}.")

    def _prompt_arguments(
        self, prompt: str, negative_prompt: str, n: int, device: torch.device, dtype: torch.dtype
    ) -> dict[str, Any]:
        """Prompts for a decoder with a text encoder; for one without, the zeros it was trained with."""
        if self.pipeline.text_encoder is not None:
            return {"prompt": [prompt] * n, "negative_prompt": [negative_prompt] * n}
        if prompt or negative_prompt:
            raise ValueError("This decoder has no text encoder, so it takes no prompt; blend a text embedding instead.")
        zeros = torch.zeros(n, 1, self.pipeline.unet.config.cross_attention_dim, device=device, dtype=dtype)
        return {"prompt_embeds": zeros, "negative_prompt_embeds": zeros}

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> list[Image.Image]:
        """Pictures of latents (N, C, s, s) at the scale the UNet works at."""
        vae = self.pipeline.vae
        pixels = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
        return list(self.pipeline.image_processor.postprocess(pixels, output_type="pil"))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without diffusers' and transformers' own bars and remarks on parts that are meant to be absent."""
    levels = [library.get_verbosity() for library in (diffusers_logging, transformers_logging)]
    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, level in zip((diffusers_logging, transformers_logging), levels, strict=True):
            library.set_verbosity(level)
            library.enable_progress_bar()


@contextmanager
def _few_threads(limit: bool) -> Iterator[None]:
    """One thread inside, if asked: tensors this small gain nothing from two, which wait for each other when busy."""
    before = torch.get_num_threads()
    if limit:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Watch:
    """The pipeline's callback: counts steps, previews the first picture, stops on request.

    With DDIM the preview is the picture the current step points at: two successive latents lie on
    one line a x0 + s eps, so both unknowns follow from them. Other schedulers preview the noisy latents.
    """

    def __init__(self, generator: Generator, latents: Tensor, steps: int, on_step: OnStep) -> None:
        self.generator, self.steps, self.on_step = generator, steps, on_step
        self.scheduler: Any = generator.pipeline.scheduler
        self.previous = latents[:1] * self.scheduler.init_noise_sigma
        self.done = 0

    def __call__(self, step: int, timestep: Tensor, latents: Tensor) -> None:
        preview = self.generator.decode(self.clean(latents[:1]))[0] if self.generator.is_small else None
        self.previous = latents[:1].clone()
        self.done += 1
        if self.on_step(min(self.done, self.steps), self.steps, preview):
            raise Cancelled(f"stopped after {self.done} of {self.steps} steps")

    def clean(self, latents: Tensor) -> Tensor:
        if not isinstance(self.scheduler, DDIMScheduler):
            return latents
        scheduler: Any = self.scheduler
        times, alphas = scheduler.timesteps, scheduler.alphas_cumprod
        before = alphas[times[self.done]].item()
        last = self.done + 1 >= len(times)
        after = scheduler.final_alpha_cumprod.item() if last else alphas[times[self.done + 1]].item()
        (a, s), (b, r) = ((alpha**0.5, (1 - alpha) ** 0.5) for alpha in (before, after))
        return (r * self.previous - s * latents) / (r * a - s * b)


def blend_weights(names: Sequence[str], share: float) -> dict[str, float]:
    """Weights of a blend: ``share`` for the first name, the rest equally for the others; 1 for one alone.

    Raises:
        ValueError: If the share is not between 0 and 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"The share of the {names[0]} must be 0 to 1, got {share}.")
    others = len(names) - 1
    if not others:
        return {names[0]: 1.0}
    return {name: share if i == 0 else (1 - share) / others for i, name in enumerate(names)}


def rank_images(
    images: Sequence[Image.Image], embedding: Tensor | np.ndarray, model: FusionModel, encoder: Encoder
) -> list[tuple[Image.Image, float]]:
    """Order generated pictures by how close the frozen encoder finds them to what was asked for.

    Say so wherever you show only the best: it is a choice by the same encoder that conditions the decoder.

    Args:
        images: The candidates.
        embedding: Shape (D,) or (1, D), of the shared space, on the images' side of the gap.
        model: The adapters.
        encoder: The image encoder of ``model``.

    Returns:
        (picture, cosine similarity), nearest first.
    """
    made = model.embed("image", encoder.encode(list(images)))  # (N, D)
    wanted = F.normalize(torch.as_tensor(np.asarray(embedding), dtype=torch.float32).reshape(1, -1), dim=1)
    similarity = (made @ wanted.T)[:, 0]
    return [(images[int(i)], float(similarity[int(i)])) for i in similarity.argsort(descending=True)]


def _resolve(source: str | Path, revision: str | None) -> Path:
    """The local folder of a decoder, fetched from the Hub if it is not a folder."""
    folder = Path(source)
    if folder.is_dir():
        return folder
    if isinstance(source, Path) or str(source).count("/") != 1 or str(source).startswith((".", "/", "~")):
        raise FileNotFoundError(f"No decoder folder at {source}; expected a folder or a Hub id 'owner/name'.")
    try:
        return Path(StableUnCLIPImg2ImgPipeline.download(str(source), revision=revision))
    except Exception as error:  # the Hub client raises many types; all mean "not loaded", and the cause is kept
        raise FileNotFoundError(
            f"{str(source)!r} is no folder here and could not be loaded from the Hugging Face Hub "
            f"({type(error).__name__}). Check the name and the network, or give a local folder."
        ) from error


def _absent_parts(folder: Path) -> list[str]:
    """Parts the pipeline was saved without; diffusers wants to be told that this is meant."""
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(f"{folder} holds no model_index.json; expected a diffusers pipeline folder.")
    index = read_json(folder / "model_index.json")
    found = index.get("_class_name") if isinstance(index, dict) else None
    if found not in ("StableUnCLIPImg2ImgPipeline", "StableUnCLIPPipeline"):
        raise ValueError(f"{folder} holds a {found}; expected a StableUnCLIPImg2ImgPipeline.")
    return [part for part, value in index.items() if value == [None, None]]


def _check_pipeline(pipeline: Any) -> int:
    """The width D of the image embeddings a pipeline takes, once its parts are known to agree on it."""
    width = int(pipeline.image_normalizer.config.embedding_dim)
    config = pipeline.unet.config
    taken = config.projection_class_embeddings_input_dim
    if config.class_embed_type != "projection" or taken != 2 * width:
        raise ValueError(
            f"This decoder's UNet takes class labels of width {taken} ({config.class_embed_type}), but its normaliser "
            f"makes image_embeds of width {width}, which need {2 * width} (projection); it is no intact Stable unCLIP."
        )
    return width


def _check_model(model: FusionModel, conditioner: Conditioner, image_embeds_dim: int) -> None:
    if conditioner.embed_dim != model.config.embed_dim:
        raise ValueError(
            f"The model makes embeddings of width {model.config.embed_dim}, but this decoder takes width "
            f"{conditioner.embed_dim} (image_embeds of width {image_embeds_dim}); choose a decoder for this model, "
            "or fit a conditioner between the two."
        )
    if conditioner.space is not None and conditioner.space != space_identity(model):
        raise ValueError(
            "This decoder was trained on the embeddings of another checkpoint; train it again for this one with "
            "scripts/train_unclip.py, or load the checkpoint it came with."
        )


# ---- building a small pipeline in the same format ---------------------------------------------


def new_autoencoder(latent_channels: int, width: int, blocks: tuple[int, ...]) -> Any:
    """An untrained AutoencoderTiny for small pictures; its latent is 1/8 as wide. See :func:`patch_components`.

    Args:
        latent_channels: At most 48.
        width: Channels of the decoder.
        blocks: Residual blocks of the decoder at 1/8, 1/4, 1/2 and full size.
    """
    return AutoencoderTiny(
        encoder_block_out_channels=(_PATCH_WIDTH,) * 4,
        decoder_block_out_channels=(width,) * 4,
        num_encoder_blocks=(0, 0, 0, 0),
        num_decoder_blocks=blocks,
        latent_channels=latent_channels,
    )


@torch.no_grad()
def patch_components(vae: Any, pictures: np.ndarray) -> None:
    """Set a :func:`new_autoencoder`'s encoder to the principal components of 8 x 8 patches, and freeze it.

    Its convolutions, without activations between them, gather each patch's 192 values and
    project them. A component of standard deviation s is divided by sqrt(s), and all by one number that
    gives the first one standard deviation 1: coarse structure stays larger, fine structure is
    not drowned.

    Args:
        vae: Of :func:`new_autoencoder`.
        pictures: Shape (N, S, S, 3), uint8, S a multiple of 8.

    Raises:
        ValueError: If the latent has more than 48 channels.
    """
    count = vae.config.latent_channels
    if count > _PATCH_WIDTH:
        raise ValueError(f"latent_channels must be at most {_PATCH_WIDTH}, got {count}.")
    n, side = len(pictures), pictures.shape[1] // 8
    x = pictures.astype(np.float64) / 255
    x = x.reshape(n, side, 8, side, 8, 3).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 192)  # (patches, y x c)
    values, vectors = np.linalg.eigh(np.cov((x - x.mean(0)).T))
    std = np.sqrt(values[::-1][:count].clip(1e-12))
    projection = (vectors[:, ::-1][:, :count] / np.sqrt(std * std[0])).T  # (count, 192)
    first, second, third, fourth, last = (layer for layer in vae.encoder.layers)
    for layer in (first, second, third, fourth, last):
        nn.init.zeros_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    first.weight[range(3), range(3), 1, 1] = 1
    for y, x_ in itertools.product(range(2), range(2)):  # a stride-2 kernel's last four taps are one 2 x 2 block
        for layer, channels in ((second, 3), (third, 12)):
            block = (2 * y + x_) * channels
            layer.weight[range(block, block + channels), range(channels), 1 + y, 1 + x_] = 1
    by_pixel = torch.from_numpy(projection.reshape(count, 8, 8, 3)).float()
    for y, x_ in itertools.product(range(8), range(8)):
        channel = (2 * (y // 2 % 2) + x_ // 2 % 2) * 12 + (2 * (y % 2) + x_ % 2) * 3
        fourth.weight[:count, channel : channel + 3, 1 + y // 4, 1 + x_ // 4] = by_pixel[:, y, x_]
    last.weight[range(count), range(count), 1, 1] = 1
    last.bias.copy_(torch.from_numpy(-projection @ x.mean(0)).float())
    vae.encoder.requires_grad_(False)


def new_unet(latent_side: int, latent_channels: int, channels: tuple[int, ...], embed_dim: int) -> Any:
    """An untrained unCLIP UNet: projection class embeddings of width 2 x embed_dim, attention below the first level."""
    below = len(channels) - 1
    return UNet2DConditionModel(
        sample_size=latent_side,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=channels,
        down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D"] * below),
        up_block_types=(*["CrossAttnUpBlock2D"] * below, "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=4,  # diffusers reads this as the number of heads
        cross_attention_dim=8,  # of the zeros that stand for a prompt
        class_embed_type="projection",
        projection_class_embeddings_input_dim=2 * embed_dim,
        resnet_time_scale_shift="scale_shift",
    )


def new_scheduler() -> Any:
    """Cosine schedule, v-prediction, steps counted from the end (Lin et al., arXiv:2305.08891)."""
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
    )


def new_noising_scheduler() -> Any:
    """The schedule that noises image embeddings, as in Stable unCLIP."""
    return DDPMScheduler(beta_schedule="squaredcos_cap_v2")


def noised_class_labels(image_embeds: Tensor, noise_levels: Tensor, mean: Tensor, std: Tensor, noising: Any) -> Tensor:
    """What the pipeline's ``noise_image_embeddings`` does, for training: a noise level for each row.

    Args:
        image_embeds: Shape (B, D).
        noise_levels: (B,), int64, 0 to 999.
        mean: (1, D), of the normaliser.
        std: (1, D), of the normaliser.
        noising: See :func:`new_noising_scheduler`.

    Returns:
        Noised embeddings beside a sinusoidal embedding of the level, shape (B, 2 D).

    Source:
        diffusers ``StableUnCLIPImg2ImgPipeline.noise_image_embeddings``.
    """
    scaled = (image_embeds - mean) / std
    noised = noising.add_noise(scaled, torch.randn_like(scaled), noise_levels)
    level = get_timestep_embedding(noise_levels, image_embeds.shape[1], flip_sin_to_cos=True, downscale_freq_shift=0)
    return torch.cat([noised * std + mean, level], dim=1)


def small_pipeline(unet: Any, vae: Any, mean: Tensor, std: Tensor) -> Any:
    """A Stable unCLIP pipeline without text: UNet, autoencoder, normaliser (mean and std, (1, D)), schedulers.

    The image encoder is a stub of a few parameters, which diffusers only asks for its dtype.
    """
    normaliser = StableUnCLIPImageNormalizer(embedding_dim=mean.shape[1])
    normaliser.mean.data, normaliser.std.data = mean.clone(), std.clone()
    stub = CLIPVisionConfig(
        hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1,
        image_size=4, patch_size=4, projection_dim=4,
    )  # fmt: skip
    return StableUnCLIPImg2ImgPipeline(
        feature_extractor=None,
        image_encoder=CLIPVisionModelWithProjection(stub).eval(),
        image_normalizer=normaliser,
        image_noising_scheduler=new_noising_scheduler(),
        tokenizer=None,
        text_encoder=None,
        unet=unet,
        scheduler=new_scheduler(),
        vae=vae,
    )


def save_small_pipeline(
    folder: Path,
    unet: Any,
    vae: Any,
    mean: Tensor,
    std: Tensor,
    *,
    scaling_factor: float,
    conditioner: Conditioner | None = None,
) -> None:
    """Write a whole pipeline folder in float16 shards under 10 MB, swapped in only once complete.

    Args:
        folder: Replaced if it exists.
        unet: Trained.
        vae: Trained.
        mean: (1, D) of the image embeddings.
        std: (1, D).
        scaling_factor: 1 / standard deviation of the raw latents.
        conditioner: Stored beside the pipeline.
    """
    unet, vae = (deepcopy(part).cpu().to(memory_format=torch.contiguous_format).half() for part in (unet, vae))
    vae.register_to_config(scaling_factor=scaling_factor)
    pipeline = small_pipeline(unet, vae, mean.half(), std.half())
    pipeline.image_encoder.half()
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    with _quiet():
        pipeline.save_pretrained(temporary, safe_serialization=True, max_shard_size=MAX_SHARD_SIZE)
    if conditioner is not None:
        conditioner.save(temporary)
    if folder.exists():
        shutil.rmtree(folder)
    temporary.rename(folder)
