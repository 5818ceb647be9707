"""Decoding pictures and sounds, with limits, into what the encoders take.

Every failure is a :class:`MediaError` with one calm sentence fit for a visitor.
"""

from __future__ import annotations

import io
import warnings
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fusemix.extras import extra

SAMPLE_RATE = 16_000  # Hz, what Whisper hears
MAX_PIXELS = 100_000_000  # a picture of 10,000 x 10,000
MAX_FILE_BYTES = 200 * 1024 * 1024
MAX_DURATION_S = 600.0  # ten minutes of sound
MIN_DURATION_S = 0.05
# Demuxers that read one file and nothing else: a playlist may name other files and addresses.
_AUDIO_FORMATS = "wav,w64,aiff,au,caf,mp3,ogg,flac,mov,mp4,m4a,3gp,matroska,webm,aac,amr,avi,asf,mpeg,mpegts,wv,ape,tta"
SILENCE_PEAK = 1e-4  # of full scale; below this nothing can be heard
LOUDEST_PEAK = 1e6  # of full scale; above this the encoders overflow


class MediaError(ValueError):
    """A picture or a sound that cannot be used, said in one sentence."""


def load_image(source: Any) -> Image.Image:
    """Decode a picture to RGB, upright; transparency goes onto white.

    Args:
        source: A path, bytes, a PIL image, or an array (H, W), (H, W, 3) or (H, W, 4).
            Of an animated picture the first frame is taken; 16-bit pictures are scaled to 8.

    Returns:
        An RGB image.

    Raises:
        MediaError: If the file is missing, empty, too large or no picture.
    """
    if isinstance(source, Image.Image):
        image = source
    elif isinstance(source, np.ndarray):
        image = _image_from_array(source)
    else:
        image = _open_image(source)
    if image.width * image.height > MAX_PIXELS:
        raise MediaError(
            f"The picture has {image.width} x {image.height} pixels, more than the {MAX_PIXELS // 10**6} million "
            "taken here; scale it down first."
        )
    if image.width < 1 or image.height < 1:
        raise MediaError("The picture has no pixels; choose another one.")
    try:
        return _to_rgb(ImageOps.exif_transpose(image))
    except (OSError, ValueError, SyntaxError, MemoryError) as error:
        raise MediaError(f"The picture is damaged or cut short ({error}); choose another one.") from error


def _open_image(source: Any) -> Image.Image:
    name = _check_file(source, "picture")
    opened = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS decides, below
            return Image.open(opened)
    except Image.DecompressionBombError as error:
        raise MediaError(
            f"The picture {name} has far more pixels than the {MAX_PIXELS // 10**6} million taken here; "
            "scale it down first."
        ) from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise MediaError(f"{name} is not a picture that can be read; send a PNG, JPEG, WebP or GIF.") from error


def _image_from_array(array: np.ndarray) -> Image.Image:
    if array.ndim not in (2, 3) or array.size == 0 or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise MediaError(f"Expected an array of shape (H, W), (H, W, 3) or (H, W, 4), got {array.shape}.")
    if array.dtype != np.uint8:
        raise MediaError(f"Expected picture values as uint8 in 0..255, got {array.dtype}.")
    return Image.fromarray(array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image, dtype=np.float32)
        if not np.isfinite(values).all():
            raise MediaError("The picture holds values that are not numbers; export it again.")
        top = 65535.0 if image.mode != "F" and values.max(initial=0) > 255 else max(255.0, float(values.max(initial=0)))
        return Image.fromarray((values / top * 255).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def load_audio(source: Any, *, max_duration_s: float = MAX_DURATION_S, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    """Decode a sound to mono float32, at 16 kHz unless another rate is asked for.

    Args:
        source: A path or bytes of any format FFmpeg's libraries read (wav, flac, ogg, opus,
            mp3, m4a, webm, ...), or a tuple (sample_rate in Hz, samples of shape (T,) or (T, C),
            integer or float in [-1, 1]).
        max_duration_s: Longest sound taken, in seconds; decoding stops there, so that a very
            long file costs no more memory than a short one.
        sample_rate: Rate of the samples returned, in Hz; resampled once, straight from the source.

    Returns:
        Samples, shape (T,), float32 in about [-1, 1].

    Raises:
        MediaError: If missing, empty, damaged, too long, too short, silent or no sound.
    """
    if isinstance(source, tuple):
        if len(source) != 2:
            raise MediaError(f"Expected a sound as (sample rate in Hz, samples), got a tuple of {len(source)} values.")
        samples = _resample_array(*source, max_duration_s=max_duration_s, to_rate=sample_rate)
    else:
        samples = _decode_audio(source, max_duration_s, sample_rate)
    if not np.isfinite(samples).all():
        raise MediaError("The sound holds values that are not numbers; record it again.")
    if len(samples) < MIN_DURATION_S * sample_rate:
        raise MediaError(f"The sound lasts {len(samples) / sample_rate:.2f} s; at least {MIN_DURATION_S} s is needed.")
    peak = np.abs(samples).max()
    if peak < SILENCE_PEAK:
        raise MediaError("The sound is silent; check the microphone and record it again.")
    if peak > LOUDEST_PEAK:
        raise MediaError(f"The sound goes up to {peak:.2g} times full scale; expected samples in -1 to 1.")
    return samples


def _decode_audio(source: Any, max_duration_s: float, sample_rate: int) -> np.ndarray:
    av = _av()
    name = _check_file(source, "sound")
    opened = io.BytesIO(source) if isinstance(source, bytes) else str(source)
    parts: list[np.ndarray] = []
    count = 0
    try:
        options = {"format_whitelist": _AUDIO_FORMATS, "protocol_whitelist": "file"}
        with av.open(opened, mode="r", metadata_errors="ignore", options=options) as container:
            if not container.streams.audio:
                raise MediaError(f"{name} holds no sound; send a wav, mp3, ogg, flac, m4a or webm recording.")
            resampler = _resampler(sample_rate)
            for frame in container.decode(container.streams.audio[0]):
                for piece in resampler.resample(frame):
                    parts.append(piece.to_ndarray()[0])
                    count += parts[-1].size
                if count > max_duration_s * sample_rate:
                    raise _too_long(max_duration_s)
            for piece in resampler.resample(None):
                parts.append(piece.to_ndarray()[0])
    except (av.FFmpegError, OSError, ValueError) as error:
        if isinstance(error, MediaError):
            raise
        if count < MIN_DURATION_S * sample_rate:
            raise MediaError(
                f"{name} is not a sound that can be read; send a wav, mp3, ogg, flac, m4a or webm recording."
            ) from error
        raise MediaError(f"{name} is damaged or cut short; record or export it again.") from error
    return np.concatenate(parts).astype(np.float32, copy=False) if parts else np.zeros(0, dtype=np.float32)


def _resample_array(sample_rate: float, samples: np.ndarray, *, max_duration_s: float, to_rate: int) -> np.ndarray:
    try:
        samples = np.asarray(samples)
    except ValueError as error:
        raise MediaError("Expected samples of shape (T,) or (T, channels), got rows of unequal length.") from error
    if samples.ndim not in (1, 2) or samples.dtype.kind not in "iuf" or (samples.ndim == 2 and samples.shape[1] == 0):
        raise MediaError(f"Expected samples of shape (T,) or (T, channels), got {samples.shape} {samples.dtype}.")
    if isinstance(sample_rate, bool) or not isinstance(sample_rate, Real) or not 1000 <= sample_rate <= 768_000:
        raise MediaError(f"Expected a sample rate between 1,000 and 768,000 Hz, got {shown(sample_rate)}.")
    if len(samples) > max_duration_s * sample_rate:
        raise _too_long(max_duration_s)
    scale = float(np.iinfo(samples.dtype).max) if np.issubdtype(samples.dtype, np.integer) else 1.0
    with np.errstate(over="ignore"):  # infinite values are refused by the caller
        mono = samples.astype(np.float32) / scale
    if np.issubdtype(samples.dtype, np.unsignedinteger):
        mono = mono * 2 - 1
    mono = mono.mean(axis=1) if mono.ndim == 2 else mono
    if len(mono) == 0 or int(sample_rate) == to_rate:
        return mono
    frame = _av().AudioFrame.from_ndarray(np.ascontiguousarray(mono[None]), format="fltp", layout="mono")
    frame.sample_rate = int(sample_rate)
    resampler = _resampler(to_rate)
    pieces = [piece.to_ndarray()[0] for piece in (*resampler.resample(frame), *resampler.resample(None))]
    return np.concatenate(pieces or [mono[:0]]).astype(np.float32, copy=False)


def _av() -> Any:
    """PyAV, which only sounds need."""
    with extra("audio", "Reading sounds"):
        import av
    return av


def _resampler(sample_rate: int) -> Any:
    return _av().AudioResampler(format="fltp", layout="mono", rate=sample_rate)


def _too_long(max_duration_s: float) -> MediaError:
    limit = f"{max_duration_s / 60:g} minutes" if max_duration_s >= 120 else f"{max_duration_s:g} seconds"
    return MediaError(f"The sound is longer than the {limit} taken here; cut it to the part that matters.")


def shown(value: Any, n_chars: int = 40) -> str:
    """A value of any type for a sentence: short, on one line."""
    if isinstance(value, int) and abs(value) >= 10**n_chars:  # Python refuses to print the longest ones
        return "a number too long to print"
    text = repr(value) if isinstance(value, str | int | float | None) else type(value).__name__
    return text if len(text) <= n_chars else f"{text[:n_chars]}…"


def one_line(name: str, n_chars: int = 80) -> str:
    """The name of a file, or other text from outside, for a sentence."""
    text = " ".join("".join(c if c.isprintable() else " " for c in name).split())
    return text if len(text) <= n_chars else f"{text[:n_chars]}…"


def _check_file(source: Any, kind: str) -> str:
    """The name to show, once the file is known to exist, to hold bytes and not to be huge."""
    if isinstance(source, bytes):
        size, name = len(source), f"The {kind}"
    elif isinstance(source, str | Path):
        path = Path(source)
        try:
            found = path.is_file()
        except (OSError, ValueError):
            found = False
        if not found:
            raise MediaError(f"There is no {kind} file {shown(str(source), 200)}; check the path.")
        size, name = path.stat().st_size, one_line(path.name)
    else:
        raise MediaError(f"Expected a {kind} as a path, bytes or decoded values, got {type(source).__name__}.")
    if size == 0:
        raise MediaError(f"{name} is empty (0 bytes); choose another {kind}.")
    if size > MAX_FILE_BYTES:
        raise MediaError(
            f"{name} has {size / 2**20:.0f} MB, more than the {MAX_FILE_BYTES // 2**20} MB taken here; make it smaller."
        )
    return name
