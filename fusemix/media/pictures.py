"""Decoding of pictures of any common format to upright 8-bit RGB, with transparency on white."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from numbers import Real
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, TiffImagePlugin

from fusemix.media.sentences import MediaError, check_file, one_line

logger = logging.getLogger(__name__)

MAX_PIXELS = 100_000_000  # a picture of 10,000 x 10,000
MAX_SIDE = 20_000  # pixels
MAX_ASPECT = 20  # longer side / shorter side
# Detected by content, not by name. Left out: formats whose decoders start other programs (EPS, WMF) and scientific
# formats. TGA, whose files have no magic number, is tried last.
FORMATS = (
    *("PNG", "JPEG", "MPO", "WEBP", "GIF", "AVIF", "HEIF", "TIFF", "BMP", "DIB", "JPEG2000", "PPM"),
    *("ICO", "QOI", "DDS", "PSD", "TGA"),
)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PNG = b"\x89PNG\r\n\x1a\n"
_ORIENTATION = 0x0112  # Exif 2.3, 4.6.4: 1 to 8, as in _TURNS
# TIFF 6.0: BitsPerSample, PhotometricInterpretation, MaxSampleValue, SMaxSampleValue
_BITS, _PHOTOMETRIC, _MAX_SAMPLE, _MAX_SAMPLE_FLOAT = 258, 262, 281, 341
_WHITES = {"int": (255.0, 4095.0, 65535.0), "float": (1.0, 255.0, 65535.0)}
_OVERSHOOT = 0.1  # share of white by which resampling may overshoot at the edges of float pictures; clipped


def load_image(source: Any) -> Image.Image:
    """Decode a picture to upright RGB; transparency is put on white.

    The orientation is that of EXIF or XMP; if it cannot be read, the picture is not turned. Values wider than a byte
    are scaled so that the white that the file declares becomes 255. Without a declaration, white is the smallest of 1
    (floats), 255, 4095 (12 bits, integers) and 65535 that is not exceeded.

    Args:
        source: A path, bytes, a PIL image, or an array (H, W), (H, W, 3) or (H, W, 4). The format of a file is
            detected by its content, among :data:`FORMATS`. Of an animated picture the first frame is used.

    Returns:
        An RGB image.

    Raises:
        MediaError: If the file is missing, empty, damaged, no picture, or larger than :data:`MAX_PIXELS`,
            :data:`MAX_SIDE` or :data:`MAX_ASPECT` allow, or if its white value is unknown.
    """
    if isinstance(source, np.ndarray):
        image = _from_array(source)
    elif isinstance(source, Image.Image):
        image = source
    else:
        image = _open(source)
    _check_size(image)
    try:
        declared, negative, deep = _declared_white(image), _is_negative(image), _has_deep_colours(image)
        upright = _upright(image, ours=image is not source)
        _check_size(upright)  # a file may hold several pictures, as ICO does, each of its own size
        rgb = _to_rgb(upright, declared, negative=negative)
        if deep and 0 < np.asarray(rgb).max() < 16:
            raise MediaError(
                "The picture holds colours of 16 bits, none above 4095 of 65535: of 12 bits only four would be left. "
                "Export it with 8 bits per channel."
            )
        return rgb
    except MediaError:
        raise
    except Exception as error:  # decoders of damaged files raise errors of every type
        raise MediaError(f"The picture is damaged or cut short ({_why(error)}); choose another one.") from error


def _open(source: Any) -> Image.Image:
    name = check_file(source, "picture")
    Image.init()
    known = [name for name in FORMATS if name in Image.OPEN]  # AVIF and HEIF need libraries of their own
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about sizes, which _check_size checks, and metadata
            try:
                return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=known)
            except ValueError:
                plain = _without_notes(source if isinstance(source, bytes) else Path(source).read_bytes())
                return Image.open(io.BytesIO(plain), formats=known)
    except Image.DecompressionBombError as error:
        raise MediaError(
            f"{name} has far more pixels than the {MAX_PIXELS // 10**6} million taken here; scale it down first."
        ) from error
    except Exception as error:  # as above
        raise MediaError(f"{name} is not a picture that can be read; send a PNG, JPEG, WebP or GIF.") from error


def _without_notes(data: bytes) -> bytes:
    """Remove texts and colour profiles, for whose length Pillow refuses a picture, from a PNG; nothing from others."""
    if not data.startswith(_PNG):
        return data
    kept, at = [_PNG], len(_PNG)
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")  # length, kind, content, checksum
        if data[at + 4 : at + 8] not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            kept.append(data[at:end])
        at = end
    return b"".join(kept)


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim not in (2, 3) or array.size == 0 or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise MediaError(f"Expected an array of shape (H, W), (H, W, 3) or (H, W, 4), got {array.shape}.")
    if array.dtype != np.uint8:
        raise MediaError(f"Expected picture values as uint8 in 0..255, got {array.dtype}.")
    return Image.fromarray(array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array)


def _check_size(image: Image.Image) -> None:
    """Refuse what is too large or too narrow.

    A strip is refused rather than padded: encoders read a square, in which it would be a line or a small crop, and
    CLIP's processor first scales the shorter side to 224 pixels, which makes the other one huge.
    """
    size = f"{image.width:,} x {image.height:,} pixels"
    if min(image.size) < 1:
        raise MediaError("The picture has no pixels; choose another one.")
    if image.width * image.height > MAX_PIXELS:
        raise MediaError(
            f"The picture has {size}, more than the {MAX_PIXELS // 10**6} million taken here; scale it down first."
        )
    if max(image.size) > MAX_ASPECT * min(image.size):
        raise MediaError(
            f"The picture has {size}: its longer side is more than {MAX_ASPECT} times the shorter; cut out a part."
        )
    if max(image.size) > MAX_SIDE:
        raise MediaError(f"The picture has {size}, a side above the {MAX_SIDE:,} taken here; scale it down first.")


def _upright(image: Image.Image, *, ours: bool) -> Image.Image:
    """Decode a picture and turn it according to its orientation.

    ``ImageOps.exif_transpose`` rewrites all of EXIF and fails on invalid entries. Nothing else of EXIF is needed, so it
    is removed first from pictures opened here.
    """
    orientation = _orientation(image)
    if ours:
        for tag in set(image.getexif()) - {_ORIENTATION}:
            del image.getexif()[tag]
    image.load()
    if isinstance(image, TiffImagePlugin.TiffImageFile) and ours:
        return image  # Pillow turns TIFF itself
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _orientation(image: Image.Image) -> int:
    """Return the orientation, 1 to 8; 1 (as stored) if it cannot be read."""
    try:
        value = image.getexif().get(_ORIENTATION)
    except Exception as error:
        logger.info("EXIF cannot be read: %s.", _why(error))
        value = None
    exif = image.info.get("exif")
    if value is None and isinstance(exif, bytes):  # Pillow gives up at the first tag it cannot read
        value = _orientation_in(exif.removeprefix(b"Exif\0\0"))
    return int(float(value)) if isinstance(value, Real) and value in _TURNS else 1


def _orientation_in(exif: bytes) -> int | None:
    """Read the orientation in the first directory of EXIF, whose entries have 12 bytes: tag, type, count, value."""
    order: Literal["little", "big"] = "little" if exif[:2] == b"II" else "big"
    start = int.from_bytes(exif[4:8], order)
    count = int.from_bytes(exif[start : start + 2], order)
    for at in range(start + 2, min(start + 2 + 12 * count, len(exif)), 12):
        if int.from_bytes(exif[at : at + 2], order) == _ORIENTATION:
            return int.from_bytes(exif[at + 8 : at + 10], order)
    return None


def _declared_white(image: Image.Image) -> float | None:
    """Return the white value that the file declares, or the largest of its bit depth; None if it states neither."""
    bits: float | None = None
    opened = getattr(image, "fp", None)
    if image.format == "PNG" and image.mode.startswith("I") and opened and not opened.closed:
        bits = _png_bits(opened)
    elif isinstance(image, TiffImagePlugin.TiffImageFile):
        for tag in (_MAX_SAMPLE_FLOAT, _MAX_SAMPLE):
            declared = next(_numbers(image, tag), None)
            if declared is not None and declared > 0:
                return declared
        bits = next(_numbers(image, _BITS), None)
    return 2.0**bits - 1 if bits is not None and 8 < bits < 16 else None


def _numbers(image: TiffImagePlugin.TiffImageFile, tag: int) -> Iterator[float]:
    value = image.tag_v2.get(tag, ())
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, Real) and np.isfinite(float(number)):
            yield float(number)


def _png_bits(opened: Any) -> int | None:
    """Read the significant bits from chunk sBIT before the pixels, which Pillow ignores."""
    at, found = opened.tell(), None
    opened.seek(8)
    while found is None and len(head := opened.read(8)) == 8 and head[4:] not in (b"IDAT", b"IEND"):
        length = int.from_bytes(head[:4], "big")
        if head[4:] == b"sBIT":
            found = int.from_bytes(opened.read(1), "big")
        opened.seek(opened.tell() + length + 4)
    opened.seek(at)
    return found


def _is_negative(image: Image.Image) -> bool:
    """Return whether 0 is white, which Pillow handles for pictures of 8 bits only."""
    return isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(_PHOTOMETRIC) == 0


def _has_deep_colours(image: Image.Image) -> bool:
    """Return whether colours of 16 bits are about to be decoded, of which Pillow keeps the upper eight."""
    return image.mode in ("RGB", "RGBA") and ";16" in str(getattr(image, "tile", ""))


def _to_rgb(image: Image.Image, declared: float | None, *, negative: bool) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        grey = _scaled(np.asarray(image, dtype=np.float32), declared, "float" if image.mode == "F" else "int")
        grey = 255 - grey if negative else grey
        clear = image.info.get("transparency")
        if isinstance(clear, int):  # one value of a PNG
            grey[np.asarray(image) == clear] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        if image.mode == "La":
            image = image.convert("LA")
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _scaled(values: np.ndarray, declared: float | None, kind: str) -> np.ndarray:
    """Scale values (H, W) to uint8, so that white becomes 255."""
    if not np.isfinite(values).all():
        raise MediaError("The picture holds values that are not numbers; export it again.")
    low, high = float(values.min()), float(values.max())
    room = 1 + _OVERSHOOT if kind == "float" else 1
    whites = (declared, 65535.0) if declared and kind == "int" else (declared,) if declared else _WHITES[kind]
    white = next((white for white in whites if high <= white * room), None)
    unclear = kind == "float" and declared is None and 1 + _OVERSHOOT < high < 255 * _OVERSHOOT
    below = _OVERSHOOT * min(white or 0, max(high, 1.0)) if kind == "float" else 0
    if white is None or unclear or low < -below:
        expected = f"0 to {declared:g}" if declared else "0 to 1, or to 255" if kind == "float" else "0 to 65535"
        raise MediaError(
            f"The picture holds values from {low:.4g} to {high:.4g}; expected {expected}. Scale them, or say which is "
            "white in the file (TIFF SMaxSampleValue)."
        )
    if declared is None and white == 4095:
        logger.info("The picture's values need 12 of 16 bits; 4095 is taken for white.")
    scaled: np.ndarray = np.rint(values / np.float32(white) * 255).clip(0, 255).astype(np.uint8)
    return scaled


def _why(error: Exception) -> str:
    return one_line(str(error)) or type(error).__name__
