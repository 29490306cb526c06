"""What a run saves, exports and copies beside its training, and a new machine that has nothing but the copies."""

import shutil
from pathlib import Path

import pytest
from safetensors import safe_open

from finetune.checkpoint.manifest import read_manifest
from finetune.checkpoint.store import finished
from finetune.monitor.files import read_lines
from tests.processes import trained

pytestmark = pytest.mark.slow


def test_a_run_is_exported_and_copied_as_it_goes_and_goes_on_from_its_copies(
    shards: Path, tiny_model: Path, tmp_path: Path
) -> None:
    run, far, log = tmp_path / "runs" / "fox", tmp_path / "far", tmp_path / "log"

    def train(steps: int) -> None:
        arguments = [
            *("conf=hyperfusion", "run.name=fox", f"run.folder={run.parent}", f"data.shards={shards}"),
            *(f"model.path={tiny_model}", "strategy=single", "strategy.threads=1", "data.workers=0"),
            *("data.buckets.resolution_px=64", "data.buckets.max_side_px=96", "data.buckets.step_px=32"),
            *("train.micro_batch=4", "train.global_batch=8", "data.held_out=0.1", "monitor.validation.every_steps=2"),
            *("monitor.samples.every_steps=0", "monitor.wandb.mode=disabled", "monitor.tensorboard=false"),
            *("checkpoint.every_steps=2", "checkpoint.keep=1", f"checkpoint.upload={far}", "export.every_steps=4"),
            *(f"phases=[{{until: {steps} steps}}]", "run.accept_changes=true"),
        ]
        trained(run, log, *arguments)

    def events(kind: str) -> list[dict[str, object]]:
        return [event for event in read_lines(run / "events.jsonl") if event["kind"] == kind]

    train(8)
    losses = {line["step"]: line["loss"] for line in read_lines(run / "validation.jsonl")}
    best = min((step for step in losses if step), key=losses.__getitem__)
    kept = {int(path.name.removeprefix("step-")) for path in finished(run / "checkpoints")}
    assert {8, best} <= kept <= {4, 8, best}  # what is exported stays until the next save
    assert {(event["step"], event["error"]) for event in events("export")} <= {(4, None), (8, None)}
    for event in (last := events("export")[-1], events("upload")[-1]):
        assert event.get("error") is None
        assert event.get("failure") is None
    with safe_open(str(last["path"]), "pt") as file:
        assert file.metadata()["longhaul.steps"] == "8"
        assert file.metadata()["modelspec.prediction_type"] == "v"
    assert Path(str(last["path"])).with_suffix(".yaml").read_text().count("parameterization: v") == 1
    copies = finished(far / "fox" / "checkpoints")
    assert copies[-1].name == "step-00000008"
    assert all(read_manifest(copy).damage() is None for copy in copies)

    shutil.rmtree(run)
    train(10)
    (fetched,) = events("fetched checkpoint")
    assert "step-00000008" in str(fetched["reason"])
    assert [event["step"] for event in events("resumed")] == [8]
    assert [line["step"] for line in read_lines(run / "metrics.jsonl")] == [9, 10]
