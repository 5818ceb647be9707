"""Decoding of sounds of any common format to mono samples."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from fusemix.extras import extra
from fusemix.media.sentences import MediaError, check_file, shown

SAMPLE_RATE = 16_000  # Hz, Whisper's rate
MAX_DURATION_S = 600.0  # ten minutes of sound
MIN_DURATION_S = 0.05
RATES = (1000, 768_000)  # Hz, lowest and highest
MAX_CHANNELS = 64
# Demuxers that read one file and nothing else: a playlist may name other files and addresses.
_FORMATS = "wav,w64,aiff,au,caf,mp3,ogg,flac,mov,mp4,m4a,3gp,matroska,webm,aac,amr,avi,asf,mpeg,mpegts,wv,ape,tta"
_MISREAD = ("pcm_f16le", "pcm_f24le")  # FFmpeg takes integers of 24 bits in 32 for these
SILENCE_PEAK = 1e-4  # of full scale; quieter sounds are silent
LOUDEST_PEAK = 100.0  # of full scale; above this, samples were integers that were never divided by their range
_CANCELLED = 0.01  # of the loudest channel's level: a quieter mean has cancelled; one channel of 64 is above
_BLOCK = 1 << 16  # samples processed at once

Pieces = Iterator[tuple[int, np.ndarray]]  # sample rate in Hz, samples (T, C) of any dtype


def load_audio(source: Any, *, max_duration_s: float = MAX_DURATION_S, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    """Decode a sound to mono float32, at 16 kHz unless another rate is asked for.

    The same recording gives the same samples in any container, number of channels and bit depth. Integers are divided
    by half their range, unsigned ones centred first. Channels are averaged; if they cancel, as two channels in
    opposite phase do, the loudest channel is used instead (the first of equal ones).

    Args:
        source: A path or bytes of any format FFmpeg's libraries read (wav, flac, ogg, opus,
            mp3, m4a, webm, ...), or a tuple (sample_rate in Hz, samples of shape (T,) or (T, C),
            integer over the whole range of its dtype or float in [-1, 1]).
        max_duration_s: Longest accepted sound, in seconds; decoding stops there, so that memory
            is bounded.
        sample_rate: Rate of the samples returned, in Hz; resampled once, straight from the source.

    Returns:
        Samples, shape (T,), float32 in about [-1, 1].

    Raises:
        MediaError: If missing, empty, damaged, too long, too short, silent or no sound, or if its sample rate or
            number of channels is outside :data:`RATES` or above :data:`MAX_CHANNELS`.
    """
    if isinstance(source, tuple):
        if len(source) != 2:
            raise MediaError(f"Expected a sound as (sample rate in Hz, samples), got a tuple of {len(source)} values.")
        rate, array = _checked(*source)

        def pieces() -> Pieces:
            yield from ((rate, array[start : start + _BLOCK]) for start in range(0, len(array), _BLOCK))

    else:
        name = check_file(source, "sound")

        def pieces() -> Pieces:
            return _decoded(source, name)

    samples = _mixed(pieces, max_duration_s, sample_rate)
    if not np.isfinite(samples).all():
        raise MediaError("The sound holds values that are not numbers; record it again.")
    if len(samples) < MIN_DURATION_S * sample_rate:
        raise MediaError(f"The sound lasts {len(samples) / sample_rate:.2f} s; at least {MIN_DURATION_S} s is needed.")
    peak = np.abs(samples).max()
    if isinstance(source, tuple) and array.dtype.kind in "iu" and 0 < peak < SILENCE_PEAK:
        raise MediaError(
            f"The samples use hardly any of {array.dtype}'s range; if they are 16 bits wide, convert them to int16, or "
            "divide them so that full scale is 1."
        )
    if peak < SILENCE_PEAK:
        raise MediaError("The sound is silent; check the microphone and record it again.")
    if peak > LOUDEST_PEAK:
        raise MediaError(f"The sound goes up to {peak:.2g} times full scale; expected samples in -1 to 1.")
    return samples


def _checked(sample_rate: Any, samples: Any) -> tuple[int, np.ndarray]:
    """Check a tuple; return its rate and samples (T, C)."""
    try:
        samples = np.asarray(samples)
    except ValueError as error:
        raise MediaError("Expected samples of shape (T,) or (T, channels), got rows of unequal length.") from error
    if samples.ndim not in (1, 2) or samples.dtype.kind not in "iuf" or (samples.ndim == 2 and samples.shape[1] == 0):
        raise MediaError(f"Expected samples of shape (T,) or (T, channels), got {samples.shape} {samples.dtype}.")
    if isinstance(sample_rate, bool) or not isinstance(sample_rate, Real):
        raise MediaError(f"Expected a sample rate in Hz, got {shown(sample_rate)}.")
    return _checked_rate(sample_rate), samples if samples.ndim == 2 else samples[:, None]


def _checked_rate(sample_rate: Any) -> int:
    low, high = RATES
    if not low <= sample_rate <= high:
        raise MediaError(f"Expected a sample rate between {low:,} and {high:,} Hz, got {shown(sample_rate)}.")
    return int(sample_rate)


def _checked_channels(count: int) -> int:
    if count > MAX_CHANNELS:
        raise MediaError(f"The sound has {count:,} channels; up to {MAX_CHANNELS} are taken.")
    return count


def _decoded(source: Any, name: str) -> Pieces:
    """Decode a file with FFmpeg's libraries, frame by frame."""
    av = _av()
    # FFmpeg takes what stands before a colon for a protocol, but not in an absolute path
    opened = io.BytesIO(source) if isinstance(source, bytes) else str(Path(source).absolute())
    seconds = 0.0
    try:
        options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
        with av.open(opened, mode="r", metadata_errors="ignore", options=options) as container:
            if not container.streams.audio:
                raise MediaError(f"{name} holds no sound; send a wav, mp3, ogg, flac, m4a or webm recording.")
            stream = container.streams.audio[0]
            if stream.codec_context is not None and stream.codec_context.name in _MISREAD:
                raise MediaError(f"{name} holds 24-bit samples in 32 bits, which are not read; export it with 24 bits.")
            for frame in container.decode(stream):
                values = _values(frame)
                yield _checked_rate(frame.sample_rate), values
                seconds += len(values) / frame.sample_rate
    except MediaError:
        raise
    except (av.FFmpegError, OSError, ValueError) as error:
        if seconds < MIN_DURATION_S:
            raise MediaError(
                f"{name} is not a sound that can be read; send a wav, mp3, ogg, flac, m4a or webm recording."
            ) from error
        raise MediaError(f"{name} is damaged or cut short; record or export it again.") from error


def _values(frame: Any) -> np.ndarray:
    """Return the samples (T, C) of a decoded frame.

    FFmpeg packs the planes of 8 and more channels first: PyAV takes as many planes as there are pointers before a null
    one, which nothing promises after the 8th. It then reads other memory, and may end the process.
    """
    count = _checked_channels(frame.layout.nb_channels)
    if frame.format.is_planar and count >= 8:
        packer = _av().AudioResampler(format=frame.format.packed, layout=frame.layout, rate=frame.sample_rate)
        (frame,) = packer.resample(frame)
    values: np.ndarray = frame.to_ndarray()
    return values.T if frame.format.is_planar else values.reshape(-1, count)


def _av() -> Any:
    """Import PyAV, which only sounds need."""
    with extra("audio", "Reading sounds"):
        import av
    return av


def _mixed(pieces: Callable[[], Pieces], max_duration_s: float, to_rate: int) -> np.ndarray:
    """Mix to one channel (T,) at ``to_rate``: the mean, or the loudest channel if the mean cancels.

    Args:
        pieces: Restarts the sound at each call; a sound that cancels is decoded twice.
        max_duration_s: Longest accepted sound.
        to_rate: Hz.
    """
    powers = np.zeros(0)  # of each channel, summed over time
    mean_power = 0.0

    def mean() -> Pieces:
        nonlocal powers, mean_power
        for rate, values in pieces():
            count = _checked_channels(values.shape[1])
            powers = powers if len(powers) else np.zeros(count)
            if count != len(powers):
                raise MediaError("The number of channels changes within the sound; export it again with one.")
            channels = _as_floats(values)
            if count == 1:
                yield rate, channels[:, 0]
                continue
            with np.errstate(over="ignore", invalid="ignore"):  # infinite values are refused by the caller
                mixed = channels.mean(axis=1, dtype=np.float64)
                mean_power += float(np.square(mixed).sum())
                powers += np.square(channels, dtype=np.float64).sum(axis=0)
                yield rate, mixed.astype(np.float32)

    samples = _resampled(mean(), max_duration_s, to_rate)
    if len(powers) < 2 or not np.isfinite(powers).all() or mean_power >= _CANCELLED**2 * powers.max():
        return samples
    loudest = int(powers.argmax())
    return _resampled(((rate, _as_floats(values)[:, loudest]) for rate, values in pieces()), max_duration_s, to_rate)


def _as_floats(values: np.ndarray) -> np.ndarray:
    """Convert samples of any dtype to float32 with full scale 1."""
    if values.dtype.kind == "f":
        with np.errstate(over="ignore"):  # as above
            return values.astype(np.float32, copy=False)
    half = 2.0 ** (8 * values.dtype.itemsize - 1)
    if values.dtype.kind == "i":
        return values.astype(np.float32) / np.float32(half)
    return ((values.astype(np.float64) - half) / half).astype(np.float32)


def _resampled(pieces: Pieces, max_duration_s: float, to_rate: int) -> np.ndarray:
    """Resample pieces (T,) of one rate to samples (T,) at ``to_rate``."""
    parts: list[np.ndarray] = []
    resampler, count, at = None, 0, None
    for rate, values in pieces:
        count += len(values)
        if count > max_duration_s * rate:
            raise _too_long(max_duration_s)
        if at not in (None, rate):
            raise MediaError("The sample rate changes within the sound; export it again at one rate.")
        at = rate
        if rate == to_rate:
            parts.append(values)
        elif len(values):
            resampler = resampler or _av().AudioResampler(format="fltp", layout="mono", rate=to_rate)
            frame = _av().AudioFrame.from_ndarray(np.ascontiguousarray(values[None]), format="fltp", layout="mono")
            frame.sample_rate = rate
            parts.extend(piece.to_ndarray()[0] for piece in resampler.resample(frame))
    if resampler is not None:
        parts.extend(piece.to_ndarray()[0] for piece in resampler.resample(None))
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)


def _too_long(max_duration_s: float) -> MediaError:
    limit = f"{max_duration_s / 60:g} minutes" if max_duration_s >= 120 else f"{max_duration_s:g} seconds"
    return MediaError(f"The sound is longer than the {limit} taken here; cut it to the part that matters.")
