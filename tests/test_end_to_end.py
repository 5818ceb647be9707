"""The README's own lines, run as written: a search with its printed output, and your own data in four commands."""

import csv
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FUSEMIX = str(Path(sys.executable).with_name("fusemix"))


def test_the_search_prints_what_the_readme_shows():
    code, printed = re.search(
        r"```python\n(from fusemix import Retriever.*?)```\n\n```\n(.*?)```", README, re.DOTALL
    ).groups()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == printed


def test_your_own_data_in_four_commands(tmp_path):
    """Sixty real pictures with captions in another folder, from table to recall."""
    with open(ROOT / "demo/gallery/pairs.csv", newline="") as handle:
        rows = [row for row in csv.DictReader(handle) if row["image"] and "tuxpaint" in row["id"]][:60]
    for row in rows:
        shutil.copy(ROOT / "demo/gallery" / row["image"], tmp_path)
    lines = [f'{Path(row["image"]).name},"{row["text"]}"' for row in rows]
    (tmp_path / "pairs.csv").write_text("\n".join(["image,text", *lines]) + "\n")
    section = README.split("## Train your own")[1].split("\n## ")[0]
    commands = [line for line in section.splitlines() if line.startswith("fusemix ")]
    assert [shlex.split(command)[1] for command in commands] == ["extract", "extract", "train", "evaluate"]
    for command in commands:
        words = [FUSEMIX, *shlex.split(command)[1:]]
        if words[1] == "train":
            words += ["--epochs", "2", "--batch-size", "16", "--val-fraction", "0.2"]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{command}\n{done.stderr[-2000:]}"
    assert "text -> image" in done.stdout and f"{len({row['image'] for row in rows})}" in done.stdout
