"""A visitor's own adapters: the library's trainer on two files of latents, in a thread that can be stopped."""

from __future__ import annotations

import logging
import queue
import secrets
import shutil
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from demo.sessions import GONE, take
from fusemix.data.import_latents import import_latents, open_latents
from fusemix.media import MediaError, one_line
from fusemix.model.config import ModelConfig, TrainConfig
from fusemix.model.recipes import RecipeName, recipe_config, train_config
from fusemix.threads import lower_priority, one_thread

if TYPE_CHECKING:
    from fusemix.data.pair_set import PairSet
    from fusemix.model.adapters import FusionModel
    from fusemix.training.trainer import Progress, Result

logger = logging.getLogger(__name__)

MIN_ROWS, MAX_ROWS = 50, 20_000
MAX_DIM = 4096
MAX_SECONDS = 300.0  # of training; the running step or decomposition of the closed form is finished first
MAX_EPOCHS = 100
FORECAST_PAIRS = 2000  # most pairs that the forecast reads
BUSY = "Your training is already running; please wait or press Cancel."
_CHECKPOINT = "fusemix-checkpoint"


@dataclass(frozen=True)
class Stage:
    """State of the page at one moment.

    Attributes:
        sentence: Current activity.
        share: Fraction of the training done, 0 to 1.
        history: One entry per evaluated epoch: epoch, and direction (``image_to_text``) -> recall@1.
        done: Whether this is the last stage.
        forecast: What to expect of these pairs and of more; of every stage once it is known.
    """

    sentence: str
    share: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    done: bool = False
    forecast: str = ""


class Training:
    """One visitor's training and its result."""

    def __init__(self, folder: Path) -> None:
        """Start with nothing.

        Args:
            folder: New folder for this visitor alone; holds everything on disk.
        """
        folder.mkdir(parents=True)
        self.folder = folder
        self.used = time.monotonic()
        self.busy = False
        self.model: FusionModel | None = None  # of the last training
        self._files: dict[str, Path] = {}
        self._stop = threading.Event()
        self._deleted = False
        self._lock = threading.Lock()  # of the folder

    def arrive(self, files: Mapping[str, Path], *, link: bool = True) -> None:
        """Take in the latents to train on next.

        Args:
            files: Modality -> file of latents; row i of both is one pair.
            link: Whether the visitor uploaded them; they are then linked here until they are read.

        Raises:
            MediaError: (a ValueError) If they are not two modalities with plain names.
        """
        for name in files:
            if not name.isidentifier() or len(name) > 30 or "__" in name:
                raise MediaError(f"Name a modality with letters, digits and _, such as image, not {one_line(name)!r}.")
        if len(files) != 2:
            raise MediaError("Give the two kinds of latents different names, such as image and text.")
        with self._lock:
            if self._deleted:
                raise MediaError(GONE)
            if self.busy:
                raise MediaError(BUSY)
            self._stop = threading.Event()
            self._files, self.model = {}, None
            for name, path in files.items():
                if link and path.is_file():
                    path = take(path, self.folder / "arrived" / secrets.token_hex(8))
                self._files[name] = path

    def stop(self) -> None:
        """End the training at its next step, or inside the closed form; keep the best weights so far."""
        self._stop.set()

    def delete(self) -> None:
        """Remove everything, from disk too."""
        self.stop()
        with self._lock:
            self._deleted = True
            shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def download(self) -> Path | None:
        """The checkpoint as a .zip, once there is one."""
        path = self.folder / f"{_CHECKPOINT}.zip"
        return path if path.is_file() else None

    def run(self, epochs: int, *, closed_form: bool = True) -> Iterator[Stage]:
        """Train on the files that arrived, yielding a stage per step; do nothing if none arrived.

        Args:
            epochs: Passes over the pairs, 1 to 100.
            closed_form: Whether to add a closed form to the trained blocks; without it, the adapters are the paper's.

        Raises:
            MediaError: (a ValueError) If the latents cannot be used, in one sentence.
        """
        if self.busy:
            raise MediaError(BUSY)
        if not self._files:
            return
        if not 1 <= epochs <= MAX_EPOCHS:
            raise MediaError(f"Train for 1 to {MAX_EPOCHS} epochs, not {epochs}.")
        self.busy = True
        work = self.folder / "work"
        try:
            yield Stage("Reading the latents …")
            with self._lock:
                if self._deleted:
                    raise MediaError(GONE)
                shutil.rmtree(work, ignore_errors=True)
                (self.folder / f"{_CHECKPOINT}.zip").unlink(missing_ok=True)
            pairs = self._pairs(work)
            yield Stage("Forecasting from the closed form …")
            expected = forecast_of(pairs)
            for stage in self._train(pairs, configs(pairs, epochs, closed_form=closed_form), work):
                yield replace(stage, forecast=expected)
        finally:
            self.stop()
            self.busy = False
            self.used = time.monotonic()
            shutil.rmtree(work, ignore_errors=True)

    def _pairs(self, work: Path) -> PairSet:
        """Read the two files and join them as stores."""
        from fusemix.data.pair_set import PairSet

        files, self._files = self._files, {}
        try:
            _check(files)
            stores = {
                name: import_latents(path, work / name, modality=name, name=f"given: {one_line(path.name)}")
                for name, path in files.items()
            }
        except (ValueError, OSError) as error:
            raise MediaError(_sentence(error, files)) from error
        finally:
            shutil.rmtree(self.folder / "arrived", ignore_errors=True)
        return PairSet.join(stores)

    def _train(self, pairs: PairSet, settings: tuple[ModelConfig, TrainConfig], work: Path) -> Iterator[Stage]:
        model_config, config = settings
        run = _Run(pairs, model_config, config, work / "run", self._stop)
        thread = threading.Thread(target=run.work, daemon=True)
        thread.start()
        try:
            yield Stage("Fitting the closed form …" if model_config.closed_form_dim else "Training …")
            while (news := run.news.get()) is not None:
                yield run.stage(news)
        finally:
            self._stop.set()
            thread.join()
        if isinstance(run.failure, ValueError):
            raise MediaError(str(run.failure)) from run.failure
        if run.failure is not None:
            raise run.failure
        if run.result is None or not run.history:
            yield Stage("Stopped before the first epoch ended, so there is nothing to keep.", done=True)
            return
        self._save(run.result, pairs, model_config, config, work)
        yield Stage(_ending(run.result, pairs, config), 1.0, list(run.history), done=True)

    def _save(self, result: Result, pairs: PairSet, model_config: ModelConfig, config: TrainConfig, work: Path) -> None:
        """Write the checkpoint folder into the archive."""
        from fusemix.model.card import model_card
        from fusemix.training.trainer import save_result

        with self._lock:
            if self._deleted:
                return
            card = model_card(
                _CHECKPOINT,
                model_config,
                config,
                data=[f"{pairs.name}: {len(pairs):,} pairs, uploaded by a visitor of the FuseMix app"],
                best=result.best,
                seconds=result.seconds,
            )
            save_result(result, work / _CHECKPOINT, config, card=card)
            self.model = result.model
            with zipfile.ZipFile(self.folder / f"{_CHECKPOINT}.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as out:
                for path in sorted((work / _CHECKPOINT).iterdir()):
                    out.write(path, f"{_CHECKPOINT}/{path.name}")


@dataclass
class _Run:
    """One call of the trainer, in a thread of its own: reports into a queue, None at the end."""

    pairs: PairSet
    model_config: ModelConfig
    config: TrainConfig
    folder: Path
    stop: threading.Event
    news: queue.Queue[Progress | None] = field(default_factory=queue.Queue)
    history: list[dict[str, float]] = field(default_factory=list)
    result: Result | None = None
    failure: BaseException | None = None

    def work(self) -> None:
        """Train; keep the result or the failure for the page's thread."""
        from fusemix.stopping import Stopped
        from fusemix.training.trainer import train

        until = time.monotonic() + MAX_SECONDS
        lower_priority()  # to searches
        try:
            with one_thread():
                self.result = train(
                    [self.pairs],
                    self.model_config,
                    self.config,
                    self.folder,
                    report=self.news.put,
                    should_stop=lambda: self.stop.is_set() or time.monotonic() > until,
                    should_abandon=self.stop.is_set,
                )
        except Stopped:
            pass  # without a result; the page's thread reports that
        except BaseException as error:  # handled in the page's thread
            self.failure = error
        finally:
            self.news.put(None)

    def stage(self, news: Progress) -> Stage:
        """Turn a progress report into a line of text and the curve so far."""
        if news.recall is not None:
            directions = {key.rpartition("/")[2]: value for key, value in news.recall.items()}
            self.history.append({"epoch": news.epoch, **directions})
        epoch = min(-(-news.step * self.config.epochs // news.total_steps), self.config.epochs)
        sentence = (
            f"Epoch {epoch} of {self.config.epochs}, step {news.step:,} of {news.total_steps:,}, loss "
            f"{news.loss:.3f}, {news.pairs_per_s:,.0f} pairs per second"
        )
        return Stage(sentence, news.step / news.total_steps, list(self.history))


def forecast_of(pairs: PairSet) -> str:
    """Say what to expect, from the closed form on at most FORECAST_PAIRS of the pairs: seconds."""
    from fusemix.evaluation.diagnose import reduced, sample_pairs
    from fusemix.evaluation.forecast import FACTORS, forecast

    chosen = sample_pairs(pairs.groups, FORECAST_PAIRS)
    with one_thread():
        given = [pairs.latents(modality, items[chosen]).numpy() for modality, items in pairs.items.items()]
        sides = [reduced(latents - latents.mean(axis=0)) for latents in given]
        made = forecast(sides[0], sides[1], factors=[factor * len(pairs) / len(chosen) for factor in FACTORS])
    return f"{made.verdict()} {made.sentence()}"


def configs(pairs: PairSet, epochs: int, *, closed_form: bool) -> tuple[ModelConfig, TrainConfig]:
    """Return ``--recipe two-path`` or ``paper`` of fusemix train, with batches and validation for few pairs."""
    dims = {name: store.dim for name, store in pairs.stores.items()}
    encoders = {name: store.encoder for name, store in pairs.stores.items()}
    recipe: RecipeName = "two-path" if closed_form else "paper"
    model = recipe_config(recipe, latent_dims=dims, encoders=encoders)
    return model, train_config(recipe, pairs=len(pairs), groups=len(pairs), epochs=epochs, save_every=epochs)


def _check(files: Mapping[str, Path]) -> None:
    """Refuse files that are too large or do not belong together, before they are read."""
    sizes = []
    for path in files.values():
        _check_packed(path)
        opened = open_latents(path)
        sizes.append(opened.rows)
        if opened.dim > MAX_DIM or opened.rows > MAX_ROWS:
            raise MediaError(
                f"{path} holds {opened.rows:,} latents of {opened.dim:,} dimensions; the limit here is {MAX_ROWS:,} of "
                f"{MAX_DIM:,}. For more, run fusemix train on your own machine."
            )
    if len(set(sizes)) > 1:
        raise MediaError(f"The files hold {sizes[0]:,} and {sizes[1]:,} latents; they must hold one each per pair.")
    if sizes[0] < MIN_ROWS:
        raise MediaError(f"The files hold {sizes[0]} pairs; at least {MIN_ROWS} are needed.")


def _check_packed(path: Path) -> None:
    """Refuse a parquet file whose directory tells of more values than are taken: a few KB unpack to gigabytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.suffix.lower() != ".parquet":
        return
    try:
        directory = pq.ParquetFile(path).metadata
    except (pa.ArrowException, OSError):
        return  # open_latents says what is wrong with it
    groups = [directory.row_group(number) for number in range(directory.num_row_groups)]
    values = sum(group.column(number).num_values for group in groups for number in range(group.num_columns))
    if values > MAX_ROWS * MAX_DIM:
        raise MediaError(f"{path} holds {values:,} values; the limit here is {MAX_ROWS:,} latents of {MAX_DIM:,}.")


def _sentence(error: Exception, files: Mapping[str, Path]) -> str:
    """Return the error with the visitor's file names, and without advice about the library."""
    sentence = str(error).replace("; choose one by the argument key.", "; send a file with one.")
    for path in files.values():
        sentence = sentence.replace(str(path), one_line(path.name))
    return sentence


def _ending(result: Result, pairs: PairSet, config: TrainConfig) -> str:
    best, last = result.best, result.history[-1]["epoch"]
    stopped = "" if result.finished else f"Stopped after epoch {last} of {config.epochs}. "
    recall = " and ".join(
        f"{value:.1%} {key.rpartition('/')[2].replace('_', ' ')}" for key, value in best.items() if "/" in key
    )
    _, held_out = pairs.divide(config)
    count = min(len(held_out), config.max_val_groups)
    return (
        f"{stopped}Trained in {result.seconds:.0f} s. Recall@1 among {count:,} held-out pairs: {recall}, at epoch "
        f"{best['epoch']} (chance: {1 / count:.1%})."
    )
