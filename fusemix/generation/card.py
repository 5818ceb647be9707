"""The model card that lies beside a conditioner."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from fusemix.generation.bridges import Conditioner
from fusemix.model.card import base_models, front_matter
from fusemix.model.config import ModelConfig

_CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)")  # a repository's folder in the Hub's cache


def conditioner_card(
    name: str, conditioner: Conditioner, *, decoder: str | Path | None = None, model: ModelConfig | None = None
) -> str:
    """Write a card in Markdown with Hub front matter: what it joins, and the recall of its maps.

    Args:
        name: Title.
        conditioner: With the notes of :func:`fusemix.generation.clip_target.fit_conditioner`, if it has any.
        decoder: The Stable unCLIP it was fitted for: a Hub id or a folder; one of the Hub's cache tells its id.
        model: Configuration of the model whose embeddings it maps.
    """
    repo = _hub_id(decoder)
    measured = conditioner.notes
    notes = {m: measured[m][b.kind] for m, b in conditioner.bridges.items() if b.kind in measured.get(m, {})}
    results = [
        EvalResult(
            task_type="feature-extraction",
            task_name="retrieval in CLIP's space",
            dataset_type="held-out-pictures",
            dataset_name="held-out pictures of the table",
            metric_type="recall",
            metric_name=f"recall@{k} among {note['candidates']:,} pictures, by {modality}",
            metric_value=round(note[f"recall_at_{k}"], 4),
        )
        for modality, note in notes.items()
        for k in (1, 10)
    ]
    data = ModelCardData(
        library_name="fusemix",
        pipeline_tag="image-to-image",
        license="apache-2.0",
        language="en",
        base_model=[*([repo] if repo else []), *(base_models(model) if model else [])] or None,
        tags=["fusemix", "unclip", "stable-unclip", "conditioner"],
        metrics=["recall"] if results else None,
        model_name=name if results else None,
        eval_results=results or None,
    )
    maps = "\n".join(
        f"| {modality} | {bridge.kind} | {_recall(notes.get(modality), 1)} | {_recall(notes.get(modality), 10)} |"
        for modality, bridge in conditioner.bridges.items()
    )
    wide, narrow = conditioner.image_embeds_dim, conditioner.embed_dim
    return f"""{front_matter(data)}
# {name}

Maps from the shared space of a FuseMix checkpoint ({narrow} dimensions) onto the image embeddings ({wide} dimensions)
that {repo or "a Stable Diffusion unCLIP"} draws from. It fits that decoder and that checkpoint
(`{str(conditioner.space)[:12]}`) only; another checkpoint is refused.

```
fusemix generate --decoder {repo or "DECODER"} --conditioner OWNER/NAME --text "a red car" --out car.png
```

In the app: `FUSEMIX_CONDITIONER=OWNER/NAME`.

| modality | map | recall@1 | recall@10 |
| --- | --- | --- | --- |
{maps}

Recall of held-out pictures in the decoder's own CLIP space.
"""


def _hub_id(decoder: str | Path | None) -> str | None:
    """Return the Hub id that a decoder's name or folder tells; None if it is a folder of this machine."""
    if found := _CACHED.search(str(decoder)):
        return f"{found[1]}/{found[2]}"
    is_id = isinstance(decoder, str) and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", decoder) and not Path(decoder).is_dir()
    return str(decoder) if is_id else None


def _recall(note: dict[str, float] | None, k: int) -> str:
    return f"{note[f'recall_at_{k}']:.3f}" if note else ""
