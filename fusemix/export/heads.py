"""Head of one modality: the part of an adapter that an export carries, latents in, embeddings out."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusemix.model.adapters import EnsembleAdapter, FusionModel, MultiPathAdapter

Path = Literal["all", "closed-form"]


class Head(nn.Module):
    """Latents of one modality (B, D_x), not normalised -> embeddings (B, D) of unit length."""

    def __init__(self, adapter: nn.Module) -> None:
        super().__init__()
        self.adapter = adapter

    def forward(self, latents: Tensor) -> Tensor:
        """Embed the latents."""
        return F.normalize(self.adapter(latents), dim=1)


def head(model: FusionModel, modality: str, path: Path) -> Head:
    """Return a modality's head: the whole adapter, or its closed form as one linear layer with a bias.

    Raises:
        ValueError: If there is no adapter for the modality, or it has no closed form.
    """
    if modality not in model.modalities:
        raise ValueError(f"This model embeds {list(model.modalities)}, not {modality!r}.")
    adapter = model.adapters[modality]
    return Head(linear_layer(closed_form(adapter)) if path == "closed-form" else adapter).eval()


def closed_form(adapter: nn.Module) -> MultiPathAdapter:
    """Return the adapter that holds a closed form; of an ensemble, the first member with one.

    Raises:
        ValueError: If every path was trained.
    """
    members = list(adapter.members) if isinstance(adapter, EnsembleAdapter) else [adapter]
    for member in members:
        if isinstance(member, MultiPathAdapter):
            return member
    raise ValueError(
        "This checkpoint has no closed form (recipe paper), so it is no plain linear layer; export all its paths."
    )


def linear_layer(adapter: MultiPathAdapter) -> nn.Linear:
    """Write a closed form ``(x - mean) @ linear`` as a linear layer with a bias; computed in float64, kept float32."""
    linear = adapter.linear.detach().cpu().double()
    layer = nn.Linear(*linear.shape)
    with torch.no_grad():
        layer.weight.copy_(linear.T)
        layer.bias.copy_(-(adapter.mean.detach().cpu().double() @ linear))
    return layer
