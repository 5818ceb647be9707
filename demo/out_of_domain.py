"""Does the gallery show anything like what a visitor typed? A sentence where it clearly does not.

Words in another language, code or letters at random embed somewhere, and something is always nearest to them. They lie
farther from every caption of the index than its captions lie from one another; ``scripts.studies robustness`` measures
how well that tells them apart. Pictures and sounds are not judged: there the same distance says little.
"""

from __future__ import annotations

import numpy as np

SHARE = 0.01  # of the index's own captions, were they typed, would be called unfamiliar
MIN_CAPTIONS = 100  # fewer say nothing about what is far
MAX_CAPTIONS = 20_000  # more are not compared: it would take a while at the start, and from a server, all of them
SENTENCE = (
    "Nothing here is described in words like these, so what comes of them may be arbitrary. "
    "It understands English; try plain words for what can be seen or heard."
)


class Familiar:
    """Compares typed words with the captions of an index."""

    def __init__(self, captions: np.ndarray) -> None:
        """Find how near captions lie to one another.

        Args:
            captions: Embeddings, shape (N, D), unit length.
        """
        self.captions = captions
        self.bar = -1.0  # similarity to the nearest caption below which words are unfamiliar
        if len(captions) >= MIN_CAPTIONS:
            nearest = [
                np.sort(rows @ captions.T, axis=1)[:, -2] for rows in np.array_split(captions, -(-len(captions) // 512))
            ]
            self.bar = float(np.quantile(np.concatenate(nearest), SHARE))

    def sentence(self, embedding: np.ndarray) -> str:
        """What to say of words with this embedding (D,); nothing where they are familiar."""
        if not len(self.captions) or float((self.captions @ embedding).max()) >= self.bar:
            return ""
        return SENTENCE
