"""Random input of every shape: an answer, or one calm sentence.

The fast suite tries about 300 inputs, the same each time; ``pytest -m slow tests/demo/test_fuzz.py`` about 10,000, anew
for each ``FUSEMIX_FUZZ_SEED``. A failure prints the smallest input that Hypothesis finds.
"""

import io
import json
import os
import re
import time
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import numpy as np
import orjson
import pytest
import soundfile
from PIL import Image

from demo.query import WEIGHT_RANGE, Query
from demo.tabs.explore import Explorer, land, map_component
from demo.tabs.search import SORRY, SearchTab, answer_page
from demo.tabs.sound_to_picture import pages, request_of
from demo.ui import answer_api
from fusemix.media import SAMPLE_RATE, MediaError, load_audio, load_image
from tests.conftest import tone
from tests.field.raw import served

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, seed, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from hypothesis.extra import numpy as hnp  # noqa: E402

SENTENCE = re.compile(r"[^\n\r]{10,400}[.!?]")
LONGEST_S = 60  # for one input, on a busy machine
FAST, SLOW = 300, 10_000  # inputs in all

# ---- what is sent


def pictures():
    """Small pictures in every common format and mode, as bytes."""
    colours = np.random.default_rng(0).integers(0, 255, (17, 19, 4), dtype=np.uint8)
    rgba = Image.fromarray(colours)
    png = [("PNG", mode) for mode in ("RGBA", "P", "1", "I;16")]
    lossy = [("JPEG", "RGB"), ("JPEG", "CMYK"), ("WEBP", "RGBA"), ("GIF", "P")]
    rare = [("BMP", "RGB"), ("TIFF", "F"), ("TIFF", "RGB"), ("PPM", "L"), ("ICO", "RGBA"), ("TGA", "RGB")]
    newer = [("AVIF", "RGB"), ("QOI", "RGBA"), ("DDS", "RGBA"), ("JPEG2000", "RGB")]
    kinds = [*png, *lossy, *rare, *newer]
    for form, mode in kinds:
        image = Image.fromarray(colours[..., 0].astype(np.uint16) * 257) if mode == "I;16" else rgba.convert("RGB")
        if mode not in ("I;16", "RGB"):
            image = rgba if mode == "RGBA" else image.convert(mode)
        buffer = io.BytesIO()
        image.save(buffer, form)
        yield buffer.getvalue()


def sounds():
    """A tenth of a second of tone in every format that soundfile writes, as bytes."""
    kinds = [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAV", "PCM_U8"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"),
             ("MP3", "MPEG_LAYER_III"), ("AIFF", "PCM_24"), ("AU", "PCM_16"), ("CAF", "PCM_16"), ("W64", "PCM_16"),
             ("WAV", "MS_ADPCM"), ("OGG", "OPUS")]  # fmt: skip
    for form, subtype in kinds:
        buffer = io.BytesIO()
        soundfile.write(buffer, tone(440, seconds=0.1), SAMPLE_RATE, format=form, subtype=subtype)
        yield buffer.getvalue()


@st.composite
def mangled(draw, whole):
    """A real file, cut short, with bytes changed, put in or taken out, or with another one behind it."""
    data = bytearray(draw(st.sampled_from(whole)))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(["cut", "change", "insert", "remove", "zero", "append"]))
        if kind == "cut":
            del data[at:]
        elif kind == "append":
            data += draw(st.sampled_from(whole))
        elif kind == "zero":
            data[at : at + 40] = bytes(len(data[at : at + 40]))
        else:
            new = draw(st.binary(min_size=1, max_size=8))
            data[at : at + (len(new) if kind == "change" else 0)] = new if kind != "remove" else b""
            if kind == "remove":
                del data[at : at + len(new)]
    return bytes(data)


PICTURES, SOUNDS = list(pictures()), list(sounds())
numbers = st.one_of(
    st.integers(), st.floats(), st.sampled_from([0, 1, -1, 10, 2**31, 2**63, 2**64, 10**400, 1e308, -0.0, 5e-324])
)
words = st.one_of(
    st.text(st.characters(exclude_categories=()), max_size=40),  # halves of surrogate pairs too
    st.sampled_from(["a red square", "", " ", "\0", "\ud800", "a" * 2001, "<script>", "\u202e\u200b", "?" * 2000]),
    st.sampled_from(["ก็็็็็" * 60, "🧑\u200d🧑\u200d🧒" * 90]),
    st.integers(1, 120).map(lambda n: "wörd " * n),
)  # fmt: skip
anything = st.one_of(
    st.none(),
    st.booleans(),
    numbers,
    words,
    st.binary(max_size=30),
    st.complex_numbers(),
    st.lists(numbers, max_size=4),
    st.dictionaries(words, numbers, max_size=3),
    st.tuples(numbers, numbers),
    st.builds(object),
    st.just(Path("/nowhere")),
    st.just(Path()),
)


def mostly(usual, odd=anything):
    """Seven times in eight the one, else the other."""
    return st.sampled_from([usual] * 7 + [odd]).flatmap(lambda strategy: strategy)


dtypes = st.one_of(
    hnp.scalar_dtypes(), st.sampled_from([np.dtype(object), np.dtype([("a", "i4")])]), hnp.floating_dtypes()
)
arrays = dtypes.flatmap(
    lambda dtype: (
        st.builds(lambda n: np.full(n, None, dtype=object), st.integers(0, 3))
        if dtype.hasobject
        else hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9))
    )
)
image_arrays = st.one_of(
    arrays,
    hnp.arrays(np.uint8, st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(0, 5))),
    hnp.arrays(np.uint8, st.tuples(st.integers(0, 2), st.sampled_from([1, 2000]))),
)
MODES = [
    "1",
    "L",
    "P",
    "RGB",
    "RGBA",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
    "I",
    "F",
    "LA",
    "PA",
    "RGBX",
    "RGBa",
    "La",
    "I;16",
]
pil_images = st.builds(
    lambda mode, size: Image.new(mode, size),
    st.sampled_from(MODES),
    st.tuples(st.integers(0, 30), st.sampled_from([0, 1, 7, 3000])),
)
strange_floats = hnp.arrays(np.float32, (6, 5), elements=st.floats(width=32)).map(lambda a: Image.fromarray(a, "F"))
images = st.one_of(mangled(PICTURES), image_arrays, pil_images, strange_floats, anything, st.sampled_from(SOUNDS))
SAMPLE_TYPES = ["i2", "i4", "i1", "u1", "u2", "i8", "u8", "f2", "f4", "f8", "g", "c8", "?"]


@st.composite
def samples(draw):
    """Something like ten milliseconds to half a second of samples, mostly of a dtype a sound has."""
    dtype = np.dtype(draw(st.sampled_from(SAMPLE_TYPES)))
    shape = draw(
        st.sampled_from([(8000,), (800,), (1000, 2), (2, 1000), (900, 1), (1000, 0), (0, 2), (20, 20, 2), (1,)])
    )
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    scale = draw(mostly(st.just(0.5), st.sampled_from([0.0, 1e-30, 1e-6, 1.0, 100.0, 1e30, 1e300])))
    with np.errstate(all="ignore"):
        values = (rng.uniform(-1, 1, shape) * scale).astype(dtype)
    if np.issubdtype(dtype, np.inexact) and values.size:
        values.flat[0] = draw(mostly(st.just(0.0), st.sampled_from([np.nan, np.inf, -np.inf])))
    return values


rates = mostly(st.sampled_from([8000, 16_000, 44_100, 48_000, np.int64(22_050), 16_000.5, 1000, 768_000]))
audios = st.one_of(
    mangled(SOUNDS),
    mangled(SOUNDS),
    st.tuples(rates, samples()),
    st.tuples(rates, samples()),
    st.tuples(st.just(SAMPLE_RATE), st.one_of(samples(), arrays, anything)),
    st.tuples(rates, arrays, anything),
    st.just(()),
    anything,
    st.sampled_from(PICTURES),
)


top_ks = mostly(mostly(st.integers(1, 100), st.integers(-3, 110)))
FILES = {"image": "red.png", "audio": "hum.wav"}  # of the tiny gallery
queries = st.fixed_dictionaries(
    {},
    optional={
        "text": mostly(words),
        "image": mostly(st.sampled_from([None, "red.png"]), st.one_of(words, anything)),
        "audio": mostly(st.sampled_from([None, "hum.wav"]), st.one_of(words, anything)),
        "minus_text": mostly(words),
        "ids": st.one_of(st.just({}), st.dictionaries(st.sampled_from(["image", "audio", "x"]), mostly(words))),
        "weights": st.dictionaries(
            st.sampled_from([*WEIGHT_RANGE, "x"]), mostly(mostly(st.floats(-1, 1), st.floats()))
        ),
    },
)
links = st.dictionaries(
    st.sampled_from(["q", "picture", "sound", "without", "w", "x"]),
    st.one_of(
        words, st.just("red"), st.from_regex(r"((q|picture|sound|without|x):[-+.0-9einfa]{0,8},?){0,5}"), anything
    ),
)

# ---- what must come back


def is_refusal(error):
    """Whether an error is one sentence for a visitor, and not the apology for a fault of ours."""
    message = error.message if isinstance(error, gr.Error) else str(error)
    return isinstance(error, MediaError | gr.Error) and SENTENCE.fullmatch(message) and "went wrong" not in message


def check_picture(image):
    assert image.mode == "RGB" and min(image.size) >= 1


def check_sound(heard):
    assert heard.ndim == 1 and heard.dtype == np.float32 and np.isfinite(heard).all() and len(heard) >= 800


def check_answer(answer):
    for hits in answer.hits.values():
        assert [hit.rank for hit in hits] == list(range(1, len(hits) + 1)) and hits
        assert all(-1 <= hit.similarity <= 1 for hit in hits)
    json.dumps(answer.to_json(), allow_nan=False)


def check_page(page):
    """Every value can go to the browser, and no fault of ours is apologised for."""
    if isinstance(page, dict):  # by widget; a State stays on the server
        page = [value for widget, value in page.items() if not isinstance(widget, gr.State)]
    sent = orjson.dumps(
        [value for value in page if not hasattr(value, "embedding")], default=repr, option=orjson.OPT_SERIALIZE_NUMPY
    )
    assert SORRY.encode() not in sent and b"went wrong" not in sent


def check_link(query):
    """A query read from a link is well formed, can be described, and its own link reads as the same query."""
    query.describe()
    for part, (low, high) in WEIGHT_RANGE.items():
        assert low <= query.weight(part) <= high
    query.to_link().encode("ascii")


@pytest.fixture(scope="module")
def tab(service):
    with gr.Blocks():
        explorer = Explorer(service)
        return SearchTab(service, explorer, map_component(explorer))


@pytest.fixture(scope="module")
def studio(service):
    from demo.drawing import Studio
    from fusemix.generation.generator import Generator
    from tests.generation.test_generator import tiny_small_pipeline

    return Studio(service, source="tiny", generator=Generator(tiny_small_pipeline(16)))


widgets = st.tuples(
    mostly(words),  # text
    st.one_of(st.none(), anything),  # picture
    st.one_of(st.none(), anything),  # sound
    mostly(words),  # without
    *[mostly(st.floats(-1, 1)) for _ in range(4)],  # weights
    st.one_of(st.none(), st.just({}), st.dictionaries(st.sampled_from(["image", "audio"]), words)),  # ids, held here
    st.one_of(st.booleans(), anything),  # mix
    st.builds(  # filters and marks, held here
        lambda where, marked: {"where": where, "likes": marked[:2], "dislikes": marked[2:]},
        st.dictionaries(st.sampled_from(["kind", "licence", "source"]), words, max_size=2),
        st.lists(st.one_of(words, st.just("image:red")), max_size=4).map(tuple),
    ),
)
events = st.builds(
    SimpleNamespace,
    modality=st.one_of(st.sampled_from(["image", "audio", "text", "example", "like", "dislike", "where"]), words),
    id=st.one_of(st.sampled_from(["red", "hum", "blue", "image:red", "kind=audio"]), words),
)
drawings = st.tuples(
    mostly(st.none()),  # sound
    mostly(words),
    mostly(st.none()),  # picture
    mostly(st.floats(0, 1)),  # share
    mostly(st.integers(1, 4), st.sampled_from([None, 0, -1, 10**9, "x", float("nan"), float("inf")])),  # steps
    mostly(st.floats(1, 12)),  # guidance
    mostly(st.integers(0, 999)),  # noise level
    mostly(st.integers(0, 2**32)),  # seed
    mostly(st.integers(1, 3), st.sampled_from([None, 0, -1, 10**9, "x", float("nan")])),  # pictures
    mostly(st.integers(1, 3), st.sampled_from([None, 0, -1, 10**9, "x", float("inf")])),  # candidates
    st.booleans(),
    mostly(st.floats(0.1, 1)),  # strength
    mostly(st.sampled_from([0, 0, 0, 0, 0.1]), st.sampled_from([None, -1, 3, "x", float("nan")])),  # steering
)

# As JSON says it, and as only a script of a stranger sends it.
paths = st.sampled_from(
    ["red.png", "/etc/passwd", "/etc", "/etc/none", "", "http://127.0.0.1:9/a.png", "file:///etc/passwd"]
)
named_files = st.fixed_dictionaries(
    {"path": st.one_of(paths, paths, paths, st.none(), st.integers())},
    optional={
        "meta": st.one_of(st.just({"_type": "gradio.FileData"}), st.none(), st.text(max_size=5)),
        "url": paths,
        "is_stream": st.booleans(),
        "size": numbers,
    },
)
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), words, named_files),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
requests = st.tuples(
    st.integers(0, 10**6),
    st.lists(st.tuples(st.integers(0, 12), json_values), max_size=3),
    st.one_of(st.none(), json_values, st.dictionaries(st.sampled_from(["modality", "id"]), words)),
)


def ask_endpoint(value, on):
    """One request to one endpoint, some of its fields holding what no field holds; refusals are sentences."""
    number, changes, event = value
    entry, _ = on.raw.endpoints[number % len(on.raw.endpoints)]
    data = on.raw.values(entry)
    for place, new in changes:
        if place < len(data):
            data[place] = (
                {**new, "path": on.uploaded} if isinstance(new, dict) and new.get("path") == "red.png" else new
            )
    success, output = on.raw.ask(entry["id"], data, event_data=event)
    if not success and isinstance(output, dict):
        raise gr.Error(output["error"] or "no sentence")


# name -> (share of all inputs, strategy, what is done with a value and the fixtures)
TARGETS = {
    "an endpoint": (0.1, requests, ask_endpoint),
    "a picture": (0.15, images, lambda value, _: check_picture(load_image(value))),
    "a sound": (0.15, audios, lambda value, _: check_sound(load_audio(value))),
    "search by text": (
        0.09,
        st.tuples(mostly(words), top_ks),
        lambda value, on: check_answer(on.service.search_text(value[0], top_k=value[1])),
    ),
    "search by picture": (
        0.05,
        st.tuples(images, top_ks),
        lambda value, on: check_answer(on.service.search_image(value[0], top_k=value[1])),
    ),
    "search by sound": (
        0.05,
        st.tuples(audios, top_ks),
        lambda value, on: check_answer(on.service.search_audio(value[0], top_k=value[1])),
    ),
    "a query of parts": (
        0.1,
        st.tuples(queries, top_ks),
        lambda value, on: check_answer(on.service.search(on.query(value[0]), top_k=value[1])),
    ),
    "a query on the page": (0.05, queries, lambda value, on: check_page(answer_page(on.service, on.query(value)))),
    "a link": (0.1, links, lambda value, _: check_link(Query.from_link(value))),
    "the API": (
        0.05,
        st.tuples(st.sampled_from(["text", "image", "audio"]), mostly(words), top_ks),
        lambda value, on: json.dumps(
            answer_api(getattr(on.service, f"search_{value[0]}"), value[1], value[2]), allow_nan=False
        ),
    ),
    "the page's fields": (
        0.04,
        st.tuples(st.sampled_from(["by_text", "by_weight", "image", "audio"]), widgets),
        lambda value, on: check_page(
            on.tab.by_file(value[0], *value[1])
            if value[0] in ("image", "audio")
            else getattr(on.tab, value[0])(*value[1])
        ),
    ),
    "a click on a result": (
        0.02,
        st.tuples(events, widgets),
        lambda value, on: check_page(on.tab.by_item(value[0], *value[1])),
    ),
    "the page by a link": (
        0.02,
        links,
        lambda value, on: check_page(on.tab.by_link(SimpleNamespace(query_params=value))),
    ),
    "words on the map": (0.02, mostly(words), lambda value, on: check_page(land(on.tab.explorer, value))),
    "a drawing": (
        0.01,
        drawings,
        lambda value, on: [check_page([frame[0], frame[1]]) for frame in pages(on.studio, request_of(*value))],
    ),
}


@pytest.fixture(scope="module")
def raw(service):
    with served(service) as page:
        yield page


@pytest.fixture(scope="module")
def on(service, tab, studio, pairs, raw):
    """The app's parts, its page by raw HTTP, and queries whose file names lie in the tiny gallery."""

    def query(values):
        files = {part: str(pairs.parent / f) for part, f in FILES.items() if f == values.get(part)}
        return Query(**values | files)

    uploaded = raw.upload(pairs.parent / "red.png")
    return SimpleNamespace(service=service, tab=tab, studio=studio, query=query, raw=raw, uploaded=uploaded)


def fuzz(name, on, total, *, start=None):
    """Try a share of ``total`` inputs on one target; how many were tried, and how many of them answered."""
    share, strategy, do = TARGETS[name]
    tried = answered = 0

    def one(value):
        nonlocal tried, answered
        tried += 1
        began = time.monotonic()
        try:
            do(value, on)
            answered += 1
        except Exception as error:
            if not is_refusal(error):
                raise
        took = time.monotonic() - began
        assert took < LONGEST_S, f"{took:.0f} s"

    count = max(1, round(share * total))
    health = list(HealthCheck)
    run = settings(
        max_examples=count, deadline=None, database=None, derandomize=start is None, suppress_health_check=health
    )(given(strategy)(one))
    (run if start is None else seed(start)(run))()
    return tried, answered


@pytest.mark.parametrize("whole", [*PICTURES, *SOUNDS], ids=lambda data: repr(data[:4]))
def test_the_files_to_be_mangled_are_whole(whole):
    check_picture(load_image(whole)) if whole in PICTURES else check_sound(load_audio(whole))


def test_the_shares_add_up_to_one():
    assert sum(share for share, _, _ in TARGETS.values()) == pytest.approx(1)


@pytest.mark.parametrize("name", TARGETS)
def test_any_input_is_answered_or_refused_in_a_sentence(on, name, capfd, caplog):
    assert fuzz(name, on, FAST)[0] >= 1
    assert "Traceback" not in "".join(capfd.readouterr()) + caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_any_of_ten_thousand_inputs_is_answered_or_refused_in_a_sentence(on, name, capfd, caplog):
    began = time.monotonic()
    tried, answered = fuzz(name, on, SLOW, start=int(os.environ.get("FUSEMIX_FUZZ_SEED", "0")))
    assert "Traceback" not in "".join(capfd.readouterr()) + caplog.text
    print(f"\nFUZZ {name}: {tried} inputs, {answered} answered, {time.monotonic() - began:.0f} s")  # noqa: T201
    assert 0 < answered <= tried
    assert on.service.search_text("a red square").hits["text"][0].item["id"] == "red"


def test_a_fault_is_not_taken_for_a_refusal():
    assert is_refusal(MediaError("The text is empty; type a few words."))
    for error in (ValueError("The text is empty."), gr.Error(SORRY), MediaError("two\nlines."), MediaError("no stop")):
        assert not is_refusal(error)
