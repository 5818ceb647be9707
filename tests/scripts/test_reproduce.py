"""The paper's recipes: their commands, what they miss, and small stand-ins in the real formats run to the end."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from fusemix.data.pairs import PairTable
from fusemix.datasets import join_tables
from fusemix.datasets.paper_recipes import ENCODERS, MODALITIES, RECIPES, Setting, commands, lacking
from scripts import join_tables as join_script
from scripts import reproduce
from tests.generation.test_generator import tiny_stable_unclip

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--image-encoder=efficientnet-lite0", "--text-encoder=minilm-l6", "--audio-encoder=whisper-tiny.en"]
TRAINING = ["--", "--depth=1", "--epochs=2", "--batch-size=16", "--eval-every=1", "--embed-dim=32"]


def setting(root, **more):
    roots = {name: Path(root) / name for name in MODALITIES}
    return Setting(roots=roots, work=Path(root) / "work", encoders=ENCODERS, **more)


def words(recipe, name, **more):
    return [c.arguments for c in commands(RECIPES[recipe], setting("/data", **more)) if c.name == name]


def test_the_training_command_has_the_papers_settings():
    (train,) = words("flickr30k", "train")
    facts = (
        "--recipe=paper --depth=4 --expansion=4 --dropout=0.6 --embed-dim=512 --mixup-alpha=1 --batch-size=40960 "
        "--epochs=500 --learning-rate=1e-3 --warmup-steps=100 --weight-decay=0.1 --temperature=0.07 --seed=42"
    )
    assert set(facts.split()) <= set(train)
    small = words("flickr30k", "train", seeds=(3, 4), training=["--epochs=2"])
    assert [command[-2:] for command in small] == [("--seed=3", "--epochs=2"), ("--seed=4", "--epochs=2")]


def test_four_datasets_are_trained_on_and_only_a_test_split_is_evaluated():
    tables = words("flickr30k", "table")
    assert [t[0] for t in tables] == ["coco", "visual-genome", "sbu", "cc3m", "flickr30k"]
    assert tables[1][-2:] == ("--karpathy", "/data/coco/dataset_coco.json")
    (join,) = words("flickr30k", "join")
    assert not any("flickr30k.parquet" in word for word in join)
    assert join[join.index("--splits") + 1 : join.index("--out")] == ("train", "val")
    tests = [c for c in words("flickr30k", "extract") if "flickr30k.parquet" in c[1]]
    assert len(tests) == 2 and all(c[-2:] == ("--split", "test") and "skip" not in c for c in tests)
    asked = words("flickr30k", "evaluate")
    assert [(c[5], c[7], c[9]) for c in asked] == [("text", "image", "test"), ("image", "text", "test")]
    assert [t[0] for t in words("clotho", "table")] == ["audiocaps", "clotho"]
    assert ENCODERS["audio"] in words("clotho", "extract")[0]


def test_audio_to_image_goes_through_text_into_the_decoders_space():
    (train,) = words("audio-to-image", "train")
    pairs = [train[i + 1 : i + 3] for i, word in enumerate(train) if word == "--latents"]
    assert [[piece.split("=")[0] for piece in pair] for pair in pairs] == [["image", "text"], ["audio", "text"]]
    assert [c.name for c in commands(RECIPES["audio-to-image"], setting("/data"))][-2:] == [
        "conditioner", "generate"
    ]  # fmt: skip


def test_datasets_to_train_on_can_be_chosen():
    (join,) = words("flickr30k", "join", train_on=["flickr30k"])
    assert join[1].startswith("flickr30k=")
    with pytest.raises(ValueError, match="'imagenet' cannot be trained on"):
        words("flickr30k", "train", train_on=["imagenet"])
    with pytest.raises(ValueError, match="names no dataset with audio and text"):
        words("clotho", "train", train_on=["coco"])


def test_joined_tables_keep_their_items_apart_and_leave_test_rows_out(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "7.png").write_text(name)
        rows = "7.png,one,train,7,x\n7.png,two,test,7,x\n,three,val,8,x\n"
        (tmp_path / name / "t.csv").write_text("image,text,split,group,more\n" + rows)
    pd.read_csv(tmp_path / "b/t.csv").to_parquet(tmp_path / "b/t.parquet")
    names = [f"a={tmp_path / 'a/t.csv'}", f"b={tmp_path / 'b/t.parquet'}"]
    arguments = ["--tables", *names, "--splits", "train", "val", "--out", str(tmp_path / "out.csv")]
    assert join_script.main(arguments) == 0
    table = PairTable.read(tmp_path / "out.csv")
    assert table.frame["text"].tolist() == ["one", "three"] * 2
    assert [Path(item.value).read_text() for item in table.items("image")] == ["a", "b"]
    assert len(set(table.groups.tolist())) == 4
    assert join_script.main(["--tables", "x", "--out", str(tmp_path / "o.csv")]) == 2
    with pytest.raises(FileNotFoundError, match="no table"):
        list(join_tables({"a": tmp_path / "gone.csv"}))


def gallery(number, start=0):
    """Real pictures with captions."""
    with open(ROOT / "demo/gallery/pairs.csv", newline="") as handle:
        rows = [row for row in csv.DictReader(handle) if row["image"] and row["text"]]
    return [(ROOT / "demo/gallery" / row["image"], row["text"]) for row in rows[start : start + number]]


def karpathy(root, dataset, splits):
    """A tiny Karpathy dataset: one split name a picture, two captions each."""
    entries = []
    for i, (split, (file, text)) in enumerate(zip(splits, gallery(len(splits)), strict=True)):
        folder = "val2014" if split != "train" else "train2014"
        place = root / (folder if dataset == "coco" else "flickr30k-images")
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place / f"{i}.jpg")
        sentences = [{"raw": raw, "tokens": raw.split()} for raw in (text, f"a picture of {text}")]
        entry = {"filename": f"{i}.jpg", "split": split, "sentences": sentences, "imgid": i}
        entries.append(entry | ({"filepath": folder, "cocoid": i} if dataset == "coco" else {}))
    (root / f"dataset_{dataset}.json").write_text(json.dumps({"images": entries, "dataset": dataset}))


def image_text(root):
    karpathy(root / "coco", "coco", ["train"] * 4 + ["restval"] * 2 + ["val"] * 3 + ["test"] * 3)
    karpathy(root / "flickr30k", "flickr30k", ["train"] * 2 + ["val"] * 1 + ["test"] * 4)
    (root / "visual-genome/VG_100K").mkdir(parents=True)
    regions, data = [], []
    for number, (file, text) in enumerate(gallery(4, start=20)):
        shutil.copy(file, root / f"visual-genome/VG_100K/{number}.jpg")
        regions.append({"id": number, "regions": [{"phrase": text}, {"phrase": "a corner"}]})
        data.append({"image_id": number, "coco_id": 10 if number == 3 else None, "flickr_id": None})
    (root / "visual-genome/region_descriptions.json").write_text(json.dumps(regions))
    (root / "visual-genome/image_data.json").write_text(json.dumps(data))
    for name, start in (("sbu", 30), ("cc3m", 40)):
        (root / name / "images/00000").mkdir(parents=True)
        links = [(f"http://x/{i}.jpg", text) for i, (_, text) in enumerate(gallery(4, start=start))]
        for i, (file, _) in enumerate(gallery(4, start=start)):
            shutil.copy(file, root / name / f"images/00000/{i:09d}.jpg")
        keys = [f"{i:09d}" for i in range(4)]
        frame = pd.DataFrame({"url": [url for url, _ in links], "key": keys, "status": "success"})
        frame.to_parquet(root / name / "images/00000.parquet")
        urls, texts = ("".join(f"{value}\n" for value in column) for column in zip(*links, strict=True))
        if name == "sbu":
            (root / "sbu/SBU_captioned_photo_dataset_urls.txt").write_text(urls)
            (root / "sbu/SBU_captioned_photo_dataset_captions.txt").write_text(texts)
        else:
            (root / "cc3m/Train_GCC-training.tsv").write_text("".join(f"{text}\t{url}\n" for url, text in links))


def audio_text(root):
    rng = np.random.default_rng(0)

    def sound(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, 0.3 * np.sin(np.arange(8000) * rng.uniform(0.05, 0.8)), 16_000)

    (root / "audiocaps").mkdir()
    for split, count in (("train", 6), ("val", 2), ("test", 3)):
        lines = [f"{i},{split}{i},30,a tone {split} {i}" for i in range(count) for _ in range(1 + (split != "train"))]
        header = "audiocap_id,youtube_id,start_time,caption\n"
        (root / f"audiocaps/{split}.csv").write_text(header + "\n".join(lines) + "\n")
        for i in range(count):
            sound(root / f"audiocaps/{split}/{split}{i}_30.wav")
    (root / "clotho").mkdir()
    for name, count in (("development", 4), ("validation", 2), ("evaluation", 3)):
        lines = [f"{i}.wav," + ",".join(f"{name} {i} said {n}" for n in range(5)) for i in range(count)]
        header = "file_name,caption_1,caption_2,caption_3,caption_4,caption_5\n"
        (root / f"clotho/clotho_captions_{name}.csv").write_text(header + "\n".join(lines) + "\n")
        for i in range(count):
            sound(root / f"clotho/{name}/{i}.wav")


def test_what_is_missing_is_said_precisely_and_where_it_comes_from(tmp_path, capsys):
    image_text(tmp_path)
    assert lacking(RECIPES["flickr30k"], setting(tmp_path)) == []
    for number in (9, 10, 11):
        (tmp_path / f"coco/val2014/{number}.jpg").rename(tmp_path / f"{number}.jpg")
    (coco,) = lacking(RECIPES["coco"], setting(tmp_path))
    assert "no pair of split test can be made" in coco and "3 files are not there, the first 9.jpg" in coco
    shutil.rmtree(tmp_path / "sbu/images")
    (tmp_path / "visual-genome/region_descriptions.json").unlink()
    shutil.rmtree(tmp_path / "flickr30k/flickr30k-images")
    flickr, genome, sbu = lacking(RECIPES["flickr30k"], setting(tmp_path))
    assert flickr.startswith("flickr30k: no pair of split test can be made from")
    assert "7 files are not there, the first 0.jpg. The splits are in caption_datasets.zip" in flickr
    assert "visual-genome: Visual Genome's region_descriptions.json is missing" in genome and "https://" in genome
    assert sbu.startswith("sbu: There is no folder of pictures") and "img2dataset" in sbu
    alone = lacking(RECIPES["flickr30k"], setting(tmp_path / "x", train_on=["visual-genome"]))
    assert any("dataset_coco.json, whose val and test pictures are dropped" in sentence for sentence in alone)
    assert reproduce.main(["flickr30k", "--root", str(tmp_path), "--work", str(tmp_path / "w")]) == 2
    assert sum(line.startswith("missing:") for line in capsys.readouterr().err.splitlines()) == 3
    assert not (tmp_path / "w").exists()
    assert reproduce.main(["flickr30k", "--root", str(tmp_path), "--dry-run"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 13 and all(line.startswith("fusemix ") for line in out)
    assert reproduce.main(["coco", "--data", "nothing=/x"]) == 2
    assert "--data takes DATASET=DIR" in capsys.readouterr().err


def test_flickr8k_still_runs_what_it_ran(capsys):
    assert reproduce.main(["--pairs", "p.csv", "--work", "w", "--seeds", "1", "--dry-run"]) == 0
    old_call = capsys.readouterr().out
    extract, evaluate = "fusemix extract --pairs p.csv --column", "--checkpoint w/seed1 --pairs p.csv --query"
    stores = "--split dev --latents image=w/image-dev text=w/text-dev --json w/seed1"
    assert old_call.splitlines() == [
        f"{extract} image --encoder efficientnet-lite0 --split train --out w/image-train",
        f"{extract} image --encoder efficientnet-lite0 --split dev --out w/image-dev",
        f"{extract} text --encoder minilm-l6 --split train --out w/text-train",
        f"{extract} text --encoder minilm-l6 --split dev --out w/text-dev",
        "fusemix train --latents image=w/image-train text=w/text-train --out w/seed1 --recipe paper --seed 1 "
        "--val-fraction 0.02 --eval-every 5 --save-every 5",
        f"fusemix evaluate {evaluate} text --gallery image {stores}/text_to_image.json",
        f"fusemix evaluate {evaluate} image --gallery text {stores}/image_to_text.json",
    ]
    assert reproduce.main(["flickr8k", "--pairs", "p.csv", "--work", "w", "--seeds", "1", "--dry-run"]) == 0
    assert capsys.readouterr().out == old_call
    assert reproduce.main(["flickr8k", "--root", "/data", "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("fusemix table flickr8k --root /data/flickr8k --out ")
    assert reproduce.main(["flickr8k", "--pairs", "p.csv", "--", "--epochs=2"]) == 2


@pytest.mark.slow
def test_flickr30k_to_the_end_on_stand_ins(tmp_path):
    image_text(tmp_path)
    arguments = ["flickr30k", "--root", str(tmp_path), "--work", str(tmp_path / "w"), *SMALL, *TRAINING]
    command = [sys.executable, str(ROOT / "scripts/reproduce.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    table = PairTable.read(tmp_path / "w/tables/image-text.parquet")
    assert set(table.splits()) == {"train", "val"}
    # coco: six train and three val pictures; three of Visual Genome's four (one is in COCO's test); four and four
    assert len(table.items("image")) == 9 + 3 + 4 + 4
    values = json.loads((tmp_path / "w/results.json").read_text())
    figures = values["runs"][0]["flickr30k text_to_image"]
    assert (figures["split"], figures["n_queries"], figures["n_gallery"]) == ("test", 8, 4)
    assert values["encoders"]["image"] == "efficientnet-lite0"
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0 and again.stderr.count("done before") == 7  # six tables and the training


@pytest.mark.slow
def test_audio_to_image_to_the_end_on_stand_ins(tmp_path):
    karpathy(tmp_path / "coco", "coco", ["train"] * 8 + ["val"] * 3 + ["test"] * 3)
    audio_text(tmp_path)
    tiny_stable_unclip(768).save_pretrained(tmp_path / "decoder")
    sounds = sorted((tmp_path / "clotho/development").iterdir()) + sorted((tmp_path / "audiocaps").rglob("*.wav"))
    rows = [(image, text, sounds[i], "train" if i < 9 else "val") for i, (image, text) in enumerate(gallery(12))]
    pd.DataFrame(rows, columns=["image", "text", "audio", "split"]).to_csv(tmp_path / "lead.csv", index=False)
    arguments = ["audio-to-image", "--root", str(tmp_path), "--work", str(tmp_path / "w"), *SMALL]
    arguments += ["--decoder", str(tmp_path / "decoder"), "--conditioner-pairs", str(tmp_path / "lead.csv")]
    command = [sys.executable, str(ROOT / "scripts/reproduce.py"), *arguments, *TRAINING]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "w/sound.png").is_file()
    figures = json.loads((tmp_path / "w/results.json").read_text())["runs"][0]
    assert figures["clotho audio_to_text"]["n_gallery"] == 15


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["coco", "audiocaps", "clotho"])
def test_the_other_recipes_to_the_end_on_stand_ins(recipe, tmp_path):
    if recipe == "coco":
        karpathy(tmp_path / "coco", "coco", ["train"] * 8 + ["val"] * 3 + ["test"] * 3)
        chosen = ["--train-on", "coco"]
    else:
        audio_text(tmp_path)
        chosen = []
    arguments = [recipe, "--root", str(tmp_path), "--work", str(tmp_path / "w"), *chosen, *SMALL, *TRAINING]
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts/reproduce.py"), *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads((tmp_path / "w/results.json").read_text())["runs"][0]
    assert all(values["split"] == "test" for name, values in figures.items() if name != "seed")
    assert len(figures) == 3
