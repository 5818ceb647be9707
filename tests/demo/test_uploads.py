"""What visitors drop: real files, tables and archives, hostile ones among them."""

import io
import os
import stat
import struct
import zipfile
from pathlib import Path

import pytest

from demo import uploads
from demo.uploads import LeftOut, Piece, read

ROOT = Path(__file__).resolve().parents[2]
PICTURES = sorted((ROOT / "demo/gallery/images").glob("tuxpaint-food-fruit-*"))[:3]
SOUND = sorted((ROOT / "demo/gallery/sounds").iterdir())[0]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "unpacked").mkdir()
    return tmp_path / "unpacked"


def packed(path, members, **options):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content, **options)
    return path


def reasons(found):
    return {entry.name: entry.reason for entry in found.left_out}


def test_files_are_sorted_by_kind_and_keep_their_names(folder, tmp_path):
    (tmp_path / "lines.txt").write_text("a red apple\n\n  a drum \na drum\n")
    found = read([PICTURES[0], SOUND, tmp_path / "lines.txt"], folder)
    assert found.left_out == []
    assert found.pieces == [
        Piece(PICTURES[0].name, "image", str(PICTURES[0]), PICTURES[0].stem),
        Piece(SOUND.name, "audio", str(SOUND), SOUND.stem),
        Piece("lines.txt", "text", "a red apple", "a red apple"),
        Piece("lines.txt", "text", "a drum", "a drum"),
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", "id,text\n1,a dog\n2,a cat\n"),
        ("t.tsv", "caption\tn\na dog\t1\na cat\t2\n"),
        ("t.jsonl", '{"title": "a dog"}\n{"title": "a cat"}\n'),
        ("t.jsonl", '\ufeff{"Caption": ["a dog", "a cat"], "split": "holdout"}\n'),
    ],
)
def test_tables_give_their_captions(folder, tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert [piece.value for piece in read([tmp_path / name], folder).pieces] == ["a dog", "a cat"]


def test_a_table_in_an_archive_names_the_files_beside_it(folder, tmp_path):
    table = "image,text\npictures/one.webp,a ripe fruit\n"
    path = packed(tmp_path / "a.zip", {"set/pictures/one.webp": PICTURES[0].read_bytes(), "set/pairs.csv": table})
    picture, caption = read([path], folder).pieces
    assert (picture.name, picture.caption) == ("set/pictures/one.webp", "a ripe fruit")
    assert Path(picture.value).read_bytes() == PICTURES[0].read_bytes()
    assert (caption.modality, caption.value) == ("text", "a ripe fruit")


@pytest.mark.parametrize("cell", ["./pictures/caf\u00e9.webp", "pictures\\caf\u00e9.webp", "pictures/cafe\u0301.webp"])
@pytest.mark.parametrize("member", ["pictures/caf\u00e9.webp", "pictures/cafe\u0301.webp", "pictures\\caf\u00e9.webp"])
def test_names_are_one_in_either_unicode_form_and_with_either_slash(folder, tmp_path, cell, member):
    table = f"image,text\n{cell},a ripe fruit\n"
    path = packed(tmp_path / "a.zip", {member: PICTURES[0].read_bytes(), "pairs.csv": table})
    assert read([path], folder).pieces[0].caption == "a ripe fruit"


@pytest.mark.field
@pytest.mark.parametrize(
    ("cell", "member"),
    [
        ("pictures\\one.webp", "pictures/one.webp"),
        ("pictures/one.webp", "pictures\\one.webp"),
        ("./pictures//one.webp", "pictures/one.webp"),
        ("café/e\u0301tude.webp", "cafe\u0301/étude.webp"),
        ("pictures/" + "long " * 30 + "one.webp", "pictures/" + "long " * 30 + "one.webp"),
    ],
)
def test_a_file_is_found_by_its_name_however_it_is_spelled(folder, tmp_path, cell, member):
    path = packed(tmp_path / "a.zip", {member: PICTURES[0].read_bytes(), "t.csv": f"image,text\n{cell},a ripe fruit\n"})
    assert [piece.caption for piece in read([path], folder).pieces] == ["a ripe fruit", "a ripe fruit"]


@pytest.mark.field
@pytest.mark.parametrize(
    ("cell", "dropped"),
    [("a\\one.webp", "one.webp"), ("e\u0301té.webp", "été.webp"), ("x/nr #1: one.webp", "nr #1 one.webp")],
)
def test_a_dropped_file_is_found_without_its_folders_and_what_gradio_strips(folder, tmp_path, cell, dropped):
    (tmp_path / dropped).write_bytes(PICTURES[0].read_bytes())
    (tmp_path / "t.csv").write_text(f"image,text\n{cell},a ripe fruit\n", encoding="utf-8")
    found = read([tmp_path / dropped, tmp_path / "t.csv"], folder)
    assert [piece.caption for piece in found.pieces] == ["a ripe fruit", "a ripe fruit"], found.left_out


@pytest.mark.field
def test_a_name_that_two_files_share_gives_neither_the_caption_of_the_other(folder, tmp_path):
    (tmp_path / "one.webp").write_bytes(PICTURES[0].read_bytes())
    (tmp_path / "t.csv").write_text("image,text\na/one.webp,a fruit\nb/one.webp,a drum\n")
    found = read([tmp_path / "one.webp", tmp_path / "t.csv"], folder)
    assert found.pieces[0].caption == "one"
    assert "names 2 files called one.webp" in reasons(found)["t.csv"]


@pytest.mark.field
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "text," + ",".join(f"c{n}" for n in range(100)) + "\n"),
        ("a.tsv", "text\t" + "\t".join(f"c{n}" for n in range(100)) + "\n"),
        ("a.jsonl", "".join(f'{{"text": "a", "c{n}": 1}}\n' for n in range(100))),
        ("a.jsonl", "[" + ",".join("1" * 101) + "]\n"),
    ],
)
def test_a_table_of_very_many_columns_is_refused_before_it_is_read(folder, tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert reasons(read([tmp_path / name], folder))[name] == "has 101 columns, more than the limit of 100"


@pytest.mark.field
def test_the_files_of_all_archives_together_are_counted(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "MAX_MEMBERS", 5)
    paths = [packed(tmp_path / f"{n}.zip", {f"{i}.png": b"x" for i in range(3)}) for n in range(3)]
    found = read(paths, folder)
    assert len(found.pieces) == 5 and [entry.name for entry in found.left_out] == ["1.zip", "2.zip"]


def test_no_name_of_an_archive_becomes_a_path(folder, tmp_path):
    names = ["../up.png", "/etc/cron.d/x.png", "a/../../up.png", "..\\up.png", "C:\\up.png", "fine.png"]
    path = packed(tmp_path / "a.zip", dict.fromkeys(names, b"x"))
    found = read([path], folder)
    assert [piece.name for piece in found.pieces] == ["fine.png"]
    assert set(reasons(found).values()) == {"has a path that leads outside the archive"} and len(found.left_out) == 5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zip", "unpacked"]
    assert [p.parent for p in folder.rglob("*")] == [folder]


def test_a_bomb_is_stopped_at_the_limit_whatever_it_says_of_itself(folder, tmp_path):
    path = packed(tmp_path / "bomb.zip", {"big.png": bytes(30 * 10**6), "small.png": b"x"})
    assert path.stat().st_size < 50_000
    lying = bytearray(path.read_bytes())
    at = lying.find(b"PK\x01\x02")
    lying[at + 24 : at + 28] = struct.pack("<I", 30 * 10**6)
    path.write_bytes(lying)
    found = read([path], folder, max_bytes=10**6)
    assert "exceeds the limit of 1 MB" in reasons(found)["big.png"]
    assert sum(p.stat().st_size for p in folder.iterdir()) <= 10**6


def test_an_endless_list_of_contents_is_refused_before_it_is_read(folder, tmp_path, monkeypatch):
    path = packed(tmp_path / "many.zip", {f"{i}.png": b"" for i in range(200)})
    monkeypatch.setattr(uploads, "MAX_DIRECTORY_BYTES", 1000)
    assert read([path], folder).left_out == [LeftOut("many.zip", "lists too many files; pack fewer")]


def test_a_zip64_record_does_not_get_an_endless_list_past_the_limit(folder, tmp_path, monkeypatch):
    """The last record says that the list is empty; zipfile believes the Zip64 record before it."""
    path = packed(tmp_path / "many.zip", {f"{i}.png": b"" for i in range(200)})
    data = path.read_bytes()
    end = data.rfind(b"PK\x05\x06")
    count, size, start = struct.unpack("<HII", data[end + 10 : end + 20])
    long = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, start)
    path.write_bytes(
        data[:end] + long + struct.pack("<4sLQL", b"PK\x06\x07", 0, end, 1) + data[end : end + 8] + bytes(14)
    )
    assert len(zipfile.ZipFile(path).infolist()) == 200
    monkeypatch.setattr(uploads, "MAX_DIRECTORY_BYTES", 1000)
    found = read([path], folder)
    assert found.pieces == [] and "is a Zip64 archive" in reasons(found)["many.zip"]


def test_only_so_many_members_are_looked_at(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "MAX_MEMBERS", 3)
    path = packed(tmp_path / "many.zip", {f"{i}.png": b"x" for i in range(5)})
    found = read([path], folder)
    assert len(found.pieces) == 3 and reasons(found)["many.zip"] == "holds 2 files more than the limit of 3"


def test_archives_that_cannot_be_read_and_what_is_odd_in_them_is_listed(folder, tmp_path):
    inner = io.BytesIO()
    packed(inner, {"a.png": b"x"})
    link = zipfile.ZipInfo("link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    path = packed(tmp_path / "a.zip", {"inner.zip": inner.getvalue(), "__MACOSX/._a.png": b"x", ".DS_Store": b"x"})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/passwd")
        archive.writestr("notes.pdf", b"x")
    damaged = bytearray(packed(tmp_path / "damaged.zip", {"a.png": os.urandom(1000)}).read_bytes())
    damaged[500] ^= 255
    (tmp_path / "damaged.zip").write_bytes(damaged)
    (tmp_path / "words.zip").write_text("no archive")
    (tmp_path / "empty.zip").write_bytes(b"")
    locked = bytearray(packed(tmp_path / "locked.zip", {"a.png": b"secret"}).read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        locked[locked.find(signature) + offset] |= 1  # "encrypted"
    (tmp_path / "locked.zip").write_bytes(locked)
    names = ("a", "damaged", "words", "empty", "locked")
    found = read([*(tmp_path / f"{name}.zip" for name in names), tmp_path / "gone.png"], folder)
    assert found.pieces == []
    assert [entry.sentence for entry in found.left_out] == [
        "link.png is a link, not a file",
        "a.png is damaged inside the archive",
        "words.zip is damaged or not a zip archive",
        "empty.zip is damaged or not a zip archive",
        "a.png is protected by a password or uses an unsupported compression",
        "gone.png did not arrive; please upload it again",
        "inner.zip is an archive inside an archive; upload it on its own",
        "notes.pdf is not a supported file type (.pdf)",
    ]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.csv", b"smell,taste\n1,2\n", "has no caption column (it has smell, taste)"),
        ("a.csv", b"image\nx.png\n", "has no caption column (it has image); name one text or caption or title"),
        ("a.csv", b'text\n"never closed\n', "cannot be read as a table of pairs: line"),
        ("a.csv", b"text\n", "holds no captions"),
        ("a.csv", b"", "cannot be read as a table of pairs"),
        ("a.csv", b"text\n\xff\xfe\x00\n", "cannot be read as a table of pairs"),
        ("a.jsonl", b"[" * 100_000, "cannot be read as a table of pairs"),
        ("a.jsonl", b"7\n8\n", "line 1: holds '7'; expected one object a line"),
        ("a.txt", b"\xff\xfe\x00", "is not UTF-8 text"),
        ("a.txt", b"\n \n", "holds no captions"),
    ],
)
def test_tables_that_cannot_be_used_are_listed(folder, tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    found = read([tmp_path / name], folder)
    assert found.pieces == [] and reason in reasons(found)[name]
    assert str(tmp_path) not in reasons(found)[name]


def test_a_large_table_is_refused(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "MAX_TABLE_BYTES", 10)
    (tmp_path / "a.txt").write_text("eleven chars")
    assert "is larger than" in reasons(read([tmp_path / "a.txt"], folder))["a.txt"]


def test_nothing_more_is_read_after_a_stop(folder):
    assert read(PICTURES, folder, stopped=lambda: True).pieces == []
