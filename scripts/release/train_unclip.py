"""Train a small Stable unCLIP pipeline on pictures and a trained FusionModel.

    python scripts/release/train_unclip.py --pairs demo/gallery/pairs.csv --checkpoint checkpoints/default \
        --out checkpoints/unclip-small

Four stages, each kept in --work, so that the same command goes on after a kill:

1. pictures: every training picture, decoded once to --side pixels;
2. autoencoder: an AutoencoderTiny whose encoder is the principal components of 8 x 8 patches, in
   closed form, and whose decoder is trained, with a perceptual loss through the frozen image encoder;
3. conditions: shared-space embeddings of the pictures and of their captions and sounds;
4. UNet: v-prediction on the autoencoder's latents, conditioned on a random one of a picture's
   embeddings (which closes the gap between the modalities by training), with the embedding
   noised as in unCLIP and dropped now and then for classifier-free guidance.

The result is a folder that diffusers' StableUnCLIPImg2ImgPipeline loads. --init-pipeline goes on from such a
folder, also after the adapters were trained again: --init-checkpoint then names the model it was trained
with, and the new embeddings are carried into the old projection before the first step.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from fusemix.data.extract import extract
from fusemix.data.latent_store import MANIFEST_NAME, LatentStore
from fusemix.data.pairs import PairTable
from fusemix.datasets.splits import in_split
from fusemix.encoders.recorded import load_recorded
from fusemix.files import read_json, sha256_of, write_atomic, write_json
from fusemix.generation.bridges import Conditioner, space_identity
from fusemix.generation.generator import Generator
from fusemix.generation.small.autoencoder import ReconstructionLoss, picture_batch
from fusemix.generation.small.pipeline import (
    new_autoencoder,
    new_unet,
    patch_components,
    read_small_parts,
    save_small_pipeline,
)
from fusemix.generation.small.train_loop import Loop, Report
from fusemix.generation.small.unet_training import (
    Conditions,
    DenoisingLoss,
    UnclipConfig,
    carry_projection,
    spread_conditions,
)
from fusemix.model.adapters import FusionModel
from fusemix.stopping import Stopped
from fusemix.training.precision import resolve_precision

MODALITIES = ("image", "text", "audio")
CARRIED = 3000  # pictures encoded again to carry a UNet into another space


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    defaults = UnclipConfig()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = parser.add_argument_group("data")
    data.add_argument("--pairs", required=True, action="append", help="table of pairs; may be given several times")
    data.add_argument("--split", default="train", help="only rows of this split")
    data.add_argument("--checkpoint", required=True, help="FusionModel: a folder or a Hub id")
    data.add_argument(
        "--latents", type=Path, help="folder below which finished latent stores of the tables are looked for"
    )
    run = parser.add_argument_group("run")
    run.add_argument("--out", required=True, type=Path, help="folder of the pipeline")
    run.add_argument("--work", type=Path, default=Path("runs/unclip"), help="caches and resumable state")
    run.add_argument("--init-pipeline", type=Path, help="a folder of this script: begin with its two networks")
    run.add_argument("--init-checkpoint", help="FusionModel that --init-pipeline was trained with, if another one")
    run.add_argument("--until", choices=("vae", "unet"), default="unet", help="stop after this stage")
    run.add_argument("--save-every", type=int, default=250, help="steps between saved states")
    run.add_argument("--sample-every", type=int, default=1000, help="steps between sample grids in --work")
    run.add_argument("--device", default="cpu", help="torch device, e.g. cuda")
    run.add_argument(
        "--mixed-precision", default="auto", choices=("auto", "no", "bf16"), help="of the UNet; auto: where it is fast"
    )
    for part, prefix in (("autoencoder", ("side", "latent", "vae", "perceptual")), ("unet", ())):
        group = parser.add_argument_group(part)
        for field in dataclasses.fields(UnclipConfig):
            if (field.name.startswith(("side", "latent", "vae", "perceptual"))) != bool(prefix):
                continue
            value = getattr(defaults, field.name)
            many: dict[str, Any] = {"nargs": "+"} if isinstance(value, tuple) else {}
            kind = type(value[0]) if isinstance(value, tuple) else type(value)
            flag = "--" + field.name.replace("_", "-")
            group.add_argument(flag, type=kind, default=value, help=f"default {value}", **many)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Train or resume; return 0 when done, 2 on bad input, 130 when stopped by a signal (state saved)."""
    args = parse(argv)
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    console = Console(stderr=True)
    names = [field.name for field in dataclasses.fields(UnclipConfig)]
    given: dict[str, Any] = {name: getattr(args, name) for name in names}
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    config = UnclipConfig(**values)
    try:
        return run(args, config, console)
    except (ValueError, OSError, ImportError, KeyError) as error:
        console.print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        return 2
    except Stopped as stop:
        console.print(f"{stop}; run the same command again to go on.", highlight=False)
        return 130


def run(args: argparse.Namespace, config: UnclipConfig, console: Console) -> int:
    """Run the four stages."""
    args.work.mkdir(parents=True, exist_ok=True)
    tables = [PairTable.read(path) for path in args.pairs]
    pictures, names = load_pictures(tables, args.split, config.side, args.work, console)
    console.print(f"{len(pictures):,} pictures of {config.side} x {config.side} pixels")
    vae = train_autoencoder(pictures, config, args, console)
    if args.until == "vae":
        return 0
    latents = encode_pictures(vae, pictures, args, console)
    model = FusionModel.from_pretrained(args.checkpoint)
    conditions = load_conditions(tables, names, model, args, console)
    paths = [path for part in names for path in part]
    trained = Trained(vae, latents, conditions, latent_scale(latents, args), config, args)
    unet = train_unet(trained, paths, console)
    trained.save(unet, args.out)
    console.print(f"{args.out}: {sum(p.stat().st_size for p in args.out.rglob('*') if p.is_file()) / 1e6:.1f} MB")
    return 0


# ---- pictures ---------------------------------------------------------------------------------


def load_pictures(
    tables: list[PairTable], split: str, side: int, work: Path, console: Console
) -> tuple[np.ndarray, list[list[str]]]:
    """Decode every training picture once.

    Returns:
        Pictures, shape (N, side, side, 3), uint8, padded to a square on white; and the paths of
        each table's pictures, in the same order.
    """
    names = [[item.value for item in table.items("image", split)] for table in tables]
    paths = [path for part in names for path in part]
    key = json.dumps([[table.fingerprint for table in tables], split, side])
    cache = work / "pictures.npy"
    if cache.exists() and read_json(work / "pictures.json") == key:
        return np.load(cache, mmap_mode="r"), names
    out = np.empty((len(paths), side, side, 3), dtype=np.uint8)
    with bar(console) as progress:
        for i in tracked(progress, range(len(paths)), "pictures"):
            out[i] = np.asarray(square(paths[i], side))
    write_atomic(cache, lambda temporary: save_array(temporary, out))
    write_json(work / "pictures.json", key)
    return out, names


def square(path: str, side: int) -> Image.Image:
    """Pad a picture to a square on white and scale it to ``side`` pixels."""
    from fusemix.media import load_image

    image = load_image(path)
    if max(image.size) > 2 * side:
        image.thumbnail((4 * side, 4 * side), Image.Resampling.BOX)
    return ImageOps.pad(image, (side, side), Image.Resampling.LANCZOS, color=(255, 255, 255))


# ---- autoencoder ------------------------------------------------------------------------------


def train_autoencoder(
    pictures: np.ndarray, config: UnclipConfig, args: argparse.Namespace, console: Console
) -> nn.Module:
    """Closed-form encoder, trained decoder; returns the averaged weights, in evaluation mode."""

    def create() -> nn.Module:
        if args.init_pipeline is not None:
            vae = read_small_parts(args.init_pipeline)[1]
            vae.encoder.requires_grad_(False)
            return vae
        vae = new_autoencoder(config.latent_channels, config.vae_width, config.vae_blocks)
        patch_components(vae, np.asarray(pictures[:: max(1, len(pictures) // 1000)]))
        return vae

    reconstruction = ReconstructionLoss(
        args.device, noise_std=config.vae_noise_std, perceptual_weight=config.perceptual_weight
    )

    def loss(vae: nn.Module, step: int, rng: np.random.Generator) -> Tensor:
        x = picture_batch(pictures, rng, config.vae_batch_size).to(args.device)
        return reconstruction(vae, x, perceptual=step >= (1 - config.perceptual_fraction) * config.vae_steps)

    def sample(vae: Any, path: Path) -> None:
        x = picture_batch(pictures, np.random.default_rng(1), 32).to(args.device)
        with torch.no_grad():
            grid(torch.cat([x, vae.decode(vae.encode(x).latents).sample]), path)

    loop = loop_of("vae", config, args)
    with reported(console, "autoencoder") as report:
        return loop.train(create, loss, report=report, sample=sample)


def loop_of(name: str, config: UnclipConfig, args: argparse.Namespace) -> Loop:
    """Make the loop of the ``vae`` or of the ``unet``."""
    return Loop(
        name=name,
        work=args.work,
        steps=getattr(config, f"{name}_steps"),
        learning_rate=getattr(config, f"{name}_learning_rate"),
        ema_decay=config.ema_decay if name == "unet" else 0.995,
        warmup_steps=config.warmup_steps,
        seed=config.seed,
        save_every=args.save_every,
        sample_every=args.sample_every,
        device=args.device,
    )


@torch.no_grad()
def encode_pictures(vae: Any, pictures: np.ndarray, args: argparse.Namespace, console: Console) -> np.ndarray:
    """Encode every picture and its mirror image: latent means (2, N, C, s, s), float32, raw scale."""
    cache = args.work / "latents.npy"
    key = [sha256_of(args.work / "pictures.npy"), sha256_of(args.work / "vae.pt")]
    if cache.exists() and read_json(args.work / "latents.json") == key:
        return np.load(cache)
    parts: list[list[np.ndarray]] = [[], []]
    with bar(console) as progress:
        for start in tracked(progress, range(0, len(pictures), 64), "latents"):
            batch = torch.from_numpy(np.ascontiguousarray(pictures[start : start + 64]))
            x = (batch.permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
            for side, view in enumerate((x, x.flip(3))):
                parts[side].append(vae.encode(view.to(args.device)).latents.cpu().contiguous().numpy())
    out = np.stack([np.concatenate(part) for part in parts])
    write_atomic(cache, lambda temporary: save_array(temporary, out))
    write_json(args.work / "latents.json", key)
    return out


# ---- conditions -------------------------------------------------------------------------------


def load_conditions(
    tables: list[PairTable], names: list[list[str]], model: FusionModel, args: argparse.Namespace, console: Console
) -> Conditions:
    """Encode and embed pictures, captions and sounds; latents come from --latents where they exist."""
    found: dict[str, list[np.ndarray]] = {m: [] for m in MODALITIES}
    belongs: dict[str, list[np.ndarray]] = {"text": [], "audio": []}
    for table, paths in zip(tables, names, strict=True):
        picture_groups = np.array([item.group for item in table.items("image", args.split)])
        for modality in MODALITIES:
            embeddings, groups = embed_column(table, modality, model, args, console)
            if modality == "image":
                if len(embeddings) != len(paths):
                    raise ValueError(f"{table.path} has {len(paths)} pictures but {len(embeddings)} image latents.")
                found["image"].append(embeddings)
                continue
            offset = sum(len(part) for part in found[modality])
            rows: dict[int, list[int]] = {}
            for i, group in enumerate(groups):
                rows.setdefault(int(group), []).append(offset + i)
            belongs[modality] += [np.array(rows.get(int(g), []), dtype=np.int64) for g in picture_groups]
            found[modality].append(embeddings)
    image, text, audio = (np.concatenate(found[m]) for m in MODALITIES)
    identity = space_identity(model)
    cache = args.work / f"embeddings-{identity[:12]}.npy"
    write_atomic(cache, lambda temporary: save_array(temporary, image))
    console.print(f"conditions: {len(image):,} pictures, {len(text):,} captions, {len(audio):,} sounds")
    return Conditions(image, text, audio, belongs["text"], belongs["audio"], identity)


def embed_column(
    table: PairTable, column: str, model: FusionModel, args: argparse.Namespace, console: Console
) -> tuple[np.ndarray, np.ndarray]:
    """Embed the training items of a column: embeddings (n, D) and groups (n,)."""
    empty = np.empty((0, model.config.embed_dim), np.float32), np.empty(0, np.int64)
    if column not in model.config.latent_dims or column not in table.frame.columns:
        return empty
    try:
        table.rows(column, args.split)
    except ValueError:
        return empty  # e.g. no sound in this split
    info = model.config.encoders[column]
    store = find_store(args.latents, table, column, info)
    if store is None:
        encoder = load_recorded(column, model.config.encoders, device=args.device)
        folder = args.work / "latents" / f"{table.fingerprint[:12]}-{column}"
        with bar(console) as progress:
            task = progress.add_task(f"encode {column}", total=None, note="")
            store = extract(
                table, column, encoder, folder, split=args.split, skip_errors=column != "image",
                report=lambda done, total: progress.update(task, completed=done, total=total),
            )  # fmt: skip
    rows = store.rows[in_split(store.rows["split"].to_numpy(), args.split, store.folder)].drop_duplicates("item")
    latents = store.read(rows["item"].to_numpy())
    return model.embed(column, latents).numpy(), rows["group"].to_numpy()


def find_store(root: Path | None, table: PairTable, column: str, encoder: dict[str, object]) -> LatentStore | None:
    """Find a finished latent store of this table, column and encoder anywhere below ``root``."""
    for path in sorted(root.rglob(MANIFEST_NAME)) if root else []:
        manifest = read_json(path)
        same = manifest.get("table") == table.fingerprint and manifest.get("column") == column
        same = same and all(manifest["encoder"].get(key) == encoder.get(key) for key in ("revision", "fingerprint"))
        if same and manifest.get("complete"):
            return LatentStore.open(path.parent)
    return None


# ---- UNet -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Trained:
    """Results of the stages before the UNet, and saving of the pipeline.

    Attributes:
        vae: Trained.
        latents: (2, N, C, s, s), raw scale.
        conditions: Of the same N pictures.
        scale: The UNet sees the latents times this.
        config: Of the run.
        args: The command line.
    """

    vae: nn.Module
    latents: np.ndarray
    conditions: Conditions
    scale: float
    config: UnclipConfig
    args: argparse.Namespace

    def save(self, unet: nn.Module, folder: Path) -> None:
        """Write the pipeline folder with its conditioner, training configuration and card."""
        mean, std = self.conditions.statistics()
        width = mean.shape[1]
        notes = {"text": "trained in: a random modality's embedding at every step", "audio": "trained in, likewise"}
        conditioner = Conditioner(
            {}, embed_dim=width, image_embeds_dim=width, space=self.conditions.identity, notes=notes
        )
        save_small_pipeline(folder, unet, self.vae, mean, std, scaling_factor=self.scale, conditioner=conditioner)
        sources = {
            "pictures": len(self.conditions.image),
            "captions": len(self.conditions.text),
            "sounds": len(self.conditions.audio),
        }
        state = torch.load(self.args.work / "unet.pt", map_location="cpu", weights_only=True, mmap=True)
        record = {**dataclasses.asdict(self.config), "trained_unet_steps": int(state["step"]), "data": sources}
        if self.args.init_pipeline is not None:
            record["begun_from"] = state["begun_from"]
        write_json(folder / "train_config.json", record)
        (folder / "README.md").write_text(card(record), encoding="utf-8")


def latent_scale(latents: np.ndarray, args: argparse.Namespace) -> float:
    """Return the factor of the latents: the initial pipeline's, else 1 / standard deviation."""
    if args.init_pipeline is not None:
        return float(read_small_parts(args.init_pipeline)[1].config.scaling_factor)
    return 1.0 / float(latents.std())


def train_unet(trained: Trained, paths: list[str], console: Console) -> nn.Module:
    """Train, or go on from --init-pipeline; returns the averaged weights, in evaluation mode."""
    conditions, config, args = trained.conditions, trained.config, trained.args

    def check(state: dict[str, Any]) -> None:
        if state["identity"] == conditions.identity:
            return
        old = np.load(args.work / f"embeddings-{state['identity'][:12]}.npy")
        if old.shape == conditions.image.shape and np.allclose(old, conditions.image, atol=1e-4):
            return
        raise ValueError(
            f"The UNet in {args.work} was trained on another checkpoint's embeddings; choose another --work folder."
        )

    def create() -> nn.Module:
        if args.init_pipeline is not None:
            return first_unet(trained, paths, console)
        side, width = trained.latents.shape[-1], conditions.image.shape[1]
        unet = new_unet(side, config.latent_channels, config.unet_channels, width)
        spread_conditions(unet, conditions)
        return unet

    def sample(unet: nn.Module, path: Path) -> None:
        trained.save(unet, args.work / "pipeline")
        sample_grid(args.work / "pipeline", conditions, path)

    bf16 = resolve_precision(args.mixed_precision) == "bf16"
    loss = DenoisingLoss(trained.latents, conditions, config, scale=trained.scale, device=args.device, bf16=bf16)
    extra: dict[str, Any] = {"identity": conditions.identity}
    if args.init_pipeline is not None:
        extra["begun_from"] = history_of(args.init_pipeline)
    with reported(console, "unet") as report:
        return loop_of("unet", config, args).train(create, loss, report=report, sample=sample, check=check, extra=extra)


def history_of(folder: Path) -> list[dict[str, int]]:
    """Read the earlier trainings of a pipeline folder: steps and pictures a step."""
    record = read_json(folder / "train_config.json")
    now = {"unet_steps": record["trained_unet_steps"], "unet_batch_size": record["unet_batch_size"]}
    return [*record.get("begun_from", []), now]


def first_unet(trained: Trained, paths: list[str], console: Console) -> nn.Module:
    """Load the UNet of --init-pipeline, adapted to the new space if it differs."""
    args, conditions = trained.args, trained.conditions
    unet = read_small_parts(args.init_pipeline)[0]
    if tuple(unet.config.block_out_channels) != trained.config.unet_channels:
        raise ValueError(
            f"The UNet of {args.init_pipeline} has channels {tuple(unet.config.block_out_channels)}, "
            f"asked for are {trained.config.unet_channels}; set --unet-channels."
        )
    space = Conditioner.load(args.init_pipeline).space
    if space == conditions.identity or (args.work / "unet.pt").exists():  # a resumed run has its own weights
        return unet
    if args.init_checkpoint is None:
        raise ValueError(
            f"{args.init_pipeline} was trained on another checkpoint's embeddings; name that one by --init-checkpoint."
        )
    model = FusionModel.from_pretrained(args.init_checkpoint)
    if space_identity(model) != space:
        raise ValueError(f"{args.init_pipeline} was not trained with {args.init_checkpoint}.")
    rows = np.linspace(0, len(paths) - 1, min(CARRIED, len(paths))).round().astype(int)
    console.print(f"carrying the projection over by {len(rows):,} pictures", highlight=False)
    carry_projection(unet, embed_again(model, [paths[i] for i in rows]), torch.from_numpy(conditions.image[rows]))
    return unet


def embed_again(model: FusionModel, paths: list[str]) -> Tensor:
    """Embed pictures with an earlier model: (N, D)."""
    return model.embed("image", load_recorded("image", model.config.encoders).encode(paths))


def sample_grid(folder: Path, conditions: Conditions, path: Path) -> None:
    """Draw pictures from the first training embeddings of each modality: one row a modality."""
    generator = Generator.from_pretrained(folder)
    rng = np.random.default_rng(0)
    rows = rng.permutation(len(conditions.image))[:10]
    images = []
    for modality, table, of in (
        ("image", conditions.image, [[i] for i in range(len(conditions.image))]),
        ("text", conditions.text, conditions.text_of),
        ("audio", conditions.audio, conditions.audio_of),
    ):
        chosen = [table[of[row][0]] for row in rows if len(of[row])]
        for i, embedding in enumerate(chosen):
            images += generator.generate(embedding, modality=modality, steps=20, seed=i)
    pixels = np.stack([np.asarray(image) for image in images])
    grid(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1, path, columns=10)


# ---- the loop both networks share -------------------------------------------------------------


# ---- output -----------------------------------------------------------------------------------


def card(record: dict[str, Any]) -> str:
    """Write the model card."""
    data = record["data"]
    begun = "".join(
        f" It went on from a decoder with {run['unet_steps']:,} UNet steps of {run['unet_batch_size']} behind it; "
        "what took 0 steps is that one's."
        for run in record.get("begun_from", [])
    )
    return f"""---
library_name: diffusers
pipeline_tag: image-to-image
license: apache-2.0
language: en
tags: [fusemix, unclip, stable-unclip]
---

# A small Stable unCLIP in FuseMix's shared space

Makes pictures of {record["side"]} x {record["side"]} pixels from one embedding of a FuseMix checkpoint: of a sound, a
text or a picture. It is a `StableUnCLIPImg2ImgPipeline` of diffusers, without text encoder; it is not Stable
Diffusion. Look at its measured recall before using it (docs/results/generation.json of the FuseMix repository).

```python
from fusemix import FusionModel
from fusemix.generation.generator import Generator

model = FusionModel.from_pretrained("checkpoints/default")
generator = Generator.from_pretrained("checkpoints/unclip-small", model)
image = generator.generate(embedding, modality="audio", seed=0)[0]  # embedding: (D,), from model.embed
```

With diffusers alone: `StableUnCLIPImg2ImgPipeline.from_pretrained(folder, text_encoder=None, tokenizer=None,
feature_extractor=None)`, with `prompt_embeds` and `negative_prompt_embeds` of zeros (1, 1, 8) and `image_embeds` of
unit length.

**Trained** by `scripts/release/train_unclip.py` on {data["pictures"]:,} pictures with {data["captions"]:,} captions and
{data["sounds"]:,} sounds: autoencoder {record["vae_steps"]:,} steps, UNet {record["trained_unet_steps"]:,} steps of
{record["unet_batch_size"]} pictures; `train_config.json` holds every setting.{begun} Where the data includes Flickr8k
(research licence), its photos were only learned from; no pixels of them are in this folder. The gallery's pictures
keep their licences (`demo/gallery/LICENSES.md`).

**The gap between modalities** is closed by training: every example was conditioned on a random one of its picture's,
captions' and sounds' embeddings, so `conditioner.json` holds no further map, only the identity of the checkpoint.

**Limits.** Blurred faces, hands and writing; objects that were rare in the data come out as something near them.
"""


def grid(x: Tensor, path: Path, columns: int = 16) -> None:
    """Save pictures (B, 3, S, S) in [-1, 1] side by side, twice enlarged."""
    pixels = ((x.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    rows = -(-len(pixels) // columns)
    side = pixels.shape[1]
    sheet = Image.new("RGB", (columns * side, rows * side), "white")
    for i, picture in enumerate(pixels):
        sheet.paste(Image.fromarray(picture), ((i % columns) * side, (i // columns) * side))
    sheet.resize((sheet.width * 2, sheet.height * 2), Image.Resampling.BICUBIC).save(path)


def save_array(path: Path, array: np.ndarray) -> None:
    """Write an array under exactly this name (``np.save`` would append an ending)."""
    with open(path, "wb") as handle:
        np.save(handle, array, allow_pickle=False)


def bar(console: Console) -> Progress:
    """Make a progress bar with counts and times."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


@contextmanager
def reported(console: Console, name: str) -> Iterator[Report]:
    """Show a progress bar as a function of steps done, steps in all and a note."""
    with bar(console) as progress:
        task = progress.add_task(name, total=None, note="")
        yield lambda done, total, note: progress.update(task, completed=done, total=total, note=note)


def tracked(progress: Progress, items: range, description: str) -> Iterable[int]:
    """Iterate over ``items`` with a progress bar."""
    return progress.track(items, task_id=progress.add_task(description, total=len(items), note=""))


if __name__ == "__main__":
    sys.exit(main())
