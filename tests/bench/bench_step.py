"""What a step costs beside its arithmetic: next to a plain loop on the same tensors, and in waiting for data."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_tools.demo.tiny_model import TinySizes, save_tiny_model, train_tokenizer
from finetune.config import Config
from finetune.model.families import load_components
from finetune.monitor.files import read_lines
from finetune.optim.optimizers import build_optimizer
from finetune.train import Run
from tests.bench.bare import BareLoop
from tests.bench.figure import Figure
from tests.bench.pictures import WORDS
from tests.bench.running import FromMemory, Steps, first_batches, recipe, running, small_shards
from tests.bench.timing import Cost, cost, in_turns, spread

SIZES = TinySizes(unet=(24, 24, 48, 48), vae=(8, 8, 8, 8), text=64, text_layers=3)
SIDE, MICRO_BATCH, ACCUMULATION = 64, 4, 2
REPEATS, STEPS = 30, 5
KEPT = 8
"""Micro-batches that both loops go through, over and over."""
WAITED_STEPS, UNCOUNTED = 60, 10
WORKERS = 2
BAR_SHARE, BAR_MS = 0.03, 5.0


def figures(work: Path, shared: Path | None) -> Iterator[Figure]:
    """A run of a small model on one thread of the CPU.

    Args:
        work: folder for the model, the shards and the runs.
        shared: not needed.
    """
    yield from overhead(run_recipe(work, "overhead", "data.workers=0"))
    yield data_wait_share(run_recipe(work, "waiting", f"data.workers={WORKERS}"))


def run_recipe(work: Path, name: str, *settings: str) -> Config:
    """A run that flushes once a turn, made ready in a folder."""
    small_shards(work / f"squares-{SIDE}", SIDE, 64)
    model = work / "model-step"
    if not model.exists():
        save_tiny_model(model, train_tokenizer(WORDS * 100, work / "words-step"), SIZES)
    steps = max((REPEATS + 1) * STEPS, WAITED_STEPS)
    batch = [f"train.micro_batch={MICRO_BATCH}", f"train.global_batch={MICRO_BATCH * ACCUMULATION}"]
    others = [f"phases=[{{until: {steps} steps}}]", "strategy.threads=1", f"monitor.flush_every_steps={STEPS}"]
    return recipe(work, name, model, SIDE, *batch, *others, *settings)


def overhead(config: Config) -> Iterator[Figure]:
    """Steps of a run, with all that comes after each, take turns with those of a plain loop that has the same model,
    optimizer and micro-batches."""
    with running(config) as run:
        turns = Turns(run)
        turns.ours(0)  # memory is touched for the first time
        turns.bare(0)
        costs = 1000.0 * in_turns([turns.ours, turns.bare], REPEATS) / STEPS  # [repeats, sides, wall and CPU]
    medians = np.median(costs, axis=0)
    extra = costs[:, 0] - costs[:, 1]
    for i, (name, what) in enumerate((("step.overhead", "time"), ("step.overhead_cpu", "time of the processor"))):
        more_ms, (ours_ms, bare_ms) = float(np.median(extra[:, i])), medians[:, i]
        yield Figure(
            name,
            more_ms,
            "ms",
            f"{what} that a step takes more than one of a plain loop, {more_ms / bare_ms:.1%}: {ours_ms:.0f} against "
            f"{bare_ms:.0f} ms of {ACCUMULATION} micro-batches; {max(BAR_MS, BAR_SHARE * bare_ms):.1f} ms are allowed; "
            f"{spread(extra[:, i])} of {STEPS} steps, quartiles "
            f"{' and '.join(f'{each:.1f}' for each in np.percentile(extra[:, i], (25, 75)))}",
        )


class Turns:
    """Steps of a run and of a plain loop, from the same micro-batches."""

    def __init__(self, run: Run) -> None:
        config = run.config
        self._batches = first_batches(run, KEPT)
        self._steps = Steps(run, FromMemory(self._batches))
        self._loop = BareLoop(load_components(config.model), run.distributed.device, bf16=False)
        self._optimizer = build_optimizer(config.optim, {"all": self._loop.parameters})

    def ours(self, repeat: int) -> Cost:
        """As a run takes them."""
        return cost(lambda: self._steps.take(STEPS))

    def bare(self, repeat: int) -> Cost:
        """As the plain loop does."""

        def steps() -> None:
            for i in range(STEPS):
                first = i * ACCUMULATION % KEPT
                self._loop.step(self._batches[first : first + ACCUMULATION], self._optimizer)

        return cost(steps)


def data_wait_share(config: Config) -> Figure:
    """A run whose model is slower than two workers that decode for it."""
    with running(config) as run, run.parts.batches(range(WAITED_STEPS)) as batches:
        Steps(run, batches).take(WAITED_STEPS)
    lines = read_lines(config.run_folder / "metrics.jsonl")[UNCOUNTED:]
    step_s, waited_s = (np.array([line[key] for line in lines]) for key in ("step_s", "data_wait_s"))
    return Figure(
        "step.data_wait_share",
        float(waited_s.sum() / step_s.sum()),
        "ratio",
        f"time spent waiting for data / time of {len(lines)} steps of {1000 * np.median(step_s):.0f} ms, one thread "
        f"beside {WORKERS} workers; waits in a step {1000 * np.median(waited_s):.1f} ms in the middle, "
        f"{1000 * waited_s.max():.1f} at most",
    )
