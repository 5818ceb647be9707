"""Print the exact versions, installed here, of everything that the Space needs: the content of requirements.lock.

Run it in an environment that passes the tests::

    .venv/bin/python scripts/release/lock_requirements.py > requirements.lock

PyTorch keeps its bounds, and what only its CUDA builds need is left out: which build is right depends on the machine.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
UNPINNED = "torch"
PYTHONS = ("3.11", "3.12")


def read_requirements(path: Path) -> list[Requirement]:
    """The requirements of a file, without its remarks."""
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [Requirement(line) for line in lines if line]


def wanted(requirement: Requirement, extras: frozenset[str]) -> bool:
    """Whether a requirement holds on Linux, under any Python of :data:`PYTHONS`."""
    if requirement.marker is None:
        return True
    environments = [
        {"python_version": version, "python_full_version": f"{version}.0", "sys_platform": "linux", "extra": extra}
        for version in PYTHONS
        for extra in (extras or frozenset({""}))
    ]
    return any(requirement.marker.evaluate(environment) for environment in environments)


def closure(roots: list[Requirement]) -> Iterator[tuple[str, str]]:
    """Name and installed version of the requirements and all they need, each once.

    Raises:
        PackageNotFoundError: If something that is needed is not installed.
    """
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [(root.name, frozenset(root.extras)) for root in roots]
    named = set()
    while waiting:
        name, extras = waiting.pop()
        name = canonicalize_name(name)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        found = distribution(name)
        if name not in named:
            named.add(name)
            yield name, found.version
        needed = map(Requirement, found.requires or [])
        waiting += [(r.name, frozenset(r.extras)) for r in needed if wanted(r, extras) and not _cuda(r.name)]


def _cuda(name: str) -> bool:
    return canonicalize_name(name).startswith(("nvidia-", "cuda-", "triton"))


def main() -> int:
    """Print the lock; 2 when something is not installed."""
    roots = read_requirements(ROOT / "requirements.txt")
    try:
        versions = dict(closure(roots))
    except PackageNotFoundError as error:
        print(f"{error.name} is not installed; run this in an environment made by `make demo`.", file=sys.stderr)
        return 2
    pythons = " and ".join(PYTHONS)
    print(f"# Written by scripts/release/lock_requirements.py: tested together, for Python {pythons} on Linux.")
    print("# pip install -r requirements.lock. PyTorch is not pinned: the right build depends on the machine.")
    for name in sorted(versions):
        (bounds,) = [str(root) for root in roots if root.name == UNPINNED] if name == UNPINNED else [""]
        print(bounds or f"{name}=={versions[name]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
