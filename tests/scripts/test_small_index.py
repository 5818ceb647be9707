"""The comparison of two indexes: no gain over itself, a loss where rows are exchanged, and other items are refused."""

import numpy as np
import pytest

from fusemix.search.index import EmbeddingIndex
from scripts.checks.small_index import _compared


@pytest.fixture
def make(tmp_path):
    """Make an index of 60 pairs, two thirds of them held out, whose captions are moved by some places."""
    lines = [f"{i},{'val' if i % 3 else 'train'}" for i in range(60)]
    (tmp_path / "pairs.csv").write_text("\n".join(["id,split", *lines]))
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(60, 8))

    def index(moved, first="0"):
        made = EmbeddingIndex(8, model_identity="model-a")
        items = [{"id": first if i == 0 else str(i), "group": f"g{i}"} for i in range(60)]
        for modality, some in (("image", rows), ("text", np.roll(rows + 0.01, moved, axis=0))):
            made.add(modality, (some / np.linalg.norm(some, axis=1, keepdims=True)).astype(np.float32), items)
        return made

    return index


def test_gains_are_paired_and_in_points(make, tmp_path):
    same = _compared(make(0), make(0), str(tmp_path / "pairs.csv"))
    assert same["image_to_text"]["recall_at_1"] == [100, 100] and same["all"]["gain"]["at_1"] == [0, 0, 0]
    worse = _compared(make(0), make(7), str(tmp_path / "pairs.csv"))
    assert worse["image_to_text"]["queries"] == 40 and worse["image_to_text"]["gain"]["at_1"][0] < -90
    mean, low, high = worse["all"]["gain"]["at_1"]
    assert low <= mean <= high < -30 and worse["all"]["queries"] == 80  # captions ask with the first index's rows
    with pytest.raises(ValueError, match="different items"):
        _compared(make(0), make(0, first="x"), str(tmp_path / "pairs.csv"))
