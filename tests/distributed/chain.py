"""One link of a run that changes its strategy and number of processes; started by test_chains.py.

Args: strategy, first step, steps, file of results, folder to save states to, folder to load states from (or -).
"""

import sys
from pathlib import Path
from typing import Any

import torch

from finetune.optim.config import EmaConfig, OptimConfig
from tests.distributed.worker import RATES, Trainer, load_all, save

OPTIMIZERS = ("adamw", "adamw8bit")


def main() -> None:
    """Train some steps with each optimizer, from where the link before left it."""
    strategy, first, steps, output, folder, load = sys.argv[1:]
    results: dict[str, Any] = {}
    trainer = Trainer(strategy)
    for optimizer in OPTIMIZERS:
        trainer.reset()
        trainer.prepare(OptimConfig(name=optimizer, weight_decay=0.1), ema=EmaConfig(decay=0.9))
        trainer.rehearse()
        if load != "-":
            load_all(trainer.distributed, Path(load) / optimizer)
        begun = trainer.parameters()
        for step in range(int(first), int(first) + int(steps)):
            trainer.step(step, RATES)
        save(trainer.distributed, Path(folder) / optimizer)
        ended = {"end": trainer.parameters(), "average": trainer.averaged()}
        results[optimizer] = {"losses": list(trainer.losses), "begun": begun, **ended}
    if trainer.distributed.is_main:
        torch.save(results, output)
    trainer.distributed.barrier()
    trainer.distributed.close()


if __name__ == "__main__":
    main()
