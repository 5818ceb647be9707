"""Export to transformers: ``AutoModel.from_pretrained(folder, trust_remote_code=True)`` gives a PreTrainedModel.

It takes latents, not items: the frozen encoders are models of their own. The folder's ``modeling_fusemix.py`` is one
import of this module, so that fusemix must be installed where it is loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel

from fusemix.encoder_identity import without_paths
from fusemix.files import write_atomic
from fusemix.model.adapters import FusionModel
from fusemix.model.config import ModelConfig

_CODE = '"""Loads the adapters of FuseMix; they come from the installed package."""\n\n' + (
    "from fusemix.export.hf import FuseMixConfig, FuseMixModel  # noqa: F401\n"
)


class FuseMixConfig(PretrainedConfig):  # type: ignore[misc]  # mypy does not read transformers
    """Configuration: ``fusion`` holds the values of :class:`fusemix.model.config.ModelConfig`."""

    model_type = "fusemix"

    def __init__(self, fusion: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.fusion = fusion or {}


class FuseMixModel(PreTrainedModel):  # type: ignore[misc]
    """Adapters of all modalities: ``model(text=latents)`` -> {"text": embeddings of unit length}."""

    config_class = FuseMixConfig
    base_model_prefix = "fusion"
    main_input_name = "text"

    def __init__(self, config: FuseMixConfig) -> None:
        super().__init__(config)
        self.fusion = FusionModel(ModelConfig.from_dict(config.fusion))
        self.post_init()

    def _init_weights(self, module: Any) -> None:
        """Leave the weights as they are: all of them are loaded."""

    def forward(self, **latents: Tensor) -> dict[str, Tensor]:
        """Embed latents: modality -> (N, D_x), not normalised, to (N, D) of unit length; gradients pass."""
        return {name: F.normalize(self.fusion.adapters[name](x), dim=1) for name, x in latents.items()}


def export(model: FusionModel, folder: Path) -> None:
    """Write ``config.json``, ``model.safetensors`` and ``modeling_fusemix.py``."""
    config = FuseMixConfig(without_paths(model.config.to_dict()))
    config.auto_map = {
        "AutoConfig": "modeling_fusemix.FuseMixConfig",
        "AutoModel": "modeling_fusemix.FuseMixModel",
    }
    theirs = FuseMixModel(config)
    theirs.fusion.load_state_dict(model.state_dict())
    theirs.save_pretrained(str(folder))
    write_atomic(folder / "modeling_fusemix.py", lambda path: path.write_text(_CODE, encoding="utf-8"))
