"""The audit finds what was planted, and says nothing about clean pairs."""

import csv

import numpy as np
import pytest
from PIL import Image

from fusemix.cli import audit as command
from fusemix.data.latent_writer import row_index, write_latents
from fusemix.data.pairs import PairTable
from fusemix.evaluation import audit as a


def paired(photos=400, captions=1, noise=0.2, seed=0):
    """Latents of photos with several captions each: x (N, 12), y (N, 9), groups (N,)."""
    rng = np.random.default_rng(seed)
    cause = rng.normal(size=(photos, 8))
    photo = cause @ rng.normal(size=(8, 12)) + noise * rng.normal(size=(photos, 12)) + 1
    groups = np.repeat(np.arange(photos), captions)
    y = cause[groups] @ rng.normal(size=(8, 9)) + noise * rng.normal(size=(photos * captions, 9)) + 1
    return photo[groups].astype(np.float32), y.astype(np.float32), groups


def no_splits(groups):
    return np.full(len(groups), "", dtype=object)


@pytest.mark.parametrize("captions", [1, 4])
def test_swapped_captions_are_the_worst_rows(captions):
    x, y, groups = paired(captions=captions, noise=0.1)
    swapped = np.random.default_rng(1).choice(len(y), len(y) // 20, replace=False)
    y[swapped] = y[np.roll(swapped, 1)]
    found = a.audit(x, y, groups, no_splits(groups))
    worst = set(found.order[: len(swapped)].tolist())
    assert len(worst & set(swapped.tolist())) > 0.7 * len(swapped)
    assert abs(found.random - len(swapped)) < 0.5 * len(swapped)
    assert all(found.reasons[row][0].startswith("sides disagree") for row in found.order[:10])
    assert list(found.recall) == [0.0, 0.01, 0.02, 0.05] and found.recall[0.05] > 0.5


def test_clean_pairs_are_left_alone():
    x, y, groups = paired()
    found = a.audit(x, y, groups, no_splits(groups))
    assert len(found.reasons) < 0.02 * len(x) and found.random <= 0.01 * len(x)
    assert "nothing found" in a.Audit(found.score, {}, found.order, 0, found.recall).sentence()


def test_a_photo_that_none_of_its_captions_fits_is_found_though_they_agree():
    x, y, groups = paired(captions=4)
    wrong = groups < 20  # each of these photos has the captions of the next one
    y[wrong] = np.roll(y[wrong], 4, axis=0)
    found = a.audit(x, y, groups, no_splits(groups))
    assert (found.score[wrong] < a.MISFIT).mean() > 0.4 and (found.score[~wrong] < a.MISFIT).mean() < 0.02


def test_no_row_judges_itself():
    rng = np.random.default_rng(0)  # wide strangers: a closed form fitted on them would know them by heart
    x, y = (rng.normal(size=(150, 140)).astype(np.float32) for _ in range(2))
    found = a.audit(x, y, np.arange(150), no_splits(x))
    assert abs(found.score.mean()) < 0.3 and 100 < found.random < 200


def test_agreement_is_the_standardised_locally_scaled_cosine():
    rng = np.random.default_rng(0)
    similarity = rng.normal(size=(30, 30)) * 0.1
    same = np.eye(30, dtype=bool)
    off = np.where(same, -np.inf, similarity)
    near = [np.sort(s, axis=1)[:, -10:].mean(axis=1) for s in (off, off.T)]
    scaled = np.array([[2 * similarity[i, j] - near[0][i] - near[1][j] for j in range(30)] for i in range(30)])
    strangers = np.array([scaled[i, j] for i in range(30) for j in range(30) if i != j])
    expected = [(scaled[i, i] - strangers.mean()) / strangers.std() for i in range(30)]
    np.testing.assert_allclose(a._agreement(similarity, same), expected, rtol=1e-6)


def test_leaks_hubs_and_empty_latents_are_named():
    x, y, groups = paired()
    splits = np.array(["train"] * 300 + ["test"] * 100, dtype=object)
    x[350] = x[10]
    y[20] = y.mean(axis=0)  # a caption that says nothing
    x[30], x[31] = 0, np.nan
    found = a.audit(x, y, groups, splits)
    assert any("nearly that of row 10 in split train" in why for why in found.reasons[350])
    assert found.reasons[30][0].startswith("empty or constant") and found.reasons[31][0].startswith("empty")
    assert set(found.order[:2].tolist()) == {30, 31}
    with pytest.raises(ValueError, match="at least 50 groups"):
        a.audit(x[:40], y[:40], groups[:40], splits[:40])


def test_an_item_near_to_everything_is_a_hub():
    similarity = np.random.default_rng(0).normal(size=(200, 200)) * 0.1
    similarity[:, 3] = 1
    times = a._occurrences(similarity, np.arange(200))
    assert times[3] == pytest.approx(200 / 10) and times.mean() == pytest.approx(1)


def test_the_command_ranks_every_row_and_shows_the_worst(tmp_path, capsys):
    x, y, groups = paired(60)
    y[[3, 4]] = y[[4, 3]]
    with open(tmp_path / "pairs.csv", "w", newline="") as handle:
        out = csv.writer(handle)
        out.writerow(["image", "text"])
        for i in range(60):
            Image.new("RGB", (20, 20), (i, 0, 0)).save(tmp_path / f"{i}.png")
            out.writerow([f"{i}.png", f"caption <b>{i}</b>"])
    table = PairTable.read(tmp_path / "pairs.csv")
    for name, latents in (("image", x), ("text", y)):
        write_latents(
            tmp_path / name, latents, modality=name, name=name, table=table, index=lambda _, n=name: row_index(table, n)
        )
    words = ["--latents", f"image={tmp_path}/image", f"text={tmp_path}/text", "--out", str(tmp_path / "out")]
    assert command.main([*words, "--pairs", str(tmp_path / "pairs.csv")]) == 0
    assert "look like random pairs" in capsys.readouterr().out
    with open(tmp_path / "out/audit.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == 60 and {rows[0]["row"], rows[1]["row"]} == {"3", "4"}
    assert rows[0]["text"].startswith("caption <b>") and rows[0]["image"].endswith(".png")
    page = (tmp_path / "out/audit.html").read_text()
    assert "caption &lt;b&gt;3&lt;/b&gt;" in page and "data:image/jpeg;base64," in page and "<b>" not in page
    assert command.main([*words[:2], "--out", str(tmp_path / "out")]) == 2
    assert "compares two modalities" in capsys.readouterr().err


def test_a_table_alone_is_encoded_and_the_latents_are_kept(tmp_path, capsys, monkeypatch):
    with open(tmp_path / "pairs.csv", "w", newline="") as handle:
        out = csv.writer(handle)
        out.writerow(["image", "text", "note"])
        for i in range(50):
            Image.new("RGB", (20, 20), (5 * i, 0, 250 - 5 * i)).save(tmp_path / f"{i}.png")
            out.writerow([f"{i}.png", f"{i} parts of red", f"note {i}"])
    words = ["--pairs", str(tmp_path / "pairs.csv"), "--out", str(tmp_path / "out")]
    assert command.main(words) == 0
    told = capsys.readouterr()
    assert "50 rows" in told.out and f"text by minilm-l6 in {tmp_path}/out/latents/text" in told.err
    monkeypatch.setattr("fusemix.encoders.base.Encoder.encode_prepared", None)  # a second time nothing is encoded
    assert command.main(words) == 0
    assert command.main([*words[:3], str(tmp_path / "other"), "--encoders", "note=minilm-l6"]) == 2
    assert "compares two modalities" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [([], "Give --latents MODALITY=DIR MODALITY=DIR, or --pairs TABLE"),
     (["--pairs", "pairs.csv"], "holds text; name two of its columns with --encoders"),
     (["--latents", "image=a", "text=b", "--encoders", "text=minilm-l6"], "or --pairs TABLE to be encoded")],
)  # fmt: skip
def test_what_is_to_be_judged_is_asked_for(tmp_path, monkeypatch, capsys, words, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.csv").write_text("text\na\nb\n")
    assert command.main([*words, "--out", "out"]) == 2
    assert sentence in capsys.readouterr().err
