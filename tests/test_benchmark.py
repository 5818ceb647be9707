"""The benchmarks run at a tiny size; their figures at real sizes are in docs/results."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments):
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts/benchmark.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_the_loss_in_tiles_adds_less_memory_than_the_plain_one(tmp_path):
    done = run("--out", tmp_path, "loss", "--batches", 6000, "--dim", 64)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "benchmark-loss.json").read_text())["rows"]
    assert row["tiled"]["added_mib"] < row["plain"]["added_mib"] / 2


def test_a_plain_loss_that_would_not_fit_is_left_out_with_its_reason(tmp_path):
    done = run("--out", tmp_path, "loss", "--batches", 600, "--dim", 8, "--memory-gib", 0.001)
    (row,) = json.loads((tmp_path / "benchmark-loss.json").read_text())["rows"]
    assert row["plain"].startswith("left out"), done.stderr


@pytest.mark.skipif("FUSEMIX_PEER" not in os.environ, reason="needs a checkout of layer6ai-labs/fusemix")
def test_ours_and_the_authors_take_turns(tmp_path):
    small = ("--pairs", 200, "--widths", 16, 8, "--batch-size", 64, "--steps", 1, "--turns", 1, "--depth", 1)
    done = run("--out", tmp_path, "train", "--peer", os.environ["FUSEMIX_PEER"], *small)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "benchmark-train.json").read_text())["ratio"] > 0


def test_a_peer_that_is_not_there_is_named(tmp_path):
    done = run("--out", tmp_path, "train", "--peer", tmp_path, "--pairs", 100, "--widths", 4, 4, "--batch-size", 8)
    assert done.returncode != 0 and "checkout of layer6ai-labs/fusemix" in done.stderr
