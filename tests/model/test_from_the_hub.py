"""Every kind of folder on the Hub, through its real client: what cannot be loaded is one sentence."""

import errno

import pytest
import torch
from huggingface_hub import ModelCard

from fusemix.cli import push
from fusemix.generation.bridges import Conditioner, fit_bridge
from fusemix.generation.card import conditioner_card
from fusemix.generation.generator import Generator
from fusemix.hub_folders import resolve
from fusemix.model.adapters import FusionModel
from fusemix.model.hub import Upload
from fusemix.search.index import EmbeddingIndex
from tests.conftest import embeddings

LOADERS = {
    "checkpoint": FusionModel.from_pretrained,
    "decoder": Generator.from_pretrained,
    "conditioner": Conditioner.from_pretrained,
    "index": lambda name: EmbeddingIndex.from_pretrained(name, model_identity="m"),
}


@pytest.fixture
def folders(small_model, clip_decoder, tmp_path):
    """A folder of each kind."""
    torch.manual_seed(0)
    bridge = fit_bridge("ridge", embeddings(40, 1), torch.randn(40, 6))
    (tmp_path / "conditioner").mkdir()
    Conditioner({"image": bridge}, embed_dim=8, image_embeds_dim=6).save(tmp_path / "conditioner")
    index = EmbeddingIndex(8, model_identity="m")
    index.add("text", embeddings(4, 2), [{"id": str(i), "text": "x"} for i in range(4)])
    return {
        "checkpoint": small_model.save_pretrained(tmp_path / "checkpoint"),
        "conditioner": tmp_path / "conditioner",
        "index": index.save(tmp_path / "index"),
    }


CARD = "---\nlibrary_name: fusemix\n---\n"


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize(
    ("situation", "said"),
    [
        ("nothing there", "or it is private; check the name, or log in"),
        ("no network", "it could not be reached; check the network"),
        ("the Hub refuses", "refused by the test; try again later"),
    ],
)
def test_a_name_that_cannot_be_loaded(reached_hub, own_hub_settings, kind, situation, said):
    if situation == "no network":
        own_hub_settings("http://127.0.0.1:1")
    if situation == "the Hub refuses":
        reached_hub.refuse = {"/api/": 403}
    with pytest.raises(FileNotFoundError, match=said) as error:
        LOADERS[kind]("me/thing")
    told = str(error.value)
    assert told.startswith("'me/thing' is no folder here") and ". " not in told and "\n" not in told


@pytest.mark.parametrize("kind", ["checkpoint", "conditioner", "index"])
def test_a_repository_whose_conditions_were_not_accepted(reached_hub, folders, kind):
    Upload.of(folders[kind], card=CARD).push("me/thing")
    reached_hub.gated = True
    with pytest.raises(FileNotFoundError, match="asks for conditions to be accepted on its page there"):
        LOADERS[kind]("me/thing")


@pytest.mark.parametrize("kind", ["checkpoint", "conditioner", "index"])
def test_half_a_download_is_told_and_a_whole_one_loads(reached_hub, folders, kind, tmp_path):
    Upload.of(folders[kind], card=CARD).push("me/thing")
    LOADERS[kind]("me/thing")
    weights = next(p for p in (tmp_path / "hub-cache").rglob("*") if p.suffix in (".safetensors", ".faiss"))
    content = weights.read_bytes()
    weights.resolve().write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="damaged|incomplete|cut short|could not be read") as error:
        LOADERS[kind]("me/thing")
    assert "\n" not in str(error.value)


def test_a_revision_that_is_not_there(reached_hub, folders):
    Upload.of(folders["index"], card=CARD).push("me/thing")
    with pytest.raises(FileNotFoundError, match="no such revision; check the branch"):
        EmbeddingIndex.from_pretrained("me/thing@v9", model_identity="m")


def test_no_room_on_the_disk():
    def download(_):
        raise RuntimeError("download failed") from OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(FileNotFoundError, match="no room on the disk; free some, or set HF_HOME"):
        resolve("me/thing", "checkpoint", download)


@pytest.mark.parametrize("decoder", ["me/sd-unclip", "/cache/models--me--sd-unclip/snapshots/0123", "/models/sd"])
def test_a_conditioner_goes_to_the_hub_with_a_card_of_its_own(reached_hub, tmp_path, capsys, decoder):
    bridge = fit_bridge("ridge", torch.randn(40, 8), torch.randn(40, 6))
    note = {"recall_at_1": 0.25, "recall_at_10": 0.5, "cosine": 0.1, "queries": 9, "candidates": 9}
    conditioner = Conditioner({"image": bridge}, embed_dim=8, image_embeds_dim=6, notes={"image": {"ridge": note}})
    conditioner.save(tmp_path)
    (tmp_path / "README.md").write_text(conditioner_card("mine", conditioner, decoder=decoder))
    assert push.main([str(tmp_path), "me/mine"]) == 0
    assert "is a conditioner and goes into a model repository" in capsys.readouterr().out
    data = ModelCard(reached_hub.files["README.md"].decode()).data
    assert data.base_model == (None if decoder == "/models/sd" else ["me/sd-unclip"])
    assert [(r.metric_value, r.metric_name) for r in data.eval_results] == [
        (0.25, "recall@1 among 9 pictures, by image"),
        (0.5, "recall@10 among 9 pictures, by image"),
    ]
    assert Conditioner.from_pretrained("me/mine").notes == conditioner.notes
