"""Which figure of scripts/diagnose.py foretells what training reaches? Encoders by the dozen, each trained briefly.

    python scripts/diagnose_study.py --latents runs/study --work runs/diagnose --json docs/results/diagnose.json

The encoders are parts of the packaged ones' latents (single depths, halves, random projections), made from the
stores that scripts/study.py leaves behind, beside one whose pairs are right but whose latents are mostly noise. Every
pair of encoders is trained by the paper's recipe for few epochs; each diagnostic, read from 5,000 training pairs, is
then ranked against recall@1 on dev (mean of both directions). Runs that are done are not run again.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a plain clone

import numpy as np
import pandas as pd

EPOCHS, BATCH = 8, 2048
IMAGE, DEEP, TEXT = "efficientnet-lite0", "efficientnet-lite0-deep", "minilm-l6"
# mean and standard deviation of each depth, as fusemix/encoders/image.py puts them side by side
DEPTHS = {"last": (0, 1280), "block15": (2560, 320), "block14": (3200, 192), "block10": (3584, 112)}


def main(argv: list[str] | None = None) -> int:
    """Train what is not trained yet, diagnose, correlate, write."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--latents", required=True, type=Path, help="folder with the stores NAME-train and NAME-dev")
    p.add_argument("--work", required=True, type=Path, help="trained recalls are kept here")
    p.add_argument("--json", type=Path, help="write the correlations here")
    p.add_argument("--train-only", action="store_true")
    args = p.parse_args(argv)
    logging.basicConfig(level=logging.ERROR)
    stores = {name: Joined(args.latents, name) for name in (IMAGE, DEEP, TEXT)}
    images, texts = image_encoders(stores), text_encoders(stores)
    combinations = [(image, "minilm") for image in images] + [("block15", text) for text in texts if text != "minilm"]
    combinations.sort(key=lambda pair: images[pair[0]].shape[1])  # the cheapest first
    args.work.mkdir(parents=True, exist_ok=True)
    recalls = {}
    for image, text in combinations:
        file = args.work / f"{image}+{text}.json"
        if not file.exists():
            recall = trained(stores, images[image], texts[text])
            file.write_text(json.dumps(recall))
        recalls[image, text] = json.loads(file.read_text())
        print(image, text, recalls[image, text], flush=True)
    if not args.train_only:
        result = correlate(stores, images, texts, recalls)
        print(json.dumps(result["spearman"], indent=2))
        if args.json:
            args.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


class Joined:
    """The train and dev stores of an encoder as one."""

    def __init__(self, root: Path, name: str) -> None:
        from fusemix.data.latent_store import LatentStore

        parts = [LatentStore.open(root / f"{name}-{split}") for split in ("train", "dev")]
        self.latents = np.concatenate([part.all() for part in parts])
        rows = [part.rows for part in parts]
        self.rows = pd.concat([rows[0], rows[1].assign(item=rows[1]["item"] + len(parts[0]))])


def image_encoders(stores: dict[str, Joined]) -> dict[str, np.ndarray]:
    """Name -> latents of pictures, (N, D_x)."""
    rng = np.random.default_rng(0)
    plain, deep = stores[IMAGE].latents, stores[DEEP].latents
    made = {"lite0": plain}
    made |= {depth: deep[:, start : start + width] for depth, (start, width) in DEPTHS.items()}
    made |= {f"{d}-std": deep[:, s + w : s + 2 * w] for d, (s, w) in DEPTHS.items() if d != "last"}
    made |= {f"lite0-projected{n}": plain @ rng.normal(0, n**-0.5, (plain.shape[1], n)) for n in (32, 256)}
    noise = rng.normal(size=plain.shape) * plain.std(0)
    made |= {"lite0-noisy": plain + 2 * noise, "lite0-loud": plain * rng.lognormal(0, 1, plain.shape[1])}
    return {name: latents.astype(np.float32) for name, latents in made.items()}


def text_encoders(stores: dict[str, Joined]) -> dict[str, np.ndarray]:
    """Name -> latents of captions, (N, D_y)."""
    rng = np.random.default_rng(1)
    whole = stores[TEXT].latents
    made = {"minilm": whole, "minilm-first128": whole[:, :128], "minilm-first32": whole[:, :32]}
    made["minilm-projected64"] = whole @ rng.normal(0, 0.125, (whole.shape[1], 64))
    made["minilm-noisy"] = whole + 2 * rng.normal(size=whole.shape) * whole.std(0)
    return {name: latents.astype(np.float32) for name, latents in made.items()}


def trained(stores: dict[str, Joined], image: np.ndarray, text: np.ndarray) -> float:
    """Mean of recall@1 in both directions on dev, by the paper's recipe."""
    from fusemix.data.latent_store import write_latents
    from fusemix.data.pair_set import PairSet
    from fusemix.model.config import ModelConfig, TrainConfig
    from fusemix.training.trainer import train

    with tempfile.TemporaryDirectory() as folder:
        made = {
            modality: write_latents(
                Path(folder) / modality, latents, modality=modality, name=modality,
                index=lambda _, rows=rows: rows,
            )
            for modality, latents, rows in (("image", image, stores[IMAGE].rows), ("text", text, stores[TEXT].rows))
        }  # fmt: skip
        model = ModelConfig(latent_dims={"image": image.shape[1], "text": text.shape[1]})
        config = TrainConfig(epochs=EPOCHS, batch_size=BATCH, eval_every=2, save_every=EPOCHS)
        best = train([PairSet.join(made)], model, config, Path(folder) / "run").best
    return float(best["score"])


def correlate(
    stores: dict[str, Joined], images: dict[str, np.ndarray], texts: dict[str, np.ndarray], recalls: dict[Any, float]
) -> dict[str, Any]:
    """Each diagnostic of each combination, and its rank correlation with the recall that training reached."""
    from scipy.stats import spearmanr

    from fusemix.evaluation.diagnose import diagnose_pair, sample_pairs

    rows = stores[IMAGE].rows.merge(stores[TEXT].rows[["row", "item"]], on="row", suffixes=("_image", "_text"))
    rows = rows[rows["split"] == "train"].reset_index(drop=True)
    chosen = rows.iloc[sample_pairs(rows["group"].to_numpy(), 5000, seed=0)]
    entries = []
    for (image, text), recall in recalls.items():
        x = images[image][chosen["item_image"].to_numpy()]
        y = texts[text][chosen["item_text"].to_numpy()]
        figures = diagnose_pair(x, y)
        entries.append({"image": image, "text": text, "trained_recall_at_1": recall, **figures})
        print(image, text, figures, flush=True)
    measures = [key for key in entries[0] if key not in ("image", "text", "trained_recall_at_1", "cca_gallery")]
    trained_to = [entry["trained_recall_at_1"] for entry in entries]
    spearman = {
        measure: float(spearmanr([entry[measure] for entry in entries], trained_to).statistic) for measure in measures
    }
    return {
        "command": "python scripts/diagnose_study.py --latents runs/study --work runs/diagnose "
        "--json docs/results/diagnose.json",
        "data": "Flickr8k: diagnostics on 5,000 training pairs, trained recall on the 1,000 dev photos",
        "training": f"the paper's recipe, one block an adapter, {EPOCHS} epochs, batch {BATCH}, one seed",
        "spearman": dict(sorted(spearman.items(), key=lambda item: -abs(item[1]))),
        "pairs_of_encoders": entries,
    }


if __name__ == "__main__":
    sys.exit(main())
