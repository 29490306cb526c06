"""Which prompts a recipe makes, by the code that training runs."""

import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from data_tools.indexing import index_folder
from data_tools.loose import index_tree
from data_tools.stats.looking import look, spread
from data_tools.stats.prompts import PromptFigures, TagFigures
from data_tools.stats.sources import open_sources, sources_of
from finetune.data.samples import place_of
from finetune.errors import UserError
from finetune.recipe_data import open_recipe
from finetune.recipes import read_recipe
from tests.data_tools.stats.test_buckets import recipe
from tests.data_tools.test_indexing import picture, write_tar

TAGS = [f"tag {i}" for i in range(30)]
Draw = Callable[..., PromptFigures]


def write_shards(folder: Path, labels: list[dict[str, Any]]) -> Path:
    """A shard with a picture for each labels."""
    folder.mkdir(parents=True)
    members = [(f"{i:03}.png", picture(1, (64, 64))) for i in range(len(labels))]
    write_tar(folder / "0.tar", [*members, *((f"{i:03}.json", json.dumps(f).encode()) for i, f in enumerate(labels))])
    index_folder(folder, "auto", workers=1)
    return folder


@pytest.fixture
def drawn(tmp_path: Path, tiny_model: Path) -> Draw:
    """The figures of prompts: (labels of samples, settings below captions, …) -> figures."""

    def draw(
        labels: list[dict[str, Any]] | Path, *settings: str, samples: int = 1000, draws: int = 10, tokens: int = 225
    ) -> PromptFigures:
        folder = labels if isinstance(labels, Path) else write_shards(tmp_path / "shards", labels)
        model = [f"model.path={tiny_model}", f"model.max_tokens={tokens}"]
        config = read_recipe(recipe(f"data.shards={folder}", *model, "captions.drop=0", *settings))
        opened = open_recipe(config, tmp_path / "kept")
        return look(config, opened, sources_of(opened.dataset, opened.journal), samples, draws)

    return draw


def of(figures: PromptFigures) -> dict[str, TagFigures]:
    return {tag.tag: tag for tag in figures.tags}


def near(share: float, trials: int, errors: float = 4) -> Any:
    """Within some standard errors of a share."""
    return pytest.approx(share, abs=errors * math.sqrt(share * (1 - share) / trials))


def test_half_of_the_tags_are_dropped(drawn: Draw) -> None:
    figures = drawn([{"tags": TAGS}] * 20, "captions.tags.drop=0.5", draws=20)
    assert (figures.samples, figures.draws, figures.unreadable) == (20, 20, 0)
    assert figures.forms == {"tags": 1.0}
    assert figures.stored_tags == len(TAGS)
    tags = of(figures)
    assert sorted(tags) == sorted(TAGS)
    for tag in tags.values():
        assert tag.samples == 1.0
        assert tag.prompts == tag.kept == near(0.5, 400)
        assert tag.mostly == "by chance"
    assert figures.drawn_tags / 30 == near(0.5, 400 * 30)
    assert figures.drawn_tags == pytest.approx(sum(tag.prompts for tag in tags.values()))


def test_tags_are_counted_where_they_are_stored(drawn: Draw) -> None:
    labels = [{"tags": ["a_dog", "red"]}, {"tags": ["a_dog"]}, {"tags": ["Sky"]}, {"caption": "a dog"}]
    figures = drawn(labels, "captions.tags.spelling.underscores=spaces")
    tags = of(figures)
    assert [(tag.tag, tag.samples, tag.prompts, tag.kept) for tag in figures.tags] == [
        ("a dog", 0.5, 0.5, 1.0),
        ("Sky", 0.25, 0.25, 1.0),
        ("red", 0.25, 0.25, 1.0),
    ]
    assert tags["red"].mostly is None
    assert figures.forms == {"tags": 0.75, "caption": 0.25}
    assert figures.stored_tags == 1.0
    assert figures.drawn_tags == pytest.approx(4 / 3)


def test_kept_does_not_count_prompts_without_tags(drawn: Draw) -> None:
    figures = drawn([{"tags": TAGS[:1], "caption": "a dog"}] * 40, "captions.mix={tags: 1, caption: 3}")
    (tag,) = figures.tags
    assert figures.forms["tags"] == tag.prompts == near(0.25, 400)
    assert tag.kept == 1.0


def test_tags_of_a_category_are_lost_most(drawn: Draw) -> None:
    labels = [{"tags": {"artist": ["someone"], "general": ["dog", "red"]}}] * 40
    figures = drawn(labels, "captions.tags.drop=0.1", "+captions.tags.category_drop.artist=0.9")
    someone = of(figures)["someone"]
    assert someone.kept == near(0.1, 400)
    assert someone.mostly == "category artist"
    assert someone.kept_at_most < min(of(figures)[tag].kept_at_most for tag in ("dog", "red"))


@pytest.mark.parametrize(("drop", "together"), [(1.0, 0.0), (0.25, 0.75), (0.0, 1.0)])
def test_implied_pairs_are_seen_together_as_often_as_asked(drawn: Draw, drop: float, together: float) -> None:
    labels = [{"tags": ["big dog", "dog", "red"]}] * 30 + [{"tags": ["dog", "red"]}] * 10
    implied = "pairs: [[big_dog, dog], [dog, animal]]"
    figures = drawn(labels, f"captions.tags.implications={{{implied}, drop: [{drop}, {drop}]}}")
    (pair,) = figures.implied_pairs
    assert (pair.tag, pair.implied, pair.samples) == ("big dog", "dog", 0.75)
    assert pair.together == near(together, 300)
    if drop == 1.0:
        assert of(figures)["dog"].mostly == "implied"
        assert figures.lost_tags == {"implied": pytest.approx(30 / (30 * 3 + 10 * 2))}


def test_a_dropped_caption_leaves_the_implied_pairs_without_a_share(drawn: Draw) -> None:
    settings = ("captions.tags.implications.pairs=[[a, b]]", "captions.mix={tags: 0, caption: 1}")
    (pair,) = drawn([{"tags": ["a", "b"], "caption": "a dog"}], *settings).implied_pairs
    assert (pair.samples, pair.together) == (1.0, None)


def test_what_is_empty_on_purpose_and_what_is_empty_for_want_of_labels(drawn: Draw, tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "shards", [{"tags": TAGS}, {"tags": TAGS}, {"tags": TAGS}, {}])
    figures = drawn(folder)
    assert (figures.empty, figures.emptied, figures.forms) == (0.25, 0.0, {"tags": 0.75, "missing": 0.25})
    figures = drawn(folder, "captions.missing=nothing")
    assert (figures.empty, figures.forms["missing"]) == (0.0, 0.25)
    figures = drawn(folder, "captions.drop=1.0")
    assert (figures.empty, figures.emptied, figures.forms) == (1.0, 1.0, {"emptied": 1.0})
    assert (figures.lengths.longest, figures.lengths.classes) == (0, [])
    assert all((tag.prompts, tag.kept) == (0.0, None) for tag in figures.tags)
    figures = drawn(folder, "captions.tags.drop=1.0")
    assert (figures.empty, figures.emptied) == (1.0, 0.0)
    figures = drawn(folder, "captions.drop_every_epochs=5")
    assert figures.emptied == 2 / 10


def test_lengths_in_tokens(drawn: Draw, tiny_model: Path) -> None:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(str(tiny_model), subfolder="tokenizer")
    captions = [" ".join(["picture", "number", "7"] * i) for i in range(1, 21)]
    expected = sorted(len(tokenizer(caption, add_special_tokens=False)["input_ids"]) for caption in captions)
    assert len(set(expected)) == 20
    lengths = drawn([{"caption": caption} for caption in captions], draws=1).lengths
    assert (lengths.limit, lengths.cut) == (225, 0.0)
    assert (lengths.median, lengths.p95, lengths.longest) == (expected[9], expected[18], expected[19])
    step = lengths.class_tokens
    for number, count in enumerate(lengths.classes):
        assert count == sum(step * number < tokens <= step * (number + 1) for tokens in expected)


def test_prompts_beyond_the_limit_are_counted_as_cut(drawn: Draw) -> None:
    labels = [{"caption": "7 " * 76}, {"caption": "7 " * 75}, {"tags": ["7 " * 74, "7", "8"]}, {}]
    lengths = drawn(labels, tokens=75).lengths
    assert lengths.longest <= lengths.limit == 75
    assert lengths.cut == 0.5
    # What fills CLIP's 75 tokens to the last is counted with what needs one chunk of them.
    assert len(lengths.classes) * lengths.class_tokens == 75


def test_a_limit_is_why_tags_are_lost(drawn: Draw) -> None:
    figures = drawn([{"tags": ["7 " * 70, "8 " * 40]}], "captions.tags.shuffle=false", tokens=75)
    last = figures.tags[-1]
    assert (last.kept, last.mostly) == (0.0, "too long")


def test_samples_that_are_never_mirrored(drawn: Draw) -> None:
    labels = [{"tags": ["text"]}, {"caption": "she looks to the left"}, {"tags": ["sky"]}, {}, {"tags": ["text", "a"]}]
    assert drawn(labels, "captions.no_flip=[text, left]").no_flip == 0.6


def test_labels_that_cannot_be_read_are_told_apart(drawn: Draw, tmp_path: Path) -> None:
    for name in ("good", "bad"):
        (tmp_path / "loose").mkdir(exist_ok=True)
        (tmp_path / "loose" / f"{name}.png").write_bytes(picture(1, (64, 64)))
        (tmp_path / "loose" / f"{name}.json").write_text('{"tags": ["dog"]}')
    index_tree(tmp_path / "loose", tmp_path / "loose", "auto", 1)
    (tmp_path / "loose" / "bad.json").write_text('{"tags": [dog"]}')
    figures = drawn(tmp_path / "loose")
    assert (figures.samples, figures.unreadable, figures.forms) == (1, 1, {"tags": 1.0})


def test_a_shard_that_is_missing_is_told_at_once(drawn: Draw, tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "shards", [{"tags": TAGS}])
    (folder / "0.tar").unlink()
    with pytest.raises(UserError, match=r"0\.tar"):
        drawn(folder)


def test_a_warm_up_of_tags_is_seen_as_training_would(drawn: Draw) -> None:
    """Ten samples are ten steps an epoch, so that the third epoch is behind a warm-up of twenty."""
    figures = drawn([{"tags": TAGS[:11]}] * 10, "captions.tags={shuffle: false, warmup_steps: 20}", draws=4)
    # Of 11 tags, 1 in step 0, 6 in step 10, and all from step 20 on.
    assert figures.drawn_tags == (1 + 6 + 11 + 11) / 4
    assert of(figures)["tag 0"].kept == 1.0
    assert {of(figures)[f"tag {i}"].kept for i in range(1, 6)} == {0.75}
    assert {of(figures)[f"tag {i}"].kept for i in range(6, 11)} == {0.5}
    assert of(figures)["tag 10"].mostly == "warm-up"


def test_every_source_has_its_own_policy(drawn: Draw, tmp_path: Path, tiny_model: Path) -> None:
    for name in ("one", "two"):
        write_shards(tmp_path / name, [{"tags": [name], "caption": "a dog"}] * 10)
    other = "captions: {mix: {tags: 1, caption: 0}}"
    sources = f"{{one: {{path: {tmp_path}/one}}, two: {{path: {tmp_path}/two, {other}}}}}"
    mix = "captions.mix={tags: 0, caption: 1}"
    figures = drawn(tmp_path, "data.shards=null", f"data.sources={sources}", mix)
    assert [(source.source, source.in_effect) for source in figures.sources] == [
        ("one", {"caption": 1.0}),
        ("two", {"tags": 1.0}),
    ]
    assert figures.forms == {"caption": 0.5, "tags": 0.5}
    assert (of(figures)["one"].prompts, of(figures)["two"].prompts) == (0.0, 0.5)


def test_samples_are_spread_evenly_over_all_that_are_trained(tmp_path: Path) -> None:
    folders = [write_shards(tmp_path / name, [{}] * count) for name, count in (("a", 30), ("b", 70))]
    (tmp_path / "exclude.txt").write_text("001\n")
    listed = ", ".join(f"{folder.name}: {{path: {folder}}}" for folder in folders)
    config = read_recipe(
        recipe(f"data.sources={{{listed}}}", "data.shards=null", f"data.exclude={tmp_path}/exclude.txt")
    )
    sources = open_sources(config, tmp_path / "kept")
    everything = spread(sources, 1000)
    assert len(everything) == len(set(everything)) == 98
    assert spread(sources, 98) == everything
    assert not {place_of(sample).ordinal for sample in everything} & {1}
    some = spread(sources, 14)
    assert [place_of(sample).source for sample in some] == [0] * 4 + [1] * 10
    assert {everything.index(b) - everything.index(a) for a, b in pairwise(some)} == {7}
    assert spread(sources, 0) == []
