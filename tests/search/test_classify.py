"""Labels without training: the nearest text is the label."""

import json

import numpy as np
import pytest

from fusemix.cli import classify as command
from fusemix.search.classify import classify


def test_shares_are_a_softmax_of_the_cosines(tiny_model, encoders):
    items = tiny_model.embed("text", encoders["text"].encode(["a dog", "loud music"]))
    labels = ["music", "a dog", "rain"]
    shares = classify(tiny_model, items, labels, encoders["text"])
    cosines = items.numpy() @ tiny_model.embed("text", encoders["text"].encode(labels)).numpy().T
    expected = np.exp(cosines / 0.07)
    np.testing.assert_allclose(shares, expected / expected.sum(axis=1, keepdims=True), rtol=1e-4)
    assert shares[0].argmax() == 1


def test_the_command_labels_pictures(checkpoint, pairs, tmp_path, capsys):
    files = [str(pairs.parent / f"{name}.png") for name in ("red", "blue")]
    words = ["--checkpoint", str(checkpoint), "--image", *files]
    assert command.main([*words, "--labels", "red, blue , green", "--json", str(tmp_path / "out.json")]) == 0
    told = json.loads((tmp_path / "out.json").read_text())
    assert told["labels"] == ["red", "blue", "green"] and [item["file"] for item in told["items"]] == files
    for item in told["items"]:
        assert item["label"] == max(item["shares"], key=item["shares"].get)
        assert sum(item["shares"].values()) == pytest.approx(1, abs=1e-5)
    assert command.main([*words, "--labels", "red"]) == 2
    assert "at least two different labels" in capsys.readouterr().err
    assert command.main(["--checkpoint", str(checkpoint), "--labels", "a,b"]) == 2
    assert "Give one of --image and --audio" in capsys.readouterr().err
