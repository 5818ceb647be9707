"""The front matter of the cards that ship: measured results as the Hub reads them, and the index's whole card.

    python -m scripts.release.card_results

Reads docs/results; writes checkpoints/default/README.md, checkpoints/unclip-small/README.md and demo/index/README.md.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from fusemix.model.adapters import FusionModel
from fusemix.model.card import base_models, retrieval_result
from fusemix.search.card import index_card
from fusemix.search.index import EmbeddingIndex

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs/results"
SETS = {
    "flickr8k_dev": ("flickr8k", "Flickr8k, dev"),
    "gallery_val": ("fusemix-gallery", "gallery of the FuseMix app, val"),
    "voices_dev": ("flickr8k-spoken", "Flickr8k, dev captions in a synthetic voice never trained on"),
}
DIRECTIONS = ("image_to_text", "text_to_image", "audio_to_image", "audio_to_text")


def retrieval_results() -> list[EvalResult]:
    """Recall of checkpoints/default, by ``fusemix evaluate``."""
    found = []
    for name, (kind, title) in SETS.items():
        for direction in DIRECTIONS:
            path = RESULTS / f"default_{name}_{direction}.json"
            if path.is_file():
                values = _read(path)
                found += [
                    retrieval_result(kind, title, name, direction, values[f"recall_at_{k}"], k=k) for k in (1, 10)
                ]
    return found


def drawing_results() -> list[EvalResult]:
    """Recall of what checkpoints/unclip-small draws from noise, judged by an encoder it never met."""
    found = []
    for name, protocol in _read(RESULTS / "generation.json")["protocols"].items():
        kind, title = SETS[name.replace("-", "_")]
        for modality, measured in protocol["conditioned_on"].items():
            judged = measured["generated"]["outside"]
            result = retrieval_result(kind, title, name, f"picture drawn of {modality}", judged["recall_at_10"], k=10)
            result.task_type, result.task_name = "image-to-image", "drawing, found again among real pictures"
            found.append(result)
    return found


def cards() -> dict[Path, str]:
    """Return path -> text of the cards that ship."""
    model = FusionModel.from_pretrained(ROOT / "checkpoints/default")
    bases = base_models(model.config)
    index = EmbeddingIndex.load(ROOT / "demo/index", model_identity=model.identity)
    return {
        ROOT / "checkpoints/default/README.md": _with_results("default", retrieval_results(), bases),
        ROOT / "checkpoints/unclip-small/README.md": _with_results("unclip-small", drawing_results(), bases),
        ROOT / "demo/index/README.md": index_card(
            "Gallery of the FuseMix app", index, ROOT / "demo/index", model.config
        ),
    }


def _with_results(name: str, results: list[EvalResult], bases: list[str]) -> str:
    card = ModelCard.load(ROOT / "checkpoints" / name / "README.md")
    card.data.base_model, card.data.metrics = bases, ["recall"]
    card.data.model_name, card.data.eval_results = name, results
    return str(card)


def _read(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values


if __name__ == "__main__":
    for path, text in cards().items():
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))
