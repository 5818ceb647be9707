"""The decoder's training loop: fresh noise at every step, a true average, a falling rate, resume to the bit."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from fusemix.generation.small.train_loop import EMA_EVERY, Loop


def loop(work, **changes):
    settings = {
        "name": "toy", "work": work, "steps": 40, "learning_rate": 0.1, "ema_decay": 0.5, "warmup_steps": 4,
        "seed": 3, "save_every": 10, "sample_every": 1000, "device": "cpu",
    }  # fmt: skip
    return Loop(**{**settings, **changes})


def run(work, loss=None, **changes):
    """The averaged network, and the noise and the weights that every step saw."""
    seen = []

    def written(network, step, rng):
        noise = torch.randn(4), rng.normal(size=4)
        seen.append((noise[0].numpy(), noise[1], copy.deepcopy(network.state_dict())))
        return (network(noise[0]) - torch.from_numpy(noise[1]).float()).square().mean()

    average = loop(work, **changes).train(
        lambda: nn.Linear(4, 4), loss or written, report=lambda *_: None, sample=lambda *_: None
    )
    return average.state_dict(), seen


def test_every_step_draws_noise_of_its_own_and_a_second_run_the_same(tmp_path):
    _, first = run(tmp_path / "a")
    _, second = run(tmp_path / "b")
    for kind in (0, 1):
        drawn = np.stack([entry[kind] for entry in first])
        assert len(np.unique(drawn.round(6), axis=0)) == len(drawn)
        np.testing.assert_array_equal(drawn, np.stack([entry[kind] for entry in second]))


def test_the_average_is_the_written_formula_and_not_the_last_weights(tmp_path):
    average, seen = run(tmp_path)
    after = [entry[2] for entry in seen[1:]]  # weights that a step left behind are seen by the next
    last = torch.load(tmp_path / "toy.pt", weights_only=True)["network"]
    expected = seen[0][2]["weight"]
    for step, weights in enumerate([*after, last]):
        if step % EMA_EVERY == EMA_EVERY - 1:
            decay = min(0.5, (1 + step) / (10 + step)) ** EMA_EVERY
            expected = decay * expected + (1 - decay) * weights["weight"]
    torch.testing.assert_close(average["weight"], expected)
    assert (average["weight"] - last["weight"]).abs().max() > 1e-3


def test_the_rate_warms_up_and_falls_to_its_end(tmp_path):
    rates = [loop(tmp_path).rate(step) for step in range(40)]
    assert rates.index(max(rates)) == 3 and rates[-1] < 0.2 * max(rates)
    assert rates[:4] == sorted(rates[:4]) and rates[3:] == sorted(rates[3:], reverse=True)


def test_a_stopped_run_ends_like_one_that_was_not(tmp_path):
    whole, _ = run(tmp_path / "whole")

    class Killed(Exception):
        pass

    def dies(network, step, rng):
        if step == 25:
            raise Killed
        return (network(torch.randn(4)) - torch.from_numpy(rng.normal(size=4)).float()).square().mean()

    with pytest.raises(Killed):
        run(tmp_path / "part", dies)
    resumed, seen = run(tmp_path / "part")
    assert len(seen) == 20  # from the state of step 20
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_a_loss_that_is_no_number_is_refused(tmp_path):
    with pytest.raises(ValueError, match="toy loss is not finite at step 0"):
        run(tmp_path, lambda network, *_: network(torch.full((4,), torch.nan)).sum())
