"""Toy runs of two ranks, for tests of the watchdog: steps of a forward pass, an all-reduce and an update.

Usage: toys.py STALL_S RUNS, where RUNS is JSON: a fault {"rank", "step", "activity", "kind"} for every folder. The exit
code of rank R goes to R.exit in the folder. All ranks are forked from one process, as importing torch takes longest.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from finetune.health import pulse, watchdog

WORLD = 2
STEPS = 600


def train(run: Path, rank: int, stall_s: float, fault: dict[str, Any]) -> None:
    """One rank's steps."""
    dist.init_process_group("gloo", init_method=f"file://{run / 'store'}", rank=rank, world_size=WORLD)
    own = pulse.Pulse(run / pulse.FOLDER, rank)
    dist.barrier()

    def told(facts: object) -> None:
        (run / "events.jsonl").write_text(json.dumps(facts))

    def at(step: int, activity: pulse.Activity) -> None:
        own.at(step, activity)
        if (rank, step, activity) == (fault.get("rank"), fault.get("step"), fault.get("activity")):
            fail(fault["kind"])

    tell = None if rank else told
    with watchdog.Watchdog(own, run, world=WORLD, stall_s=stall_s, notes=run / "waiting", tell=tell):
        for step in range(STEPS):
            at(step, "data")
            at(step, "forward")
            at(step, "backward")
            dist.all_reduce(torch.ones(1))
            at(step, "update")
            time.sleep(0.01)


def fail(kind: str) -> None:
    """Fall asleep, or send oneself a signal."""
    if kind == "sleep":
        fall_asleep()
    os.kill(os.getpid(), getattr(signal, kind))


def fall_asleep() -> None:
    """Found in a stack."""
    time.sleep(1000)


def start(run: Path, rank: int, stall_s: float, fault: dict[str, Any]) -> int:
    """The process of a new rank, whose words go to R.log."""
    if child := os.fork():
        return child
    log = os.open(run / f"{rank}.log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    train(run, rank, stall_s, fault)
    os._exit(0)


def main() -> None:
    """Start all ranks of all runs, and see how they end."""
    ranks = {
        start(Path(run), rank, float(sys.argv[1]), fault): Path(run) / f"{rank}.exit"
        for run, fault in json.loads(sys.argv[2]).items()
        for rank in range(WORLD)
    }
    while ranks:
        pid, status = os.wait()
        path = ranks.pop(pid)
        path.with_suffix(".part").write_text(str(os.waitstatus_to_exitcode(status)))
        path.with_suffix(".part").replace(path)


main()
