"""The Qdrant index in the client's local mode: the same answers as exact faiss, and the same refusals."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fusemix.search.retriever
from fusemix.search.index import EmbeddingIndex
from fusemix.search.retriever import Retriever
from scripts import build_index, search
from tests.conftest import unit

qdrant_client = pytest.importorskip("qdrant_client")
from fusemix.search import qdrant_index  # noqa: E402
from fusemix.search.qdrant_index import Address, QdrantIndex  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
DIM = 24
HERE = "qdrant://nowhere:6333/gallery"


def items(count, modality="image"):
    return [
        {
            "id": f"{modality}-{i}",
            "path": f"{i}.png",
            "caption": "Grüße, 世界",
            "licence": ("CC0-1.0", "GPL-2")[i % 2],
            "source": ("a", "b", "c")[i % 3],
        }
        for i in range(count)
    ]


@pytest.fixture
def client():
    return qdrant_client.QdrantClient(":memory:")


@pytest.fixture
def both(client, monkeypatch):
    """The same 700 items in faiss and in Qdrant, added in pieces larger and smaller than a batch."""
    rng = np.random.default_rng(0)
    exact = EmbeddingIndex(DIM, model_identity="model-a")
    index = QdrantIndex.create(HERE, DIM, model_identity="model-a", client=client)
    pictures, sounds = unit(rng, 600, DIM), unit(rng, 100, DIM)
    for built in (exact, index):
        built.add("image", pictures[:520], items(600)[:520])
        built.add("audio", sounds, items(100, "audio"))
        built.add("image", pictures[520:], items(600)[520:])
    index.save()
    return exact, QdrantIndex.load(HERE, model_identity="model-a", client=client)


@pytest.mark.parametrize("scale", [1.0, 0.01, 300.0])
@pytest.mark.parametrize("where", [None, {"licence": "CC0-1.0"}, {"licence": "GPL-2", "source": "b"}])
def test_hits_are_those_of_exact_faiss_in_the_same_order(both, scale, where):
    exact, index = both
    queries = np.random.default_rng(1).normal(size=(70, DIM)) * scale
    for modality in ("image", "audio"):
        expected = exact.search(modality, queries, top_k=50, where=where)
        found = index.search(modality, queries, top_k=50, where=where)
        assert [[hit.item for hit in hits] for hits in found] == [[hit.item for hit in hits] for hits in expected]
        assert [[hit.rank for hit in hits] for hits in found] == [[hit.rank for hit in hits] for hits in expected]
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose([h.similarity for h in ours], [h.similarity for h in theirs], atol=1e-5)


def test_items_counts_and_embeddings_come_back_in_the_order_added(both):
    exact, index = both
    assert index.counts == exact.counts == {"image": 600, "audio": 100} and len(index) == 700
    for modality in exact.counts:
        assert index.items(modality) == exact.items(modality)
        np.testing.assert_array_equal(index.embeddings(modality), exact.embeddings(modality))


def test_a_filter_that_nothing_passes_finds_nothing(both):
    for index in both:
        assert index.search("image", np.ones((2, DIM)), where={"licence": "none"}) == [[], []]


def test_top_k_is_clamped_and_no_queries_find_nothing(both):
    for index in both:
        assert len(index.search("audio", np.ones((1, DIM)), top_k=10_000)[0]) == 100
        assert index.search("audio", np.empty((0, DIM))) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"queries": np.zeros((1, DIM))}, "length zero"),
        ({"queries": np.full((1, DIM), np.inf)}, "NaN or infinite"),
        ({"queries": np.ones((1, 7))}, r"shape \(N, 24\), got \(1, 7\)"),
        ({"queries": np.ones((1, DIM)), "top_k": 0}, "top_k must be >= 1"),
        ({"queries": np.ones((1, DIM)), "where": {"a.b": "x"}}, "plain name and a text"),
        ({"queries": np.ones((1, DIM)), "where": {"licence": 1}}, "plain name and a text"),
    ],
)
def test_both_refuse_the_same_queries_in_the_same_words(both, arguments, message):
    for index in both:
        with pytest.raises(ValueError, match=message):
            index.search("image", **arguments)


@pytest.mark.parametrize(
    ("embeddings", "count", "message"),
    [
        (np.eye(DIM)[:2], 3, "3 items and 2 embeddings"),
        (np.eye(DIM)[:2] * 1.1, 2, "unit length, row 0 has 1.1"),
        (np.full((1, DIM), np.nan), 1, "NaN or infinite"),
    ],
)
def test_both_refuse_the_same_items_and_stay_as_they_are(both, embeddings, count, message):
    for index in both:
        with pytest.raises(ValueError, match=message):
            index.add("image", embeddings, items(count))
        assert index.counts == {"image": 600, "audio": 100}


def test_an_unknown_modality_is_named(both):
    for index in both:
        with pytest.raises(KeyError, match="smell"):
            index.search("smell", np.ones((1, DIM)))


def test_another_model_is_refused(both, client):
    with pytest.raises(ValueError, match=r"model-a.*model-b.*build_index"):
        QdrantIndex.load(HERE, model_identity="model-b", client=client)


def test_a_building_that_did_not_end_is_refused(client):
    index = QdrantIndex.create(HERE, DIM, model_identity="m", client=client)
    index.add("image", np.eye(DIM, dtype=np.float32)[:3], items(3))
    with pytest.raises(ValueError, match="did not end"):
        QdrantIndex.load(HERE, model_identity="m", client=client)
    index.save()
    assert QdrantIndex.load(HERE, model_identity="m", client=client).counts == {"image": 3}
    client.delete("gallery", [1])
    with pytest.raises(ValueError, match="did not end"):
        QdrantIndex.load(HERE, model_identity="m", client=client)


def test_building_again_replaces_our_collection_and_leaves_others_alone(both, client):
    QdrantIndex.create(HERE, 3, model_identity="m", client=client).save()
    assert QdrantIndex.load(HERE, model_identity="m", client=client).counts == {}
    vectors = qdrant_client.models.VectorParams(size=3, distance="Cosine")
    client.create_collection("theirs", vectors_config=vectors)
    with pytest.raises(ValueError, match="left alone"):
        QdrantIndex.create("qdrant://nowhere/theirs", DIM, model_identity="m", client=client)
    with pytest.raises(ValueError, match="FuseMix did not make"):
        QdrantIndex.load("qdrant://nowhere/theirs", model_identity="m", client=client)
    assert client.get_collection("theirs").config.params.vectors.size == 3


def test_a_missing_collection_says_how_to_build_it(client):
    with pytest.raises(FileNotFoundError, match=r"build_index\.py --index"):
        QdrantIndex.load(HERE, model_identity="m", client=client)


def test_the_folder_of_files_is_chosen_here_and_never_by_the_server(client, tmp_path):
    address = f"{HERE}?root={tmp_path}"
    QdrantIndex.create(HERE, DIM, model_identity="m", client=client).save()
    index = QdrantIndex.load(address, model_identity="m", client=client)
    assert index.path_of({"path": "a.png"}) == tmp_path / "a.png" and index.path_of({"text": "a"}) is None
    with pytest.raises(ValueError, match="leads out of"):
        index.path_of({"path": "../../etc/passwd"})
    with pytest.raises(ValueError, match="knows no folder"):
        QdrantIndex.load(HERE, model_identity="m", client=client).path_of({"path": "a.png"})


@pytest.mark.parametrize(
    ("text", "server", "collection"),
    [
        ("qdrant://localhost:6333/gallery", "http://localhost:6333", "gallery"),
        ("qdrants://q.example/a-b.c_1", "https://q.example:6333", "a-b.c_1"),
        ("qdrant://[::1]:7000/x?exact=1", "http://[::1]:7000", "x"),
        ("qdrant:///tmp/here/x", "/tmp/here", "x"),
    ],
)
def test_an_address_names_server_and_collection(text, server, collection):
    address = Address.parse(text)
    assert (address.server, address.collection, address.exact) == (server, collection, "exact" in text)


@pytest.mark.parametrize(
    "text",
    ["qdrant://host", "qdrant://host/", "qdrant://host:x/c", "qdrant://host/a/b", "qdrant:/c", "qdrant:///c",
     "qdrant://host/c?tls=1", "qdrant://user:key@host/c", "qdrant://host:99999/c", "http://host/c", "qdrant://host/c?x"],
)  # fmt: skip
def test_an_address_that_cannot_be_read_is_one_sentence(text):
    with pytest.raises(ValueError, match=r"address|QDRANT_API_KEY"):
        Address.parse(text)


def test_a_server_that_is_not_there_is_one_sentence(capsys, checkpoint):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"qdrant://127.0.0.1:{taken.getsockname()[1]}/gallery"
        with pytest.raises(ConnectionError, match=r"could not answer.*docker run -p 6333:6333 qdrant/qdrant"):
            QdrantIndex.load(address, model_identity="m")
        assert search.main(["--checkpoint", str(checkpoint), "--text", "x", "--index", address]) == 2
    assert "could not answer" in " ".join(capsys.readouterr().err.split())


def test_exact_search_is_asked_for_with_the_address(monkeypatch, client):
    asked = []
    QdrantIndex.create(HERE, DIM, model_identity="m", client=client).add("image", np.eye(DIM)[:2], items(2))
    monkeypatch.setattr(client, "query_batch_points", lambda name, requests: asked.extend(requests) or [])
    for address, expected in ((HERE, None), (f"{HERE}?exact=1", True)):
        index = QdrantIndex(client, Address.parse(address), DIM, model_identity="m")
        index._counts = {"image": 2}
        index.search("image", np.ones((1, DIM)))
        params = asked.pop().params
        assert (params and params.exact) == expected


def test_the_scripts_build_and_search_a_collection(checkpoint, pairs, index_folder, tmp_path):
    address = f"qdrant://{tmp_path}/gallery"
    assert build_index.main(["--checkpoint", str(checkpoint), "--pairs", str(pairs), "--index", address]) == 0
    for name, index in (("qdrant", address), ("faiss", str(index_folder))):
        command = ["--text", "a red square", "--index", index, "--where", "licence=CC0-1.0"]
        out = str(tmp_path / f"{name}.json")
        code = f"import sys; from scripts import search; sys.exit(search.main({[*command, '--json', out]!r}"
        code += f" + ['--checkpoint', {str(checkpoint)!r}]))"
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
    ours, theirs = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("qdrant", "faiss"))
    for found in (ours, theirs):
        for hit in [hit for hits in found["hits"].values() for hit in hits]:
            hit["similarity"] = round(hit["similarity"], 4)
    assert ours == theirs and len(ours["hits"]["image"]) == 3


def test_the_app_serves_a_collection_once_it_knows_the_folder(checkpoint, pairs, tmp_path):
    from demo.query import Query
    from demo.service import Service
    from demo.tabs.search import answer_page

    address = f"qdrant://{tmp_path}/gallery"
    assert build_index.main(["--checkpoint", str(checkpoint), "--pairs", str(pairs), "--index", address]) == 0
    service = Service.from_pretrained(checkpoint, f"{address}?root={pairs.parent}")
    line, results, _ = answer_page(service, Query(text="a red square"))
    assert "Nearest to" in line and "red.png" in results
    service.retriever.index.close()
    with pytest.raises(ValueError, match=r"knows no folder.*\?root=FOLDER"):
        Service.from_pretrained(checkpoint, address)


def test_a_folder_is_still_faiss(index_folder, tiny_model, monkeypatch):
    monkeypatch.setattr(qdrant_index.QdrantIndex, "load", None)
    loaded = fusemix.search.retriever.load_index(index_folder, model_identity=tiny_model.identity)
    assert isinstance(loaded, EmbeddingIndex)


def test_without_the_client_one_sentence_names_the_package(checkpoint):
    code = (
        "import sys; sys.modules['qdrant_client'] = None\n"
        "from fusemix.search.retriever import load_index\n"
        "try: load_index('qdrant://host/c', model_identity='m')\n"
        "except ImportError as error: print(error)"
    )
    printed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert "pip install 'qdrant-client>=1.16,<2'" in printed and printed.count("\n") == 1


def test_the_library_takes_an_address(checkpoint, monkeypatch):
    called = []
    monkeypatch.setattr(fusemix.search.retriever, "load_index", lambda source, **_: called.append(source) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Retriever.from_pretrained(checkpoint, HERE)
    assert called == [HERE]
