"""Fifty real kills, at random moments; the fast suite has four in test_train and three in test_latents."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_fifty_kills_lose_nothing(tmp_path):
    command = [
        sys.executable,
        str(ROOT / "scripts/checks/kills.py"),
        "--out",
        str(tmp_path / "kills.json"),
        "--seed",
        "1",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "kills.json").read_text())
    assert found["kills"] == 50 and found["equal"]
    assert all(found[kind]["with_work_saved"] >= 10 for kind in ("training", "extraction"))
