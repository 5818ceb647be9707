"""Sharing, against a hub that is a folder: what is sent, what is refused, and that it comes back the same."""

import pickle
import re
import shutil
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

from fusemix.model.adapters import FusionModel
from fusemix.model.card import model_card
from fusemix.model.config import ModelConfig, TrainConfig
from fusemix.model.hub import MAX_FILE_BYTES, Upload
from scripts import push_to_hub
from scripts.release import card_results

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
ROOT = Path(__file__).resolve().parents[2]
CONFIG = ModelConfig(latent_dims={"image": 6, "text": 4}, embed_dim=8)
CARD = model_card("tiny", CONFIG, TrainConfig(), data=["8 pairs"], best={"epoch": 1}, seconds=1)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return FusionModel(CONFIG).eval()


@pytest.fixture
def folder(model, tmp_path):
    return model.save_pretrained(tmp_path / "checkpoint", card=CARD)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The Hub as a folder: owner/name/branch/files."""
    place = tmp_path / "hub"

    class FakeApi:
        def __init__(self, token=None):
            self.token = token

        def create_repo(self, repo_id, *, private, exist_ok, repo_type):
            (place / repo_id / "main").mkdir(parents=True, exist_ok=exist_ok)

        def create_branch(self, repo_id, *, branch, exist_ok, repo_type):
            shutil.copytree(place / repo_id / "main", place / repo_id / branch, dirs_exist_ok=exist_ok)

        def upload_folder(
            self, *, repo_id, folder_path, allow_patterns, delete_patterns, revision=None, commit_message, repo_type
        ):
            branch = place / repo_id / (revision or "main")
            for path in [path for path in branch.rglob("*") if path.is_file()]:
                if any(fnmatch(path.relative_to(branch).as_posix(), pattern) for pattern in delete_patterns):
                    path.unlink()
            for path in Path(folder_path).rglob("*"):
                name = path.relative_to(folder_path).as_posix()
                if path.is_file() and any(fnmatch(name, pattern) for pattern in allow_patterns):
                    (branch / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, branch / name)
            return f"https://hub/{repo_id}/{revision or 'main'}"

    def download(repo_id, *, revision, allow_patterns):
        branch = place / repo_id / (revision or "main")
        if not branch.is_dir():
            raise OSError("404")
        return str(branch)

    monkeypatch.setattr("fusemix.model.hub.HfApi", FakeApi)
    monkeypatch.setattr("fusemix.model.adapters.snapshot_download", download)
    return place


def test_a_pushed_model_comes_back_the_same_with_its_card(model, hub):
    assert model.push_to_hub("me/tiny", card=CARD) == "https://hub/me/tiny/main"
    assert FusionModel.from_pretrained("me/tiny").identity == model.identity
    names = sorted(path.name for path in (hub / "me/tiny/main").iterdir())
    assert names == ["README.md", "config.json", "model.safetensors"]
    assert (hub / "me/tiny/main/README.md").read_text() == CARD


def test_a_revision_is_kept_beside_a_later_one(model, hub):
    model.push_to_hub("me/tiny", card=CARD)
    model.push_to_hub("me/tiny", card=CARD, revision="v1")
    torch.manual_seed(1)
    later = FusionModel(CONFIG).eval()
    later.push_to_hub("me/tiny", card=CARD)
    assert FusionModel.from_pretrained("me/tiny", revision="v1").identity == model.identity
    assert FusionModel.from_pretrained("me/tiny").identity == later.identity != model.identity
    with pytest.raises(FileNotFoundError, match="could not be loaded from the Hugging Face Hub"):
        FusionModel.from_pretrained("me/tiny", revision="v2")


def test_shards_of_a_former_upload_do_not_stay_behind(model, hub, folder, tmp_path):
    sharded = model.save_pretrained(tmp_path / "sharded", card=CARD, max_shard_size="1KB")
    assert len(Upload.of(sharded).files) > 4
    Upload.of(sharded).push("me/tiny")
    Upload.of(folder).push("me/tiny")
    assert len(list((hub / "me/tiny/main").glob("*.safetensors*"))) == 1
    assert FusionModel.from_pretrained("me/tiny").identity == model.identity


def test_the_whole_folder_is_sent_by_the_script(hub, capsys):
    assert push_to_hub.main([str(ROOT / "checkpoints/default"), "me/default"]) == 0
    sent = {path.name: path.read_bytes() for path in (hub / "me/default/main").iterdir()}
    assert sent == {path.name: path.read_bytes() for path in (ROOT / "checkpoints/default").iterdir()}
    assert "https://hub/me/default/main" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["default", "unclip-small"])
def test_a_dry_run_lists_exactly_the_files_of_the_folder_and_sends_nothing(hub, capsys, name):
    assert push_to_hub.main([str(ROOT / "checkpoints" / name), "me/default", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    listed = dict(re.findall(r"│ (\S+)\s+│\s+([\d,]+) │", printed))
    paths = [path for path in (ROOT / "checkpoints" / name).rglob("*") if path.is_file()]
    assert {path.relative_to(ROOT / "checkpoints" / name).as_posix() for path in paths} == set(listed)
    assert sum(path.stat().st_size for path in paths) == sum(int(size.replace(",", "")) for size in listed.values())
    assert '"library_name"' in printed and "nothing was sent" in printed and not hub.exists()


def spoil(folder, name, content):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)


def test_the_watchers_files_of_a_training_stay_here(folder):
    before = Upload.of(folder).files
    (folder / "runs").mkdir()
    (folder / "runs" / "events.out.tfevents.1").write_bytes(b"x")
    (folder / "trace.json").write_text("{}")
    assert Upload.of(folder).files == before


RESULT = "- dataset:\n    id: me/pairs\n    task_id: text_to_image\n  value: 0.24\n"


def test_measured_results_go_along(model, hub, folder):
    spoil(folder, ".eval_results/recall.yaml", RESULT.encode())
    Upload.of(folder).push("me/tiny")
    assert (hub / "me/tiny/main/.eval_results/recall.yaml").read_text() == RESULT


@pytest.mark.parametrize(
    ("names", "bases"),
    [
        (["efficientnet-lite0-deep", "minilm-l6"], ["timm/tf_efficientnet_lite0.in1k", MINILM]),
        (["whisper-tiny.en-sentence", "minilm-l6"], ["openai/whisper-tiny.en", MINILM]),
        (
            ["hub-text:BAAI/bge-small-en?pooling=cls ++ hub-text:me/whisper-tiny"],
            ["BAAI/bge-small-en", "me/whisper-tiny"],
        ),
        (["mine"], []),
    ],
)
def test_a_card_names_the_frozen_encoders_as_the_hub_does(names, bases):
    encoders = {f"m{i}": {"name": name} for i, name in enumerate(names)} | {f"n{i}": {} for i in range(2 - len(names))}
    config = ModelConfig(latent_dims=dict.fromkeys(encoders, 4), embed_dim=8, encoders=encoders)
    text = model_card("m", config, TrainConfig(), data=[], best={}, seconds=1)
    assert ModelCard(text).data.to_dict().get("base_model", []) == bases


def test_the_figures_of_a_training_are_results_as_the_hub_reads_them():
    best = {"epoch": 3, "score": 0.5, "photos/image_to_text": 0.25, "photos/text_to_image": 0.75}
    data = ModelCard(model_card("m", CONFIG, TrainConfig(), data=[], best=best, seconds=1)).data
    assert {(r.dataset_config, r.metric_type, r.metric_name, r.metric_value) for r in data.eval_results} == {
        ("photos", "recall", "recall@1, image to text", 0.25),
        ("photos", "recall", "recall@1, text to image", 0.75),
    }
    assert data.metrics == ["recall"] and data.model_name == "m"


def test_the_shipped_cards_are_those_of_the_release_script_and_the_hub_reads_their_results():
    written = card_results.cards()
    for path, text in written.items():
        assert path.read_text() == text, f"{path} differs; run python -m scripts.release.card_results"
    for name, directions in (("default", 10), ("unclip-small", 6)):
        data = ModelCard(
            written[ROOT / "checkpoints" / name / "README.md"]
        ).data  # strict: raises on what it cannot read
        assert len(data.eval_results) >= directions and all(0 <= r.metric_value <= 1 for r in data.eval_results)
        assert data.base_model == ["timm/tf_efficientnet_lite0.in1k", MINILM, "openai/whisper-tiny.en"]
        assert data.metrics == ["recall"] and data.license == "apache-2.0" and data.pipeline_tag


@pytest.mark.parametrize("name", ["default", "unclip-small"])
def test_the_shipped_cards_tell_the_hub_what_it_asks_for(name):
    card = Upload.of(ROOT / "checkpoints" / name).card
    assert {"library_name", "pipeline_tag", "license", "language", "datasets", "tags"} <= set(card)


def test_the_shipped_card_has_the_front_matter_of_the_generator():
    config = FusionModel.from_pretrained(ROOT / "checkpoints/default").config
    card = Upload.of(ROOT / "checkpoints/default").card
    made = ModelCard(model_card("m", config, TrainConfig(), data=[], best={}, seconds=1)).data.to_dict()
    assert made == {key: value for key, value in card.items() if key not in ("datasets", "metrics", "model-index")}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("optimizer.pt", pickle.dumps({}), "optimizer.pt is no file of a checkpoint"),
        ("notes.txt", b"mine", "notes.txt is no file of a checkpoint"),
        (".env", b"HF_TOKEN=x", ".env is no file of a checkpoint"),
        (".cache/config.json", b"{}", "is no file of a checkpoint"),
        ("model.safetensors", pickle.dumps({"a": 1}), "not what its name says.*pickle"),
        ("model.safetensors", b"", "not what its name says"),
        ("config.json", b"\x80\x04", "not what its name says"),
        ("history.json", b"[" * 100_000, "not what its name says"),
        (".eval_results/recall.yaml", b"- value: 1", "not what its name says"),
        (".eval_results/recall.pkl", b"", "is no file of a checkpoint"),
        ("training.png", b"PK\x03\x04", "not what its name says"),
        ("README.md", b"# no front matter", "no front matter"),
        ("README.md", b"---\n: [\n---\n", "front matter"),
        ("README.md", b"\xff\xfe", "front matter"),
    ],
)
def test_what_must_not_be_sent_is_refused_by_name(hub, folder, capsys, name, content, message):
    spoil(folder, name, content)
    assert push_to_hub.main([str(folder), "me/tiny"]) == 2
    printed = " ".join(capsys.readouterr().err.split())
    assert re.search(message, printed) and printed.count(". ") <= 1 and not hub.exists()


def test_a_file_too_large_for_the_hub_is_refused(hub, folder):
    with open(folder / "model.safetensors", "r+b") as handle:
        handle.truncate(MAX_FILE_BYTES + 1)  # a sparse file
    with pytest.raises(ValueError, match=r"5\.0 GB, more than 5; save it again in shards"):
        Upload.of(folder)


def test_a_link_out_of_the_folder_is_refused(folder):
    (folder / "history.json").symlink_to("/etc/hostname")
    with pytest.raises(ValueError, match="is a link"):
        Upload.of(folder)


@pytest.mark.parametrize(("missing", "message"), [("README.md", "has no card"), ("config.json", "no checkpoint")])
def test_a_folder_without_card_or_configuration_is_refused(hub, folder, missing, message, capsys):
    (folder / missing).unlink()
    assert push_to_hub.main([str(folder), "me/tiny"]) == 2
    assert message in capsys.readouterr().err and not hub.exists()


def test_a_checkpoint_that_does_not_load_is_not_sent(hub, folder, capsys):
    (folder / "config.json").write_text((folder / "config.json").read_text().replace('"depth": 1', '"depth": 2'))
    assert push_to_hub.main([str(folder), "me/tiny"]) == 2
    assert "do not fit its config.json" in capsys.readouterr().err and not hub.exists()


@pytest.mark.parametrize("name", ["tiny", "a/b/c", "me/..", "/me", "me/a b", ""])
def test_a_name_the_hub_would_not_take_is_refused_before_anything_is_sent(hub, model, folder, name):
    with pytest.raises(ValueError, match="expected owner/name"):
        model.push_to_hub(name, card=CARD)
    assert push_to_hub.main([str(folder), name, "--dry-run"]) == 2 and not hub.exists()


def test_a_hub_that_refuses_is_one_sentence(monkeypatch, folder, capsys):
    def refuse(*_, **__):
        raise OSError("401 Client Error\nmany\nlines")

    monkeypatch.setattr("fusemix.model.hub.HfApi.create_repo", refuse)
    assert push_to_hub.main([str(folder), "me/tiny"]) == 2
    printed = capsys.readouterr().err.strip()
    assert "401 Client Error" in printed and "hf auth login" in printed and "\n" not in printed
