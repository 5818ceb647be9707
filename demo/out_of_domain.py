"""Detector of words, typed or heard, that no caption of the index resembles.

Some item is always nearest, even to words in another language, code or random letters. Such words lie farther from
every caption of the index than captions lie from one another; ``scripts.studies robustness`` measures how well that
tells them apart. Pictures and sounds are not judged, because for them this distance says little: real photographs lie
farther from this gallery's drawings (median cosine 0.22 to the nearest) than noise does (0.47), and are found all the
same (60 photographs and five pictures of noise, before the gallery held photographs; not from a kept script).
"""

from __future__ import annotations

import numpy as np

SHARE = 0.01  # of the index's own captions would be flagged if they were typed
MIN_CAPTIONS = 100  # fewer do not tell how far is far
MAX_CAPTIONS = 20_000  # more are not compared: this would delay the start, and fetch them all from a server
SENTENCE = (
    "Nothing here matches well; these are guesses. Try plain English words for something you can see or hear. "
    f"(One in {round(1 / SHARE)} of the captions here would be told this wrongly.)"
)


class OutOfDomain:
    """Comparison of typed words with the captions of an index."""

    def __init__(self, captions: np.ndarray) -> None:
        """Measure how near captions lie to one another.

        Args:
            captions: Embeddings, shape (N, D), unit length.
        """
        self.captions = captions
        self.threshold = -1.0  # words less similar to their nearest caption are out of domain
        if len(captions) >= MIN_CAPTIONS:
            nearest = [
                np.sort(rows @ captions.T, axis=1)[:, -2] for rows in np.array_split(captions, -(-len(captions) // 512))
            ]
            self.threshold = float(np.quantile(np.concatenate(nearest), SHARE))

    def sentence(self, embedding: np.ndarray) -> str:
        """Return :data:`SENTENCE` for an out-of-domain embedding, shape (D,), unit length; else an empty string."""
        if not len(self.captions) or float((self.captions @ embedding).max()) >= self.threshold:
            return ""
        return SENTENCE
