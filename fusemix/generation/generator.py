"""Generator of pictures from embeddings: embedding -> Stable unCLIP -> picture.

Two decoders, one format: the real Stable Diffusion unCLIP (conditioned on CLIP projections of
width 768 or 1024), and the small pipeline of scripts/release/train_unclip.py, which has the same classes
and files and is conditioned on the shared space itself.
"""

from __future__ import annotations

import time
from collections.abc import Container, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from fusemix.encoders import Encoder
from fusemix.generation.bridges import CONFIG_NAME as CONDITIONER_NAME
from fusemix.generation.bridges import Conditioner
from fusemix.generation.cost import Cost, peak_memory
from fusemix.generation.guidance import STRENGTH, DifferentiableEncoder, Steering
from fusemix.generation.pipelines import (
    CLIP_PARTS,
    TEXT_PARTS,
    check_pipeline,
    encode_empty_prompt,
    encode_prompt,
    load_pipeline,
    resolve,
)
from fusemix.generation.sampling import SCHEDULERS, OnStep, begin, denoise, encode_condition
from fusemix.media import load_image
from fusemix.model.adapters import FusionModel
from fusemix.threads import one_thread

if TYPE_CHECKING:
    from fusemix.search.index import EmbeddingIndex
    from fusemix.search.postgres_index import PostgresIndex

MAX_IMAGES = 16  # pictures in one call
_SMALL_SIDE = 128  # pixels; up to this size a preview of every step is cheap


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
        empty_prompt: Tensor | None = None,
        name: str = "",
    ) -> None:
        """Put the parts together.

        Args:
            pipeline: Loaded, on its device.
            model: The model whose embeddings will drive it; checked against the pipeline.
            conditioner: Maps the model's embeddings to the pipeline's image embeddings;
                without one both must be in one space.
            empty_prompt: The encoded empty prompt, (1, L, C), if the pipeline has no text encoder.
            name: Display name.

        Raises:
            ValueError: If the widths do not fit, in one sentence.
        """
        self.image_embeds_dim = check_pipeline(pipeline)
        if conditioner is None:
            conditioner = Conditioner({}, embed_dim=self.image_embeds_dim, image_embeds_dim=self.image_embeds_dim)
        self.pipeline = pipeline
        self.condition_by(conditioner, model)
        self.name = name
        self.side: int = pipeline.unet.config.sample_size * pipeline.vae_scale_factor  # pixels
        self.is_small = self.side <= _SMALL_SIDE
        self._empty_prompt = encode_prompt(pipeline, "") if empty_prompt is None else empty_prompt
        self._load_s = self._step_s = 0.0
        pipeline.vae.requires_grad_(False)  # frozen: steering needs gradients through it, but none for its weights
        if not self.is_small and hasattr(pipeline.vae, "enable_slicing"):
            pipeline.vae.enable_slicing()  # decode large pictures one by one

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        model: FusionModel | None = None,
        *,
        conditioner: str | Path | Conditioner | None = None,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        offload: bool = False,
        prompts: bool = True,
        revision: str | None = None,
    ) -> Generator:
        """Load a decoder without its CLIP image encoder, which drawing from embeddings does not need.

        Args:
            source: Folder or Hub id of a ``StableUnCLIPImg2ImgPipeline``.
            model: The model whose embeddings will drive it; a decoder of another width is refused.
            conditioner: A folder or object; by default the one in ``source``, if any.
            device: A torch device string.
            dtype: Dtype of the weights; by default float16 on a GPU, float32 elsewhere.
            offload: Keep only the working part on the GPU (accelerate); slower, less memory.
            prompts: Whether prompts will be used. If not, the text encoder is freed after encoding an empty prompt.
            revision: On the Hub.

        Raises:
            FileNotFoundError: If the decoder cannot be found or reached.
            ValueError: If it is no Stable unCLIP pipeline or does not fit the model.
        """
        folder = resolve(source, revision)
        started = time.perf_counter()
        empty = None if prompts else encode_empty_prompt(folder, device, dtype=dtype)
        without = CLIP_PARTS if prompts else CLIP_PARTS + TEXT_PARTS
        pipeline = load_pipeline(folder, device, dtype=dtype, offload=offload, without=without)
        load_s = time.perf_counter() - started
        if conditioner is None and (folder / CONDITIONER_NAME).is_file():
            conditioner = folder
        if isinstance(conditioner, str | Path):
            conditioner = Conditioner.from_pretrained(conditioner)
        generator = cls(pipeline, model, conditioner=conditioner, empty_prompt=empty, name=str(source))
        generator._load_s = load_s
        return generator

    def condition_by(self, conditioner: Conditioner, model: FusionModel | None) -> None:
        """Take a conditioner, for a model's embeddings if one is given.

        Raises:
            ValueError: If it is for another decoder or another model.
        """
        if conditioner.image_embeds_dim != self.image_embeds_dim:
            raise ValueError(
                f"The conditioner makes image embeddings of width {conditioner.image_embeds_dim}, but this decoder "
                f"takes {self.image_embeds_dim}; fit it for this decoder."
            )
        self.conditioner = conditioner if model is None else conditioner.of(model)

    @property
    def cost(self) -> Cost:
        """Cost of loading and of the last drawing."""
        return Cost(self._load_s, self._step_s, peak_memory(self.pipeline._execution_device))

    def condition(
        self,
        embeddings: Mapping[str, Tensor | np.ndarray],
        weights: Mapping[str, float] | None = None,
    ) -> Tensor:
        """Make image embeddings from one embedding, or from a blend of several modalities.

        Args:
            embeddings: Modality -> embedding, shape (D,) or (1, D).
            weights: Modality -> weight >= 0; equal by default. Each is bridged first, then
                blended, then scaled to the decoder's length.

        Returns:
            Shape (1, D_out), float32, of length ``conditioner.norm``.

        Raises:
            ValueError: If there is no embedding, or widths, values or weights are invalid.
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
        self, embedding: Tensor | np.ndarray, *, modality: str = "image", **settings: Any
    ) -> list[Image.Image]:
        """Draw pictures of an embedding.

        Args:
            embedding: Shape (D,) or (1, D), of the shared space.
            modality: Modality of the embedding; chooses the bridge.
            settings: Arguments of :meth:`from_image_embeds`: steps, guidance, seed, n_images, ...

        Returns:
            ``n_images`` RGB pictures of the decoder's own size.

        Raises:
            ValueError: If an argument is out of range or the embedding does not fit.
            Cancelled: If ``on_step`` asked to stop.
        """
        return self.from_image_embeds(self.condition({modality: embedding}), **settings)

    @torch.no_grad()
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
        start: Image.Image | Sequence[Image.Image] | None = None,
        strength: float = 0.7,
        steering: Steering | None = None,
        on_step: OnStep | None = None,
    ) -> list[Image.Image]:
        """Draw pictures of image embeddings in the decoder's own space, as of :meth:`condition`.

        Args:
            image_embeds: Shape (1, D_out) for ``n_images`` variations, or (N, D_out) for one
                picture each (then ``n_images`` must be 1).
            steps: Denoising steps, 1 to 1000.
            guidance: Classifier-free guidance, 1 for none; by default 3 for a small decoder, 10 else.
            noise_level: Noise added to the image embedding, 0 to 999 of the noising scheduler's
                steps; with more noise the picture follows the embedding less.
            seed: Picture i is drawn with ``seed + i``, for any ``n_images``.
            n_images: 1 to 16.
            prompt: A text prompt, for decoders with a text encoder.
            negative_prompt: A text prompt to avoid, for decoders with a text encoder.
            scheduler: One of :data:`SCHEDULERS`; the decoder's own by default.
            start: Start from this picture, noised, instead of pure noise (SDEdit, arXiv:2108.01073); it is turned
                upright, put on white if transparent, and resized to the decoder's square. With several, picture i
                starts from the i-th, cyclically.
            strength: With ``start``, the share of the steps that is taken, in (0, 1]: small values
                keep the picture, 1 keeps almost nothing of it.
            steering: Target towards which steps are moved; by default there is no steering.
            on_step: Called after every step with (steps done, steps in all, preview of the first
                picture or None); return True to stop. Small decoders preview every step: the clean picture that the
                step predicts.

        Returns:
            RGB pictures of the decoder's own size.

        Raises:
            ValueError: If an argument is out of range, the embeddings do not fit or the scheduler puts out NaN.
            Cancelled: If ``on_step`` asked to stop.
        """
        self._check_request(image_embeds, steps, guidance, noise_level, n_images, scheduler)
        if not -(2**63) <= seed < 2**63:
            raise ValueError(f"seed must be -2**63 to 2**63 - 1, got {float(seed):.3g}.")
        if not 0 < strength <= 1:
            raise ValueError(f"strength must be above 0 and at most 1, got {strength}.")
        if start is not None and not isinstance(start, Image.Image) and not len(start):
            raise ValueError("start holds no picture; leave it out to begin from noise.")
        pipe = self.pipeline
        rows = image_embeds.expand(n_images, -1) if len(image_embeds) == 1 else image_embeds
        if steering is not None and len(steering.wanted) not in (1, len(rows)):
            raise ValueError(f"Steering was given {len(steering.wanted)} embeddings for {len(rows)} pictures.")
        solver = self._new_scheduler(scheduler)
        device, dtype = pipe._execution_device, pipe.unet.dtype
        seeds = [seed + i for i in range(len(rows))]
        generators = [torch.Generator("cpu").manual_seed(s) for s in seeds]
        shape = (pipe.unet.config.in_channels, pipe.unet.config.sample_size, pipe.unet.config.sample_size)
        noise = torch.stack([torch.randn(shape, generator=g) for g in generators]).to(device, dtype)
        with one_thread(self.is_small and device.type == "cpu"):
            if start is None:
                timesteps, latents = begin(solver, noise, steps)
            else:
                starts = [start] if isinstance(start, Image.Image) else list(start)
                clean = torch.cat([self.encode(picture) for picture in starts[: len(rows)]])
                turns = torch.arange(len(rows), device=clean.device) % len(clean)
                timesteps, latents = begin(
                    solver, noise, steps, clean=clean[turns], taken=max(1, round(strength * steps))
                )
            condition = encode_condition(
                pipe,
                rows.to(device, dtype),
                self._prompt_embeds(prompt, len(rows)),
                self._prompt_embeds(negative_prompt, len(rows)),
                guidance=self.default_guidance if guidance is None else guidance,
                noise_level=noise_level,
                generators=generators,
            )
            started = time.perf_counter()
            latents = denoise(
                pipe.unet,
                solver,
                timesteps,
                latents,
                condition,
                generators=generators,
                steering=steering,
                decode=self._pixels,
                seeds=seeds,
                on_step=on_step,
                preview=(lambda clean: self.decode(clean)[0]) if self.is_small else None,
            )
            self._step_s = (time.perf_counter() - started) / len(timesteps)
            images = self.decode(latents)
        pipe.maybe_free_model_hooks()
        return images

    def _new_scheduler(self, name: str | None) -> Any:
        """Make a scheduler for one drawing: concurrent drawings share only the networks."""
        default = self.pipeline.scheduler
        return SCHEDULERS[name].from_config(default.config) if name else deepcopy(default)

    @property
    def default_guidance(self) -> float:
        """Default guidance scale: 3 for a small decoder, diffusers' 10 for Stable Diffusion."""
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

    def _prompt_embeds(self, prompt: str, n: int) -> Tensor:
        embeds = encode_prompt(self.pipeline, prompt) if prompt else self._empty_prompt
        return embeds.to(self.pipeline._execution_device, self.pipeline.unet.dtype).expand(n, -1, -1)

    @torch.no_grad()
    def encode(self, image: Image.Image) -> Tensor:
        """Encode a picture, resized to the decoder's square, to latents (1, C, s, s) at the UNet's scale.

        Transparency is put on white, as in :func:`fusemix.media.load_image`.
        """
        vae = self.pipeline.vae
        pixels = load_image(image).resize((self.side, self.side), Image.Resampling.LANCZOS)
        x = torch.from_numpy(np.asarray(pixels, dtype=np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
        coded = vae.encode(x.to(self.pipeline._execution_device, vae.dtype))
        latents: Tensor = coded.latents if hasattr(coded, "latents") else coded.latent_dist.mode()
        scaled: Tensor = latents * vae.config.scaling_factor
        return scaled

    @torch.no_grad()
    def decode(self, latents: Tensor) -> list[Image.Image]:
        """Decode latents (N, C, s, s) at the UNet's scale to pictures.

        Raises:
            ValueError: If the autoencoder puts out NaN or infinite values, which would be a black picture.
        """
        decoded = self._decoded(latents)
        if not torch.isfinite(decoded).all():
            raise ValueError("The decoder's autoencoder put out NaN or infinite values; load it in float32.")
        return list(self.pipeline.image_processor.postprocess(decoded, output_type="pil"))

    def _pixels(self, latents: Tensor) -> Tensor:
        """Decode latents at the UNet's scale to RGB (N, 3, H, W), about [0, 1]; differentiable."""
        return (self._decoded(latents) + 1) / 2

    def _decoded(self, latents: Tensor) -> Tensor:
        vae = self.pipeline.vae
        decoded: Tensor = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
        return decoded


def default_steering(generator: Generator, encoder: Any) -> float:
    """Return the default strength of steering: above 0 for a small decoder whose encoder is differentiable."""
    return STRENGTH if generator.is_small and isinstance(encoder, DifferentiableEncoder) else 0.0


def blend_weights(names: Sequence[str], share: float) -> dict[str, float]:
    """Return the weights of a blend: ``share`` for the first name, the rest divided equally; 1 for a single name.

    Raises:
        ValueError: If the share is not between 0 and 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"The share of the {names[0]} must be 0 to 1, got {share}.")
    others = len(names) - 1
    if not others:
        return {names[0]: 1.0}
    return {name: share if i == 0 else (1 - share) / others for i, name in enumerate(names)}


def nearest_pictures(
    index: EmbeddingIndex | PostgresIndex,
    embedding: np.ndarray,
    count: int,
    *,
    exclude: Container[Path] = (),
) -> list[tuple[Path, dict[str, Any]]]:
    """Find the pictures of an index nearest to an embedding, to start drawings from.

    A drawing that starts from them is a derived work: credit them, and follow their licences.

    Args:
        index: An index with the root of its pictures.
        embedding: Shape (D,), of the index's space.
        count: Largest number of pictures.
        exclude: Resolved paths to leave out, such as held-out pictures.

    Returns:
        (file, its metadata), nearest first.

    Raises:
        ValueError: If the index holds no picture with a file.
    """
    found: list[tuple[Path, dict[str, Any]]] = []
    wider = count
    while len(found) < count:
        hits = index.search("image", np.asarray(embedding)[None], top_k=wider)[0]
        files = [(path, hit.item) for hit in hits if (path := index.path_of(hit.item)) is not None]
        found = [(path, item) for path, item in files if path.resolve() not in exclude][:count]
        if len(hits) < wider:
            break
        wider *= 4
    if not found:
        raise ValueError("This index holds no picture to begin from; begin from noise instead.")
    return found


def rank_images(
    images: Sequence[Image.Image], embedding: Tensor | np.ndarray, model: FusionModel, encoder: Encoder
) -> list[tuple[Image.Image, float]]:
    """Order generated pictures by their similarity to an embedding, measured by the frozen encoder.

    State this if you show only the best: the encoder that conditions the decoder also chooses.

    Args:
        images: The candidates.
        embedding: Shape (D,) or (1, D), of the model's space.
        model: The adapters.
        encoder: The image encoder of ``model``.

    Returns:
        (picture, cosine similarity), nearest first.
    """
    made = model.embed("image", encoder.encode(list(images)))  # (N, D)
    wanted = F.normalize(torch.as_tensor(np.asarray(embedding), dtype=torch.float32).reshape(1, -1), dim=1)
    similarity = (made @ wanted.T)[:, 0]
    return [(images[int(i)], float(similarity[int(i)])) for i in similarity.argsort(descending=True)]
