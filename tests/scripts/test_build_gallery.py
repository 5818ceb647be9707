"""The shipped demo gallery agrees with its manifest, and its captions are cleaned as meant."""

import csv
import importlib.util
import random
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
GALLERY = ROOT / "demo/gallery"
COLUMNS = ["id", "image", "audio", "text", "split", "group", "title", "source", "licence", "credit"]
LICENCES = {
    "GPL-2.0-or-later", "GPL-3.0-only", "GPL-3.0-or-later", "public domain", "CC0-1.0", "LAL-1.3",
    "CC-BY-3.0", "CC-BY-4.0", "CC-BY-SA-3.0", "CC-BY-SA-4.0",
}  # fmt: skip


def load_script():
    """Import scripts/release/build_gallery.py, which is no package."""
    spec = importlib.util.spec_from_file_location("build_gallery", ROOT / "scripts/release/build_gallery.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["build_gallery"] = module
    spec.loader.exec_module(module)
    return module


build_gallery = load_script()


@pytest.fixture(scope="module")
def rows():
    with (GALLERY / "pairs.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def listed(rows, column):
    return sorted({row[column] for row in rows if row[column]})


# --- The shipped files ---


def test_manifest_has_the_agreed_columns_and_unique_ids(rows):
    assert list(rows[0]) == COLUMNS
    assert len({row["id"] for row in rows}) == len(rows)


def test_files_and_manifest_list_each_other(rows):
    on_disk = {p.relative_to(GALLERY).as_posix() for p in GALLERY.rglob("*") if p.is_file()}
    media = {name for name in on_disk if name.startswith(("images/", "sounds/"))}
    assert set(listed(rows, "image")) | set(listed(rows, "audio")) == media
    others = {name for name in on_disk - media if not name.startswith("licences/")}
    assert others == {"pairs.csv", "LICENSES.md", "map.json", "thumbnails.webp"}


def test_gallery_is_large_enough_to_search_and_small_enough_to_ship(rows):
    sizes = [path.stat().st_size for path in GALLERY.rglob("*") if path.is_file()]
    assert len(listed(rows, "image")) >= 2500
    assert len(listed(rows, "audio")) >= 250
    assert sum(sizes) < 40e6 and max(sizes) < 10e6


def test_sampled_pictures_open_and_show_something(rows):
    for name in random.Random(0).sample(listed(rows, "image"), 40):
        with Image.open(GALLERY / name) as picture:
            pixels = np.asarray(picture.convert("L"))
        assert 16 <= max(pixels.shape) <= 256, name
        assert (pixels < 245).mean() > 0.01, f"{name} is blank"


def test_sampled_sounds_decode_to_short_audible_mono(rows):
    for name in random.Random(0).sample(listed(rows, "audio"), 40):
        samples, sample_rate = soundfile.read(GALLERY / name, dtype="float32")
        assert samples.ndim == 1, name
        assert 8_000 <= sample_rate <= 48_000, name
        assert 0.1 < len(samples) / sample_rate < 6.2, name
        assert np.abs(samples).max() > 0.3, f"{name} is silent"


def test_every_row_has_a_known_licence_source_and_credit(rows):
    assert {row["licence"] for row in rows} == LICENCES
    assert all(row["source"] and row["credit"] and row["title"] for row in rows)


def test_every_source_is_counted_in_the_licence_page(rows):
    page = (GALLERY / "LICENSES.md").read_text(encoding="utf-8")
    for source, licence in {(row["source"], row["licence"]) for row in rows}:
        assert f"| {source} | {licence} |" in page


def test_captions_are_short_printable_and_free_of_leftovers(rows):
    for row in rows:
        text = row["text"]
        assert text == text.strip() and text.isprintable() and 2 <= len(text) <= 200, row
        assert not set(text) & set("_<>@#|{}"), row


def test_groups_never_cross_splits(rows):
    splits = defaultdict(set)
    for row in rows:
        splits[row["group"]].add(row["split"])
    assert all(len(found) == 1 for found in splits.values())
    assert set().union(*splits.values()) == {"train", "val"}


def test_rows_of_one_file_share_a_group(rows):
    groups = defaultdict(set)
    for row in rows:
        groups[row["image"] or row["audio"]].add(row["group"])
    assert all(len(found) == 1 for found in groups.values())


@pytest.mark.parametrize(("column", "low", "high"), [("image", 0.07, 0.14), ("audio", 0.08, 0.22)])
def test_held_out_share_is_about_as_promised(rows, column, low, high):
    split = {row["group"]: row["split"] for row in rows if row[column]}
    assert low < sum(value == "val" for value in split.values()) / len(split) < high


def test_some_items_have_picture_sound_and_caption(rows):
    assert sum(bool(row["image"] and row["audio"]) for row in rows) >= 60


# --- Cleaning of captions ---


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("tree_01", "tree"),
        ("Bus1_BW", "bus, black and white"),
        ("Lemon (Half Slice)", "lemon, half slice"),
        ("Croissant (B &amp; W)", "croissant, black and white"),
        ("AfricanDrum2", "african drum"),
        ("BlueMan#101", "blue man"),
        ("castle - RPG map elements", "castle map symbol"),
        ("45 rpm record", "45 rpm record"),
        ("Eiffel Tower", "Eiffel tower"),
        ("books-aj.svg", "books"),
    ],
)
def test_titles_become_readable(title, expected):
    assert build_gallery.readable_title(title) == expected


@pytest.mark.parametrize(
    ("title", "stem", "author", "expected"),
    [
        ("Cavallo", "cavallo_architetto_franc_01", "Architetto Francesco Rollandin", "horse"),
        ("Mirjam Meijer", "mirjam_meijer_mirjam_mei_01", "Mirjam Meijer", ""),
        ("Clipart by Nicu Buculei - contour_chipmunk", "contour_giraffe", "Nicu Buculei", "giraffe outline"),
        ("AIGA_Symbol_Signs", "aiga_coffee_shop_", "", "coffee shop sign"),
        ("SVG Road Signs", "humpback", "", "humpback bridge road sign"),
        ("Martin Luther King Jr.", "martin_luther_king_jr._h_01", "", ""),
    ],
)
def test_cliparts_get_english_captions_or_none(title, stem, author, expected):
    assert build_gallery.openclipart_caption(title, stem, author) == expected


@pytest.mark.parametrize(
    ("description", "expected"),
    [
        ("Red and white striped lighthouse", "red and white striped lighthouse"),
        ("Created with Inkscape http://www.inkscape.org/", ""),
        ("A lighthouse.", ""),
        ("HASH(0x850c64c)", ""),
    ],
)
def test_descriptions_are_kept_only_when_they_add_something(description, expected):
    assert build_gallery.useful_description(description, "lighthouse", "someone") == expected


def test_stamp_captions_lose_chatter_and_full_stop():
    assert build_gallery.tuxpaint_caption("animals/birds/crow", "A crow.") == "a crow"
    assert build_gallery.tuxpaint_caption("food/bread", "Eat your bread!") == "a loaf of bread"
    assert build_gallery.tuxpaint_caption("x/fuji", "A “Fuji” apple.") == "a Fuji apple"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bd_haus", "house music bass drum"),
        ("drum_cymbal_open", "open hi-hat cymbal"),
        ("ambi_choir", "ambient choir singing"),
        ("bass_trance_c", "trance synth bass note"),
        ("loop_drone_g_97", "droning loop"),
        ("tabla_ghe3", "tabla drum, ghe stroke"),
        ("elec_blip2", "electronic blip"),
    ],
)
def test_sample_names_become_plain_english(name, expected):
    assert build_gallery.sound_caption(name) == expected


def test_unknown_sample_name_is_refused():
    with pytest.raises(ValueError, match="has no caption"):
        build_gallery.sound_caption("mystery_sound")


def test_emoji_names_become_captions():
    assert build_gallery.openmoji_caption("woman_curly_hair") == "woman with curly hair"
    assert build_gallery.openmoji_caption(":face_with_tears_of_joy:") == "face with tears of joy"


def test_variants_of_one_caption_share_a_group():
    key = build_gallery.group_key
    assert key("a crow") == key("crow") == key("crow, black and white") == "crow"
    assert key("woman pilot") == key("man pilot") == "pilot"
    assert key("woman") == "woman"


# --- Thumbnails ---


def test_white_drawing_on_transparent_ground_is_refused():
    picture = Image.new("RGBA", (100, 100), (255, 255, 255, 0))
    picture.paste((255, 255, 255, 255), (20, 20, 80, 80))
    assert build_gallery.thumbnail(picture) is None


def test_thumbnail_is_cut_to_its_content_on_white():
    picture = Image.new("RGBA", (900, 900), (0, 0, 0, 0))
    picture.paste((200, 0, 0, 255), (300, 100, 600, 700))
    small = build_gallery.thumbnail(picture)
    assert small.mode == "RGB" and small.size[1] == 256
    assert small.getpixel((0, 0)) == (255, 255, 255)
    assert small.size[0] == pytest.approx(136, abs=6)  # 300 x 600 and a margin of 24 all around


def test_missing_tool_is_one_clear_sentence(tmp_path):
    with pytest.raises(SystemExit, match="no-such-tool was not found"):
        build_gallery.run_tool(["no-such-tool"], tmp_path)
