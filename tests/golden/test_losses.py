"""Losses that a refactor has to reproduce; a change that is meant to alter them says why, and writes them anew with

LONGHAUL_WRITE_GOLDEN=1 .venv/bin/pytest tests/golden
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune.monitor.files import read_lines

pytestmark = pytest.mark.slow
GOLDEN = Path(__file__).with_name("losses.json")
RECIPE = [
    *("conf=hyperfusion", "strategy=single", "strategy.threads=1", "optim=adamw", "optim.lr=1e-3"),
    *("optim.text_encoder_lr=1e-4", "data.buckets.resolution_px=64", "data.buckets.max_side_px=96"),
    *("data.buckets.step_px=32", "data.workers=0", "train.micro_batch=4", "train.global_batch=8"),
    *("phases=[{until: 6 steps}]", "monitor.samples.every_steps=0", "monitor.wandb.mode=disabled"),
]


def test_losses_are_those_of_before(make_shards: Callable[..., Path], tiny_model: Path, tmp_path: Path) -> None:
    shards = make_shards("golden")
    paths = [f"data.shards={shards}", f"model.path={tiny_model}", f"run.folder={tmp_path}"]
    command = [sys.executable, "-m", "finetune", *RECIPE, *paths]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300)
    lines = read_lines(tmp_path / "hyperfusion" / "metrics.jsonl")
    found = {key: [line[key] for line in lines] for key in ("loss", "grad_norm")}
    if os.environ.get("LONGHAUL_WRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
    golden = json.loads(GOLDEN.read_text())
    # Other processors sum in another order; anything beyond that is a change.
    assert found["loss"] == pytest.approx(golden["loss"], rel=1e-4)
    assert found["grad_norm"] == pytest.approx(golden["grad_norm"], rel=1e-3)
