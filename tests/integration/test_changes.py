"""A run that is started again with another recipe."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from finetune.checkpoint.store import newest_checkpoint
from finetune.monitor.files import read_lines
from tests import processes

pytestmark = pytest.mark.slow
TEXT_ENCODER = Path("export/text_encoder/model.safetensors")


def test_what_was_trained_is_kept_when_nothing_trains_it_any_more_and_may_train_again(
    make_shards: Callable[..., Path], tiny_model: Path, tmp_path: Path
) -> None:
    shards = make_shards("changes", 24)

    def go_on(until: int, text_encoder_lr: float) -> Path:
        arguments = [
            *("conf=hyperfusion", "run.name=run", f"run.folder={tmp_path}", f"data.shards={shards}"),
            *(f"model.path={tiny_model}", "strategy=single", "strategy.threads=1", "data.workers=0"),
            *("data.buckets.resolution_px=64", "data.buckets.max_side_px=96", "data.buckets.step_px=32"),
            *("train.micro_batch=4", "train.global_batch=8", "optim.lr=1e-3", "monitor.samples.every_steps=0"),
            *("monitor.wandb.mode=disabled", "monitor.tensorboard=false", "ema.decay=0.5"),
            "run.accept_changes=true",
            *(f"phases=[{{until: {until} steps}}]", f"optim.text_encoder_lr={text_encoder_lr}"),
        ]
        log = tmp_path / "log"
        return processes.trained(tmp_path / "run", log, *arguments)

    def exported(run: Path) -> dict[str, torch.Tensor]:
        return load_file(run / TEXT_ENCODER)

    frozen = exported(go_on(2, 0.0))
    trained = exported(go_on(4, 1e-3))
    kept = exported(go_on(6, 0.0))
    name = "text_model.encoder.layers.0.mlp.fc1.weight"
    assert not torch.equal(frozen[name], trained[name])
    assert not torch.equal(kept[name], frozen[name])
    # What is exported is the average, which goes on towards the weights that stay.
    state = newest_checkpoint(tmp_path / "run" / "checkpoints").read(0)
    (fragment,) = state["fragments"]["text_encoder.encoder.layers.0.mlp.fc1.weight"]
    assert torch.equal(kept[name].view(-1), fragment["ema"])
    assert (kept[name].view(-1) - fragment["param"]).abs().max() < (
        trained[name].view(-1) - fragment["param"]
    ).abs().max()
    assert [line["step"] for line in read_lines(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
