"""The run's folder as a whole."""

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune.data.batch import LatentShape
from finetune.data.journal import EXCLUDED, Edition, Journal, Skip, SourceState
from finetune.data.preparer import BadSample, Facts
from finetune.errors import Preempted, UserError
from finetune.health.slow import Slow
from finetune.monitor.alerts.config import AlertsConfig
from finetune.monitor.config import MonitorConfig, WandbConfig
from finetune.monitor.files import read_lines
from finetune.monitor.intervals import GROUPS, Interval, combined
from finetune.monitor.ledger import read_ledger
from finetune.monitor.metrics import MetricsLog
from finetune.monitor.status import health, read_status
from finetune.monitor.watch import Watch
from finetune.step import trial_batch
from tests.helpers import blank, draws_of

BATCH = 4
FACTS = [Facts(tokens, 3, 1, False, None) for tokens in (0, 5, 5, 10)]
JOURNAL = Journal((Edition(0, {"shards": SourceState("abc", 2, None, None)}),))


def open_watch(
    folder: Path,
    done_steps: int = 0,
    max_bad_share: float = 0.5,
    lr: float | None = 1.0,
    *,
    plateau_steps: int = 0,
    looked: bool = True,
) -> Watch:
    alerts = AlertsConfig(plateau_steps=plateau_steps)
    config = MonitorConfig(heartbeat_s=0.1, tensorboard=False, wandb=WandbConfig(mode="disabled"), alerts=alerts)
    recipe = {"optim": {"lr": lr, "betas": [0.9]}}
    return Watch(
        folder,
        "test",
        config,
        recipe,
        JOURNAL,
        notes=folder / "waiting",
        done_steps=done_steps,
        total_steps=20,
        global_batch=BATCH,
        max_bad_share=max_bad_share,
        checkpoint_bytes=0,
        looked=looked,
    )


def record(watch: Watch, step: int, loss: float = 0.5) -> None:
    samples = np.arange(BATCH, dtype=np.uint64) + np.uint64(step * BATCH)
    draws = [draws_of(samples)]
    values = {"step": step, "epoch": 0.1, "loss": loss, "lr": {"unet": 1.0}, "step_s": 0.5, "phase": 1}
    values |= {"updates": step, "skipped": 0, "grad_norm": 1.0, "loss_by_decile": [None, *[float(step)] * 9]}
    watch.record(values, draws)


def flush(watch: Watch, bad: Sequence[BadSample] = (), **figures: Any) -> None:
    interval = Interval()
    interval.take(trial_batch(blank(BATCH), 64, 32, LatentShape(4, 8))._replace(facts=FACTS))
    interval.step(0.5, 0.1, 0.4)
    interval.end(None)
    watch.flush(bad, combined([interval]) | {"mfu": None} | figures)


def test_speed_is_images_over_time(tmp_path: Path) -> None:
    with open_watch(tmp_path) as watch:
        for step in (1, 2, 3):
            record(watch, step)
        flush(watch)
    assert {line["images_per_s"] for line in read_lines(tmp_path / "metrics.jsonl")} == {BATCH / 0.5}
    status = read_status(tmp_path)
    assert (status["state"], status["step"], status["eta_s"]) == ("finished", 3, 17 * 0.5)


def test_an_interval_is_a_line_and_the_newest_is_in_the_status(tmp_path: Path) -> None:
    (tmp_path / "starts.jsonl").write_text('{"kind": "began"}\n' * 3)
    with open_watch(tmp_path) as watch:
        for step in (1, 2):
            record(watch, step)
        flush(watch, images_per_s=7.0, gpu_memory_peak_gib=3.5)
        watch.saved(2, tmp_path / "step-00000002", 1.5)
        record(watch, 3)
        flush(watch, [bad(3, 1)], images_per_s=8.0, gpu_memory_peak_gib=4.5)
        wait_until(lambda: "step_s_p50" in read_status(tmp_path))
    first, second = read_lines(tmp_path / "intervals.jsonl")
    keys = {key for keys in GROUPS.values() for key in keys}
    assert keys | {"step", "seconds", "epoch", "buckets", "bad_samples"} == second.keys()
    assert (first["step"], first["checkpoint_s"], first["checkpoint_age_s"], first["bad_samples"]) == (
        2,
        None,
        None,
        {},
    )
    assert (second["step"], second["checkpoint_s"], second["bad_samples"]) == (3, 1.5, {"broken": 1})
    assert 0.0 <= second["checkpoint_age_s"] < 60.0
    assert (second["updates"], second["skipped"], second["rollbacks"], second["restarts"]) == (3, 0, 0, 2)
    assert second["buckets"] == {"64x32": BATCH}
    status = read_status(tmp_path)
    assert (status["images_per_s"], status["gpu_memory_peak_gib"], status["step_s_p50"]) == (8.0, 4.5, 0.5)
    assert status["eta_s"] == second["eta_s"] == 17 * 0.5
    assert abs(time.time() - status["checkpoint_time"]) < 60.0


def test_trackers_get_what_is_known_of_an_interval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: dict[int, dict[str, float]] = {}
    with open_watch(tmp_path) as watch:
        monkeypatch.setattr(watch._trackers, "log", lambda step, values: sent.setdefault(step, {}).update(values))
        for step in (1, 2):
            record(watch, step)
        flush(watch)
        watch.validated(2, {**VALIDATED, "ema_distance": 0.25})
    assert sent.keys() == {1, 2}
    assert not any(name.startswith(("speed/", "data/", "loss/")) for name in sent[1])
    assert sent[2]["speed/step_s_p50"] == sent[2]["step_s"] == 0.5
    assert sent[2]["data/empty_prompt_share"] == 0.25
    assert sent[2]["buckets/64x32"] == BATCH
    assert sent[2]["loss/timesteps_10%"] == 1.5  # the mean of 1 and 2
    assert sent[2]["validation/ema_distance"] == 0.25
    assert not {"loss/timesteps_00%", "speed/mfu", "speed/gpu_memory_peak_gib", "data/cache_hits"} & sent[2].keys()
    assert all(isinstance(value, float) for value in sent[2].values())


def test_a_heartbeat_makes_sure_of_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_watch(tmp_path) as watch:
        synced = list[str]()
        monkeypatch.setattr(MetricsLog, "sync", lambda log: synced.append(log._path.stem))
        wait_until(lambda: set(synced) == {"metrics", "intervals", "validation"})
        record(watch, 1)
        assert len(read_lines(tmp_path / "metrics.jsonl")) == 1


def test_a_resume_takes_back_what_lies_beyond_the_checkpoint(tmp_path: Path) -> None:
    with open_watch(tmp_path) as watch:
        for step in range(1, 9):
            record(watch, step)
        flush(watch)
    with open_watch(tmp_path, done_steps=5) as watch:
        for step in range(6, 11):
            record(watch, step)
        flush(watch)
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == list(range(1, 11))
    assert read_ledger(tmp_path / "ledger")["sample"].to_pylist() == list(range(4, 44))
    events = read_lines(tmp_path / "events.jsonl")
    assert [event["kind"] for event in events] == ["started", "finished", "resumed", "finished"]
    assert events[2]["superseded_steps"] == 3


def test_a_changed_recipe_is_an_event_and_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for lr in (1.0, 1.0, None):
        with open_watch(tmp_path, lr=lr):
            pass
    shown = capsys.readouterr()
    assert (shown.out + shown.err).count("optim.lr was 1.0 and is not set") == 1
    (event,) = [e for e in read_lines(tmp_path / "events.jsonl") if e["kind"] == "config changed"]
    assert event["changes"] == {"optim.lr": [1.0, None]}


def test_the_phase_is_an_event(tmp_path: Path) -> None:
    with open_watch(tmp_path) as watch:
        watch.phase(4, 2, {"until": "9 steps", "lr": 0.5}, changed=True)
    (event,) = [e for e in read_lines(tmp_path / "events.jsonl") if e["kind"] == "phase"]
    assert (event["step"], event["number"], event["until"], event["lr"]) == (4, 2, "9 steps", 0.5)


def test_a_loss_that_does_not_fall_any_more_is_an_event(tmp_path: Path) -> None:
    with open_watch(tmp_path, plateau_steps=40) as watch:
        for step in range(1, 90):
            record(watch, step)
            flush(watch)
    found = [e["step"] for e in read_lines(tmp_path / "events.jsonl") if e["kind"] == "plateau"]
    assert found
    assert found[0] >= 40


def bad(step: int, slot: int) -> BadSample:
    return BadSample(step, slot, step * BATCH + slot, "key", "shard-00000.tar", "broken", 999)


def test_a_few_bad_samples_are_written_down(tmp_path: Path) -> None:
    with open_watch(tmp_path) as watch:
        for step in (1, 2):
            record(watch, step)
        flush(watch, [bad(2, 1)])
    (event,) = [e for e in read_lines(tmp_path / "events.jsonl") if e["kind"] == "bad sample"]
    assert (event["key"], event["reason"], event["substitute"]) == ("key", "broken", 999)
    row = read_ledger(tmp_path / "ledger").to_pylist()[5]
    assert (row["sample"], row["substituted_for"]) == (999, 9)
    assert read_status(tmp_path)["bad_samples"] == 1


def test_too_many_bad_samples_stop_the_run(tmp_path: Path) -> None:

    def run() -> None:
        with open_watch(tmp_path) as watch:
            record(watch, 1)
            flush(watch, [bad(1, 0), bad(1, 1), bad(1, 2)])

    with pytest.raises(UserError, match=r"3 of 4 samples could not be used \(3× broken\)"):
        run()
    assert read_status(tmp_path)["state"] == "failed"


def test_a_bad_step_is_an_event_with_its_samples_and_stops_nothing(tmp_path: Path) -> None:
    with open_watch(tmp_path) as watch:
        record(watch, 1)
        watch.skipped(2, "loss is nan", ["one", "two"])
        record(watch, 2, math.nan)
        flush(watch)
    (event,) = [e for e in read_lines(tmp_path / "events.jsonl") if e["kind"] == "skipped"]
    assert (event["step"], event["reason"], event["keys"]) == (2, "loss is nan", ["one", "two"])
    assert [line["loss"] for line in read_lines(tmp_path / "metrics.jsonl")] == [0.5, None]
    status = read_status(tmp_path)
    assert (status["state"], status["step"], status["skipped_steps"]) == ("finished", 2, 1)


def test_a_rollback_moves_what_it_undoes_aside(tmp_path: Path) -> None:
    with open_watch(tmp_path) as watch:
        for step in range(1, 7):
            record(watch, step)
        flush(watch)
        watch.rolled_back(3, 8, "six bad steps")
        record(watch, 9)
        flush(watch)
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [1, 2, 3, 9]
    aside = read_lines(tmp_path / "metrics.superseded.jsonl")
    assert [line["step"] for line in aside] == [4, 5, 6]
    assert sorted(set(read_ledger(tmp_path / "ledger")["step"].to_pylist())) == [1, 2, 3, 9]
    (event,) = [e for e in read_lines(tmp_path / "events.jsonl") if e["kind"] == "rolled back"]
    assert (event["step"], event["to"], event["superseded_steps"]) == (3, 8, 3)


def test_a_full_disk_takes_the_place_of_no_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has to be told at the end as far as can be is told, and what has ended the run is what is raised."""

    def full(*_: Any) -> None:
        raise OSError("no space left on device")

    def end(error: Exception | None) -> None:
        with monkeypatch.context() as patch, open_watch(tmp_path):
            patch.setattr("finetune.monitor.events.append_lines", full)
            if error:
                raise error

    with pytest.raises(UserError, match="does not fit"):
        end(UserError("the checkpoint does not fit"))
    status = read_status(tmp_path)
    assert (status["state"], status["reason"]) == ("failed", "the checkpoint does not fit")
    with pytest.raises(OSError, match="no space"):
        end(None)


VALIDATED = {"loss": 0.5, "by_decile": [None] * 10, "by_aspect": {}, "samples": 4, "ema_distance": None}


@pytest.mark.parametrize("looked", [True, False])
def test_what_is_validated_again_after_a_kill_stands_once(tmp_path: Path, looked: bool) -> None:
    for _ in range(2):
        with open_watch(tmp_path, done_steps=5, looked=looked) as watch:
            if not looked or not read_lines(tmp_path / "validation.jsonl"):
                watch.validated(5, VALIDATED)
    assert [line["step"] for line in read_lines(tmp_path / "validation.jsonl")] == [5]


def test_the_journal_is_kept_where_tools_find_it(tmp_path: Path) -> None:
    with open_watch(tmp_path) as watch:
        watch.keep_journal(JOURNAL.with_skip(Skip(3, "loss is nan")))
    kept = Journal.from_plain(json.loads((tmp_path / "journal.json").read_text()))
    assert kept.skips == (Skip(3, "loss is nan"),)


def test_a_reason_with_a_password_is_told_without_it(tmp_path: Path) -> None:
    def run() -> None:
        with open_watch(tmp_path):
            raise UserError("https://me:secret@host/index cannot be read")

    with pytest.raises(UserError):
        run()
    told = "".join(path.read_text() for path in (tmp_path / "events.jsonl", tmp_path / "status.json"))
    assert "host/index cannot be read" in told
    assert "secret" not in told


def test_slow_ranks_are_told_once_until_they_change(tmp_path: Path) -> None:
    with open_watch(tmp_path) as watch:
        for step, ranks in enumerate(([1], [1], [1, 2], [], [1])):
            watch.slow_ranks(step, [Slow(rank, 2.0, 1.0) for rank in ranks])
    events = [e for e in read_lines(tmp_path / "events.jsonl") if e["kind"] == "slow rank"]
    assert [(e["step"], [r["rank"] for r in e["ranks"]]) for e in events] == [(0, [1]), (2, [1, 2]), (4, [1])]


def test_leaving_by_hand_is_a_state_of_its_own(tmp_path: Path) -> None:
    def run() -> None:
        with open_watch(tmp_path):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    assert read_status(tmp_path)["state"] == "stopped"


def test_curves_are_drawn_of_all_steps(tmp_path: Path) -> None:
    with open_watch(tmp_path) as watch:
        for step in range(1, 4):
            record(watch, step)
        flush(watch)
        path = watch.curves()
    assert path.read_bytes().startswith(b"\x89PNG")


def test_processes_that_wait_for_data_pause_the_run(tmp_path: Path) -> None:
    notes = tmp_path / "waiting"
    notes.mkdir()
    (notes / "dead.json").write_text(json.dumps({"what": "old", "reason": "left by a kill", "since": 0.0}))
    with open_watch(tmp_path) as watch:
        record(watch, 1)
        assert not list(notes.iterdir())
        (notes / "host-1-2.json").write_text(
            json.dumps({"what": "s3://b/1.tar", "reason": "OSError: no", "since": 5.0})
        )
        wait_until(lambda: read_status(tmp_path)["state"] == "paused")
        assert read_status(tmp_path)["outage"]["what"] == "s3://b/1.tar"
        assert health(read_status(tmp_path), time.time()) == "paused"
        (notes / "host-1-2.json").unlink()
        wait_until(lambda: read_status(tmp_path)["state"] == "running")
        assert "outage" not in read_status(tmp_path)
    kinds = [event["kind"] for event in read_lines(tmp_path / "events.jsonl")]
    assert kinds == ["started", "data outage", "data is back", "finished"]


def test_exclusions_are_counted_apart_from_bad_samples(tmp_path: Path) -> None:
    with open_watch(tmp_path, max_bad_share=0.0) as watch:
        for step in range(1, 4):
            record(watch, step)
        flush(watch, [BadSample(step, 0, step * BATCH, "key", "shard", EXCLUDED, 999) for step in (1, 2, 3)])
    status = read_status(tmp_path)
    assert (status["bad_samples"], status["excluded_draws"]) == (0, 3)
    assert read_ledger(tmp_path / "ledger")["sample"].to_pylist().count(999) == 3


def wait_until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_every_recipe_is_kept_with_the_step_from_which_it_holds(tmp_path: Path) -> None:
    for done, rate in ((0, 1.0), (0, 1.0), (5, 1.0), (8, 2.0), (9, 3.0), (8, 4.0)):
        open_watch(tmp_path, done_steps=done, lr=rate).__exit__(None, None, None)
    kept = {path.name: path.read_text() for path in (tmp_path / "recipes").iterdir()}
    assert sorted(kept) == ["step-00000000.yaml", "step-00000008.yaml"]
    assert "lr: 1.0" in kept["step-00000000.yaml"]
    assert "lr: 4.0" in kept["step-00000008.yaml"]


@pytest.mark.parametrize(
    ("error", "state"),
    [(Preempted("saved"), "preempted"), (KeyboardInterrupt("by hand"), "stopped"), (OSError("no space"), "failed")],
)
def test_how_a_run_ends_is_kept_with_the_reason(tmp_path: Path, error: BaseException, state: str) -> None:
    with pytest.raises(type(error)), open_watch(tmp_path):
        raise error
    status = read_status(tmp_path)
    assert (status["state"], status["reason"]) == (state, str(error))
