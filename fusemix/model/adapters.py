"""Fusion adapters and the FusionModel that holds one per modality; save, load, share."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download, split_torch_state_dict_into_shards
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from fusemix.encoder_identity import without_paths
from fusemix.files import read_json, write_atomic, write_json
from fusemix.hub_folders import resolve
from fusemix.model.block import Block, Linear
from fusemix.model.config import ModelConfig
from fusemix.number_range import check_finite

logger = logging.getLogger(__name__)

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
_WEIGHTS_PATTERN = "model{suffix}.safetensors"
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")


class Adapter(nn.Sequential):
    """``depth`` blocks, a LayerNorm and a projection: latents (B, D_x) -> (B, D), not normalised."""

    def __init__(self, latent_dim: int, embed_dim: int, *, depth: int, expansion: float, dropout: float) -> None:
        blocks = [Block(latent_dim, expansion, dropout) for _ in range(depth)]
        super().__init__(*blocks, nn.LayerNorm(latent_dim), Linear(latent_dim, embed_dim))


class MultiPathAdapter(nn.Module):
    """A linear map found in closed form and trained adapters, side by side.

    Each path's output has unit length, so that the cosine of two embeddings is the mean of the
    paths' cosines: an ensemble in one space. The closed form is fitted before training
    (:mod:`fusemix.model.closed_form`) and stays as it is. Each trained path reads a view of the latents, and the
    loss sees each of them alone (:meth:`trained`):

    - ``whitened``: principal components of the standardised latents, whitened;
    - ``components``: principal components of the latents, at their own scale;
    - ``root``: the latents, each value replaced by its signed square root, which shrinks the few large ones.

    Paths with different views make different errors, at the cost of one training's passes over the pairs.
    A departure from the paper, whose adapter is one trained path on the latents as they are.
    """

    mean: Tensor
    linear: Tensor
    whiten: Tensor
    rotate: Tensor
    floor: Tensor

    def __init__(self, latent_dim: int, config: ModelConfig) -> None:
        super().__init__()
        width = min(config.whiten_dim, latent_dim)
        self.parts, self.views = config.trained_parts, config.views
        self.register_buffer("mean", torch.zeros(latent_dim))
        self.register_buffer("linear", torch.zeros(latent_dim, config.closed_form_dim))
        if "whitened" in config.views:
            self.register_buffer("whiten", torch.zeros(latent_dim, width))
        if "components" in config.views:
            self.register_buffer("rotate", torch.zeros(latent_dim, width))
        if "root" in config.views:
            self.register_buffer("floor", torch.ones(()))
        self.paths = nn.ModuleList(
            Adapter(
                latent_dim if view == "root" else width,
                part.stop - part.start,
                depth=config.depth,
                expansion=config.expansion,
                dropout=config.dropout,
            )
            for view, part in zip(self.views, self.parts, strict=True)
        )
        self.register_load_state_dict_pre_hook(_rename)  # type: ignore[no-untyped-call]  # torch gives it no types

    def trained(self, x: Tensor) -> Tensor:  # (B, D_x) -> (B, D - closed_form_dim)
        """Apply only the trained paths: their outputs side by side, not normalised."""
        if not self.views:  # a closed form alone
            return x.new_empty(len(x), 0)
        return torch.cat([path(self.view(name, x)) for name, path in zip(self.views, self.paths, strict=True)], dim=1)

    def view(self, name: str, x: Tensor) -> Tensor:
        """Compute the view of latents (B, D_x) that a trained path reads: (B, whiten_dim), for ``root`` (B, D_x)."""
        if name == "root":
            return x * (x.abs() + self.floor.clamp_min(1e-12)).rsqrt()  # has a slope at 0, which a plain root has not
        return (x - self.mean) @ (self.whiten if name == "whitened" else self.rotate)

    def forward(self, x: Tensor) -> Tensor:  # (B, D_x) -> (B, D)
        """Apply all paths, each of unit length."""
        trained = self.trained(x)
        paths = [(x - self.mean) @ self.linear, *(trained[:, part] for part in self.parts)]
        return torch.cat([F.normalize(path, dim=1) for path in paths], dim=1)


class EnsembleAdapter(nn.Module):
    """Adapters of several trained models side by side, each of unit length times the root of its paths.

    The cosine of two embeddings is then the mean of the cosines of all paths, a closed form
    counting as much as a trained adapter. A departure from the paper; see :mod:`fusemix.model.ensemble`.
    """

    def __init__(self, latent_dim: int, members: tuple[ModelConfig, ...]) -> None:
        super().__init__()
        self.members = nn.ModuleList(_adapter(latent_dim, config) for config in members)
        self.weights = [config.n_paths**0.5 for config in members]

    def forward(self, x: Tensor) -> Tensor:  # (B, D_x) -> (B, sum of the members' D)
        """Return the members' embeddings, one after another."""
        pairs = zip(self.weights, self.members, strict=True)
        return torch.cat([weight * F.normalize(member(x), dim=1) for weight, member in pairs], dim=1)


class FusionModel(nn.Module):
    """One adapter per modality into one shared space.

    Example:
        >>> model = FusionModel.from_pretrained("checkpoints/default")
        >>> embeddings = model.embed("text", latents)  # (N, D_text) -> (N, D), unit length
    """

    def __init__(self, config: ModelConfig, *, temperature: float = 0.07) -> None:
        super().__init__()
        self.config = config
        self.adapters = nn.ModuleDict({modality: _adapter(dim, config) for modality, dim in config.latent_dims.items()})
        self.temperature = nn.Parameter(torch.tensor(float(temperature)))

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities this model can embed."""
        return tuple(self.config.latent_dims)

    def forward(self, latents: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return what the loss compares: latents (B, D_x) -> trained outputs per modality, not normalised.

        Widths are ``embed_dim - closed_form_dim``; without a closed form that is the whole adapter.
        """
        return {modality: _trained(self.adapters[modality], x) for modality, x in latents.items()}

    @torch.no_grad()
    def embed(self, modality: str, latents: Tensor | np.ndarray, *, batch_size: int = 4096) -> Tensor:
        """Embed latents of one modality into the shared space, without gradients or dropout.

        Args:
            modality: One of :attr:`modalities`.
            latents: Shape (N, D_x), any float dtype, not normalised.
            batch_size: Rows per forward pass.

        Returns:
            Embeddings, shape (N, D), float32 on the CPU, unit length.

        Raises:
            KeyError: If the model has no adapter for ``modality``.
            ValueError: If the width is not the adapter's, a latent is not finite, or an embedding would not be.
        """
        if modality not in self.config.latent_dims:
            raise KeyError(f"This model embeds {list(self.modalities)}, not {modality!r}.")
        if isinstance(latents, np.ndarray):
            latents = torch.from_numpy(np.array(latents, dtype=np.float32))
        expected = self.config.latent_dims[modality]
        if latents.ndim != 2 or latents.shape[1] != expected:
            raise ValueError(
                f"The {modality} adapter takes latents of shape (N, {expected}), got {tuple(latents.shape)}; "
                f"encode with {self.config.encoders.get(modality, {}).get('name', 'the encoder it was trained on')}."
            )
        if not torch.isfinite(latents).all():
            raise ValueError(f"The {modality} latents hold NaN or infinite values; encode these items again.")
        device = self.temperature.device
        was_training = self.training
        self.eval()
        try:
            parts = [
                F.normalize(self.adapters[modality](part.to(device, torch.float32)), dim=1).cpu()
                for part in latents.split(batch_size)
            ]
        finally:
            self.train(was_training)
        embeddings = torch.cat(parts) if parts else torch.empty(0, self.config.embed_dim)
        if bad := int((~((embeddings.norm(dim=1) - 1).abs() < 0.01)).sum()):  # too long ones come out as zeros
            raise ValueError(
                f"{bad} of {len(embeddings)} {modality} embeddings left the range of float32: the largest latent is "
                f"{latents.abs().max():.3g}; check the encoder, or train on latents of this size."
            )
        return embeddings

    @property
    def identity(self) -> str:
        """Hex SHA-256 of configuration and weights: what an index is tied to."""
        digest = hashlib.sha256(json.dumps(self.config.to_dict(), sort_keys=True).encode())
        for name, value in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().to(torch.float32).contiguous().numpy().tobytes())
        return digest.hexdigest()

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        max_shard_size: str = "5GB",
        card: str | None = None,
    ) -> Path:
        """Write ``config.json``, ``model.safetensors`` (sharded above a size), ``README.md``; each whole or not at all.

        Args:
            folder: Created if absent; weights that lie there are replaced.
            dtype: Of the stored weights; computation is float32 after loading.
            max_shard_size: Largest weight file, e.g. ``"9MB"`` to suit a plain git push.
            card: Text of the model card; none is written when absent.

        Returns:
            The folder.

        Raises:
            OSError: If the disk is full or the folder is read-only; weights that lie there are then unchanged.
            ValueError: If ``dtype`` is no float, or a weight is not finite, as it is or in it; nothing is written then.
        """
        folder = Path(folder)
        if not dtype.is_floating_point:
            raise ValueError(
                f"Weights are stored as floating point, not as {dtype}; choose float32, float16 or bfloat16."
            )
        state = {name: _in_range(name, value.detach().cpu(), dtype) for name, value in self.state_dict().items()}
        folder.mkdir(parents=True, exist_ok=True)
        split = split_torch_state_dict_into_shards(
            state, filename_pattern=_WEIGHTS_PATTERN, max_shard_size=max_shard_size
        )
        for name, keys in split.filename_to_tensors.items():
            _write_weights(folder / name, {key: state[key].contiguous() for key in keys})
        index = folder / f"{WEIGHTS_NAME}.index.json"
        if split.is_sharded:
            write_json(index, {"metadata": split.metadata, "weight_map": split.tensor_to_filename})
        else:
            index.unlink(missing_ok=True)
        for path in folder.iterdir():
            if _WEIGHTS.fullmatch(path.name) and path.name not in split.filename_to_tensors:
                path.unlink()  # left by a checkpoint with other shards
        write_json(folder / CONFIG_NAME, without_paths(self.config.to_dict()))
        if card is not None:
            text = card.encode()
            write_atomic(folder / "README.md", lambda path: path.write_bytes(text))
        return folder

    @classmethod
    def from_pretrained(cls, source: str | Path, *, revision: str | None = None) -> FusionModel:
        """Load from a folder or a Hugging Face Hub id; never unpickles.

        Args:
            source: A folder written by :meth:`save_pretrained`, or a Hub id ``owner/name``.
            revision: Branch, tag or commit on the Hub; ignored for a folder.

        Returns:
            The model in evaluation mode, float32, on the CPU.

        Raises:
            FileNotFoundError: If neither a folder nor reachable on the Hub, or a file is missing.
            ValueError: If the configuration or the weights are damaged or do not fit each other.
        """
        folder = checkpoint_folder(source, revision=revision)
        config_path = folder / CONFIG_NAME
        if not config_path.is_file():
            raise FileNotFoundError(f"{folder} holds no {CONFIG_NAME}; expected a folder written by fusemix train.")
        values = read_json(config_path)
        if not isinstance(values, dict) or "latent_dims" not in values:
            raise ValueError(f"{config_path} is not a FuseMix configuration: it has no 'latent_dims'.")
        try:
            model = cls(ModelConfig.from_dict(values))
            _ = [info["name"] for info in model.config.encoders.values()]
        except (ValueError, TypeError, AttributeError, KeyError, RuntimeError) as error:
            raise ValueError(
                f"The values in {config_path} make no model ({error}); fetch or train it again."
            ) from error
        state = {name: value.float() for name, value in _read_weights(folder).items()}
        if bad := sorted(name for name, value in state.items() if not torch.isfinite(value).all()):
            raise ValueError(
                f"The weights in {folder} hold NaN or infinite values, first in {bad[0]}; train them again."
            )
        try:
            missing, unexpected = model.load_state_dict(state, strict=False)
        except RuntimeError as error:
            raise ValueError(f"The weights in {folder} do not fit its config.json: {error}") from error
        if missing or unexpected:
            raise ValueError(
                f"The weights in {folder} do not fit its config.json: missing {sorted(missing)[:3]}, "
                f"unexpected {sorted(unexpected)[:3]}. Were files of two checkpoints mixed?"
            )
        return model.eval()

    def push_to_hub(
        self,
        repo_id: str,
        *,
        card: str,
        private: bool = False,
        revision: str | None = None,
        token: str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> str:
        """Upload configuration, weights (in shards of at most 9 MB) and card to the Hugging Face Hub.

        A folder that holds more, such as the training's settings and history, is sent whole by
        ``fusemix push`` or :class:`fusemix.model.hub.Upload`.

        Args:
            repo_id: ``owner/name``; created if absent.
            card: Text of the model card with its front matter, e.g. of :func:`fusemix.model.card.model_card`.
            private: Whether a repository created now is private.
            revision: Branch to write to; the main one by default.
            token: Of the Hub; by default the one of ``hf auth login``.
            dtype: Of the stored weights.

        Returns:
            The address of the commit.

        Raises:
            ValueError: If the name is not ``owner/name`` or the card has no front matter.
            ConnectionError: If the Hub cannot be reached or refuses.
        """
        import tempfile

        from fusemix.model.hub import Upload

        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, dtype=dtype, max_shard_size="9MB", card=card)
            return Upload.of(folder).push(repo_id, private=private, revision=revision, token=token)


def checkpoint_folder(source: str | Path, *, revision: str | None = None) -> Path:
    """Return the local folder of a checkpoint; a Hub id is fetched first.

    Raises:
        FileNotFoundError: If it is neither a folder nor reachable on the Hub.
    """
    patterns = ["*.json", "*.safetensors", "README.md"]
    return resolve(
        source, "checkpoint", lambda name: snapshot_download(name, revision=revision, allow_patterns=patterns)
    )


def _adapter(latent_dim: int, config: ModelConfig) -> nn.Module:
    if config.members:
        return EnsembleAdapter(latent_dim, tuple(ModelConfig.from_dict(member) for member in config.members))
    if config.closed_form_dim:
        return MultiPathAdapter(latent_dim, config)
    return Adapter(latent_dim, config.embed_dim, depth=config.depth, expansion=config.expansion, dropout=config.dropout)


def _trained(adapter: nn.Module, x: Tensor) -> Tensor:
    out: Tensor = adapter.trained(x) if isinstance(adapter, MultiPathAdapter) else adapter(x)
    return out


def _in_range(name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert a weight to the dtype it is stored in; ValueError if it overflows or underflows there."""
    stored = value.to(dtype)
    kind = str(dtype).removeprefix("torch.")
    check_finite(
        np.atleast_1d(value.numpy()), np.atleast_1d(stored.float().numpy()), kind, lambda _: f"The weight {name}"
    )
    return stored


def _rename(adapter: MultiPathAdapter, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Rename tensors of a checkpoint from before views: its one trained path was ``mlp``, its one view ``whiten``."""
    for name in [name for name in state if name.startswith(f"{prefix}mlp.")]:
        state[f"{prefix}paths.0.{name.removeprefix(f'{prefix}mlp.')}"] = state.pop(name)
    if adapter.views == ("components",) and f"{prefix}whiten" in state:
        state[f"{prefix}rotate"] = state.pop(f"{prefix}whiten")


def _write_weights(path: Path, tensors: dict[str, Tensor]) -> None:
    write_atomic(path, lambda temporary: save_file(tensors, temporary, metadata={"format": "pt"}))


def _read_weights(folder: Path) -> dict[str, Tensor]:
    index = folder / f"{WEIGHTS_NAME}.index.json"
    names = [WEIGHTS_NAME]
    if index.is_file():
        try:
            names = sorted({str(name) for name in read_json(index)["weight_map"].values()})
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{index} names no weight files; fetch or train the checkpoint again.") from error
    state: dict[str, Tensor] = {}
    for name in names:
        path = folder / name
        if Path(name).name != name or not path.is_file():
            raise FileNotFoundError(f"{folder} holds no weight file {name!r}; the checkpoint is incomplete.")
        try:
            state.update(load_file(path))
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged or truncated ({error}); fetch or train it again.") from error
    return state
