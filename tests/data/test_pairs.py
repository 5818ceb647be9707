import pandas as pd
import pytest

from fusemix.data.pairs import PairTable

CSV = """image,text,audio,split,group
a.png,a cat,,train,
a.png,the same cat,s.wav,train,
b.png,a dog,,dev,
,a dog without a picture,,dev,
c.png,,,dev,
d.png,one view,,test,house
e.png,other view,,test,house
"""


@pytest.fixture
def table(tmp_path):
    (tmp_path / "t.csv").write_text(CSV)
    return PairTable.read(tmp_path / "t.csv")


def test_rows_of_one_image_or_one_group_value_are_one_group(table):
    assert table.groups.tolist() == [0, 0, 2, 3, 4, 5, 5]


def test_a_shared_audio_file_joins_rows_too(tmp_path):
    (tmp_path / "t.csv").write_text("audio,text,image\ns.wav,one,\ns.wav,two,x.png\n,three,x.png\n,four,y.png\n")
    assert PairTable.read(tmp_path / "t.csv").groups.tolist() == [0, 0, 0, 3]


def test_items_are_distinct_and_cells_are_not(table, tmp_path):
    assert [item.row for item in table.items("image")] == [0, 2, 4, 5, 6]
    assert len(table.cells("image")) == 6
    assert table.items("image")[0].value == str((tmp_path / "a.png").resolve())


def test_files_are_found_from_the_tables_folder_on(tmp_path, monkeypatch):
    (tmp_path / "t").mkdir()
    (tmp_path / "t/t.csv").write_text("image,video,text\na.png,../v/b.mp4,one\n/c/d.png,,two\n")
    monkeypatch.chdir(tmp_path)
    table = PairTable.read("t/t.csv")
    assert [item.value for item in table.items("image")] == [str(tmp_path / "t/a.png"), "/c/d.png"]
    assert table.items("video")[0].value == str(tmp_path / "v/b.mp4") == table.value("video", 0)


def test_a_table_of_own_modalities_says_which(tmp_path):
    (tmp_path / "t.csv").write_text("smell,tremor\na,b\n")
    assert len(PairTable.read(tmp_path / "t.csv", own=("smell",))) == 1
    with pytest.raises(ValueError, match="expected at least one of image, audio, text, video, taste"):
        PairTable.read(tmp_path / "t.csv", own=("taste",))


def test_splits_and_empty_cells_select_rows(table):
    assert table.rows("text", "dev").tolist() == [2, 3]
    assert table.rows("image", "dev").tolist() == table.rows("image", "Validation").tolist() == [2, 4]
    assert table.has("text", "dev") and not table.has("audio", "dev") and not table.has("video")


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_every_format_gives_the_same_table(ending, tmp_path, table):
    path = tmp_path / f"copy.{ending}"
    frame = table.frame.replace("", None)
    if ending == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    elif ending == "parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, sep="," if ending == "csv" else "\t", index=False)
    copy = PairTable.read(path)
    pd.testing.assert_frame_equal(copy.frame, table.frame)
    assert copy.groups.tolist() == table.groups.tolist()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "", "cannot be read"),
        ("t.csv", "image,text\n", "has no rows"),
        ("t.csv", "picture,caption\na,b\n", "expected at least one of image, audio, text"),
        ("t.csv", 'image,text\na.png,"never closed\n', "cannot be read"),
        ("t.csv", "image,text\na.png,x,y,z\n", "cannot be read"),
        ("t.jsonl", '{"image": "a.png"\n', "cannot be read"),
        ("t.parquet", "not parquet", "cannot be read"),
        ("t.xlsx", "x", "not one of .csv"),
    ],
)
def test_a_malformed_table_is_refused_with_its_name(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        PairTable.read(tmp_path / name)


def test_a_malformed_row_is_named(tmp_path):
    (tmp_path / "t.csv").write_text("image,text\na.png,x\nb.png,y,z\n")
    with pytest.raises(ValueError, match="line 3"):
        PairTable.read(tmp_path / "t.csv")


def test_unknown_columns_and_splits_are_named(table):
    with pytest.raises(ValueError, match="no column 'video'"):
        table.rows("video")
    with pytest.raises(ValueError, match="There is no split 'holdout'; a split is one of train: train or training"):
        table.rows("image", "holdout")
    with pytest.raises(ValueError, match="no filled cell in column 'audio' in split 'dev'"):
        table.rows("audio", "dev")
