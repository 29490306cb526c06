"""Measures what a rank holds beside the passes; started by test_held.py.

Args: strategy, optimizer, output file.
"""

import gc
import json
import sys
from pathlib import Path

import torch
from torch import nn

from finetune.distributed import Distributed
from finetune.memory.live import LiveBytes
from finetune.optim.config import EmaConfig, OptimConfig, state_kind
from finetune.optim.optimizers import build_optimizer
from finetune.strategy import StrategyConfig

WIDTH, LAYERS = 512, 24


def main() -> None:
    """Take a step of two micro-batches, and the first one of a second step."""
    strategy, optimizer, output = sys.argv[1:]
    distributed = Distributed(StrategyConfig(name=strategy, precision="fp32", threads=1, timeout_s=60))
    optim = OptimConfig(name=optimizer)
    with LiveBytes("cpu") as live:
        net = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)))
        net[0].requires_grad_(False)
        model = distributed.prepare(
            net,
            build_optimizer(optim, {"unet": [layer.weight for layer in list(net)[1:]]}),
            kind=state_kind(optim),
            micro_batch=1,
            global_batch=2 * distributed.world,
            max_grad_norm=1.0,
            resting={},
            ema=EmaConfig(decay=0.9, device="model"),
        )
        for last in (False, True, False):
            distributed.backward(model(torch.ones(1, WIDTH)).sum(), last=last)
            if last:
                distributed.step([1e-3])
        gc.collect()
        held = live.now
    if distributed.is_main:
        Path(output).write_text(json.dumps(held))
    distributed.barrier()
    distributed.close()


if __name__ == "__main__":
    main()
