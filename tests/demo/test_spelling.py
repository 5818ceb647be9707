"""Typing errors: what is unknown is seen, and the nearest word of the gallery is named."""

import pytest

from demo.spelling import Spelling, edit_distance

SPELLING = Spelling(["a blue Butterfly", "an elephant", "bicycle", "a circle", "a table"], {"crouch", "wade", "welt"})


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("a buterfly", "a butterfly"),
        ("Elefant, please", "elephant, please"),
        ("bycicle", "bicycle"),  # and not circle
        ("a tabel", "a table"),
        ("a butterfly", ""),
        ("crouches wading", ""),  # endings of known words
        ("a kat", ""),  # too short to tell
        ("Schmetterling", ""),
        ("läuft", ""),
        ("", ""),
    ],
)
def test_an_unknown_word_is_replaced_by_the_nearest_and_a_known_one_stays(typed, meant):
    assert SPELLING.correct(typed) == meant


@pytest.mark.parametrize(
    ("a", "b", "count"), [("", "", 0), ("ab", "ba", 1), ("appel", "apple", 1), ("cat", "cart", 1), ("abc", "", 3)]
)
def test_slips_are_letters_missing_added_and_exchanged(a, b, count):
    assert edit_distance(a, b) == edit_distance(b, a) == count


def test_words_that_nothing_knows_are_named_once_and_those_that_are_corrected_are_not():
    spelling = Spelling(["a blue butterfly", "a dog"], {"blue", "snow"})
    assert spelling.unknown("a buterfly, zwei Hunde im Schnee, dogs, zwei 7") == ["zwei", "Hunde", "im", "Schnee"]
    assert spelling.unknown("a blue butterfly") == []
