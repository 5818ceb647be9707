"""The same latents in other tools: recall@1, CPU seconds, memory and the lines that a user writes.

    FUSEMIX_PEER=DIR python scripts/checks/compare_tools.py --latents image=DIR text=DIR --seeds 0 1 2

One caption a photo, drawn with the seed, which the tools get, too; trained on the split train, asked on dev, mean of
both directions. Every tool runs in a process of its own with one thread; CPU seconds grow where others use the machine.
A tool that is not installed is left out and named. FUSEMIX_PEER is a checkout of layer6ai-labs/fusemix. Writes
docs/results/compare-tools.json.
"""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import itertools
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
PEER = "FUSEMIX_PEER"  # environment variable: folder of the authors' repository
EPOCHS = 30  # of the authors' code, with four steps each, as the paper's adapters here
Embedded = tuple[np.ndarray, np.ndarray]


def _fusemix_views(x: np.ndarray, y: np.ndarray, x_new: np.ndarray, y_new: np.ndarray, seed: int) -> Embedded:
    from fusemix import FuseMix

    model = FuseMix(random_state=seed).fit({"image": x, "text": y})
    return model.transform("image", x_new), model.transform("text", y_new)


def _fusemix_closed_form(x: np.ndarray, y: np.ndarray, x_new: np.ndarray, y_new: np.ndarray, seed: int) -> Embedded:
    from fusemix import FuseMix

    model = FuseMix("closed-form", random_state=seed).fit({"image": x, "text": y})
    return model.transform("image", x_new), model.transform("text", y_new)


def _fusemix_paper(x: np.ndarray, y: np.ndarray, x_new: np.ndarray, y_new: np.ndarray, seed: int) -> Embedded:
    from fusemix import FuseMix

    model = FuseMix("paper", random_state=seed).fit({"image": x, "text": y})
    return model.transform("image", x_new), model.transform("text", y_new)


def _sklearn_cca(x: np.ndarray, y: np.ndarray, x_new: np.ndarray, y_new: np.ndarray, seed: int) -> Embedded:
    from sklearn.cross_decomposition import CCA
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    scale_x, scale_y = StandardScaler().fit(x), StandardScaler().fit(y)
    pca_x, pca_y = PCA(128).fit(scale_x.transform(x)), PCA(128).fit(scale_y.transform(y))  # all 1,280 take hours
    cca = CCA(64, max_iter=200).fit(pca_x.transform(scale_x.transform(x)), pca_y.transform(scale_y.transform(y)))
    return cca.transform(pca_x.transform(scale_x.transform(x_new)), pca_y.transform(scale_y.transform(y_new)))


def _cca_zoo_ridge(x: np.ndarray, y: np.ndarray, x_new: np.ndarray, y_new: np.ndarray, seed: int) -> Embedded:
    from cca_zoo.linear import RidgeCCA
    from sklearn.preprocessing import StandardScaler

    scale_x, scale_y = StandardScaler().fit(x), StandardScaler().fit(y)
    model = RidgeCCA(64, shrinkage=0.9).fit([scale_x.transform(x), scale_y.transform(y)])  # both chosen on a tenth
    return tuple(model.transform([scale_x.transform(x_new), scale_y.transform(y_new)]))


def _authors_code(x: np.ndarray, y: np.ndarray, x_new: np.ndarray, y_new: np.ndarray, seed: int) -> Embedded:
    import torch

    from fusemix.training.schedule import warmup_cosine
    from scripts.checks.benchmark import peer_step

    settings = argparse.Namespace(peer=Path(os.environ[PEER]), depth=1, batch_size=len(x) // 4 // 2 * 2)
    model, step = peer_step(settings, [x, y])
    for done in range(4 * EPOCHS):
        step(warmup_cosine(done, 4 * EPOCHS, highest=1e-3, lowest=1e-6, warmup_steps=EPOCHS // 2))
    model.eval()
    with torch.no_grad():
        return model.proj_vis(torch.from_numpy(x_new)).numpy(), model.proj_text(torch.from_numpy(y_new)).numpy()


def _sentence_transformers(x: np.ndarray, y: np.ndarray, x_new: np.ndarray, y_new: np.ndarray, seed: int) -> Embedded:
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


def _lightly_heads(x: np.ndarray, y: np.ndarray, x_new: np.ndarray, y_new: np.ndarray, seed: int) -> Embedded:
    import torch
    from lightly.loss.ntx_ent_loss import NTXentLoss

    heads, loss = [torch.nn.Linear(a.shape[1], 512) for a in (x, y)], NTXentLoss(temperature=0.07)
    parameters = [p for head in heads for p in head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.1)
    mean_x, mean_y, scale_x, scale_y = x.mean(0), y.mean(0), x.std(0) + 1e-6, y.std(0) + 1e-6
    a, b = (torch.from_numpy((v - m) / s).float() for v, m, s in ((x, mean_x, scale_x), (y, mean_y, scale_y)))
    for _ in range(30):
        for rows in torch.randperm(len(a)).split(1024):
            optimizer.zero_grad()
            loss(heads[0](a[rows]), heads[1](b[rows])).backward()
            optimizer.step()
    new = [torch.from_numpy((v - m) / s).float() for v, m, s in ((x_new, mean_x, scale_x), (y_new, mean_y, scale_y))]
    with torch.no_grad():
        return tuple(head(v).numpy() for head, v in zip(heads, new, strict=True))


TOOLS: dict[str, tuple[str, Callable[..., Embedded]]] = {
    "FuseMix, views (default)": ("fusemix", _fusemix_views),
    "FuseMix, closed form": ("fusemix", _fusemix_closed_form),
    "FuseMix, the paper's adapters": ("fusemix", _fusemix_paper),
    "scikit-learn CCA on 128 components": ("sklearn", _sklearn_cca),
    "cca-zoo RidgeCCA": ("cca_zoo", _cca_zoo_ridge),
    "sentence-transformers, Dense and CachedMNRL": ("sentence_transformers", _sentence_transformers),
    "lightly, NTXentLoss on two linear heads": ("lightly", _lightly_heads),
    "the authors' code": (PEER, _authors_code),
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
    import torch

    from scripts.checks.benchmark import load_peer, peer_step

    x, y = one_caption(latents, "train", seed)
    x_new, y_new = one_caption(latents, "dev", seed)
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (scikit-learn's and the authors' code draws from it)
    began = time.process_time()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    embedded = TOOLS[name][1](x, y, x_new, y_new, seed)
    took, peak = time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    written = [TOOLS[name][1], *((load_peer, peer_step) if TOOLS[name][0] == PEER else ())]
    lines = [line for function in written for line in inspect.getsource(function).splitlines()[1:] if line.strip()]
    return {
        "tool": name, "recall_at_1": recall(*embedded), "cpu_seconds": round(took, 1),
        "memory_mb": (peak - before) // 1024, "lines": len(lines), "pairs": len(x), "seed": seed,
    }  # fmt: skip


def main() -> int:
    """Measure every tool that is installed; 0 when done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latents", nargs=2, required=True, metavar="MODALITY=DIR", help="two stores of one table")
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS), metavar="NAME", help="some of them")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the captions and the tools")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/compare-tools.json", help="JSON to write")
    parser.add_argument("--here", action="store_true", help="run the one tool in this process and print its figures")
    args = parser.parse_args()
    if args.here:
        print(json.dumps(measure(args.tools[0], dict(pair.split("=") for pair in args.latents), args.seeds[0])))
        return 0
    found = []
    for name, seed in itertools.product(args.tools, args.seeds):
        needed = TOOLS[name][0]
        if needed not in os.environ if needed == PEER else importlib.util.find_spec(needed) is None:
            print(f"{name}: {needed} is not there, left out")
            continue
        words = ["--latents", *args.latents, "--tools", name, "--seeds", str(seed), "--here"]
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
