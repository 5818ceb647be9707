"""Tables and archives as spreadsheets, R, notebooks and interrupted programs leave them; rules: docs/tables.md."""

import gzip
import io
import json
import tarfile
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fusemix.data.pairs import PairTable
from fusemix.datasets import DATASETS, Pair, Tally, join_tables, write_table
from fusemix.datasets.base import SOUNDS, picture_endings
from fusemix.search.build import describe

pytestmark = pytest.mark.field


def table(tmp_path, text, name="t.csv"):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return tmp_path / name


def refused(path, message):
    """Every reader refuses it with the same sentence."""
    for read in (PairTable.read, lambda path: list(join_tables({"a": path}))):
        with pytest.raises(ValueError, match=message):
            read(path)


# --- cells


@pytest.mark.parametrize(
    "cell",
    [
        "['one', None]", "[None]", "[]", "[ 'one' ]", "( 'one', 'two' )", "[['one'], ['two']]", "['a' 'b' ... 'z']",
        "['one', 'two', ...]", "array(['one', 'two'], dtype=object)", "[array(['one'], dtype=object)]", "tensor([1])",
        "{'raw': 'one'}", '{"raw": null}', "{'a', 'b'}", "b'one'", "['a', nan]",
        "<PIL.JpegImagePlugin.JpegImageFile image mode=RGB size=32x32 at 0x7F>",
        "<PIL.Image.Image image mode=L size=8x8>",
    ],
)  # fmt: skip
@pytest.mark.parametrize("column", ["text", "image"])
def test_what_a_notebook_wrote_of_a_cell_is_no_caption_and_no_path(cell, column, tmp_path):
    other = "image" if column == "text" else "text"
    path = table(tmp_path, json.dumps({column: cell, other: "x"}) + "\n", "t.jsonl")
    refused(path, rf"line 1, column {column}: holds .* (a list or bytes|an object) written as text")


@pytest.mark.parametrize(
    "cell", ["[x].jpg", "(1, 2)", "['tis]", "<3", "{laughs}", "[1]", "array of birds", "<i>bird</i>"]
)
def test_what_only_begins_like_that_stays(cell, tmp_path):
    path = table(tmp_path, json.dumps({"image": cell, "text": cell}) + "\n", "t.jsonl")
    assert PairTable.read(path).frame.iloc[0].tolist() == [cell, cell]


@pytest.mark.parametrize("word", ["nan", "NA", "#N/A", "None", "<NA>", "null", "undefined"])
@pytest.mark.parametrize("column", ["image", "audio", "video", "group", "id"])
def test_a_missing_value_written_as_a_word_joins_no_rows(word, column, tmp_path):
    refused(
        table(tmp_path, f"text,{column}\nx,{word}\ny,{word}\n"), f"column {column}: holds '{word}', as programs write"
    )


@pytest.mark.parametrize("cell", ["1.23457E+14", "1,23457E+14", "1E+16", "9.00719925474099E+15", "1.7e18", "-1e+05"])
def test_ids_that_a_spreadsheet_shortened_are_refused(cell, tmp_path):
    refused(
        table(tmp_path, f'text,group\nx,"{cell}"\ny,"{cell}"\n'), r"line 2, column group: holds .* merges whole numb"
    )


def test_zero_with_a_sign_is_zero(tmp_path):
    assert PairTable.read(table(tmp_path, "text,group\nx,-0.0\ny,0\n")).groups.tolist() == [0, 0]


@pytest.mark.parametrize(("kind", "first"), [(pa.float32(), 2**24), (pa.float16(), 2**11)])
def test_narrow_floats_merge_ids_much_earlier(kind, first, tmp_path):
    for group, works in ((first - 1, True), (first, False), (-first, False)):
        values = pa.array([np.float16(group) if kind == pa.float16() else float(group), None], kind)
        pq.write_table(pa.table({"text": ["x", "y"], "group": values}), tmp_path / "t.parquet")
        if works:
            assert PairTable.read(tmp_path / "t.parquet").frame["group"].tolist() == [str(group), ""]
        else:
            refused(tmp_path / "t.parquet", "row 1, column group: holds .*in 32 bits from 2")


@pytest.mark.parametrize("number", ["1e400", "Infinity", "-Infinity"])
def test_an_infinite_id_is_refused(number, tmp_path):
    refused(table(tmp_path, f'{{"text": "x", "id": {number}}}\n', "t.jsonl"), "line 1, column id: holds")


@pytest.mark.parametrize(
    ("cell", "what"),
    [("file:///tmp/a.jpg", "write its path alone"), ("FILE:a.jpg", "write its path alone"),
     ("https:/e.org/a.jpg", "fetch"), ("data:image/png;base64,AAAA", "fetch"), ("s3://b/a.jpg", "fetch")],
)  # fmt: skip
def test_an_address_is_no_path_however_it_is_written(cell, what, tmp_path):
    refused(table(tmp_path, f'image,text\n"{cell}",x\n'), f"line 2, column image: holds the address .*{what}")


@pytest.mark.parametrize("column", ["text", "image", "other"])
def test_half_a_character_is_refused_where_it_is_read(column, tmp_path):
    path = table(tmp_path, f'{{"text": "x"}}\n{{"audio": "y", "{column}": "\\ud83d"}}\n', "t.jsonl")
    refused(path, f"line 2, column {column}: holds half of a surrogate pair")
    refused(table(tmp_path, '{"text": "x", "\\ud83d": 1}\n', "t.jsonl"), "half of a surrogate pair")


def test_a_date_out_of_range_is_one_sentence(tmp_path):
    pq.write_table(pa.table({"text": ["x"], "day": pa.array([10**15], pa.timestamp("ms"))}), tmp_path / "t.parquet")
    refused(tmp_path / "t.parquet", "column day: holds a date out of range")


# --- rows and columns


@pytest.mark.parametrize("column", ["set", "partition", "Subset", "data_split"])
def test_splits_in_a_column_of_another_name_are_not_trained_on(column, tmp_path):
    path = table(tmp_path, f"image,text,{column}\na.jpg,x,Train\nb.jpg,y,TEST\nc.jpg,z,\n")
    refused(path, f"has no column split, but its column '{column}' holds names of splits; rename it to split")
    assert len(
        PairTable.read(table(tmp_path, path.read_text().replace("image", "split,image").replace("\n", "\n,", 3)[:-1]))
    )
    for other in ("train\nb.jpg,y,train", "train\nb.jpg,y,station", "test\nb.jpg,y,test"):
        assert len(PairTable.read(table(tmp_path, f"image,text,{column}\na.jpg,x,{other}\n"))) == 2
    assert len(PairTable.read(table(tmp_path, "text,sensor\ntrain,val\ntest,test\n"), own=["sensor"])) == 2


def test_a_file_in_two_splits_is_told(tmp_path):
    rows = "a.jpg,x,train\n./a.jpg,y,test\nb.jpg,z,train\nb.jpg,w,\nc.jpg,v,val\nc.jpg,u,train\n"
    said = PairTable.read(table(tmp_path, "image,text,split\n" + rows)).summary()
    assert "2 files of image are in several splits: tested on and trained on." in said
    assert (
        "several splits"
        not in PairTable.read(table(tmp_path, "image,text,split\na.jpg,x,dev\na.jpg,y,val\n")).summary()
    )


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_two_tables_put_one_after_the_other_are_refused(mark, tmp_path):
    refused(table(tmp_path, f"image,text\na.jpg,x\n{mark}image,text\nb.jpg,y\n"), "line 3 repeats the header")
    assert len(PairTable.read(table(tmp_path, "text\ntext\n"))) == 1  # a caption


def test_a_quote_that_swallows_rows_is_refused_or_told(tmp_path):
    rows = 'image,text\na.jpg,"x\nb.jpg,y\nc.jpg,z"\nd.jpg,w\n'
    refused(table(tmp_path, rows.replace(",", "\t"), "t.tsv"), "from line 2 on holds line breaks and tabs; a quote")
    said = PairTable.read(table(tmp_path, rows)).summary()
    assert "go over several lines of the file, by a line break within quotes: 1, the first from line 2 on." in said


def test_rows_that_are_too_short_are_told_so(tmp_path):
    refused(
        table(tmp_path, "image,text,split\na.jpg,x\n"),
        "line 2 has 2 cells, the header has 3; empty cells have their comma",
    )


def test_invisible_marks_and_capitals_do_not_hide_a_column(tmp_path):
    path = table(tmp_path, "\ufeff\ufeffimage,\u200btext,Title,LICENSE,Source\na.jpg,x,T,CC0,S\n")
    found = PairTable.read(path)
    assert list(found.frame.columns) == ["image", "text", "title", "licence", "source"]
    shown = describe(found, "image", found.items("image")[0])
    assert (shown["title"], shown["licence"], shown["source"]) == ("T", "CC0", "S")


def test_a_long_caption_is_read_from_every_format(tmp_path):
    long = "x" * 200_000
    write_table(iter([Pair(image="a.jpg", text=long)]), tmp_path / "t.csv", Tally())
    assert PairTable.read(tmp_path / "t.csv").frame["text"][0] == long


def test_a_folder_is_not_called_missing(tmp_path):
    (tmp_path / "t.csv").mkdir()
    with pytest.raises(FileNotFoundError, match=r"t\.csv is a folder; give a table"):
        PairTable.read(tmp_path / "t.csv")


def test_a_table_of_objects_alone_is_told_what_it_lacks(tmp_path):
    pq.write_table(pa.table({"item": [{"text": "x"}]}), tmp_path / "t.parquet")
    refused(tmp_path / "t.parquet", "columns .*; expected at least one of")


@pytest.mark.parametrize("content", ['[{"text": "x"},\n', '{\n "text": "x"\n}\n', '{"text": "x"},\n'])
def test_json_that_is_not_one_object_a_line_is_told_so(content, tmp_path):
    refused(table(tmp_path, content, "t.jsonl"), "line 1: .*expected one object a line, in braces")


def test_spellings_of_a_missing_file_are_one_item(tmp_path):
    cells = ["sub\\é.jpg", "sub/é.jpg", unicodedata.normalize("NFD", "sub/é.jpg")]
    found = PairTable.read(table(tmp_path, "image,text\n" + "".join(f"{cell},x\n" for cell in cells)))
    assert len(found.items("image")) == 1 and set(found.groups) == {0}
    assert "Unicode form" not in found.summary()


# --- what is written can be read


@pytest.mark.parametrize("text", ["['one', 'two']", "a\0b", "\ud83d", "b'x'"])
def test_no_table_is_written_that_would_be_refused(text, tmp_path):
    with pytest.raises(ValueError, match=r"^The text of a\.jpg holds "):
        write_table(iter([Pair("b.jpg", "", "fine"), Pair("a.jpg", "", text)]), tmp_path / "t.csv", Tally())
    assert not (tmp_path / "t.csv").exists()


@pytest.mark.parametrize("name", ["NA", "null", "['a']", "{}", " blank", "data:x"])
def test_a_file_with_a_name_like_something_else_is_read_again(name, tmp_path):
    (tmp_path / name).write_bytes(b"x")
    write_table(iter([Pair(str(tmp_path / name), "", "x")]), tmp_path / "t.csv", Tally())
    assert PairTable.read(tmp_path / "t.csv").items("image")[0].value == str(tmp_path / name)


# --- archives


def tar(members, mode="w"):
    """Bytes of an archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


MEMBERS = [("a.jpg", b"1"), ("a.txt", b"one"), ("b.jpg", b"2"), ("b.txt", b"two")]


def shard(tmp_path, data, name="s.tar", **options):
    (tmp_path / name).write_bytes(data)
    tally = Tally()
    return list(DATASETS["webdataset"](tmp_path / name, tally, unpack=tmp_path / "u", **options)), tally


@pytest.mark.parametrize("cut", [512, 1024, 1100, 1536, 2048, 2148, 2600, 3072, 3584, 4000, 4096])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_shard_cut_short_anywhere_is_refused(cut, zipped, tmp_path):
    data = tar(MEMBERS)
    assert len(shard(tmp_path, data)[0]) == 2 and len(data) > 4096
    cut_short = gzip.compress(data[:cut]) if zipped else data[:cut]
    with pytest.raises(ValueError, match=r"s\.tar is not a \.tar shard, or cut short or damaged"):
        shard(tmp_path, cut_short)


@pytest.mark.parametrize("place", [10, 1034, 2058, 3082])
def test_a_shard_with_a_damaged_header_is_refused(place, tmp_path):
    data = bytearray(tar(MEMBERS))
    data[place] ^= 255
    with pytest.raises(ValueError, match="cut short or damaged .*(bad checksum|invalid header)"):
        shard(tmp_path, bytes(data))


def test_a_zipped_shard_with_a_wrong_checksum_is_refused(tmp_path):
    data = gzip.compress(tar(MEMBERS))
    with pytest.raises(ValueError, match="cut short or damaged .*CRC"):
        shard(tmp_path, data[:-8] + bytes(4) + data[-4:], "s.tar.gz")


def test_archives_put_one_after_the_other_are_refused(tmp_path):
    with pytest.raises(ValueError, match="goes on after its end"):
        shard(tmp_path, tar(MEMBERS) + tar([("c.jpg", b"3")]))


def test_samples_without_captions_are_told(tmp_path):
    json_list = [("a.jpg", b"1"), ("a.json", b'["one"]'), ("b.jpg", b"2"), ("b.json", b'{"sentences": ["two"]}')]
    pairs, tally = shard(tmp_path, tar([*json_list, ("c.jpg", b"3"), ("c.txt", b"three")]))
    assert sorted(pair.text for pair in pairs) == ["", "", "three"]
    assert tally.notes[0].startswith("2 of them have no caption (in a .txt, or in a .json with caption")


def test_the_folders_of_a_shard_name_splits_too(tmp_path):
    pairs, _ = shard(tmp_path, tar([("train/a.jpg", b"1"), ("Test/a.jpg", b"2"), ("x/a.jpg", b"3")]))
    assert [pair.split for pair in pairs] == ["train", "test", ""]
    with pytest.raises(ValueError, match="says train and test; give the split"):
        shard(tmp_path, tar([("test/a.jpg", b"1")]), "train-0.tar")
    assert shard(tmp_path, tar([("test/a.jpg", b"1")]), "train-0.tar", split="val")[0][0].split == "val"


@pytest.mark.parametrize("word", ["eval", "holdout", "development", "trainval"])
def test_a_shard_named_by_an_unclear_split_is_refused_until_it_is_given(word, tmp_path):
    with pytest.raises(ValueError, match=f"says {word}, which means different splits"):
        shard(tmp_path, tar(MEMBERS), f"{word}-000.tar")
    assert shard(tmp_path, tar(MEMBERS), f"{word}-000.tar", split="test")[0][0].split == "test"


def test_accents_of_a_picture_and_its_caption_may_differ_in_form(tmp_path):
    names = [unicodedata.normalize("NFD", "é.jpg"), unicodedata.normalize("NFC", "é.txt")]
    pairs, tally = shard(tmp_path, tar([(names[0], b"1"), (names[1], b"one")]))
    assert [pair.text for pair in pairs] == ["one"] and not tally.left_out
    for name, data in zip(names, (b"1", b"one"), strict=True):
        (tmp_path / "f").mkdir(exist_ok=True)
        (tmp_path / "f" / name).write_bytes(data)
    assert [pair.text for pair in DATASETS["folder"](tmp_path / "f", Tally())] == ["one"]


def test_what_lies_beside_the_shards_is_counted(tmp_path):
    for name in ("A.TAR", "b.tar.xz", ".hidden.tar"):
        (tmp_path / name).write_bytes(tar(MEMBERS))
    (tmp_path / "test").mkdir()
    tally = Tally()
    assert len(list(DATASETS["webdataset"](tmp_path, tally))) == 2
    assert tally.left_out == {"files and folders beside the shards, which are not read": 2}
    (tmp_path / "A.TAR").unlink()
    with pytest.raises(FileNotFoundError, match=r"There is no \.tar shard in .*; it holds b\.tar\.xz, test"):
        list(DATASETS["webdataset"](tmp_path, Tally()))


def test_hidden_members_are_no_samples(tmp_path):
    pairs, tally = shard(tmp_path, tar([(".a.jpg", b"1"), (".b.jpg", b"2"), ("._a.jpg", b"3"), ("a.jpg", b"4")]))
    assert [Path(pair.image).read_bytes() for pair in pairs] == [b"4"]
    assert tally.left_out["hidden members"] == 2


# --- folders


def tree(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"one")
    tally = Tally()
    return list(DATASETS["folder"](root, tally)), tally


def test_folders_named_as_splits_are_splits(tmp_path):
    pairs, tally = tree(tmp_path, "Train/a.jpg", "deep/test/b/c.jpg", "latest/d.jpg")
    assert {Path(pair.image).name: pair.split for pair in pairs} == {"a.jpg": "train", "c.jpg": "test", "d.jpg": ""}
    assert "The split of 2 pairs is their folder's: test, train." in tally.notes
    with pytest.raises(ValueError, match="says train and test"):
        tree(tmp_path, "train/test/e.jpg")


def test_captions_in_capitals_are_found(tmp_path):
    assert [pair.text for pair in tree(tmp_path, "a.jpg", "a.TXT")[0]] == ["one"]


def test_folders_that_systems_make_are_hidden(tmp_path):
    pairs, tally = tree(tmp_path, "a.jpg", "@eaDir/a.jpg/S.jpg", "$RECYCLE.BIN/x.jpg", "__MACOSX/a.jpg", ".git/b.jpg")
    assert len(pairs) == 1 and tally.left_out == {"hidden folders": 4}


def test_every_format_that_can_be_decoded_is_found(tmp_path):
    names = [f"{ending[1:]}{ending}" for ending in (".jp2", ".tga", ".psd", ".qoi", ".mp2", ".avi", ".m4v", ".spx")]
    pairs, tally = tree(tmp_path, *names)
    assert len(pairs) == len(names) and not tally.left_out
    assert {".heic", ".jxl"}.isdisjoint(picture_endings()) and ".ts" not in SOUNDS


# --- Hugging Face datasets


def saved(tmp_path, features=None, **columns):
    hf = pytest.importorskip("datasets", reason="the library datasets is not installed")
    kinds = {"string": hf.Value("string"), "label": hf.ClassLabel(names=["cat", "dog"]), "image": hf.Image()}
    features = hf.Features({name: kinds[kind] for name, kind in features.items()})
    hf.DatasetDict({"test": hf.Dataset.from_dict(columns, features=features)}).save_to_disk(tmp_path / "saved")
    tally = Tally()
    given = {"text_column": "label"} if "label" in columns else {}
    return list(DATASETS["huggingface"](tmp_path / "saved", tally, unpack=tmp_path / "u", **given)), tally


IMAGES = [{"bytes": data, "path": None} for data in (b"\x89PNG1", b"\x89PNG2", b"")]


def test_a_column_of_splits_says_more_than_the_part_of_a_dataset(tmp_path):
    pairs, tally = saved(
        tmp_path, {"image": "image", "text": "string", "caption": "string", "split": "string"},
        image=IMAGES, text=["a", "b", "c"], caption=["x", "y", "z"], split=["train", "val", "test"],
    )  # fmt: skip
    assert [(pair.text, pair.split) for pair in pairs] == [("a", "train"), ("b", "val")]
    assert tally.left_out == {"rows without a picture or a sound": 1}  # no bytes
    assert tally.notes == [
        "The captions are those of the column text; there are caption too.",
        "The splits are those of the column split, not of the part test.",
        "Not taken from test: the columns caption.",
    ]


def test_rows_of_one_class_are_right_answers_for_one_another(tmp_path):
    pairs, _ = saved(tmp_path, {"image": "image", "label": "label"}, image=IMAGES, label=[0, 0, 1])
    assert [(pair.text, pair.group, pair.split) for pair in pairs] == [("cat", "class cat", "test")] * 2
