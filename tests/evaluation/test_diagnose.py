"""Every diagnostic against a slow version of its formula."""

import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest

from fusemix.data.latent_writer import write_latents
from fusemix.data.pairs import PairTable
from fusemix.evaluation import diagnose as d

ROOT = Path(__file__).resolve().parents[2]


def paired(n=120, noise=0.3, seed=0):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, 6))
    x, y = z @ rng.normal(size=(6, 9)), z @ rng.normal(size=(6, 7))
    return tuple((a + noise * rng.normal(size=a.shape) + 1).astype(np.float32) for a in (x, y))


def neighbours_loop(x, k):
    x = x - x.mean(0)
    out = []
    for i in range(len(x)):
        cosine = [(x[i] @ x[j] / np.linalg.norm(x[i]) / np.linalg.norm(x[j]), j) for j in range(len(x)) if j != i]
        out.append([j for _, j in sorted(cosine, reverse=True)[:k]])
    return np.array(out)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(d, "_CHUNK", 50)  # several pieces, the last one cut


def test_neighbours_and_their_agreement():
    x, y = paired()
    a, b = d.geometry(x).neighbours, d.geometry(y).neighbours
    np.testing.assert_array_equal(a, neighbours_loop(x.astype(np.float64), 10))
    loop = np.mean([len(set(p) & set(q)) / 10 for p, q in zip(a.tolist(), b.tolist(), strict=True)])
    assert d.mutual_knn(a, b) == pytest.approx(loop)
    assert d.mutual_knn(a, a) == 1


def hsic_loop(k, m):
    """Song et al. 2012, equation 5, written with its sums over distinct indices."""
    n = len(k)
    k, m = k.copy(), m.copy()
    np.fill_diagonal(k, 0), np.fill_diagonal(m, 0)
    first = sum(k[i, j] * m[i, j] for i in range(n) for j in range(n))
    second = sum(k[i, j] for i in range(n) for j in range(n)) * m.sum() / (n - 1) / (n - 2)
    third = 2 / (n - 2) * sum(k[i, j] * m[j, q] for i in range(n) for j in range(n) for q in range(n))
    return (first + second - third) / n / (n - 3)


def test_cka_is_the_formula():
    x, y = (a[:55].astype(np.float64) for a in paired())
    k, m = x @ x.T, y @ y.T
    loop = hsic_loop(k, m) / math.sqrt(hsic_loop(k, k) * hsic_loop(m, m))
    assert d.cka(*(a.astype(np.float32) - a.mean(0, dtype=np.float32) for a in (x, y))) == pytest.approx(loop, abs=1e-4)


def test_cka_is_one_for_a_rotation_and_about_zero_for_strangers_however_wide():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 30)).astype(np.float32)
    turned = x @ np.linalg.qr(rng.normal(size=(30, 30)))[0].astype(np.float32)
    assert d.cka(x, 3 * turned) == pytest.approx(1, abs=1e-4)
    strangers = rng.normal(size=(200, 900)).astype(np.float32)
    assert abs(d.cka(x, strangers)) < 0.1  # the biased one says 0.35 or more


def test_the_intrinsic_dimension_is_the_formula_and_finds_a_sheet_in_space():
    x, _ = paired()
    logs = []
    for i in range(len(x)):
        far = sorted(np.linalg.norm(x[i] - x[j]) for j in range(len(x)) if j != i)
        logs.append(math.log(far[1] / far[0]))
    assert d.intrinsic_dimension(x) == pytest.approx((len(logs) - 1) / sum(logs), rel=1e-3)
    rng = np.random.default_rng(1)
    sheet = (rng.uniform(size=(2000, 2)) @ rng.normal(size=(2, 40))).astype(np.float32)
    assert d.intrinsic_dimension(sheet) == pytest.approx(2, abs=0.2)
    assert d.intrinsic_dimension(np.concatenate([sheet, sheet[:100]])) == pytest.approx(2, abs=0.2)


def test_hubness_is_the_third_standardised_moment_of_how_often_each_is_near():
    neighbours = d.geometry(paired()[0]).neighbours
    counts = np.array([sum(i in row for row in neighbours.tolist()) for i in range(len(neighbours))])
    deviation = counts - counts.mean()
    assert d.hubness(neighbours) == pytest.approx((deviation**3).mean() / (deviation**2).mean() ** 1.5)


def test_norms_and_duplicates():
    x, _ = paired()
    x[7], x[9] = x[3], x[5] * 1.0001
    figures = d.geometry(x).figures
    norms = [math.sqrt(sum(float(v) ** 2 for v in row)) for row in x]
    assert figures["norm_mean"] == pytest.approx(np.mean(norms), rel=1e-5)
    assert figures["norm_variation"] == pytest.approx(np.std(norms) / np.mean(norms), rel=1e-4)
    assert figures["exact_duplicates"] == pytest.approx(1 / 120)
    assert figures["near_duplicates"] >= 4 / 120
    assert d.geometry(paired()[0]).figures["exact_duplicates"] == 0


def test_the_closed_form_is_measured_on_pairs_it_was_not_fitted_on():
    rng = np.random.default_rng(0)
    wide = [rng.normal(size=(150, 100)).astype(np.float32) for _ in range(2)]  # fits its own pairs by heart
    values = d.cca_recall(*wide)
    assert values["cca_gallery"] == 30 and values["cca_recall_at_1"] < 0.2
    good = d.cca_recall(*(d.geometry(a).reduced for a in paired(300, 0.05)))
    assert good["cca_recall_at_1"] > 0.8


def test_wide_latents_are_read_through_their_principal_components():
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(700, 20)) @ rng.normal(size=(20, 600)) + 0.01 * rng.normal(size=(700, 600))).astype(
        np.float32
    )
    reduced = d.geometry(x).reduced
    standard = (x - x.mean(0)) / x.std(0)
    assert reduced.shape == (700, 512)
    top = np.linalg.svd(standard, compute_uv=False)[:20]
    np.testing.assert_allclose(np.linalg.svd(reduced, compute_uv=False)[:20], top, rtol=1e-3)
    np.testing.assert_array_equal(reduced, d.geometry(x).reduced)  # the same twice


def test_pairs_are_drawn_one_of_every_group():
    groups = np.repeat(np.arange(40), 5)
    chosen = d.sample_pairs(groups, 30)
    assert len(set(groups[chosen])) == len(chosen) == 30 and (np.diff(chosen) > 0).all()
    assert len(d.sample_pairs(groups, 1000)) == 40
    assert len({int(i) % 5 for i in d.sample_pairs(groups, 1000)}) > 1  # not always the first caption


def test_the_encoder_that_knows_more_is_recommended():
    x, y = paired(400, 0.1)
    noisy = x + 5 * np.random.default_rng(3).normal(size=x.shape).astype(np.float32)
    result = d.diagnose({"image": {"noisy": noisy, "clear": x}, "text": {"words": y}})
    assert result["recommendation"].startswith("Take clear with words: without training it finds")
    assert [c["encoders"]["image"] for c in result["combinations"]] == ["clear", "noisy"]
    twins = d.diagnose({"image": {"a": x, "b": x + 1e-4}, "text": {"words": y}})
    assert "too close to call" in twins["recommendation"]


def test_what_limits_is_the_encoder_without_a_spare_dimension_and_the_duplicates():
    rng = np.random.default_rng(0)
    cause = rng.normal(size=(400, 8))
    spare = np.tile(cause, 4) + 0.05 * rng.normal(size=(400, 32))  # half of it still holds every cause
    bare = cause + 0.05 * rng.normal(size=(400, 8))
    bare[:40] = bare[40:80] * 1.0001
    sides = {name: d.geometry(x.astype(np.float32)) for name, x in (("image", spare), ("text", bare))}
    told = d.limits(sides)
    assert told.startswith("The text encoder limits more") and "20% of the text items are near-duplicates" in told


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("diagnose_script", ROOT / "scripts" / "diagnose.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_compares_every_combination_of_stores(script, tmp_path, capsys):
    x, y = paired(300, 0.1)
    made = {"image-a": x, "image-b": x[:, :3], "text-a": y}
    for name, latents in made.items():
        write_latents(tmp_path / name, latents, modality=name.split("-")[0], name=name)
    image, text = f"image={tmp_path}/image-a,{tmp_path}/image-b", f"text={tmp_path}/text-a"
    out, picture = tmp_path / "d.json", tmp_path / "d.png"
    assert script.main(["--latents", image, text, "--json", str(out), "--plot", str(picture)]) == 0
    result = json.loads(out.read_text())
    assert len(result["combinations"]) == 2 and result["n_pairs"] == 300
    assert result["combinations"][0]["cca_recall_at_1"] == pytest.approx(
        d.compare(d.geometry(x), d.geometry(y))["cca_recall_at_1"]
    )
    printed = capsys.readouterr().out
    assert picture.stat().st_size > 5000 and "Take image-a with text-a" in printed
    (found,) = result["forecasts"]
    assert found["encoders"] == {"image": "image-a", "text": "text-a"} and found["verdict"].startswith("Go")
    assert "300 (now)" in printed and "3,000" in printed and found["limits"] in printed
    assert script.main(["--latents", f"image={tmp_path}/text-a", text]) == 2
    assert "holds text latents, not image latents" in capsys.readouterr().err


def test_the_script_encodes_a_table(script, tmp_path, capsys):
    table = ROOT / "demo" / "gallery" / "pairs.csv"
    assert script.main(["--pairs", str(table)]) == 2  # which two of its three kinds?
    assert "holds image, text, audio; name two of its columns" in capsys.readouterr().err
    two = PairTable.read(table).frame.query("image != ''")[["image", "text", "group"]]
    two.assign(image=[str(table.parent / path) for path in two["image"]]).to_csv(tmp_path / "pairs.csv", index=False)
    out = tmp_path / "d.json"
    assert script.main(["--pairs", str(tmp_path / "pairs.csv"), "--n", "60", "--json", str(out)]) == 0
    result = json.loads(out.read_text())
    assert result["n_pairs"] == 60 and result["encoders"]["image"]["efficientnet-lite0"]["dim"] == 1280
    assert script.main(["--pairs", str(table), "--encoders", "text"]) == 2
    assert "Expected --encoders MODALITY=ENCODER" in capsys.readouterr().err
