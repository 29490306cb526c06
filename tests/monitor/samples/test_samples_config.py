"""What a recipe says about its samples."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from finetune.errors import UserError
from finetune.monitor.samples.config import MAX_SEED, Picture, Prompt, SamplesConfig


def test_prompts_are_texts_or_say_more() -> None:
    prompts = ["a fox", {"prompt": "a cat", "seed": 7}, {"prompt": "", "negative_prompt": "blurry"}, "a fox"]
    config = SamplesConfig(prompts=prompts, seed=100, negative_prompt="bad")
    assert config.all_prompts() == [
        Prompt("a fox", 100, "bad"),
        Prompt("a cat", 7, "bad"),
        Prompt("", 102, "blurry"),
        Prompt("a fox", 103, "bad"),
    ]


def test_a_file_s_prompts_follow_the_recipe_s(tmp_path: Path) -> None:
    file = tmp_path / "prompts.yaml"
    file.write_text("- a dog, running\n- {prompt: 狐, seed: 3}\n", encoding="utf-8")
    config = SamplesConfig(prompts=["a fox"], file=str(file), seed=5)
    assert config.all_prompts() == [Prompt("a fox", 5, ""), Prompt("a dog, running", 6, ""), Prompt("狐", 3, "")]
    file.write_text("- another", encoding="utf-8")
    assert [prompt.text for prompt in config.all_prompts()] == ["a fox", "another"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"cannot be read \(No such file or directory\): give a YAML file"),
        ("", "holds no list: begin every prompt with a dash"),
        ("[]", "holds no list"),
        ("a fox", "holds no list"),
        ("- [", "is no YAML: .*line 1"),
        ("- \xff", r"cannot be read \(it is no text\)"),
        ("- a\n- {promt: b}", r"prompts\.yaml\[1\] is {'promt': 'b'}: give a text, or {prompt: …, seed"),
    ],
)
def test_mistakes_in_a_file_name_it(tmp_path: Path, text: str | None, message: str) -> None:
    file = tmp_path / "prompts.yaml"
    if text is not None:
        file.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=rf"^monitor\.samples\.file .*{message}"):
        SamplesConfig(prompts=["a"], file=str(file)).all_prompts()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every_steps": -1}, "every_steps and every_epochs must not be negative"),
        ({"every_epochs": -1}, "every_steps and every_epochs must not be negative"),
        ({"steps": 0}, "at least 1"),
        ({"batch": 0}, "at least 1"),
        ({"seed": -1}, rf"seed is -1: use a number from 0 to {MAX_SEED - 1}"),
        ({"sizes_px": []}, r"sizes_px is empty: give \[\[width, height\]\]"),
        ({"sizes_px": [[512]]}, r"sizes_px asks for \[512\]: use \[width, height\], both positive multiples of 8"),
        ({"sizes_px": [[512, 512], [512, 500]]}, r"asks for \[512, 500\]"),
        ({"sizes_px": [[0, 8]]}, r"asks for \[0, 8\]"),
        ({"sizes_px": [[8, 8], [8, 16], [8, 8]]}, r"has \[8, 8\] twice: name every size once"),
        ({"guidance": []}, r"guidance is \[\]: use one scale or more, each at least 1"),
        ({"guidance": [7.0, 0.5]}, r"guidance is \[7\.0, 0\.5\]"),
        ({"guidance": [float("nan")]}, "guidance is "),
        ({"prompts": ["a", 7]}, r"prompts\[1\] is 7: give a text, .* quotes around a text that looks like a number"),
        ({"prompts": [{"seed": 7}]}, r"prompts\[0\] is {'seed': 7}: give a text"),
        ({"prompts": [{"prompt": "a", "steps": 7}]}, r"prompts\[0\] has no setting steps: give a text, or {prompt"),
        ({"prompts": [{"prompt": 1}]}, r"prompts\[0\]: prompt and negative_prompt have to be texts"),
        ({"prompts": [{"prompt": "a", "negative_prompt": 1}]}, "have to be texts"),
        ({"prompts": [{"prompt": "a", "seed": -1}]}, r"prompts\[0\]\.seed is -1: use a number from 0"),
        ({"prompts": [{"prompt": "a", "seed": True}]}, r"prompts\[0\]\.seed is True"),
        ({"prompts": [{"prompt": "a", "seed": "7"}]}, r"prompts\[0\]\.seed is '7'"),
    ],
)
def test_mistakes_are_told_in_one_sentence(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"^monitor\.samples.*{message}"):
        SamplesConfig(**settings)


def test_every_prompt_is_drawn_once_at_every_size_and_scale_size_by_size() -> None:
    config = SamplesConfig(prompts=["a", "b"], sizes_px=[[64, 64], [64, 96]], guidance=[4.0, 7.0, 9.0], steps=3)
    pictures = config.pictures(config.all_prompts())
    assert set(Counter(pictures).values()) == {1}
    assert [(p.height_px, p.prompt.text, p.guidance) for p in pictures] == [
        (height, text, scale) for height in (64, 96) for text in "ab" for scale in (4.0, 7.0, 9.0)
    ]
    assert pictures[0] == Picture(Prompt("a", 0, ""), 64, 64, 4.0, 0.7, 3)


@pytest.mark.parametrize(
    ("settings", "draws"),
    [
        ({}, False),
        ({"prompts": ["a"]}, True),
        ({"file": "prompts.yaml"}, True),
        ({"prompts": ["a"], "every_steps": 0}, False),
        ({"prompts": ["a"], "every_steps": 0, "every_epochs": 2}, True),
    ],
)
def test_grids_need_prompts_and_a_time(settings: dict[str, Any], draws: bool) -> None:
    assert SamplesConfig(**settings).draws is draws
