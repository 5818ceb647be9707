"""Every reader on tiny files in the format its dataset has on disk."""

import csv
import io
import json
import re
import sys
import tarfile
import types
from pathlib import Path

import pandas as pd
import pytest

from fusemix import datasets
from fusemix.data.pairs import PairTable
from fusemix.datasets import DATASETS, Tally
from fusemix.datasets.base import stream_array
from scripts import make_table


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def write_json(path, value):
    path.write_text(json.dumps(value))
    return path


def table(dataset, root, *options, ending="csv"):
    """What the command writes, as (image or audio name, text, split, group), and the table."""
    out = root / f"pairs.{ending}"
    assert make_table.main([dataset, "--root", str(root), "--out", str(out), *map(str, options)]) == 0
    read = PairTable.read(out)
    frame = read.frame
    files = [Path(i or a).as_posix() for i, a in zip(frame["image"], frame["audio"], strict=True)]
    for column in ("image", "audio"):
        if (frame[column] != "").any():
            assert all(Path(item.value).is_file() for item in read.items(column))
    return list(zip(files, frame["text"], frame["split"], frame["group"], strict=True)), read


def missing(root, ending="csv"):
    return [tuple(line.split("\t")) for line in (root / f"pairs.{ending}.missing.txt").read_text().splitlines()]


def karpathy(dataset, images):
    """Karpathy's JSON: (folder, file, split, cocoid, captions) each."""
    entries = []
    for number, (folder, name, split, cocoid, texts) in enumerate(images):
        sentences = [{"tokens": t.split(), "raw": t, "imgid": number, "sentid": i} for i, t in enumerate(texts)]
        entry = {"filename": name, "imgid": number, "split": split, "sentences": sentences, "sentids": []}
        entries.append(entry | ({"filepath": folder, "cocoid": cocoid} if dataset == "coco" else {}))
    return {"images": entries, "dataset": dataset}


COCO = karpathy(
    "coco",
    [
        ("train2014", "COCO_train2014_000000000009.jpg", "train", 9, [" A plate\nof food. ", "Food."]),
        ("val2014", "COCO_val2014_000000000042.jpg", "restval", 42, ["Shoes."]),
        ("val2014", "COCO_val2014_000000000073.jpg", "val", 73, ["A bike.", ""]),
        ("val2014", "COCO_val2014_000000000074.jpg", "test", 74, ["one", "two", "three", "four", "five", "six"]),
        ("val2014", "COCO_val2014_000000000133.jpg", "test", 133, ["A bed."]),
    ],
)


def test_coco_counts_restval_as_train_and_lists_what_is_missing(tmp_path, capsys):
    write_json(tmp_path / "dataset_coco.json", COCO)
    touch(tmp_path, *(f"{e['filepath']}/{e['filename']}" for e in COCO["images"][:4]))
    rows, read = table("coco", tmp_path)
    assert rows[:4] == [
        ("train2014/COCO_train2014_000000000009.jpg", "A plate of food.", "train", "COCO_train2014_000000000009"),
        ("train2014/COCO_train2014_000000000009.jpg", "Food.", "train", "COCO_train2014_000000000009"),
        ("val2014/COCO_val2014_000000000042.jpg", "Shoes.", "train", "COCO_val2014_000000000042"),
        ("val2014/COCO_val2014_000000000073.jpg", "A bike.", "val", "COCO_val2014_000000000073"),
    ]
    assert [row[2] for row in rows[4:]] == ["test"] * 6
    assert len(set(read.groups[4:].tolist())) == 1  # all six are right answers
    assert missing(tmp_path) == [("test", "COCO_val2014_000000000133.jpg")]
    out = capsys.readouterr()
    assert "1 of 2 files of test are missing and left out; figures on the rest are not those of" in out.err
    assert "1 left out: captions that are empty" in out.err
    assert "10 pairs: 3 train, 1 validate, 6 kept out (test); 2 left out: 1 files that are" in out.out
    assert len(table("coco", tmp_path, "--captions", 5)[0]) == 9


def test_coco_finds_the_pictures_of_2017_too_and_parquet_is_the_same_table(tmp_path):
    write_json(tmp_path / "dataset_coco.json", COCO)
    touch(tmp_path, "images/train2017/000000000009.jpg", "images/val2017/000000000042.jpg")
    rows, read = table("coco", tmp_path)
    assert [row[0] for row in rows] == ["images/train2017/000000000009.jpg"] * 2 + ["images/val2017/000000000042.jpg"]
    same, copy = table("coco", tmp_path, ending="parquet")
    pd.testing.assert_frame_equal(read.frame, copy.frame)


def test_flickr30k(tmp_path):
    images = [("", f"{n}.jpg", s, None, [f"c{i} of {n}" for i in range(5)]) for n, s in ((10, "train"), (36, "test"))]
    annotations = write_json(tmp_path / "dataset_flickr30k.json", karpathy("flickr30k", images))
    touch(tmp_path, "flickr30k-images/10.jpg", "flickr30k-images/36.jpg")
    rows, _ = table("flickr30k", tmp_path)
    assert len(rows) == 10 and rows[5] == ("flickr30k-images/36.jpg", "c0 of 36", "test", "36")
    with pytest.raises(ValueError, match="describes 'flickr30k', not 'coco'"):
        list(DATASETS["coco"](tmp_path, Tally(), annotations=annotations))


def test_flickr8k_has_its_official_split(tmp_path, capsys):
    (tmp_path / "text").mkdir()
    lines = [f"{p}.jpg#{i}\tcaption {i} of {p} ." for p in ("a", "b", "c", "loose.jpg.1") for i in range(5)]
    (tmp_path / "text/Flickr8k.token.txt").write_text("\n".join(lines) + "\n")
    for split, photo in (("train", "a"), ("dev", "b"), ("test", "c")):
        (tmp_path / f"text/Flickr_8k.{split}Images.txt").write_text(f"{photo}.jpg\n")
    touch(tmp_path, "Flicker8k_Dataset/a.jpg", "Flicker8k_Dataset/b.jpg", "Flicker8k_Dataset/c.jpg")
    rows, read = table("flickr8k", tmp_path)
    assert len(rows) == 15 and rows[5] == ("Flicker8k_Dataset/b.jpg", "caption 0 of b .", "dev", "b")
    assert "1 left out: photos that are in none of the three split files" in capsys.readouterr().err
    (tmp_path / "text/Flickr8k.token.txt").write_text("a.jpg#0 no tab\n")
    with pytest.raises(ValueError, match="line 1: expected photo.jpg#number"):
        list(DATASETS["flickr8k"](tmp_path, Tally()))


PHRASES = [(1, ["the clock", "the clock ", "a street"]), (2, ["in test"]), (3, ["in train"]), (4, ["x"]), (5, ["val"])]


def visual_genome(root):
    regions = [
        {"id": n, "regions": [{"region_id": n, "image_id": n, "phrase": p, "x": 1, "y": 1} for p in phrases]}
        for n, phrases in PHRASES
    ]
    write_json(root / "region_descriptions.json", regions)
    data = [(1, None, None), (2, 74, 555), (3, 9, 556), (4, None, 36), (5, 73, None)]
    write_json(root / "image_data.json", [{"image_id": i, "coco_id": c, "flickr_id": f} for i, c, f in data])
    touch(root, "VG_100K/1.jpg", "VG_100K/2.jpg", "VG_100K_2/3.jpg", "VG_100K_2/4.jpg", "VG_100K/5.jpg")


def test_visual_genome_drops_what_is_tested_on_elsewhere(tmp_path, capsys):
    visual_genome(tmp_path)
    rows, _ = table("visual-genome", tmp_path)
    assert [row[1] for row in rows] == ["the clock", "a street", "in test", "in train", "x", "val"]
    assert "name dataset_coco.json as karpathy before you report figures on COCO" in capsys.readouterr().err
    coco = write_json(tmp_path / "dataset_coco.json", COCO)
    flickr = karpathy("flickr30k", [("", "36.jpg", "test", None, ["x"]), ("", "556.jpg", "train", None, ["x"])])
    rows, _ = table("visual-genome", tmp_path, "--karpathy", coco, write_json(tmp_path / "f.json", flickr))
    assert [row[:2] for row in rows] == [
        ("VG_100K/1.jpg", "the clock"), ("VG_100K/1.jpg", "a street"), ("VG_100K_2/3.jpg", "in train")
    ]  # fmt: skip
    out = capsys.readouterr().err
    assert "2 left out: pictures that stand in coco's val or test" in out
    assert "1 left out: pictures that stand in flickr30k's val or test" in out
    assert "1 left out: captions that stand twice on one picture" in out


def img2dataset(root, done, dead=()):
    """The folder img2dataset makes with --output_format files."""
    keys = [f"{i:09d}" for i in range(len(done) + len(dead))]
    status = ["success"] * len(done) + ["failed_to_download"] * len(dead)
    touch(root, *(f"00000/{key}.jpg" for key in keys[: len(done)]))
    frame = pd.DataFrame({"caption": "c", "url": [*done, *dead], "key": keys, "status": status, "width": 256})
    frame.to_parquet(root / "00000.parquet")


URLS = [f"http://farm1.staticflickr.com/{i}/{i}_abc.jpg" for i in range(4)]


def test_cc3m_joins_its_list_with_what_img2dataset_fetched(tmp_path):
    lines = [f"alt text {i}\t{url}" for i, url in enumerate(URLS)] + [f'a "quote\t{URLS[0]}']
    (tmp_path / "Train_GCC-training.tsv").write_text("\n".join(lines) + "\n")
    (tmp_path / "Validation_GCC-1.1.0-Validation.tsv").write_text(f"caption\turl\nheld out\t{URLS[1]}\n")
    img2dataset(tmp_path / "images", URLS[:2], [URLS[2], URLS[0]])  # a second try at the first address failed
    rows, _ = table("cc3m", tmp_path)
    assert [row[:3] for row in rows] == [
        ("images/00000/000000000.jpg", "alt text 0", "train"),
        ("images/00000/000000001.jpg", "alt text 1", "train"),
        ("images/00000/000000000.jpg", 'a "quote', "train"),
        ("images/00000/000000001.jpg", "held out", "val"),
    ]
    assert missing(tmp_path) == [("train", URLS[2]), ("train", URLS[3])]
    (tmp_path / "Train_GCC-training.tsv").write_text("only one cell\n")
    with pytest.raises(ValueError, match="line 1: expected a caption, a tab and an address"):
        list(DATASETS["cc3m"](tmp_path, Tally()))
    frame = pd.read_parquet(tmp_path / "images/00000.parquet").assign(key="../../../secret")
    frame.to_parquet(tmp_path / "images/00000.parquet")
    (tmp_path / "Train_GCC-training.tsv").write_text(f"x\t{URLS[0]}\n")
    with pytest.raises(ValueError, match="lies outside of it"):
        list(DATASETS["cc3m"](tmp_path, Tally()))


@pytest.mark.parametrize("form", ["txt", "json"])
@pytest.mark.parametrize("pictures", ["metas", "names"])
def test_sbu_in_both_forms(form, pictures, tmp_path):
    if form == "txt":
        (tmp_path / "SBU_captioned_photo_dataset_urls.txt").write_text("\n".join(URLS) + "\n")
        captions = "".join(f"photo {i}\n" for i in range(4))
        (tmp_path / "SBU_captioned_photo_dataset_captions.txt").write_text(captions)
    else:
        texts = [f"photo {i}" for i in range(4)]
        write_json(tmp_path / "sbu-captions-all.json", {"image_urls": URLS, "captions": texts, "user_ids": []})
    for i in (0, 3):
        if pictures == "names":
            touch(tmp_path, f"images/{i}_abc.jpg")
        else:
            touch(tmp_path, f"images/00000/00000000{i}.jpg")
            write_json(tmp_path / f"images/00000/00000000{i}.json", {"url": URLS[i], "key": "k", "status": "success"})
    rows, _ = table("sbu", tmp_path)
    assert [row[1:3] for row in rows] == [("photo 0", "train"), ("photo 3", "train")]
    assert [url for _, url in missing(tmp_path)] == URLS[1:3]
    if form == "txt":
        (tmp_path / "SBU_captioned_photo_dataset_captions.txt").write_text("one\n")
        with pytest.raises(ValueError, match="4 addresses for 1 captions"):
            list(DATASETS["sbu"](tmp_path, Tally()))


def test_audiocaps_finds_sounds_under_their_usual_names(tmp_path, capsys):
    header = "audiocap_id,youtube_id,start_time,caption\n"
    train = "1,-aE2O5G5WE,30,A dog barks\n2,gone,0,Rain\n3,zz,10,Wind\n"
    (tmp_path / "train.csv").write_text(header + train)
    (tmp_path / "test.csv").write_text(header + "".join(f'{i},tt,20,"A bell, {i}"\n' for i in range(10, 15)))
    touch(tmp_path, "train/-aE2O5G5WE_30.wav", "audio/3.flac", "train/tt.wav", "test/Ytt.wav")
    rows, _ = table("audiocaps", tmp_path)
    assert rows[:2] == [
        ("train/-aE2O5G5WE_30.wav", "A dog barks", "train", "-aE2O5G5WE"),
        ("audio/3.flac", "Wind", "train", "zz"),
    ]
    assert rows[2:] == [("test/Ytt.wav", f"A bell, {i}", "test", "tt") for i in range(10, 15)]
    assert missing(tmp_path) == [("train", "gone_0")]
    assert "There is no val.csv" in capsys.readouterr().err


def test_clotho_keeps_its_three_splits_apart(tmp_path):
    for name in ("development", "validation", "evaluation"):
        with open(tmp_path / f"clotho_captions_{name}.csv", "w", newline="") as handle:
            writer = csv.writer(handle)
            writer.writerow(["file_name", *(f"caption_{i}" for i in range(1, 6))])
            writer.writerow(["Wind, and rain (1).wav", *(f"{name} {i}" for i in range(1, 6))])
        touch(tmp_path, f"{name}/Wind, and rain (1).wav")
    rows, read = table("clotho", tmp_path)
    assert [row[2] for row in rows] == ["train"] * 5 + ["val"] * 5 + ["test"] * 5
    assert rows[5][:2] == ("validation/Wind, and rain (1).wav", "validation 1")
    assert len(set(read.groups.tolist())) == 3


def test_esc50_has_folds_and_a_class_is_one_group(tmp_path, capsys):
    (tmp_path / "meta").mkdir()
    lines = [
        f"{f}-100-A-{c}.wav,{f},{c},{n},True,100,A" for f in range(1, 6) for c, n in ((0, "dog"), (14, "sea_waves"))
    ]
    (tmp_path / "meta/esc50.csv").write_text("filename,fold,target,category,esc10,src_file,take\n" + "\n".join(lines))
    touch(tmp_path, *(f"audio/{line.split(',')[0]}" for line in lines))
    rows, read = table("esc50", tmp_path, "--test-fold", 2, "--val-fold", 3)
    assert [row[2] for row in rows[::2]] == ["train", "test", "val", "train", "train"]
    assert rows[1] == ("audio/1-100-A-14.wav", "sea waves", "train", "sea_waves")
    assert len(set(read.groups.tolist())) == 2 and len(read.items("text", "test")) == 2
    assert (
        make_table.main(["esc50", "--root", str(tmp_path), "--out", str(tmp_path / "x.csv"), "--test-fold", "7"]) == 2
    )
    assert "not 7" in capsys.readouterr().err and not (tmp_path / "x.csv").exists()


def write_tar(path, members):
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            if isinstance(data, str):
                info.type, info.linkname = tarfile.SYMTYPE, data
                archive.addfile(info)
            else:
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))


def test_webdataset_shards_are_unpacked_under_our_own_names(tmp_path, capsys):
    root = tmp_path / "shards"
    root.mkdir()
    members = [
        ("000.jpg", b"picture 0"), ("000.txt", "a café".encode()), ("000.json", b'{"caption": "not this"}'),
        ("000.pkl", b"cos\nsystem\n(S'touch /tmp/evil'\ntR."),
        ("001.png", b"picture 1"), ("001.json", b'{"caption": ["one", "two"]}'),
        ("etc/002.wav", b"sound"), ("etc/002.jpg", b"picture 2"), ("/etc/002.txt", b"no"), ("../../5.png", b"no"),
        ("003.txt", b"no picture"),
        ("004.jpg", "/etc/passwd"),
    ]  # fmt: skip
    write_tar(root / "train-000.tar", members)
    write_tar(root / "val-000.tar", [("000.jpg", b"picture 3"), ("000.txt", b"held out")])
    before = set(tmp_path.rglob("*"))
    rows, read = table("webdataset", root)
    contents = ["picture 0", "picture 1", "picture 1", "picture 2", "picture 3"]
    assert [(root / row[0]).read_text() for row in rows] == contents
    assert [row[1] for row in rows] == ["a café", "one", "two", "", "held out"]
    assert [row[2] for row in rows] == ["train"] * 4 + ["val"]
    assert [row[3] for row in rows[:4]] == ["train-000.tar/000"] + ["train-000.tar/001"] * 2 + ["train-000.tar/etc/002"]
    assert (root / read.frame["audio"][3]).read_text() == "sound"
    assert all(re.fullmatch(r"unpacked/(..)/\1[0-9a-f]{30}\.(jpg|png)", row[0]) for row in rows)
    new = {p for p in tmp_path.rglob("*") if p.is_file()} - before
    assert all(p.is_relative_to(root) for p in new) and len(new) == 6  # four pictures, one sound, the table
    err = capsys.readouterr().err
    assert "1 left out: members that end in .pkl (not read, and never unpickled)" in err
    assert "1 left out: members of a shard that are no plain files" in err
    assert "2 left out: members whose names lead out of the archive" in err
    assert "1 left out: samples without a picture or a sound" in err
    (root / "cut.tar").write_bytes((root / "train-000.tar").read_bytes()[:700])
    with pytest.raises(ValueError, match=r"cut\.tar is not a \.tar shard, or cut short"):
        list(DATASETS["webdataset"](root / "cut.tar", Tally(), unpack=tmp_path / "u"))


def test_hugging_face_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert make_table.main(["huggingface", "--root", "owner/name", "--out", str(tmp_path / "t.csv")]) == 2
    assert "fusemix[datasets]" in capsys.readouterr().err


def test_hugging_face_ids_are_asked_for_by_revision(tmp_path, monkeypatch):
    calls = []
    fake = types.ModuleType("datasets")
    fake.load_dataset = lambda *a, **k: calls.append((a, k)) or {}
    monkeypatch.setitem(sys.modules, "datasets", fake)
    list(DATASETS["huggingface"](Path("owner/name@abc"), Tally(), config="en"))
    assert calls == [(("owner/name", "en"), {"revision": "abc"})]


def test_a_hugging_face_dataset_saved_on_disk(tmp_path):
    hf = pytest.importorskip("datasets")
    png = (Path(__file__).parents[2] / "docs/search.png").read_bytes()
    rows = {
        "image": [{"bytes": png, "path": None}, {"bytes": png + b" ", "path": None}, None],
        "caption": [["a", " b "], ["c", ""], ["d"]],
        "number": [1, 2, 3],
    }
    features = hf.Features(
        {"image": hf.Image(), "caption": hf.Sequence(hf.Value("string")), "number": hf.Value("int8")}
    )
    part = hf.Dataset.from_dict(rows, features=features)
    hf.DatasetDict({"train": part, "test": part.select([0])}).save_to_disk(tmp_path / "saved")
    out = tmp_path / "pairs.csv"
    assert make_table.main(["huggingface", "--root", str(tmp_path / "saved"), "--out", str(out)]) == 0
    read = PairTable.read(out)
    assert read.frame["text"].tolist() == ["a", "b", "c", "a", "b"]
    assert read.frame["split"].tolist() == ["train"] * 3 + ["test"] * 2
    assert Path(read.items("image")[1].value).read_bytes() == png + b" "
    assert re.fullmatch(r"unpacked/(..)/\1[0-9a-f]{30}\.png", read.frame["image"][0])
    with pytest.raises(ValueError, match="no column 'x'"):
        list(DATASETS["huggingface"](tmp_path / "saved", Tally(), unpack=tmp_path / "u", text_column="x"))
    with pytest.raises(ValueError, match=r"splits \['test', 'train'\], not 'val'"):
        list(DATASETS["huggingface"](tmp_path / "saved", Tally(), unpack=tmp_path / "u", split="val"))


def test_sounds_of_a_hugging_face_dataset_are_not_decoded(tmp_path):
    hf = pytest.importorskip("datasets")
    sound = {"bytes": hf.Value("binary"), "path": hf.Value("string")}
    features = hf.Features({"sound": sound, "caption": hf.Value("string")})
    rows = {"sound": [{"bytes": b"RIFF....WAVE", "path": "x"}], "caption": ["a bell"]}
    part = hf.Dataset.from_dict(rows, features=features).cast_column("sound", hf.Audio())
    part.save_to_disk(tmp_path / "saved")
    assert make_table.main(["huggingface", "--root", str(tmp_path / "saved"), "--out", str(tmp_path / "t.csv")]) == 0
    read = PairTable.read(tmp_path / "t.csv")
    assert re.fullmatch(r"unpacked/(..)/\1[0-9a-f]{30}\.wav", read.frame["audio"][0])
    assert Path(read.items("audio")[0].value).read_bytes() == b"RIFF....WAVE"


def test_a_folder_of_your_own_files(tmp_path, capsys):
    touch(tmp_path, "walk/dog.JPG", "walk/dog.wav", "red_bicycle-02.png", ".hidden/x.png", "walk/.y.png", "notes.pdf")
    (tmp_path / "walk/dog.txt").write_text("\ufeffa dog\n\n  the  dog barks \n", encoding="utf-8")
    rows, _ = table("folder", tmp_path)
    assert rows == [
        ("red_bicycle-02.png", "", "", "red_bicycle-02"),
        ("walk/dog.JPG", "a dog", "", "walk/dog"),
        ("walk/dog.JPG", "the dog barks", "", "walk/dog"),
    ]
    assert "1 of them have no caption" in capsys.readouterr().err
    rows, read = table("folder", tmp_path, "--name-is-caption")
    assert rows[0][1] == "red bicycle"
    assert [Path(a).name for a in read.frame["audio"]] == ["", "dog.wav", "dog.wav"]
    (tmp_path / "walk/dog.txt").write_bytes(b"\xff\xfe\x00")
    assert make_table.main(["folder", "--root", str(tmp_path), "--out", str(tmp_path / "pairs.csv")]) == 2


@pytest.mark.parametrize("dataset", sorted(set(DATASETS) - {"huggingface"}))
def test_an_empty_folder_is_answered_with_what_is_missing_and_where_it_comes_from(dataset, tmp_path, capsys):
    assert make_table.main([dataset, "--root", str(tmp_path), "--out", str(tmp_path / "t.csv")]) == 2
    err = " ".join(capsys.readouterr().err.split())
    assert (
        "is missing" in err
        or "are missing" in err
        or "There is no .tar shard" in err
        or "no picture or sound below" in err
    )
    assert (
        dataset in ("webdataset", "folder")
        or "It comes from" in err
        or "https://" in err
        or "University of Illinois" in err
    )
    assert not list(tmp_path.iterdir())


def test_a_folder_without_the_pictures_writes_no_table(tmp_path, capsys):
    write_json(tmp_path / "dataset_coco.json", COCO)
    assert make_table.main(["coco", "--root", str(tmp_path), "--out", str(tmp_path / "t.csv")]) == 2
    assert "None of the 5 files that the annotations name exists" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["dataset_coco.json"]
    assert make_table.main(["coco", "--root", str(tmp_path), "--out", "x", "--test-fold", "2"]) == 2
    assert "coco does not take --test-fold; it takes --annotations, --captions" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"a table ends in one of \.csv"):
        datasets.write_table([], tmp_path / "t.xlsx", Tally())


@pytest.mark.parametrize(("name", "content"), [("a", "{"), ("b", '{"images": [{}]}'), ("c", '{"images": 3}')])
def test_a_damaged_annotation_file_is_named(name, content, tmp_path):
    (tmp_path / "dataset_coco.json").write_text(content)
    with pytest.raises(ValueError, match=r"dataset_coco\.json is not"):
        list(DATASETS["coco"](tmp_path, Tally()))


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 7, 1 << 20])
def test_a_json_array_is_read_piece_by_piece(chunk, tmp_path, monkeypatch):
    monkeypatch.setattr("fusemix.datasets.base._CHUNK", chunk)
    values = [{"a": [1, {"b": "x]é,"}]}, 12345, "two", [], None, 3.25, -7, *(n + 0.5 for n in range(40))]
    path = write_json(tmp_path / "a.json", values)
    assert list(stream_array(path)) == values
    path.write_text("\n [ 1 ,2\n, 3 ]\n")
    assert list(stream_array(path)) == [1, 2, 3]
    path.write_text(json.dumps(values[:7])[:-8])
    with pytest.raises(ValueError, match="cut short after element 4|cut short after element 5"):
        list(stream_array(path))
    path.write_text('{"a": 1}')
    with pytest.raises(ValueError, match="not a JSON array"):
        list(stream_array(path))


def test_every_dataset_states_its_protocol_and_traps(capsys):
    for name in DATASETS:
        assert make_table.main([name, "--about"]) == 0
        about = capsys.readouterr().out
        assert "nown traps" in about or "captions per picture" in about, name
