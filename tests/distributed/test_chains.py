"""Runs that change their number of processes and their strategy again and again go on as if they had not."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.forks import ended

pytestmark = pytest.mark.slow
STEPS = 3
"""Of each link."""
CHAINS = {
    "worlds": [("zero2", 2), ("zero2", 1), ("zero2", 4), ("zero2", 2)],
    "strategies": [("zero2", 2), ("zero3", 2), ("ddp", 2), ("single", 1)],
    "back": [("single", 1), ("ddp", 2), ("zero3", 2), ("zero2", 2)],
}
LOSS = {"adamw": 1e-6, "adamw8bit": 1e-3}
"""Relative difference of each step's loss from that of the run without changes."""
WEIGHTS = {"adamw": 1e-6, "adamw8bit": 3e-2}
"""Relative difference of the way that the weights have gone, and their average."""
Results = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """Train a chain, or its first link alone for as long: (name, whole) -> the results of each link."""
    done: dict[tuple[Any, ...], tuple[Results, Path]] = {}

    def link(strategy: str, world: int, first: int, steps: int, load: Path | None) -> tuple[Results, Path]:
        key = (strategy, world, first, steps, load)
        if key not in done:
            folder = tmp_path_factory.mktemp(strategy)
            output = str(folder / "results")
            given = (strategy, str(first), str(steps), output, str(folder), str(load or "-"))
            ended(folder / "log", "tests.distributed.chain", *given, processes=world)
            assert Path(output).exists(), (folder / "log").read_text()[-4000:]
            done[key] = torch.load(output, weights_only=True), folder
        return done[key]

    def chain(name: str, *, whole: bool) -> list[Results]:
        links, results, folder = CHAINS[name], list[Results](), None
        steps = STEPS * len(links) if whole else STEPS
        for i, (strategy, world) in enumerate(links[:1] if whole else links):
            found, folder = link(strategy, world, i * steps, steps, folder)
            results.append(found)
        return results

    return chain


def way(a: dict[str, Tensor], b: dict[str, Tensor]) -> Tensor:
    """The difference of weights in one row."""
    return torch.cat([(b[name].double() - a[name].double()).view(-1) for name in a])


@pytest.mark.parametrize("optimizer", LOSS)
@pytest.mark.parametrize("name", CHAINS)
def test_a_run_that_changes_goes_on_as_if_it_had_not(run, name: str, optimizer: str) -> None:  # type: ignore[no-untyped-def]
    links, (whole,) = ([link[optimizer] for link in run(name, whole=one)] for one in (False, True))
    losses = [loss for link in links for loss in link["losses"]]
    assert len(losses) == len(whole["losses"]) == STEPS * len(links)
    errors = [abs(a / b - 1) for a, b in zip(losses, whole["losses"], strict=True)]
    print(name, optimizer, "loss", max(errors))
    assert max(errors) <= LOSS[optimizer]
    for key in ("end", "average"):
        gone = way(whole["begun"], whole[key])
        error = (way(whole["begun"], links[-1][key]) - gone).norm() / gone.norm()
        print(name, optimizer, key, error.item())
        assert error <= WEIGHTS[optimizer]
    for before, after in pairwise(links):
        assert all(torch.equal(p, after["begun"][n]) for n, p in before["end"].items())
