"""No request opens a file that was not uploaded: every endpoint, by raw HTTP, against a page that really runs."""

import http.server
import os
import threading
from pathlib import Path

import gradio as gr
import httpx
import pytest
from PIL import EpsImagePlugin, Image

from demo import files
from demo.files import MALFORMED, REFUSED, is_uploaded
from fusemix.media import MediaError, load_image
from tests.field.raw import API, served

pytestmark = pytest.mark.field

INPUTS = Path(__file__).parent / "inputs"
META = {"_type": "gradio.FileData"}
TAKES_FILES = {"image", "audio", "file"}


@pytest.fixture(scope="module")
def raw(service):
    with served(service) as page:
        yield page


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """Kind -> a path that was never uploaded."""
    folder = tmp_path_factory.mktemp("private")
    Image.new("RGB", (32, 32), "red").save(folder / "private.png")
    (folder / "unreadable.png").write_bytes(b"secret")
    (folder / "unreadable.png").chmod(0)
    return {
        "a picture": str(folder / "private.png"),
        "missing": str(folder / "missing.png"),
        "a folder": str(folder),
        "unreadable": str(folder / "unreadable.png"),
        "the password file": "/etc/passwd",
        "relative": os.path.relpath(folder / "private.png"),
        "an item of the gallery's folder, above it": str(folder / ".." / folder.name / "private.png"),
        "nothing": "",
        "a zero byte": "/etc/passwd\0.png",
        "a file URL": f"file://{folder}/private.png",
        "data": "data:image/png;base64,iVBORw0KGgo=",
    }


@pytest.fixture(scope="module")
def trap():
    """Address of a server that notes who calls, and the notes."""
    calls = []

    class Notes(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            calls.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Notes)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/a.png", calls
    server.shutdown()
    server.server_close()


def disguises(path):
    """The ways to put a path into the JSON of a request."""
    yield {"path": path}
    yield {"path": path, "meta": META}
    yield {"path": path, "meta": META, "url": f"/gradio_api/file={path}"}
    yield {"url": path}
    yield {"path": None, "url": path, "meta": META}
    yield {"path": {"path": path, "meta": META}, "meta": META}
    yield [{"path": path, "meta": META}]
    yield [[{"path": path}]]
    yield path


def refusals(raw, value, kinds=frozenset(TAKES_FILES), names=None):
    """What every endpoint, or those of some names, says to a value in each input of some kinds, one at a time."""
    calls = []
    for entry, types in raw.endpoints:
        if names and entry["api_name"] not in names:
            continue
        for place, kind in enumerate(types):
            if kind in kinds:
                data = raw.values(entry)
                data[place] = value
                calls.append((entry["id"], data))
    assert calls
    return [(success, output.get("error")) for success, output in raw.ask_all(calls)]


def test_the_walk_meets_every_endpoint_with_a_file(raw):
    named = {entry["api_name"] for entry, types in raw.endpoints if TAKES_FILES & set(types)}
    assert {"generate", "search_image", "search_audio", "arrive", "arrive_1", "by_picture", "by_sound"} <= named
    known = raw.http.get(f"{API}/info").json()["named_endpoints"]
    assert set(known) == {"/generate", "/search_image", "/search_audio", "/search_text"}
    assert set(known) <= {f"/{entry['api_name']}" for entry, _ in raw.endpoints}


@pytest.mark.parametrize("kind", ["a picture", "missing"])
def test_no_endpoint_opens_a_path_that_was_not_uploaded(raw, outside, kind):
    for value in ({"path": outside[kind]}, {"path": outside[kind], "meta": META}):
        assert set(refusals(raw, value)) == {(False, REFUSED)}


def test_no_field_of_any_other_kind_opens_a_file_or_an_address(raw, outside, trap):
    others = {kind for _, types in raw.endpoints for kind in types} - TAKES_FILES - {"state", "dataset"}
    assert {"textbox", "slider", "checkbox", "number"} <= others
    assert set(refusals(raw, {"path": outside["a picture"], "meta": META}, others)) == {(False, REFUSED)}
    for path in (outside["missing"], trap[0]):
        assert REFUSED in raw.call("search_text", [{"path": path, "meta": META}, 1])
    assert trap[1] == []


def test_the_refusal_is_the_same_whatever_lies_there_and_however_it_is_said(raw, outside, trap):
    values = [value for path in (*outside.values(), trap[0]) for value in disguises(path)]
    (image,) = (entry["id"] for entry, _ in raw.endpoints if entry["api_name"] == "search_image")
    answers = raw.ask_all([(image, [value, 1]) for value in values])
    whole = {"error": REFUSED, "duration": 10, "visible": True, "title": "Error"}
    assert [answer for answer in answers if answer != (False, whole)] == []
    assert trap[1] == []


@pytest.mark.parametrize("name", ["search_image", "search_audio"])
def test_no_route_to_an_endpoint_leads_around_the_check(raw, outside, name):
    parameter = raw.http.get(f"{API}/info").json()["named_endpoints"][f"/{name}"]["parameters"][0]["parameter_name"]
    for path in (outside["a picture"], outside["missing"]):
        said = raw.call(name, [{"path": path}, 1])
        assert said.startswith("event: error") and REFUSED in said
        assert raw.call(name, {parameter: {"path": path}, "top_k": 1}, version="/v2") == said
        status, text = raw.run(name, [{"path": path}, 1])
        assert status == 500 and REFUSED in text and path not in text


def test_nothing_outside_the_upload_folder_is_even_looked_at(outside, monkeypatch):
    looked = []
    for name in ("stat", "lstat", "open"):
        real = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda path, *a, _real=real, **k: looked.append(str(path)) or _real(path, *a, **k)
        )
    assert not any(is_uploaded(path) for path in outside.values())
    assert not [path for path in looked if "private" in path or "passwd" in path]


def test_an_upload_is_found_by_its_own_path(raw, pairs):
    uploaded = raw.upload(pairs.parent / "red.png")
    for value in ({"path": uploaded}, {"path": uploaded, "meta": META}):
        assert '"id": "red"' in raw.call("search_image", [value, 1])
    sound = raw.upload(pairs.parent / "hum.wav")
    assert '"id": "hum"' in raw.call("search_audio", [{"path": sound, "meta": META}, 1])


def test_an_upload_is_known_by_its_bytes_and_its_place(raw, pairs, tmp_path):
    """Its path holds a digest of a secret and its bytes: only who has these can be told it, in whatever session."""
    uploaded = Path(raw.upload(pairs.parent / "blue.png"))
    assert is_uploaded(str(uploaded)) and str(uploaded) == raw.upload(pairs.parent / "blue.png")
    made = [uploaded.parent / "link.png", uploaded.parents[1] / "deeper.png", uploaded.parent / "other.png"]
    made[0].symlink_to(pairs.parent / "red.png")
    made[1].write_bytes(uploaded.read_bytes())
    made[2].write_bytes(b"other bytes")
    try:
        roundabout = f"{uploaded.parent}/../{uploaded.parent.name}/{uploaded.name}"
        for path in [*map(str, made), roundabout, str(uploaded.parent), f"{uploaded}/", uploaded.name]:
            assert not is_uploaded(path), path
    finally:
        for path in made:
            path.unlink()
    assert not is_uploaded(str(uploaded.with_name("gone.png")))


def test_an_example_that_the_page_shows_can_be_sent_back(raw):
    """Tap the examples until one fills the field of the picture or the sound with a file, and search with it."""
    examples = [entry for entry, _ in raw.endpoints if str(entry["api_name"]).startswith("partial")]
    for entry in examples:
        _, output = raw.ask(entry["id"], raw.values(entry))
        for shown in output.get("data", []) if isinstance(output, dict) else []:
            if isinstance(shown, dict) and str(shown.get("path", "")).endswith((".mp3", ".webp", ".png")):
                kind = "audio" if shown["path"].endswith(".mp3") else "image"
                assert f'"query": "{kind}"' in raw.call(f"search_{kind}", [shown, 1])
                return
    pytest.fail("no example shows a file")


def test_the_routes_that_relay_or_start_programs_are_closed(raw, trap):
    for route in (f"file={trap[0]}", f"proxy={trap[0]}", f"file=FILE://{INPUTS}", "deep_link?session_hash=x"):
        assert raw.http.get(f"{API}/{route}").status_code == 403
    sent = {"video": ("a.mp4", b"x")}
    assert raw.http.post(f"{API}/process_recording", files=sent).status_code == 403
    assert raw.http.post(f"{API}/component_server", files=sent).status_code == 403
    assert trap[1] == []
    outside_served = [raw.http.get(f"{API}/file={path}").status_code for path in ("/etc/passwd", "/etc/no-such-file")]
    assert outside_served == [403, 403]


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"data": 5}', b"[" * 100_000, b"\xff", b'{"data": [NaN]}'])
def test_a_malformed_request_is_answered_and_leaves_no_traceback(raw, body, capfd, caplog):
    for route in ("run/search_image", "call/search_image", "call/v2/search_image", "queue/join", "component_server"):
        answer = raw.http.post(f"{API}/{route}", content=body, headers={"content-type": "application/json"})
        assert answer.status_code in (200, 400, 404, 422, 500)  # 200: it waits in the queue, to be refused there
    assert "Traceback" not in "".join(capfd.readouterr()) + caplog.text


def test_values_of_a_wrong_kind_are_one_sentence_and_no_traceback(raw, capfd, caplog):
    names = {"search_text", "search_image", "generate", "by_weight", "arrive", "arrive_1", "train"}
    for value in ({"meta": 5}, [], "x", 7):
        for success, said in refusals(raw, value, {"textbox", "slider", "checkbox", "number", *TAKES_FILES}, names):
            assert success or said.endswith(".")
    (clicked, *_) = (entry for entry, _ in raw.endpoints if entry["api_name"] == "by_item")
    for event in (5, [1], "x"):
        assert raw.ask(clicked["id"], [], event_data=event) == (False, {"error": MALFORMED} | _ERROR)
    assert "Traceback" not in "".join(capfd.readouterr()) + caplog.text


_ERROR = {"duration": 10, "visible": True, "title": "Error"}


def test_postscript_named_as_a_picture_starts_no_program(tmp_path, monkeypatch, raw):
    mark = tmp_path / "started"
    fake = tmp_path / "gs"
    fake.write_text(f"#!/bin/sh\ntouch {mark}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # what it found earlier
    picture = INPUTS / "postscript-named.jpg"
    with pytest.raises(MediaError, match="not a picture that can be read"):
        load_image(picture)
    assert "not a picture that can be read" in raw.call("search_image", [{"path": raw.upload(picture)}, 1])
    assert not mark.exists()
    with Image.open(picture) as opened, pytest.raises(Exception):  # noqa: B017  (the fake draws nothing)
        opened.load()
    assert mark.exists()  # it would have been started


def test_a_request_names_so_many_files_at_most_and_none_is_read_twice(raw, pairs, monkeypatch):
    uploaded = raw.upload(pairs.parent / "green.png")
    assert is_uploaded(uploaded)
    monkeypatch.setattr(files, "hash_file", None)
    assert files.checked([{"path": uploaded}] * files.MAX_FILES, is_file=True)[-1]["path"] == uploaded
    with pytest.raises(gr.Error, match="up to 2,000 files at once"):
        files.checked([{"path": uploaded}] * (files.MAX_FILES + 1), is_file=True)


def test_the_guard_is_on_the_way_of_the_page(raw):
    assert isinstance(raw.demo, files.GuardedBlocks)
    with pytest.raises(httpx.HTTPStatusError):
        raw.http.get(f"{API}/file=http://example.org/").raise_for_status()


def test_of_the_gallery_folder_only_the_items_are_served(raw, pairs, service):
    """The folder is the table's: it may be anybody's home."""
    root = service.root
    (root / "deep").mkdir()
    private = [root / "private.png", root / ".env", root / "deep" / "red.png", root / "pairs.csv", root / "link.png"]
    for path in private[:3]:
        path.write_bytes(b"private")
    private[-1].symlink_to("private.png")
    asked = [
        *map(str, private),
        f"{root}/deep/../private.png",
        f"{root}//private.png",
        str(root),
        f"{root}/missing.png",
    ]
    for path in asked:
        for route in ("file=", "file/"):
            answer = raw.http.get(f"{API}/{route}{path}")
            assert (answer.status_code, answer.json()) == (403, {"detail": REFUSED}), path
            assert raw.http.head(f"{API}/{route}{path}").status_code in (403, 405)
    for path in (root / "red.png", raw.upload(pairs.parent / "hum.wav"), files.EXAMPLES / "spoken-boat.mp3"):
        assert raw.http.get(f"{API}/file={path}").content == Path(path).read_bytes()
    assert raw.http.get(f"{API}/dev/reload").status_code == 403  # a stream without an end


def test_the_stream_of_an_event_that_does_not_exist_leaves_no_traceback(raw, capfd, caplog):
    for name in ("search_text", "nothing"):
        assert raw.http.get(f"{API}/call/{name}/nothing").status_code in (200, 404)
    assert "Traceback" not in "".join(capfd.readouterr()) + caplog.text


@pytest.mark.parametrize("value", [["a ship"], {"text": "a ship"}])
def test_a_list_is_not_searched_as_its_text(raw, value):
    assert MALFORMED in raw.call("search_text", [value, 1])
