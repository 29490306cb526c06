"""Which caption of a sample a draw has."""

from collections import Counter

import pytest

from finetune.data.hashing import CounterRng
from finetune.data.labels import Labels
from finetune.data.prompts.captions import CaptionPolicy
from finetune.data.prompts.config import CaptionConfig

DRAWS = 20_000
THREE = ("one", "two", "three")


def drawn(labels: Labels, config: CaptionConfig, *, wildcards: bool = False) -> Counter[str]:
    policy = CaptionPolicy(config, wildcards=wildcards)
    return Counter(policy.draw(labels, policy.weights(labels), CounterRng(3, i)) for i in range(DRAWS))


def near(count: int, share: float) -> bool:
    return abs(count - DRAWS * share) <= 4 * (DRAWS * share * (1 - share)) ** 0.5


@pytest.mark.parametrize(
    ("weights", "names", "shares"),
    [
        ({}, (), (1 / 3, 1 / 3, 1 / 3)),
        ({"1": 3.0}, (), (3 / 5, 1 / 5, 1 / 5)),
        ({"3": 0.0}, (), (1 / 2, 1 / 2, 0)),
        ({"human": 2.0, "blip": 1.0}, ("blip", "human", "blip"), (1 / 4, 2 / 4, 1 / 4)),
        ({"human": 0.7, "blip": 0.1}, ("human", "blip", "other"), (0.7 / 1.8, 0.1 / 1.8, 1 / 1.8)),
    ],
)
def test_captions_are_drawn_by_weight(
    weights: dict[str, float], names: tuple[str, ...], shares: tuple[float, ...]
) -> None:
    found = drawn(Labels(captions=THREE, caption_names=names), CaptionConfig(weights=weights))
    for caption, share in zip(THREE, shares, strict=True):
        assert near(found[caption], share)


def test_captions_of_no_weight_are_as_none() -> None:
    policy = CaptionPolicy(CaptionConfig(weights={"blip": 0.0}), wildcards=False)
    assert not any(policy.weights(Labels(captions=("a", "b"), caption_names=("blip", "blip"))))
    assert policy.weights(Labels(captions=("a", "b"), caption_names=("blip", "human"))) == [0.0, 1.0]
    assert policy.weights(Labels()) == []
    assert policy.weights(Labels(captions=("\0", "a"))) == [0.0, 1.0]


@pytest.mark.parametrize(
    ("lines", "expected"), [("all", {"first second"}), ("first", {"first"}), ("random", {"first", "second"})]
)
def test_lines(lines: str, expected: set[str]) -> None:
    assert set(drawn(Labels(captions=("first\n \n second ",)), CaptionConfig(lines=lines))) == expected


def test_random_lines_are_as_probable_as_one_another() -> None:
    assert near(drawn(Labels(captions=("first\nsecond",)), CaptionConfig(lines="random"))["first"], 0.5)


def test_wildcards_are_off_unless_asked_for() -> None:
    labels = Labels(captions=("a {red|blue} hat",))
    assert set(drawn(labels, CaptionConfig())) == {"a {red|blue} hat"}
    assert near(drawn(labels, CaptionConfig(), wildcards=True)["a red hat"], 0.5)


def test_sentences_are_shuffled_where_asked_for() -> None:
    labels = Labels(captions=("One. Two.",))
    assert set(drawn(labels, CaptionConfig())) == {"One. Two."}
    assert near(drawn(labels, CaptionConfig(shuffle_sentences=True))["Two. One."], 0.5)
