"""Precision of the matrix products in training."""

from __future__ import annotations

import torch


def resolve_precision(name: str) -> str:
    """Resolve ``auto`` to bf16 if the processor multiplies it fast, else to ``no``; keep any other name."""
    if name != "auto":
        return name
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "no"
    # oneDNN's bf16 products are slow (hundreds of times) without these instructions
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if fast else "no"
