"""The README's own lines, run as written: ten lines that search, and your own data in four commands."""

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def run(command, cwd):
    words = command.split("#")[0].split()
    quoted = re.findall(r'"([^"]*)"', command)
    if quoted:
        start = next(i for i, word in enumerate(words) if word.startswith('"'))
        stop = next(i for i, word in enumerate(words) if word.endswith('"'))
        words[start : stop + 1] = quoted
    assert words[0] == "python"
    done = subprocess.run(
        [sys.executable, str(ROOT / words[1]), *words[2:]], cwd=cwd, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{command}\n{done.stderr[-2000:]}"
    return done.stdout


def test_the_ten_lines_search():
    code = re.search(r"```python\n(from fusemix import Retriever.*?)```", README, re.DOTALL).group(1)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    pictures = done.stdout.splitlines()[:5]
    assert [line.split()[0] for line in pictures] == list("12345")
    assert any("boat" in line or "ship" in line for line in pictures)


def test_your_own_data_in_four_commands_and_a_search(tmp_path):
    """Sixty real pictures with captions in another folder, from table to hits."""
    with open(ROOT / "demo/gallery/pairs.csv", newline="") as handle:
        rows = [row for row in csv.DictReader(handle) if row["image"] and "tuxpaint" in row["id"]][:60]
    for row in rows:
        shutil.copy(ROOT / "demo/gallery" / row["image"], tmp_path)
    lines = [f'{Path(row["image"]).name},"{row["text"]}"' for row in rows]
    (tmp_path / "pairs.csv").write_text("\n".join(["image,text", *lines]) + "\n")
    section = README.split("## Your own data in four commands")[1].split("\n## ")[0]
    commands = [line for line in section.splitlines() if line.startswith("python scripts/")]
    assert len(commands) == 6
    for command in commands[:4]:
        if "train.py" in command:
            command += " --epochs 2 --batch-size 16 --val-fraction 0.2"
        run(command, tmp_path)
    values = json.loads((tmp_path / "out.json").read_text())
    assert values["n_gallery"] == len({row["image"] for row in rows})
    assert 0 <= values["recall_at_1"] <= values["recall_at_10"] <= 1
    for command in commands[4:]:
        out = run(command, tmp_path)
    assert "image" in out
