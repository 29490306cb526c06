"""Which checkpoints are kept, and which settings can be given."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.checkpoint.config import CheckpointConfig
from finetune.checkpoint.manifest import Checkpoint, Marks
from finetune.checkpoint.retention import retained
from finetune.errors import UserError

losses = st.none() | st.sampled_from([0.1, 0.2, 0.3]) | st.floats()
marks = st.builds(Marks, st.booleans(), losses)
configs = st.builds(
    CheckpointConfig,
    every_steps=st.just(5),
    keep=st.integers(1, 5),
    keep_every_steps=st.sampled_from([0, 5, 20]),
    keep_phases=st.booleans(),
    keep_best=st.integers(0, 3),
)


def checkpoints(of: dict[int, Marks]) -> list[Checkpoint]:
    return [Checkpoint(Path(f"step-{step:08d}"), step, 1, {}, {}, mark) for step, mark in of.items()]


runs = st.dictionaries(st.integers(1, 20).map(lambda n: 5 * n), marks, max_size=12).map(checkpoints)


def test_each_rule_by_itself() -> None:
    there = checkpoints(
        {
            5: Marks(phase_border=True),
            10: Marks(validation_loss=0.2),
            15: Marks(validation_loss=float("nan")),
            20: Marks(validation_loss=0.1),
            25: Marks(validation_loss=0.1),
            30: Marks(),
        }
    )
    bare = CheckpointConfig(every_steps=5, keep=1, keep_phases=False, keep_best=0)
    assert retained(there, bare) == {30}
    for settings, kept in (
        ({"keep": 3}, {20, 25, 30}),
        ({"keep_every_steps": 10}, {10, 20, 30}),
        ({"keep_phases": True}, {5, 30}),
        ({"keep_best": 1}, {20, 30}),
        ({"keep_best": 2}, {20, 25, 30}),
        ({"keep_best": 9}, {10, 20, 25, 30}),
    ):
        assert retained(there, CheckpointConfig(**{**vars(bare), **settings})) == kept, settings


@given(runs, configs)
def test_the_newest_are_always_kept_and_nothing_is_made_up(run: list[Checkpoint], config: CheckpointConfig) -> None:
    kept, steps = retained(run, config), sorted(checkpoint.step for checkpoint in run)
    assert kept <= set(steps)
    assert set(steps[-config.keep :]) <= kept


@given(runs, configs, st.randoms(use_true_random=False))
def test_the_order_is_of_no_account(run: list[Checkpoint], config: CheckpointConfig, random: object) -> None:
    shuffled = list(run)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert retained(shuffled, config) == retained(run, config)


@given(runs, configs)
def test_pruning_as_the_run_goes_keeps_what_pruning_at_the_end_would(
    run: list[Checkpoint], config: CheckpointConfig
) -> None:
    """Nothing that is removed on the way would be wanted later."""
    there: list[Checkpoint] = []
    for checkpoint in sorted(run, key=lambda checkpoint: checkpoint.step):
        there.append(checkpoint)
        kept = retained(there, config)
        there = [checkpoint for checkpoint in there if checkpoint.step in kept]
    assert {checkpoint.step for checkpoint in there} == retained(run, config)


@given(runs, configs)
def test_what_is_kept_is_kept_again(run: list[Checkpoint], config: CheckpointConfig) -> None:
    kept = retained(run, config)
    assert retained([checkpoint for checkpoint in run if checkpoint.step in kept], config) == kept


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"every_steps": 0}, "must be at least 1"),
        ({"keep": 0}, "must be at least 1"),
        ({"keep_best": -1}, r"checkpoint\.keep_best is -1"),
        ({"keep_every_steps": 750}, r"keep_every_steps is 750: use 0 or a multiple of checkpoint\.every_steps \(500\)"),
        ({"keep_every_steps": -500}, "keep_every_steps is -500"),
        ({"upload": "https://user:secret@server/x"}, r"'https://\*\*\*@server/x'"),
        ({"upload": ""}, r"checkpoint\.upload is ''"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, object], told: str) -> None:
    with pytest.raises(UserError, match=told):
        CheckpointConfig(**settings)  # type: ignore[arg-type]
