"""Cleaning of transcripts: removal of Whisper's remarks in brackets and of repeated sentences."""

from __future__ import annotations

import re

from fusemix.encoders.speech import Transcript

SURE = -1.0  # mean log-probability of a token above which words count; openai-whisper's logprob_threshold
_REMARKS = re.compile(r"\[[^\]]*(\]|$)|\([^)]*(\)|$)|\*[^*]*(\*|$)")  # [BLANK_AUDIO], (crow caws), *squeaking*
_ENDS = (".", "!", "?", "…")


def only_words(transcript: str) -> str:
    """Remove remarks, which are not speech, and a repeated sentence at the end of a transcript.

    Whisper loops on short sounds: "A boy with a toy gun. A boy wi" loses its second half. Repetitions with other
    words between them stay.

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
    """Return the words of a transcript if Whisper was confident of them; "" if not, or if there are none."""
    return only_words(transcript.words) if transcript.log_probability >= SURE else ""


def _begins(words: list[str], i: int) -> bool:
    """Return whether a sentence or a part of one begins at word ``i``."""
    return words[i - 1][-1] in ".!?…,;:" or (words[i][0].isupper() and i + 1 < len(words))


def _repeats(said: list[str], again: list[str]) -> bool:
    """Return whether a tail repeats the words before it; of several words the last may be cut off."""
    whole = said == again
    return whole or (len(again) > 1 and said[:-1] == again[:-1] and said[-1].startswith(again[-1]))
