"""Two steps under each strategy, with the collectives that the second took; started by test_traffic.py.

Args: micro-batches that are added up, output file.
"""

import sys
from typing import Any

import torch

import finetune.strategy
from finetune.optim.config import OptimConfig
from tests.distributed.worker import MICRO_BATCH, RATES, Trainer, large_tensors
from tests.traffic import Traffic

TRIED = {"fp32": ("ddp", "zero1", "zero2"), "bf16": ("zero1", "zero2", "zero3")}
"""In this order: DeepSpeed does not forget in a process that there was autocast."""
SMALL_BUCKET = 1000
"""Elements; fewer than a matrix of the network, more than a bias."""


def stepped(strategy: str, precision: str, accumulated: int) -> dict[str, Any]:
    """What a step sent, what wrapping the model took, and the weights after it."""
    trainer = Trainer(strategy, precision)
    parameters = sum(p.numel() for p in trainer.net.parameters() if p.requires_grad)
    before = large_tensors()
    everything = accumulated * MICRO_BATCH * trainer.distributed.world
    trainer.prepare(OptimConfig(name="sgd"), global_batch=everything)
    wrapping = large_tensors() - before
    trainer.step(0, RATES)  # after which ddp agrees on its buckets
    with Traffic() as traffic:
        trainer.step(1, RATES)
    sent = [(one.name, one.size, one.per_rank(trainer.distributed.world)) for one in traffic.sent]
    weights = trainer.parameters()
    found = {"sent": sent, "parameters": parameters, "wrapping": wrapping, "weights": weights}
    if strategy == "ddp":
        trainer.accumulate(2, micro_batches=1)
        gradients = [p.grad for p in trainer.net.parameters() if p.grad is not None]
        found["buckets"] = {g.untyped_storage().data_ptr(): g.untyped_storage().nbytes() for g in gradients}
    trainer.reset()
    return found


def main() -> None:
    """Strategies in the precisions that make a difference to them, and then with small buckets."""
    accumulated, output = sys.argv[1:]
    found = {(s, p): stepped(s, p, int(accumulated)) for p, strategies in TRIED.items() for s in strategies}
    finetune.strategy.BUCKET = SMALL_BUCKET
    found |= {(s, "small buckets"): stepped(s, "bf16", int(accumulated)) for s in ("zero1", "zero2")}
    distributed = Trainer("ddp").distributed
    if distributed.is_main:
        torch.save({f"{strategy} {how}": one for (strategy, how), one in found.items()}, output)
    distributed.barrier()
    distributed.close()


if __name__ == "__main__":
    main()
