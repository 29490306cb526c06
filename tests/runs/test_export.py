"""Exporting what a run has trained so far."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor
from typer.testing import CliRunner

from finetune.config import BatchConfig, Config, RunConfig, resolved
from finetune.data.config import DataConfig
from finetune.distributed.fragments import Flat, Fragment, Piece, RankState, cut
from finetune.model.assemble import Trainee
from finetune.model.config import ModelConfig
from finetune.model.families import load_components
from finetune.phases import PhaseConfig
from finetune.runs.__main__ import app
from tests.ranks import save_checkpoint
from tests.twins import TWINS

WEIGHTS, AVERAGE = 1.5, 3.0
"""Factors on the model's first weights: what was trained, and its moving average."""


def half_of(rank: int, parameters: dict[str, Tensor], *, averaged: bool) -> RankState:
    """A half of every parameter, as one of two ranks of ZeRO would save it."""
    fragments: dict[str, list[Fragment]] = {}
    for name, parameter in parameters.items():
        half = parameter.numel() // 2
        start, count = (0, half) if rank == 0 else (half, parameter.numel() - half)
        first = parameter.detach().reshape(-1)[start : start + count]
        rows = {"param": first * WEIGHTS} | ({"ema": first * AVERAGE} if averaged else {})
        fragments |= {name: [f] for name, f in cut(Flat(first, [Piece(name, start, 0, count)]), rows, {})}
    return {"fragments": fragments}


@pytest.fixture(params=list(TWINS))
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    TWINS[request.param](tmp_path / "model")
    return tmp_path / "model"


def write_run(folder: Path, model: Path, *, averaged: bool) -> dict[str, Tensor]:
    """A run that has trained the UNet alone; the weights that it began with."""
    config = Config(
        run=RunConfig(name="test"),
        train=BatchConfig(micro_batch=1, global_batch=1),
        phases=[PhaseConfig("1 steps")],
        model=ModelConfig(path=str(model)),
        data=DataConfig(shards="x"),
    )
    folder.mkdir()
    OmegaConf.save(OmegaConf.create(resolved(config)), folder / "config.yaml")
    weights = dict(Trainee(load_components(config.model)).named_parameters())
    trained = {name: p for name, p in weights.items() if name.startswith("unet.")}
    save_checkpoint(folder / "checkpoints", [half_of(rank, trained, averaged=averaged) for rank in (0, 1)], step=7)
    return weights


@pytest.mark.parametrize("out", ["folder", "model.safetensors"])
@pytest.mark.parametrize(
    ("averaged", "options", "factor"),
    [(False, [], WEIGHTS), (True, [], AVERAGE), (True, ["--raw"], WEIGHTS)],
    ids=["weights", "average", "raw"],
)
def test_a_checkpoint_is_exported_by_its_fragments(
    model: Path, tmp_path: Path, out: str, averaged: bool, options: list[str], factor: float
) -> None:
    began = write_run(tmp_path / "run", model, averaged=averaged)
    done = CliRunner().invoke(app, ["export", str(tmp_path / "run"), str(tmp_path / out), "--dtype", "fp32", *options])
    assert done.exit_code == 0, done.output
    assert "after 7 steps" in done.output
    single = {"config": str(model)} if out.endswith(".safetensors") else {}
    exported = Trainee(load_components(ModelConfig(path=str(tmp_path / out), **single)))
    for name, parameter in exported.named_parameters():
        expected = began[name] * (factor if name.startswith("unet.") else 1.0)
        assert torch.equal(parameter, expected), name
