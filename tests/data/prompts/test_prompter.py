"""All choices together: how often each is made, and that neither order nor process matters."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.labels import Labels
from finetune.data.plan import Draw
from finetune.data.prompts.config import (
    AliasConfig,
    CaptionConfig,
    CaptionsConfig,
    ImplicationConfig,
    MixConfig,
    TagsConfig,
)
from finetune.data.prompts.forms import EMPTIED
from finetune.data.prompts.prompter import Prompt, Prompter
from tests.helpers import WORDS

DRAWS = 200_000
TAGS = ("dog", "big dog", "sky", "sea", "someone", "kept")
BOTH = Labels(
    TAGS,
    ("A dog. Its sky.", "the {red|blue} sea"),
    categories=("species", "species", "", "", "artist", ""),
    caption_names=("human", "blip"),
)
POLICY = CaptionsConfig(
    drop=0.1,
    mix=MixConfig(0.7, 0.2, 0.06, 0.04),
    wildcards=True,
    templates=["[filewords]", "a [filewords]", "b [filewords]"],
    tags=TagsConfig(
        drop=0.15,
        sparse=0.05,
        sparse_drop=0.75,
        category_drop={"artist": 0.4},
        never_drop=["kept"],
        implications=ImplicationConfig(pairs=[["big dog", "dog"]], drop=[0.3, 0.5]),
    ),
    caption=CaptionConfig(weights={"human": 3.0, "blip": 1.0}, shuffle_sentences=True),
)


def draw(labels: Labels, config: CaptionsConfig, i: int = 0, *, seed: int = 7, path: str = "", step: int = 0) -> Prompt:
    return Prompter(config, seed).draw(labels, path, Draw(i, 0, 0), step, WORDS)


def near(count: int, share: float, draws: int) -> bool:
    """Within 4 standard errors."""
    return abs(count - draws * share) <= 4 * (draws * share * (1 - share)) ** 0.5


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    """200,000 draws of one sample: a hundred samples' worth of ids, epochs and repeats."""
    prompter = Prompter(POLICY, 7)
    return [prompter.draw(BOTH, "", Draw(i % 100, i // 100 % 1000, i // 100_000), 0, WORDS) for i in range(DRAWS)]


@pytest.fixture(scope="module")
def kept(prompts: list[Prompt]) -> list[Prompt]:
    """Those that are not emptied."""
    return [prompt for prompt in prompts if prompt.form != EMPTIED]


@pytest.fixture(scope="module")
def tagged(kept: list[Prompt]) -> list[Prompt]:
    """Those with tags."""
    return [prompt for prompt in kept if prompt.form != "caption"]


def test_dropped_tags_are_those_that_a_prompt_could_have_had() -> None:
    config = CaptionsConfig(
        name="fox", mix=MixConfig(1.0, 0.0), tags=TagsConfig(remove=["sky"], drop=1.0, never_drop=["dog"])
    )
    prompt = draw(Labels(("dog", "sky", "sea", "Sea", "fox", "red"), ()), config)
    assert prompt.text == "fox, dog"
    assert {one.reason for one in prompt.gone} >= {"removed", "twice", "in the template"}
    assert (len(prompt.tags), prompt.dropped, prompt.truncated) == (1, 2, False)


def test_a_prompt_is_truncated_where_tags_or_words_do_not_fit() -> None:
    many = tuple(f"tag{i}" for i in range(100))
    tags = draw(Labels(many, ()), CaptionsConfig())
    assert (tags.tokens, tags.dropped, tags.truncated) == (75, 25, True)
    caption = draw(Labels((), (" ".join(many),)), CaptionsConfig())
    assert (caption.tokens, caption.dropped, caption.truncated) == (75, 0, True)
    assert not draw(Labels(many[:75], ()), CaptionsConfig()).truncated


def test_prompts_are_emptied_at_their_rate(prompts: list[Prompt]) -> None:
    emptied = [prompt for prompt in prompts if prompt.form == EMPTIED]
    assert near(len(emptied), 0.1, DRAWS)
    assert {prompt.text for prompt in emptied} == {""}
    assert {prompt.text for prompt in prompts if prompt.form != EMPTIED}.isdisjoint({""})


@pytest.mark.parametrize(
    ("form", "share"), [("tags", 0.7), ("caption", 0.2), ("tags_caption", 0.06), ("caption_tags", 0.04)]
)
def test_forms_come_by_weight(kept: list[Prompt], form: str, share: float) -> None:
    assert near(sum(prompt.form == form for prompt in kept), share, len(kept))


@pytest.mark.parametrize(("tag", "drop"), [("sky", 0.15), ("sea", 0.15), ("big dog", 0.15), ("someone", 0.4)])
def test_tags_are_dropped_at_their_rates(tagged: list[Prompt], tag: str, drop: float) -> None:
    share = 0.95 * drop + 0.05 * max(drop, 0.75)
    assert near(sum(tag not in prompt.tags for prompt in tagged), share, len(tagged))


def test_tags_are_dropped_by_themselves(tagged: list[Prompt]) -> None:
    assert near(
        sum({"sky", "sea"}.isdisjoint(prompt.tags) for prompt in tagged), 0.95 * 0.15**2 + 0.05 * 0.75**2, len(tagged)
    )


def test_a_sparse_prompt_is_one_for_all_its_tags(tagged: list[Prompt]) -> None:
    lost = [sum(gone.reason == "sparse prompt" for gone in prompt.gone) for prompt in tagged]
    assert near(sum(count > 0 for count in lost), 0.05 * (1 - 0.25**5), len(tagged))
    sparse = [prompt for prompt, count in zip(tagged, lost, strict=True) if count and "sky" in str(prompt.gone)]
    assert len(sparse) > 1000


def test_an_implied_tag_is_dropped_where_what_implies_it_stays(tagged: list[Prompt]) -> None:
    prompter = Prompter(POLICY, 7)
    share = prompter._tags.vocabulary.implications.probability("big_dog", "dog")
    assert 0.3 <= share <= 0.5
    both = [
        p for p in tagged if "big dog" in p.tags and not {("dog", "by chance"), ("dog", "sparse prompt")} & {*p.gone}
    ]
    assert near(sum("dog" not in prompt.tags for prompt in both), share, len(both))
    alone = [p for p in tagged if "big dog" not in p.tags]
    assert near(sum("dog" not in p.tags for p in alone), *_alone(alone))


def _alone(prompts: list[Prompt]) -> tuple[float, int]:
    """Where what implies it is gone, chance alone drops the tag; the draw is sparse the more often for it."""
    p_gone = 0.95 * 0.15 + 0.05 * 0.75
    return (0.95 * 0.15**2 + 0.05 * 0.75**2) / p_gone, len(prompts)


def test_what_is_never_dropped_always_comes(tagged: list[Prompt]) -> None:
    assert all("kept" in prompt.tags for prompt in tagged)


def test_every_tag_comes_first_as_often(tagged: list[Prompt]) -> None:
    whole = [prompt.tags for prompt in tagged if len(prompt.tags) == 6]
    for tag in TAGS:
        assert near(sum(tags[0] == tag for tags in whole), 1 / 6, len(whole))
        assert near(sum(tags[-1] == tag for tags in whole), 1 / 6, len(whole))


def test_captions_come_by_weight(kept: list[Prompt]) -> None:
    alone = [prompt.text for prompt in kept if prompt.form == "caption"]
    blip = [text for text in alone if "the" in text]
    assert near(len(blip), 0.25, len(alone))
    assert near(sum("red" in text for text in blip), 0.5, len(blip))
    human = [text for text in alone if "dog" in text.lower()]
    assert near(sum(text.endswith("Its sky.") for text in human), 0.5, len(human))
    assert len(human) + len(blip) == len(alone)


def test_templates_come_as_often_as_one_another(kept: list[Prompt]) -> None:
    for start in ("a ", "b "):
        assert near(sum(prompt.text.startswith(start) for prompt in kept), 1 / 3, len(kept))


def test_choices_do_not_hang_together(kept: list[Prompt], tagged: list[Prompt]) -> None:
    """Given another choice, each is as frequent as ever."""
    with_a = [prompt for prompt in kept if prompt.text.startswith("a ")]
    assert near(sum(prompt.form == "caption" for prompt in with_a), 0.2, len(with_a))
    with_sea = [prompt for prompt in tagged if "someone" in prompt.tags]
    gone = 0.95 * 0.6 * 0.15 + 0.05 * 0.25 * 0.75
    assert near(sum("sea" not in prompt.tags for prompt in with_sea), gone / (0.95 * 0.6 + 0.05 * 0.25), len(with_sea))
    after = [later for first, later in pairwise(kept) if first.form == "caption"]
    assert near(sum(prompt.form == "caption" for prompt in after), 0.2, len(after))


@given(st.integers(0, 2**63), st.integers(0, 1000), st.integers(0, 100), st.integers(0, 99))
def test_the_same_draw_is_the_same_prompt(sample: int, epoch: int, repeat: int, others: int) -> None:
    made = Draw(sample, epoch, repeat)
    prompter = Prompter(POLICY, 7)
    for i in range(others % 5):
        prompter.draw(BOTH, "", Draw(i, others, 0), 0, WORDS)
    assert prompter.draw(BOTH, "", made, 0, WORDS) == Prompter(POLICY, 7).draw(BOTH, "", made, 0, WORDS)


def test_the_next_epoch_repeat_sample_and_seed_draw_anew() -> None:
    config = replace(POLICY, drop=0.0, mix=MixConfig(tags=1.0, caption=0.0))
    labels = Labels(tuple(f"t{number}" for number in range(30)))
    draws = [Draw(sample, epoch, repeat) for sample in range(5) for epoch in range(5) for repeat in range(5)]
    texts = [Prompter(config, seed).draw(labels, "", each, 0, WORDS).text for each in draws for seed in (1, 2)]
    assert len(set(texts)) == len(texts)


def test_another_process_draws_the_same() -> None:
    program = (
        "import json; from tests.data.prompts.test_prompter import BOTH, POLICY, draw; "
        "print(json.dumps([draw(BOTH, POLICY, i).text for i in range(300)]))"
    )
    texts = [draw(BOTH, POLICY, i).text for i in range(300)]
    for hashes in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hashes, "PYTHONPATH": str(Path(__file__).parents[3])}
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
        )
        assert json.loads(done.stdout) == texts


@pytest.mark.parametrize(("epoch", "emptied"), [(0, False), (1, False), (2, True), (3, False), (5, True)])
def test_every_third_epoch_is_emptied(epoch: int, emptied: bool) -> None:
    prompter = Prompter(CaptionsConfig(drop=0.0, drop_every_epochs=3), 1)
    texts = {prompter.draw(Labels(("a",)), "", Draw(i, epoch, 0), 0, WORDS).text for i in range(20)}
    assert texts == ({""} if emptied else {"a"})


TAGGED = Labels(("fox", "snow"))


@pytest.mark.parametrize(
    ("labels", "settings", "expected"),
    [
        (TAGGED, {"prefix": "photo of", "suffix": "in colour"}, "photo of fox, snow in colour"),
        (TAGGED, {"prefix": "best,"}, "best, fox, snow"),
        (TAGGED, {"name": "sks"}, "sks, fox, snow"),
        (TAGGED, {"name": "fox"}, "fox, snow"),
        (Labels(("snow", "Fox")), {"name": "fox"}, "fox, snow"),
        (TAGGED, {"name": "fox", "templates": ["[filewords], [name]"]}, "snow, fox"),
        (TAGGED, {"name": "sks", "templates": ["[filewords] by [name]"]}, "fox, snow by sks"),
        (TAGGED, {"name": "sks", "templates": ["a photo of [name]"]}, "a photo of sks"),
        (Labels(), {"name": "sks"}, "sks"),
        (Labels(), {"templates": ["[filewords], best quality"]}, "best quality"),
        (Labels(), {"prefix": "photo of"}, "photo of"),
        (Labels(), {"missing": "a dog"}, "a dog"),
        (Labels(), {"missing": "[folder]"}, "red fox"),
        (Labels(), {"missing": "a [folder]", "name": "sks"}, "sks, a red fox"),
        (TAGGED, {"missing": "[folder]"}, "fox, snow"),
        (TAGGED, {"templates": ["[filewords], [folder]"]}, "fox, snow, red fox"),
        (Labels(captions=("It sits.",)), {"name": "sks"}, "sks, It sits."),
        (Labels(("[name]",)), {"name": "sks"}, "sks, [name]"),
        (TAGGED, {"templates": ["{a|b} [filewords]"]}, "{a|b} fox, snow"),
        (TAGGED, {"templates": ["{a|a} [filewords]{ |  }!"], "wildcards": True}, "a fox, snow !"),
    ],
)
def test_templates_names_and_folders(labels: Labels, settings: dict[str, Any], expected: str) -> None:
    config = CaptionsConfig(drop=0.0, tags=TagsConfig(shuffle=False), **settings)
    assert draw(labels, config, path="photos/10_red fox/1.jpg").text == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [("10_fox/1.jpg", "fox"), ("a/b c/1.jpg", "b c"), ("1.jpg", ""), ("2024_x/1.jpg", "2024_x"), ("000123", "")],
)
def test_folders_give_their_names(path: str, expected: str) -> None:
    assert draw(Labels(), CaptionsConfig(drop=0.0, missing="[folder]"), path=path).text == expected


@pytest.mark.parametrize(
    ("form", "caption", "expected"),
    [
        ("tags_caption", "It sits.", "fox, snow, It sits."),
        ("caption_tags", "It sits.", "It sits. fox, snow"),
        ("caption_tags", "a fox", "a fox, fox, snow"),
    ],
)
def test_tags_and_caption_in_both_orders(form: str, caption: str, expected: str) -> None:
    mix = MixConfig(**{"tags": 0.0, "caption": 0.0, form: 1.0})
    config = CaptionsConfig(drop=0.0, mix=mix, tags=TagsConfig(shuffle=False))
    assert draw(Labels(("fox", "snow"), (caption,)), config).text == expected


@pytest.mark.parametrize("labels", [Labels(), Labels(("\0",)), Labels(("", " "), ("\x00",))])
def test_labels_of_nothing_are_an_empty_prompt(labels: Labels) -> None:
    assert draw(labels, CaptionsConfig(drop=0.0)).text == ""


@given(st.lists(st.text(max_size=8), max_size=6), st.lists(st.text(max_size=20), max_size=2), st.integers(0, 99))
def test_any_labels_give_a_prompt(tags: list[str], captions: list[str], i: int) -> None:
    config = replace(POLICY, name="sks", prefix="p", templates=["[name] [filewords] {x|y}"])
    found = draw(Labels(tuple(tags), tuple(captions)), config, i)
    found.text.encode("utf-8")
    assert found.text == " ".join(found.text.split())
    assert WORDS.tokens(found.text) == found.tokens <= WORDS.most


def test_tags_that_are_all_removed_are_none() -> None:
    config = CaptionsConfig(drop=0.0, tags=TagsConfig(remove=["rating:*"]))
    assert draw(Labels(("rating:safe", "\0"), ("a fox",)), config).text == "a fox"
    assert draw(Labels(("rating:safe",)), replace(config, missing="a picture")).text == "a picture"
    assert Prompter(config, 0).forms(Labels(("rating:safe", "fox"), ("a fox",))) == {"tags": 0.5, "caption": 0.5}


def test_pictures_that_must_not_be_mirrored() -> None:
    prompter = Prompter(CaptionsConfig(no_flip=["text on *", "written", "re:^left"]), 0)
    assert prompter.forbids_flip(Labels(("sky", "Text_on_Sign"))) == "text on *"
    assert prompter.forbids_flip(Labels(("sky",), ("nothing", "It is written here."))) == "written"
    assert prompter.forbids_flip(Labels(("left_hand",))) == "re:^left"
    assert prompter.forbids_flip(Labels(("sky",), ("a cat",))) is None
    assert Prompter(CaptionsConfig(), 0).forbids_flip(Labels(("text on sign",))) is None


@pytest.mark.parametrize(
    ("tag", "settings"),
    [
        ("a; text on sign", {"split": ";"}),
        ("b ||| text on sign", {"keep_separator": "|||"}),
        ("sky;;;text on sign", {"group_separator": ";;;"}),
        ("text_on_sign", {"aliases": AliasConfig(pairs={"text on sign": "sign writing"})}),
        ("sign_text", {"aliases": AliasConfig(pairs={"sign text": "text on sign"})}),
    ],
)
def test_whatever_a_tag_is_written_in_it_forbids_mirroring(tag: str, settings: dict[str, Any]) -> None:
    prompter = Prompter(CaptionsConfig(no_flip=["text on *"], tags=TagsConfig(**settings)), 0)
    assert prompter.forbids_flip(Labels(("sky", tag))) == "text on *"
    assert prompter.forbids_flip(Labels(("sky", tag.replace("text", "paint")))) is None


def test_wildcards_forbid_mirroring_where_one_of_them_would() -> None:
    prompter = Prompter(CaptionsConfig(no_flip=["written"], wildcards=True), 0)
    assert prompter.forbids_flip(Labels(("sky", "{written|sky}"))) == "written"
    assert prompter.forbids_flip(Labels(("sky", "{handwritten|sky}"))) is None


def test_a_template_without_words_has_no_tags() -> None:
    config = CaptionsConfig(drop=0.0, name="sks", templates=["a photo of [name]"], tags=TagsConfig(drop=0.5))
    found = draw(TAGGED, config)
    assert (found.text, found.tags, found.gone) == ("a photo of sks", (), ())


def test_the_name_may_be_an_alias() -> None:
    tags = TagsConfig(shuffle=False, aliases=AliasConfig(pairs={"doggo": "dog"}))
    assert draw(Labels(("dog", "sky")), CaptionsConfig(drop=0.0, name="doggo", tags=tags)).text == "doggo, sky"


def test_tags_that_come_to_nothing_leave_the_caption() -> None:
    for tag, settings in (
        ("sky; sky", {"split": ";", "remove": ["sky"]}),
        ("|||", {"keep_separator": "|||"}),
        ("{|}", {}),
        (";;;", {"group_separator": ";;;"}),
    ):
        config = CaptionsConfig(drop=0.0, wildcards=True, tags=TagsConfig(**settings))  # type: ignore[arg-type]
        assert {draw(Labels((tag,), ("a fox", "\0")), config, i).text for i in range(30)} == {"a fox"}


def test_a_tag_that_is_dropped_still_forbids_mirroring() -> None:
    config = CaptionsConfig(no_flip=["asymmetrical"], tags=TagsConfig(remove=["asymmetrical"]))
    assert Prompter(config, 0).forbids_flip(Labels(("asymmetrical", "sky"))) == "asymmetrical"
