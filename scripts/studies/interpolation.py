"""What does a mixed latent mean? Is it near the latent of the blended thing itself?

FuseMix mixes latents: lam * z(a) + (1 - lam) * z(b). Had the encoder seen a blend of a and b (pixels averaged,
waveforms added, captions joined by "and"), it would have made z(blend). For pairs of Flickr8k dev items the mixed
latent searches among the latents of all blends (cosines of centred latents): does it find its own? Beside it a's and
b's own latents, and the same once more in the shared space of ``--checkpoint``. Nothing is trained; a seed draws pairs.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from fusemix.data.pairs import PairTable
from fusemix.encoders import Encoder, load_encoder
from fusemix.media import SAMPLE_RATE, load_audio, load_image
from fusemix.model.adapters import FusionModel
from studies.common import console, kept, summary, write

SHARES = (0.5, 0.75)
COUNT = 200  # blends among which is searched; of spoken clips there are 113
SPLIT = "dev"


def run(args: argparse.Namespace) -> None:
    """Every modality, share and seed; JSON."""
    table = PairTable.read(args.pairs)
    model = FusionModel.from_pretrained(args.checkpoint)
    results: dict[str, Any] = {}
    for modality in (m for m in ("image", "text", "audio") if m in model.modalities and m in table.frame.columns):
        encoder = load_encoder(model.config.encoders[modality]["name"])
        for share in SHARES:
            runs = []
            for seed in args.seeds:
                path = args.work / "interpolation" / f"{modality}-{share}-seed{seed}.json"
                runs.append(
                    kept(path, lambda s=seed, w=share, m=modality, e=encoder: measured(table, model, e, m, w, s))
                )
            entry = {key: summary([run[key] for run in runs]) for key in runs[0] if key not in ("n",)}
            results[f"{modality}, share {share}"] = {"encoder": encoder.name, "n": runs[0]["n"], **entry}
            console.print(modality, share, {key: round(value["mean"], 3) for key, value in entry.items()})
            write(args.out, {"seeds": args.seeds, "split": SPLIT, "blends": results})


def measured(
    table: PairTable, model: FusionModel, encoder: Encoder, modality: str, share: float, seed: int
) -> dict[str, float]:
    """Recall@1 of mixed latents among blends, and mean cosines."""
    rng = np.random.default_rng(seed)
    items = table.items(modality, SPLIT)
    by_group = {item.group: item.value for item in items}  # one item a photo
    values = [by_group[g] for g in rng.permutation(sorted(by_group))]
    count = min(COUNT, len(values) // 2) if modality != "audio" else min(COUNT, len(values))
    firsts = values[:count]
    seconds = values[count : 2 * count] if modality != "audio" else values[1:count] + values[:1]  # few clips: a ring
    alone = {id(v): v for v in (firsts, seconds)}
    a, b = (torch.from_numpy(encoder.encode([_load(modality, v) for v in side])) for side in alone.values())
    blends = [
        blended(modality, _load(modality, x), _load(modality, y), share) for x, y in zip(firsts, seconds, strict=True)
    ]
    z = torch.from_numpy(encoder.encode(blends))
    out: dict[str, float] = {"n": float(count)}
    for space, embed in (("latents", lambda x: x - z.mean(dim=0)), ("shared", lambda x: model.embed(modality, x))):
        target = F.normalize(embed(z), dim=1)
        for name, query in (("mixed", share * a + (1 - share) * b), ("first", a), ("second", b)):
            similarity = F.normalize(embed(query), dim=1) @ target.T
            found = (similarity.argmax(dim=1) == torch.arange(count)).float().mean()
            out |= {
                f"{space}/{name}/recall_at_1": float(found),
                f"{space}/{name}/cosine": float(similarity.diag().mean()),
            }
        out[f"{space}/unrelated/cosine"] = float((target @ target.T - torch.eye(count)).sum() / (count * (count - 1)))
    return out


def _load(modality: str, value: str) -> Any:
    if modality == "image":
        return load_image(value).convert("RGB").resize((224, 224))
    return (SAMPLE_RATE, load_audio(value)) if modality == "audio" else value


def blended(modality: str, a: Any, b: Any, share: float) -> Any:
    """The thing itself, blended: averaged pixels, added waveforms, joined captions."""
    if modality == "image":
        from PIL import Image

        return Image.blend(b, a, share)
    if modality == "audio":
        (rate, x), (_, y) = a, b
        n = max(len(x), len(y))
        return rate, share * np.pad(x, (0, n - len(x))) + (1 - share) * np.pad(y, (0, n - len(y)))
    return f"{a.rstrip(' .')} and {b}"  # a caption has no share
