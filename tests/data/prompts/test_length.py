"""Prompts that are too long lose whole tags and words from their end."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from finetune.data.hashing import CounterRng
from finetune.data.labels import Labels
from finetune.data.plan import Draw
from finetune.data.prompts.config import CaptionsConfig, MixConfig, TagsConfig
from finetune.data.prompts.length import TokenLimit
from finetune.data.prompts.prompter import Prompt, Prompter
from finetune.data.prompts.writing import clean
from finetune.model.text import PromptTokenizer

ODD = ":), ^_^! a's (x) é 犬 🦊 |_| '' don't 2024 a_b ... \u200b ﬁ Σς İ"


@pytest.fixture(scope="module")
def clip(shared_data: Path) -> PromptTokenizer:
    tokenizer = CLIPTokenizer.from_pretrained(shared_data / "clip_tokenizer", model_max_length=77)
    return PromptTokenizer([tokenizer], 75)


def words(most: int) -> TokenLimit:
    """A limit under which every word is a token, and a comma another."""
    return TokenLimit(lambda text: 1 + text.count(","), most)


def draw(labels: Labels, most: int, form: str = "tags", **settings: object) -> Prompt:
    mix = MixConfig(**{"tags": 0.0, "caption": 0.0, form: 1.0})
    tags = TagsConfig(shuffle=False, **settings)  # type: ignore[arg-type]
    return Prompter(CaptionsConfig(drop=0.0, mix=mix, tags=tags), 0).draw(labels, "", Draw(0, 0, 0), 0, words(most))


@given(
    st.lists(st.sampled_from([*ODD.split(), "big", "dog", ","]), max_size=12), st.sampled_from([" ", ", ", "\u3000"])
)
def test_words_together_have_as_many_tokens_as_the_whole(clip: PromptTokenizer, parts: list[str], space: str) -> None:
    text = clean(space.join(parts))
    assert TokenLimit(clip.count, 75).tokens(text) == clip.count(text)


@given(st.text(max_size=40))
def test_any_text_is_counted_as_the_tokenizer_does(clip: PromptTokenizer, text: str) -> None:
    assert TokenLimit(clip.count, 75).tokens(clean(text)) == clip.count(clean(text))


def test_tags_go_whole_and_from_the_end() -> None:
    found = draw(Labels(("big dog", "sky", "red fox", "sea")), most=6)  # big dog, sky, red fox = 7 tokens
    assert found.text == "big dog, sky"
    assert found.tags == ("big dog", "sky")
    assert found.tokens == 4
    assert [(gone.text, gone.reason) for gone in found.gone] == [("red fox", "too long"), ("sea", "too long")]


def test_a_prompt_that_just_fits_stays_whole() -> None:
    assert draw(Labels(("a", "b", "c")), most=5).text == "a, b, c"
    assert draw(Labels(("a", "b", "c")), most=4).text == "a, b"


def test_words_of_a_caption_are_told_from_tags() -> None:
    found = draw(Labels(("big dog", "it"), ("see it sit here",)), 6, "tags_caption")
    assert found.text == "big dog, it, see"
    assert [gone for gone in found.gone if gone.reason == "too long"] == []
    assert found.gone[-1] == ("it sit here", "end of a caption that is too long")


@pytest.mark.parametrize(
    ("form", "most", "expected"),
    [
        ("tags_caption", 9, "big dog, sky, it sits here"),
        ("tags_caption", 6, "big dog, sky, it"),
        ("tags_caption", 3, "big dog"),
        ("caption_tags", 8, "it sits here, big dog, sky"),
        ("caption_tags", 6, "it sits here, big dog"),
        ("caption_tags", 5, "it sits here"),
        ("caption", 2, "it sits"),
    ],
)
def test_of_both_the_end_goes_first(form: str, most: int, expected: str) -> None:
    assert draw(Labels(("big dog", "sky"), ("it sits here",)), most, form).text == expected


def test_tags_kept_in_place_go_last() -> None:
    labels = Labels(("first ||| a", "b", "c ||| last"))
    assert draw(labels, 9, keep_separator="|||").text == "first, a, b, c, last"
    assert draw(labels, 5, keep_separator="|||").text == "first, a, last"
    assert draw(labels, 3, keep_separator="|||").text == "first, last"
    assert draw(labels, 2, keep_separator="|||").text == "first"


def test_prefix_and_suffix_count_and_stay() -> None:
    config = CaptionsConfig(drop=0.0, prefix="photo of", suffix="in colour", tags=TagsConfig(shuffle=False))
    found = Prompter(config, 0).draw(Labels(("a", "b", "c")), "", Draw(0, 0, 0), 0, words(7))
    assert found.text == "photo of a, b in colour"
    assert found.tokens == 7


@given(st.integers(0, 400), st.integers(1, 60))
def test_nothing_is_ever_longer_and_nothing_more_would_fit(count: int, most: int) -> None:
    tags = tuple(f"tag {number}" if number % 3 else f"t{number}" for number in range(count))
    found = draw(Labels(tags), most)
    assert found.tokens <= most
    assert found.tags == tags[: len(found.tags)]
    if len(found.tags) < count:
        longer = ", ".join(tags[: len(found.tags) + 1])
        assert words(most).tokens(longer) > most


@pytest.mark.parametrize("text", ["夜の街を歩く" * 40, "คนเดินอยู่บนถนน" * 40, "街の a夜b" * 60])
def test_text_without_spaces_is_cut_too(clip: PromptTokenizer, text: str) -> None:
    limit = TokenLimit(clip.count, 75)
    found = Prompter(CaptionsConfig(drop=0.0), 0).draw(Labels((), (text,)), "", Draw(0, 0, 0), 0, limit)
    assert 65 < found.tokens <= 75
    assert text.startswith(found.text)
    assert found.text + found.gone[0].text == text or found.text + " " + found.gone[0].text == text


def test_ten_thousand_tags(clip: PromptTokenizer) -> None:
    rng = CounterRng(0)
    tags = tuple(f"tag {number}{'x' * rng.integer(9)}" for number in range(10_000))
    limit = TokenLimit(clip.count, 225)
    found = Prompter(CaptionsConfig(drop=0.0), 0).draw(Labels(tags), "", Draw(0, 0, 0), 0, limit)
    assert 200 < found.tokens <= 225
    assert set(found.tags) <= set(tags)
    assert len(found.tags) + len(found.gone) == 10_000
