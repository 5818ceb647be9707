"""Words that nobody knows: which they are, and what they may have meant.

A word is known if a caption has it or the text encoder has a piece for the whole of it; that it cuts the others into
pieces, and so hardly understands them, is what typing errors have in common with words of other languages.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable

_SHORTEST = 4  # letters of a word that is looked at
_LONG = 7  # letters from which on two slips are forgiven, below it one
_ENDINGS = ("s", "es", "ed", "d", "ing", "er", "ers", "ly", "y", "ie", "ies")
_WORD = re.compile(r"[^\W\d_]+")


class Spelling:
    """Knows the words of a gallery and of the text encoder.

    Example:
        >>> Spelling(["a blue butterfly"], {"blue"}).correct("a buterfly")
        'a butterfly'
    """

    def __init__(self, captions: Iterable[str], pieces: Collection[str]) -> None:
        """Read the words.

        Args:
            captions: Of the gallery.
            pieces: Vocabulary of the text encoder: whole words, and parts that begin with ``##``.
        """
        counts = Counter(word for caption in captions for word in _WORD.findall(caption.lower()))
        self._captions = [word for word, _ in counts.most_common() if len(word) >= _SHORTEST]
        self._known = set(counts) | set(pieces)

    def correct(self, text: str) -> str:
        """The text with every unknown word replaced by the nearest of the captions; "" where nothing is replaced."""
        corrected = _WORD.sub(lambda match: self._nearest(match.group()), text)
        return corrected if corrected != text else ""

    def _nearest(self, word: str) -> str:
        lower = word.lower()
        if len(word) < _SHORTEST or not lower.isascii() or self._is_known(lower):
            return word
        most = 2 if len(lower) >= _LONG else 1
        near = [(slips(lower, other), rank) for rank, other in enumerate(self._captions) if _maybe(lower, other, most)]
        best, rank = min(near, default=(most + 1, 0))
        return self._captions[rank] if best <= most else word

    def _is_known(self, word: str) -> bool:
        stems = (word.removesuffix(ending) for ending in _ENDINGS if word.endswith(ending))
        return word in self._known or any(stem in self._known or f"{stem}e" in self._known for stem in stems)


def slips(a: str, b: str) -> int:
    """Letters missing, added, exchanged with another or with the next: the optimal string alignment distance."""
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
    """Whether two words can be so few slips apart; cheap."""
    return abs(len(a) - len(b)) <= most and len(set(a) ^ set(b)) <= 2 * most
