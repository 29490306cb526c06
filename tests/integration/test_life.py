"""A day in the life of a run whose owner is away, and what nobody may learn from its folder."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data_tools.indexing import index_shards
from finetune.control.requests import answer_to, ask
from finetune.data.index import Index
from finetune.monitor.files import read_lines
from finetune.monitor.trackers.wandb_run import SERVICE
from finetune.runs.status import EXIT_CODES
from tests.faults.scene import Scene, arguments, assert_continuous, metrics, save_model
from tests.monitor.alerts.receivers import http_receiver, wait_for
from tests.processes import DEADLINE_S, members, wait_until
from tests.servers import LOOPBACK, faulty_http
from tests.wandb_server import wandb_server

pytestmark = pytest.mark.slow
STEPS = 120
TOKEN = "planted-9f3c2b71d0"


def health(run: Path) -> str:
    """How the command says that a run is."""
    command = [sys.executable, "-m", "finetune.runs", "status", str(run), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    told = str(json.loads(done.stdout)["health"])
    assert done.returncode == EXIT_CODES[told]
    assert not done.stderr
    return told


def kill_wandb(process: subprocess.Popen[bytes]) -> None:
    """Kill what wandb writes and sends by."""
    services = [pid for pid in members(process) if psutil.Process(pid).name() == SERVICE]
    assert services
    for pid in services:
        os.kill(pid, signal.SIGKILL)


def fetched(port: int, path: str) -> str:
    """What the page beside a run shows, once it is served."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            with urllib.request.urlopen(f"http://{LOOPBACK}:{port}{path}") as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            return error.read().decode()
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_a_day_in_the_life(make_shards: Callable[..., Path], tmp_path: Path) -> None:
    save_model(tmp_path)
    given = arguments(tmp_path, make_shards("shards", 24), tmp_path / "model")
    with http_receiver() as phone, wandb_server() as wandb:
        more = [
            *("strategy=ddp", f"phases=[{{until: {STEPS} steps}}]", "checkpoint.every_steps=1000"),
            *("monitor.tensorboard=true", "monitor.wandb.mode=offline", f"monitor.alerts.to=[{phone.ntfy}]"),
        ]
        scene = Scene(tmp_path, (*given, *more), processes=2)
        run = scene.run

        process = scene.start()
        scene.until_step(process, 3)
        assert health(run) == "healthy"

        kill_wandb(process)
        dead_at = scene.status["step"]
        scene.until_step(process, dead_at + 10)
        wait_for(lambda: any("wandb is off" in title for title in phone.titles))

        request = ask(run, "save")
        wait_until(process, lambda: answer_to(run, request) is not None, scene.log)
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=120)
        assert health(run) == "preempted"
        preempted_at = scene.status["step"]
        assert preempted_at < STEPS
        assert len(scene.saved) == 2

        scene.finish()
        assert health(run) == "finished"
        assert_continuous(run, STEPS)
        wait_for(lambda: any(title.endswith("finished") for title in phone.titles))

        shown = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
        shown.Reload()
        assert [scalar.step for scalar in shown.Scalars("loss")] == list(range(1, STEPS + 1))
        losses = [scalar.value for scalar in shown.Scalars("loss")]
        assert losses == pytest.approx([line["loss"] for line in metrics(run)], rel=1e-6)

        command = [str(Path(sys.executable).with_name("wandb")), "sync", "--yes"]
        for _ in range(2):  # once more for what comes behind a record that wandb's death has cut short
            subprocess.run(command, cwd=run, env={**os.environ, **wandb.environment}, check=False, timeout=120)
        assert len({stored.group for stored in wandb.runs.values()}) == 1
        (stored,) = wandb.runs.values()  # nothing was rolled back, so that both starts are one run
        steps = stored.steps("loss")
        assert steps == sorted(set(steps))
        assert steps[-1] == STEPS
        assert set(range(preempted_at + 1, STEPS + 1)) <= set(steps)
    assert [event["kind"] for event in read_lines(run / "events.jsonl")].count("tracker failed") == 1


def test_a_token_is_told_to_nobody(make_shards: Callable[..., Path], tmp_path: Path) -> None:
    """Planted in the recipe, in the environment and in the URL of the shards, which cannot be read for a while."""
    save_model(tmp_path)
    shards = make_shards("shards", 24)
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port = probe.getsockname()[1]
    with faulty_http(shards) as server, http_receiver() as phone:
        known = server.url.replace("://", f"://me:{TOKEN}@")
        names = [f"{known}/{shard.name}" for shard in Index.load(shards).shards]
        index = tmp_path / "index"
        index_shards(names, index, "auto", workers=1)
        more = [
            *("monitor.tensorboard=true", "monitor.wandb.mode=offline", "data.cache.alert_after_s=0.5"),
            *("data.cache.timeout_s=2", f"data.cache.folder={tmp_path}/cache", f"monitor.serve_port={port}"),
            *("phases=[{until: 6 steps}]", f"monitor.alerts.to=['{phone.ntfy.replace('//', f'//me:{TOKEN}@')}']"),
        ]
        scene = Scene(tmp_path, (*arguments(tmp_path, index, tmp_path / "model"), *more))
        server.requests.clear()
        process = scene.start(environment={"HF_TOKEN": TOKEN, "WANDB_API_KEY": TOKEN})
        wait_until(process, lambda: len(server.requests) >= len(names), scene.log)  # the sizes are asked for first
        server.fail(503)
        there = scene.run / "events.jsonl"
        wait_until(process, lambda: bool(scene.events("data outage")) if there.exists() else False, scene.log)
        shown = [fetched(port, path) for path in ("/", "/metrics", "/healthz")]
        server.heal()
        process.wait(timeout=300)
        wait_for(lambda: any(title.endswith("finished") for title in phone.titles))
    assert scene.state == "finished"
    assert scene.events("data outage")
    found = [path for path in scene.run.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert not found
    assert TOKEN not in scene.said
    assert all(TOKEN not in json.dumps(post) for _, post in phone.posts)
    assert "data outage" in shown[0]
    assert all(TOKEN not in page for page in shown)
    status = subprocess.run(
        [sys.executable, "-m", "finetune.runs", "status", str(scene.run), "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert TOKEN not in status.stdout + status.stderr
