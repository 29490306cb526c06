"""Which settings may change between two starts."""

import json
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

from finetune.config import resolved
from finetune.errors import UserError
from finetune.lifecycle.changes import SAFE, check_changes, is_safe, recipe_changes
from finetune.recipes import compose_recipe, packaged_folder

ROOT = Path(__file__).resolve().parents[2]
DECIDES = (
    *("phases*", "run.seed", "train.*", "captions.*", "diffusion.*", "optim.*", "strategy.precision"),
    *("model.path", "model.config", "model.clip_skip", "model.max_tokens", "model.join_chunks", "model.pad_chunks"),
    *("data.sources", "data.sources.*.repeats", "data.sources.*.captions", "data.sources.*.loss_weight", "data.text"),
    *("data.window_shards", "data.flip", "data.random_crop", "data.background", "data.mask", "data.held_out"),
    "data.latents",
    *("data.buckets.*", "ema.decay", "ema.warmup", "ema.every_steps"),
)
"""What decides on what is trained."""
KEYS = re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8"), re.MULTILINE)


def recipe(*overrides: str) -> dict[str, Any]:
    """The demo's recipe as it is after a checkpoint's JSON."""
    plain: dict[str, Any] = json.loads(json.dumps(resolved(compose_recipe("demo", packaged_folder(), list(overrides)))))
    return plain


BASE = recipe("optim.text_encoder_lr=1e-4")


def unsafe(after: dict[str, Any], before: dict[str, Any] = BASE) -> list[str]:
    return [name for name in recipe_changes(before, after, BASE) if not is_safe(name)]


@pytest.mark.parametrize("key", KEYS)
def test_every_setting_either_decides_on_what_is_trained_or_may_change(key: str) -> None:
    assert is_safe(key) != any(fnmatchcase(key, pattern) for pattern in DECIDES)


def test_the_docs_name_what_may_change() -> None:
    page = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([^`]+)`", page[page.index("## Another recipe") :]))
    assert set(SAFE) - {name.replace("NAME", "*") for name in named} == set()


@pytest.mark.parametrize(
    "overrides",
    [
        ["checkpoint.every_steps=7", "checkpoint.keep=9", "monitor.samples.prompts=[a fox]"],
        ["strategy=zero2", "strategy.precision=fp32", "strategy.threads=4", "data.workers=8", "run.folder=/elsewhere"],
        ["data.shards=/moved", "data.cache.size_gib=1", "model.gradient_checkpointing=all", "ema.device=model"],
        ["resume=never", "run.accept_changes=true", "run.max_crashes_at_step=9", "data.exclude=bad.txt"],
    ],
)
def test_what_trains_the_same_passes(overrides: Sequence[str]) -> None:
    before = recipe("strategy.precision=fp32")
    changes = recipe_changes(before, recipe("strategy.precision=fp32", *overrides), BASE)
    assert len(changes) >= 3
    check_changes(changes, Path("step-5"), accepted=False)


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        (["optim.lr=2e-3"], ["optim.lr"]),
        (["run.seed=1"], ["run.seed"]),
        (["phases=[{until: 700 steps}]"], ["phases[0].until"]),
        (["phases=[{until: 600 steps}, {until: 700 steps}]"], ["phases[1].until"]),
        (["strategy.precision=fp16"], ["strategy.precision"]),
        (["data.flip=0", "data.workers=3"], ["data.flip"]),
        (["optim.options={foreach: true}"], ["optim.options.foreach"]),
        (["model.path=/another"], ["model.path"]),
    ],
)
def test_what_trains_otherwise_is_found(overrides: Sequence[str], names: Sequence[str]) -> None:
    assert set(names) <= set(unsafe(recipe("optim.text_encoder_lr=1e-4", *overrides)))
    assert unsafe(BASE) == []


def test_a_refusal_shows_what_was_and_what_is() -> None:
    changes = recipe_changes(
        BASE, recipe("optim.text_encoder_lr=2e-4", "optim.eps=1e-6", "monitor.heartbeat_s=1"), BASE
    )
    assert "monitor.heartbeat_s" in changes
    with pytest.raises(
        UserError, match=r"since step-5 was saved: put it back, or .* run\.accept_changes=true"
    ) as error:
        check_changes(changes, Path("step-5"), accepted=False)
    assert error.value.details == [
        "optim.eps              was not set, is 1e-06",
        "optim.text_encoder_lr  was 0.0001, is 0.0002",
    ]
    check_changes(changes, Path("step-5"), accepted=True)


def test_a_setting_that_an_older_version_did_not_have_was_as_it_is_by_default() -> None:
    older = json.loads(json.dumps(BASE))
    del older["optim"]["max_grad_norm"], older["ema"]
    assert unsafe(BASE, older) == []
    assert unsafe(recipe("optim.text_encoder_lr=1e-4", "optim.max_grad_norm=2"), older) == ["optim.max_grad_norm"]


def test_latents_may_lie_elsewhere_but_not_take_the_place_of_pictures() -> None:
    live, here, there = (
        recipe("optim.text_encoder_lr=1e-4", *given)
        for given in ([], ["data.latents=/here"], ["data.latents=s3://there"])
    )
    check_changes(recipe_changes(here, there, BASE), Path("step-5"), accepted=False)
    for before, after in ((live, here), (here, live)):
        with pytest.raises(UserError, match=r"run\.accept_changes=true"):
            check_changes(recipe_changes(before, after, BASE), Path("step-5"), accepted=False)


def test_a_setting_that_is_gone_is_a_change() -> None:
    before = recipe("optim.text_encoder_lr=1e-4", "optim.options={foreach: true}")
    assert recipe_changes(before, BASE, BASE) == {"optim.options.foreach": (True, None)}
