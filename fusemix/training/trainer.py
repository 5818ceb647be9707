"""The training loop: paired latents -> FusionModel, exactly resumable on one device.

Every random choice is a function of (seed, step): the order of pairs, the mixing coefficient
and the dropout masks. A killed and resumed run therefore takes exactly the steps
of an uninterrupted one. Several processes (torchrun) share each batch: they take the steps
of one process at the same batch size, but for their dropout masks.
"""

from __future__ import annotations

import io
import itertools
import logging
import math
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.profiler import record_function

from fusemix.allocator import keep_freed_memory
from fusemix.data.pair_set import PairSet
from fusemix.distributed import any_process, gather, join_processes, mean_gradients, row_counts, same_start
from fusemix.files import sole_writer, write_atomic, write_json
from fusemix.model.adapters import FusionModel
from fusemix.model.block import Block
from fusemix.model.closed_form import MAX_PAIRS, fit_closed_form
from fusemix.model.config import ModelConfig, TrainConfig
from fusemix.search.calibration import Calibration, save_calibrations
from fusemix.training.losses import info_nce, info_nce_rows
from fusemix.training.mixup import draw_lam, mix
from fusemix.training.pair_loader import PairLoader, stores_to_hold
from fusemix.training.precision import resolve_precision
from fusemix.training.schedule import warmup_cosine
from fusemix.training.start import check_sets, fingerprint, take_over
from fusemix.training.validation import is_not_beaten, validation_calibrations, validation_recall

logger = logging.getLogger(__name__)

STATE_NAME = "training_state.pt"
LARGEST_LATENT = 1e18  # the adapters' norms square it in float32
Stage = Callable[[str], AbstractContextManager[Any]]  # context manager for a named part of a step


@dataclass(frozen=True)
class Progress:
    """Progress of a run after each step; ``recall`` is filled after an evaluation."""

    step: int
    total_steps: int
    epoch: int
    loss: float
    temperature: float
    learning_rate: float
    pairs_per_s: float
    recall: dict[str, float] | None = None


@dataclass
class Result:
    """A finished or interrupted run.

    ``writer`` is true in the one process that evaluated and kept the best weights: only it may save them.
    ``calibrations`` are those of a finished run, by direction, fitted on the validation pairs.
    """

    model: FusionModel
    history: list[dict[str, Any]]
    best: dict[str, Any]
    finished: bool
    seconds: float
    writer: bool = True
    calibrations: dict[tuple[str, str], Calibration] = field(default_factory=dict)


@dataclass(frozen=True)
class Drawn:
    """Pairs of one set in one step, before mixing.

    Attributes:
        halves: Pair numbers of all processes: two equal halves to be mixed, or one piece without mixing.
        groups: The group of each pair, likewise.
        share: This process's part of a half.
        latents: Modality -> this process's latents, (rows of all its halves, D_x), float32.
    """

    halves: list[np.ndarray]
    groups: list[np.ndarray]
    share: slice
    latents: dict[str, Tensor]


@dataclass(frozen=True)
class Batch:
    """Input of the adapters in one step, from one set.

    Attributes:
        latents: Modality -> this process's rows, (n, D_x), float32; row i of each is a pair.
        groups: (N,) the group of each row of all processes, where pairs of one group are right for one another.
    """

    latents: dict[str, Tensor]
    groups: Tensor | None = None


def train(
    sets: list[PairSet],
    model_config: ModelConfig,
    config: TrainConfig,
    folder: str | Path,
    *,
    init: FusionModel | None = None,
    hold_bytes: int | None = None,
    report: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    should_abandon: Callable[[], bool] | None = None,
) -> Result:
    """Train adapters on paired latents; call again with the same arguments to resume.

    All sets train together, one InfoNCE each per step and per pair of modalities; a modality
    that occurs in several sets is the pivot between the others. The returned weights are those of the last epoch
    whose mean validation recall@1 no earlier epoch clearly beats (the authors' code keeps the highest recall on the
    test split); ``folder`` holds the training state.

    Args:
        sets: Joined latents.
        model_config: Shape of the model; its latent_dims must fit the sets.
        config: The run.
        folder: Where ``training_state.pt`` is kept while running.
        init: Start from this model's adapters, for the modalities it has. With ``config.frozen``
            a new modality is trained into an unchanged space.
        hold_bytes: Most bytes of latents kept in memory (by each process, on its device), the smallest stores first;
            the others are read through their memory maps, a step ahead. Default: 512 MiB, on a GPU half of its
            free memory. The weights do not depend on it.
        report: Called after every step.
        should_stop: Called after every step; if it returns true, the state is saved and the run returns.
        should_abandon: Called inside the closed form, before there is anything to save; single process only.

    Raises:
        Stopped: If ``should_abandon`` returned true; there is no model then.
        ValueError: On dimensions that do not fit, NaN or equal latents, too few pairs for the settings, a state of
            another run in ``folder``, or a loss that became NaN or infinite.
    """
    with sole_writer(Path(folder)) if int(os.environ.get("RANK", 0)) == 0 else nullcontext():
        trainer = Trainer(
            sets, model_config, config, folder, init=init, hold_bytes=hold_bytes, should_abandon=should_abandon
        )
        return trainer.run(report, should_stop)


class Trainer:
    """A training run with named steps; :func:`train` runs it to its end.

    :meth:`take_step` draws (:meth:`draw`), mixes (:meth:`mix`), embeds (:meth:`forward`), compares (:meth:`loss`),
    collects gradients (:meth:`backward`) and moves the weights (:meth:`update`); :meth:`run` adds :meth:`evaluate` and
    :meth:`save`. Each may be overridden, as may :meth:`build_model`; scripts/studies/ablations.py does so.

    Attributes:
        model: Being trained, in float32.
        step: Steps taken.
        total_steps: Of the whole run.
        epoch_steps: Steps of one pass over the largest set.
        batches: Pairs a step reads, for each set; what ``batch_size`` says, or all where there are fewer.
        history: An entry per evaluation.
        best: The entry of the kept weights.
        stage: Called with the name of each part of a step, a context manager around it; torch's ``record_function``.
    """

    def __init__(
        self,
        sets: list[PairSet],
        model_config: ModelConfig,
        config: TrainConfig,
        folder: str | Path,
        *,
        init: FusionModel | None = None,
        hold_bytes: int | None = None,
        should_abandon: Callable[[], bool] | None = None,
        stage: Stage = record_function,
    ) -> None:
        """Prepare the first step; arguments and errors as for :func:`train`."""
        check_sets(sets, model_config)
        keep_freed_memory(True)
        self.sets, self.config, self.folder, self.stage = sets, config, Path(folder), stage
        self.accelerator = join_processes(resolve_precision(config.mixed_precision))
        self.processes, self.rank = self.accelerator.num_processes, self.accelerator.process_index
        self.fingerprint = fingerprint(sets, model_config, config, init)
        divided = [s.divide(config) for s in sets]
        self.train_pairs = [train for train, _ in divided]
        self.val_pairs = [s.limit_groups(val, config.max_val_groups) for s, (_, val) in zip(sets, divided, strict=True)]
        self.val_groups = sum(len(np.unique(s.groups[val])) for s, val in zip(sets, self.val_pairs, strict=True))
        self.batches = [self._batch_of(s, len(pairs)) for s, pairs in zip(sets, self.train_pairs, strict=True)]
        self.epoch_steps = max(len(p) // b for p, b in zip(self.train_pairs, self.batches, strict=True))
        self.total_steps = self.epoch_steps * config.epochs if model_config.trained_parts else 0
        torch.manual_seed(config.seed)
        self.model = self.build_model(model_config)
        for block in self.model.modules():
            if isinstance(block, Block):
                block.dropout_rows = config.dropout_rows
        take_over(self.model, init, config.frozen)
        self._fit_closed_form(init, should_abandon)
        self.model.to(self.accelerator.device)  # gradients are averaged by mean_gradients, not by a wrapper
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = self.accelerator.prepare_optimizer(self.build_optimizer())
        self.step, self.loss_sum, self.loss_count = 0, 0.0, 0
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] = {"score": -1.0}
        self.best_weights: dict[str, Tensor] = {}
        self.held = stores_to_hold(sets, hold_bytes, self.accelerator.device)
        for store in self.held:
            store.hold(self.accelerator.device)
        self.loaders = [
            PairLoader(
                pair_set, pairs, batch, seed=[config.seed, 2, number], halved=config.mixup_alpha is not None,
                held=self.held, device=self.accelerator.device, processes=self.processes, rank=self.rank,
            )
            for number, (pair_set, pairs, batch) in enumerate(zip(sets, self.train_pairs, self.batches, strict=True))
        ]  # fmt: skip

    def build_model(self, model_config: ModelConfig) -> FusionModel:
        """Build the initial model; the run's seed is already set."""
        return FusionModel(model_config, temperature=self.config.temperature)

    def build_optimizer(self) -> torch.optim.Optimizer:
        """Build AdamW over the trained parameters, with weight decay on matrices only."""
        groups = [
            {"params": [p for p in self.trained if p.ndim > 1], "weight_decay": self.config.weight_decay},
            {"params": [p for p in self.trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=self.config.learning_rate, fused=True)

    def run(
        self, report: Callable[[Progress], None] | None = None, should_stop: Callable[[], bool] | None = None
    ) -> Result:
        """Load the state, if there is one, and take the remaining steps; arguments as for :func:`train`."""
        self.load()
        same_start(self.model)
        began, recent = time.perf_counter(), time.perf_counter()
        if not self.total_steps and self.rank == 0:
            self.evaluate(0)
        while self.step < self.total_steps:
            loss = self.take_step()
            recall = self._end_of_epoch() if self.rank == 0 and self.step % self.epoch_steps == 0 else None
            if report and self.rank == 0:
                now = time.perf_counter()
                rate, recent = sum(self.batches) / max(now - recent, 1e-9), now
                temperature, learning_rate = float(self.model.temperature.detach()), self.learning_rate(self.step - 1)
                epoch = self.step // self.epoch_steps
                report(Progress(self.step, self.total_steps, epoch, loss, temperature, learning_rate, rate, recall))
            if should_stop and any_process(self.accelerator, should_stop()) and self.step < self.total_steps:
                if self.rank == 0:
                    self.save()
                return self._result(began, finished=False)
        return self._result(began, finished=True)

    def take_step(self) -> float:
        """Take one optimizer step over a batch of every set; returns the mean loss.

        Raises:
            ValueError: If the loss is NaN or infinite (the weights are then those before the step), or there is nothing
                to train.
        """
        config = self.config
        if not self.total_steps:
            raise ValueError("A closed form alone has no steps to take, plan or profile; train it, in seconds.")
        rng = np.random.default_rng([config.seed, 1, self.step])  # the same in every process
        self.model.train()
        for modality in config.frozen:
            self.model.adapters[modality].eval()
        value = 0.0
        for number in range(len(self.sets)):
            with self.stage("loading and mixing"):
                batch = self.mix(self.draw(number), rng)
            value += self.backward(batch, seed=[config.seed, 4, self.step, number, self.rank])
        if not math.isfinite(value):
            raise ValueError(self._not_finite(value, batch))
        with self.stage("optimizer"):
            self.update()
        self.step += 1
        self.loss_sum, self.loss_count = self.loss_sum + value, self.loss_count + 1
        return value

    def draw(self, number: int) -> Drawn:
        """Read this process's latents of a set for the step, and prefetch those of the next step.

        All processes draw the same pairs, so that together they mix the batch of a single process.
        """
        loader, pair_set = self.loaders[number], self.sets[number]
        halves = loader.draw(self.step)
        latents = {name: loader.latents(name, self.step) for name in pair_set.stores}
        if self.step + 1 < self.total_steps:
            loader.read_ahead(self.step + 1)
        return Drawn(halves, [pair_set.groups[half] for half in halves], loader.share_of(halves[0]), latents)

    def mix(self, drawn: Drawn, rng: np.random.Generator) -> Batch:
        """Mix the halves of a batch (FuseMix) with coefficients from the step's generator; unchanged without mixup.

        A mixed pair belongs to the group of its heavier half.
        """
        config, rows = self.config, len(drawn.halves[0])
        latents, heavier = drawn.latents, np.zeros(rows, dtype=np.int64)
        if config.mixup_alpha is not None:
            lam = draw_lam(config.mixup_alpha, rows, rng, per_row=config.mixup_per_row)
            heavier = (np.broadcast_to(lam, (rows, 1))[:, 0] < 0.5).astype(np.int64)
            mixed = mix(tuple(latents.values()), lam if len(lam) == 1 else lam[drawn.share])
            latents = dict(zip(latents, mixed, strict=True))
        if not config.multi_positive:
            return Batch(latents)
        groups = np.stack(drawn.groups)[heavier, np.arange(rows)]
        return Batch(latents, torch.from_numpy(groups).to(self.accelerator.device))

    def forward(self, latents: dict[str, Tensor]) -> dict[str, Tensor]:
        """Apply the trained paths in the run's precision: (n, D_x) -> (n, D) a modality, float32, not normalised."""
        with self.stage("forward"), self.accelerator.autocast():
            return {name: out.float() for name, out in self.model(latents).items()}

    def loss(self, out: dict[str, Tensor], groups: Tensor | None) -> Tensor:
        """Compare the outputs of this process's rows with those of all processes.

        Returns:
            The mean over the trained paths, divided by the number of modality pairs in all sets; its mean over the
            processes is the loss of all rows.
        """
        temperature, losses = self.model.temperature, []
        factors = torch.bfloat16 if self.accelerator.mixed_precision == "bf16" else None
        whole, part_of_all = out, 1.0
        if self.processes > 1:
            counts = row_counts(next(iter(out.values())))
            first = sum(counts[: self.rank])
            whole = {name: gather(x, counts) for name, x in out.items()}
            part_of_all = counts[self.rank] * self.processes / sum(counts)
        parts = self.model.config.trained_parts
        for (a, b), part in itertools.product(itertools.combinations(out, 2), parts):
            mine = out[a][:, part], out[b][:, part]
            if self.processes == 1:
                losses.append(info_nce(*mine, temperature=temperature, groups=groups, factors=factors))
                continue
            everybody = whole[a][:, part], whole[b][:, part]
            rows = info_nce_rows(*mine, *everybody, first=first, temperature=temperature, groups=groups)
            losses.append(rows * part_of_all)
        return torch.stack(losses).sum() / len(parts) / sum(math.comb(len(s.stores), 2) for s in self.sets)

    def backward(self, batch: Batch, *, seed: list[int]) -> float:
        """Accumulate the gradients of one set's loss; returns the loss, the mean over all processes' rows.

        With ``accumulate`` > 1 the adapters run over one piece of the batch at a time, twice: first for the
        embeddings and their gradient from the loss of the whole batch, then to propagate that gradient. Dropout
        masks are functions of step and piece, so both passes are equal, and the negatives are the whole batch's.
        Source: GradCache, Gao et al., arXiv:2101.06983.
        """
        pieces = self.config.accumulate

        def embed(piece: int) -> dict[str, Tensor]:
            torch.manual_seed(int(np.random.default_rng([*seed, piece]).integers(2**62)))
            return self.forward({name: x.tensor_split(pieces)[piece] for name, x in batch.latents.items()})

        if pieces == 1:
            return self._through_loss(embed(0), batch.groups)
        with torch.no_grad():
            parts = [embed(piece) for piece in range(pieces)]
        whole = {name: torch.cat([part[name] for part in parts]).requires_grad_() for name in batch.latents}
        value = self._through_loss(whole, batch.groups)
        for piece in range(pieces):
            out = embed(piece)
            for name, embedding in out.items():
                gradient = whole[name].grad
                if embedding.requires_grad and gradient is not None:  # a frozen adapter needs none
                    with self.stage("backward"):
                        embedding.backward(gradient.tensor_split(pieces)[piece])
        return value

    def update(self) -> None:
        """Update the weights by the mean of all processes' gradients, and clamp the temperature to its bounds."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.step)
        mean_gradients(self.trained)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            self.model.temperature.clamp_(self.config.min_temperature, self.config.max_temperature)

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        c = self.config
        return warmup_cosine(
            step, self.total_steps, highest=c.learning_rate, lowest=c.min_learning_rate, warmup_steps=c.warmup_steps
        )

    def evaluate(self, epoch: int) -> dict[str, float]:
        """Measure validation recall@1 of every set and direction; keep the weights if no earlier epoch beats them.

        See :func:`fusemix.training.validation.is_not_beaten`.
        """
        with self.stage("evaluation"):
            recall = validation_recall(self.model, self.sets, self.val_pairs)
        entry = {
            "epoch": epoch,
            "step": self.step,
            "loss": self.loss_sum / max(1, self.loss_count),
            "temperature": float(self.model.temperature.detach()),
            "score": float(np.mean(list(recall.values()))),
            **recall,
        }
        self.history.append(entry)
        if is_not_beaten([earlier["score"] for earlier in self.history], self.val_groups):
            self.best = entry
            self.best_weights = {n: value.detach().cpu().clone() for n, value in self.model.state_dict().items()}
        return recall

    def save(self) -> None:
        """Write the state of the run atomically."""
        state = {
            "fingerprint": self.fingerprint,
            "step": self.step,
            "loss_sum": self.loss_sum,
            "loss_count": self.loss_count,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": self.history,
            "best": self.best,
            "best_weights": self.best_weights,
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self.folder / STATE_NAME, lambda path: path.write_bytes(buffer.getbuffer()))

    def load(self) -> None:
        """Load the saved state, if there is one.

        Raises:
            ValueError: If it is damaged or of another run.
        """
        path = self.folder / STATE_NAME
        if not path.exists():
            return
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many types for a damaged file
            raise ValueError(f"{path} is damaged ({error}); remove it to start again.") from error
        if state["fingerprint"] != self.fingerprint:
            raise ValueError(
                f"{path} belongs to a run with other latents or settings; resume with the same ones, "
                "choose another folder, or remove that file to start again."
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.loss_sum, self.loss_count = state["step"], state["loss_sum"], state["loss_count"]
        self.history, self.best, self.best_weights = state["history"], state["best"], state["best_weights"]
        logger.info("Resumed %s at step %d of %d.", path, self.step, self.total_steps)

    def _batch_of(self, pair_set: PairSet, pairs: int) -> int:
        """Return the number of pairs of a set in a step; refuse fewer than the processes and the pieces need."""
        halves = 2 if self.config.mixup_alpha is not None else 1
        rows = min(self.config.batch_size, pairs) // halves
        needed = max(2, self.processes * self.config.accumulate)  # a single pair has no negatives
        if rows < needed:
            raise ValueError(
                f"{pair_set.name}: a step compares {rows} pairs ({pairs} to train on, batch_size "
                f"{self.config.batch_size}{', halved by mixing' if halves == 2 else ''}), and needs at least {needed} "
                f"({self.processes} processes x accumulate {self.config.accumulate}, and never fewer than 2); raise "
                "batch_size, give more pairs or lower accumulate."
            )
        return rows * halves

    def _fit_closed_form(self, init: FusionModel | None, should_abandon: Callable[[], bool] | None) -> None:
        """Fit the closed-form part of the adapters to training pairs; the paper's adapters have none."""
        if not self.model.config.closed_form_dim or (self.folder / STATE_NAME).exists():
            return  # a resumed run loads it with its state
        latents = []
        for number, (pair_set, pairs) in enumerate(zip(self.sets, self.train_pairs, strict=True)):
            rng = np.random.default_rng([self.config.seed, 3, number])
            some = np.sort(rng.permutation(pairs)[:MAX_PAIRS])
            latents.append({m: pair_set.latents(m, items[some]).numpy() for m, items in pair_set.items.items()})
        known = init.modalities if init is not None else ()
        ridge = self.config.closed_form_ridge
        fit_closed_form(self.model, latents, ridge=ridge, known=known, should_stop=should_abandon)

    def _end_of_epoch(self) -> dict[str, float] | None:
        epoch, last, recall = self.step // self.epoch_steps, self.step == self.total_steps, None
        if epoch % self.config.eval_every == 0 or last:
            recall = self.evaluate(epoch)
        self.loss_sum, self.loss_count = 0.0, 0
        if epoch % self.config.save_every == 0 or last:
            self.save()
        return recall

    def _result(self, began: float, *, finished: bool) -> Result:
        model = self.model.cpu()
        if self.best_weights:
            model.load_state_dict(self.best_weights)
        seconds = time.perf_counter() - began
        keep_freed_memory(False)
        done = finished and self.rank == 0
        fitted = validation_calibrations(model.eval(), self.sets, self.val_pairs) if done else {}
        return Result(model.eval(), self.history, self.best, finished, seconds, self.rank == 0, fitted)

    def _through_loss(self, out: dict[str, Tensor], groups: Tensor | None) -> float:
        """Propagate the loss's gradient back through ``out``; returns the loss, its mean over the processes."""
        with self.stage("loss"):
            loss = self.loss(out, groups)
        with self.stage("backward"):
            self.accelerator.backward(loss)
        return float(self.accelerator.reduce(loss.detach(), "mean"))

    def _not_finite(self, value: float, batch: Batch) -> str:
        advice = "lower learning_rate"
        name, largest = max(((m, float(x.abs().max())) for m, x in batch.latents.items()), key=lambda pair: pair[1])
        if largest > LARGEST_LATENT:
            advice = (
                f"the {name} latents reach {largest:.3g}, whose squares leave float32: divide all of them by a constant"
            )
        elif self.accelerator.mixed_precision == "fp16":
            advice += ", or train with mixed_precision 'bf16' or 'no', whose numbers reach further"
        path = self.folder / STATE_NAME
        kept = f"The last state saved is kept in {path}." if path.exists() else "No state had been saved yet."
        return f"The loss became {value} at step {self.step + 1}; {advice}. {kept}"


def save_result(result: Result, folder: str | Path, config: TrainConfig, *, card: str, **save: Any) -> None:
    """Write the checkpoint of a finished run: weights, calibrations, configs, history and card.

    Args:
        result: Of :func:`train`.
        folder: The checkpoint folder.
        config: Saved as ``train_config.json``.
        card: Text of the model card.
        **save: Passed to :meth:`FusionModel.save_pretrained`.
    """
    folder = Path(folder)
    result.model.save_pretrained(folder, card=card, **save)
    if result.calibrations:
        identity = FusionModel.from_pretrained(folder).identity  # of the weights as they are stored
        save_calibrations(folder, result.calibrations, model_identity=identity)
    write_json(folder / "train_config.json", config.to_dict())
    write_json(folder / "history.json", result.history)
