"""Side files: tags and captions."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.labels import Labels, concept, parse_labels
from finetune.errors import DataFault


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1girl, solo, long hair", Labels(tags=("1girl", "solo", "long hair"))),
        ("1girl solo long_hair blue_eyes", Labels(tags=("1girl", "solo", "long_hair", "blue_eyes"))),
        ("dog", Labels(tags=("dog",))),
        ("a dog runs over the wet grass", Labels(captions=("a dog runs over the wet grass",))),
        ("A dog, seen from behind, sits.", Labels(captions=("A dog, seen from behind, sits.",))),
        ("", Labels()),
        ("  ,, \n", Labels()),
    ],
)  # fmt: skip
def test_text_is_told_by_its_looks(text: str, expected: Labels) -> None:
    assert parse_labels({"text": text.encode()}, "auto") == expected


def test_the_recipe_can_say_what_text_is() -> None:
    assert parse_labels({"text": b"a dog"}, "tags") == Labels(tags=("a dog",))
    assert parse_labels({"text": b"dog, cat"}, "caption") == Labels(captions=("dog, cat",))


def test_json_comes_before_text_in_what_it_holds() -> None:
    side = json.dumps({"tags": "cat, sofa", "rating": 3}).encode()
    assert parse_labels({"text": b"dog, grass", "json": side}, "auto") == Labels(tags=("cat", "sofa"))
    assert parse_labels({"text": b"a dog on the grass in summer", "json": side}, "auto") == Labels(
        ("cat", "sofa"), ("a dog on the grass in summer",)
    )


def test_captions_may_be_several() -> None:
    side = json.dumps({"captions": ["one", " two "], "tags": ["a b", "c"]}).encode()
    assert parse_labels({"json": side}, "auto") == Labels(("a b", "c"), ("one", "two"))


def test_tags_by_category_and_captions_by_name() -> None:
    fields = {
        "tags": {"artist": ["someone"], "general": "sky, red fox", "meta": []},
        "caption": {"human": "a fox", "blip": ["one", "two"]},
        "source": "10_fox/1.jpg",
    }
    labels = parse_labels({"json": json.dumps(fields).encode()}, "auto")
    assert labels == Labels(
        ("someone", "sky", "red fox"),
        ("a fox", "one", "two"),
        ("artist", "general", "general"),
        ("human", "blip", "blip"),
        "10_fox/1.jpg",
    )
    assert parse_labels({"json": json.dumps(labels.fields()).encode()}, "auto") == labels


def test_captions_of_a_list_keep_their_places() -> None:
    labels = parse_labels({"json": json.dumps({"caption": ["", "two", " ", "four"]}).encode()}, "auto")
    assert (labels.captions, labels.caption_names) == (("two", "four"), ("2", "4"))
    assert parse_labels({"json": b'{"caption": ["one", "two"]}'}, "auto").caption_names == ()


@pytest.mark.parametrize("source", ["https://site/posts/10_1/2", 7, None, ["a/b"]])
def test_a_source_that_is_no_path_is_none(source: object) -> None:
    assert parse_labels({"json": json.dumps({"source": source}).encode()}, "auto") == Labels()


@pytest.mark.parametrize(
    "fields", [{"tags": {"artist": 3}}, {"tags": [{"a": "b"}]}, {"caption": {"human": {"a": "b"}}}]
)
def test_objects_of_something_else_are_faults(fields: object) -> None:
    with pytest.raises(DataFault, match=r"json: (tags|caption)"):
        parse_labels({"json": json.dumps(fields).encode()}, "auto")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("10_fox/1.jpg", (10, "fox")),
        ("a/10_red fox/1.jpg", (10, "red fox")),
        ("10_fox/sub/1.jpg", (1, "sub")),
        ("0_none/1.jpg", (1, "none")),
        ("2024_summer/1.jpg", (1, "2024_summer")),
        ("10_/1.jpg", (1, "10_")),
        ("1.jpg", (1, "")),
        ("10_fox.jpg", (1, "")),
        ("", (1, "")),
    ],
)
def test_what_folders_say(path: str, expected: tuple[int, str]) -> None:
    assert concept(path) == expected


def test_files_of_tags_and_of_a_caption_are_what_their_names_say() -> None:
    sides = {"tags": b"big dog, wet grass", "caption": b"one, two"}
    assert parse_labels(sides, "auto") == Labels(("big dog", "wet grass"), ("one, two",))
    assert parse_labels({**sides, "text": b"cat, sofa"}, "tags") == Labels(("big dog", "wet grass"), ("one, two",))
    assert parse_labels({**sides, "json": b'{"tags": ["fox"]}'}, "auto") == Labels(("fox",), ("one, two",))


def test_what_img2dataset_writes() -> None:
    side = json.dumps({"caption": None, "url": "https://a/b.jpg", "key": "000000001", "status": "success"})
    assert parse_labels({"json": side.encode(), "text": b"a red fox runs over the snow"}, "auto") == Labels(
        (), ("a red fox runs over the snow",)
    )


@pytest.mark.parametrize("side", [b"{", b"[]", b'{"tags": 5}', b'{"caption": {"a": 1}}', b'"x"', b"\xff{}"])
def test_malformed_json_is_a_fault(side: bytes) -> None:
    with pytest.raises(DataFault, match="json"):
        parse_labels({"json": side}, "auto")


def test_text_that_is_not_utf8_is_a_fault() -> None:
    with pytest.raises(DataFault, match="txt: not UTF-8 at byte 1"):
        parse_labels({"text": b"a\xff"}, "auto")


@given(st.text(), st.sampled_from(["auto", "tags", "caption"]))
def test_any_text_gives_clean_labels(text: str, text_as: str) -> None:
    labels = parse_labels({"text": text.encode("utf-8", "surrogatepass").decode("utf-8", "ignore").encode()}, text_as)
    assert all(part == part.strip() and part for part in (*labels.tags, *labels.captions))
    assert not (labels.tags and labels.captions)
