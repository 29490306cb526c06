"""metrics.jsonl: every step once, whatever happens."""

import json
import math
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.monitor.files import read_lines, replace_text
from finetune.monitor.metrics import MetricsLog


def test_lines_are_written_when_flushed(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.record({"step": 1, "loss": 1.0, "lr": {"unet": 0.5}})
    assert not (tmp_path / "metrics.jsonl").exists()
    assert log.flush() == [{"step": 1, "loss": 1.0, "lr": {"unet": 0.5}}]
    assert log.flush() == []
    assert read_lines(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 1.0, "lr": {"unet": 0.5}}]


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_numbers_are_written_to_the_last_digit(tmp_path_factory: pytest.TempPathFactory, losses: list[float]) -> None:
    path = tmp_path_factory.mktemp("metrics") / "metrics.jsonl"
    log = MetricsLog(path)
    for i, loss in enumerate(losses):
        log.record({"step": i + 1, "grad_norm": 2.5, "loss": loss})
    log.flush()
    lines = read_lines(path)
    assert [line["loss"] for line in lines] == losses
    assert {line["grad_norm"] for line in lines} == {2.5}


@given(st.integers(0, 20), st.integers(0, 20), st.binary(max_size=20).filter(lambda b: b"\n" not in b))
def test_lines_beyond_the_resumed_step_are_moved_aside(
    tmp_path_factory: pytest.TempPathFactory, written: int, resumed: int, torn: bytes
) -> None:
    path = tmp_path_factory.mktemp("metrics") / "metrics.jsonl"
    path.write_bytes(b"".join(json.dumps({"step": i + 1}).encode() + b"\n" for i in range(written)) + torn)
    assert MetricsLog(path).supersede(resumed) == max(0, written - resumed)
    assert [line["step"] for line in read_lines(path)] == list(range(1, min(written, resumed) + 1))
    aside = read_lines(path.with_suffix(".superseded.jsonl"))
    assert [line["step"] for line in aside] == list(range(resumed + 1, written + 1))


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_null_as_any_reader_of_json_takes_it(tmp_path: Path, loss: float) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.record({"step": 1, "loss": loss})
    assert log.flush() == [{"step": 1, "loss": None}]
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": null}\n'


def test_a_kill_leaves_whole_lines(tmp_path: Path) -> None:
    program = f"""
from pathlib import Path
from finetune.monitor.metrics import MetricsLog
log = MetricsLog(Path({str(tmp_path / "metrics.jsonl")!r}))
step = 0
while True:
    step += 1
    log.record({{"step": step, "text": "x" * 5000}})
    log.flush()
    if step == 20: print("ready", flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    steps = [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")]
    assert len(steps) >= 20
    assert steps == list(range(1, len(steps) + 1))


def test_a_replaced_file_is_never_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_text(tmp_path / "file", "old")
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        replace_text(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old"
