"""What every index promises, run over faiss in a folder and over PostgreSQL with pgvector."""

import numpy as np
import pytest

from fusemix.search.index import EmbeddingIndex
from tests.conftest import unit

DIM = 24


def items(count, modality="image"):
    return [
        {
            "id": f"{modality}-{i}",
            "path": f"{i}.png",
            "caption": "Grüße, 世界 'quoted' \\ %s",
            "licence": ("CC0-1.0", "GPL-2")[i % 2],
            "source": ("a", "b", "c")[i % 3],
        }
        for i in range(count)
    ]


class Faiss:
    """Begin and open an index in a folder."""

    def __init__(self, folder):
        self.folder = folder

    def create(self, dim, identity):
        return EmbeddingIndex(dim, model_identity=identity)

    def save(self, index):
        index.save(self.folder)

    def load(self, identity):
        return EmbeddingIndex.load(self.folder, model_identity=identity)


class Postgres:
    """Begin and open a collection."""

    def __init__(self, address):
        self.address = address

    def create(self, dim, identity):
        from fusemix.search.postgres_index import PostgresIndex

        return PostgresIndex.create(self.address, dim, model_identity=identity)

    def save(self, index):
        index.save()

    def load(self, identity):
        from fusemix.search.postgres_index import PostgresIndex

        return PostgresIndex.load(self.address, model_identity=identity)


@pytest.fixture(params=["faiss", "postgres"])
def engine(request, tmp_path):
    if request.param == "faiss":
        return Faiss(tmp_path / "index")
    return Postgres(request.getfixturevalue("postgres")(f"contract-{tmp_path.name[-30:]}"))


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    return unit(rng, 600, DIM), unit(rng, 100, DIM)


@pytest.fixture
def index(engine, data):
    """600 pictures and 100 sounds, added in pieces, saved and opened again."""
    pictures, sounds = data
    building = engine.create(DIM, "model-a" * 10)
    building.add("image", pictures[:520], items(600)[:520])
    building.add("audio", sounds, items(100, "audio"))
    building.add("image", pictures[520:], items(600)[520:])
    engine.save(building)
    return engine.load("model-a" * 10)


def written(rows, queries, described, where, top_k):
    """Ids and cosines of the nearest rows, as the formula says."""
    queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    allowed = [i for i, item in enumerate(described) if all(item[k] == v for k, v in (where or {}).items())]
    found = []
    for query in queries:
        cosines = rows[allowed] @ query
        nearest = np.argsort(-cosines, kind="stable")[:top_k]
        found.append([(described[allowed[i]]["id"], cosines[i]) for i in nearest])
    return found


@pytest.mark.parametrize("scale", [1.0, 0.01, 300.0])
@pytest.mark.parametrize("where", [None, {"licence": "CC0-1.0"}, {"licence": "GPL-2", "source": "b"}])
def test_hits_are_the_nearest_by_the_formula_whatever_the_length_of_a_query(index, data, scale, where):
    queries = np.random.default_rng(1).normal(size=(20, DIM)) * scale
    for modality, rows in zip(("image", "audio"), data, strict=True):
        found = index.search(modality, queries, top_k=50, where=where)
        expected = written(rows, queries, items(len(rows), modality), where, 50)
        assert [[hit.item["id"] for hit in hits] for hits in found] == [[i for i, _ in hits] for hits in expected]
        assert [hit.rank for hit in found[0]] == list(range(1, len(found[0]) + 1))
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose([h.similarity for h in ours], [c for _, c in theirs], atol=1e-5)


def test_equal_hits_stand_in_the_order_they_were_added(engine):
    building = engine.create(4, "m" * 64)
    building.add("image", np.tile(np.eye(4, dtype=np.float32)[:1], (6, 1)), items(6))
    engine.save(building)
    (hits,) = engine.load("m" * 64).search("image", np.eye(4)[:1], top_k=6)
    assert [hit.item["id"] for hit in hits] == [f"image-{i}" for i in range(6)]


def test_items_counts_and_embeddings_come_back_in_the_order_added(index, data):
    assert index.counts == {"image": 600, "audio": 100} and len(index) == 700
    for modality, rows in zip(("image", "audio"), data, strict=True):
        assert index.items(modality) == items(len(rows), modality)
        np.testing.assert_array_equal(index.embeddings(modality), rows)


def test_a_filter_that_nothing_passes_finds_nothing(index):
    assert index.search("image", np.ones((2, DIM)), where={"licence": "none"}) == [[], []]


def test_top_k_is_clamped_and_no_queries_find_nothing(index):
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
def test_bad_queries_are_refused_in_the_same_words(index, arguments, message):
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
def test_bad_items_are_refused_and_nothing_is_added(engine, embeddings, count, message):
    building = engine.create(DIM, "m" * 64)
    with pytest.raises(ValueError, match=message):
        building.add("image", embeddings, items(count))
    assert building.counts.get("image", 0) == 0


def test_an_index_of_nothing_is_not_saved(engine):
    with pytest.raises(ValueError, match="nothing to save"):
        engine.save(engine.create(DIM, "m" * 64))


@pytest.mark.parametrize("item", [{"modality": "x"}, {"score": float("nan")}, {"year": np.int64(3)}])
def test_metadata_that_cannot_come_back_is_refused(engine, item):
    with pytest.raises(ValueError, match=r"Item 0 has"):
        engine.create(DIM, "m" * 64).add("image", np.eye(DIM, dtype=np.float32)[:1], [item])


def test_numpy_integers_count_hits(index):
    assert len(index.search("image", np.ones((1, DIM)), top_k=np.int64(3))[0]) == 3


def test_an_unknown_modality_is_named(index):
    with pytest.raises(KeyError, match="smell"):
        index.search("smell", np.ones((1, DIM)))


def test_the_index_of_another_model_is_refused(index, engine):
    with pytest.raises(ValueError, match=r"model-a.*model-b"):
        engine.load("model-b" * 10)


def test_an_index_that_is_not_there_says_how_to_build_it(engine):
    with pytest.raises(FileNotFoundError, match="build"):
        engine.load("m" * 64)


def test_building_again_replaces_the_index(index, engine):
    building = engine.create(3, "m" * 64)
    building.add("text", np.eye(3, dtype=np.float32), items(3, "text"))
    engine.save(building)
    assert engine.load("m" * 64).counts == {"text": 3}


def test_a_path_never_leads_out_of_the_folder(index, tmp_path):
    index.root = tmp_path
    assert index.path_of({"path": "a.png"}) == tmp_path / "a.png" and index.path_of({"text": "a"}) is None
    with pytest.raises(ValueError, match="leads out of"):
        index.path_of({"path": "../../etc/passwd"})
    index.root = None
    with pytest.raises(ValueError, match="knows no folder"):
        index.path_of({"path": "a.png"})
