"""A Hugging Face Space of this repository: what goes there, and putting it there."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from fusemix.hub_errors import HubError

PARTS = ("LICENSE", "app.py", "checkpoints", "demo", "fusemix")  # of the checkout, as they are
NOT_SENT = ("*__pycache__/*", "*.pyc", "*.pyi", "checkpoints/*/runs/*", "checkpoints/*/trace.json")
PYTHONS = ("3.12", "3.12.12")  # of ZeroGPU's, those that the package runs on
TORCH = "torch>=2.8,<2.12"  # ZeroGPU has 2.8.0, 2.9.1, 2.10.0 and 2.11.0
GRADIO = "gradio[oauth]"
ZERO_GPU = "zero-a10g"  # the Hub's name for it, whatever the GPU is
MAX_DESCRIPTION = 60  # characters; the Hub refuses more
_LISTS = ("tags", "models", "datasets", "preload_from_hub", "hf_oauth_scopes")
_ABOUT = """
# {title}

{description}. The app, its models and its gallery are in this Space's files; nothing is fetched when it starts.
The method is FuseMix ([Vouitsis et al., CVPR 2024](https://arxiv.org/abs/2312.10144)).
"""


@dataclass(frozen=True)
class SpaceFolder:
    """Files and settings of a Space.

    Attributes:
        files: Path in the Space -> the file here, or the bytes that are written.
        front_matter: Of its README.md, as plain values.
    """

    files: dict[str, Path | bytes]
    front_matter: dict[str, Any]

    @classmethod
    def of(cls, root: str | Path) -> SpaceFolder:
        """Look at a checkout; nothing is copied yet.

        Raises:
            FileNotFoundError: If it is no checkout.
            ValueError: If a file is a link, or the README's front matter is nothing a Space can be made of.
        """
        root = Path(root)
        for name in (*PARTS, "README.md", "requirements.txt"):
            if not (root / name).exists():
                raise FileNotFoundError(
                    f"{root} is no checkout of the repository: it holds no {name}; clone it and run the command there."
                )
        files: dict[str, Path | bytes] = {}
        for part in PARTS:
            paths = [root / part] if (root / part).is_file() else sorted((root / part).rglob("*"))
            for path in paths:
                name = path.relative_to(root).as_posix()
                if path.is_dir() and not path.is_symlink() or _is_left_out(name):
                    continue
                if path.is_symlink():
                    raise ValueError(f"{name} is a link; put the file itself there, or remove it.")
                files[name] = path
        text = (root / "README.md").read_text(encoding="utf-8")
        requirements = (root / "requirements.txt").read_text(encoding="utf-8").splitlines()
        values = _front_matter(text)
        _check(values, files, requirements)
        about = _ABOUT.format(title=values["title"], description=str(values["short_description"]).rstrip("."))
        files["README.md"] = (text[: text.index("\n---\n", 3) + 5] + about).encode()
        files["requirements.txt"] = ("\n".join(_requirements(requirements)) + "\n").encode()
        return cls(files, values)

    @property
    def sizes(self) -> dict[str, int]:
        """Path in the Space -> bytes."""
        return {name: _size(content) for name, content in self.files.items()}

    def write(self, folder: str | Path) -> Path:
        """Copy everything into a new folder.

        Raises:
            FileExistsError: If something is there already.
            OSError: If there is no room, in one sentence.
        """
        folder, needed = Path(folder), sum(self.sizes.values())
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise FileExistsError(f"{folder} is not empty; choose another folder, or empty it.")
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise OSError(
                f"{folder} has room for {free / 1e6:,.0f} MB and the Space takes {needed / 1e6:,.0f} MB; free some, or "
                "choose a folder on another disk (TMPDIR for one that is removed again)."
            )
        for name, content in self.files.items():
            place = folder / name
            place.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                place.write_bytes(content)
            else:
                shutil.copyfile(content, place)
        return folder


def check_account(repo_id: str) -> None:
    """Ask the Hub whose token this is, before anything is assembled.

    Args:
        repo_id: ``owner/name`` of the Space to be.

    Raises:
        PermissionError: If there is no token, or it may not write there.
        ConnectionError: If the Hub cannot be reached or refuses.
    """
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        raise PermissionError(
            "No token of the Hugging Face Hub was found; make one with the role 'write' at "
            "https://huggingface.co/settings/tokens and log in with it: hf auth login."
        )
    try:
        account = HfApi().whoami()
    except Exception as error:  # the Hub client raises many types, and the cause is kept
        raise _refusal(repo_id, error) from error
    owners = [account["name"], *(org["name"] for org in account.get("orgs", []))]
    owner, role = repo_id.split("/")[0], account.get("auth", {}).get("accessToken", {}).get("role")
    if owner not in owners:
        raise PermissionError(f"This token belongs to {account['name']}, who has no Spaces under {owner}; {_TOKEN}.")
    if role == "read":
        raise PermissionError(f"This token may only read; {_TOKEN}.")


def deploy(
    folder: str | Path,
    repo_id: str,
    *,
    hardware: str = ZERO_GPU,
    private: bool = False,
    variables: Mapping[str, str] | None = None,
) -> str:
    """Create a Space, or bring an existing one up to date, from a folder of :meth:`SpaceFolder.write`.

    Files of a former upload that the folder no longer has are removed from the Space.

    Args:
        folder: The Space's files.
        repo_id: ``owner/name``; see :func:`check_account`.
        hardware: The Hub's name of the machine.
        private: Whether a Space created now is private.
        variables: Environment variables of the app; everyone can read them.

    Returns:
        The Space's address.

    Raises:
        PermissionError: If the token may not do this.
        ConnectionError: If the Hub cannot be reached or refuses, with its reason.
    """
    from huggingface_hub import HfApi, SpaceHardware

    machine, api = SpaceHardware(hardware), HfApi()
    try:
        # Hardware from the start: on the default one, a CPU, a free account is refused the Space.
        address = api.create_repo(
            repo_id, repo_type="space", space_sdk="gradio", space_hardware=machine, private=private, exist_ok=True
        )
        api.upload_folder(
            repo_id=repo_id,
            repo_type="space",
            folder_path=str(folder),
            delete_patterns=[f"{part}/*" for part in PARTS],
            commit_message="FuseMix",
        )
        for key, value in (variables or {}).items():
            api.add_space_variable(repo_id, key, value)
        api.request_space_hardware(repo_id, machine)
    except Exception as error:  # the Hub client raises many types, and the cause is kept
        raise _refusal(repo_id, error) from error
    return str(address)


def check_hardware(hardware: str) -> None:
    """Raise ValueError unless the Hub has a machine of that name."""
    from huggingface_hub import SpaceHardware

    known = [machine.value for machine in SpaceHardware]
    if hardware not in known:
        raise ValueError(f"The Hub has no machine called {hardware!r}; expected one of {', '.join(known)}.")


_TOKEN = "use one with the role 'write' for the owner of the Space (https://huggingface.co/settings/tokens)"


def _is_left_out(name: str) -> bool:
    """Return whether a path is hidden, a cache, or a log of a training."""
    return any(part[0] == "." for part in name.split("/")) or any(fnmatchcase(name, p) for p in NOT_SENT)


def _size(content: Path | bytes) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _front_matter(text: str) -> dict[str, Any]:
    from huggingface_hub import SpaceCard

    try:
        values = SpaceCard(text, ignore_metadata_errors=True).data.to_dict() if text.startswith("---\n") else {}
    except Exception as error:  # YAML's errors are many
        raise ValueError(f"README.md's front matter cannot be read ({type(error).__name__}); correct it.") from error
    if not values:
        raise ValueError("README.md begins with no front matter (--- title, sdk, … ---); add it (docs/spaces.md).")
    return dict(values)


def _check(values: Mapping[str, Any], files: Mapping[str, object], requirements: list[str]) -> None:
    """Refuse a front matter that the Hub, or the app on it, would stumble over."""
    from packaging.specifiers import SpecifierSet
    from packaging.version import InvalidVersion

    gradio = next(line.removeprefix("gradio") for line in requirements if line.startswith("gradio"))
    try:
        fits = str(values.get("sdk_version")) in SpecifierSet(gradio)
    except InvalidVersion:
        fits = False
    description, thumbnail = str(values.get("short_description") or ""), str(values.get("thumbnail") or "")
    lists = {key: values.get(key, []) for key in _LISTS}
    rules = {
        "title": (bool(values.get("title")), "a name"),
        "sdk": (values.get("sdk") == "gradio", "gradio"),
        "sdk_version": (fits, f"a version of gradio that requirements.txt allows ({gradio})"),
        "python_version": (str(values.get("python_version")) in PYTHONS, " or ".join(PYTHONS) + ", which ZeroGPU has"),
        "app_file": (values.get("app_file") in files, "a file of the Space, app.py"),
        "license": (bool(values.get("license")), "a licence, such as apache-2.0"),
        "short_description": (
            0 < len(description) <= MAX_DESCRIPTION,
            f"1 to {MAX_DESCRIPTION} characters, not {len(description)}",
        ),
        "thumbnail": (
            not thumbnail or thumbnail in files or thumbnail.startswith("https://"),
            "a file of the Space, or an address",
        ),
    } | {
        key: (isinstance(value, list) and all(isinstance(v, str) for v in value), "a list of names")
        for key, value in lists.items()
    }
    rules["hf_oauth"] = (values.get("hf_oauth", False) in (True, False), "true or false")
    rules["tags"] = (rules["tags"][0] and bool(lists["tags"]), "a list of names, not empty")
    for key, (holds, wanted) in rules.items():
        if not holds:
            raise ValueError(f"README.md's front matter has {key}: {values.get(key)!r}; expected {wanted}.")


def _requirements(lines: list[str]) -> list[str]:
    """Those of the checkout with torch as ZeroGPU has it, gradio with what signing in needs, and ZeroGPU's package."""
    bounded = [TORCH if line.startswith("torch>") else re.sub(r"^gradio(?=[<>=])", GRADIO, line) for line in lines]
    return [*bounded, "# Borrows a GPU where the Space runs on ZeroGPU.", "spaces"]


def _refusal(repo_id: str, error: Exception) -> OSError:
    """Convert an error of the Hub's client to one sentence that says what to do."""
    met = HubError.of(error)
    if met.kind == "unreachable":
        return ConnectionError(f"The Hugging Face Hub could not be reached ({met.said}); check the network.")
    if met.status is None:
        return ConnectionError(f"The Hugging Face Hub did not take {repo_id} ({met.said}); run it again later.")
    if met.status == 401:
        return PermissionError(f"The Hugging Face Hub does not know this token; {_TOKEN}.")
    if met.status == 402:
        return PermissionError(
            f"The account of {repo_id} does not pay for this machine; a free account has Gradio Spaces, two at most, "
            f"on ZeroGPU alone: {ZERO_GPU} as the argument hardware."
        )
    if met.status == 403:
        return PermissionError(f"This token may not write to {repo_id}; {_TOKEN}.")
    return ConnectionError(
        f"The Hugging Face Hub did not take {repo_id} (code {met.status}: {met.said}); run it again later."
    )
