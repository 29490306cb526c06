"""How often prompts take which form, by the index alone."""

from collections.abc import Callable
from pathlib import Path

import pytest

from data_tools.stats.forms import FormFigures, forms_of
from data_tools.stats.sources import open_sources
from finetune.config import policies
from finetune.recipes import read_recipe
from tests.data_tools.stats.test_buckets import recipe

Weigh = Callable[..., list[FormFigures]]


@pytest.fixture
def weighed(odd_shards: Path, tmp_path: Path) -> Weigh:
    """The forms for some settings of the recipe, of five samples of which one has tags and one a caption."""

    def weigh(*settings: str) -> list[FormFigures]:
        config = read_recipe(recipe(f"data.shards={odd_shards}", *settings))
        sources = zip(open_sources(config, tmp_path / "kept"), policies(config), strict=True)
        return [forms_of(source, policy.prompter.config.mix) for source, policy in sources]

    return weigh


def mix(*weights: float) -> str:
    names = ("tags", "caption", "tags_caption", "caption_tags")
    return f"captions.mix={{{', '.join(f'{name}: {weight}' for name, weight in zip(names, weights, strict=True))}}}"


def test_weights_are_shares_of_what_a_sample_has(weighed: Weigh) -> None:
    (source,) = weighed(mix(3, 1, 0, 0))
    assert source.source == "shards"
    assert source.asked == {"tags": 0.75, "caption": 0.25}
    assert source.in_effect == pytest.approx({"tags": 0.2, "caption": 0.2, "missing": 0.6})


def test_a_form_of_both_becomes_that_of_the_part_there_is(weighed: Weigh) -> None:
    (source,) = weighed(mix(0, 0, 1, 1))
    assert source.asked == {"tags_caption": 0.5, "caption_tags": 0.5}
    assert source.in_effect == pytest.approx({"tags": 0.2, "caption": 0.2, "missing": 0.6})


def test_what_an_overlay_adds_and_what_is_left_out_counts(weighed: Weigh, odd_shards: Path) -> None:
    overlay = odd_shards / "overlay.jsonl"
    lines = [
        '{"key": "tall", "tags": "dog"}',
        '{"key": "small", "caption": "a dog"}',
        '{"key": "exact", "exclude": true}',
    ]
    overlay.write_text("\n".join(lines))
    sources = (
        f"{{plain: {{path: {odd_shards}}}, better: {{path: {odd_shards}, overlay: {{path: {overlay}}}, "
        "captions: {mix: {tags_caption: 6}}}}"
    )
    plain, better = weighed("data.shards=null", f"data.sources={sources}", mix(1, 1, 0, 0))
    assert plain.in_effect == pytest.approx({"tags": 0.2, "caption": 0.2, "missing": 0.6})
    assert better.asked == {"tags": 0.125, "caption": 0.125, "tags_caption": 0.75}
    # Of four samples, one has tags, one a caption, one both and one nothing.
    assert better.in_effect == pytest.approx(
        {"tags": 0.25 + 0.125 / 4, "caption": 0.25 + 0.125 / 4, "tags_caption": 0.75 / 4, "missing": 0.25}
    )
