"""The recipe of checkpoints/default: its table, its members' flags, its card. Training itself takes an hour."""

import pandas as pd
import typer

from fusemix.cli.train import SetCommand, train
from fusemix.encoders import PACKAGED
from scripts.release import train_default


def tables(tmp_path):
    flickr = pd.DataFrame({
        "image": ["a.jpg", "a.jpg", "b.jpg", "c.jpg"], "text": ["a dog", "one dog", "a cat", "a cow"],
        "audio": ["spoken.mp3", "", "", ""], "split": ["train", "train", "dev", "test"],
    })  # fmt: skip
    gallery = pd.DataFrame({
        "image": ["d.png", "e.png", ""], "text": ["a cake", "a car", "a bell"], "audio": ["", "", "bell.flac"],
        "split": ["train", "val", "train"], "group": ["cake", "car", "bell"],
    })  # fmt: skip
    spoken = pd.DataFrame({"audio": ["s.wav"], "text": ["a dog"], "group": ["0"], "split": ["train"]})
    paths = {}
    for name, frame in (("flickr8k", flickr), ("gallery", gallery), ("spoken", spoken)):
        paths[name] = tmp_path / name / "pairs.csv"
        paths[name].parent.mkdir()
        frame.to_csv(paths[name], index=False)
    return paths


def test_the_table_leaves_out_test_rows_and_real_voices_and_repeats_the_gallerys_training_pictures(tmp_path):
    paths = tables(tmp_path)
    speech = {"flickr8k": paths["spoken"], "gallery": paths["spoken"]}
    table = train_default.one_table(paths["flickr8k"], paths["gallery"], speech)
    pictures, sounds = table[table["image"] != ""], table[table["audio"] != ""]
    assert len(pictures) + len(sounds) == len(table)  # no row has both: sounds meet pictures through captions alone
    assert pictures["text"].value_counts().to_dict() == {"a dog": 1, "one dog": 1, "a cat": 1, "a cake": 3, "a car": 1}
    assert sorted(sounds["text"]) == ["a bell", "a dog", "a dog"]
    assert not table["audio"].str.contains("spoken.mp3").any()
    assert set(table["split"]) == {"train", "dev", "val"} and "test" not in set(table["split"])
    assert table["group"].str.match("(flickr8k|gallery)-").all()


def parse(words):
    """What ``fusemix train`` reads from these words: parameter -> value."""
    app = typer.Typer()
    app.command(cls=SetCommand)(train)
    return typer.main.get_command(app).make_context("train", words).params


def test_every_member_is_trained_with_flags_that_the_trainer_takes(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(train_default, "call", lambda script, *given: calls.append((script, [*map(str, given)])))
    monkeypatch.setattr(train_default, "join_cards", lambda *_: None)
    args = train_default.parse(["--flickr8k", "pairs.csv", "--work", str(tmp_path), "--seed", "7"])
    for name in train_default.MEMBERS:
        train_default.train_member(name, args)
    parsed = [parse(given) for _, given in calls]
    base, sounds = parsed[:2], parsed[2:]
    assert [script for script, _ in calls] == ["train.py"] * 4
    assert [a["recipe"] for a in (base[0], sounds[0])] == ["two-path", "views"]
    for first, then in (base, sounds):
        assert then["init"] == str(first["out"]) and then["frozen"] == ["image", "text"] and not first["frozen"]
        assert all(then[name] == first[name] for name in ("recipe", "embed_dim", "expansion", "seed"))
    assert base[0]["seed"] == 7 != sounds[0]["seed"]
    assert set(train_default.ENCODERS.values()) <= set(PACKAGED)


def test_the_card_of_a_member_tells_both_trainings(tmp_path):
    base, final = tmp_path / "base.md", tmp_path / "final.md"
    base.write_text("# b\n\n## Data\n\n- image+text: 5 pairs\n\n## Training\n\n9 s\n\n## Limits\n\nnone\n")
    final.write_text("# f\n\n## Data\n\n- audio+text: 3 pairs\n\n## Limits\n\nsome\n")
    train_default.join_cards(base, final)
    text = final.read_text()
    assert text.index("audio+text: 3") < text.index("image+text: 5") < text.index("9 s") < text.index("## Limits")
    assert "none" not in text and text.count("## Limits") == 1
