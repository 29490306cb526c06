"""How draws are told in words."""

import pytest

from data_tools.preview.reading import at_most, fitted, gone_by_reason, moved
from finetune.data.buckets import Crop
from finetune.data.prompts.prompter import Prompt
from finetune.data.prompts.tags import Gone


@pytest.mark.parametrize(
    ("drawn", "stored", "arrows"),
    [
        ("abc", "abc", ["", "", ""]),
        ("ac", "abc", ["", ""]),
        ("cab", "abc", ["↑3", "↓1", "↓2"]),
        ("dba", "abcd", ["↑4", "", "↓1"]),
        ("xba", "ab", ["", "↑2", "↓1"]),
        ("aab", "aba", ["", "↑3", "↓2"]),
        ("", "ab", []),
    ],
)
def test_tags_move_among_those_that_are_left(drawn: str, stored: str, arrows: list[str]) -> None:
    assert moved(drawn, stored) == arrows


def test_what_is_gone_stands_under_its_reason() -> None:
    gone = (Gone("a", "by chance"), Gone("dog", "implied by big dog"), Gone("b", "by chance"))
    prompt = Prompt("big dog", "tags", ("big dog",), 2, gone)
    told = gone_by_reason(prompt)
    assert told == {"by chance": ["a", "b"], "implied by big dog": ["dog"]}


def test_how_a_picture_comes_to_its_bucket() -> None:
    assert fitted(200, Crop(100, 50, 0, 0, 100, 100)) == "scaled 0.50×, 50% cut away"
    assert fitted(50, Crop(100, 100, 0, 0, 100, 100)) == "scaled up 2.00×, nothing cut away"
    assert fitted(100, Crop(100, 100, 0, 0, 100, 100)) == "as large as stored, nothing cut away"


def test_long_lists_say_how_much_they_leave_out() -> None:
    assert at_most(["a", "b"], 2) == (["a", "b"], "")
    assert at_most(["a"] * 1234, 2) == (["a", "a"], "… 1,232 more")
