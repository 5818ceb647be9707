"""Signing in and "Push to my account": gradio's own OAuth, a local OpenID provider, and a local Hub."""

import io
import json
import logging
import re
import sys
import tempfile
import zipfile
from pathlib import Path

import gradio as gr
import httpx
import pytest
from huggingface_hub import ModelCard

from demo import account
from demo.sessions import GONE
from fusemix.media import MediaError

TOKEN = "hf_oauth_of_the_visitor"
SPACE = {
    "SYSTEM": "spaces",
    "SPACE_ID": "owner/space",
    "OAUTH_CLIENT_ID": "client",
    "OAUTH_CLIENT_SECRET": "very secret",
    "OAUTH_SCOPES": "openid profile contribute-repos",
}


@pytest.fixture
def provider():
    pytest.importorskip("authlib")
    pytest.importorskip("itsdangerous")
    from tests.demo.openid_provider import Provider

    server = Provider(TOKEN)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def space(monkeypatch, provider):
    """The environment of a Space with ``hf_oauth: true``."""
    from gradio import oauth

    for name, value in (SPACE | {"OPENID_PROVIDER_URL": provider.address}).items():
        monkeypatch.setenv(name, value)
        if hasattr(oauth, name):
            monkeypatch.setattr(oauth, name, value)


@pytest.fixture
def page(space, hub, own_hub_settings, service, tmp_path, monkeypatch):
    """The two tabs, served as on a Space; the Hub knows the visitor's token."""
    from demo import files, ui
    from demo.tabs.train_your_own import TrainingTab
    from demo.tabs.your_files import CorpusTab

    hub.token = TOKEN
    own_hub_settings(hub.address)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("gradio.http_server.watchfn_spaces", lambda _: None)  # of the package spaces
    with files.GuardedBlocks() as demo:
        CorpusTab(service, demo)
        TrainingTab(demo)
    demo.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", **ui.launch_options(service))
    yield demo
    demo.close()


class Visitor:
    """A browser: cookies, a session, and calls of the page's own events."""

    def __init__(self, page):
        self.page, self.web = page, httpx.Client(base_url=page.local_url, timeout=60)
        self.cookies, self.session = {}, "visitor"

    def get(self, address):
        """Follow no redirect; carry cookies although they are marked for https."""
        answer = self.web.get(address, headers=self.headers, follow_redirects=False)
        for line in answer.headers.get_list("set-cookie"):
            name, _, value = line.split(";")[0].partition("=")
            self.cookies[name] = value
            assert "httponly" in line.lower() and "secure" in line.lower()
        return answer

    @property
    def headers(self):
        return {"Cookie": "; ".join(f"{k}={v}" for k, v in self.cookies.items())} if self.cookies else {}

    def sign_in(self):
        there = self.get("/login/huggingface?_target_url=/").headers["location"]
        back = httpx.get(there, follow_redirects=False).headers["location"]
        done = self.get(back)
        assert done.status_code in (302, 307) and done.headers["location"] == "/", done.text

    def call(self, method, data, label=None):
        """Run the event whose function is ``method`` of its tab, and return its last output."""
        functions = [f for f in self.page.fns.values() if getattr(f.fn, "__name__", "") == method]
        chosen = next(
            f for f in functions if label is None or any(getattr(i, "value", None) == label for i in f.inputs)
        )
        body = {"data": data, "fn_index": chosen._id, "session_hash": self.session, "trigger_id": None}
        joined = self.web.post("/gradio_api/queue/join", json=body, headers=self.headers)
        assert joined.status_code == 200, joined.text
        with self.web.stream(
            "GET", f"/gradio_api/queue/data?session_hash={self.session}", headers=self.headers
        ) as lines:
            for line in lines.iter_lines():
                message = json.loads(line.removeprefix("data: ")) if line.startswith("data: ") else {}
                if message.get("msg") == "process_completed" and message.get("event_id") == joined.json()["event_id"]:
                    return message["output"]["data"]
        raise AssertionError("no answer")

    def push(self, name="my-collection", private=True, proposal="my-collection"):
        (told,) = self.call("push", [name, private], proposal)
        return re.sub(r"<[^>]+>", "", str(told)).strip(), str(told)


@pytest.fixture
def visitor(page):
    return Visitor(page)


@pytest.fixture
def with_files(visitor):
    """A visitor who has brought the example files."""
    corpora = next(f.fn.__self__ for f in visitor.page.fns.values() if getattr(f.fn, "__name__", "") == "arrive_example"
                   and hasattr(f.fn.__self__, "corpora")).corpora  # fmt: skip
    corpus = corpora.open(visitor.session)
    corpus.arrive([str(p) for p in sorted(Path(corpus.retriever.index.root).glob("*.png"))], link=False)
    assert list(corpus.embed())[-1].finished
    return visitor


def test_a_signed_in_visitors_collection_arrives_with_their_token_which_stays_nowhere(
    with_files, hub, provider, tmp_path, caplog, capfd
):
    caplog.set_level(logging.DEBUG)
    with_files.sign_in()
    assert provider.asked.split() == ["openid", "profile", "contribute-repos"]
    said, html = with_files.push()
    assert said == "Sent: me/my-collection" and f"{hub.address}/datasets/me/my-collection" in html
    assert hub.tokens - {""} == {TOKEN}  # the client asks one thing without any
    (created,) = hub.created
    assert (created["name"], created["type"], created["visibility"]) == ("my-collection", "dataset", "private")
    assert {"index.json", "items.jsonl", "image.faiss", "README.md"} == set(hub.files)
    secrets = (TOKEN, "very secret")
    out = capfd.readouterr()
    logs = caplog.text + out.out + out.err
    config = with_files.web.get("/config", headers=with_files.headers).text
    kept = [p for p in tmp_path.rglob("*") if p.is_file() and any(s.encode() in p.read_bytes() for s in secrets)]
    assert not kept and not [s for s in secrets if s in logs or s in config]
    sessions = with_files.page.app.state_holder.session_data.values()
    assert sessions and TOKEN not in repr([vars(session) for session in sessions])
    assert not list(tmp_path.glob("fusemix-*"))


def test_a_trained_checkpoint_arrives_with_its_card(visitor, hub, tmp_path):
    tab = next(f.fn.__self__ for f in visitor.page.fns.values() if getattr(f.fn, "__name__", "") == "train")
    training = tab.trainings.open(visitor.session)
    training.folder.joinpath("fusemix-checkpoint.zip").write_bytes(checkpoint_archive(tmp_path))
    visitor.sign_in()
    said, _ = visitor.push("adapters", False, "fusemix-adapters")
    assert said == "Sent: me/adapters" and hub.created[0].get("visibility", "public") == "public"
    assert {"README.md", "config.json", "model.safetensors"} <= set(hub.files)
    assert ModelCard(hub.files["README.md"].decode()).data.library_name == "fusemix"


def checkpoint_archive(tmp_path):
    from fusemix.model.adapters import FusionModel
    from fusemix.model.card import model_card
    from fusemix.model.config import ModelConfig, TrainConfig

    config = ModelConfig(latent_dims={"image": 6, "text": 4}, embed_dim=8)
    card = model_card("tiny", config, TrainConfig(), data=["8 pairs"], best={"epoch": 1}, seconds=1)
    folder = FusionModel(config).save_pretrained(tmp_path / "made", card=card)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        for path in folder.iterdir():
            packed.write(path, f"fusemix-checkpoint/{path.name}")
    return file.getvalue()


@pytest.mark.parametrize(
    ("change", "name", "said"),
    [
        ({"token": "hf_another"}, "mine", "does not know this token, or it has expired; log in again"),
        ({"refuse": {"repos/create": 403}}, "mine", "may not write to me/mine"),
        ({"created": [{}]}, "mine", "There is a repository me/mine already; choose another name."),
        ({"refuse": {"/commit/": 500}}, "mine", "did not take me/mine (code 500"),
        ({}, "a/b", "Name the repository with up to 96 letters"),
        ({}, "", "Name the repository with up to 96 letters"),
        ({}, "mine.", "takes no such name"),
    ],
)
def test_what_the_hub_or_a_name_refuses_is_one_sentence(with_files, hub, change, name, said):
    with_files.sign_in()
    for key, value in change.items():
        setattr(hub, key, value)
    told, _ = with_files.push(name)
    assert said in told and "\n" not in told and told.endswith(".")


def test_signed_out_expired_or_without_files_nothing_is_sent(with_files, hub, provider):
    assert with_files.push()[0] == account.SIGN_IN
    provider.lasts_s = -10
    with_files.sign_in()
    assert with_files.push()[0] == account.SIGN_IN
    provider.lasts_s = 3600
    with_files.sign_in()
    with_files.session = "somebody else"
    assert with_files.push()[0] == GONE
    assert not hub.calls


def test_a_cookie_that_was_changed_is_nobody(with_files, hub):
    with_files.sign_in()
    with_files.cookies["session"] = with_files.cookies["session"][:-4] + "AAAA"
    assert with_files.push()[0] == account.SIGN_IN and not hub.calls


@pytest.mark.parametrize("name", ["..", "a b", "x" * 97, None, "é", "a/../b", "-a"])
def test_a_name_that_the_hub_would_not_take(name):
    with pytest.raises(MediaError):
        account.repository("me", name)


def test_off_a_space_nothing_is_shown_and_nothing_is_needed(monkeypatch):
    from demo.tabs.account import PushRow, sign_in_button

    for name in SPACE:
        monkeypatch.delenv(name, raising=False)
    for package in account.PACKAGES:
        monkeypatch.setitem(sys.modules, package, None)  # an import would fail
    with gr.Blocks() as demo:
        sign_in_button()
        PushRow(lambda _: None, name="mine", private=True)
    assert not [block for block in demo.blocks.values() if block is not demo] and not demo.fns


@pytest.mark.parametrize(
    ("environment", "absent", "said"),
    [
        ({"OPENID_PROVIDER_URL": ""}, None, "OPENID_PROVIDER_URL is not set"),
        ({}, "authlib", "the package authlib is missing; put gradio[oauth] into"),
    ],
)
def test_what_signing_in_lacks_is_one_sentence_and_the_page_is_served(monkeypatch, service, environment, absent, said):
    from demo import ui

    for key, value in (SPACE | {"OPENID_PROVIDER_URL": "http://127.0.0.1:1"} | environment).items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(account, "find_spec", lambda name: None if name == absent else True)
    demo = ui.build_demo(service)
    assert said in account.fault() and not demo.expects_oauth
    assert sum(said in str(block.value) for block in demo.blocks.values() if hasattr(block, "value")) == 2
