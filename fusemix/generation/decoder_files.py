"""Check of a decoder's files, without loading it or diffusers."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from fusemix.files import read_json
from fusemix.generation.bridges import CONFIG_NAME, Conditioner
from fusemix.model.adapters import FusionModel


def check_decoder(folder: Path, model: FusionModel) -> None:
    """Check every file of a decoder's folder: named parts exist, JSON is valid, weights are not truncated.

    The values of the weights are not checked. A conditioner in the folder must be made for ``model``.

    Args:
        folder: Of a Stable unCLIP pipeline.
        model: The model whose embeddings will drive it.

    Raises:
        FileNotFoundError: If a part is missing.
        ValueError: If a file is damaged, or the decoder was made for another model.
    """
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(f"{folder} holds no model_index.json; expected a diffusers pipeline folder.")
    contents = {path: read_json(path) for path in sorted(folder.rglob("*.json"))}
    index = contents[folder / "model_index.json"]
    if not isinstance(index, dict):
        raise ValueError(f"{folder / 'model_index.json'} is no list of parts; fetch the decoder again.")
    parts = [part for part, value in index.items() if isinstance(value, list) and value != [None, None]]
    expected = [folder / part for part in parts]
    for path, values in contents.items():
        if path.name.endswith(".safetensors.index.json"):
            expected += [path.parent / name for name in set(values["weight_map"].values())]
    for path in expected:
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing; fetch the decoder again.")
    for path in sorted(folder.rglob("*.safetensors")):
        try:
            with safe_open(path, "pt"):
                pass
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged or cut short ({error}); fetch the decoder again.") from error
    if (folder / CONFIG_NAME).is_file():
        Conditioner.load(folder).of(model)
