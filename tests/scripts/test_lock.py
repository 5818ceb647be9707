"""The lists of requirements agree: pyproject's, the flat one of the Space, and the lock, which leaves PyTorch open."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SPACE = {"openai-whisper", "accelerate", "gradio", "torch", "transformers", "diffusers", "numpy", "faiss-cpu"}


def read(lines):
    """Name -> requirement of the lines that are not remarks."""
    found = [Requirement(line) for line in (text.partition("#")[0].strip() for text in lines) if line]
    return {canonicalize_name(requirement.name): requirement for requirement in found}


def of_extra(name):
    """What an extra brings, with the extras it names."""
    found = {}
    for text in PROJECT["optional-dependencies"][name]:
        requirement = Requirement(text)
        if requirement.name == PROJECT["name"]:
            for inner in requirement.extras:
                found |= of_extra(inner)
        else:
            found[canonicalize_name(requirement.name)] = requirement
    return found


FLAT = read((ROOT / "requirements.txt").read_text().splitlines())
LOCK_LINES = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
LOCK = read(LOCK_LINES)


def pinned(requirement):
    (specifier,) = requirement.specifier
    assert specifier.operator == "==", requirement
    return specifier.version


def test_the_flat_list_is_the_core_and_every_extra_of_the_app():
    project = read(PROJECT["dependencies"]) | of_extra("all")
    assert {name: str(r.specifier) for name, r in project.items()} == {n: str(r.specifier) for n, r in FLAT.items()}
    assert set(FLAT) >= SPACE


def test_the_core_is_light():
    heavy = {"gradio", "diffusers", "transformers", "openai-whisper", "matplotlib", "av", "soundfile"}
    assert not heavy & set(read(PROJECT["dependencies"]))


def test_everything_asked_for_is_locked_within_its_bounds():
    for name, requirement in FLAT.items():
        if name == "torch":
            assert LOCK[name].specifier == requirement.specifier
        else:
            assert requirement.specifier.contains(pinned(LOCK[name])), f"{LOCK[name]} is outside {requirement}"


def test_all_but_pytorch_is_pinned_and_no_cuda_build_is_chosen():
    for name, requirement in LOCK.items():
        assert name == "torch" or pinned(requirement)
        assert not name.startswith(("nvidia", "triton", "cuda")) and "+" not in str(requirement)


def test_every_package_is_listed_once():
    assert len(LOCK_LINES) == len(LOCK) and sorted(LOCK_LINES, key=lambda line: Requirement(line).name) == LOCK_LINES


@pytest.mark.parametrize("target", ["demo", "test", "lint", "types", "imports", "docs", "lock", "wheel", "clean"])
def test_a_target_names_no_absolute_path_so_that_any_folder_will_do(target):
    makefile = (ROOT / "Makefile").read_text()
    (recipe,) = re.findall(rf"^{target}:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert "$(CURDIR)" not in recipe and "$(PWD)" not in recipe and " /" not in recipe
