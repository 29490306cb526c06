"""Steps that are not to be trusted, and ranks that are not."""

from pathlib import Path

import pytest

from finetune.control.requests import FOLDER, keep_setting
from finetune.monitor.ledger import read_ledger
from tests.faults.scene import (
    BATCH,
    EXACT,
    STEPS,
    Fault,
    MakeScene,
    Scene,
    assert_continuous,
    assert_same,
    assert_same_draws,
    metrics,
)
from tests.processes import assert_alone

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
EARLY = ("health.window=8", "health.warmup_steps=8")
"""Spikes are looked for from the ninth good step on."""


def assert_skipped(scene: Scene, reference: Path, *steps: int) -> None:
    """Steps were consumed without an update: before them the run is that which nothing befell, and so are its draws;
    after them its losses are finite."""
    assert [event["step"] for event in scene.events("skipped")] == list(steps)
    assert_continuous(scene.run, STEPS)
    assert_same_draws(scene.run, reference)
    lines, others = metrics(scene.run), metrics(reference)
    for line, other in list(zip(lines, others, strict=True))[: steps[0] - 1]:
        assert {key: line[key] for key in EXACT} == {key: other[key] for key in EXACT}
    good = [line for line in lines if line["step"] not in steps]
    assert all(0.0 < line["loss"] < 10.0 for line in good)
    assert lines[-1]["loss"] != others[-1]["loss"]


def test_nan_on_one_rank(pair: Scene, whole_pair: Path) -> None:
    """Both ranks leave the step out."""
    pair.finish(faults=[{"what": "nan", "steps": [6], "rank": 1, "micro_batch": 1}])
    assert_skipped(pair, whole_pair, 6)
    (event,) = pair.events("skipped")
    assert "nan" in event["reason"]
    assert len(event["keys"]) == BATCH
    assert metrics(pair.run)[5]["loss"] is None


@pytest.mark.faults
def test_nan_and_a_kill(scene: Scene, whole: Path, make_scene: MakeScene, tmp_path: Path) -> None:
    """A run that is killed after a step was left out goes on as one that was not killed."""
    nan: Fault = {"what": "nan", "steps": [5]}
    twin = make_scene(tmp_path / "twin")
    twin.finish(faults=[nan])
    scene.fail(faults=[nan, scene.at("SIGKILL", 8, saved=6)])
    assert scene.saved == [3, 6]
    assert_same(scene.finish(), twin.run)
    assert_skipped(scene, whole, 5)


@pytest.mark.faults
def test_inf_gradient(scene: Scene, whole: Path) -> None:
    scene.finish(faults=[{"what": "inf gradient", "steps": [6], "micro_batch": 2}])
    assert_skipped(scene, whole, 6)
    line = metrics(scene.run)[5]
    assert line["loss"] == metrics(whole)[5]["loss"]
    assert "inf" in scene.events("skipped")[0]["reason"]


@pytest.mark.faults
def test_spike(scene: Scene, whole: Path) -> None:
    """Pictures a hundred times too bright, once there is something to compare with."""
    scene.finish(*EARLY, faults=[{"what": "x100", "steps": [10]}])
    assert_skipped(scene, whole, 10)
    assert "spike" in scene.events("skipped")[0]["reason"]


@pytest.mark.faults
def test_spike_in_warm_up(scene: Scene, whole: Path) -> None:
    """Nothing is known yet of what is usual, so the step is taken."""
    scene.finish(*EARLY, faults=[{"what": "x100", "steps": [3]}])
    assert scene.events("skipped") == []
    assert_continuous(scene.run, STEPS)
    assert_same_draws(scene.run, whole)
    assert metrics(scene.run)[2]["loss"] > 100 * metrics(whole)[2]["loss"]
    assert metrics(scene.run)[3]["loss"] != metrics(whole)[3]["loss"]


@pytest.mark.faults
def test_bad_steps_in_a_row(scene: Scene, make_scene: MakeScene, tmp_path: Path) -> None:
    """The run goes back to what was saved before them and jumps over the data that they came from; and a run that is
    killed after that goes on as one that was not. A rate that was set in what is undone stays."""
    settings = ("health.bad_in_a_row=2",)
    faults: list[Fault] = [{"what": "nan", "steps": [5, 6]}]
    twin = make_scene(tmp_path / "twin")
    for run in (twin.run, scene.run):
        (run / FOLDER).mkdir(parents=True)
        keep_setting(run, 4, "optim.lr", 2e-3)
    twin.finish(*settings, faults=faults)
    (event,) = twin.events("rolled back")
    back, to = event["step"], event["to"]
    assert back == 3
    assert 6 <= to < STEPS
    assert [line["step"] for line in metrics(twin.run)] == [1, 2, 3, *range(to + 1, STEPS + 1)]
    assert set(read_ledger(twin.run / "ledger")["step"].to_pylist()) == {line["step"] for line in metrics(twin.run)}
    schedule = {step: min(1.0, step / 51) * (STEPS - step + 1) / STEPS for step in range(1, STEPS + 1)}
    rates = {line["step"]: line["lr"]["unet"] / schedule[line["step"]] for line in metrics(twin.run)}
    assert rates == pytest.approx({step: 1e-3 if step <= 4 else 2e-3 for step in rates})

    scene.fail(*settings, faults=[*faults, {"what": "SIGKILL", "steps": [to + 2]}])
    scene.finish(*settings, faults=faults)
    assert [{k: line[k] for k in EXACT} for line in metrics(scene.run)] == [
        {k: line[k] for k in EXACT} for line in metrics(twin.run)
    ]
    assert read_ledger(scene.run / "ledger").equals(read_ledger(twin.run / "ledger"))


@pytest.mark.faults
def test_one_rank_asleep(pair: Scene, whole_pair: Path) -> None:
    """The rank that sleeps is named, and the launcher starts both anew."""
    asleep = pair.at("sleep", 5, saved=3, rank=1, seconds=600.0)
    process = pair.start("health.stall_s=10", "data.cache.alert_after_s=2", faults=[asleep], restarts=1)
    process.wait(timeout=300)
    assert_alone(process)
    assert pair.resumed == [3]
    told = pair.said + (pair.run / "events.jsonl").read_text()
    assert "stalled rank" in told
    assert "rank 1" in told
    assert_same(pair.run, whole_pair)


@pytest.mark.faults
def test_slow_rank(pair: Scene, whole_pair: Path) -> None:
    """It is named, and nothing else changes."""
    slow = [{"what": "sleep", "seconds": 1.0, "steps": list(range(2, 13)), "rank": 1, "micro_batch": j} for j in (0, 1)]
    assert_same(pair.finish("monitor.flush_every_steps=4", faults=slow), whole_pair)
    events = pair.events("slow rank")
    assert events
    assert {slow["rank"] for event in events for slow in event["ranks"]} == {1}
