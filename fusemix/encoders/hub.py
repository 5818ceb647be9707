"""Frozen encoders from the Hugging Face Hub, or from a folder in its format.

Named by a line that says everything that changes a latent, so that a checkpoint can load its encoder again::

    hub-image:facebook/dinov2-base?pooling=cls+mean&layers=-2
    hub-text:BAAI/bge-large-en-v1.5?pooling=cls
    hub-text:intfloat/e5-large-v2?pooling=mean&prefix=query:
    hub-audio:openai/whisper-small.en
    A ++ B      the latents of two encoders of one modality, side by side

``pooling`` is ``cls`` (the first state), ``mean`` (over the patches, words or frames) or ``cls+mean`` (both, side by
side). ``layers`` counts from the end: -1 is the last (the default, as in the paper's code), -2 the
one before (the paper's text says penultimate), ``-1,-4`` both side by side. An item's latent never depends on its
batch mates: only items of one shape are run together.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import torch
from torch import Tensor

from fusemix.encoders.base import Encoder
from fusemix.encoders.text import MAX_TEXT_CHARS
from fusemix.files import sha256_of
from fusemix.media import SAMPLE_RATE, MediaError, load_audio, load_image

POOLINGS = ("cls", "mean", "cls+mean")
_AT_ONCE = 16  # items of one shape a forward pass


@dataclass(frozen=True)
class Spec:
    """A name taken apart: ``kind:source?pooling=...&layers=...&prefix=...``."""

    kind: str
    source: str
    pooling: str
    layers: tuple[int, ...]
    prefix: str

    @classmethod
    def parse(cls, name: str) -> Spec:
        """Read a name; every option that is not understood is an error.

        Raises:
            ValueError: If the line is not of the form above.
        """
        match = re.fullmatch(r"(hub-image|hub-text|hub-audio):([^?]+)(?:\?(.*))?", name)
        if match is None:
            raise ValueError(
                f"Expected an encoder like 'hub-image:facebook/dinov2-base?pooling=cls+mean&layers=-2', got {name!r}."
            )
        kind, source, query = match.groups()
        # '+' joins poolings here; it is not a space
        options = dict(parse_qsl((query or "").replace("+", "%2B"), keep_blank_values=True))
        if unknown := set(options) - {"pooling", "layers", "prefix"}:
            raise ValueError(f"{name!r} has the options {sorted(unknown)}; known are pooling, layers and prefix.")
        pooling = options.get("pooling", "cls" if kind == "hub-image" else "mean")
        if pooling not in POOLINGS or (kind == "hub-audio" and pooling != "mean"):
            raise ValueError(f"{name!r}: pooling must be one of {list(POOLINGS)} (sounds: mean), got {pooling!r}.")
        try:
            layers = tuple(int(part) for part in options.get("layers", "-1").split(","))
        except ValueError as error:
            raise ValueError(f"{name!r}: layers must be whole numbers like -1 or -1,-4.") from error
        if any(layer >= 0 for layer in layers):
            raise ValueError(f"{name!r}: layers count from the end, so they are below 0; got {layers}.")
        return cls(kind, source, pooling, layers, options.get("prefix", ""))


class HubEncoder(Encoder):
    """What the three kinds share: loading, identity, layers, pooling; one shape a forward pass."""

    def __init__(self, name: str, *, device: str = "cpu") -> None:
        self.name = name
        self.spec = Spec.parse(name)
        self._device = device
        network = self._load()
        self._network = network.float().eval().requires_grad_(False).to(device)
        self.revision = _identity(self.spec.source, network)
        states = len(self.spec.layers) * (2 if self.spec.pooling == "cls+mean" else 1)
        self.dim = self._width() * states
        self.fingerprint = f"{self._preprocessing()}; layers {list(self.spec.layers)}; {self.spec.pooling}"

    @abstractmethod
    def _load(self) -> Any:
        """Load the network and its processor."""

    @abstractmethod
    def _preprocessing(self) -> str:
        """Everything that is done to an item before the network, in words."""

    @abstractmethod
    def _shape(self, prepared: Any) -> Hashable:
        """Items of equal shape may run together."""

    @abstractmethod
    def _states(self, prepared: Sequence[Any]) -> tuple[Tensor, ...]:
        """Hidden states of items of one shape, one (B, T, D_x) tensor a layer; first the embeddings."""

    def _width(self) -> int:
        return int(self._network.config.hidden_size)

    def _pool(self, states: Tensor) -> Tensor:  # (B, T, D_x) -> (B, D_x) or (B, 2 D_x)
        parts = {"cls": states[:, 0], "mean": states.mean(1)}
        return torch.cat([parts[part] for part in self.spec.pooling.split("+")], dim=1)

    @torch.inference_mode()
    def encode_prepared(self, prepared: Sequence[Any]) -> np.ndarray:
        """Latents, shape (N, dim), float32, not normalised."""
        by_shape: dict[Hashable, list[int]] = defaultdict(list)
        for number, item in enumerate(prepared):
            by_shape[self._shape(item)].append(number)
        latents = np.zeros((len(prepared), self.dim), dtype=np.float32)
        for numbers in by_shape.values():
            for start in range(0, len(numbers), _AT_ONCE):
                part = numbers[start : start + _AT_ONCE]
                states = self._states([prepared[i] for i in part])
                if min(self.spec.layers) < -len(states):
                    raise ValueError(
                        f"{self.name}: it has {len(states)} layers of states, asked for {self.spec.layers}."
                    )
                pooled = torch.cat([self._pool(states[layer].float()) for layer in self.spec.layers], dim=1)
                latents[part] = pooled.cpu().numpy()
        return latents


class HubImage(HubEncoder):
    """Any vision backbone of transformers: DINOv2, ViT, the vision towers of CLIP and SigLIP, ...

    ``mean`` is over the patches alone: the class token and register tokens are left out.
    """

    modality = "image"

    def _load(self) -> Any:
        from transformers import AutoConfig, AutoImageProcessor, AutoModel

        config = _fetch(AutoConfig, self.spec.source)
        self._processor = _fetch(AutoImageProcessor, self.spec.source, backend="pil")
        if getattr(config, "vision_config", None) is not None:  # CLIP, SigLIP: the tower of pictures
            return _fetch(AutoModel, self.spec.source).vision_model
        return _fetch(AutoModel, self.spec.source)

    def _preprocessing(self) -> str:
        return f"the model's own image processor ({type(self._processor).__name__})"

    def prepare(self, item: Any) -> Tensor:
        """A path, bytes, PIL image or array -> pixel values, (3, H, W)."""
        pixels: Tensor = self._processor(images=load_image(item), return_tensors="pt")["pixel_values"][0]
        return pixels

    def _shape(self, prepared: Tensor) -> Hashable:
        return tuple(prepared.shape)

    def _states(self, prepared: Sequence[Tensor]) -> tuple[Tensor, ...]:
        out = self._network(pixel_values=torch.stack(list(prepared)).to(self._device), output_hidden_states=True)
        states = list(out.hidden_states)
        if states[-1].ndim == 4:  # a convolutional map (B, C, H, W)
            return tuple(s.flatten(2).transpose(1, 2) for s in states)
        states[-1] = out.last_hidden_state  # with the closing norm, where the model has one
        return tuple(states)

    def _width(self) -> int:
        config = self._network.config
        return int(getattr(config, "hidden_size", None) or config.hidden_sizes[-1])

    def _pool(self, states: Tensor) -> Tensor:
        config = self._network.config
        has_class_token = hasattr(self._network, "embeddings") and (
            hasattr(self._network.embeddings, "cls_token") or hasattr(self._network.embeddings, "class_embedding")
        )
        skip = int(has_class_token) + int(getattr(config, "num_register_tokens", 0) or 0)
        if not has_class_token and "cls" in self.spec.pooling:
            raise ValueError(f"{self.name}: this network has no class token; use pooling=mean.")
        parts = {"cls": states[:, 0], "mean": states[:, skip:].mean(1)}
        return torch.cat([parts[part] for part in self.spec.pooling.split("+")], dim=1)


class HubText(HubEncoder):
    """Any text encoder of transformers (BGE, E5, GTE, sentence-transformers); cut at the model's limit."""

    modality = "text"

    def _load(self) -> Any:
        from transformers import AutoModel, AutoTokenizer

        self._tokenizer = _fetch(AutoTokenizer, self.spec.source)
        return _fetch(AutoModel, self.spec.source)

    def _limit(self) -> int:
        return int(min(self._tokenizer.model_max_length, self._network.config.max_position_embeddings))

    def _preprocessing(self) -> str:
        return f"the model's own tokenizer, first {self._limit()} tokens, prefix {self.spec.prefix!r}"

    def prepare(self, item: Any) -> tuple[int, ...]:
        """A text -> token numbers."""
        if not isinstance(item, str) or not item.strip():
            raise MediaError("Expected a text that is not empty.")
        if len(item) > MAX_TEXT_CHARS:
            raise MediaError(f"The text has {len(item):,} characters, more than the {MAX_TEXT_CHARS:,} taken here.")
        tokens = self._tokenizer(self.spec.prefix + item.strip(), truncation=True, max_length=self._limit())
        return tuple(tokens["input_ids"])

    def _shape(self, prepared: tuple[int, ...]) -> Hashable:
        return len(prepared)

    def _states(self, prepared: Sequence[tuple[int, ...]]) -> tuple[Tensor, ...]:
        tokens = torch.tensor(prepared, device=self._device)
        out = self._network(input_ids=tokens, attention_mask=torch.ones_like(tokens), output_hidden_states=True)
        return tuple(out.hidden_states)


class HubAudio(HubEncoder):
    """Whisper of any size (its encoder, mean over the frames that are there), wav2vec2 and HuBERT.

    Sounds are heard in windows of at most 30 s; a longer sound's latent is the mean of its windows'.
    """

    modality = "audio"

    def _load(self) -> Any:
        from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, WhisperModel

        self._extractor = _fetch(AutoFeatureExtractor, self.spec.source)
        self._whisper = _fetch(AutoConfig, self.spec.source).model_type == "whisper"
        if self._whisper:  # WhisperEncoder.from_pretrained would load random weights and say nothing
            return _fetch(WhisperModel, self.spec.source).get_encoder()
        return _fetch(AutoModel, self.spec.source)

    def _preprocessing(self) -> str:
        return f"mono 16 kHz; the model's own feature extractor ({type(self._extractor).__name__}); windows of 30 s"

    def prepare(self, item: Any) -> np.ndarray:
        """A path, bytes or (sample rate in Hz, samples) -> mono samples at 16 kHz, float32."""
        return load_audio(item)

    def _shape(self, prepared: np.ndarray) -> Hashable:
        return len(prepared)

    def _states(self, prepared: Sequence[np.ndarray]) -> tuple[Tensor, ...]:
        each = [self._one(samples) for samples in prepared]
        return tuple(torch.stack([states[layer] for states in each]) for layer in range(len(each[0])))

    def _one(self, samples: np.ndarray) -> list[Tensor]:
        """States of one sound by layer, (T, D_x) each, windows one after another."""
        size, layers = 30 * SAMPLE_RATE, []
        for start in range(0, max(len(samples), 1), size):
            window = samples[start : start + size]
            features = self._extractor(window, sampling_rate=SAMPLE_RATE, return_tensors="pt")
            values = next(iter(features.values())).to(self._device)
            out = self._network(values, output_hidden_states=True)
            states = [*out.hidden_states[:-1], out.last_hidden_state]
            keep = -(-len(window) // 320) if self._whisper else states[0].shape[1]  # 20 ms a frame
            layers.append([s[0, : max(keep, 1)] for s in states])
        return [torch.cat([window[i] for window in layers]) for i in range(len(layers[0]))]


class Concatenation(Encoder):
    """Two or more encoders of one modality; their latents side by side."""

    def __init__(self, encoders: Sequence[Encoder]) -> None:
        if len({encoder.modality for encoder in encoders}) != 1:
            raise ValueError(f"Only encoders of one modality can be joined, got {[e.modality for e in encoders]}.")
        self.encoders = list(encoders)
        self.modality = encoders[0].modality
        self.name = " ++ ".join(encoder.name for encoder in encoders)
        self.dim = sum(encoder.dim for encoder in encoders)
        self.revision = "+".join(encoder.revision for encoder in encoders)
        self.fingerprint = " ++ ".join(encoder.fingerprint for encoder in encoders)

    def prepare(self, item: Any) -> list[Any]:
        """What each encoder makes of the item."""
        return [encoder.prepare(item) for encoder in self.encoders]

    def encode_prepared(self, prepared: Sequence[list[Any]]) -> np.ndarray:
        """Latents, shape (N, dim), float32."""
        columns = zip(*prepared, strict=True)
        parts = [encoder.encode_prepared(list(c)) for encoder, c in zip(self.encoders, columns, strict=True)]
        return np.concatenate(parts, axis=1)


def _fetch(auto: Any, source: str, **options: Any) -> Any:
    """``from_pretrained`` of a folder or a Hub id, with one sentence when it cannot be had."""
    if not Path(source).is_dir() and (source.count("/") != 1 or source.startswith((".", "/", "~"))):
        raise FileNotFoundError(f"No folder at {source}; expected a folder or a Hub id 'owner/name'.")
    try:
        return auto.from_pretrained(source, **options)
    except (OSError, ValueError, ImportError) as error:
        raise FileNotFoundError(
            f"{source!r} could not be loaded as an encoder ({type(error).__name__}: {str(error).splitlines()[0]}). "
            "Check the name and the network; for a gated model, accept its licence on its page and run 'hf auth login'."
        ) from error


def _identity(source: str, network: Any) -> str:
    """The Hub commit, or the SHA-256 of a folder's weight files."""
    folder = Path(source)
    if not folder.is_dir():
        return str(getattr(network.config, "_commit_hash", None) or "unknown")
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    return "-".join(sha256_of(path)[:16] for path in files)
