"""Latents through the real commands: encoded by two processes, one of which is killed, and trained from."""

import os
import signal
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from data_tools.__main__ import app
from data_tools.build import build
from finetune.data.index import Index
from finetune.monitor.files import read_lines
from finetune.monitor.ledger import read_ledger
from finetune.runs.ledger import sightings
from tests import forks
from tests.conftest import write_pictures

pytestmark = pytest.mark.slow
DEADLINE_S = 240
STEPS = 8


def arguments(tmp_path: Path, model: Path, name: str, *more: str) -> list[str]:
    sizes = ["data.buckets.step_px=32", "data.buckets.resolution_px=64", "data.buckets.max_side_px=96"]
    batch = ["train.micro_batch=4", "train.global_batch=8", "strategy.threads=1", f"phases=[{{until: {STEPS} steps}}]"]
    watch = ["monitor.samples.every_steps=0", "monitor.flush_every_steps=1", "monitor.wandb.mode=disabled"]
    data = [f"data.shards={tmp_path / 'shards'}", "data.workers=1", "data.flip=0.5", "data.held_out=0.1"]
    where = [f"run.folder={tmp_path}", f"run.name={name}", f"model.path={model}"]
    return ["conf=demo", *where, *sizes, *batch, *watch, *data, *more]


def trained(given: list[str], run: Path) -> Path:
    log = run.with_suffix(".log")
    assert forks.ended(log, "finetune", *given) == 0, log.read_text()
    return run


def test_two_processes_encode_and_one_is_killed(tmp_path: Path, tiny_model: Path) -> None:
    write_pictures(tmp_path / "pictures", 200)
    build(tmp_path / "pictures", tmp_path / "shards", shard_mib=1, text_as="auto", workers=1)
    given, log = arguments(tmp_path, tiny_model, "encoded", f"data.latents={tmp_path / 'latents'}"), tmp_path / "log"
    processes = [forks.server().start(log, "data_tools", "latents", *given) for _ in range(2)]
    deadline = time.monotonic() + DEADLINE_S
    while not list((tmp_path / "latents").rglob("*.part")):
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.01)
    os.kill(processes[0].pid, signal.SIGKILL)
    assert processes[0].wait() == -signal.SIGKILL, log.read_text()
    processes[0] = forks.server().start(log, "data_tools", "latents", *given)
    assert [process.wait() for process in processes] == [0, 0], log.read_text()
    (folder,) = (tmp_path / "latents" / "shards").iterdir()
    pictures, index = Index.load(tmp_path / "shards"), Index.load(folder)
    assert index.keys.equals(pictures.keys)
    assert (index.numbers("image_size") > 0).all()
    assert sorted(path.name for path in folder.glob("*.tar")) == sorted(shard.name for shard in index.shards)
    CliRunner().invoke(app, ["index", "--verify", str(folder)], catch_exceptions=False)

    live = trained(arguments(tmp_path, tiny_model, "live"), tmp_path / "live")
    run = trained(given, tmp_path / "encoded")
    assert read_ledger(run / "ledger").equals(read_ledger(live / "ledger"))
    for name in ("metrics.jsonl", "validation.jsonl"):
        losses = [[line["loss"] for line in read_lines(folder / name)] for folder in (run, live)]
        # Rounding to fp16 moves latents by 2^-11 of their size at most; what that does to the weights grows with the
        # steps, as AdamW divides every gradient by its size.
        assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-3)
        assert losses[0] == pytest.approx(losses[1], rel=2e-2)
    intervals = read_lines(run / "intervals.jsonl")
    assert sum(sum(line["buckets"].values()) for line in intervals) == STEPS * 8
    sample = read_ledger(run / "ledger")["sample"][0].as_py()
    assert list(sightings(run, f"id:{sample}")) == list(sightings(live, f"id:{sample}"))
