"""What it costs a step to be watched."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data_tools.demo.tiny_model import TinySizes, save_tiny_model, train_tokenizer
from finetune.config import Config
from finetune.diffusion.objective import DECILES
from finetune.distributed import Distributed
from finetune.feed import Batches
from finetune.lifecycle.signals import StopSignals
from finetune.opening import opened
from finetune.recipes import read_recipe
from finetune.train import Run
from tests.bench.figure import Figure
from tests.bench.pictures import WORDS, jpeg, write_shards
from tests.bench.timing import Cost, cost, in_turns, spread

SIZES = TinySizes(unet=(8, 8, 16, 16), vae=(4, 4, 8, 8), text=16, text_layers=3)
SIDE, BATCH = 64, 8
REPEATS, STEPS = 12, 20
"""Steps between two flushes are ten, as in the recipes, so that each turn has two of them."""
BAR_SHARE, BAR_MS = 0.02, 5.0
WRITES = 20


def figures(work: Path, shared: Path | None) -> Iterator[Figure]:
    """A run of a tiny model on the CPU takes turns of steps that are watched, with TensorBoard and wandb offline, and
    of the same steps with nobody there to watch.

    Args:
        work: folder for the model, the shards and the run.
        shared: not needed.
    """
    config = recipe(work)
    distributed = Distributed(config.strategy)
    with StopSignals() as signals, opened(config, distributed) as opening:
        run = Run(opening, signals)
        with run.parts.batches(range(run.parts.total_steps)) as batches:
            turns = Turns(run, batches)
            turns.watched(0)  # memory is touched for the first time
            costs = 1000.0 * in_turns([turns.watched, turns.unwatched], REPEATS)[..., 0] / STEPS
            status = opening.watch._status  # type: ignore[union-attr]
            heartbeat_ms = 1000.0 * np.median([cost(status._write).wall_s for _ in range(WRITES)])
    distributed.close()
    watched_ms, plain_ms = np.median(costs, axis=0)
    extra = costs[:, 0] - costs[:, 1] + heartbeat_ms * (plain_ms / 1000.0 / config.monitor.heartbeat_s)
    allowed = max(BAR_MS, BAR_SHARE * plain_ms)
    yield Figure(
        "monitor.overhead",
        float(np.median(extra)),
        "ms",
        f"more a step, {np.median(extra) / plain_ms:.1%} of it, and {allowed:.1f} ms are allowed; {spread(extra)} of "
        f"{STEPS} steps; medians {watched_ms:.1f} against {plain_ms:.1f} ms; with its share of a heartbeat, "
        f"{heartbeat_ms:.1f} ms every {config.monitor.heartbeat_s:g} s",
    )


def recipe(work: Path) -> Config:
    """A run of small pictures through a tiny model, made ready in a folder."""
    noise = np.random.default_rng(0)
    drawn = [Image.fromarray(noise.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)) for _ in range(8)]
    write_shards(work / "small", [jpeg(picture) for picture in drawn], shards=2, samples=64)
    save_tiny_model(work / "model", train_tokenizer(WORDS * 100, work / "words"), SIZES)
    steps = (2 * REPEATS + 1) * STEPS
    paths = [f"data.shards={work / 'small'}", f"model.path={work / 'model'}", f"run.folder={work}"]
    sides = {"resolution_px": SIDE, "max_side_px": SIDE, "step_px": 32}
    buckets = [f"data.buckets.{name}={value}" for name, value in sides.items()]
    batch = [f"train.micro_batch={BATCH // 2}", f"train.global_batch={BATCH}", "data.workers=0", "strategy.threads=1"]
    return read_recipe(["conf=demo", *paths, *buckets, *batch, f"phases=[{{until: {steps} steps}}]"])


class Turns:
    """Steps of one run, watched and not."""

    def __init__(self, run: Run, batches: Batches) -> None:
        self.run, self.batches, self.step = run, batches, 0
        self.watch = run.watch

    def watched(self, repeat: int) -> Cost:
        """As a run takes them."""
        return cost(self.steps)

    def unwatched(self, repeat: int) -> Cost:
        """Without a line, a flush, counts or deciles."""
        run, objective = self.run, self.run.parts.objective
        kept, by_decile = run.interval, objective._by_decile
        nothing = torch.zeros(2, DECILES)

        def no_deciles(errors: Tensor, timesteps: Tensor) -> Tensor:
            return nothing

        run.watch = None
        run.interval = SimpleNamespace(take=ignore, step=ignore, step_s=[])  # type: ignore[assignment]
        objective._by_decile = no_deciles  # type: ignore[method-assign]
        try:
            return cost(self.steps)
        finally:
            run.watch, run.interval, objective._by_decile = self.watch, kept, by_decile  # type: ignore[method-assign]

    def steps(self) -> None:
        """The next ones, with what is done after each."""
        for _ in range(STEPS):
            self.batches.reached(self.step)
            self.run.train_step(self.step, self.batches)
            self.step += 1
            if self.step % self.run.config.monitor.flush_every_steps == 0:
                self.run.flush(self.step)


def ignore(*given: Any) -> None:
    """Count nothing."""
