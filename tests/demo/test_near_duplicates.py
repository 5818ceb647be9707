"""What is the same picture and what only lies near it, on the gallery's own clip-art."""

from pathlib import Path

import numpy as np
import pytest

from demo.near_duplicates import NEAR, NEAR_OF_ONE_NAME, distinct
from fusemix.search.index import Hit

IMAGES = Path(__file__).resolve().parents[2] / "demo/gallery/images"
LEMONS = ["openclipart-food-fruit-lemon", "tuxpaint-food-fruit-cartoon-lemon"]


def shown(names, *, cosine=0.999, folder=IMAGES):
    """Which of some pictures stay, if every two of them lie at this cosine."""
    rows = np.linalg.cholesky(np.full((len(names), len(names)), cosine) + (1 - cosine) * np.eye(len(names)))
    hits = [Hit("image", {"id": name, "path": f"{name}.webp"}, 0.9, rank) for rank, name in enumerate(names, 1)]
    kept = distinct(hits, lambda hit: rows[hits.index(hit)], lambda item: folder / item["path"])
    assert [hit.rank for hit in kept] == list(range(1, len(kept) + 1))
    return [hit.item["id"] for hit in kept]


@pytest.mark.parametrize(
    "pair",
    [
        LEMONS,
        ["openclipart-food-fruit-green-pear-01", "tuxpaint-food-fruit-cartoon-pear"],
        ["openclipart-plants-flowers-red-flower-01", "openclipart-plants-flowers-red-flower-03"],
    ],
)
def test_the_same_clip_art_is_shown_once_and_what_follows_moves_up(pair):
    assert shown([*pair, "openmoji-1f641", pair[0]]) == [pair[0], "openmoji-1f641"]


@pytest.mark.parametrize(
    "pair",
    [
        ["openmoji-1f91b", "openmoji-1f91c"],  # a fist to the left, a fist to the right
        ["openmoji-1f641", "openmoji-2639"],  # two mouths
        [
            "openclipart-signs-and-symbols-irritant-yves-guillou-01",
            "openclipart-signs-and-symbols-nocif-yves-guillou-01",
        ],
    ],
)
def test_what_the_space_hardly_tells_apart_but_the_eye_does_is_shown_twice(pair):
    assert shown(pair) == pair


def test_what_lies_apart_in_the_space_is_not_looked_at_and_a_file_that_is_gone_looks_like_nothing(tmp_path):
    assert shown(LEMONS, cosine=NEAR - 0.01, folder=None) == LEMONS
    assert shown(LEMONS, folder=tmp_path) == LEMONS


def test_pictures_of_one_name_are_looked_at_from_a_little_farther_and_of_two_names_not():
    for captions, kept in ((("lemon", "a lemon"), 1), (("lemon", "fruit"), 2)):
        hits = [
            Hit("image", {"id": name, "path": f"{name}.webp", "caption": caption}, 0.9, 1)
            for name, caption in zip(LEMONS, captions, strict=True)
        ]
        rows = np.linalg.cholesky(np.array([[1, NEAR_OF_ONE_NAME + 0.01], [NEAR_OF_ONE_NAME + 0.01, 1]]))
        found = distinct(hits, lambda hit, hits=hits, rows=rows: rows[hits.index(hit)], lambda i: IMAGES / i["path"])
        assert len(found) == kept
