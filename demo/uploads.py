"""Uploads, file by file: pictures, sounds, lists of captions, and archives of them."""

from __future__ import annotations

import csv
import json
import lzma
import secrets
import stat
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from gradio_client.utils import strip_invalid_filename_characters

from fusemix.datasets.base import SOUNDS, Tally, is_litter, picture_endings
from fusemix.datasets.cells import FILE_COLUMNS
from fusemix.datasets.reader import open_text, read_table
from fusemix.media import one_line

PICTURES = picture_endings()
TABLES = frozenset({".csv", ".tsv", ".jsonl", ".ndjson"})
CAPTION_COLUMNS = ("text", "caption", "title")  # the first that a table has
MAX_BYTES = 500 * 10**6  # of everything together, unpacked
MAX_TABLE_BYTES = 5 * 10**6
MAX_COLUMNS = 100  # of a table
MAX_DIRECTORY_BYTES = 4 * 10**6  # of an archive's list of contents: some ten thousand names
MAX_MEMBERS = 4000  # files looked at, of all archives together
_BLOCK = 1 << 18  # bytes unpacked between two looks at the limit


@dataclass(frozen=True)
class Piece:
    """One item to embed.

    Attributes:
        name: The visitor's name for its file or table, with folders if it came in an archive.
        modality: ``image``, ``audio`` or ``text``.
        value: Path of the file, or the text.
        caption: Text shown with it.
    """

    name: str
    modality: str
    value: str
    caption: str


@dataclass(frozen=True)
class LeftOut:
    """One unusable item and the reason: a whole sentence, or the rest of one that begins with its name."""

    name: str
    reason: str

    @property
    def sentence(self) -> str:
        """Name and reason."""
        return f"{self.name}: {self.reason}" if self.reason[:1].isupper() else f"{self.name} {self.reason}"


@dataclass
class Incoming:
    """Result of :func:`read`."""

    pieces: list[Piece] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    n_bytes: int = 0
    n_members: int = 0


class _Refused(ValueError):
    """A file that cannot be used."""


@dataclass(frozen=True)
class _File:
    name: str  # for sentences
    path: Path
    given: str  # the whole name as it came


def read(
    uploads: Sequence[str | Path],
    folder: Path,
    *,
    max_bytes: int = MAX_BYTES,
    stopped: Callable[[], bool] = lambda: False,
) -> Incoming:
    """Sort the uploads by kind and unpack archives; nothing is decoded yet.

    Args:
        uploads: Paths of the visitor's files.
        folder: Empty; archives are unpacked here under random names, so no name in an archive becomes a path.
        max_bytes: Limit of all files together, unpacked; what exceeds it is left out.
        stopped: Called between files; once it returns True, the rest is skipped.

    Returns:
        Pieces in the given order, and what was left out.
    """
    found = Incoming()
    files = _unpacked(uploads, folder, found, max_bytes, stopped)
    tables: list[_File] = []
    keys: dict[int, str] = {}  # number of a piece -> what tables call its file
    for file in files:
        kind = file.path.suffix.lower()
        title = PurePosixPath(file.name).stem
        if kind in PICTURES or kind in SOUNDS:
            modality = "image" if kind in PICTURES else "audio"
            keys[len(found.pieces)] = _key(file.given)
            found.pieces.append(Piece(file.name, modality, str(file.path), title))
        elif kind in TABLES or kind == ".txt":
            tables.append(file)
        elif kind == ".zip":
            found.left_out.append(LeftOut(file.name, "is an archive inside an archive; upload it on its own"))
        else:
            found.left_out.append(LeftOut(file.name, f"is not a supported file type ({kind or 'no extension'})"))
    named: dict[str, str] = {}
    for table in tables:
        try:
            found.pieces.extend(_captions(table, named, found.left_out))
        except _Refused as error:
            found.left_out.append(LeftOut(table.name, str(error)))
    for number, key in keys.items():
        piece = found.pieces[number]
        found.pieces[number] = replace(piece, caption=named.get(key, piece.caption))
    return found


def _unpacked(
    uploads: Sequence[str | Path], folder: Path, found: Incoming, max_bytes: int, stopped: Callable[[], bool]
) -> list[_File]:
    """Unpack archives among the uploads; note unusable files in ``found``."""
    files: list[_File] = []
    for upload in uploads:
        path = Path(upload)
        name = one_line(path.name)
        if stopped():
            break
        try:
            if not path.is_file():
                raise _Refused("did not arrive; please upload it again")
            if path.suffix.lower() != ".zip":
                _count(found, path.stat().st_size, max_bytes)
                files.append(_File(name, path, path.name))
                continue
            files.extend(_unpack(path, name, folder, found, max_bytes, stopped))
        except _Refused as error:
            found.left_out.append(LeftOut(name, str(error)))
    return files


def _key(name: str) -> str:
    """Normalise a file name: Windows separators become slashes, decomposed accents (macOS) are composed."""
    return unicodedata.normalize("NFC", str(PurePosixPath(name.replace("\\", "/"))))


def _count(found: Incoming, size: int, max_bytes: int) -> None:
    if found.n_bytes + size > max_bytes:
        raise _Refused(f"exceeds the limit of {max_bytes / 1e6:,.0f} MB in total")
    found.n_bytes += size


def _unpack(
    path: Path, archive: str, folder: Path, found: Incoming, max_bytes: int, stopped: Callable[[], bool]
) -> Iterator[_File]:
    """Yield the members of an archive, written to files with random names."""
    _check_directory(path)
    try:
        opened = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise _Refused("is damaged or not a zip archive") from error
    with opened:
        members = [
            member
            for member in opened.infolist()
            if not member.is_dir() and not is_litter(member.filename.replace("\\", "/"))
        ]
        room = MAX_MEMBERS - found.n_members
        if len(members) > room:
            rest = len(members) - room
            found.left_out.append(LeftOut(archive, f"holds {rest:,} files more than the limit of {MAX_MEMBERS:,}"))
        found.n_members += min(len(members), room)
        for member in members[:room]:
            if stopped():
                return
            name = one_line(member.filename.replace("\\", "/"))
            pure = PurePosixPath(member.filename.replace("\\", "/"))
            try:
                if pure.is_absolute() or ".." in pure.parts or ":" in pure.parts[0]:
                    raise _Refused("has a path that leads outside the archive")
                if stat.S_ISLNK(member.external_attr >> 16):
                    raise _Refused("is a link, not a file")
                kind = pure.suffix.lower()
                known = kind in {*PICTURES, *SOUNDS, *TABLES, ".txt", ".zip"}
                target = folder / f"{secrets.token_hex(8)}{kind}"
                if known and kind != ".zip":
                    _write_member(opened, member, target, found, max_bytes)
                yield _File(name, target if known else Path(name), str(pure))
            except _Refused as error:
                found.left_out.append(LeftOut(name, str(error)))


def _write_member(
    opened: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, found: Incoming, max_bytes: int
) -> None:
    """Unpack one file, counting the bytes that come out: the size stated in an archive may be false."""
    try:
        with opened.open(member) as source, open(target, "wb") as out:
            while block := source.read(_BLOCK):
                _count(found, len(block), max_bytes)
                out.write(block)
    except RuntimeError as error:  # what zipfile raises without a password, and for methods it does not know
        target.unlink(missing_ok=True)
        raise _Refused("is protected by a password or uses an unsupported compression") from error
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, EOFError) as error:
        target.unlink(missing_ok=True)
        raise _Refused("is damaged inside the archive") from error
    except _Refused:
        target.unlink(missing_ok=True)
        raise


def _check_directory(path: Path) -> None:
    """Refuse an archive whose list of contents alone would fill the memory.

    zipfile reads the whole list at once. Its size stands in the last record (APPNOTE 4.3.16), unless a
    Zip64 record (4.3.15), which no archive of our size needs, overrides it.
    """
    with open(path, "rb") as handle:
        handle.seek(max(0, path.stat().st_size - 65_557))
        tail = handle.read()
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or len(tail) < end + 22:
        raise _Refused("is damaged or not a zip archive")
    if tail[max(0, end - 20) : end].startswith(b"PK\x06\x07"):
        raise _Refused("is a Zip64 archive; pack fewer or smaller files into an ordinary one")
    if int.from_bytes(tail[end + 12 : end + 16], "little") > MAX_DIRECTORY_BYTES:
        raise _Refused("lists too many files; pack fewer")


def _captions(table: _File, named: dict[str, str], left_out: list[LeftOut]) -> list[Piece]:
    """Return a piece per distinct caption; store captions of files in ``named``, by the key of their name."""
    if table.path.stat().st_size > MAX_TABLE_BYTES:
        raise _Refused(f"is larger than {MAX_TABLE_BYTES / 1e6:.0f} MB, the limit for tables and lists")
    if table.path.suffix.lower() == ".txt":
        try:
            with open_text(table.path) as handle:
                lines = handle.read().splitlines()
        except UnicodeDecodeError as error:
            raise _Refused("is not UTF-8 text; save it as UTF-8") from error
        texts = [line.strip() for line in lines]
    else:
        texts = _column(table, named, left_out)
    distinct = [text for text in dict.fromkeys(texts) if text]
    if not distinct:
        raise _Refused("holds no captions")
    return [Piece(table.name, "text", text, text) for text in distinct]


def _column(table: _File, named: dict[str, str], left_out: list[LeftOut]) -> list[str]:
    _check_columns(table.path)
    try:
        frame = read_table(table.path, Tally(), texts=CAPTION_COLUMNS)
    except (ValueError, OSError, RecursionError) as error:
        raise _Refused(one_line(str(error).removeprefix(f"{table.path} "), 200)) from error
    if frame.empty:
        raise _Refused("holds no captions")
    column = next((name for name in CAPTION_COLUMNS if name in frame.columns), None)
    if column is None:
        has = f" (it has {', '.join(map(str, frame.columns))})" if len(frame.columns) else ""
        raise _Refused(one_line(f"has no caption column{has}; name one {' or '.join(CAPTION_COLUMNS)}", 200))
    captions: dict[str, str] = {}  # key of a file -> its first caption
    for files in FILE_COLUMNS:
        for cell, text in zip(frame[files], frame[column], strict=True) if files in frame.columns else ():
            if cell and text:
                captions.setdefault(_key(cell), text)
    folder = PurePosixPath(table.given).parent
    for key, text in captions.items():
        if folder != PurePosixPath() or "/" in key:
            named.setdefault(_key(f"{folder}/{key}"), text)
    if folder == PurePosixPath():  # dropped beside its files, which lost their folders on the way
        left_out.extend(_name_dropped(table, captions, named))
    return list(frame[column])


def _name_dropped(table: _File, captions: dict[str, str], named: dict[str, str]) -> Iterator[LeftOut]:
    """Match captions to files by name alone; leave out those that several files share."""
    by_name: dict[str, list[str]] = {}
    for key in captions:  # Gradio takes some characters out of the names of uploads
        name = _key(strip_invalid_filename_characters(PurePosixPath(key).name))
        by_name.setdefault(name, []).append(key)
    for name, keys in by_name.items():
        if len(keys) == 1:
            named.setdefault(name, captions[keys[0]])
        else:
            what = f"names {len(keys)} files called {one_line(name)}; zip the table together with their folders"
            yield LeftOut(table.name, what)


def _check_columns(path: Path) -> None:
    """Refuse a table with very many columns before reading it: a column costs more than many rows."""
    names: set[str] = set()
    with open(path, encoding="utf-8", errors="replace", newline="") as handle:
        try:
            if path.suffix.lower() in (".csv", ".tsv"):
                count = len(next(csv.reader(handle, delimiter="," if path.suffix.lower() == ".csv" else "\t"), ()))
            else:
                for row in map(json.loads, handle):
                    names.update(
                        row if isinstance(row, dict) else map(str, range(len(row))) if isinstance(row, list) else ()
                    )
                count = len(names)
        except (csv.Error, ValueError, RecursionError):
            return  # read_table says what is wrong with it
    if count > MAX_COLUMNS:
        raise _Refused(f"has {count:,} columns, more than the limit of {MAX_COLUMNS}")
