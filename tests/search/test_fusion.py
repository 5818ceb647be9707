"""Late fusion against the formula written out, item by item."""

import json

import numpy as np
import pytest

from fusemix.search.fusion import LEARNED, PART_KINDS, Fusion, learned_weights, standardised
from tests.conftest import unit

WEIGHTS = {"text": {"image": 0.7, "text": 1.5, "audio": 0.2}, "image": {"image": 2.0}}


@pytest.fixture(scope="module")
def gallery():
    """Items 0 to 19 with picture and caption, 0 to 4 with a sound too, 20 to 24 with sound and caption."""
    rng = np.random.default_rng(0)
    names = [f"thing {i}" for i in range(25)]
    entry = [
        {"id": str(i), "caption": name, "group": name, "licence": "odd" if i % 2 else "even"}
        for i, name in enumerate(names)
    ]
    items = {
        "image": entry[:20],
        "audio": entry[:5] + entry[20:],
        "text": [e | {"text": e["caption"]} for e in entry],
    }
    return items, {face: unit(rng, len(found), 8) for face, found in items.items()}


def by_hand(items, embeddings, parts, weights, counts):
    """The score of each caption's item, as the formula says."""
    scores = {}
    for face, entries in items.items():
        for kind, query in parts.items():
            cosines = [float(np.dot(row, query)) for row in embeddings[face]]
            mean = sum(cosines) / len(cosines)
            spread = (sum((c - mean) ** 2 for c in cosines) / len(cosines)) ** 0.5
            weight = weights.get(kind, {}).get(face, 0.0) * counts.get(kind, 1.0)
            for entry, cosine in zip(entries, cosines, strict=True):
                scores[entry["id"]] = scores.get(entry["id"], 0.0) + weight * (cosine - mean) / spread
    return scores


def test_items_are_ranked_by_the_weighted_sum_of_standardised_similarities(gallery):
    items, embeddings = gallery
    text, image = unit(np.random.default_rng(1), 2, 8)
    parts, counts = {"text": text, "image": image}, {"image": 0.5}
    found = Fusion(items, embeddings, WEIGHTS).search(parts, top_k=25, counts=counts)
    scores = by_hand(items, embeddings, parts, WEIGHTS, counts)
    assert [f.item["id"] for f in found] == sorted(scores, key=lambda i: -scores[i])
    np.testing.assert_allclose([f.score for f in found], [scores[f.item["id"]] for f in found], atol=1e-5)
    assert [f.rank for f in found] == list(range(1, 26))
    assert all(f.score == pytest.approx(sum(f.shares.values())) for f in found)
    assert all(f.found_by == max(f.shares, key=f.shares.get) for f in found)


def test_a_hit_holds_every_face_of_the_item_with_its_cosine(gallery):
    items, embeddings = gallery
    query = embeddings["text"][3]
    best = Fusion(items, embeddings, WEIGHTS).search({"text": query}, top_k=1)[0]
    assert best.faces.keys() == {"image", "audio", "text"} and best.item["id"] == "3"
    assert best.faces["text"].similarity == pytest.approx(1, abs=1e-5)
    assert best.faces["image"].similarity == pytest.approx(float(embeddings["image"][3] @ query), abs=1e-5)


def test_of_several_captions_the_nearest_counts(gallery):
    rng = np.random.default_rng(3)
    image = [{"id": "0", "caption": "one", "group": "g"}, {"id": "5", "caption": "x", "group": "h"}]
    texts = [{"id": str(i), "text": w, "caption": w, "group": "g"} for i, w in enumerate(("one", "two", "three"))]
    embeddings = {"image": unit(rng, 2, 8), "text": unit(rng, 3, 8)}
    fusion = Fusion({"image": image, "text": texts}, embeddings, {"text": {"text": 1.0}})
    query = embeddings["text"][1]
    share = fusion.shares({"text": query})["text"]
    assert share[0] == pytest.approx(standardised(embeddings["text"] @ query)[1]) and share[1] == 0
    assert fusion.search({"text": query})[0].faces["text"].item["text"] == "two"


def test_words_can_be_subtracted(gallery):
    items, embeddings = gallery
    fusion = Fusion(items, embeddings, WEIGHTS)
    a, b = unit(np.random.default_rng(4), 2, 8)
    plain, without = fusion.shares({"text": a}), fusion.shares({"text": a, "minus_text": b})
    for face in items:
        np.testing.assert_allclose(without[face], plain[face] - 0.5 * fusion.shares({"text": b})[face], atol=1e-9)


def test_what_is_liked_and_disliked_are_queries_of_half_a_weight(gallery):
    items, embeddings = gallery
    fusion = Fusion(items, embeddings, WEIGHTS)
    shares = fusion.shares({"text": embeddings["text"][3]})
    steered = fusion.steered(shares, likes=[7, 8], dislikes=[21])

    def of(number):  # the mean over the faces that may be a query; a sound has no weights here
        asked = [{"image": embeddings["image"][number]}] if number < 20 else []
        asked.append({"text": embeddings["text"][number]})
        return [fusion.shares(parts) for parts in asked]

    for face, share in shares.items():
        wanted = share - 0.5 * of(21)[0][face]
        wanted = wanted + 0.5 * np.mean([[s[face] for s in of(n)] for n in (7, 8)], axis=(0, 1))
        np.testing.assert_allclose(steered[face], wanted, atol=1e-12)
    assert all(np.array_equal(fusion.steered(shares)[face], share) for face, share in shares.items())


def test_a_filter_and_items_left_out_are_respected(gallery):
    items, embeddings = gallery
    fusion, query = Fusion(items, embeddings, WEIGHTS), embeddings["text"][2]
    assert {f.item["licence"] for f in fusion.search({"text": query}, top_k=25, where={"licence": "odd"})} == {"odd"}
    best = next(fusion.best(fusion.shares({"text": query}), {"text": query}, leave_out=[2]))
    assert best.item["id"] != "2" and best.rank == 1


@pytest.mark.parametrize(
    "weights", [{"smell": {"image": 1}}, {"text": {"image": -1}}, {"text": {"image": float("nan")}}]
)
def test_weights_that_make_no_sense_are_refused(gallery, weights):
    with pytest.raises(ValueError, match="Weights"):
        Fusion(*gallery, weights)


@pytest.mark.parametrize(("parts", "top_k"), [({}, 1), ({"text": np.ones(8, np.float32)}, 0)])
def test_a_search_needs_a_part_and_room_for_a_result(gallery, parts, top_k):
    with pytest.raises(ValueError, match="at least one part and top_k >= 1"):
        Fusion(*gallery, WEIGHTS).search(parts, top_k=top_k)


def test_all_alike_is_zero_and_no_division_by_zero():
    np.testing.assert_array_equal(standardised(np.full(3, 0.5, np.float32)), np.zeros(3))


def test_the_learned_weights_say_where_they_come_from_and_cover_every_kind_of_part():
    assert learned_weights().keys() == set(PART_KINDS)
    stored = json.loads(LEARNED.read_text())
    assert stored["command"].startswith("python scripts/release/learn_fusion.py") and stored["sound_fits"] > 0
