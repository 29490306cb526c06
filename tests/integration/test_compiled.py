"""A run whose blocks are compiled, over a border at which shapes change."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune.monitor.files import read_lines
from tests.forks import ended

pytestmark = pytest.mark.slow
LARGER = "buckets: {resolution_px: 96, max_side_px: 128}, micro_batch: 2"


def test_losses_are_those_of_a_run_that_is_not_compiled(
    make_shards: Callable[..., Path], tiny_model: Path, tmp_path: Path
) -> None:
    shards = make_shards("shards", 24)

    def lines(name: str, *settings: str) -> tuple[list[Any], list[Any]]:
        done = ended(
            tmp_path / name,
            "tests.integration.traced",
            *("conf=hyperfusion", f"run.folder={tmp_path / 'runs'}", f"run.name={name}", *settings),
            *(f"data.shards={shards}", f"model.path={tiny_model}", "strategy=single", "strategy.threads=1"),
            *("optim=adamw", "optim.lr=1e-3", "optim.text_encoder_lr=1e-4", "train.micro_batch=4"),
            *("train.global_batch=8", f"phases=[{{until: 1 epochs}}, {{until: 5 steps, {LARGER}}}]"),
            *("data.buckets.resolution_px=64", "data.buckets.max_side_px=96", "data.buckets.step_px=32"),
            *("data.workers=0", "monitor.samples.every_steps=0", "monitor.wandb.mode=disabled"),
        )
        assert done == 0, (tmp_path / name).read_text()[-4000:]
        run = tmp_path / "runs" / name
        told = [line for line in read_lines(run / "events.jsonl") if line["kind"] == "compiled"]
        return [(line["loss"], line["grad_norm"]) for line in read_lines(run / "metrics.jsonl")], told

    (plain, nothing), (compiled, told) = (
        lines("plain"),
        lines("compiled", "model.compile=true", "model.compile_buckets=1"),
    )
    assert compiled == plain
    assert nothing == []
    assert [(event["step"], event["buckets"]) for event in told] == [(0, 1), (3, 1)]
    assert told[1]["share"] < 1.0  # or no micro-batch of the others would have been trained as well
