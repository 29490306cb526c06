"""Processes that end with the one that started them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.processes import ends, is_alive

LAUNCHER = """
import subprocess, sys
print(subprocess.Popen([sys.executable, "-c", sys.argv[1]]).wait())
"""
WORKER = """
import os, sys, time
from pathlib import Path
from finetune.entry import enter

def work():
    path = Path(os.environ["SAYS"])
    {before}
    path.with_suffix(".tmp").write_text(str(os.getpid()))
    path.with_suffix(".tmp").replace(path)
    time.sleep(60)

enter(work)
"""


def wait_for(path: Path) -> str:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return path.read_text()


def launch(program: str, says: Path, **variables: str) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if name not in {"RANK", "TORCHELASTIC_RUN_ID"}}
    environment |= {"SAYS": str(says), **variables}
    return subprocess.Popen([sys.executable, "-c", LAUNCHER, program], env=environment)


@pytest.mark.parametrize(
    "variable", ["TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION", "RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK"]
)
def test_a_worker_ends_with_its_launcher(tmp_path: Path, variable: str) -> None:
    with launch(WORKER.format(before="pass"), tmp_path / "says", **{variable: "0"}) as launcher:
        worker = int(wait_for(tmp_path / "says"))
        assert is_alive(worker)
        launcher.kill()
    assert ends(worker, 10)


def test_what_a_shell_has_started_goes_on_without_it(tmp_path: Path) -> None:
    with launch(WORKER.format(before="pass"), tmp_path / "says") as shell:
        worker = int(wait_for(tmp_path / "says"))
        shell.kill()
    assert not ends(worker, 0.5)
    os.kill(worker, signal.SIGKILL)


def test_a_parent_that_has_died_before_is_noticed() -> None:
    program = "import signal; from finetune.parent import follow; follow(1 << 22, signal.SIGTERM); print('alive')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGTERM
    assert not done.stdout


LOADING = """
    import torch
    from torch.utils.data import Dataset
    from finetune.data.config import DataConfig
    from finetune.data.loader import open_loader
    from finetune.lifecycle.signals import StopSignals

    class Slow(Dataset):
        def __len__(self):
            return 1000
        def __getitem__(self, item):
            if item >= {stuck_from}:
                time.sleep(1000)  # as one that waits for its data
            return os.getpid()

    stop = StopSignals().__enter__()
    batches = open_loader(Slow(), DataConfig(shards="x", workers=2, prefetch=2), False)
    pids = {{next(batches), next(batches)}}
    path.with_name("loaders").write_text(" ".join(map(str, pids)))
"""


def loaders_of(says: Path) -> list[int]:
    wait_for(says)
    return [int(pid) for pid in says.with_name("loaders").read_text().split()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_loaders_survive_what_asks_the_run_to_stop_and_die_with_it(tmp_path: Path, number: signal.Signals) -> None:
    with launch(WORKER.format(before=LOADING.format(stuck_from=1000)), tmp_path / "says", RANK="0") as launcher:
        loaders = loaders_of(tmp_path / "says")
        assert len(loaders) == 2
        for pid in loaders:
            os.kill(pid, number)
        assert not ends(loaders[0], 0.5)
        assert is_alive(loaders[1])
        os.kill(int((tmp_path / "says").read_text()), signal.SIGKILL)
        assert all(ends(pid, 10) for pid in loaders)
        launcher.wait(10)


def test_loaders_that_are_stuck_end_with_the_launcher_s_death(tmp_path: Path) -> None:
    with launch(WORKER.format(before=LOADING.format(stuck_from=2)), tmp_path / "says", RANK="0") as launcher:
        loaders = loaders_of(tmp_path / "says")
        trainer = int((tmp_path / "says").read_text())
        launcher.kill()
        time.sleep(0.5)
        assert is_alive(trainer)  # it may save first
        os.kill(trainer, signal.SIGKILL)
    assert all(ends(pid, 10) for pid in loaders)


def test_loaders_that_are_stuck_end_when_their_iterator_goes(tmp_path: Path) -> None:
    before = LOADING.format(stuck_from=2) + "\n    del batches"
    with launch(WORKER.format(before=before), tmp_path / "says", RANK="0") as launcher:
        loaders = loaders_of(tmp_path / "says")
        assert all(ends(pid, 1) for pid in loaders)
        os.kill(int((tmp_path / "says").read_text()), signal.SIGKILL)
        launcher.wait(10)
