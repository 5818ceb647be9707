import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fusemix.evaluation.metrics import bootstrap, ranks, retrieval, student_interval, summarise


def rank_loop(queries, gallery, query_groups, gallery_groups):
    out = []
    for q, group in zip(queries, query_groups, strict=True):
        similarity = [float(q @ g) for g in gallery]
        best = max(s for s, g in zip(similarity, gallery_groups, strict=True) if g == group)
        out.append(1 + sum(s >= best and g != group for s, g in zip(similarity, gallery_groups, strict=True)))
    return out


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_ranks_match_a_loop_with_several_right_answers(chunk):
    torch.manual_seed(0)
    queries = F.normalize(torch.randn(12, 4, dtype=torch.float64), dim=1)
    gallery = F.normalize(torch.randn(30, 4, dtype=torch.float64), dim=1)
    query_groups, gallery_groups = np.arange(12) % 6, np.arange(30) % 10
    actual = ranks(queries, gallery, query_groups, gallery_groups, chunk=chunk)
    assert actual.tolist() == rank_loop(queries, gallery, query_groups, gallery_groups)


def test_a_collapsed_model_scores_nothing():
    same = torch.ones(20, 3)
    assert ranks(same, same, np.arange(20), np.arange(20)).tolist() == [20] * 20


def test_summary_by_hand():
    values = summarise(np.array([1, 2, 5, 6, 11]))
    assert values == {"recall_at_1": 0.2, "recall_at_5": 0.6, "recall_at_10": 0.8, "median_rank": 5.0}


def test_intervals_hold_the_estimate_and_are_wider_for_clustered_queries():
    rng = np.random.default_rng(0)
    rank = np.repeat(rng.integers(1, 20, 100), 5)
    independent = bootstrap(rank, np.arange(500))["recall_at_5"]
    clustered = bootstrap(rank, np.repeat(np.arange(100), 5))["recall_at_5"]
    assert clustered[0] < (rank <= 5).mean() < clustered[1]
    assert clustered[1] - clustered[0] > 1.5 * (independent[1] - independent[0])


def test_the_interval_of_a_share_is_the_binomial_one():
    rank = np.array([1] * 50 + [30] * 150)
    low, high = bootstrap(rank, np.arange(200), samples=4000)["recall_at_1"]
    half = 1.96 * (0.25 * 0.75 / 200) ** 0.5
    assert (low, high) == pytest.approx((0.25 - half, 0.25 + half), abs=0.012)


def test_equal_similarities_count_against_the_query_wherever_they_stand():
    queries, right, wrong = torch.tensor([[1.0, 0.0]]), [0.6, 0.8], [-0.6, 0.8]
    for others, rank in (([right], 2), ([right, right], 3), ([wrong], 1), ([right, wrong], 2)):
        for at in range(len(others) + 1):  # the right answer before, between and after its equals
            gallery = torch.tensor([*others[:at], right, *others[at:]])
            groups = np.arange(1, len(gallery) + 1)
            groups[at] = 0
            assert ranks(queries, gallery, np.array([0]), groups).tolist() == [rank]


@pytest.mark.parametrize("queries", [7, 8])
def test_the_bootstrap_is_that_of_a_loop_over_resamples(queries):
    rng = np.random.default_rng(3)
    clusters = rng.permutation(np.resize([10, 20, 20, 30, 40], queries))
    rank = rng.permutation(np.arange(1, queries + 1))
    names = np.unique(clusters)
    for seed in range(40):  # of one resample both ends of an interval are its figures
        chosen = names[np.random.default_rng(seed).integers(0, len(names), len(names))]
        sample = np.sort(np.concatenate([rank[clusters == name] for name in chosen]))
        median = sample[(len(sample) - 1) // 2]  # the least rank that at least half reach
        figures = [*(np.mean(sample <= k) for k in (1, 5, 10)), median]
        found = bootstrap(rank, clusters, samples=1, seed=seed)
        assert list(found) == ["recall_at_1", "recall_at_5", "recall_at_10", "median_rank"]
        assert [low for low, _ in found.values()] == pytest.approx(figures)


def test_the_ends_of_an_interval_are_percentiles_of_the_resamples():
    rank, clusters, names = np.arange(1, 61) // 4, np.arange(60) // 2, np.arange(30)
    rng, drawn = np.random.default_rng(4), []
    for _ in range(300):
        chosen = rng.integers(0, 30, 30)
        drawn.append(np.mean(np.concatenate([rank[clusters == names[i]] for i in chosen]) <= 5))
    found = bootstrap(rank, clusters, samples=300, seed=4)["recall_at_5"]
    assert found == pytest.approx((np.percentile(drawn, 2.5), np.percentile(drawn, 97.5)))
    assert len({np.percentile(drawn, share) for share in (2.5, 5, 95, 97.5)}) == 4


def test_a_retrieval_holds_the_interval_of_its_groups():
    torch.manual_seed(0)
    queries, gallery = F.normalize(torch.randn(40, 4), dim=1), F.normalize(torch.randn(9, 4), dim=1)
    groups, answers = np.arange(40) % 8, np.arange(9) % 8
    found = retrieval(queries, gallery, groups, answers)
    expected = bootstrap(ranks(queries, gallery, groups, answers), groups)
    assert found["ci95"] == {name: list(pair) for name, pair in expected.items()}
    assert (found["n_queries"], found["n_gallery"]) == (40, 9)
    with pytest.raises(ValueError, match="one group per row"):
        ranks(queries, gallery, groups[:-1], answers)
    with pytest.raises(ValueError, match="one group per row"):
        ranks(queries, gallery, groups, answers[:-1])


def test_a_query_without_an_answer_is_refused():
    with pytest.raises(ValueError, match="right answer in the gallery"):
        retrieval(torch.eye(2), torch.eye(2), np.array([0, 7]), np.array([0, 1]))


def test_an_interval_over_seeds_is_students():
    found = student_interval([0.1, 0.2, 0.3])
    assert found == pytest.approx({"n": 3, "mean": 0.2, "sd": 0.1, "half_width_95": 4.302653 * 0.1 / 3**0.5})
    assert student_interval([0.1]) == {"n": 1, "mean": 0.1, "sd": None, "half_width_95": None}
