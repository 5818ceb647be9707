"""The lock: it pins what requirements.txt asks for, within its bounds, and leaves PyTorch's build open."""

from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scripts.release.lock_requirements import closure, read_requirements

ROOT = Path(__file__).resolve().parents[2]
LOCK = {canonicalize_name(r.name): r for r in read_requirements(ROOT / "requirements.lock")}
ASKED = read_requirements(ROOT / "requirements.txt")


def pinned(requirement):
    (specifier,) = requirement.specifier
    assert specifier.operator == "==", requirement
    return specifier.version


def test_everything_asked_for_is_locked_within_its_bounds():
    for requirement in ASKED:
        locked = LOCK[canonicalize_name(requirement.name)]
        if requirement.name == "torch":
            assert locked.specifier == requirement.specifier
        else:
            assert requirement.specifier.contains(pinned(locked)), f"{locked} is outside {requirement}"


def test_all_but_pytorch_is_pinned_and_no_cuda_build_is_chosen():
    for name, requirement in LOCK.items():
        assert name == "torch" or pinned(requirement)
        assert not name.startswith(("nvidia", "triton", "cuda")) and "+" not in str(requirement)


def test_every_package_is_listed_once():
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    assert len(lines) == len(LOCK) and lines == sorted(lines, key=lambda line: Requirement(line).name)


def test_the_closure_follows_what_a_package_needs_and_what_that_needs():
    names = dict(closure([Requirement("rich>=13")]))
    assert set(names) == {"rich", "markdown-it-py", "mdurl", "pygments"}
