"""Estimate of the memory, disk and time of a training run, by a short probe."""

from __future__ import annotations

import math
import os
import tempfile
import time
from dataclasses import dataclass, replace

import numpy as np

from fusemix.data.pair_set import PairSet
from fusemix.model.config import ModelConfig, TrainConfig
from fusemix.training.losses import ONE_TILE_UP_TO, TILE
from fusemix.training.trainer import Trainer

PROBE_STEPS = 10
FLOAT = 4  # bytes


@dataclass(frozen=True)
class Plan:
    """Estimated costs of a run.

    Attributes:
        parameters: Number of trained and fixed parameters in the adapters.
        memory_bytes: Weights, gradients, AdamW's moments, latents held, one step's activations and logits.
        disk_bytes: Training state and checkpoint.
        seconds_per_step: Median of the probe, without the first steps.
        steps: Optimizer steps in all, without evaluation.
        largest_batch: Pairs a step that would fill three quarters of the free memory.
    """

    parameters: int
    memory_bytes: int
    disk_bytes: int
    seconds_per_step: float
    steps: int
    largest_batch: int

    def sentences(self) -> list[str]:
        """Write the estimate as sentences."""
        hours = self.seconds_per_step * self.steps / 3600
        return [
            f"{self.parameters:,} parameters; about {self.memory_bytes / 2**30:.1f} GiB of memory and "
            f"{self.disk_bytes / 2**30:.2f} GiB on disk.",
            f"{self.steps:,} steps of {self.seconds_per_step:.2f} s: {hours:.1f} h and the evaluations.",
            f"Free memory holds batches of up to about {self.largest_batch:,} pairs.",
        ]


def plan(sets: list[PairSet], model_config: ModelConfig, config: TrainConfig, *, hold_bytes: int | None = None) -> Plan:
    """Take ten real steps in a temporary folder and extrapolate.

    Args:
        sets: Joined latents, as for :func:`fusemix.training.trainer.train`.
        model_config: Shape of the model.
        config: The run.
        hold_bytes: As for :func:`fusemix.training.trainer.train`.

    Raises:
        ValueError: As :func:`fusemix.training.trainer.train`.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = Trainer(sets, model_config, replace(config, frozen=()), folder, hold_bytes=hold_bytes)
        times = []
        for _ in range(PROBE_STEPS):
            began = time.perf_counter()
            run.take_step()
            times.append(time.perf_counter() - began)
    parameters = sum(value.numel() for value in run.model.state_dict().values())
    trained = sum(p.numel() for p in run.trained)
    fixed = FLOAT * (parameters + 3 * trained) + sum(store.n_bytes for store in run.held)
    a_row = _bytes_of_a_row(sets, model_config)
    batch = sum(run.batches)
    return Plan(
        parameters=parameters,
        memory_bytes=fixed + batch * a_row + _logits(max(run.batches), sets, model_config, config),
        disk_bytes=FLOAT * (2 * parameters + 2 * trained),
        seconds_per_step=float(np.median(times[2:])),
        steps=run.total_steps,
        largest_batch=int(max(0, 0.75 * _free_bytes() - fixed) / a_row / len(sets)) // 2 * 2,
    )


def _bytes_of_a_row(sets: list[PairSet], model: ModelConfig) -> int:
    """Estimate the activations that autograd keeps for one pair: inputs, and three times each block's hidden width."""
    total = 0.0
    for modality in {m for s in sets for m in s.stores}:
        width = model.latent_dims[modality]
        inner = min(width, model.whiten_dim) if model.closed_form_dim else width
        for read in [width if view == "root" else inner for view in model.views] or [inner]:
            total += model.depth * (3 * read + 3 * model.expansion * read)
        total += width + 4 * model.embed_dim
    return int(FLOAT * total)


def _logits(batch: int, sets: list[PairSet], model: ModelConfig, config: TrainConfig) -> int:
    """Estimate the matrices of logits: two at work, and in one tile one kept for each path and pair of modalities."""
    rows = batch // 2 if config.mixup_alpha is not None else batch
    if rows > ONE_TILE_UP_TO:
        return 2 * FLOAT * TILE**2
    kept = len(model.trained_parts) * max(math.comb(len(s.stores), 2) for s in sets)
    return (2 + kept) * FLOAT * rows**2


def _free_bytes() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
