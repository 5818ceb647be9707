"""``fusemix deploy-space``: a small checkout, the Hub's real client, and a local server that speaks the Hub's API."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from huggingface_hub import constants

from fusemix.cli import deploy_space
from fusemix.space import MAX_DESCRIPTION, TORCH, SpaceFolder

ROOT = Path(__file__).resolve().parents[2]
BINARY = bytes(range(256)) * 40


@pytest.fixture
def checkout(tmp_path):
    """The code of this checkout with a model and a gallery of a few bytes, and what must not go along."""
    root = tmp_path / "checkout"
    shutil.copytree(ROOT / "fusemix", root / "fusemix", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("README.md", "LICENSE", "requirements.txt", "app.py"):
        shutil.copy(ROOT / name, root / name)
    contents = {
        "checkpoints/default/model.safetensors": BINARY,
        "checkpoints/default/README.md": b"# default\n",
        "demo/service.py": b"x = 1\n",
        "demo/gallery/a sound é.mp3": BINARY[::-1],
        "demo/empty.txt": b"",
        # left here:
        ".git/config": b"",
        "demo/.env": b"HF_TOKEN=x",
        "demo/__pycache__/service.pyc": BINARY,
        "checkpoints/default/runs/events": BINARY,
        "tests/test_x.py": b"",
        "docs/index.md": b"",
        "scripts/train.py": b"",
    }
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


@pytest.fixture
def command(checkout, tmp_path):
    """Run the command in a process of its own: (exit code, standard output, standard error on one line)."""

    def run(*words, endpoint="http://127.0.0.1:1", token="hf_test", prefix=()):
        env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))} | {
            "PYTHONPATH": str(checkout),
            "HF_HOME": str(tmp_path / "home"),
            "HF_ENDPOINT": endpoint,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "NO_COLOR": "1",
        }
        if token:
            env["HF_TOKEN"] = token
        done = subprocess.run(
            [*prefix, sys.executable, "-m", "fusemix.cli.deploy_space", *words],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            timeout=120,
        )
        return done.returncode, done.stdout, " ".join(done.stderr.split())

    return run


@pytest.fixture
def here(checkout, own_hub_settings, monkeypatch, capsys):
    """The same in this process, which is quicker: for what needs no surroundings of its own."""
    monkeypatch.setattr("fusemix.cli.deploy_space.REPOSITORY", checkout)

    def run(*words, endpoint="http://127.0.0.1:1", token="hf_test"):
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        code = deploy_space.main(words)
        out, said = capsys.readouterr()
        return code, out, " ".join(line for line in said.splitlines() if line.strip() and "%|" not in line)

    return run


def refused(answer):
    """The sentence of a command that ended with code 2."""
    code, _, said = answer
    assert code == 2, answer
    assert "Traceback" not in said and said.startswith("error: ") and said.count("error:") == 1, said
    return said


def test_what_is_sent_comes_out_there_byte_by_byte_and_nothing_else(hub, checkout, command):
    words = ["me/search", "--private", "--variable", "FUSEMIX_DECODER=auto"]
    code, out, said = command(*words, endpoint=hub.address)
    assert code == 0, said
    assert f"{hub.address}/spaces/me/search is being built on zero-a10g" in out
    sent = {name: data for name, data in hub.files.items() if name not in ("README.md", "requirements.txt")}
    parts = [checkout / name for name in ("LICENSE", "app.py", "checkpoints", "demo", "fusemix")]
    paths = [path for part in parts for path in ([part] if part.is_file() else part.rglob("*")) if path.is_file()]
    left = re.compile(r"/(\.env|__pycache__/.*|runs/.*)$")
    here = {p.relative_to(checkout).as_posix(): p.read_bytes() for p in paths if not left.search(p.as_posix())}
    assert sent == here
    assert {"checkpoints/default/model.safetensors", "demo/gallery/a sound é.mp3"} == hub.lfs
    (created,) = hub.created
    assert (created["organization"], created["name"], created["type"], created["sdk"]) == (
        "me",
        "search",
        "space",
        "gradio",
    )
    assert created["visibility"] == "private" and created["hardware"] == "zero-a10g"
    assert hub.machines == ["zero-a10g"] and hub.variables == {"FUSEMIX_DECODER": "auto"}
    lines = hub.files["requirements.txt"].decode().splitlines()
    assert TORCH in lines and "spaces" in lines and sum(line.startswith("torch") for line in lines) == 1
    theirs = (ROOT / "requirements.txt").read_text().splitlines()
    assert [line for line in theirs if line not in lines] == ["torch>=2.6,<2.15", "gradio>=6.31,<7"]
    assert "gradio[oauth]>=6.31,<7" in lines  # authlib and itsdangerous, to sign in
    card = hub.files["README.md"].decode()
    front = (ROOT / "README.md").read_text().split("\n---\n")[0]
    assert card.startswith(front) and "arxiv.org" in card and len(card) < len(front) + 600


def test_a_second_time_brings_the_space_up_to_date_and_leaves_what_is_not_ours(hub, checkout, command):
    hub.files |= {"demo/gone.py": b"", "fusemix/old/gone.py": b"", ".gitattributes": b"x", "notes/mine.txt": b"mine"}
    hub.created.append({})
    (checkout / "demo/service.py").write_text("x = 2\n")
    code, _, said = command("me/search", endpoint=hub.address)
    assert code == 0, said
    assert "demo/gone.py" not in hub.files and "fusemix/old/gone.py" not in hub.files
    assert hub.files["notes/mine.txt"] == b"mine" and ".gitattributes" in hub.files
    assert hub.files["demo/service.py"] == b"x = 2\n"


def test_a_dry_run_asks_nobody_and_needs_no_token(hub, here):
    code, out, said = here("me/search", "--dry-run", endpoint=hub.address, token=None)
    assert (code, said) == (0, "") and "nothing was sent" in out
    assert re.search(r"checkpoints/\s+│\s+2 │\s+0\.01", out) and re.search(r"demo/\s+│\s+3 │", out)
    assert not hub.calls


@pytest.mark.parametrize("name", ["search", "a/b/c", "me/..", "me/a b"])
def test_a_name_that_is_no_owner_and_name(here, name):
    assert "expected owner/name" in refused(here(name, "--dry-run"))


def test_no_token(here):
    assert "No token of the Hugging Face Hub was found" in refused(here("me/search", token=None))


def test_no_network(here):
    assert "could not be reached (ConnectError" in refused(here("me/search"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "other"}, "belongs to other, who has no Spaces under me"),
        ({"role": "read"}, "This token may only read"),
        ({"refuse": {"whoami": 401}}, "does not know this token"),
        ({"refuse": {"repos/create": 403}}, "may not write to me/search"),
        ({"refuse": {"repos/create": 402}}, "zero-a10g as --hardware"),
        ({"refuse": {"/commit/": 403}}, "may not write to me/search"),
        ({"refuse": {"objects/batch": 403}}, "may not write to me/search"),
        ({"refuse": {"/storage/": 400}}, "code 400"),
        ({"refuse": {"/hardware": 400}}, "code 400: refused by the test"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(hub, here, change, said):
    for name, value in change.items():
        setattr(hub, name, value)
    assert said in refused(here("me/search", endpoint=hub.address))


def test_an_organisation_of_ones_own(hub, here):
    assert here("team/search", endpoint=hub.address)[0] == 0


def test_a_machine_that_the_hub_does_not_have(here):
    assert "expected one of cpu-basic" in refused(here("me/search", "--hardware", "big", "--dry-run"))


def test_not_in_a_checkout(checkout, here):
    shutil.rmtree(checkout / "demo")
    assert "is no checkout of the repository: it holds no demo" in refused(here("me/search", "--dry-run"))


def test_no_room_on_the_disk(checkout, command, tmp_path, hub):
    if not shutil.which("unshare") or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("this machine lets tests mount no disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    script = f'mount --make-rprivate /; mount -t tmpfs -o size=64k tmpfs {disk}; export TMPDIR={disk}; exec "$@"'
    answer = command("me/search", endpoint=hub.address, prefix=["unshare", "-m", "bash", "-ec", script, "-"])
    assert re.search(r"has room for 0 MB and the Space takes \d", refused(answer))
    assert ("POST", "/api/repos/create") not in hub.calls


def test_a_folder_that_holds_something_is_left_alone(here, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    assert "out is not empty" in refused(here("me/search", "--dry-run", "--out", str(tmp_path / "out")))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_a_link_is_refused(checkout):
    (checkout / "demo/gallery/link.png").symlink_to("/etc/hostname")
    with pytest.raises(ValueError, match=r"demo/gallery/link\.png is a link"):
        SpaceFolder.of(checkout)


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("title", "title: ''"),
        ("sdk", "sdk: docker"),
        ("sdk_version", "sdk_version: 5.49.1"),
        ("sdk_version", "sdk_version: newest"),
        ("python_version", 'python_version: "3.13"'),
        ("app_file", "app_file: main.py"),
        ("license", ""),
        ("short_description", f"short_description: {'x' * (MAX_DESCRIPTION + 1)}"),
        ("short_description", ""),
        ("tags", "tags: []"),
        ("models", "models: sd2-community/one"),
        ("preload_from_hub", "preload_from_hub: [1]"),
        ("thumbnail", "thumbnail: docs/search.png"),
        ("hf_oauth", "hf_oauth: please"),
        ("hf_oauth_scopes", "hf_oauth_scopes: contribute-repos"),
    ],
)
def test_a_front_matter_the_hub_would_stumble_over(checkout, key, line):
    text = (checkout / "README.md").read_text()
    head, rest = text[4:].split("\n---\n", 1)
    kept = [old for old in head.split("\n") if not old.startswith(f"{key}:")]
    (checkout / "README.md").write_text("\n".join(["---", *kept, line, "---", rest]))
    with pytest.raises(ValueError, match=f"front matter has {key}: .*; expected "):
        SpaceFolder.of(checkout)


@pytest.mark.parametrize("text", ["# FuseMix\n", "---\n: [\n---\n", "---\n---\n"])
def test_a_readme_without_front_matter(checkout, text):
    (checkout / "README.md").write_text(text)
    with pytest.raises(ValueError, match="front matter"):
        SpaceFolder.of(checkout)


@pytest.mark.slow
def test_the_assembled_folder_starts_elsewhere_and_answers(tmp_path):
    from gradio_client import Client

    folder = SpaceFolder.of(ROOT).write(tmp_path / "space")
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"GRADIO_SERVER_PORT": str(port)}
    with open(tmp_path / "log", "w") as log:  # as a Space starts it: no arguments, another folder
        process = subprocess.Popen(
            [sys.executable, str(folder / "app.py")], cwd=folder, env=env, stdout=log, stderr=log
        )
    try:
        until, client = time.monotonic() + 180, None
        while client is None:
            assert process.poll() is None and time.monotonic() < until, (tmp_path / "log").read_text()
            try:
                client = Client(f"http://127.0.0.1:{port}", verbose=False)
            except Exception:
                time.sleep(0.5)
        hits = client.predict("a red racing car", 3, api_name="/search_text")["hits"]
        assert "car" in str(hits["text"][0]) and len(hits["image"]) == 3
    finally:
        process.terminate()
        process.wait(60)
