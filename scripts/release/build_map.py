"""Lay out the gallery's things by neighbourhood for the app's "Explore" tab: positions by t-SNE, and a thumbnail each.

    python scripts/release/build_map.py        # needs scikit-learn (pip install scikit-learn)

A thing is a picture, with its sound and captions if it has any, or a sound without a picture. Its vector holds the
embeddings of its faces, each modality centred and the captions' counted twice; a missing face is the mean.
Writes ``demo/gallery/map.json`` (modality -> id -> x, y in -1 to 1, and for a picture its place in the sheet) and
``demo/gallery/thumbnails.webp``. Run it after ``make index``.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from fusemix.model.adapters import FusionModel
from fusemix.search.index import EmbeddingIndex
from fusemix.search.items import ItemGroups

ROOT = Path(__file__).resolve().parents[2]
SIDE = 40  # pixels of a thumbnail
COLUMNS = 64
WEIGHTS = {"image": 1.0, "text": 2.0, "audio": 1.0}


def layout(index: EmbeddingIndex, groups: ItemGroups) -> np.ndarray:
    """Return a position for every thing, shape (n, 2), between -1 and 1."""
    from sklearn.manifold import TSNE

    parts = []
    for face, weight in WEIGHTS.items():
        rows = index.embeddings(face)
        centred = rows - rows.mean(0)
        centred /= np.linalg.norm(centred, axis=1, keepdims=True)
        block = np.zeros((len(groups), rows.shape[1]))
        for number, faces in enumerate(groups.faces):
            if face in faces:
                block[number] = weight * centred[faces[face]].mean(0)
        parts.append(block)
    places = TSNE(metric="cosine", init="pca", perplexity=25, random_state=0).fit_transform(np.hstack(parts))
    low, high = places.min(0), places.max(0)
    scaled = 2 * (places.astype(np.float64) - low) / (high - low) - 1
    ranks = 2 * places.argsort(0).argsort(0) / (len(places) - 1) - 1  # spread evenly along either axis
    spread: np.ndarray = (scaled + ranks).round(3) / 2
    return spread


def main() -> None:
    """Write both files."""
    identity = FusionModel.from_pretrained(ROOT / "checkpoints/default").identity
    index = EmbeddingIndex.load(ROOT / "demo/index", model_identity=identity)
    items = {modality: index.items(modality) for modality in index.counts}
    groups = ItemGroups(items)
    places = layout(index, groups)
    pictures = [n for n, faces in enumerate(groups.faces) if "image" in faces]
    sheet = Image.new("RGB", (COLUMNS * SIDE, -(-len(pictures) // COLUMNS) * SIDE), "white")
    found: dict[str, dict[str, list[float]]] = {"image": {}, "audio": {}}
    for cell, number in enumerate(pictures):
        item = items["image"][groups.faces[number]["image"][0]]
        picture = Image.open(ROOT / "demo/gallery" / item["path"]).convert("RGB")
        picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        at = (cell % COLUMNS) * SIDE, (cell // COLUMNS) * SIDE
        sheet.paste(picture, (at[0] + (SIDE - picture.width) // 2, at[1] + (SIDE - picture.height) // 2))
        found["image"][item["id"]] = [*places[number].round(3).tolist(), cell]
    for number, faces in enumerate(groups.faces):
        for row in faces.get("audio", []):
            found["audio"][items["audio"][row]["id"]] = places[number].round(3).tolist()
    sheet.save(ROOT / "demo/gallery/thumbnails.webp", quality=60, method=6)
    text = json.dumps({"side": SIDE, "columns": COLUMNS, "places": found}, separators=(",", ":"))
    (ROOT / "demo/gallery/map.json").write_text(text + "\n", encoding="utf-8")
    print(json.dumps({face: len(known) for face, known in found.items()}))


if __name__ == "__main__":
    main()
