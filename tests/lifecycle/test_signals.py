"""Being asked to stop, in processes of their own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from finetune.lifecycle.signals import ECHO_S
from finetune.parent import LAUNCHER_GONE

LOOP = """
import time
from finetune.lifecycle.signals import StopSignals
with StopSignals(grace_s=1.0) as stop:
    print("ready", flush=True)
    while not stop.requested:
        time.sleep(0.01)
    print(stop.reason, flush=True)
    {then}
"""
HANG = """
import ctypes
from finetune.lifecycle.signals import StopSignals
library, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
with StopSignals(grace_s=0.5):
    print("ready", flush=True)
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_lock(mutex)  # never returns, and signals do not interrupt it
"""


@contextmanager
def running(program: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A process that has said that it is ready."""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}
    ) as process:
        try:
            assert line(process) == "ready"
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_the_first_signal_asks_and_leaves_the_rest_to_the_loop(number: signal.Signals) -> None:
    with running(LOOP.format(then="raise SystemExit(75)")) as process:
        process.send_signal(number)
        assert line(process) == number.name
        assert process.wait(10) == 75


def test_nohup_is_respected() -> None:
    nohup = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    with running(nohup + LOOP.format(then="pass")) as process:
        process.send_signal(signal.SIGHUP)
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        assert line(process) == "SIGTERM"


def test_an_echo_of_the_first_signal_is_no_second_one_even_on_the_way_out() -> None:
    then = "pass\ntime.sleep(0.5)\nprint('done')"
    with running(LOOP.format(then=then)) as process:
        process.send_signal(signal.SIGTERM)
        assert line(process) == "SIGTERM"
        for _ in range(4):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.05)
        assert line(process) == "done"
        assert process.wait(10) == 0


def test_a_second_signal_leaves_at_once() -> None:
    with running(LOOP.format(then="time.sleep(60)")) as process:
        process.send_signal(signal.SIGTERM)
        assert line(process) == "SIGTERM"
        time.sleep(ECHO_S + 0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 128 + signal.SIGINT


def test_a_second_signal_works_where_the_main_thread_hangs() -> None:
    with running(HANG) as process:
        process.send_signal(signal.SIGTERM)
        time.sleep(ECHO_S + 0.1)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 128 + signal.SIGTERM


def test_the_launcher_s_death_asks_but_is_no_second_signal() -> None:
    with running(LOOP.format(then="time.sleep(0.5)\n    raise SystemExit(75)")) as process:
        process.send_signal(signal.SIGINT)
        process.send_signal(LAUNCHER_GONE)
        assert line(process) in {"SIGINT", "the launcher's death"}
        assert process.wait(10) == 75


def test_who_hangs_after_the_launcher_s_death_is_ended() -> None:
    with running(HANG) as process:
        process.send_signal(LAUNCHER_GONE)
        assert process.wait(10) == 128 + LAUNCHER_GONE


def test_what_was_not_asked_for_leaves_signals_as_they_were() -> None:
    program = """
import signal, time
from finetune.lifecycle.signals import StopSignals
with StopSignals():
    pass
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
assert signal.set_wakeup_fd(-1) == -1
print("ready", flush=True)
time.sleep(60)
"""
    with running(program) as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == -signal.SIGTERM
