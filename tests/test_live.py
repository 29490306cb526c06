"""What is set while a run goes on: what may be, when it holds, and what of it is taken up again."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.config import Config
from finetune.data.journal import Edition, Journal, Setting
from finetune.errors import UserError
from finetune.live import Live, parsed, recalled
from finetune.recipes import read_recipe

CONFIG = read_recipe(["conf=demo"])
EMPTY = Journal((Edition(0, {}),))
SETTINGS = st.builds(
    Setting, st.integers(0, 20), st.sampled_from(["a.b", "c"]), st.one_of(st.none(), st.integers(1, 9))
)


def value_at(journal: Journal, key: str, step: int) -> Any:
    held = [s.value for s in journal.settings if s.key == key and s.step <= step]
    return held[-1] if held else None


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("optim.lr=2e-6", ("optim.lr", 2e-6)),
        (" optim.text_encoder_lr = 1e-7 ", ("optim.text_encoder_lr", 1e-7)),
        ("monitor.samples.every_steps=100", ("monitor.samples.every_steps", 100)),
        ("monitor.samples.prompts=[a fox, a dog]", ("monitor.samples.prompts", ["a fox", "a dog"])),
        ("checkpoint.every_steps=50", ("checkpoint.every_steps", 50)),
    ],
)
def test_an_assignment_is_read_as_in_a_recipe(assignment: str, expected: tuple[str, Any]) -> None:
    assert parsed(CONFIG, assignment, world=1) == expected


@pytest.mark.parametrize(
    ("assignment", "told"),
    [
        ("optim.lr", "sets nothing: write KEY=VALUE"),
        ("optim.lr=", "sets nothing"),
        ("optim.lr=fast", r"^optim\.lr is 'fast': give a value of type float$"),
        ("optim.lr=-1", r"^optim\.lr is -1"),
        ("optim.betas=[0.9, 0.9]", "optim.betas cannot be set while a run goes on, only optim.lr, "),
        ("run.seed=3", "run.seed cannot be set"),
        ("monitor.samples.colour=red", r"^monitor\.samples\.colour: .*colour"),
        ("monitor.flush_every_steps=0", "monitor.flush_every_steps must be at least 1"),
        ("optim.text_encoder_2_lr=null", "give it a value"),
        ("monitor.samples.steps=5000", "more than the 1000 timesteps"),
        ("optim.lr={", "cannot be read"),
        ("monitor.samples.prompts=&a [*a]", "cannot be read"),
        ("monitor.samples.file=&a [*a]", "cannot be read"),
        (f"monitor.samples.prompts={'[' * 3000}", "cannot be read"),
        (f"monitor.samples.seed={'9' * 5000}", "cannot be read"),
    ],
)
def test_what_may_not_be_set_is_refused_with_a_sentence(assignment: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        parsed(CONFIG, assignment, world=1)


def test_a_setting_holds_from_its_step_on_until_it_is_set_again_or_given_back() -> None:
    key = "monitor.samples.every_steps"
    settings = [Setting(5, key, 7), Setting(8, key, 9), Setting(12, key, None)]
    live = Live(CONFIG)
    found = [live.at(settings, step).monitor.samples.every_steps for step in (4, 5, 7, 8, 11, 12, 6)]
    assert found == [300, 7, 7, 9, 9, 300, 7]
    assert live.at(settings, 4) is CONFIG
    assert CONFIG.monitor.samples.every_steps == 300


def test_rates_are_the_phases_matter() -> None:
    assert Live(CONFIG).at([Setting(0, "optim.lr", 1.0)], 3) is CONFIG


def test_a_recipe_is_made_anew_only_when_something_else_holds() -> None:
    """Which takes longer than a step may wait."""
    live, settings = Live(CONFIG), [Setting(5, "monitor.samples.every_steps", 7), Setting(9, "optim.lr", 1.0)]
    assert live.at(settings, 5) is live.at(settings, 12)
    assert live.at(settings, 4) is not live.at(settings, 5)


@given(st.lists(SETTINGS, max_size=12), st.integers(0, 12), st.integers(0, 20))
def test_a_run_that_was_killed_takes_up_what_it_would_have_had(asked: list[Setting], saved: int, step: int) -> None:
    """Whichever of the settings its checkpoint knew of."""
    whole, checkpoint = EMPTY, EMPTY
    for i, setting in enumerate(asked):
        whole = whole.with_setting(setting)
        checkpoint = checkpoint.with_setting(setting) if i < saved else checkpoint
    kept = [{"step": s.step, "key": s.key, "value": s.value} for s in asked]
    again, given_back = recalled(checkpoint, kept, (), 0)
    assert not given_back
    assert all(value_at(again, key, step) == value_at(whole, key, step) for key in ("a.b", "c"))


def test_without_the_file_what_the_checkpoint_knows_holds() -> None:
    journal = EMPTY.with_setting(Setting(3, "c", 1))
    assert recalled(journal, [], (), 5) == (journal, [])


def test_what_the_recipe_changes_later_comes_before_what_was_set() -> None:
    journal = EMPTY.with_setting(Setting(3, "c", 1)).with_setting(Setting(3, "a.b", 2))
    kept = [{"step": 3, "key": "c", "value": 1}, {"step": 9, "key": "c", "value": 4}]
    again, given_back = recalled(journal, kept, ["c", "d"], 6)
    assert given_back == [Setting(6, "c", None)]
    assert [value_at(again, "c", step) for step in (2, 3, 5, 6, 9)] == [None, 1, 1, None, None]
    assert value_at(again, "a.b", 9) == 2
    # Once that is kept too, the next start finds it so, whatever the recipe was before.
    kept.append({"step": 6, "key": "c", "value": None})
    assert recalled(journal, kept, (), 6)[0] == again


def test_a_list_that_the_recipe_changes_inside_counts_as_changed() -> None:
    journal = EMPTY.with_setting(Setting(3, "a.b", [1]))
    assert recalled(journal, [], ["a.b[0].c"], 6)[1] == [Setting(6, "a.b", None)]
    assert not recalled(journal, [], ["a.bc"], 6)[1]


def test_the_recipe_stays_what_it_was() -> None:
    assert isinstance(Live(CONFIG).at([Setting(0, "checkpoint.every_steps", 3)], 0), Config)
    assert CONFIG.checkpoint.every_steps == 300
