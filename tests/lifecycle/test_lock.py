"""One launch in a run's folder, between processes."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from finetune.errors import RankError, UserError
from finetune.lifecycle import lock as lock_module
from finetune.lifecycle.lock import RunLock, locked
from tests.processes import ends

LEASE_S, RENEWAL_S = 1.5, 0.2
HOLDER = f"""
import os, socket, sys, time
from pathlib import Path
from finetune.errors import RankError, UserError
from finetune.lifecycle import lock
from finetune.lifecycle.starts import Start
lock.LEASE_S, lock.RENEWAL_S, lock.POLL_S = {LEASE_S}, {RENEWAL_S}, 0.05
folder = Path(sys.argv[1])
mine = lock.RunLock(folder, lambda text: None)
"""
HOLD = """
mine.take()
Start(folder, 0).begin(killed_at=0, killed_by="", max_crashes_at_step=0)
print("held", flush=True)
"""
SLEEP = "time.sleep(60)"


class Ranks:
    """One rank of two, to which rank 0's values are known."""

    def __init__(self, rank: int, of_rank_0: object = None) -> None:
        self.rank, self.world, self.is_main = rank, 2, rank == 0
        self._of_rank_0 = of_rank_0
        self.given: list[object] = []

    def gather(self, value: object) -> list[object]:
        self.given.append(value)
        return [value if self.is_main else self._of_rank_0, None]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("LEASE_S", LEASE_S), ("RENEWAL_S", RENEWAL_S), ("POLL_S", 0.05)):
        monkeypatch.setattr(lock_module, name, value)


@contextmanager
def holder(folder: Path, then: str = SLEEP, before: str = "") -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock of a folder."""
    program = before + HOLDER + HOLD + then
    with subprocess.Popen([sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def take(folder: Path) -> list[str]:
    """Take the lock of a folder and let it go; what was said."""
    said: list[str] = []
    lock = RunLock(folder, said.append)
    lock.take()
    lock.check()
    lock.release()
    return said


def test_a_lock_is_let_go_and_taken_again_without_a_word(tmp_path: Path) -> None:
    assert take(tmp_path / "runs" / "fox") == take(tmp_path / "runs" / "fox") == []
    assert not (tmp_path / "runs" / "fox" / "lock").exists()


def test_a_second_start_is_refused_and_told_by_whom(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        with pytest.raises(UserError) as refused:
            take(tmp_path)
        who = f"process {process.pid} on {re.escape(socket.gethostname())}, since 20..-..-..T[^ ]+"
        assert re.match(f"{who} trains in {tmp_path}: stop it first, or start another run", str(refused.value))
        process.kill()
        process.wait()
        take(tmp_path)


def test_a_killed_holder_s_lock_is_free_at_once(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        process.kill()
        process.wait()
        began = time.monotonic()
        take(tmp_path)
        assert time.monotonic() - began < RENEWAL_S


def test_another_process_with_the_holder_s_number_is_not_the_holder(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        process.kill()
        process.wait()
    path = tmp_path / "lock"
    path.write_text(path.read_text().replace(f"pid={process.pid}\n", f"pid={os.getpid()}\n"))
    take(tmp_path)


def test_a_holder_on_another_machine_is_refused_for_while_it_renews(tmp_path: Path) -> None:
    elsewhere = "import socket\nsocket.gethostname = lambda: 'node7'\n"
    with holder(tmp_path, before=elsewhere) as process:
        with pytest.raises(UserError, match=f"process {process.pid} on node7, since .* trains in"):
            take(tmp_path)
        process.kill()
        process.wait()
        began = time.monotonic()
        waiting, free = take(tmp_path)
        assert time.monotonic() - began >= LEASE_S
    assert waiting.startswith(f"process {process.pid} on node7")
    assert "waiting to see whether it lives" in waiting
    assert free == f"its holder is gone: {tmp_path} is free"


def test_a_holder_that_was_asleep_for_too_long_learns_of_its_loss(tmp_path: Path) -> None:
    check = """
while True:
    try:
        mine.check()
    except RankError as error:
        print(error, flush=True)
        break
    time.sleep(0.02)
"""
    with holder(tmp_path, then=check) as process:
        process.send_signal(signal.SIGSTOP)
        lock = RunLock(tmp_path, lambda text: None)
        lock.take()
        process.send_signal(signal.SIGCONT)
        assert process.stdout is not None
        assert "no longer holds" in process.stdout.readline()
        assert process.wait(10) == 0
        time.sleep(2 * RENEWAL_S)
        lock.check()
        with pytest.raises(UserError, match="trains in"):
            take(tmp_path)
        lock.release()


def test_a_fork_of_the_holder_neither_holds_nor_frees_it(tmp_path: Path) -> None:
    fork = """
if os.fork() == 0:
    del mine
    sys.exit()
os.wait()
print("forked", flush=True)
time.sleep(60)
"""
    with holder(tmp_path, then=fork) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "forked\n"
        with pytest.raises(UserError, match="trains in"):
            take(tmp_path)


def test_of_many_starts_one_recovers_a_stale_lock(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        process.kill()
        process.wait()
    attempt = f"""
try:
    {HOLD.strip().replace(chr(10), chr(10) + "    ")}
    {SLEEP}
except UserError:
    print("refused", flush=True)
"""
    command = [sys.executable, "-c", HOLDER + attempt, str(tmp_path)]
    starts = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    try:
        said = [start.stdout.readline() for start in starts if start.stdout]
    finally:
        for start in starts:
            start.kill()
            start.wait()
    assert sorted(said) == ["held\n", "refused\n", "refused\n", "refused\n"]
    assert all(ends(start.pid, 1) for start in starts)


def test_rank_0_takes_it_for_all(tmp_path: Path) -> None:
    with locked(tmp_path, Ranks(0), print) as lock:
        assert (tmp_path / "lock").exists()
        lock.check()
    assert not (tmp_path / "lock").exists()
    with locked(tmp_path, Ranks(1), print) as lock:
        assert not (tmp_path / "lock").exists()
        lock.check()


def test_all_ranks_are_refused_together(tmp_path: Path) -> None:
    ranks = Ranks(0)
    with holder(tmp_path), pytest.raises(UserError, match="trains in"), locked(tmp_path, ranks, print):
        pytest.fail("two hold the lock")
    (told,) = ranks.given
    with pytest.raises(UserError, match="trains in"), locked(tmp_path, Ranks(1, told), print):
        pytest.fail("rank 1 was not told")


def test_the_lock_is_let_go_whatever_happens_within(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path, Ranks(0), print):
        raise ZeroDivisionError
    assert take(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(UserError, match=r"runs/fox cannot be written .*: make it writable"):
        take(tmp_path / "runs" / "fox")


def test_who_lost_it_is_told_again_and_again(tmp_path: Path) -> None:
    lock = RunLock(tmp_path, print)
    lock.take()
    (tmp_path / "lock").unlink()
    time.sleep(5 * RENEWAL_S)
    for _ in range(2):
        with pytest.raises(RankError, match=r"no longer holds .*lock \(marker-missing\): see who trains there"):
            lock.check()
    lock.release()
