"""Mistakes in a recipe's captions are named, each in a sentence."""

from typing import Any

import pytest
from omegaconf import OmegaConf

from finetune.data.prompts.config import CaptionsConfig
from finetune.data.prompts.length import TokenLimit
from finetune.data.prompts.prompter import Prompter
from finetune.errors import UserError
from finetune.recipes import read_recipe


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"drop": 1.5}, r"captions\.drop is 1\.5: use a number from 0 to 1"),
        ({"drop_every_epochs": -1}, r"captions\.drop_every_epochs is -1: use 0, or 2 or more"),
        ({"drop_every_epochs": 1}, r"captions\.drop_every_epochs is 1"),
        ({"missing": "a [foldr]"}, r"captions\.missing has \[foldr\]: use \[folder\]"),
        ({"mix": {"tags": -1.0}}, r"captions\.mix has the weights -1, 1, 0, 0: all must be numbers, none negative"),
        ({"mix": {"tags": 0.0, "caption": 0.0}}, r"captions\.mix .* none negative and one above 0"),
        ({"no_flip": [""]}, r"captions\.no_flip has an empty pattern: remove it"),
        ({"no_flip": ["re:("]}, r"captions\.no_flip has 're:\(', which is no regular expression"),
        ({"tags": {"drop": -0.1}}, r"captions\.tags\.drop is -0\.1"),
        ({"tags": {"sparse": 2.0}}, r"captions\.tags\.sparse is 2"),
        ({"tags": {"sparse_drop": float("nan")}}, r"captions\.tags\.sparse_drop is nan"),
        ({"tags": {"category_drop": {"artist": 3.0}}}, r"captions\.tags\.category_drop\.artist is 3"),
        ({"tags": {"keep_first": -1}}, r"captions\.tags\.keep_first is -1"),
        ({"tags": {"warmup_steps": -1}}, r"captions\.tags\.warmup_steps is -1"),
        ({"tags": {"important": ["re:["]}}, r"captions\.tags\.important has 're:\['"),
        ({"tags": {"never_drop": [" "]}}, r"captions\.tags\.never_drop has an empty pattern"),
        ({"tags": {"remove": ["re:*"]}}, r"captions\.tags\.remove has 're:\*'"),
        ({"tags": {"separator": ","}}, r"captions\.tags\.separator is ',': end it in a space"),
        ({"tags": {"spelling": {"underscores": "no"}}}, r"spelling\.underscores is 'no': use one of keep, spaces"),
        ({"tags": {"spelling": {"brackets": "x"}}}, r"spelling\.brackets is 'x': use one of keep, escape, unescape"),
        ({"tags": {"spelling": {"case": "upper"}}}, r"spelling\.case is 'upper': use one of keep, lower"),
        ({"tags": {"implications": {"drop": [0.3, 1.5]}}}, r"implications\.drop is 1\.5"),
        ({"tags": {"implications": {"drop": [0.5, 0.3]}}}, r"implications\.drop is \[0\.5, 0\.3\]: give \[lowest"),
        ({"tags": {"implications": {"pairs": [["dog"]]}}}, r"implications\.pairs has \['dog'\]: give \[tag"),
        ({"tags": {"categories": {"site": "x"}}}, r"categories\.site is 'x': use one of danbooru, e621"),
        ({"mix": {"tags": float("inf")}}, r"captions\.mix has the weights inf, 1, 0, 0: all must be numbers"),
        ({"caption": {"weights": {"blip": float("nan")}}}, r"caption\.weights\.blip is nan: use a number"),
        ({"no_flip": ["category: "]}, r"captions\.no_flip has an empty pattern"),
        ({"no_flip": ["re:"]}, r"captions\.no_flip has an empty pattern"),
        ({"no_flip": ["re:a{99999999999}"]}, r"captions\.no_flip has 're:a\{99999999999\}', which is no regular"),
        (
            {"no_flip": [{"category": "artist"}]},
            r"captions\.no_flip has \{'category': 'artist'\}, which is no text: put",
        ),
        (
            {"templates": [["filewords"]]},
            r"captions\.templates has \['filewords'\], which is no text: put it in quotes",
        ),
        (
            {"templates": ["[filewrods]"]},
            r"captions\.templates has \[filewrods\]: use \[filewords\], \[name\], \[folder\]",
        ),
        ({"templates": [" "]}, r"captions\.templates has an empty one"),
        ({"tags": {"keep_separator": ","}}, r"keep_separator is ',', but tags are cut at commas"),
        ({"tags": {"group_separator": "\n"}}, r"group_separator is '\\n', but tags are cut at commas"),
        ({"caption": {"lines": "last"}}, r"caption\.lines is 'last': use one of all, first, random"),
        ({"caption": {"weights": {"blip": -1.0}}}, r"caption\.weights\.blip is -1"),
    ],
)
def test_values_that_are_not_allowed(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(CaptionsConfig), settings))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("captions.tags.shufle=true", r"no setting captions\.tags\.shufle: did you mean .*captions\.tags\.shuffle"),
        ("captions.tag_drop=0.1", "there is no setting captions.tag_drop"),
        ("captions.tags.drop=often", r"captions\.tags\.drop is 'often': give a value of type float"),
        ("captions.mix.both=1", "there is no setting captions.mix.both"),
        ("+captions.tags.dropp=1", "there is no setting captions.tags.dropp: did you mean captions.tags.drop"),
    ],
)
def test_a_misspelt_policy(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_recipe(["conf=hyperfusion", "data.shards=x", override])


def test_what_stands_around_every_prompt_may_not_be_too_long() -> None:
    limit = TokenLimit(lambda text: 1, 4)
    Prompter(CaptionsConfig(prefix="one two three four"), 0).check(limit)
    with pytest.raises(UserError, match=r"have 5 tokens, but model\.max_tokens is 4: shorten them"):
        Prompter(CaptionsConfig(prefix="one two three", name="four five"), 0).check(limit)


def test_templates_that_ask_for_a_name_need_one() -> None:
    with pytest.raises(UserError, match=r"captions\.templates ask for \[name\], but captions\.name is empty"):
        Prompter(CaptionsConfig(templates=["[name], [filewords]"]), 0)


def test_a_name_has_its_place_in_some_template() -> None:
    with pytest.raises(UserError, match=r"captions\.name is 'sks', but no template has \[name\]"):
        Prompter(CaptionsConfig(name="sks", templates=["[filewords]"]), 0)
    Prompter(CaptionsConfig(name="sks", templates=["[filewords]"], suffix="by [name]"), 0)


def test_lists_that_are_missing_are_named() -> None:
    config = CaptionsConfig()
    config.tags.implications.files = ["nowhere.csv.gz"]
    with pytest.raises(UserError, match=r"nowhere\.csv\.gz"):
        Prompter(config, 0)
