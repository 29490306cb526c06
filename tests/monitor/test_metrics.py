"""metrics.jsonl: every step once, whatever happens."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.monitor.files import read_lines, replace_text
from finetune.monitor.metrics import MetricsLog


def test_a_line_is_there_as_soon_as_it_is_recorded(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    line = {"step": 1, "loss": 1.0, "lr": {"unet": 0.5}}
    assert log.record(line) == line
    assert read_lines(tmp_path / "metrics.jsonl") == [line]
    log.close()
    assert read_lines(tmp_path / "metrics.jsonl") == [line]


def test_what_is_synced_is_the_file_that_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = list[Path]()
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(Path(f"/proc/self/fd/{number}").readlink()))
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.record({"step": 1})
    assert synced == []
    log.sync()
    assert synced == [tmp_path / "metrics.jsonl"]
    log.close()
    assert len(synced) == 2


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_numbers_are_written_to_the_last_digit(tmp_path_factory: pytest.TempPathFactory, losses: list[float]) -> None:
    path = tmp_path_factory.mktemp("metrics") / "metrics.jsonl"
    log = MetricsLog(path)
    for i, loss in enumerate(losses):
        log.record({"step": i + 1, "grad_norm": 2.5, "loss": loss})
    lines = read_lines(path)
    assert [line["loss"] for line in lines] == losses
    assert {line["grad_norm"] for line in lines} == {2.5}


@given(st.integers(0, 20), st.integers(0, 20), st.binary(max_size=20).filter(lambda b: b"\n" not in b))
def test_lines_beyond_the_resumed_step_are_moved_aside(
    tmp_path_factory: pytest.TempPathFactory, written: int, resumed: int, torn: bytes
) -> None:
    path = tmp_path_factory.mktemp("metrics") / "metrics.jsonl"
    path.write_bytes(b"".join(json.dumps({"step": i + 1}).encode() + b"\n" for i in range(written)) + torn)
    log, kept = MetricsLog(path), min(written, resumed)
    assert len(log.supersede(resumed)) == written - kept
    assert [line["step"] for line in read_lines(path)] == list(range(1, kept + 1))
    log.record({"step": kept + 1})
    assert [line["step"] for line in read_lines(path)] == list(range(1, kept + 2))
    log.close()
    aside = read_lines(path.with_suffix(".superseded.jsonl"))
    assert [line["step"] for line in aside] == list(range(resumed + 1, written + 1))


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_null_as_any_reader_of_json_takes_it(tmp_path: Path, loss: float) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    assert log.record({"step": 1, "loss": loss, "deciles": [0.5, loss]}) == {
        "step": 1,
        "loss": None,
        "deciles": [0.5, None],
    }
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": null, "deciles": [0.5, null]}\n'


def test_a_kill_leaves_whole_lines_of_all_steps_that_were_recorded(tmp_path: Path) -> None:
    program = f"""
from pathlib import Path
from finetune.monitor.metrics import MetricsLog
log = MetricsLog(Path({str(tmp_path / "metrics.jsonl")!r}))
step = 0
while True:
    step += 1
    log.record({{"step": step, "text": "x" * 5000}})
    print(step, flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for _ in range(20):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        told = 20 + len(process.stdout.read().split(b"\n")) - 1
    steps = [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) >= told


def test_a_replaced_file_is_never_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_text(tmp_path / "file", "old")
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        replace_text(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old"
