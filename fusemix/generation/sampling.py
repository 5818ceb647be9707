"""How a pipeline's denoising is scheduled, watched, previewed, stopped and started late."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol

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

SCHEDULERS: dict[str, Any] = {
    "ddim": DDIMScheduler,
    "dpm++": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
    "euler": EulerDiscreteScheduler,
    "euler-a": EulerAncestralDiscreteScheduler,
}


class Decoder(Protocol):
    """What a watch needs of :class:`fusemix.generation.generator.Generator`."""

    is_small: bool

    def decode(self, latents: Tensor) -> list[Image.Image]:
        """Pictures of latents."""
        ...


OnStep = Callable[[int, int, Image.Image | None], bool | None]  # steps done, steps in all, preview -> stop?


class Cancelled(Exception):
    """Raised by :meth:`Generator.generate` when ``on_step`` asked to stop."""


def start_late(scheduler: Any, clean: Tensor, noise: Tensor, steps: int, taken: int) -> Tensor:
    """Make a scheduler take only its last steps, and the noised latents these begin with.

    The pipelines of Stable unCLIP know only a start from pure noise, so the scheduler itself is
    changed: ``set_timesteps`` drops the first ``steps - taken``.

    Args:
        scheduler: Changed in place.
        clean: Latents of the pictures to begin with, (N, C, s, s), or (1, C, s, s) for all.
        noise: (N, C, s, s), standard normal.
        steps: That ``set_timesteps`` will be asked for.
        taken: 1 to ``steps``.

    Returns:
        What to hand to the pipeline as ``latents``, (N, C, s, s); given latents it takes as they are.

    Source:
        SDEdit, arXiv:2108.01073; diffusers' image-to-image pipelines.
    """
    whole = scheduler.set_timesteps

    def set_timesteps(number: int, **rest: Any) -> None:
        whole(number, **rest)
        first = len(scheduler.timesteps) - taken
        scheduler.timesteps = scheduler.timesteps[first:]
        if hasattr(scheduler, "sigmas"):  # the multistep solvers count their steps by both
            scheduler.sigmas = scheduler.sigmas[first:]

    scheduler.set_timesteps = set_timesteps
    scheduler.set_timesteps(steps, device=noise.device)
    times = scheduler.timesteps[:1].expand(len(noise))
    noised: Tensor = scheduler.add_noise(clean.expand_as(noise), noise, times)
    return noised


def start_from_noise(scheduler: Any, noise: Tensor, steps: int) -> Tensor:
    """Standard normal noise (N, C, s, s) at the size a scheduler begins with; the pipeline scales none it is given."""
    scheduler.set_timesteps(steps, device=noise.device)
    return noise * scheduler.init_noise_sigma


def refuse_nan(scheduler: Any, steps: int) -> None:
    """Make a scheduler's ``step`` raise ValueError where numbers are not finite, which would be a black picture.

    Some of diffusers' schedulers divide by zero when asked for very few steps (``euler-a`` with 3).

    Args:
        scheduler: Changed in place; whoever else changes its step comes before.
        steps: That ``set_timesteps`` was asked for, for the message.
    """
    whole, name = scheduler.step, type(scheduler).__name__

    @functools.wraps(whole)  # the pipeline asks for the signature
    def step(model_output: Tensor, timestep: Any, sample: Tensor, *rest: Any, **named: Any) -> Any:
        out = whole(model_output, timestep, sample, *rest, **named)
        if torch.isfinite(out[0]).all():
            return out
        if not (torch.isfinite(model_output).all() and torch.isfinite(sample).all()):
            raise ValueError(
                "The decoder's network put out NaN or infinite values; load it in float32, or lower the guidance or "
                "the steering."
            )
        raise ValueError(
            f"{name} lost its numbers (NaN or infinite latents) with {steps} steps; take more steps or another "
            "scheduler."
        )

    scheduler.step = step


class Watch:
    """The pipeline's callback: counts steps, previews the first picture, stops on request.

    The preview is the clean picture that the step just taken pointed at.
    """

    def __init__(self, generator: Decoder, scheduler: Any, steps: int, on_step: OnStep) -> None:
        """Look over a scheduler's shoulder.

        Args:
            generator: Decodes the previews.
            scheduler: Its ``step`` is watched from here on; changed in place. Whoever else changes it comes after,
                so that the preview shows their changes.
            steps: To be taken.
            on_step: Whom to tell.
        """
        self.generator, self.steps, self.on_step = generator, steps, on_step
        self.done = 0
        self.clean: Tensor | None = None  # (1, C, s, s)
        whole = scheduler.step

        @functools.wraps(whole)  # the pipeline asks for the signature
        def step(model_output: Tensor, timestep: Any, sample: Tensor, *rest: Any, **named: Any) -> Any:
            if generator.is_small:
                self.clean = clean_latents(scheduler, model_output[:1], timestep, sample[:1])
            return whole(model_output, timestep, sample, *rest, **named)

        scheduler.step = step

    def __call__(self, step: int, timestep: Tensor, latents: Tensor) -> None:
        """After a step, as diffusers calls it."""
        preview = None if self.clean is None else self.generator.decode(self.clean)[0]
        self.done += 1
        if self.on_step(min(self.done, self.steps), self.steps, preview):
            raise Cancelled(f"stopped after {self.done} of {self.steps} steps")
