"""--profile and --tensorboard: the stages add up, the events are those of the run."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fusemix.cli.train import main
from fusemix.data.latent_writer import write_latents
from fusemix.data.pair_set import PairSet
from fusemix.model.config import ModelConfig, TrainConfig
from fusemix.training.curves import TensorBoard
from fusemix.training.profiling import STAGES, profile
from fusemix.training.trainer import Progress

ROOT = Path(__file__).resolve().parents[2]
CONFIG = TrainConfig(batch_size=64, epochs=4, val_fraction=0.2)


@pytest.fixture
def stores(tmp_path):
    rng = np.random.default_rng(0)
    dims = {"image": 24, "text": 16}
    return {
        m: write_latents(tmp_path / m, rng.normal(size=(300, d)).astype(np.float32), modality=m, name=m)
        for m, d in dims.items()
    }


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_stages_fill_the_step_and_the_trace_names_them(stores, tmp_path, accumulate):
    config = TrainConfig(batch_size=64, epochs=4, val_fraction=0.2, accumulate=accumulate)
    model = ModelConfig(latent_dims={m: s.dim for m, s in stores.items()}, embed_dim=16)
    found = profile([PairSet.join(stores)], model, config, tmp_path / "new" / "trace.json")
    assert set(found.stages) == set(STAGES) and min(found.stages.values()) > 0
    assert 0.5 * found.seconds_per_step < sum(found.stages.values()) < found.seconds_per_step
    assert found.evaluation_seconds > 0 and found.steps_per_evaluation == (300 - 66) // 64
    assert {"aten::addmm", "_Linear"} & {name for name, _, _ in found.operators}  # which costs most differs by machine
    named = {event.get("name") for event in json.loads(found.trace.read_text())["traceEvents"]}
    assert {*STAGES, "evaluation"} <= named
    text = "\n".join(found.lines())
    assert "loading and mixing the latents" in text and str(found.trace) in text


@pytest.mark.slow
def test_the_command_profiles_and_leaves_only_the_trace(stores, tmp_path):
    latents = [f"{name}={tmp_path / name}" for name in stores]
    command = [sys.executable, str(ROOT / "scripts/train.py"), "--latents", *latents, "--batch-size", "64"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out"), "--profile"], capture_output=True, text=True, check=True
    )
    assert "backward (of the loss and the adapters)" in done.stdout
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["trace.json"]


def test_tensorboard_that_is_missing_is_said_before_training(stores, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    latents = [f"{name}={tmp_path / name}" for name in stores]
    assert main(["--latents", *latents, "--out", str(tmp_path / "out"), "--tensorboard"]) == 2
    assert "fusemix[tensorboard]" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_events_of_a_resumed_run_replace_those_beyond_it(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def write(steps, loss, recall=None):
        board = TensorBoard(tmp_path / "runs")
        for step in steps:
            board.add(Progress(step, 9, 0, loss, 0.07, 1e-3, 1.0, recall))
        board.close()

    write(range(1, 7), 5.0)
    write(range(4, 8), 3.0, {"image+text/text_to_image": 0.5})
    events = EventAccumulator(str(tmp_path / "runs")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(s, 5.0 if s < 4 else 3.0) for s in range(1, 8)]
    assert events.Scalars("temperature")[0].value == pytest.approx(0.07)
    assert events.Scalars("learning_rate")[0].value == pytest.approx(1e-3)
    assert [e.step for e in events.Scalars("recall_at_1/image+text/text_to_image")] == [4, 5, 6, 7]
