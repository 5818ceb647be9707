"""The "Your files" tab, driven as plain functions over the tiny gallery."""

import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest

from demo.collection import Corpus, Step
from demo.sessions import Visitors
from demo.tabs.your_files import MOST_LEFT_OUT, SORRY, CorpusTab, left_out_html, progress_html
from demo.uploads import LeftOut

ROOT = Path(__file__).resolve().parents[2]
PICTURES = [str(p) for p in sorted((ROOT / "demo/gallery/images").glob("tuxpaint-food-fruit-*"))[:5]]
ME, THEM = SimpleNamespace(session_hash="me"), SimpleNamespace(session_hash="them")


@pytest.fixture
def tab(service, tmp_path):
    with gr.Blocks() as demo:
        made = CorpusTab(service, demo, Visitors(partial(Corpus, service.retriever), tmp_path / "corpora", grace_s=0.2))
    made.demo = demo
    yield made
    for page in (ME, THEM):
        made.corpora.delete(page.session_hash)


def arrived(tab, tmp_path, page=ME):
    """The pages shown while two pictures and a bad sound are embedded."""
    sent = tmp_path / str(page.session_hash)
    sent.mkdir()
    files = [sent / Path(p).name for p in PICTURES[:2]]
    for file, picture in zip(files, PICTURES, strict=False):
        file.write_bytes(Path(picture).read_bytes())
    (sent / "<b>.wav").write_text("no sound")
    first = tab.arrive([str(file) for file in [*files, sent / "<b>.wav"]], page)
    return [first, *tab.embed(True, page)]


def test_files_are_taken_embedded_and_listed(tab, tmp_path):
    first, *pages = arrived(tab, tmp_path)
    assert first[tab.files] is None and first[tab.ready] and first[tab.cancel]["interactive"]
    assert "Your files have arrived" in first[tab.progress]
    last = pages[-1]
    assert "3 of 3 files and captions in" in last[tab.progress] and not last[tab.cancel]["interactive"]
    assert last[tab.panel]["visible"] and "2 pictures of your own" in last[tab.holdings]
    assert "&lt;b&gt;.wav is not a sound" in last[tab.left_out]
    assert last[tab.downloads].count("download=") == 2 and "gradio_api/file=" in last[tab.downloads]


def test_a_search_finds_ones_own_and_a_result_is_the_next_query(tab, tmp_path):
    arrived(tab, tmp_path)
    line, found = tab.by_text("fruit", ME)
    assert "Nearest to “fruit”" in line and found.count("<img") == 2 and 'id="fm-own-h-image"' in found
    assert str(tab.corpora.of("me").folder) in found
    line, found = tab.by_item(gr.EventData(None, {"modality": "image", "id": "image-00002"}), ME)
    assert "your picture" in line and found.index(Path(PICTURES[1]).stem) < found.index(Path(PICTURES[0]).stem)
    assert "Nearest to your picture" in tab.by_picture(PICTURES[4], ME)[0]
    assert tab.by_picture(None, ME) == (gr.skip(), gr.skip()) == tab.by_sound(None, ME)


def test_nothing_of_a_visitor_reaches_another(tab, tmp_path):
    arrived(tab, tmp_path)
    arrived(tab, tmp_path, THEM)
    mine, theirs = tab.corpora.of("me").folder, tab.corpora.of("them").folder
    assert str(mine) not in "".join(tab.by_text("fruit", THEM)) and str(theirs) in "".join(tab.by_text("fruit", THEM))
    tab.leave(THEM)
    assert theirs.exists()  # a picture that the page still asks for is answered
    until = time.monotonic() + 10
    while theirs.exists() and time.monotonic() < until:
        time.sleep(0.02)
    assert mine.exists() and not theirs.exists()
    assert "no longer here" in tab.by_text("fruit", THEM)[0] and "Nearest" in tab.by_text("fruit", ME)[0]


def test_one_button_deletes_everything(tab, tmp_path):
    arrived(tab, tmp_path)
    folder = tab.corpora.of("me").folder
    page = tab.remove(ME)
    assert not folder.exists() and not page[tab.panel]["visible"] and page[tab.results] == ""
    assert "are deleted" in page[tab.progress] and "no longer here" in tab.by_text("fruit", ME)[0]


def test_the_example_needs_no_file_and_leaves_the_gallery_alone(tab, service):
    tab.arrive_example(ME)
    *_, last = tab.embed(True, ME)
    assert "3 pictures and 3 sounds of your own" in last[tab.holdings]
    assert all(service.path_of(item).is_file() for m in ("image", "audio") for item in service.items(m))


def test_failures_are_one_sentence(tab, tmp_path, monkeypatch, caplog):
    refused = tab.arrive([], SimpleNamespace(session_hash=None))
    assert "no session" in refused[tab.progress] and refused[tab.ready] is False
    assert [tab.progress in page for page in tab.embed(False, ME)] == [False]  # the sentence stays
    assert "no longer here" in next(tab.embed(True, ME))[tab.progress]
    assert "Stopping" in tab.stop(ME)
    arrived(tab, tmp_path)
    assert "The query is empty" in tab.by_text(" ", ME)[0]
    corpus = tab.corpora.of("me")
    monkeypatch.setattr(corpus, "search", lambda query: 1 / 0)
    monkeypatch.setattr(corpus, "embed", lambda: 1 / 0)
    monkeypatch.setattr(corpus, "arrive", lambda files, link: 1 / 0)
    assert SORRY in tab.by_text("fruit", ME)[0] and SORRY in next(tab.embed(True, ME))[tab.progress]
    assert SORRY in tab.arrive([], ME)[tab.progress]
    assert caplog.text.count("ZeroDivisionError") == 3


def test_embedding_has_a_queue_of_its_own_and_no_endpoint(tab):
    by_name = {fn.fn.__name__: fn for fn in tab.demo.fns.values() if fn.fn}  # the others are JavaScript alone
    assert (by_name["embed"].concurrency_id, by_name["embed"].concurrency_limit) == ("corpus", 1)
    assert by_name["by_text"].concurrency_id == "quick"
    assert not by_name["arrive"].queue and not by_name["stop"].queue
    assert {fn.api_visibility for name, fn in by_name.items() if name != "leave"} == {"private"}


def test_markup_in_names_is_harmless_and_long_lists_end():
    entries = [LeftOut("<i>", "is <u>")] * (MOST_LEFT_OUT + 7)
    page = left_out_html(entries)
    assert "<i>" not in page and "… and 7 more" in page and left_out_html([]) == ""
    assert "<b>" not in progress_html(Step(1, 2, "<b>"))
    assert 'value="1"' in progress_html(Step(1, 2, "x")) and "<progress" not in progress_html(Step(2, 2, "x", True))
