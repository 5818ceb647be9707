"""Upload of a checkpoint folder to the Hugging Face Hub; every file is checked before anything is sent."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi, ModelCard, parse_eval_result_entries
from huggingface_hub.utils import HFValidationError, validate_repo_id

from fusemix.encoder_identity import without_paths
from fusemix.files import read_json

MAX_FILE_BYTES = 5 * 10**9  # the default of save_pretrained; larger files upload badly
CARD_NAME = "README.md"
RESULTS = ".eval_results/*.yaml"  # measured results that the Hub shows: hf.co/docs/hub/eval-results
LOCAL = ("runs/*", "trace.json")  # TensorBoard events and trace of the training: never sent
# Files of our checkpoints and of diffusers pipelines; any other file is an error.
KNOWN = (
    CARD_NAME,
    "config.json",
    "train_config.json",
    "calibration.json",
    "history.json",
    "training.png",
    "model_index.json",
    "conditioner.json",
    "*/scheduler_config.json",
    "*/config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    RESULTS,
)
_STALE = ["*.safetensors", "*.safetensors.index.json"]  # removed on the Hub if they are not sent this time
_HEADER_BYTES = 100 * 10**6  # the maximum of the safetensors format


@dataclass(frozen=True)
class Upload:
    """Files of a checkpoint folder that will be sent.

    Attributes:
        folder: The checkpoint.
        files: Path relative to it -> size in bytes, by name.
        card: The front matter of its card, as plain values.
    """

    folder: Path
    files: dict[str, int]
    card: dict[str, Any]

    @classmethod
    def of(cls, folder: str | Path) -> Upload:
        """Check a folder and list its files.

        Raises:
            FileNotFoundError: If it is no checkpoint, or has no card.
            ValueError: If a file is unknown, too large, a link or not what its name says, or the card
                has no front matter.
        """
        folder = Path(folder)
        if not any((folder / name).is_file() for name in ("config.json", "model_index.json")):
            raise FileNotFoundError(f"{folder} is no checkpoint: it holds no config.json and no model_index.json.")
        if not (folder / CARD_NAME).is_file():
            raise FileNotFoundError(
                f"{folder} has no card; write its {CARD_NAME} (fusemix.model.card.model_card makes one)."
            )
        files = {}
        for path in sorted(folder.rglob("*")):
            if path.is_symlink() or not path.is_dir():
                name = path.relative_to(folder).as_posix()
                if any(fnmatchcase(name, pattern) for pattern in LOCAL):
                    continue
                _check(path, name)
                files[name] = path.stat().st_size
        _check_paths(folder / "config.json")
        return cls(folder, files, _front_matter(folder / CARD_NAME))

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
        message: str = "FuseMix checkpoint",
        token: str | None = None,
    ) -> str:
        """Send exactly :attr:`files`; weights of a former upload that are not among them are removed there.

        Args:
            repo_id: ``owner/name``; created if absent.
            private: Whether a repository created now is private.
            revision: Branch to write to; created if absent. The main one by default.
            message: Of the commit.
            token: Of the Hub; by default the one of ``hf auth login``.

        Returns:
            The address of the commit.

        Raises:
            ValueError: If the name is not ``owner/name``.
            ConnectionError: If the Hub cannot be reached or refuses, with its reason.
        """
        check_repo_id(repo_id)
        api = HfApi(token=token)
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            if revision is not None:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=str(self.folder),
                allow_patterns=list(self.files),
                delete_patterns=_STALE,
                revision=revision,
                commit_message=message,
            )
        except Exception as error:  # the Hub client raises many types; all mean "not sent", and the cause is kept
            reason = str(error).strip().splitlines() or [""]
            raise ConnectionError(
                f"The Hugging Face Hub did not take {repo_id} ({type(error).__name__}: {reason[0][:200]}); check the "
                "network, the name, and that you are logged in (hf auth login)."
            ) from error
        return str(commit)


def check_repo_id(repo_id: str) -> None:
    """Raise ValueError unless a name is ``owner/name`` as the Hub takes it."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} is no name the Hub takes; expected owner/name.") from error
    if repo_id.count("/") != 1:
        raise ValueError(f"{repo_id!r} names no owner; expected owner/name.")


def _check(path: Path, name: str) -> None:
    """Refuse a file that must not be sent."""
    if path.is_symlink():
        raise ValueError(f"{name} is a link; put the file itself into the folder, or remove it.")
    hidden = any(part[0] == "." for part in name.split("/")) and not fnmatchcase(name, RESULTS)
    if hidden or not any(fnmatchcase(name, pattern) for pattern in KNOWN):
        raise ValueError(f"{name} is no file of a checkpoint (pickles are never sent); move it out of the folder.")
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


def _front_matter(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        values: dict[str, Any] = ModelCard(text, ignore_metadata_errors=True).data.to_dict()
    except Exception as error:  # YAML's errors are many
        raise ValueError(f"The front matter of {path} cannot be read ({type(error).__name__}); correct it.") from error
    if not text.startswith("---\n") or not values:
        raise ValueError(f"{path} begins with no front matter (--- library_name, license, tags ---); add it.")
    return values
