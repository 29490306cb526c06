"""What a run does to its engine between its first step and its last, written down for test_scenarios.py.

Args: strategy, output file, folder to save states to, folder of another strategy's states (or -).
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from finetune.optim.config import UNSHARDABLE, EmaConfig, OptimConfig, ScheduleConfig
from finetune.optim.optimizers import OPTIMIZERS
from finetune.strategy import DIVIDED
from tests.distributed.worker import HALF, RATES, STEPS, Trainer, large_tensors, load_all, save

LR = {"lion": 1e-3, "lion8bit": 1e-3, "sgd": 0.3, "sgd8bit": 0.3, "prodigy": 1.0, "dadapt_adam": 1.0}
OPTIONS = {"prodigy": {"d0": 1e-3}, "dadapt_adam": {"d0": 1e-3}}
LONG, SHORT = 30, 8
LEARNS = ("single", "zero2")
"""Strategies under which optimizers train long enough to show that they learn."""
AVERAGE = EmaConfig(decay=0.9)


class Scenarios:
    """Scenarios on one rank, one after the other with the same network."""

    def __init__(self, strategy: str, folder: Path, elsewhere: Path | None) -> None:
        self.strategy, self.folder, self.elsewhere = strategy, folder, elsewhere
        self.trainer = Trainer(strategy)

    def again(self, optimizer: str, **settings: Any) -> None:
        """Begin anew from the first weights."""
        self.trainer.reset()
        self.change(optimizer, **settings)

    def change(self, optimizer: str, **settings: Any) -> None:
        """Rebuild the engine around the weights as they are."""
        self.rates = [LR.get(optimizer, 1e-2)] * len(settings.get("trained", RATES))
        lr, options, constant = self.rates[0], OPTIONS.get(optimizer, {}), ScheduleConfig(name="constant")
        config = OptimConfig(name=optimizer, lr=lr, text_encoder_lr=lr, options=options, schedule=constant)
        self.trainer.prepare(config, **settings)
        self.trainer.losses.clear()

    def steps(self, *steps: int) -> None:
        for step in steps:
            self.trainer.step(step % 3, self.rates)

    def save(self, name: str) -> None:
        """Save this rank's state as `name`."""
        save(self.trainer.distributed, self.folder / name)

    def load(self, folder: Path) -> None:
        """Load what all ranks have saved."""
        load_all(self.trainer.distributed, folder)

    def resumed(self, optimizer: str) -> dict[str, Any]:
        """All steps at once, then the second half once more from what was saved."""
        steps = LONG if self.strategy in LEARNS else SHORT
        self.again(optimizer, ema=AVERAGE)
        self.steps(*range(steps // 2))
        self.save(optimizer)
        half = self.trainer.parameters()
        self.steps(*range(steps // 2, steps))
        end, average, losses = self.trainer.parameters(), self.trainer.averaged(), list(self.trainer.losses)
        self.again(optimizer, ema=AVERAGE)
        self.load(self.folder / optimizer)
        half_again = self.trainer.parameters()
        self.steps(*range(steps // 2, steps))
        again = {
            "half_again": half_again,
            "end_again": self.trainer.parameters(),
            "average_again": self.trainer.averaged(),
        }
        return {"half": half, "end": end, "average": average, "losses": losses, **again}

    def average(self, ema: EmaConfig) -> dict[str, Any]:
        """The weights after each step, and their average in the end; a trial step before all leaves no trace."""
        self.again("adamw", ema=ema)
        self.trainer.rehearse()
        weights = [self.trainer.parameters()]
        for step in range(STEPS):
            self.steps(step)
            weights.append(self.trainer.parameters())
        self.save("average")
        average, distance = self.trainer.averaged(), self.trainer.distributed.ema_distance()
        return {"weights": weights, "average": average, "after": self.trainer.parameters(), "distance": distance}

    def cut_short(self) -> dict[str, Any]:
        """The weights after steps, and after the same steps behind a trial in which memory ran out somewhere."""
        ends = {}
        for where in ("nowhere", "backward", "update", "state"):
            self.again("adamw", ema=AVERAGE)
            if where != "nowhere":
                self.trainer.rehearse(where)
                self.change("adamw", ema=AVERAGE)
                self.trainer.rehearse()
            self.steps(*range(HALF))
            ends[where] = self.trainer.parameters()
        return ends

    def elastic(self) -> dict[str, Any]:
        """The weights and their average as another strategy has saved them."""
        if self.elsewhere is None:
            return {}
        self.change("adamw", ema=AVERAGE)
        self.load(self.elsewhere / "average")
        state = self.trainer.distributed.state()
        return {
            "weights": self.trainer.parameters(),
            "average": self.trainer.averaged(),
            "ema_steps": state["ema_steps"],
        }

    def phases(self) -> dict[str, Any]:
        """Train both parts, then the first alone, then both."""
        self.again("adamw8bit", ema=AVERAGE)
        self.steps(*range(HALF))
        both, both_average = self.trainer.parameters(), self.trainer.averaged()
        self.save("both")
        self.change("adamw8bit", trained=["first"], resting=["second"], ema=AVERAGE)
        kept = self.trainer.parameters()
        self.load(self.folder / "both")
        self.save("one")
        one_average, distance = self.trainer.averaged(), self.trainer.distributed.ema_distance()
        self.steps(*range(HALF))
        one = self.trainer.parameters()
        self.save("one later")
        self.change("adamw8bit", ema=AVERAGE)
        self.load(self.folder / "one later")
        self.save("both again")
        weights = {"both": both, "kept": kept, "one": one, "both_again": self.trainer.parameters()}
        return {**weights, "both_average": both_average, "one_average": one_average, "distance": distance}

    def changed(self, optimizer: str, **settings: Any) -> dict[str, Any]:
        """Go on from `both` with another optimizer or micro-batch."""
        self.change(optimizer, **settings)
        self.load(self.folder / "both")
        self.save(f"to {optimizer}")
        half, accumulation = self.trainer.parameters(), self.trainer.distributed.accumulation
        self.steps(*range(HALF))
        return {"half": half, "end": self.trainer.parameters(), "accumulation": accumulation}

    def schedule_free(self) -> dict[str, Any]:
        """The weights in training, their average, and the weights in training after that."""
        self.again("schedule_free_adamw")
        self.steps(*range(HALF))
        self.save("schedule_free")
        y, x = self.trainer.parameters(), self.trainer.averaged()
        return {"y": y, "x": x, "y_again": self.trainer.parameters()}

    def alive(self) -> dict[str, Any]:
        """Bytes of all tensors after each of several rebuilds, though somebody still holds the engines of before; and
        those behind a parameter that an engine has let go."""
        sizes, held = [], []
        for trained in (["first", "second"], ["second"]) * 3:
            self.again("adamw", trained=trained, ema=AVERAGE)
            self.steps(0)
            sizes.append(large_tensors())
            held.append(self.trainer.model)
            self.trainer.net.first.noted = "by somebody else"
        self.trainer.distributed._release()
        weight = self.trainer.net.second.weight
        attributes = [*vars(self.trainer.net.first), *vars(weight)]
        return {"sizes": sizes[::2], "own": weight.untyped_storage().nbytes(), "attributes": attributes}

    def half_precision(self) -> dict[str, Any]:
        """Train in fp16, then with a loss scale beyond all bounds."""
        self.trainer = Trainer(self.strategy, "fp16")
        self.again("adamw")
        self.steps(*range(HALF))
        norms, losses, before = list(self.trainer.norms), list(self.trainer.losses), self.trainer.parameters()
        state = self.trainer.distributed.state()
        state["loss_scale"] = {"factor": 2.0**100, "steady_steps": 7}
        states = self.trainer.distributed.gather(state)
        self.trainer.distributed.load_state(lambda rank: states[rank], len(states))
        self.steps(0)
        scale = self.trainer.distributed.state()["loss_scale"]
        overflown = {"before": before, "after": self.trainer.parameters(), "scale": scale}
        return {"norms": norms, "losses": losses, **overflown, "norm": self.trainer.norms[-1]}


def main() -> None:
    """All scenarios that a strategy allows."""
    strategy, output, folder, elsewhere = sys.argv[1:]
    scenarios = Scenarios(strategy, Path(folder), None if elsewhere == "-" else Path(elsewhere))
    names = [name for name in OPTIMIZERS if strategy not in DIVIDED or name not in UNSHARDABLE]
    results: dict[str, Any] = {"start": scenarios.trainer.start, "optimizers": {n: scenarios.resumed(n) for n in names}}
    each: dict[str, Callable[[], Any]] = {
        "warm": lambda: scenarios.average(EmaConfig(decay=0.5, device="model")),
        "seldom": lambda: scenarios.average(EmaConfig(decay=0.9, warmup=False, every_steps=2)),
        "cut_short": scenarios.cut_short,
        "elastic": scenarios.elastic,
        "phases": scenarios.phases,
        "same": lambda: scenarios.changed("adamw8bit"),
        "wide": lambda: scenarios.changed("adamw"),
        "paged": lambda: scenarios.changed("paged_adamw8bit"),
        "larger": lambda: scenarios.changed("adamw8bit", micro_batch=4),
        "other": lambda: scenarios.changed("lion"),
        "schedule_free": scenarios.schedule_free,
        "alive": scenarios.alive,
        "fp16": scenarios.half_precision,
    }
    results |= {name: run() for name, run in each.items()}
    distributed = scenarios.trainer.distributed
    if distributed.is_main:
        torch.save(results, output)
    distributed.barrier()
    distributed.close()


if __name__ == "__main__":
    main()
