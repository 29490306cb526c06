"""Runs of the product whose steps a benchmark takes one by one."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path

import numpy as np
from PIL import Image

from finetune.config import Config
from finetune.data.batch import Batch
from finetune.distributed import Distributed
from finetune.feed import Batches
from finetune.lifecycle.signals import StopSignals
from finetune.opening import opened
from finetune.recipes import read_recipe
from finetune.train import Run
from tests.bench.pictures import jpeg, write_shards

PICTURES = 8
SHARDS = 2


def small_shards(folder: Path, side: int, samples: int) -> Path:
    """Shards of square pictures of noise, `samples` in each of two; written once."""
    if not folder.exists():
        noise = np.random.default_rng(0)
        pixels = noise.integers(0, 255, (PICTURES, side, side, 3), dtype=np.uint8)
        write_shards(folder, [jpeg(Image.fromarray(each)) for each in pixels], shards=SHARDS, samples=samples)
    return folder


def recipe(work: Path, name: str, model: Path, side: int, *settings: str) -> Config:
    """A run in a folder, with one bucket of squares; shards and model have to be there.

    Args:
        side: of the bucket, in pixels.
        settings: what else differs from conf/demo.yaml, as on the command line.
    """
    paths = [f"data.shards={work / f'squares-{side}'}", f"model.path={model}", f"run.folder={work}", f"run.name={name}"]
    buckets = [f"data.buckets.{key}={side}" for key in ("resolution_px", "max_side_px")]
    nothing_else = ["checkpoint.every_steps=1000000", "monitor.samples.every_steps=0", "model.max_tokens=75"]
    return read_recipe(["conf=demo", *paths, *buckets, "data.buckets.step_px=32", *nothing_else, *settings])


@contextmanager
def running(config: Config) -> Iterator[Run]:
    """Within it the run is open, has taken its trial step, and has compiled what it is to."""
    distributed = Distributed(config.strategy)
    try:
        with StopSignals() as signals, opened(config, distributed) as opening:
            run = Run(opening, signals)
            run.warm_up(0)
            yield run
    finally:
        distributed.close()


def first_batches(run: Run, count: int) -> list[Batch]:
    """A run's first micro-batches."""
    with run.parts.batches(range(run.parts.total_steps)) as batches:
        return [next(batches) for _ in range(count)]


class Steps:
    """A run's steps, one after the other."""

    def __init__(self, run: Run, batches: "Batches | FromMemory") -> None:
        self._run, self._batches, self._done = run, batches, 0

    def take(self, count: int) -> None:
        """Go through the next ones, with what is done after each."""
        for _ in range(count):
            self._batches.reached(self._done)
            self._run.train_step(self._done, self._batches)  # type: ignore[arg-type]
            self._done += 1
            self._run.attend(self._done)


class FromMemory:
    """Micro-batches that are there already, over and over."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self._batches = cycle(batches)

    def __next__(self) -> Batch:
        return next(self._batches)

    def reached(self, step: int) -> None:
        """Nothing has to be fetched ahead."""
