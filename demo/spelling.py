"""Correction of misspelled query words.

A word is known if a caption contains it or it is a single token of the text encoder. The encoder splits other words
into pieces and hardly understands them: typing errors, and words of other languages.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable

_SHORTEST = 4  # letters of a word that may be corrected
_LONG = 7  # letters of a word that may have two errors; a shorter one may have one
_ENDINGS = ("s", "es", "ed", "d", "ing", "er", "ers", "ly", "y", "ie", "ies")
_WORD = re.compile(r"[^\W\d_]+")


class Spelling:
    """Spelling corrector with the words of a gallery and of the text encoder.

    Example:
        >>> Spelling(["a blue butterfly"], {"blue"}).correct("a buterfly")
        'a butterfly'
    """

    def __init__(self, captions: Iterable[str], pieces: Collection[str]) -> None:
        """Collect the known words.

        Args:
            captions: Captions of the gallery.
            pieces: Vocabulary of the text encoder: whole words, and parts that begin with ``##``.
        """
        counts = Counter(word for caption in captions for word in _WORD.findall(caption.lower()))
        self._captions = [word for word, _ in counts.most_common() if len(word) >= _SHORTEST]
        self._known = set(counts) | set(pieces)

    def correct(self, text: str) -> str:
        """Replace every unknown word by the nearest caption word; return "" if nothing changes."""
        corrected = _WORD.sub(lambda match: self._nearest(match.group()), text)
        return corrected if corrected != text else ""

    def unknown(self, text: str) -> list[str]:
        """Return the words that are neither known nor corrected by :meth:`correct`, each once, in their order."""
        words = dict.fromkeys(match.group() for match in _WORD.finditer(text))
        return [word for word in words if not self._is_known(word.lower()) and self._nearest(word) == word]

    def _nearest(self, word: str) -> str:
        lower = word.lower()
        if len(word) < _SHORTEST or not lower.isascii() or self._is_known(lower):
            return word
        most = 2 if len(lower) >= _LONG else 1
        near = [
            (edit_distance(lower, other), rank)
            for rank, other in enumerate(self._captions)
            if _maybe(lower, other, most)
        ]
        best, rank = min(near, default=(most + 1, 0))
        return self._captions[rank] if best <= most else word

    def _is_known(self, word: str) -> bool:
        stems = (word.removesuffix(ending) for ending in _ENDINGS if word.endswith(ending))
        return word in self._known or any(stem in self._known or f"{stem}e" in self._known for stem in stems)


def edit_distance(a: str, b: str) -> int:
    """Count missing, added, replaced and swapped letters: the optimal string alignment distance."""
    before: list[int] = []
    last = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        row = [i]
        for j, y in enumerate(b, start=1):
            cost = min(last[j] + 1, row[-1] + 1, last[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                cost = min(cost, before[j - 2] + 1)
            row.append(cost)
        before, last = last, row
    return last[-1]


def _maybe(a: str, b: str, most: int) -> bool:
    """Return whether the edit distance can be at most ``most``: a cheap test."""
    return abs(len(a) - len(b)) <= most and len(set(a) ^ set(b)) <= 2 * most
