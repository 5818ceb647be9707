"""Export to ONNX: the head of each modality, latents in, embeddings out; compared with ours before it counts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from fusemix.export import heads
from fusemix.extras import extra
from fusemix.files import write_atomic
from fusemix.model.adapters import FusionModel

TOLERANCE = 1e-5  # largest difference of a value of an embedding
_ROWS = 33


def export(model: FusionModel, folder: Path, *, path: heads.Path, modalities: Sequence[str]) -> dict[str, float]:
    """Write ``MODALITY.onnx``, each with input ``latents`` (N, D_x) and output ``embeddings`` (N, D), float32.

    Args:
        model: To export.
        folder: To write; it exists.
        path: Which paths of the adapters.
        modalities: Of the model.

    Returns:
        Modality -> the largest difference from ours, by onnxruntime on 33 latents that look like the trained ones.

    Raises:
        ValueError: If onnxruntime computes something else.
        ImportError: If onnx, onnxscript or onnxruntime is not installed.
    """
    with extra("export", "Writing ONNX", "onnx", "onnxscript"):
        import onnxruntime
    differences = {}
    for modality in modalities:
        chosen = heads.head(model, modality, path)
        latents = _like_trained(model, modality)
        program = torch.onnx.export(
            chosen,
            (latents[:2],),
            input_names=["latents"],
            output_names=["embeddings"],
            dynamic_shapes=({0: torch.export.Dim("N")},),
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        place = folder / f"{modality}.onnx"
        write_atomic(place, lambda temporary, program=program: program.save(temporary))  # type: ignore[misc]
        session = onnxruntime.InferenceSession(str(place), providers=["CPUExecutionProvider"])
        theirs = session.run(["embeddings"], {"latents": latents.numpy()})[0]
        with torch.no_grad():
            differences[modality] = float(np.abs(theirs - chosen(latents).numpy()).max())
        if not differences[modality] <= TOLERANCE:
            place.unlink()
            raise ValueError(
                f"onnxruntime's {modality} embeddings differ from ours by {differences[modality]:.1g}, more than "
                f"{TOLERANCE:.0e}; they were not written. Report it with the versions of torch and onnxruntime."
            )
    return differences


def _like_trained(model: FusionModel, modality: str) -> torch.Tensor:
    """Draw latents (33, D_x): noise about the mean that a closed form records, else about zero."""
    noise = torch.randn(_ROWS, model.config.latent_dims[modality], generator=torch.Generator().manual_seed(0))
    try:
        return noise + heads.closed_form(model.adapters[modality]).mean.cpu()
    except ValueError:
        return noise
