import dataclasses
import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from fusemix.data.extract import extract
from fusemix.data.pairs import PairTable
from fusemix.encoder_identity import check_encoder
from fusemix.encoders.speech import Transcript
from fusemix.media import MediaError
from fusemix.model.adapters import FusionModel
from fusemix.search.index import EmbeddingIndex
from fusemix.search.retriever import DEFAULT_WEIGHTS, Retriever, blend, load_encoders
from scripts import build_index, search

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def retriever(tiny_model, encoders, index_folder):
    return Retriever(tiny_model, encoders, EmbeddingIndex.load(index_folder, model_identity=tiny_model.identity))


def queries(pairs):
    return {"text": "a red square", "image": pairs.parent / "green.png", "audio": pairs.parent / "hum.wav"}


@pytest.mark.parametrize("modality", ["text", "image", "audio"])
def test_an_item_of_the_gallery_finds_itself_first(retriever, pairs, modality):
    hits = retriever.search(**{modality: queries(pairs)[modality]})
    expected = {"text": "red", "image": "green", "audio": "hum"}[modality]
    assert (hits[modality][0].item["id"], hits[modality][0].rank) == (expected, 1)
    assert hits[modality][0].similarity == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("modality", "target"), [(m, t) for m in ("text", "image", "audio") for t in ("image", "text", "audio")]
)
def test_similarities_are_the_cosines_of_encoder_and_adapter(retriever, pairs, modality, target):
    query = retriever.embed(**{modality: queries(pairs)[modality]})
    assert query.shape == (16,) and np.linalg.norm(query) == pytest.approx(1, abs=1e-5)
    hits = retriever.search(**{modality: queries(pairs)[modality]}, modalities=[target])[target]
    gallery = embed_items(retriever, target, [hit.item for hit in hits])
    np.testing.assert_allclose([hit.similarity for hit in hits], gallery @ query, atol=1e-4)
    assert [hit.similarity for hit in hits] == sorted((hit.similarity for hit in hits), reverse=True)


def embed_items(retriever, modality, items):
    raw = [item["text"] if modality == "text" else str(retriever.index.path_of(item)) for item in items]
    return retriever.model.embed(modality, retriever.encoders[modality].encode(raw)).numpy()


def test_each_modality_is_ranked_on_its_own(retriever):
    found = retriever.search(text="a square", top_k=2)
    assert {modality: [hit.rank for hit in hits] for modality, hits in found.items()} == {
        "image": [1, 2],
        "text": [1, 2],
        "audio": [1, 2],
    }


@pytest.mark.parametrize("query", [{}, {"text": "a", "image": "b.png"}])
def test_exactly_one_query_is_embedded(retriever, query):
    with pytest.raises(ValueError, match="exactly one of text, image and audio"):
        retriever.embed(**query)


@pytest.mark.parametrize("weights", [{}, {"text": 0.3, "image": -0.7, "audio": 1.5, "minus_text": -0.2}])
def test_a_blend_ranks_by_the_cosine_with_the_weighted_sum(retriever, pairs, weights):
    query = queries(pairs) | {"minus_text": "a hum"}
    hits = retriever.search(**query, weights=weights)
    parts = {m: retriever.embed(**{m: value}) for m, value in queries(pairs).items()}
    parts["minus_text"] = retriever.embed(text="a hum")
    chosen = {"text": 1.0, "image": 1.0, "audio": 1.0, "minus_text": -0.5} | weights
    total = sum(chosen[part] * embedding.astype(np.float64) for part, embedding in parts.items())
    expected = {
        m: retriever.index.embeddings(m) @ total / np.sqrt((total**2).sum()) for m in ("image", "text", "audio")
    }
    for modality, similarities in expected.items():
        order = np.argsort(-similarities)
        items = retriever.index.items(modality)
        assert [hit.item["id"] for hit in hits[modality]] == [items[i]["id"] for i in order]
        np.testing.assert_allclose([hit.similarity for hit in hits[modality]], similarities[order], atol=1e-5)


def test_subtracting_a_caption_sends_it_to_the_end(retriever):
    found = retriever.search(text="a red square", minus_text="a deep hum", weights={"minus_text": -2})["text"]
    assert found[-1].item["id"] == "hum"


def test_a_blend_by_hand():
    parts = {"text": np.array([1, 0], dtype=np.float32), "image": np.array([0, 1], dtype=np.float32)}
    np.testing.assert_allclose(blend(parts, {"text": 3, "image": -4}), [0.6, -0.8], atol=1e-7)
    np.testing.assert_allclose(blend({"minus_text": parts["text"]}), [-1, 0])
    assert blend(parts, {"image": 0}).tolist() == [1, 0] and blend(parts).dtype == np.float32


def test_parts_that_cancel_are_a_calm_sentence_and_wrong_weights_are_refused():
    one = np.array([1, 0], dtype=np.float32)
    with pytest.raises(MediaError, match="cancel each other"):
        blend({"text": one, "minus_text": one}, {"minus_text": -1})
    with pytest.raises(ValueError, match=r"not \['smell'\]"):
        blend({"text": one}, {"smell": 1})
    with pytest.raises(ValueError, match="finite"):
        blend({"text": one}, {"text": float("nan")})
    with pytest.raises(ValueError, match="at least one of"):
        blend({}, DEFAULT_WEIGHTS)


def test_a_text_of_2000_characters_is_taken_and_a_longer_one_is_not(retriever):
    assert retriever.search(text="ab " * 666)["text"]
    with pytest.raises(MediaError, match="more than the 2,000 taken here"):
        retriever.search(text="a" * 2001)


def test_threads_get_the_answers_of_one_after_the_other(retriever, pairs):
    asked = [{modality: value} for modality, value in queries(pairs).items()] * 4
    alone = [retriever.search(**query) for query in asked]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda query: retriever.search(**query), asked))
    for ours, expected in zip(together, alone, strict=True):
        assert list(ours) == list(expected)
        for modality, hits in expected.items():
            assert [hit.item for hit in ours[modality]] == [hit.item for hit in hits]
            # a product that had to share its cores may be summed in another order
            got = [hit.similarity for hit in ours[modality]]
            np.testing.assert_allclose(got, [hit.similarity for hit in hits], atol=1e-5)


def test_from_pretrained_answers_like_the_parts(checkpoint, index_folder, retriever):
    loaded = Retriever.from_pretrained(checkpoint, index_folder)
    assert loaded.search(text="blue") == retriever.search(text="blue")


@pytest.mark.parametrize("key", ["name", "revision", "fingerprint"])
def test_another_encoder_than_the_one_trained_on_is_refused(tiny_model, encoders, key):
    infos = tiny_model.config.encoders
    other = dataclasses.replace(tiny_model.config, encoders=infos | {"text": infos["text"] | {key: "something else"}})
    with pytest.raises(ValueError, match=f"with {key} 'something else'|something else with name"):
        check_encoder("text", other.encoders, encoders["text"].info())


def test_a_checkpoint_that_names_no_encoder_is_refused(tiny_model):
    with pytest.raises(ValueError, match=r"names no encoder for \['audio', 'image', 'text'\]"):
        load_encoders(dataclasses.replace(tiny_model.config, encoders={}))


def test_an_index_of_another_model_is_refused(tiny_model, encoders, index_folder):
    other = FusionModel(tiny_model.config).eval()
    index = EmbeddingIndex.load(index_folder, model_identity=tiny_model.identity)
    with pytest.raises(ValueError, match=r"fusemix index"):
        Retriever(other, encoders, index)


def test_the_index_script_keeps_what_a_result_shows(retriever):
    (item,) = [item for item in retriever.index.items("audio") if item["id"] == "green"]
    assert item == {
        "id": "green",
        "caption": "a green square with <b>sound</b>",
        "path": "green.wav",
        "group": "green",
        "title": "Green",
        "source": "tests",
        "licence": "CC0-1.0",
        "credit": '"Q" <name>',
    }
    assert retriever.index.counts == {"image": 3, "text": 4, "audio": 3}


def test_the_index_script_names_the_row_it_cannot_read(checkpoint, tmp_path, capsys):
    (tmp_path / "pairs.csv").write_text("image,text\n,a caption\nmissing.png,another\n")
    arguments = ["--checkpoint", str(checkpoint), "--pairs", str(tmp_path / "pairs.csv"), "--out", str(tmp_path / "i")]
    assert build_index.main(arguments) == 2
    printed = " ".join(capsys.readouterr().err.split())
    assert "line 3, column image" in printed and "no picture file" in printed
    assert not (tmp_path / "i").exists()


@pytest.mark.field
@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("image,text\n{folder}/red.png,a caption\n", "red.png does not lie in"),
        ("video,text\na.mp4,\n", "has no filled cell in image, text, audio"),
    ],
)
def test_the_index_script_builds_none_that_the_app_would_refuse(table, message, checkpoint, pairs, tmp_path, capsys):
    (tmp_path / "pairs.csv").write_text(table.format(folder=pairs.parent))
    arguments = ["--checkpoint", str(checkpoint), "--pairs", str(tmp_path / "pairs.csv"), "--out", str(tmp_path / "i")]
    assert build_index.main(arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "i").exists()


@pytest.mark.field
def test_every_spelling_of_a_file_is_found_again_by_its_index(checkpoint, pairs, tmp_path, capsys):
    shutil.copy(pairs.parent / "red.png", tmp_path / "rot é.png")
    names = ["./rot é.png", str(tmp_path / "rot é.png"), "sub\\..\\rot e\u0301.png"]
    rows = "".join(f"{name},caption {i},Test\n" for i, name in enumerate(names))
    (tmp_path / "pairs.csv").write_text("image,text,split\n" + rows, encoding="utf-8")
    arguments = ["--checkpoint", str(checkpoint), "--pairs", str(tmp_path / "pairs.csv"), "--out", str(tmp_path / "i")]
    assert build_index.main(arguments) == 0
    assert "3 rows: 0 train, 0 validate" in (said := " ".join(capsys.readouterr().err.split()))
    assert "3 kept out (test); 0 left out." in said
    index = Retriever.from_pretrained(checkpoint, tmp_path / "i").index
    (item,) = index.items("image")
    assert item["path"] == "rot é.png" and index.path_of(item) == tmp_path / "rot é.png"


def test_the_index_script_corrects_hubs_by_a_bank_of_training_latents(checkpoint, encoders, pairs, tmp_path, capsys):
    bank = extract(PairTable.read(pairs), "text", encoders["text"], tmp_path / "bank")
    arguments = ["--checkpoint", str(checkpoint), "--pairs", str(pairs), "--bank", str(bank.folder)]
    assert build_index.main([*arguments, "--out", str(tmp_path / "i"), "--neighbours", "2"]) == 0
    index = EmbeddingIndex.load(tmp_path / "i", model_identity=FusionModel.from_pretrained(checkpoint).identity)
    how = {"bank": 4, "neighbours": 2, "weight": 0.5}
    assert index.corrected == {"image": how, "audio": how}  # whose items are asked for with words
    flags = ["--out", str(tmp_path / "half"), "--neighbours", "2", "--dtype", "float16"]
    assert build_index.main([*arguments, *flags]) == 0
    half = EmbeddingIndex.load(tmp_path / "half", model_identity=FusionModel.from_pretrained(checkpoint).identity)
    assert 0 < np.abs(half.embeddings("image") - index.embeddings("image")).max() < 1e-3
    for flags, sentence in (
        (["--out", str(tmp_path / "j"), "--correct", "smell"], "the index holds"),
        (["--index", "postgresql://localhost/d/x"], "not in PostgreSQL"),
        (["--index", "postgresql://localhost/d/x", "--dtype", "float16"], "PostgreSQL chooses its own"),
    ):
        assert build_index.main([*arguments, *flags]) == 2
        assert sentence in " ".join(capsys.readouterr().err.split())


def test_the_search_script_prints_a_table_and_writes_json(checkpoint, index_folder, tmp_path, capsys):
    arguments = ["--checkpoint", str(checkpoint), "--index", str(index_folder), "--text", "a red square"]
    assert search.main([*arguments, "--top-k", "2", "--json", str(tmp_path / "out.json")]) == 0
    assert "a red square" in capsys.readouterr().out
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["query"] == {"text": "a red square"}
    first = written["hits"]["text"][0]
    assert (first["rank"], first["id"], first["licence"]) == (1, "red", "CC0-1.0")
    assert {modality: len(hits) for modality, hits in written["hits"].items()} == {"image": 2, "text": 2, "audio": 2}


@pytest.mark.parametrize(
    "query", [["--text", "  "], ["--image", "nowhere.png"], ["--audio", __file__], ["--text", "a", "--top-k", "0"]]
)
def test_the_search_script_ends_bad_input_with_one_sentence(checkpoint, index_folder, query, capsys):
    assert search.main(["--checkpoint", str(checkpoint), "--index", str(index_folder), *query]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and "Traceback" not in printed.err and printed.err.strip()


def test_the_scripts_run_from_a_plain_clone(tmp_path):
    for script in ("search.py", "build_index.py"):
        command = [sys.executable, str(ROOT / "scripts" / script), "--help"]
        assert "Usage" in subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout


def test_fused_search_ranks_items_and_names_their_faces(retriever, pairs):
    found = retriever.search(text="a green square with <b>sound</b>", fuse=True, top_k=2)
    assert found[0].item["id"] == "green" and found[0].faces.keys() == {"image", "audio", "text"}
    assert found[0].faces["text"].similarity == pytest.approx(1, abs=1e-4) and found[0].found_by == "text"
    assert [hit.rank for hit in found] == [1, 2]
    where = retriever.search(image=pairs.parent / "green.png", fuse=True, where={"title": "Hum"})
    assert [hit.item["id"] for hit in where] == ["hum"]
    with pytest.raises(ValueError, match="With fuse every face counts; drop modalities"):
        retriever.search(text="a", fuse=True, modalities=["image"])


def test_words_heard_for_certain_lead_and_a_doubtful_sound_speaks_for_itself(retriever, pairs, monkeypatch):
    sound = pairs.parent / "hum.wav"
    embedding = retriever.embed(audio=sound)
    said = ["a deep hum. a deep hu", -0.5]
    monkeypatch.setattr(retriever, "embed_and_transcribe", lambda audio: (embedding, Transcript(*said)))
    words = retriever.embed(text="a deep hum.")
    expected = retriever.fusion.search({"heard": words, "voice": embedding})
    assert retriever.search(audio=sound, fuse=True) == expected
    said[1] = -1.5
    assert retriever.search(audio=sound, fuse=True) == retriever.fusion.search({"audio": embedding})


def test_a_like_moves_the_query_towards_it_and_a_dislike_away(retriever):
    query = retriever.embed(text="a square")
    red, green, blue = sorted(retriever.search_embedding(query)["image"], key=lambda hit: hit.item["id"] != "red")
    likes, dislikes = np.stack([retriever.embedding_of(hit) for hit in (red, green)]), retriever.embedding_of(blue)
    expected = query + 0.5 * likes.mean(axis=0) - 0.5 * dislikes
    refined = retriever.refine([red, green], [blue], query=query)
    np.testing.assert_allclose(refined, expected / np.linalg.norm(expected), atol=1e-6)
    assert refined @ likes[0] > query @ likes[0] and refined @ dislikes < query @ dislikes
    alone = retriever.refine([red])
    assert retriever.search_embedding(alone)["image"][0].item["id"] == "red"


def test_what_cannot_refine_gets_one_sentence(retriever):
    hit = retriever.search(text="a square")["image"][0]
    with pytest.raises(ValueError, match="at least one hit that is liked, or the query"):
        retriever.refine([], [hit])
    with pytest.raises(MediaError, match="cancel each other"):
        retriever.refine([hit], [hit])
    with pytest.raises(ValueError, match="This index holds no image"):
        retriever.refine([dataclasses.replace(hit, item={"id": "other"})])
