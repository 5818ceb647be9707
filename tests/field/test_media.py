"""Pictures and sounds as people have them: same sound, same samples; a picture that can be seen is seen."""

import io
import itertools
import logging
import re
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from PIL import Image, TiffImagePlugin

import fusemix.media
from demo import ui, uploads
from demo.collection import MAX_ITEMS
from fusemix.media import (
    MAX_ASPECT,
    MAX_CHANNELS,
    MAX_SIDE,
    SAMPLE_RATE,
    MediaError,
    load_audio,
    load_image,
    pictures,
    sounds,
)
from tests.conftest import tone

pytest.importorskip("hypothesis")
from hypothesis import example, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

pytestmark = pytest.mark.field

INPUTS = Path(__file__).parent / "inputs"
COLOURS = np.random.default_rng(0).integers(0, 255, (32, 48, 3), dtype=np.uint8)
PICTURE = Image.fromarray(COLOURS)
SMOOTH = np.linspace(0, 255, 48 * 32).reshape(32, 48).round().astype(np.uint8)


def saved(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def grey(source):
    return np.asarray(load_image(source))[:, :, 0].astype(int)


# ---- sounds


def wav(samples, rate=SAMPLE_RATE, form="WAV", subtype="PCM_16"):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=form, subtype=subtype)
    return buffer.getvalue()


def both_ways(data):
    """Samples of a file as the library decodes it, and as soundfile does."""
    samples, rate = soundfile.read(io.BytesIO(data))
    return load_audio(data), load_audio((rate, samples))


def test_stereo_of_two_equal_channels_is_as_loud_as_mono():
    mono = load_audio(INPUTS / "same-mono.wav")
    for heard in both_ways((INPUTS / "equal-stereo.wav").read_bytes()):
        np.testing.assert_allclose(heard, mono, atol=1e-4)


def test_channels_in_opposite_phase_are_heard_as_the_first():
    samples, rate = soundfile.read(INPUTS / "antiphase-stereo.wav")
    for heard in both_ways((INPUTS / "antiphase-stereo.wav").read_bytes()):
        np.testing.assert_allclose(heard, load_audio((rate, samples[:, 0])), atol=1e-4)


def test_of_channels_that_cancel_the_loudest_is_heard():
    loud, soft = tone(440), 0.5 * tone(550)
    channels = np.stack([soft, loud, -soft, -loud], axis=1)
    for heard in both_ways(wav(channels)):
        np.testing.assert_allclose(heard, loud, atol=1e-4)


@pytest.mark.parametrize("count", [2, 9, 16, MAX_CHANNELS])
def test_one_sounding_channel_among_silent_ones_is_still_the_mean(count):
    channels = np.zeros((8000, count))
    channels[:, -1] = tone(440)
    for heard in both_ways(wav(channels)):
        np.testing.assert_allclose(heard, tone(440) / count, atol=1e-4)


def test_too_many_channels_are_refused():
    with pytest.raises(MediaError, match=f"65 channels; up to {MAX_CHANNELS}"):
        load_audio(wav(np.tile(tone(440)[:, None], (1, 65))))
    with pytest.raises(MediaError, match=f"65 channels; up to {MAX_CHANNELS}"):
        load_audio((SAMPLE_RATE, np.tile(tone(440)[:, None], (1, 65))))


DEPTHS = {"PCM_U8": 2**-7, "PCM_16": 2**-15, "PCM_24": 2**-23, "PCM_32": 2**-23, "FLOAT": 2**-23, "DOUBLE": 2**-23}
CONTAINERS = {"WAV": DEPTHS, "W64": DEPTHS, "AU": {k: v for k, v in DEPTHS.items() if k != "PCM_U8"},
              "AIFF": {k: v for k, v in DEPTHS.items() if k != "PCM_U8"},
              "CAF": {k: v for k, v in DEPTHS.items() if k != "PCM_U8"},
              "FLAC": {"PCM_16": 2**-15, "PCM_24": 2**-23}}  # fmt: skip
kinds = st.sampled_from([(form, subtype) for form, depths in CONTAINERS.items() for subtype in depths])


@settings(max_examples=120, deadline=None, database=None, derandomize=True)
@given(kinds, st.sampled_from([1, 2, 3, 6, 8, 9, 24]), st.sampled_from([8000, 16_000, 22_050, 44_100, 48_000]))
def test_the_same_sound_gives_the_same_samples_whatever_the_file(kind, count, rate):
    (form, subtype), step = kind, CONTAINERS[kind[0]][kind[1]]
    if form == "FLAC" and count > 8:
        count = 8
    mono = tone(440, seconds=0.1, sample_rate=rate)
    expected = load_audio((rate, mono))
    heard, same = both_ways(wav(np.tile(mono[:, None], (1, count)), rate, form, subtype))
    assert heard.dtype == same.dtype == np.float32 and len(heard) == len(same) == len(expected)
    np.testing.assert_allclose(heard, expected, atol=2 * step + 1e-6)
    np.testing.assert_allclose(heard, same, atol=1e-6)


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "i1", "i2", "i4", "i8", "f2", "f4", "f8"])
def test_samples_of_every_dtype_are_centred_and_scaled_by_half_their_range(dtype):
    dtype, wanted = np.dtype(dtype), tone(440)
    half = 2.0 ** (8 * dtype.itemsize - 1)
    values = wanted if dtype.kind == "f" else np.round(wanted * half) + (half if dtype.kind == "u" else 0)
    heard = load_audio((SAMPLE_RATE, values.astype(dtype)))
    np.testing.assert_allclose(heard, wanted, atol=max(1 / half if dtype.kind != "f" else 0, 2**-11))
    assert abs(heard.mean()) < 1e-2


def test_a_compressed_stereo_recording_is_as_loud_as_its_mono():
    for form, subtype in (("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III"), ("OGG", "OPUS")):
        mono, stereo = tone(440, seconds=1), np.tile(tone(440, seconds=1)[:, None], (1, 2))
        levels = [
            np.sqrt((load_audio(wav(samples, form=form, subtype=subtype)) ** 2).mean()) for samples in (mono, stereo)
        ]
        assert levels[1] == pytest.approx(levels[0], rel=0.03)


@pytest.mark.parametrize("rate", [500, 999, 768_001, 10**9])
def test_sample_rates_out_of_range_are_refused_in_files_as_in_arrays(rate):
    data = bytearray(wav(tone(440)))
    data[24:32] = struct.pack("<II", rate, 2 * rate)
    for source in (bytes(data), (rate, tone(440))):
        with pytest.raises(MediaError, match="sample rate between 1,000 and 768,000 Hz|not a sound"):
            load_audio(source)


def test_a_long_file_of_many_channels_is_refused_by_its_duration():
    with pytest.raises(MediaError, match="longer than the 1 seconds"):
        load_audio(wav(np.tile(tone(440, seconds=1.1)[:, None], (1, 9))), max_duration_s=1)
    assert len(load_audio(wav(tone(440, seconds=1, sample_rate=44_100), 44_100), max_duration_s=1)) > 15_900


def test_a_file_that_changes_its_rate_on_the_way_is_refused():
    with pytest.raises(MediaError, match="changes its sample rate|damaged"):
        load_audio(wav(tone(440), 16_000, "OGG", "VORBIS") + wav(tone(440), 48_000, "OGG", "VORBIS"))


@pytest.mark.parametrize(("form", "subtype", "count"), [("OGG", "VORBIS", 7), ("OGG", "VORBIS", 8), ("OGG", "OPUS", 8)])
def test_eight_channels_side_by_side_in_memory_do_not_end_the_process(form, subtype, count):
    """PyAV reads beyond the planes of such a frame, so this is run apart."""
    child = (
        "import io, numpy as np, soundfile\nfrom fusemix.media import load_audio\n"
        "tone, data = 0.5 * np.sin(np.arange(48_000) / 20), io.BytesIO()\n"
        f"soundfile.write(data, np.tile(tone[:, None], (1, {count})), 48_000, format={form!r}, subtype={subtype!r})\n"
        "print(len(load_audio(data.getvalue())), np.abs(load_audio(data.getvalue())).max() > 0.3)"
    )
    done = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, cwd=INPUTS.parents[2])
    assert (done.returncode, done.stdout) == (0, "16000 True\n"), done.stderr


@pytest.mark.parametrize(("layout", "count"), [("7.1", 8), ("hexadecagonal", 16), ("22.2", 24)])
def test_planes_of_many_channels_keep_their_samples(layout, count):
    samples = np.random.default_rng(0).uniform(-1, 1, (800, count)).astype(np.float32)
    packed = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="flt", layout=layout)
    packed.sample_rate = SAMPLE_RATE
    (planar,) = av.AudioResampler(format="fltp", layout=layout, rate=SAMPLE_RATE).resample(packed)
    assert planar.format.is_planar
    np.testing.assert_array_equal(sounds._values(planar), samples)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_integers_in_a_wider_type_are_not_called_silent(dtype):
    samples = np.round(tone(440) * 2**15)
    with pytest.raises(MediaError, match=f"hardly any of {np.dtype(dtype)}'s range; .* convert them to int16"):
        load_audio((SAMPLE_RATE, samples.astype(dtype)))


@pytest.mark.parametrize("source", [(SAMPLE_RATE, tone(440) * 2**15), wav(tone(440) * 2**15, subtype="FLOAT")])
def test_floats_that_are_integers_nobody_divided_are_refused(source):
    with pytest.raises(MediaError, match=r"goes up to 1\.6e\+04 times full scale; expected samples in -1 to 1"):
        load_audio(source)


def test_floats_a_little_above_full_scale_stay_as_they_are():
    for source in ((SAMPLE_RATE, 8 * tone(440)), wav(8 * tone(440), subtype="FLOAT")):
        np.testing.assert_allclose(load_audio(source), 8 * tone(440), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["file:a.wav", "http:a.wav", "concat:a.wav", "a%03d.wav", "-i.wav"])
def test_a_file_is_read_whatever_its_name_looks_like(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes((INPUTS / "same-mono.wav").read_bytes())
    np.testing.assert_array_equal(load_audio(name), load_audio(INPUTS / "same-mono.wav"))


def test_24_bits_in_32_are_named_and_not_taken_for_floats():
    samples = (tone(440) * 2**31).astype("<i4").tobytes()
    head = struct.pack("<HHIIHHHHIH14s", 0xFFFE, 1, SAMPLE_RATE, 4 * SAMPLE_RATE, 4, 32, 22, 24, 0, 1,
                       bytes.fromhex("000000001000800000aa00389b71"))  # fmt: skip
    body = b"WAVEfmt " + struct.pack("<I", len(head)) + head + b"data" + struct.pack("<I", len(samples)) + samples
    with pytest.raises(MediaError, match="24-bit samples in 32 bits"):
        load_audio(b"RIFF" + struct.pack("<I", len(body)) + body)


# ---- pictures: what the file says about itself


def directory(entries, order="<"):
    """EXIF of entries (tag, type, count, bytes of the value)."""
    out, data, base = struct.pack(order + "H", len(entries)), b"", 8 + 2 + 12 * len(entries) + 4
    for tag, kind, count, value in sorted(entries):
        place = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack(order + "I", base + len(data))
        data += value if len(value) > 4 else b""
        out += struct.pack(order + "HHI", tag, kind, count) + place
    return (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8) + out + bytes(4) + data


def jpeg(exif):
    data, segment = saved(PICTURE, "JPEG"), b"Exif\0\0" + exif
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:]


def png(exif):
    data = saved(PICTURE, "PNG")
    return data[:33] + chunk(b"eXIf", exif) + data[33:]


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def webp(exif):
    return saved(PICTURE, "WEBP", exif=b"Exif\0\0" + exif)


odd_tags = st.sampled_from([0x10E, 0x10F, 0x11A, 0x11B, 0x128, 0x132, 0x8769, 0x8825, 0x9201, 0x9204, 0x927C, 0xA005])
odd_values = st.sampled_from(
    [b"", bytes(8), b"\xff" * 8, struct.pack("<ii", -1, 0), struct.pack("<ii", 0, 0), b"\xff\xff\xff\x7f" + bytes(4)]
) | st.binary(max_size=12)  # fmt: skip
odd_entries = st.lists(
    st.tuples(odd_tags, st.integers(0, 17), st.sampled_from([0, 1, 2, 2**16, 2**31]), odd_values), max_size=3
)


@settings(max_examples=250, deadline=None, database=None, derandomize=True)
@given(st.sampled_from([jpeg, png, webp]), odd_entries, st.sampled_from("<>"), st.integers(0, 9))
@example(jpeg, [(0x9201, 10, 1, struct.pack("<ii", -1, 0))], "<", 6)
@example(jpeg, [(0x10E, 2, 2**31, b"\xff" * 8)], ">", 8)
def test_odd_exif_stops_no_picture_and_its_orientation_is_honoured(form, entries, order, orientation):
    turn = (0x112, 3, 1, struct.pack(order + "H", orientation))
    image = load_image(form(directory([turn, *entries], order)))
    turned = pictures._TURNS.get(orientation)
    with Image.open(io.BytesIO(form(directory([], order)))) as plain:
        expected = plain.convert("RGB")
    expected = expected if turned is None else expected.transpose(turned)
    assert np.array_equal(np.asarray(image), np.asarray(expected))


def test_the_exif_that_was_reported_is_upright():
    assert load_image(INPUTS / "exif-rational-minus-one-by-zero.jpg").size == (32, 48)


@pytest.mark.parametrize("exif", [b"", b"II", b"MM\0*\0\0\0\x08\xff\xff", b"\xff" * 40, b"II*\0" + b"\xff" * 20])
def test_exif_that_is_no_directory_leaves_the_picture_as_it_is_stored(exif):
    assert load_image(jpeg(exif)).size == load_image(png(exif)).size == PICTURE.size


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_with_an_odd_sub_directory_is_turned_once(orientation):
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[0x112], info[0x8769] = orientation, 7
    data = saved(PICTURE, "TIFF", tiffinfo=info)
    turned = pictures._TURNS.get(orientation)
    expected = PICTURE if turned is None else PICTURE.transpose(turned)
    assert np.array_equal(np.asarray(load_image(data)), np.asarray(expected))


def test_a_picture_that_the_caller_opened_keeps_its_exif_and_is_upright():
    with Image.open(io.BytesIO(jpeg(directory([(0x112, 3, 1, b"\x06\0")])))) as opened:
        assert load_image(opened).size == (32, 48) and opened.size == (48, 32) and opened.getexif()[0x112] == 6


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_long_notes_inside_a_png_hide_no_picture(kind):
    """Such as a drawing program's history; Pillow refuses more than a megabyte of them."""
    packed = zlib.compress(bytes(2 * 10**6))
    note = b"x\0" + (b"\1\0\0\0" if kind == b"iTXt" else b"\0") + packed
    data = png(directory([(0x112, 3, 1, b"\x06\0")]))
    image = load_image(data[:33] + chunk(kind, note) + data[33:])
    assert np.array_equal(np.asarray(image), np.asarray(PICTURE.transpose(Image.Transpose.ROTATE_270)))


def test_far_too_many_pixels_are_told_with_the_name_once():
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    with pytest.raises(MediaError, match="^The picture has far more pixels than the 100 million"):
        load_image(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))


# ---- pictures: brightness and transparency


@pytest.mark.parametrize("alpha", [False, True])
def test_colours_of_12_bits_in_16_are_refused_and_not_nearly_black(alpha):
    def deep(bits):
        colours = np.concatenate([COLOURS, np.full((32, 48, 1), 255)], axis=2) if alpha else COLOURS
        rows = np.round(colours / 255 * (2**bits - 1)).astype(">u2").reshape(32, -1)
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", 48, 32, 16, 6 if alpha else 2, 0, 0, 0))
        packed = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
        return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", packed) + chunk(b"IEND", b"")

    assert np.abs(np.asarray(load_image(deep(16))).astype(int) - COLOURS).max() <= 1
    if not alpha:
        with pytest.raises(MediaError, match="colours of 16 bits, none above 4095 of 65535"):
            load_image(deep(12))
    black = Image.fromarray(np.zeros((32, 48, 3), np.uint8))
    assert load_image(black).getextrema() == ((0, 0),) * 3


def test_floats_from_0_to_1_are_as_bright_as_their_bytes():
    floats = Image.fromarray(SMOOTH.astype(np.float32) / 255)
    for source in (floats, saved(floats, "TIFF"), Image.fromarray(SMOOTH.astype(np.float32))):
        assert np.array_equal(grey(source), SMOOTH)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
@pytest.mark.parametrize("bits", [12, 16])
def test_12_and_16_bits_in_16_are_as_bright_as_their_bytes(form, bits, caplog):
    caplog.set_level(logging.INFO)
    wide = np.round(SMOOTH / 255 * (2**bits - 1)).astype(np.uint16)
    assert np.array_equal(grey(saved(Image.fromarray(wide), form)), SMOOTH)
    assert ("4095 is taken for white" in caplog.text) == (bits == 12)


def test_the_bits_that_a_file_declares_decide():
    wide = np.round(SMOOTH / 255 * 1023).astype(np.uint16)
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[281] = 1023
    assert np.array_equal(grey(saved(Image.fromarray(wide), "TIFF", tiffinfo=info)), SMOOTH)
    data = saved(Image.fromarray(wide), "PNG")
    assert np.array_equal(grey(data[:33] + chunk(b"sBIT", b"\x0a") + data[33:]), SMOOTH)
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[341], info.tagtype[341] = 4.0, 11
    assert np.array_equal(
        grey(saved(Image.fromarray(SMOOTH.astype(np.float32) / 255 * 4), "TIFF", tiffinfo=info)), SMOOTH
    )


def test_a_negative_of_16_bits_is_turned_round():
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[262] = 0
    data = saved(Image.fromarray(65535 - SMOOTH.astype(np.uint16) * 257), "TIFF")
    at = data.find(struct.pack("<HHI", 262, 3, 1))
    data = data[: at + 8] + struct.pack("<H", 0) + data[at + 10 :]
    assert np.array_equal(grey(data), SMOOTH)


@pytest.mark.parametrize(("low", "high"), [(0, 5), (0, 1e6), (-3, 1), (-1000, 3000)])
def test_floats_of_no_known_range_are_refused(low, high):
    with pytest.raises(MediaError, match=r"holds values from .* to .*; expected 0 to 1, or to 255"):
        load_image(Image.fromarray(np.linspace(low, high, 100, dtype=np.float32).reshape(10, 10)))


def transparent():
    """Pictures that are black where nobody sees it."""
    clear = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    yield "RGBA", clear
    yield "LA", clear.convert("LA")
    yield "RGBa", clear.convert("RGBa")
    yield "La", clear.convert("LA").convert("La")
    yield "PNG", saved(clear, "PNG")
    yield "WEBP", saved(clear, "WEBP", lossless=True)
    yield "palette", saved(Image.new("P", (40, 40), 0), "PNG", transparency=0)
    yield "one colour", saved(Image.new("RGB", (40, 40)), "PNG", transparency=(0, 0, 0))
    yield "one grey of 16 bits", saved(Image.fromarray(np.zeros((40, 40), np.uint16)), "PNG", transparency=0)


@pytest.mark.parametrize(
    ("kind", "source"), list(transparent()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_transparency_goes_onto_white(kind, source):
    assert (np.asarray(load_image(source)) == 255).all()


def test_a_drawing_that_starts_from_a_transparent_picture_starts_from_white():
    from fusemix.generation.generator import Generator
    from tests.generation.test_generator import tiny_small_pipeline

    generator = Generator(tiny_small_pipeline(8))
    clear, white = Image.new("RGBA", (40, 40), (0, 0, 0, 0)), Image.new("RGB", (40, 40), "white")
    assert (generator.encode(clear) == generator.encode(white)).all()


# ---- pictures: limits and damage


def test_a_strip_is_refused_before_it_costs_anything():
    with pytest.raises(MediaError, match="1 x 10,000 pixels: its longer side is more than 20 times"):
        load_image(INPUTS / "one-by-ten-thousand.png")
    assert load_image(Image.new("RGB", (10 * MAX_ASPECT, 10))).size == (10 * MAX_ASPECT, 10)
    with pytest.raises(MediaError, match="more than 20 times"):
        load_image(Image.new("RGB", (10, 10 * MAX_ASPECT + 1)))
    with pytest.raises(MediaError, match="a side above the 20,000"):
        load_image(Image.new("1", (MAX_SIDE + 1, 1100)))


def test_of_an_animation_the_first_frame_alone_is_decoded(monkeypatch):
    frames = [Image.new("L", (20, 20), shade) for shade in (0, 255)]
    data = saved(frames[0], "GIF", save_all=True, append_images=[frames[n % 2] for n in range(1, 300)])
    looked = []
    real = Image.Image.seek
    monkeypatch.setattr(Image.Image, "seek", lambda self, frame: looked.append(frame) or real(self, frame))
    assert grey(data).max() == 0 and not [frame for frame in looked if frame]


def damaged():
    rgba = PICTURE.convert("RGBA")
    for form in ("PNG", "JPEG", "WEBP", "GIF", "AVIF", "TIFF", "BMP", "JPEG2000", "PPM", "ICO", "QOI", "DDS", "TGA"):
        try:
            yield form, saved(rgba if form in ("QOI", "DDS", "ICO") else PICTURE, form)
        except (OSError, KeyError):
            continue
    header = b"8BPS\0\x01" + bytes(6) + struct.pack(">HIIHH", 3, 32, 48, 8, 3) + bytes(12) + b"\0\0"
    yield "PSD", header + COLOURS.transpose(2, 0, 1).tobytes()


DAMAGED = dict(damaged())


@settings(max_examples=300, deadline=None, database=None, derandomize=True)
@given(st.sampled_from(sorted(DAMAGED)), st.floats(0, 1), st.binary(min_size=1, max_size=9), st.booleans())
def test_a_damaged_picture_of_any_format_is_decoded_or_refused_in_one_sentence(form, place, new, cut):
    data, at = DAMAGED[form], int(place * len(DAMAGED[form]))
    data = data[:at] + (b"" if cut else new + data[at + len(new) :])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            assert load_image(data).mode == "RGB"
        except MediaError as error:
            assert re.fullmatch(r"[^\n]{10,300}[.]", str(error))


def test_every_format_of_the_list_that_can_be_written_here_is_read():
    assert {"AVIF", "QOI", "DDS", "PSD"} <= DAMAGED.keys() <= set(pictures.FORMATS)
    for form, data in DAMAGED.items():
        assert load_image(data).size == (PICTURE.size if form != "ICO" else (32, 21))  # no icon is larger than 32 here


@pytest.mark.parametrize("form", sorted({"EPS", "PCX", "SGI", "IM", "SPIDER"}))
def test_formats_that_are_not_on_the_list_are_not_tried(form):
    with pytest.raises(MediaError, match="not a picture that can be read"):
        load_image(saved(PICTURE.convert("F") if form == "SPIDER" else PICTURE, form))


# ---- the page that says all this


def test_the_numbers_of_the_page_are_those_of_the_code():
    page = (Path(__file__).parents[2] / "docs/media.md").read_text()
    low, high = fusemix.media.RATES
    numbers = [
        f"{fusemix.media.MAX_FILE_BYTES // 2**20} MB ({ui.MAX_FILE_SIZE.removesuffix('mb')} MB in the app)",
        f"{fusemix.media.MAX_PIXELS // 10**6} million pixels, a side of {MAX_SIDE:,}, "
        f"the longer side {MAX_ASPECT} times",
        f"{fusemix.media.MIN_DURATION_S} seconds to {fusemix.media.MAX_DURATION_S / 60:g} minutes, "
        f"{low:,} to {high:,} Hz, {MAX_CHANNELS} channels",
        f"{uploads.MAX_BYTES // 10**6} MB unpacked, {MAX_ITEMS:,} items, {uploads.MAX_MEMBERS:,} files in archives",
        f"{uploads.MAX_TABLE_BYTES // 10**6} MB, {uploads.MAX_COLUMNS} columns",
        f"more than {MAX_ASPECT} to 1",
        "floats: " + ", ".join(f"{white:g}" for white in pictures._WHITES["float"]) + ".",
        f"between {1 + pictures._OVERSHOOT:g} and {255 * pictures._OVERSHOOT:g}",
    ]
    assert [text for text in numbers if text not in page] == []
    assert all(f"{white:g}" in page for white in itertools.chain(*pictures._WHITES.values()))
