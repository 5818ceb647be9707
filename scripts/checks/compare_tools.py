"""The same latents in other tools: recall@1, CPU seconds, memory and the lines that a user writes.

    python scripts/checks/compare_tools.py --latents image=DIR text=DIR     # writes docs/results/compare-tools.json

One caption a photo, drawn with the seed; trained on the split train, asked on dev, mean of both directions. Every tool
runs in a process of its own with one thread; CPU seconds do not depend on who else uses the machine. A tool that is not
installed is left out and named.
"""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
Embedded = tuple[np.ndarray, np.ndarray]


def _fusemix_views(x: np.ndarray, y: np.ndarray, x_new: np.ndarray, y_new: np.ndarray) -> Embedded:
    from fusemix import FuseMix

    model = FuseMix().fit({"image": x, "text": y})
    return model.transform("image", x_new), model.transform("text", y_new)


def _fusemix_closed_form(x: np.ndarray, y: np.ndarray, x_new: np.ndarray, y_new: np.ndarray) -> Embedded:
    from fusemix import FuseMix

    model = FuseMix("closed-form").fit({"image": x, "text": y})
    return model.transform("image", x_new), model.transform("text", y_new)


def _fusemix_paper(x: np.ndarray, y: np.ndarray, x_new: np.ndarray, y_new: np.ndarray) -> Embedded:
    from fusemix import FuseMix

    model = FuseMix("paper").fit({"image": x, "text": y})
    return model.transform("image", x_new), model.transform("text", y_new)


def _sklearn_cca(x: np.ndarray, y: np.ndarray, x_new: np.ndarray, y_new: np.ndarray) -> Embedded:
    from sklearn.cross_decomposition import CCA
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    scale_x, scale_y = StandardScaler().fit(x), StandardScaler().fit(y)
    pca_x, pca_y = PCA(128).fit(scale_x.transform(x)), PCA(128).fit(scale_y.transform(y))  # all 1,280 take hours
    cca = CCA(64, max_iter=200).fit(pca_x.transform(scale_x.transform(x)), pca_y.transform(scale_y.transform(y)))
    return cca.transform(pca_x.transform(scale_x.transform(x_new)), pca_y.transform(scale_y.transform(y_new)))


def _cca_zoo_ridge(x: np.ndarray, y: np.ndarray, x_new: np.ndarray, y_new: np.ndarray) -> Embedded:
    from cca_zoo.linear import RidgeCCA
    from sklearn.preprocessing import StandardScaler

    scale_x, scale_y = StandardScaler().fit(x), StandardScaler().fit(y)
    model = RidgeCCA(64, shrinkage=0.9).fit([scale_x.transform(x), scale_y.transform(y)])  # both chosen on a tenth
    return tuple(model.transform([scale_x.transform(x_new), scale_y.transform(y_new)]))


def _authors_class(x: np.ndarray, y: np.ndarray, x_new: np.ndarray, y_new: np.ndarray) -> Embedded:
    import torch
    from mlp_contrastive_fusion import MLPContrastiveFusion  # of a scratch folder; its imports of lavis are stubs there

    torch.manual_seed(0)
    model = MLPContrastiveFusion(x.shape[1], y.shape[1], 512, expansion_factor=4, dropout=0.6)
    model.mixup_alpha = 1.0
    matrices, vectors = ([p for p in model.parameters() if (p.ndim > 1) == wide] for wide in (True, False))
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30 * (len(x) // 1424), eta_min=1e-6)
    a, b = torch.from_numpy(x), torch.from_numpy(y)
    for _ in range(30):
        for rows in torch.randperm(len(a)).split(1424)[:4]:
            optimizer.zero_grad()
            model({"vis_embed": a[rows], "text_embed": b[rows]}).loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        return model.proj_vis(torch.from_numpy(x_new)).numpy(), model.proj_text(torch.from_numpy(y_new)).numpy()


def _sentence_transformers_dense(x: np.ndarray, y: np.ndarray, x_new: np.ndarray, y_new: np.ndarray) -> Embedded:
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.losses import CachedMultipleNegativesRankingLoss

    class Heads(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.of = torch.nn.ModuleDict({str(a.shape[1]): torch.nn.Linear(a.shape[1], 512) for a in (x, y)})

        def forward(self, features: dict, **_: object) -> dict:
            given = features["input_ids"]
            return features | {"sentence_embedding": self.of[str(given.shape[1])](given)}

    torch.manual_seed(0)
    model = SentenceTransformer(modules=[Heads()], device="cpu")
    loss = CachedMultipleNegativesRankingLoss(model, mini_batch_size=512)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    mean_x, mean_y, scale_x, scale_y = x.mean(0), y.mean(0), x.std(0) + 1e-6, y.std(0) + 1e-6
    a, b = (torch.from_numpy((v - m) / s).float() for v, m, s in ((x, mean_x, scale_x), (y, mean_y, scale_y)))
    for _ in range(30):
        for rows in torch.randperm(len(a)).split(1024):
            optimizer.zero_grad()
            loss([{"input_ids": a[rows]}, {"input_ids": b[rows]}], torch.arange(len(rows))).backward()
            optimizer.step()
    new = [torch.from_numpy((v - m) / s).float() for v, m, s in ((x_new, mean_x, scale_x), (y_new, mean_y, scale_y))]
    with torch.no_grad():
        return tuple(model({"input_ids": v})["sentence_embedding"].numpy() for v in new)


TOOLS: dict[str, tuple[str, Callable[..., Embedded]]] = {
    "FuseMix, views (default)": ("fusemix", _fusemix_views),
    "FuseMix, closed form": ("fusemix", _fusemix_closed_form),
    "FuseMix, the paper's adapters": ("fusemix", _fusemix_paper),
    "scikit-learn CCA on 128 components": ("sklearn", _sklearn_cca),
    "cca-zoo RidgeCCA": ("cca_zoo", _cca_zoo_ridge),
    "sentence-transformers, Dense and CachedMNRL": ("sentence_transformers", _sentence_transformers_dense),
    "the authors' model class": ("mlp_contrastive_fusion", _authors_class),
}


def one_caption(latents: dict[str, str], split: str, seed: int) -> list[np.ndarray]:
    """Latents of one pair of every group of a split, image first."""
    from fusemix.evaluation.samples import from_stores

    read = from_stores(list(latents.items()), n=10**9, split=split, seed=seed)
    return [next(iter(of_modality.values())) for of_modality in read.values()]


def recall(a: np.ndarray, b: np.ndarray) -> float:
    """Mean recall@1 of both directions by cosine."""
    import torch

    from fusemix.evaluation.metrics import ranks

    unit = [torch.nn.functional.normalize(torch.from_numpy(np.array(e, dtype=np.float32)), dim=1) for e in (a, b)]
    right = np.arange(len(a))
    return float(np.mean([(ranks(p, q, right, right) == 1).mean() for p, q in (unit, unit[::-1])]))


def measure(name: str, latents: dict[str, str], seed: int) -> dict[str, float | int | str]:
    """Run one tool in this process."""
    x, y = one_caption(latents, "train", seed)
    x_new, y_new = one_caption(latents, "dev", seed)
    began = time.process_time()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    embedded = TOOLS[name][1](x, y, x_new, y_new)
    took, peak = time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    lines = [line for line in inspect.getsource(TOOLS[name][1]).splitlines()[1:] if line.strip()]
    return {
        "tool": name, "recall_at_1": recall(*embedded), "cpu_seconds": round(took, 1),
        "memory_mb": (peak - before) // 1024, "lines": len(lines), "pairs": len(x), "seed": seed,
    }  # fmt: skip


def main() -> int:
    """Measure every tool that is installed; 0 when done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latents", nargs=2, required=True, metavar="MODALITY=DIR", help="two stores of one table")
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS), metavar="NAME", help="some of them")
    parser.add_argument("--seed", type=int, default=0, help="of the captions")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/compare-tools.json", help="JSON to write")
    parser.add_argument("--here", action="store_true", help="run the one tool in this process and print its figures")
    args = parser.parse_args()
    if args.here:
        print(json.dumps(measure(args.tools[0], dict(pair.split("=") for pair in args.latents), args.seed)))
        return 0
    found = []
    for name in args.tools:
        if importlib.util.find_spec(TOOLS[name][0]) is None:
            print(f"{name}: not installed, left out")
            continue
        words = ["--latents", *args.latents, "--tools", name, "--seed", str(args.seed), "--here"]
        path = os.pathsep.join([str(ROOT), *sys.path])
        alone = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        done = subprocess.run([sys.executable, __file__, *words], env=alone, capture_output=True, text=True)
        if done.returncode:
            print(f"{name}: failed, {done.stderr.strip().splitlines()[-1]}")
            continue
        found.append(json.loads(done.stdout.splitlines()[-1]))
        print(found[-1], flush=True)
    args.out.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
