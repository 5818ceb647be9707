"""Every family of Hub encoder on a small model of its real class: our latent is the library's own forward."""

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as tf
from PIL import Image
from safetensors.torch import load_file, save_file

from fusemix.encoders import load_encoder
from fusemix.media import MediaError, load_audio, load_image

SHAPE = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "query", ":", "a", "dog", "on", "the", "grass", "red", "boat"]
TEXTS = ["a dog on the grass", "a red boat", "boat", "the dog"]
ATOL = 1e-5


def save(folder, model, processor):
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def bert_tokenizer(folder, **options):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "words.txt").write_text("\n".join(WORDS))
    return tf.BertTokenizerFast(str(folder / "words.txt"), **options)


def unigram(folder, *, eos, pad_id=0, **options):
    """A real fast tokenizer that ends each text with a token, as T5's, CLIP's and RoBERTa's do."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {word: i for i, word in enumerate(["<pad>", eos, "<unk>", *WORDS[5:]])}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(single=f"$A {eos}", special_tokens=[(eos, words[eos])])
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=eos, pad_token="<pad>", unk_token="<unk>", **options
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("families")
    size, mean = {"height": 32, "width": 32}, [0.5, 0.5, 0.5]
    pil = tf.models.vit.image_processing_pil_vit.ViTImageProcessorPil(size=size, image_mean=mean, image_std=mean)
    plain = {"image_size": 32, "patch_size": 16}
    siglip = tf.SiglipModel(
        tf.SiglipConfig(
            vision_config={**plain, **SHAPE},
            text_config={"vocab_size": 16, "max_position_embeddings": 8, "pad_token_id": 0, "eos_token_id": 1, **SHAPE},
        )
    )
    clip = tf.CLIPModel(
        tf.CLIPConfig(
            vision_config={**plain, **SHAPE},
            text_config={"vocab_size": 16, "max_position_embeddings": 8, "eos_token_id": 1, **SHAPE},
        )
    )
    stages = {"hidden_sizes": [8, 8, 12, 16], "depths": [1] * 4}
    clap = tf.ClapModel(
        tf.ClapConfig(
            audio_config={
                "spec_size": 256, "num_mel_bins": 64, "patch_embeds_hidden_size": 8, "depths": [1, 1, 1, 1],
                "num_attention_heads": [1, 1, 2, 2], "hidden_size": 64, "window_size": 8,
            },
            text_config={"vocab_size": 16, "max_position_embeddings": 20, **SHAPE},
        )
    )  # fmt: skip
    for module in clap.modules():  # fresh running statistics would hide a batch norm that was not loaded
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-40, -20), module.running_var.uniform_(100, 400)
    wave = {"conv_dim": (16, 16), "conv_kernel": (10, 3), "conv_stride": (160, 2), "num_conv_pos_embeddings": 4}
    roberta = {"vocab_size": 16, "max_position_embeddings": 12, "pad_token_id": 1}
    t5 = {"vocab_size": 16, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    dinov3 = save(root / "dinov3", tf.DINOv3ViTModel(tf.DINOv3ViTConfig(num_register_tokens=2, **plain, **SHAPE)), pil)
    processor = json.loads(Path(dinov3, "preprocessor_config.json").read_text())
    processor["image_processor_type"] = "DINOv3ViTImageProcessorFast"  # as on the Hub
    Path(dinov3, "preprocessor_config.json").write_text(json.dumps(processor))
    return {
        "dinov3": dinov3,
        "dinov3_convnext": save(root / "dc", tf.DINOv3ConvNextModel(tf.DINOv3ConvNextConfig(**stages)), pil),
        "siglip": save(root / "siglip", siglip, pil),
        "convnext": save(root / "convnext", tf.ConvNextModel(tf.ConvNextConfig(**stages)), pil),
        "deit": save(root / "deit", tf.DeiTModel(tf.DeiTConfig(**plain, **SHAPE)), pil),
        "clip": save(root / "clip", clip, pil),
        "siglip_text": save(root / "siglip_t", siglip, unigram(root, eos="</s>", model_max_length=8)),
        "clip_text": save(root / "clip_t", clip, unigram(root, eos="<|end|>", model_max_length=8)),
        "t5": save(root / "t5", tf.T5Model(tf.T5Config(**t5)), unigram(root, eos="</s>", model_max_length=6)),
        "t5_encoder": save(root / "t5e", tf.T5EncoderModel(tf.T5Config(**t5)), unigram(root, eos="</s>")),
        "roberta": save(
            root / "roberta",
            tf.RobertaModel(tf.RobertaConfig(**roberta, **SHAPE)),
            unigram(root, eos="</s>", model_max_length=512),
        ),
        "bert": save(
            root / "bert",
            tf.BertModel(tf.BertConfig(vocab_size=len(WORDS), max_position_embeddings=16, **SHAPE)),
            bert_tokenizer(root / "words", model_max_length=12),
        ),
        "clap": save(root / "clap", clap, tf.ClapFeatureExtractor(truncation="rand_trunc", padding="repeatpad")),
        "hubert": save(
            root / "hubert", tf.HubertModel(tf.HubertConfig(**wave, **SHAPE)), tf.Wav2Vec2FeatureExtractor()
        ),
        "wav2vec2": save(
            root / "wave", tf.Wav2Vec2Model(tf.Wav2Vec2Config(**wave, **SHAPE)), tf.Wav2Vec2FeatureExtractor()
        ),
    }  # fmt: skip


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    paths = [folder / f"{i}.png" for i in range(3)]
    for i, path in enumerate(paths):
        coarse = Image.fromarray(rng.integers(0, 256, (5, 4 + i, 3), dtype=np.uint8))
        coarse.resize((70 + 9 * i, 50)).save(path)
    return [str(path) for path in paths]


def sound(seconds, seed=0, rate=16000):
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * rate)) / rate
    return rate, (0.3 * np.sin(2 * np.pi * (200 + 100 * seed) * t) + rng.normal(0, 0.05, len(t))).astype(np.float32)


def pixels(folder, picture):
    try:
        processor = tf.AutoImageProcessor.from_pretrained(folder, backend="pil")
    except Exception:  # DINOv3
        processor = tf.models.vit.image_processing_pil_vit.ViTImageProcessorPil.from_pretrained(folder)
    return processor(images=load_image(picture), return_tensors="pt")["pixel_values"]


@torch.no_grad()
def vision(folder, picture):
    network = tf.AutoModel.from_pretrained(folder).eval()
    return getattr(network, "vision_model", network)(pixels(folder, picture), output_hidden_states=True)


@pytest.mark.parametrize(
    ("family", "pooling", "first"),
    [
        ("dinov3", "cls+mean", 3), ("dinov3", "pooler", 3), ("dinov3_convnext", "cls+mean", 1), ("deit", "cls+mean", 2),
        ("siglip", "mean", 0), ("siglip", "pooler", 0), ("clip", "cls+mean", 1), ("clip", "pooler", 1),
        ("convnext", "pooler", 0),
    ],
)  # fmt: skip
def test_a_picture(models, pictures, family, pooling, first):
    out = vision(models[family], pictures[0])
    parts = {"pooler": out.pooler_output[0]}
    if out.last_hidden_state.ndim == 3:
        parts |= {"cls": out.last_hidden_state[0, 0], "mean": out.last_hidden_state[0, first:].mean(0)}
    expected = torch.cat([parts[part] for part in pooling.split("+")])
    encoder = load_encoder(f"hub-image:{models[family]}?pooling={pooling}")
    np.testing.assert_allclose(encoder.encode(pictures[:1])[0], expected, atol=ATOL)
    assert encoder.dim == len(expected)


@pytest.mark.parametrize("family", ["convnext", "dinov3_convnext"])
def test_stages_of_other_widths_stand_side_by_side(models, pictures, family):
    encoder = load_encoder(f"hub-image:{models[family]}?pooling=mean&layers=-1,-2")
    out = vision(models[family], pictures[0])
    last = out.last_hidden_state
    last = last[0, 1:].mean(0) if last.ndim == 3 else last[0].mean((1, 2))
    expected = torch.cat([last, out.hidden_states[-2][0].mean((1, 2))])
    assert encoder.dim == len(expected) == 28
    np.testing.assert_allclose(encoder.encode(pictures[:1])[0], expected, atol=ATOL)


@pytest.mark.parametrize("name", ["convnext", "siglip"])
def test_a_network_without_a_class_token_is_refused_when_it_is_loaded(models, name):
    with pytest.raises(ValueError, match="no class token; use pooling=mean"):
        load_encoder(f"hub-image:{models[name]}")


def test_dinov3s_pictures_are_those_of_its_own_steps(models, pictures):
    """Theirs: scale, resize with antialiasing, normalise; ours rounds to 8 bits after the resize."""
    ours = load_encoder(f"hub-image:{models['dinov3']}").prepare(pictures[0])
    scaled = torch.from_numpy(np.array(load_image(pictures[0]))).permute(2, 0, 1)[None].float() / 255
    theirs = torch.nn.functional.interpolate(scaled, (32, 32), mode="bilinear", antialias=True)
    np.testing.assert_allclose(ours[None], (theirs - 0.5) / 0.5, atol=3 / 255)


@torch.no_grad()
def text_states(folder, text, tower, **options):
    tokens = tf.AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt", **options)
    network = tower(tf.AutoModel.from_pretrained(folder).eval())
    return network(input_ids=tokens["input_ids"], output_hidden_states=True)


def test_a_t5_text_is_its_encoders(models):
    expected = text_states(models["t5"], TEXTS[1], lambda m: m.get_encoder()).last_hidden_state[0].mean(0)
    np.testing.assert_allclose(load_encoder(f"hub-text:{models['t5']}").encode(TEXTS[1:2])[0], expected, atol=ATOL)
    alone = text_states(
        models["t5_encoder"], TEXTS[1], lambda m: tf.T5EncoderModel.from_pretrained(models["t5_encoder"])
    )
    np.testing.assert_allclose(
        load_encoder(f"hub-text:{models['t5_encoder']}").encode(TEXTS[1:2])[0],
        alone.last_hidden_state[0].mean(0),
        atol=ATOL,
    )


def test_a_clip_text_is_the_state_of_its_last_token(models):
    expected = text_states(models["clip_text"], TEXTS[0], lambda m: m.text_model)
    encoder = load_encoder(f"hub-text:{models['clip_text']}?pooling=last")
    np.testing.assert_allclose(encoder.encode(TEXTS[:1])[0], expected.last_hidden_state[0, -1], atol=ATOL)
    np.testing.assert_allclose(expected.last_hidden_state[0, -1], expected.pooler_output[0], atol=ATOL)


def test_a_siglip_text_is_padded_as_it_was_trained(models):
    tower = {"padding": "max_length", "max_length": 8}
    expected = text_states(models["siglip_text"], TEXTS[1], lambda m: m.text_model, **tower).pooler_output[0]
    encoder = load_encoder(f"hub-text:{models['siglip_text']}?pooling=pooler")
    np.testing.assert_allclose(encoder.encode(TEXTS[1:2])[0], expected, atol=ATOL)


def test_robertas_limit_leaves_out_the_positions_before_its_first(models):
    encoder = load_encoder(f"hub-text:{models['roberta']}")
    assert "first 10 tokens" in encoder.fingerprint  # 12 - padding's 1 - 1
    cut = text_states(models["roberta"], "dog " * 40, lambda m: m, truncation=True, max_length=10)
    np.testing.assert_allclose(encoder.encode(["dog " * 40])[0], cut.last_hidden_state[0].mean(0), atol=ATOL)


def clap_reference(folder, samples):
    extractor = tf.ClapFeatureExtractor.from_pretrained(folder)
    features = extractor(samples, sampling_rate=48000, return_tensors="pt")
    with torch.no_grad():
        return tf.ClapModel.from_pretrained(folder).eval().audio_model(features["input_features"]).pooler_output[0]


def test_clap_hears_48_khz_and_pools_as_its_own_tower(models):
    encoder = load_encoder(f"hub-audio:{models['clap']}")
    rate, samples = sound(3, rate=48000)
    np.testing.assert_array_equal(encoder.prepare((rate, samples)), samples)  # not by way of 16 kHz
    np.testing.assert_allclose(encoder.encode([(rate, samples)])[0], clap_reference(models["clap"], samples), atol=ATOL)
    assert "48 kHz" in encoder.fingerprint and "windows of 10 s" in encoder.fingerprint


def test_clap_hears_the_whole_of_a_long_sound(models):
    rate, samples = sound(14, rate=48000)
    first, rest = (clap_reference(models["clap"], part) for part in np.split(samples, [10 * rate]))
    encoder = load_encoder(f"hub-audio:{models['clap']}")
    np.testing.assert_allclose(encoder.encode([(rate, samples)])[0], (10 * first + 4 * rest) / 14, atol=ATOL)


def test_a_sound_can_be_read_at_any_rate():
    rate, samples = sound(1, rate=16000)
    at_48 = load_audio((rate, samples), sample_rate=48000)
    assert len(at_48) == pytest.approx(48000, abs=100)
    tone = np.abs(np.fft.rfft(at_48[4800:43200]))
    assert np.argmax(tone) * 48000 / 38400 == pytest.approx(200, abs=2)


@pytest.mark.parametrize("family", ["wav2vec2", "hubert"])
def test_a_tail_too_short_to_hear_is_heard_with_the_window_before_it(models, family):
    rate, samples = sound(30 + 100 / 16000)
    encoder = load_encoder(f"hub-audio:{models[family]}")
    features = tf.AutoFeatureExtractor.from_pretrained(models[family])(samples, sampling_rate=rate, return_tensors="pt")
    with torch.no_grad():
        states = tf.AutoModel.from_pretrained(models[family]).eval()(**features).last_hidden_state[0]
    np.testing.assert_allclose(encoder.encode([(rate, samples)])[0], states.mean(0), atol=ATOL)


@pytest.mark.parametrize(
    ("kind", "family", "options"),
    [
        ("image", "dinov3", ""), ("image", "dinov3_convnext", ""), ("image", "siglip", "?pooling=pooler"),
        ("image", "convnext", "?pooling=mean&layers=-1,-2"), ("image", "clip", ""), ("image", "deit", ""),
        ("text", "t5", ""), ("text", "clip_text", "?pooling=last"), ("text", "siglip_text", "?pooling=pooler"),
        ("text", "roberta", ""), ("text", "bert", "?pooling=cls+mean"), ("audio", "clap", ""), ("audio", "hubert", ""),
        ("audio", "wav2vec2", ""),
    ],
)  # fmt: skip
def test_a_latent_does_not_depend_on_its_batch(models, pictures, kind, family, options):
    sounds = [sound(1, 1), sound(0.4, 2), sound(1, 3)]
    items = {"image": pictures, "text": TEXTS, "audio": sounds}[kind]
    encoder = load_encoder(f"hub-{kind}:{models[family]}{options}")
    together, alone = encoder.encode(items), np.concatenate([encoder.encode([item]) for item in items])
    np.testing.assert_allclose(together, alone, atol=ATOL)
    assert together.dtype == np.float32 and np.ptp(together, axis=0).max() > 1e-3


@pytest.mark.parametrize(
    ("kind", "family", "tensor"),
    [
        ("text", "bert", "encoder.layer.1.attention.self.query.weight"), ("text", "t5", "shared.weight"),
        ("audio", "clap", "audio_model.audio_encoder.batch_norm.running_mean"), ("image", "dinov3", "norm.weight"),
    ],
)  # fmt: skip
def test_missing_weights_are_refused_and_not_drawn_at_random(models, tmp_path, kind, family, tensor):
    folder = tmp_path / "cut"
    shutil.copytree(models[family], folder)
    weights = load_file(folder / "model.safetensors")
    del weights[tensor]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lack . tensors that the latent needs"):
        load_encoder(f"hub-{kind}:{folder}?pooling=mean")


def test_weights_of_another_shape_are_refused(models, tmp_path):
    folder = tmp_path / "other"
    shutil.copytree(models["bert"], folder)
    weights = load_file(folder / "model.safetensors")
    weights["encoder.layer.0.output.dense.weight"] = torch.zeros(3, 3)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FileNotFoundError, match="could not be loaded as an encoder"):
        load_encoder(f"hub-text:{folder}")


def test_weights_that_no_latent_needs_may_be_missing(models, tmp_path):
    folder = tmp_path / "no-pooler"
    shutil.copytree(models["bert"], folder)
    weights = {k: v for k, v in load_file(folder / "model.safetensors").items() if not k.startswith("pooler")}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    plain = load_encoder(f"hub-text:{models['bert']}").encode(TEXTS)
    np.testing.assert_allclose(load_encoder(f"hub-text:{folder}").encode(TEXTS), plain, atol=ATOL)
    with pytest.raises(ValueError, match="pooler.dense"):
        load_encoder(f"hub-text:{folder}?pooling=pooler")


@pytest.mark.parametrize(
    ("kind", "family", "file", "key", "value"),
    [
        ("image", "deit", "preprocessor_config.json", "image_mean", [0.1, 0.1, 0.1]),
        ("text", "bert", "tokenizer_config.json", "do_lower_case", False),
        ("audio", "hubert", "preprocessor_config.json", "do_normalize", False),
    ],
)
def test_another_processor_is_another_identity(models, tmp_path, kind, family, file, key, value):
    folder = tmp_path / "changed"
    shutil.copytree(models[family], folder)
    before = load_encoder(f"hub-{kind}:{folder}").info()
    same = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(same))  # laid out otherwise, says the same
    assert load_encoder(f"hub-{kind}:{folder}").info() == before
    (folder / file).write_text(json.dumps({**same, key: value}))
    assert load_encoder(f"hub-{kind}:{folder}").info() != before


@pytest.mark.parametrize("mode", ["cls", "mean", "lasttoken", ["cls", "mean"]])
@pytest.mark.parametrize("prompt", ["", "query: "])
def test_a_sentence_transformers_model_is_pooled_as_it_says(models, tmp_path, mode, prompt):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    words = Transformer(models["bert"], max_seq_length=7)
    theirs = SentenceTransformer(
        modules=[words, Pooling(16, pooling_mode=mode), Normalize()],
        prompts={"ask": "query: "},
        default_prompt_name="ask" if prompt else None,
    )
    theirs.save(str(tmp_path / "st"))
    texts = [*TEXTS, "a red dog on the grass on the boat"]
    encoder = load_encoder(f"hub-text:{tmp_path / 'st'}")
    ours = encoder.encode(texts)
    expected = SentenceTransformer(str(tmp_path / "st"), device="cpu").encode(texts)
    np.testing.assert_allclose(ours / np.linalg.norm(ours, axis=1, keepdims=True), expected, atol=ATOL)
    assert "first 7 tokens" in encoder.fingerprint and repr(prompt) in encoder.fingerprint
    other = load_encoder(f"hub-text:{tmp_path / 'st'}?pooling=mean&prefix=")
    folder = tmp_path / "st"
    plain = text_states(folder, texts[0], lambda m: m).last_hidden_state[0].mean(0)
    np.testing.assert_allclose(other.encode(texts[:1])[0], plain, atol=ATOL)


def test_the_older_files_of_sentence_transformers_are_read(models, tmp_path):
    folder = tmp_path / "old"
    shutil.copytree(models["bert"], folder)
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [
        {"idx": i, "name": str(i), "path": p, "type": f"sentence_transformers.models.{t}"}
        for i, (p, t) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    said = {"word_embedding_dimension": 16, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (folder / "1_Pooling/config.json").write_text(json.dumps(said))
    expected = load_encoder(f"hub-text:{models['bert']}?pooling=cls").encode(TEXTS)
    np.testing.assert_allclose(load_encoder(f"hub-text:{folder}").encode(TEXTS), expected, atol=ATOL)
    said |= {"pooling_mode_cls_token": False, "pooling_mode_max_tokens": True}
    (folder / "1_Pooling/config.json").write_text(json.dumps(said))
    with pytest.raises(ValueError, match="pools by max_tokens"):
        load_encoder(f"hub-text:{folder}")
    assert load_encoder(f"hub-text:{folder}?pooling=mean").dim == 16


@pytest.mark.parametrize("name", ["hub-text:bert-base-uncased", "hub-image:facebook/dinov2-base", "whisper-small.en"])
def test_a_hub_id_without_a_network_is_one_sentence_at_once(monkeypatch, name):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    begun = time.monotonic()
    with pytest.raises(FileNotFoundError, match="the Hub cannot be reached"):
        load_encoder(name)
    assert time.monotonic() - begun < 5


def test_a_sound_too_short_for_the_convolutions_is_one_sentence(models):
    encoder = load_encoder(f"hub-audio:{models['wav2vec2']}")
    encoder._least = 2000
    with pytest.raises(MediaError, match="this encoder needs 0.125 s"):
        encoder.encode([sound(0.1)])
