"""Every benchmark runs, with as little work as there can be; those that take long with the fault suite."""

import importlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.bench import feeding
from tests.bench.__main__ import MODULES
from tests.servers import have_nginx

SMALL: dict[str, dict[str, Any]] = {
    "checkpoint": {"REPEATS": 1, "WIDTH": 50},
    "http": {"REPEATS": 1, "STEPS": 1},
    "images": {"REPEATS": 1},
    "loader": {"REPEATS": 1, "STEPS": 1},
    "monitor": {"REPEATS": 1, "STEPS": 1, "WRITES": 1},
    "plan": {"REPEATS": {"few": 1}, "SAMPLES": {"few": 5000}, "FAR_EPOCHS": 1},
    "prompts": {"SAMPLES": 3, "ROUNDS": 1, "VOCABULARY": 200},
    "read": {"REPEATS": 1, "SHARDS": 1, "SAMPLES": 8},
    "resume": {"REPEATS": 1, "SHARDS": 4, "SAMPLES": 128, "STEP": 3},
    "shuffle": {"SHARDS": 40, "SAMPLES": 50, "BATCH": 16},
    "step": {"REPEATS": 1, "STEPS": 1, "KEPT": 2, "WAITED_STEPS": 3, "UNCOUNTED": 1},
    "strategies": {"REPEATS": 1, "ACCUMULATED": 2, "WIDTH": 16},
    "unequal_work": {"SAMPLES": 20_000, "STEPS": 1},
}
"""What makes each of them small; `gpu` has its own tests."""
LONG = ("http", "monitor", "resume", "step", "strategies")
"""Those that start runs or other processes."""


def small_pictures(shared: Path | None) -> Iterator[Image.Image]:
    yield Image.linear_gradient("L").convert("RGB").resize((200, 160))


def here(function: Callable[..., Any], *arguments: object) -> Any:
    """In this process, which has what is small, and not in a fresh one."""
    return function(*arguments)


def test_all_benchmarks_are_tried() -> None:
    assert {*SMALL, "gpu"} == set(MODULES)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.faults] if name in LONG else []) for name in SMALL]
)
def test_a_benchmark_tells_its_figures(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "http" and not have_nginx():
        pytest.skip("nginx is not installed")
    module = importlib.import_module(f"tests.bench.bench_{name}")
    for constant, value in SMALL[name].items():
        monkeypatch.setattr(module, constant, value)
    for place in (module, feeding):
        monkeypatch.setattr(place, "pictures", small_pictures, raising=False)
    monkeypatch.setattr(feeding, "SHARDS", 4)
    monkeypatch.setattr(module, "in_fresh_process", here, raising=False)
    arguments = (1,) if name == "checkpoint" else ()
    found = list(module.figures(tmp_path, None, *arguments))
    assert len({figure.name for figure in found}) == len(found) > 0
    for figure in found:
        assert math.isfinite(figure.value), figure
        assert figure.unit
        assert figure.detail
