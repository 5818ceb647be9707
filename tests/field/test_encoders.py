"""Encoders as people bring them: without their tokenizer, random, constant, in a folder of another machine."""

import dataclasses
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
import transformers as tf
from PIL import Image

from fusemix.data.extract import extract
from fusemix.data.latent_store import LatentStore
from fusemix.data.pairs import PairTable
from fusemix.encoder_identity import check_encoder, portable_name, same_encoder
from fusemix.encoders import load_encoder
from fusemix.encoders.base import Encoder
from fusemix.encoders.probe import probe
from fusemix.encoders.recorded import load_recorded
from fusemix.media import MediaError
from fusemix.model.adapters import FusionModel
from fusemix.model.card import model_card
from fusemix.model.config import ModelConfig, TrainConfig
from fusemix.model.hub import Upload
from fusemix.search.index import EmbeddingIndex
from fusemix.search.retriever import Retriever, load_encoders

pytestmark = pytest.mark.field

SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
WORDS = ["<pad>", "</s>", "<unk>", "<mask>", "a", "dog", "on", "the", "grass", "red", "boat", "night"]
V = 40  # rows of the networks' tables of words
ROWS = {"vocab_size": V, "max_position_embeddings": 20, **SHAPE}


def text_families():
    """Family -> a small real network."""
    causal = {"num_key_value_heads": 2, **ROWS}
    return {
        "bert": lambda: tf.BertModel(tf.BertConfig(**ROWS)),
        "roberta": lambda: tf.RobertaModel(tf.RobertaConfig(pad_token_id=1, **ROWS)),
        "mpnet": lambda: tf.MPNetModel(tf.MPNetConfig(**ROWS)),
        "xlm-r": lambda: tf.XLMRobertaModel(tf.XLMRobertaConfig(pad_token_id=1, **ROWS)),
        "t5": lambda: tf.T5EncoderModel(
            tf.T5Config(vocab_size=V, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
        ),
        "qwen2": lambda: tf.Qwen2Model(tf.Qwen2Config(**causal)),
        "deberta": lambda: tf.DebertaV2Model(tf.DebertaV2Config(**ROWS)),
        "gpt2": lambda: tf.GPT2Model(tf.GPT2Config(vocab_size=V, n_positions=20, n_embd=16, n_layer=2, n_head=2)),
        "clip": lambda: tf.CLIPModel(
            tf.CLIPConfig(text_config=ROWS, vision_config={"image_size": 32, "patch_size": 16, **SHAPE})
        ),
    }


@pytest.fixture(autouse=True)
def nothing_noted(tmp_path, monkeypatch):
    """No folder of an encoder is known to this machine but those of the test."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "hf-home"))


def tokenizer(words=WORDS):
    from tokenizers import Tokenizer, models, pre_tokenizers

    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", unk_token="<unk>", eos_token="</s>", mask_token="<mask>"
    )


def saved(folder, network, processor=None):
    torch.manual_seed(0)
    network().eval().save_pretrained(folder)
    if processor is not None:
        processor.save_pretrained(folder)
    return folder


def with_words(folder, family):
    """A folder of the family with a tokenizer of its kind."""
    if family != "qwen2":  # whose class cuts texts into bytes and joins them, whatever the file says
        return saved(folder, text_families()[family], tokenizer())
    saved(folder, text_families()[family])
    letters = ["<|endoftext|>", "\u0120", *"abcdefghijklmnopqrstuvwxyz", "do", "dog"]
    (folder / "vocab.json").write_text(json.dumps({letter: i for i, letter in enumerate(letters)}))
    (folder / "merges.txt").write_text("#version: 0.2\nd o\ndo g\n")
    return folder


def pil(side=32):
    return tf.models.vit.image_processing_pil_vit.ViTImageProcessorPil(size={"height": side, "width": side})


def vit(folder, seed=0):
    torch.manual_seed(seed)
    network = tf.ViTModel(tf.ViTConfig(image_size=32, patch_size=16, **SHAPE))
    return saved(folder, lambda: network, pil())


# what a folder lacks or mixes up


@pytest.mark.parametrize("left", ["nothing", "tokenizer_config.json"])
@pytest.mark.parametrize("family", text_families())
def test_a_text_folder_without_its_tokenizer_is_refused_with_the_files_looked_for(tmp_path, family, left):
    folder = saved(tmp_path / family, text_families()[family])
    if left != "nothing":
        (folder / left).write_text(json.dumps({"model_max_length": 20}))
    with pytest.raises(
        FileNotFoundError, match=r"lacks the files of its tokenizer: looked for tokenizer\.json, .* or "
    ):
        load_encoder(f"hub-text:{folder}")


@pytest.mark.parametrize("family", ["bert", "roberta", "mpnet", "xlm-r", "t5", "qwen2", "deberta", "gpt2"])
def test_the_same_folder_with_a_tokenizer_tells_texts_apart(tmp_path, family):
    encoder = load_encoder(f"hub-text:{with_words(tmp_path / family, family)}")
    a, b = encoder.encode(["the dog on the grass", "the boat on the grass"])
    assert np.abs(a - b).max() > 1e-4


def test_a_vocabulary_without_its_merges_is_not_a_tokenizer(tmp_path):
    folder = saved(tmp_path / "roberta", text_families()["roberta"])
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(WORDS)}))
    with pytest.raises(FileNotFoundError, match=r"vocab\.json and merges\.txt"):
        load_encoder(f"hub-text:{folder}")


def test_a_tokenizer_larger_than_the_table_of_words_is_refused(tmp_path):
    words = [*WORDS, *(f"word{i}" for i in range(V))]
    folder = saved(tmp_path / "bert", text_families()["bert"], tokenizer(words))
    with pytest.raises(ValueError, match=r"tokenizer knows 52 tokens, its network 40; they are of two models"):
        load_encoder(f"hub-text:{folder}")


def test_a_tokenizer_of_specials_alone_is_refused(tmp_path):
    folder = saved(tmp_path / "bert", text_families()["bert"], tokenizer(WORDS[:4]))
    with pytest.raises(ValueError, match="different items the same latent|know none of the words"):
        load_encoder(f"hub-text:{folder}")


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_a_causal_network_pooled_at_its_first_token_is_refused(tmp_path, family):
    folder = with_words(tmp_path / family, family)
    with pytest.raises(ValueError, match="3 different items the same latent.*use pooling=last or mean"):
        load_encoder(f"hub-text:{folder}?pooling=cls")
    assert load_encoder(f"hub-text:{folder}?pooling=last").dim == 16


def test_a_text_of_no_token_is_one_sentence(tmp_path):
    encoder = load_encoder(f"hub-text:{with_words(tmp_path / 'qwen2', 'qwen2')}")
    with pytest.raises(MediaError, match=r"qwen2 makes no token of '\.\.\.'"):
        encoder.encode(["..."])


def test_a_masked_autoencoder_hides_nothing(tmp_path):
    folder = saved(
        tmp_path / "mae", lambda: tf.ViTMAEModel(tf.ViTMAEConfig(image_size=32, patch_size=16, **SHAPE)), pil()
    )
    picture = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    for pooling in ("cls", "mean"):
        encoder = load_encoder(f"hub-image:{folder}?pooling={pooling}")
        once, again = encoder.encode([picture]), encoder.encode([picture, picture])
        np.testing.assert_allclose(again, once.repeat(2, 0), atol=1e-5)
    network = tf.ViTMAEModel.from_pretrained(folder, mask_ratio=0.0).eval()
    with torch.no_grad():
        states = network(encoder.prepare(picture)[None]).last_hidden_state[0]
    np.testing.assert_allclose(once[0], states[1:].mean(0), atol=1e-5)


def test_patches_without_a_fixed_size_are_refused(tmp_path):
    config = tf.Siglip2Config(
        vision_config={"num_patches": 16, "patch_size": 16, **SHAPE}, text_config={"vocab_size": V, **SHAPE}
    )
    processor = tf.models.siglip2.image_processing_pil_siglip2.Siglip2ImageProcessorPil(max_num_patches=16)
    folder = saved(tmp_path / "naflex", lambda: tf.Siglip2Model(config), processor)
    with pytest.raises(ValueError, match="expected .3, H, W.*NaFlex, are not read here"):
        load_encoder(f"hub-image:{folder}?pooling=pooler")


def test_a_network_that_fails_on_its_processors_pictures_is_one_sentence(tmp_path):
    config = tf.ViTConfig(image_size=32, patch_size=16, **SHAPE)
    folder = saved(tmp_path / "vit", lambda: tf.ViTModel(config), pil(48))
    with pytest.raises(
        ValueError, match=r"vit: its network fails on what its processor makes of an item \(ValueError: "
    ):
        load_encoder(f"hub-image:{folder}")


def test_a_network_without_a_largest_position_is_read(tmp_path):
    config = tf.XLNetConfig(vocab_size=V, d_model=16, n_layer=2, n_head=2, d_inner=32)
    encoder = load_encoder(f"hub-text:{saved(tmp_path / 'xlnet', lambda: tf.XLNetModel(config), tokenizer())}")
    assert encoder.encode(["dog " * 600]).shape == (1, 16) and "first 512 tokens" in encoder.fingerprint


# an encoder of one's own


class Own(Encoder):
    """Counts letters; subclasses go wrong."""

    name, modality, dim, revision, fingerprint = "own", "text", 3, "1", "letters"

    def prepare(self, item):
        return item

    def encode_prepared(self, prepared):
        return np.array([[len(t), t.count("a"), ord(t[0])] for t in prepared], dtype=np.float32)


class Constant(Own):
    def encode_prepared(self, prepared):
        return np.ones((len(prepared), 3), dtype=np.float32)


class Random(Own):
    def encode_prepared(self, prepared):
        return np.random.default_rng().normal(size=(len(prepared), 3)).astype(np.float32)


class SeesItsMates(Own):
    def encode_prepared(self, prepared):
        latents = super().encode_prepared(prepared)
        return latents - latents.mean(0)


class NotANumber(Own):
    def encode_prepared(self, prepared):
        return super().encode_prepared(prepared) * np.nan


class Narrow(Own):
    def encode_prepared(self, prepared):
        return super().encode_prepared(prepared)[:, :2]


class OneForAll(Own):
    def encode_prepared(self, prepared):
        return super().encode_prepared(prepared)[:1]


FAULTS = {
    Constant: "8 different items the same latent",
    Random: "another latent each time; switch off what is random",
    SeesItsMates: "another latent in another batch",
    NotANumber: "NaN or infinite values",
    Narrow: r"shape \(8, 2\) of 8 items; expected floating-point latents of shape \(8, 3\)",
    OneForAll: r"shape \(1, 3\) of 8 items",
}


@pytest.fixture
def table(tmp_path):
    pd.DataFrame({"text": [f"{'a' * (i % 3)}word {i}" for i in range(20)]}).to_csv(tmp_path / "t.csv", index=False)
    return PairTable.read(tmp_path / "t.csv")


@pytest.mark.parametrize("kind", FAULTS)
def test_an_encoder_that_fails_its_probe_begins_no_store(table, tmp_path, kind):
    with pytest.raises(ValueError, match=f"The encoder own .*{FAULTS[kind]}"):
        extract(table, "text", kind(), tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_equal_items_may_have_equal_latents(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8), "red").save(tmp_path / name)
    (tmp_path / "t.csv").write_text("image\na.png\nb.png\n")

    class Mean(Own):
        modality = "image"

        def prepare(self, item):
            return np.asarray(Image.open(item), dtype=np.float32)

        def encode_prepared(self, prepared):
            return np.stack([pixels.mean((0, 1)) for pixels in prepared])

    assert len(extract(PairTable.read(tmp_path / "t.csv"), "image", Mean(), tmp_path / "store")) == 2
    assert len(probe(Mean(), [np.ones((2, 2, 3), np.float32)])) == 1


def test_one_item_of_nan_is_told_with_its_row_or_left_out(table, tmp_path):
    class Sometimes(Own):
        def encode_prepared(self, prepared):
            latents = super().encode_prepared(prepared)
            latents[[t.endswith("word 13") for t in prepared]] = np.nan
            return latents

    with pytest.raises(ValueError, match=r"t\.csv, line 15, column text: The encoder makes NaN or infinite values"):
        extract(table, "text", Sometimes(), tmp_path / "stop")
    store = extract(table, "text", Sometimes(), tmp_path / "skip", skip_errors=True)
    assert [entry["row"] for entry in store.manifest["skipped"]] == [13]
    assert 13 not in store.rows["row"].tolist() and np.isfinite(store.all()).all()


# a folder of another machine


@pytest.fixture
def trained(tmp_path):
    """A model on an encoder in a local folder, saved; its index; and the encoder's folder moved elsewhere."""
    here = vit(tmp_path / "this-machine" / "dino-small")
    encoder = load_encoder(f"hub-image:{here}?pooling=cls+mean")
    torch.manual_seed(0)
    text = load_encoder("minilm-l6")
    config = ModelConfig(
        latent_dims={"image": 32, "text": text.dim},
        encoders={"image": encoder.info(), "text": text.info()},
        embed_dim=8,
    )
    model = FusionModel(config).eval()
    card = model_card("m", config, TrainConfig(), data=["8 pairs"], best={"epoch": 1}, seconds=1)
    model.save_pretrained(tmp_path / "model", card=card)
    picture = np.random.default_rng(1).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    index = EmbeddingIndex(8, model_identity=model.identity)
    index.add("image", model.embed("image", encoder.encode([picture])).numpy(), [{"id": "one"}])
    index.save(tmp_path / "index")
    elsewhere = tmp_path / "elsewhere" / "copied"
    elsewhere.parent.mkdir()
    return tmp_path, here, elsewhere, picture


def test_what_is_shared_holds_no_path_of_a_machine(trained):
    root, here, _, _ = trained
    shared = [path for folder in ("model", "index") for path in (root / folder).rglob("*") if path.is_file()]
    assert len(shared) >= 5
    for path in shared:
        assert b"this-machine" not in path.read_bytes(), path
    (root / "t.csv").write_text("image\np.png\nq.png\n")
    for i, name in enumerate(("p.png", "q.png")):
        Image.new("RGB", (40, 40), (200 * i, 30, 90)).save(root / name)
    store = extract(PairTable.read(root / "t.csv"), "image", load_encoder(f"hub-image:{here}"), root / "store")
    assert store.encoder["name"] == "hub-image:./dino-small"
    assert "this-machine" not in (root / "store" / "manifest.json").read_text()


def test_an_older_checkpoint_that_names_a_path_is_not_sent_until_it_is_saved_again(trained):
    root, here, _, picture = trained
    config = json.loads((root / "model/config.json").read_text())
    config["encoders"]["image"]["name"] = f"hub-image:{here}?pooling=cls+mean"
    (root / "model/config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="by its path on this machine; save the model again"):
        Upload.of(root / "model")
    older = FusionModel.from_pretrained(root / "model")
    assert load_encoders(older.config)["image"].encode([picture]).shape == (1, 32)
    older.save_pretrained(root / "model")
    assert Upload.of(root / "model").files
    assert "this-machine" not in (root / "model/config.json").read_text()


def test_a_checkpoint_finds_its_encoder_on_the_machine_that_trained_it(trained):
    root, _, _, picture = trained
    hit = Retriever.from_pretrained(root / "model", root / "index").search(image=picture)["image"][0]
    assert hit.item["id"] == "one" and hit.similarity == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("named", ["hub-image:{}", "{}", "hub-image:{}?pooling=cls+mean"])
def test_a_checkpoint_is_used_elsewhere_with_its_encoders_folder_named_anew(trained, named):
    root, here, elsewhere, picture = trained
    shutil.move(here, elsewhere)
    with pytest.raises(FileNotFoundError, match=r"say where it lies here: encoders=\{'image': 'hub-image:FOLDER'\}"):
        Retriever.from_pretrained(root / "model", root / "index")
    encoders = {"image": named.format(elsewhere)}
    retriever = Retriever.from_pretrained(root / "model", root / "index", encoders=encoders)
    assert retriever.search(image=picture)["image"][0].similarity == pytest.approx(1, abs=1e-5)


def test_a_folder_of_other_content_or_other_options_is_refused(trained):
    root, _, elsewhere, _ = trained
    vit(elsewhere, seed=1)
    config = FusionModel.from_pretrained(root / "model").config
    with pytest.raises(ValueError, match="is not the image encoder that the checkpoint was trained on"):
        load_encoders(config, encoders={"image": f"hub-image:{elsewhere}"})
    with pytest.raises(ValueError, match="only its folder can be named anew"):
        load_encoders(config, encoders={"image": f"hub-image:{elsewhere}?pooling=mean"})
    with pytest.raises(ValueError, match=r"encoders names \['sound'\]"):
        load_encoders(config, encoders={"sound": str(elsewhere)})
    with pytest.raises(ValueError, match="needs 0 folders, got 1"):
        load_encoders(config, encoders={"text": str(elsewhere)})


def test_folders_side_by_side_are_each_named_anew(tmp_path):
    a, b = vit(tmp_path / "a"), vit(tmp_path / "b", seed=1)
    both = load_encoder(f"hub-image:{a} ++ efficientnet-lite0 ++ hub-image:{b}?pooling=mean")
    assert both.name == "hub-image:./a ++ efficientnet-lite0 ++ hub-image:./b?pooling=mean"
    again = load_recorded("image", {"image": both.info()}, source=f"{shutil.move(a, tmp_path / 'c')} ++ {b}")
    assert same_encoder(again.info(), both.info()) and again.name != both.name
    check_encoder("image", {"image": both.info()}, again.info())


def test_a_name_loses_the_path_and_nothing_else():
    for name, portable in (
        (
            "hub-image:/data/my models/dino?pooling=cls+mean&layers=-1,-2",
            "hub-image:./dino?pooling=cls+mean&layers=-1,-2",
        ),
        ("hub-text:../e5/?prefix=query: ", "hub-text:./e5?prefix=query: "),
        ("hub-image:/a/b ++ hub-image:~/c/d", "hub-image:./b ++ hub-image:./d"),
        ("hub-image:facebook/dinov2-base", "hub-image:facebook/dinov2-base"),
        ("minilm-l6", "minilm-l6"),
    ):
        assert portable_name(name) == portable == portable_name(portable)


def test_an_older_store_that_names_a_path_is_the_same_encoder_and_says_the_name_alone(trained):
    root, here, _, _ = trained
    (root / "t.csv").write_text("image\np.png\nq.png\n")
    for i, name in enumerate(("p.png", "q.png")):
        Image.new("RGB", (40, 40), (200 * i, 30, 90)).save(root / name)
    encoder, table = load_encoder(f"hub-image:{here}"), PairTable.read(root / "t.csv")
    extract(table, "image", encoder, root / "store")
    manifest = json.loads((root / "store/manifest.json").read_text())
    manifest["encoder"]["name"], manifest["complete"] = f"hub-image:{here}", False
    (root / "store/manifest.json").write_text(json.dumps(manifest))
    assert extract(table, "image", encoder, root / "store").encoder == encoder.info()
    assert LatentStore.open(root / "store").encoder["name"] == "hub-image:./dino-small"


def test_another_encoder_is_refused_by_every_part_of_its_identity():
    info = {"name": "hub-image:./a", "modality": "image", "dim": 4, "revision": "r", "fingerprint": "f"}
    check_encoder("image", {"image": info}, info | {"name": "hub-image:/x/b"})
    others = {"name": "hub-text:./a", "dim": 5, "revision": "s", "fingerprint": "g"}
    for key, value in others.items():
        with pytest.raises(ValueError, match=f"with {key} "):
            check_encoder("image", {"image": info}, info | {key: value})
        assert not same_encoder(info, info | {key: value})
    with pytest.raises(ValueError, match="records no encoder for 'text'"):
        check_encoder("text", {"image": info}, info)


def test_a_model_keeps_its_identity_wherever_the_folder_lies(trained):
    root, here, elsewhere, _ = trained
    before = FusionModel.from_pretrained(root / "model")
    moved = load_encoder(f"hub-image:{shutil.move(here, elsewhere.parent / 'dino-small')}?pooling=cls+mean").info()
    config = dataclasses.replace(before.config, encoders=before.config.encoders | {"image": moved})
    after = FusionModel(config)
    after.load_state_dict(before.state_dict())
    assert after.identity == before.identity
