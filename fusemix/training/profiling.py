"""Profile of a training run: a few real steps and one evaluation under torch's profiler."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, record_function
from torch.profiler import profile as torch_profile

from fusemix.data.pair_set import PairSet
from fusemix.files import write_atomic
from fusemix.model.adapters import FusionModel
from fusemix.model.config import ModelConfig, TrainConfig
from fusemix.training.trainer import Trainer

WARM_UP, STEPS = 3, 10
STAGES = {
    "loading and mixing": "loading and mixing the latents",
    "forward": "forward through the adapters",
    "loss": "loss",
    "backward": "backward (of the loss and the adapters)",
    "optimizer": "optimizer",
}
_STEP, _EVALUATION = "step", "evaluation"


@dataclass(frozen=True)
class Profile:
    """Measured times of a training run.

    Attributes:
        seconds_per_step: Mean of the profiled steps; the profiler slows them a little.
        stages: Stage of :data:`STAGES` -> seconds of a step.
        evaluation_seconds: Seconds of one evaluation.
        steps_per_evaluation: Steps of the run between two evaluations.
        operators: (name, calls, self time in seconds) over steps and evaluation, the slowest first.
        trace: File for chrome://tracing or ui.perfetto.dev.
    """

    seconds_per_step: float
    stages: dict[str, float]
    evaluation_seconds: float
    steps_per_evaluation: int
    operators: list[tuple[str, int, float]]
    trace: Path

    def lines(self) -> list[str]:
        """Write the profile as lines of text."""
        step, evaluation = self.seconds_per_step, self.evaluation_seconds / self.steps_per_evaluation
        whole = step + evaluation
        rows = [(STAGES[name], seconds) for name, seconds in self.stages.items()]
        rows += [("the rest of the step", step - sum(self.stages.values()))]
        rows += [
            (f"evaluation ({self.evaluation_seconds:.2f} s every {self.steps_per_evaluation:,} steps)", evaluation)
        ]
        lines = [f"A step takes {1000 * step:.1f} ms, with its share of the evaluations {1000 * whole:.1f} ms:"]
        lines += [f"{1000 * s:9.2f} ms {s / whole:6.1%}  {name}" for name, s in rows]
        all_of_it = STEPS * step + self.evaluation_seconds
        lines += [f"Costliest operators in the {all_of_it:.1f} s of {STEPS} steps and an evaluation:"]
        lines += [f"{1000 * s:9.0f} ms {s / all_of_it:6.1%}  {name} ({n} calls)" for name, n, s in self.operators]
        return [*lines, f"{self.trace}: open it in chrome://tracing or ui.perfetto.dev."]


def profile(
    sets: list[PairSet],
    model_config: ModelConfig,
    config: TrainConfig,
    trace: Path,
    *,
    init: FusionModel | None = None,
    hold_bytes: int | None = None,
) -> Profile:
    """Take steps in a temporary folder, the first ones unmeasured, and one evaluation.

    Args:
        sets: Joined latents, as for :func:`fusemix.training.trainer.train`.
        model_config: Shape of the model.
        config: The run.
        trace: Where to write the trace, JSON; its folder is made.
        init: As for :func:`fusemix.training.trainer.train`.
        hold_bytes: As for :func:`fusemix.training.trainer.train`.

    Raises:
        ValueError: As :func:`fusemix.training.trainer.train`.
        OSError: If the trace cannot be written.
    """
    trace.parent.mkdir(parents=True, exist_ok=True)
    on_gpu = torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as folder:
        stage = _waiting if on_gpu else record_function
        run = Trainer(sets, model_config, config, folder, init=init, hold_bytes=hold_bytes, stage=stage)
        for _ in range(WARM_UP):
            run.take_step()
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_gpu else [])
        with torch_profile(activities=activities) as measured:
            for _ in range(STEPS):
                with run.stage(_STEP):
                    run.take_step()
            run.evaluate(1)
    write_atomic(trace, lambda path: measured.export_chrome_trace(str(path)))
    events = measured.key_averages()
    # microseconds on the CPU; the stages wait for a GPU, so they include its work
    total = {event.key: event.cpu_time_total / 1e6 for event in events}
    alone = [(e.key, e.count, (e.self_device_time_total if on_gpu else e.self_cpu_time_total) / 1e6) for e in events]
    operators = [part for part in alone if part[0] not in {*STAGES, _STEP, _EVALUATION}]
    return Profile(
        seconds_per_step=total[_STEP] / STEPS,
        stages={name: total.get(name, 0.0) / STEPS for name in STAGES},
        evaluation_seconds=total[_EVALUATION],
        steps_per_evaluation=run.epoch_steps * config.eval_every,
        operators=sorted(operators, key=lambda operator: -operator[2])[:10],
        trace=trace,
    )


@contextmanager
def _waiting(name: str) -> Iterator[None]:
    """Record a stage that ends when the GPU has finished its work."""
    with record_function(name):
        yield
        torch.cuda.synchronize()
