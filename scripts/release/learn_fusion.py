"""Learn on validation data the weight of each face of an item, and measure it on the other half.

    python scripts/release/learn_fusion.py --flickr8k ../shared/flickr8k/pairs.csv --report docs/results/fusion.json

Weights maximise the likelihood of the right item (softmax over all items of the weighted, standardised similarities):

- words: half of the photos of Flickr8k dev, caption 0 kept as the item's text, captions 1 to 4 asked; what sounds
  count is learned from names of the gallery's held-out sounds;
- words heard and the voice that said them: spoken caption 0 of the same photos, caption 1 kept as the item's text;
- a picture: the gallery's held-out pictures, the others of their group are right, the picture itself is left out;
- a sound: the gallery's held-out sounds, without their own sound face.

The subset of columns with the best two-fold mean reciprocal rank is kept: a face that does not help gets no weight.
Reported on the other half (photos, speech), or by two-fold cross-validation over groups (gallery).
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from fusemix.data.pairs import PairTable
from fusemix.files import write_json
from fusemix.search.fusion import LEARNED, Fusion, standardised
from fusemix.search.items import ItemGroups
from fusemix.search.retriever import Retriever
from fusemix.search.transcripts import only_words

ROOT = Path(__file__).resolve().parents[2]
FACES = ("image", "text", "audio")
WRONGLY_SHOWN = 0.02  # of the queries that no sound fits
NO_NOUNS = frozenset(
    re.findall(
        r"\w+",
        "a an the of in on at with and to is are for up down as hit played playing sound high low middle big small "
        "large red blue green black white grey brown yellow colorful hard softly short electronic loop no sign old "
        "young little out back style from two one",
    )
)
PENALTY = 1e-3  # on squared weights: keeps undetermined weights finite


@dataclass(frozen=True)
class Task:
    """Queries of one kind: standardised similarities (Q, items, columns), zero where there is nothing, and answers."""

    values: np.ndarray
    right: np.ndarray  # (Q, items) bool
    groups: np.ndarray  # (Q,), never on both sides of a split
    left_out: np.ndarray | None = None  # (Q, items) bool

    def of(self, chosen: np.ndarray) -> Task:
        """Return some of the queries."""
        left_out = None if self.left_out is None else self.left_out[chosen]
        return Task(self.values[chosen], self.right[chosen], self.groups[chosen], left_out)


def _out(task: Task) -> Tensor:
    left_out = np.zeros(task.right.shape, bool) if task.left_out is None else task.left_out
    return torch.from_numpy(left_out)


def learn(tasks: Sequence[Task]) -> np.ndarray:
    """Fit weights >= 0, one per column, that minimise the mean negative log-likelihood."""
    columns = tasks[0].values.shape[2]
    raw = torch.zeros(columns, requires_grad=True)
    data = [(torch.from_numpy(t.values).float(), torch.from_numpy(t.right), _out(t)) for t in tasks]
    optimizer = torch.optim.LBFGS([raw], max_iter=80, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        weights = torch.nn.functional.softplus(raw)
        total = PENALTY * (weights**2).sum()
        for values, right, out in data:
            scores = (values @ weights).masked_fill(out, -1e9)
            total = total + (scores.logsumexp(1) - scores.masked_fill(~right, -1e9).logsumexp(1)).mean() / len(data)
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimizer.step(loss)  # type: ignore[no-untyped-call, arg-type]
    return torch.nn.functional.softplus(raw).detach().numpy().round(3)


def ranks(task: Task, weights: Sequence[float] | np.ndarray) -> np.ndarray:
    """Compute the rank of the best right item, (Q,); ties count against it."""
    scores = task.values @ np.asarray(weights)
    if task.left_out is not None:
        scores[task.left_out] = -np.inf
    best = np.where(task.right, scores, -np.inf).max(1)
    found: np.ndarray = (scores >= best[:, None]).sum(1)
    return found


def figures(task: Task, weights: Sequence[float] | np.ndarray) -> dict[str, Any]:
    """Compute the recall of a right item among the first 1, 6 and 10."""
    found = ranks(task, weights)
    recall = {f"recall_at_{k}": round(float((found <= k).mean()), 4) for k in (1, 6, 10)}
    return {"queries": len(found), "items": task.right.shape[1], **recall, "median_rank": float(np.median(found))}


def ablation(task: Task, weights: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Compute the figures of the weights, of each column alone, and of all but one."""
    report = {"fused": figures(task, weights)}
    for column, name in enumerate(names):
        report[f"{name} alone"] = figures(task, np.eye(len(names))[column])
    return report


def halves(groups: np.ndarray, seed: int = 0) -> np.ndarray:
    """Choose a random half of the groups: (Q,) bool."""
    names = np.unique(groups)
    first = np.random.default_rng(seed).permutation(names)[: len(names) // 2]
    return np.isin(groups, first)


def choose(task: Task) -> np.ndarray:
    """Fit weights for the subset of columns with the highest two-fold mean reciprocal rank; fewer columns win ties."""
    first = halves(task.groups)
    columns = range(task.values.shape[2])
    subsets = [list(c) for size in range(1, len(columns) + 1) for c in combinations(columns, size)]

    def judged(subset: list[int]) -> float:
        narrow = replace(task, values=task.values[:, :, subset])
        sides = [(narrow.of(first), narrow.of(~first)), (narrow.of(~first), narrow.of(first))]
        return float(np.concatenate([1 / ranks(test, learn([train])) for train, test in sides]).mean())

    best = max(subsets, key=judged)
    weights = np.zeros(len(columns))
    weights[best] = learn([replace(task, values=task.values[:, :, best])])
    return weights


def cross_validated(task: Task, names: Sequence[str]) -> dict[str, Any]:
    """Compute the figures of each half of the groups with the other half's weights, and of each column alone."""
    first = halves(task.groups)
    parts = [(task.of(~first), learn([task.of(first)])), (task.of(first), learn([task.of(~first)]))]
    scores = [figures(part, weights) for part, weights in parts]
    total = sum(s["queries"] for s in scores)
    fused = {key: round(sum(s[key] * s["queries"] for s in scores) / total, 4) for key in scores[0] if "recall" in key}
    report: dict[str, Any] = {"fused, two-fold": {"queries": total, "items": task.right.shape[1], **fused}}
    for column, name in enumerate(names):
        report[f"{name} alone"] = figures(task, np.eye(len(names))[column])
    return report


class Gallery:
    """The gallery that ships, its items and which of them are held out."""

    def __init__(self, retriever: Retriever, pairs: Path) -> None:
        index = retriever.index
        items = {modality: index.items(modality) for modality in index.counts}
        self.fusion = Fusion(items, {modality: index.embeddings(modality) for modality in index.counts}, weights={})
        table = PairTable.read(pairs).frame
        split = dict(zip(table["id"], table["split"], strict=True))
        entries = [next((face, rows[0]) for face, rows in faces.items()) for faces in self.groups.faces]
        first = [items[face][row] for face, row in entries]
        self.group = np.array([item["group"] for item in first])
        self.held_out = [i for i, item in enumerate(first) if split[item["id"]] == "val"]

    @property
    def groups(self) -> ItemGroups:
        """The items."""
        return self.fusion.groups

    def near(self, query: np.ndarray, without: tuple[str, int] | None = None, faces: Sequence[str] = FACES) -> Any:
        """Compute the standardised similarity to each face, shape (items, 3), zero for missing faces."""
        columns = []
        for face in FACES:
            rows, owners = self.groups.rows[face], self.groups.owners[face]
            kept = np.array([face in faces and (face, row) != without for row in rows])
            best = np.full(len(self.groups), -np.inf)
            np.maximum.at(best, owners[kept], standardised(self.fusion.embeddings[face] @ query)[rows[kept]])
            columns.append(np.where(np.isfinite(best), best, 0.0))
        return np.stack(columns, axis=1).astype(np.float32)

    def siblings(self, face: str) -> Task:
        """Make the task in which held-out pictures or sounds search for the others of their group."""
        values, right, out, groups = [], [], [], []
        for i in self.held_out:
            others = self.group == self.group[i]
            others[i] = False
            if face in self.groups.faces[i] and others.any():
                values.append(self.near(self.fusion.embeddings[face][self.groups.faces[i][face][0]]))
                right.append(others)
                out.append(np.arange(len(self.groups)) == i)
                groups.append(self.group[i])
        return Task(np.array(values), np.array(right), np.array(groups), np.array(out))

    def named(self) -> Task:
        """Make the task in which held-out sounds search for their own item by its caption and picture only."""
        asked = [i for i in self.held_out if "audio" in self.groups.faces[i]]
        rows = [self.groups.faces[i]["audio"][0] for i in asked]
        values = [self.near(self.fusion.embeddings["audio"][row], faces=("image", "text")) for row in rows]
        right = [self.group == self.group[i] for i in asked]
        return Task(np.array(values), np.array(right), self.group[asked])

    def names(self) -> Task:
        """Make the task in which names of held-out sounds search among the sounds."""
        asked = [i for i in self.held_out if "audio" in self.groups.faces[i]]
        with_sound = [i for i, faces in enumerate(self.groups.faces) if "audio" in faces]
        rows = [self.groups.faces[i]["text"][0] for i in asked]
        values = [self.near(self.fusion.embeddings["text"][row])[with_sound][:, 2:] for row in rows]
        right = [(self.group == self.group[i])[with_sound] for i in asked]
        return Task(np.array(values), np.array(right), self.group[asked])


def together(a: Task, b: Task) -> Task:
    """Join the queries of two tasks."""
    out = [np.zeros(t.right.shape, bool) if t.left_out is None else t.left_out for t in (a, b)]
    pairs = ((a.values, b.values), (a.right, b.right), (a.groups, b.groups), out)
    return Task(*(np.concatenate(pair) for pair in pairs))


def sounds_that_fit(gallery: Gallery, weights: dict[str, float]) -> tuple[float, dict[str, Any]]:
    """Choose the score above which a sound is shown for words, and measure its error rate on the other half.

    The queries are captions of held-out pictures. A sound fits if its caption shares a word with the query, except
    adjectives and the like; this is stricter than a listener, who would accept "crow cawing" for "a raven".
    """
    fusion = Fusion(gallery.fusion.items, gallery.fusion.embeddings, weights={"text": weights})
    captions = fusion.items["text"]
    with_sound = [i for i, faces in enumerate(fusion.groups.faces) if "audio" in faces]
    words = [_nouns(captions[fusion.groups.faces[i]["text"][0]]["text"]) for i in with_sound]
    asked = sorted({fusion.groups.faces[i]["text"][0] for i in gallery.held_out if "image" in fusion.groups.faces[i]})
    scores, fits = [], []
    for row in asked:
        shares = fusion.shares({"text": fusion.embeddings["text"][row]})
        scores.append((shares["text"] + shares["audio"])[with_sound])
        fits.append([bool(_nouns(captions[row]["text"]) & other) for other in words])
    score, fit = np.array(scores), np.array(fits)
    first = halves(np.arange(len(asked)))
    nothing = first & ~fit.any(1)
    bar = float(np.quantile(score[nothing].max(1), 1 - WRONGLY_SHOWN).round(2))
    shown, real = (score >= bar)[~first], fit[~first]
    some = real.any(1)
    return bar, {
        "score": bar,
        "queries": len(real),
        "queries with a fitting sound": int(some.sum()),
        "of these, shown one": round(float((shown & real)[some].any(1).mean()), 3),
        "of the others, shown any": round(float(shown[~some].any(1).mean()), 3),
        "of the sounds shown, fitting": round(float(real[shown].mean()), 3),
    }


def _nouns(caption: str) -> set[str]:
    words = re.findall("[a-z]+", caption.lower())
    return {word.removesuffix("s") if len(word) > 3 else word for word in words} - NO_NOUNS


def photos(work: Path, retriever: Retriever, pairs: Path) -> dict[str, Any]:
    """Embed Flickr8k dev once: photos, captions 0 to 4, spoken captions 0 and the words recognised in them."""
    path = work / "flickr8k-dev.npz"
    if path.is_file():
        return dict(np.load(path))
    table = PairTable.read(pairs).frame
    table = table[table["split"] == "dev"]
    names = sorted(set(table["image"]))
    number = {name: i for i, name in enumerate(names)}
    own: dict[str, Any] = {"photos": [], "captions": [], "owners": [], "order": [], "voices": [], "words": []}
    for name in track(names, "photos"):
        own["photos"].append(retriever.embed(image=str(pairs.parent / name)))
    for row in track(list(table.to_dict("records")), "captions"):
        own["captions"].append(retriever.embed(text=row["text"]))
        own["owners"].append(number[row["image"]])
        own["order"].append(int(row["caption_index"]))
    own["speakers"] = []
    for row in track([r for r in table.to_dict("records") if r["audio"]], "spoken captions"):
        voice, said = retriever.embed_heard(str(pairs.parent / row["audio"]))
        own["voices"].append(voice)
        own["words"].append(retriever.embed(text=only_words(said.words)))
        own["speakers"].append(number[row["image"]])
    work.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {key: np.array(value) for key, value in own.items()}
    np.savez(path, **arrays)
    return dict(np.load(path))


def meet(queries: np.ndarray, photo: np.ndarray, caption: np.ndarray) -> np.ndarray:
    """Compute standardised similarities to photos and captions: (Q, photos, 2)."""
    sides = [np.stack([standardised(row) for row in queries @ side.T]) for side in (photo, caption)]
    return np.stack(sides, axis=2).astype(np.float32)


def answers(own: np.ndarray, count: int) -> np.ndarray:
    """Mark each query's photo: (Q, count) bool."""
    right: np.ndarray = np.arange(count) == own[:, None]
    return right


def learn_all(data: dict[str, Any], gallery: Gallery) -> tuple[dict[str, Any], dict[str, Any]]:
    """Learn the content of ``fusion.json`` and measure it."""
    photo, owners, order = data["photos"], data["owners"], data["order"]
    kept = {k: data["captions"][order == k][np.argsort(owners[order == k])] for k in (0, 1)}
    chosen = halves(np.arange(len(photo)))
    asked = order > 0
    typed = Task(meet(data["captions"][asked], photo, kept[0]), answers(owners[asked], len(photo)), owners[asked])
    first = chosen[owners[asked]]
    text = learn([typed.of(first)])
    sound_of_words = float(learn([gallery.names()])[0])
    report: dict[str, Any] = {"words to photo with a caption": ablation(typed.of(~first), text, FACES[:2])}

    speakers = data["speakers"]
    right, mine = answers(speakers, len(photo)), chosen[speakers]
    spoken = {name: meet(data[name], photo, kept[1]) for name in ("words", "voices")}
    sums = np.stack([spoken["words"] @ text, spoken["voices"] @ text], axis=2).astype(np.float32)
    heard, voice = choose(Task(sums, right, speakers).of(mine))
    said = {"typed": kept[0][speakers], "how it sounds": data["voices"], "words heard": data["words"]}
    for place, column in (("photo alone", [1.0, 0.0]), ("photo with a caption", list(text))):
        lines = {
            name: figures(Task(meet(rows, photo, kept[1]), right, speakers).of(~mine), column)
            for name, rows in said.items()
        }
        both = np.stack([spoken[name] @ np.array(column) for name in ("words", "voices")], axis=2)
        lines["words heard and how it sounds"] = figures(Task(both, right, speakers).of(~mine), [heard, voice])
        report[f"spoken caption to {place}"] = lines

    pictures, sounds, named = gallery.siblings("image"), gallery.siblings("audio"), gallery.named()
    image, audio = choose(pictures), choose(together(named, sounds))
    report["held-out gallery picture to others of its name"] = cross_validated(pictures, FACES)
    report["held-out gallery sound to its caption and picture"] = cross_validated(named, FACES)
    report["held-out gallery sound to others of its name"] = ablation(sounds, audio, FACES)
    with_sounds = {**dict(zip(FACES, text.tolist(), strict=False)), "audio": sound_of_words}
    weights = {
        "text": with_sounds,
        "image": dict(zip(FACES, image.tolist(), strict=True)),
        "audio": dict(zip(FACES, audio.tolist(), strict=True)),
        "heard": {face: float(heard) * weight for face, weight in with_sounds.items()},
        "voice": {face: float(voice) * weight for face, weight in with_sounds.items()},
    }
    rounded = {k: {f: round(float(w), 3) for f, w in faces.items()} for k, faces in weights.items()}
    bar, report["sounds under words"] = sounds_that_fit(gallery, rounded["text"])
    return {"weights": rounded, "sound_fits": bar}, report


def main(argv: list[str] | None = None) -> int:
    """Learn and measure; 0 on success, 2 when an input is at fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default=str(ROOT / "checkpoints/default"))
    parser.add_argument("--index", default=str(ROOT / "demo/index"))
    parser.add_argument("--gallery", type=Path, default=ROOT / "demo/gallery/pairs.csv", help="its table, with splits")
    parser.add_argument("--flickr8k", type=Path, required=True, help="table with dev captions, photos and speech")
    parser.add_argument("--work", type=Path, default=Path("work/fusion"), help="embeddings are kept here")
    parser.add_argument("--out", type=Path, default=LEARNED)
    parser.add_argument("--report", type=Path, required=True, help="JSON of the figures")
    args = parser.parse_args(argv)
    try:
        retriever = Retriever.from_pretrained(args.checkpoint, args.index)
        data = photos(args.work, retriever, args.flickr8k)
        learned, report = learn_all(data, Gallery(retriever, args.gallery))
    except (ValueError, OSError) as error:
        Console(stderr=True).print(str(error), style="red", markup=False)
        return 2
    command = "python scripts/release/learn_fusion.py --flickr8k ../shared/flickr8k/pairs.csv"
    write_json(args.out, {"command": command, "model": retriever.model.identity, **learned})
    write_json(args.report, {"command": f"{command} --report docs/results/{args.report.name}", **report})
    Console().print_json(data={**learned, **report})
    return 0


if __name__ == "__main__":
    sys.exit(main())
