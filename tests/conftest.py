"""What several test modules share: the packaged encoders, a tiny model, a tiny gallery and its index."""

import csv
import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
if "PYTEST_XDIST_WORKER" in os.environ:  # one worker a core, and what it starts: more threads would take turns
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import soundfile
import torch
from huggingface_hub import constants
from PIL import Image

from fusemix.encoders import DEFAULT_ENCODERS, load_encoder
from fusemix.model.adapters import FusionModel
from fusemix.model.config import ModelConfig
from scripts import build_index

LONG = ("browser", "distributed", "end_to_end", "evaluate", "export", "latent_store", "start", "trainer")


def pytest_collection_modifyitems(items):
    """Begin with the files that take longest, so that no worker waits for another at the end."""
    items.sort(key=lambda item: item.path.stem.removeprefix("test_") not in LONG)


GALLERY = [  # id, picture colour, tone in Hz, caption
    ("red", "red", None, "a red square"),
    ("green", "green", 330, "a green square with <b>sound</b>"),
    ("blue", "blue", 550, "a blue square that hums"),
    ("hum", None, 110, "a deep hum"),
]


@pytest.fixture(scope="session")
def encoders():
    """Modality -> packaged encoder, loaded once."""
    return {modality: load_encoder(name) for modality, name in DEFAULT_ENCODERS.items()}


@pytest.fixture(scope="session")
def tiny_model(encoders):
    """A random model over the packaged encoders: 16-dimensional, the same in every run."""
    torch.manual_seed(0)
    config = ModelConfig(
        latent_dims={modality: encoder.dim for modality, encoder in encoders.items()},
        encoders={modality: encoder.info() for modality, encoder in encoders.items()},
        embed_dim=16,
    )
    return FusionModel(config).eval()


@pytest.fixture(scope="session")
def checkpoint(tiny_model, tmp_path_factory):
    """Folder of the tiny model."""
    return tiny_model.save_pretrained(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    """Table of a gallery of three pictures, three sounds and four captions."""
    folder = tmp_path_factory.mktemp("gallery")
    columns = ["id", "image", "audio", "text", "split", "group", "title", "source", "licence", "credit"]
    with open(folder / "pairs.csv", "w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(columns)
        for name, colour, hertz, caption in GALLERY:
            if colour:
                Image.new("RGB", (32, 32), colour).save(folder / f"{name}.png")
            if hertz:
                soundfile.write(folder / f"{name}.wav", tone(hertz), 16_000)
            files = [f"{name}.png" if colour else "", f"{name}.wav" if hertz else ""]
            writer.writerow([name, *files, caption, "train", name, name.title(), "tests", "CC0-1.0", '"Q" <name>'])
    return folder / "pairs.csv"


@pytest.fixture(scope="session")
def index_folder(checkpoint, pairs, tmp_path_factory):
    """Folder of the gallery's index, built by the script."""
    folder = tmp_path_factory.mktemp("index") / "index"
    assert build_index.main(["--checkpoint", str(checkpoint), "--pairs", str(pairs), "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def service(checkpoint, index_folder):
    """The app's service over the tiny gallery."""
    from demo.service import Service

    return Service.from_pretrained(checkpoint, index_folder)


def embeddings(n, seed, dim=8):
    """Random embeddings of unit length, the same for a seed: a tensor (n, dim)."""
    rows = torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows, dim=1)


@pytest.fixture
def own_cache(monkeypatch, tmp_path):
    """Keep conditioners that are fitted at the first start below the test's folder."""

    def kept(library, *, namespace, subfolder):
        return tmp_path / library / namespace / subfolder

    monkeypatch.setattr("fusemix.generation.first_fit.cached_assets_path", kept)


@pytest.fixture
def own_hub_settings(monkeypatch, tmp_path):
    """The Hub's client without this machine's tokens and cache: a function that sets which address it asks."""

    def ask(address):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        place = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", place)
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", address)  # diffusers'

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    ask("http://127.0.0.1:1")
    return ask


@pytest.fixture
def hub():
    """A local server that speaks the Hub's API."""
    from tests.cli.hub_server import Hub

    server = Hub()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def reached_hub(hub, own_hub_settings, monkeypatch):
    """The same, which this process's client asks, with its token."""
    own_hub_settings(hub.address)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    return hub


@pytest.fixture(scope="session")
def small_model():
    """A random model of three modalities: 8-dimensional."""
    torch.manual_seed(0)
    return FusionModel(ModelConfig(latent_dims=dict.fromkeys(("image", "text", "audio"), 6), embed_dim=8)).eval()


@pytest.fixture(scope="session")
def clip_decoder(tmp_path_factory):
    """Folder of a tiny Stable unCLIP of the real classes, with its CLIP and without a conditioner."""
    from tests.generation.test_generator import tiny_stable_unclip

    folder = tmp_path_factory.mktemp("decoder") / "sd"
    tiny_stable_unclip(768).save_pretrained(folder)
    return folder


@pytest.fixture
def picture_index(small_model, tmp_path):
    """60 pictures in 60 groups, each with its caption; 3 sounds, too few for a map of their own."""
    from fusemix.search.index import EmbeddingIndex

    names = [{"caption": f"number {i}", "group": str(i)} for i in range(60)]
    for i in range(60):
        Image.fromarray(np.full((8, 8, 3), 4 * i, np.uint8)).save(tmp_path / f"{i}.png")
    index = EmbeddingIndex(8, model_identity=small_model.identity, root=tmp_path)
    index.add("image", embeddings(60, 1), [{"id": f"p{i}", "path": f"{i}.png"} | names[i] for i in range(60)])
    index.add("text", embeddings(60, 2), [{"id": f"t{i}", "text": f"number {i}", "group": str(i)} for i in range(60)])
    index.add("audio", embeddings(3, 3), [{"id": f"s{i}", "path": f"{i}.mp3"} | names[i] for i in range(3)])
    return index


def tone(hertz, *, seconds=0.5, sample_rate=16_000):
    """A sine of half the full scale."""
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * sample_rate)) / sample_rate)


def unit(rng, count, dim):
    """Random embeddings of unit length, (count, dim)."""
    vectors = rng.normal(size=(count, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
