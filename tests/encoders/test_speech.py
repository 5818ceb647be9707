"""The listening encoder: beside openai-whisper's own decoder, alone and in a batch, with and without words."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fusemix.encoders import load_encoder
from fusemix.encoders.speech import _EOT, _FIRST_TIME, _SOT, Transcript, _pool, _windows, decode_greedily

EXAMPLES = Path(__file__).resolve().parents[2] / "demo/examples"
DOG, CAR, CAKE = (str(EXAMPLES / f"spoken-{name}.mp3") for name in ("dog", "car", "cake"))


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("whisper-tiny.en-words")


def test_it_hears_the_words(encoder):
    assert "dog running on the grass" in encoder.transcribe(DOG).words.lower()
    assert "birthday cake" in encoder.transcribe(CAKE).words.lower()


def test_the_latent_is_frames_then_words_then_states_of_whispers_own_decoder(encoder):
    samples = encoder.prepare(CAR)
    states = encoder.frames(np.pad(samples, (0, 16_000)))
    heard = decode_greedily(encoder._decoder, [states], torch.tensor([len(samples) / 16_000]))[0]
    prompt = torch.tensor([_SOT, _FIRST_TIME])
    caught = {}
    hook = encoder._decoder.ln.register_forward_hook(lambda *a: caught.update(states=a[2][0]))
    with torch.no_grad():
        logits = encoder._decoder(torch.cat([prompt, heard.tokens])[None], states[None])[0]
    hook.remove()
    logits[:, _EOT + 1 : _FIRST_TIME] = -torch.inf
    logits[1, _FIRST_TIME:] = -torch.inf
    assert logits[1:-1].argmax(1).tolist() == heard.tokens.tolist()  # greedy, as the library's own forward has it
    latent = encoder.encode([CAR])[0]
    assert latent.shape == (encoder.dim,) == (1152,)
    assert latent[:384] == pytest.approx(states[: -(-len(samples) // 320)].mean(0).numpy(), abs=1e-4)
    words = encoder._decoder.token_embedding(heard.tokens).mean(0).numpy()
    assert latent[384:768] == pytest.approx(words, abs=1e-5)
    assert latent[768:] == pytest.approx(caught["states"][2:].mean(0).numpy(), abs=1e-3)
    sure = logits[1:-1].log_softmax(1).max(1).values.mean()
    assert encoder.transcribe(CAR).log_probability == pytest.approx(float(sure), abs=1e-3)


def test_a_latent_does_not_depend_on_its_batch(encoder):
    noise = (16_000, np.random.default_rng(0).normal(0, 0.1, 90_000).astype(np.float32))
    alone = np.concatenate([encoder.encode([item]) for item in (DOG, CAKE)])
    together = encoder.encode([noise, DOG, CAR, CAKE])[[1, 3]]
    assert together == pytest.approx(alone, abs=1e-3)


def test_a_sound_without_words_has_zeros_for_words(encoder):
    end = torch.full((5,), _EOT)
    heard = _pool(encoder._decoder, end, torch.randn(5, 384), torch.full((5,), -9.0))
    assert len(heard.tokens) == 0
    assert not heard.embedding.any()
    assert not heard.state.any()
    assert heard.log_probability == 0


def test_a_sentence_that_starts_again_counts_once(encoder):
    words = torch.tensor([317, 3290, 2491, 319, 262, 8701, 13])
    states = torch.randn(18, 384)
    sure = -torch.arange(18.0)
    once = _pool(encoder._decoder, words, states, sure)
    twice = _pool(encoder._decoder, torch.cat([words, words, words[:4]]), states, sure)
    assert twice.tokens.tolist() == words.tolist()
    assert torch.equal(twice.embedding, once.embedding)
    assert torch.equal(twice.state, once.state)
    assert twice.log_probability == once.log_probability == -21


@pytest.fixture(scope="module")
def reading():
    return load_encoder("whisper-tiny.en-sentence")


def test_the_sentence_heard_stands_behind_the_words_as_the_text_encoder_reads_it(encoder, reading):
    text = load_encoder("minilm-l6")
    latents = reading.encode([DOG, CAKE])
    assert latents.shape == (2, reading.dim) == (2, 1536)
    np.testing.assert_array_equal(latents[:, :1152], encoder.encode([DOG, CAKE]))
    wanted = text.encode([encoder.transcribe(item).words for item in (DOG, CAKE)])
    assert latents[:, 1152:] == pytest.approx(wanted, abs=1e-4)
    typed = text.encode(["a dog running on the grass", "a birthday cake"])
    cosine = (latents[:, 1152:] @ typed.T) / np.outer(
        np.linalg.norm(latents[:, 1152:], axis=1), np.linalg.norm(typed, axis=1)
    )
    assert cosine.argmax(1).tolist() == [0, 1] and cosine.diagonal().min() > 0.8
    assert reading.revision == f"{encoder.revision}+{text.revision}"
    assert text.fingerprint in reading.fingerprint and encoder.fingerprint in reading.fingerprint


def test_a_sound_without_words_has_no_sentence_and_spoils_none_beside_it(reading, monkeypatch):
    words = reading._words
    alone = reading.encode([DOG])[0]
    monkeypatch.setattr(
        reading, "_words", lambda heard: found if "dog" in (found := words(heard)).words else Transcript("", 0.0)
    )
    both = reading.encode([CAKE, DOG])
    assert not both[0, 1152:].any() and both[0, :1152].any()
    assert both[1] == pytest.approx(alone, abs=1e-3)


def test_words_of_an_hour_are_read_as_far_as_the_text_encoder_reads(reading, monkeypatch):
    said = "a dog runs over the grass and barks at a cat " * 3000  # more than a typed text may have
    monkeypatch.setattr(reading, "_words", lambda heard: Transcript(said, -0.1))
    sentence = reading.encode([DOG])[0, 1152:]
    assert np.isfinite(sentence).all() and sentence.any()


def test_noise_is_heard_and_read_the_same_alone_and_in_a_batch(reading):
    rng = np.random.default_rng(1)
    noises = [(16_000, rng.normal(0, level, 40_000).astype(np.float32)) for level in (0.001, 0.1)]
    together = reading.encode([noises[0], DOG, noises[1]])
    assert np.isfinite(together).all()
    assert together[[0, 2]] == pytest.approx(np.concatenate([reading.encode([n]) for n in noises]), abs=1e-3)


def test_encoders_that_read_words_share_one_network_while_there_is_one(reading):
    text = load_encoder("minilm-l6")
    assert reading._reader._network is text._network
    assert load_encoder("minilm-l6", device="meta")._network is not text._network


def test_one_hearing_gives_latents_and_words(reading, monkeypatch):
    listened = []
    listen_once = reading._decode
    monkeypatch.setattr(reading, "_decode", lambda *given: listened.append(given) or listen_once(*given))
    latents, said = reading.encode_and_transcribe([reading.prepare(DOG), reading.prepare(CAKE)])
    assert len(listened) == 1 and "dog running" in said[0].words and "birthday cake" in said[1].words
    np.testing.assert_array_equal(latents, reading.encode([DOG, CAKE]))


def test_a_long_sound_is_heard_in_windows(encoder):
    first, second = encoder.prepare(DOG), encoder.prepare(CAKE)
    long = np.concatenate([first, np.zeros(29 * 16_000 - len(first), np.float32), second])
    text = encoder.transcribe((16_000, long)).words.lower()
    assert "dog" in text
    assert "birthday cake" in text
    windows = _windows(encoder.prepare((16_000, long)))
    heard = encoder._decode([len(w) for w in windows], [encoder._window_states(w) for w in windows])
    sure = [float(h.log_probability) / len(h.tokens) for h in heard]
    weighted = np.average(sure, weights=[len(h.tokens) for h in heard])
    assert encoder.transcribe((16_000, long)).log_probability == pytest.approx(weighted, abs=1e-4)
    assert len(sure) == 2 and abs(weighted - sure[0]) > 1e-3
