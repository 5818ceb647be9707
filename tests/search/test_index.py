import json
import subprocess
import sys

import numpy as np
import pytest
import torch

import fusemix.search.index
from fusemix.search.index import EmbeddingIndex

DIM = 24


def unit(rng, count, dim=DIM):
    vectors = rng.normal(size=(count, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def items(count):
    return [{"id": f"item-{i}", "path": f"{i}.png", "caption": "Grüße, 世界"} for i in range(count)]


@pytest.fixture
def index(tmp_path):
    rng = np.random.default_rng(0)
    built = EmbeddingIndex(DIM, model_identity="model-a", root=tmp_path / "gallery")
    built.add("image", unit(rng, 60), items(60))
    built.add("text", unit(rng, 40), [{"id": str(i), "text": f"words {i}"} for i in range(40)])
    return built


@pytest.mark.parametrize("scale", [1.0, 0.01, 300.0])
def test_values_and_order_are_those_of_brute_force_cosine(scale):
    rng = np.random.default_rng(1)
    gallery, queries = unit(rng, 200), rng.normal(size=(9, DIM)) * scale
    index = EmbeddingIndex(DIM, model_identity="m")
    index.add("image", gallery[:150], items(200)[:150])
    index.add("image", torch.from_numpy(gallery[150:]), items(200)[150:])
    cosine = queries @ gallery.T.astype(np.float64) / np.linalg.norm(queries, axis=1, keepdims=True)
    found = index.search("image", queries, top_k=200)
    for row, hits in zip(cosine, found, strict=True):
        order = np.argsort(-row)
        assert [hit.item["id"] for hit in hits] == [f"item-{i}" for i in order]
        np.testing.assert_allclose([hit.similarity for hit in hits], row[order], atol=1e-6)
        assert [hit.rank for hit in hits] == list(range(1, 201))


def test_a_vector_finds_itself_at_similarity_one_however_long_it_is():
    index = EmbeddingIndex(2, model_identity="m")
    index.add("text", np.eye(2, dtype=np.float32), [{"id": "x"}, {"id": "y"}])
    (hits,) = index.search("text", np.array([[0.0, 9.3]]))
    assert [(hit.item["id"], hit.similarity) for hit in hits] == [("y", 1.0), ("x", 0.0)]
    (hits,) = index.search("text", np.array([[3.0, 4.0]]))
    assert [hit.similarity for hit in hits] == pytest.approx([0.8, 0.6])


def test_a_filter_on_metadata_keeps_values_and_order(index):
    found = index.search("image", np.ones((2, DIM)), top_k=60)
    wanted = {"id": "item-7", "caption": "Grüße, 世界"}
    for all_hits, hits in zip(found, index.search("image", np.ones((2, DIM)), where=wanted), strict=True):
        kept = [hit for hit in all_hits if hit.item["id"] == "item-7"]
        assert [(hit.item, hit.rank) for hit in hits] == [(hit.item, 1) for hit in kept]
        assert hits[0].similarity == pytest.approx(kept[0].similarity, abs=1e-6)
    assert index.search("image", np.ones((1, DIM)), where={"id": "none"}) == [[]]


def test_top_k_is_clamped_to_the_items_there_are(index):
    assert len(index.search("text", np.ones((1, DIM)), top_k=10_000)[0]) == 40


@pytest.mark.parametrize(
    ("embeddings", "count", "message"),
    [
        (np.eye(DIM + 1)[:2], 2, r"shape \(N, 24\), got \(2, 25\)"),
        (np.eye(DIM)[:2], 3, "3 items and 2 embeddings"),
        (np.eye(DIM)[:2] * 1.1, 2, "unit length, row 0 has 1.1"),
        (np.full((1, DIM), np.nan), 1, "NaN or infinite"),
        (np.eye(DIM)[0], 1, r"got \(24,\)"),
    ],
)
def test_what_does_not_fit_is_refused_on_entry(index, embeddings, count, message):
    with pytest.raises(ValueError, match=message):
        index.add("image", embeddings, items(count))
    assert index.counts == {"image": 60, "text": 40}


def test_what_cannot_be_kept_is_refused_by_name(tmp_path):
    index, row = EmbeddingIndex(DIM, model_identity="m", root=tmp_path), np.eye(DIM)[:1]
    for item, message in [
        ({"modality": "x"}, "Item 0 has the metadata key 'modality', which the index itself uses; rename"),
        ({"rank": 1}, "the metadata key 'rank'"),
        ({"similarity": 1}, "the metadata key 'similarity'"),
        ({"year": np.int64(3)}, "metadata that JSON cannot hold, 'year'"),
        ({"score": float("nan")}, "metadata that JSON cannot hold, 'score'"),
        ({3: "x"}, "a key of type int"),
        ({"path": "../elsewhere/a.png"}, "The file ../elsewhere/a.png does not lie in"),
        ({"path": "/etc/passwd"}, "The file /etc/passwd does not lie in"),
    ]:
        with pytest.raises(ValueError, match=message):
            index.add("image", row, [item])
    (tmp_path / "link.png").symlink_to("/etc/passwd")
    with pytest.raises(ValueError, match=r"The file link\.png does not lie in"):
        index.add("image", row, [{"path": "link.png"}])
    index.add("image", row, [{"path": "sub/../a.png", "group": 0}])
    assert index.items("image") == [{"path": "sub/../a.png", "group": 0}]


def test_an_index_of_nothing_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="The index holds nothing"):
        EmbeddingIndex(DIM, model_identity="m").save(tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_numbers_of_numpy_are_numbers(index, tmp_path):
    query = np.ones((1, DIM))
    for top_k in (np.int64(3), np.uint8(3), np.array(3)):
        assert index.search("text", query, top_k=top_k) == index.search("text", query, top_k=3)
    with pytest.raises(TypeError, match="integer"):
        index.search("text", query, top_k=2.5)
    index.correct("image", unit(np.random.default_rng(1), 9), neighbours=np.int32(2), weight=np.float32(0.5))
    loaded = EmbeddingIndex.load(index.save(tmp_path / "index"), model_identity="model-a")
    assert loaded.corrected["image"] == {"bank": 9, "neighbours": 2, "weight": 0.5}


@pytest.mark.parametrize(
    ("queries", "top_k", "message"),
    [
        (np.zeros((1, DIM)), 5, "length zero"),
        (np.full((1, DIM), np.inf), 5, "NaN or infinite"),
        (np.ones((1, 7)), 5, r"shape \(N, 24\), got \(1, 7\)"),
        (np.ones((1, DIM)), 0, "top_k must be >= 1"),
    ],
)
def test_a_query_that_does_not_fit_is_refused(index, queries, top_k, message):
    with pytest.raises(ValueError, match=message):
        index.search("image", queries, top_k=top_k)


def test_an_unknown_modality_is_named(index):
    with pytest.raises(KeyError, match="smell"):
        index.search("smell", np.ones((1, DIM)))


def test_a_modality_cannot_name_a_path(index):
    with pytest.raises(ValueError, match="named with letters"):
        index.add("../evil", unit(np.random.default_rng(0), 1), [{"id": "1"}])


def test_a_fresh_process_loads_the_same_answers(index, tmp_path):
    folder = index.save(tmp_path / "saved")
    query = np.random.default_rng(2).normal(size=(1, DIM))
    code = (
        "import sys, json, numpy as np; from fusemix.search.index import EmbeddingIndex\n"
        "index = EmbeddingIndex.load(sys.argv[1], model_identity='model-a')\n"
        "hits = index.search('image', np.array(json.loads(sys.argv[2])), top_k=60)[0]\n"
        "print(json.dumps([[h.rank, h.similarity, h.item, str(index.path_of(h.item))] for h in hits]))"
    )
    command = [sys.executable, "-c", code, str(folder), json.dumps(query.tolist())]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    expected = [
        [hit.rank, hit.similarity, hit.item, str(index.path_of(hit.item))]
        for hit in index.search("image", query, top_k=60)[0]
    ]
    assert json.loads(printed) == expected


def test_a_moved_gallery_and_index_still_find_their_files(index, tmp_path):
    (tmp_path / "gallery").mkdir()
    index.save(tmp_path / "index")
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (tmp_path / "gallery").rename(moved / "gallery")
    (tmp_path / "index").rename(moved / "index")
    loaded = EmbeddingIndex.load(moved / "index", model_identity="model-a")
    assert loaded.path_of(loaded.items("image")[3]) == moved / "gallery" / "3.png"


def test_large_files_are_split_and_read_back_whole(index, tmp_path, monkeypatch):
    monkeypatch.setattr(fusemix.search.index, "MAX_SHARD_BYTES", 4 * DIM * 25)
    folder = index.save(tmp_path / "saved")
    assert sorted(path.name for path in folder.glob("image*")) == [f"image-00{i}.faiss" for i in range(3)]
    loaded = EmbeddingIndex.load(folder, model_identity="model-a")
    query = np.random.default_rng(3).normal(size=(1, DIM))
    assert loaded.search("image", query, top_k=60) == index.search("image", query, top_k=60)


def test_half_the_disk_moves_no_similarity_by_a_thousandth(index, tmp_path, monkeypatch):
    monkeypatch.setattr(fusemix.search.index, "MAX_SHARD_BYTES", 4 * DIM * 25)
    index.correct("text", index.embeddings("image"), neighbours=5, weight=0.8)
    whole, half = index.save(tmp_path / "whole"), index.save(tmp_path / "half", dtype="float16")
    assert sorted(path.name for path in half.glob("image*")) == ["image-000.faiss", "image-001.faiss"]
    sizes = [sum(path.stat().st_size for path in folder.glob("*.faiss")) for folder in (whole, half)]
    assert sizes[1] < 0.6 * sizes[0]
    loaded = EmbeddingIndex.load(half, model_identity="model-a")
    queries = np.random.default_rng(3).normal(size=(5, DIM))
    for modality in ("image", "text"):
        wanted, found = (i.search(modality, queries, top_k=60) for i in (index, loaded))
        for row, hits in zip(wanted, found, strict=True):
            similarity = {hit.item["id"]: hit.similarity for hit in row}
            moved = [abs(hit.similarity - similarity[hit.item["id"]]) for hit in hits]
            assert 0 < max(moved) < 1e-3
    again = EmbeddingIndex.load(loaded.save(tmp_path / "again", dtype="float16"), model_identity="model-a")
    np.testing.assert_array_equal(again.embeddings("image"), loaded.embeddings("image"))  # rounded once


def test_half_the_disk_is_refused_where_it_would_not_load_or_mean_the_same(index, tmp_path):
    with pytest.raises(ValueError, match="float32, float16, int8, not 'half'"):
        index.save(tmp_path / "i", dtype="half")
    longer = EmbeddingIndex(DIM, model_identity="model-a")
    longer.add("image", unit(np.random.default_rng(5), 50) * np.float32(1.0009), items(50))
    loaded = EmbeddingIndex.load(longer.save(tmp_path / "longer", dtype="float16"), model_identity="model-a")
    assert np.abs(np.linalg.norm(loaded.embeddings("image"), axis=1) - 1).max() < 5e-4
    index.correct("image", index.embeddings("text"), weight=1e6)
    with pytest.raises(ValueError, match="store this index as float32"):
        index.save(tmp_path / "i", dtype="float16")
    assert not (tmp_path / "i").exists()
    EmbeddingIndex.load(index.save(tmp_path / "whole"), model_identity="model-a")


def test_saving_again_leaves_nothing_of_the_former_index(index, tmp_path):
    index.save(tmp_path / "saved")
    smaller = EmbeddingIndex(DIM, model_identity="model-a")
    smaller.add("audio", unit(np.random.default_rng(4), 2), items(2))
    folder = smaller.save(tmp_path / "saved")
    assert sorted(path.name for path in folder.iterdir()) == ["audio.faiss", "index.json", "items.2.jsonl"]
    assert EmbeddingIndex.load(folder, model_identity="model-a").counts == {"audio": 2}


def test_an_index_of_another_model_is_refused(index, tmp_path):
    folder = index.save(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"made by the model model-a.*model-b.*fusemix index"):
        EmbeddingIndex.load(folder, model_identity="model-b")


def test_a_missing_index_says_how_to_build_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"fusemix index"):
        EmbeddingIndex.load(tmp_path, model_identity="model-a")


@pytest.mark.parametrize("name", ["image.faiss", "items.jsonl", "index.json"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "missing"])
def test_damage_is_one_clear_error(index, tmp_path, name, damage):
    folder = index.save(tmp_path / "saved")
    path = folder / name
    data = path.read_bytes()
    flipped = bytes([data[len(data) // 2] ^ 0xFF])
    changed = {
        "truncated": data[: len(data) // 2],
        "flipped": data[: len(data) // 2] + flipped + data[len(data) // 2 + 1 :],
        "empty": b"",
    }
    path.write_bytes(changed[damage]) if damage in changed else path.unlink()
    with pytest.raises((ValueError, FileNotFoundError), match=r"damaged|fusemix index|not valid JSON"):
        EmbeddingIndex.load(folder, model_identity="model-a")


def test_a_faiss_error_is_a_value_error_even_when_the_checksum_agrees(index, tmp_path):
    folder = index.save(tmp_path / "saved")
    (folder / "image.faiss").write_bytes(b"IxFI" + b"\xff" * 40)
    manifest = json.loads((folder / "index.json").read_text())
    manifest["sha256"]["image.faiss"] = fusemix.search.index.sha256_of(folder / "image.faiss")
    (folder / "index.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="damaged or incomplete"):
        EmbeddingIndex.load(folder, model_identity="model-a")


def test_an_item_path_cannot_lead_out_of_the_gallery(index):
    with pytest.raises(ValueError, match="leads out of"):
        index.path_of({"path": "../../etc/passwd"})


@pytest.mark.parametrize("where", [None, {"caption": "Grüße, 世界"}])
def test_corrected_hubs_change_the_order_and_no_similarity(index, tmp_path, where):
    rng = np.random.default_rng(3)
    before, bank, queries = index.embeddings("image"), unit(rng, 90), rng.normal(size=(7, DIM)) * 3
    index.correct("image", bank, neighbours=5, weight=0.8)
    hub = np.sort(before @ bank.T, axis=1)[:, -5:].mean(axis=1)
    cosine = queries @ before.T / np.linalg.norm(queries, axis=1, keepdims=True)
    loaded = EmbeddingIndex.load(index.save(tmp_path / "index"), model_identity="model-a")
    for made in (index, loaded):
        np.testing.assert_array_equal(made.embeddings("image"), before)
        assert made.corrected == {"image": {"bank": 90, "neighbours": 5, "weight": 0.8}}
        for row, hits in zip(cosine, made.search("image", queries, top_k=60, where=where), strict=True):
            order = np.argsort(-(row - 0.8 * hub))
            assert [hit.item["id"] for hit in hits] == [f"item-{i}" for i in order]
            np.testing.assert_allclose([hit.similarity for hit in hits], row[order], atol=1e-5)
        assert [h.rank for h in made.search("text", queries[:1], top_k=3)[0]] == [1, 2, 3]  # as it was
    index.correct("image", bank, weight=0.0)
    (hits,) = index.search("image", queries[:1], top_k=60)
    assert [hit.item["id"] for hit in hits] == [f"item-{i}" for i in np.argsort(-cosine[0])]


def test_a_correction_that_cannot_be_is_refused(index):
    bank = unit(np.random.default_rng(3), 9)
    with pytest.raises(KeyError, match="'audio'"):
        index.correct("audio", bank)
    with pytest.raises(ValueError, match="bank of queries"):
        index.correct("image", bank[:0])
    with pytest.raises(ValueError, match=r"shape \(N, 24\)"):
        index.correct("image", bank[:, :5])
    with pytest.raises(ValueError, match="weight must be >= 0"):
        index.correct("image", bank, weight=-1.0)
    index.correct("image", bank)
    with pytest.raises(ValueError, match="corrected already"):
        index.add("image", bank, items(9))


def test_an_index_that_lost_its_correction_is_damaged(index, tmp_path):
    index.correct("image", unit(np.random.default_rng(3), 9))
    folder = index.save(tmp_path / "index")
    manifest = json.loads((folder / "index.json").read_text())
    manifest["corrected"]["text"] = manifest["corrected"]["image"]
    (folder / "index.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="damaged or incomplete .*correction of 'text'"):
        EmbeddingIndex.load(folder, model_identity="model-a")


def test_a_prefix_of_principal_directions_keeps_what_lies_in_them(tmp_path):
    rng = np.random.default_rng(0)
    plane = np.linalg.qr(rng.normal(size=(DIM, 3)))[0]
    index = EmbeddingIndex(DIM, model_identity="model-a")
    for modality in ("image", "text"):
        rows = rng.normal(size=(60, 3)) @ plane.T + 0.001 * rng.normal(size=(60, DIM))
        index.add(modality, (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), items(60))
    folder = index.save(tmp_path / "small", dtype="float16", dims=3)
    loaded = EmbeddingIndex.load(folder, model_identity="model-a")
    query = rng.normal(size=(4, 3)) @ plane.T
    for modality in ("image", "text"):
        np.testing.assert_allclose(loaded.embeddings(modality), index.embeddings(modality), atol=0.01)
        pairs = zip(index.search(modality, query, top_k=5), loaded.search(modality, query, top_k=5), strict=True)
        for wanted, found in pairs:
            assert [h.similarity for h in found] == pytest.approx([h.similarity for h in wanted], abs=0.01)
            assert wanted[0].item == found[0].item
    whole = index.save(tmp_path / "whole", dtype="float16")
    sizes = [sum(path.stat().st_size for path in f.glob("*.faiss")) for f in (folder, whole)]
    assert sizes[0] < (0.3 if DIM >= 16 else 0.8) * sizes[1]


def test_eight_bits_move_similarities_by_a_hundredth_at_most_and_load_as_unit_length(index, tmp_path):
    loaded = EmbeddingIndex.load(index.save(tmp_path / "i", dtype="int8"), model_identity="model-a")
    rows = loaded.embeddings("image")
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    moved = np.abs((rows - index.embeddings("image")) @ index.embeddings("image").T)
    assert 0 < moved.max() < 0.01


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [({"dims": 0}, "dims must be between 1 and"), ({"dims": DIM + 1}, "dims must be between 1 and"),
     ({"dtype": "int4"}, "float32, float16, int8, not 'int4'")],
)  # fmt: skip
def test_a_reduction_that_cannot_be_is_refused(index, tmp_path, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        index.save(tmp_path / "i", **settings)
    index.correct("image", index.embeddings("text"))
    with pytest.raises(ValueError, match="corrected hubs is stored in all dimensions"):
        index.save(tmp_path / "i", dims=4)
