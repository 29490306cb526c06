"""From tags and captions to prompts."""

from collections import Counter

import pytest

from finetune.data.config import CaptionsConfig
from finetune.data.hashing import CounterRng
from finetune.data.labels import Labels
from finetune.data.prompts import make_prompt

TAGS = ("dog", "big dog", "outdoors", "sky")
DRAWS = 4000
BOTH = Labels(TAGS, ("a dog under the sky", "a big dog"))


def prompts(labels: Labels, **settings: float | bool | str) -> list[str]:
    config = CaptionsConfig(**{"drop": 0.0, **settings})  # type: ignore[arg-type]
    return [make_prompt(labels, config, CounterRng(11, i)) for i in range(DRAWS)]


def near(count: int, share: float) -> bool:
    return abs(count - DRAWS * share) < 5 * (DRAWS * max(share * (1 - share), 1e-9)) ** 0.5 + 1e-6


def test_the_whole_prompt_is_dropped_at_its_rate() -> None:
    assert near(sum(p == "" for p in prompts(BOTH, drop=0.1)), 0.1)


def test_each_tag_is_dropped_at_its_rate_and_by_itself() -> None:
    kept = [set(filter(None, p.split(", "))) for p in prompts(Labels(TAGS), tag_drop=0.15)]
    for tag in TAGS:
        assert near(sum(tag in tags for tags in kept), 0.85)
    assert near(sum({"dog", "sky"} <= tags for tags in kept), 0.85**2)


def test_shuffling_reaches_every_order_and_loses_nothing() -> None:
    orders = Counter(prompts(Labels(TAGS)))
    assert len(orders) == 24
    assert all(sorted(order.split(", ")) == sorted(TAGS) for order in orders)
    assert all(near(count, 1 / 24) for count in orders.values())


def test_without_shuffling_the_order_stays() -> None:
    assert set(prompts(Labels(TAGS), shuffle_tags=False, separator=" | ")) == {" | ".join(TAGS)}


def test_tags_and_captions_are_mixed_by_weight() -> None:
    drawn = Counter(prompts(BOTH, tags_weight=3.0, caption_weight=1.0, shuffle_tags=False))
    assert near(drawn[", ".join(TAGS)], 0.75)
    assert near(drawn["a dog under the sky"], 0.125)
    assert near(drawn["a big dog"], 0.125)


@pytest.mark.parametrize(
    ("labels", "settings", "expected"),
    [
        (Labels(captions=("a cat",)), {"tags_weight": 9.0}, "a cat"),
        (Labels(tags=("cat",)), {"caption_weight": 9.0}, "cat"),
        (Labels(), {}, ""),
        (Labels(tags=("cat",)), {"tags_weight": 0.0}, ""),
    ],
)
def test_what_is_missing_falls_back_to_what_is_there(labels: Labels, settings: dict[str, float], expected: str) -> None:
    assert set(prompts(labels, **settings)) == {expected}
