"""Words unlike every caption are flagged; the real gallery and typed words of several kinds."""

from pathlib import Path

import numpy as np
import pytest

from demo.out_of_domain import SENTENCE, OutOfDomain
from demo.query import Query
from demo.service import Service
from demo.tabs.search import answer_page

ROOT = Path(__file__).resolve().parents[2]
PICTURE = next((ROOT / "demo/gallery/images").glob("tuxpaint-food-fruit-*"))
KNOWN = [
    "a ship on the sea",
    "a cat asleep",
    "fresh fruit",
    "happy birthday",
    "a guitar",
    "snow",
    "a bird sings",
    "spider",
]
STRANGE = [
    "Der Hund läuft über die Wiese", "犬が草の上を走る", "asdf qwer zxcv uiop", "SELECT name FROM users WHERE id = 7;",
    "aaaaaaaaaaaaaaaaaaaaaa", "Собака бежит по траве",
]  # fmt: skip


@pytest.fixture(scope="module")
def real():
    return Service.from_pretrained(ROOT / "checkpoints/default", ROOT / "demo/index")


def test_real_words_pass_and_strange_ones_are_told(real):
    detector = OutOfDomain(real.embeddings["text"])

    def is_flagged(words):
        return bool(detector.sentence(real.retriever.embed(text=words)))

    assert not any(map(is_flagged, KNOWN))
    assert all(map(is_flagged, STRANGE))


def test_the_page_says_so_for_words_alone(real):
    for query, flagged in (
        (Query(text="犬が草の上を走る"), True),
        (Query(text="a ship on the sea"), False),
        (Query(text="犬が草の上を走る", image=str(PICTURE)), False),
    ):
        line, _, answer = answer_page(real, query)
        assert bool(answer.doubt) is flagged and (SENTENCE in line) is flagged


def test_one_caption_in_a_hundred_would_be_unfamiliar_without_itself():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(700, 12))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    detector = OutOfDomain(rows)
    slow = [max(float(a @ b) for j, b in enumerate(rows) if j != i) for i, a in enumerate(rows[:300])]
    assert np.mean(np.array(slow) < detector.threshold) == pytest.approx(0.01, abs=0.012)
    assert detector.sentence(rows[5]) == "" and detector.sentence(-rows.mean(axis=0) * 0) != ""


def test_too_few_captions_judge_nothing():
    rows = np.eye(50)
    assert OutOfDomain(rows).sentence(-rows[0]) == "" and OutOfDomain(np.empty((0, 4))).sentence(np.ones(4)) == ""
