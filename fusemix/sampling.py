"""How a pipeline's denoising is scheduled, watched, previewed, stopped and started late."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from PIL import Image
from torch import Tensor

SCHEDULERS: dict[str, Any] = {
    "ddim": DDIMScheduler,
    "dpm++": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
    "euler": EulerDiscreteScheduler,
    "euler-a": EulerAncestralDiscreteScheduler,
}


class Decoder(Protocol):
    """What a watch needs of :class:`fusemix.generate.Generator`."""

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
        What to hand to the pipeline as ``latents``, (N, C, s, s): it multiplies them by ``init_noise_sigma``.

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
    return noised / scheduler.init_noise_sigma


class Watch:
    """The pipeline's callback: counts steps, previews the first picture, stops on request.

    With DDIM the preview is the picture the current step points at: two successive latents lie on
    one line a x0 + s eps, so both unknowns follow from them. Other schedulers preview the noisy latents.
    """

    def __init__(self, generator: Decoder, scheduler: Any, latents: Tensor, steps: int, on_step: OnStep) -> None:
        self.generator, self.scheduler, self.steps, self.on_step = generator, scheduler, steps, on_step
        self.previous = latents[:1] * self.scheduler.init_noise_sigma
        self.done = 0

    def __call__(self, step: int, timestep: Tensor, latents: Tensor) -> None:
        """After a step, as diffusers calls it."""
        preview = self.generator.decode(self.clean(latents[:1]))[0] if self.generator.is_small else None
        self.previous = latents[:1].clone()
        self.done += 1
        if self.on_step(min(self.done, self.steps), self.steps, preview):
            raise Cancelled(f"stopped after {self.done} of {self.steps} steps")

    def clean(self, latents: Tensor) -> Tensor:
        """The picture's latents that the current step points at, with DDIM; else the noisy ones."""
        if not isinstance(self.scheduler, DDIMScheduler):
            return latents
        scheduler: Any = self.scheduler
        times, alphas = scheduler.timesteps, scheduler.alphas_cumprod
        before = alphas[times[self.done]].item()
        last = self.done + 1 >= len(times)
        after = scheduler.final_alpha_cumprod.item() if last else alphas[times[self.done + 1]].item()
        (a, s), (b, r) = ((alpha**0.5, (1 - alpha) ** 0.5) for alpha in (before, after))
        return (r * self.previous - s * latents) / (r * a - s * b)
