"""Commands as people type them: what would be lost, nonsense or late is refused, and what found nothing says so."""

import shutil

import numpy as np
import pytest

from fusemix.cli import extract, import_latents, index, join, search, subset

pytestmark = pytest.mark.field


@pytest.fixture
def place(pairs, tmp_path):
    """A folder with brackets in its name, two files and a table of them."""
    folder = tmp_path / "w [old]"
    folder.mkdir()
    for name in ("red.png", "hum.wav"):
        shutil.copy(pairs.parent / name, folder / name)
    (folder / "t.csv").write_text("id,image,audio,text,source\n1,red.png,,a red one,s\n2,,hum.wav,a hum,s\n")
    return folder


@pytest.fixture
def said(capsys):
    """Run a command; its exit code and all it printed, on one line."""

    def run(main, *arguments):
        code = main([str(argument) for argument in arguments])
        return code, " ".join("".join(capsys.readouterr()).split())

    return run


MINI = ("--encoder", "minilm-l6")


def test_paths_are_not_encoded_as_if_they_were_captions(place, said):
    code, text = said(extract.main, "--pairs", place / "t.csv", "--column", "image", *MINI, "--out", place / "l")
    assert code == 2 and "minilm-l6 reads text, but the column image of" in text and not (place / "l").exists()


def test_what_is_left_out_is_named_by_its_line_and_not_counted_as_latent(place, said):
    (place / "g.csv").write_text("image\n\ngone.png\nred.png\n")
    arguments = [
        "--pairs",
        place / "g.csv",
        "--column",
        "image",
        "--encoder",
        "efficientnet-lite0",
        "--out",
        place / "l",
    ]
    code, text = said(extract.main, *arguments, "--on-error", "skip")
    assert code == 0 and "left out line 3: There is no picture file" in text
    assert "1 latents of 1280 dimensions for 1 rows, 1 left out" in text


def test_a_table_that_is_read_is_not_written_over(place, said):
    before = (place / "t.csv").read_text()
    for out in (place / "t.csv", place / "." / ".." / place.name / "t.csv"):
        code, text = said(join.main, "--tables", f"a={place / 't.csv'}", "--out", out)
        assert code == 2 and "one of the tables to join, which would be lost" in text
    np.save(place / "l.npy", np.eye(2, 4, dtype=np.float32))
    made = ["--from", place / "l.npy", "--name", "x", "--pairs", place / "t.csv"]
    assert said(import_latents.main, *made, "--modality", "video", "--out", place / "l")[0] == 0
    chosen = ["--latents", f"video={place / 'l'}", "--method", "uniform", "-k", "1", "--pairs", place / "t.csv"]
    code, text = said(subset.main, *chosen, "--out", place / "t.csv")
    assert code == 2 and "the table to choose from, which would be lost" in text
    assert (place / "t.csv").read_text() == before


@pytest.mark.parametrize("name", ["../evil", "a.b", "", "a b"])
def test_a_modality_has_a_plain_name(name, place, said):
    np.save(place / "l.npy", np.eye(2, 4, dtype=np.float32))
    made = ["--from", place / "l.npy", "--name", "x", "--out", place / "l", "--modality", name]
    code, text = said(import_latents.main, *made)
    assert code == 2 and f"A modality is named with letters, digits, '_' and '-', got {name!r}." in text


@pytest.mark.parametrize("out", ["t.csv", "t.csv/x/y"])
def test_a_place_that_cannot_be_written_to_is_told_before_the_work(out, place, said, checkpoint, monkeypatch):
    monkeypatch.setattr("fusemix.search.build.fill", None)
    code, text = said(index.main, "--checkpoint", checkpoint, "--pairs", place / "t.csv", "--out", place / out)
    assert code == 2 and "could not be written: Not a directory. Nothing there was changed; a file lies where" in text


@pytest.mark.parametrize("table", ["image,text\n,\n", "video,note\na.mp4,x\n", "filename,caption\nred.png,x\n"])
def test_a_table_with_nothing_to_index_is_told_what_it_lacks(table, place, said, checkpoint):
    (place / "n.csv").write_text(table)
    code, text = said(index.main, "--checkpoint", checkpoint, "--pairs", place / "n.csv", "--out", place / "i")
    assert code == 2 and ("has no filled cell in image, text, audio" in text or "expected at least one of" in text)
    assert "caption" not in table or "The column 'filename'" in text and "call it image" in text
    assert not (place / "i").exists()


def test_one_id_of_two_files_is_refused(place, said, checkpoint):
    shutil.copy(place / "red.png", place / "blue.png")
    (place / "d.csv").write_text("id,image,text\n1,red.png,x\n1,red.png,y\n1,,z\n1,blue.png,w\n")
    code, text = said(index.main, "--checkpoint", checkpoint, "--pairs", place / "d.csv", "--out", place / "i")
    assert code == 2 and "has the id '1' for two files of image, in line 2 and line 5; give each file" in text


def test_a_folder_given_as_a_server_is_told_so(place, said, checkpoint):
    code, text = said(index.main, "--checkpoint", checkpoint, "--pairs", place / "t.csv", "--index", place / "i")
    assert code == 2 and "is the address of a server, postgresql://..., not" in text and "--out is for a folder" in text


def test_a_filter_that_nothing_passes_says_so(said, checkpoint, index_folder):
    arguments = ["--checkpoint", checkpoint, "--index", index_folder, "--text", "red"]
    for where, found in (("licence=cc0-1.0", False), ("license=CC0-1.0", False), ("licence=CC0-1.0", True)):
        code, text = said(search.main, *arguments, "--where", where)
        assert code == 0 and (f"No item has {where}" in text) != found
