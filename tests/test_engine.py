"""What trains in a phase, and when that has to be made anew."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from finetune.data.config import BucketsConfig
from finetune.engine import Engine
from finetune.errors import UserError
from finetune.model.assemble import Trainee
from finetune.model.config import ModelConfig
from finetune.model.families import load_components
from finetune.optim.config import EmaConfig, OptimConfig
from finetune.phases import Phase, PhaseConfig, unfold

OPTIM = OptimConfig(name="adamw", lr=1e-3, text_encoder_lr=1e-4)


class Prepared:
    """Stands in for the processes; keeps what it is given."""

    def prepare(self, module: nn.Module, optimizer: torch.optim.Optimizer, **given: Any) -> nn.Module:
        self.optimizer, self.given = optimizer, given
        return module


@pytest.fixture(scope="module")
def trainee(tiny_model: Path) -> Trainee:
    return Trainee(load_components(ModelConfig(path=str(tiny_model), clip_skip=2)))


def phases(*changes: dict[str, Any]) -> list[Phase]:
    first, *later = ({"optim": {}, **change} for change in ({}, *changes))
    configs = [PhaseConfig(f"{i} epochs", **change) for i, change in enumerate([first, *later], 1)]
    return unfold(configs, OPTIM, BucketsConfig(), micro_batch=4)


def engine(
    trainee: Trainee, unfolded: list[Phase], saved: dict[str, nn.Parameter] | None = None
) -> tuple[Engine, Prepared]:
    prepared = Prepared()
    made = Engine(trainee, unfolded, prepared, EmaConfig(), global_batch=16, saved=saved or {})  # type: ignore[arg-type]
    return made, prepared


@pytest.mark.parametrize(
    ("change", "fits"),
    [
        ({"optim": {"lr": 1e-5, "text_encoder_lr": 1e-6}}, True),
        ({"optim": {"schedule": {"name": "constant"}}}, True),
        ({"buckets": {"resolution_px": 1024, "max_side_px": 1536}}, True),
        ({"micro_batch": 2}, False),
        ({"optim": {"name": "adopt"}}, False),
        ({"optim": {"weight_decay": 0.5}}, False),
        ({"optim": {"max_grad_norm": 0.5}}, False),
        ({"optim": {"text_encoder_lr": 0.0}}, False),
        ({"optim": {"train": ["unet.*attn*"]}}, False),
        ({"optim": {"block_factors": {"MID": 0.5}}}, False),
    ],
)
def test_only_what_needs_it_is_made_anew(trainee: Trainee, change: dict[str, Any], fits: bool) -> None:
    first, second = unfolded = phases(change)
    made, _ = engine(trainee, unfolded)
    assert not made.fits(first)
    made.build(first)
    assert made.fits(first)
    assert made.fits(second) == fits


def test_what_trains_in_another_phase_rests_and_what_never_does_is_left_alone(trainee: Trainee) -> None:
    attention, everything = unfolded = phases({"optim": {"train": ["unet.mid_block*", "text_encoder.*"]}})[::-1]
    made, prepared = engine(trainee, unfolded)
    made.build(attention)
    trained = {name for name, p in trainee.named_parameters() if p.requires_grad}
    assert {name.partition(".")[0] for name in trained} == {"unet", "text_encoder"}
    assert all(name.startswith(("unet.mid_block", "text_encoder.")) for name in trained)
    assert prepared.given["resting"].keys() == trainee.trainable.keys() - trained
    # The layer behind clip skip 2 never trains.
    assert not any("encoder.layers.2." in name for name in trained | prepared.given["resting"].keys())
    made.build(everything)
    assert prepared.given["resting"] == {}
    assert sum(len(group["params"]) for group in prepared.optimizer.param_groups) == len(trainee.trainable)


def test_what_a_checkpoint_holds_is_kept_though_nothing_trains_it_any_more(trainee: Trainee) -> None:
    frozen = phases({"optim": {"text_encoder_lr": 0.0}})[1:]
    saved = {name: p for name, p in trainee.named_parameters() if name.startswith("text_encoder.")}
    made, prepared = engine(trainee, frozen, saved)
    made.build(frozen[0])
    assert prepared.given["resting"] == saved


def test_a_phase_that_trains_nothing_or_names_what_is_not_there_is_a_mistake(trainee: Trainee) -> None:
    with pytest.raises(UserError, match="nothing trains"):
        engine(trainee, phases({"optim": {"train": ["text_encoder.*"], "text_encoder_lr": 0.0}}))
    with pytest.raises(UserError, match=r"optim\.train has 'unet\.nowhere\*'"):
        engine(trainee, phases({"optim": {"train": ["unet.nowhere*"]}}))
