"""Two sides measured in turns, in time and in memory, so that what else the machine does meets both."""

import multiprocessing
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T")


class Cost(NamedTuple):
    """What a call took."""

    wall_s: float
    cpu_s: float
    """Of this process and of the children that it waited for."""


def cost(function: Callable[[], object]) -> Cost:
    """Call a function."""
    cpu_s, began = _cpu_s(), time.perf_counter()
    function()
    return Cost(time.perf_counter() - began, _cpu_s() - cpu_s)


def in_turns(sides: list[Callable[[int], Cost]], repeats: int) -> npt.NDArray[np.float64]:
    """Costs of all sides, called in turns with the number of the repeat; each repeat begins with another side.

    Returns:
        float64 [repeats, sides, 2], the last as in `Cost`.
    """
    costs = np.empty((repeats, len(sides), 2))
    for repeat in range(repeats):
        for i in range(len(sides)):
            side = (repeat + i) % len(sides)
            costs[repeat, side] = sides[side](repeat)
    return costs


def spread(values: npt.NDArray[Any]) -> str:
    """Lowest and highest, in words."""
    return f"{values.min():.3g} to {values.max():.3g} in {len(values)} repeats"


def in_fresh_process(function: Callable[..., T], *arguments: object) -> T:
    """What a function of a module returns in a new interpreter, which itself forks as usual."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), initializer=_fork_from_now_on) as pool:
        return pool.submit(function, *arguments).result()


def forget_peak() -> None:
    """Let `peak_mib` count from now on."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_mib() -> float:
    """The most memory that this process has held since it began. `ru_maxrss` would count what its parent held."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def _cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _fork_from_now_on() -> None:
    multiprocessing.set_start_method("fork", force=True)
