"""Trains a small network under a strategy and writes down what came of it; started by test_distributed.py.

Args: strategy, optimizer, output file, folder to save states to, folder to load states from (or -).
"""

import gc
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

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


def same(a: Any, b: Any) -> bool:
    """Whether two nests of dictionaries, lists and tensors are equal bit by bit."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(value, b[key]) for key, value in a.items())
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def save(distributed: Distributed, folder: Path) -> None:
    """Save this rank's state among the others'."""
    folder.mkdir(exist_ok=True)
    torch.save(distributed.state(), folder / f"{distributed.rank}.pt")
    distributed.barrier()


def load_all(distributed: Distributed, folder: Path) -> None:
    """Load what all ranks have saved, however many they were."""
    files = sorted(folder.glob("*.pt"))
    distributed.load_state(lambda rank: torch.load(files[rank], weights_only=True, mmap=True), len(files))


class Trainer:
    """The loop, on one rank."""

    def __init__(self, strategy: str, precision: str = "fp32") -> None:
        config = StrategyConfig(name=strategy, precision=precision, threads=1, timeout_s=60)
        self.distributed = Distributed(config)
        self.net = Net()
        self.start = self.copies()
        self.norms: list[float] = []
        self.losses: list[float] = []

    def reset(self) -> None:
        """Go back to the first weights, without an optimizer."""
        self.distributed._release()
        with torch.no_grad():
            for name, p in self.net.named_parameters():
                p.copy_(self.start[name])
        self.losses.clear()

    def prepare(
        self,
        optimizer: OptimConfig,
        *,
        trained: Sequence[str] = ("first", "second"),
        resting: Sequence[str] = (),
        micro_batch: int = MICRO_BATCH,
        global_batch: int = GLOBAL_BATCH,
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
            global_batch=global_batch,
            max_grad_norm=0.5,
            resting={name: p for name, p in self.net.named_parameters() if name.split(".")[0] in resting},
            ema=ema or EmaConfig(),
        )

    def step(self, step: int, rates: list[float]) -> None:
        """One optimizer step on this rank's micro-batches."""
        loss = self.accumulate(step)
        self.norms.append(self.distributed.gradient_norm().item())
        self.distributed.step(rates)
        self.losses.append(self.distributed.share(loss).item())

    def accumulate(self, step: int, factor: float = 1.0, micro_batches: int | None = None) -> Tensor:
        """This rank's mean loss on its micro-batches of a step, or on the first few of them.

        Args:
            factor: what rank 0 multiplies the loss of its last micro-batch with.
        """
        distributed, losses = self.distributed, []
        for i in range(distributed.accumulation if micro_batches is None else micro_batches):
            last = i == distributed.accumulation - 1
            x, y = joined(step, distributed.rank + i * distributed.world, self.micro_batch)
            with distributed.autocast():
                loss = (self.model(x).float() - y).square().mean()
            distributed.backward(loss * factor if last and distributed.is_main else loss, last=last)
            losses.append(loss)
        return torch.stack(losses).mean()

    def vetoed(self) -> dict[str, Any]:
        """Leave out steps of which only the first rank has bad gradients, and one in its midst; what was seen of it."""
        before, norms = self.distributed.state(), []
        for factor in (float("nan"), float("inf"), 1e30):
            self.accumulate(7, factor)
            norms.append(self.distributed.gradient_norm())
            self.distributed.skip()
        self.accumulate(8, micro_batches=max(1, self.distributed.accumulation - 1))
        self.distributed.skip()
        return {"norms": norms, "untouched": same(before, self.distributed.state())}

    def rehearse(self, cut_short: str | None = None) -> None:
        """A step at rate 0 that is to leave no trace, by an optimizer that moves the weights all the same.

        Args:
            cut_short: where memory runs out: backward, update or state.
        """
        engine, state = self.distributed._prepared, self.distributed._state
        take_step, save = engine.optimizer.step, state.save

        def run_out(where: str) -> None:
            if where == cut_short:
                raise torch.cuda.OutOfMemoryError

        def step_and_move() -> None:
            take_step()
            for flat in engine.flats:
                flat.values.add_(1.0)
            run_out("update")

        def save_state(averages: Any) -> Any:
            run_out("state")
            return save(averages)

        def between(layer: nn.Module, inputs: Any, result: Tensor) -> None:
            result.register_hook(lambda gradient: run_out("backward"))  # when the second layer's gradients are there

        hook = self.net.first.register_forward_hook(between)
        x, y = joined(99, self.distributed.rank, self.micro_batch)
        engine.optimizer.step, state.save = step_and_move, save_state  # type: ignore[method-assign,assignment]
        try:
            with self.distributed.autocast():
                self.distributed.rehearse((self.model(x).float() - y).square().mean())
        except torch.cuda.OutOfMemoryError:
            assert cut_short
        finally:
            engine.optimizer.step, state.save = take_step, save  # type: ignore[method-assign]
            hook.remove()

    def parameters(self) -> dict[str, Tensor]:
        """Copies of all weights that train."""
        with self.distributed._engine.gathered() if self.distributed._engine else nullcontext():
            return self.copies()

    def averaged(self) -> dict[str, Tensor]:
        """Copies of the weights to be judged by."""
        with self.distributed.evaluation_weights():
            return self.copies()

    def copies(self) -> dict[str, Tensor]:
        """Copies of what the module has."""
        return {name: p.detach().clone() for name, p in self.net.named_parameters()}


def main() -> None:
    """Trial, half of the steps, save, the other half; then go back to what was saved and do that half again."""
    strategy, optimizer, output, folder, load = sys.argv[1:]
    trainer = Trainer(strategy)
    distributed = trainer.distributed
    accumulated = max(GLOBAL_BATCH, 2 * MICRO_BATCH * distributed.world)  # over at least two micro-batches
    trainer.prepare(OptimConfig(name=optimizer, weight_decay=0.1), global_batch=accumulated)
    results: dict[str, object] = {"start": trainer.parameters()}
    trainer.rehearse()
    results["after_trial"] = trainer.parameters()

    if load == "-":
        for step in range(HALF):
            trainer.step(step, RATES)
    else:
        load_all(distributed, Path(load))
    results["half"] = trainer.parameters()
    save(distributed, Path(folder))
    results["gathered"] = distributed.gather(distributed.rank)
    for step in range(HALF, STEPS):
        trainer.step(step, RATES)
    results["end"] = trainer.parameters()
    results["moments_before"] = large_tensors()
    results["norms"], results["losses"] = list(trainer.norms), list(trainer.losses)

    load_all(distributed, Path(folder))
    results["half_again"] = trainer.parameters()
    results["moments_alive"] = large_tensors()
    for step in range(HALF, STEPS):
        trainer.step(step, RATES)
    results["end_again"] = trainer.parameters()

    load_all(distributed, Path(folder))
    results["vetoed"] = distributed.gather(trainer.vetoed())
    for step in range(HALF, STEPS):
        trainer.step(step, RATES)
    results["end_vetoed"] = trainer.parameters()
    loss = torch.tensor(float("nan") if distributed.is_main else 1.0)
    flags, sums = [distributed.is_main, False, True], torch.full((2, 2), 1.0 + distributed.rank)
    results["shared"] = [distributed.share(torch.tensor(1.0 + distributed.rank), flags), distributed.share(loss, flags)]
    results["added"] = distributed.share(loss, flags, sums)
    if distributed.is_main:
        torch.save(results, output)
    distributed.barrier()
    distributed.close()


if __name__ == "__main__":
    main()
