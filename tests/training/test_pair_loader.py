"""The pairs of each step: every order anew, each pair once an epoch, halves and shares that leave nobody out."""

import numpy as np
import pytest
import torch

from fusemix.data.latent_writer import write_latents
from fusemix.data.pair_set import PairSet
from fusemix.training.pair_loader import PairLoader, stores_to_hold

CPU = torch.device("cpu")


@pytest.fixture
def pair_set(tmp_path):
    """23 pairs; every value of a latent is its pair's number."""
    numbers = np.arange(23, dtype=np.float32)[:, None]
    return PairSet.join(
        {m: write_latents(tmp_path / m, numbers.repeat(d, 1), modality=m, name=m) for m, d in (("b", 3), ("a", 2))}
    )


def loader(pair_set, **changes):
    settings = {"seed": [5], "halved": True, "held": [], "device": CPU} | changes
    return PairLoader(pair_set, np.arange(2, 23), 6, **settings)  # 21 pairs: 3 steps an epoch, 3 pairs left


def test_an_epoch_draws_no_pair_twice_and_the_next_one_in_another_order(pair_set):
    epochs = [[np.concatenate(loader(pair_set).draw(3 * epoch + i)) for i in range(3)] for epoch in range(30)]
    orders = [np.concatenate(epoch).tolist() for epoch in epochs]
    assert all(len(order) == len(set(order)) == 18 and set(order) <= set(range(2, 23)) for order in orders)
    assert len(set(map(tuple, orders))) == 30 and all(order != sorted(order) for order in orders)
    counts = np.bincount(np.concatenate(orders), minlength=23)[2:]
    assert counts.min() >= 18  # 30 x 18 / 21 = 25.7 on average: none is left out for good


def test_a_step_is_a_function_of_seed_and_number(pair_set):
    one, other = loader(pair_set), loader(pair_set)
    for step in (7, 0, 3, 7, 1):
        assert [half.tolist() for half in one.draw(step)] == [half.tolist() for half in other.draw(step)]
    assert [half.tolist() for half in loader(pair_set, seed=[6]).draw(0)] != [half.tolist() for half in one.draw(0)]
    assert [len(half) for half in one.draw(0)] == [3, 3] and len(loader(pair_set, halved=False).draw(0)[0]) == 6


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_the_shares_of_the_processes_are_the_whole_half_in_order(pair_set, processes):
    loaders = [loader(pair_set, processes=processes, rank=rank) for rank in range(processes)]
    halves = loaders[0].draw(4)
    for half in halves:
        parts = [half[one.share_of(half)] for one in loaders]
        assert np.concatenate(parts).tolist() == half.tolist()
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    for one in loaders:
        wanted = np.concatenate([half[one.share_of(half)] for half in halves])
        assert one.latents("b", 4)[:, 0].tolist() == wanted.tolist()


@pytest.mark.parametrize("ahead", [False, True])
def test_latents_are_those_of_their_own_step_read_ahead_or_not(pair_set, ahead):
    one = loader(pair_set)
    for step in (0, 1, 2, 3):
        if ahead:
            one.read_ahead(step)
    for step in (3, 0, 2, 1):
        assert one.latents("a", step)[:, 1].tolist() == np.concatenate(one.draw(step)).tolist()


def test_the_smallest_stores_are_held_up_to_the_last_byte(pair_set):
    a, b = pair_set.stores["a"], pair_set.stores["b"]
    for room, held in ((0, []), (a.n_bytes - 1, []), (a.n_bytes, [a]), (a.n_bytes + b.n_bytes, [a, b])):
        assert stores_to_hold([pair_set, pair_set], room, CPU) == held
