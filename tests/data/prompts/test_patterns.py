"""Patterns against tags and captions."""

import pytest

from finetune.data.prompts.lists import canonical
from finetune.data.prompts.patterns import Patterns


@pytest.mark.parametrize(
    ("pattern", "tag", "matches"),
    [
        ("text on *", "text_on_sign", True),
        ("text on *", "Text On Clothing", True),
        ("text_on_*", "text on sign", True),
        ("text on *", "context on sign", False),
        ("text on *", "text", False),
        ("* text", "english_text", True),
        ("speech bubble", "speech_bubble", True),
        ("speech bubble", "speech_bubbles", False),
        ("fox (film)", r"fox \(film\)", True),
        ("a+b", "a+b", True),
        ("a+b", "aab", False),
        ("what?", "what?", True),
        ("what?", "whats", False),
        ("*", "anything", True),
        ("re:^text", "text_on_sign", True),
        ("re:on sign$", "Text_On_Sign", True),
        ("re:^on", "text_on_sign", False),
        ("sequence", "sequence\n", True),
    ],
)
def test_tags(pattern: str, tag: str, matches: bool) -> None:
    assert Patterns([pattern]).tag([canonical(tag)], "") == (pattern if matches else None)


@pytest.mark.parametrize(
    ("pattern", "caption", "matches"),
    [
        ("written", "It is written on the wall.", True),
        ("written", "A handwritten letter.", False),
        ("written", "WRITTEN!", True),
        ("speech bubble", "a man with a speech bubble", True),
        ("speech bubble", "a man with a speech-bubble", False),
        ("text on *", "there is text on a sign", True),
        ("before and after", "Before  and\nafter", True),
        ("* text", "a wall with text", True),
        ("* text", "text", False),
        ("* text", "a textured wall", False),
        ("sign* text *", "a sign, its text is", True),
        ("text * sign", "a sign, its text", False),
        ("*", "", True),
        ("re:\\d{4}", "in 1984", True),
        ("re:\\d{4}", "in 84", False),
        ("category:text", "category:text", False),
    ],
)
def test_captions(pattern: str, caption: str, matches: bool) -> None:
    assert Patterns([pattern]).words(caption) == (pattern if matches else None)


def test_a_long_caption_takes_linear_time() -> None:
    """Once through takes no time; quadratic would take minutes."""
    for pattern, caption in (("* text", "textured " * 100_000), ("a * b", "a " * 500_000), ("b*b*c", "b" * 1_000_000)):
        assert Patterns([pattern]).words(caption) is None


def test_categories() -> None:
    patterns = Patterns(["category: Artist", "dog"])
    assert patterns.tag(["someone"], "artist") == "category: Artist"
    assert patterns.tag(["someone"], "general") is None
    assert patterns.tag(["doggo", "dog"], "") == "dog"


def test_none_match_nothing() -> None:
    assert Patterns([]).tag(["a"], "artist") is None
    assert Patterns([]).words("a") is None
