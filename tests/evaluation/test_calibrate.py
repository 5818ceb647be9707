"""Probabilities are calibrated on queries that no fit saw, and travel with the checkpoint."""

import numpy as np
import pytest
import torch

from fusemix.cli import evaluate as command
from fusemix.evaluation.calibrate import auroc, calibrate, ece, result_lists
from fusemix.search.calibration import DEPTH, Calibration, Cutoff, features, load_calibrations, save_calibrations
from fusemix.search.retriever import Retriever
from tests.conftest import unit

N, DIM = 500, 24


def two_sides(seed, *, noise=0.8, n=N):
    """Unit embeddings of two modalities that agree but for noise; row i of each is a pair."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(n, DIM))
    sides = [torch.from_numpy(shared + noise * rng.normal(size=shared.shape)).float() for _ in range(2)]
    return [torch.nn.functional.normalize(side, dim=1) for side in sides]


@pytest.fixture(scope="module")
def fitted():
    return calibrate(*two_sides(0), np.arange(N), np.arange(N))


def test_probabilities_hold_for_pairs_that_were_not_fitted_and_galleries_of_another_size(fitted):
    queries, gallery = two_sides(1, n=300)
    lists = result_lists(queries, gallery, np.arange(300), np.arange(300), shares=(1.0,))
    said = np.stack([fitted.probabilities(row, n) for row, n in zip(lists.similarities, lists.n_items, strict=True)])
    first, right = said[:, 0], lists.right[:, 0]
    assert 0.3 < right.mean() < 0.5 and first.std() > 0.2  # neither all right nor all one value
    assert ece(first, right, bins=8) < 0.06
    assert first[right].mean() > first[~right].mean() + 0.3


def test_an_error_that_is_stated_is_the_error_that_is_met(fitted):
    queries, gallery = two_sides(2)
    lists = result_lists(queries, gallery, np.arange(N), np.arange(N))
    best = np.array(
        [fitted.probabilities(row, n).max() for row, n in zip(lists.similarities, lists.n_items, strict=True)]
    )
    shown = np.array([not fitted.nothing_fits(value, error=0.1) for value in best])
    assert shown[~lists.answered].mean() == pytest.approx(0.1, abs=0.04)
    assert shown[lists.answered].mean() > 0.35
    with pytest.raises(ValueError, match=r"known for the errors \[0.01, 0.05, 0.1, 0.2\], not 0.3"):
        fitted.nothing_fits(0.5, error=0.3)


def test_random_embeddings_promise_nothing():
    rng = np.random.default_rng(0)
    noise = [torch.from_numpy(unit(rng, N, DIM)) for _ in range(2)]
    measured = calibrate(*noise, np.arange(N), np.arange(N)).measured
    assert measured["auroc"] == pytest.approx(0.5, abs=0.06) and measured["ece"] < 0.02


def test_features_by_hand():
    values = np.r_[0.9, 0.7, np.full(8, 0.5), np.full(DEPTH - 10, 0.1)][None]
    found = features(values, 1000)[0]
    np.testing.assert_allclose(found[0], [1, 0.9, 0.8, 0.2, 0, np.log(1000)])
    np.testing.assert_allclose(found[1], [1, 0.7, 0.6, 0, 0.2, np.log(1000)])


def test_ece_and_auroc_by_hand():
    assert ece(np.array([0.2, 0.2, 0.8, 0.8]), np.array([0, 0, 1, 0]), bins=2) == pytest.approx(0.25)
    assert auroc(np.array([0.1, 0.4, 0.4, 0.9]), np.array([False, False, True, True])) == pytest.approx(0.875)


def test_a_small_gallery_has_no_probabilities_and_too_few_pairs_no_calibration(fitted):
    assert fitted.probabilities(np.linspace(0.9, 0.1, DEPTH - 1), DEPTH - 1) is None
    with pytest.raises(ValueError, match="needs 50 validation queries .* and 100 items, there are 90 and 90"):
        calibrate(*two_sides(0, n=90), np.arange(90), np.arange(90))


def test_a_retriever_tells_probabilities_of_plain_queries_only(encoders, tiny_model, tmp_path):
    from fusemix.search.index import EmbeddingIndex

    folder = tiny_model.save_pretrained(tmp_path / "model")
    index = EmbeddingIndex(16, model_identity=tiny_model.identity)
    words = [f"{a} {b}" for a in ("red", "blue", "big", "old", "wet", "new", "sad", "odd") for b in "abcdefgh"]
    index.add("text", tiny_model.embed("text", encoders["text"].encode(words)), [{"id": w, "text": w} for w in words])
    index.save(tmp_path / "index")
    weights = (-1.0, 2.0, 3.0, 4.0, -5.0, 0.1)
    made = {("text", "text"): Calibration(weights, (Cutoff(0.05, 0.5, 0.9),), {})}
    save_calibrations(folder, made, model_identity=tiny_model.identity)
    retriever = Retriever.from_pretrained(folder, tmp_path / "index")
    hits = retriever.search(text="red b", top_k=3)["text"]
    nearest = retriever.index.search("text", retriever.embed(text="red b")[None], top_k=DEPTH)[0]
    found = features(np.array([[hit.similarity for hit in nearest]]), 64)[0, :3]
    expected = 1 / (1 + np.exp(-found @ weights))
    np.testing.assert_allclose([hit.probability for hit in hits], expected, rtol=1e-6)
    for other in (
        retriever.search(text="red b", minus_text="wet")["text"],
        retriever.search(text="red b", where={"id": "red b"})["text"],
        Retriever(tiny_model, encoders, index).search(text="red b")["text"],
    ):
        assert other[0].probability is None
    save_calibrations(folder, made, model_identity="another")
    with pytest.raises(ValueError, match="was measured with other weights than those beside it"):
        Retriever.from_pretrained(folder, tmp_path / "index")


def test_a_calibration_is_never_made_of_training_two_sides(checkpoint, pairs, capsys):
    asked = ["--checkpoint", str(checkpoint), "--pairs", str(pairs), "--query", "text", "--gallery", "image"]
    assert command.main([*asked, "--split", "train", "--calibrate"]) == 2
    assert "pairs that no training saw" in capsys.readouterr().err
    assert load_calibrations(checkpoint, model_identity="any") == {}
