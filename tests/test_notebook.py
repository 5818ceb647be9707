"""The notebook of examples/, every code cell in order, on a folder of the gallery's pictures."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from fusemix import FusionModel

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_notebook_ends_with_a_search_of_ones_own_photos(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    with open(ROOT / "demo/gallery/pairs.csv", newline="", encoding="utf-8") as handle:
        rows = [row for row in csv.DictReader(handle) if row["image"] and row["text"]][::40]
    for row in rows:
        copy = Path(shutil.copy(ROOT / "demo/gallery" / row["image"], tmp_path / "photos"))
        copy.with_suffix(".txt").write_text(row["text"])
    monkeypatch.chdir(tmp_path)
    cells = json.loads((ROOT / "examples/your_own_photos.ipynb").read_text())["cells"]
    names: dict = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), "your_own_photos.ipynb", "exec"), names)
    assert len(names["photos"]) == len(rows) > 70
    assert names["score"] > 1 / len(names["test"])
    asked = rows[::5]  # most of them were trained on
    found = [[path.name for path in names["search"](row["text"], k=5)] for row in asked]
    assert np.mean([Path(row["image"]).name in names for row, names in zip(asked, found, strict=True)]) > 0.5
    assert names["strip"](names["photos"][:5]).size == (800, 160)
    assert FusionModel.from_pretrained("my-photos").config.encoders["image"]["name"] == "efficientnet-lite0"
