"""Hub encoders on small random models of the real classes, saved in the real format with their real processors."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as tf
from PIL import Image

from fusemix.encoders import load_encoder
from fusemix.encoders.recorded import load_recorded
from fusemix.media import MediaError, load_audio, load_image

GALLERY = Path(__file__).resolve().parents[2] / "demo" / "gallery"
SHAPE = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
CAPTIONS = ["a dog on the grass", "a red boat", "a cat", "two small children play with a ball"]


def gallery(column, n):
    with open(GALLERY / "pairs.csv", newline="") as handle:
        return [str(GALLERY / row[column]) for row in csv.DictReader(handle) if row[column]][:n]


def save(folder, model, processor):
    torch.manual_seed(0)
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Family -> folder of a small model."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("hub")
    size, mean = {"height": 28, "width": 28}, [0.5, 0.5, 0.5]
    pil = tf.models.vit.image_processing_pil_vit.ViTImageProcessorPil(size=size, image_mean=mean, image_std=mean)
    big = tf.models.vit.image_processing_pil_vit.ViTImageProcessorPil(size={"height": 64, "width": 96})
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "query",
        ":",
        *sorted({w for c in CAPTIONS for w in c.split()}),
    ]
    (root / "vocab.txt").write_text("\n".join(words))
    tokenizer = tf.BertTokenizerFast(str(root / "vocab.txt"), model_max_length=12)
    bert = tf.BertModel(tf.BertConfig(vocab_size=len(words), max_position_embeddings=16, **SHAPE))
    whisper = tf.WhisperModel(
        tf.WhisperConfig(
            vocab_size=64, d_model=16, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, pad_token_id=0, bos_token_id=1,
            eos_token_id=2, decoder_start_token_id=1,
        )
    )  # fmt: skip
    wave = tf.Wav2Vec2Model(
        tf.Wav2Vec2Config(
            conv_dim=(16, 16), conv_kernel=(10, 3), conv_stride=(160, 2), num_conv_pos_embeddings=4, **SHAPE
        )
    )
    clip = tf.CLIPModel(
        tf.CLIPConfig(
            vision_config={"image_size": 28, "patch_size": 14, **SHAPE},
            text_config={"vocab_size": 50, "max_position_embeddings": 16, **SHAPE},
        )
    )
    plain = {"image_size": 28, "patch_size": 14}
    return {
        "dinov2": save(root / "dinov2", tf.Dinov2Model(tf.Dinov2Config(**plain, **SHAPE)), pil),
        "registers": save(
            root / "registers",
            tf.Dinov2WithRegistersModel(tf.Dinov2WithRegistersConfig(num_register_tokens=2, **plain, **SHAPE)),
            pil,
        ),
        "vit": save(root / "vit", tf.ViTModel(tf.ViTConfig(**plain, **SHAPE)), pil),
        "clip": save(root / "clip", clip, pil),
        "convnext": save(
            root / "convnext", tf.ConvNextModel(tf.ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1] * 4)), big
        ),
        "bert": save(root / "bert", bert, tokenizer),
        "whisper": save(root / "whisper", whisper, tf.WhisperFeatureExtractor()),
        "wav2vec2": save(root / "wav2vec2", wave, tf.Wav2Vec2FeatureExtractor()),
    }


@pytest.mark.parametrize("pooling", ["cls", "mean", "cls+mean"])
@pytest.mark.parametrize("family", ["dinov2", "registers", "vit", "clip"])
def test_an_image_latent_is_the_librarys_own_forward(models, family, pooling):
    encoder = load_encoder(f"hub-image:{models[family]}?pooling={pooling}")
    picture = gallery("image", 1)[0]
    processor = tf.AutoImageProcessor.from_pretrained(models[family], backend="pil")
    network = tf.AutoModel.from_pretrained(models[family]).eval()
    network = network.vision_model if family == "clip" else network
    with torch.no_grad():
        states = network(**processor(images=load_image(picture), return_tensors="pt")).last_hidden_state[0]
    first = 3 if family == "registers" else 1  # class token, then registers
    parts = {"cls": states[0], "mean": states[first:].mean(0)}
    expected = torch.cat([parts[p] for p in pooling.split("+")])
    np.testing.assert_allclose(encoder.encode([picture])[0], expected, atol=1e-5)
    assert encoder.dim == len(expected)


def test_a_convolutional_backbone_is_pooled_over_its_map(models):
    picture = gallery("image", 1)[0]
    encoder = load_encoder(f"hub-image:{models['convnext']}?pooling=mean")
    processor = tf.AutoImageProcessor.from_pretrained(models["convnext"], backend="pil")
    network = tf.AutoModel.from_pretrained(models["convnext"]).eval()
    with torch.no_grad():
        maps = network(**processor(images=load_image(picture), return_tensors="pt")).last_hidden_state
    np.testing.assert_allclose(encoder.encode([picture]), maps.mean((2, 3)), atol=1e-5)
    with pytest.raises(ValueError, match="no class token"):
        load_encoder(f"hub-image:{models['convnext']}?pooling=cls").encode([picture])


def test_layers_count_from_the_end_and_stand_side_by_side(models):
    encoder = load_encoder(f"hub-text:{models['bert']}?pooling=cls&layers=-1,-2")
    tokens = tf.AutoTokenizer.from_pretrained(models["bert"])(CAPTIONS[0], return_tensors="pt")
    with torch.no_grad():
        states = tf.AutoModel.from_pretrained(models["bert"]).eval()(**tokens, output_hidden_states=True).hidden_states
    np.testing.assert_allclose(
        encoder.encode(CAPTIONS[:1])[0], torch.cat([states[-1][0, 0], states[-2][0, 0]]), atol=1e-5
    )
    with pytest.raises(ValueError, match="4 layers of states"):
        load_encoder(f"hub-text:{models['bert']}?layers=-9").encode(CAPTIONS)


def test_a_prefix_is_read_before_the_text_and_long_texts_are_cut(models):
    plain, prefixed = (load_encoder(f"hub-text:{models['bert']}{p}") for p in ("", "?prefix=query: "))
    np.testing.assert_allclose(prefixed.encode(["a cat"]), plain.encode(["query: a cat"]), atol=1e-6)
    assert "first 12 tokens" in plain.fingerprint and "query" in prefixed.fingerprint
    np.testing.assert_allclose(plain.encode(["a cat " * 40]), plain.encode(["a cat " * 5]), atol=1e-6)
    with pytest.raises(MediaError, match="not empty"):
        plain.encode([" "])


def test_a_whisper_latent_is_the_mean_over_the_frames_that_are_there(models):
    sound = gallery("audio", 1)[0]
    encoder, samples = load_encoder(f"hub-audio:{models['whisper']}"), load_audio(sound)
    features = tf.AutoFeatureExtractor.from_pretrained(models["whisper"])(
        samples, sampling_rate=16000, return_tensors="pt"
    )
    with torch.no_grad():
        states = tf.WhisperModel.from_pretrained(models["whisper"]).eval().encoder(**features).last_hidden_state[0]
    np.testing.assert_allclose(encoder.encode([sound])[0], states[: -(-len(samples) // 320)].mean(0), atol=1e-5)


def test_a_wav2vec2_latent_is_the_librarys_own_forward(models):
    sound = gallery("audio", 1)[0]
    features = tf.AutoFeatureExtractor.from_pretrained(models["wav2vec2"])(
        load_audio(sound), sampling_rate=16000, return_tensors="pt"
    )
    with torch.no_grad():
        states = tf.AutoModel.from_pretrained(models["wav2vec2"]).eval()(**features).last_hidden_state[0]
    np.testing.assert_allclose(
        load_encoder(f"hub-audio:{models['wav2vec2']}").encode([sound])[0], states.mean(0), atol=1e-5
    )


@pytest.mark.parametrize(
    ("kind", "family"), [("image", "dinov2"), ("text", "bert"), ("audio", "whisper"), ("audio", "wav2vec2")]
)
def test_a_latent_does_not_depend_on_its_batch(models, kind, family):
    items = CAPTIONS if kind == "text" else gallery(kind, 3)
    encoder = load_encoder(f"hub-{kind}:{models[family]}")
    alone = np.concatenate([encoder.encode([item]) for item in items])
    np.testing.assert_allclose(encoder.encode(items), alone, atol=1e-5)


def test_encoders_join_side_by_side_and_what_is_recorded_loads_them_again(models):
    name = f"hub-image:{models['vit']} ++ hub-image:{models['dinov2']}?pooling=cls+mean"
    both, picture = load_encoder(name), gallery("image", 1)
    parts = [load_encoder(part).encode(picture) for part in name.split(" ++ ")]
    np.testing.assert_array_equal(both.encode(picture), np.concatenate(parts, axis=1))
    again = load_recorded("image", {"image": both.info()})
    assert again.info() == both.info() and both.dim == 48
    with pytest.raises(ValueError, match="one modality"):
        load_encoder(f"hub-image:{models['vit']} ++ hub-text:{models['bert']}")


def test_other_weights_are_another_identity(models, tmp_path):
    torch.manual_seed(5)
    model = tf.BertModel.from_pretrained(models["bert"])
    model.embeddings.word_embeddings.weight.data += 1
    other = save(tmp_path, model, tf.AutoTokenizer.from_pretrained(models["bert"]))
    assert load_encoder(f"hub-text:{other}").revision != load_encoder(f"hub-text:{models['bert']}").revision


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hub-image:x/y?pool=cls", "known are pooling, layers and prefix"),
        ("hub-image:x/y?pooling=max", "pooling must be one of"),
        ("hub-audio:x/y?pooling=cls", "sounds: mean"),
        ("hub-text:x/y?layers=2", "count from the end"),
        ("hub-text:x/y?layers=last", "whole numbers"),
        ("hub-image:", "Expected an encoder like"),
    ],
)
def test_a_name_that_is_not_understood_is_refused_before_anything_is_loaded(name, said):
    with pytest.raises(ValueError, match=said):
        load_encoder(name)


def test_what_cannot_be_had_is_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="No encoder folder at"):
        load_encoder(f"hub-image:{tmp_path}/nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="lacks the files of its tokenizer"):
        load_encoder(f"hub-text:{tmp_path}/empty")


def test_a_picture_with_transparency_is_read_like_every_other(models, tmp_path):
    Image.new("RGBA", (40, 30), (200, 10, 10, 128)).save(tmp_path / "glass.png")
    assert np.isfinite(load_encoder(f"hub-image:{models['vit']}").encode([str(tmp_path / "glass.png")])).all()
