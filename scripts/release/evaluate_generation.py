"""Evaluation of generated pictures on held-out items: match with their input, and copying of training pictures.

    python scripts/release/evaluate_generation.py --held-out flickr8k-dev=../shared/flickr8k/pairs.csv:dev \
        --held-out gallery-val=demo/gallery/pairs.csv:val \
        --train-pairs runs/default/pairs.csv --latents runs/default --out docs/results/generation.json

A picture is made from each query (photo, caption or sound), encoded with the frozen image encoder at
the size it was made, and has to find its item's real photo among the held-out ones: by the cosine of
the encoder's centred latents (``latent``) and of the image adapter's embeddings (``shared``). Beside it
stand the real photo at the decoder's resolution (ceiling) and through the autoencoder, the training
picture nearest to the query (copying), the query's embedding itself (no picture at all), and the
generated pictures dealt out to the wrong items (chance). Beside the steered pictures (generation/guidance.py) stand
those drawn by the condition alone, and both made half as large and enlarged again, which takes fine patterns away.
``--judge`` names another frozen encoder, one that had
no part in the conditioning, as a third judge (``outside``).
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from fusemix.data.latent_store import MANIFEST_NAME, LatentStore
from fusemix.data.pairs import PairTable
from fusemix.encoders import Encoder, load_encoder
from fusemix.encoders.recorded import load_recorded
from fusemix.evaluation.metrics import bootstrap, ranks, summarise
from fusemix.files import read_json, write_json
from fusemix.generation.bridges import BRIDGES, Conditioner, fit_bridge
from fusemix.generation.generator import Generator, default_steering, nearest_pictures, rank_images
from fusemix.generation.guidance import Steering
from fusemix.model.adapters import FusionModel

ROOT = Path(__file__).resolve().parents[2]
BATCH = 16  # pictures drawn at once
SPACES = ("latent", "shared", "outside")  # of the judges


@dataclass(frozen=True)
class Train:
    """Training data of the decoder: one row a picture, and the pairs for fitting bridges.

    Attributes:
        paths: Of the pictures.
        latents: (N, D_x) of the frozen image encoder.
        image: (N, D) shared-space embeddings.
        pairs: Modality -> (embeddings (M, D), rows (M,) of their pictures).
        known: Path -> latent of every picture in the store, including held-out ones, so that nothing is encoded twice.
    """

    paths: list[str]
    latents: Tensor
    image: Tensor
    pairs: dict[str, tuple[Tensor, np.ndarray]]
    known: dict[str, np.ndarray]


@dataclass(frozen=True)
class HeldOut:
    """Held-out photos, the candidates, and the queries of each modality.

    Attributes:
        name: Of the protocol.
        images: The real photos.
        latents: (N, D_x) of the frozen image encoder, at full resolution.
        queries: Modality -> (shared-space embeddings (Q, D), rows (Q,) of their photos).
        paths: Of the photos.
    """

    name: str
    images: list[Image.Image]
    latents: Tensor
    queries: dict[str, tuple[Tensor, np.ndarray]]
    paths: list[str]


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--held-out", required=True, action="append", help="NAME=TABLE:SPLIT; may be given several times"
    )
    parser.add_argument("--train-pairs", required=True, help="table of pairs that the decoder was trained on")
    parser.add_argument("--latents", required=True, type=Path, help="folder with that table's latent stores")
    parser.add_argument("--checkpoint", default=str(ROOT / "checkpoints/default"), help="FusionModel: folder or Hub id")
    parser.add_argument("--decoder", default=str(ROOT / "checkpoints/unclip-small"), help="decoder: folder or Hub id")
    parser.add_argument("--queries", type=int, default=200, help="at most so many per modality")
    parser.add_argument("--candidates", type=int, default=1000, help="at most so many held-out photos to find among")
    parser.add_argument("--judge", help="another image encoder to judge with, e.g. efficientnet-lite2")
    parser.add_argument("--bridge-queries", type=int, default=100, help="queries per bridge and modality; 0: no table")
    parser.add_argument(
        "--best-of", type=int, default=1, help="also: the best of so many, chosen by the encoder; 1: not"
    )
    parser.add_argument("--from-gallery", type=Path, help="also: begun from this index's nearest pictures")
    parser.add_argument("--strength", type=float, default=0.6, help="then: how much is drawn over them")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps")
    parser.add_argument("--guidance", type=float, help="by default the decoder's own")
    parser.add_argument("--noise-level", type=int, default=0)
    parser.add_argument(
        "--steering", type=float, help="towards the query (fusemix/generation/guidance.py); 0: not (default: the tab's)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="torch device of the decoder")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/generation.json", help="JSON to write")
    parser.add_argument("--grid", type=Path, help="also save a grid of real and generated pictures here")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Measure, print and write; 0 on success, 2 on bad input."""
    args = parse(argv)
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    console = Console(stderr=True)
    try:
        result = run(args, console)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.out, result)
    except (ValueError, OSError, ImportError, KeyError) as error:
        console.print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        return 2
    show(result)
    print(f"written to {args.out}")
    return 0


def run(args: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Run all measurements."""
    model = FusionModel.from_pretrained(args.checkpoint)
    encoders = {m: load_recorded(m, model.config.encoders) for m in model.modalities}
    generator = Generator.from_pretrained(args.decoder, model, device=args.device)
    train = load_train(PairTable.read(args.train_pairs), args.latents, model)
    if args.steering is None:
        args.steering = default_steering(generator, encoders["image"])
    draw = drawer(generator, model, encoders["image"], args)
    result: dict[str, Any] = {
        "command": " ".join(sys.argv),
        "decoder": {"folder": str(args.decoder), "side": generator.side} | training_of(args.decoder),
        "settings": {"steps": args.steps, "guidance": args.guidance or generator.default_guidance}
        | {"noise_level": args.noise_level, "seed": args.seed, "steering": args.steering},
        "seconds": timing(
            generator,
            generator.conditioner("image", train.image[:1]),
            Steering(model, encoders["image"], train.image[0], args.steering) if args.steering else None,
        ),
        "protocols": {},
    }
    for spec in args.held_out:
        name, table, split = parse_spec(spec)
        held_out = load_held_out(name, PairTable.read(table), split, model, encoders, train.known, args)
        protocol = measure(held_out, train, model, encoders["image"], generator, draw, args, console)
        if args.bridge_queries:
            protocol["bridges"] = bridges(held_out, train, model, encoders["image"], generator, draw, args, console)
        result["protocols"][name] = protocol
    return result


def parse_spec(spec: str) -> tuple[str, str, str]:
    """``NAME=TABLE:SPLIT`` -> its parts."""
    name, _, rest = spec.partition("=")
    table, _, split = rest.rpartition(":")
    if not (name and table and split):
        raise ValueError(f"--held-out must look like NAME=TABLE:SPLIT, got {spec!r}.")
    return name, table, split


def training_of(decoder: str) -> dict[str, Any]:
    """Read the training record in the decoder's folder."""
    path = Path(decoder) / "train_config.json"
    return {"training": read_json(path)} if path.is_file() else {}


# ---- data -------------------------------------------------------------------------------------


def load_train(table: PairTable, root: Path, model: FusionModel) -> Train:
    """Load embeddings of the training split from finished latent stores."""
    stores: dict[str, LatentStore] = {}
    for path in sorted(root.rglob(MANIFEST_NAME)):
        manifest = read_json(path)
        encoder = model.config.encoders.get(manifest.get("column", ""), {})
        same = all(manifest["encoder"].get(key) == encoder.get(key) for key in ("revision", "fingerprint"))
        if same and manifest.get("table") == table.fingerprint and manifest.get("complete"):
            stores[manifest["column"]] = LatentStore.open(path.parent)
    if "image" not in stores:
        raise ValueError(f"No finished image latents of {table.path} below {root}; make them with scripts/extract.py.")
    rows = {m: s.rows[s.rows["split"] == "train"].drop_duplicates("item") for m, s in stores.items()}
    items = table.items("image")
    latents = torch.from_numpy(stores["image"].read(rows["image"]["item"].to_numpy()))
    picture_of: dict[int, int] = {}
    for i, group in enumerate(rows["image"]["group"]):
        picture_of.setdefault(int(group), i)
    pairs: dict[str, tuple[Tensor, np.ndarray]] = {}
    for modality in (m for m in ("text", "audio") if m in stores and m in model.modalities):
        mine = rows[modality][rows[modality]["group"].isin(list(picture_of))]
        embeddings = model.embed(modality, stores[modality].read(mine["item"].to_numpy()))
        pairs[modality] = (embeddings, np.array([picture_of[int(g)] for g in mine["group"]]))
    paths = [items[int(i)].value for i in rows["image"]["item"]]
    everything = stores["image"].rows["item"].unique()
    known = dict(zip((items[int(i)].value for i in everything), stores["image"].read(everything), strict=True))
    return Train(paths, latents, model.embed("image", latents), pairs, known)


def load_held_out(
    name: str,
    table: PairTable,
    split: str,
    model: FusionModel,
    encoders: dict[str, Encoder],
    known: dict[str, np.ndarray],
    args: argparse.Namespace,
) -> HeldOut:
    """Candidates (the first photos of the split) and random queries among their captions and sounds."""
    from fusemix.media import load_image

    photos = table.items("image", split)[: args.candidates]
    row_of = {photo.group: i for i, photo in enumerate(photos)}
    images = [load_image(photo.value) for photo in photos]
    if all(photo.value in known for photo in photos):
        latents = torch.from_numpy(np.stack([known[photo.value] for photo in photos]))
    else:
        latents = torch.from_numpy(encoders["image"].encode(images))
    rng = np.random.default_rng(args.seed)
    picked = np.sort(rng.permutation(len(photos))[: args.queries])
    queries = {"image": (model.embed("image", latents[picked]), picked)}
    for modality in (m for m in ("text", "audio") if m in model.modalities and m in table.frame.columns):
        items = [item for item in table.items(modality, split) if item.group in row_of]
        if not items:
            continue
        chosen = [items[i] for i in np.sort(rng.permutation(len(items))[: args.queries])]
        embeddings = model.embed(modality, encoders[modality].encode([item.value for item in chosen]))
        queries[modality] = (embeddings, np.array([row_of[item.group] for item in chosen]))
    return HeldOut(name, images, latents, queries, [photo.value for photo in photos])


# ---- measuring --------------------------------------------------------------------------------

# image embeddings (Q, D_out), what to steer towards (Q, D) or None, first seed, files to begin from -> a picture each
Draw = Callable[..., list[Image.Image]]


def drawer(generator: Generator, model: FusionModel, encoder: Encoder, args: argparse.Namespace) -> Draw:
    """Make a function that draws a picture for each row of image embeddings, from noise or from a file."""
    from fusemix.media import load_image

    def draw(embeds: Tensor, wanted: Tensor | None, seed: int, over: list[Path] | None = None) -> list[Image.Image]:
        images: list[Image.Image] = []
        for begin in range(0, len(embeds), BATCH):
            part = slice(begin, begin + BATCH)
            steering = None
            if wanted is not None and args.steering:
                steering = Steering(model, encoder, wanted[part], args.steering)
            images += generator.from_image_embeds(
                embeds[part],
                steps=args.steps,
                guidance=args.guidance,
                noise_level=args.noise_level,
                seed=seed + begin,
                start=None if over is None else [load_image(str(path)) for path in over[part]],
                strength=args.strength,
                steering=steering,
            )
        return images

    return draw


class Judge:
    """Retrieval of the right photo for a picture, in the spaces of the frozen encoder, the model and a judge."""

    def __init__(
        self, held_out: HeldOut, model: FusionModel, encoder: Encoder, outsider: Encoder | None = None
    ) -> None:
        self.model, self.encoder, self.outsider = model, encoder, outsider
        self.mean = held_out.latents.mean(0)
        self.galleries = {
            "latent": F.normalize(held_out.latents - self.mean, dim=1),
            "shared": model.embed("image", held_out.latents),
        }
        if outsider is not None:
            others = torch.from_numpy(outsider.encode(held_out.images))
            self.outside_mean = others.mean(0)
            self.galleries["outside"] = F.normalize(others - self.outside_mean, dim=1)
        self.groups = np.arange(len(held_out.latents))

    def see(self, images: list[Image.Image]) -> dict[str, Tensor]:
        """Embed pictures in every space, (N, D) each, unit length."""
        latents = torch.from_numpy(self.encoder.encode(images))
        seen = {
            "latent": F.normalize(latents - self.mean, dim=1),
            "shared": self.model.embed("image", latents),
        }
        if self.outsider is not None:
            others = torch.from_numpy(self.outsider.encode(images))
            seen["outside"] = F.normalize(others - self.outside_mean, dim=1)
        return seen

    def find(self, seen: dict[str, Tensor], rows: np.ndarray) -> dict[str, Any]:
        """Measure recall in every space; picture i should find photo ``rows[i]``."""
        return {space: recall(queries, self.galleries[space], rows, self.groups) for space, queries in seen.items()}

    def pictures(self, images: list[Image.Image], rows: np.ndarray) -> dict[str, Any]:
        """:meth:`find` of what :meth:`see` makes."""
        return self.find(self.see(images), rows)


def recall(queries: Tensor, gallery: Tensor, rows: np.ndarray, groups: np.ndarray) -> dict[str, Any]:
    """Compute recall_at_1/5/10 and median rank, with 95 % bootstrap intervals of recall@10."""
    rank = ranks(queries, gallery, rows, groups)
    ci = bootstrap(rank, rows)["recall_at_10"]
    return {"n": len(rank), "of": len(gallery), **summarise(rank), "recall_at_10_ci95": list(ci)}


def measure(
    held_out: HeldOut,
    train: Train,
    model: FusionModel,
    encoder: Encoder,
    generator: Generator,
    draw: Draw,
    args: argparse.Namespace,
    console: Console,
) -> dict[str, Any]:
    """Measure one protocol: recall of generated pictures, ceilings and baselines, and distance to training pictures."""
    judge = Judge(held_out, model, encoder, load_encoder(args.judge) if args.judge else None)
    side = generator.side
    out: dict[str, Any] = {"conditioned_on": {}}
    sheet: list[list[Image.Image]] = []
    for modality, (embeddings, rows) in held_out.queries.items():
        console.print(f"{held_out.name}: {len(rows)} pictures from {modality}", highlight=False)
        embeds = generator.conditioner(modality, embeddings)
        images = draw(embeds, embeddings, args.seed)
        seen = judge.see(images)
        wrong = np.roll(rows, len(rows) // 2)
        nearest = (embeddings @ train.image.T).argmax(1).tolist()
        values: dict[str, Any] = {
            "generated": judge.find(seen, rows),
            "generated_halved": judge.pictures(halved(images), rows),
            "shuffled": judge.find(seen, wrong),
            "real_at_this_size": judge.pictures([shrunk(held_out.images[r], side) for r in rows], rows),
            "nearest_training_picture": judge.pictures([shrunk_file(train.paths[i], side) for i in nearest], rows),
            "embedding_itself": judge.find({"shared": embeddings}, rows),
            "copying": copying(seen["latent"], train, judge.mean),
        }
        if args.steering:
            alone = draw(embeds, None, args.seed)
            values["not_steered"] = judge.pictures(alone, rows)
            values["not_steered_halved"] = judge.pictures(halved(alone), rows)
            values["copying_not_steered"] = copying(judge.see(alone)["latent"], train, judge.mean)
        if args.best_of > 1:
            values[f"best_of_{args.best_of}"] = judge.pictures(
                best_of(embeddings, embeds, draw, model, encoder, args), rows
            )
        if args.from_gallery:
            paths = begun_from(embeddings, held_out, model, args)
            begun = judge.see(draw(embeds, embeddings, args.seed, paths))
            values[f"from_gallery_{args.strength:g}"] = judge.find(begun, rows)
            if args.steering:
                alone = draw(embeds, None, args.seed, paths)
                values[f"from_gallery_{args.strength:g}_not_steered"] = judge.pictures(alone, rows)
            values["gallery_picture_itself"] = judge.pictures([shrunk_file(str(p), side) for p in paths], rows)
            start = judge.see([shrunk_file(str(p), side) for p in paths])["latent"]
            values["cosine_to_where_it_began"] = float((begun["latent"] * start).sum(1).median())
        out["conditioned_on"][modality] = values
        sheet += [[shrunk(held_out.images[r], side) for r in rows[:12]], images[:12]]
    rows = held_out.queries["image"][1]
    real = [shrunk(held_out.images[r], side) for r in rows]
    out["autoencoder"] = judge.pictures(reconstructed(real, generator), rows)
    out["copying_of_real_held_out"] = copying(judge.see(real)["latent"], train, judge.mean)
    if args.grid:
        args.grid.parent.mkdir(parents=True, exist_ok=True)
        save_grid(sheet, args.grid.with_stem(f"{args.grid.stem}-{held_out.name}"))
    return out


def begun_from(embeddings: Tensor, held_out: HeldOut, model: FusionModel, args: argparse.Namespace) -> list[Path]:
    """Find the index's picture nearest to each query, without held-out ones."""
    from fusemix.search.index import EmbeddingIndex

    index = EmbeddingIndex.load(args.from_gallery, model_identity=model.identity)
    aside = {Path(path).resolve() for path in held_out.paths}
    return [nearest_pictures(index, row.numpy(), 1, exclude=aside)[0][0] for row in embeddings]


def best_of(
    wanted: Tensor, embeds: Tensor, draw: Draw, model: FusionModel, encoder: Encoder, args: argparse.Namespace
) -> list[Image.Image]:
    """Draw several pictures for each query and keep the one closest to it by the encoder."""
    rounds = [draw(embeds, wanted, args.seed + 10_000 * i) for i in range(args.best_of)]
    return [rank_images([made[i] for made in rounds], wanted[i], model, encoder)[0][0] for i in range(len(embeds))]


def copying(centred: Tensor, train: Train, mean: Tensor) -> dict[str, float]:
    """Compute percentiles of the cosine of pictures' centred latents to their nearest training picture's."""
    gallery = F.normalize(train.latents - mean, dim=1)
    nearest = (centred @ gallery.T).amax(1).numpy()
    return {f"p{p}": float(np.percentile(nearest, p)) for p in (5, 50, 95, 100)}


def bridges(
    held_out: HeldOut,
    train: Train,
    model: FusionModel,
    encoder: Encoder,
    generator: Generator,
    draw: Draw,
    args: argparse.Namespace,
    console: Console,
) -> dict[str, Any]:
    """Measure every bridge, fitted on the training split: recall of its embeddings and of unsteered pictures."""
    judge = Judge(held_out, model, encoder)
    out: dict[str, Any] = {}
    for modality in (m for m in ("text", "audio") if m in held_out.queries and m in train.pairs):
        source, pictures = train.pairs[modality]
        embeddings, rows = held_out.queries[modality]
        embeddings, rows = embeddings[: args.bridge_queries], rows[: args.bridge_queries]
        out[modality] = {}
        for kind in BRIDGES:
            console.print(f"{held_out.name}: bridge {kind} from {modality}", highlight=False)
            bridge = fit_bridge(kind, source, train.image[pictures])
            width = embeddings.shape[1]
            embeds = Conditioner({modality: bridge}, embed_dim=width, image_embeds_dim=width)(modality, embeddings)
            out[modality][kind] = {
                "retrieval": judge.find({"shared": embeds}, rows)["shared"],
                "generation": judge.pictures(draw(generator.conditioner("image", embeds), None, args.seed), rows),
            }
    return out


def timing(generator: Generator, embeds: Tensor, steering: Steering | None) -> dict[str, float]:
    """Measure seconds to the first preview and to the picture, warm, at 25 steps: medians of five."""
    runs = np.array([_timed(generator, embeds, steering, seed) for seed in range(6)][1:])
    first, whole = np.median(runs, axis=0)
    return {"first_preview": float(first), "picture": float(whole)}


def _timed(generator: Generator, embeds: Tensor, steering: Steering | None, seed: int) -> tuple[float, float]:
    seen: list[float] = []
    started = time.perf_counter()
    generator.from_image_embeds(
        embeds, steps=25, seed=seed, steering=steering, on_step=lambda *_: seen.append(time.perf_counter())
    )
    return seen[0] - started, time.perf_counter() - started


def shrunk(image: Image.Image, side: int) -> Image.Image:
    """Resize a photo to a square at the decoder's resolution, as the encoder does."""
    return image.resize((side, side), Image.Resampling.LANCZOS)


def halved(images: list[Image.Image]) -> list[Image.Image]:
    """Halve pictures and enlarge them again, which removes fine patterns."""
    return [shrunk(shrunk(image, image.width // 2), image.width) for image in images]


def shrunk_file(path: str, side: int) -> Image.Image:
    """Resize a photo from a file."""
    from fusemix.media import load_image

    return shrunk(load_image(path), side)


@torch.inference_mode()
def reconstructed(images: list[Image.Image], generator: Generator) -> list[Image.Image]:
    """Encode and decode pictures with the autoencoder: the decoder's upper bound."""
    vae, made = generator.pipeline.vae, []
    for start in range(0, len(images), BATCH):
        pixels = np.stack([np.asarray(image, dtype=np.float32) for image in images[start : start + BATCH]])
        x = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(vae.device, vae.dtype) / 127.5 - 1
        made += generator.decode(vae.encode(x).latents * vae.config.scaling_factor)
    return made


# ---- output -----------------------------------------------------------------------------------


def save_grid(rows: list[list[Image.Image]], path: Path) -> None:
    """Save rows of pictures, real and generated in turn, for each modality."""
    side = rows[0][0].width
    sheet = Image.new("RGB", (side * max(map(len, rows)), side * len(rows)), "white")
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            sheet.paste(image, (x * side, y * side))
    sheet.resize((sheet.width * 2, sheet.height * 2), Image.Resampling.BICUBIC).save(path)


def show(result: dict[str, Any]) -> None:
    """Print recall in percent as tables."""
    console = Console()
    for name, protocol in result["protocols"].items():
        table = Table(title=f"{name}: R@1 / R@10, %", title_justify="left")
        for column in ("conditioned on", "picture", "latent", "shared", "outside", "n"):
            table.add_column(column)
        for modality, values in protocol["conditioned_on"].items():
            for what, spaces in values.items():
                if isinstance(spaces, dict) and not what.startswith("copying"):
                    table.add_row(modality, what, *cells(spaces))
        table.add_row("", "autoencoder", *cells(protocol["autoencoder"]))
        for modality, kinds in protocol.get("bridges", {}).items():
            for kind, values in kinds.items():
                table.add_row(modality, f"bridge {kind}: pictures", *cells(values["generation"]))
                table.add_row(modality, f"bridge {kind}: embeddings", *cells({"shared": values["retrieval"]}))
        console.print(table)
    console.print(result["seconds"])


def cells(spaces: dict[str, Any]) -> list[str]:
    """Format the two recalls of each space, and n."""
    texts = [
        f"{100 * spaces[s]['recall_at_1']:.1f} / {100 * spaces[s]['recall_at_10']:.1f}" if s in spaces else ""
        for s in SPACES
    ]
    return [*texts, str(next(iter(spaces.values()))["n"])]


if __name__ == "__main__":
    sys.exit(main())
