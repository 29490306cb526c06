"""Trains a small network under a strategy and writes down what came of it; started by test_distributed.py.

Args: strategy, optimizer, output file, folder to save states to, folder to load states from (or -).
"""

import gc
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from finetune.distributed import Distributed
from finetune.optim.config import EmaConfig, OptimConfig, state_kind
from finetune.optim.optimizers import build_optimizer
from finetune.strategy import StrategyConfig

MICRO_BATCH, GLOBAL_BATCH, STEPS, HALF = 2, 8, 6, 3
RATES = [1e-2, 3e-3]


class Net(nn.Module):
    """Two layers of which the second is the other group, and one that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Linear(64, 192)
        self.frozen = nn.Linear(192, 192).requires_grad_(False)
        self.second = nn.Linear(192, 64)
        for parameter in self.parameters():
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.frozen(torch.tanh(self.first(x)))))


def micro_batch(step: int, number: int) -> tuple[Tensor, Tensor]:
    """The same input and target whoever asks."""
    generator = torch.Generator().manual_seed(1000 * step + number)
    return torch.randn(MICRO_BATCH, 64, generator=generator), torch.randn(MICRO_BATCH, 64, generator=generator)


def joined(step: int, number: int, samples: int) -> tuple[Tensor, Tensor]:
    """The same samples in larger micro-batches."""
    parts = samples // MICRO_BATCH
    drawn = [micro_batch(step, number * parts + i) for i in range(parts)]
    return torch.cat([x for x, _ in drawn]), torch.cat([y for _, y in drawn])


def large_tensors() -> int:
    """Bytes of all distinct tensor storages that are alive, as a leak would raise them."""
    gc.collect()
    tensors = [t for t in gc.get_objects() if type(t) in (Tensor, nn.Parameter)]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


class Trainer:
    """The loop, on one rank."""

    def __init__(self, strategy: str, precision: str = "fp32") -> None:
        config = StrategyConfig(name=strategy, precision=precision, threads=1, timeout_s=60)
        self.distributed = Distributed(config)
        self.net = Net()
        self.norms: list[float] = []
        self.losses: list[float] = []

    def prepare(
        self,
        optimizer: OptimConfig,
        *,
        trained: Sequence[str] = ("first", "second"),
        resting: Sequence[str] = (),
        micro_batch: int = MICRO_BATCH,
        ema: EmaConfig | None = None,
    ) -> None:
        """Train some parts of the network, each a group, with an optimizer that is new."""
        for name, parameter in self.net.named_parameters():
            parameter.requires_grad_(name.split(".")[0] in trained)
        groups = {part: list(getattr(self.net, part).parameters()) for part in trained}
        self.micro_batch = micro_batch
        self.model = self.distributed.prepare(
            self.net,
            build_optimizer(optimizer, groups),
            kind=state_kind(optimizer),
            micro_batch=micro_batch,
            global_batch=GLOBAL_BATCH,
            max_grad_norm=0.5,
            resting={name: p for name, p in self.net.named_parameters() if name.split(".")[0] in resting},
            ema=ema or EmaConfig(),
        )

    def step(self, step: int, rates: list[float]) -> None:
        """One optimizer step on this rank's micro-batches."""
        world, losses = self.distributed.world, []
        for i in range(self.distributed.accumulation):
            x, y = joined(step, self.distributed.rank + i * world, self.micro_batch)
            with self.distributed.autocast():
                loss = (self.model(x).float() - y).square().mean()
            self.distributed.backward(loss, last=i == self.distributed.accumulation - 1)
            losses.append(loss)
        self.norms.append(self.distributed.step(rates).item())
        self.losses.append(self.distributed.mean(torch.stack(losses).mean()).item())

    def rehearse(self) -> None:
        """A step at rate 0 that is to leave no trace, by an optimizer that moves the weights all the same."""
        engine = self.distributed._prepared
        take_step = engine.optimizer.step

        def step_and_move() -> None:
            take_step()
            for flat in engine.flats:
                flat.values.add_(1.0)

        x, y = joined(99, self.distributed.rank, self.micro_batch)
        engine.optimizer.step = step_and_move  # type: ignore[method-assign,assignment]
        with self.distributed.autocast():
            self.distributed.rehearse((self.model(x).float() - y).square().mean())
        engine.optimizer.step = take_step  # type: ignore[method-assign]

    def parameters(self) -> dict[str, Tensor]:
        """Copies of all weights."""
        return {name: p.detach().clone() for name, p in self.net.named_parameters()}


def main() -> None:
    """Trial, half of the steps, save, the other half; then go back to what was saved and do that half again."""
    strategy, optimizer, output, save, load = sys.argv[1:]
    trainer = Trainer(strategy)
    trainer.prepare(OptimConfig(name=optimizer, weight_decay=0.1))
    distributed = trainer.distributed
    results: dict[str, object] = {"start": trainer.parameters()}
    trainer.rehearse()
    results["after_trial"] = trainer.parameters()

    if load == "-":
        for step in range(HALF):
            trainer.step(step, RATES)
    else:
        states = sorted(Path(load).glob("*.pt"))
        distributed.load_state(lambda rank: torch.load(states[rank], weights_only=True, mmap=True), len(states))
    results["half"] = trainer.parameters()
    state = distributed.state()
    torch.save(state, Path(save) / f"{distributed.rank}.pt")
    results["gathered"] = distributed.gather(distributed.rank)
    for step in range(HALF, STEPS):
        trainer.step(step, RATES)
    results["end"] = trainer.parameters()
    results["moments_before"] = large_tensors()
    results["norms"], results["losses"] = list(trainer.norms), list(trainer.losses)

    paths = [Path(save) / f"{rank}.pt" for rank in range(distributed.world)]
    distributed.load_state(lambda rank: torch.load(paths[rank], weights_only=True, mmap=True), distributed.world)
    results["half_again"] = trainer.parameters()
    results["moments_alive"] = large_tensors()
    for step in range(HALF, STEPS):
        trainer.step(step, RATES)
    results["end_again"] = trainer.parameters()
    if distributed.is_main:
        torch.save(results, output)
    distributed.barrier()
    distributed.close()


if __name__ == "__main__":
    main()
