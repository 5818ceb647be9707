"""Numbers that leave their range: refused before they are written, or named when they are read."""

import numpy as np
import pandas as pd
import pytest
import torch

from fusemix.data.extract import extract
from fusemix.data.import_latents import import_latents
from fusemix.data.latent_store import LatentStore
from fusemix.data.latent_writer import write_latents
from fusemix.data.pair_set import PairSet
from fusemix.data.pairs import PairTable
from fusemix.encoders.base import Encoder
from fusemix.evaluation.evaluate import StoredPairs, evaluate, stored_items
from fusemix.model.adapters import FusionModel
from fusemix.model.config import ModelConfig, TrainConfig
from fusemix.number_range import check_range, check_varied
from fusemix.search.hubness import corrected
from fusemix.search.index import EmbeddingIndex

pytestmark = pytest.mark.field

RNG = np.random.default_rng(0)
FULL = 65_504.0  # the largest float16


class Scaled(Encoder):
    """Latents of a known scale; the item numbered ``large`` has one value a thousand times as large."""

    name, modality, dim, revision, fingerprint = "scaled", "text", 4, "1", "by number"

    def __init__(self, scale, large=None):
        self.scale, self.large = scale, large

    def prepare(self, item):
        return int(item.split()[-1])

    def encode_prepared(self, prepared):
        latents = np.array([[n + 1, -n, n % 3, 2] for n in prepared], dtype=np.float32) * self.scale / 64
        latents[[n == self.large for n in prepared], 1] *= 1000
        return latents


@pytest.fixture
def table(tmp_path):
    pd.DataFrame({"text": [f"number {i}" for i in range(60)]}).to_csv(tmp_path / "t.csv", index=False)
    return PairTable.read(tmp_path / "t.csv")


def test_a_scale_beyond_float16_begins_no_store(table, tmp_path):
    with pytest.raises(ValueError, match=r"line \d+ of .*t\.csv.*turns to infinity .*store it as float32"):
        extract(table, "text", Scaled(1e6), tmp_path / "s", dtype="float16")
    assert not (tmp_path / "s").exists()
    assert np.isfinite(extract(table, "text", Scaled(1e6), tmp_path / "s").all()).all()


def test_one_row_beyond_float16_is_named_and_its_shard_not_written(table, tmp_path, monkeypatch):
    monkeypatch.setattr("fusemix.data.extract.SHARD_ITEMS", 8)
    monkeypatch.setattr("fusemix.data.extract.PROBE_ITEMS", 1)  # the probe does not meet the row
    with pytest.raises(ValueError, match=r"line 43 of .*t\.csv, column 'text', holds -6\.40625e\+06, which float16"):
        extract(table, "text", Scaled(1e4, large=41), tmp_path / "s", dtype="float16", skip_errors=True)
    assert len(list((tmp_path / "s").glob("*.npy"))) == 5
    with pytest.raises(ValueError, match="unfinished"):
        LatentStore.open(tmp_path / "s")


def test_latents_too_small_for_float16_are_refused(table, tmp_path):
    with pytest.raises(ValueError, match="too small for float16"):
        extract(table, "text", Scaled(1e-9), tmp_path / "s", dtype="float16")


@pytest.mark.parametrize("as_pieces", [False, True])
@pytest.mark.parametrize(
    ("value", "dtype", "said"),
    [
        (np.nan, "float32", "holds nan"), (np.inf, "float16", "holds inf"), (-1e30, "float16", r"holds -1e\+30"),
        (65_520, "float16", "holds 65520, which float16 turns to infinity"),
    ],
)  # fmt: skip
def test_given_latents_that_are_no_numbers_leave_nothing_behind(tmp_path, value, dtype, said, as_pieces):
    latents = RNG.normal(size=(30, 4)).astype(np.float32)
    latents[17, 2] = value
    given = iter(np.split(latents, 3)) if as_pieces else latents
    with pytest.raises(ValueError, match=rf"Latent 17 \(counted from 0\) {said}"):
        write_latents(tmp_path / "s", given, modality="video", name="given", dtype=dtype)
    assert not (tmp_path / "s").exists()
    write_latents(tmp_path / "s", np.nan_to_num(latents, posinf=0) * 0 + 1, modality="video", name="given")


def test_a_refused_piece_takes_nothing_away_that_lay_there(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="Latent 2 "):
        write_latents(tmp_path / "s", iter([np.ones((2, 3)), np.full((1, 3), np.inf)]), modality="video", name="given")
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("value", "kept"), [(FULL, True), (65_519.9, True), (65_520, False), (6e-5, True), (3e-9, False)]
)
def test_what_float16_keeps_is_kept(value, kept):
    given = np.full((3, 2), value, np.float32)
    with np.errstate(over="ignore"):
        stored = given.astype(np.float16)
    if kept:
        check_range(given, stored, "float16", str)
    else:
        with pytest.raises(ValueError, match="float16"):
            check_range(given, stored, "float16", str)


def test_zeros_and_a_wide_range_are_no_fault():
    given = np.array([[0, 0], [1e-9, 1e3]], np.float32)
    check_range(given, given.astype(np.float16), "float16", str)
    check_range(np.zeros((2, 2), np.float32), np.zeros((2, 2), np.float16), "float16", str)


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e20])
def test_latents_equal_but_for_rounding_are_equal_and_one_that_differs_is_enough(size):
    latents = np.full((500, 4), size, np.float32)
    latents[1::2] *= np.float32(1 + 1e-7)
    with pytest.raises(ValueError, match=r"They are all equal \(500 were compared\)"):
        check_varied(latents.__getitem__, np.arange(500), "They")
    latents[499] *= np.float32(1.001)  # in no sample of the first few
    check_varied(latents.__getitem__, np.arange(500), "They")


def test_each_row_is_kept_or_named_and_none_becomes_zero_beside_larger_ones(tmp_path):
    latents = RNG.normal(size=(30, 4)).astype(np.float32)
    latents[17] *= 1e-9
    with pytest.raises(ValueError, match=r"Latent 17 .* which is too small for float16: 100% would be lost"):
        write_latents(tmp_path / "s", latents, modality="video", name="given", dtype="float16")
    with pytest.raises(ValueError, match=r"The array of latents: latent 17 .* too small for float16"):
        import_latents(latents, tmp_path / "s", modality="video", name="given", dtype="float16")
    with pytest.raises(ValueError, match="too small for float32"):
        import_latents(latents.astype(np.float64) * 1e-300, tmp_path / "s", modality="video", name="given")
    assert not (tmp_path / "s").exists()
    latents[17] = 0  # what is zero loses nothing
    assert len(write_latents(tmp_path / "s", latents, modality="video", name="given", dtype="float16")) == 30


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rows": np.zeros(9, int)}, "rows must name each pair once"),
        ({"rows": np.arange(9) / 2}, "rows must be whole numbers, got float64"),
        ({"groups": [f"g{i}" for i in range(9)]}, "groups must be whole numbers, got <U2"),
        ({"groups": np.full(9, np.nan)}, "groups must be whole numbers"),
        ({"groups": 2.0**60 + np.arange(9)}, "groups must be whole numbers"),  # beyond 2**53 floats merge
    ],
)
def test_rows_and_groups_are_whole_numbers_or_refused(tmp_path, given, said):
    with pytest.raises(ValueError, match=said):
        write_latents(tmp_path / "s", np.eye(9, 3, dtype=np.float32), modality="video", name="given", **given)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("dtype", [bool, complex, object, str])
def test_latents_that_are_no_numbers_are_refused_and_not_converted(tmp_path, dtype):
    with pytest.raises(ValueError, match="Latents are numbers, preferably floating point"):
        write_latents(tmp_path / "s", np.eye(9, 3).astype(dtype), modality="video", name="given")


@pytest.mark.parametrize("what", ["splits", "groups"])
def test_stores_that_say_other_things_of_one_pair_are_not_joined(tmp_path, what):
    values = {"splits": (["Train"] * 9, [" train"] * 8 + ["test"]), "groups": (np.arange(9), np.arange(9) // 2)}[what]
    stores = {
        m: write_latents(tmp_path / m, RNG.normal(size=(9, 3)), modality=m, name=m, **{what: given})
        for m, given in zip(("image", "text"), values, strict=True)
    }
    with pytest.raises(ValueError, match=rf"were given other {what} for \d of the same rows: row \d has"):
        PairSet.join(stores)


def test_a_query_of_any_length_finds_the_same(tmp_path):
    index, query = EmbeddingIndex(3, model_identity="m"), np.array([[3.0, 4.0, 0.0]])
    index.add("text", np.eye(3, dtype=np.float32), [{"id": str(i)} for i in range(3)])
    for size in (1e-44, 1e-30, 1.0, 1e30, 7e37):
        (hits,) = index.search("text", query * size)
        assert [hit.item["id"] for hit in hits] == ["1", "0", "2"]
        assert [hit.similarity for hit in hits] == pytest.approx([0.8, 0.6, 0.0], abs=0.2 if size == 1e-44 else 1e-6)


def test_a_bank_or_a_weight_that_is_no_number_corrects_nothing():
    eye = torch.eye(3)
    with pytest.raises(ValueError, match="bank of queries holds NaN"):
        corrected(eye, eye, eye * np.nan)
    for weight in (np.nan, np.inf, -1.0):
        with pytest.raises(ValueError, match="weight must be >= 0 and finite"):
            corrected(eye, eye, eye, weight=weight)


# checkpoints


def model(scale=1.0):
    torch.manual_seed(0)
    made = FusionModel(ModelConfig(latent_dims={"image": 6, "text": 5}, embed_dim=4)).eval()
    with torch.no_grad():
        made.adapters["image"][-1].weight.mul_(scale)
    return made


def test_a_checkpoint_beyond_float16_is_refused_and_the_one_before_stays(tmp_path):
    before = model()
    before.save_pretrained(tmp_path / "m")
    with pytest.raises(
        ValueError, match=r"The weight adapters\.image\.\d\.weight .*float16 turns to infinity.*store it as float32"
    ):
        model(1e6).save_pretrained(tmp_path / "m", dtype=torch.float16)
    assert FusionModel.from_pretrained(tmp_path / "m").identity == before.identity
    with pytest.raises(ValueError, match="float16"):
        model(1e6).save_pretrained(tmp_path / "new", dtype=torch.float16)
    assert not (tmp_path / "new").exists()
    model(1e6).save_pretrained(tmp_path / "new", dtype=torch.bfloat16)  # of float32's range
    model().save_pretrained(tmp_path / "half", dtype=torch.float16)


def test_weights_of_infinity_are_refused_when_saved_and_when_loaded(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="holds nan; nothing with NaN"):
        model(np.nan).save_pretrained(tmp_path / "m")
    monkeypatch.setattr("fusemix.model.adapters.check_finite", lambda *_: None)  # a checkpoint of an older version
    model(1e6).save_pretrained(tmp_path / "m", dtype=torch.float16)
    with pytest.raises(ValueError, match=r"hold NaN or infinite values, first in adapters\.image\.\d\.weight"):
        FusionModel.from_pretrained(tmp_path / "m")


def test_weights_are_not_stored_as_whole_numbers(tmp_path):
    with pytest.raises(ValueError, match=r"stored as floating point, not as torch\.int8"):
        model().save_pretrained(tmp_path / "m", dtype=torch.int8)
    assert not (tmp_path / "m").exists()


def test_embeddings_too_long_to_be_normalised_are_no_zeros():
    with pytest.raises(ValueError, match="3 of 3 image embeddings left the range of float32"):
        model(1e25).embed("image", RNG.normal(size=(3, 6)).astype(np.float32))


def test_embeddings_that_are_no_numbers_never_reach_a_recall():
    with pytest.raises(ValueError, match="3 of 3 image embeddings left the range of float32"):
        model(np.inf).embed("image", RNG.normal(size=(3, 6)).astype(np.float32))


# stores that say nothing, or do not belong together


def joined(folder, image):
    write_latents(folder / "image", image, modality="image", name="i")
    write_latents(folder / "text", RNG.normal(size=(len(image), 5)).astype(np.float32), modality="text", name="t")
    return PairSet.join({m: LatentStore.open(folder / m) for m in ("image", "text")})


def test_equal_latents_are_one_sentence_and_not_a_failed_decomposition(tmp_path):
    from fusemix.training.trainer import train

    pairs = joined(tmp_path, np.ones((64, 6), np.float32))
    config = ModelConfig(latent_dims={"image": 6, "text": 5}, embed_dim=8, closed_form_dim=4)
    with pytest.raises(ValueError, match=r"The image latents of i in .*image are all equal \(5\d were compared\)"):
        train([pairs], config, TrainConfig(batch_size=32, val_fraction=0.2, mixed_precision="no"), tmp_path / "run")


def test_latents_equal_in_the_training_split_alone_are_refused(tmp_path):
    image = np.ones((64, 6), np.float32)
    image[48:] = RNG.normal(size=(16, 6))
    pairs = joined(tmp_path, image)
    pairs.splits[:] = ["train"] * 48 + ["val"] * 16
    with pytest.raises(ValueError, match=r"The image latents of i in .* are all equal \(48 were compared\)"):
        pairs.divide(TrainConfig())
    pairs.splits[:] = ["train"] * 49 + ["val"] * 15
    pairs.divide(TrainConfig())


def test_stores_of_different_tables_are_not_evaluated_together(tmp_path):
    tables = []
    for name in ("a", "b"):
        pd.DataFrame({"text": [f"{name} {i}" for i in range(9)]}).to_csv(tmp_path / f"{name}.csv", index=False)
        tables.append(PairTable.read(tmp_path / f"{name}.csv"))
    values = RNG.normal(size=(9, 5)).astype(np.float32)
    texts, other, same, none = (
        write_latents(tmp_path / name, values, modality=modality, name="t", table=table)
        for name, modality, table in (
            ("t", "text", tables[0]), ("o", "video", tables[1]), ("s", "video", tables[0]), ("n", "video", None),
        )
    )  # fmt: skip
    for wrong in (other, none):
        with pytest.raises(ValueError, match="made from different tables, so their rows do not match"):
            StoredPairs({"text": texts, "video": wrong})
        with pytest.raises(ValueError, match="made from different tables"):
            PairSet.join({"text": texts, "video": wrong})
    stores = {"text": texts, "video": same}
    both = FusionModel(ModelConfig(latent_dims={"text": 5, "video": 5}, embed_dim=4)).eval()
    both.adapters["video"].load_state_dict(both.adapters["text"].state_dict())
    found = evaluate(StoredPairs(stores), stored_items(both, stores), query="text", gallery="video")
    assert found["recall_at_1"] == 1


def test_a_run_does_not_resume_on_other_latents(tmp_path):
    from fusemix.training.trainer import train

    image = RNG.normal(size=(64, 6)).astype(np.float32)
    config = ModelConfig(latent_dims={"image": 6, "text": 5}, embed_dim=4)
    settings = TrainConfig(batch_size=32, val_fraction=0.2, mixed_precision="no", epochs=4)
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    stop = iter([False] * 3 + [True] * 99)
    train([joined(tmp_path / "a", image)], config, settings, tmp_path / "run", should_stop=lambda: next(stop))
    image[40, 2] += 1e-3
    other = joined(tmp_path / "b", image)
    with pytest.raises(ValueError, match="a run with other latents or settings"):
        train([other], config, settings, tmp_path / "run")
