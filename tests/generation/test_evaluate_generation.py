"""The judges of generated pictures: real pictures find themselves, wrong ones do not, and the outsider is another."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fusemix.data.pairs import PairTable
from scripts.release.evaluate_generation import HeldOut, Judge, cells, copying, shrunk

GALLERY = Path(__file__).resolve().parents[2] / "demo/gallery/pairs.csv"


class Thumbnails:
    """An encoder unlike the packaged one: the colours of a 4 x 4 thumbnail."""

    def encode(self, images):
        rows = [np.asarray(image.convert("RGB").resize((4, 4)), dtype=np.float32).ravel() for image in images]
        return np.stack(rows)


@pytest.fixture(scope="module")
def held_out(encoders):
    paths = [item.value for item in PairTable.read(GALLERY).items("image", "val")[:12]]
    images = [Image.open(path).convert("RGB") for path in paths]
    return HeldOut("val", images, torch.from_numpy(encoders["image"].encode(images)), {}, paths)


def test_each_judge_finds_real_pictures_and_not_those_dealt_out_wrongly(held_out, tiny_model, encoders):
    judge = Judge(held_out, tiny_model, encoders["image"], Thumbnails())
    rows = np.arange(12)
    seen = judge.embed([shrunk(image, 64) for image in held_out.images])
    assert {space: value.shape[1] for space, value in seen.items()} == {"latent": 1280, "shared": 16, "outside": 48}
    right, wrong = judge.find(seen, rows), judge.find(seen, np.roll(rows, 6))
    assert right["latent"]["recall_at_1"] > 0.8 and right["outside"]["recall_at_1"] > 0.8
    assert all(wrong[space]["recall_at_1"] < 0.2 for space in seen)
    assert cells(right)[2].startswith("100.0 / ") and cells(right)[-1] == "12"


def test_without_an_outsider_two_judges_see(held_out, tiny_model, encoders):
    assert set(Judge(held_out, tiny_model, encoders["image"]).embed(held_out.images[:2])) == {"latent", "shared"}


def test_a_copy_is_as_near_as_can_be(held_out, tiny_model, encoders):
    judge = Judge(held_out, tiny_model, encoders["image"])

    class Known:
        latents = held_out.latents[:6]

    centred = judge.galleries["latent"]
    assert copying(centred[:6], Known, judge.mean)["p5"] == pytest.approx(1, abs=1e-5)
    assert copying(centred[6:], Known, judge.mean)["p95"] < 0.9
