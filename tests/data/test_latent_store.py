import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from fusemix.data import extract as extract_module
from fusemix.data import latent_store as store_module
from fusemix.data.extract import extract
from fusemix.data.latent_store import LatentStore
from fusemix.data.latent_writer import write_latents
from fusemix.data.pairs import PairTable
from fusemix.encoders.base import Encoder
from fusemix.media import MediaError

ROOT = Path(__file__).resolve().parents[2]


class LengthEncoder(Encoder):
    """Counts letters: a real encoder in form, whose latents are known by hand."""

    name, modality, dim, revision, fingerprint = "length", "text", 3, "r1", "letters"

    def __init__(self):
        self.encoded = []

    def prepare(self, item):
        if item == "bad":
            raise MediaError("This item cannot be used.")
        return item

    def encode_prepared(self, prepared):
        self.encoded += prepared
        return np.array([[len(t), t.count("a"), ord(t[0])] for t in prepared], dtype=np.float32)


@pytest.fixture
def table(tmp_path):
    texts = [f"{'a' * (i % 7)}word{i}" for i in range(50)]
    frame = pd.DataFrame({"text": texts + texts[:5], "group": [*range(50), *range(5)], "split": "train"})
    frame.to_csv(tmp_path / "t.csv", index=False)
    return PairTable.read(tmp_path / "t.csv")


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(extract_module, "SHARD_ITEMS", 8)


def test_a_store_holds_each_distinct_item_once_and_every_row(table, tmp_path):
    store = extract(table, "text", LengthEncoder(), tmp_path / "s", batch_size=3)
    assert len(store) == 50 and len(store.rows) == 55
    expected = LengthEncoder().encode([item.value for item in table.items("text")])
    np.testing.assert_array_equal(store.all(), expected)
    np.testing.assert_array_equal(store.read(np.array([49, 0, 17])), expected[[49, 0, 17]])
    assert store.rows["item"].tolist()[50:] == [0, 1, 2, 3, 4]


def test_an_interrupted_extraction_goes_on_without_encoding_twice(table, tmp_path):
    whole = extract(table, "text", LengthEncoder(), tmp_path / "whole")

    def interrupt(done, total):
        if done > 20:
            raise KeyboardInterrupt

    first = LengthEncoder()
    with pytest.raises(KeyboardInterrupt):
        extract(table, "text", first, tmp_path / "s", batch_size=4, report=interrupt)
    with pytest.raises(ValueError, match="unfinished"):
        LatentStore.open(tmp_path / "s")
    second = LengthEncoder()
    store = extract(table, "text", second, tmp_path / "s", batch_size=4)
    assert len(second.encoded) == 50 - 16  # two shards of eight were safe
    np.testing.assert_array_equal(store.all(), whole.all())
    third = LengthEncoder()
    extract(table, "text", third, tmp_path / "s")
    assert third.encoded == []


def test_killed_for_real_at_any_moment_it_resumes_to_the_same_store(tmp_path):
    texts = [f"a dog number {i} runs" for i in range(400)]
    pd.DataFrame({"text": texts}).to_csv(tmp_path / "t.csv", index=False)
    script = tmp_path / "slow.py"
    script.write_text(
        "import sys, time\n"
        f"sys.path[:0] = [{str(ROOT)!r}]\n"
        "from tests.data.test_latent_store import LengthEncoder\n"
        "from fusemix.data import extract; extract.SHARD_ITEMS = 8\n"
        "from fusemix.data.pairs import PairTable\n"
        "class Slow(LengthEncoder):\n"
        "    def encode_prepared(self, p):\n"
        "        time.sleep(0.004); return super().encode_prepared(p)\n"
        "extract.extract(PairTable.read(sys.argv[1]), 'text', Slow(), sys.argv[2], batch_size=4)\n"
    )
    command = [sys.executable, str(script), str(tmp_path / "t.csv"), str(tmp_path / "s")]
    for kills in range(3):
        process = subprocess.Popen(command)
        while not list((tmp_path / "s").glob(f"latents-{kills * 4:05d}.npy")) and process.poll() is None:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True)
    store = LatentStore.open(tmp_path / "s", verify=True)
    np.testing.assert_array_equal(store.all(), LengthEncoder().encode(texts))


def test_the_command_told_to_stop_says_so_and_goes_on(tmp_path):
    texts = [f"a dog number {i} runs over the grass and into the water" for i in range(6000)]
    pd.DataFrame({"text": texts}).to_csv(tmp_path / "t.csv", index=False)
    command = [
        sys.executable, str(ROOT / "scripts/extract.py"), "--pairs", str(tmp_path / "t.csv"), "--column", "text",
        "--encoder", "minilm-l6", "--out", str(tmp_path / "s"),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not list((tmp_path / "s").glob("latents-00000.npy")) and process.poll() is None:
        time.sleep(0.01)
    process.terminate()
    _, said = process.communicate()
    assert process.returncode == 130 and "run the same command again" in said and "Traceback" not in said
    assert not list((tmp_path / "s").glob(".*"))
    with pytest.raises(ValueError, match="unfinished"):
        LatentStore.open(tmp_path / "s")


def test_two_processes_do_not_write_one_store(table, tmp_path):
    def nested(done, total):
        with pytest.raises(ValueError, match="Another process is writing"):
            extract(table, "text", LengthEncoder(), tmp_path / "s")

    extract(table, "text", LengthEncoder(), tmp_path / "s", report=nested)
    assert not (tmp_path / "s" / ".lock").exists()


def test_another_encoder_or_table_is_refused_and_nothing_changes(table, tmp_path):
    extract(table, "text", LengthEncoder(), tmp_path / "s")
    before = {p.name: p.read_bytes() for p in (tmp_path / "s").iterdir()}
    other = LengthEncoder()
    other.revision = "r2"
    with pytest.raises(ValueError, match="holds latents with encoder = length r1, this call has length r2"):
        extract(table, "text", other, tmp_path / "s")
    (tmp_path / "u.csv").write_text("text\nx\ny\n")
    with pytest.raises(ValueError, match="table ="):
        extract(PairTable.read(tmp_path / "u.csv"), "text", LengthEncoder(), tmp_path / "s")
    assert before == {p.name: p.read_bytes() for p in (tmp_path / "s").iterdir()}


def test_an_unusable_item_stops_with_its_row_or_is_left_out_and_listed(tmp_path):
    (tmp_path / "t.csv").write_text("text\none\nbad\nthree\n")
    table = PairTable.read(tmp_path / "t.csv")
    with pytest.raises(ValueError, match=r"line 3, column text: This item cannot be used"):
        extract(table, "text", LengthEncoder(), tmp_path / "stop")
    store = extract(table, "text", LengthEncoder(), tmp_path / "skip", skip_errors=True)
    assert store.rows["row"].tolist() == [0, 2]
    assert store.manifest["skipped"] == [{"item": 1, "row": 1, "reason": "This item cannot be used."}]
    (tmp_path / "u.csv").write_text("text\nbad\n")
    with pytest.raises(ValueError, match="No item of column 'text' could be used"):
        extract(PairTable.read(tmp_path / "u.csv"), "text", LengthEncoder(), tmp_path / "none", skip_errors=True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "latents-00001.npy").unlink(), "is missing"),
        (lambda f: os.truncate(f / "latents-00001.npy", 150), "damaged or cut short"),
        (lambda f: np.save(f / "latents-00001.npy", np.zeros((2, 3), np.float32)), "the manifest says"),
        (lambda f: np.save(f / "latents-00001.npy", np.zeros((8, 3), np.float32)), "checksum"),
        (lambda f: np.save(f / "latents-00001.npy", np.array([{}] * 8), allow_pickle=True), "damaged"),
        (lambda f: (f / "manifest.json").write_text("{"), "not valid JSON"),
        (lambda f: (f / "rows.parquet").write_text("x"), "missing or damaged"),
    ],
)
def test_a_damaged_store_is_refused_with_a_sentence(damage, message, table, tmp_path):
    extract(table, "text", LengthEncoder(), tmp_path / "s")
    damage(tmp_path / "s")
    with pytest.raises(ValueError, match=message):
        LatentStore.open(tmp_path / "s", verify=True)


def test_given_latents_of_any_modality_become_a_store(tmp_path):
    values = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)
    store = write_latents(tmp_path / "s", iter([values[:12], values[12:]]), modality="sensor", name="mine")
    np.testing.assert_array_equal(store.all(), values)
    assert (store.modality, store.dim, len(store.rows)) == ("sensor", 5, 20)
    with pytest.raises(ValueError, match="already holds"):
        write_latents(tmp_path / "s", values, modality="sensor", name="mine")
    with pytest.raises(ValueError, match=r"shape \(n, 5\)"):
        write_latents(tmp_path / "t", iter([values, values[:, :2]]), modality="sensor", name="mine")


def test_half_precision_is_stored_and_read_as_float32(table, tmp_path):
    store = extract(table, "text", LengthEncoder(), tmp_path / "s", dtype="float16")
    assert np.load(tmp_path / "s" / "latents-00000.npy").dtype == np.float16
    assert store.all().dtype == np.float32


def test_the_command_reports_a_wrong_column_and_a_wrong_encoder(tmp_path):
    (tmp_path / "t.csv").write_text("text,image\nhello,missing.png\n")
    script = [sys.executable, str(ROOT / "scripts/extract.py"), "--pairs", str(tmp_path / "t.csv")]
    for arguments, message in (
        (["--column", "sound", "--encoder", "minilm-l6"], "no column 'sound'"),
        (["--column", "text", "--encoder", "clip"], "No encoder is called 'clip'"),
        (["--column", "image", "--encoder", "efficientnet-lite0"], "line 2"),
    ):
        done = subprocess.run([*script, *arguments, "--out", str(tmp_path / "o")], capture_output=True, text=True)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


def test_the_manifest_names_what_made_the_latents(table, tmp_path):
    extract(table, "text", LengthEncoder(), tmp_path / "s", split="train")
    manifest = json.loads((tmp_path / "s" / "manifest.json").read_text())
    assert manifest["encoder"]["fingerprint"] == "letters"
    assert manifest["table"] == table.fingerprint and manifest["split"] == "train" and manifest["complete"]


def test_a_store_of_more_shards_than_files_may_be_open(tmp_path):
    values = np.arange(1200, dtype=np.float32).reshape(400, 3)
    write_latents(tmp_path / "s", iter(np.split(values, 400)), modality="video", name="given")
    code = (
        "import resource, sys, numpy as np; from fusemix.data.latent_store import LatentStore; "
        "resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200)); store = LatentStore.open(sys.argv[1]); "
        "items = np.random.default_rng(0).permutation(400); "
        "assert (store.read(items)[:, 0] == items * 3).all() and (store.all()[:, 2] == np.arange(400) * 3 + 2).all()"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "s")], check=True)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_held_and_mapped_latents_are_the_same_to_the_bit(tmp_path, dtype):
    values = (np.random.default_rng(0).normal(size=(60, 5)) * 10.0 ** np.arange(-8, 2).repeat(6)[:, None]).astype(dtype)
    by_columns = np.asfortranarray(values[20:40])  # as a transposed array would come
    store = write_latents(tmp_path / "s", iter([values[:20], by_columns, values[40:]]), modality="video", name="given",
                          dtype=dtype)  # fmt: skip
    items = np.array([59, 0, 20, 20, 39, 3])
    mapped, whole = store.gather(items), store.all()
    np.testing.assert_array_equal(mapped.numpy(), values[items].astype(np.float32))
    np.testing.assert_array_equal(whole, values.astype(np.float32))
    store.hold()
    assert torch.equal(store.gather(items), mapped) and store.gather(items).dtype == torch.float32
    assert (store.all() == whole).all() and store.n_bytes == values.nbytes


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("verify", [False, True])
def test_items_that_are_not_finite_are_found_wherever_they_lie(tmp_path, monkeypatch, dtype, verify):
    monkeypatch.setattr(store_module, "BLOCK_BYTES", 64)  # many blocks, rows across their edges
    values = np.full((90, 7), 1.5, dtype)
    values[4, 6], values[37, 0], values[37, 3], values[70, 2], values[89, 6] = np.nan, np.inf, np.nan, -np.inf, -np.nan
    values[5, 1], values[6] = np.finfo(dtype).max, -np.finfo(dtype).tiny / 2  # the largest and a subnormal are finite
    pieces = iter([values[:30], np.asfortranarray(values[30:60]), values[60:]])
    monkeypatch.setattr("fusemix.data.latent_writer.check_range", lambda *_: None)  # a store of an older version
    write_latents(tmp_path / "s", pieces, modality="video", name="given", dtype=dtype)
    assert LatentStore.open(tmp_path / "s", verify=verify).not_finite().tolist() == [4, 37, 70, 89]


@pytest.mark.parametrize("at", [130, 5000, -1])
def test_one_flipped_bit_anywhere_is_told_by_the_checksum(tmp_path, at):
    values = np.random.default_rng(0).normal(size=(900, 7)).astype(np.float32)
    write_latents(tmp_path / "s", iter(np.split(values, 3)), modality="video", name="given")
    path = tmp_path / "s" / "latents-00002.npy"
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    before = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # neither size nor time tells
    LatentStore.open(tmp_path / "s")
    with pytest.raises(ValueError, match=r"latents-00002\.npy has other bytes than the manifest's checksum"):
        LatentStore.open(tmp_path / "s", verify=True)


def test_reading_an_item_that_is_not_there(tmp_path):
    store = write_latents(tmp_path / "s", np.ones((5, 3), np.float32), modality="video", name="given")
    for items in ([5], [-1]):
        with pytest.raises(IndexError, match="0 to 4"):
            store.read(np.array(items))
    assert store.read(np.array([], dtype=int)).shape == (0, 3)
