"""Looking at a run from its folder alone, and exporting what it trained."""

import json
import time
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from typer.testing import CliRunner

from finetune.checkpoint.store import CheckpointStore
from finetune.config import BatchConfig, Config, RunConfig, resolved
from finetune.data.config import DataConfig
from finetune.distributed.fragments import Flat, Piece, save_fragments
from finetune.model.assemble import Trainee
from finetune.model.config import ModelConfig
from finetune.model.families import load_components
from finetune.monitor.files import append_lines
from finetune.phases import PhaseConfig
from finetune.runs.__main__ import app


def write_run(folder: Path, state: str, age_s: float = 0.0) -> Path:
    folder.mkdir()
    status = {"name": "test", "state": state, "step": 5, "total_steps": 10, "heartbeat": time.time() - age_s}
    more = {"heartbeat_s": 5.0, "eta_s": 90.0, "host": "box", "pid": 1}
    (folder / "status.json").write_text(json.dumps({**status, **more}))
    line = {"step": 5, "epoch": 0.5, "loss": 0.123456, "grad_norm": 1.0, "images_per_s": 7.0}
    append_lines(folder / "metrics.jsonl", [line])
    return folder


@pytest.mark.parametrize(
    ("state", "age_s", "code", "health"),
    [
        ("running", 0, 0, "healthy"),
        ("running", 1000, 3, "stale"),
        ("failed", 0, 4, "failed"),
        ("stopped", 0, 5, "stopped"),
        ("finished", 1000, 0, "finished"),
        ("paused", 0, 6, "paused"),
        ("paused", 1000, 3, "stale"),
    ],
)
def test_status_tells_by_table_json_and_exit_code(
    tmp_path: Path, state: str, age_s: float, code: int, health: str
) -> None:
    run = write_run(tmp_path / "run", state, age_s)
    shown = CliRunner().invoke(app, ["status", str(run)])
    assert shown.exit_code == code
    assert health in shown.output
    assert "5 of 10" in shown.output
    assert "0.12346" in shown.output
    plain = CliRunner().invoke(app, ["status", str(run), "--json"])
    assert plain.exit_code == code
    assert json.loads(plain.output)["health"] == health


def test_a_checkpoint_is_exported_by_its_fragments(tmp_path: Path, tiny_model: Path) -> None:
    config = Config(
        run=RunConfig(name="test"),
        train=BatchConfig(micro_batch=1, global_batch=1),
        phases=[PhaseConfig("1 steps")],
        model=ModelConfig(path=str(tiny_model)),
        data=DataConfig(shards="x"),
    )
    run = tmp_path / "run"
    run.mkdir()
    OmegaConf.save(OmegaConf.create(resolved(config)), run / "config.yaml")
    trained = Trainee(load_components(config.model), 1, True)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.mul_(1.5)

    ranks: list[dict[str, object]] = []
    for rank in range(2):  # the halves of every parameter, as two ranks of ZeRO would hold them
        flats = []
        for name, p in trained.named_parameters():
            half = p.numel() // 2
            start, count = (0, half) if rank == 0 else (half, p.numel() - half)
            flats.append(Flat(p.detach().view(-1)[start : start + count].clone(), [Piece(name, start, 0, count)]))
        layout = {"strategy": "zero2", "world": 2, "rank": rank}
        ranks.append(save_fragments(flats, torch.optim.AdamW([flat.tensor for flat in flats]), layout))

    class Rank:
        """One of the two; the first one finishes what the other has written."""

        def __init__(self, rank: int) -> None:
            self.rank, self.is_main = rank, rank == 0

        def gather(self, value: object) -> list[object]:
            if not self.is_main:
                return [value]
            other = CheckpointStore(run / "checkpoints", 3, Rank(1))
            written: list[object] = []
            other._ranks.gather = lambda entry: written.append(entry) or [entry]  # type: ignore[method-assign]
            other.save(7, ranks[1], {})
            return [value, *written]

        def barrier(self) -> None:
            """Nobody to wait for."""

    CheckpointStore(run / "checkpoints", 3, Rank(0)).save(7, ranks[0], {})
    done = CliRunner().invoke(app, ["export", str(run), str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "after 7 steps" in done.output
    exported = load_components(ModelConfig(path=str(tmp_path / "out")))
    for name, parameter in Trainee(exported, 1, True).named_parameters():
        assert torch.equal(parameter, dict(trained.named_parameters())[name]), name
