import re

import numpy as np
import pytest

from demo.query import Query
from demo.space_map import VIEWS, SpaceMap
from demo.tabs.explore import Explorer, land, nearest_html
from demo.why import contributions, histogram, why


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
