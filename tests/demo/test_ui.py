import asyncio
import importlib
import json
import random
import re
import threading
from dataclasses import replace
from html import escape, unescape
from pathlib import Path

import gradio as gr
import httpx
import pandas as pd
import pytest
import torch
from gradio_client import Client, handle_file

import app
from demo import ui
from demo.query import Query
from demo.results import NO_SOUND, apology, describe_counts, file_url, found, found_by, reel, results, status
from demo.service import Answer, Service
from demo.tabs import search
from demo.tabs.explore import Explorer, map_component
from demo.workers import AT_ONCE
from fusemix.media import MediaError
from fusemix.model.adapters import FusionModel
from fusemix.model.config import ModelConfig
from fusemix.search.fusion import FusedHit
from fusemix.search.index import Hit
from scripts import build_index
from scripts.checks import load_test

ROOT = Path(__file__).resolve().parents[2]
NASTY = '<img src=x onerror="alert(1)">&\'"'


def nasty_answer():
    item = dict.fromkeys(("id", "text", "title", "caption", "source", "licence", "credit"), NASTY) | {"path": "a.png"}
    return Answer("text", {m: [Hit(m, item, 0.5, 1)] for m in ("image", "audio", "text")}, 0.0421, 5214)


class FakeService:
    """Answers without a model."""

    counts = {"image": 3, "audio": 1, "text": 2}
    encoder_names = {"image": "a", "text": "b", "audio": "c"}
    understood = frozenset(encoder_names)
    root = Path("/gallery")
    facets = {"licence": {"CC0": 2}, "source": {"Debian <tests> 1.0": 2}}

    def items(self, modality):
        words = {"id": f"{modality}-1", "caption": "one", "source": "tests", "licence": "CC0"}
        return [words | ({"text": "one"} if modality == "text" else {"path": f"{modality}-1.bin"})]

    def path_of(self, item):
        return self.root / item["path"] if "path" in item else None

    def row_of(self, modality, identity):
        return 0 if identity == f"{modality}-1" else None

    def _answer(self, query, top_k=10):
        self.asked = query
        words = [query] if isinstance(query, str) else list(query.parts().values())
        if "broken" in words:
            raise RuntimeError("secret detail")
        if "bad" in words:
            raise MediaError("The text is <bad>; type a few words.")
        return nasty_answer()

    search = search_text = search_image = search_audio = _answer


@pytest.fixture
def fake():
    return FakeService()


@pytest.fixture
def tab(fake):
    with gr.Blocks():
        explorer = Explorer(fake)
        return search.SearchTab(fake, explorer, map_component(explorer))


def fields(
    tab, *, text="", picture=None, sound=None, without="", weights=(1, 1, 1, -0.5), ids=None, mix=False, narrowed=None
):
    """The widgets' values, as an event hands them over."""
    values = (text, picture, sound, without, *weights, ids or {}, mix, narrowed or {})
    assert len(values) == len(tab.inputs)
    return values


def picked(modality, identity):
    return gr.EventData(None, {"modality": modality, "id": identity})


@pytest.fixture(scope="module")
def page(service):
    """The page, served."""
    demo = ui.build_demo(service)
    demo.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", **ui.launch_options(service))
    yield demo
    demo.close()


@pytest.fixture(scope="module")
def client(page):
    return Client(page.local_url, verbose=False)


def test_heard_words_stand_below_the_status_line_and_are_no_markup():
    page = status(replace(nasty_answer(), heard=NASTY), "your sound")
    assert "Words heard: “&lt;img" in page and NASTY not in page
    assert "heard" not in status(nasty_answer(), "your sound")
    minutes = status(replace(nasty_answer(), heard="a boat on the water " * 500), "your sound")
    assert " …”" in minutes and len(minutes) < 600


def test_metadata_is_escaped_everywhere():
    page = results(nasty_answer(), lambda item: Path("/gallery") / NASTY if "path" in item else None)
    tags = set(re.findall(r"<(\w+)", page))
    assert tags == {"section", "h2", "ol", "li", "img", "p", "span", "div", "button", "audio"}
    assert "onerror" not in re.sub(r'"[^"]*"', '""', re.sub(r">[^<]*<", "><", page))
    assert page.count("<img") == 1
    assert "<b>" not in status(nasty_answer(), "<b>words</b>") + apology("<b>words</b>")


def test_results_say_name_similarity_and_whose_it_is():
    hit = Hit("image", {"id": "7", "path": "dog.webp", "caption": "a dog", "licence": "CC0", "credit": "Ann"}, 0.417, 1)
    page = results(Answer("text", {"image": [hit]}, 0.01, 9), lambda item: Path("/gallery") / item["path"])
    assert 'alt="a dog"' in page and 'src="gradio_api/file=/gallery/dog.webp"' in page
    assert "cosine 0.42" in page and "%" not in page
    assert 'class="fm-more fm-look" data-modality="image" data-id="7"' in page
    assert 'title="CC0 · Ann"' in page and 'data-id="7"' in page


def fused(faces, shares):
    hits = {
        face: Hit(face, {"id": "7", "caption": "a dog", "text": "a dog", "path": f"7.{face}"}, 0.4, 1) for face in faces
    }
    return FusedHit(1, sum(shares.values()), max(shares, key=shares.get), hits, shares, 7)


def test_an_item_shows_its_picture_its_sound_its_caption_and_what_it_was_found_by():
    item = fused(("image", "audio", "text"), {"image": 4.0, "audio": 0.5, "text": 9.0})
    answer = replace(nasty_answer(), items=[item], sounds=[], parts={"text": None})
    page = found(answer, lambda entry: Path("/gallery") / entry["path"])
    assert 'src="gradio_api/file=/gallery/7.image" alt="a dog"' in page and "7.audio" in page
    assert "found by its caption and picture" in page and page.count('<li class="fm-seen"') == 1
    assert NO_SOUND in page and 'data-view="lists"' in page


def test_tools_list_filters_and_save_what_was_found_and_all_is_escaped():
    hit = Hit("image", dict.fromkeys(("id", "title", "caption", "source", "licence", "credit"), NASTY), 0.5, 1)
    items = [FusedHit(n + 1, 1.0, "image", {"image": hit}, {"image": 1.0}, n) for n in range(14)]
    answer = replace(nasty_answer(), items=items, where={"licence": NASTY}, likes=(f"image:{NASTY}",), unknown=[NASTY])
    page = found(
        answer, lambda _: None, {"licence": {NASTY: 3}, "source": {"Debian openclipart-png 1:0.18+dfsg-19": 9}}
    )
    assert NASTY not in page and page.count("<li ") - page.count("fm-lists") >= 14 and page.count(" hidden>") == 2
    assert "openclipart-png (9)" in page and f'value="{escape(NASTY)}" selected' in page
    assert page.count('aria-pressed="true" aria-label="More like') == 14
    saved = json.loads(unescape(re.search('data-hits="([^"]*)"', page)[1]))
    assert len(saved) == 14 and saved[0]["caption"] == NASTY and saved[0]["found_by"] == "image"
    line = status(answer, "you", correct=True)
    assert NASTY not in line and "Not understood: " in line and "steered by 1 mark" in line and "fm-undo" in line
    assert "Nothing passes this filter" in found(replace(answer, items=[]), lambda _: None)


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ({"image": 1.0, "text": 9.0}, "found by its caption"),
        ({"image": 5.0, "text": -9.0}, "found by its picture"),
        ({"audio": 5.0, "text": 4.0}, "found by its sound and caption"),
        ({"image": -1.0, "text": -2.0}, "a weak match"),
    ],
)
def test_the_faces_that_tell_are_named_the_most_telling_first(shares, expected):
    assert found_by(fused(tuple(shares), shares)) == expected


def test_metadata_of_items_and_words_heard_are_escaped():
    hit = Hit("image", dict.fromkeys(("id", "caption", "licence", "path"), NASTY), 0.5, 1)
    item = FusedHit(1, 1.0, "image", {"image": hit}, {"image": 1.0}, 0)
    answer = replace(nasty_answer(), items=[item], heard=NASTY, left_out=NASTY)
    for markup in (found(answer, lambda entry: Path("/gallery") / NASTY), status(answer, "x", correct=True)):
        assert "onerror" not in re.sub(r'"[^"]*"', '""', re.sub(r">[^<]*<", "><", markup))
    assert 'value="&lt;img' in status(answer, "x", correct=True) and "itself is left out" in status(answer, "x")


def test_words_not_certain_and_typing_errors_can_be_corrected_where_somebody_listens():
    answer = replace(nasty_answer(), uncertain="a <dog>", suggestion="a <cat>")
    page = status(answer, "x", correct=True)
    assert "Did you say" in page and 'value="a &lt;dog&gt;"' in page
    assert 'class="fm-meant">a &lt;cat&gt;</button>' in page
    assert "<form" not in status(answer, "x") and "fm-meant" not in status(answer, "x")


def test_addresses_survive_spaces_and_signs():
    assert file_url(Path("/a b/c#d?é.png")) == "gradio_api/file=/a%20b/c%23d%3F%C3%A9.png"


def test_the_status_line_shows_the_time_and_the_number_of_items():
    assert "5,214 items searched in 0.04 s" in status(nasty_answer(), "x")


def test_the_status_line_has_a_button_for_a_link_and_only_then():
    assert 'data-link="?q=a&amp;w=q:2"' in status(nasty_answer(), "x", "?q=a&w=q:2")
    assert "<button" not in status(nasty_answer(), "x")


def test_the_reel_shows_one_example_and_escapes_them_all():
    page = reel([("You type", NASTY, nasty_answer())] * 2, lambda item: Path("/gallery/a.png"))
    assert page.count('class="fm-more fm-slide"') == 2 and page.count(" hidden>") == 1
    assert "onerror" not in re.sub(r'"[^"]*"', '""', re.sub(r">[^<]*<", "><", page))
    assert reel([], lambda item: None) == ""


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"image": 1804, "audio": 2, "text": 3}, "1,804 pictures, 2 sounds and 3 captions"),
        ({"image": 1}, "1 pictures"),
        ({}, "nothing yet"),
    ],
)
def test_counts_are_described_in_words(counts, expected):
    assert describe_counts(counts) == expected


def test_text_search_clears_the_other_queries(tab, fake):
    page = tab.by_text(*fields(tab, text="dogs", picture="a.png"))
    assert (page[tab.text], page[tab.picture], page[tab.sound], fake.asked) == ("dogs", None, None, Query(text="dogs"))
    assert "Pictures" in page[tab.results] and 'data-link="?q=dogs"' in page[tab.status]


def test_results_that_follow_the_typing_leave_the_fields_alone(tab, fake):
    page = tab.by_typing(*fields(tab, text="do", picture="a.png"))
    assert page.keys() == {tab.status, tab.results, tab.answer, tab.narrowed} and fake.asked == Query(text="do")
    for values in (fields(tab, text=" "), fields(tab, text="do", picture="a.png", mix=True)):
        assert tab.by_typing(*values) == {tab.status: gr.skip()}  # no file is encoded at every letter
    tab.by_typing(*fields(tab, text="do", without="grass", mix=True))
    assert fake.asked.parts() == {"text": "do", "minus_text": "grass"}


def test_corrected_words_are_searched_with_and_in_a_mix_take_the_sounds_place(tab, fake):
    tab.by_item(picked("words", "a cat"), *fields(tab, sound="a.mp3"))
    assert fake.asked == Query(text="a cat")
    tab.by_item(picked("words", "a cat"), *fields(tab, sound="a.mp3", picture="p.png", mix=True))
    assert fake.asked.parts() == {"text": "a cat", "image": "p.png"}


def test_filters_stay_for_the_next_search_and_marks_do_not(tab, fake):
    page = tab.by_item(picked("like", "image:image-1"), *fields(tab, text="dogs"))
    assert fake.asked == Query(text="dogs", likes=("image:image-1",))
    marked = page[tab.narrowed]
    page = tab.by_item(picked("dislike", "image:image-1"), *fields(tab, text="dogs", narrowed=marked))
    assert (fake.asked.likes, fake.asked.dislikes) == ((), ("image:image-1",))
    page = tab.by_item(picked("where", "licence=CC0"), *fields(tab, text="dogs", narrowed=page[tab.narrowed]))
    assert fake.asked == Query(text="dogs", where={"licence": "CC0"}, dislikes=("image:image-1",))
    narrowed = page[tab.narrowed]
    for values in (tab.by_text, tab.by_typing):
        values(*fields(tab, text="cats", narrowed=narrowed))
        assert fake.asked == Query(text="cats", where={"licence": "CC0"})
    tab.by_item(picked("unmark", "all"), *fields(tab, text="dogs", narrowed=narrowed))
    assert fake.asked == Query(text="dogs", where={"licence": "CC0"})
    tab.by_item(picked("where", "licence="), *fields(tab, text="dogs", narrowed=narrowed))
    assert fake.asked.where == {} and tab._start()[tab.narrowed] == {}


def test_an_address_gone_back_to_is_searched_with_and_an_empty_one_is_the_start(tab, fake):
    tab.by_item(picked("link", "?q=at+night&w=q:0.5"), *fields(tab, text="old"))
    assert fake.asked == Query(text="at night", weights={"text": 0.5})
    page = tab.by_item(picked("link", "?__theme=dark"), *fields(tab, text="old", mix=True))
    assert (page[tab.status], page[tab.results], page[tab.text], page[tab.mix]) == ("", tab.opening, "", False)


@pytest.mark.parametrize("without", ["", "grass"])
def test_search_without_words_asks_again_for_the_picture_or_sound_on_the_page(tab, fake, without):
    values = fields(tab, text=" ", sound="a.mp3", without=without, weights=(1, 1, 0.5, -1), ids={"audio": "spoken"})
    page = tab.by_text(*values)
    assert fake.asked == Query(audio="a.mp3", ids={"audio": "spoken"}) and tab.sound not in page
    tab.by_text(*fields(tab, picture="a.png"))
    assert fake.asked == Query(image="a.png")


def test_in_a_mix_every_field_and_weight_counts(tab, fake):
    values = fields(tab, text="at night", picture="a.png", without="grass", weights=(0.5, 1, 1, -0.25), mix=True)
    page = tab.by_text(*values)
    assert fake.asked.parts() == {"text": "at night", "image": "a.png", "minus_text": "grass"}
    assert [fake.asked.weight(part) for part in ("text", "image", "minus_text")] == [0.5, 1, -0.25]
    assert tab.picture not in page and page[tab.mix] is True and page[tab.minus_text] == "grass"
    assert tab.by_weight(*values)[tab.results] == page[tab.results]


def test_a_weight_moved_with_nothing_to_weigh_changes_nothing(tab):
    assert tab.by_weight(*fields(tab, mix=True)) == {tab.status: gr.skip()}


def test_an_uploaded_picture_stays_in_its_field_and_has_no_link(tab, fake):
    page = tab.by_file("image", *fields(tab, picture="a.png", text="old", ids={"image": "image-1"}))
    assert tab.picture not in page and (page[tab.text], page[tab.sound], page[tab.ids]) == ("", None, {})
    assert fake.asked == Query(image="a.png") and "data-link" not in page[tab.status]


def test_an_example_is_put_into_its_field_and_has_a_link(tab, fake):
    page = tab.by_example("“a birthday cake”", *fields(tab, text="old"))
    assert page[tab.sound].endswith("spoken-cake.mp3") and page[tab.picture] is None and page[tab.text] == ""
    assert "?sound=spoken-cake.mp3" in page[tab.status]


def test_a_file_that_cannot_be_used_leaves_its_field(tab):
    assert tab.by_file("image", *fields(tab, picture="bad"))[tab.picture] is None
    assert tab.by_file("audio", *fields(tab, sound="bad", picture="a.png", mix=True))[tab.sound] is None


def test_clearing_a_field_leaves_the_page_as_it_is_and_a_mix_goes_on_without_it(tab, fake):
    assert tab.by_file("image", *fields(tab)) == {tab.ids: {}}
    tab.by_file("image", *fields(tab, text="dogs", mix=True))
    assert fake.asked.parts() == {"text": "dogs"}


@pytest.mark.parametrize(
    ("modality", "asked"), [("text", "one"), ("image", "/gallery/image-1.bin"), ("audio", "/gallery/audio-1.bin")]
)
def test_a_result_can_be_the_next_query_or_join_a_mix(tab, fake, modality, asked):
    tab.by_item(picked(modality, f"{modality}-1"), *fields(tab, text="old"))
    assert fake.asked.parts() == {modality: asked}
    tab.by_item(picked(modality, f"{modality}-1"), *fields(tab, text="old", picture="p.png", mix=True))
    assert fake.asked.parts() == {"text": "old", "image": "p.png"} | {modality: asked}


@pytest.mark.parametrize("modality", ["image", "audio", "text", "example", "smell"])
def test_an_unknown_result_is_answered_calmly(tab, modality):
    page = tab.by_item(picked(modality, "../../etc"), *fields(tab))
    assert page == {tab.status: apology(search.GONE), tab.results: ""}


def test_nothing_is_explained_before_and_after_a_failed_search(tab):
    assert tab.explain(None) == (gr.update(visible=False), "", None, "", "")


class Link:
    def __init__(self, **values):
        self.query_params = values


def test_a_link_fills_the_fields_and_searches(tab, fake, tmp_path):
    fake.root, file = tmp_path, tmp_path / "image-1.bin"
    file.write_bytes(b"1")
    page = tab.by_link(Link(q="at night", picture="image-1", w="q:0.5"))
    assert fake.asked.parts() == {"text": "at night", "image": str(file)}
    assert page[tab.picture] == str(file) and page[tab.mix] is True
    assert page[tab.weights["text"]] == 0.5 and "Pictures" in page[tab.results]


def test_an_item_whose_file_is_gone_is_searched_with_and_its_field_stays_empty(tab, fake):
    page = tab.by_item(picked("image", "image-1"), *fields(tab))
    assert fake.asked.parts() == {"image": "/gallery/image-1.bin"} and fake.asked.ids == {"image": "image-1"}
    assert page[tab.picture] is None and "Pictures" in page[tab.results]


def test_a_plain_page_stays_as_it_is_and_a_dead_link_says_so(tab, fake):
    assert tab.by_link(Link(__theme="dark")) == {tab.status: gr.skip()}
    assert "no longer here" in tab.by_link(Link(picture="../../etc/passwd"))[tab.status]


def test_bad_input_is_one_sentence_on_the_page_and_in_the_api(tab, fake):
    page = tab.by_text(*fields(tab, text="bad"))
    assert (page[tab.status], page[tab.results]) == (apology("The text is <bad>; type a few words."), "")
    with pytest.raises(gr.Error, match="type a few words"):
        ui.answer_api(fake.search_text, "bad")


def test_an_unexpected_error_is_logged_and_hidden(tab, fake, caplog):
    assert tab.by_text(*fields(tab, text="broken"))[tab.status] == apology(ui.SORRY)
    with pytest.raises(gr.Error, match=re.escape(ui.SORRY)):
        ui.answer_api(fake.search_text, "broken")
    assert [record.exc_info[0] for record in caplog.records] == [RuntimeError, RuntimeError]


@pytest.mark.parametrize("top_k", [0, -1, 101, None, float("nan")])
def test_the_api_bounds_the_number_of_results(fake, top_k):
    with pytest.raises(gr.Error, match="Ask for 1 to 100 results"):
        ui.answer_api(fake.search_text, "dogs", top_k)


def test_every_icon_that_the_page_names_is_there_and_no_other():
    code = "".join(file.read_text() for file in (ROOT / "demo").rglob("*.py"))
    assert set(re.findall(r"icons/([\w.-]+)", code)) == {file.name for file in (ROOT / "demo/icons").iterdir()}


def test_the_pictures_to_tap_are_in_the_gallery():
    gallery = pd.read_csv(ROOT / "demo/gallery/pairs.csv")
    assert set(search.TAPPED) <= set(gallery["id"])


def test_the_page_serves_the_gallery_and_the_examples_and_nothing_else(fake):
    assert ui.launch_options(fake)["allowed_paths"] == ["/gallery", str(ui.HERE / "examples")]


def test_importing_the_page_leaves_no_stub_behind():
    assert not list(ui.HERE.glob("*.pyi"))


def test_the_api_has_stable_names_and_offers_no_drawing_by_a_decoder_of_another_model(client):
    names = {"/search_text", "/search_image", "/search_audio"}
    assert set(client.view_api(return_format="dict")["named_endpoints"]) == names


def test_the_api_searches_by_text_picture_and_sound(client, pairs):
    answer = client.predict("a red square", 2, api_name="/search_text")
    assert answer["hits"]["text"][0]["id"] == "red" and len(answer["hits"]["image"]) == 2
    answer = client.predict(handle_file(pairs.parent / "green.png"), 3, api_name="/search_image")
    assert answer["hits"]["image"][0]["id"] == "green"
    answer = client.predict(handle_file(pairs.parent / "hum.wav"), 3, api_name="/search_audio")
    assert answer["hits"]["audio"][0]["id"] == "hum" and answer["n_items"] == 10


def test_the_api_answers_bad_input_with_its_sentence_and_goes_on(client, tmp_path):
    (tmp_path / "words.png").write_text("no picture")
    for query, name, sentence in (
        ("  ", "text", "The text is empty"),
        (handle_file(tmp_path / "words.png"), "image", "not a picture that can be read"),
        (handle_file(tmp_path / "words.png"), "audio", "not a sound that can be read"),
    ):
        with pytest.raises(Exception, match=sentence):
            client.predict(query, 3, api_name=f"/search_{name}")
        assert client.predict("red", 1, api_name="/search_text")["hits"]


def test_words_do_not_wait_behind_pictures(client, service, pairs, monkeypatch):
    begun, release = threading.Event(), threading.Event()

    def stuck(prepared):
        begun.set()
        assert release.wait(60)
        return encode(prepared)

    encode = service.retriever.encoders["image"].encode_prepared
    monkeypatch.setattr(service.retriever.encoders["image"], "encode_prepared", stuck)
    picture = handle_file(pairs.parent / "green.png")
    waiting = [client.submit(picture, 1, api_name="/search_image") for _ in range(2 * AT_ONCE)]
    try:
        assert begun.wait(20)
        answer = client.submit("a red square", 1, api_name="/search_text").result(timeout=10)
    finally:
        release.set()
    assert answer["hits"]["text"][0]["id"] == "red"
    assert [job.result(timeout=30)["hits"]["image"][0]["id"] for job in waiting] == ["green"] * 2 * AT_ONCE


def test_the_load_test_visits_the_tabs_that_need_a_session(page, pairs, monkeypatch):
    monkeypatch.setattr(load_test, "EPOCHS", 1)
    monkeypatch.setattr(load_test, "OWN_PICTURES", 2)
    record, pictures = load_test.Record(), [pairs.parent / "red.png", pairs.parent / "blue.png"]

    async def visit():
        async with httpx.AsyncClient(base_url=page.local_url, timeout=60) as client:
            config = (await client.get("config")).json()
            for kind in ("own", "train"):
                await load_test.ask(client, kind, random.Random(0), pictures, record, config)
            with pytest.raises(RuntimeError, match="no longer here"):  # deleted, or another session's
                await load_test.Page(client, config).fire("fm-own-go", "click", ["a red square"])

    asyncio.run(visit())
    assert list(record.waits) == ["own, embedding", "own, search", "train"] and not record.failures


@pytest.mark.parametrize("failure", [RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError()])
def test_a_network_that_fails_costs_one_answer_and_no_worker(client, service, monkeypatch, caplog, failure):
    def fail(prepared):
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(service.retriever.encoders["text"], "encode_prepared", fail)
        for _ in range(2 * AT_ONCE):  # more often than there are workers
            with pytest.raises(Exception, match=re.escape(ui.SORRY)):
                client.predict("red", 1, api_name="/search_text")
    assert [record.exc_info[0] for record in caplog.records] == [type(failure)] * 2 * AT_ONCE
    assert client.predict("red", 1, api_name="/search_text")["hits"]


def test_every_call_without_a_session_is_a_new_one_and_only_so_many_are_remembered(page, client):
    import httpx

    sessions = page.app.state_holder
    before = len(sessions.session_data)
    for count in (1, 2, 3):
        asked = httpx.post(f"{client.src}gradio_api/call/search_text", json={"data": ["red", 1]}).json()
        answer = httpx.get(f"{client.src}gradio_api/call/search_text/{asked['event_id']}", timeout=60)
        assert "event: complete" in answer.text and len(sessions.session_data) == before + count
    assert sessions.capacity == ui.MAX_SESSIONS <= 1000


def test_nothing_is_summed_up_after_each_call_once_the_entry_point_is_imported(monkeypatch):
    for name in ("GRADIO_ANALYTICS_MAX_EVENTS", "GRADIO_ANALYTICS_CACHE_FREQUENCY"):
        monkeypatch.delenv(name, raising=False)
    importlib.reload(app)
    with gr.Blocks() as blocks:
        blocks.queue()
    queue = blocks._queue
    queue.events_recorded = 10_000
    monkeypatch.setattr(queue, "_get_df", None)  # a summary would call it
    queue.compute_analytics_summary([{"function": "a", "status": "success", "process_time": 1.0}])
    assert queue.ANALYTICS_MAX_EVENTS == 1


def test_no_file_outside_the_gallery_is_served(client):
    import httpx

    for path in ("/etc/passwd", str(ui.HERE / "ui.py"), str(ui.HERE.parent / "pyproject.toml")):
        assert httpx.get(f"{client.src}gradio_api/file={path}").status_code in (403, 404)


@pytest.mark.parametrize("understood", [("image", "text"), ("audio", "text")])
def test_the_page_of_a_model_of_two_modalities_offers_only_those(understood, encoders, pairs, tmp_path):
    torch.manual_seed(0)
    chosen = {m: encoders[m] for m in understood}
    config = ModelConfig(
        latent_dims={m: e.dim for m, e in chosen.items()},
        encoders={m: e.info() for m, e in chosen.items()},
        embed_dim=8,
    )
    FusionModel(config).eval().save_pretrained(tmp_path / "model")
    flags = ["--checkpoint", str(tmp_path / "model"), "--pairs", str(pairs), "--out", str(tmp_path / "index")]
    assert build_index.main(flags) == 0
    page = ui.build_demo(Service.from_pretrained(tmp_path / "model", tmp_path / "index"))
    shown = {block.elem_id: block.visible for block in page.blocks.values() if getattr(block, "elem_id", None)}
    assert shown["fm-picture"] == ("image" in understood)
    assert shown["fm-sound"] == shown["fm-speak"] == ("audio" in understood)
    names = {dependency.api_name for dependency in page.fns.values()}
    assert {f"search_{m}" for m in understood} == {name for name in names if str(name).startswith("search_")}
