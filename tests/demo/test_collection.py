"""Visitors' own corpora: real pictures and sounds of the gallery through the packaged encoders."""

import json
import os
import threading
import time
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from demo import collection, sessions
from demo.collection import Corpus
from demo.query import Query
from demo.sessions import Visitors
from demo.training import Training
from fusemix.data.import_latents import import_latents
from fusemix.media import MediaError
from fusemix.search.index import EmbeddingIndex
from fusemix.search.retriever import Retriever

ROOT = Path(__file__).resolve().parents[2]
PICTURES = sorted((ROOT / "demo/gallery/images").glob("tuxpaint-food-fruit-*"))[:6]
SOUNDS = sorted((ROOT / "demo/gallery/sounds").glob("tuxpaint-animals-birds-*"))[:2]
CAPTIONS = ["a red apple", "a bird sings", "music at night"]


@pytest.fixture
def corpora(service, tmp_path):
    made = Visitors(partial(Corpus, service.retriever), tmp_path / "corpora")
    yield made
    for visitor in list(made._kept):
        made.delete(visitor)


@pytest.fixture
def captions(tmp_path):
    path = tmp_path / "captions.txt"
    path.write_text("\n".join(CAPTIONS))
    return path


def grown(corpora, visitor, files):
    """A corpus with the files embedded, and the last step."""
    corpus = corpora.open(visitor)
    corpus.arrive(files, link=False)
    *_, last = corpus.embed()
    return corpus, last


def test_everything_is_found_by_itself_and_shown(corpora, captions, service):
    corpus, last = grown(corpora, "me", [*PICTURES, *SOUNDS, captions])
    assert last.finished and last.sentence.startswith("11 of 11 files and captions in")
    assert corpus.counts == {"text": 3, "image": 6, "audio": 2} and corpus.left_out == []
    queries = [Query(image=str(p)) for p in PICTURES] + [Query(audio=str(s)) for s in SOUNDS]
    for query, path in zip(queries, [*PICTURES, *SOUNDS], strict=True):
        hit = corpus.search(query).hits["image" if query.image else "audio"][0]
        assert hit.item["path"] == path.name and hit.similarity > 0.99
        assert corpus.path_of(hit.item).is_file()
    answer = corpus.search(Query(text=CAPTIONS[1]))
    assert answer.hits["text"][0].item["text"] == CAPTIONS[1] and answer.n_items == 11
    expected = service.retriever.embed(image=PICTURES[2])
    np.testing.assert_allclose(corpus.index.embeddings("image")[2], expected, atol=1e-4)


def test_words_heard_clearly_in_a_voice_are_searched_with_and_told(captions, tmp_path):
    shipped = Retriever.from_pretrained(ROOT / "checkpoints/default", ROOT / "demo/index")
    corpus = Corpus(shipped, tmp_path / "mine")
    corpus.arrive([PICTURES[0], captions], link=False)
    assert list(corpus.embed())[-1].finished
    spoken = ROOT / "demo/examples/spoken-dog.mp3"
    answer = corpus.search(Query(audio=str(spoken)))
    assert "dog" in answer.heard.lower() and answer.doubt == ""
    words = shipped.embed_words(shipped.embed_and_transcribe(spoken)[1])
    np.testing.assert_allclose(answer.parts["audio"], words, atol=1e-4)
    assert corpus.search(Query(audio=str(SOUNDS[0]))).heard == ""


def test_more_like_this_takes_the_items_own_embedding(corpora, captions, monkeypatch):
    corpus, _ = grown(corpora, "me", [*PICTURES, captions])
    item = corpus.index.items("image")[4]
    assert corpus.search(corpus.query_of("text", "text-00002")).hits["text"][0].item["text"] == CAPTIONS[1]
    monkeypatch.setattr(corpus.retriever, "embed_parts", None)
    assert corpus.search(corpus.query_of("image", item["id"])).hits["image"][0].item == item
    for modality, identity in (("image", "image-99999"), ("text", "../x"), ("smell", "1")):
        with pytest.raises(MediaError, match="no longer here"):
            corpus.query_of(modality, identity)


def test_bad_files_are_listed_and_cost_nobody_the_good_ones(corpora, tmp_path):
    (tmp_path / "words.wav").write_text("no sound")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "cut.webp").write_bytes(PICTURES[0].read_bytes()[:200])
    bad = [tmp_path / name for name in ("words.wav", "empty.png", "cut.webp")]
    corpus, last = grown(corpora, "me", [*bad, PICTURES[1]])
    assert corpus.counts == {"image": 1} and last.done == 4
    assert sorted(entry.name for entry in corpus.left_out) == ["cut.webp", "empty.png", "words.wav"]
    sentences = [entry.sentence for entry in corpus.left_out]
    assert "words.wav is not a sound that can be read; send a wav, mp3, ogg, flac, m4a or webm recording." in sentences
    assert "empty.png is empty (0 bytes); choose another picture." in sentences


def test_a_file_that_breaks_a_decoder_is_listed_too(corpora, monkeypatch):
    def broken(source):
        raise RuntimeError("secret detail")

    monkeypatch.setattr(collection, "load_audio", broken)
    corpus, _ = grown(corpora, "me", [PICTURES[0], SOUNDS[0]])
    assert [entry.sentence for entry in corpus.left_out] == [f"{SOUNDS[0].name} cannot be read"]


def test_files_in_an_archive_are_called_by_their_names_there(corpora, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(PICTURES[0], "trip/day 1/apple.webp")
        archive.writestr("trip/bad.png", "no picture")
    corpus, _ = grown(corpora, "me", [tmp_path / "a.zip"])
    assert corpus.index.items("image")[0]["path"] == "trip/day 1/apple.webp"
    assert corpus.left_out[0].sentence.startswith("trip/bad.png is not a picture")
    assert {p.suffix for p in corpus.folder.iterdir()} == {".jpg", ".zip"}  # what was unpacked is gone


def test_visitors_see_their_own_items_alone(corpora, captions):
    mine, _ = grown(corpora, "me", PICTURES[:3])
    theirs, _ = grown(corpora, "them", [*PICTURES[3:], captions])
    assert {h.item["path"] for h in mine.search(Query(text="fruit")).hits["image"]} == {p.name for p in PICTURES[:3]}
    assert {h.item["path"] for h in theirs.search(Query(text="fruit")).hits["image"]} == {p.name for p in PICTURES[3:]}
    assert "text" not in mine.search(Query(text=CAPTIONS[0])).hits
    assert mine.folder != theirs.folder and len(mine.folder.name) == 64
    assert corpora.delete("me") and not corpora.delete("me")
    assert not mine.folder.exists() and theirs.folder.exists()
    with pytest.raises(MediaError, match="no longer here"):
        corpora.of("me")
    with pytest.raises(MediaError, match="no longer here"):
        mine.search(Query(text="fruit"))
    assert len(theirs.search(Query(text="fruit")).hits["image"]) == 3


def test_what_a_visitor_sent_is_named_here_too_and_that_name_goes_once_embedded(corpora, tmp_path):
    sent = tmp_path / "upload" / "fruit.webp"
    sent.parent.mkdir()
    sent.write_bytes(PICTURES[0].read_bytes())
    corpus = corpora.open("me")
    corpus.arrive([sent])
    assert len(list(corpus.folder.rglob("fruit.webp"))) == 1
    *_, last = corpus.embed()
    assert last.done == 1 and not list(corpus.folder.rglob("fruit.webp"))
    assert sent.read_bytes() == PICTURES[0].read_bytes()  # Gradio's file: another visitor, or the page, may share it
    assert corpus.search(Query(text="x")).hits["image"][0].item["path"] == "fruit.webp"


def test_a_stop_keeps_what_was_embedded_and_more_can_be_added(corpora):
    corpus = corpora.open("me")
    corpus.arrive(PICTURES, link=False)
    steps = []
    for step in corpus.embed():
        steps.append(step)
        if step.done:
            corpora.stop("me")
    assert steps[-1].finished and steps[-1].sentence.startswith("Stopped. 4 of 6")
    assert corpus.counts == {"image": 4} and corpus.downloads
    corpus, _ = grown(corpora, "me", PICTURES[4:])
    assert [item["path"] for item in corpus.index.items("image")] == [p.name for p in PICTURES]
    assert len({item["id"] for item in corpus.index.items("image")}) == 6


def test_a_stop_before_the_turn_leaves_everything_undone(corpora):
    corpus = corpora.open("me")
    corpus.arrive(PICTURES, link=False)
    corpus.stop()
    *_, last = corpus.embed()
    assert last.sentence.startswith("0 of 0") and not len(corpus) and not corpus.downloads


def test_items_time_and_bytes_are_bounded(corpora, captions, monkeypatch):
    monkeypatch.setattr(collection, "MAX_ITEMS", 5)
    corpus, _ = grown(corpora, "items", [*PICTURES[:4], captions])
    assert len(corpus) == 5 and corpus.left_out[0].sentence == "2 of your items exceed the limit of 5"
    monkeypatch.setattr(collection, "MAX_BYTES", sum(p.stat().st_size for p in PICTURES[:2]))
    corpus, _ = grown(corpora, "bytes", PICTURES[:2])
    corpus, _ = grown(corpora, "bytes", PICTURES[2:3])
    assert len(corpus) == 2 and "exceeds" in corpus.left_out[0].sentence
    monkeypatch.setattr(collection, "MAX_BYTES", 10**9)
    monkeypatch.setattr(collection, "MAX_SECONDS", 1e-9)
    corpus, last = grown(corpora, "time", PICTURES)
    assert last.sentence.startswith("Stopped after 0 minutes, the limit per visitor. 4 of 5")


def test_files_that_come_after_a_stop_do_not_undo_it(corpora):
    corpus = corpora.open("me")
    corpus.arrive(PICTURES, link=False)
    steps = []
    for step in corpus.embed():
        steps.append(step)
        if step.done and not step.finished:
            corpus.stop()
            corpus.arrive(SOUNDS, link=False)
    assert steps[-1].sentence.startswith("Stopped. 4 of 6")
    *_, last = corpus.embed()
    assert last.done == 2 and corpus.counts == {"image": 4, "audio": 2}


def test_two_embeddings_of_one_visitor_do_not_mix(corpora):
    corpus = corpora.open("me")
    corpus.arrive(PICTURES, link=False)
    first = corpus.embed()
    next(first)
    with pytest.raises(MediaError, match="already being processed"):
        next(corpus.embed())
    first.close()
    assert not corpus.busy


def test_the_downloaded_index_loads_again_and_finds_the_files(corpora, captions, service, tmp_path):
    corpus, _ = grown(corpora, "me", [*PICTURES, captions])
    for picture in PICTURES:
        (tmp_path / picture.name).write_bytes(picture.read_bytes())
    with zipfile.ZipFile(corpus.downloads["index"]) as archive:
        archive.extractall(tmp_path)
    loaded = EmbeddingIndex.load(tmp_path / "fusemix-index", model_identity=service.retriever.model.identity)
    assert loaded.counts == corpus.counts
    hit = loaded.search("image", service.retriever.embed(image=PICTURES[3])[None], top_k=1)[0][0]
    assert loaded.path_of(hit.item) == tmp_path / PICTURES[3].name and hit.similarity > 0.99


def test_the_downloaded_latents_are_the_encoders_and_can_be_imported(corpora, service, encoders, tmp_path):
    corpus, _ = grown(corpora, "me", [*PICTURES, *SOUNDS])
    with zipfile.ZipFile(corpus.downloads["latents"]) as archive:
        archive.extractall(tmp_path)
    latents = np.load(tmp_path / "latents-image.npy")
    np.testing.assert_allclose(latents, encoders["image"].encode([str(p) for p in PICTURES]), atol=1e-4)
    embedded = service.retriever.model.embed("image", latents).numpy()
    np.testing.assert_allclose(np.load(tmp_path / "embeddings-image.npy"), embedded, atol=1e-5)
    lines = (tmp_path / "items-image.jsonl").read_text().splitlines()
    assert [json.loads(line)["path"] for line in lines] == [p.name for p in PICTURES]
    assert json.loads((tmp_path / "encoders.json").read_text())["audio"]["dim"] == encoders["audio"].dim
    store = import_latents(tmp_path / "latents-audio.npy", tmp_path / "store", modality="audio", name="mine")
    assert len(store) == 2


def test_searching_while_it_grows_and_deleting_meanwhile_break_nothing(corpora):
    corpus = corpora.open("me")
    corpus.arrive(PICTURES, link=False)
    seen, failures = [], []

    def ask():
        while corpus.busy or not seen:
            try:
                seen.append(corpus.search(Query(text="fruit")).n_items)
            except MediaError:
                return
            except Exception as error:
                failures.append(error)
                return

    steps = corpus.embed()
    next(steps)
    thread = threading.Thread(target=ask)
    thread.start()
    for step in steps:
        if step.done == 4:
            corpora.delete("me")
    thread.join(20)
    assert failures == [] and seen and not corpus.folder.exists()


def test_a_corpus_goes_after_its_lifetime_though_nobody_asks(service, tmp_path):
    corpora = Visitors(partial(Corpus, service.retriever), tmp_path / "corpora", lifetime_s=0.3)
    corpus, _ = grown(corpora, "me", [])
    until = time.monotonic() + 10
    while corpus.folder.exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not corpus.folder.exists() and len(corpora) == 0


def test_a_visitor_who_returns_in_time_finds_everything_and_one_who_does_not_is_forgotten(service, tmp_path):
    corpora = Visitors(partial(Corpus, service.retriever), tmp_path / "corpora", grace_s=0.3)
    back, gone = corpora.open("back"), corpora.open("gone")
    for visitor in ("back", "gone", "nobody", None):
        corpora.leave(visitor)
    assert corpora.of("back") is back and back._stop.is_set() and gone.folder.exists()
    until = time.monotonic() + 10
    while gone.folder.exists() and time.monotonic() < until:
        time.sleep(0.02)
    time.sleep(0.2)
    assert not gone.folder.exists() and back.folder.exists() and len(corpora) == 1
    corpora.leave("back")
    assert corpora.open("back") is back  # more files count as a return too
    time.sleep(0.5)
    assert back.folder.exists()
    corpora.leave("back")
    corpora.delete("back")
    assert not back.folder.exists() and not corpora._departures


def test_what_an_earlier_process_left_is_swept(service, tmp_path, monkeypatch):
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir(), new.mkdir()
    moment = time.time()
    monkeypatch.setattr(time, "time", lambda: moment + 100)
    os.utime(new, (moment + 90, moment + 90))
    Visitors(partial(Corpus, service.retriever), tmp_path, lifetime_s=50)
    assert not old.exists() and new.exists()


def test_room_is_made_by_the_one_idle_longest_or_the_visitor_is_asked_back(corpora, monkeypatch):
    monkeypatch.setattr(sessions, "MAX_VISITORS", 2)
    first, second = corpora.open("first"), corpora.open("second")
    with pytest.raises(MediaError, match="come back in a few minutes"):
        corpora.open("third")
    first.used -= 400
    second.used -= 500
    second.busy = True
    third = corpora.open("third")
    assert not first.folder.exists() and second.folder.exists() and third.folder.exists()
    assert corpora.open("third") is third
    with pytest.raises(MediaError, match="no session"):
        corpora.open("")


def test_an_empty_query_is_a_calm_sentence(corpora):
    corpus, _ = grown(corpora, "me", PICTURES[:1])
    with pytest.raises(MediaError, match="The query is empty"):
        corpus.search(Query(text=" "))


def test_pictures_with_their_captions_train_a_model_that_then_searches_them(corpora, tmp_path):
    pictures = sorted((ROOT / "demo/gallery/images").glob("tuxpaint-animals-*"))[:60]
    rows = [f"{path.name},{path.stem.replace('-', ' ')}" for path in pictures]
    (tmp_path / "table.csv").write_text("\n".join(["image,text", *rows]))
    (tmp_path / "more.txt").write_text("a caption of no picture")
    corpus, _ = grown(corpora, "me", [*pictures, SOUNDS[0], tmp_path / "table.csv", tmp_path / "more.txt"])
    pairs = corpus.pairs()
    assert {m: len(x) for m, x in pairs.items()} == {"image": 60, "text": 60}
    first = corpus.index.items("image")[0]["caption"]
    np.testing.assert_allclose(pairs["text"][0], corpus.retriever.encode("text", [first])[0], atol=1e-3)

    training = Training(tmp_path / "mine")
    files = {modality: tmp_path / f"{modality}.npy" for modality in pairs}
    for modality, latents in pairs.items():
        np.save(files[modality], latents)
    training.arrive(files, link=False)
    *_, last = training.run(10)
    assert last.done and training.model is not None
    corpus.adopt(training.model)
    assert corpus.counts == {"image": 60, "text": 61}
    answer = corpus.search(Query(text=first))  # in the space that was trained
    cosines = training.model.embed("text", pairs["text"][:1]) @ training.model.embed("image", pairs["image"]).T
    best = corpus.index.items("image")[int(cosines.argmax())]
    assert answer.hits["text"][0].item["text"] == first and answer.hits["image"][0].item == best
    with pytest.raises(MediaError, match="understands image and text, not audio"):
        corpus.search(Query(audio=str(SOUNDS[0])))
    corpus.arrive([SOUNDS[1]], link=False)
    assert list(corpus.embed())[-1].finished and "understands image, text only" in corpus.left_out[-1].sentence
