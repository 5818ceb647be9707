"""Upload of a folder to the Hugging Face Hub; every file is checked before anything is sent."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi, ModelCard, parse_eval_result_entries
from huggingface_hub.utils import HFValidationError, validate_repo_id

from fusemix.encoder_identity import without_paths
from fusemix.files import read_json
from fusemix.hub_errors import HubError

MAX_FILE_BYTES = 5 * 10**9  # the default of save_pretrained; larger files upload badly
CARD_NAME = "README.md"
RESULTS = ".eval_results/*.yaml"  # measured results that the Hub shows: hf.co/docs/hub/eval-results
LOCAL = ("runs/*", "trace.json")  # TensorBoard events and trace of the training: never sent
INDEX_NAME = "index.json"


@dataclass(frozen=True)
class FolderKind:
    """Describe what a folder holds, and how it lies on the Hub.

    Attributes:
        name: For sentences.
        marker: The file that tells it.
        known: Patterns of its files; any other file is an error.
        stale: Patterns of files that are removed on the Hub if they are not sent this time.
        repo_type: ``model`` or ``dataset``.
    """

    name: str
    marker: str
    known: tuple[str, ...]
    stale: tuple[str, ...]
    repo_type: str = "model"

    def __str__(self) -> str:
        return f"{'an' if self.name[0] in 'aeiou' else 'a'} {self.name}"


_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
_OURS = (CARD_NAME, "config.json", "train_config.json", "calibration.json", "history.json", "training.png", RESULTS)
_CONDITIONER = ("conditioner.json", "conditioner.safetensors", CARD_NAME, RESULTS)
_PIPELINE = ("model_index.json", "conditioner.json", "*/scheduler_config.json", "*/config.json")
_INDEX = (INDEX_NAME, "items*.jsonl", "*.faiss", "basis*.safetensors")
# The first whose marker is there: a decoder may hold a conditioner.
KINDS = (
    FolderKind("decoder", "model_index.json", (*_OURS, *_PIPELINE, *_WEIGHTS), _WEIGHTS),
    FolderKind("checkpoint", "config.json", (*_OURS, *_WEIGHTS), _WEIGHTS),
    FolderKind("conditioner", "conditioner.json", _CONDITIONER, ()),
    FolderKind("index", INDEX_NAME, (CARD_NAME, *_INDEX), _INDEX[1:], "dataset"),
)
_HEADER_BYTES = 100 * 10**6  # the maximum of the safetensors format


def kind_of(folder: str | Path) -> FolderKind:
    """Say what a folder is.

    Raises:
        FileNotFoundError: If it is nothing that can be sent.
    """
    for kind in KINDS:
        if (Path(folder) / kind.marker).is_file():
            return kind
    raise FileNotFoundError(
        f"{folder} is no checkpoint, decoder, conditioner or index: it holds none of "
        f"{', '.join(kind.marker for kind in KINDS)}."
    )


@dataclass(frozen=True)
class Upload:
    """Files of a folder that will be sent.

    Attributes:
        folder: A checkpoint, decoder, conditioner or index.
        kind: Which of these.
        files: Path relative to it -> size in bytes, by name.
        card: The front matter of its card, as plain values.
        made: Path -> content of those files that are sent otherwise than they lie there.
    """

    folder: Path
    kind: FolderKind
    files: dict[str, int]
    card: dict[str, Any]
    made: dict[str, bytes]

    @classmethod
    def of(cls, folder: str | Path, *, card: str | None = None) -> Upload:
        """Check a folder and list its files.

        Args:
            folder: A checkpoint, decoder, conditioner or index.
            card: Sent as the card if the folder has none.

        Raises:
            FileNotFoundError: If it is none of these, or there is no card.
            ValueError: If a file is unknown, too large, a link or not what its name says, or the card
                has no front matter.
        """
        folder = Path(folder)
        kind = kind_of(folder)
        files = {}
        for path in sorted(folder.rglob("*")):
            if path.is_symlink() or not path.is_dir():
                name = path.relative_to(folder).as_posix()
                if any(fnmatchcase(name, pattern) for pattern in LOCAL):
                    continue
                _check(path, name, kind)
                files[name] = path.stat().st_size
        made = {} if kind.name != "index" else {INDEX_NAME: _without_root(folder / INDEX_NAME)}
        if CARD_NAME not in files:
            if card is None:
                raise FileNotFoundError(
                    f"{folder} has no card; write its {CARD_NAME} (fusemix.model.card.model_card makes one)."
                )
            made[CARD_NAME] = card.encode()
        _check_paths(folder / "config.json")
        text = made[CARD_NAME].decode() if CARD_NAME in made else folder / CARD_NAME
        files |= {name: len(content) for name, content in made.items()}
        return cls(folder, kind, files, _front_matter(text, folder / CARD_NAME), made)

    @property
    def n_bytes(self) -> int:
        """Size of all files together."""
        return sum(self.files.values())

    def push(
        self,
        repo_id: str,
        *,
        private: bool = False,
        revision: str | None = None,
        message: str = "",
        token: str | None = None,
        exist_ok: bool = True,
    ) -> str:
        """Send exactly :attr:`files`; weights of a former upload that are not among them are removed there.

        Args:
            repo_id: ``owner/name``; created if absent.
            private: Whether a repository created now is private.
            revision: Branch to write to; created if absent. The main one by default.
            message: Of the commit; by default the kind of folder.
            token: Of the Hub; by default the one of ``hf auth login``.
            exist_ok: Whether the repository may be there already.

        Returns:
            The address of the commit.

        Raises:
            ValueError: If the name is not ``owner/name``.
            FileExistsError: If the repository is there and must not be.
            PermissionError: If the token may not do this, or has expired.
            ConnectionError: If the Hub cannot be reached or refuses, with its reason.
        """
        check_repo_id(repo_id)
        api, repo_type = HfApi(token=token), self.kind.repo_type
        try:
            api.create_repo(repo_id, private=private, exist_ok=exist_ok, repo_type=repo_type)
            if revision is not None:
                api.create_branch(repo_id, branch=revision, exist_ok=True, repo_type=repo_type)
            with self._linked() if self.made else nullcontext(self.folder) as folder:
                commit = api.upload_folder(
                    repo_id=repo_id,
                    folder_path=str(folder),
                    allow_patterns=list(self.files),
                    delete_patterns=list(self.kind.stale),
                    revision=revision,
                    commit_message=message or f"FuseMix {self.kind.name}",
                    repo_type=repo_type,
                )
        except Exception as error:  # the Hub client raises many types; all mean "not sent", and the cause is kept
            raise _refusal(repo_id, error) from error
        return str(commit)

    @contextmanager
    def _linked(self) -> Iterator[Path]:
        """Give a temporary folder of links, and of the files that were made."""
        with tempfile.TemporaryDirectory(prefix="fusemix-push-") as temporary:
            for name in self.files:
                place = Path(temporary) / name
                place.parent.mkdir(parents=True, exist_ok=True)
                if name in self.made:
                    place.write_bytes(self.made[name])
                else:
                    place.symlink_to((self.folder / name).resolve())
            yield Path(temporary)


def _refusal(repo_id: str, error: Exception) -> OSError:
    """Convert an error of the Hub's client to one sentence that says what to do."""
    met = HubError.of(error)
    if met.status == 409:
        return FileExistsError(f"There is a repository {repo_id} already; choose another name.")
    if met.status == 401:
        return PermissionError("The Hugging Face Hub does not know this token, or it has expired; log in again.")
    if met.status == 403:
        return PermissionError(
            f"This token may not write to {repo_id}; log in with one that may (role 'write', "
            "https://huggingface.co/settings/tokens)."
        )
    said = met.said if met.status is None else f"code {met.status}: {met.said}"
    return ConnectionError(
        f"The Hugging Face Hub did not take {repo_id} ({said}); check the network, the name, and that you are logged "
        "in (hf auth login)."
    )


def check_repo_id(repo_id: str) -> None:
    """Raise ValueError unless a name is ``owner/name`` as the Hub takes it."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} is no name the Hub takes; expected owner/name.") from error
    if repo_id.count("/") != 1:
        raise ValueError(f"{repo_id!r} names no owner; expected owner/name.")


def _check(path: Path, name: str, kind: FolderKind) -> None:
    """Refuse a file that must not be sent."""
    if path.is_symlink():
        raise ValueError(f"{name} is a link; put the file itself into the folder, or remove it.")
    hidden = any(part[0] == "." for part in name.split("/")) and not fnmatchcase(name, RESULTS)
    if hidden or not any(fnmatchcase(name, pattern) for pattern in kind.known):
        raise ValueError(f"{name} is no file of {kind} (pickles are never sent); move it out of the folder.")
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise ValueError(
            f"{name} has {size / 1e9:.1f} GB, more than {MAX_FILE_BYTES // 10**9}; save it again in shards: "
            "save_pretrained(folder, max_shard_size='5GB')."
        )
    with open(path, "rb") as handle:
        start = handle.read(9)
    if name.endswith(".safetensors"):
        length = int.from_bytes(start[:8], "little")
        true = start[8:] == b"{" and length <= min(size - 8, _HEADER_BYTES)
    elif name.endswith(".json"):
        true = _is_json(path)
    elif name.endswith(".yaml"):
        true = _are_results(path)
    elif name.endswith((".jsonl", ".faiss")):
        true = start.startswith((b'{"', b"Ix"))
    else:
        true = name == CARD_NAME or start.startswith(b"\x89PNG\r\n\x1a\n")
    if not true:
        raise ValueError(f"{name} is not what its name says; it is damaged or something else, such as a pickle.")


def _is_json(path: Path) -> bool:
    try:
        read_json(path)
    except (ValueError, RecursionError):
        return False
    return True


def _are_results(path: Path) -> bool:
    try:
        parse_eval_result_entries(yaml.safe_load(path.read_text(encoding="utf-8")))
    except Exception:  # YAML's errors are many, and entries lack this or that
        return False
    return True


def _check_paths(config: Path) -> None:
    """Refuse a configuration that holds a path of this machine."""
    values = read_json(config) if config.is_file() else {}
    if isinstance(values, dict) and isinstance(values.get("encoders"), dict) and without_paths(values) != values:
        raise ValueError(
            f"{config} names an encoder's folder by its path on this machine; save the model again, which leaves the "
            "path out: FusionModel.from_pretrained(folder).save_pretrained(folder)."
        )


def _without_root(path: Path) -> bytes:
    """Return an index's manifest without where its items' files lie on this machine."""
    return (json.dumps(dict(read_json(path)) | {"root": None}, indent=2) + "\n").encode()


def _front_matter(card: str | Path, path: Path) -> dict[str, Any]:
    """Read the front matter of a card: its text or its file."""
    try:
        text = card if isinstance(card, str) else card.read_text(encoding="utf-8")
        values: dict[str, Any] = ModelCard(text, ignore_metadata_errors=True).data.to_dict()
    except Exception as error:  # YAML's errors are many
        raise ValueError(f"The front matter of {path} cannot be read ({type(error).__name__}); correct it.") from error
    if not text.startswith("---\n") or not values:
        raise ValueError(f"{path} begins with no front matter (--- library_name, license, tags ---); add it.")
    return values
