"""The dataset card of an index on the Hugging Face Hub."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import DatasetCardData

from fusemix.files import read_json
from fusemix.model.card import base_models, front_matter

if TYPE_CHECKING:
    from fusemix.model.config import ModelConfig
    from fusemix.search.index import EmbeddingIndex

# As items name their licence -> as the Hub does; it knows no name for public domain, nor for what is not listed.
_LICENCES = {
    "apache-2.0": "apache-2.0",
    "mit": "mit",
    "cc0-1.0": "cc0-1.0",
    "cc-by-3.0": "cc-by-3.0",
    "cc-by-4.0": "cc-by-4.0",
    "cc-by-sa-3.0": "cc-by-sa-3.0",
    "cc-by-sa-4.0": "cc-by-sa-4.0",
    "gpl-2.0-or-later": "gpl-2.0",
    "gpl-2.0": "gpl-2.0",
    "gpl-3.0": "gpl-3.0",
}
_MOST_ROWS = 50  # of the table of sources
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
_TASKS = {"image": "image-feature-extraction", "text": "sentence-similarity"}  # the Hub has none for sounds


def index_card(name: str, index: EmbeddingIndex, folder: str | Path, model: ModelConfig | None = None) -> str:
    """Write a card in Markdown with Hub front matter: counts, sources and licences of the items, encoders, use.

    Args:
        name: Title.
        index: The index.
        folder: Where it is saved, for the name of the file that lists its items.
        model: Configuration of the model that made it, if it is at hand.
    """
    items = [(modality, item) for modality in index.counts for item in index.items(modality)]
    tally = Counter((m, str(i.get("source") or "not named"), str(i.get("licence") or "not named")) for m, i in items)
    rows = [
        f"| {m} | {_cell(source)} | {_cell(licence)} | {n:,} |" for (m, source, licence), n in sorted(tally.items())
    ]
    if len(rows) > _MOST_ROWS:
        rows = [*rows[:_MOST_ROWS], f"| … | {len(rows) - _MOST_ROWS:,} more | | |"]
    licences = sorted({_LICENCES.get(licence.lower(), "other") for _, _, licence in tally if licence != "not named"})
    bases = base_models(model) if model is not None else []
    data = DatasetCardData(
        pretty_name=name,
        language="en",
        license=licences or "unknown",
        size_categories=next((size for limit, size in _SIZES if len(items) < limit), "n>10M"),
        task_categories=[_TASKS[modality] for modality in index.counts if modality in _TASKS] or None,
        library_name="fusemix",
        tags=["fusemix", "faiss", "embeddings", "multimodal", "retrieval"],
        base_model=bases or None,
        configs=[
            {"config_name": "items", "data_files": read_json(Path(folder) / "index.json").get("items", "items.jsonl")}
        ],
    )
    encoders = f"The frozen encoders below it are {', '.join(bases)}. " if bases else ""
    return f"""{front_matter(data)}
# {name}

A search index of FuseMix: {len(items):,} embeddings of {index.embed_dim} dimensions in `*.faiss`, and what they stand
for, one line each. {encoders}The model `{index.model_identity[:12]}` made it, and it answers queries of that one only:

```python
from fusemix import Retriever

retriever = Retriever.from_pretrained("CHECKPOINT", "OWNER/NAME")  # of this dataset
retriever.search(text="a red car")
```

| modality | source | licence | items |
| --- | --- | --- | ---: |
{chr(10).join(rows)}

The items' files are not in here, only their names, captions and embeddings. Licences are those of the items, as the
table that was indexed names them; where it names none, ask whoever made it before you share this.
"""


def _cell(text: str) -> str:
    """Keep a text inside a cell of a Markdown table."""
    return " ".join(text.replace("|", "/").split())[:120]
