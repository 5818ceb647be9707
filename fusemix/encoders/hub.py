"""Frozen encoders from the Hugging Face Hub, or from a folder in its format.

:mod:`fusemix.encoders.hub_names` explains their names. A latent never depends on the rest of the batch: only items
of one shape run together. Latents are not normalised, even if a sentence-transformers model would do so. Each encoder
is probed when it is loaded (:mod:`fusemix.encoders.probe`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusemix.encoder_identity import portable_name
from fusemix.encoders import folders
from fusemix.encoders.base import Encoder
from fusemix.encoders.hub_files import HubFiles, audio_tower, text_tower
from fusemix.encoders.hub_names import Spec
from fusemix.encoders.probe import probe
from fusemix.encoders.text import MAX_TEXT_CHARS
from fusemix.media import MediaError, load_audio, load_image

_AT_ONCE = 16  # items of one shape a forward pass


class HubEncoder(Encoder):
    """Base of the three kinds of Hub encoders: loading, identity, layers, pooling; one shape a forward pass."""

    def __init__(self, name: str, *, device: str = "cpu") -> None:
        self.spec = Spec.parse(name)
        self.pooling = self.spec.pooling or ("cls" if self.spec.kind == "hub-image" else "mean")
        self._device = device
        self._files = HubFiles(self.spec.source)
        folder = self._files.folder
        self.name = portable_name(self.spec.at(str(folder.resolve()))) if folder else name
        network = self._load()
        self._network = network.float().eval().requires_grad_(False).to(device)
        self.revision = self._files.identity(network)
        prepared = [self.prepare(item) for item in self._samples()]
        # a wrong pooling or layer fails here, and widths may differ from layer to layer
        self.dim = self._first(prepared[:1]).shape[1]
        self.fingerprint = f"{self._preprocessing()}; layers {list(self.spec.layers)}; {self.pooling}"
        probe(self, prepared, distinct=True, hint=self._hint)
        if folder:
            folders.note(self.revision, folder)

    def _first(self, prepared: Sequence[Any]) -> Tensor:
        """Run the network for the first time; an error from inside it becomes one sentence."""
        try:
            return self._run(prepared)
        except Exception as error:  # networks of some hundred families raise errors of every type
            if str(error).startswith(self.name):
                raise
            said = (str(error).splitlines() or ["no reason given"])[0]
            raise ValueError(
                f"{self.name}: its network fails on what its processor makes of an item ({type(error).__name__}: "
                f"{said}). The processor may be another model's, or the model is not of the kind {self.spec.kind}."
            ) from error

    _hint = ""  # likely cause if all latents are equal

    @abstractmethod
    def _load(self) -> Any:
        """Load the network and its processor."""

    @abstractmethod
    def _samples(self) -> list[Any]:
        """Make different items to probe the encoder with."""

    @abstractmethod
    def _preprocessing(self) -> str:
        """Describe everything that is done to an item before the network."""

    @abstractmethod
    def _shape(self, prepared: Any) -> Hashable:
        """Return the key by which items are batched: only items of equal shape run together."""

    @abstractmethod
    def _run(self, prepared: Sequence[Any]) -> Tensor:
        """Return latents of items of one shape, (B, dim), float32."""

    def _chosen(self, out: Any) -> list[Tensor]:
        """Return the states of the requested layers, in that order."""
        states = list(out.hidden_states)
        if min(self.spec.layers) < -len(states):
            raise ValueError(f"{self.name}: it has {len(states)} layers of states, asked for {self.spec.layers}.")
        states[-1] = out.last_hidden_state  # with the closing norm, where the model has one
        return [states[layer].float() for layer in self.spec.layers]

    def _pooler(self, out: Any) -> Tensor:
        pooled = getattr(out, "pooler_output", None)
        if pooled is None:
            raise ValueError(f"{self.name}: this network has no pooled output of its own; use pooling=mean.")
        latents: Tensor = pooled.float().flatten(1)
        return latents

    @torch.inference_mode()
    def encode_prepared(self, prepared: Sequence[Any]) -> np.ndarray:
        """Return latents, shape (N, dim), float32, not normalised."""
        by_shape: dict[Hashable, list[int]] = defaultdict(list)
        for number, item in enumerate(prepared):
            by_shape[self._shape(item)].append(number)
        latents = np.zeros((len(prepared), self.dim), dtype=np.float32)
        for numbers in by_shape.values():
            for start in range(0, len(numbers), _AT_ONCE):
                part = numbers[start : start + _AT_ONCE]
                latents[part] = self._run([prepared[i] for i in part]).cpu().numpy()
        return latents


class HubImage(HubEncoder):
    """Any vision backbone of transformers: DINOv2, DINOv3, ViT, ConvNeXt, the vision towers of CLIP and SigLIP, ...

    ``mean`` averages the patches only, without class and register tokens.
    """

    modality = "image"

    def _load(self) -> Any:
        self._processor = self._files.image_processor()
        # CLIP, SigLIP: the image tower
        network = self._files.network(lambda whole: getattr(whole, "vision_model", whole), self.pooling)
        if self._masks(network):
            network.config.mask_ratio = 0.0
        return network

    @staticmethod
    def _masks(network: Any) -> bool:  # a masked autoencoder hides patches at random, in inference too
        return str(network.config.model_type) == "vit_mae"

    def _samples(self) -> list[Any]:
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        slope = np.linspace(0, 255, 64)[:, None, None] * np.array([1.0, 0.5, 0.0]) * np.ones((64, 64, 1))
        return [noise, slope.astype(np.uint8)]

    def _preprocessing(self) -> str:
        return f"the model's own image processor ({type(self._processor).__name__})"

    def prepare(self, item: Any) -> Tensor:
        """Decode a path, bytes, PIL image or array to pixel values, (3, H, W)."""
        pixels: Tensor = self._processor(images=load_image(item), return_tensors="pt")["pixel_values"][0]
        if pixels.ndim != 3:
            raise ValueError(
                f"{self.name}: its image processor makes {tuple(pixels.shape)} of a picture, expected (3, H, W); "
                "models of patches without a fixed size, such as SigLIP2 NaFlex, are not read here: take one of a "
                "fixed size, such as google/siglip2-base-patch16-224."
            )
        return pixels

    def _shape(self, prepared: Tensor) -> Hashable:
        return tuple(prepared.shape)

    def _run(self, prepared: Sequence[Tensor]) -> Tensor:
        pixels, more = torch.stack(list(prepared)).to(self._device), {}
        if self._masks(self._network):  # nothing is hidden, and the patches keep their order
            patches = self._network.embeddings.patch_embeddings.num_patches
            more["noise"] = torch.arange(patches, device=pixels.device).float().expand(len(pixels), -1)
        out = self._network(pixel_values=pixels, output_hidden_states=True, **more)
        if self.pooling == "pooler":
            return self._pooler(out)
        return torch.cat([self._pool(states) for states in self._chosen(out)], dim=1)

    def _pool(self, states: Tensor) -> Tensor:  # (B, T, D_x) or a convolutional map (B, D_x, H, W)
        special = 0 if states.ndim == 4 else self._special_tokens()
        if not special and "cls" in self.pooling:
            raise ValueError(f"{self.name}: these states have no class token; use pooling=mean.")
        tokens = states.flatten(2).transpose(1, 2) if states.ndim == 4 else states
        parts = {"cls": tokens[:, 0], "mean": tokens[:, special:].mean(1)}
        return torch.cat([parts[part] for part in self.pooling.split("+")], dim=1)

    def _special_tokens(self) -> int:
        """Count the states before the patches: the class token, a distillation token, registers."""
        config, embeddings = self._network.config, getattr(self._network, "embeddings", None)
        if config.model_type == "dinov3_convnext":  # its pooled map stands where a class token would
            return 1
        tokens = [getattr(embeddings, n, None) for n in ("cls_token", "class_embedding", "distillation_token")]
        count = sum(token is not None for token in tokens)
        return count + int(getattr(config, "num_register_tokens", 0) or 0) if count else 0


@dataclass(frozen=True)
class TextPipeline:
    """A text encoder written as a transformer and a pooling, as sentence-transformers has them.

    Attributes:
        source: Folder or Hub id of the transformer.
        options: Of the transformer's loading: a commit on the Hub.
        pooling: ``cls``, ``mean``, ``cls+mean`` or ``last``.
        prefix: Put before every text.
        lower: Whether texts are read in lower case.
        limit: Most tokens.
    """

    source: str
    options: dict[str, Any]
    pooling: str
    prefix: str
    lower: bool
    limit: int


class HubText(HubEncoder):
    """Any text encoder of transformers (BGE, E5, GTE, sentence-transformers, T5, CLIP's); cut at the model's limit."""

    modality = "text"
    _hint = (
        "its tokenizer may be another model's or know none of the words, or a causal network is pooled at its first "
        "token, which sees no other: use pooling=last or mean"
    )

    def _load(self) -> Any:
        stated = self._files.sentence_transformers(self.name, self.spec.pooling)
        self.pooling = self.spec.pooling or stated.pooling
        self._prefix = stated.prompt if self.spec.prefix is None else self.spec.prefix
        self._lower, self._stated_limit = stated.lower, stated.limit
        if self._prefix and not stated.include_prompt:
            raise ValueError(f"{self.name}: this model leaves its prompt out of the mean, which is not done here.")
        self._tokenizer = self._files.tokenizer()
        network = self._files.network(text_tower, self.pooling)
        self._rows = getattr(network.config, "vocab_size", None)  # of its table of words
        special = set(self._tokenizer.all_special_ids)
        if self._rows and any(number >= self._rows for number in set(self._tokenizer.get_vocab().values()) - special):
            raise ValueError(
                f"{self.name}: its tokenizer knows {len(self._tokenizer):,} tokens, its network {self._rows:,}; they "
                "are of two models. Put the tokenizer that belongs to the weights into the folder."
            )
        return network

    def _limit(self) -> int:
        config, said = self._network.config, [self._tokenizer.model_max_length, self._stated_limit]
        said += [getattr(config, "max_position_embeddings", None), getattr(config, "n_positions", None)]
        for name, module in self._network.named_modules():  # RoBERTa counts positions from its padding token's number
            if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
                said.append(module.num_embeddings - module.padding_idx - 1)
        # a tokenizer without a limit says 10^30, XLNet -1; T5, whose positions are relative, was trained on 512
        return int(min((limit for limit in said if limit and 0 < limit < 10**9), default=512))

    def _samples(self) -> list[Any]:
        """Make texts of equal length with equal first and last words: they differ only in the words between."""
        first, *others = self._words(4)
        return [f"{first} {other} {first}" for other in others]

    def _words(self, count: int) -> list[str]:
        """Pick words of any language from the tokenizer's vocabulary; English ones if it has too few."""
        known: list[str] = []
        size, unknown = len(self._tokenizer), self._tokenizer.unk_token_id
        for number in (*range(size // 4, size), *range(size // 4)):
            word = self._tokenizer.decode([number]).strip()
            tokens = self._tokenizer.encode(word, add_special_tokens=False) if word.isalpha() else []
            if tokens and unknown not in tokens and word == word.lower() and word not in known:
                known.append(word)
                if len(known) == count:
                    return known
        return ["the", "dog", "cat", "boat"][:count]

    def _preprocessing(self) -> str:
        lower = "in lower case, " if self._lower else ""
        padded = "padded to the limit, " if self._padded() else ""
        return f"the model's own tokenizer, {lower}{padded}first {self._limit()} tokens, prefix {self._prefix!r}"

    @property
    def pipeline(self) -> TextPipeline | None:
        """The same encoder as a transformer and a pooling; None for a tower of a larger network or another layer."""
        config = self._network.config
        whole = not getattr(config, "is_encoder_decoder", False) and "text_model" not in str(config.model_type)
        if not whole or self.spec.layers != (-1,) or self.pooling == "pooler" or self._padded():
            return None
        source, options = self._files.place()
        return TextPipeline(source, options, self.pooling, self._prefix, self._lower, self._limit())

    def _padded(self) -> bool:  # SigLIP was trained on padded texts without a mask
        return str(self._network.config.model_type).startswith("siglip")

    def prepare(self, item: Any) -> tuple[int, ...]:
        """Tokenize a text: its token numbers."""
        if not isinstance(item, str) or not item.strip():
            raise MediaError("Expected a text that is not empty.")
        if len(item) > MAX_TEXT_CHARS:
            raise MediaError(f"The text has {len(item):,} characters, more than the {MAX_TEXT_CHARS:,} taken here.")
        text = self._prefix + item.strip()
        padding = "max_length" if self._padded() else False
        tokens = self._tokenizer(
            text.lower() if self._lower else text, truncation=True, max_length=self._limit(), padding=padding
        )
        numbers = tuple(tokens["input_ids"])
        if not numbers:
            raise MediaError(f"The tokenizer of {self.name} makes no token of {text[:40]!r}; give another text.")
        if self._rows and max(numbers) >= self._rows:
            raise ValueError(
                f"{self.name}: its tokenizer gives token {max(numbers)}, its network knows {self._rows:,}; put the "
                "tokenizer that belongs to the weights into the folder."
            )
        return numbers

    def _shape(self, prepared: tuple[int, ...]) -> Hashable:
        return len(prepared)

    def _run(self, prepared: Sequence[tuple[int, ...]]) -> Tensor:
        tokens = torch.tensor(prepared, device=self._device)
        mask = None if self._padded() else torch.ones_like(tokens)
        out = self._network(input_ids=tokens, attention_mask=mask, output_hidden_states=True)
        if self.pooling == "pooler":
            return self._pooler(out)
        return torch.cat([self._pool(states) for states in self._chosen(out)], dim=1)

    def _pool(self, states: Tensor) -> Tensor:  # (B, T, D_x) -> (B, D_x) or (B, 2 D_x)
        parts = {"cls": states[:, 0], "mean": states.mean(1), "last": states[:, -1]}
        return torch.cat([parts[part] for part in self.pooling.split("+")], dim=1)


class HubAudio(HubEncoder):
    """Whisper of any size (its encoder, mean over the real frames), wav2vec2, HuBERT, and CLAP's HTS-AT.

    Sounds are encoded in windows of at most 30 s (10 s for CLAP, its own length). The latent of a longer sound is the
    mean over its windows, weighted by their length.
    """

    modality = "audio"

    def _load(self) -> Any:
        self._extractor = self._files.feature_extractor()
        network = self._files.network(audio_tower, self.pooling)
        self._rate, self._kind = int(self._extractor.sampling_rate), str(network.config.model_type)
        if self._kind not in ("whisper", "wav2vec2", "hubert", "wavlm", "clap", "clap_audio_model"):
            raise ValueError(f"{self.name}: expected Whisper, wav2vec2, HuBERT, WavLM or CLAP, got {self._kind!r}.")
        self._clap = self._kind.startswith("clap")
        self._size = int(self._extractor.nb_max_samples) if self._clap else 30 * self._rate
        self._least = 1  # samples that the convolutions need for one frame
        kernels, strides = (getattr(network.config, f"conv_{what}", ()) for what in ("kernel", "stride"))
        for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
            self._least = (self._least - 1) * stride + kernel
        return network

    def _samples(self) -> list[Any]:
        noise = np.random.default_rng(0).uniform(-0.5, 0.5, self._rate).astype(np.float32)
        tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(self._rate) / self._rate)
        return [(self._rate, noise), (self._rate, tone.astype(np.float32))]

    def _preprocessing(self) -> str:
        heard = f"the model's own feature extractor ({type(self._extractor).__name__})"
        return f"mono {self._rate / 1000:g} kHz; {heard}; windows of {self._size / self._rate:g} s"

    def prepare(self, item: Any) -> np.ndarray:
        """Decode a path, bytes or (sample rate in Hz, samples) to mono samples at the model's rate, float32."""
        samples = load_audio(item, sample_rate=self._rate)
        if len(samples) < self._least:
            needed = self._least / self._rate
            raise MediaError(f"The sound lasts {len(samples) / self._rate:.3f} s; this encoder needs {needed:.3f} s.")
        return samples

    def _shape(self, prepared: np.ndarray) -> Hashable:
        return len(prepared)

    def _run(self, prepared: Sequence[np.ndarray]) -> Tensor:
        return torch.stack([self._one(samples) for samples in prepared])  # one by one, without padding

    def _one(self, samples: np.ndarray) -> Tensor:
        total: Tensor | float = 0.0
        count = 0
        for window in self._windows(samples):
            layers, weight = self._heard(window)
            total, count = total + weight * torch.cat([states.mean(0) for states in layers]), count + weight
        return torch.as_tensor(total) / count

    def _windows(self, samples: np.ndarray) -> list[np.ndarray]:
        """Cut samples into windows; a tail too short for the convolutions joins the window before it."""
        starts = list(range(0, len(samples), self._size))
        if len(starts) > 1 and len(samples) - starts[-1] < self._least:
            del starts[-1]
        return np.split(samples, starts[1:])

    def _heard(self, window: np.ndarray) -> tuple[list[Tensor], int]:
        """Return the states of one window by layer, (T, D_x) each, and its weight."""
        features = self._extractor(window, sampling_rate=self._rate, return_tensors="pt")
        values = features[self._extractor.model_input_names[0]].to(self._device, torch.float32)
        more = {"is_longer": torch.zeros(1, 1, dtype=torch.bool)} if self._clap else {}
        layers = self._chosen(self._network(values, output_hidden_states=True, **more))
        if self._clap:  # maps (1, D_x, F, T) of a window that the extractor fills by repeating
            return [states[0].flatten(1).T for states in layers], len(window)
        keep = -(-len(window) // 320) if self._kind == "whisper" else layers[0].shape[1]  # 20 ms a frame
        return [states[0, :keep] for states in layers], keep
