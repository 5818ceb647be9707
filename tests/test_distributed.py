"""Several processes, real ones: torchrun starts two, which must take the steps of one."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from fusemix.data import extract as extract_module
from fusemix.data.latent_store import LatentStore
from fusemix.data.latent_writer import write_latents
from fusemix.data.pair_set import PairSet
from fusemix.data.pairs import PairTable
from fusemix.model.config import ModelConfig, TrainConfig
from fusemix.training.losses import info_nce, info_nce_rows
from fusemix.training.trainer import Trainer
from tests.data.test_latent_store import LengthEncoder

ROOT = Path(__file__).resolve().parents[1]
WORKER = """
import sys, torch
sys.path[:0] = [{tests!r}, {root!r}]
from tests.test_distributed import gradients
torch.set_num_threads(1)
grads = gradients({folder!r}, {name!r}, **{changes!r})
if int(__import__("os").environ["RANK"]) == 0:
    torch.save(grads, {folder!r} + "/two.pt")
"""


@pytest.fixture
def folder(tmp_path):
    """120 pairs of 40 groups: two noisy linear views of one hidden vector."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(120, 6))
    for name, dim in (("image", 10), ("text", 8)):
        view = (hidden @ rng.normal(size=(6, dim)) + 0.1 * rng.normal(size=(120, dim))).astype(np.float32)
        write_latents(tmp_path / name, view, modality=name, name=f"toy-{name}", groups=np.arange(120) // 3)
    return tmp_path


def new_run(folder, name, **changes):
    pairs = PairSet.join({m: LatentStore.open(Path(folder) / m) for m in ("image", "text")})
    dropout, dims = changes.pop("dropout", 0.0), {"image": 10, "text": 8}
    model = ModelConfig(latent_dims=dims, embed_dim=8, dropout=dropout, closed_form_dim=changes.pop("closed_form", 0))
    config = TrainConfig(**{"batch_size": 48, "val_fraction": 0.2, "mixed_precision": "no", **changes})
    return Trainer([pairs], model, config, Path(folder) / name)


def gradients(folder, name, **changes):
    """Name -> gradient after the first batch, and the loss."""
    from fusemix.distributed import mean_gradients

    run = new_run(folder, name, **changes)
    run.model.train()
    loss = run.backward(run.mix(run.draw(0), np.random.default_rng(7)), seed=[0, run.rank])
    mean_gradients(run.trained)
    return {"loss": torch.tensor(loss), **{n: p.grad.clone() for n, p in run.model.named_parameters()}}


def close(actual, expected, tolerance):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert (actual[name] - value).norm() <= tolerance * value.norm() + 1e-9, name


def torchrun(*command):
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *map(str, command)],
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param(
            {"multi_positive": True, "mixup_per_row": True, "batch_size": 50}, marks=pytest.mark.slow
        ),  # 13, 12
        pytest.param({"accumulate": 2, "mixup_alpha": None}, marks=pytest.mark.slow),
        {"accumulate": 5, "batch_size": 38},  # 10 and 9 mixed pairs, in pieces of 2 and 1
    ],
)
def test_two_processes_give_the_gradients_of_one(folder, changes):
    one = gradients(folder, "one", **changes)
    script = folder / "worker.py"
    script.write_text(
        WORKER.format(tests=str(ROOT / "tests"), root=str(ROOT), folder=str(folder), name="two", changes=changes)
    )
    done = torchrun(script)
    assert done.returncode == 0, done.stderr
    close(torch.load(folder / "two.pt", weights_only=True), one, 1e-5)


def test_the_command_trains_in_two_processes_to_the_recall_of_one(folder):
    command = [
        ROOT / "scripts/train.py", "--latents", f"image={folder / 'image'}", f"text={folder / 'text'}", "--epochs", 15,
        "--batch-size", 32, "--dropout", 0, "--embed-dim", 8, "--val-fraction", 0.2, "--learning-rate", 0.003,
    ]  # fmt: skip
    two = torchrun(*command, "--out", folder / "two")
    assert two.returncode == 0, two.stderr
    assert "processes: 2" in two.stderr
    one = subprocess.run(
        [sys.executable, *map(str, command), "--out", str(folder / "one")], capture_output=True, text=True
    )
    recalls = [float(done.stdout.rsplit("recall@1", 1)[1].split()[0]) for done in (one, two)]
    assert recalls[0] > 0.3 and recalls[1] == pytest.approx(recalls[0], abs=0.05)


def test_processes_that_did_not_join_are_an_error(folder, monkeypatch):
    monkeypatch.setattr("fusemix.distributed.Accelerator", lambda **_: type("Alone", (), {"num_processes": 1})())
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match="2 processes were started but 1 joined"):
        new_run(folder, "alone")


@pytest.mark.parametrize("changes", [{}, {"multi_positive": True}, {"closed_form": 3}])
def test_a_batch_embedded_in_pieces_gives_the_gradient_of_the_whole(folder, changes):
    whole = gradients(folder, "whole", **changes)
    pieces = gradients(folder, "pieces", **changes, accumulate=4)
    close(pieces, whole, 1e-5)


@pytest.mark.parametrize("dropout_rows", [1, 7])
def test_pieces_keep_their_dropout_masks_between_the_two_passes(folder, dropout_rows):
    run = new_run(folder, "run", dropout=0.5, accumulate=2, dropout_rows=dropout_rows)
    run.model.train()
    batch = run.mix(run.draw(0), np.random.default_rng(7))
    run.backward(batch, seed=[3])
    cached = {n: p.grad.clone() for n, p in run.model.named_parameters()}
    run.model.zero_grad()
    parts = []
    for piece in range(2):  # the same masks, but the whole graph held at once
        torch.manual_seed(int(np.random.default_rng([3, piece]).integers(2**62)))
        parts.append(run.model({name: x.chunk(2)[piece] for name, x in batch.latents.items()}))
    a, b = (torch.cat([part[name] for part in parts]) for name in ("image", "text"))
    info_nce(a, b, temperature=run.model.temperature).backward()
    close({n: p.grad for n, p in run.model.named_parameters()}, cached, 1e-5)


@pytest.mark.parametrize("tile", [1, 3, 100])
@pytest.mark.parametrize("grouped", [False, True])
def test_the_shares_of_the_loss_have_the_whole_loss_as_their_mean(tile, grouped):
    torch.manual_seed(0)
    a, b = (torch.randn(12, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    groups = torch.arange(12) // 3 if grouped else None
    whole = info_nce(a, b, temperature=0.2, groups=groups)
    wanted = torch.autograd.grad(whole, (a, b))
    shares = [
        info_nce_rows(a[i : i + 4], b[i : i + 4], a, b, first=i, temperature=0.2, groups=groups, tile=tile)
        for i in (0, 4, 8)
    ]
    mean = torch.stack(shares).mean()
    torch.testing.assert_close(mean, whole, rtol=0, atol=1e-10)
    for actual, expected in zip(torch.autograd.grad(mean, (a, b)), wanted, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


EXTRACTOR = """
import os, sys
sys.path[:0] = [{root!r}, {tests!r}]
from fusemix.data import extract as extract_module
from fusemix.data.pairs import PairTable
from tests.data.test_latent_store import LengthEncoder
extract_module.SHARD_ITEMS = 8
encoder = LengthEncoder()
store = extract_module.extract(PairTable.read({table!r}), "text", encoder, {out!r}, batch_size=3, skip_errors=True)
line = f"rank {{os.environ['RANK']}} encoded {{len(encoder.encoded)}} of {{len(store)}}\\n"
sys.stdout.write(line)  # in one piece: both processes write to one pipe
"""


def test_two_processes_make_the_store_of_one_each_encoding_its_share(tmp_path, monkeypatch):
    texts = [f"{'a' * (i % 7)}word{i}" for i in range(49)] + ["bad"]
    pd.DataFrame({"text": texts}).to_csv(tmp_path / "t.csv", index=False)
    table = PairTable.read(tmp_path / "t.csv")
    monkeypatch.setattr(extract_module, "SHARD_ITEMS", 8)
    one = extract_module.extract(table, "text", LengthEncoder(), tmp_path / "one", skip_errors=True)
    script = tmp_path / "worker.py"
    places = {"root": str(ROOT), "tests": str(ROOT / "tests"), "table": str(tmp_path / "t.csv")}
    script.write_text(EXTRACTOR.format(**places, out=str(tmp_path / "two")))
    done = torchrun(script)
    assert done.returncode == 0, done.stderr
    said = sorted(re.findall(r"rank . encoded \d+ of \d+", done.stdout))
    # shards 0, 2, 4, 6 (of 2, one bad), after the probe's 8 items and one of them again; shards 1, 3, 5
    assert said == ["rank 0 encoded 34 of 50", "rank 1 encoded 24 of 50"]
    files = {path.name: path.read_bytes() for path in (tmp_path / "two").iterdir() if path.name != ".lock"}
    assert files == {path.name: path.read_bytes() for path in one.folder.iterdir() if path.name != ".lock"}


def test_what_other_processes_laid_aside_before_a_kill_is_not_encoded_again(tmp_path, monkeypatch):
    pd.DataFrame({"text": [f"word{i}" for i in range(20)]}).to_csv(tmp_path / "t.csv", index=False)
    table = PairTable.read(tmp_path / "t.csv")
    monkeypatch.setattr(extract_module, "SHARD_ITEMS", 8)
    whole = extract_module.extract(table, "text", LengthEncoder(), tmp_path / "whole")
    torn = tmp_path / "torn"
    shutil.copytree(whole.folder, torn)
    manifest = json.loads((torn / "manifest.json").read_text())
    aside = manifest["shards"][1] | {"skipped": []}
    manifest |= {"shards": [], "complete": False}
    (torn / "manifest.json").write_text(json.dumps(manifest))
    (torn / "latents-00001.json").write_text(json.dumps(aside))  # a second process was ahead of the first
    encoder = LengthEncoder()
    store = extract_module.extract(table, "text", encoder, torn)
    assert len(encoder.encoded) == 12 and torch.equal(torch.from_numpy(store.all()), torch.from_numpy(whole.all()))
    assert not list(torn.glob("latents-*.json"))
    (torn / "manifest.json").write_text(json.dumps(manifest))
    (torn / "latents-00001.json").write_text(json.dumps(aside))
    damaged = (torn / "latents-00001.npy").read_bytes()
    (torn / "latents-00001.npy").write_bytes(damaged[:-1] + bytes([damaged[-1] ^ 1]))
    with pytest.raises(ValueError, match="has other bytes than its checksum"):
        extract_module.extract(table, "text", LengthEncoder(), torn)
