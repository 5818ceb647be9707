"""Everything a visitor may send: an answer or one calm sentence, through library, service and page alike."""

import re
import struct
import wave
import zlib
from fractions import Fraction

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from demo import ui
from demo.query import Query
from demo.tabs.search import SORRY, answer_page
from fusemix.media import MediaError
from tests.conftest import tone

RATE = 16_000
SENTENCE = re.compile(r"[^\n]{10,300}[.!?]")


def png_of_one_bit(path, side):
    """A white picture of side x side pixels at one bit each, written row by row: a few KB."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer, row = zlib.compressobj(9), b"\0" + b"\xff" * ((side + 7) // 8)
    pixels = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))


def encode(path, codec, sample_rate):
    """Half a second of tone as phones and browsers record it."""
    samples = tone(440, sample_rate=sample_rate).astype(np.float32)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=sample_rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate, frame.time_base = sample_rate, Fraction(1, sample_rate)
        resampler = av.AudioResampler(format=stream.format.name, layout="mono", rate=sample_rate)
        fifo = av.AudioFifo()
        for piece in resampler.resample(frame):
            fifo.write(piece)
        while piece := fifo.read(stream.codec_context.frame_size or 1024, partial=True):
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))


def three_hours_of_silence_as_wav(path):
    """A sparse file of 345 MB that takes no space on disk."""
    n_bytes = 3 * 3600 * RATE * 2
    with wave.open(str(path), "wb") as handle:
        handle.setparams((1, 2, RATE, 0, "NONE", ""))
        handle.writeframes(b"")
    with open(path, "r+b") as handle:
        handle.truncate(44 + n_bytes)
        for offset, value in ((4, 36 + n_bytes), (40, n_bytes)):
            handle.seek(offset)
            handle.write(struct.pack("<I", value))


def three_hours_of_tone_as_flac(path):
    with soundfile.SoundFile(path, "w", samplerate=1000, channels=1, format="FLAC") as handle:
        minute = tone(50, seconds=60, sample_rate=1000)
        for _ in range(180):
            handle.write(minute)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Name -> path of every odd file."""
    folder = tmp_path_factory.mktemp("odd")
    colours = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    picture = Image.fromarray(colours)
    picture.save(folder / "good.png")
    picture.convert("RGBA").save(folder / "rgba.png")
    picture.convert("CMYK").save(folder / "cmyk.jpg")
    picture.convert("LA").save(folder / "la.png")
    picture.convert("P").save(folder / "palette.png", transparency=0)
    Image.fromarray(colours[:, :, 0].astype(np.uint16) * 257).save(folder / "16bit.png")
    frames = [picture, picture.rotate(90), picture.rotate(180)]
    for name in ("moving.gif", "moving.webp", "moving.png"):
        frames[0].save(folder / name, save_all=True, append_images=frames[1:], duration=50)
    png_of_one_bit(folder / "huge.png", 20_000)
    png_of_one_bit(folder / "large.png", 11_000)
    (folder / "truncated.png").write_bytes((folder / "good.png").read_bytes()[:2000])
    soundfile.write(folder / "good.wav", tone(440), RATE)
    soundfile.write(folder / "silent.wav", np.zeros(RATE), RATE)
    soundfile.write(folder / "short.wav", tone(440, seconds=0.01), RATE)
    soundfile.write(folder / "nan.wav", np.full(RATE, np.nan), RATE, subtype="FLOAT")
    soundfile.write(folder / "good.mp3", tone(440, seconds=2), RATE, format="MP3")
    (folder / "truncated.wav").write_bytes((folder / "good.wav").read_bytes()[:30])
    (folder / "truncated.mp3").write_bytes((folder / "good.mp3").read_bytes()[:20])
    (folder / "words.wav").write_text("These are words, not a sound.\n" * 50)
    (folder / "words.png").write_text("These are words, not a picture.\n" * 50)
    (folder / "pickle.png").write_bytes(b"cos\nsystem\n(S'touch /tmp/pwned'\ntR.")
    for name in ("empty.png", "empty.wav"):
        (folder / name).write_bytes(b"")
    encode(folder / "phone.m4a", "aac", 44_100)
    encode(folder / "browser.webm", "libopus", 48_000)
    secret = folder / "good.mp3"
    (folder / "playlist.m3u8").write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile://{secret}\n#EXT-X-ENDLIST\n"
    )
    (folder / "list.ffconcat").write_text("ffconcat version 1.0\nfile 'good.wav'\n")
    three_hours_of_silence_as_wav(folder / "three-hours.wav")
    three_hours_of_tone_as_flac(folder / "three-hours.flac")
    return {path.name: path for path in folder.iterdir()}


ANSWERED = {
    "image": ["good.png", "rgba.png", "cmyk.jpg", "la.png", "palette.png", "16bit.png",
              "moving.gif", "moving.webp", "moving.png"],
    "audio": ["good.wav", "good.mp3", "phone.m4a", "browser.webm"],
}  # fmt: skip
REFUSED = {
    "image": {
        "huge.png": "scale it down",
        "large.png": "scale it down",
        "truncated.png": "damaged or cut short",
        "empty.png": r"empty \(0 bytes\)",
        "words.png": "not a picture",
        "pickle.png": "not a picture",
        "good.wav": "not a picture",
    },
    "audio": {
        "silent.wav": "silent",
        "short.wav": "at least 0.05 s",
        "nan.wav": "not numbers",
        "truncated.wav": "not a sound|empty|lasts 0.00 s",
        "truncated.mp3": "not a sound|damaged",
        "empty.wav": r"empty \(0 bytes\)",
        "words.wav": "not a sound",
        "good.png": "holds no sound|not a sound|silent|lasts",
        "playlist.m3u8": "not a sound",  # a list that names another file of this machine
        "list.ffconcat": "not a sound",
        "three-hours.wav": "more than the 200 MB|longer than",
        "three-hours.flac": "longer than the 10 minutes",
    },
}
TEXTS_ANSWERED = ["собака бежит по траве", "草の上を走る犬", "كلب يجري", "🐕 🌿", "a\x00dog\x1b[31m", "\ud800"]
TEXTS_REFUSED = {"": "empty", " \t\n ": "empty", "\x00": "empty", "x" * 100_000: "more than the 2,000"}


def ways(service, modality, query):
    """The same query through the library, the service and the page, which only knows texts and files."""
    search = getattr(service, f"search_{modality}")
    yield lambda: service.retriever.search(**{modality: query})["image"]
    yield lambda: search(query).hits["image"]
    yield lambda: answer_page(service, Query(**{modality: query}))


def assert_still_serving(service):
    assert service.search_text("a red square").hits["text"][0].item["id"] == "red"


def assert_answered(service, modality, query):
    library, plain, page = (way() for way in ways(service, modality, query))
    assert len(library) == len(plain) == 3
    assert "Nearest to" in page[0] and "Pictures" in page[1]


def assert_refused(service, modality, query, message):
    library, plain, page = ways(service, modality, query)
    for way in (library, plain):
        with pytest.raises(MediaError, match=message) as caught:
            way()
        assert SENTENCE.fullmatch(str(caught.value)), str(caught.value)
    if isinstance(query, str):
        line, results, _ = page()
        assert 'role="alert"' in line and SORRY not in line and results == ""
    assert_still_serving(service)


@pytest.mark.parametrize(("modality", "name"), [(m, name) for m, names in ANSWERED.items() for name in names])
def test_unusual_files_are_answered(service, files, modality, name):
    assert_answered(service, modality, str(files[name]))


@pytest.mark.parametrize(("modality", "name"), [(m, name) for m, names in REFUSED.items() for name in names])
def test_unusable_files_are_refused_in_one_sentence(service, files, modality, name):
    assert_refused(service, modality, str(files[name]), REFUSED[modality][name])


@pytest.mark.parametrize("modality", ["image", "audio"])
def test_a_missing_file_is_refused_in_one_sentence(service, modality):
    assert_refused(service, modality, "/nowhere/x" + "y" * 300, "no (picture|sound) file")


@pytest.mark.parametrize("text", TEXTS_ANSWERED, ids=ascii)
def test_unusual_texts_are_answered(service, text):
    assert_answered(service, "text", text)


@pytest.mark.parametrize("text", TEXTS_REFUSED, ids=lambda text: ascii(text[:10]))
def test_unusable_texts_are_refused_in_one_sentence(service, text):
    assert_refused(service, "text", text, TEXTS_REFUSED[text])


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.full(RATE, np.nan), "not numbers"),
        (np.full(RATE, np.inf), "not numbers"),
        (np.zeros(RATE), "silent"),
        (np.zeros(0), "lasts 0.00 s"),
        (np.zeros((2, 2, 2)), "Expected samples"),
        (np.array(["a"]), "Expected samples"),
    ],
)
def test_unusable_samples_are_refused_in_one_sentence(service, samples, message):
    assert_refused(service, "audio", (RATE, samples), message)


def test_the_api_refuses_what_is_missing(service):
    import gradio as gr

    for search in (service.search_text, service.search_image, service.search_audio):
        with pytest.raises(gr.Error, match="The query is empty"):
            ui.answer_api(search, None)
    assert_still_serving(service)


@pytest.mark.parametrize(
    ("sound", "message"),
    [
        ((RATE,), "got a tuple of 1"),
        ((float("nan"), np.ones(RATE)), "sample rate between"),
        ((None, np.ones(RATE)), "sample rate in Hz"),
        ((8000, np.ones(2)), "lasts 0.00 s"),
        ((RATE, np.ones(RATE) * 1j), "Expected samples"),
        ((RATE, np.ones(RATE, dtype="m8[s]")), "Expected samples"),
        ((RATE, [[1], [1, 2]]), "rows of unequal length"),
        ((RATE, np.ones((RATE, 0))), "Expected samples"),
        ((RATE, np.ones(RATE) * 1e30), "times full scale"),
    ],
    ids=str,
)
def test_sounds_that_the_fuzz_found_are_refused_in_one_sentence(service, sound, message):
    assert_refused(service, "audio", sound, message)


def test_a_picture_of_values_that_are_not_numbers_is_refused(service):
    assert_refused(service, "image", Image.fromarray(np.full((4, 4), np.nan, np.float32)), "not numbers")


def test_huge_and_tiny_weights_count_by_their_ratio(service):
    red = Query(text="a red square", minus_text="hum", weights={"text": 1e308, "minus_text": -1e308})
    same = Query(text="a red square", minus_text="hum", weights={"text": 1e-300, "minus_text": -1e-300})
    assert service.search(red).hits == service.search(same).hits
