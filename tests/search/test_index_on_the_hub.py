"""An index as a dataset on the Hub: sent by ``fusemix push``, read back by its name, through the Hub's real client."""

import json
import shutil

import numpy as np
import pytest
from huggingface_hub import DatasetCard

from fusemix.cli import push, search
from fusemix.model.hub import Upload
from fusemix.search.index import EmbeddingIndex
from fusemix.search.retriever import Retriever

NAME = "me/squares"


@pytest.fixture
def sent(reached_hub, index_folder, checkpoint):
    """The Hub with the tiny gallery's index."""
    assert push.main([str(index_folder), NAME, "--checkpoint", str(checkpoint)]) == 0
    return reached_hub


def same(first, second):
    return first.counts == second.counts and all(
        np.array_equal(first.embeddings(m), second.embeddings(m)) and first.items(m) == second.items(m)
        for m in first.counts
    )


def test_it_comes_back_the_same_by_name_and_by_revision(sent, index_folder, tiny_model, pairs):
    there = EmbeddingIndex.load(index_folder, model_identity=tiny_model.identity)
    assert sent.created[0]["type"] == "dataset" and sent.created[0]["name"] == "squares"
    assert json.loads(sent.files["index.json"])["root"] is None  # where the pictures lie here is nobody's business
    assert set(sent.files) == {path.name for path in index_folder.iterdir()} | {"README.md"}
    for address in (NAME, f"{NAME}@v1", f"{NAME}@{'0' * 40}"):
        found = EmbeddingIndex.from_pretrained(address, model_identity=tiny_model.identity)
        assert same(found, there) and found.root is None
    found = EmbeddingIndex.from_pretrained(f"{NAME}?root={pairs.parent}", model_identity=tiny_model.identity)
    assert found.path_of(found.items("image")[0]) == pairs.parent / "red.png"


def test_it_is_read_from_the_cache_when_the_hub_is_gone(sent, tiny_model, own_hub_settings):
    first = EmbeddingIndex.from_pretrained(NAME, model_identity=tiny_model.identity)
    own_hub_settings("http://127.0.0.1:1")
    assert same(EmbeddingIndex.from_pretrained(NAME, model_identity=tiny_model.identity), first)


def test_it_answers_in_the_command_and_in_the_app(sent, checkpoint, pairs, capsys):
    from demo.service import Service

    words = ["--checkpoint", str(checkpoint), "--text", "a red square"]
    assert search.main([*words, "--index", NAME]) == 0
    assert "10 items" in capsys.readouterr().out
    assert Retriever.from_pretrained(checkpoint, NAME).search(text="a red square")["image"]
    service = Service.from_pretrained(checkpoint, f"{NAME}?root={pairs.parent}")
    assert str(pairs.parent / "red.png") in service.files
    with pytest.raises(ValueError, match=r"knows no folder for its pictures and sounds; add \?root=FOLDER"):
        Service.from_pretrained(checkpoint, NAME)


def test_its_card_tells_what_the_hub_asks_for(sent, tiny_model):
    card = DatasetCard(sent.files["README.md"].decode())
    values = card.data.to_dict()
    assert values["license"] == ["cc0-1.0"] and values["size_categories"] == "n<1K"
    assert values["library_name"] == "fusemix" and "timm/tf_efficientnet_lite0.in1k" in values["base_model"]
    assert values["configs"] == [{"config_name": "items", "data_files": "items.jsonl"}]
    assert "| image | tests | CC0-1.0 | 3 |" in card.text and tiny_model.identity[:12] in card.text


def test_a_card_of_ones_own_is_sent_as_it_is(reached_hub, index_folder, tmp_path, capsys):
    mine = shutil.copytree(index_folder, tmp_path / "mine")
    (mine / "README.md").write_text("---\nlicense: mit\n---\n# mine\n")
    assert push.main([str(mine), NAME, "--private"]) == 0
    assert reached_hub.files["README.md"] == (mine / "README.md").read_bytes()
    assert reached_hub.created[0]["visibility"] == "private"
    assert "is an index and goes into a dataset repository" in capsys.readouterr().out


def test_files_of_the_former_index_go(sent, index_folder, checkpoint):
    sent.files |= {"old.faiss": b"IxFI", "items.2.jsonl": b"{}", "notes.txt": b"mine"}
    assert push.main([str(index_folder), NAME, "--checkpoint", str(checkpoint)]) == 0
    assert not {"old.faiss", "items.2.jsonl"} & set(sent.files) and "notes.txt" in sent.files


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("photo.jpg", b"\xff\xd8", "photo.jpg is no file of an index"),
        (".lock", b"", ".lock is no file of an index"),
        ("image.faiss", b"\x80\x04", "is damaged or incomplete"),
        ("items.jsonl", b"{}\n", "is damaged or incomplete"),
    ],
)
def test_what_is_damaged_or_no_part_of_an_index_is_not_sent(
    reached_hub, index_folder, tmp_path, capsys, name, content, said
):
    mine = shutil.copytree(index_folder, tmp_path / "mine")
    (mine / name).write_bytes(content)
    assert push.main([str(mine), NAME]) == 2
    assert said in " ".join(capsys.readouterr().err.split()) and not reached_hub.calls


def test_a_pickle_under_the_name_of_an_index_file_is_not_sent(index_folder, tmp_path):
    mine = shutil.copytree(index_folder, tmp_path / "mine")
    (mine / "image.faiss").write_bytes(b"\x80\x04")
    with pytest.raises(ValueError, match="image.faiss is not what its name says"):
        Upload.of(mine, card="---\nlicense: mit\n---\n")


def test_an_index_from_elsewhere_never_chooses_files_of_this_machine(sent, tiny_model, tmp_path):
    (tmp_path / "secret.png").write_bytes(b"x")
    manifest = json.loads(sent.files["index.json"]) | {"root": "../../../../../../../../../../../"}
    sent.files["index.json"] = json.dumps(manifest).encode()
    found = EmbeddingIndex.from_pretrained(NAME, model_identity=tiny_model.identity)
    with pytest.raises(ValueError, match="knows no folder"):
        found.path_of({"path": str(tmp_path / "secret.png").lstrip("/")})
