"""What breaks a search, and can the app notice? Corrupted and adversarial queries, and inputs of another world.

With ``--checkpoint`` on the dev split of ``--pairs``, whose latents lie in ``--latents`` (as scripts/train_default.py
leaves them: its table's dev split is Flickr8k's, 1,000 photos and their captions):

- **corruptions**: photos blurred, noised, compressed, darkened, turned, covered; captions with letters swapped and
  words dropped; each in three strengths: recall@1 of photo -> caption and caption -> photo;
- **attacks**: the worst change of an image latent within a radius (projected gradient descent, 20 steps, L2; radius in
  shares of the typical distance between two latents), beside a random change of that length; for the whole model and,
  if it has one, for its closed form alone;
- **another world**: noise, plain colours, stripes, letters, photos inverted and scrambled; letters at random, code,
  other languages; does a score tell them from dev's own? AUROC of the length of the whitened latent (the model's own
  whitening), and of the distance to the nearest training item of the same modality, in latents and in the shared space.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageOps
from torch import Tensor
from torch.nn import functional as F

from fusemix.data.latent_store import LatentStore
from fusemix.data.pairs import PairTable
from fusemix.encoders import Encoder, load_encoder
from fusemix.evaluation.metrics import bootstrap, ranks
from fusemix.media import load_image
from fusemix.model.adapters import FusionModel, TwoPathAdapter
from studies.common import console, kept, write

BANK = 6000  # training items of a modality that strange inputs are compared with
PHOTOS = 300  # corrupted photos (and captions) a condition, unless --photos says so; the gallery stays whole
RADII = (0.05, 0.1, 0.2, 0.4)
STEPS = 20
FOREIGN = (
    "Der Hund läuft über die Wiese", "Un chat dort sur le canapé", "犬が草の上を走る", "Собака бежит по траве",
    "الكلب يركض", "for (int i = 0; i < n; i++) { sum += a[i]; }", "SELECT name FROM users WHERE id = 7;",
    "<div class='row'><p>hello</p></div>", "asdf qwer zxcv uiop", "xq zzk wplf mrrt gh", "1234 5678 90 11 12",
    "lorem ipsum dolor sit amet consectetur", "http://example.org/a?b=c&d", "!!!! ???? ....", "aaaaaaaaaaaaaaaaaaaaaa",
)  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """All three; JSON and a plot."""
    model = FusionModel.from_pretrained(args.checkpoint)
    table = PairTable.read(args.pairs)
    names = {m: model.config.encoders[m]["name"] for m in ("image", "text")}
    encoders = {m: load_encoder(name) for m, name in names.items()}
    stores = {m: LatentStore.open(args.latents / m) for m in names}
    if any(store.manifest["table"] != table.fingerprint for store in stores.values()):
        raise SystemExit(f"error: the latents in {args.latents} were not made from {args.pairs}; give its own table.")
    photos = args.photos or PHOTOS
    world = World(table, model, encoders, stores, photos)
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "corruptions": world.corruptions,
        "attacks": world.attacks,
        "other_world": world.other_world,
    }
    results: dict[str, Any] = {"checkpoint": Path(args.checkpoint).name, "model": model.identity, "photos": photos}
    for name, part in parts.items():
        results[name] = kept(args.work / "robustness" / f"{model.identity[:12]}-{photos}-{name}.json", part)
        console.print(name, results[name])
        write(args.out, results)
    plot(results, args)


class World:
    """Dev's items, embedded once."""

    def __init__(
        self,
        table: PairTable,
        model: FusionModel,
        encoders: dict[str, Encoder],
        stores: dict[str, LatentStore],
        photos: int,
    ) -> None:
        self.table, self.model, self.encoders, self.stores = table, model, encoders, stores
        self.photos = photos
        self.latents, self.groups, self.values, self.train = {}, {}, {}, {}
        rng = np.random.default_rng(0)
        for modality, store in stores.items():
            rows = store.rows.drop_duplicates("item")
            dev, train = (rows[rows["split"] == split]["item"].to_numpy() for split in ("dev", "train"))
            items = table.items(modality)
            self.latents[modality] = torch.from_numpy(store.read(dev))
            self.groups[modality] = rows[rows["split"] == "dev"]["group"].to_numpy()
            self.values[modality] = [items[int(i)].value for i in dev]
            self.train[modality] = torch.from_numpy(store.read(np.sort(rng.permutation(train)[:BANK])))

    def recall(
        self, modality: str, embeddings: Tensor, rows: np.ndarray, gallery: Tensor | None = None
    ) -> dict[str, Any]:
        """Recall@1 of these queries in the other modality, with a 95 % interval."""
        other = "text" if modality == "image" else "image"
        gallery = self.model.embed(other, self.latents[other]) if gallery is None else gallery
        groups = self.groups[modality][rows]
        rank = ranks(embeddings, gallery, groups, self.groups[other])
        return {"recall_at_1": float((rank == 1).mean()), "ci95": list(bootstrap(rank, groups)["recall_at_1"])}

    def corruptions(self) -> dict[str, Any]:
        """Condition -> recall."""
        rng = np.random.default_rng(0)
        out: dict[str, Any] = {}
        for modality, kinds in (("image", PICTURES), ("text", WORDS)):
            rows = np.sort(rng.permutation(len(self.values[modality]))[: self.photos])
            clean = self.model.embed(modality, self.latents[modality][rows])
            out[f"{modality}: none"] = [self.recall(modality, clean, rows)]
            for name, change in kinds.items():
                found = []
                for strength in (1, 2, 3):
                    changed = [change(self._item(modality, row), strength, np.random.default_rng(row)) for row in rows]
                    z = torch.from_numpy(self.encoders[modality].encode(changed))
                    found.append(self.recall(modality, self.model.embed(modality, z), rows))
                out[f"{modality}: {name}"] = found
                console.print(modality, name, [f"{f['recall_at_1']:.3f}" for f in found])
        return out

    def _item(self, modality: str, row: int) -> Any:
        value = self.values[modality][row]
        return load_image(value).convert("RGB").resize((224, 224)) if modality == "image" else value

    def attacks(self) -> dict[str, Any]:
        """Path -> radius -> recall@1 of photos whose latents were changed, at worst and at random."""
        rows = np.arange(self.photos)
        x = self.latents["image"][rows]
        typical = float(torch.pdist(x).mean())
        paths: dict[str, Callable[[str, Tensor], Tensor]] = {"whole model": self._embed}
        if self._first_path("image") is not None:
            paths["closed form alone"] = self._closed_form
        out: dict[str, Any] = {"typical_distance": typical}
        for name, embed in paths.items():
            with torch.no_grad():
                gallery = embed("text", self.latents["text"])
            right = torch.from_numpy(self.groups["image"][rows][:, None] == self.groups["text"][None])
            with torch.no_grad():
                clean = self.recall("image", embed("image", x), rows, gallery)
            out[name] = {"0": {"worst": clean, "random": clean}}
            for radius in RADII:
                worst = x + attack(x, lambda z, e=embed: e("image", z), gallery, right, radius * typical)
                noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
                random = x + radius * typical * F.normalize(noise, dim=1)
                with torch.no_grad():
                    out[name][str(radius)] = {
                        kind: self.recall("image", embed("image", z), rows, gallery)
                        for kind, z in (("worst", worst), ("random", random))
                    }
        return out

    def _embed(self, modality: str, x: Tensor) -> Tensor:
        return F.normalize(self.model.adapters[modality](x), dim=1)

    def _first_path(self, modality: str) -> TwoPathAdapter | None:
        adapter: Any = self.model.adapters[modality]
        adapter = adapter.members[0] if hasattr(adapter, "members") else adapter
        return adapter if isinstance(adapter, TwoPathAdapter) else None

    def _closed_form(self, modality: str, x: Tensor) -> Tensor:
        adapter = self._first_path(modality)
        assert adapter is not None
        return F.normalize((x - adapter.mean) @ adapter.linear, dim=1)

    def other_world(self) -> dict[str, Any]:
        """Modality -> score -> AUROC of strange inputs against dev's own; how many are flagged with 1 in 100 of dev."""
        out: dict[str, Any] = {}
        strange = {"image": strange_pictures(self), "text": list(FOREIGN)}
        for modality, items in strange.items():
            z = torch.from_numpy(self.encoders[modality].encode(items))
            known = self.latents[modality]
            bank = self.train[modality]
            mean = bank.mean(dim=0)
            near = F.normalize(bank - mean, dim=1), self.model.embed(modality, bank)
            scores: dict[str, Callable[[Tensor], Tensor]] = {
                "nearest training latent": lambda v, m=mean, b=near[0]: -(F.normalize(v - m, dim=1) @ b.T).amax(dim=1),
                "nearest training embedding": lambda v, m=modality, b=near[1]: (
                    -(self.model.embed(m, v) @ b.T).amax(dim=1)
                ),
            }
            if (adapter := self._first_path(modality)) is not None:
                white, centre = adapter.whiten, adapter.mean
                scores["whitened length"] = lambda v, w=white, c=centre: ((v - c) @ w).square().mean(dim=1)
            out[modality] = {"strange": len(items), "dev": len(known)}
            for name, score in scores.items():
                ours, theirs = score(known).double(), score(z).double()
                above = (theirs[:, None] > ours[None]).double() + 0.5 * (theirs[:, None] == ours[None]).double()
                bar = torch.quantile(ours, 0.99)
                out[modality][name] = {"auroc": float(above.mean()), "flagged": float((theirs > bar).double().mean())}
        return out


def attack(x: Tensor, embed: Callable[[Tensor], Tensor], gallery: Tensor, right: Tensor, radius: float) -> Tensor:
    """The change (N, D_x), no longer than ``radius`` in any row, that most favours a wrong answer over all right ones.

    Source: projected gradient descent, Madry et al., arXiv:1706.06083, on the margin, L2.
    """
    delta = torch.zeros_like(x)
    for _ in range(STEPS):
        delta.requires_grad_()
        similarity = embed(x + delta) @ gallery.T
        margin = similarity.masked_fill(right, -torch.inf).amax(dim=1) - similarity.masked_fill(
            ~right, -torch.inf
        ).amax(dim=1)
        (gradient,) = torch.autograd.grad(margin.sum(), delta)
        with torch.no_grad():
            delta = delta + 2.5 * radius / STEPS * F.normalize(gradient, dim=1)
            delta = delta * (radius / delta.norm(dim=1, keepdim=True).clamp_min(radius))
    return delta.detach()


def _jpeg(image: Image.Image, quality: int) -> Image.Image:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return Image.open(io.BytesIO(out.getvalue())).convert("RGB")


def _noisy(image: Image.Image, deviation: float, rng: np.random.Generator) -> Image.Image:
    pixels = np.asarray(image, dtype=np.float32) + rng.normal(0, deviation, (image.height, image.width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _covered(image: Image.Image, share: float, rng: np.random.Generator) -> Image.Image:
    side = int(image.width * share**0.5)
    x, y = rng.integers(0, image.width - side + 1, 2)
    out = image.copy()
    out.paste((127, 127, 127), (int(x), int(y), int(x) + side, int(y) + side))
    return out


PICTURES: dict[str, Callable[[Image.Image, int, np.random.Generator], Image.Image]] = {
    "blur, radius 2, 4, 8 pixels": lambda i, s, _: i.filter(ImageFilter.GaussianBlur(2**s)),
    "noise, deviation 20, 40, 80": lambda i, s, rng: _noisy(i, 10 * 2**s, rng),
    "JPEG, quality 20, 10, 5": lambda i, s, _: _jpeg(i, 40 // 2**s),
    "brightness 1/2, 1/4, 1/8": lambda i, s, _: i.point(lambda v: v / 2**s),
    "turned by 10, 30, 90 degrees": lambda i, s, _: i.rotate((10, 30, 90)[s - 1], fillcolor=(127, 127, 127)),
    "a tenth, a quarter, half covered": lambda i, s, rng: _covered(i, (0.1, 0.25, 0.5)[s - 1], rng),
    "grey, sepia, inverted": lambda i, s, _: (
        ImageOps.grayscale(i).convert("RGB"),
        ImageOps.colorize(ImageOps.grayscale(i), (40, 26, 13), (255, 240, 192)),
        ImageOps.invert(i),
    )[s - 1],
}  # fmt: skip


def _typos(text: str, share: float, rng: np.random.Generator) -> str:
    letters = list(text)
    for i in range(len(letters) - 1):
        if rng.random() < share:
            letters[i], letters[i + 1] = letters[i + 1], letters[i]
    return "".join(letters)


def _dropped(text: str, share: float, rng: np.random.Generator) -> str:
    words = text.split()
    return " ".join(word for word in words if rng.random() >= share) or words[0]


WORDS: dict[str, Callable[[str, int, np.random.Generator], str]] = {
    "letters swapped, 2, 5, 10 in 100": lambda t, s, rng: _typos(t, (0.02, 0.05, 0.1)[s - 1], rng),
    "words dropped, 10, 25, 50 in 100": lambda t, s, rng: _dropped(t, (0.1, 0.25, 0.5)[s - 1], rng),
    "capitals, no vowels, backwards": lambda t, s, _: (
        t.upper(), "".join(c for c in t if c.lower() not in "aeiou"), t[::-1],
    )[s - 1],
}  # fmt: skip


def strange_pictures(world: World) -> list[Image.Image]:
    """Noise, plain colours, patterns, letters, and dev photos inverted and scrambled: 20 of each."""
    rng, out = np.random.default_rng(0), []
    for i in range(20):
        out.append(Image.fromarray(rng.integers(0, 256, (224, 224, 3), dtype=np.uint8)))
        out.append(Image.new("RGB", (224, 224), tuple(int(v) for v in rng.integers(0, 256, 3))))
        stripes = (np.indices((224, 224)).sum(axis=0) // (4 + i) % 2 * 255).astype(np.uint8)
        out.append(Image.fromarray(stripes).convert("RGB"))
        page = Image.new("RGB", (224, 224), "white")
        for line in range(12):
            words = " ".join("".join(chr(97 + int(c)) for c in rng.integers(0, 26, 6)) for _ in range(5))
            ImageDraw.Draw(page).text((8, 8 + 17 * line), words, fill="black")
        out.append(page)
        photo = world._item("image", i)
        out.append(ImageOps.invert(photo))
        tiles = np.asarray(photo).reshape(14, 16, 14, 16, 3).swapaxes(1, 2).reshape(196, 16, 16, 3)
        mixed = tiles[rng.permutation(196)].reshape(14, 14, 16, 16, 3).swapaxes(1, 2).reshape(224, 224, 3)
        out.append(Image.fromarray(mixed))
    return out


def plot(results: dict[str, Any], args: argparse.Namespace) -> None:
    """Corruptions by strength, and attacks by radius."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.2), layout="constrained", width_ratios=(1.25, 1))
    corruptions = results["corruptions"]
    for name, found in corruptions.items():
        if name.endswith(": none"):
            continue
        clean = corruptions[f"{name.partition(':')[0]}: none"][0]["recall_at_1"]
        shares = [1.0, *(f["recall_at_1"] / clean for f in found)]
        style = "-" if name.startswith("image") else "--"
        left.plot(range(4), [100 * s for s in shares], style, marker="o", ms=4, label=name)
    left.set_xticks(range(4), ["none", "weak", "middle", "strong"])
    left.set_ylabel("R@1 kept, % of the clean query's")
    left.legend(frameon=False, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncol=2)
    colours = {"whole model": "#1f7a5c", "closed form alone": "#6b5bd2"}
    for name, colour in colours.items():
        if name in results["attacks"]:
            radii = list(results["attacks"][name])
            for kind, style in (("worst", "-"), ("random", ":")):
                values = [100 * results["attacks"][name][r][kind]["recall_at_1"] for r in radii]
                right.plot(
                    [float(r) for r in radii], values, style, color=colour, marker="o", ms=4, label=f"{name}, {kind}"
                )
    right.set_xlabel("change of the image latent, share of the typical distance")
    right.set_ylabel("photo → caption R@1, %")
    right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(args.out.with_suffix(".png"), dpi=150)
