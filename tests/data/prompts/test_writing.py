"""How words are written."""

import csv
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.hashing import CounterRng
from finetune.data.prompts.config import SpellingConfig
from finetune.data.prompts.lists import canonical
from finetune.data.prompts.writing import clean, is_emoticon, resolve_wildcards, shuffle_sentences, spell

EMOTICONS = ("^_^", ">_<", "@_@", "+_+", "=_=", "o_o", "|_|", "0_0", "u_u", ">_o", "._.", "x_x", "<|>_<|>", "<o>_<o>")
MORE_EMOTICONS = ("T_T", "3_3", "6_9", "+_-", "o_x", "ಠ_ಠ", "(o)_(o)", "||_||", ";_;", "o_0")
TAGS = ("big_dog", "m_k", "t_k_g", "s&w_m&p", "a-o_a", "e_2", "_", "__", "_hidden", "x_", "fate_(series)", "1_girl")
PAIRS = [("a_b", "a b"), ("big_dog_(toy)", "big dog (toy)"), ("_", "_"), ("^_^", "^_^"), ("a__b", "a b")]


@pytest.mark.parametrize("tag", [*EMOTICONS, *MORE_EMOTICONS])
def test_faces_keep_their_mouths(tag: str) -> None:
    assert is_emoticon(tag)
    assert spell(tag, SpellingConfig(underscores="spaces")) == tag


@pytest.mark.parametrize("tag", TAGS)
def test_other_tags_are_no_faces(tag: str) -> None:
    assert not is_emoticon(tag)


def test_few_tags_of_the_sites_are_taken_for_faces(shared_data: Path) -> None:
    """All of danbooru's tags with 100 pictures or more whose sides hold no two letters in a row are known by name."""
    with (shared_data / "tags" / "danbooru.csv").open(encoding="utf-8") as file:
        faces = {row[0] for row in csv.reader(file) if int(row[2]) >= 100 and is_emoticon(row[0])}
    assert faces == {*EMOTICONS, "t_t", "3_3", "6_9", "+_-"}


@pytest.mark.parametrize(("tag", "expected"), PAIRS)
def test_underscores_become_spaces(tag: str, expected: str) -> None:
    assert spell(tag, SpellingConfig(underscores="spaces")) == expected
    assert spell(tag, SpellingConfig()) == tag


@given(st.text(alphabet="ab()[]\\", max_size=12))
def test_brackets_are_escaped_once_and_come_back(tag: str) -> None:
    escaped = spell(tag, SpellingConfig(brackets="escape"))
    assert spell(escaped, SpellingConfig(brackets="escape")) == escaped
    plain = spell(tag, SpellingConfig(brackets="unescape"))
    assert "\\\\" in tag or spell(escaped, SpellingConfig(brackets="unescape")) == plain


def test_brackets_and_case() -> None:
    assert spell("Fox (Film) [x]", SpellingConfig(brackets="escape", case="lower")) == r"fox \(film\) \[x\]"
    assert spell(r"fox \(film\)", SpellingConfig(brackets="unescape")) == "fox (film)"


@given(st.text(max_size=20))
def test_spelling_never_makes_another_tag(text: str) -> None:
    tag = clean(text)
    spelled = spell(tag, SpellingConfig("spaces", "escape", "lower"))
    assert bool(spelled) == bool(tag)
    if not {"\\", "_"} & set(tag):
        assert canonical(spelled) == canonical(tag)


@given(st.text(st.characters(), max_size=30))
def test_clean_text_has_nothing_that_a_tokenizer_trips_over(text: str) -> None:
    found = clean(text)
    found.encode("utf-8")
    assert not any(ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 for c in found)
    assert found == found.strip()
    assert clean(found) == found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\0b", "a b"),
        ("\0\0", ""),
        ("  a \n\t b  ", "a b"),
        ("🦊 fox 👩‍🚀", "🦊 fox 👩‍🚀"),
        ("כלב \u202bגדול\u202c", "כלב \u202bגדול\u202c"),
        ("lone \ud83e half", "lone \ufffd half"),
    ],
)
def test_cleaning(text: str, expected: str) -> None:
    assert clean(text) == expected


def test_wildcards_are_drawn_evenly_and_innermost_first() -> None:
    drawn = Counter(resolve_wildcards("a {red|{big|small} blue} hat", CounterRng(3, i)) for i in range(8000))
    assert set(drawn) == {"a red hat", "a big blue hat", "a small blue hat"}
    for text, share in (("a red hat", 0.5), ("a big blue hat", 0.25)):
        assert abs(drawn[text] - 8000 * share) < 4 * (8000 * share * (1 - share)) ** 0.5


@pytest.mark.parametrize("text", ["no braces", "{alone}", ":{", "a | b", "} {", "{{x}}"])
def test_what_is_no_wildcard_stays(text: str) -> None:
    assert resolve_wildcards(text, CounterRng(0)) == text


def test_braces_without_a_bar_do_not_hide_those_around_them() -> None:
    assert {resolve_wildcards("{a{b}|c}", CounterRng(1, i)) for i in range(50)} == {"a{b}", "c"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{|" * 50_000, "{|" * 50_000),
        ("{a}" * 50_000 + "{a|a}" * 50_000, "{a}" * 50_000 + "a" * 50_000),
        ("{" + "|" * 200_000, "{" + "|" * 200_000),
        ("}|{" * 50_000, "}|{" * 50_000),
    ],
    ids=["open", "closed", "bars", "turned round"],
)
def test_many_braces_take_linear_time(text: str, expected: str) -> None:
    """Once through takes a second at most; quadratic would take hours."""
    assert resolve_wildcards(text, CounterRng(1)) == expected


def test_an_empty_choice_is_one() -> None:
    assert {resolve_wildcards("a{ big|}", CounterRng(1, i)) for i in range(50)} == {"a big", "a"}


def test_sentences_are_moved_whole() -> None:
    text = "A dog sits. Is it big? It is!  3.5 metres tall."
    drawn = {shuffle_sentences(text, CounterRng(1, i)) for i in range(500)}
    sentences = ["A dog sits.", "Is it big?", "It is!", "3.5 metres tall."]
    assert len(drawn) == 24
    assert all(sorted(sentences) == sorted(s for s in sentences if s in each) for each in drawn)
    assert {len(each) for each in drawn} == {len(" ".join(sentences))}
