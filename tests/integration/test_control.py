"""Asking something of a run that goes on."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune.control.requests import FOLDER, SETTINGS, Action, Answer, answer_to
from finetune.control.requests import ask as put
from finetune.monitor.files import read_lines
from tests.faults.scene import Scene, arguments, assert_same, metrics, save_model
from tests.forks import Fork
from tests.processes import kill, wait_until

pytestmark = pytest.mark.slow
STEPS = 150


def ask(scene: Scene, process: Fork, action: Action, assignment: str = "") -> Answer:
    """Ask, and wait for the answer."""
    request = put(scene.run, action, assignment)
    wait_until(process, lambda: answer_to(scene.run, request) is not None, scene.log)
    answer = answer_to(scene.run, request)
    assert answer is not None
    return answer


def test_a_run_that_is_steered_goes_on_as_asked_and_so_again_after_a_kill(
    make_shards: Callable[..., Path], tmp_path: Path
) -> None:
    save_model(tmp_path)
    given = arguments(tmp_path, make_shards("shards", 24), tmp_path / "model")
    more = (f"phases=[{{until: {STEPS} steps}}]", "checkpoint.every_steps=1000", "strategy=ddp", "data.workers=0")
    scene = Scene(tmp_path, (*given, *more), processes=2)
    run = scene.run

    # Set a rate, and be killed before anything is saved.
    process, other = scene.begin()
    scene.until_step(process, 2)
    assert "changes what trains" in str(ask(scene, process, "set", "optim.text_encoder_lr=0").refused)
    at = ask(scene, process, "set", "optim.lr=3e-3").step
    scene.until_step(process, at + 2)
    kill([process, other])
    assert not scene.saved

    # What is set holds from the same step on; then save, and stop for now.
    process, other = scene.begin()
    scene.until_step(process, at + 1)
    saved = ask(scene, process, "save").step
    stopped = ask(scene, process, "stop").step
    assert {process.wait(), other.wait()} == {0}
    assert scene.state == "stopped"
    assert scene.saved == [saved, stopped]
    command = [sys.executable, "-m", "finetune.runs", "ask", str(run), "save"]
    nobody = subprocess.run(command, capture_output=True, text=True, check=False)
    assert nobody.returncode == 2
    assert "is stopped, so that nobody would answer" in nobody.stderr

    scene.finish()
    rates = {line["step"]: line["lr"]["unet"] for line in metrics(run)}
    unset = dict.fromkeys(range(1, at + 1), 1e-3) | dict.fromkeys(range(at + 1, STEPS + 1), 3e-3)
    warmed = {step: rate * min(1.0, step / 51) * (STEPS - step + 1) / STEPS for step, rate in unset.items()}
    assert rates == pytest.approx(warmed)
    told = [(event["what"], event["outcome"], event["step"]) for event in scene.events("asked")]
    assert told[1:] == [("set optim.lr=3e-3", "taken", at), ("save", "taken", saved), ("stop", "taken", stopped)]

    # Nothing else has changed: a run that had it so from the beginning is the same.
    kept = run.rename(tmp_path / "steered") / FOLDER / SETTINGS
    assert read_lines(kept) == [{"step": at, "key": "optim.lr", "value": 3e-3}]
    (run / FOLDER).mkdir(parents=True)
    shutil.copy(kept, run / FOLDER)
    scene.finish()
    assert_same(run, tmp_path / "steered")
