"""What all commands share: several values behind a flag, errors in one sentence, paths printed whole, light start."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st

from fusemix.cli import app as fusemix_app
from fusemix.cli import flags, table, terminal
from fusemix.cli.command import Command, SetCommand, entry, guarded, named, named_once
from fusemix.datasets import DATASETS
from fusemix.search import hubness

ROOT = Path(__file__).resolve().parents[2]
NAMES = [name for commands in fusemix_app.COMMANDS.values() for name in commands]
SCRIPTS = sorted(path.stem for path in (ROOT / "scripts").glob("*.py"))
ODD = st.text(st.sampled_from("[]/()\\{}<>:*_~`'\"!?#@&=%$ abüé漢\U0001f422red bold batch_size link=x"), min_size=1)


def ran(kind=Command):
    """A command that keeps what it was called with, and that."""
    got = {}

    @guarded()
    def some(
        splits: Annotated[list[str] | None, typer.Option()] = None,
        seeds: Annotated[list[int] | None, typer.Option()] = None,
        latents: Annotated[list[str] | None, typer.Option()] = None,
        batch_size: Annotated[int, typer.Option()] = 1,
        gallery: Annotated[str | None, typer.Option()] = None,
        words: Annotated[list[str] | None, typer.Argument()] = None,
    ) -> None:
        """Do nothing."""
        got.update(splits=splits, seeds=seeds, latents=latents, batch_size=batch_size, gallery=gallery, words=words)

    return entry("some", some, kind), got


def raising(error, **known):
    """A command of a parameter or two that fails so."""

    @guarded(words=known or None)
    def some(
        batch_size: Annotated[int, typer.Option()] = 1,
        key: Annotated[str | None, typer.Option()] = None,
        place: Annotated[str | None, typer.Option()] = None,
    ) -> None:
        """Fail."""
        raise error

    return entry("some", some)


def test_a_flag_takes_several_values_and_may_stand_again():
    main, got = ran()
    assert main(["--splits", "train", "val", "--seeds", "1", "2", "--splits=test", "--batch-size", "3"]) == 0
    assert (got["splits"], got["seeds"], got["batch_size"]) == (["train", "val", "test"], [1, 2], 3)
    assert main(["a", "--splits", "train", "--", "--batch-size", "b"]) == 0
    assert (got["splits"], got["words"], got["batch_size"]) == (["train"], ["a", "--batch-size", "b"], 1)


def test_the_values_of_each_latents_stay_together():
    main, got = ran(SetCommand)
    assert main(["--latents", "image=a", "text=b", "--seeds", "1", "2", "--latents", "audio=c", "text=b"]) == 0
    assert (got["latents"], got["seeds"]) == (["image=a\0text=b", "audio=c\0text=b"], [1, 2])


def test_a_flag_may_stand_without_its_value_where_that_means_something():
    class Bare(Command):
        bare = {"--gallery": "here"}

    main, got = ran(Bare)
    for given_words, meant in (
        (["--gallery"], "here"),
        (["--gallery", "--seeds", "1"], "here"),
        (["--gallery", "x"], "x"),
    ):
        assert main(given_words) == 0 and got["gallery"] == meant


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--splits"], "Option '--splits' requires an argument."),
        (["--batch-size", "x"], "Invalid value for '--batch-size'"),
        (["--splitz", "a"], "No such option: --splitz"),
    ],
)
def test_a_wrong_flag_is_one_sentence_and_exit_code_2(words, sentence, capsys):
    assert ran()[0](words) == 2
    err = capsys.readouterr().err
    assert sentence in err and "'fusemix some --help' lists what it takes." in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ValueError("batch_size must be >= 1."), "--batch-size must be >= 1."),
        (ValueError("say which by the argument key."), "say which by --key."),
        (ValueError("columns ['batch_size'] and x/batch_size/y"), "columns ['batch_size'] and x/batch_size/y"),
        (ValueError("skip=True leaves them out"), "--on-error skip leaves them out"),
        (
            ValueError("it lies here: place={'image': 'hub-image:FOLDER'}."),
            "it lies here: --place image=hub-image:FOLDER.",
        ),
        (KeyError("no such name"), "no such name"),
        (ImportError('needs av; run: pip install "fusemix[audio]"'), 'needs av; run: pip install "fusemix[audio]"'),
        (FileNotFoundError(2, "No such file", "/a/[b]"), "There is no file or folder /a/[b]; check the path."),
        (PermissionError(13, "x", "/a"), "/a: Permission denied; choose another path, or change what is wrong"),
        (OSError("a sentence of ours."), "a sentence of ours."),
        (MemoryError(), "The memory does not suffice; work on fewer items at once."),
    ],
)
def test_what_a_user_can_get_wrong_is_one_red_sentence_that_names_flags(error, sentence, capsys):
    assert raising(error, **{"skip=True": "--on-error skip"})([]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {sentence}") and err.count("\n") == 1


def test_a_fault_of_ours_keeps_its_traceback_and_ctrl_c_is_130(capsys):
    with pytest.raises(ZeroDivisionError):
        raising(ZeroDivisionError())([])
    assert raising(KeyboardInterrupt())([]) == 130
    assert capsys.readouterr().err == "Stopped; run the same command again.\n"


@settings(max_examples=300, deadline=None)
@given(path=ODD)
def test_any_path_prints_whole_in_errors_results_and_notes(path):
    main = raising(FileNotFoundError(f"No table of pairs at /data/{path}."))
    with terminal._ERRORS.capture() as captured:
        assert main(["--place", f"/data/{path}"]) == 2
    assert captured.get() == f"error: No table of pairs at /data/{path}.\n"
    for console, say in ((terminal.RESULTS, terminal.result), (terminal.NOTES, terminal.note)):
        with console.capture() as captured:
            say(f"{path}: 3 pairs")
        assert captured.get() == f"{path}: 3 pairs\n"


def test_brackets_print_whole_in_tables_bars_and_titles(capsys):
    from rich.table import Table

    drawn = Table("a [b]", title="[/x] :cat:")
    drawn.add_row("/data/[old]/x")
    terminal.show(drawn)
    with terminal.bar(status=True) as bar:
        bar.add_task("[/a] enc", total=1, completed=1, status="[red]fine")
    out = capsys.readouterr()
    assert all(text in out.out for text in ("a [b]", "[/x] :cat:", "/data/[old]/x"))
    assert "[/a] enc" in out.err and "[red]fine" in out.err


def test_a_name_that_is_no_text_is_printed_with_its_bytes_written_out(capsys):
    terminal.result("x\udcff")
    assert capsys.readouterr().out == "x\\udcff\n"


def test_pieces_have_a_name_and_a_value_and_names_stand_once():
    assert named(["a=b", "a=c=d"], "--x A=B") == [("a", "b"), ("a", "c=d")]
    assert named_once(["a="], "--x A=B", empty=True) == {"a": ""}
    for pieces in (["a"], ["=b"], ["a="]):
        with pytest.raises(ValueError, match="Expected --x A=B, got"):
            named(pieces, "--x A=B")
    with pytest.raises(ValueError, match="each name once"):
        named_once(["a=b", "a=c"], "--x A=B")


def test_help_is_there_for_every_command_and_imports_nothing_heavy():
    heavy = {"torch", "pandas", "numpy", "faiss", "PIL", "gradio", "transformers"}
    code = (
        "import sys\nfrom fusemix.cli.app import main\n"
        f"codes = [main(['--help']), *(main([name, '--help']) for name in {NAMES!r})]\n"
        f"heavy = {heavy!r} & set(sys.modules)\nassert not heavy and not any(codes), (heavy, codes)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert all(f"Usage: fusemix {name}" in done.stdout for name in NAMES) and len(NAMES) == 20


def test_every_flag_has_a_help_of_whole_sentences():
    for name in NAMES:
        command = typer.main.get_command(fusemix_app.app).commands[name]
        for parameter in command.params:
            if parameter.name != "help":
                assert re.search(r"[.:]$", parameter.help or ""), f"fusemix {name}: {parameter.name}"


def test_lists_written_twice_to_stay_light_are_those_of_the_library():
    assert set(table.DATASETS) == set(DATASETS)
    assert (flags.NEIGHBOURS, flags.WEIGHT) == (hubness.NEIGHBOURS, hubness.WEIGHT)
    from fusemix.cli.generate import Scheduler
    from fusemix.cli.reproduce import Experiment
    from fusemix.datasets.paper_recipes import RECIPES
    from fusemix.generation.sampling import SCHEDULERS

    assert Scheduler.__args__ == tuple(SCHEDULERS)
    assert set(Experiment.__args__) == {"flickr8k", *RECIPES}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_is_its_command(script):
    text = (ROOT / f"scripts/{script}.py").read_text()
    assert len(text.splitlines()) <= 8
    module = re.search(r"from fusemix\.cli\.(\w+) import main", text)[1]
    assert module in {
        f.__module__.rpartition(".")[2] for commands in fusemix_app.COMMANDS.values() for f in commands.values()
    }


def test_version_is_of_one_place(capsys):
    from fusemix import __version__

    assert fusemix_app.main(["--version"]) == 0
    assert capsys.readouterr().out == f"fusemix {__version__}\n"
    assert "version" in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dynamic"]


@pytest.mark.parametrize(
    ("words", "missing"),
    [
        (["extract", "--pairs", "{}.csv", "--column", "text", "--encoder", "minilm-l6", "--out", "o"], "{}.csv"),
        (["train", "--latents", "image={}", "text={}", "--out", "o"], "{}"),
        (["evaluate", "--checkpoint", "{}", "--pairs", "{}.csv", "--query", "text", "--gallery", "image"], "{}"),
        (["index", "--checkpoint", "{}", "--pairs", "{}.csv", "--out", "o"], "{}.csv"),
        (["search", "--checkpoint", "{}", "--text", "a", "--index", "{}"], "{}"),
        (["join", "--tables", "a={}.csv", "--out", "o.csv"], "{}.csv"),
        (["subset", "--latents", "image={}", "-k", "2", "--out", "o.txt"], "{}"),
        (["diagnose", "--latents", "image={}", "text={}"], "{}"),
        (["import", "--from", "{}.npy", "--modality", "m", "--name", "n", "--out", "o"], "{}.npy"),
        (["table", "flickr8k", "--root", "{}", "--out", "o.csv"], "{}"),
        (["ensemble", "{}", "{}", "--out", "o"], "{}"),
        (["push", "{}", "me/x", "--dry-run"], "{}"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_missing_input_is_told_as_a_missing_input_with_its_name_whole(words, missing, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    place = "nowhere/[old]/[x"
    assert fusemix_app.main([word.format(place, place) for word in words]) == 2
    err = capsys.readouterr().err
    assert missing.format(place) in err and "could not be written" not in err, err
    assert "Traceback" not in err and not list(tmp_path.glob("o*"))


def test_every_command_that_reads_a_table_says_what_it_used(tmp_path, capsys):
    np.save(tmp_path / "latents.npy", np.ones((3, 2), np.float32))
    (tmp_path / "[t].csv").write_text("image,text,split\na.png,one,train\n,two,train\nb.png,,test\n")
    words = ["--from", str(tmp_path / "latents.npy"), "--modality", "image", "--name", "n"]
    assert fusemix_app.main(["import", *words, "--pairs", str(tmp_path / "[t].csv"), "--out", str(tmp_path / "o")]) == 0
    assert f"{tmp_path}/[t].csv: 3 rows: 2 train, 0 validate" in capsys.readouterr().err
