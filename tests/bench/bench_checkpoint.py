"""What saving costs the training: its stall, what lies on the disk, and how soon it is read again.

`python -m tests.bench.bench_checkpoint 860` measures a model of another size, in millions of parameters.
"""

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from finetune.checkpoint.config import CheckpointConfig
from finetune.checkpoint.store import Checkpoint, CheckpointStore
from finetune.distributed import Distributed
from finetune.optim.config import EmaConfig, OptimConfig, state_kind
from finetune.strategy import StrategyConfig
from tests.bench.figure import Figure
from tests.bench.timing import Cost, cost, in_turns, spread
from tests.ranks import OneRank

MILLIONS = 100
REPEATS = 3
WIDTH = 1000
"""Every layer has a million weights, about as many as a tensor of the UNet has on average."""


def figures(work: Path, shared: Path | None, millions: int = MILLIONS) -> Iterator[Figure]:
    """One process with AdamW, on a GPU where there is one, saves its state in turns with and without waiting.

    Args:
        work: folder for the checkpoints.
        shared: not needed.
        millions: of parameters.
    """
    saving = Saving(work / "run" / "checkpoints", millions)
    saving.copy(0)  # memory is touched for the first time
    saving.blocking(0)
    costs = in_turns([saving.copy, saving.background, saving.blocking], REPEATS)[..., 0]
    copy_s, background_s, blocking_s = np.median(costs, axis=0)
    ratios = costs[:, 1] / costs[:, 0]
    told = f"{millions} M parameters, AdamW in fp32, one process on {device_name(saving.distributed.device)}"
    written_s = np.median([saved.seconds for saved in saving.store.completed()])
    yield Figure(
        "checkpoint.stall_vs_copy",
        float(np.median(ratios)),
        "ratio",
        f"stall of a save / copying the state to host memory; {told}; {spread(ratios)}; {background_s:.2f} s against "
        f"{copy_s:.2f} s, written in {written_s:.2f} s beside",
    )
    yield Figure(
        "checkpoint.stall_vs_blocking",
        float(background_s / blocking_s),
        "ratio",
        f"stall of a save / of one that is waited for, {blocking_s:.2f} s until it is on the disk; {told}",
    )
    checkpoint = saving.checkpoint()
    yield Figure(
        "checkpoint.bytes_per_parameter",
        checkpoint.size / (millions * WIDTH**2),
        "bytes",
        f"{checkpoint.size / 2**30:.2f} GiB in all; {told}: weights and two moments",
    )
    forget(checkpoint)
    verified, loaded = cost(saving.verify), cost(lambda: saving.load(checkpoint))
    yield Figure(
        "checkpoint.load_s",
        verified.wall_s + loaded.wall_s,
        "s",
        f"verified in {verified.wall_s:.2f} s from the disk, then loaded in {loaded.wall_s:.2f} s; {told}",
    )
    saving.distributed.close()


class Saving:
    """A model that has taken a step, and its checkpoints."""

    def __init__(self, folder: Path, millions: int) -> None:
        layers = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(millions))
        model = nn.Sequential(*layers)
        optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
        self.distributed = Distributed(StrategyConfig(name="single", precision="fp32"))
        self.distributed.prepare(
            model,
            optimizer,
            kind=state_kind(OptimConfig(name="adamw")),
            micro_batch=1,
            global_batch=1,
            max_grad_norm=1.0,
            resting={},
            ema=EmaConfig(decay=0.0),
        )
        model(torch.ones(1, WIDTH, device=self.distributed.device)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        self.store = CheckpointStore(folder, CheckpointConfig(keep=1), OneRank())
        self.step = 0

    def copy(self, repeat: int) -> Cost:
        """Copy the state to host memory, which no save can do without."""
        return cost(self.distributed.state)

    def background(self, repeat: int) -> Cost:
        """The stall of a save; writing is waited for afterwards, as the steps in between would."""
        taken = cost(self.hand_over)
        self.store.wait()
        return taken

    def blocking(self, repeat: int) -> Cost:
        """Save and wait."""

        def save() -> None:
            self.hand_over()
            self.store.wait()

        return cost(save)

    def hand_over(self) -> None:
        """Make a state and hand it to the writer."""
        self.step += 1
        self.store.save(self.step, self.distributed.state(), {})

    def checkpoint(self) -> Checkpoint:
        """The newest one."""
        checkpoint = self.store.wait()
        assert checkpoint is not None
        return checkpoint

    def verify(self) -> None:
        """Find the newest checkpoint as a start does."""
        found = self.store.newest(lambda kind, sentence: None)
        assert found is not None

    def load(self, checkpoint: Checkpoint) -> None:
        """Load it."""
        self.distributed.load_state(*checkpoint.ranks)


def device_name(device: torch.device) -> str:
    """What the model lies on."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"


def forget(checkpoint: Checkpoint) -> None:
    """Let the system drop a checkpoint's files from its memory, as if it had been started anew."""
    os.sync()
    for name in checkpoint.files:
        with (checkpoint.folder / name).open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for figure in figures(Path(folder), None, int(sys.argv[1]) if len(sys.argv) > 1 else MILLIONS):
            print(json.dumps(figure._asdict(), ensure_ascii=False), flush=True)
