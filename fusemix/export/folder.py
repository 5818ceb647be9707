"""``export``: a checkpoint -> a new folder for one of :data:`TARGETS`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from fusemix.export import heads
from fusemix.extras import extra
from fusemix.files import write_json
from fusemix.model.adapters import FusionModel
from fusemix.search.retriever import load_encoders

Target = Literal["sentence-transformers", "onnx", "transformers", "mteb"]
TARGETS: tuple[Target, ...] = get_args(Target)
ABOUT_NAME = "fusemix_export.json"


def export(
    checkpoint: str | Path,
    folder: str | Path,
    target: Target,
    *,
    path: heads.Path = "all",
    modalities: Sequence[str] = (),
    encoders: Mapping[str, str | Path] | None = None,
) -> dict[str, Any]:
    """Write a checkpoint in another tool's format.

    Args:
        checkpoint: A folder or Hub id.
        folder: To write; absent or empty.
        target: One of :data:`TARGETS`.
        path: ``all``, or ``closed-form`` for the linear map alone, which any tool can compute.
        modalities: Some of the model's; all by default.
        encoders: Modality -> local folder of its Hub encoder; only sentence-transformers and mteb run encoders.

    Returns:
        What is written to ``fusemix_export.json`` too: target, path, modalities, the identities of the model and of its
        encoders, for ONNX the largest ``difference`` of each modality, for sentence-transformers whether it needs
        ``trust_remote_code``.

    Raises:
        FileExistsError: If the folder holds something.
        ValueError: If this cannot be exported so; the sentence says what can.
        ImportError: If the library is not installed.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is not empty; choose another folder, or empty it.")
    model = FusionModel.from_pretrained(checkpoint)
    chosen = list(modalities) or list(model.modalities)
    if target in ("transformers", "mteb") and (path != "all" or set(chosen) != set(model.modalities)):
        raise ValueError(
            f"The target {target} takes the whole model; for one modality or the closed form alone choose "
            "sentence-transformers or onnx."
        )
    for modality in chosen:
        heads.head(model, modality, path)  # before anything is loaded or written
    about: dict[str, Any] = {"target": target, "path": path, "modalities": chosen, "model_identity": model.identity}
    about["encoders"] = {m: model.config.encoders.get(m) for m in chosen}
    folder.mkdir(parents=True, exist_ok=True)
    if target == "onnx":
        from fusemix.export import onnx_heads

        about["difference"] = onnx_heads.export(model, folder, path=path, modalities=chosen)
    elif target == "transformers":
        with extra("export", "Writing a transformers model"):
            from fusemix.export import hf
        hf.export(model, folder)
    else:
        loaded = _encoders(model, chosen, encoders)
        if target == "sentence-transformers":
            from fusemix.export import sentence_transformer

            plain = sentence_transformer.export(model, loaded, folder, path=path, modalities=chosen)
            about["trust_remote_code"] = not plain
        else:
            _mteb(model, folder)
    write_json(folder / ABOUT_NAME, about)
    return about


def _encoders(
    model: FusionModel, modalities: Sequence[str], folders: Mapping[str, str | Path] | None
) -> dict[str, Any]:
    """Load the encoders, which this target runs.

    Raises:
        ValueError: If latents were made elsewhere, so that no encoder is known.
    """
    recorded = model.config.encoders
    if given := [m for m in modalities if recorded.get(m, {}).get("fingerprint", "given latents") == "given latents"]:
        raise ValueError(
            f"The {' and '.join(given)} latents of this checkpoint were made elsewhere, so no encoder can be exported; "
            "the targets onnx and transformers export its adapters, which take such latents."
        )
    return {m: e for m, e in load_encoders(model.config, encoders=folders).items() if m in modalities}


_MTEB = '''"""The model for mteb: ``import mteb; from model import load; mteb.evaluate(load(), tasks)``."""

from pathlib import Path

from fusemix.export.mteb_model import FuseMixMTEB


def load() -> FuseMixMTEB:
    """Load the checkpoint beside this file, with its encoders."""
    return FuseMixMTEB(str(Path(__file__).parent / "checkpoint"))
'''


def _mteb(model: FusionModel, folder: Path) -> None:
    model.save_pretrained(folder / "checkpoint")
    (folder / "model.py").write_text(_MTEB, encoding="utf-8")
