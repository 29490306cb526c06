"""What a table of pictures is asked for."""

from pathlib import Path
from typing import Any

import pytest

from finetune.config import Config
from finetune.errors import UserError
from finetune.monitor.config import MonitorConfig
from finetune.monitor.samples.config import Picture, Prompt, SamplesConfig
from finetune.runs.sample.axes import Axis, Table, read_table
from tests.runs.saved import recipe, write_checkpoint

FOX, CAT = Prompt("a red fox, snow", 10, "bad"), Prompt("cat", 3, "bad")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for step in (1000, 2000, 3000):
        write_checkpoint(tmp_path, step, [{}])
    return tmp_path


def config(**samples: Any) -> Config:
    prompts = [FOX.text, {"prompt": "cat", "seed": 3}]
    given = {"prompts": prompts, "seed": 10, "negative_prompt": "bad", "guidance": [4.0, 7.0], "steps": 20, **samples}
    found = recipe(Path("model"))
    found.monitor = MonitorConfig(samples=SamplesConfig(**given))
    return found


def table(run: Path, x: str = "step", y: str = "prompt", *at: str, size: str | None = None, **samples: Any) -> Table:
    return read_table(run, config(**samples), x, y, at, size)


def test_an_axis_without_values_has_all_that_the_run_has(run: Path) -> None:
    assert table(run).x == Axis("step", [1000, 2000, 3000])
    assert table(run).y == Axis("prompt", [FOX, CAT])
    assert table(run, "guidance", "seed").x.values == [4.0, 7.0]
    assert table(run, "guidance", "seed").y.values == [10, 11, 12, 13]
    assert table(run, "steps").x.values == [10, 20, 40]
    assert table(run, "steps", steps=800).x.values == [400, 800, 1000]  # there are no more timesteps
    assert table(run, "steps", steps=1).x.values == [1, 2]


def test_values_are_read(run: Path) -> None:
    assert table(run, "step=3000,1000").x.values == [3000, 1000]
    assert table(run, "guidance=1,7.5", "steps=5").x.values == [1.0, 7.5]
    prompts = table(run, "seed=5", "prompt=a, b = c| d ").y.values
    assert prompts == [Prompt("a, b = c", 10, "bad"), Prompt("d", 11, "bad")]


def test_cells_stand_row_by_row(run: Path) -> None:
    found = table(run, "step=1000,3000", "prompt", "guidance=5", "steps=7", size="64x96")
    assert found.cells == [
        (step, Picture(prompt, 64, 96, 5.0, 0.7, 7)) for prompt in (FOX, CAT) for step in (1000, 3000)
    ]
    assert found.x.labels == ["step 1,000", "step 3,000"]
    assert found.y.labels == ["a red fox, snow", "cat"]
    assert found.remark == "guidance 5, 7 sampling steps, 64×96 px"


def test_what_is_no_axis_is_the_newest_and_the_recipe_s_first(run: Path) -> None:
    found = table(run, "seed=1,2", "steps=4,8")
    assert found.cells == [
        (3000, Picture(FOX._replace(seed=seed), 512, 512, 4.0, 0.7, steps)) for steps in (4, 8) for seed in (1, 2)
    ]
    assert found.remark == "step 3,000, a red fox, snow, guidance 4, 512×512 px"


def test_a_seed_that_is_given_is_that_of_all_prompts(run: Path) -> None:
    assert {picture.prompt.seed for _, picture in table(run, "step", "prompt", "seed=7").cells} == {7}
    assert [picture.prompt.seed for _, picture in table(run, "prompt", "guidance").cells] == [10, 3, 10, 3]


@pytest.mark.parametrize(
    ("x", "y", "at", "size", "message"),
    [
        ("colour", "prompt", [], None, "an axis is 'colour': use one of step, prompt, guidance, seed, steps"),
        ("step", "prompt", ["color=1"], None, "an axis is 'color': use one of step"),
        ("step=1000", "step", [], None, "--x and --y are both step: give two different ones of step, prompt"),
        ("step=1000,5", "prompt", [], None, "no checkpoint of step 5: there are those of 1,000, 2,000, 3,000"),
        ("step=new", "prompt", [], None, "step=new: give numbers with commas between them, as step=1,2"),
        ("guidance=0.5", "prompt", [], None, r"guidance is \[0\.5\]: use one scale or more, each at least 1"),
        ("seed=-1", "prompt", [], None, "seed is -1: use a number from 0"),
        ("steps=0", "prompt", [], None, "steps and batch at least 1"),
        ("steps=1001", "prompt", [], None, "steps=1001 is more than the 1000 timesteps"),
        ("step", "prompt", ["seed"], None, "--at seed has 0 values: give one, as --at seed=…"),
        ("step", "prompt", ["seed=1,2"], None, "--at seed has 2 values"),
        ("step", "prompt", ["step=1000"], None, "--at step: it is an axis already"),
        ("step", "prompt", [], "512", r"sizes_px asks for \[512\]: use \[width, height\]"),
        (
            "step",
            "prompt",
            [],
            "100x100",
            r"asks for \[100, 100\]: use \[width, height\], both positive multiples of 8",
        ),
        ("step", "prompt", [], "axb", "--size axb: give width and height, as 512x768"),
    ],
)
def test_mistakes_are_told_in_one_sentence(
    run: Path, x: str, y: str, at: list[str], size: str | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        table(run, x, y, *at, size=size)


def test_a_recipe_without_prompts_asks_for_some(run: Path) -> None:
    for x, y in (("step", "prompt"), ("step", "seed")):
        with pytest.raises(UserError, match="the run's recipe has no prompts: give some"):
            table(run, x, y, prompts=[])
    assert table(run, "step", "prompt=dog", prompts=[]).y.labels == ["dog"]
    assert table(run, "step", "seed", "prompt=dog", prompts=[]).fixed["prompt"].text == "dog"


def test_a_run_without_checkpoints_has_no_table(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="checkpoint"):
        table(tmp_path)
