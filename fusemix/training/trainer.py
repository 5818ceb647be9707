"""The training loop: paired latents -> FusionModel, resumable to the bit on one device.

Every random choice is a function of (seed, step): the order of pairs, the mixing coefficient
and the dropout masks. A run that was killed and resumed therefore takes exactly the steps
that the uninterrupted run takes. Several processes (torchrun) share each batch: they take the steps
of one process at the same batch size, but for their dropout masks.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import logging
import math
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.profiler import record_function

from fusemix.data.latent_store import MANIFEST_NAME
from fusemix.data.pair_set import PairSet
from fusemix.distributed import any_process, gather, join_processes, mean_gradients, same_start
from fusemix.evaluation.metrics import retrieval
from fusemix.files import sole_writer, write_atomic, write_json
from fusemix.model.adapters import FusionModel
from fusemix.model.closed_form import MAX_PAIRS, fit_closed_form
from fusemix.model.config import ModelConfig, TrainConfig
from fusemix.training.losses import info_nce, info_nce_rows
from fusemix.training.mixup import draw_lam, mix
from fusemix.training.pair_loader import PairLoader, stores_to_hold

logger = logging.getLogger(__name__)

STATE_NAME = "training_state.pt"


@dataclass(frozen=True)
class Progress:
    """What a run reports after each step; ``recall`` is filled after an evaluation."""

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

    ``writer`` is true in the one process that evaluated and kept the best weights, and may save them.
    """

    model: FusionModel
    history: list[dict[str, Any]]
    best: dict[str, Any]
    finished: bool
    seconds: float
    writer: bool = True


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
    that stands in several sets is the pivot between the others. The weights of the last epoch whose mean
    validation recall@1 no earlier one clearly beats are kept in memory and returned (the authors' code keeps the
    highest recall, of the test split); ``folder`` holds the training state.

    Args:
        sets: Joined latents.
        model_config: Shape of the model; its latent_dims must fit the sets.
        config: The run.
        folder: Where ``training_state.pt`` is kept while running.
        init: Start from this model's adapters, for the modalities it has. With ``config.frozen``
            a new modality is trained into a space that stays as it is.
        hold_bytes: Of latents kept in memory (by each process, where it computes), the smallest stores first;
            the others are read through their memory maps, a step ahead. Default: 512 MiB, on a GPU half of its
            free memory. The weights do not depend on it.
        report: Called after every step.
        should_stop: Asked after every step; when true, the state is saved and the run returns.
        should_abandon: Asked inside the closed form, before there is anything to save; of a single process.

    Raises:
        Stopped: If ``should_abandon`` said so.
        ValueError: On dimensions that do not fit, NaN latents, too few pairs, a state of
            another run in ``folder``, or a loss that became NaN.
    """
    with sole_writer(Path(folder)) if int(os.environ.get("RANK", 0)) == 0 else nullcontext():
        run = _Run(sets, model_config, config, Path(folder), init, hold_bytes, should_abandon)
        return run.go(report, should_stop)


class _Run:
    def __init__(
        self,
        sets: list[PairSet],
        model_config: ModelConfig,
        config: TrainConfig,
        folder: Path,
        init: FusionModel | None = None,
        hold_bytes: int | None = None,
        should_abandon: Callable[[], bool] | None = None,
    ) -> None:
        _check_sets(sets, model_config)
        self.sets, self.config, self.folder = sets, config, folder
        self.accelerator = join_processes(resolve_precision(config.mixed_precision))
        self.processes, self.rank = self.accelerator.num_processes, self.accelerator.process_index
        self.fingerprint = _fingerprint(sets, model_config, config, init)
        divided = [s.divide(config) for s in sets]
        self.train_pairs = [train for train, _ in divided]
        self.val_pairs = [s.limit_groups(val, config.max_val_groups) for s, (_, val) in zip(sets, divided, strict=True)]
        self.val_groups = sum(len(np.unique(s.groups[val])) for s, val in zip(sets, self.val_pairs, strict=True))
        even = (2 if config.mixup_alpha is not None else 1) * self.processes * config.accumulate
        self.batches = [min(config.batch_size, len(pairs) // even * even) for pairs in self.train_pairs]
        self.epoch_steps = max(len(p) // b for p, b in zip(self.train_pairs, self.batches, strict=True))
        self.total_steps = self.epoch_steps * config.epochs
        torch.manual_seed(config.seed)
        self.model = FusionModel(model_config, temperature=config.temperature)
        _start_from(self.model, init, config.frozen)
        self.fit_closed_form(init, should_abandon)
        self.optimizer = torch.optim.AdamW(
            _parameter_groups(self.model, config.weight_decay), lr=config.learning_rate, fused=True
        )
        self.model.to(self.accelerator.device)  # gradients are summed by mean_gradients, not by a wrapper
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = self.accelerator.prepare_optimizer(self.optimizer)
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
        self.stage: Callable[[str], AbstractContextManager[Any]] = record_function  # names the parts for --profile

    def fit_closed_form(self, init: FusionModel | None, should_abandon: Callable[[], bool] | None) -> None:
        """Fit what of the adapters is known in closed form, from training pairs; nothing in the paper's adapters."""
        if not self.model.config.closed_form_dim or (self.folder / STATE_NAME).exists():
            return  # a resumed run finds it in its state
        latents = []
        for number, (pair_set, pairs) in enumerate(zip(self.sets, self.train_pairs, strict=True)):
            rng = np.random.default_rng([self.config.seed, 3, number])
            some = np.sort(rng.permutation(pairs)[:MAX_PAIRS])
            latents.append({m: pair_set.latents(m, items[some]).numpy() for m, items in pair_set.items.items()})
        known = init.modalities if init is not None else ()
        ridge = self.config.closed_form_ridge
        fit_closed_form(self.model, latents, ridge=ridge, known=known, should_stop=should_abandon)

    def go(self, report: Callable[[Progress], None] | None, should_stop: Callable[[], bool] | None) -> Result:
        self.load()
        same_start(self.model)
        began, recent = time.perf_counter(), time.perf_counter()
        while self.step < self.total_steps:
            loss = self.take_step()
            epoch, recall = self.step // self.epoch_steps, None
            if self.rank == 0 and self.step % self.epoch_steps == 0:
                if epoch % self.config.eval_every == 0 or self.step == self.total_steps:
                    recall = self.evaluate(epoch)
                self.loss_sum, self.loss_count = 0.0, 0
                if epoch % self.config.save_every == 0 or self.step == self.total_steps:
                    self.save()
            if report and self.rank == 0:
                now = time.perf_counter()
                rate, recent = sum(self.batches) / max(now - recent, 1e-9), now
                report(
                    Progress(
                        self.step,
                        self.total_steps,
                        epoch,
                        loss,
                        float(self.model.temperature.detach()),
                        self.learning_rate(self.step - 1),
                        rate,
                        recall,
                    )
                )
            if should_stop and any_process(self.accelerator, should_stop()) and self.step < self.total_steps:
                if self.rank == 0:
                    self.save()
                return self.result(began, finished=False)
        return self.result(began, finished=True)

    def result(self, began: float, *, finished: bool) -> Result:
        model = self.model.cpu()
        if self.best_weights:
            model.load_state_dict(self.best_weights)
        seconds = time.perf_counter() - began
        return Result(model.eval(), self.history, self.best, finished, seconds, writer=self.rank == 0)

    def take_step(self) -> float:
        """One optimizer step over a batch of every set; returns the mean loss."""
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.step)
        rng = np.random.default_rng([config.seed, 1, self.step])  # the same in every process
        with torch.no_grad():
            self.model.temperature.clamp_(config.min_temperature, config.max_temperature)
        self.model.train()
        for modality in config.frozen:
            self.model.adapters[modality].eval()
        value = 0.0
        for number in range(len(self.sets)):
            with self.stage("loading and mixing"):
                mixed, groups = self.mixed_batch(number, rng)
            value += self.backward(mixed, groups, seed=[config.seed, 4, self.step, number, self.rank])
        with self.stage("optimizer"):
            mean_gradients(self.trained)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        if not math.isfinite(value):
            raise ValueError(
                f"The loss became {value} at step {self.step + 1}; lower learning_rate. "
                f"The state before this epoch is kept in {self.folder}."
            )
        self.step += 1
        self.loss_sum, self.loss_count = self.loss_sum + value, self.loss_count + 1
        return value

    def mixed_batch(self, number: int, rng: np.random.Generator) -> tuple[dict[str, Tensor], Tensor | None]:
        """This process's rows of the step's mixed pairs, and the groups of all rows if they are used.

        All processes draw the same pairs and the same coefficients, so that together they mix what one
        process would. A mixed pair belongs to the group of its heavier half.
        """
        config, pair_set = self.config, self.sets[number]
        loader = self.loaders[number]
        halves = loader.draw(self.step)
        latents = tuple(loader.latents(name, self.step) for name in pair_set.stores)
        if self.step + 1 < self.total_steps:
            loader.read_ahead(self.step + 1)
        heavier = np.zeros(len(halves[0]), dtype=np.int64)
        if config.mixup_alpha is not None:
            lam = draw_lam(config.mixup_alpha, len(halves[0]), rng, per_row=config.mixup_per_row)
            heavier = (np.broadcast_to(lam, (len(halves[0]), 1))[:, 0] < 0.5).astype(np.int64)
            part = lam if len(lam) == 1 else lam[loader.share_of(halves[0])]
            latents = mix(latents, part)
        groups = None
        if config.multi_positive:
            chosen = np.stack(halves)[heavier, np.arange(len(halves[0]))]
            groups = torch.from_numpy(pair_set.groups[chosen]).to(self.accelerator.device)
        return dict(zip(pair_set.stores, latents, strict=True)), groups

    def backward(self, latents: dict[str, Tensor], groups: Tensor | None, *, seed: list[int]) -> float:
        """Add the gradients of one set's loss; returns the loss, the mean over all processes' rows.

        With ``accumulate`` > 1 the adapters run over one piece of the batch at a time, twice: first for the
        embeddings, whose gradient the whole loss gives, then to carry that gradient on. Dropout masks are
        functions of step and piece, so both passes are the same, and the negatives are the whole batch's.
        Source: GradCache, Gao et al., arXiv:2101.06983.
        """
        pieces = self.config.accumulate

        def embed(piece: int) -> dict[str, Tensor]:
            torch.manual_seed(int(np.random.default_rng([*seed, piece]).integers(2**62)))
            part = {name: x.chunk(pieces)[piece] for name, x in latents.items()}
            with self.stage("forward"), self.accelerator.autocast():
                return {name: out.float() for name, out in self.model(part).items()}

        if pieces == 1:
            loss = self.loss(embed(0), groups)
            with self.stage("backward"):
                self.accelerator.backward(loss)
            return self.mean(loss)
        with torch.no_grad():
            parts = [embed(piece) for piece in range(pieces)]
        whole = {name: torch.cat([part[name] for part in parts]).requires_grad_() for name in latents}
        loss = self.loss(whole, groups)
        with self.stage("backward"):
            self.accelerator.backward(loss)
        for piece in range(pieces):
            out = embed(piece)
            for name, embedding in out.items():
                gradient = whole[name].grad
                if embedding.requires_grad and gradient is not None:  # a frozen adapter needs none
                    with self.stage("backward"):
                        embedding.backward(gradient.chunk(pieces)[piece])
        return self.mean(loss)

    def loss(self, out: dict[str, Tensor], groups: Tensor | None) -> Tensor:
        """This process's share of the set's loss, the mean over the trained paths, already divided among the sets."""
        with self.stage("loss"):
            temperature, losses = self.model.temperature, []
            whole = {name: gather(x) for name, x in out.items()} if self.processes > 1 else out
            parts = self.model.config.trained_parts
            for (a, b), part in itertools.product(itertools.combinations(out, 2), parts):
                mine = out[a][:, part], out[b][:, part]
                if self.processes == 1:
                    losses.append(info_nce(*mine, temperature=temperature, groups=groups))
                    continue
                share = *mine, whole[a][:, part], whole[b][:, part]
                first = self.rank * len(out[a])
                losses.append(info_nce_rows(*share, first=first, temperature=temperature, groups=groups))
            return torch.stack(losses).sum() / len(parts) / sum(math.comb(len(s.stores), 2) for s in self.sets)

    def mean(self, loss: Tensor) -> float:
        """A loss as a number, its mean over the processes."""
        return float(self.accelerator.reduce(loss.detach(), "mean"))

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then cosine, per step.

        The authors' code moves the cosine once an epoch; with the few, long epochs of a small
        machine we move it every step.
        """
        c = self.config
        warmup = min(c.warmup_steps, max(1, self.total_steps // 5))
        if step < warmup:
            return c.min_learning_rate + (c.learning_rate - c.min_learning_rate) * (step + 1) / warmup
        part = (step - warmup) / max(1, self.total_steps - warmup)
        return c.min_learning_rate + (c.learning_rate - c.min_learning_rate) * 0.5 * (1 + math.cos(math.pi * part))

    def evaluate(self, epoch: int) -> dict[str, float]:
        """Validation recall@1 of every set and direction; keeps the weights unless an earlier epoch was clearly better.

        Clearly: by more than one standard error of a share among the held-out groups. With few of them the highest
        of several recalls is mostly luck, and as the learning rate falls to nothing the later weights are the better.
        """
        model = self.model
        with self.stage("evaluation"):
            recall = validation_recall(model, self.sets, self.val_pairs)
        score = float(np.mean(list(recall.values())))
        entry = {
            "epoch": epoch,
            "step": self.step,
            "loss": self.loss_sum / max(1, self.loss_count),
            "temperature": float(model.temperature.detach()),
            "score": score,
            **recall,
        }
        self.history.append(entry)
        top = max(earlier["score"] for earlier in self.history)
        if score >= top - math.sqrt(top * (1 - top) / self.val_groups):
            self.best = entry
            self.best_weights = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
        return recall

    def save(self) -> None:
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
        write_atomic(self.folder / STATE_NAME, lambda path: path.write_bytes(buffer.getbuffer()))

    def load(self) -> None:
        path = self.folder / STATE_NAME
        if not path.exists():
            return
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many types for a damaged file
            raise ValueError(f"{path} is damaged ({error}); remove it to start again.") from error
        if state["fingerprint"] != self.fingerprint:
            raise ValueError(
                f"{path} belongs to a run with other latents or settings; resume with the same command, "
                "choose another folder, or remove that file to start again."
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.loss_sum, self.loss_count = state["step"], state["loss_sum"], state["loss_count"]
        self.history, self.best, self.best_weights = state["history"], state["best"], state["best_weights"]
        logger.info("Resumed %s at step %d of %d.", path, self.step, self.total_steps)


def validation_recall(model: FusionModel, sets: list[PairSet], pairs: list[np.ndarray]) -> dict[str, float]:
    """recall@1 for every set and direction, e.g. ``image+text/text_to_image``; each item stands once."""
    recall: dict[str, float] = {}
    for number, (pair_set, chosen) in enumerate(zip(sets, pairs, strict=True)):
        sides = {}
        for modality, items in pair_set.items.items():
            distinct, first = np.unique(items[chosen], return_index=True)
            embeddings = model.embed(modality, pair_set.latents(modality, distinct))
            sides[modality] = (embeddings, pair_set.groups[chosen][first])
        prefix = f"{number}:{pair_set.name}" if [s.name for s in sets].count(pair_set.name) > 1 else pair_set.name
        for a, b in itertools.permutations(sides, 2):
            values = retrieval(sides[a][0], sides[b][0], sides[a][1], sides[b][1], intervals=False)
            recall[f"{prefix}/{a}_to_{b}"] = values["recall_at_1"]
    return recall


def resolve_precision(name: str) -> str:
    """``auto`` -> bf16 where the processor multiplies it fast, else no."""
    if name != "auto":
        return name
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "no"
    # oneDNN's bf16 products are slow (hundreds of times) without these instructions
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if fast else "no"


def _check_sets(sets: list[PairSet], model_config: ModelConfig) -> None:
    if not sets:
        raise ValueError("Give at least one set of paired latents.")
    for pair_set in sets:
        for modality, store in pair_set.stores.items():
            expected = model_config.latent_dims.get(modality)
            if expected != store.dim:
                raise ValueError(
                    f"{store.folder} holds {modality} latents of width {store.dim}, the model takes {expected}; "
                    "train with latents of one encoder per modality."
                )
            encoder = model_config.encoders.get(modality)
            if encoder is not None and encoder != store.encoder:
                raise ValueError(
                    f"{store.folder} was made by {store.encoder['name']} ({store.encoder['revision'][:12]}), but other "
                    f"{modality} latents here by {encoder['name']} ({encoder['revision'][:12]}); use one encoder."
                )
        pair_set.check_finite()


def _parameter_groups(model: FusionModel, weight_decay: float) -> list[dict[str, Any]]:
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim > 1]
    others = [p for p in trained if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def _start_from(model: FusionModel, init: FusionModel | None, frozen: tuple[str, ...]) -> None:
    """Copy the adapters of ``init`` into ``model`` and stop the gradient of the frozen ones."""
    known = init.modalities if init is not None else ()
    if unknown := [m for m in frozen if m not in known or m not in model.modalities]:
        raise ValueError(f"Cannot freeze {unknown}: the model to start from has the adapters {list(known)}.")
    for modality in known:
        if modality not in model.modalities:
            continue
        assert init is not None
        try:
            model.adapters[modality].load_state_dict(init.adapters[modality].state_dict())
        except RuntimeError as error:
            ours, theirs = model.config, init.config
            names = ("embed_dim", "depth", "expansion", "closed_form_dim", "whiten_dim", "views")
            differ = [n for n in names if getattr(theirs, n) != getattr(ours, n)]
            other = "; ".join(f"{n} {getattr(theirs, n)!r}, not {getattr(ours, n)!r}" for n in differ)
            raise ValueError(
                f"The {modality} adapter to start from has another shape than this model's: {other}. Train with "
                "its settings (a closed form without views: the recipe two-path; none: the recipe paper)."
            ) from error
        if init.config.encoders.get(modality) != model.config.encoders.get(modality):
            raise ValueError(f"The {modality} adapter to start from was trained on another encoder's latents.")
    for modality in frozen:
        model.adapters[modality].requires_grad_(False)


def _fingerprint(sets: list[PairSet], model_config: ModelConfig, config: TrainConfig, init: FusionModel | None) -> str:
    digest = hashlib.sha256(json.dumps([model_config.to_dict(), config.to_dict()], sort_keys=True).encode())
    if init is not None:
        digest.update(init.identity.encode())
    for pair_set in sets:
        for store in pair_set.stores.values():
            digest.update((store.folder / MANIFEST_NAME).read_bytes())
    return digest.hexdigest()


def save_result(result: Result, folder: str | Path, config: TrainConfig, *, card: str, **save: Any) -> None:
    """Write the checkpoint of a finished run: weights, configs, history and card.

    Args:
        result: Of :func:`train`.
        folder: The checkpoint folder.
        config: Saved as ``train_config.json``.
        card: Text of the model card.
        **save: Passed to :meth:`FusionModel.save_pretrained`.
    """
    folder = Path(folder)
    result.model.save_pretrained(folder, card=card, **save)
    write_json(folder / "train_config.json", config.to_dict())
    write_json(folder / "history.json", result.history)
