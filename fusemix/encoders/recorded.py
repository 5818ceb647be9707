"""Loading the encoder that a checkpoint was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fusemix.encoder_identity import EncoderInfo, check_encoder
from fusemix.encoders import folders, load_encoder
from fusemix.encoders.base import Encoder
from fusemix.encoders.hub_names import Spec


def load_recorded(
    modality: str,
    recorded: Mapping[str, EncoderInfo],
    *,
    device: str = "cpu",
    source: str | Path | None = None,
) -> Encoder:
    """Load the encoder of a modality, and check that it is the same.

    Args:
        modality: Of the encoder.
        recorded: Modality -> identity, as :attr:`fusemix.model.config.ModelConfig.encoders` has it.
        device: A torch device string.
        source: Local folder of a Hub encoder: ``hub-image:/models/dino``, or the folder alone; pooling
            and layers stay as recorded. For ``A ++ B`` each folder, joined by `` ++ ``. By default the folder it was
            last loaded from on this machine, then one in the working directory.

    Raises:
        KeyError: If no encoder is recorded for the modality.
        FileNotFoundError: If its folder is not found.
        ValueError: If that folder holds another encoder, by content.
    """
    info = recorded[modality]
    parts = str(info["name"]).split(" ++ ")
    places = [i for i, part in enumerate(parts) if _is_folder(part)]
    if source is not None:
        given = str(source).split(" ++ ")
        if not places or len(given) != len(places):
            raise ValueError(
                f"The {modality} encoder of this checkpoint, {info['name']}, needs {len(places)} folders, got "
                f"{len(given)}: {source}."
            )
        for i, piece in zip(places, given, strict=True):
            parts[i] = _moved(parts[i], piece)
    else:
        for i in places:
            spec = Spec.parse(parts[i])
            found = folders.find(Path(spec.source).name, str(info["revision"])) or Path(spec.source)
            if not found.is_dir():
                raise FileNotFoundError(
                    f"The {modality} encoder of this checkpoint, {parts[i]}, is a folder of the machine that trained "
                    f"it; say where it lies here: encoders={{{modality!r}: '{spec.kind}:FOLDER'}}."
                )
            parts[i] = spec.at(str(found))
    encoder = load_encoder(" ++ ".join(parts), device=device)
    try:
        check_encoder(modality, recorded, encoder.info())
    except ValueError as error:
        if source is None:
            raise
        raise ValueError(
            f"{source} is not the {modality} encoder that the checkpoint was trained on, {info['name']}: its weights, "
            f"its processor or its pooling are others. Name the folder whose content is the same ({error})"
        ) from error
    return encoder


def _is_folder(part: str) -> bool:
    return part.startswith("hub-") and Spec.parse(part).source.startswith((".", "/", "~"))


def _moved(part: str, given: str) -> str:
    """Return a recorded part with the source given for it."""
    spec = Spec.parse(part)
    if not given.startswith("hub-"):
        return spec.at(given)
    new = Spec.parse(given)
    if new.kind != spec.kind or new.query not in ("", spec.query):
        raise ValueError(f"The checkpoint was trained on {part}; only its folder can be named anew, got {given}.")
    return spec.at(new.source)
