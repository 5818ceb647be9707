"""Arithmetic of one denoising step, for any scheduler with x = a x0 + s eps, or x / a."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def levels(scheduler: Any, timestep: Any) -> tuple[float, float, bool]:
    """Return a and s of a step's x = a x0 + s eps, and whether the scheduler keeps x / a instead, as Euler does."""
    alphas = scheduler.alphas_cumprod
    alpha = float(alphas[min(round(float(timestep)), len(alphas) - 1)])
    return alpha**0.5, (1 - alpha) ** 0.5, float(scheduler.init_noise_sigma) != 1.0


def clean_latents(scheduler: Any, model_output: Tensor, timestep: Any, sample: Tensor) -> Tensor:
    """Return the clean latents x0 (N, C, s, s) that a step predicts.

    Args:
        scheduler: Predicting v, noise or the sample.
        model_output: Of the network, (N, C, s, s).
        timestep: Of the step.
        sample: The noisy latents as the scheduler keeps them, (N, C, s, s).

    Raises:
        ValueError: If the scheduler predicts something else.
    """
    kind = scheduler.config.prediction_type
    a, s, over_a = levels(scheduler, timestep)
    x = sample * a if over_a else sample
    if kind == "v_prediction":
        return a * x - s * model_output
    if kind == "epsilon":
        return (x - s * model_output) / a
    if kind == "sample":
        return model_output
    raise ValueError(f"A scheduler that predicts {kind!r} is not known here; expected v, noise or the sample.")
