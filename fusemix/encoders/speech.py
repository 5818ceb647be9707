"""Whisper with its decoder: one frozen latent of the sound and of the words transcribed from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fusemix.encoders.audio import SAMPLES_PER_FRAME, WINDOW_S, WhisperTinyEn, attention_state, norm_state
from fusemix.encoders.text import MiniLML6
from fusemix.media import SAMPLE_RATE

TAIL_S = 1  # seconds of silence after the sound; without it Whisper repeats the sentence
TOKENS_PER_S = 6  # tokens a second: faster than speech, a bound for noise
_EOT, _SOT, _FIRST_TIME = 50256, 50257, 50363  # of tiny.en; a time token is 20 ms
_HEADS, _LAYERS, _WIDTH = 6, 4, 384
_BATCH = 128  # windows decoded at once; the product with 51,864 words is bound by memory below this


class Heard(NamedTuple):
    """Decoded words of one window.

    Attributes:
        tokens: (T,) int64, text tokens only.
        embedding: (384,), mean of their token embeddings; zeros without words.
        state: (384,), mean of the decoder's last hidden states at them; zeros likewise.
        log_probability: (), natural, summed over them: the decoder's confidence; zero likewise.
    """

    tokens: Tensor
    embedding: Tensor
    state: Tensor
    log_probability: Tensor


class Transcript(NamedTuple):
    """Words that Whisper tiny transcribed from a sound, possibly none; not a careful transcript.

    Attributes:
        words: As Whisper writes them, ``[BLANK_AUDIO]``, ``(music)`` and the like included.
        log_probability: Natural, the mean over its tokens: near 0 if Whisper was confident, 0 without words.
    """

    words: str
    log_probability: float


class WhisperTinyEnWords(WhisperTinyEn):
    """Whisper tiny.en, encoder and decoder (OpenAI, MIT): 1,152.

    The first 384 values are the mean of the encoder's states over the real frames, as in
    :class:`WhisperTinyEn` but with a second of silence after the sound. Then follow, from greedy decoding
    with time tokens, the mean of the words' token embeddings (384) and the mean of the decoder's last
    hidden states at them (384); both are zeros for a sound without words.
    Pooled encoder states alone describe the voice better than the words.

    A departure from the paper, whose Whisper latents are of the encoder alone.
    """

    name = "whisper-tiny.en-words"
    modality = "audio"
    dim = 3 * _WIDTH
    fingerprint = (
        "mono 16 kHz; log-mel 80; 29 s windows + 1 s silence; mean over real frames ++ mean token embedding ++ "
        "mean decoder state of the greedily heard words"
    )

    def __init__(self, *, device: str = "cpu") -> None:
        super().__init__(device=device)
        from whisper.model import TextDecoder

        decoder = TextDecoder(50257 + 1607, 448, _WIDTH, _HEADS, _LAYERS)
        decoder.load_state_dict(_decoder_state(self._variables))
        del self._variables
        self._decoder = decoder.eval().requires_grad_(False).to(device)

    def _keep(self, variables: dict[str, Tensor]) -> None:
        self._variables = {name: value for name, value in variables.items() if name.startswith("decoder/")}

    def encode_prepared(self, prepared: Sequence[np.ndarray]) -> np.ndarray:
        """Return latents, shape (N, 1152), float32. An item's latent does not depend on its batch."""
        return self.hear(prepared)[0]

    @torch.inference_mode()
    def hear(self, prepared: Sequence[np.ndarray]) -> tuple[np.ndarray, list[Transcript]]:
        """Return latents (N, dim), float32, as :meth:`encode_prepared` does, and the words of each sound."""
        windows = [(item, window) for item, samples in enumerate(prepared) for window in _windows(samples)]
        states = [self._window_states(window) for _, window in windows]
        heard = self._listen([len(window) for _, window in windows], states)
        latents = np.zeros((len(prepared), 3 * _WIDTH), dtype=np.float32)
        said = []
        for item in range(len(prepared)):
            mine = [i for i, (owner, _) in enumerate(windows) if owner == item]
            frames = torch.cat([states[i][: _n_frames(len(windows[i][1]))] for i in mine])
            counts = torch.tensor([float(len(heard[i].tokens)) for i in mine], device=frames.device)
            share = (counts / counts.sum().clamp(min=1))[:, None]
            words = (share * torch.stack([torch.cat([heard[i].embedding, heard[i].state]) for i in mine])).sum(0)
            latents[item] = torch.cat([frames.mean(0), words]).cpu().numpy()
            said.append(self._words([heard[i] for i in mine]))
        return latents, said

    def transcribe(self, item: Any) -> Transcript:
        """Transcribe a sound."""
        windows = _windows(self.prepare(item))
        return self._words(self._listen([len(w) for w in windows], [self._window_states(w) for w in windows]))

    def _words(self, heard: Sequence[Heard]) -> Transcript:
        from whisper.tokenizer import get_tokenizer

        words = " ".join(get_tokenizer(False).decode(h.tokens.tolist()).strip() for h in heard).strip()
        count = sum(len(h.tokens) for h in heard)
        return Transcript(words, sum(float(h.log_probability) for h in heard) / max(count, 1))

    def _window_states(self, samples: np.ndarray) -> Tensor:
        return self.frames(np.pad(samples, (0, TAIL_S * SAMPLE_RATE)))

    @torch.inference_mode()
    def _listen(self, lengths: Sequence[int], states: Sequence[Tensor]) -> list[Heard]:
        order = sorted(range(len(states)), key=lambda i: len(states[i]))
        out: dict[int, Heard] = {}
        for start in range(0, len(order), _BATCH):
            part = order[start : start + _BATCH]
            durations = torch.tensor([lengths[i] / SAMPLE_RATE for i in part], device=self._device)
            out |= dict(zip(part, listen(self._decoder, [states[i] for i in part], durations), strict=True))
        return [out[i] for i in range(len(states))]


class WhisperTinyEnSentence(WhisperTinyEnWords):
    """Whisper tiny.en as :class:`WhisperTinyEnWords`, and all-MiniLM-L6-v2 on its transcript: 1,536.

    The last 384 values are the latent of the transcript (:class:`fusemix.encoders.text.MiniLML6`, which reads the first
    256 word pieces, a minute or two of speech). The mean of words' embeddings tells which words were said; a sentence
    encoder tells what they mean together, which spoken captions need to find their photos (docs/results.md). What
    Whisper writes for sounds without speech, such as ``[BLANK_AUDIO]``, is encoded likewise; the adapter learns its
    weight. The values are zeros only if Whisper writes nothing at all.

    A departure from the paper, as is :class:`WhisperTinyEnWords`.
    """

    name = "whisper-tiny.en-sentence"
    dim = 4 * _WIDTH

    def __init__(self, *, device: str = "cpu") -> None:
        super().__init__(device=device)
        self._reader = MiniLML6(device=device)
        self.revision = f"{self.revision}+{self._reader.revision}"
        self.fingerprint = f"{super().fingerprint} ++ of these words: {self._reader.fingerprint}"

    def hear(self, prepared: Sequence[np.ndarray]) -> tuple[np.ndarray, list[Transcript]]:
        """Return latents, shape (N, 1536), float32, and the words. An item's latent does not depend on its batch."""
        latents, said = super().hear(prepared)
        read = np.zeros((len(said), self._reader.dim), dtype=np.float32)
        if spoken := [i for i, transcript in enumerate(said) if transcript.words]:
            read[spoken] = self._reader.encode_prepared([" ".join(said[i].words.split()) for i in spoken])
        return np.concatenate([latents, read], axis=1), said


def listen(decoder: Any, states: Sequence[Tensor], durations: Tensor) -> list[Heard]:
    """Decode a batch greedily, with padding masked out of the cross-attention.

    A sentence that repeats itself word for word is cut there: Whisper loops on short sounds.

    Args:
        decoder: openai-whisper's ``TextDecoder``.
        states: Encoder states, (T_i, 384) each.
        durations: (B,) seconds of sound in each, silence not counted.

    Returns:
        One :class:`Heard` for each.
    """
    device = durations.device
    lengths = torch.tensor([len(s) for s in states], device=device)
    padded = torch.nn.utils.rnn.pad_sequence(list(states), batch_first=True)  # (B, T, 384)
    mask = (torch.arange(padded.shape[1], device=device) < lengths[:, None])[:, None, None]
    cross = [(_split(b.cross_attn.key(padded)), _split(b.cross_attn.value(padded))) for b in decoder.blocks]
    limit = (durations * TOKENS_PER_S + 8).long().clamp(max=200)
    steps = int(limit.max()) + 2
    size = (2, len(states), _HEADS, steps, _WIDTH // _HEADS)
    own = [torch.zeros(size, device=device) for _ in decoder.blocks]
    token = torch.full((len(states),), _SOT, device=device)
    done = torch.zeros(len(states), dtype=torch.bool, device=device)
    tokens: list[Tensor] = []
    log_probabilities: list[Tensor] = []
    hidden: list[Tensor] = []
    for position in range(steps):
        h = _decode_one(decoder, token, position, own, cross, mask)  # (B, 384)
        if position == 0:  # the prompt: start of transcript, then time 0
            token = torch.full_like(token, _FIRST_TIME)
            continue
        if position > 1:
            hidden.append(h)
        logits = h @ decoder.token_embedding.weight.T
        logits[:, _EOT + 1 : _FIRST_TIME] = -torch.inf
        if position == 1:
            logits[:, _FIRST_TIME:] = -torch.inf
        highest, token = logits.max(1)
        log_probabilities.append(highest - logits.logsumexp(1))
        ended = (token >= _FIRST_TIME) & ((token - _FIRST_TIME) * 0.02 >= durations - 1)
        done |= ended | (position > limit) | (token == _EOT) | _starts_again(tokens, token)
        token = torch.where(done, _EOT, token)
        tokens.append(token)
        if done.all():
            break
    heard_tokens, sure = torch.stack(tokens, dim=1), torch.stack(log_probabilities, dim=1)  # (B, S) each
    heard_states = torch.stack(hidden, dim=1) if hidden else padded.new_zeros(len(states), 0, _WIDTH)
    return [_pool(decoder, *of_one) for of_one in zip(heard_tokens, heard_states, sure, strict=True)]


def _starts_again(tokens: list[Tensor], token: Tensor) -> Tensor:
    """Return whether the last four tokens of each row are its first four."""
    if len(tokens) < 7:
        return torch.zeros_like(token, dtype=torch.bool)
    return (torch.stack([*tokens[-3:], token]) == torch.stack(tokens[:4])).all(0)


def _decode_one(
    decoder: Any, token: Tensor, position: int, own: list[Tensor], cross: list[tuple[Tensor, Tensor]], mask: Tensor
) -> Tensor:
    x = (decoder.token_embedding(token) + decoder.positional_embedding[position])[:, None]  # (B, 1, 384)
    for block, cache, (key, value) in zip(decoder.blocks, own, cross, strict=True):
        h = block.attn_ln(x)
        cache[0, :, :, position : position + 1] = _split(block.attn.key(h))
        cache[1, :, :, position : position + 1] = _split(block.attn.value(h))
        past = cache[:, :, :, : position + 1]
        x = x + block.attn.out(_join(F.scaled_dot_product_attention(_split(block.attn.query(h)), past[0], past[1])))
        query = _split(block.cross_attn.query(block.cross_attn_ln(x)))
        x = x + block.cross_attn.out(_join(F.scaled_dot_product_attention(query, key, value, attn_mask=mask)))
        x = x + block.mlp(block.mlp_ln(x))
    out: Tensor = decoder.ln(x)[:, 0]
    return out


def _pool(decoder: Any, tokens: Tensor, states: Tensor, log_probabilities: Tensor) -> Heard:
    words = (tokens < _EOT).nonzero()[:, 0]
    text = tokens[words].tolist()
    for repeat in range(4, len(text) - 3):
        if text[repeat : repeat + 4] == text[:4]:
            words = words[:repeat]
            break
    if not len(words):
        nothing = states.new_zeros(_WIDTH)
        return Heard(tokens[words], nothing, nothing, nothing.sum())
    embedding = decoder.token_embedding(tokens[words]).mean(0)
    return Heard(tokens[words], embedding, states[words].mean(0), log_probabilities[words].sum())


def _windows(samples: np.ndarray) -> list[np.ndarray]:
    size = (WINDOW_S - TAIL_S) * SAMPLE_RATE
    return [samples[start : start + size] for start in range(0, max(len(samples), 1), size)]


def _n_frames(n_samples: int) -> int:
    return -(-n_samples // SAMPLES_PER_FRAME)


def _split(x: Tensor) -> Tensor:  # (B, T, 384) -> (B, heads, T, 64)
    heads: Tensor = x.unflatten(2, (_HEADS, -1))
    return heads.transpose(1, 2)


def _join(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def _decoder_state(variables: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename CTranslate2's decoder variables to openai-whisper's TextDecoder."""
    state = {
        "positional_embedding": variables["decoder/position_encodings/encodings"],
        "token_embedding.weight": variables["decoder/embeddings/weight"],
        **norm_state(variables, "decoder/layer_norm", "ln"),
    }
    for i in range(_LAYERS):
        source, target = f"decoder/layer_{i}", f"blocks.{i}"
        state |= attention_state(variables, source, target)
        cross = f"{source}/attention"
        key, value = variables[f"{cross}/linear_1/weight"].chunk(2)
        _, value_bias = variables[f"{cross}/linear_1/bias"].chunk(2)
        state |= {
            f"{target}.cross_attn.query.weight": variables[f"{cross}/linear_0/weight"],
            f"{target}.cross_attn.query.bias": variables[f"{cross}/linear_0/bias"],
            f"{target}.cross_attn.key.weight": key,
            f"{target}.cross_attn.value.weight": value,
            f"{target}.cross_attn.value.bias": value_bias,
            f"{target}.cross_attn.out.weight": variables[f"{cross}/linear_2/weight"],
            f"{target}.cross_attn.out.bias": variables[f"{cross}/linear_2/bias"],
        }
        state |= norm_state(variables, f"{cross}/layer_norm", f"{target}.cross_attn_ln")
    return state
