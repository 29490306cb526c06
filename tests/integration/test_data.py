"""Data that changes while a run goes on, through the real command: what was promised is what the ledger says."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from data_tools.indexing import index_folder, index_shards
from data_tools.loose import index_tree
from finetune.data.index import Index
from finetune.data.plan import FILL
from finetune.data.samples import place_of
from finetune.monitor.files import read_lines
from finetune.monitor.ledger import read_ledger
from finetune.monitor.status import read_status
from tests import forks
from tests.helpers import sample_ids
from tests.servers import faulty_http

pytestmark = pytest.mark.slow
BATCH, SAMPLES = 8, 60
EPOCH = SAMPLES / BATCH
DEADLINE_S = 240
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def arguments(runs: Path, model: Path, steps: int, *overrides: str) -> list[str]:
    sizes = ["data.buckets.step_px=32", "data.buckets.resolution_px=64", "data.buckets.max_side_px=96"]
    batch = [
        "train.micro_batch=4",
        f"train.global_batch={BATCH}",
        "strategy.threads=1",
        f"phases=[{{until: {steps} steps}}]",
    ]
    watch = ["monitor.samples.every_steps=0", "monitor.flush_every_steps=1", "monitor.wandb.mode=disabled"]
    longer = "run.accept_changes=true"  # some of these runs are made longer when they are started again
    data = ["data.window_shards=1", "data.workers=1", "checkpoint.every_steps=4", "monitor.heartbeat_s=0.2"]
    return ["conf=demo", f"run.folder={runs}", f"model.path={model}", *sizes, *batch, longer, *watch, *data, *overrides]


def train(runs: Path, model: Path, steps: int, *overrides: str) -> Path:
    """The run's folder, after so many steps of the demo's recipe."""
    log = runs.with_suffix(".log")
    assert forks.ended(log, "finetune", *arguments(runs, model, steps, *overrides)) == 0, log.read_text()
    return runs / "demo"


def look(folder: Path, *arguments: str) -> Any:
    log = folder / "shown.json"
    log.unlink(missing_ok=True)
    assert forks.ended(log, "finetune.runs", *arguments, "--json") == 0, log.read_text()
    return json.loads(log.read_text())


def draws(ledger: pa.Table) -> Counter[tuple[int, int]]:
    """How often each (epoch, sample) was planned."""
    planned = pa.compute.coalesce(ledger["substituted_for"], ledger["sample"])
    regular = pa.compute.less(ledger["repeat"], FILL)
    return Counter(zip(ledger.filter(regular)["epoch"].to_pylist(), planned.filter(regular).to_pylist(), strict=True))


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_lines(run / "events.jsonl") if event["kind"] == kind]


def test_the_plan_command_predicts_what_the_ledger_records(shards: Path, tmp_path: Path, tiny_model: Path) -> None:
    pictures = tmp_path / "shards-pictures"
    (pictures / "3_special").mkdir()
    for path in sorted(pictures.glob("?.*")):
        path.rename(pictures / "3_special" / path.name)
    index_tree(pictures, tmp_path / "loose", "auto", workers=1)
    sources = (
        f"data.sources={{main: {{path: {shards}}}, "
        f"half: {{path: {shards}, repeats: 0.5, loss_weight: 0.5, captions: {{drop: 1.0}}}}, "
        f"loose: {{path: {tmp_path / 'loose'}}}}}"
    )
    overrides = ("data.shards=null", sources)
    steps = 56
    told = look(tmp_path, "plan", *arguments(tmp_path / "runs", tiny_model, steps, *overrides))
    run = train(tmp_path / "runs", tiny_model, steps, *overrides)
    ledger = read_ledger(run / "ledger")
    assert told["steps"] == steps == max(ledger["step"].to_pylist())
    assert told["draws_per_epoch"] == told["epochs"][0]["draws"]

    first = told["epochs"][1]["first_step"] * BATCH // 4
    per_bucket = Counter(ledger["bucket"].to_pylist()[: first * 4])
    for bucket in told["phases"][0]["buckets"]:
        assert abs(per_bucket[bucket["bucket"]] - 4 * bucket["micro_batches"]) <= BATCH
    counts = draws(ledger.filter(pa.compute.equal(ledger["epoch"], 0)))
    by_source = Counter()
    for (_, sample), count in counts.items():
        by_source[place_of(sample).source] += count
        assert count <= (3 if place_of(sample).source == 2 else 1)
    assert by_source[0] == SAMPLES
    assert by_source[2] == SAMPLES + 2 * 10
    assert by_source.total() == told["draws_per_epoch"]
    both = draws(ledger)
    assert all(both[0, s] + both[1, s] == 1 for (e, s) in both if place_of(s).source == 1 and e < 2)

    summary = {row["epoch"]: row for row in look(tmp_path, "ledger", str(run))}
    assert summary[0]["draws"] == told["draws_per_epoch"]
    in_effect = [(e["source"], e["tags"], e["caption"]) for e in events(run, "prompts")]
    assert in_effect == [("main", 0.5, 0.5), ("half", 0.5, 0.5), ("loose", 0.5, 0.5)]
    half = next(sample for (_, sample) in counts if place_of(sample).source == 1)
    (seen, *_) = look(tmp_path, "ledger", str(run), "--sample", f"id:{half}")
    assert seen["prompt"] == ""


def test_an_index_that_has_grown_and_an_overlay_are_taken_in_at_an_epoch_s_border(
    shards: Path, make_shards: Callable[..., Path], tmp_path: Path, tiny_model: Path
) -> None:
    overlay = tmp_path / "overlay.jsonl"
    index = Index.load(shards)
    overlay.write_text(json.dumps({"id": 0, "tags": ["first edition"]}) + "\n")
    source = f"data.sources={{main: {{path: {shards}, overlay: {{path: {overlay}}}}}}}"
    overrides = ("data.shards=null", source, "captions.drop=0", "captions.mix.caption=0", "captions.mix.tags=1")
    run = train(tmp_path / "runs", tiny_model, 4, *overrides)

    shutil.copy(make_shards("more", count=20) / "shard-00000.tar", shards / "another.tar")
    index_folder(shards, "auto", workers=1)
    overlay.write_text(
        json.dumps({"id": 0, "tags": ["second edition"]})
        + "\n"
        + json.dumps({"id": sample_ids(index)[5], "exclude": True})
    )
    log = tmp_path / "log"
    assert forks.ended(log, "finetune", *arguments(tmp_path / "runs", tiny_model, 40, *overrides)) == 2
    assert "has grown by 1 shards since the run began: set data.on_change=next_epoch" in log.read_text()

    train(tmp_path / "runs", tiny_model, 40, *overrides, "data.on_change=next_epoch")
    counts = draws(read_ledger(run / "ledger"))
    before = set(sample_ids(index))
    grown = set(sample_ids(Index.load(shards)))
    left_out = sample_ids(index)[5]
    assert {sample for epoch, sample in counts if epoch == 0} == before
    assert {sample for epoch, sample in counts if epoch == 1} == grown - {left_out}
    assert set(counts.values()) == {1}
    prompts = {row["epoch"]: row["prompt"] for row in look(tmp_path, "ledger", str(run), "--sample", "id:0")}
    assert prompts[0] == "first edition"
    assert prompts[1] == "second edition"
    journal = json.loads((run / "journal.json").read_text())
    assert [edition["epoch"] for edition in journal["editions"]] == [0, 1]


def test_an_overlay_that_changes_while_the_run_goes_on(shards: Path, tmp_path: Path, tiny_model: Path) -> None:
    overlay, index = tmp_path / "overlay.jsonl", Index.load(shards)
    overlay.write_text(json.dumps({"key": index.key(0), "tags": ["before"]}))
    source = f"data.sources={{main: {{path: {shards}, overlay: {{path: {overlay}}}}}}}"
    overrides = ("data.shards=null", source, "captions.drop=0", "captions.mix.caption=0")
    process = forks.server().start(
        tmp_path / "log", "finetune", *arguments(tmp_path / "runs", tiny_model, 30, *overrides)
    )
    run = tmp_path / "runs" / "demo"
    wait_for(lambda: (run / "status.json").exists() and read_status(run)["step"] >= 1, process)
    overlay.write_text(json.dumps({"key": index.key(0), "tags": ["after"]}))
    assert process.wait() == 0, (tmp_path / "log").read_text()
    (changed,) = events(run, "data changed")
    prompts = {row["epoch"]: row["prompt"] for row in look(tmp_path, "ledger", str(run), "--sample", index.key(0))}
    assert prompts[0] == "before"
    assert all(prompt == ("after" if epoch >= changed["epoch"] else "before") for epoch, prompt in prompts.items())
    assert prompts[3] == "after"


def test_excluded_samples_are_replaced_and_nothing_else_moves(shards: Path, tmp_path: Path, tiny_model: Path) -> None:
    whole = read_ledger(train(tmp_path / "whole", tiny_model, 12, f"data.shards={shards}") / "ledger")
    train(tmp_path / "runs", tiny_model, 4, f"data.shards={shards}")
    index = Index.load(shards)
    excluded = [sample_ids(index)[row] for row in (3, 40)]
    (tmp_path / "exclude.txt").write_text(f"{index.key(3)}\nid:{excluded[1]}\n")
    run = train(tmp_path / "runs", tiny_model, 12, f"data.shards={shards}", f"data.exclude={tmp_path / 'exclude.txt'}")
    ledger = read_ledger(run / "ledger")
    planned = pa.compute.coalesce(ledger["substituted_for"], ledger["sample"])
    assert planned.equals(whole["sample"])
    for step, sample, replaced in zip(
        *(ledger[n].to_pylist() for n in ("step", "sample", "substituted_for")), strict=True
    ):
        assert sample not in excluded or step <= 4
        assert replaced is None or (replaced in excluded and step > 4)
    assert len(ledger) - ledger["substituted_for"].null_count > 0
    assert read_status(run)["excluded_draws"] > 0
    assert events(run, "bad sample") == []


def test_an_outage_pauses_the_run_and_loses_nothing(shards: Path, tmp_path: Path, tiny_model: Path) -> None:
    """A server that fails for a while, hangs and cuts bodies short; and a kill in the middle of it."""
    whole = train(tmp_path / "whole", tiny_model, 12, f"data.shards={shards}")
    with faulty_http(shards) as server:
        names = [f"{server.url}/{shard.name}" for shard in Index.load(shards).shards]
        index_shards(names, tmp_path / "index", "auto", workers=1)
        cache = (f"data.cache.folder={tmp_path / 'cache'}", "data.cache.timeout_s=1", "data.cache.alert_after_s=0.5")
        given = arguments(tmp_path / "runs", tiny_model, 12, f"data.shards={tmp_path / 'index'}", *cache)
        run = tmp_path / "runs" / "demo"
        server.requests.clear()

        def start() -> forks.Fork:
            return forks.server().start(tmp_path / "log", "finetune", *given)

        # The sizes of the shards are asked for first; after that nothing comes for a while.
        process = start()
        wait_for(lambda: len(server.requests) >= len(names), process)
        server.cut_next(1)
        server.fail(status=500)
        wait_for(lambda: (run / "status.json").exists() and read_status(run)["state"] == "paused", process)
        assert read_status(run)["outage"]["what"].startswith(server.url)
        assert look_status(run) == 6
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        server.heal()
        server.hang_next(1, 3.0)
        process = start()
        assert process.wait() == 0, (tmp_path / "log").read_text()
    assert events(run, "data outage")
    assert read_ledger(run / "ledger").equals(read_ledger(whole / "ledger"))
    losses = [[line["loss"] for line in read_lines(folder / "metrics.jsonl")] for folder in (run, whole)]
    assert losses[0] == losses[1]


def test_a_shard_that_vanishes_while_the_run_goes_on(shards: Path, tmp_path: Path, tiny_model: Path) -> None:
    whole = train(tmp_path / "whole", tiny_model, 24, f"data.shards={shards}")
    given = arguments(tmp_path / "runs", tiny_model, 24, f"data.shards={shards}", "data.cache.alert_after_s=0.5")
    process = forks.server().start(tmp_path / "log", "finetune", *given)
    run = tmp_path / "runs" / "demo"
    wait_for((run / "events.jsonl").exists, process)
    away = [path.rename(path.with_suffix(".away")) for path in sorted(shards.glob("*.tar"))]
    paused = wait_until(lambda: (run / "status.json").exists() and read_status(run)["state"] == "paused", 20)
    for path in away:
        path.rename(path.with_suffix(".tar"))
    assert process.wait() == 0, (tmp_path / "log").read_text()
    assert paused == bool(events(run, "data outage"))
    assert paused == bool(events(run, "data is back"))
    assert read_ledger(run / "ledger").equals(read_ledger(whole / "ledger"))


def look_status(run: Path) -> int:
    command = [sys.executable, "-m", "finetune.runs", "status", str(run)]
    return subprocess.run(command, capture_output=True, check=False, env=ENVIRONMENT).returncode


def wait_for(reached: Callable[[], bool], process: forks.Fork) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not reached():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


def wait_until(reached: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
