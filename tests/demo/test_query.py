from urllib.parse import parse_qsl

import pytest

from demo.query import Query
from fusemix.media import MediaError
from fusemix.search.retriever import DEFAULT_WEIGHTS


@pytest.mark.parametrize(
    "query",
    [
        Query(text="a dog & a cat = 50% <b>é</b>?"),
        Query(text="at night", ids={"image": "dog-1"}, weights={"text": 0.5, "image": -0.25}),
        Query(minus_text="grass", ids={"audio": "spoken-cake.mp3"}, weights={"minus_text": -1.0}),
    ],
)
def test_a_link_reproduces_its_query(query):
    from urllib.parse import parse_qsl

    sent = Query(
        text=query.text, minus_text=query.minus_text, ids=query.ids, weights=query.weights,
        **{part: "file" for part in query.ids},
    )  # fmt: skip
    assert Query.from_link(dict(parse_qsl(sent.to_link()[1:]))) == query


def test_a_file_of_the_visitors_own_and_an_empty_query_have_no_link():
    assert Query(image="/tmp/mine.png", text="at night").to_link() == ""
    assert Query(text="  ").to_link() == Query().to_link() == ""


@pytest.mark.parametrize("written", ["", "q", "q:", "q:x", "q:nan", "q:inf", "smell:1", ":::,,"])
def test_weights_that_strangers_write_wrongly_are_the_defaults(written):
    query = Query.from_link({"q": "a dog", "w": written})
    assert query.weight("text") == DEFAULT_WEIGHTS["text"] and query.parts() == {"text": "a dog"}


def test_weights_of_a_link_stay_within_the_sliders():
    assert Query.from_link({"q": "a", "w": "q:1e9,sound:-7,without:0.5"}).weights == {
        "text": 1.0,
        "audio": -1.0,
        "minus_text": 0.0,
    }


def test_a_part_joins_the_others_in_the_place_of_its_own_kind():
    query = Query(text="a", image="mine.png", ids={"audio": "x"}, audio="x.wav", weights={"image": 0.5})
    joined = query.joined_by(Query.of_file("audio", "y.wav", None)).joined_by(Query.of_file("image", "z.png", "z"))
    assert joined == Query(text="a", image="z.png", audio="y.wav", ids={"image": "z"}, weights={"image": 0.5})


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (Query(text="a dog"), "“a dog”"),
        (Query(image="a.png"), "your picture"),
        (Query(image="a.png", text="at night", weights={"text": 0.5}), "your picture + 0.5 × “at night”"),
        (Query(audio="a.wav", text="drums", weights={"text": -1}), "your sound − “drums”"),
        (Query(text="ship", minus_text="people"), "“ship” − 0.5 × “people”"),
        (Query(text="ship", weights={"text": -1}), "− “ship”"),
        (Query(text="ship", image="a.png", weights={"image": 0}), "“ship”"),
    ],
)
def test_a_query_is_described_in_words_and_signs(query, expected):
    assert query.describe() == expected


def test_half_a_surrogate_pair_becomes_a_question_mark_because_no_browser_could_be_sent_it():
    query = Query(text="a \ud800 dog", minus_text="\udfff")
    assert (query.text, query.minus_text, query.describe()) == ("a ? dog", "?", "“a ? dog” − 0.5 × “?”")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"text": None}, "Expected a text as the query's text, got None"),
        ({"image": 3}, "Expected a path as the query's image, got 3"),
        ({"ids": {"image": ["x"]}}, "id of 'image' must be a text"),
        ({"weights": {"text": float("nan")}}, "weight of 'text' must be a finite number"),
        ({"weights": {"text": 10**400}}, "weight of 'text' must be a finite number, got a number too long"),
        ({"weights": {"text": "0.5"}}, "weight of 'text' must be a finite number"),
    ],
)
def test_a_query_of_the_wrong_types_is_refused_in_a_sentence(given, message):
    with pytest.raises(MediaError, match=message):
        Query(**given)


def test_filters_and_marks_survive_the_link():
    query = Query(text="a cat", where={"licence": "CC0-1.0"}, likes=("image:a", "audio:b"), dislikes=("image:c",))
    assert Query.from_link(dict(parse_qsl(query.to_link()[1:]))) == query


@pytest.mark.parametrize(
    ("verdict", "likes", "dislikes"),
    [("like", ("b",), ("c",)), ("dislike", ("b",), ("c", "a")), ("none", ("b",), ("c",))],
)
def test_a_second_click_takes_a_mark_back_and_the_other_verdict_replaces_it(verdict, likes, dislikes):
    query = Query(text="x", likes=("b",), dislikes=("a", "c")).marked("like", "a")
    assert (query.likes, query.dislikes) == (("b", "a"), ("c",))
    query = query.marked(verdict, "a")
    assert (query.likes, query.dislikes) == (likes, dislikes)
    many = Query(text="x", likes=tuple(map(str, range(30)))).marked("like", "z")
    assert len(many.likes) == 20 and many.likes[-1] == "z"
