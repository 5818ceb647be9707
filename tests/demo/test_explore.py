import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from demo.query import Query
from demo.space_map import NEIGHBOURHOODS, VIEWS, Neighbourhoods, SpaceMap
from demo.tabs.explore import Explorer, land, nearest_html
from demo.why import contributions, histogram, why

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def clouds():
    """Two clouds, apart along the first axis and spread along the second and third."""
    rng = np.random.default_rng(0)
    spread = rng.normal(size=(2, 60, 8)) * np.array([0.01, 0.5, 0.2, 0.01, 0.01, 0.01, 0.01, 0.01])
    spread[0, :, 0] += 1
    spread[1, :, 0] -= 1
    return {
        name: (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
        for name, rows in zip(("image", "text"), spread, strict=True)
    }


def test_the_first_view_shows_the_gap_and_the_second_closes_it(clouds):
    points = SpaceMap(clouds).points
    apart = {view: np.linalg.norm(points[view]["image"].mean(0) - points[view]["text"].mean(0)) for view in VIEWS}
    assert apart[VIEWS[0]] > 1 and apart[VIEWS[1]] < 0.1


def test_places_are_the_principal_components_of_numpy(clouds):
    """Against the singular vectors of the stacked rows: equally many of each kind, so the weighting is even."""
    fitted = SpaceMap(clouds)
    rows = np.concatenate([clouds[name] - clouds[name].mean(0) for name in clouds])
    _, values, axes = np.linalg.svd(rows, full_matrices=False)
    plane = fitted.planes[VIEWS[1]]
    np.testing.assert_allclose(np.abs(plane.axes.T @ axes[:2].T), np.eye(2), atol=1e-3)
    assert plane.explained == pytest.approx((values[:2] ** 2).sum() / (values**2).sum(), rel=1e-4)


def test_an_item_as_a_query_lands_on_its_own_dot(service):
    explorer = Explorer(service)
    row = service.row_of("image", "red")
    answer = service.search(Query(image="red.png", ids={"image": "red"}))
    placed = explorer.place(answer, "x")
    for view in VIEWS:
        np.testing.assert_allclose(placed["at"][view], explorer.map.points[view]["image"][row], atol=1e-3)
    assert ["image", row] not in placed["hits"]  # the item searched with is left out


def test_the_points_hold_every_item_and_no_path_of_this_machine_but_the_served_folder(service):
    points = Explorer(service).points()
    assert {group["modality"]: len(group["ids"]) for group in points["groups"]} == service.counts
    for group in points["groups"]:
        assert all(len(places) == len(group["ids"]) for places in group["points"].values())
        assert not any(str(service.root) in name for name in group["files"])
    assert np.abs([p for g in points["groups"] for v in VIEWS for p in g["points"][v]]).max() <= 1


@pytest.fixture
def laid(service, tmp_path, monkeypatch):
    """The tiny gallery with a layout: two pictures near each other, a sound far away, one picture without a place."""
    places = {"image": {"red": [0.5, 0.5, 0], "green": [0.6, 0.5, 1]}, "audio": {"hum": [-0.9, -0.9]}}
    (tmp_path / "map.json").write_text(json.dumps({"side": 40, "columns": 64, "places": places}))
    (tmp_path / "thumbnails.webp").write_bytes(b"")
    explorer = Explorer(service)
    explorer.neighbourhoods = Neighbourhoods.of(tmp_path)
    return explorer


def test_the_neighbourhoods_come_first_and_what_has_no_place_is_not_drawn(laid, service):
    points = laid.points()
    assert list(points["views"]) == [NEIGHBOURHOODS, *VIEWS] == list(points["notes"])
    assert points["sheet"]["side"] == 40 and points["sheet"]["url"].endswith("thumbnails.webp")
    found = {group["modality"]: group for group in points["groups"]}
    row = {name: service.row_of("image", name) for name in ("red", "green", "blue")}
    assert found["image"]["points"][NEIGHBOURHOODS][row["red"]] == [0.5, 0.5]
    assert found["image"]["points"][NEIGHBOURHOODS][row["blue"]] is None
    assert [found["image"]["cells"][row[name]] for name in ("red", "green", "blue")] == [0, 1, -1]
    assert set(map(str, found["text"]["points"][NEIGHBOURHOODS])) == {"None"}
    assert Explorer(service).views == VIEWS and Neighbourhoods.of(None) is None


def test_a_query_lands_beside_its_best_thing_and_not_half_way_to_another_island(laid, service):
    assert laid.neighbourhoods.between([[0.5, 0.5], [0.6, 0.5], [-0.9, -0.9]]) == pytest.approx([0.5333, 0.5])
    assert laid.neighbourhoods.between([]) is None
    x, y = laid.place(service.search(Query(text="a red square"), top_k=4), "x")["at"][NEIGHBOURHOODS]
    assert 0.5 <= x <= 0.6 and y == 0.5


def test_the_shipped_layout_is_that_of_the_shipped_gallery():
    laid = Neighbourhoods.of(ROOT / "demo/gallery")
    with (ROOT / "demo/gallery/pairs.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if "--" not in row["id"]]
    pictures = [row["id"] for row in rows if row["image"]]
    cells = [laid.cell(name) for name in pictures]
    assert sorted(cells) == list(range(len(pictures)))
    assert all(laid.place("image", name) for name in pictures)
    assert all(laid.place("audio", row["id"]) for row in rows if row["audio"])
    with Image.open(laid.sheet) as sheet:
        assert sheet.width == laid.columns * laid.side and sheet.height >= (max(cells) // laid.columns + 1) * laid.side


def test_words_land_and_bad_ones_are_one_sentence(service):
    placed, listed = land(Explorer(service), "a red square")
    assert placed["asked"] == "“a red square”" and "a red square" in listed
    assert land(Explorer(service), "  ") == (None, "")
    assert (
        land(Explorer(service), "a" * 2001)[0] is None
        and "more than the 2,000" in land(Explorer(service), "a" * 2001)[1]
    )


def test_contributions_of_the_parts_add_up_to_the_similarity(service):
    query = Query(
        text="a red square", minus_text="a deep hum", image="x", ids={"image": "green"}, weights={"image": 0.4}
    )
    answer = service.search(query)
    for found in answer.hits.values():
        for hit in found:
            values = contributions(answer, service, hit)
            assert set(values) == {"text", "minus_text", "image"}
            assert sum(values.values()) == pytest.approx(hit.similarity, abs=1e-4)


def test_why_names_captions_parts_and_histograms_and_escapes_them(service):
    page = why(service.search(Query(text="<i>a square</i>", minus_text="hum")), service, {"image": 2, "audio": 1})
    assert page.count("<svg") == 2 and page.count("<tr>") == 11 and "<b>" not in page
    assert "What each part adds" not in why(service.search(Query(text="a square")), service, {"image": 2})
    assert "&lt;b&gt;" in nearest_html(service.search(Query(text="a green square with <b>sound</b>")), "x")


def test_a_histogram_marks_each_hit_where_it_is():
    drawn = histogram("image", np.array([0.0, 0.25, 0.5, 1.0]), [1.0, 0.5])
    assert re.findall(r'<line x1="([\d.]+)"', drawn) == ["192.0", "96.0"]
    assert drawn.count("<rect") == 4 and "4 pictures" in drawn
