"""Subsets against brute force: every subset enumerated, every determinant computed."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest

from fusemix.data.latent_writer import write_latents
from fusemix.data.pairs import PairTable
from fusemix.data.subsets import _log_elementary, best, greedy_map, in_blocks, sample_kdpp, uniform
from scripts import subset as subset_script


def exact(features, k, quality=None, unit_length=True):
    """Probability of every subset of size k, from the N x N kernel as the definition has it."""
    rows = features / np.linalg.norm(features, axis=1, keepdims=True) if unit_length else features
    rows = rows if quality is None else rows * quality[:, None]
    kernel = rows @ rows.T
    subsets = list(itertools.combinations(range(len(rows)), k))
    weights = np.array([np.linalg.det(kernel[np.ix_(s, s)]) for s in subsets])
    return subsets, np.maximum(weights, 0) / np.maximum(weights, 0).sum()


def deviation(draws, subsets, probabilities):
    """Chi-square of drawn subsets, in standard deviations above its mean; rare subsets count as one."""
    number = {s: i for i, s in enumerate(subsets)}
    counts = np.bincount([number[tuple(d)] for d in draws], minlength=len(subsets))
    expected = probabilities * len(draws)
    rare = expected < 5
    observed = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    observed, expected = observed[expected > 0], expected[expected > 0]
    chi2, freedom = ((observed - expected) ** 2 / expected).sum(), len(expected) - 1
    return (chi2 - freedom) / math.sqrt(2 * freedom)


@pytest.mark.parametrize(
    ("n", "dim", "k", "with_quality", "unit_length"),
    [
        (7, 4, 3, False, True),
        (7, 3, 3, True, True),
        (6, 9, 2, True, False),
        (8, 5, 4, False, False),
        (6, 2, 1, True, False),
    ],
)
def test_drawn_subsets_have_their_exact_probabilities(n, dim, k, with_quality, unit_length):
    rng = np.random.default_rng([n, dim, k])
    features = rng.normal(size=(n, dim)) * rng.uniform(0.5, 2, size=(n, 1))
    quality = rng.uniform(0.4, 2.5, size=n) if with_quality else None
    subsets, probabilities = exact(features, k, quality, unit_length)
    draws = [sample_kdpp(features, k, rng=rng, quality=quality, unit_length=unit_length) for _ in range(5000)]
    assert deviation(draws, subsets, probabilities) < 4
    # the test can fail: uniform draws, and those of a kernel that is a little different, are told apart
    assert deviation([uniform(n, k, rng) for _ in range(5000)], subsets, probabilities) > 10
    other = exact(features * [1.2] + 0.15, k, quality, unit_length)[1]
    drawn = rng.choice(len(subsets), size=5000, p=other)
    assert deviation([subsets[i] for i in drawn], subsets, probabilities) > 4


def test_equal_rows_are_never_drawn_together():
    features = np.repeat(np.eye(3), 2, axis=0)
    rng = np.random.default_rng(0)
    for _ in range(200):
        assert sorted(sample_kdpp(features, 3, rng=rng) // 2) == [0, 1, 2]


def test_rounding_is_not_taken_for_a_direction():
    """Of 48 float32 directions that stand there three times each, all 48 are chosen, even one that is very short."""
    rng = np.random.default_rng(4)
    directions = np.linalg.qr(rng.normal(size=(48, 48)))[0] * np.array([[1.0]] * 47 + [[1e-4]])
    features = np.repeat(directions, 3, axis=0).astype(np.float32)
    assert sorted(greedy_map(features, 48, unit_length=False) // 3) == list(range(48))
    assert sorted(sample_kdpp(features, 48, rng=rng, unit_length=False) // 3) == list(range(48))
    flat = (rng.normal(size=(90, 5)) @ rng.normal(size=(5, 20))).astype(np.float32)  # rank 5, up to float32
    for choose in (lambda f, k: sample_kdpp(f, k, rng=np.random.default_rng(0)), greedy_map):
        with pytest.raises(ValueError, match="more than the rank of the features, 5"):
            choose(flat, 6)
        assert len(set(choose(flat, 5).tolist())) == 5


def test_elementary_symmetric_polynomials_by_the_definition():
    values = np.array([0.3, 2.0, 5.0, 1e-3, 7.0])
    table = np.exp(_log_elementary(values, 3))
    for n in range(6):
        for size in range(4):
            by_hand = sum(math.prod(c) for c in itertools.combinations(values[:n], size))
            assert table[size, n] == pytest.approx(by_hand)


def test_elementary_symmetric_polynomials_do_not_overflow():
    assert np.isfinite(_log_elementary(np.full(600, 1e6), 500)[500, 600])


@pytest.mark.parametrize("unit_length", [True, False])
def test_greedy_map_adds_the_row_that_adds_most(unit_length):
    rng = np.random.default_rng(3)
    features, quality = rng.normal(size=(20, 6)), rng.uniform(0.5, 2, size=20)
    rows = features / np.linalg.norm(features, axis=1, keepdims=True) if unit_length else features
    kernel = (rows * quality[:, None]) @ (rows * quality[:, None]).T
    chosen = []
    for _ in range(6):
        gains = [
            np.linalg.det(kernel[np.ix_([*chosen, i], [*chosen, i])]) if i not in chosen else -1 for i in range(20)
        ]
        chosen.append(int(np.argmax(gains)))
    assert greedy_map(features, 6, quality=quality, unit_length=unit_length).tolist() == chosen


def test_a_diverse_subset_reaches_every_cluster_and_a_random_one_does_not():
    rng = np.random.default_rng(0)
    centres = np.linalg.qr(rng.normal(size=(32, 12)))[0].T
    sizes = [900] + [10] * 11  # one cluster is nearly everything
    features = np.concatenate([c + 0.02 * rng.normal(size=(s, 32)) for c, s in zip(centres, sizes, strict=True)])
    cluster = np.repeat(np.arange(12), sizes)
    assert len(set(cluster[greedy_map(features.astype(np.float32), 12)])) == 12
    drawn = np.mean([len(set(cluster[sample_kdpp(features, 12, rng=rng)])) for _ in range(10)])
    random = np.mean([len(set(cluster[uniform(len(features), 12, rng)])) for _ in range(10)])
    assert drawn > 8 and random < 5


def test_blocks_of_rows_do_not_change_the_result(monkeypatch):
    features = np.random.default_rng(1).normal(size=(50, 7)).astype(np.float32)
    whole = greedy_map(features, 7), sample_kdpp(features, 7, rng=np.random.default_rng(5))
    monkeypatch.setattr("fusemix.data.subsets._BLOCK_BYTES", 7 * 8 * 6)
    parts = greedy_map(features, 7), sample_kdpp(features, 7, rng=np.random.default_rng(5))
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(one, other)


def test_more_rows_than_the_rank_come_from_blocks():
    features = np.random.default_rng(1).normal(size=(60, 4))
    rng = np.random.default_rng(2)
    for choose in (lambda f, k: sample_kdpp(f, k, rng=rng), greedy_map):
        with pytest.raises(ValueError, match="more than the rank of the features, 4.*at least 3 blocks"):
            choose(features, 10)
        chosen = in_blocks(lambda part, k, choose=choose: choose(features[part], k), 60, 10, 3, rng)
        assert len(set(chosen.tolist())) == 10
    with pytest.raises(ValueError, match="blocks must be between 1 and the 2"):
        in_blocks(lambda part, k: part[:k], 60, 2, 3, rng)


def test_uniform_and_best_subsets():
    assert best(np.array([1.0, 5.0, 3.0, 5.0, 2.0]), 3).tolist() == [1, 2, 3]
    assert best(np.array([1.0, 1.0, 1.0]), 2).tolist() == [0, 1]
    counts = np.bincount(np.concatenate([uniform(5, 2, np.random.default_rng(i)) for i in range(2000)]))
    assert abs(counts - 800).max() < 100


@pytest.mark.parametrize(
    ("features", "k", "quality", "message"),
    [
        (np.ones((3, 2)), 4, None, "between 1 and 3 rows, got 4"),
        (np.ones((3, 2)), 0, None, "between 1 and 3 rows, got 0"),
        (np.ones(3), 1, None, r"shape \(N, D\)"),
        (np.ones((3, 2), dtype=int), 1, None, "must be floats"),
        (np.array([[1.0, 0], [0, 0]]), 1, None, "Row 1 of the features is zero"),
        (np.array([[1.0, 0], [0, np.nan]]), 1, None, "Row 1 of the features"),
        (np.eye(2), 1, np.array([1.0, 0.0]), "finite and > 0, row 1 has 0.0"),
        (np.eye(2), 1, np.ones(3), "one quality a row"),
    ],
)
def test_unusable_input_is_refused_in_one_sentence(features, k, quality, message):
    for choose in (lambda *a, **o: sample_kdpp(*a, rng=np.random.default_rng(0), **o), greedy_map):
        with pytest.raises(ValueError, match=message):
            choose(features, k, quality=quality)


def test_memory_is_linear_in_the_number_of_rows():
    import tracemalloc

    features = np.random.default_rng(0).normal(size=(60_000, 32)).astype(np.float32)
    tracemalloc.start()
    greedy_map(features, 4)
    sample_kdpp(features, 4, rng=np.random.default_rng(0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6  # a kernel would take 28.8 GB


@pytest.fixture
def stores(tmp_path):
    """Twelve pictures with two captions each; the first six train, the others test."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "image": np.repeat([f"{i}.png" for i in range(12)], 2),
            "text": [f"caption {i}" for i in range(24)],
            "split": np.repeat(["train"] * 6 + ["test"] * 6, 2),
            "score": np.repeat([5.0, 1.0, 4.0, 2.0, 3.0, 0.5] + [9.0] * 6, 2),
        }
    )
    frame.to_csv(tmp_path / "pairs.csv", index=False)
    table = PairTable.read(tmp_path / "pairs.csv")
    index = pd.DataFrame({"row": range(24), "item": np.arange(24) // 2, "group": table.groups, "split": table.splits()})
    image = rng.normal(size=(12, 8)).astype(np.float32)
    write_latents(tmp_path / "image", image, modality="image", name="x", index=lambda n: index, table=table)
    text = rng.normal(size=(24, 5)).astype(np.float32)
    index = index.assign(item=range(24))
    write_latents(tmp_path / "text", text, modality="text", name="y", index=lambda n: index, table=table)
    return tmp_path


def run(folder, *arguments, out="out.csv", latents=("image",)):
    pieces = [f"{m}={folder / m}" for m in latents]
    words = ["--latents", *pieces, "--pairs", folder / "pairs.csv", "--out", folder / out, *arguments]
    return subset_script.main([str(word) for word in words])


@pytest.mark.parametrize("method", ["kdpp", "greedy", "uniform", "best"])
def test_the_command_keeps_whole_items_of_the_split(method, stores, capsys):
    assert run(stores, "--method", method, "-k", 3, "--split", "train", "--quality", "score") == 0
    table = PairTable.read(stores / "out.csv")
    assert len(table) == 6 and len(table.items("image")) == 3 and set(table.splits()) == {"train"}
    assert "3 of 6 candidates, 6 of 12 rows" in capsys.readouterr().out
    if method == "best":
        assert table.frame["image"].unique().tolist() == ["0.png", "2.png", "4.png"]
    assert run(stores, "--method", method, "-k", 3, "--split", "train", "--quality", "score", out="rows.txt") == 0
    rows = [int(line) for line in (stores / "rows.txt").read_text().split()]
    assert PairTable.read(stores / "pairs.csv").frame.iloc[rows]["text"].tolist() == table.frame["text"].tolist()


def test_pairs_of_two_modalities_are_candidates_and_other_splits_can_stay(stores):
    arguments = ["-k", 5, "--split", "train", "--keep-splits", "test"]
    assert run(stores, *arguments, out="far/out.parquet", latents=("image", "text")) == 0
    table = PairTable.read(stores / "far/out.parquet")
    assert sorted(table.splits().tolist()) == ["test"] * 12 + ["train"] * 5
    assert table.items("image")[-1].value == str(stores / "11.png")


def test_the_best_become_eligible_and_blocks_reach_beyond_the_rank(stores, capsys):
    assert run(stores, "-k", 2, "--split", "train", "--quality", "score", "--top", 3) == 0
    assert set(PairTable.read(stores / "out.csv").frame["image"]) <= {"0.png", "2.png", "4.png"}
    assert run(stores, "-k", 10) == 2
    assert "more than the rank of the features, 8" in capsys.readouterr().err
    assert run(stores, "-k", 10, "--blocks", 2) == 0
    assert len(PairTable.read(stores / "out.csv")) == 20


def test_a_checkpoint_can_be_the_judge(stores):
    import torch

    from fusemix.data.latent_store import LatentStore
    from fusemix.model.adapters import FusionModel
    from fusemix.model.config import ModelConfig

    opened = {m: LatentStore.open(stores / m) for m in ("image", "text")}
    torch.manual_seed(0)
    config = ModelConfig(
        latent_dims={m: s.dim for m, s in opened.items()},
        encoders={m: s.encoder for m, s in opened.items()},
        embed_dim=6,
    )
    model = FusionModel(config).eval()
    model.save_pretrained(stores / "model")
    arguments = ["--method", "best", "-k", 4, "--score-with", stores / "model"]
    assert run(stores, *arguments, out="rows.txt", latents=("image", "text")) == 0
    image, text = (model.embed(m, s.all()).numpy() for m, s in opened.items())
    cosine = (np.repeat(image, 2, axis=0) * text).sum(1)
    assert [int(r) for r in (stores / "rows.txt").read_text().split()] == sorted(np.argsort(-cosine)[:4].tolist())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-k", 3, "--method", "best"], "needs --quality COLUMN"),
        (["-k", 3, "--quality", "price"], "no column 'price'"),
        (["-k", 3, "--quality", "text"], "text is not a number"),
        (["-k", 3, "--split", "dev"], "No row of split 'dev'"),
        (["-k", 30, "--method", "uniform"], "between 1 and 12 rows, got 30"),
        (["-k", 3, "--top", 3], "--top needs"),
        (["-k", 3, "--method", "uniform", "--blocks", 2], "--blocks belongs to kdpp and greedy"),
        (["-k", 3, "--score-with", "x"], "compares two modalities"),
    ],
)
def test_the_command_refuses_what_it_cannot_do(arguments, message, stores, capsys):
    assert run(stores, *arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (stores / "out.csv").exists()
