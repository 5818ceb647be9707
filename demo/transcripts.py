"""The spoken words that the page shows: those that Whisper was sure of, without its remarks and repetitions.

Whisper writes something for almost every sound: mostly a remark in brackets, not always closed, for effects and music,
and mostly words that nobody said for languages other than English. The latent uses all of it; the page shows only what
is certain.
"""

from __future__ import annotations

import textwrap
from typing import NamedTuple

from fusemix.encoders.speech import Transcript
from fusemix.search.transcripts import only_words, sure_words

_MAX_CHARACTERS = 200  # someone may speak for minutes
_FOREIGN = "foreign language"  # as in Whisper's remark (speaking in foreign language)
UNSURE = "If someone is speaking, the words were not clear enough to use. Only English speech is understood."
FOREIGN = "This sounds like another language. Only English speech is understood."


class SpokenWords(NamedTuple):
    """Words heard in a sound, for the page.

    Attributes:
        words: The words heard, each sentence once; empty if there are none or Whisper was not sure of them.
        doubt: A sentence if speech was not understood, else empty.
        uncertain: Words that Whisper was not sure of, for the speaker to correct; not used in the search.
    """

    words: str = ""
    doubt: str = ""
    uncertain: str = ""


def spoken_words(transcript: Transcript) -> SpokenWords:
    """Sort a transcript into certain words, a doubt and uncertain words."""
    if words := sure_words(transcript):
        return SpokenWords(words)
    if _FOREIGN in transcript.words.lower():
        return SpokenWords(doubt=FOREIGN)
    uncertain = only_words(transcript.words)
    return SpokenWords(doubt=UNSURE if uncertain else "", uncertain=uncertain)


def sentences(words: str, doubt: str) -> list[str]:
    """Return lines for the page, not escaped: a doubt and the words, shortened if they are many."""
    heard = textwrap.shorten(words, _MAX_CHARACTERS, placeholder=" …")
    return [line for line in (doubt, f"Words heard: “{heard}”" if heard else "") if line]
