"""Which forms prompts take, where parts of them are missing."""

from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.labels import Labels
from finetune.data.plan import Draw
from finetune.data.prompts.config import CaptionsConfig, MixConfig
from finetune.data.prompts.forms import MISSING, average_mix, effective_mix
from finetune.data.prompts.prompter import Prompter
from tests.helpers import WORDS

MIX = MixConfig(tags=0.7, caption=0.2, tags_caption=0.06, caption_tags=0.04)
weights = st.floats(0.01, 10).map(lambda weight: round(weight, 2)) | st.just(0.0)
mixes = st.tuples(weights, weights, weights, weights).filter(any).map(lambda four: MixConfig(*four))


@pytest.mark.parametrize(
    ("mix", "tags", "caption", "expected"),
    [
        (MIX, True, True, {"tags": 0.7, "caption": 0.2, "tags_caption": 0.06, "caption_tags": 0.04}),
        (MIX, True, False, {"tags": 1.0}),
        (MIX, False, True, {"caption": 1.0}),
        (MIX, False, False, {MISSING: 1.0}),
        (MixConfig(3.0, 1.0), True, True, {"tags": 0.75, "caption": 0.25}),
        (MixConfig(0.0, 0.0, 1.0, 1.0), True, False, {"tags": 1.0}),
        (MixConfig(1.0, 0.0), False, True, {MISSING: 1.0}),
        (MixConfig(0.0, 1.0), True, False, {MISSING: 1.0}),
    ],
)
def test_what_is_missing_falls_back_to_what_is_there(
    mix: MixConfig, tags: bool, caption: bool, expected: dict[str, float]
) -> None:
    assert effective_mix(mix, tags, caption) == pytest.approx(expected)
    labels = Labels(("fox",) if tags else (), ("a fox",) if caption else ())
    prompter = Prompter(CaptionsConfig(drop=0.0, mix=mix), 0)
    assert {prompter.draw(labels, "", Draw(i, 0, 0), 0, WORDS).form for i in range(300)} == set(expected)


@given(mixes, st.booleans(), st.booleans())
def test_shares_add_up_and_name_nothing_that_is_not_there(mix: MixConfig, tags: bool, caption: bool) -> None:
    shares = effective_mix(mix, tags, caption)
    assert sum(shares.values()) == pytest.approx(1.0)
    assert min(shares.values()) > 0
    if not (tags and caption):
        assert set(shares) <= {MISSING, *(["tags"] if tags else []), *(["caption"] if caption else [])}
    else:
        assert shares == pytest.approx({form: w / sum(asdict(mix).values()) for form, w in asdict(mix).items() if w})


@given(mixes, st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=50))
def test_the_average_is_that_of_all_samples(mix: MixConfig, samples: list[tuple[bool, bool]]) -> None:
    draws = 1 + np.arange(len(samples)) % 3
    found = average_mix(mix, *np.array(samples).T, draws)
    for form in (*asdict(mix), MISSING):
        each = [effective_mix(mix, *has).get(form, 0.0) for has in samples]
        assert found.get(form, 0.0) == pytest.approx(np.average(each, weights=draws))
    assert all(found.values())
