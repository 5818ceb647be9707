import json
import re
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from demo.query import Query
from demo.service import Service
from demo.tabs.explore import Explorer, map_component
from demo.tabs.search import SearchTab
from demo.transcripts import UNSURE
from demo.workers import AT_ONCE
from fusemix.encoders.speech import Transcript
from fusemix.media import MediaError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def shipped():
    """The real thing: checkpoints/default and demo/index. Missing ones fail."""
    return Service.from_pretrained(ROOT / "checkpoints/default", ROOT / "demo/index")


def test_an_answer_says_what_was_asked_how_long_it_took_and_among_how_many(service):
    answer = service.search_text("a red square", top_k=2)
    assert (answer.query, answer.n_items) == ("text", 10)
    assert 0 < answer.seconds < 5
    assert [hit.item["id"] for hit in answer.hits["text"]][0] == "red"


def test_whoever_asks_the_same_few_threads_compute(service, monkeypatch):
    encoder, threads = service.retriever.encoders["text"], set()
    encode = encoder.encode_prepared
    monkeypatch.setattr(encoder, "encode_prepared", lambda given: threads.add(threading.get_ident()) or encode(given))
    with ThreadPoolExecutor(8) as visitors:
        list(visitors.map(lambda i: (service.search_text(f"word {i}"), service.search(Query(text=f"{i}"))), range(16)))
    assert 1 <= len(threads) <= AT_ONCE


def test_an_answer_as_json_holds_metadata_and_no_path_of_this_machine(service):
    value = json.loads(json.dumps(service.search_text("a red square", top_k=2).to_json()))
    assert list(value) == ["query", "milliseconds", "n_items", "hits", "items"]
    assert value["items"][0]["faces"].keys() == {"image", "text"} and value["items"][0]["rank"] == 1
    assert value["hits"]["image"][0].keys() == {
        "rank", "similarity", "id", "file", "title", "caption", "source", "licence", "credit",
    }  # fmt: skip
    assert str(service.root) not in json.dumps(value)


@pytest.mark.parametrize("top_k", [0, 101])
def test_the_number_of_results_is_bounded(service, top_k):
    with pytest.raises(ValueError, match="Ask for 1 to 100 results"):
        service.search_text("red", top_k=top_k)


def test_a_query_of_parts_answers_like_the_library(service, pairs):
    query = Query(text="a hum", image=str(pairs.parent / "green.png"), weights={"text": 0.5, "image": -1})
    answer = service.search(query, top_k=3)
    alone = service.retriever.search(
        text="a hum", image=pairs.parent / "green.png", weights={"text": 0.5, "image": -1}, top_k=3
    )
    for modality, hits in alone.items():
        assert [hit.item for hit in answer.hits[modality]] == [hit.item for hit in hits]
        got = [hit.similarity for hit in answer.hits[modality]]
        assert got == pytest.approx([hit.similarity for hit in hits], abs=1e-5)  # threads round differently
    assert answer.hits.keys() == alone.keys() and answer.asked == "0.5 × “a hum” − your picture"


def test_an_item_of_the_gallery_is_not_encoded_again(service, monkeypatch):
    monkeypatch.setattr(service.retriever, "embed_parts", None)
    answer = service.search(Query(image="gone.png", ids={"image": "green"}))
    known = service.embeddings["image"][service.row_of("image", "green")]
    np.testing.assert_allclose(answer.embedding, known, atol=1e-6)


def test_what_is_searched_with_is_left_out_of_items_and_lists_and_named(service):
    answer = service.search(Query(image="gone.png", ids={"image": "green"}))
    assert "green" not in {hit.item["id"] for hit in answer.hits["image"]} | {f.item["id"] for f in answer.items}
    assert [hit.rank for hit in answer.hits["image"]] == [1, 2] and len(answer.items) == 3
    assert answer.left_out == "a green square with <b>sound</b>"
    assert service.search(Query(text="a green square")).left_out == ""


@pytest.mark.parametrize(
    ("where", "images", "items"),
    [({"kind": "audio"}, None, 3), ({"kind": "image"}, 3, 3), ({"licence": "CC0-1.0"}, 3, 5), ({"source": "x"}, 0, 0)],
)
def test_results_pass_the_filters(service, where, images, items):
    answer = service.search(Query(text="a red square", where=where))
    assert len(answer.items) <= items and (answer.items or not items)
    assert all(where["kind"] in found.faces for found in answer.items if "kind" in where)
    assert answer.hits.keys() == ({where["kind"]} if "kind" in where else {"image", "audio", "text"})
    assert images is None or len(answer.hits["image"]) == images
    assert service.facets["licence"].keys() == {"CC0-1.0"} and service.facets["source"].keys() == {"tests"}


def test_marks_steer_what_comes_next(service):
    def order(**marks):
        return [found.item["id"] for found in service.search(Query(text="a hum", **marks)).items]

    plain = order()
    last = plain[-1]
    mark = next(f"{m}:{last}" for m in ("image", "audio", "text") if service.row_of(m, last) is not None)
    assert order(likes=(mark,)).index(last) < plain.index(last)
    assert last not in order(dislikes=(mark,))
    assert order(likes=("image:gone", "nonsense")) == plain


def test_an_example_is_encoded_once_and_a_visitors_file_every_time(service, pairs, monkeypatch):
    sound, calls = str(pairs.parent / "hum.wav"), []
    embed = service.retriever.embed_and_transcribe
    monkeypatch.setattr(service.retriever, "embed_and_transcribe", lambda audio: calls.append(audio) or embed(audio))
    for ids in ({"audio": "spoken"}, {"audio": "spoken"}, {}, {}):
        assert service.search(Query(audio=sound, ids=ids)).hits["audio"][0].item["id"] == "hum"
    assert len(calls) == 3


def test_an_empty_query_is_a_calm_sentence(service):
    with pytest.raises(MediaError, match="The query is empty"):
        service.search(Query(text=" "))


def test_files_of_hits_exist_inside_the_gallery(service):
    for modality in ("image", "audio"):
        for item in service.items(modality):
            path = service.path_of(item)
            assert path.is_file() and path.is_relative_to(service.root)


def test_many_visitors_at_once_get_their_own_answers(service):
    asked = ["a red square", "a deep hum", "a blue square that hums"] * 6
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(service.search_text, asked))
    assert [answer.hits["text"][0].item["text"] for answer in answers] == asked


def test_a_picture_that_two_packages_share_is_found_once_and_the_library_keeps_both(shipped):
    duplicates = {"openclipart-food-fruit-lemon", "tuxpaint-food-fruit-cartoon-lemon"}
    lemon = shipped.root / "images/openclipart-food-fruit-lemon.webp"
    assert duplicates <= {hit.item["id"] for hit in shipped.retriever.search(image=lemon, top_k=12)["image"]}
    for answer in (shipped.search_image(lemon, top_k=12), shipped.search(Query(image=str(lemon)), top_k=12)):
        found = answer.hits["image"]
        assert len(duplicates & {hit.item["id"] for hit in found}) == 1 and len(found) == 12
        assert [hit.rank for hit in found] == list(range(1, 13))


def test_the_words_of_a_voice_are_told_and_those_of_a_gallery_sound_are_not(shipped, monkeypatch):
    dog = str(ROOT / "demo/examples/spoken-dog.mp3")
    for answer in (shipped.search(Query(audio=dog)), shipped.search(Query(text="by night", audio=dog))):
        assert "dog running on the grass" in answer.heard.lower()
    assert shipped.search(Query(text="a dog")).heard == ""
    plain = shipped.search_audio(dog)
    assert "dog running on the grass" in plain.heard.lower() and plain.to_json()["heard"] == plain.heard
    wanted = shipped.retriever.search(audio=dog, top_k=10)["text"]
    assert [hit.item["id"] for hit in plain.hits["text"]] == [hit.item["id"] for hit in wanted]

    encoder, listened = shipped.retriever.encoders["audio"], []
    hear = encoder.encode_and_transcribe
    transcripts = [Transcript("[hiss] (a) dog", -0.5)]
    monkeypatch.setattr(
        encoder, "encode_and_transcribe", lambda given: listened.append(given) or (hear(given)[0], transcripts)
    )
    item = shipped.items("audio")[0]
    known = Query(audio=str(shipped.path_of(item)), ids={"audio": item["id"]})
    assert shipped.search(known).heard == "" and not listened
    assert [shipped.search(Query(audio=dog, ids={"audio": "spoken"})).heard for _ in range(2)] == ["dog", "dog"]
    assert len(listened) == 1  # an example is listened to once
    assert shipped.search(Query(audio=dog)).heard == "dog" and len(listened) == 2  # once for latents and words
    assert shipped.search_audio(dog).doubt == ""
    transcripts[0] = Transcript("[hiss] (a) dog", -1.5)
    for answer in (
        shipped.search_audio(dog),
        shipped.search(Query(audio=dog)),
        shipped.search(Query(text="b", audio=dog)),
    ):
        assert (answer.heard, answer.doubt) == ("", UNSURE)


def median_ms(search, query, *, repeats=15):
    return statistics.median(search(query).seconds * 1000 for _ in range(repeats))


@pytest.mark.slow
@pytest.mark.serial
def test_warm_queries_answer_in_a_blink(shipped):
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 255, (768, 1024, 3), dtype=np.uint8))
    sound = (16_000, rng.uniform(-0.1, 0.1, 5 * 16_000).astype(np.float32))
    spoken = Query(audio=str(ROOT / "demo/examples/spoken-dog.mp3"))
    seen = []
    for wait in (0, 5, 15):  # seconds: the machine's other work may take a core for a while
        time.sleep(wait)
        text_ms = median_ms(shipped.search_text, "a dog running on the grass")
        image_ms = median_ms(shipped.search_image, photo)
        audio_ms = max(median_ms(shipped.search_audio, sound), median_ms(shipped.search, spoken))
        seen.append((text_ms, image_ms, audio_ms))
        if text_ms <= 60 and image_ms <= 150 and audio_ms <= 500:
            break
    else:
        pytest.fail(f"text, picture, sound in ms, three tries: {seen}")


def test_the_service_fits_in_memory_and_leaves_slow_libraries_alone():
    code = (
        "import sys; from demo.service import Service; from demo.drawing import Studio; import demo.ui\n"
        "service = Service.from_pretrained('checkpoints/default', 'demo/index')\n"
        "assert Studio(service).steering > 0 and 'small decoder' in Studio(service).label\n"  # as the page asks for
        "slow = {'transformers', 'diffusers'} & set(sys.modules)\n"  # five seconds of the app's start
        "assert not slow, slow\n"
        # getrusage's maximum begins with that of whoever started the process, here all of pytest
        "print(next(int(line.split()[1]) // 1024 for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    printed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert int(printed) < 1500, f"{printed} MB"


def test_the_shipped_index_holds_the_promised_gallery(shipped):
    assert shipped.counts["image"] >= 2500 and shipped.counts["audio"] >= 250
    for modality in ("image", "audio"):
        for item in shipped.items(modality):
            assert item["source"] and item["licence"], item["id"]
            assert shipped.path_of(item).is_file(), item["id"]


def examples(shipped):
    """Name, query and what the gallery should show of every example on the page."""
    patterns = {
        "a cat asleep": "cats?|kitten", "a birthday party": "birthday|party\\w*|cake|wedding|picnic",
        "a ship on the sea": "ships?|shipwreck|boats?|sail\\w*|submarine",
        "something to play music on": "guitars?|violin|cello|piano|music\\w*", "a fast car": "cars?",
        "a castle by a lake": "castle|palace", "a dog barking": "dogs?|puppy|hound|labrador|bulldog|shepherd",
        "sailing": "sail\\w*|boat",
        "violin": "violin|cello|guitar", "electric guitar": "guitar", "flower": "flowers?",
        "“a sailing boat on the water”": "sail\\w*|boat", "“a red racing car”": "cars?",
        "“a birthday cake”": "cakes?|cupcake",
    }  # fmt: skip
    with gr.Blocks():
        explorer = Explorer(shipped)
        tab = SearchTab(shipped, explorer, map_component(explorer))
    assert tab.examples.keys() == patterns.keys()
    return [(name, query, patterns[name]) for name, query in tab.examples.items()]


def test_every_example_on_show_succeeds(shipped):
    for name, query, pattern in examples(shipped):
        found = [f.item["caption"] for f in shipped.search(query, top_k=12).items[:6]]
        pleasing = [bool(re.search(rf"\b({pattern})\b", caption)) for caption in found]
        assert pleasing[0] and sum(pleasing) >= 4, (name, found)


def test_sounds_stand_under_words_only_where_they_fit(shipped):
    sad = shipped.search(Query(text="a sad face"), top_k=50)
    assert sad.sounds == [] and sad.hits["audio"] and all("image" in f.faces for f in sad.items)
    drums = shipped.search(Query(text="drum")).sounds
    assert drums and all("drum" in f.faces["audio"].item["caption"] for f in drums)
    path = shipped.path_of(shipped.items("image")[0])
    assert shipped.search(Query(image=str(path))).sounds is None


def test_a_spoken_sentence_is_searched_by_its_words_and_a_pleasing_item_comes_first(shipped):
    spoken = shipped.search(Query(audio=str(ROOT / "demo/examples/spoken-dog.mp3")))
    assert "dog" in spoken.items[0].item["caption"] and spoken.items[0].found_by == "text"
