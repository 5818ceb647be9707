"""The source code of a vector drawing as a latent: 1,024 numbers counted from an SVG file, no network.

What is counted, each count as log(1 + n):

- 512: n-grams (1 to 4) of the drawing's commands, hashed; the letters of all ``d`` attributes and, between them, the
  names of the elements, in the order of the file;
- 112: which attribute or style property stands on which element, and values that are plain words, hashed;
- 64 + 64: colours filled with (or on a gradient) and drawn with, 4 x 4 x 4;
- 144: where segments end, on 12 x 12 fields of the drawing's bounding box;
- 112: segments by direction (16) and length (7 powers of two of the box's longer side);
- 16: statistics of the whole: counts, shares and the box's shape (height by width).

Names tell what is drawn, so nothing is read that a person named or wrote: no title, description, keyword, comment,
text, id, class, file name or label, only the elements and properties listed here. Transformations are not carried out,
and flags of arcs written without a space between them are misread.
"""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from xml.etree import ElementTree

import numpy as np
from PIL import ImageColor

DIM = 1024
NGRAMS, PROPERTIES, COLOURS, GRID, DIRECTIONS, LENGTHS = 512, 112, 64, 12, 16, 7
ELEMENTS = frozenset((
    "svg", "g", "path", "rect", "circle", "ellipse", "line", "polyline", "polygon", "use", "defs", "clipPath",
    "mask", "pattern", "image", "text", "tspan", "linearGradient", "radialGradient", "stop", "filter",
    "feGaussianBlur", "switch", "symbol", "marker",
))  # fmt: skip
NAMED = (  # properties whose presence is counted, and the value of those that are plain words
    "fill", "stroke", "fill-rule", "clip-rule", "fill-opacity", "stroke-opacity", "opacity", "stroke-width",
    "stroke-linecap", "stroke-linejoin", "stroke-miterlimit", "stroke-dasharray", "stop-color", "stop-opacity",
    "transform", "gradientTransform", "gradientUnits", "spreadMethod", "filter", "clip-path", "mask", "display",
    "visibility", "overflow", "rx", "ry", "cx", "cy", "r", "x", "y", "x1", "y1", "x2", "y2", "fx", "fy",
    "offset", "points", "d",
)  # fmt: skip
WORDS = frozenset((
    "none", "nonzero", "evenodd", "butt", "round", "square", "miter", "bevel", "inherit", "userSpaceOnUse",
    "objectBoundingBox", "pad", "reflect", "repeat", "visible", "hidden", "inline", "currentColor",
))  # fmt: skip
ARGUMENTS = {"m": 2, "l": 2, "h": 1, "v": 1, "c": 6, "s": 4, "q": 4, "t": 2, "a": 7, "z": 0}
_TOKEN = re.compile(r"[A-Za-z]|[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")

Drawn = tuple[str, ElementTree.Element, dict[str, str]]  # name, element, its properties
Segment = tuple[str, float, float, float, float]  # command, from x, y to x, y; user units


def code_latent(svg: str) -> np.ndarray:
    """The latent of one drawing's source: shape (1024,), float32, not normalised.

    Raises:
        ValueError: If the source is not well-formed XML, or draws nothing.
    """
    try:
        root = ElementTree.fromstring(svg)
    except ElementTree.ParseError as error:
        raise ValueError(f"The drawing is not well-formed XML ({error}).") from error
    drawn = list(_drawn(root))
    segments = [segment for _, element, _ in drawn for segment in _segments(element)]
    if not drawn or not segments:
        raise ValueError("The drawing has no path or shape.")
    words, properties = Counter[int](), Counter[int]()
    commands, fills, strokes = list[str](), np.zeros(COLOURS), np.zeros(COLOURS)
    for name, element, values in drawn:
        commands += [name, *re.findall("[A-Za-z]", re.sub(r"(?<=\d)[eE](?=[-+\d])", "", element.get("d", "")))]
        for key, value in values.items():
            properties[_bucket(f"{name} {key}", PROPERTIES)] += 1
            if value in WORDS:
                properties[_bucket(f"{key} {value}", PROPERTIES)] += 1
        for keys, counts in ((("fill", "stop-color"), fills), (("stroke",), strokes)):
            for colour in (_colour(values.get(key, "")) for key in keys):
                if colour is not None:
                    counts[colour] += 1
    for n in range(1, 5):
        for start in range(len(commands) - n + 1):
            words[_bucket(" ".join(commands[start : start + n]), NGRAMS)] += 1
    where, ways = _shape(segments)
    parts = (
        _counted(words, NGRAMS), _counted(properties, PROPERTIES), fills, strokes, where, ways,
        _statistics(drawn, segments, commands, fills, strokes),
    )  # fmt: skip
    return np.log1p(np.concatenate(parts)).astype(np.float32)


def _drawn(element: ElementTree.Element) -> Iterator[Drawn]:
    """Known elements in the order of the file with their known properties."""
    name = element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""
    if name not in ELEMENTS:
        return  # and what is inside: metadata, titles, scripts
    style = [p.split(":", 1) for p in element.get("style", "").split(";") if ":" in p]
    values = dict(element.attrib) | {key.strip(): value.strip() for key, value in style}
    yield name, element, {key: values[key] for key in NAMED if key in values}
    for child in element:
        yield from _drawn(child)


def _segments(element: ElementTree.Element) -> list[Segment]:
    """A path's segments, straight or curved, from end to end; of other shapes their outline's corners."""
    name, box = element.tag.rpartition("}")[2], {k: _number(element.get(k, "")) for k in ("x", "y", "width", "height")}
    if name == "path":
        return _path(element.get("d", ""))
    if name in ("polygon", "polyline"):
        return _path("M" + element.get("points", "") + ("z" if name == "polygon" else ""))
    if name == "rect":
        x, y, width, height = box.values()
        return _path(f"M{x},{y} h{width} v{height} h{-width} z")
    if name == "line":
        x1, y1, x2, y2 = (_number(element.get(k, "")) for k in ("x1", "y1", "x2", "y2"))
        return [("L", x1, y1, x2, y2)]
    if name in ("circle", "ellipse"):
        x, y, r = (_number(element.get(k, "")) for k in ("cx", "cy", "r"))
        rx, ry = (_number(element.get(k, "")) or r for k in ("rx", "ry"))
        corners = [(x + rx, y), (x, y + ry), (x - rx, y), (x, y - ry)]
        return [("A", *a, *b) for a, b in zip(corners, corners[1:] + corners[:1], strict=True)]
    return []


def _path(d: str) -> list[Segment]:
    """The segments of a path's ``d``; what follows something unreadable is left out, as SVG has it."""
    tokens, out, command = _TOKEN.findall(d), list[Segment](), ""
    x = y = start_x = start_y = 0.0
    at = 0
    while at < len(tokens):
        if tokens[at].isalpha():
            command, at = tokens[at], at + 1
        kind, relative = command.lower(), command.islower()
        if kind not in ARGUMENTS or (count := ARGUMENTS[kind]) > len(tokens) - at:
            break
        if any(token.isalpha() for token in tokens[at : at + count]) or (kind == "z" and not tokens[at - 1].isalpha()):
            break
        values = [float(token) for token in tokens[at : at + count]]
        at += count
        if kind == "z":
            to = start_x, start_y
        elif kind in "hv":
            base = (x if kind == "h" else y) if relative else 0.0
            to = (base + values[0], y) if kind == "h" else (x, base + values[0])
        else:
            to = (x + values[-2], y + values[-1]) if relative else (values[-2], values[-1])
        if kind == "m":
            start_x, start_y = to
            command = "l" if relative else "L"  # what further numbers mean
        else:
            out.append((command, x, y, *to))
        x, y = to
    return out


def _shape(segments: list[Segment]) -> tuple[np.ndarray, np.ndarray]:
    """Where segments end, (144,), and their directions and lengths, (112,): counts."""
    ends = np.array([s[1:] for s in segments]).reshape(-1, 2, 2)  # (N, from and to, x and y)
    low, high = ends.min(axis=(0, 1)), ends.max(axis=(0, 1))
    side = max(float((high - low).max()), 1e-9)
    fields = ((ends[:, 1] - low) / np.maximum(high - low, 1e-9) * GRID).astype(int).clip(0, GRID - 1)
    where = np.bincount(fields[:, 1] * GRID + fields[:, 0], minlength=GRID**2)
    step = ends[:, 1] - ends[:, 0]
    turn = np.arctan2(step[:, 1], step[:, 0]) / (2 * np.pi) * DIRECTIONS
    direction = np.rint(turn).astype(int) % DIRECTIONS
    length = np.log2(np.maximum(np.hypot(*step.T) / side, 1e-9)).astype(int) + LENGTHS - 1  # longest last
    ways = np.bincount(direction * LENGTHS + length.clip(0, LENGTHS - 1), minlength=DIRECTIONS * LENGTHS)
    return where.astype(float), ways.astype(float)


def _statistics(
    drawn: list[Drawn], segments: list[Segment], commands: list[str], fills: np.ndarray, strokes: np.ndarray
) -> np.ndarray:
    """Counts, decimals a number, tenths of segments that curve, are arcs, close, are relative; the box: (16,)."""
    names = Counter(name for name, _, _ in drawn)
    shapes = sum(names[n] for n in ("rect", "circle", "ellipse", "line", "polyline", "polygon"))
    gradients = names["linearGradient"] + names["radialGradient"]
    decimals = [len(n) for _, e, _ in drawn for n in re.findall(r"\.(\d+)", e.get("d", "")[:400])]
    kinds = Counter(s[0].lower() for s in segments)
    relative = sum(s[0].islower() for s in segments)
    shares = [10 * n / len(segments) for n in (sum(kinds[k] for k in "csqt"), kinds["a"], kinds["z"], relative)]
    width, height = np.ptp(np.array([s[1:] for s in segments]).reshape(-1, 2), axis=0)
    return np.array([
        len(drawn), names["path"], names["g"], shapes, gradients, names["stop"], len(segments), len(commands),
        np.count_nonzero(fills), np.count_nonzero(strokes), np.mean(decimals) if decimals else 0.0, *shares,
        10 * min(4.0, height / max(width, 1e-9)),
    ])  # fmt: skip


def _colour(value: str) -> int | None:
    """Number of the colour's field in 4 x 4 x 4, if it is one."""
    try:
        red, green, blue = ImageColor.getrgb(value)[:3]
    except ValueError:
        return None
    return red // 64 * 16 + green // 64 * 4 + blue // 64


def _number(value: str) -> float:
    """A length without its unit; 0 if there is none."""
    match = re.match(r"\s*[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?", value)
    number = float(match[0]) if match else 0.0
    return number if math.isfinite(number) else 0.0


def _bucket(text: str, size: int) -> int:
    return zlib.crc32(text.encode()) % size  # the same in every process, unlike hash()


def _counted(counts: Counter[int], size: int) -> np.ndarray:
    out = np.zeros(size)
    out[list(counts)] = list(counts.values())
    return out
