"""Losses that a refactor has to reproduce; a change that is meant to alter them says why, and writes them anew with

LONGHAUL_WRITE_GOLDEN=1 .venv/bin/pytest tests/golden

Processors of different makers sum in another order, which a few steps of so small a model turn into several percent of
a gradient's norm: each maker has losses of its own.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune.monitor.files import read_lines
from tests.forks import ended

pytestmark = pytest.mark.slow
GOLDEN = Path(__file__).with_name("losses.json")
SMALL = [
    *("strategy=single", "strategy.threads=1", "data.workers=0", "monitor.samples.every_steps=0"),
    *("data.buckets.resolution_px=64", "data.buckets.max_side_px=96", "data.buckets.step_px=32"),
    *("train.micro_batch=4", "train.global_batch=8", "monitor.wandb.mode=disabled"),
]
RATES = ["optim=adamw", "optim.lr=1e-3", "optim.text_encoder_lr=1e-4"]
LARGER = "buckets: {resolution_px: 96, max_side_px: 128}, micro_batch: 2, optim: {text_encoder_lr: 1e-5}"
WHOLE = "model.vae_slicing=false"  # single pictures are convolved in another order, and round otherwise
RECIPES = {
    "hyperfusion": ["conf=hyperfusion", *RATES, WHOLE, "phases=[{until: 6 steps}]"],
    "hyperfusion in phases": [
        *("conf=hyperfusion", *RATES, WHOLE, "optim.name=adamw8bit"),
        f"phases=[{{until: 1 epochs}}, {{until: 2 epochs, {LARGER}}}, {{until: 17 steps, optim: {{name: adopt}}}}]",
    ],
    "demo": ["conf=demo", "phases=[{until: 6 steps}]"],
}


@pytest.mark.parametrize("name", RECIPES)
def test_losses_are_those_of_before(
    name: str, make_shards: Callable[..., Path], tiny_model: Path, tmp_path: Path
) -> None:
    shards = make_shards("golden")
    paths = [f"data.shards={shards}", f"model.path={tiny_model}", f"run.folder={tmp_path}", "run.name=golden"]
    log = tmp_path / "log"
    assert ended(log, "finetune", *RECIPES[name], *SMALL, *paths) == 0, log.read_text()
    lines = read_lines(tmp_path / "golden" / "metrics.jsonl")
    found = {key: [line[key] for line in lines] for key in ("loss", "grad_norm")}
    golden, maker = json.loads(GOLDEN.read_text()), processor_maker()
    if os.environ.get("LONGHAUL_WRITE_GOLDEN"):
        golden.setdefault(maker, {})[name] = found
        GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")
        return
    if maker not in golden:
        pytest.skip(f"no losses have been written on a processor of {maker}")
    # Other models of the same maker sum in another order; anything beyond that is a change.
    assert found["loss"] == pytest.approx(golden[maker][name]["loss"], rel=1e-4)
    assert found["grad_norm"] == pytest.approx(golden[maker][name]["grad_norm"], rel=1e-3)


def processor_maker() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "unknown")
