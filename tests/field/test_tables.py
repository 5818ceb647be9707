"""Tables, splits, cells, files and archives as users have them; the rules are in docs/tables.md."""

import csv
import io
import json
import os
import shutil
import tarfile
import unicodedata
from collections import Counter
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fusemix.data.import_latents import import_latents, open_latents
from fusemix.data.pair_set import PairSet
from fusemix.data.pairs import PairTable
from fusemix.datasets import DATASETS, Tally, join_tables, write_table
from fusemix.datasets.base import picture_endings
from fusemix.datasets.reader import read_table
from fusemix.datasets.splits import SIDES, closing, in_split, side_of, sides
from fusemix.model.config import TrainConfig

pytestmark = pytest.mark.field
INPUTS = Path(__file__).parent / "inputs"
FORMATS = ("csv", "tsv", "jsonl", "parquet")


@pytest.fixture
def given_input(tmp_path):
    """Copy an input where files may lie beside it."""

    def copy(name):
        return Path(shutil.copy(INPUTS / name, tmp_path / name))

    return copy


def written(path, rows):
    """Rows (dicts of text) in the format of the path's ending."""
    frame = pd.DataFrame(rows, dtype=object)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        frame.to_parquet(path, index=False)
    else:
        frame.to_csv(path, sep="," if path.suffix == ".csv" else "\t", index=False)
    return path


def joined(tmp_path, tables, **options):
    """Join, write and read."""
    write_table(join_tables(tables, **options), tmp_path / "joined.csv", Tally())
    return PairTable.read(tmp_path / "joined.csv")


# --- splits


def test_split_names_in_capitals_keep_their_meaning(given_input):
    table = PairTable.read(given_input("capital-splits.csv"))
    assert table.splits().tolist() == ["train", "val", "test"]
    assert [table.rows("text", name).tolist() for name in ("TRAIN", "validation", "Testing")] == [[0], [1], [2]]
    assert "3 rows: 1 train, 1 validate, 1 kept out (test); 0 left out." in table.summary()


@given(side=st.sampled_from(sorted(SIDES)), data=st.data())
def test_every_spelling_of_a_split_is_on_its_side(side, data):
    name = data.draw(st.sampled_from(SIDES[side]))
    spelled = "".join(data.draw(st.sampled_from([c, c.upper()])) for c in name)
    spelled = data.draw(st.sampled_from(["", " ", "\t", "\n"])) + spelled + data.draw(st.sampled_from(["", "  "]))
    assert side_of(spelled) == side
    assert sides([spelled, "", None, float("nan")], "t").tolist() == [side, "", "", ""]


@given(st.text(max_size=12).filter(lambda name: name.strip()))
def test_no_other_name_is_on_a_side(name):
    if name.strip().casefold() not in {known for names in SIDES.values() for known in names}:
        assert side_of(name) is None
        with pytest.raises(ValueError, match="whose meaning is not known"):
            sides([name], "t")


@pytest.mark.parametrize("ending", FORMATS)
def test_an_unknown_split_is_refused_with_the_rows_of_each(ending, tmp_path):
    rows = [{"text": str(i), "split": split} for i, split in enumerate(["Train"] * 3 + ["holdout"] * 2 + [""])]
    path = written(tmp_path / f"t.{ending}", rows)
    with pytest.raises(
        ValueError, match=r"split 'holdout', .*'Train' 3|split 'holdout', .*'train' 3.*'holdout' 2, \(none\) 1"
    ):
        PairTable.read(path)
    with pytest.raises(ValueError, match="holdout"):
        joined(tmp_path, {"a": path})


@pytest.mark.parametrize("header", ["Split", " split ", "SPLIT"])
def test_the_split_column_is_found_whatever_its_capitals(header, tmp_path):
    (tmp_path / "t.csv").write_text(f"Image,Text,{header},Group\na.jpg,x,Test,1\nb.jpg,y,train,1\n")
    table = PairTable.read(tmp_path / "t.csv")
    assert table.splits().tolist() == ["test", "train"] and table.groups.tolist() == [0, 0]
    assert len(table.items("image")) == 2


def test_rows_without_a_split_train_and_the_sentence_says_so(tmp_path):
    (tmp_path / "t.csv").write_text("text,split\na,train\nb,\nc,test\n")
    said = PairTable.read(tmp_path / "t.csv").summary()
    assert "3 rows: 2 train (1 without a split), 0 validate (training sets a share of the others aside), 1 kept" in said


def test_stores_of_capital_splits_are_divided_by_their_meaning(tmp_path):
    from fusemix.data.latent_writer import write_latents

    values = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    splits = ["Train"] * 16 + ["Val"] * 4 + ["TEST"] * 10
    stores = {m: write_latents(tmp_path / m, values, modality=m, name=m, splits=splits) for m in ("a", "b")}
    pairs = PairSet.join(stores)
    train, validation = pairs.divide(TrainConfig(seed=np.int64(3)))
    assert train.tolist() == list(range(16)) and validation.tolist() == list(range(16, 20))
    assert "30 pairs: 16 train, 4 validate, 10 kept out (test); 0 left out." in pairs.summary(TrainConfig())
    stores["b"] = write_latents(tmp_path / "c", values, modality="b", name="b", splits=["holdout"] * 30)
    stores["a"] = write_latents(tmp_path / "d", values, modality="a", name="a", splits=["holdout"] * 30)
    with pytest.raises(ValueError, match="'holdout' 30"):
        PairSet.join(stores)


def test_the_sentence_counts_every_row_and_says_why(tmp_path):
    (tmp_path / "t.csv").write_text("image,text,split\na.jpg,x,train\n,y,train\nc.jpg,z,dev\nd.jpg,w,test\n")
    table = PairTable.read(tmp_path / "t.csv")
    said = table.summary("image", "text")
    assert "3 rows: 1 train, 1 validate, 1 kept out (test); 1 left out: 1 without a cell in image." in said
    said = table.summary("image", split="train", kept=np.array([], dtype=int))
    assert said.endswith("4 left out: 1 without a cell in image, 2 of other splits, 1 that could not be used."), said
    assert closing({"": 5}) == (
        "5 rows: 5 train (without a split), 0 validate (training sets a share of the others aside), "
        "0 kept out (test); 0 left out."
    )


def test_an_absent_split_is_named_and_an_unknown_one_too():
    assert in_split(np.array(["dev", "val", "train"], dtype=object), "validation", "t").tolist() == [True, True, False]
    with pytest.raises(ValueError, match=r"t has no split 'test'; it has \['dev'\]"):
        in_split(["dev"], "test", "t")
    with pytest.raises(ValueError, match="There is no split 'holdout'"):
        in_split(["dev"], "holdout", "t")


# --- one reader


@pytest.mark.parametrize("read", [PairTable.read, lambda path: joined(path.parent, {"a": path})])
def test_an_unquoted_comma_is_refused_with_its_line_by_every_reader(read, given_input):
    with pytest.raises(ValueError, match=r"line 2 has 5 cells, the header has 4; a cell that holds a comma"):
        read(given_input("unquoted-comma.csv"))


@pytest.mark.parametrize("read", [PairTable.read, lambda path: joined(path.parent, {"a": path})])
def test_a_header_that_stands_twice_is_refused(read, given_input):
    with pytest.raises(ValueError, match=r"columns \['image'\] stand twice"):
        read(given_input("duplicate-header.csv"))


def test_the_line_of_a_stray_quote_is_the_files(given_input):
    with pytest.raises(ValueError, match=r"line 3: .* a cell that holds a quote is enclosed in quotes"):
        PairTable.read(given_input("wrong-line-number.tsv"))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(rows=st.lists(st.tuples(st.sampled_from(["x", "a\nb", "a\r\nb\nc", 'q"q']), st.integers(0, 2)), max_size=8))
def test_a_bad_row_is_named_by_its_line_whatever_stands_above(rows, tmp_path):
    path = tmp_path / "t.csv"
    with open(path, "w", newline="", encoding="utf-8") as handle:
        handle.write("\nimage,text\n")
        for text, blank in rows:
            handle.write(f'a.jpg,"{text.replace(chr(34), chr(34) * 2)}"\n' + "\n" * blank)
        handle.write("b.jpg,one,two\n")
    above = path.read_bytes().decode().split("b.jpg")[0]
    number = len(above.replace("\r\n", "\n").replace("\r", "\n").split("\n"))
    with pytest.raises(ValueError, match=f"line {number} has 3 cells"):
        PairTable.read(path)


def test_rows_know_their_lines(tmp_path):
    (tmp_path / "t.csv").write_text('text\n\n"two\nlines"\nthree\n\nlast\n')
    table = PairTable.read(tmp_path / "t.csv")
    assert [table.place(row) for row in range(3)] == ["line 3", "line 5", "line 7"]
    pd.DataFrame({"text": ["a", "b"]}).to_parquet(tmp_path / "t.parquet")
    assert PairTable.read(tmp_path / "t.parquet").place(1) == "row 2"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize(("ending", "text"), [("csv", "text\nä\n"), ("tsv", "text\nä\n"), ("jsonl", '{"text": "ä"}\n')])
def test_a_byte_order_mark_says_the_encoding(ending, text, encoding, tmp_path):
    mark = "\ufeff".encode(encoding) if encoding.endswith("le") else b""
    (tmp_path / f"t.{ending}").write_bytes(mark + text.encode(encoding))
    assert PairTable.read(tmp_path / f"t.{ending}").frame["text"].tolist() == ["ä"]


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_text_in_another_encoding_is_refused_with_its_line(ending, tmp_path):
    lines = {"csv": ["text", *(f"line {i}" for i in range(2000)), "caf\xe9"], "jsonl": ['{"text": "caf\xe9"}']}[ending]
    (tmp_path / f"t.{ending}").write_bytes("\n".join(lines).encode("latin-1"))
    with pytest.raises(ValueError, match=f"line {len(lines)}: is not utf-8 text .* save it as UTF-8"):
        PairTable.read(tmp_path / f"t.{ending}")
    (tmp_path / f"t.{ending}").write_bytes("text".encode("utf-16-le"))
    with pytest.raises(ValueError, match="line 1: holds a NUL character; is it UTF-16 without its mark"):
        PairTable.read(tmp_path / f"t.{ending}")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.jsonl", '{"text": "a"}\n\n{"text": "b", "text": "c"}\n', "line 3: the key 'text' stands twice"),
        ("t.jsonl", '{"text": "a"}\n[1]\n', r"line 2: holds '\[1\]'; expected one object a line"),
        ("t.jsonl", '{"text": "a"}\n\n{"text": \n', "line 3: is not JSON"),
        ("t.jsonl", '{"text": "a", "Text": "b"}\n', "stand twice"),
        ("t.jsonl", "", "has no rows"),
        ("t.csv", "image;text\na.jpg;x\n", "its header is the one column 'image;text'"),
        ("t.csv", "text,a\n\n\n", "has no rows"),
        ("t.csv", 'text,a\nx,y\n"never closed,y\nz,w\n', "line 3: unexpected end of data"),
        ("t.csv.gz", "text\nx\n", "the ending .gz is not one of"),
    ],
)
def test_what_cannot_be_understood_is_refused(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        PairTable.read(tmp_path / name)


def test_tables_of_no_rows_and_of_one(tmp_path):
    pd.DataFrame({"text": pd.Series([], dtype=object)}).to_parquet(tmp_path / "none.parquet")
    with pytest.raises(ValueError, match="has no rows"):
        PairTable.read(tmp_path / "none.parquet")
    for ending in FORMATS:
        table = PairTable.read(written(tmp_path / f"one.{ending}", [{"image": "a.jpg", "text": "x"}]))
        assert (len(table), table.groups.tolist(), table.source.tolist()) == (1, [0], [0])


CELL = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=12).map(str.strip)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(rows=st.lists(st.tuples(CELL, st.sampled_from(["", "0", "7", "007", "x"])), min_size=1, max_size=6))
def test_every_format_gives_the_same_table(rows, tmp_path):
    rows = [{"image": f"{i}.jpg", "text": text, "group": group} for i, (text, group) in enumerate(rows)]
    tables = [PairTable.read(written(tmp_path / f"t.{ending}", rows)) for ending in FORMATS]
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table.frame, tables[0].frame)
        assert table.groups.tolist() == tables[0].groups.tolist()
    assert tables[0].frame["text"].tolist() == [row["text"] for row in rows]


# --- cells


def test_a_list_of_texts_is_several_captions_of_one_item(given_input, tmp_path):
    table = PairTable.read(given_input("list-captions.jsonl"))
    assert table.frame["text"].tolist() == ["one", "two", "three"]
    assert table.groups.tolist() == [0, 0, 2] and table.source.tolist() == [0, 0, 1]
    assert [table.place(row) for row in range(3)] == ["line 1", "line 1", "line 2"]
    assert joined(tmp_path, {"a": tmp_path / "list-captions.jsonl"}).groups.tolist() == [0, 0, 2]


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_captions_of_one_cell_belong_together_without_a_file(ending, tmp_path):
    rows = [{"text": ["one", "", None, " two "]}, {"text": []}, {"text": ["three"]}]
    path = written(tmp_path / f"t.{ending}", rows)
    table = PairTable.read(path)
    assert table.frame["text"].tolist() == ["one", "two", "", "three"] and table.groups.tolist() == [0, 0, 2, 3]
    assert "2 captions in lists that are empty" in table.summary("text")
    again = joined(tmp_path, {"a": path})
    assert again.groups.tolist() == [0, 0, 2, 3]


def test_captions_in_numpy_arrays_come_apart_too(tmp_path):
    pd.DataFrame({"image": ["a.jpg"], "text": [np.array(["one", "two"])]}).to_parquet(tmp_path / "t.parquet")
    assert PairTable.read(tmp_path / "t.parquet").frame["text"].tolist() == ["one", "two"]


def test_one_latent_a_line_fits_a_table_whose_lines_hold_several_captions(given_input, tmp_path):
    table = PairTable.read(given_input("list-captions.jsonl"))
    values = np.eye(3, 4, dtype=np.float32)
    by_line = import_latents(values[:2], tmp_path / "l", modality="sensor", name="x", table=table)
    assert by_line.rows["item"].tolist() == [0, 0, 1]
    by_caption = import_latents(values, tmp_path / "c", modality="sensor", name="x", table=table)
    assert by_caption.rows["item"].tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="1 latents for the 2 rows .*3 with each caption"):
        import_latents(values[:1], tmp_path / "x", modality="sensor", name="x", table=table)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": ["a.jpg"], "text": "x"}, "line 2, column image: holds a list of 1; expected the path of a file"),
        ({"image": 7, "text": "x"}, 'line 2, column image: holds the number or date "7"; expected the path'),
        ({"image": True, "text": "x"}, "line 2, column image: holds the truth value"),
        ({"image": {"bytes": "x", "path": "a"}, "text": "x"}, r"column image: holds an object \(\"bytes, path\"\)"),
        ({"image": "https://example.org/a.jpg", "text": "x"}, "column image: holds the address"),
        (
            {"image": "a.jpg", "text": {"raw": "x"}},
            "line 2, column text: holds an object .* expected a text, or",
        ),
        ({"image": "a.jpg", "text": ["x", 3]}, "line 2, column text: holds a list with the number"),
        ({"image": "a.jpg", "text": [["x"]]}, "line 2, column text: holds a list with a list of 1"),
        ({"image": "a.jpg", "split": ["train"]}, "line 2, column split: holds a list of 1"),
        ({"image": "a.jpg", "group": {"id": 3}}, "line 2, column group: holds an object"),
        ({"image": "a.jpg", "text": "['one', 'two']"}, "line 2, column text: holds .* a list or bytes written as text"),
        ({"image": "a.jpg", "text": "b'hello'"}, "line 2, column text: holds .* a list or bytes written as text"),
        ({"image": "a.jpg", "group": "nan"}, "line 2, column group: holds 'nan', as programs write a missing value"),
    ],
)
def test_a_cell_of_another_kind_is_refused_with_row_and_column(row, message, tmp_path):
    (tmp_path / "t.jsonl").write_text('{"text": "fine"}\n' + json.dumps(row) + "\n")
    for read in (PairTable.read, lambda path: joined(tmp_path, {"a": path})):
        with pytest.raises(ValueError, match=message):
            read(tmp_path / "t.jsonl")


def test_bytes_are_refused_where_they_are_read_and_else_named(tmp_path):
    pq.write_table(pa.table({"text": [b"hello"]}), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="row 1, column text: holds 5 bytes; expected a text"):
        PairTable.read(tmp_path / "t.parquet")
    columns = {"text": ["x"], "thumbnail": [b"hello"], "meta": [{"a": 1}], "embedding": [[0.5, 1.5]], "price": [3]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    table = PairTable.read(tmp_path / "t.parquet")
    assert list(table.frame.columns) == ["text", "price"]
    assert "hold lists, objects or bytes: the columns 'embedding', 'meta', 'thumbnail'" in table.summary()
    (tmp_path / "t.jsonl").write_text('{"text": "x", "tags": "a"}\n{"text": "y", "tags": ["a"]}\n')
    assert list(PairTable.read(tmp_path / "t.jsonl").frame.columns) == ["text"]


def test_captions_that_only_look_like_lists_stay(tmp_path):
    texts = ["[Music]", "[1]", "b'day party", "('tis)", "a (b)", "None", "nan", "true"]
    path = written(tmp_path / "t.csv", [{"text": text} for text in texts])
    assert PairTable.read(path).frame["text"].tolist() == texts


def test_big_ids_do_not_merge_when_one_is_missing(given_input, tmp_path):
    table = PairTable.read(given_input("big-group-ids.jsonl"))
    assert table.frame["group"].tolist() == ["9007199254740993", "9007199254740992", ""]
    assert table.groups.tolist() == [0, 1, 2]
    ids = pa.table({"text": ["x", "y", "z"], "group": pa.array([2**63, 2**63 + 1, None], pa.uint64())})
    pq.write_table(ids, tmp_path / "t.parquet")
    assert PairTable.read(tmp_path / "t.parquet").groups.tolist() == [0, 1, 2]
    assert joined(tmp_path, {"a": tmp_path / "t.parquet"}).frame["group"][0] == f"a:{2**63}"


@pytest.mark.parametrize("ending", FORMATS)
def test_whole_numbers_that_came_through_floating_point(ending, tmp_path):
    frame = pd.DataFrame({"text": list("abcd"), "group": [3.0, 0.0, np.nan, 3.0]})
    path = tmp_path / f"t.{ending}"
    if ending == "parquet":
        frame.to_parquet(path)
    elif ending == "jsonl":
        path.write_text("".join(json.dumps({"text": t, "group": g}) + "\n" for t, g in frame.itertuples(index=False)))
    else:
        frame.to_csv(path, sep="," if ending == "csv" else "\t", index=False)
    table = PairTable.read(path)
    assert table.frame["group"].tolist() == ["3", "0", "", "3"] and table.groups.tolist() == [0, 1, 2, 0]
    assert joined(tmp_path, {"a": path}).frame["group"].tolist() == ["a:3", "a:0", "", "a:3"]


@pytest.mark.parametrize("big", [2.0**53, 1e17, -(2.0**60)])
@pytest.mark.parametrize("ending", FORMATS)
def test_ids_that_floating_point_has_merged_are_refused(ending, big, tmp_path):
    path = tmp_path / f"t.{ending}"
    frame = pd.DataFrame({"text": ["a", "b"], "group": [big, np.nan]})
    if ending == "parquet":
        frame.to_parquet(path)
    elif ending == "jsonl":
        path.write_text(f'{{"text": "a", "group": {big!r}}}\n{{"text": "b"}}\n')
    else:
        frame.to_csv(path, sep="," if ending == "csv" else "\t", index=False)
    with pytest.raises(ValueError, match=r"(line|row) [12], column group: holds .* merges whole numbers from 2\^53"):
        PairTable.read(path)


def test_names_that_look_like_numbers_stay_as_they_are(tmp_path):
    groups = ["007", "1e5", "3.00", "1.5", "0", "-0", "12e345678901"]
    path = written(tmp_path / "t.csv", [{"text": str(i), "group": group} for i, group in enumerate(groups)])
    assert PairTable.read(path).frame["group"].tolist() == groups


def test_other_kinds_of_cells_have_one_text(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"text": 7, "a": true, "b": 2.5, "c": null, "d": NaN, "e": 4.0}\n')
    assert PairTable.read(tmp_path / "t.jsonl").frame.iloc[0].tolist() == ["7", "true", "2.5", "", "", "4"]
    columns = {"text": ["x"], "day": [date(2024, 5, 1)], "time": pd.to_datetime(["2024-05-01T12:30"])}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    assert PairTable.read(tmp_path / "t.parquet").frame.iloc[0].tolist() == ["x", "2024-05-01", "2024-05-01T12:30:00"]


def test_integer_columns_are_no_dimensions_of_a_latent(tmp_path):
    frame = pd.DataFrame({"id": [0, 1], "d0": [0.5, 1.5], "d1": [2.5, 3.5]})
    frame.to_parquet(tmp_path / "l.parquet")
    with pytest.raises(ValueError, match=r"columns id \(int64\) beside 2 of floating point"):
        open_latents(tmp_path / "l.parquet")
    frame.set_index(pd.Index([5, 9]))[["d0", "d1"]].to_parquet(tmp_path / "l.parquet")  # pandas writes its row numbers
    assert open_latents(tmp_path / "l.parquet").dim == 2


# --- files


def test_one_file_under_many_spellings_is_one_item(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.jpg").write_bytes(b"x")
    (tmp_path / "link.jpg").symlink_to("a.jpg")
    (tmp_path / "other").symlink_to(tmp_path)
    names = ["a.jpg", "./a.jpg", "sub/../a.jpg", "link.jpg", "other/a.jpg", str(tmp_path / "a.jpg"), "sub\\..\\a.jpg"]
    path = written(tmp_path / "t.csv", [{"image": name, "text": str(i)} for i, name in enumerate(names)])
    for table in (PairTable.read(path), joined(tmp_path, {"a": path})):
        assert [item.value for item in table.items("image")] == [str(tmp_path / "a.jpg")]
        assert set(table.groups.tolist()) == {0}
    assert "1 cells name a file with backslashes" in PairTable.read(path).summary()


def test_capitals_are_not_guessed(tmp_path):
    path = written(tmp_path / "t.csv", [{"image": "a.jpg", "text": "x"}, {"image": "A.jpg", "text": "y"}])
    assert len(PairTable.read(path).items("image")) == 2


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_accents_in_another_unicode_form_find_the_file(form, tmp_path):
    on_disk = unicodedata.normalize({"NFC": "NFD", "NFD": "NFC"}[form], "café/é.jpg")
    (tmp_path / on_disk).parent.mkdir()
    (tmp_path / on_disk).write_bytes(b"x")
    names = [unicodedata.normalize(form, "café/é.jpg"), on_disk]
    path = written(tmp_path / "t.csv", [{"image": name, "text": str(i)} for i, name in enumerate(names)])
    (item,) = PairTable.read(path).items("image")
    assert Path(item.value).read_bytes() == b"x"


ODD = [
    "a#1.jpg",
    "50%.jpg",
    "what?.jpg",
    "[x].jpg",
    "two\nlines.jpg",
    " blank.jpg",
    "a'b\"c.jpg",
    "x,y.jpg",
    "$(a).jpg",
]


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet"])
def test_odd_file_names_survive_the_way_from_folder_to_table(ending, tmp_path):
    for name in ODD:
        (tmp_path / name).write_bytes(name.encode())
    tally = Tally()
    write_table(DATASETS["folder"](tmp_path, tally), tmp_path / f"t.{ending}", tally)
    found = [Path(item.value) for item in PairTable.read(tmp_path / f"t.{ending}").items("image")]
    assert sorted(path.name for path in found) == sorted(ODD) and all(path.is_file() for path in found)


def test_a_name_that_is_no_utf8_is_counted(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"x")
    with open(os.fsencode(tmp_path) + b"/caf\xe9.jpg", "wb"):
        pass
    tally = Tally()
    assert len(list(DATASETS["folder"](tmp_path, tally))) == 1
    assert tally.left_out == {"files whose names are not UTF-8, so that no table can name them": 1}


def test_what_lies_below_the_table_has_a_relative_path_and_else_is_refused(tmp_path):
    (tmp_path / "t").mkdir()
    rows = [{"image": "pics/a.jpg"}, {"image": "../pics/a.jpg"}, {"image": str(tmp_path / "t/b.jpg")}]
    table = PairTable.read(written(tmp_path / "t/t.csv", rows))
    assert [table.below(table.value("image", row)) for row in (0, 2)] == ["pics/a.jpg", "b.jpg"]
    with pytest.raises(ValueError, match="does not lie in .*/t, the folder of the table t.csv"):
        table.below(table.value("image", 1))


# --- folders and archives


def test_linked_folders_are_entered_once_and_what_is_skipped_is_named(tmp_path):
    outside, root = tmp_path / "outside", tmp_path / "root"
    outside.mkdir()
    (root / "in").mkdir(parents=True)
    (outside / "far.png").write_bytes(b"x")
    (outside / "far.txt").write_bytes("\ufefföde".encode("utf-16"))
    (root / "linked").symlink_to(outside)
    (root / "again").symlink_to(root / "in")
    (root / "circle").symlink_to(root)
    (root / "gone.jpg").symlink_to("nowhere.jpg")
    for name in (
        "in/near.jfif",
        "in/s.aiff",
        "in/t.aac",
        "in/v.mp4",
        "in/w.webm",
        "in/x.pdf",
        "in/y.pdf",
        "in/._near.jfif",
    ):
        (root / name).write_bytes(b"x")
    tally = Tally()
    pairs = list(DATASETS["folder"](root, tally))
    assert sorted(Path(p.image or p.audio).name for p in pairs) == [
        "far.png",
        "near.jfif",
        "s.aiff",
        "t.aac",
        "v.mp4",
        "w.webm",
    ]
    assert next(p.text for p in pairs if p.image.endswith("far.png")).lstrip("\ufeff") == "öde"
    assert tally.left_out == {
        "folders that are linked a second time": 2,
        "links that lead to no file": 1,
        "hidden files": 1,
        "files that are no picture or sound that can be read here (.pdf)": 2,
    }
    assert ", 2 folders that are linked a second time, 2 files that are no picture or sound" in tally.summary(Counter())


def test_pictures_are_those_that_can_be_decoded_here(tmp_path, monkeypatch):
    assert {".jpg", ".jfif", ".png", ".webp"} <= set(picture_endings())
    monkeypatch.setattr("fusemix.datasets.base.Image.registered_extensions", lambda: {".jpg": "JPEG", ".heic": "HEIF"})
    assert picture_endings() == (".jpg", ".heic")


def test_two_datasets_unpacked_side_by_side_keep_their_files(tmp_path):
    tables = []
    for name in ("shards-a", "shards-b"):
        out = tmp_path / f"{name}.csv"
        write_table(DATASETS["webdataset"](INPUTS / name, Tally(), unpack=tmp_path / "unpacked"), out, Tally())
        tables.append(PairTable.read(out))
    files = [Path(table.items("image")[0].value) for table in tables]
    contents = []
    for name in ("shards-a", "shards-b"):
        with tarfile.open(INPUTS / name / "00000.tar") as archive:
            contents.append(archive.extractfile("0.png").read())
    assert [file.read_bytes() for file in files] == contents and contents[0] != contents[1]


def test_an_archive_made_on_a_mac_keeps_its_captions(tmp_path):
    tally = Tally()
    (pair,) = DATASETS["webdataset"](INPUTS / "made-on-a-mac.tar", tally, unpack=tmp_path)
    with tarfile.open(INPUTS / "made-on-a-mac.tar") as archive:
        assert pair.text == archive.extractfile("./a.txt").read().decode().strip()
        assert Path(pair.image).read_bytes() == archive.extractfile("./a.png").read()
    assert tally.left_out == {"members that macOS or Windows added (._ names, __MACOSX, .DS_Store)": 2}


def tar(path, members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(order=st.permutations(range(6)), mode=st.sampled_from(["w", "w:gz"]))
def test_the_members_of_a_sample_may_lie_anywhere(order, mode, tmp_path):
    members = [(f"d/{key}.{kind}", f"{kind} {key}".encode()) for key in "abc" for kind in ("jpg", "txt")]
    shard = tar(tmp_path / "s.tar", [members[i] for i in order], mode)
    pairs = list(DATASETS["webdataset"](shard, Tally(), unpack=tmp_path / "u"))
    found = sorted((Path(pair.image).read_text(), pair.text) for pair in pairs)
    assert found == [(f"jpg {key}", f"txt {key}") for key in "abc"]


def test_members_that_lead_out_and_shards_that_grow_are_refused(tmp_path, monkeypatch):
    members = [
        ("../../a.jpg", b"x"),
        ("/etc/b.jpg", b"y"),
        ("c/../../d.jpg", b"z"),
        ("e.jpg", b"w"),
        ("e.txt", b"\xff"),
    ]
    tally = Tally()
    pairs = list(DATASETS["webdataset"](tar(tmp_path / "s.tar", members), tally, unpack=tmp_path / "u"))
    assert [Path(pair.image).read_bytes() for pair in pairs] == [b"w"] and pairs[0].text == ""
    assert tally.left_out == {"members whose names lead out of the archive": 3, "captions that are not UTF-8 text": 1}
    monkeypatch.setitem(DATASETS["webdataset"].__globals__, "MIN_GROWTH_BYTES", 1000)
    bomb = tar(tmp_path / "bomb.tar.gz", [(f"{i}.jpg", bytes(10**6)) for i in range(3)], "w:gz")
    with pytest.raises(ValueError, match=r"bomb\.tar\.gz grows to more than"):
        list(DATASETS["webdataset"](bomb, Tally(), unpack=tmp_path / "b"))


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-000", "train"),
        ("cc3m-validation-0007", "validation"),
        ("testament-0", ""),
        ("valley", ""),
        ("00000", ""),
    ],
)
def test_a_shard_is_of_the_split_that_a_word_of_its_name_is(name, split, tmp_path):
    shard = tar(tmp_path / f"{name}.tar", [("a.jpg", b"x"), ("a.json", b'{"caption": ["one", "two"]}')])
    pairs = list(DATASETS["webdataset"](shard, Tally(), unpack=tmp_path))
    assert [(pair.split, pair.text) for pair in pairs] == [(split, "one"), (split, "two")]


def test_a_shard_of_two_splits_is_refused_until_one_is_given(tmp_path):
    shard = tar(tmp_path / "train-test.tar", [("a.jpg", b"x")])
    with pytest.raises(ValueError, match="says train and test; give the split"):
        list(DATASETS["webdataset"](shard, Tally(), unpack=tmp_path))
    assert next(DATASETS["webdataset"](shard, Tally(), unpack=tmp_path, split="Test")).split == "test"
    with pytest.raises(ValueError, match="There is no split 'holdout'"):
        list(DATASETS["webdataset"](shard, Tally(), unpack=tmp_path, split="holdout"))


# --- inputs and outputs


def test_a_missing_input_is_named_and_not_the_output(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^There is no table .*gone\.csv\.$"):
        joined(tmp_path, {"a": tmp_path / "gone.csv"})
    first = written(tmp_path / "a.csv", [{"text": "x"}])

    def pairs():
        yield from join_tables({"a": first})
        raise FileNotFoundError("There is no shard 2.")

    with pytest.raises(FileNotFoundError, match=r"^There is no shard 2\.$"):
        write_table(pairs(), tmp_path / "out/joined.csv", Tally())
    assert not list((tmp_path / "out").iterdir())


def test_a_joined_table_says_what_it_left_out(tmp_path):
    rows = [{"image": "a.jpg", "text": "x", "split": s, "group": "0", "price": 3} for s in ("Train", "dev", "TEST")]
    path, tally = written(tmp_path / "t.jsonl", rows), Tally()
    counts = write_table(join_tables({"a": path}, splits=["train", "val"], tally=tally), tmp_path / "j.tsv", tally)
    assert tally.summary(counts) == (
        "2 pairs: 1 train, 1 validate, 0 kept out (test); 1 left out: 1 rows of other splits than train, val."
    )
    assert tally.notes == [f"{path}: the columns price are not taken into a joined table."]
    with open(tmp_path / "j.tsv", newline="", encoding="utf-8") as handle:
        assert [row["group"] for row in csv.DictReader(handle, delimiter="\t")] == ["a:0", "a:0"]
    with pytest.raises(ValueError, match="There is no split 'holdout'"):
        joined(tmp_path, {"a": path}, splits=["holdout"])
    odd = written(tmp_path / "odd.tsv", [{"picture": "a.jpg", "caption": "x"}])
    with pytest.raises(ValueError, match=r"columns .*picture.*; expected at least one of image"):
        joined(tmp_path, {"a": odd})


def test_a_joined_table_counts_the_rows_of_unknown_splits_to_its_end(tmp_path):
    path = written(tmp_path / "t.csv", [{"text": "x", "split": "train"}, {"text": "y", "split": "eval"}] * 10_001)
    with pytest.raises(ValueError, match="'train' 10,001, 'eval' 10,001"):
        joined(tmp_path, {"a": path})


def test_the_reader_gives_text_alone(tmp_path):
    frame = read_table(written(tmp_path / "t.parquet", [{"text": "x", "n": 3}]), Tally())
    assert frame.map(type).stack().unique().tolist() == [str]


def test_commands_end_by_saying_how_many_rows_are_where(tmp_path, capsys):
    from scripts import import_latents as import_script
    from scripts import join_tables as join_script

    rows = [
        {"video": f"{i}.mp4" if i else "", "text": str(i), "split": s} for i, s in enumerate(["Test", "dev", "train"])
    ]
    path = written(tmp_path / "t.csv", rows)
    np.save(tmp_path / "l.npy", np.eye(2, 4, dtype=np.float32))
    arguments = ["--from", tmp_path / "l.npy", "--modality", "video", "--name", "x", "--out", tmp_path / "s"]
    assert import_script.main([*map(str, arguments), "--pairs", str(path), "--column", "video"]) == 0
    said = "2 rows: 1 train, 1 validate, 0 kept out (test); 1 left out: 1 without a cell in video."
    assert said in " ".join(capsys.readouterr().err.split())
    assert join_script.main(["--tables", f"a={path}", "--splits", "Train", "--out", str(tmp_path / "j.csv")]) == 0
    assert "1 left out" not in (out := capsys.readouterr().out) and "2 left out: 2 rows of other splits" in out
    assert join_script.main(["--tables", f"a={tmp_path / 'gone.csv'}", "--out", str(tmp_path / "x.csv")]) == 2
    err = " ".join(capsys.readouterr().err.split())
    assert "gone.csv" in err and "could not be written" not in err and not (tmp_path / "x.csv").exists()
