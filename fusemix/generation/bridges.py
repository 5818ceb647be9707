"""Bridges over the modality gap: embeddings of any modality -> the image embeddings a decoder expects.

The embeddings of a caption and of its picture are nearest neighbours and yet lie in two separate
clouds (the modality gap). A decoder trained on pictures expects the pictures' cloud, and Stable
unCLIP also expects CLIP projections of their natural, unnormalised length.
A :class:`Conditioner` holds one :class:`Bridge` a modality and that length.
"""

from __future__ import annotations

import hashlib
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from fusemix import hub_folders
from fusemix.files import read_json, write_atomic, write_json
from fusemix.model.adapters import FusionModel
from fusemix.model.ensemble import member_parts
from fusemix.number_range import check_varied
from fusemix.training.losses import info_nce
from fusemix.training.mixup import fusemix

CONFIG_NAME = "conditioner.json"
WEIGHTS_NAME = "conditioner.safetensors"
FORMAT_VERSION = 1
BRIDGES = ("cosine", "mean_shift", "moments", "covariance", "ridge", "mlp", "fusemix")
ACROSS = ("ridge", "mlp", "fusemix")  # kinds that can change the width; they need pairs
_RESIDUAL_BATCH = 256  # pairs a step; FuseMix halves it
_TEMPERATURE = 0.07
# Whose bridge serves a modality that has none: the modality trained against it, then the next.
_STAND_INS = {"audio": ("text", "image"), "text": ("image", "audio"), "image": ("text", "audio")}
_UNPAIRED = ("mean_shift", "moments", "covariance")  # kinds that need both clouds but no pairs


@dataclass(frozen=True)
class Bridge:
    """A map between two clouds of directions: ``W x + b``, for ``mlp`` and ``fusemix`` plus a learned residual.

    Attributes:
        kind: One of :data:`BRIDGES`; ``cosine`` only normalises the length.
        tensors: ``weight`` (D_out, D_in) and ``bias`` (D_out,); for the last two kinds also ``up``, ``up_bias``,
            ``down`` and ``down_bias``; none for ``cosine``.
    """

    kind: str
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, x: Tensor) -> Tensor:
        """Map embeddings (N, D_in), any length, to directions (N, D_out), unit length."""
        x = F.normalize(x.float(), dim=1)
        if self.kind == "cosine":
            return x
        t = self.tensors
        y = x @ t["weight"].T + t["bias"]
        if "up" in t:
            y = y + F.gelu(x @ t["up"].T + t["up_bias"]) @ t["down"].T + t["down_bias"]
        return F.normalize(y, dim=1)


def fit_bridge(
    kind: str, source: Tensor, target: Tensor, *, ridge: float = 1.0, steps: int = 600, hidden: int = 512, seed: int = 0
) -> Bridge:
    """Fit a bridge from one cloud of embeddings to another.

    Args:
        kind: ``cosine``: no change. ``mean_shift``: the means are made equal. ``moments``:
            mean and standard deviation of every dimension. ``covariance``: the whole covariance, by
            the optimal transport between two Gaussians. ``ridge``: linear regression of the targets.
            ``mlp``: ridge plus a residual with one hidden layer, a small deterministic prior
            trained on the cosine. ``fusemix``: the same, trained as an adapter of the paper, by
            InfoNCE on mixed pairs whose targets are frozen.
        source: Shape (N, D_in), any length.
        target: Shape (M, D_out), any length; for ``ridge``, ``mlp`` and ``fusemix`` row i is the pair of
            ``source[i]``. Both sides are brought to unit length first.
        ridge: Penalty as a multiple of the mean variance of the sources, for the same three.
        steps: Optimizer steps of ``mlp`` and ``fusemix``.
        hidden: Hidden width of their residual.
        seed: Of their random numbers.

    Raises:
        ValueError: If the kind is unknown, the widths or row counts do not suit it, a value is
            not finite, the sources are all equal, or the ridge is not above 0.
    """
    if kind not in BRIDGES:
        raise ValueError(f"No bridge is called {kind!r}; expected one of {list(BRIDGES)}.")
    if source.ndim != 2 or target.ndim != 2 or not len(source) or not len(target):
        raise ValueError(f"Expected two matrices with rows, got {tuple(source.shape)} and {tuple(target.shape)}.")
    if kind in ("cosine", *_UNPAIRED) and source.shape[1] != target.shape[1]:
        raise ValueError(
            f"The bridge {kind!r} needs both sides in one space, got widths {source.shape[1]} and {target.shape[1]}; "
            f"use one of {list(ACROSS)}."
        )
    if kind in ACROSS and len(source) != len(target):
        raise ValueError(f"The bridge {kind!r} needs pairs, got {len(source)} sources and {len(target)} targets.")
    if not (torch.isfinite(source).all() and torch.isfinite(target).all()):
        raise ValueError("The embeddings hold NaN or infinite values; encode these items again.")
    if not 0 < ridge < np.inf:
        raise ValueError(f"ridge must be > 0 and finite, got {ridge}.")
    x, y = F.normalize(source.double(), dim=1), F.normalize(target.double(), dim=1)
    if kind == "cosine":
        return Bridge(kind)
    if kind != "mean_shift":
        check_varied(lambda rows: x[rows].numpy(), np.arange(len(x)), "The embeddings to fit a bridge on")
    weight = _ridge_weight(x, y, ridge) if kind in ACROSS else _moment_weight(kind, x, y)
    tensors = {"weight": weight.float(), "bias": (y.mean(0) - x.mean(0) @ weight.T).float()}
    if kind in ("mlp", "fusemix"):
        tensors |= _fit_residual(kind, tensors, x.float(), y.float(), steps, hidden, seed)
    return Bridge(kind, tensors)


def _moment_weight(kind: str, x: Tensor, y: Tensor) -> Tensor:
    if kind == "mean_shift":
        return torch.eye(x.shape[1], dtype=x.dtype)
    if kind == "moments":
        return torch.diag(y.std(0) / x.std(0).clamp_min(1e-8))
    eye = torch.eye(x.shape[1], dtype=x.dtype)
    a, b = (torch.cov(v.T) + 1e-3 * v.var(0).mean() * eye for v in (x, y))
    root, inverse = _matrix_power(a, 0.5), _matrix_power(a, -0.5)
    weight: Tensor = inverse @ _matrix_power(root @ b @ root, 0.5) @ inverse
    return weight


def _matrix_power(symmetric: Tensor, exponent: float) -> Tensor:
    values, vectors = torch.linalg.eigh(symmetric)
    power: Tensor = (vectors * values.clamp_min(1e-12).pow(exponent)) @ vectors.T
    return power


def _ridge_weight(x: Tensor, y: Tensor, ridge: float) -> Tensor:
    xc, yc = x - x.mean(0), y - y.mean(0)
    penalty = ridge * len(x) * xc.var(0, unbiased=False).mean() * torch.eye(x.shape[1], dtype=x.dtype)
    weight: Tensor = torch.linalg.solve(xc.T @ xc + penalty, xc.T @ yc)
    return weight.T


def _fit_residual(
    kind: str, linear: dict[str, Tensor], x: Tensor, y: Tensor, steps: int, hidden: int, seed: int
) -> dict[str, Tensor]:
    """Train a hidden layer beside the linear map, initialised to zero output."""
    generator = torch.Generator().manual_seed(seed)
    rng = np.random.default_rng(seed)
    up = torch.randn(hidden, x.shape[1], generator=generator)
    params = {
        "up": nn.Parameter(up),
        "up_bias": nn.Parameter(torch.zeros(hidden)),
        "down": nn.Parameter(torch.zeros(y.shape[1], hidden)),
        "down_bias": nn.Parameter(torch.zeros(y.shape[1])),
    }
    optimizer = torch.optim.AdamW(list(params.values()), lr=1e-3, weight_decay=0.1)
    size = min(_RESIDUAL_BATCH, len(x)) // 2 * 2  # FuseMix halves a batch
    with torch.enable_grad():
        for _ in range(steps):
            rows = torch.randint(len(x), (max(2, size),), generator=generator)
            sources, wanted = x[rows], y[rows]
            if kind == "fusemix":
                sources, wanted = fusemix((sources, wanted), alpha=1.0, rng=rng)
            made = Bridge(kind, {**linear, **params})(sources)
            loss = (1 - F.cosine_similarity(made, wanted)).mean()
            if kind == "fusemix":
                loss = loss + info_nce(made, F.normalize(wanted, dim=1), temperature=_TEMPERATURE)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return {name: value.detach() for name, value in params.items()}


def space_identity(model: FusionModel) -> str:
    """Return the hex SHA-256 of the image adapter, which a decoder in the shared space depends on.

    The other adapters may be trained again into the same space; see :meth:`Conditioner.of`.

    Raises:
        ValueError: If the model has no image adapter.
    """
    if "image" not in model.modalities:
        raise ValueError(f"The model has adapters for {list(model.modalities)}; a decoder needs one for image.")
    return _identity(model.adapters["image"])


def _identity(adapter: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(adapter.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


class Conditioner:
    """One bridge a modality, into one target space; saved beside a decoder or on its own.

    Example:
        >>> bridge = fit_bridge("ridge", audio_embeddings, clip_image_embeds)
        >>> norm = clip_image_embeds.norm(dim=1).mean().item()  # CLIP projections are not unit length
        >>> conditioner = Conditioner({"audio": bridge}, embed_dim=512, image_embeds_dim=768, norm=norm)
        >>> image_embeds = conditioner("audio", embedding)  # (N, 512) -> (N, 768)
    """

    def __init__(
        self,
        bridges: dict[str, Bridge],
        *,
        embed_dim: int,
        image_embeds_dim: int,
        norm: float = 1.0,
        space: str | None = None,
        notes: dict[str, Any] | None = None,
    ) -> None:
        """Combine bridges and target length.

        Args:
            bridges: Modality -> bridge; a modality without one is not mapped (``cosine``), or, between spaces of
                different widths, takes that of :meth:`bridge_of`.
            embed_dim: Width D_in of the input embeddings.
            image_embeds_dim: Width D_out of the output image embeddings.
            norm: Mean L2 norm of the decoder's image embeddings: 1 for the shared space, the
                mean over real projections for CLIP.
            space: :func:`space_identity` of the model that makes the embeddings; other models are then
                refused. None accepts any model.
            notes: Further values to save, such as measurements of each bridge.

        Raises:
            ValueError: If the widths or the norm are invalid.
        """
        if not 0 < norm < np.inf:
            raise ValueError(f"norm must be > 0 and finite, got {norm}.")
        if embed_dim != image_embeds_dim and any(b.kind in ("cosine", *_UNPAIRED) for b in bridges.values()):
            raise ValueError(f"Only the bridges {list(ACROSS)} lead from width {embed_dim} to {image_embeds_dim}.")
        self.bridges = dict(bridges)
        self.embed_dim, self.image_embeds_dim, self.norm = embed_dim, image_embeds_dim, norm
        self.space = space
        self.notes = notes or {}
        self.part: slice | None = None  # columns of the embeddings to read; all by default

    def of(self, model: FusionModel) -> Conditioner:
        """Return this conditioner for a model's embeddings.

        A decoder that was trained in the space of one model also serves an ensemble (:mod:`fusemix.model.ensemble`)
        with that model as a member: it then reads that member's part of the embeddings.

        Raises:
            ValueError: If it was made for another model's space.
        """
        found = copy(self)
        if self.space is not None and model.config.members and "image" in model.modalities:
            members: Any = model.adapters["image"].members
            for member, part in zip(members, member_parts(model.config), strict=True):
                if _identity(member) == self.space:
                    found.part = part
                    return found
        if self.space is not None and self.space != space_identity(model):
            raise ValueError(
                "This decoder was trained on the embeddings of another checkpoint; train it again for this one with "
                "scripts/release/train_unclip.py, or load the checkpoint it came with."
            )
        if self.embed_dim != model.config.embed_dim:
            raise ValueError(
                f"The model makes embeddings of width {model.config.embed_dim}, but this decoder takes width "
                f"{self.embed_dim} (image_embeds of width {self.image_embeds_dim}); choose a decoder for this model, "
                "or fit a conditioner between the two."
            )
        return found

    def __call__(self, modality: str, embeddings: Tensor) -> Tensor:
        """Map embeddings to image embeddings (N, D_out), float32, each of length ``norm``.

        Args:
            modality: Modality of the embeddings.
            embeddings: Shape (N, D_in), any length; for an ensemble its whole embedding (:meth:`of`).

        Raises:
            ValueError: If the width is not ``embed_dim``, a value is not finite, or an embedding is zero.
        """
        if self.part is not None and embeddings.ndim == 2 and embeddings.shape[1] >= self.part.stop:
            embeddings = embeddings[:, self.part]
        if embeddings.ndim != 2 or embeddings.shape[1] != self.embed_dim:
            raise ValueError(f"This conditioner takes shape (N, {self.embed_dim}), got {tuple(embeddings.shape)}.")
        if not torch.isfinite(embeddings).all() or (embeddings.norm(dim=1) == 0).any():
            raise ValueError("An embedding holds NaN or infinite values or only zeros; encode the item again.")
        used = self.bridge_of(modality)
        return (self.bridges[used] if used else Bridge("cosine"))(embeddings) * self.norm

    def bridge_of(self, modality: str) -> str | None:
        """Return the modality whose bridge maps this one: its own, or the shared space's nearest that has one.

        Returns:
            None if the embeddings are not mapped, because they are in the decoder's space already.

        Raises:
            ValueError: If there is no bridge at all between two spaces.
        """
        if modality in self.bridges:
            return modality
        if self.embed_dim == self.image_embeds_dim and "image" not in self.bridges:
            return None  # pictures need no map: the decoder's space is the shared one
        others: list[str] = [*_STAND_INS.get(modality, ()), *sorted(self.bridges)]
        for other in others:
            if other in self.bridges:
                return other
        raise ValueError(f"This conditioner has no bridge for {modality!r}; it has none.")

    def save(self, folder: str | Path) -> None:
        """Write ``conditioner.json`` and ``conditioner.safetensors`` into an existing folder."""
        folder = Path(folder)
        config = {
            "format": FORMAT_VERSION,
            "embed_dim": self.embed_dim,
            "image_embeds_dim": self.image_embeds_dim,
            "norm": self.norm,
            "space": self.space,
            "bridges": {modality: bridge.kind for modality, bridge in self.bridges.items()},
            "notes": self.notes,
        }
        state = {
            f"{modality}.{name}": value.contiguous()
            for modality, bridge in self.bridges.items()
            for name, value in bridge.tensors.items()
        }
        write_atomic(folder / WEIGHTS_NAME, lambda temporary: save_file(state, temporary))
        write_json(folder / CONFIG_NAME, config)

    @classmethod
    def from_pretrained(cls, source: str | Path) -> Conditioner:
        """Load a conditioner from a folder or the Hub; raises as :meth:`load`, FileNotFoundError if it is neither."""
        files = [CONFIG_NAME, WEIGHTS_NAME]
        folder = hub_folders.resolve(source, "conditioner", lambda name: snapshot_download(name, allow_patterns=files))
        return cls.load(folder)

    @classmethod
    def load(cls, folder: str | Path) -> Conditioner:
        """Load what :meth:`save` wrote.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file is damaged or of another format.
        """
        folder = Path(folder)
        for name in (CONFIG_NAME, WEIGHTS_NAME):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder} holds no {name}; expected a folder written by Conditioner.save.")
        config = read_json(folder / CONFIG_NAME)
        if not isinstance(config, dict) or config.get("format") != FORMAT_VERSION:
            raise ValueError(f"{folder / CONFIG_NAME} is not a conditioner of format {FORMAT_VERSION}.")
        try:
            state = load_file(folder / WEIGHTS_NAME)
        except SafetensorError as error:
            raise ValueError(f"{folder / WEIGHTS_NAME} is damaged ({error}); fit it again.") from error
        bridges = {
            modality: Bridge(
                kind,
                {
                    name.removeprefix(f"{modality}."): value
                    for name, value in state.items()
                    if name.startswith(f"{modality}.")
                },
            )
            for modality, kind in config["bridges"].items()
        }
        keys = ("embed_dim", "image_embeds_dim", "norm", "space", "notes")
        return cls(bridges, **{key: config[key] for key in keys})
