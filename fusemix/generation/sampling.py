"""Explicit denoising loop of Stable unCLIP: model input, UNet, guidance, steering, step, preview."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from PIL import Image
from torch import Tensor

from fusemix.generation.denoising import clean_latents
from fusemix.generation.guidance import EVERY, Steering

SCHEDULERS: dict[str, Any] = {
    "ddim": DDIMScheduler,
    "dpm++": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
    "euler": EulerDiscreteScheduler,
    "euler-a": EulerAncestralDiscreteScheduler,
}

OnStep = Callable[[int, int, Image.Image | None], bool | None]  # steps done, steps in all, preview -> stop?


class Cancelled(Exception):
    """Raised by :meth:`Generator.generate` when ``on_step`` asked to stop."""


@dataclass(frozen=True)
class Condition:
    """Condition of the UNet; with guidance, the N unconditional rows come first.

    Attributes:
        class_labels: The noised image embeddings concatenated with their noise level, (N or 2 N, 2 D).
        prompt_embeds: (N or 2 N, L, C).
        guidance: Scale of classifier-free guidance; 1 for none.
    """

    class_labels: Tensor
    prompt_embeds: Tensor
    guidance: float


def encode_condition(
    pipeline: Any,
    image_embeds: Tensor,
    prompt_embeds: Tensor,
    negative_prompt_embeds: Tensor,
    *,
    guidance: float,
    noise_level: int,
    generators: list[torch.Generator],
) -> Condition:
    """Noise the image embeddings as the pipeline does, and put the unconditional rows before them.

    Args:
        pipeline: The pipeline whose ``noise_image_embeddings`` is used.
        image_embeds: (N, D).
        prompt_embeds: (N, L, C).
        negative_prompt_embeds: (N, L, C).
        guidance: Scale of classifier-free guidance; 1 for none.
        noise_level: 0 to 999.
        generators: Of each row's noise.
    """
    labels = pipeline.noise_image_embeddings(image_embeds, noise_level=noise_level, generator=generators)
    if guidance <= 1:
        return Condition(labels, prompt_embeds, 1.0)
    labels = torch.cat([torch.zeros_like(labels), labels])
    return Condition(labels, torch.cat([negative_prompt_embeds, prompt_embeds]), guidance)


def begin(
    scheduler: Any, noise: Tensor, steps: int, *, clean: Tensor | None = None, taken: int = 0
) -> tuple[Tensor, Tensor]:
    """Set a scheduler's timesteps, and make the latents for the first timestep taken.

    Args:
        scheduler: Its timesteps are set.
        noise: (N, C, s, s), standard normal.
        steps: Of the whole schedule from pure noise.
        clean: Latents of the pictures to start from, (N, C, s, s) or (1, C, s, s); None starts from noise.
        taken: With ``clean``, number of last steps to take, 1 to ``steps``.

    Returns:
        Timesteps (T,) and latents (N, C, s, s).

    Source:
        SDEdit, arXiv:2108.01073; diffusers' image-to-image pipelines.
    """
    scheduler.set_timesteps(steps, device=noise.device)
    if clean is None:
        return scheduler.timesteps, noise * scheduler.init_noise_sigma
    first = len(scheduler.timesteps) - taken
    if hasattr(scheduler, "set_begin_index"):  # for schedulers that count their steps
        scheduler.set_begin_index(first)
    timesteps = scheduler.timesteps[first:]
    return timesteps, scheduler.add_noise(clean.expand_as(noise), noise, timesteps[:1].expand(len(noise)))


@torch.no_grad()
def denoise(
    unet: Any,
    scheduler: Any,
    timesteps: Tensor,
    latents: Tensor,
    condition: Condition,
    *,
    generators: list[torch.Generator],
    steering: Steering | None = None,
    decode: Callable[[Tensor], Tensor],
    seeds: Sequence[int] = (),
    on_step: OnStep | None = None,
    preview: Callable[[Tensor], Image.Image] | None = None,
) -> Tensor:
    """Denoise latents by taking every step.

    Args:
        unet: With class labels, as Stable unCLIP's.
        scheduler: Of :func:`begin`; used by no other drawing.
        timesteps: Of :func:`begin`.
        latents: Of :func:`begin`.
        condition: Of :func:`encode_condition`.
        generators: For the noise that an ancestral scheduler adds at each step, one a picture.
        steering: Moves some steps towards a target.
        decode: Latents -> pixels in about [0, 1], differentiable; for steering.
        seeds: With ``steering``, the seeds of each picture's augmentations.
        on_step: Called after every step; returns True to stop.
        preview: Maps the step's predicted clean latents (1, C, s, s) to the picture for ``on_step``.

    Returns:
        (N, C, s, s), at the UNet's scale.

    Raises:
        ValueError: If the network or the scheduler puts out NaN or infinite values.
        Cancelled: If ``on_step`` asked to stop.
    """
    guided = condition.guidance > 1
    takes_noise = "generator" in inspect.signature(scheduler.step).parameters
    step_noise = {"generator": generators} if takes_noise else {}
    inputs = {"encoder_hidden_states": condition.prompt_embeds, "class_labels": condition.class_labels}
    augmentations = [torch.Generator("cpu").manual_seed(seed % 2**63) for seed in seeds]
    for number, t in enumerate(timesteps):
        model_input = scheduler.scale_model_input(torch.cat([latents] * 2) if guided else latents, t)
        output = unet(model_input, t, **inputs, return_dict=False)[0]
        if guided:
            unconditional, conditional = output.chunk(2)
            output = unconditional + condition.guidance * (conditional - unconditional)
        if steering is not None and number % EVERY == 0:
            output, latents = steering.move(scheduler, output, t, latents, decode, augmentations)
        noisy, latents = latents, scheduler.step(output, t, latents, **step_noise, return_dict=False)[0]
        if not torch.isfinite(latents).all():
            raise ValueError(_what_lost_its_numbers(scheduler, len(timesteps), output, noisy))
        if on_step is not None:
            shown = preview(clean_latents(scheduler, output[:1], t, noisy[:1])) if preview else None
            if on_step(number + 1, len(timesteps), shown):
                raise Cancelled(f"stopped after {number + 1} of {len(timesteps)} steps")
    return latents


def _what_lost_its_numbers(scheduler: Any, steps: int, output: Tensor, noisy: Tensor) -> str:
    """Describe the source of a step's NaN: the network, or one of diffusers' schedulers with very few steps."""
    if torch.isfinite(output).all() and torch.isfinite(noisy).all():
        return (
            f"{type(scheduler).__name__} made NaN or infinite latents with {steps} steps; take more steps or another "
            "scheduler."
        )
    return (
        "The decoder's network put out NaN or infinite values; load it in float32, or lower the guidance or the "
        "steering."
    )
