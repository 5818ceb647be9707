"""Pictures and a trained FusionModel -> a small Stable unCLIP pipeline of our own.

    python scripts/train_unclip.py --pairs demo/gallery/pairs.csv --checkpoint checkpoints/default \
        --out checkpoints/unclip-small

Four stages, each kept in --work, so that the same command goes on after a kill:

1. pictures: every training picture, decoded once to --side pixels;
2. autoencoder: an AutoencoderTiny whose encoder is the principal components of 8 x 8 patches, in
   closed form, and whose decoder is trained, with a perceptual loss through the frozen image encoder;
3. conditions: shared-space embeddings of the pictures and of their captions and sounds;
4. UNet: v-prediction on the autoencoder's latents, conditioned on a random one of a picture's
   embeddings (which closes the gap between the modalities by training), with the embedding
   noised as in unCLIP and dropped now and then for classifier-free guidance.

The result is a folder that diffusers' StableUnCLIPImg2ImgPipeline loads.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import math
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a plain clone

import numpy as np
import torch
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn import functional as F

from fusemix.conditioner import Conditioner, space_identity
from fusemix.files import read_json, sha256_of, write_atomic, write_json
from fusemix.pairs import PairTable

MODALITIES = ("image", "text", "audio")
PERCEPTUAL_SIDE = 112  # pixels at which the frozen encoder looks at a reconstruction
EMA_EVERY = 2  # steps; every one would cost a tenth of a small step
PERCEPTUAL_BLOCKS = (2, 4, 10, 15)  # of EfficientNet-lite0's 16: strides 4, 8, 16, 32


@dataclass(frozen=True, kw_only=True)
class UnclipConfig:
    """Everything that changes a run; saved as ``train_config.json`` in the pipeline folder."""

    side: int = 64  # pixels
    latent_channels: int = 12
    vae_width: int = 48  # channels of the decoder
    vae_blocks: tuple[int, ...] = (2, 2, 1, 0)  # residual blocks of the decoder at 1/8, 1/4, 1/2 and full size
    vae_steps: int = 3000
    vae_batch_size: int = 8
    vae_learning_rate: float = 2e-3
    vae_noise_std: float = 0.05  # on the latents, whose first component has standard deviation 1
    perceptual_weight: float = 0.3
    perceptual_fraction: float = 0.5  # of the steps, the last ones
    unet_channels: tuple[int, ...] = (96, 192)
    unet_steps: int = 8000
    unet_batch_size: int = 32
    unet_learning_rate: float = 1e-3
    warmup_steps: int = 200
    ema_decay: float = 0.999  # of the UNet; the autoencoder's is 0.995
    embedding_dropout: float = 0.1
    clean_fraction: float = 0.5  # of examples whose embedding carries no noise
    max_noise_level: int = 600  # of 1000
    image_fraction: float = 0.5  # of examples conditioned on the picture's own embedding
    audio_fraction: float = 0.2  # on a sound's, where the picture has one; the rest on a caption's
    seed: int = 0


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
    run.add_argument("--until", choices=("vae", "unet"), default="unet", help="stop after this stage")
    run.add_argument("--save-every", type=int, default=250, help="steps between saved states")
    run.add_argument("--sample-every", type=int, default=1000, help="steps between sample grids in --work")
    run.add_argument("--device", default="cpu", help="torch device, e.g. cuda")
    for part, prefix in (("autoencoder", ("side", "latent", "vae", "perceptual")), ("unet", ())):
        group = parser.add_argument_group(part)
        for field in dataclasses.fields(UnclipConfig):
            if (field.name.startswith(("side", "latent", "vae", "perceptual"))) != bool(prefix):
                continue
            value = getattr(defaults, field.name)
            many = {"nargs": "+"} if isinstance(value, tuple) else {}
            kind = type(value[0]) if isinstance(value, tuple) else type(value)
            flag = "--" + field.name.replace("_", "-")
            group.add_argument(flag, type=kind, default=value, help=f"default {value}", **many)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Train or go on; 0 when done, 2 on bad input, 130 when stopped by a signal (state saved)."""
    args = parse(argv)
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    console = Console(stderr=True)
    names = [field.name for field in dataclasses.fields(UnclipConfig)]
    values = {name: getattr(args, name) for name in names}
    config = UnclipConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
    try:
        return run(args, config, console)
    except (ValueError, OSError, ImportError, KeyError) as error:
        console.print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        return 2
    except Stopped as stop:
        console.print(f"{stop}; run the same command again to go on.", highlight=False)
        return 130


def run(args: argparse.Namespace, config: UnclipConfig, console: Console) -> int:
    """The four stages."""
    args.work.mkdir(parents=True, exist_ok=True)
    tables = [PairTable.read(path) for path in args.pairs]
    pictures, names = load_pictures(tables, args.split, config.side, args.work, console)
    console.print(f"{len(pictures):,} pictures of {config.side} x {config.side} pixels")
    vae = train_autoencoder(pictures, config, args, console)
    if args.until == "vae":
        return 0
    latents = encode_pictures(vae, pictures, args, console)
    conditions = load_conditions(tables, names, args, console)
    unet = train_unet(latents, conditions, vae, config, args, console)
    save(unet, vae, latents, conditions, config, args, n_pictures=len(pictures))
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
    """A picture padded to a square on white and scaled to ``side`` pixels."""
    from fusemix.media import load_image

    image = load_image(path)
    if max(image.size) > 2 * side:
        image.thumbnail((4 * side, 4 * side), Image.Resampling.BOX)
    return ImageOps.pad(image, (side, side), Image.Resampling.LANCZOS, color=(255, 255, 255))


# ---- autoencoder ------------------------------------------------------------------------------


def train_autoencoder(
    pictures: np.ndarray, config: UnclipConfig, args: argparse.Namespace, console: Console
) -> nn.Module:
    """Closed-form encoder, trained decoder; returns the averaged weights, in evaluation mode.

    Errors are measured in orthonormal opponent colours. Training an AutoencoderKL end to end for
    4,700 steps left red against green 36 % explained (L1 learns grey first); patch components
    hold 70 % of it before the first step.
    """
    from fusemix.generate import new_autoencoder, patch_components

    def create() -> nn.Module:
        vae = new_autoencoder(config.latent_channels, config.vae_width, config.vae_blocks)
        patch_components(vae, np.asarray(pictures[:: max(1, len(pictures) // 1000)]))
        return vae

    torch.manual_seed(config.seed)
    perceptual = Perceptual(args.device)
    opponent = torch.tensor([[1.0, 1, 1], [1, -1, 0], [1, 1, -2]], device=args.device)
    opponent = opponent / opponent.norm(dim=1, keepdim=True)

    def loss(vae: nn.Module, step: int, rng: np.random.Generator) -> Tensor:
        x = picture_batch(pictures, rng, config.vae_batch_size).to(args.device)
        z = vae.encode(x).latents
        y = vae.decode(z + config.vae_noise_std * torch.randn_like(z)).sample
        error = torch.einsum("ij,bjhw->bihw", opponent, y - x)
        total = error.pow(2).sum(1).mean() + 0.5 * error.abs().sum(1).mean()
        if step >= (1 - config.perceptual_fraction) * config.vae_steps:
            half = len(x) // 2
            total = total + config.perceptual_weight * perceptual(y[:half], x[:half])
        return total

    def sample(vae: nn.Module, path: Path) -> None:
        x = picture_batch(pictures, np.random.default_rng(1), 32).to(args.device)
        with torch.no_grad():
            grid(torch.cat([x, vae.decode(vae.encode(x).latents).sample]), path)

    loop = Loop("vae", config.vae_steps, config.vae_learning_rate, 0.995, config, args, console)
    return loop.train(create, loss, sample)


def picture_batch(pictures: np.ndarray, rng: np.random.Generator, size: int) -> Tensor:
    """Random pictures, half of them mirrored, as (B, 3, S, S) in [-1, 1]."""
    batch = torch.from_numpy(np.ascontiguousarray(pictures[np.sort(rng.integers(0, len(pictures), size))]))
    x = batch.permute(0, 3, 1, 2).float() / 127.5 - 1
    mirrored = torch.from_numpy(rng.random(size) < 0.5)
    x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
    return x.contiguous(memory_format=torch.channels_last)


class Perceptual:
    """Distance between pictures in the frozen image encoder's features, each layer scaled to its own size."""

    def __init__(self, device: str) -> None:
        from fusemix.encoders import load_encoder

        self.network = load_encoder("efficientnet-lite0", device=device)._network.to(  # type: ignore[attr-defined]
            memory_format=torch.channels_last
        )

    def features(self, x: Tensor) -> list[Tensor]:  # (B, 3, S, S) in [-1, 1]
        """Feature maps of four strides, and the pooled latent."""
        x = F.interpolate(x, size=(PERCEPTUAL_SIDE, PERCEPTUAL_SIDE), mode="bilinear", align_corners=False)
        net, out = self.network, []
        x = net._swish(net._bn0(net._conv_stem((x * 127.5 + 0.5) / 128)))
        for i, block in enumerate(net._blocks):
            x = block(x)
            if i in PERCEPTUAL_BLOCKS:
                out.append(x)
        return [*out, net._swish(net._bn1(net._conv_head(x))).mean((2, 3))]

    def __call__(self, y: Tensor, x: Tensor) -> Tensor:
        """Scalar: mean over layers of ``|f(y) - f(x)|^2 / |f(x)|^2``."""
        with torch.no_grad():
            wanted = self.features(x)
        parts = [(a - b).pow(2).mean() / b.pow(2).mean() for a, b in zip(self.features(y), wanted, strict=True)]
        return torch.stack(parts).mean()


@torch.no_grad()
def encode_pictures(vae: nn.Module, pictures: np.ndarray, args: argparse.Namespace, console: Console) -> np.ndarray:
    """Latent means of every picture and its mirror image: (2, N, C, s, s), float32, raw scale."""
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


@dataclass(frozen=True)
class Conditions:
    """Shared-space embeddings, unit length, and which belong to which picture.

    Attributes:
        image: (N, D), one per picture.
        text: (M, D) of the captions; ``text_of[i]`` are the rows of picture i.
        audio: (L, D) of the sounds; ``audio_of[i]`` are the rows of picture i.
    """

    image: np.ndarray
    text: np.ndarray
    audio: np.ndarray
    text_of: list[np.ndarray]
    audio_of: list[np.ndarray]
    identity: str  # of the shared space

    def draw(self, rows: np.ndarray, rng: np.random.Generator, config: UnclipConfig) -> Tensor:
        """One embedding for each picture of ``rows``, of a random modality: (B, D)."""
        out = self.image[rows].copy()
        dice = rng.random(len(rows))
        for i, row in enumerate(rows):
            captions, sounds = self.text_of[row], self.audio_of[row]
            if dice[i] < config.image_fraction:
                continue
            if len(sounds) and (dice[i] < config.image_fraction + config.audio_fraction or not len(captions)):
                out[i] = self.audio[rng.choice(sounds)]
            elif len(captions):
                out[i] = self.text[rng.choice(captions)]
        return torch.from_numpy(out)


def load_conditions(
    tables: list[PairTable], names: list[list[str]], args: argparse.Namespace, console: Console
) -> Conditions:
    """Encode and embed pictures, captions and sounds; latents come from --latents where they exist."""
    from fusemix.adapters import FusionModel

    model = FusionModel.from_pretrained(args.checkpoint)
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
    table: PairTable, column: str, model: nn.Module, args: argparse.Namespace, console: Console
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (n, D) of the training items of a column, and their groups (n,)."""
    from fusemix.encoders import load_encoder
    from fusemix.latents import LatentStore, extract

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
        encoder = load_encoder(info["name"], device=args.device)
        folder = args.work / "latents" / f"{table.fingerprint[:12]}-{column}"
        with bar(console) as progress:
            task = progress.add_task(f"encode {column}", total=None, note="")
            store = extract(
                table, column, encoder, folder, split=args.split, skip_errors=column != "image",
                report=lambda done, total: progress.update(task, completed=done, total=total),
            )  # fmt: skip
    assert isinstance(store, LatentStore)
    rows = store.rows[store.rows["split"] == args.split].drop_duplicates("item")
    latents = store.read(rows["item"].to_numpy())
    return model.embed(column, latents).numpy(), rows["group"].to_numpy()


def find_store(root: Path | None, table: PairTable, column: str, encoder: dict[str, object]) -> object | None:
    """A finished latent store of this table, column and encoder somewhere below ``root``."""
    from fusemix.latents import MANIFEST_NAME, LatentStore

    for path in sorted(root.rglob(MANIFEST_NAME)) if root else []:
        manifest = read_json(path)
        same = manifest.get("table") == table.fingerprint and manifest.get("column") == column
        same = same and all(manifest["encoder"].get(key) == encoder.get(key) for key in ("revision", "fingerprint"))
        if same and manifest.get("complete"):
            return LatentStore.open(path.parent)
    return None


# ---- UNet -------------------------------------------------------------------------------------


def train_unet(
    latents: np.ndarray,
    conditions: Conditions,
    vae: nn.Module,
    config: UnclipConfig,
    args: argparse.Namespace,
    console: Console,
) -> nn.Module:
    """v-prediction, every noise level alike; returns the averaged weights, in evaluation mode.

    Min-SNR weights were left out: they all but silence the noisiest steps, and those decide what
    the picture is of when guidance starts from pure noise.
    """
    from fusemix.generate import new_noising_scheduler, new_scheduler, new_unet, noised_class_labels

    mean, std = embedding_statistics(conditions)
    scale = 1.0 / float(latents.std())
    alphas = new_scheduler().alphas_cumprod.clone()
    noising = new_noising_scheduler()

    def adapt(state: dict[str, Any]) -> None:
        if state["identity"] == conditions.identity:
            return
        old = np.load(args.work / f"embeddings-{state['identity'][:12]}.npy")
        if old.shape == conditions.image.shape and np.allclose(old, conditions.image, atol=1e-4):
            return
        raise ValueError(
            f"The UNet in {args.work} was trained on another checkpoint's embeddings; choose another --work folder."
        )

    def create() -> nn.Module:
        unet = new_unet(latents.shape[-1], config.latent_channels, config.unet_channels, conditions.image.shape[1])
        spread_conditions(unet, conditions)
        return unet

    def loss(unet: nn.Module, step: int, rng: np.random.Generator) -> Tensor:
        rows = rng.integers(0, latents.shape[1], config.unet_batch_size)
        x = torch.from_numpy(latents[rng.integers(0, 2, len(rows)), rows]) * scale
        labels = noised_class_labels(
            conditions.draw(rows, rng, config), draw_noise_levels(rng, len(rows), config), mean, std, noising
        )
        labels[torch.from_numpy(rng.random(len(rows)) < config.embedding_dropout)] = 0.0
        t = torch.from_numpy(rng.integers(0, len(alphas), len(rows)))
        a = alphas[t][:, None, None, None].float()
        noise = torch.randn_like(x)
        noisy, wanted = a.sqrt() * x + (1 - a).sqrt() * noise, a.sqrt() * noise - (1 - a).sqrt() * x
        prompt = torch.zeros(len(rows), 1, unet.config.cross_attention_dim)
        noisy, t, prompt, labels, wanted = (v.to(args.device) for v in (noisy, t, prompt, labels, wanted))
        v = unet(noisy.contiguous(memory_format=torch.channels_last), t, prompt, class_labels=labels).sample
        return F.mse_loss(v, wanted)

    def sample(unet: nn.Module, path: Path) -> None:
        save(unet, vae, latents, conditions, config, args, n_pictures=latents.shape[1])
        sample_grid(args.out, conditions, path)

    loop = Loop("unet", config.unet_steps, config.unet_learning_rate, config.ema_decay, config, args, console)
    return loop.train(create, loss, sample, adapt=adapt, extra={"identity": conditions.identity})


def embedding_statistics(conditions: Conditions) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the pictures' embeddings, (1, D) each: the normaliser's numbers."""
    image = torch.from_numpy(conditions.image)
    return image.mean(0, keepdim=True), image.std(0, keepdim=True)


def draw_noise_levels(rng: np.random.Generator, size: int, config: UnclipConfig) -> Tensor:
    """Noise levels (B,), int64: 0 for a share of the examples, else squeezed towards small ones."""
    levels = (rng.random(size) ** 2 * (config.max_noise_level + 1)).astype(np.int64)
    return torch.from_numpy(np.where(rng.random(size) < config.clean_fraction, 0, levels))


def spread_conditions(unet: nn.Module, conditions: Conditions) -> None:
    """Start the class projection on whitened embeddings, so that the condition is heard from the first step.

    Unit-length embeddings have tiny values beside the timestep half of the class labels; the
    first layer's columns are multiplied by their regularised inverse square-root covariance.
    """
    x = torch.from_numpy(conditions.image).double()
    covariance = torch.cov(x.T)
    values, vectors = torch.linalg.eigh(covariance)
    whiten = vectors @ torch.diag((values + 0.1 * values.mean()).rsqrt()) @ vectors.T
    layer = unet.class_embedding.linear_1
    width = x.shape[1]
    with torch.no_grad():
        columns = layer.weight[:, :width] @ whiten.float()
        layer.bias -= columns @ x.mean(0).float()
        layer.weight[:, :width] = columns


def sample_grid(folder: Path, conditions: Conditions, path: Path) -> None:
    """Pictures made from the first training embeddings of each modality: one row a modality."""
    from fusemix.generate import Generator

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


class Stopped(Exception):
    """Raised once the state is saved after SIGTERM or SIGINT."""


class Loop:
    """Steps with a state on disk: the network, its average, the optimizer; each step seeded by its number."""

    def __init__(
        self,
        name: str,
        steps: int,
        learning_rate: float,
        ema_decay: float,
        config: UnclipConfig,
        args: argparse.Namespace,
        console: Console,
    ) -> None:
        self.name, self.steps, self.learning_rate, self.ema_decay = name, steps, learning_rate, ema_decay
        self.config, self.args, self.console = config, args, console
        self.path = args.work / f"{name}.pt"

    def train(
        self,
        create: Callable[[], nn.Module],
        loss_of: Callable[[nn.Module, int, np.random.Generator], Tensor],
        sample: Callable[[nn.Module, Path], None],
        *,
        adapt: Callable[[dict[str, Any]], None] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> nn.Module:
        """Train from the saved step to the last; returns the averaged network.

        Args:
            create: Makes the untrained network.
            loss_of: (network, step, random numbers of that step) -> scalar loss.
            sample: Called now and then with the averaged network and the path of a picture to write.
            adapt: May change the saved state before it is loaded.
            extra: Kept in the state.
        """
        torch.manual_seed(self.config.seed)
        network = create().to(self.args.device, memory_format=torch.channels_last).train()
        average = deepcopy(network).eval().requires_grad_(False)
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
        done = self._load(network, average, optimizer, adapt)
        log: list[float] = []
        with stop_signal() as stopped, bar(self.console) as progress:
            task = progress.add_task(self.name, total=self.steps, completed=done, note="")
            for step in range(done, self.steps):
                log.append(self._step(step, network, average, optimizer, loss_of))
                last = step + 1 == self.steps
                note = f"loss {np.mean(log[-100:]):.4f}"
                progress.update(task, completed=step + 1, note=note)
                if (step + 1) % self.args.save_every == 0 or last or stopped():
                    self._save(step + 1, network, average, optimizer, extra or {})
                    with open(self.args.work / f"{self.name}.log", "a") as handle:
                        handle.write(f"{time.time():.0f} {step + 1} {np.mean(log):.5f}\n")
                    log = log[-100:]
                if stopped():
                    raise Stopped(f"{self.name} saved at step {step + 1:,} of {self.steps:,}")
                if (step + 1) % self.args.sample_every == 0 or last:
                    sample(average, self.args.work / f"{self.name}-{step + 1:06d}.png")
        return average

    def _step(
        self,
        step: int,
        network: nn.Module,
        average: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_of: Callable[[nn.Module, int, np.random.Generator], Tensor],
    ) -> float:
        torch.manual_seed(self.config.seed * 1_000_003 + step)
        loss = loss_of(network, step, np.random.default_rng((self.config.seed, step)))
        if not math.isfinite(loss.item()):
            raise ValueError(f"The {self.name} loss is not finite at step {step}; lower its learning rate.")
        for group in optimizer.param_groups:
            group["lr"] = self.rate(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        decay = min(self.ema_decay, (1 + step) / (10 + step))
        if step % EMA_EVERY == EMA_EVERY - 1:
            old, new = list(average.parameters()), list(network.parameters())
            torch._foreach_lerp_(old, new, 1 - decay**EMA_EVERY)
        return loss.item()

    def rate(self, step: int) -> float:
        """Warm-up, then a cosine to a tenth."""
        warm = min(1.0, (step + 1) / min(self.config.warmup_steps, max(1, self.steps // 5)))
        return self.learning_rate * warm * (0.1 + 0.9 * (1 + math.cos(math.pi * step / self.steps)) / 2)

    def _load(
        self,
        network: nn.Module,
        average: nn.Module,
        optimizer: torch.optim.Optimizer,
        adapt: Callable[[dict[str, Any]], None] | None,
    ) -> int:
        if not self.path.exists():
            return 0
        state = torch.load(self.path, map_location=self.args.device, weights_only=True)
        if adapt is not None:
            adapt(state)
        try:
            network.load_state_dict(state["network"])
            average.load_state_dict(state["average"])
        except RuntimeError as error:
            raise ValueError(
                f"{self.path} belongs to a network of other sizes; choose another --work folder or the same flags."
            ) from error
        optimizer.load_state_dict(state["optimizer"])
        return int(state["step"])

    def _save(
        self,
        step: int,
        network: nn.Module,
        average: nn.Module,
        optimizer: torch.optim.Optimizer,
        extra: dict[str, Any],
    ) -> None:
        state = extra | {
            "step": step,
            "network": network.state_dict(),
            "average": average.state_dict(),
            "optimizer": optimizer.state_dict(),
        }
        write_atomic(self.path, lambda temporary: torch.save(state, temporary))


@contextmanager
def stop_signal() -> Iterator[Callable[[], bool]]:
    """While open, SIGTERM and SIGINT set a flag instead of ending the process."""
    caught: list[int] = []

    def handler(number: int, frame: FrameType | None) -> None:
        caught.append(number)

    previous = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(caught)
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


# ---- output -----------------------------------------------------------------------------------


def save(
    unet: nn.Module,
    vae: nn.Module,
    latents: np.ndarray,
    conditions: Conditions,
    config: UnclipConfig,
    args: argparse.Namespace,
    *,
    n_pictures: int,
) -> None:
    """Write the pipeline folder with its conditioner, training configuration and card."""
    from fusemix.generate import save_small_pipeline

    mean, std = embedding_statistics(conditions)
    width = mean.shape[1]
    notes = {"text": "trained in: a random modality's embedding at every step", "audio": "trained in, likewise"}
    conditioner = Conditioner({}, embed_dim=width, image_embeds_dim=width, space=conditions.identity, notes=notes)
    save_small_pipeline(
        args.out, unet, vae, mean, std, scaling_factor=1.0 / float(latents.std()), conditioner=conditioner
    )
    sources = {"pictures": n_pictures, "captions": len(conditions.text), "sounds": len(conditions.audio)}
    state = torch.load(args.work / "unet.pt", map_location="cpu", weights_only=True, mmap=True)
    record = {**dataclasses.asdict(config), "trained_unet_steps": int(state["step"]), "data": sources}
    write_json(args.out / "train_config.json", record)
    (args.out / "README.md").write_text(card(record), encoding="utf-8")


def card(record: dict[str, Any]) -> str:
    """The model card."""
    data = record["data"]
    return f"""---
library_name: diffusers
pipeline_tag: image-to-image
tags: [fusemix, unclip, stable-unclip]
---

# A small Stable unCLIP in FuseMix's shared space

Makes pictures of {record["side"]} x {record["side"]} pixels from one embedding of a FuseMix checkpoint: of a sound, a
text or a picture. It is a `StableUnCLIPImg2ImgPipeline` of diffusers, without text encoder; it is not Stable
Diffusion. Look at its measured recall before using it (docs/results/generation.json of the FuseMix repository).

```python
from fusemix import FusionModel
from fusemix.generate import Generator

model = FusionModel.from_pretrained("checkpoints/default")
generator = Generator.from_pretrained("checkpoints/unclip-small", model)
image = generator.generate(embedding, modality="audio", seed=0)[0]  # embedding: (D,), from model.embed
```

With diffusers alone: `StableUnCLIPImg2ImgPipeline.from_pretrained(folder, text_encoder=None, tokenizer=None,
feature_extractor=None)`, with `prompt_embeds` and `negative_prompt_embeds` of zeros (1, 1, 8) and `image_embeds` of
unit length.

**Trained** by `scripts/train_unclip.py` on {data["pictures"]:,} pictures with {data["captions"]:,} captions and
{data["sounds"]:,} sounds: autoencoder {record["vae_steps"]:,} steps, UNet {record["trained_unet_steps"]:,} steps of
{record["unet_batch_size"]} pictures; `train_config.json` holds every setting. Where the data includes Flickr8k
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
    """A progress bar with counts and times."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def tracked(progress: Progress, items: range, description: str) -> Iterable[int]:
    """Go through ``items`` and show how far."""
    return progress.track(items, task_id=progress.add_task(description, total=len(items), note=""))


if __name__ == "__main__":
    sys.exit(main())
