"""Decoding of pictures and sounds, with limits, for the encoders.

Every failure is a :class:`MediaError` with one sentence for the user. ``docs/media.md`` has the rules and the limits.
"""

from fusemix.media.pictures import MAX_ASPECT, MAX_PIXELS, MAX_SIDE, load_image
from fusemix.media.sentences import MAX_FILE_BYTES, MediaError, one_line, shown
from fusemix.media.sounds import (
    MAX_CHANNELS,
    MAX_DURATION_S,
    MIN_DURATION_S,
    RATES,
    SAMPLE_RATE,
    load_audio,
)

__all__ = [
    "MAX_ASPECT",
    "MAX_CHANNELS",
    "MAX_DURATION_S",
    "MAX_FILE_BYTES",
    "MAX_PIXELS",
    "MAX_SIDE",
    "MIN_DURATION_S",
    "RATES",
    "SAMPLE_RATE",
    "MediaError",
    "load_audio",
    "load_image",
    "one_line",
    "shown",
]
