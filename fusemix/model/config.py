"""Frozen dataclasses that fix a model and a training run; to and from JSON."""

from __future__ import annotations

import dataclasses
import math
import numbers
from dataclasses import dataclass, field
from typing import Any

from fusemix.encoder_identity import EncoderInfo

LARGEST: dict[type, float] = {int: 2**63 - 1, float: 3.4028234663852886e38}
VIEWS = ("whitened", "components", "root")  # views of a latent that a trained path beside a closed form can read


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything needed to rebuild a FusionModel; saved as ``config.json``.

    Attributes:
        latent_dims: Modality -> width D_x of its latents.
        encoders: Modality -> identity of the frozen encoder (name, revision, fingerprint, ...).
        embed_dim: Width D of the shared space.
        depth: Number of inverted-bottleneck blocks per adapter (the paper's code: 4).
        expansion: Hidden width of a block as a multiple of the width it reads, D_x in the paper (its code: 4).
        dropout: Dropout inside the blocks while training (the paper's code: 0.6).
        closed_form_dim: Dimensions of the shared space, out of embed_dim, that a linear map found in
            closed form fills (:mod:`fusemix.model.closed_form`); 0 is the paper's adapter alone, embed_dim the closed
            form alone, which has nothing to train.
        whiten_dim: Principal components of the latents that the trained blocks read; only beside a closed form.
        views: Some of :data:`VIEWS`: a trained path for each, beside the closed form, that reads the latents so
            (:class:`fusemix.model.adapters.MultiPathAdapter`). Empty beside a closed form means ``("whitened",)``.
        members: Configurations (:meth:`to_dict`) of models that stand side by side in this one
            (:mod:`fusemix.model.ensemble`); empty for a model that was trained.
    """

    latent_dims: dict[str, int]
    encoders: dict[str, EncoderInfo] = field(default_factory=dict)
    embed_dim: int = 512
    depth: int = 1
    expansion: float = 4.0
    dropout: float = 0.6
    closed_form_dim: int = 0
    whiten_dim: int = 512
    views: tuple[str, ...] = ()
    members: tuple[dict[str, Any], ...] = ()

    def __post_init__(self) -> None:
        _make_plain(self)
        if len(self.latent_dims) < 2:
            raise ValueError(f"A fusion model needs at least 2 modalities, got {sorted(self.latent_dims)}.")
        for modality, dim in self.latent_dims.items():
            check_modality(modality)
            if dim < 1:
                raise ValueError(f"latent_dims[{modality!r}] must be >= 1, got {dim}.")
        if self.embed_dim < 1 or self.depth < 0 or self.expansion <= 0:
            raise ValueError(
                "embed_dim must be >= 1, depth >= 0 and expansion > 0, got "
                f"{self.embed_dim}, {self.depth} and {self.expansion}."
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}.")
        narrowest = min(self.embed_dim, *self.latent_dims.values())
        if not 0 <= self.closed_form_dim <= narrowest:
            raise ValueError(
                f"closed_form_dim must be between 0 and {narrowest} (no wider than the narrowest latents and "
                f"embed_dim {self.embed_dim}), got {self.closed_form_dim}."
            )
        if self.whiten_dim < 1:
            raise ValueError(f"whiten_dim must be >= 1, got {self.whiten_dim}.")
        object.__setattr__(self, "views", tuple(self.views))  # JSON gives lists
        members = tuple(ModelConfig.from_dict(member).to_dict() for member in self.members)  # whatever wrote them
        object.__setattr__(self, "members", members)
        self._check_views()

    def _check_views(self) -> None:
        """Check the views beside the closed form, and replace empty views by the default."""
        if unknown := [view for view in self.views if view not in VIEWS]:
            raise ValueError(f"views must be among {list(VIEWS)}, got {unknown[0]!r}.")
        if self.views and not self.closed_form_dim:
            raise ValueError("views stand beside a closed form; give a closed_form_dim above 0.")
        trained = self.embed_dim - self.closed_form_dim
        if self.closed_form_dim and trained and not self.views:
            object.__setattr__(self, "views", VIEWS[:1])
        if self.views and (not trained or trained % len(self.views)):
            raise ValueError(
                f"{len(self.views)} views share embed_dim - closed_form_dim evenly; {self.embed_dim} - "
                f"{self.closed_form_dim} cannot be so divided."
            )

    @property
    def trained_parts(self) -> list[slice]:
        """Columns of each trained path in the trained output; the loss compares the paths one by one."""
        if self.closed_form_dim == self.embed_dim:
            return []
        paths = max(1, len(self.views))
        width = (self.embed_dim - self.closed_form_dim) // paths
        return [slice(i * width, (i + 1) * width) for i in range(paths)]

    @property
    def n_paths(self) -> int:
        """Number of paths: the cosine of two embeddings is the mean of the paths' cosines."""
        return len(self.trained_parts) + (self.closed_form_dim > 0)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON-ready values."""
        values = dataclasses.asdict(self)
        return values | {name: list(values[name]) for name in ("members", "views")}  # as JSON gives them back

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """Rebuild from :meth:`to_dict`; an unknown key is an error, not ignored.

        Checkpoints from before views say ``whiten: false`` where their one trained path reads plain components.
        """
        values = dict(values)
        if values.pop("whiten", True) is False:
            values["views"] = ("components",)
        return cls(**_checked(cls, values))


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that changes a training run; saved as ``train_config.json`` beside the weights.

    The defaults are the paper's recipe (layer6ai-labs/fusemix, settings of
    ``mlp_contrastive_fusion_pretrain``) scaled to a small machine: batch 40,960 -> 4,096
    pairs, 500 -> 30 epochs.
    """

    batch_size: int = 4096  # pairs read per step; FuseMix halves it
    epochs: int = 30  # passes over the largest set of pairs
    learning_rate: float = 1e-3
    min_learning_rate: float = 1e-6  # end of the cosine, and start of the warm-up
    warmup_steps: int = 100  # optimizer steps; at most a fifth of the run
    weight_decay: float = 0.1  # not on 1-d parameters
    temperature: float = 0.07  # initial
    min_temperature: float = 0.001
    max_temperature: float = 0.5
    mixup_alpha: float | None = 1.0  # None trains without mixup
    mixup_per_row: bool = False  # one lambda per row instead of one per batch
    multi_positive: bool = False  # pairs of one group (captions of one picture) are right answers for one another
    dropout_rows: int = 1  # rows that drop the same hidden units, which are then not computed; 1: each its own
    accumulate: int = 1  # pieces a batch is embedded in: less memory, the same negatives
    closed_form_ridge: float = 2.0  # of standardised covariances; only for adapters with a closed form
    val_fraction: float = 0.05  # of the groups, if the latents have no validation split
    max_val_groups: int = 1000
    eval_every: int = 1  # epochs
    save_every: int = 1  # epochs
    mixed_precision: str = "auto"  # "auto", "no", "bf16", "fp16"
    frozen: tuple[str, ...] = ()  # modalities whose adapters keep their initial weights
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "frozen", tuple(self.frozen))  # a list after JSON
        _make_plain(self)
        if self.batch_size < 2:
            raise ValueError(f"batch_size must be >= 2, got {self.batch_size}.")
        if self.mixup_alpha is not None and not self.mixup_alpha > 0:
            raise ValueError(f"mixup_alpha must be > 0 (or None for no mixup), got {self.mixup_alpha}.")
        if self.mixup_alpha is not None and self.batch_size % 2:
            raise ValueError(f"batch_size must be even with mixup, got {self.batch_size}.")
        for name in ("accumulate", "dropout_rows", "epochs", "eval_every", "save_every", "max_val_groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}.")
        for name in ("seed", "warmup_steps", "weight_decay", "min_learning_rate", "closed_form_ridge"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}.")
        if not self.learning_rate >= self.min_learning_rate:
            raise ValueError(
                f"learning_rate must be at least min_learning_rate, {self.min_learning_rate}, got {self.learning_rate}."
            )
        if not 0 < self.min_temperature <= self.temperature <= self.max_temperature:
            raise ValueError(
                f"temperature must lie in [{self.min_temperature}, {self.max_temperature}], got {self.temperature}."
            )
        if not 0 < self.val_fraction < 1:
            raise ValueError(f"val_fraction must be in (0, 1), got {self.val_fraction}.")
        if self.mixed_precision not in ("auto", "no", "bf16", "fp16"):
            raise ValueError(f"mixed_precision must be auto, no, bf16 or fp16, got {self.mixed_precision!r}.")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """Rebuild from :meth:`to_dict`; an unknown key is an error, not ignored."""
        return cls(**_checked(cls, values))


def check_modality(name: str) -> None:
    """Refuse a name that torch's modules do not take: an empty one, with a dot, or that of one of their methods.

    Raises:
        ValueError: If it is such a name.
    """
    from torch import nn  # here, so that commands show their help without torch

    if not name or "." in name or hasattr(nn.ModuleDict, name):
        raise ValueError(
            f"A modality cannot be called {name!r}: its name is not empty, holds no dot, and is no method of torch's "
            "modules; make its latents again under another name."
        )


def _make_plain(config: ModelConfig | TrainConfig) -> None:
    """Replace numpy's numbers by Python's, which JSON can hold, and refuse what is no finite number of its kind."""
    for field_ in dataclasses.fields(config):
        kinds, value = str(field_.type), getattr(config, field_.name)
        if kinds == "dict[str, int]":
            value = {name: _plain(f"{field_.name}[{name!r}]", dim, int) for name, dim in dict(value).items()}
        elif value is not None or "None" not in kinds:
            kind = {"int": int, "float": float, "bool": bool}.get(kinds.removesuffix(" | None"))
            value = value if kind is None else _plain(field_.name, value, kind)
        object.__setattr__(config, field_.name, value)


def _plain(name: str, value: Any, kind: type) -> Any:
    value = value.item() if hasattr(value, "item") else value  # numpy's; identities hash what was given: 4 stays 4
    if kind is bool:
        if isinstance(value, bool):
            return value
        raise ValueError(f"{name} must be true or false, got {value!r}.")
    known = isinstance(value, numbers.Integral if kind is int else numbers.Real) and not isinstance(value, bool)
    if not known or not math.isfinite(value) or abs(value) > LARGEST[kind]:
        expected = "a whole number below 2**63" if kind is int else "a finite number of float32's range"
        raise ValueError(f"{name} must be {expected}, got {value!r}.")
    return value


def _checked(cls: type, values: dict[str, Any]) -> dict[str, Any]:
    known = {f.name for f in dataclasses.fields(cls)}
    if unknown := set(values) - known:
        raise ValueError(
            f"{cls.__name__} does not know {sorted(unknown)}; expected keys among {sorted(known)}. "
            "The file may come from a newer version of FuseMix."
        )
    return values
