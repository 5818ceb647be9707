import json
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from fusemix.data import import_latents as own_latents
from fusemix.data.extract import extract
from fusemix.data.import_latents import import_latents, open_latents
from fusemix.data.latent_store import LatentStore
from fusemix.data.pairs import PairTable
from fusemix.encoders import load_encoder
from scripts import evaluate as evaluate_script
from scripts import import_latents as import_script
from scripts import train as train_script

VALUES = np.random.default_rng(0).normal(size=(23, 5)).astype(np.float32)


def write(path, values):
    """One matrix in any of the formats."""
    if path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".safetensors":
        save_file({"latents": torch.from_numpy(values)}, path)
    elif path.stem == "columns":
        pd.DataFrame(values, columns=[f"d{i}" for i in range(values.shape[1])]).to_parquet(path)
    else:
        pd.DataFrame({"id": range(len(values)), "latent": list(values)}).to_parquet(path)
    return path


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(own_latents, "PIECE_BYTES", 7 * 5 * 4)  # seven latents


@pytest.mark.parametrize("name", ["a.npy", "a.safetensors", "a.parquet", "columns.parquet"])
def test_every_format_gives_the_same_store(name, tmp_path):
    path = write(tmp_path / name, VALUES)
    store = import_latents(path, tmp_path / "s", modality="video", name="mine", revision="r7")
    np.testing.assert_array_equal(store.all(), VALUES)
    assert len(store.manifest["shards"]) == 4  # read and stored in pieces
    assert (store.modality, store.encoder["name"], store.encoder["revision"]) == ("video", "mine", "r7")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([name, "s"])  # no temporary folder stays


def test_bfloat16_and_half_precision_are_read(tmp_path):
    half = torch.from_numpy(VALUES).to(torch.bfloat16)
    save_file({"a": half, "b": torch.zeros(2, 2)}, tmp_path / "f.safetensors")
    store = import_latents(tmp_path / "f.safetensors", tmp_path / "s", modality="m", name="n", key="a")
    np.testing.assert_array_equal(store.all(), half.float().numpy())
    store = import_latents(VALUES, tmp_path / "h", modality="m", name="n", dtype="float16")
    np.testing.assert_array_equal(store.all(), VALUES.astype(np.float16).astype(np.float32))


def test_a_generator_is_stored_with_one_piece_in_memory(tmp_path):
    pieces = (np.full((1000, 64), i, dtype=np.float32) for i in range(100))  # 25 MB in all
    tracemalloc.start()
    store = import_latents(pieces, tmp_path / "s", modality="m", name="n")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(store) == 100_000 and store.read(np.array([99_999]))[0, 0] == 99
    assert peak < 10e6


def table_of(tmp_path):
    (tmp_path / "t.csv").write_text(
        "video,text,split\na.mp4,one,train\na.mp4,two,train\n,three,train\nb.mp4,four,dev\nb.mp4,five,dev\n"
    )
    return PairTable.read(tmp_path / "t.csv")


def test_the_number_of_latents_says_what_they_belong_to(tmp_path):
    table = table_of(tmp_path)
    by_item = import_latents(VALUES[:2], tmp_path / "i", modality="video", name="n", table=table, column="video")
    assert by_item.rows["row"].tolist() == [0, 1, 3, 4] and by_item.rows["item"].tolist() == [0, 0, 1, 1]
    assert by_item.rows["split"].tolist() == ["train", "train", "dev", "dev"]
    assert by_item.rows["group"].tolist() == [0, 0, 3, 3]
    by_cell = import_latents(VALUES[:4], tmp_path / "c", modality="video", name="n", table=table, column="video")
    assert by_cell.rows["row"].tolist() == [0, 1, 3, 4] and by_cell.rows["item"].tolist() == [0, 1, 2, 3]
    assert by_cell.rows["group"].tolist() == [0, 0, 3, 3]
    by_row = import_latents(VALUES[:5], tmp_path / "r", modality="video", name="n", table=table)
    assert by_row.rows["row"].tolist() == [0, 1, 2, 3, 4]
    assert by_row.rows["group"].tolist() == [0, 0, 2, 3, 3]
    assert by_row.rows["split"].tolist() == ["train", "train", "train", "dev", "dev"]
    assert by_row.manifest["table"] == table.fingerprint
    with pytest.raises(ValueError, match="3 latents, but column 'video' of .* 4 filled cells and 2 distinct items"):
        import_latents(VALUES[:3], tmp_path / "x", modality="video", name="n", table=table, column="video")
    with pytest.raises(ValueError, match="3 latents, but"):
        import_latents(iter([VALUES[:3]]), tmp_path / "x", modality="video", name="n", table=table, column="video")
    with pytest.raises(ValueError, match="4 latents for the 5 rows"):
        import_latents(VALUES[:4], tmp_path / "x", modality="video", name="n", table=table)
    assert not (tmp_path / "x").exists()


def poisoned(value, dtype=np.float32):
    values = VALUES.astype(dtype)
    values[17, 3] = value
    return values


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (poisoned(np.nan), {}, r"NaN or infinite values, first in latent 17 \(counted from 0\)"),
        (poisoned(-np.inf), {}, "first in latent 17"),
        (poisoned(1e5), {"dtype": "float16"}, r"too large for float16 \(largest 1e\+05\), first in latent 17"),
        (poisoned(1e200, np.float64), {}, "too large for float32"),
        (VALUES.astype(np.int64), {}, "holds int64 values; latents are floating point"),
        (VALUES[:, 0], {}, r"shape \(23,\); expected \(N, dim\)"),
        (np.zeros((3, 4, 5), np.float32), {}, "pool over the middle axis first"),
        (np.zeros((0, 5), np.float32), {}, "at least one latent"),
        (VALUES, {"dtype": "int8"}, "dtype must be one of"),
        (VALUES, {"column": "video"}, "needs the table"),
        (iter([VALUES, VALUES[:, :2]]), {}, r"shape \(n, 5\), got \(23, 2\)"),
        (iter([]), {}, "There are no latents"),
    ],
)
def test_unusable_latents_are_refused_in_one_sentence_and_nothing_is_left(values, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        import_latents(values, tmp_path / "s", modality="m", name="n", **options)
    assert list(tmp_path.iterdir()) == []


def test_unusable_files_are_refused(tmp_path):
    save_file({"a": torch.zeros(2, 2), "b": torch.zeros(2, 2)}, tmp_path / "two.safetensors")
    np.save(tmp_path / "o.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "d.safetensors").write_bytes(b"x" * 50)
    (tmp_path / "d.parquet").write_text("x")
    pd.DataFrame({"latent": [[1.0, 2.0], [1.0]]}).to_parquet(tmp_path / "ragged.parquet")
    pd.DataFrame({"latent": [[1.0, 2.0], None]}).to_parquet(tmp_path / "empty.parquet")
    pd.DataFrame({"a": ["x"], "b": [1.0]}).to_parquet(tmp_path / "words.parquet")
    for name, key, message in (
        ("two.safetensors", None, r"holds 2 tensors \(a, b\); choose one by the argument key"),
        ("two.safetensors", "c", "no tensor 'c'; it holds a, b"),
        ("o.npy", None, "not a plain .npy array"),
        ("d.safetensors", None, "not a safetensors file, or damaged"),
        ("d.parquet", None, "not a parquet file, or damaged"),
        ("ragged.parquet", None, "latent 1 has 1 dimensions, the first has 2"),
        ("empty.parquet", None, "1 empty cells"),
        ("words.parquet", None, "latents are floating point"),
        ("words.parquet", "a", "no list column 'a'"),
        ("a.pt", None, "No file of latents"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            import_latents(tmp_path / name, tmp_path / "s", modality="m", name="n", key=key)
    (tmp_path / "a.pt").write_text("x")
    with pytest.raises(ValueError, match=r"not from \.pt"):
        open_latents(tmp_path / "a.pt")
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "file").write_text("x")
    with pytest.raises(ValueError, match="exists and is not empty"):
        import_latents(VALUES, tmp_path / "s", modality="m", name="n")


@pytest.mark.parametrize("with_table", [True, False])
def test_two_made_up_modalities_are_imported_trained_and_evaluated(with_table, tmp_path, capsys):
    rng = np.random.default_rng(1)
    hidden = rng.normal(size=(300, 6))
    np.save(tmp_path / "smell.npy", hidden @ rng.normal(size=(6, 12)))  # float64, as numpy makes it
    save_file({"x": torch.from_numpy(hidden @ rng.normal(size=(6, 9))).half()}, tmp_path / "tremor.safetensors")
    splits = ["train"] * 200 + ["val"] * 50 + ["test"] * 50
    frame = pd.DataFrame({"smell": range(300), "tremor": [f"t{i}" for i in range(300)], "split": splits})
    frame.to_csv(tmp_path / "t.csv", index=False)
    for modality, file in (("smell", "smell.npy"), ("tremor", "tremor.safetensors")):
        arguments = ["--from", tmp_path / file, "--modality", modality, "--name", "nose", "--out", tmp_path / modality]
        if with_table:
            arguments += ["--pairs", tmp_path / "t.csv", "--column", modality]
        assert import_script.main([str(a) for a in arguments]) == 0
    stores = [f"smell={tmp_path / 'smell'}", f"tremor={tmp_path / 'tremor'}"]
    options = [
        "--epochs=20",
        "--batch-size=64",
        "--recipe=two-path",
        "--embed-dim=16",
        "--dropout=0",
        "--whiten-dim=8",
        "--eval-every=20",
    ]
    assert train_script.main(["--latents", *stores, "--out", str(tmp_path / "c"), *options]) == 0
    question = ["--checkpoint", tmp_path / "c", "--query", "smell", "--gallery", "tremor", "--json", tmp_path / "j"]
    question = [str(word) for word in question]
    if with_table:
        question += ["--split", "test"]
        assert evaluate_script.main([*question, "--pairs", str(tmp_path / "t.csv"), "--latents", *stores]) == 0
        with_pairs = json.loads((tmp_path / "j").read_text())
    assert evaluate_script.main([*question, "--latents", *stores]) == 0  # the stores know their rows
    values = json.loads((tmp_path / "j").read_text())
    assert values["n_queries"] == (50 if with_table else 300)
    assert values["recall_at_5"] > 0.5  # chance is 5 of 50 or of 300
    if with_table:
        assert values == with_pairs
    capsys.readouterr()
    assert evaluate_script.main([*question, "--latents", stores[0]]) == 2
    assert "or the tremor latents with --latents" in capsys.readouterr().err
    assert evaluate_script.main([*question, "--pairs", str(tmp_path / "t.csv"), "--latents", stores[0]]) == 2
    assert "give them with --latents tremor=DIR" in capsys.readouterr().err


def test_given_latents_are_searched_by_an_encoder_of_ours(tmp_path):
    """Clips with latents from elsewhere, four captions each; the captions are encoded while evaluating."""
    words = [
        "a dog",
        "red cars",
        "deep sea",
        "old music",
        "the moon",
        "a cake",
        "cold rain",
        "a crowd",
        "one tree",
        "a war",
    ]
    rows = [(f"{i}.mp4", f"{start} {w}", "train" if n < 3 else "val") for i, w in enumerate(words)
            for n, start in enumerate(["this is", "a video of", "here comes", "look at"])]  # fmt: skip
    pd.DataFrame(rows, columns=["video", "text", "split"]).to_csv(tmp_path / "t.csv", index=False)
    table = PairTable.read(tmp_path / "t.csv")
    import_latents(np.eye(10), tmp_path / "video", modality="video", name="n", table=table, column="video")
    extract(table, "text", load_encoder("minilm-l6"), tmp_path / "text")
    stores = [f"video={tmp_path / 'video'}", f"text={tmp_path / 'text'}"]
    options = ["--epochs=10", "--batch-size=16", "--embed-dim=16", "--whiten-dim=8", "--eval-every=5"]
    assert train_script.main(["--latents", *stores, "--out", str(tmp_path / "c"), *options]) == 0
    found = []
    for latents in (stores[:1], stores):
        question = ["--query", "text", "--gallery", "video", "--latents", *latents, "--json", str(tmp_path / "j")]
        pairs = ["--checkpoint", str(tmp_path / "c"), "--pairs", str(tmp_path / "t.csv"), "--split", "val"]
        assert evaluate_script.main([*pairs, *question]) == 0
        found.append(json.loads((tmp_path / "j").read_text()))
    assert found[0] == found[1] and found[0]["n_queries"] == found[0]["n_gallery"] == 10
    assert found[0]["recall_at_5"] > 0.8


def test_the_command_says_what_it_did_and_what_is_wrong(tmp_path, capsys):
    np.save(tmp_path / "f.npy", VALUES)
    (tmp_path / "t.csv").write_text("smell\n" + "x\n" * 5)
    base = ["--from", str(tmp_path / "f.npy"), "--modality", "smell", "--name", "nose", "--out", str(tmp_path / "s")]
    assert import_script.main([*base, "--pairs", str(tmp_path / "t.csv")]) == 2
    assert "23 latents for the 5 rows" in " ".join(capsys.readouterr().err.split())
    assert import_script.main(base) == 0
    assert "23 smell latents of 5 dimensions for 23 rows" in capsys.readouterr().out
    assert len(LatentStore.open(Path(tmp_path / "s"), verify=True)) == 23
