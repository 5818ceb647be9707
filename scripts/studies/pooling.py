"""Is learned pooling over cached tokens worth it, where the encoders take a plain mean?

Pictures: the 7 x 7 positions of EfficientNet-Lite0's last map (49 tokens of 1,280), ``--photos`` of the train photos
(2,000 by default) with their captions. Speech: Whisper's frames of the spoken captions, in 32 segments of equal length
(32 tokens of 384; clips differ in length, and tokens can only be mixed position by position), with the captions that
they speak. Tokens are cached as float16 and read through memory maps. The paper's recipe scaled down, FuseMix on, a
tenth of the pairs a step, the last weights:

- computed once, in front of training: ``mean`` (what the encoders do), ``mean ++ std``, ``mean ++ max``, and for
  pictures, whose tokens are never negative, a generalised mean of exponent 3; beside training also CCA;
- learned with the adapter, in front of it: a generalised mean, its exponent learned; attention with one query, and
  with four, each of which pools a quarter of the dimensions. Both start as the plain mean, with the adapter's own
  first weights. FuseMix mixes all tokens of two items with the one coefficient, position by position: pooled by a mean
  that is FuseMix of the means exactly, so it is a true generalisation.

Attention leaves the adapter as wide as ``mean`` does; ``++`` doubles what it reads and so its work.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from fusemix.data.latent_store import LatentStore, extract, write_latents
from fusemix.data.pair_set import PairSet
from fusemix.data.pairs import PairTable
from fusemix.encoders.audio import SAMPLE_RATE, WINDOW_S, WhisperTinyEn
from fusemix.encoders.image import EfficientNetLite0
from fusemix.model.config import TrainConfig
from fusemix.training.mixup import draw_lam, mix
from studies.common import (
    Rebuilt,
    StudyRun,
    cca_ranks,
    console,
    joined,
    kept,
    latents,
    model_config,
    points,
    rank_by_direction,
    summary,
    trained,
    write,
    write_rows,
)
from studies.encoders import some_photos

PHOTOS = 2000
POSITIONS = 7 * 7  # of the last map
SEGMENTS = 32  # of a clip
WIDTHS = {"image": 1280, "audio": 384}  # of a token
SPLITS = ("train", "dev")
AT = (1, 10)
CCA = {"directions": 128, "ridge": 1.0}
BASE = "mean"


class LastMap(EfficientNetLite0):
    """EfficientNet-Lite0's last map, not pooled: 49 positions of 1,280, one after another."""

    name = "efficientnet-lite0-map"
    dim = POSITIONS * WIDTHS["image"]
    fingerprint = "rgb on white; squash to 224x224, bicubic; (x-127)/128; 7x7 positions"

    @torch.inference_mode()
    def encode_prepared(self, prepared: Sequence[Tensor]) -> np.ndarray:
        """Latents, shape (N, 49 * 1280), float32."""
        parts = []
        for part in torch.stack(list(prepared)).split(4):
            maps = self._network.extract_features(part.contiguous(memory_format=torch.channels_last))
            parts.append(maps.flatten(2).transpose(1, 2).flatten(1))  # (B, C, 7, 7) -> (B, 49 * C)
        out: np.ndarray = torch.cat(parts).numpy()
        return out


class Segments(WhisperTinyEn):
    """Whisper's frames, averaged in 32 segments of equal length: 32 x 384, one after another."""

    name = "whisper-tiny.en-segments"
    dim = SEGMENTS * WIDTHS["audio"]
    fingerprint = "mono 16 kHz; log-mel 80 of the real samples; 30 s windows, unpadded; 32 segments"

    @torch.inference_mode()
    def encode_prepared(self, prepared: Sequence[np.ndarray]) -> np.ndarray:
        """Latents, shape (N, 32 * 384), float32."""
        window, out = WINDOW_S * SAMPLE_RATE, []
        for samples in prepared:
            frames = torch.cat([self.frames(samples[at : at + window]) for at in range(0, len(samples), window)])
            out.append(F.adaptive_avg_pool1d(frames.T[None], SEGMENTS)[0].T.flatten().numpy())
        return np.stack(out)


def mean(tokens: Tensor) -> Tensor:  # (N, T, D) -> (N, D)
    """What the encoders do."""
    return tokens.mean(dim=1)


def mean_and_std(tokens: Tensor) -> Tensor:  # (N, T, D) -> (N, 2D)
    """How much a dimension varies over the positions, beside its mean."""
    return torch.cat([tokens.mean(dim=1), tokens.std(dim=1, correction=0)], dim=1)


def mean_and_max(tokens: Tensor) -> Tensor:  # (N, T, D) -> (N, 2D)
    """The strongest position of every dimension, beside its mean."""
    return torch.cat([tokens.mean(dim=1), tokens.amax(dim=1)], dim=1)


def generalised_mean(tokens: Tensor, exponent: float | Tensor = 3.0) -> Tensor:  # (N, T, D) -> (N, D)
    """Between mean (1) and maximum; tokens >= 0. Source: Radenovic et al., arXiv:1711.02512; its first exponent 3."""
    powers = (exponent * tokens.clamp_min(1e-4).log()).exp()  # pow's gradient would take the logarithm again
    return (powers.mean(dim=1).log() / exponent).exp()


class GeneralisedMean(nn.Module):
    """A generalised mean whose exponent is learned: exp(10 w), so that Adam's small steps can move it; starts at 1."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, tokens: Tensor) -> Tensor:  # (N, T, D) -> (N, D)
        """Pool."""
        return generalised_mean(tokens, (10 * self.weight).exp())


class Attention(nn.Module):
    """Softmax over the positions, from a learned query's product with the normalised token; starts as the mean.

    Each of several queries pools its own share of the dimensions, looking at all of them, so that the width stays.
    """

    def __init__(self, dim: int, queries: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.zeros(queries, dim))

    def forward(self, tokens: Tensor) -> Tensor:  # (N, T, D) -> (N, D)
        """Pool."""
        weights = self.weights(tokens)  # (N, T, Q)
        parts = tokens.unflatten(2, (len(self.queries), -1))  # (N, T, Q, D / Q)
        return torch.einsum("ntq,ntqd->nqd", weights.to(parts.dtype), parts).flatten(1)

    def weights(self, tokens: Tensor) -> Tensor:
        """Of every position, per query: (N, T, Q), summing to 1 over T."""
        dim = tokens.shape[2]
        return (F.layer_norm(tokens, (dim,)) @ self.queries.T / dim**0.5).softmax(dim=1)


FIXED: dict[str, Callable[[Tensor], Tensor]] = {
    BASE: mean,
    "mean ++ std": mean_and_std,
    "mean ++ max": mean_and_max,
    "generalised mean, exponent 3": generalised_mean,
}
LEARNED: dict[str, Callable[[int], nn.Module]] = {
    "generalised mean, learned exponent": GeneralisedMean,
    "attention, one query": partial(Attention, queries=1),
    "attention, four queries": partial(Attention, queries=4),
}
LAST = ("attention, four queries", "generalised mean, learned exponent")  # the slow ones
NOT_NEGATIVE = {name for name in (*FIXED, *LEARNED) if name.startswith("generalised")}


class Measured(StudyRun):
    """Reports recall@1 and @10 of both directions on dev; ``mean`` is that of recall@1."""

    def embed(self, modality: str, items: np.ndarray) -> Tensor:
        """Embeddings of items of dev: (N, D), unit length."""
        return self.model.embed(modality, self.dev.latents(modality, items))

    def evaluate(self, epoch: int) -> dict[str, float]:
        """All of it, added to the history."""
        rank = rank_by_direction(self.dev, self.embed)
        self.history.append({"epoch": epoch, **recalls(rank), **self.learned()})
        self.best, self.best_weights = self.history[-1], {}
        return self.history[-1]

    def learned(self) -> dict[str, float]:
        """Further numbers to report."""
        return {}


class Learned(Measured, Rebuilt):
    """Reads a modality's tokens and pools them in front of its adapter, with which the pooling is trained."""

    def __init__(self, pool: Callable[[int], nn.Module], tokens: dict[str, LatentStore], *args: Any) -> None:
        """As a run on mean latents whose items are numbered as ``tokens`` (split -> store) are."""
        self.pool, self.tokens = pool, tokens
        self.modality = tokens["train"].modality
        for store in tokens.values():
            store.hold()
        super().__init__(*args)

    def change(self) -> None:
        """The pooling in front of the adapter."""
        adapter, dim = self.model.adapters[self.modality], self.model.config.latent_dims[self.modality]
        self.model.adapters[self.modality] = nn.Sequential(self.pool(dim), adapter)

    def read(self, split: str, items: np.ndarray) -> Tensor:
        """Tokens, (N, T, D), float32."""
        return self.tokens[split].gather(items).unflatten(1, (-1, self.model.config.latent_dims[self.modality]))

    def mixed_batch(self, number: int, rng: np.random.Generator) -> tuple[dict[str, Tensor], Tensor | None]:
        """As FuseMix, one coefficient for all; of this modality every token is mixed."""
        loader, pairs = self.loaders[number], self.sets[number]
        halves = loader.draw(self.step)
        assert self.config.mixup_alpha is not None
        lam = draw_lam(self.config.mixup_alpha, len(halves[0]), rng, per_row=False)
        out = {}
        for name in pairs.stores:
            if name == self.modality:
                first, second = (self.read("train", pairs.items[name][half]) for half in halves)
                out[name] = second.lerp_(first, float(lam[0, 0]))  # lam x first + (1 - lam) x second
            else:
                (out[name],) = mix([loader.latents(name, self.step)], lam)
        return out, None

    @torch.no_grad()
    def embed(self, modality: str, items: np.ndarray) -> Tensor:
        """As ever, but from tokens."""
        if modality != self.modality:
            return super().embed(modality, items)
        adapter = self.model.adapters[modality].eval()
        parts = [adapter(self.read("dev", part)) for part in np.array_split(items, 1 + len(items) // 256)]
        return F.normalize(torch.cat(parts).float(), dim=1)

    @torch.no_grad()
    def learned(self) -> dict[str, float]:
        """The exponent; or how many positions attention looks at (exp of its entropy), the mean over dev."""
        pool: Any = self.model.adapters[self.modality][0]  # type: ignore[index]
        if isinstance(pool, GeneralisedMean):
            return {"exponent": float((10 * pool.weight).exp())}
        weights = pool.weights(self.read("dev", np.arange(min(256, len(self.tokens["dev"])))))
        return {"positions": float((-(weights * weights.log()).sum(dim=1)).exp().mean())}


def recalls(rank: dict[str, np.ndarray]) -> dict[str, float]:
    """``image_to_text@1`` and so on; ``mean`` is that of recall@1."""
    values = {f"{direction}@{k}": float((r <= k).mean()) for direction, r in rank.items() for k in AT}
    return {**values, "mean": float(np.mean([(r == 1).mean() for r in rank.values()]))}


def run(args: argparse.Namespace) -> None:
    """Speech, then pictures; JSON and tables."""
    photos = args.photos or PHOTOS
    args.work = args.work / f"pooling-{photos}"
    source = PairTable.read(args.pairs)
    args.pairs = some_photos(args.pairs, photos, args.work / "pairs.csv")
    spoken = np.flatnonzero((source.frame["audio"] != "") & np.isin(source.splits(), SPLITS))
    speech = argparse.Namespace(**vars(args) | {"work": args.work / "speech"})
    speech.pairs = write_rows(source, spoken, ("audio", "text"), speech.work / "pairs.csv")
    out: dict[str, Any] = {"epochs": args.epochs, "seeds": args.seeds, "metric": "recall on dev, last epoch"}
    for part, encoder in ((speech, Segments), (args, LastMap)):
        tokens, text = _tokens(part.pairs, encoder, part.work), latents(part, "text", "minilm-l6")
        for found in measured(part, tokens, text):
            write(args.out, out | {encoder.modality: found})
        out[encoder.modality] = found
        show(found["poolings"], encoder.modality)


def _tokens(pairs: Path, encoder: Callable[[], Any], work: Path) -> dict[str, LatentStore]:
    table, network = PairTable.read(pairs), encoder()
    return {
        split: extract(table, network.modality, network, work / f"tokens-{split}", split=split, dtype="float16")
        for split in SPLITS
    }


def measured(
    args: argparse.Namespace, tokens: dict[str, LatentStore], text: dict[str, Path]
) -> Iterator[dict[str, Any]]:
    """Every pooling of one modality with every seed, the slow ones last; what there is, after each run."""
    modality = tokens["train"].modality
    width = WIDTHS[modality]
    names = [n for n in (*FIXED, *LEARNED) if modality == "image" or n not in NOT_NEGATIVE]
    table = PairTable.read(args.pairs)
    sets: dict[str, tuple[PairSet, PairSet]] = {}
    for name in (n for n in names if n in FIXED):
        stores = {split: pooled(store, name, width, table, args.work) for split, store in tokens.items()}
        both = {modality: stores, "text": text}
        sets[name] = joined(both, "train"), joined(both, "dev")
    closed = {n: kept(args.work / f"cca-{n}.json", lambda p=p: recalls(cca_ranks(*p, **CCA))) for n, p in sets.items()}
    pairs, dev = sets[BASE]
    batch = min(4096, len(pairs) // 10) // 4 * 4
    head = {"pairs": len(pairs), "dev_pairs": len(dev), "batch_size": batch, "tokens": tokens["train"].dim // width}
    found: dict[str, list[dict[str, Any]]] = {}
    for seed, name in sorted(itertools.product(args.seeds, names), key=lambda job: job[1] in LAST):
        pairs, dev = sets.get(name, sets[BASE])
        config = TrainConfig(
            epochs=args.epochs, batch_size=batch, eval_every=args.epochs, val_fraction=0.02, seed=seed
        )  # fmt: skip
        kind = partial(Learned, LEARNED[name], tokens) if name in LEARNED else Measured
        folder = args.work / f"{args.epochs}-{name}-seed{seed}"
        found.setdefault(name, []).append(trained(kind, pairs, dev, model_config(pairs), config, folder))
        console.print(f"seed {seed}, {modality}, {name}: {100 * found[name][-1]['mean']:.1f}")
        yield head | {"poolings": {n: _entry(found[n], found[BASE], closed.get(n)) for n in names if n in found}}


def pooled(tokens: LatentStore, name: str, width: int, table: PairTable, work: Path) -> Path:
    """A store of latents pooled from tokens, its items numbered as theirs."""
    out = work / f"{name}-{tokens.manifest['split']}"
    if not (out / "rows.parquet").exists():
        parts = (np.arange(start, min(start + 512, len(tokens))) for start in range(0, len(tokens), 512))
        pieces = (FIXED[name](tokens.gather(part).unflatten(1, (-1, width))).numpy() for part in parts)
        made = {"modality": tokens.modality, "name": f"{tokens.encoder['name']}, {name}"}
        write_latents(out, pieces, **made, index=lambda _: tokens.rows, table=table)
    return out


def _entry(runs: list[dict[str, Any]], base: list[dict[str, Any]], cca: dict[str, float] | None) -> dict[str, Any]:
    values = {key: summary([run[key] for run in runs]) for key in runs[0] if "@" in key or key == "mean"}
    more = {key: [run[key] for run in runs] for key in ("exponent", "positions") if key in runs[0]}
    less = summary([run["mean"] - other["mean"] for run, other in zip(runs, base, strict=False)])
    return {"recall": values, "difference": less, "seconds": [run["seconds"] for run in runs], "cca": cca, **more}


def show(poolings: dict[str, Any], modality: str) -> None:
    """Print the table."""
    view = Table(modality, "mean R@1", "difference", "to text, R@1", "R@10", "CCA, mean R@1", "seconds")
    for name, entry in poolings.items():
        recall = entry["recall"]
        view.add_row(
            name, points(recall["mean"]), points(entry["difference"]),
            *(points(recall[f"{modality}_to_text@{k}"]) for k in AT),
            f"{100 * entry['cca']['mean']:.1f}" if entry["cca"] else "", f"{np.mean(entry['seconds']):.0f}",
        )  # fmt: skip
    console.print(view)
