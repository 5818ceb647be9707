"""Grouping of the pictures, sounds and captions of an index into items with up to three faces."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

_SAME = ("title", "source", "licence", "credit")  # what the rows of one thing share beside their group


class ItemGroups:
    """Items of an index, each with the rows of its faces.

    - A picture and a sound with one id are one item; so are the only picture and the only sound of a group.
    - A caption belongs to every picture and sound that has it as caption (an index holds each text once). Any other
      caption belongs to the item with its group, title, source, licence and credit, if there is exactly one.
    - Every other row is an item with one face.

    Attributes:
        faces: Item -> face (``image``, ``audio``, ``text``) -> rows of the index, ascending.
        rows: Face -> rows of the index, shape (L,), int64; entry i is a face of item ``owners[face][i]``.
        owners: Face -> numbers of the items, shape (L,), int64.
    """

    def __init__(self, items: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """Group the rows of an index.

        Args:
            items: Modality -> metadata of its items, in the index's order.
        """
        self.faces: list[dict[str, list[int]]] = []
        self._item_of: dict[tuple[str, int], list[int]] = defaultdict(list)
        by_id: dict[str, int] = {}
        by_group: dict[str, list[int]] = defaultdict(list)
        for row, entry in enumerate(items.get("image", ())):
            number = self._new("image", row)
            by_id.setdefault(entry["id"], number)
            by_group[_group(entry)].append(number)
        alone = _counts(items.get("audio", ()))
        for row, entry in enumerate(items.get("audio", ())):
            mates = by_group.get(_group(entry), [])
            sole = mates[0] if len(mates) == 1 and alone[_group(entry)] == 1 else None
            joined = by_id.get(entry["id"], sole)
            if joined is not None and "audio" not in self.faces[joined]:
                self._add(joined, "audio", row)
            else:
                number = self._new("audio", row)
                by_id.setdefault(entry["id"], number)
                by_group[_group(entry)].append(number)
        self._captions(items)
        for other in sorted(set(items) - {"image", "audio", "text"}):  # a user-defined modality
            for row, entry in enumerate(items[other]):
                if entry["id"] in by_id:
                    self._add(by_id[entry["id"]], other, row)
                else:
                    by_id[entry["id"]] = self._new(other, row)
        links = {face: sorted((row, n) for (f, row), owned in self._item_of.items() if f == face for n in owned)
                 for face in items}  # fmt: skip
        self.rows = {face: np.array([row for row, _ in pairs], np.int64) for face, pairs in links.items()}
        self.owners = {face: np.array([number for _, number in pairs], np.int64) for face, pairs in links.items()}

    def __len__(self) -> int:
        return len(self.faces)

    def items_of(self, face: str, row: int) -> list[int]:
        """Return the numbers of the items with this face; several may share a caption."""
        return list(self._item_of.get((face, row), ()))

    def _captions(self, items: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        own, kin = defaultdict(set), defaultdict(set)
        for number, faces in enumerate(self.faces):
            for face, rows in faces.items():
                for row in rows:
                    entry = items[face][row]
                    if entry.get("caption"):
                        own[str(entry["caption"]).casefold()].add(number)
                    kin[_kinship(entry)].add(number)
        for row, entry in enumerate(items.get("text", ())):
            owners: Iterable[int] = own.get(str(entry["text"]).casefold(), ())
            if not owners and len(kin.get(_kinship(entry), ())) == 1:
                owners = kin[_kinship(entry)]
            if not owners:
                self._new("text", row)
            for number in sorted(owners):
                self._add(number, "text", row)

    def _new(self, face: str, row: int) -> int:
        self.faces.append({})
        self._add(len(self.faces) - 1, face, row)
        return len(self.faces) - 1

    def _add(self, number: int, face: str, row: int) -> None:
        self.faces[number].setdefault(face, []).append(row)
        self._item_of[face, row].append(number)


def _group(entry: Mapping[str, Any]) -> str:
    return str(entry.get("group") or f"\0{entry['id']}")  # an entry without a group is a group of its own


def _kinship(entry: Mapping[str, Any]) -> tuple[str, ...]:
    return (_group(entry), *(str(entry.get(key, "")) for key in _SAME))


def _counts(entries: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for entry in entries:
        counts[_group(entry)] += 1
    return counts
