"""Sampling that looks at what it draws: each step is moved towards what was asked for, as the frozen encoder sees it.

A small decoder hears its condition poorly. The frozen image encoder and its adapter can say, at every step, how
far the clean picture that the step points at is from what was asked for, and in which direction it would come
nearer. No network learns anything; the decoder's own prior and the encoder's view share the work.

Source: classifier guidance (arXiv:2105.05233) on the clean picture of the step, as in universal guidance
(arXiv:2302.07121) and FreeDoM (arXiv:2303.09833), with a cosine of the shared space in place of a classifier. Not in
the paper, which draws by conditioning alone.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

from fusemix.generation.denoising import clean_latents, levels
from fusemix.model.adapters import FusionModel

logger = logging.getLogger(__name__)

STRENGTH = 0.12  # of a step's move, as a share of its clean latents; chosen on train photos (docs/results.md)
EVERY = 2  # steps from one look to the next; a look costs more than a step
AT_ONCE = 4  # small pictures looked at together; more leave the cache, and large ones, one by one, the memory
_SMALL_LATENTS = 16  # side
_LARGE = 1024.0
SHIFT = 4  # pixels of the decoder's, at most, by which a look is moved up or down and sideways


@runtime_checkable
class Seeing(Protocol):
    """A frozen image encoder that gradients can pass through."""

    def see(self, pixels: Tensor) -> Tensor:
        """Latents (B, D_x) of RGB pixels (B, 3, H, W) in [0, 1], of any size; differentiable."""
        ...


@dataclass(frozen=True)
class Steering:
    """What drawings are steered towards, and by whose eyes.

    Attributes:
        model: The adapters; the one for images is looked through.
        encoder: The frozen image encoder of ``model``.
        wanted: Embeddings of the model's space, (D,) or (1, D) for all pictures, or (N, D), one each; any length.
        strength: How far a step is moved, as a share of the length of its clean latents; 0 moves nothing.

    Raises:
        ValueError: If the encoder cannot be looked through, ``wanted`` does not fit the model or is not finite, or the
            strength is below 0.
    """

    model: FusionModel
    encoder: Any
    wanted: Tensor
    strength: float = STRENGTH

    def __post_init__(self) -> None:
        if not isinstance(self.encoder, Seeing):
            raise ValueError(
                f"The encoder {getattr(self.encoder, 'name', self.encoder)!r} has no method `see` that gradients pass "
                "through, so it cannot steer; draw with a steering of 0."
            )
        rows = torch.as_tensor(self.wanted, dtype=torch.float32)
        rows = rows[None] if rows.ndim == 1 else rows
        width = self.model.config.embed_dim
        if rows.ndim != 2 or rows.shape[1] != width or not len(rows):
            raise ValueError(f"Steering takes embeddings (N, {width}) of the model's space, got {tuple(rows.shape)}.")
        if not torch.isfinite(rows).all() or not (rows.norm(dim=1) > 0).all():
            raise ValueError("The embedding to steer towards holds NaN or infinite values, or zeros alone.")
        if not 0 <= self.strength <= 2:
            raise ValueError(f"The steering must be 0 to 2, got {self.strength}.")
        object.__setattr__(self, "wanted", F.normalize(rows, dim=1))

    def similarity(self, pixels: Tensor, wanted: Tensor) -> Tensor:
        """Cosine of each picture to what was asked for, (B,), differentiable; pixels (B, 3, H, W) in [0, 1]."""
        latents = self.encoder.see(pixels)
        adapter = self.model.adapters["image"]
        seen = F.normalize(adapter(latents.to(self.model.temperature.device)), dim=1)
        return (seen * wanted.to(seen)).sum(dim=1)

    def slope(self, clean: Tensor, decode: Callable[[Tensor], Tensor], looks: Sequence[torch.Generator]) -> Tensor:
        """Where each clean picture's latents would come nearer to what was asked for.

        Every look is at the picture or its mirror image, a few pixels aside: what helps in one place alone is texture
        for the network's eyes, not a picture.

        Args:
            clean: Latents at the scale the UNet works at, (N, C, s, s).
            decode: Latents -> RGB pixels (N, 3, H, W) in about [0, 1], differentiable.
            looks: Where each picture's mirror and shift come from.

        Returns:
            Directions of unit length, shape and dtype of ``clean``; zeros where there is no slope.
        """
        wanted = self.wanted.expand(len(clean), -1)
        at_once = AT_ONCE if clean.shape[-1] <= _SMALL_LATENTS else 1
        parts = []
        for begin in range(0, len(clean), at_once):
            part = slice(begin, begin + at_once)
            with torch.enable_grad():
                latents = clean[part].clone().requires_grad_()
                pixels = decode(latents).float()
                seen = torch.cat([looked_at(x, look) for x, look in zip(pixels.split(1), looks[part], strict=True)])
                value = self.similarity(seen, wanted[part])
                # only the direction counts, and in float16 small slopes would be lost on their way
                (gradient,) = torch.autograd.grad(_LARGE * value.sum(), latents)
            parts.append(gradient.float())
        gradient = torch.cat(parts)
        length = gradient.flatten(1).norm(dim=1)[:, None, None, None]
        flat = ~(length > 1e-12)
        if flat.any():
            logger.info("%d of %d pictures gave no slope to steer along.", int(flat.sum()), len(clean))
        return torch.where(flat, 0.0, gradient / length.clamp_min(1e-12)).to(clean.dtype)

    def steer(self, scheduler: Any, decode: Callable[[Tensor], Tensor], seeds: Sequence[int]) -> None:
        """Let a scheduler move every :data:`EVERY`-th step; changed in place.

        The clean picture x0 that a step points at moves by d, its noise stays: the noisy sample moves by a d
        with x = a x0 + s eps, and the network's output with it, so that the solver reads x0 + d and the same noise.
        DDIM and Euler then go on from there; DPM++, of second order, goes a little further, and UniPC's corrector,
        which begins from the sample before, takes about half of it back. Strengths were chosen with DDIM.

        Args:
            scheduler: A diffusers scheduler that no other drawing uses, predicting v, noise or the sample.
            decode: As for :meth:`slope`.
            seeds: Of each picture's looks; picture i does not depend on the others.

        Raises:
            ValueError: At a step, if the scheduler predicts something else.
        """
        kind = scheduler.config.prediction_type
        whole, looks = scheduler.step, [torch.Generator("cpu").manual_seed(seed % 2**63) for seed in seeds]
        done = 0

        @functools.wraps(whole)  # the pipeline asks for the signature
        def step(model_output: Tensor, timestep: Any, sample: Tensor, *rest: Any, **named: Any) -> Any:
            nonlocal done
            due, done = done % EVERY == 0, done + 1
            if due and self.strength:
                a, s, over_a = levels(scheduler, timestep)
                clean = clean_latents(scheduler, model_output, timestep, sample)
                length = clean.flatten(1).norm(dim=1)[:, None, None, None]
                move = self.strength * length * self.slope(clean, decode, looks)
                sample = sample + (move if over_a else a * move)
                model_output = model_output + {"v_prediction": -s, "epsilon": 0.0, "sample": 1.0}[kind] * move
            return whole(model_output, timestep, sample, *rest, **named)

        scheduler.step = step


def looked_at(pixels: Tensor, look: torch.Generator) -> Tensor:
    """A picture (1, 3, H, W) or its mirror image, a few pixels aside, as ``look`` says."""
    mirrored = bool(torch.randint(2, (), generator=look))
    down, right = torch.randint(-SHIFT, SHIFT + 1, (2,), generator=look).tolist()
    moved = shifted(pixels, down, right)
    return moved.flip(3) if mirrored else moved


def shifted(pixels: Tensor, down: int, right: int) -> Tensor:
    """Pictures (B, 3, H, W) moved by whole pixels; the border is continued. As they are where they are too small."""
    height, width = pixels.shape[2:]
    if max(abs(down), abs(right)) >= min(height, width) // 2:
        return pixels
    margin = max(abs(down), abs(right))
    padded = F.pad(pixels, (margin,) * 4, mode="replicate")
    return padded[:, :, margin - down : margin - down + height, margin - right : margin - right + width]
