"""Add photographs and everyday sounds to demo/gallery, from four Debian packages; the other items stay as they are.

    python scripts/release/gallery_photos.py

Captions were written by looking at the pictures (sounds: from their names) and stand in ``gallery_photos.json``, by
path in the package; what is not named there is left out. All rows get the split train: the adapters that ship were
trained before they came, so the held-out items, and all figures about them, are those of the gallery before.
"""

from __future__ import annotations

import argparse
import csv
import fnmatch
import json
import re
import shutil
import struct
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from build_gallery import (
    COLUMNS,
    IMAGE_SIDE,
    ROOT,
    WEBP_QUALITY,
    Item,
    debian_source,
    load_picture,
    run_tool,
    slugify,
    unpack,
    write_sounds,
)

CAPTIONS: dict[str, dict[str, dict[str, str]]] = json.loads(
    Path(__file__).with_name("gallery_photos.json").read_text(encoding="utf-8")
)
ORIGINS = {
    "gcompris-qt-data": "`apt-get download gcompris-qt-data`, <https://gcompris.net>",
    "mate-backgrounds": "`apt-get download mate-backgrounds`, <https://mate-desktop.org>",
    "lomiri-wallpapers-16.04": "`apt-get download lomiri-wallpapers-16.04`, <https://ubuntu-touch.io>",
    "lomiri-wallpapers-20.04": "`apt-get download lomiri-wallpapers-20.04`, <https://ubuntu-touch.io>",
}
OWN = tuple(f"Debian {package} " for package in CAPTIONS)
NOTE = """
Photographs and everyday sounds of GCompris, MATE and Lomiri were added by `scripts/release/gallery_photos.py`: pictures
whole, made smaller (longest side at most 256 pixels); sounds as above; captions written by looking at the pictures, for
sounds from their file names. The packages' own copyright files, with the texts of their licences, are in
[`licences/`](licences).
"""
SPDX = {
    "GPL-2+": "GPL-2.0-or-later", "GPL-3": "GPL-3.0-only", "GPL-3+": "GPL-3.0-or-later", "free-art": "LAL-1.3",
}  # fmt: skip
_DIRECTORY, _COMPRESSED = 2, 1  # flags of an entry in a Qt resource file


def resources(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield path and content of every file in a Qt resource file (.rcc) that is stored plainly or with zlib."""
    data = path.read_bytes()
    version, tree, contents, names = struct.unpack(">4I", data[4:20])
    size = 14 if version == 1 else 22

    def walk(number: int, folder: str) -> Iterator[tuple[str, bytes]]:
        start = tree + number * size
        at, flags = struct.unpack(">IH", data[start : start + 6])
        length = struct.unpack(">H", data[names + at : names + at + 2])[0]
        name = data[names + at + 6 : names + at + 6 + 2 * length].decode("utf-16-be") if number else ""
        inside = f"{folder}/{name}".strip("/")
        if flags & _DIRECTORY:
            count, first = struct.unpack(">2I", data[start + 6 : start + 14])
            for child in range(first, first + count):
                yield from walk(child, inside)
            return
        begin = contents + struct.unpack(">I", data[start + 10 : start + 14])[0]
        content = data[begin + 4 : begin + 4 + struct.unpack(">I", data[begin : begin + 4])[0]]
        yield inside, zlib.decompress(content[4:]) if flags & _COMPRESSED else content

    return walk(0, "")


def licences(copyright_file: Path) -> list[tuple[list[str], str, str]]:
    """Read a Debian copyright file: patterns of files, licence, holders, in its order; the last match counts."""
    found = []
    for block in re.split(r"\n\s*\n", copyright_file.read_text(encoding="utf-8")):
        fields: dict[str, str] = {}
        name = ""
        for line in block.splitlines():
            if line[:1] in (" ", "\t") and name:
                fields[name] += "\n" + line.strip()
            elif ":" in line:
                name, _, value = line.partition(":")
                fields[name] = value.strip()
        if {"Files", "License", "Copyright"} <= fields.keys():
            holders = "; ".join(re.sub(r"\s*<[^>]*>", "", line).strip() for line in fields["Copyright"].splitlines())
            found.append((fields["Files"].split(), fields["License"].splitlines()[0], holders))
    return found


def collect(package: str, folder: Path, source: str) -> list[Item]:
    """Make an item of every picture and sound that has a caption; a sound joins the picture of its name."""
    known = licences(folder / f"usr/share/doc/{package}/copyright")
    for archive in folder.rglob("*.rcc"):
        for path, content in resources(archive):
            inside = path.removeprefix("gcompris/")
            if inside in CAPTIONS[package]["pictures"] or inside in CAPTIONS[package]["sounds"]:
                (folder / inside).parent.mkdir(parents=True, exist_ok=True)
                (folder / inside).write_bytes(content)
    items: dict[str, Item] = {}
    short = package.split("-")[0]
    for kind in ("pictures", "sounds"):
        for path, caption in CAPTIONS[package][kind].items():
            file = folder / path
            if not file.is_file():
                sys.exit(f"{package} holds no {path}; gallery_photos.json was written for another version.")
            inside = path.removeprefix("usr/share/backgrounds/").removeprefix("mate/")
            names = (inside, f"16.04/{inside}", f"20.04/{inside}")
            _, licence, holders = [e for e in known if any(fnmatch.fnmatch(name, p) for p in e[0] for name in names)][
                -1
            ]
            room = Path(path).parts[2] if short == "gcompris" else "photo"
            name = slugify(f"{short}-{room}-{file.stem.removesuffix('_background')}")
            if kind == "sounds" and (whole := items.get(name) or items.get(name.removesuffix("s"))):
                items[whole.id] = replace(whole, audio=file, captions=(*whole.captions, caption))
                continue
            about = {"title": caption[0].upper() + caption[1:], "source": source, "credit": holders[:200]}
            files = {"image" if kind == "pictures" else "audio": file}
            items[name] = Item(id=name, captions=(caption,), licence=SPDX.get(licence, licence), **about, **files)
    return list(items.values())


def write_photo(item: Item, gallery: Path) -> str:
    """Write a photograph whole, its longest side :data:`IMAGE_SIDE`; returns its path in the gallery."""
    assert item.image is not None
    picture = load_picture(item.image)
    flat = Image.new("RGB", picture.size, "white")
    flat.paste(picture, mask=picture.getchannel("A"))
    flat.thumbnail((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.LANCZOS)
    flat.save(gallery / f"images/{item.id}.webp", quality=WEBP_QUALITY, method=6)
    return f"images/{item.id}.webp"


def add(sources: Path, gallery: Path) -> None:
    """Add the items, replacing those of an earlier run, and the licences."""
    sources.mkdir(parents=True, exist_ok=True)
    archives = {}
    for package in CAPTIONS:
        if not any(sources.glob(f"{package}_*.deb")):
            run_tool(["apt-get", "download", package], sources)
        archives[package] = sorted(sources.glob(f"{package}_*.deb"))[-1]
    with (gallery / "pairs.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if not row["source"].startswith(OWN)]
    page = (gallery / "LICENSES.md").read_text(encoding="utf-8").splitlines()
    page = [line for line in page if not line.startswith(tuple(f"| {own}" for own in OWN))]
    end = max(number for number, line in enumerate(page) if line.startswith("|")) + 1
    with tempfile.TemporaryDirectory(dir=sources) as scratch:
        folders = unpack(archives, Path(scratch))
        for package, folder in folders.items():
            source = debian_source(archives[package])
            items = collect(package, folder, source)
            work = Path(scratch) / f"{package}-sounds"
            work.mkdir()
            sounds = {item.id for item in write_sounds([i for i in items if i.audio], work, Counter()) if item.audio}
            items = [item for item in items if item.image or item.id in sounds]  # others are silent or repeated
            for item in items:
                files = {"image": write_photo(item, gallery) if item.image else "", "audio": ""}
                if item.id in sounds:
                    files["audio"] = f"sounds/{item.id}.mp3"
                    shutil.move(work / files["audio"], gallery / files["audio"])
                about = {"split": "train", "group": item.group, "title": item.title, "source": source}
                about |= {"licence": item.licence, "credit": item.credit}
                for number, caption in enumerate(item.captions, start=1):
                    identity = item.id if number == 1 else f"{item.id}--{number}"
                    rows.append({"id": identity, **files, "text": caption, **about})
            tally = Counter((i.licence, kind) for i in items for kind in ("image", "audio") if getattr(i, kind))
            for licence in sorted({licence for licence, _ in tally}):
                counts = f"{tally[licence, 'image']:,} | {tally[licence, 'audio']:,}"
                page.insert(end, f"| {source} | {licence} | {counts} | {ORIGINS[package]} |")
                end += 1
            shutil.copyfile(
                folder / f"usr/share/doc/{package}/copyright", gallery / f"licences/{package}-copyright.txt"
            )
    shutil.copyfile("/usr/share/common-licenses/GPL-3", gallery / "licences/GPL-3.0.txt")
    text = "\n".join(page) + "\n"
    (gallery / "LICENSES.md").write_text(text if NOTE in text else text + NOTE, encoding="utf-8")
    with (gallery / "pairs.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: row["id"]))
    pictures, sounds_ = (len({row[kind] for row in rows} - {""}) for kind in ("image", "audio"))
    print(f"{gallery}: {pictures:,} pictures, {sounds_:,} sounds")


def main() -> None:
    """Read the command line and add."""
    parser = argparse.ArgumentParser(description="Add photographs and everyday sounds to demo/gallery.")
    cache = Path.home() / ".cache/fusemix/gallery-sources"
    parser.add_argument("--sources", type=Path, default=cache, help="folder that keeps the downloaded packages")
    parser.add_argument("--output", type=Path, default=ROOT / "demo/gallery", help="the gallery to add to")
    args = parser.parse_args()
    add(args.sources, args.output)


if __name__ == "__main__":
    main()
