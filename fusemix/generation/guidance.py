"""Guidance by the frozen image encoder: some sampling steps are moved towards a target embedding.

A small decoder follows its condition poorly. The frozen image encoder and its adapter measure, at any step, the cosine
between the predicted clean picture and the target; its gradient gives the direction of the move. Nothing is trained.

Source: classifier guidance (arXiv:2105.05233) on the clean picture of the step, as in universal guidance
(arXiv:2302.07121) and FreeDoM (arXiv:2303.09833), with a cosine of the shared space in place of a classifier. Not in
the paper, which draws by conditioning alone.
"""

from __future__ import annotations

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

STRENGTH = 0.12  # length of a move relative to the clean latents; chosen on train photos (docs/results.md)
EVERY = 2  # one of so many steps is moved; the gradient costs more than a step
AT_ONCE = 4  # small pictures per gradient: more do not fit the cache; large ones are taken one by one
_SMALL_LATENTS = 16  # side
_LARGE = 1024.0
SHIFT = 4  # largest shift in pixels of an augmentation, vertically and horizontally


@runtime_checkable
class DifferentiableEncoder(Protocol):
    """A differentiable frozen image encoder."""

    def see(self, pixels: Tensor) -> Tensor:
        """Return latents (B, D_x) of RGB pixels (B, 3, H, W) in [0, 1], of any size; differentiable."""
        ...


@dataclass(frozen=True)
class Steering:
    """Target of steered drawings, and the encoder that measures their distance from it.

    Attributes:
        model: The adapters; the image adapter is differentiated.
        encoder: The frozen image encoder of ``model``.
        wanted: Embeddings of the model's space, (D,) or (1, D) for all pictures, or (N, D), one each; any length.
        strength: Length of a move relative to the step's clean latents; 0 moves nothing.

    Raises:
        ValueError: If the encoder is not differentiable, ``wanted`` does not fit the model or is not finite, or the
            strength is below 0.
    """

    model: FusionModel
    encoder: Any
    wanted: Tensor
    strength: float = STRENGTH

    def __post_init__(self) -> None:
        if not isinstance(self.encoder, DifferentiableEncoder):
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
        """Compute each picture's cosine to its target, (B,), differentiable; pixels (B, 3, H, W) in [0, 1]."""
        latents = self.encoder.see(pixels)
        adapter = self.model.adapters["image"]
        seen = F.normalize(adapter(latents.to(self.model.temperature.device)), dim=1)
        return (seen * wanted.to(seen)).sum(dim=1)

    def direction(
        self, clean: Tensor, decode: Callable[[Tensor], Tensor], augmentations: Sequence[torch.Generator]
    ) -> Tensor:
        """Compute the direction in which each clean picture's latents come nearer to the target.

        The gradient is taken on an augmented picture, as in training; without augmentation it would mostly add
        adversarial texture.

        Args:
            clean: Latents at the scale the UNet works at, (N, C, s, s).
            decode: Latents -> RGB pixels (N, 3, H, W) in about [0, 1], differentiable.
            augmentations: Random generator of each picture's flip and shift.

        Returns:
            Gradients brought to unit length, shape and dtype of ``clean``; zeros where the gradient is zero.
        """
        wanted = self.wanted.expand(len(clean), -1)
        at_once = AT_ONCE if clean.shape[-1] <= _SMALL_LATENTS else 1
        parts = []
        for first in range(0, len(clean), at_once):
            part = slice(first, first + at_once)
            with torch.enable_grad():
                latents = clean[part].clone().requires_grad_()
                pixels = decode(latents).float()
                drawn = zip(pixels.split(1), augmentations[part], strict=True)
                value = self.similarity(torch.cat([augment(x, rng) for x, rng in drawn]), wanted[part])
                # only the direction counts; scaling keeps small gradients from underflowing in float16
                (gradient,) = torch.autograd.grad(_LARGE * value.sum(), latents)
            parts.append(gradient.float())
        gradient = torch.cat(parts)
        length = gradient.flatten(1).norm(dim=1)[:, None, None, None]
        flat = ~(length > 1e-12)
        if flat.any():
            logger.info("%d of %d pictures gave no gradient to steer along.", int(flat.sum()), len(clean))
        return torch.where(flat, 0.0, gradient / length.clamp_min(1e-12)).to(clean.dtype)

    def move(
        self,
        scheduler: Any,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        decode: Callable[[Tensor], Tensor],
        augmentations: Sequence[torch.Generator],
    ) -> tuple[Tensor, Tensor]:
        """Move the clean picture that a step predicts, and keep its noise.

        With x = a x0 + s eps, the clean picture x0 moves by d: the noisy sample moves by a d, and the network's output
        with it, so that the solver reads x0 + d and the same noise. DDIM and Euler then continue from x0 + d; DPM++, of
        second order, goes a little further, and UniPC's corrector, which starts from the previous sample, takes
        about half of the move back. Strengths were chosen with DDIM.

        Args:
            scheduler: Predicting v, noise or the sample.
            model_output: Of the network, after classifier-free guidance, (N, C, s, s).
            timestep: Of the step.
            sample: The noisy latents as the scheduler keeps them, (N, C, s, s).
            decode: As for :meth:`direction`.
            augmentations: As for :meth:`direction`.

        Returns:
            ``model_output`` and ``sample``, moved.

        Raises:
            ValueError: If the scheduler predicts something else.
        """
        if not self.strength:
            return model_output, sample
        a, s, over_a = levels(scheduler, timestep)
        clean = clean_latents(scheduler, model_output, timestep, sample)
        length = clean.flatten(1).norm(dim=1)[:, None, None, None]
        move = self.strength * length * self.direction(clean, decode, augmentations)
        change = {"v_prediction": -s, "epsilon": 0.0, "sample": 1.0}[scheduler.config.prediction_type]
        return model_output + change * move, sample + (move if over_a else a * move)


def augment(pixels: Tensor, rng: torch.Generator) -> Tensor:
    """Mirror a picture (1, 3, H, W) at random and shift it by up to :data:`SHIFT` pixels."""
    mirrored = bool(torch.randint(2, (), generator=rng))
    down, right = torch.randint(-SHIFT, SHIFT + 1, (2,), generator=rng).tolist()
    moved = shifted(pixels, down, right)
    return moved.flip(3) if mirrored else moved


def shifted(pixels: Tensor, down: int, right: int) -> Tensor:
    """Shift pictures (B, 3, H, W) by whole pixels, repeating the border; too small ones are not shifted."""
    height, width = pixels.shape[2:]
    if max(abs(down), abs(right)) >= min(height, width) // 2:
        return pixels
    margin = max(abs(down), abs(right))
    padded = F.pad(pixels, (margin,) * 4, mode="replicate")
    return padded[:, :, margin - down : margin - down + height, margin - right : margin - right + width]
