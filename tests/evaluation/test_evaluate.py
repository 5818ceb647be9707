import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fusemix.data.latent_store import LatentStore
from fusemix.data.latent_writer import write_latents
from fusemix.data.pairs import Item, PairTable
from fusemix.encoder_identity import check_encoder
from fusemix.encoders.base import Encoder
from fusemix.evaluation.evaluate import StoredPairs, encode_items, evaluate, stored_items
from fusemix.model.adapters import FusionModel
from fusemix.model.config import ModelConfig

ROOT = Path(__file__).resolve().parents[2]
CSV = (
    "image,text,split\na,a one,dev\na,a two,dev\nb,b one,dev\nb,b two,dev\nc,,dev\n,no picture,dev\nd,train one,train\n"
)


@pytest.fixture
def table(tmp_path):
    (tmp_path / "t.csv").write_text(CSV)
    return PairTable.read(tmp_path / "t.csv")


def embed_by_hand(modality, items):
    """a and b have their own axis; c lies where 'b two' points, so that it is found first."""
    axes = {"a": 0, "b": 1, "c": 2}
    if modality == "image":
        return torch.eye(4)[[axes[Path(item.value).name] for item in items]]
    known = {"a one": [1, 0, 0, 0], "a two": [0.9, 0, 0.1, 0], "b one": [0, 1, 0, 0], "b two": [0, 0.3, 0.9, 0]}
    return F.normalize(torch.tensor([known.get(item.value, [0, 0, 0, 1]) for item in items], dtype=torch.float), dim=1)


def test_text_to_image_by_hand(table):
    values = evaluate(table, embed_by_hand, query="text", gallery="image", split="dev")
    assert values["n_queries"] == 4 and values["n_gallery"] == 3  # c is in the gallery though nothing asks for it
    assert values["n_without_answer"] == 1
    assert values["recall_at_1"] == 0.75 and values["recall_at_5"] == 1.0 and values["median_rank"] == 1
    assert set(values) >= {"protocol", "query", "gallery", "recall_at_10", "ci95"}


def test_any_caption_of_a_picture_is_a_right_answer(table):
    values = evaluate(table, embed_by_hand, query="image", gallery="text", split="dev")
    assert values["n_queries"] == 2 and values["n_gallery"] == 5 and values["recall_at_1"] == 1.0


def test_a_query_column_that_meets_no_gallery_item_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text("image,text\na,\n,b\n")
    with pytest.raises(ValueError, match="nothing to ask"):
        evaluate(PairTable.read(tmp_path / "t.csv"), embed_by_hand, query="text", gallery="image")
    with pytest.raises(ValueError, match="different columns"):
        evaluate(PairTable.read(tmp_path / "t.csv"), embed_by_hand, query="text", gallery="text")


def test_latents_of_another_encoder_are_refused():
    info = {"name": "x", "revision": "1", "fingerprint": "f", "dim": 4, "modality": "image"}
    model = FusionModel(ModelConfig(latent_dims={"image": 4, "text": 4}, encoders={"image": info}))
    check_encoder("image", model.config.encoders, info)
    with pytest.raises(ValueError, match="trained on latents of x with revision '1'"):
        check_encoder("image", model.config.encoders, info | {"revision": "2"})


def test_stored_latents_are_matched_to_items_by_row(table, tmp_path):
    values = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    store = write_latents(tmp_path / "s", values, modality="image", name="x", rows=np.array([4, 0, 2]))
    model = FusionModel(ModelConfig(latent_dims={"image": 4, "text": 4})).eval()
    embed = stored_items(model, {"image": store})
    items = table.items("image", "dev")  # rows 0, 2, 4
    torch.testing.assert_close(embed("image", items), model.embed("image", values[[1, 2, 0]]))
    with pytest.raises(ValueError, match="no latent for 1 rows, first row 6"):
        embed("image", table.items("image"))


def test_the_command_writes_the_promised_keys(tmp_path):
    """Real encoder-free path: latents of both columns, one command, JSON out."""
    rng = np.random.default_rng(0)
    (tmp_path / "t.csv").write_text("image,text\n" + "".join(f"{i}.png,text {i}\n" for i in range(12)))
    table = PairTable.read(tmp_path / "t.csv")
    encoders = {}
    for modality in ("image", "text"):
        values = rng.normal(size=(12, 4)).astype(np.float32)
        store = write_latents(tmp_path / modality, values, modality=modality, name=modality)
        encoders[modality] = store.encoder
        manifest = json.loads((store.folder / "manifest.json").read_text())
        (store.folder / "manifest.json").write_text(json.dumps(manifest | {"table": table.fingerprint}))
    config = ModelConfig(latent_dims={"image": 4, "text": 4}, encoders=encoders)
    FusionModel(config).save_pretrained(tmp_path / "m")
    command = [
        sys.executable, str(ROOT / "scripts/evaluate.py"), "--checkpoint", str(tmp_path / "m"), "--pairs",
        str(tmp_path / "t.csv"), "--query", "text", "--gallery", "image", "--json", str(tmp_path / "out.json"),
        "--latents", f"image={tmp_path / 'image'}", f"text={tmp_path / 'text'}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    values = json.loads((tmp_path / "out.json").read_text())
    keys = {"protocol", "query", "gallery", "n_queries", "n_gallery", "median_rank", "ci95"}
    assert keys | {"recall_at_1", "recall_at_5", "recall_at_10"} <= set(values)
    wrong = subprocess.run([*command[:-3], "--split", "dev"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "no split 'dev'" in wrong.stderr and "Traceback" not in wrong.stderr
    bank = write_latents(tmp_path / "bank", rng.normal(size=(7, 4)).astype(np.float32), modality="text", name="text")
    done = subprocess.run([*command, "--bank", str(bank.folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out.json").read_text())["hubness"] == {"bank": 7, "neighbours": 128, "weight": 0.5}
    asked = subprocess.run([*command, "--bank", str(tmp_path / "text")], capture_output=True, text=True)
    assert asked.returncode == 2 and "holds queries that are asked here" in asked.stderr


def test_captions_of_the_same_words_are_queries_of_their_own_but_one_item_of_the_gallery(tmp_path):
    """As the protocol says; 'a dog' is said of two pictures and can only find one of them."""
    (tmp_path / "t.csv").write_text("image,text\na,a dog\na,a dog\nb,a dog\na,a one\nb,b one\n")
    table, axes = PairTable.read(tmp_path / "t.csv"), {"a": [1.0, 0], "b": [0, 1.0], "a dog": [0.8, 0.6]}

    def embed(modality, items):
        return torch.tensor([axes[Path(i.value).name if modality == "image" else i.value[:5].strip()] for i in items])

    axes |= {"a one": axes["a"], "b one": axes["b"]}
    asked = evaluate(table, embed, query="text", gallery="image")
    assert (asked["n_queries"], asked["n_gallery"], asked["recall_at_1"]) == (5, 2, 0.8)
    found = evaluate(table, embed, query="image", gallery="text")
    assert (found["n_queries"], found["recall_at_1"]) == (2, 1.0)


def test_a_bank_of_queries_changes_which_picture_is_found(table):
    plain = evaluate(table, embed_by_hand, query="text", gallery="image", split="dev")
    bank = torch.eye(4)[[0, 0, 0]]  # everybody asks for picture a, so it gives way to b
    found = evaluate(table, embed_by_hand, query="text", gallery="image", split="dev", bank=bank, weight=2.0)
    assert plain["recall_at_1"] == 0.75 and found["recall_at_1"] == 0.25
    assert found["hubness"] == {"bank": 3, "neighbours": 128, "weight": 2.0} and "hubness" not in plain


def test_items_are_encoded_once_and_stand_where_they_were_asked_for():
    seen = []

    class Letters(Encoder):
        name, modality, dim, revision, fingerprint = "letters", "text", 2, "1", "f"

        def prepare(self, item):
            return item

        def encode_prepared(self, prepared):
            seen.extend(prepared)
            return np.array([[ord(item), 1] for item in prepared], dtype=np.float32)

    class AsItIs:
        def embed(self, modality, latents):
            return torch.from_numpy(latents)

    embed = encode_items(AsItIs(), {"text": Letters()}, batch_size=2)
    found = embed("text", [Item(letter, 0, 0) for letter in "badcabd"])
    assert found[:, 0].tolist() == [float(ord(letter)) for letter in "badcabd"] and sorted(seen) == list("abcd")


def test_stored_pairs_keep_their_groups_and_splits(tmp_path):
    rows = {"groups": np.array([7, 7, 3]), "splits": ["Train", "dev", "dev"]}
    stores = {m: write_latents(tmp_path / m, np.eye(3), modality=m, name=m, **rows) for m in ("image", "text")}
    pairs = StoredPairs(stores)
    assert [(cell.group, cell.row) for cell in pairs.cells("text", "val")] == [(7, 1), (3, 2)]
    assert [cell.group for cell in pairs.items("image")] == [7, 7, 3]


def test_stores_of_different_tables_are_not_evaluated_together(tmp_path):
    stores = {}
    for modality in ("image", "text"):
        store = write_latents(tmp_path / modality, np.eye(8, 4, dtype=np.float32), modality=modality, name=modality)
        manifest = json.loads((store.folder / "manifest.json").read_text())
        (store.folder / "manifest.json").write_text(json.dumps(manifest | {"table": f"made for {modality}"}))
        stores[modality] = LatentStore.open(store.folder)
    with pytest.raises(ValueError, match="different tables"):
        StoredPairs(stores)
