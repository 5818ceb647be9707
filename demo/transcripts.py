"""What a visitor is told of the words in a sound: those that Whisper was sure of, without its remarks and repetitions.

Whisper writes something of almost every sound: of effects and music mostly a remark in brackets, not always closed, of
another language than English mostly words that nobody said. The latent holds all that; the page should not claim it.
"""

from __future__ import annotations

import textwrap
from typing import NamedTuple

from fusemix.encoders.speech import Transcript
from fusemix.search.transcripts import only_words, sure_words

_MAX_CHARACTERS = 200  # someone may speak for minutes
_FOREIGN = "foreign language"  # as in Whisper's remark (speaking in foreign language)
UNSURE = "If someone speaks there, the words were not understood for certain and are left out; it understands English."
FOREIGN = "Someone seems to speak another language; of speech it understands English only."


class Told(NamedTuple):
    """What to tell of a sound.

    Attributes:
        words: The words heard, each sentence once; empty if there are none or Whisper was not sure of them.
        doubt: A sentence where speech was not understood; empty elsewhere.
        perhaps: Words that Whisper was not sure of, for whoever spoke to correct; they are not searched with.
    """

    words: str = ""
    doubt: str = ""
    perhaps: str = ""


def told(transcript: Transcript) -> Told:
    """What to tell of a sound with this transcript."""
    if words := sure_words(transcript):
        return Told(words)
    if _FOREIGN in transcript.words.lower():
        return Told(doubt=FOREIGN)
    perhaps = only_words(transcript.words)
    return Told(doubt=UNSURE if perhaps else "", perhaps=perhaps)


def sentences(words: str, doubt: str) -> list[str]:
    """Lines for the page, not escaped: a doubt and the words, of a long speech the beginning."""
    heard = textwrap.shorten(words, _MAX_CHARACTERS, placeholder=" …")
    return [line for line in (doubt, f"Words heard: “{heard}”" if heard else "") if line]
