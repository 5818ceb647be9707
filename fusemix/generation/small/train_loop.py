"""A resumable training loop for the small decoder's two networks."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fusemix.files import write_atomic
from fusemix.stopping import Stopped

EMA_EVERY = 2  # steps between updates of the average; an update a step would cost a tenth of a small step
LOG_STEPS = 100  # steps over which the reported loss is averaged
LAST_RATE = 0.02  # final share of the learning rate

Report = Callable[[int, int, str], None]  # steps done, steps in all, a note


@dataclass(frozen=True, kw_only=True)
class Loop:
    """A training with its state on disk: network, averaged network, optimizer; each step is seeded by its number.

    Attributes:
        name: Of the files in ``work``.
        work: Folder of the state, the log and the samples.
        steps: In all; 0 leaves the network as ``create`` made it.
        learning_rate: The highest, after the warm-up; a cosine lowers it to a fiftieth.
        ema_decay: Of the averaged weights, per step.
        warmup_steps: At most a fifth of the steps.
        seed: Of every step's random numbers, with its number.
        save_every: Steps between saved states.
        sample_every: Steps between samples.
        device: A torch device string.
    """

    name: str
    work: Path
    steps: int
    learning_rate: float
    ema_decay: float
    warmup_steps: int
    seed: int
    save_every: int
    sample_every: int
    device: str = "cpu"

    @property
    def path(self) -> Path:
        """File of the state."""
        return self.work / f"{self.name}.pt"

    def train(
        self,
        create: Callable[[], nn.Module],
        loss_of: Callable[[nn.Module, int, np.random.Generator], Tensor],
        *,
        report: Report,
        sample: Callable[[nn.Module, Path], None],
        check: Callable[[dict[str, Any]], None] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> nn.Module:
        """Train from the saved step to the last; returns the averaged network.

        Args:
            create: Makes the initial network.
            loss_of: (network, step, random numbers of that step) -> scalar loss.
            report: Called after every step.
            sample: Called every ``sample_every`` steps with the averaged network and the path of a picture to write.
            check: May refuse a saved state before it is loaded.
            extra: Kept in the state.

        Raises:
            ValueError: If the saved state does not fit, or the loss is not finite.
            Stopped: After SIGTERM or SIGINT, once the state is saved.
        """
        self.work.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(self.seed)
        network = create().to(self.device).train()
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        average = deepcopy(network).eval().requires_grad_(False)
        trained = [p for p in network.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=self.learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
        done = self._load(network, average, optimizer, check)
        if self.steps == 0 and not self.path.exists():
            self._save(0, network, average, optimizer, extra or {})
        log: list[float] = []
        with stop_signal() as stopped:
            for step in range(done, self.steps):
                log.append(self._step(step, network, average, optimizer, loss_of))
                last = step + 1 == self.steps
                report(step + 1, self.steps, f"loss {np.mean(log[-LOG_STEPS:]):.4f}")
                if (step + 1) % self.save_every == 0 or last or stopped():
                    self._save(step + 1, network, average, optimizer, extra or {})
                    with open(self.work / f"{self.name}.log", "a") as handle:
                        handle.write(f"{time.time():.0f} {step + 1} {np.mean(log):.5f}\n")
                    log = log[-LOG_STEPS:]
                if stopped():
                    raise Stopped(f"{self.name} saved at step {step + 1:,} of {self.steps:,}")
                if (step + 1) % self.sample_every == 0 or last:
                    sample(average, self.work / f"{self.name}-{step + 1:06d}.png")
        return average

    def _step(
        self,
        step: int,
        network: nn.Module,
        average: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_of: Callable[[nn.Module, int, np.random.Generator], Tensor],
    ) -> float:
        torch.manual_seed(self.seed * 1_000_003 + step)
        loss = loss_of(network, step, np.random.default_rng((self.seed, step)))
        if not math.isfinite(loss.item()):
            raise ValueError(f"The {self.name} loss is not finite at step {step}; lower its learning rate.")
        for group in optimizer.param_groups:
            group["lr"] = self.rate(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        decay = min(self.ema_decay, (1 + step) / (10 + step))
        if step % EMA_EVERY == EMA_EVERY - 1:
            old: list[Tensor] = list(average.parameters())
            new: list[Tensor] = list(network.parameters())
            torch._foreach_lerp_(old, new, 1 - decay**EMA_EVERY)
        return loss.item()

    def rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        warm = min(1.0, (step + 1) / min(self.warmup_steps, max(1, self.steps // 5)))
        cosine = (1 + math.cos(math.pi * step / self.steps)) / 2
        return self.learning_rate * warm * (LAST_RATE + (1 - LAST_RATE) * cosine)

    def _load(
        self,
        network: nn.Module,
        average: nn.Module,
        optimizer: torch.optim.Optimizer,
        check: Callable[[dict[str, Any]], None] | None,
    ) -> int:
        if not self.path.exists():
            return 0
        state = torch.load(self.path, map_location=self.device, weights_only=True)
        if check is not None:
            check(state)
        try:
            network.load_state_dict(state["network"])
            average.load_state_dict(state["average"])
            optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"{self.path} belongs to a network of other sizes; choose another folder or the same settings."
            ) from error
        return int(state["step"])

    def _save(
        self,
        step: int,
        network: nn.Module,
        average: nn.Module,
        optimizer: torch.optim.Optimizer,
        extra: dict[str, Any],
    ) -> None:
        state = extra | {
            "step": step,
            "network": network.state_dict(),
            "average": average.state_dict(),
            "optimizer": optimizer.state_dict(),
        }
        write_atomic(self.path, lambda temporary: torch.save(state, temporary))


@contextmanager
def stop_signal() -> Iterator[Callable[[], bool]]:
    """Make SIGTERM and SIGINT set a flag inside the block instead of ending the process."""
    caught: list[int] = []

    def handler(number: int, frame: FrameType | None) -> None:
        caught.append(number)

    previous = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(caught)
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
