"""Side files: tags and captions."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.labels import Labels, parse_labels
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
    assert parse_labels(text.encode(), None, "auto") == expected


def test_the_recipe_can_say_what_text_is() -> None:
    assert parse_labels(b"a dog", None, "tags") == Labels(tags=("a dog",))
    assert parse_labels(b"dog, cat", None, "caption") == Labels(captions=("dog, cat",))


def test_json_comes_before_text_in_what_it_holds() -> None:
    side = json.dumps({"tags": "cat, sofa", "rating": 3}).encode()
    assert parse_labels(b"dog, grass", side, "auto") == Labels(tags=("cat", "sofa"))
    assert parse_labels(b"a dog on the grass in summer", side, "auto") == Labels(
        ("cat", "sofa"), ("a dog on the grass in summer",)
    )


def test_captions_may_be_several() -> None:
    side = json.dumps({"captions": ["one", " two "], "tags": ["a b", "c"]}).encode()
    assert parse_labels(None, side, "auto") == Labels(("a b", "c"), ("one", "two"))


@pytest.mark.parametrize("side", [b"{", b"[]", b'{"tags": 5}', b'{"caption": {"a": 1}}', b'"x"', b"\xff{}"])
def test_malformed_json_is_a_fault(side: bytes) -> None:
    with pytest.raises(DataFault, match="json"):
        parse_labels(None, side, "auto")


def test_text_that_is_not_utf8_is_a_fault() -> None:
    with pytest.raises(DataFault, match="txt: not UTF-8 at byte 1"):
        parse_labels(b"a\xff", None, "auto")


@given(st.text(), st.sampled_from(["auto", "tags", "caption"]))
def test_any_text_gives_clean_labels(text: str, text_as: str) -> None:
    labels = parse_labels(text.encode("utf-8", "surrogatepass").decode("utf-8", "ignore").encode(), None, text_as)
    assert all(part == part.strip() and part for part in (*labels.tags, *labels.captions))
    assert not (labels.tags and labels.captions)
