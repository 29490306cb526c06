"""The pulse: written without waiting, read by others, and there when its process is not."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from finetune.health.pulse import Pulse, clear_pulses, read_pulses


def test_what_is_written_is_read(tmp_path: Path) -> None:
    first, second = Pulse(tmp_path, 0), Pulse(tmp_path, 1)
    (beat, _) = read_pulses(tmp_path)
    assert (beat.step, beat.turn, beat.activity, beat.ticks, beat.waits) == (0, 0, "starting", 0, False)
    assert (beat.rank, beat.host, beat.pid) == (0, socket.gethostname(), os.getpid())
    before = time.time()
    second.at(7, "data")
    second.at(7, "forward")
    second.tick(waits=True)
    second.sync()
    beat = read_pulses(tmp_path)[1]
    assert (beat.rank, beat.step, beat.turn, beat.activity, beat.ticks, beat.waits) == (1, 7, 1, "forward", 1, True)
    assert before <= beat.time <= time.time()
    second.at(8, "exporting")
    beat = read_pulses(tmp_path)[1]
    assert (beat.step, beat.turn, beat.activity) == (8, 0, "exporting")
    first.close()
    second.close()
    assert len(read_pulses(tmp_path)) == 2


def test_the_last_beat_outlives_a_kill(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from finetune.health.pulse import Pulse\n"
        "pulse = Pulse(Path(sys.argv[1]), 3); pulse.at(123456789012, 'update'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    (beat,) = read_pulses(tmp_path)
    assert (beat.rank, beat.step, beat.activity) == (3, 123456789012, "update")
    assert beat.pid != os.getpid()


def test_a_new_start_is_not_disturbed_by_what_is_left_of_the_last(tmp_path: Path) -> None:
    left = Pulse(tmp_path, 0)
    new = Pulse(tmp_path, 0)
    new.at(5, "data")
    left.at(99, "saving")
    (beat,) = read_pulses(tmp_path)
    assert (beat.step, beat.activity) == (5, "data")
    clear_pulses(tmp_path)
    assert read_pulses(tmp_path) == []


def test_no_run_no_pulse(tmp_path: Path) -> None:
    assert read_pulses(tmp_path / "pulse") == []
