"""Frozen encoders from the Hugging Face Hub, or from a folder in its format.

Named by a line that says everything that changes a latent, so that a checkpoint can load its encoder again::

    hub-image:facebook/dinov2-base?pooling=cls+mean&layers=-2
    hub-text:BAAI/bge-large-en-v1.5?pooling=cls
    hub-text:intfloat/e5-large-v2?pooling=mean&prefix=query:
    hub-audio:openai/whisper-small.en
    hub-audio:laion/clap-htsat-unfused
    A ++ B      the latents of two encoders of one modality, side by side

``pooling`` is ``cls`` (the first state), ``mean`` (over the patches, words or frames), ``cls+mean`` (both, side by
side), ``last`` (texts: the last token, as CLIP and Qwen3-Embedding have it) or ``pooler`` (the network's own pooled
output, as SigLIP's attention head). Texts without one take the pooling and the default prompt that a
sentence-transformers model states, else ``mean``; pictures take ``cls``. ``layers`` counts from the end: -1 is the
last (the default, as in the paper's code), -2 the one before (the paper's text says penultimate), ``-1,-4`` both side
by side. An item's latent never depends on its batch mates: only items of one shape are run together. Latents are not
normalised, also where a sentence-transformers model would.
"""

from __future__ import annotations

import hashlib
import json
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
from fusemix.media import MediaError, load_audio, load_image

POOLINGS = {
    "hub-image": ("cls", "mean", "cls+mean", "pooler"),
    "hub-text": ("cls", "mean", "cls+mean", "last", "pooler"),
    "hub-audio": ("mean",),
}
_AT_ONCE = 16  # items of one shape a forward pass
_HUB_TIMEOUT_S = 10
# what a sentence-transformers model calls its pooling, in its older and its newer files
_THEIR_POOLING = {"cls": "cls", "cls_token": "cls", "mean": "mean", "mean_tokens": "mean", "lasttoken": "last"}
_PROCESSOR_FILES = (
    "config.json", "preprocessor_config.json", "processor_config.json", "tokenizer*.json", "special_tokens_map.json",
    "added_tokens.json", "vocab*.*", "merges.txt", "*.model", "sentence_*config.json",
)  # fmt: skip
# tensors that no state depends on when a network only reads, by the last parts of their names
_UNUSED = re.compile(r"(^|\.)(mask_token|masked_spec_embed|position_ids|logit_scale\w*|logit_bias)$")
_POOLER = re.compile(r"(^|\.)(pooler|head|vision_model\.head|text_model\.head)\.")


@dataclass(frozen=True)
class Spec:
    """A name taken apart: ``kind:source?pooling=...&layers=...&prefix=...``; None is what the model states."""

    kind: str
    source: str
    pooling: str | None
    layers: tuple[int, ...]
    prefix: str | None

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
        pooling = options.get("pooling")
        if pooling is not None and pooling not in POOLINGS[kind]:
            what = {"hub-image": "pictures", "hub-text": "texts", "hub-audio": "sounds"}[kind]
            raise ValueError(
                f"{name!r}: pooling must be one of ({what}: {', '.join(POOLINGS[kind])}), got {pooling!r}."
            )
        try:
            layers = tuple(int(part) for part in options.get("layers", "-1").split(","))
        except ValueError as error:
            raise ValueError(f"{name!r}: layers must be whole numbers like -1 or -1,-4.") from error
        if any(layer >= 0 for layer in layers):
            raise ValueError(f"{name!r}: layers count from the end, so they are below 0; got {layers}.")
        if pooling == "pooler" and layers != (-1,):
            raise ValueError(f"{name!r}: pooling=pooler is of the last layer; leave layers out.")
        return cls(kind, source, pooling, layers, options.get("prefix"))


class HubEncoder(Encoder):
    """What the three kinds share: loading, identity, layers, pooling; one shape a forward pass."""

    def __init__(self, name: str, *, device: str = "cpu") -> None:
        self.name = name
        self.spec = Spec.parse(name)
        self.pooling = self.spec.pooling or ("cls" if self.spec.kind == "hub-image" else "mean")
        self._device = device
        self._files = _Files(self.spec.source)
        network = self._load()
        self._network = network.float().eval().requires_grad_(False).to(device)
        self.revision = self._files.identity(network)
        # a wrong pooling or layer shows itself here, and widths may differ from layer to layer
        self.dim = self._run([self.prepare(self._probe())]).shape[1]
        self.fingerprint = f"{self._preprocessing()}; layers {list(self.spec.layers)}; {self.pooling}"

    @abstractmethod
    def _load(self) -> Any:
        """Load the network and its processor."""

    @abstractmethod
    def _probe(self) -> Any:
        """An item to measure the latent's width with."""

    @abstractmethod
    def _preprocessing(self) -> str:
        """Everything that is done to an item before the network, in words."""

    @abstractmethod
    def _shape(self, prepared: Any) -> Hashable:
        """Items of equal shape may run together."""

    @abstractmethod
    def _run(self, prepared: Sequence[Any]) -> Tensor:
        """Latents of items of one shape, (B, dim), float32."""

    def _chosen(self, out: Any) -> list[Tensor]:
        """The states of the layers asked for, in that order."""
        states = list(out.hidden_states)
        if min(self.spec.layers) < -len(states):
            raise ValueError(f"{self.name}: it has {len(states)} layers of states, asked for {self.spec.layers}.")
        states[-1] = out.last_hidden_state  # with the closing norm, where the model has one
        return [states[layer].float() for layer in self.spec.layers]

    def _pooler(self, out: Any) -> Tensor:
        pooled = getattr(out, "pooler_output", None)
        if pooled is None:
            raise ValueError(f"{self.name}: this network has no pooled output of its own; use pooling=mean.")
        return pooled.float().flatten(1)

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
                latents[part] = self._run([prepared[i] for i in part]).cpu().numpy()
        return latents


class HubImage(HubEncoder):
    """Any vision backbone of transformers: DINOv2, DINOv3, ViT, ConvNeXt, the vision towers of CLIP and SigLIP, ...

    ``mean`` is over the patches alone: the class token and register tokens are left out.
    """

    modality = "image"

    def _load(self) -> Any:
        self._processor = self._files.image_processor()
        # CLIP, SigLIP: the tower of pictures
        return self._files.network(lambda whole: getattr(whole, "vision_model", whole), self.pooling)

    def _probe(self) -> Any:
        return np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)

    def _preprocessing(self) -> str:
        return f"the model's own image processor ({type(self._processor).__name__})"

    def prepare(self, item: Any) -> Tensor:
        """A path, bytes, PIL image or array -> pixel values, (3, H, W)."""
        pixels: Tensor = self._processor(images=load_image(item), return_tensors="pt")["pixel_values"][0]
        return pixels

    def _shape(self, prepared: Tensor) -> Hashable:
        return tuple(prepared.shape)

    def _run(self, prepared: Sequence[Tensor]) -> Tensor:
        out = self._network(pixel_values=torch.stack(list(prepared)).to(self._device), output_hidden_states=True)
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
        """How many states come before the patches: the class token, a distillation token, registers."""
        config, embeddings = self._network.config, getattr(self._network, "embeddings", None)
        if config.model_type == "dinov3_convnext":  # its pooled map stands where a class token would
            return 1
        tokens = [getattr(embeddings, n, None) for n in ("cls_token", "class_embedding", "distillation_token")]
        count = sum(token is not None for token in tokens)
        return count + int(getattr(config, "num_register_tokens", 0) or 0) if count else 0


class HubText(HubEncoder):
    """Any text encoder of transformers (BGE, E5, GTE, sentence-transformers, T5, CLIP's); cut at the model's limit."""

    modality = "text"

    def _load(self) -> Any:
        stated = self._files.sentence_transformers(self.name, self.spec.pooling)
        self.pooling = self.spec.pooling or stated.pooling
        self._prefix = stated.prompt if self.spec.prefix is None else self.spec.prefix
        self._lower, self._stated_limit = stated.lower, stated.limit
        if self._prefix and not stated.include_prompt:
            raise ValueError(f"{self.name}: this model leaves its prompt out of the mean, which is not done here.")
        self._tokenizer = self._files.tokenizer()
        return self._files.network(_text_tower, self.pooling)

    def _limit(self) -> int:
        config, said = self._network.config, [self._tokenizer.model_max_length, self._stated_limit]
        said += [getattr(config, "max_position_embeddings", None), getattr(config, "n_positions", None)]
        for name, module in self._network.named_modules():  # RoBERTa counts positions from its padding token's number
            if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
                said.append(module.num_embeddings - module.padding_idx - 1)
        # a tokenizer without a limit says 10^30; T5, whose positions are relative, was trained on 512
        return int(min((limit for limit in said if limit and limit < 10**9), default=512))

    def _probe(self) -> Any:
        return "a"

    def _preprocessing(self) -> str:
        lower = "in lower case, " if self._lower else ""
        padded = "padded to the limit, " if self._padded() else ""
        return f"the model's own tokenizer, {lower}{padded}first {self._limit()} tokens, prefix {self._prefix!r}"

    def _padded(self) -> bool:  # SigLIP was trained on padded texts without a mask
        return str(self._network.config.model_type).startswith("siglip")

    def prepare(self, item: Any) -> tuple[int, ...]:
        """A text -> token numbers."""
        if not isinstance(item, str) or not item.strip():
            raise MediaError("Expected a text that is not empty.")
        if len(item) > MAX_TEXT_CHARS:
            raise MediaError(f"The text has {len(item):,} characters, more than the {MAX_TEXT_CHARS:,} taken here.")
        text = self._prefix + item.strip()
        padding = "max_length" if self._padded() else False
        tokens = self._tokenizer(
            text.lower() if self._lower else text, truncation=True, max_length=self._limit(), padding=padding
        )
        return tuple(tokens["input_ids"])

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
    """Whisper of any size (its encoder, mean over the frames that are there), wav2vec2, HuBERT, and CLAP's HTS-AT.

    Sounds are heard in windows: of at most 30 s, for CLAP of 10 s, its own length. A longer sound's latent is the
    mean over its windows, each counting by how long it is.
    """

    modality = "audio"

    def _load(self) -> Any:
        self._extractor = self._files.feature_extractor()
        network = self._files.network(_audio_tower, self.pooling)
        self._rate, self._kind = int(self._extractor.sampling_rate), str(network.config.model_type)
        if self._kind not in ("whisper", "wav2vec2", "hubert", "wavlm", "clap", "clap_audio_model"):
            raise ValueError(f"{self.name}: expected Whisper, wav2vec2, HuBERT, WavLM or CLAP, got {self._kind!r}.")
        self._clap = self._kind.startswith("clap")
        self._size = int(self._extractor.nb_max_samples) if self._clap else 30 * self._rate
        self._least = 1  # samples: what the convolutions need to give one frame
        kernels, strides = (getattr(network.config, f"conv_{what}", ()) for what in ("kernel", "stride"))
        for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
            self._least = (self._least - 1) * stride + kernel
        return network

    def _probe(self) -> Any:
        return self._rate, np.random.default_rng(0).uniform(-0.5, 0.5, self._rate).astype(np.float32)

    def _preprocessing(self) -> str:
        heard = f"the model's own feature extractor ({type(self._extractor).__name__})"
        return f"mono {self._rate / 1000:g} kHz; {heard}; windows of {self._size / self._rate:g} s"

    def prepare(self, item: Any) -> np.ndarray:
        """A path, bytes or (sample rate in Hz, samples) -> mono samples at the model's rate, float32."""
        samples = load_audio(item, sample_rate=self._rate)
        if len(samples) < self._least:
            needed = self._least / self._rate
            raise MediaError(f"The sound lasts {len(samples) / self._rate:.3f} s; this encoder needs {needed:.3f} s.")
        return samples

    def _shape(self, prepared: np.ndarray) -> Hashable:
        return len(prepared)

    def _run(self, prepared: Sequence[np.ndarray]) -> Tensor:
        return torch.stack([self._one(samples) for samples in prepared])  # one by one: no padding can leak

    def _one(self, samples: np.ndarray) -> Tensor:
        total: Tensor | float = 0.0
        count = 0
        for window in self._windows(samples):
            layers, weight = self._heard(window)
            total, count = total + weight * torch.cat([states.mean(0) for states in layers]), count + weight
        return torch.as_tensor(total) / count

    def _windows(self, samples: np.ndarray) -> list[np.ndarray]:
        """Windows one after another; a tail too short for the convolutions is heard with the window before it."""
        starts = list(range(0, len(samples), self._size))
        if len(starts) > 1 and len(samples) - starts[-1] < self._least:
            del starts[-1]
        return np.split(samples, starts[1:])

    def _heard(self, window: np.ndarray) -> tuple[list[Tensor], int]:
        """States of one window by layer, (T, D_x) each, and how much it counts."""
        features = self._extractor(window, sampling_rate=self._rate, return_tensors="pt")
        values = features[self._extractor.model_input_names[0]].to(self._device, torch.float32)
        more = {"is_longer": torch.zeros(1, 1, dtype=torch.bool)} if self._clap else {}
        layers = self._chosen(self._network(values, output_hidden_states=True, **more))
        if self._clap:  # maps (1, D_x, F, T) of a window that the extractor fills by repeating
            return [states[0].flatten(1).T for states in layers], len(window)
        keep = -(-len(window) // 320) if self._kind == "whisper" else layers[0].shape[1]  # 20 ms a frame
        return [states[0, :keep] for states in layers], keep


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


def _text_tower(whole: Any) -> Any:
    if getattr(whole, "text_model", None) is not None:  # CLIP, SigLIP, CLAP
        return whole.text_model
    # a saved T5EncoderModel no longer says that it was an encoder and a decoder
    return whole.get_encoder() if hasattr(whole, "encoder") and hasattr(whole, "decoder") else whole


def _audio_tower(whole: Any) -> Any:
    if whole.config.model_type == "whisper":  # WhisperEncoder.from_pretrained would load random weights, silently
        return whole.get_encoder()
    return getattr(whole, "audio_model", whole)


@dataclass(frozen=True)
class _Stated:
    """What a sentence-transformers model says of itself; the defaults are for every other model."""

    pooling: str = "mean"
    prompt: str = ""
    include_prompt: bool = True
    lower: bool = False
    limit: int | None = None
    subfolder: str = ""


class _Files:
    """A folder, or the files of one commit on the Hub, and what is loaded from them."""

    def __init__(self, source: str) -> None:
        self.source, self.folder = source, Path(source) if Path(source).is_dir() else None
        self._options: dict[str, Any] = {}
        if self.folder is None:
            self._options = _at_the_hub(source)

    def read(self, name: str) -> Any:
        """A JSON file's content, or None where the model has no such file."""
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        if self.folder is not None:
            path = self.folder / name
        else:
            try:
                path = Path(hf_hub_download(self.source, name, **self._options))
            except (EntryNotFoundError, LocalEntryNotFoundError):
                return None
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        except ValueError as error:
            raise ValueError(f"{path} is not JSON ({error}); download the model again.") from error

    def sentence_transformers(self, name: str, pooling: str | None) -> _Stated:
        """What ``modules.json`` and the files it names say; a stated pooling that is not known here is an error."""
        modules = self.read("modules.json")
        if not modules:
            return _Stated()
        paths = {str(module["type"]).rsplit(".", 1)[-1]: str(module["path"]) for module in modules}
        pool = self.read(f"{paths['Pooling']}/config.json") or {} if "Pooling" in paths else {}
        sub = paths.get("Transformer", "")
        if sub:
            self._options["subfolder"] = sub
        own = self.read(f"{sub}/sentence_bert_config.json" if sub else "sentence_bert_config.json") or {}
        prompts = self.read("config_sentence_transformers.json") or {}
        said = pool.get("pooling_mode")
        if said is None:
            said = [
                key.removeprefix("pooling_mode_") for key, on in pool.items() if key.startswith("pooling_mode_") and on
            ]
        modes = [said] if isinstance(said, str) else list(said)
        ours = "+".join(_THEIR_POOLING.get(mode, "?") for mode in modes) or "mean"
        if pooling is None and ours not in POOLINGS["hub-text"]:
            raise ValueError(
                f"{name}: the model pools by {' and '.join(modes)}, which is not done here; choose one of "
                f"{', '.join(POOLINGS['hub-text'])} with '?pooling='."
            )
        prompt = (prompts.get("prompts") or {}).get(prompts.get("default_prompt_name"), "")
        return _Stated(
            ours, prompt, bool(pool.get("include_prompt", True)), bool(own.get("do_lower_case")),
            own.get("max_seq_length"), sub,
        )  # fmt: skip

    def image_processor(self) -> Any:
        """The model's own, in its variant that needs no torchvision."""
        from transformers import AutoImageProcessor
        from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

        stated = self.read("preprocessor_config.json") or {}
        if str(stated.get("image_processor_type", "")).startswith("DINOv3"):
            # it exists for torchvision alone; the same steps, but resized by PIL (8 bits) and then scaled
            return self._fetch(ViTImageProcessorPil)
        return self._fetch(AutoImageProcessor, backend="pil")

    def tokenizer(self) -> Any:
        """The model's own."""
        from transformers import AutoTokenizer

        return self._fetch(AutoTokenizer)

    def feature_extractor(self) -> Any:
        """The model's own."""
        from transformers import AutoFeatureExtractor

        return self._fetch(AutoFeatureExtractor)

    def network(self, part: Any, pooling: str) -> Any:
        """The part of the network that is used, once every weight it needs is known to have been in the file.

        Raises:
            ValueError: If weights are missing, which transformers would fill at random.
        """
        from transformers import AutoModel

        whole, info = self._fetch(AutoModel, output_loading_info=True)
        used = part(whole)
        needed = {id(tensor) for tensor in used.state_dict(keep_vars=True).values()}
        names = whole.state_dict(keep_vars=True)
        missing = sorted(
            name
            for name in info["missing_keys"]
            if (name not in names or id(names[name]) in needed)
            and not _UNUSED.search(name)
            and (pooling == "pooler" or not _POOLER.search(name))
        )
        if missing:
            raise ValueError(
                f"The weights of {self.source} lack {len(missing)} tensors that the latent needs, the first "
                f"{missing[0]}; they would be filled at random. Download or save the model again."
            )
        return used

    def identity(self, network: Any) -> str:
        """The Hub commit, or the SHA-256 of a folder's weights and of what its processor and tokenizer are made of."""
        if self.folder is None:
            return str(self._options.get("revision") or getattr(network.config, "_commit_hash", None) or "unknown")
        folder = self.folder / self._options.get("subfolder", "")
        files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
        digest = hashlib.sha256()
        for path in sorted({path for pattern in _PROCESSOR_FILES for path in folder.glob(pattern)}):
            digest.update(path.name.encode() + b"\0" + _content(path) + b"\0")
        return "-".join([*(sha256_of(path)[:16] for path in files), digest.hexdigest()[:16]])

    def _fetch(self, auto: Any, **options: Any) -> Any:
        """``from_pretrained``, with one sentence when it cannot be had."""
        from safetensors import SafetensorError

        try:
            return auto.from_pretrained(self.source, **self._options, **options)
        except (OSError, ValueError, ImportError, RuntimeError, KeyError, SafetensorError) as error:
            said = (str(error).splitlines() or ["no reason given"])[0]
            raise FileNotFoundError(
                f"{self.source!r} could not be loaded as an encoder ({type(error).__name__}: {said}). Check the name "
                "and the network; for a gated model, accept its licence on its page and run 'hf auth login'."
            ) from error


def _content(path: Path) -> bytes:
    """A file's bytes; of JSON its content, without what changes with the version that wrote it."""
    if path.suffix != ".json":
        return path.read_bytes()
    content = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(content, dict):
        content = {k: v for k, v in content.items() if k not in ("transformers_version", "_name_or_path")}
    return json.dumps(content, sort_keys=True).encode()


def _at_the_hub(source: str) -> dict[str, Any]:
    """The commit to load, or, when the Hub cannot be reached, that only this machine's copies are to be used.

    Asked once and first: transformers would try again and again for every file.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import RepositoryNotFoundError

    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) or source.startswith((".", "/", "~")):
        raise FileNotFoundError(f"No folder at {source}; expected a folder or a Hub id like 'owner/name'.")
    try:
        return {"revision": HfApi().model_info(source, timeout=_HUB_TIMEOUT_S).sha}
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"The Hub has no model {source!r}, or it is private, and there is no such folder; check the name, or run "
            "'hf auth login'."
        ) from error
    except Exception as error:  # offline by choice, no network, a proxy, a busy Hub: each another type
        if not isinstance(try_to_load_from_cache(source, "config.json"), str):
            raise FileNotFoundError(
                f"{source!r} is no folder here, and the Hub cannot be reached ({type(error).__name__}); check the "
                "network, or download the model elsewhere and name its folder."
            ) from error
        return {"local_files_only": True}
