"""A run that is killed again and again at random moments and must not show it: `python -m tests.faults.soak`.

Ends with code 0 where metrics, ledger and weights are those of the same run without a kill. The seed is printed, and
gives the same kills at nearly the same moments.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from data_tools.build import build
from tests.conftest import write_pictures
from tests.faults.scene import BATCH, Scene, arguments, assert_same, metrics, save_model
from tests.processes import assert_alone, members, signal_all

PICTURES = 60
EPOCH = PICTURES / BATCH
"""Steps of an epoch."""
STARTUP_S = 15.0
"""About how long it takes until the first step."""


@dataclass(frozen=True)
class Kill:
    """When the processes are killed, and how."""

    step: int
    """After so many steps, or as soon as it goes on if these are done; 0 is while the run starts."""
    delay_s: float
    """And a moment later."""
    how: str
    """`group` is SIGKILL to all processes, `launcher` and `worker` to one of them, `ask` SIGTERM to all."""


def draw_kills(count: int, steps: int, seed: int) -> list[Kill]:
    """Kills at random, the first two of them in one epoch, one in four while the run starts."""
    chance = random.Random(seed)
    first = chance.randrange(1, int(EPOCH) - 1)
    moments = [first, chance.randrange(first, int(EPOCH)), *(chance.randrange(steps - 1) for _ in range(count - 2))]
    hows = ("group", "launcher", "worker", "ask")
    kills = []
    for i, step in enumerate(sorted(moments)):
        starting = i > 1 and chance.random() < 0.25
        delay_s = chance.uniform(0.0, STARTUP_S) if starting else chance.expovariate(4.0)
        kills.append(Kill(0 if starting else step, delay_s, chance.choice(hows)))
    return kills


def prepare(folder: Path) -> tuple[Path, Path]:
    """Shards and a model in a folder."""
    write_pictures(folder / "pictures", PICTURES)
    build(folder / "pictures", folder / "shards", shard_mib=1, text_as="auto", workers=1)
    save_model(folder)
    return folder / "shards", folder / "model"


def done_steps(scene: Scene) -> int:
    """Steps that the run says to have done."""
    return int(scene.status["step"]) if (scene.run / "status.json").exists() else 0


def trains(scene: Scene, process: subprocess.Popen[bytes]) -> bool:
    """Whether it is this launch that says it."""
    return (scene.run / "status.json").exists() and scene.status["pid"] in members(process)


def kill(process: subprocess.Popen[bytes], how: str) -> None:
    """End the processes of a launch, and wait until all are gone."""
    if how == "launcher":
        process.kill()
    elif how == "worker":
        others = [pid for pid in members(process) if pid != process.pid]
        os.kill(others[-1] if others else process.pid, signal.SIGKILL)
    else:
        signal_all(process, signal.SIGTERM if how == "ask" else signal.SIGKILL)
    process.wait()
    assert_alone(process)


def go_through(scene: Scene, kills: list[Kill]) -> list[int]:
    """Start the run and kill it, again and again, then let it end; the steps done at each kill."""
    done = []
    for i, each in enumerate(kills, 1):
        process = scene.start()
        began = time.monotonic()
        while process.poll() is None and each.step and not (trains(scene, process) and done_steps(scene) >= each.step):
            time.sleep(0.01)
        time.sleep(each.delay_s)
        if process.poll() is not None:
            raise AssertionError(f"the run ended by itself before kill {i}: {scene.said[-4000:]}")
        kill(process, each.how)
        done.append(done_steps(scene))
        print(f"kill {i:2}: {each.how:8} after step {done[-1]:3} and {time.monotonic() - began:5.1f} s", flush=True)
    scene.finish()
    return done


def main() -> None:
    """Run it once without kills and once with them, and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10, help="how often the run is killed, at least 2")
    parser.add_argument("--steps", type=int, default=60, help="the run's length")
    parser.add_argument("--processes", type=int, default=2, help="under ZeRO-2, or one process without it")
    parser.add_argument("--seed", type=int, default=None, help="of the moments; drawn where it is not given")
    asked = parser.parse_args()
    seed = asked.seed if asked.seed is not None else random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shards, model = prepare(folder)
        # Kills at one step are chance here and no crash loop.
        more = ("checkpoint.keep=3", "run.max_crashes_at_step=0", f"phases=[{{until: {asked.steps} steps}}]")
        more += ("strategy=zero2",) if asked.processes > 1 else ()
        calm, killed = (
            Scene(folder / name, (*arguments(folder / name, shards, model), *more), asked.processes)
            for name in ("calm", "killed")
        )
        calm.finish()
        done = go_through(killed, draw_kills(asked.kills, asked.steps, seed))
        assert any(int(a // EPOCH) == int(b // EPOCH) for a, b in pairwise(done)), "no two kills fell into one epoch"
        assert_same(killed.run, calm.run)
        print(
            f"{asked.kills} kills, resumed after steps {killed.resumed}: {len(metrics(killed.run))} steps, "
            f"the ledger and the weights are those of the run without kills"
        )


if __name__ == "__main__":
    sys.exit(main())
