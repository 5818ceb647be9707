"""A visitor's query: up to four parts with weights, converted to and from a link."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any
from urllib.parse import urlencode

from fusemix.media import MediaError, shown
from fusemix.search.retriever import DEFAULT_WEIGHTS

_IN_LINK = {"text": "q", "image": "picture", "audio": "sound", "minus_text": "without"}
_FILE_NOUNS = {"image": "your picture", "audio": "your sound"}
_MAX_QUOTED = 80  # characters of a text repeated in the status line
MAX_MARKED = 20  # results marked as right or wrong, each
FILTERS = ("kind", "licence", "source")  # of the results: the face an item must have, and its metadata
WEIGHT_RANGE = {"text": (-1.0, 1.0), "image": (-1.0, 1.0), "audio": (-1.0, 1.0), "minus_text": (-1.0, 0.0)}


@dataclass(frozen=True, kw_only=True)
class Query:
    """One query.

    Attributes:
        text: Words; "" for none. Half a surrogate pair becomes a question mark.
        image: Path of a picture, or None.
        audio: Path of a sound, or None.
        minus_text: Words to subtract; "" for none.
        ids: ``image`` or ``audio`` -> id of the gallery item or example; a visitor's own file has none
            and cannot be part of a link.
        weights: Part -> weight; by default that of ``DEFAULT_WEIGHTS``.
        where: One of :data:`FILTERS` -> the value that results must have.
        likes: ``modality:id`` of results that the visitor marked as right.
        dislikes: Likewise of wrong ones.

    Raises:
        MediaError: If a part or an id has another type, or a weight is not a finite number.
    """

    text: str = ""
    image: str | None = None
    audio: str | None = None
    minus_text: str = ""
    ids: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    where: Mapping[str, str] = field(default_factory=dict)
    likes: tuple[str, ...] = ()
    dislikes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for part in DEFAULT_WEIGHTS:
            value, expected = getattr(self, part), "a path" if part in _FILE_NOUNS else "a text"
            if not isinstance(value, str) and not (part in _FILE_NOUNS and value is None):
                raise MediaError(f"Expected {expected} as the query's {part}, got {shown(value)}.")
            if part not in _FILE_NOUNS:  # what the text encoder reads, and all that can be sent to a browser
                object.__setattr__(self, part, str(value).encode("utf-8", "replace").decode("utf-8"))
        for part, identity in self.ids.items():
            if not isinstance(identity, str):
                raise MediaError(f"The id of {shown(part)} must be a text, got {shown(identity)}.")
        for part, weight in self.weights.items():
            if not isinstance(weight, Real) or not abs(weight) <= sys.float_info.max:  # NaN is not
                raise MediaError(f"The weight of {shown(part)} must be a finite number, got {shown(weight)}.")

    @classmethod
    def of_file(cls, part: str, path: str, identity: str | None) -> Query:
        """Make a query of a picture or a sound alone.

        Args:
            part: ``image`` or ``audio``.
            path: Its file.
            identity: Id of the gallery item or example; None for a visitor's own file.
        """
        ids = {} if identity is None else {part: identity}
        return cls(image=path, ids=ids) if part == "image" else cls(audio=path, ids=ids)

    def joined_by(self, other: Query) -> Query:
        """Return this query with the other's parts replacing its own; the weights stay."""
        taken = other.parts()
        ids = {name: value for name, value in self.ids.items() if name not in taken}
        return replace(
            self,
            text=other.text or self.text,
            image=other.image or self.image,
            audio=other.audio or self.audio,
            minus_text=other.minus_text or self.minus_text,
            ids={**ids, **other.ids},
        )

    def marked(self, verdict: str, identity: str) -> Query:
        """Return this query with a result marked as ``like`` or ``dislike``, or unmarked if it was marked so."""
        lists = {"like": list(self.likes), "dislike": list(self.dislikes)}
        was = verdict in lists and identity in lists[verdict]
        for marked in lists.values():
            if identity in marked:
                marked.remove(identity)
        if verdict in lists and not was:
            lists[verdict].append(identity)
        return replace(self, likes=tuple(lists["like"][-MAX_MARKED:]), dislikes=tuple(lists["dislike"][-MAX_MARKED:]))

    def parts(self) -> dict[str, str]:
        """Return part -> words or path, for given parts with a weight other than 0."""
        given = {name: getattr(self, name) for name in DEFAULT_WEIGHTS}
        return {name: value for name, value in given.items() if value and value.strip() and self.weight(name)}

    def weight(self, part: str) -> float:
        """Return the weight of a part."""
        return float(self.weights.get(part, DEFAULT_WEIGHTS[part]))

    def describe(self) -> str:
        """Describe the query, such as ``your picture + 0.5 × “at night” − “people”``."""
        parts = list(self.parts().items())
        if len(parts) == 1 and self.weight(parts[0][0]) > 0:
            return self._name(*parts[0])
        sentence = ""
        for name, value in sorted(parts, key=lambda entry: -self.weight(entry[0])):
            weight = self.weight(name)
            sign = ("− " if weight < 0 else "") if not sentence else " − " if weight < 0 else " + "
            size = "" if abs(weight) == 1 else f"{abs(weight):g} × "
            sentence += f"{sign}{size}{self._name(name, value)}"
        return sentence

    @staticmethod
    def _name(part: str, value: str) -> str:
        short = value if len(value) <= _MAX_QUOTED else value[: _MAX_QUOTED - 1].rstrip() + "…"
        return _FILE_NOUNS.get(part, f"“{short}”")

    @property
    def brings_file(self) -> bool:
        """True if a picture or sound must be opened and encoded, which takes longer than words."""
        return bool((self.parts().keys() & _FILE_NOUNS.keys()) - self.ids.keys())

    def to_link(self) -> str:
        """Return the query as ``?q=...``; "" if a part is a visitor's own file."""
        parts = self.parts()
        values = {name: self.ids.get(name) if name in _FILE_NOUNS else value for name, value in parts.items()}
        if not parts or None in values.values():
            return ""
        link = {_IN_LINK[name]: str(value) for name, value in values.items()}
        weights = {name: self.weight(name) for name in parts if self.weight(name) != DEFAULT_WEIGHTS[name]}
        if weights:
            link["w"] = ",".join(f"{_IN_LINK[name]}:{weight:g}" for name, weight in weights.items())
        link |= {key: value for key, value in self.where.items() if key in FILTERS and value}
        link |= {key: " ".join(marked) for key, marked in (("yes", self.likes), ("no", self.dislikes)) if marked}
        return f"?{urlencode(link, errors='replace')}"

    @classmethod
    def from_link(cls, values: Mapping[str, Any]) -> Query:
        """Read a link; malformed weights, which anybody can write, get their default.

        The caller finds the files of ``ids``.
        """
        given = {name: str(values[key]) for name, key in _IN_LINK.items() if values.get(key)}
        return cls(
            text=given.get("text", ""),
            minus_text=given.get("minus_text", ""),
            ids={name: given[name] for name in _FILE_NOUNS if name in given},
            weights=_read_weights(str(values.get("w", ""))),
            where={key: str(values[key]) for key in FILTERS if values.get(key)},
            likes=tuple(str(values.get("yes") or "").split()[:MAX_MARKED]),
            dislikes=tuple(str(values.get("no") or "").split()[:MAX_MARKED]),
        )


def read_weight(part: str, value: Any) -> float | None:
    """Clip a weight to :data:`WEIGHT_RANGE`; return None if it is not a finite number."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    if not math.isfinite(number):
        return None
    low, high = WEIGHT_RANGE[part]
    return max(low, min(high, number))


def _read_weights(written: str) -> dict[str, float]:
    names = {key: name for name, key in _IN_LINK.items()}
    weights = {}
    for piece in written.split(","):
        key, _, number = piece.partition(":")
        value = read_weight(names[key], number) if key in names else None
        if value is not None:
            weights[names[key]] = value
    return weights
