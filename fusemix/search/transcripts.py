"""The words in a transcript: without Whisper's remarks in brackets and without what it repeats."""

from __future__ import annotations

import re

from fusemix.encoders.speech import Transcript

SURE = -1.0  # mean log-probability of a token from which words count; openai-whisper's own logprob_threshold
_REMARKS = re.compile(r"\[[^\]]*(\]|$)|\([^)]*(\)|$)|\*[^*]*(\*|$)")  # [BLANK_AUDIO], (crow caws), *squeaking*
_ENDS = (".", "!", "?", "…")


def only_words(transcript: str) -> str:
    """A transcript without remarks, which are no words, and without a sentence begun again at its end.

    Whisper loops on short sounds: of "A boy with a toy gun. A boy wi" the second half goes. What is said twice with
    other words between stays.

    Returns:
        The words; "" if no letter is left.
    """
    words = _REMARKS.sub(" ", transcript).split()
    if not any(letter.isalnum() for word in words for letter in word):
        return ""
    bare = [word.strip(".,;:!?…").lower() for word in words]
    starts = [i for i in range(len(words)) if i == 0 or words[i - 1].endswith(_ENDS)]
    for start in starts:
        for again in range(start + 1, len(words)):
            whole = len(words) - again >= again - start
            if (whole or _begins(words, again)) and _repeats(bare[start : start + len(words) - again], bare[again:]):
                return " ".join(words[:again]).rstrip(",;:")
    return " ".join(words)


def sure_words(transcript: Transcript) -> str:
    """The words of a transcript that Whisper was sure of; "" if there are none or it was not."""
    return only_words(transcript.words) if transcript.log_probability >= SURE else ""


def _begins(words: list[str], i: int) -> bool:
    """Whether a sentence or a part of one begins at word ``i``."""
    return words[i - 1][-1] in ".!?…,;:" or (words[i][0].isupper() and i + 1 < len(words))


def _repeats(said: list[str], again: list[str]) -> bool:
    """Whether a tail is what was said before it; of several words the last may be cut off."""
    whole = said == again
    return whole or (len(again) > 1 and said[:-1] == again[:-1] and said[-1].startswith(again[-1]))
