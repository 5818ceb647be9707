"""A table of pairs as a retrieval task of mteb, with nothing fetched from the Hub."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fusemix.data.pairs import PairTable
from fusemix.extras import extra

_LETTERS = {"text": "t", "image": "i", "audio": "a"}


def table_task(table: PairTable, *, query: str, gallery: str, split: str | None = None, name: str = "OwnPairs") -> Any:
    """Make a task of two columns by the protocol of ``fusemix evaluate``: any item of a query's group is right.

    Args:
        table: The pairs.
        query: ``text``, ``image`` or ``audio``.
        gallery: Another of these.
        split: Only rows of this split.
        name: Of the task, in mteb's results.
    """
    asked = table.cells(query, split) if query == "text" else table.items(query, split)
    items = table.items(gallery, split)
    known = {item.group for item in items}
    asked = [item for item in asked if item.group in known]
    groups = [item.group for item in asked], [item.group for item in items]
    return retrieval_task(name, query, gallery, [q.value for q in asked], [i.value for i in items], *groups)


def retrieval_task(
    name: str,
    query: str,
    gallery: str,
    queries: Sequence[Any],
    items: Sequence[Any],
    query_groups: Sequence[int],
    gallery_groups: Sequence[int],
) -> Any:
    """Make a task of items; a gallery item is relevant to the queries of its group.

    Its main score is ``hit_rate_at_1``, which is our recall@1 (mteb's own recall@1 is a share of all relevant items).

    Args:
        name: Of the task, in mteb's results.
        query: ``text``, ``image`` or ``audio``.
        gallery: One of these.
        queries: Texts, paths or PIL images.
        items: The same, of the gallery.
        query_groups: One integer a query.
        gallery_groups: One integer an item.
    """
    with extra("export", "Evaluation by mteb"):
        from mteb.abstasks.retrieval import AbsTaskRetrieval
        from mteb.abstasks.task_metadata import TaskMetadata
    by_group: dict[int, dict[str, int]] = {}
    for number, group in enumerate(gallery_groups):
        by_group.setdefault(group, {})[f"g{number}"] = 1
    data = {
        "corpus": _dataset("g", gallery, items),
        "queries": _dataset("q", query, queries),
        "relevant_docs": {f"q{number}": by_group[group] for number, group in enumerate(query_groups)},
        "top_ranked": None,
    }
    described = TaskMetadata(
        name=name,
        description=f"Find the {gallery} that belongs to a {query}.",
        dataset={"path": "local/table", "revision": "1"},
        type="Any2AnyRetrieval",
        category=f"{_LETTERS[query]}2{_LETTERS[gallery]}",
        modalities=sorted({query, gallery}),
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="hit_rate_at_1",
    )

    class TableTask(AbsTaskRetrieval):  # type: ignore[misc]  # where mteb is not installed, its types are Any
        metadata = described

        def load_data(self, *_: Any, **__: Any) -> None:
            """Take the items that are here."""
            self.dataset = {"default": {"test": data}}
            self.data_loaded = True

    return TableTask()


def _dataset(letter: str, kind: str, values: Sequence[Any]) -> Any:
    from datasets import Audio, Dataset, Features, Image, Value

    features = {"text": Value("string"), "image": Image(), "audio": Audio()}
    columns = {"id": [f"{letter}{number}" for number in range(len(values))], kind: list(values)}
    return Dataset.from_dict(columns, features=Features({"id": Value("string"), kind: features[kind]}))
