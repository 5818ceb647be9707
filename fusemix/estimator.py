"""FuseMix as an estimator with scikit-learn's habits: arrays in, a joint model, arrays out.

It follows scikit-learn's protocol without importing it. Underneath are the project's ``Trainer`` and model files: a
saved FuseMix is a checkpoint folder like any other.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from fusemix.data.arrays import ArrayPairs, distinct_items, read_latents, read_pairs
from fusemix.data.extract import extract
from fusemix.data.latent_writer import write_latents
from fusemix.data.pair_set import PairSet
from fusemix.data.pairs import PairTable
from fusemix.encoder_identity import EncoderInfo
from fusemix.encoders import DEFAULT_ENCODERS, PACKAGED, Encoder, load_encoder
from fusemix.encoders.recorded import load_recorded
from fusemix.evaluation.metrics import retrieval
from fusemix.files import read_json
from fusemix.model.adapters import FusionModel
from fusemix.model.card import model_card
from fusemix.model.config import TrainConfig
from fusemix.model.recipes import RECIPES, RecipeName, recipe_config, recipe_of, train_config
from fusemix.number_range import check_varied
from fusemix.training.trainer import Progress, Result, save_result, train

MIN_PAIRS = 50
ENCODED_AT_ONCE = 256  # items
TRAIN_CONFIG = "train_config.json"
_OWN = ("epochs", "batch_size", "learning_rate", "mixup_alpha", "val_fraction")  # parameters that TrainConfig has, too
_ELSEWHERE = (*_OWN, "seed", "closed_form_ridge", "save_every")


class FuseMix:
    """A joint model of two or more modalities, learned from paired latents of frozen encoders.

    Example:
        >>> model = FuseMix(recipe="views").fit({"image": X, "text": Y}, groups=photo_ids)
        >>> model.transform("image", X_new)  # (N, D_image) -> (N, embed_dim), unit length: cosine is the inner product
        >>> model.score({"image": X_test, "text": Y_test})  # mean recall@1 of both directions
        >>> model.save("mine"); model = FuseMix.load("mine")

    Attributes:
        model_: The trained :class:`~fusemix.model.adapters.FusionModel`.
        modalities_: Names of the modalities.
        n_features_in_: Modality -> width of its latents.
        feature_names_in_: Modality -> names of its columns; only of those that were fitted on a DataFrame.
        history_: An entry per validated epoch; recall by direction on the pairs held out.
        best_: The entry of the epoch that was kept.
    """

    model_: FusionModel
    modalities_: tuple[str, ...]
    n_features_in_: dict[str, int]
    feature_names_in_: dict[str, np.ndarray]
    history_: list[dict[str, Any]]
    best_: dict[str, Any]

    def __init__(
        self,
        recipe: RecipeName = "views",
        *,
        epochs: int = 30,
        batch_size: int | None = None,
        embed_dim: int | None = None,
        learning_rate: float = 1e-3,
        mixup_alpha: float | None = 1.0,
        val_fraction: float | None = None,
        encoders: Mapping[str, str] | None = None,
        settings: Mapping[str, Any] | None = None,
        random_state: int = 0,
        verbose: bool | None = None,
    ) -> None:
        """Keep the parameters; they are checked by :meth:`fit`.

        Args:
            recipe: ``views``, ``two-path``, ``paper`` or ``closed-form`` (:mod:`fusemix.model.recipes`).
            epochs: Passes over the pairs.
            batch_size: Pairs read per step; by default a quarter of the pairs, at most 4,096.
            embed_dim: Width of the shared space; by default the recipe's.
            learning_rate: The highest.
            mixup_alpha: Beta concentration of FuseMix; None mixes nothing.
            val_fraction: Share of the groups that chooses the epoch and is not trained on; by default about 200 groups.
            encoders: Modality -> encoder that made its latents, or makes them of paths and texts. A saved model
                searches files only if it names encoders of the project. By default the packaged ones encode, and
                arrays are "given latents".
            settings: Further fields of :class:`~fusemix.model.config.TrainConfig`.
            random_state: Seed of weights, order, mixing and held-out groups.
            verbose: Whether to show a progress bar; by default in a notebook and in a terminal.
        """
        self.recipe = recipe
        self.epochs = epochs
        self.batch_size = batch_size
        self.embed_dim = embed_dim
        self.learning_rate = learning_rate
        self.mixup_alpha = mixup_alpha
        self.val_fraction = val_fraction
        self.encoders = encoders
        self.settings = settings
        self.random_state = random_state
        self.verbose = verbose

    @classmethod
    def _parameters(cls) -> dict[str, Any]:
        """Return parameter -> default."""
        listed = inspect.signature(cls.__init__).parameters.values()
        return {p.name: p.default for p in listed if p.name != "self"}

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters; ``deep`` changes nothing, because none is an estimator."""
        return {name: getattr(self, name) for name in self._parameters()}

    def set_params(self, **params: Any) -> FuseMix:
        """Set parameters; returns self.

        Raises:
            ValueError: If one is not known.
        """
        for name, value in params.items():
            if name not in self._parameters():
                raise ValueError(f"Invalid parameter {name!r} for estimator {self}; it has {list(self._parameters())}.")
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        changed = [name for name, default in self._parameters().items() if getattr(self, name) != default]
        return f"FuseMix({', '.join(f'{name}={getattr(self, name)!r}' for name in changed)})"

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "model_")

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import Tags, TargetTags  # only scikit-learn asks

        return Tags(estimator_type=None, target_tags=TargetTags(required=False))

    def fit(
        self,
        X: Mapping[str, Any] | str | Path,
        y: None = None,
        *,
        groups: Sequence[Any] | np.ndarray | None = None,
        checkpoint: str | Path | None = None,
    ) -> FuseMix:
        """Learn the joint model.

        Args:
            X: Modality -> latents of shape (N, D), finite floats, not normalised: a numpy array, torch tensor or
                DataFrame; or N paths or texts, which are encoded; row i of every modality is one pair. Or the path of a
                table of pairs (docs/tables.md), whose columns are encoded and whose splits and groups count.
            y: Ignored.
            groups: (N,) any values; pairs of one group (captions of one photo) are right answers for one another. By
                default every pair is its own group. A table has its own.
            checkpoint: A folder that keeps the state after every epoch: call again with the same arguments to resume.

        Raises:
            TypeError: If X is neither a mapping nor a path.
            ValueError: If a parameter, a shape or a value is not as above, in one sentence.
        """
        with tempfile.TemporaryDirectory() as scratch:
            if isinstance(X, str | Path):
                if groups is not None:
                    raise ValueError("A table of pairs has its own groups, in its column group; drop groups.")
                pairs, names = self._encode_table(Path(X), Path(checkpoint or scratch)), {}
            else:
                read = self._read(X, groups, {}, least=MIN_PAIRS)
                pairs, names = self._store(read, Path(scratch)), read.names
            self._train(
                pairs, Path(scratch) / "run" if checkpoint is None else Path(checkpoint), checkpoint is not None
            )
        self.feature_names_in_ = names
        return self

    def transform(self, modality: str, X: Any) -> np.ndarray:
        """Embed latents, paths or texts of one modality into the shared space: shape (N, D), float32, unit length.

        Raises:
            NotFittedError: If the model is not fitted.
            ValueError: If the modality is unknown, or shape, names of columns or a value are not as in :meth:`fit`.
        """
        self._check_fitted()
        if modality not in self.modalities_:
            raise ValueError(f"This FuseMix embeds {list(self.modalities_)}, not {modality!r}.")
        encoders = self.model_.config.encoders
        latents, names = read_latents(modality, X, lambda name, items: self._encode(name, items, encoders))
        width, known = self.n_features_in_[modality], self.feature_names_in_.get(modality)
        if latents.shape[1] != width:
            raise ValueError(
                f"X has {latents.shape[1]} features, but FuseMix is expecting {width} features as input of {modality}."
            )
        if names is not None and known is not None and list(names) != list(known):
            raise ValueError("The feature names should match those that were passed during fit, in the same order.")
        return self.model_.embed(modality, latents).numpy()

    def score(
        self,
        X: Mapping[str, Any],
        y: None = None,
        *,
        groups: Sequence[Any] | np.ndarray | None = None,
    ) -> float:
        """Return the mean recall@1 over all directions; :meth:`recall` has the rest."""
        return float(np.mean([found["recall_at_1"] for found in self.recall(X, groups=groups).values()]))

    def recall(
        self,
        X: Mapping[str, Any],
        *,
        groups: Sequence[Any] | np.ndarray | None = None,
    ) -> dict[str, dict[str, Any]]:
        """Retrieve every modality by every other one, among the given pairs.

        Args:
            X: As for :meth:`fit`, without pairs that were trained on. Equal rows of one group are one item.
            groups: As for :meth:`fit`.

        Returns:
            Direction, such as ``image_to_text`` -> n_queries, n_gallery, recall_at_1/5/10 (fractions), median_rank and
            ci95 (name -> [low, high]).

        Raises:
            As :meth:`transform`.
        """
        self._check_fitted()
        read = self._read(X, groups, self.model_.config.encoders)
        sides = {}
        for modality, latents in read.latents.items():
            first, _ = distinct_items(latents, read.groups)
            sides[modality] = torch.from_numpy(self.transform(modality, latents[first])), read.groups[first]
        return {
            f"{a}_to_{b}": retrieval(sides[a][0], sides[b][0], sides[a][1], sides[b][1])
            for a, b in itertools.permutations(sides, 2)
        }

    def save(self, folder: str | Path) -> Path:
        """Write a checkpoint folder, which ``fusemix evaluate``, ``index`` and ``search`` read; returns it.

        Raises:
            NotFittedError: If the model is not fitted.
            OSError: If it cannot be written.
        """
        self._check_fitted()
        folder = Path(folder)
        card = model_card(
            folder.name, self.model_.config, self._config, data=self._data, best=self.best_, seconds=self._seconds
        )
        result = Result(self.model_, self.history_, self.best_, True, self._seconds)
        save_result(result, folder, self._config, card=card)
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> FuseMix:
        """Load a checkpoint folder, of :meth:`save` or of ``fusemix train``.

        Raises:
            FileNotFoundError: If it holds no checkpoint.
            ValueError: If it is damaged.
        """
        folder = Path(folder)
        network = FusionModel.from_pretrained(folder)
        settings = folder / TRAIN_CONFIG
        config = TrainConfig.from_dict(read_json(settings)) if settings.is_file() else TrainConfig()
        history = read_json(folder / "history.json") if (folder / "history.json").is_file() else []
        changed = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
        plain = TrainConfig().to_dict()
        further = {n: v for n, v in changed.items() if v != plain[n] and n not in _ELSEWHERE}
        model = cls(
            recipe_of(network.config),
            embed_dim=network.config.embed_dim,
            encoders={m: str(info["name"]) for m, info in network.config.encoders.items()} or None,
            settings=further or None,
            random_state=config.seed,
            **{name: changed[name] for name in _OWN},
        )
        model._keep(network, config, history, max(history, key=lambda e: e["score"], default={}), [], 0.0)
        return model

    def _check_fitted(self) -> None:
        if not self.__sklearn_is_fitted__():
            raise _not_fitted(
                "This FuseMix instance is not fitted yet. Call 'fit' with appropriate arguments before using this "
                "estimator."
            )

    def _keep(
        self,
        network: FusionModel,
        config: TrainConfig,
        history: list[dict[str, Any]],
        best: dict[str, Any],
        data: list[str],
        seconds: float,
    ) -> None:
        self.model_, self.history_, self.best_ = network, history, best
        self.modalities_ = network.modalities
        self.n_features_in_ = dict(network.config.latent_dims)
        self.feature_names_in_ = {}
        self._config, self._data, self._seconds = config, data, seconds

    def _train(self, pairs: PairSet, folder: Path, resumable: bool) -> None:
        groups = len(np.unique(pairs.groups))
        if self.recipe not in RECIPES:
            raise ValueError(f"recipe must be one of {list(RECIPES)}, got {self.recipe!r}.")
        if isinstance(self.random_state, bool) or not isinstance(self.random_state, int | np.integer):
            raise ValueError(
                f"random_state must be a whole number, got {self.random_state!r}; every fit is reproducible."
            )
        given = {name: getattr(self, name) for name in _OWN if name == "mixup_alpha" or getattr(self, name) is not None}
        changes = {"save_every": 1 if resumable else self.epochs, **given, **(self.settings or {})}
        config = train_config(self.recipe, pairs=len(pairs), groups=groups, seed=int(self.random_state), **changes)
        network = recipe_config(
            self.recipe,
            latent_dims={m: store.dim for m, store in pairs.stores.items()},
            encoders={m: store.encoder for m, store in pairs.stores.items()},
            embed_dim=self.embed_dim,
        )
        with _progress(self.verbose) as report:
            result = train([pairs], network, config, folder, report=report)
        data = [f"{pairs.name}: {len(pairs):,} pairs, {groups:,} groups"]
        self._keep(result.model, config, result.history, result.best, data, result.seconds)

    def _encode_table(self, path: Path, folder: Path) -> PairSet:
        """Encode the columns of a table; extraction goes on where it stopped if the folder is kept."""
        encoders = dict(self.encoders or {})
        table = PairTable.read(path, own=list(encoders))
        wanted = encoders or {m: name for m, name in DEFAULT_ENCODERS.items() if table.has(m)}
        stores = {m: extract(table, m, load_encoder(name), folder / f"latents-{m}") for m, name in wanted.items()}
        return PairSet.join(stores)

    def _store(self, read: ArrayPairs, folder: Path) -> PairSet:
        """Write arrays to stores, which the Trainer reads."""
        if len(np.unique(read.groups)) < 2:
            raise ValueError(
                f"All {len(read.groups):,} pairs are one group, so each is a right answer for every other and none "
                "can be held out; leave groups out if each pair stands alone."
            )
        stores = {}
        for modality, latents in read.latents.items():
            check_varied(latents.__getitem__, np.arange(len(latents)), f"The {modality} latents")
            first, item = distinct_items(latents, read.groups)
            rows = pd.DataFrame({"row": np.arange(len(item)), "item": item, "group": read.groups, "split": ""})
            info = self._identity(modality, latents.shape[1], encoded=modality in read.encoded)
            stores[modality] = write_latents(
                folder / modality, latents[first], modality=modality, name=info["name"], revision=info["revision"],
                fingerprint=info["fingerprint"], index=partial(_given, rows),
            )  # fmt: skip
        return PairSet.join(stores)

    def _read(self, X: Any, groups: Any, recorded: Mapping[str, EncoderInfo], *, least: int = 1) -> ArrayPairs:
        return read_pairs(X, groups, lambda modality, items: self._encode(modality, items, recorded), least=least)

    def _encode(self, modality: str, items: list[str], recorded: Mapping[str, EncoderInfo]) -> np.ndarray:
        """Encode paths or texts: (N, D), each distinct one once."""
        name = recorded.get(modality, {}).get("name") or dict(self.encoders or DEFAULT_ENCODERS).get(modality, modality)
        loaded: dict[str, Encoder] = self.__dict__.setdefault("_loaded", {})
        if name not in loaded:
            loaded[name] = load_recorded(modality, recorded) if modality in recorded else load_encoder(name)
        encoder = loaded[name]
        values, number = np.unique(np.asarray(items, dtype=object), return_inverse=True)
        starts = range(0, len(values), ENCODED_AT_ONCE)
        return np.concatenate([encoder.encode(values[i : i + ENCODED_AT_ONCE].tolist()) for i in starts])[number]

    def _identity(self, modality: str, width: int, *, encoded: bool) -> EncoderInfo:
        """Return the identity of the encoder that made latents: known by its name, or given latents."""
        name = dict(self.encoders or (DEFAULT_ENCODERS if encoded else {})).get(modality)
        if name in PACKAGED or str(name).startswith("hub-"):
            info = load_encoder(str(name)).info()
            if info["dim"] != width:
                raise ValueError(f"{name} makes {modality} latents of {info['dim']} features, X has {width} features.")
            return info
        return {"name": name or f"given {modality} latents", "revision": "", "fingerprint": "given latents"}


def _given(rows: pd.DataFrame, _: int) -> pd.DataFrame:
    return rows


def _not_fitted(message: str) -> Exception:
    """Make scikit-learn's exception if that is in use, else one of the same bases."""
    if "sklearn" in sys.modules:
        from sklearn.exceptions import NotFittedError as Known

        return Known(message)  # type: ignore[no-any-return]
    return NotFittedError(message)


class NotFittedError(ValueError, AttributeError):
    """Raised if a model is used before it is fitted; scikit-learn's own where that is imported."""


@contextmanager
def _progress(shown: bool | None) -> Iterator[Callable[[Progress], None] | None]:
    """Show a progress bar in a notebook or terminal (None), always (True) or never (False)."""
    from rich.console import Console
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    if shown is False or (shown is None and not (console.is_jupyter or console.is_terminal)):
        yield None
        return
    with Bar(console=console) as bar:
        task = bar.add_task("closed form")

        def report(p: Progress) -> None:
            recall = "" if p.recall is None else f", recall@1 {np.mean(list(p.recall.values())):.1%} on held-out pairs"
            bar.update(task, completed=p.step, total=p.total_steps)
            if p.recall is not None:
                bar.update(task, description=f"epoch {p.epoch}, loss {p.loss:.2f}{recall}")

        yield report
