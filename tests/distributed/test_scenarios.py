"""Every optimizer, phases, averages and fp16 in real processes, each strategy in one launch."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from finetune.checkpoint.rows import SavedRows
from finetune.optim.config import UNSHARDABLE
from finetune.optim.optimizers import OPTIMIZERS
from finetune.strategy import DIVIDED
from tests.forks import ended

SHORT = 8
pytestmark = pytest.mark.slow
WORLD = {"zero2": 2, "single": 1, "ddp": 2, "zero3": 2}
TRAINS = [(strategy, name) for strategy in WORLD for name in OPTIMIZERS]
TRAINS = [(strategy, name) for strategy, name in TRAINS if strategy not in DIVIDED or name not in UNSHARDABLE]
EPOCH = 3
"""Steps after which the samples come again."""

Results = dict[str, dict[str, Any]]
Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Where each strategy's launch has left its results and states; each could load what the one before has saved."""
    made: dict[str, Path] = {}
    for strategy, world in WORLD.items():
        folder, before = tmp_path_factory.mktemp(strategy), [*made.values(), "-"][len(made) - 1]
        given = (strategy, str(folder / "results"), str(folder), str(before))
        ended(folder / "log", "tests.distributed.scenarios", *given, processes=world)
        assert (folder / "results").exists(), (folder / "log").read_text()[-4000:]
        made[strategy] = folder
    return made


@pytest.fixture(scope="module")
def results(folders: dict[str, Path]) -> Results:
    return {name: torch.load(folder / "results", weights_only=True) for name, folder in folders.items()}


def states(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(path, weights_only=True) for path in sorted(folder.glob("*.pt"))]


def joined(folder: Path, key: str) -> Weights:
    """What all ranks have saved of all parameters under a key, in one row each."""
    parts: dict[str, list[dict[str, Any]]] = {}
    for state in states(folder):
        for name, fragments in state["fragments"].items():
            parts.setdefault(name, []).extend(f for f in fragments if key in f)
    return {n: torch.cat([f[key] for f in sorted(fs, key=lambda f: f["start"])]) for n, fs in parts.items() if fs}


def distance(weights: Weights, average: Weights, parts: list[str]) -> float:
    """‖w − average‖ / ‖w‖ over some parts."""
    names = [name for name in weights if name.split(".")[0] in parts]
    row, other = (torch.cat([of[name].double().flatten() for name in names]) for of in (weights, average))
    return float((row - other).norm() / row.norm())


def blocks(folder: Path) -> dict[str, Weights]:
    """What all ranks have saved in blocks, by the pieces of the flat tensors."""
    return {str(block["pieces"]): block["state"] for state in states(folder) for block in state["blocks"]}


def equal(a: Weights, b: Weights) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def of_part(weights: Weights, part: str) -> Weights:
    return {name: p for name, p in weights.items() if name.startswith(part)}


@pytest.mark.parametrize(("strategy", "optimizer"), TRAINS)
def test_an_optimizer_learns_and_goes_on_bit_by_bit(results: Results, strategy: str, optimizer: str) -> None:
    found = results[strategy]["optimizers"][optimizer]
    if len(found["losses"]) > 3 * EPOCH:
        assert sum(found["losses"][-EPOCH:]) < 0.6 * sum(found["losses"][:EPOCH])
    assert not equal(found["half"], found["end"])
    assert equal(found["half_again"], found["half"])
    assert equal(found["end_again"], found["end"])
    assert not equal(found["average"], found["end"])
    assert equal(found["average_again"], found["average"])


@pytest.mark.parametrize(("strategy", "optimizer"), TRAINS)
def test_an_optimizer_takes_the_same_steps_under_all_strategies(
    results: Results, strategy: str, optimizer: str
) -> None:
    alone, found = (results[name]["optimizers"][optimizer]["losses"][:SHORT] for name in ("single", strategy))
    # 8-bit moments are quantised in the blocks of each strategy's own flat tensors.
    assert found == pytest.approx(alone, rel=1e-2 if optimizer.endswith("8bit") else 1e-5)


@pytest.mark.parametrize("strategy", WORLD)
@pytest.mark.parametrize(
    ("case", "decays"),
    [
        # min(0.5, (1 + n) / (10 + n)) before the n-th step, and 0.9² at every second step
        ("warm", [1 / 10, 2 / 11, 3 / 12, 4 / 13, 5 / 14, 6 / 15]),
        ("seldom", [1.0, 0.81, 1.0, 0.81, 1.0, 0.81]),
    ],
)
def test_an_average_is_what_its_formula_says(results: Results, strategy: str, case: str, decays: list[float]) -> None:
    found = results[strategy][case]
    first, *later = found["weights"]
    for name in ("first.weight", "second.bias"):
        average = first[name].double()
        for decay, weights in zip(decays, later, strict=True):
            average = decay * average + (1 - decay) * weights[name].double()
        assert torch.allclose(found["average"][name].double(), average, rtol=0.0, atol=1e-7)
        assert not torch.allclose(average, later[-1][name].double(), rtol=0.0, atol=1e-4)
    assert equal(found["average"], {**found["average"], **of_part(first, "frozen")})
    assert equal(found["after"], later[-1])
    assert found["distance"] == pytest.approx(distance(found["after"], found["average"], ["first", "second"]), rel=1e-5)


@pytest.mark.parametrize("strategy", WORLD)
@pytest.mark.parametrize("where", ["backward", "update", "state"])
def test_a_trial_that_memory_cuts_short_leaves_no_trace(results: Results, strategy: str, where: str) -> None:
    assert equal(results[strategy]["cut_short"][where], results[strategy]["cut_short"]["nowhere"])


@pytest.mark.parametrize(("saved", "loaded"), pairwise(WORLD))
def test_an_average_goes_on_in_another_world(results: Results, saved: str, loaded: str) -> None:
    before, after = results[saved]["seldom"], results[loaded]["elastic"]
    assert equal(after["weights"], before["after"])
    assert equal(after["average"], before["average"])
    assert after["ema_steps"] == len(before["weights"]) - 1


@pytest.mark.parametrize("strategy", WORLD)
@pytest.mark.parametrize("ema", [False, True])
def test_tools_read_weights_or_their_average(
    results: Results, folders: dict[str, Path], strategy: str, ema: bool
) -> None:
    saved = states(folders[strategy] / "average")
    rows = SavedRows(lambda rank: saved[rank], len(saved))
    wanted = results[strategy]["seldom"]["average" if ema else "after"]
    assert {name.split(".")[0] for name in rows.sizes} == {"first", "second"}
    for name in rows.sizes:
        assert torch.equal(rows.row(name, average=ema), wanted[name].view(-1)), name


@pytest.mark.parametrize("strategy", WORLD)
def test_phases_keep_what_rests_and_what_goes_on(results: Results, folders: dict[str, Path], strategy: str) -> None:
    found, folder = results[strategy]["phases"], folders[strategy]
    assert equal(found["kept"], found["both"])  # a rebuild changes no weights
    assert equal(found["one_average"], found["both_average"])
    # What rests is as far from its average as it was, and counts.
    apart = distance(found["both"], found["both_average"], ["first", "second"])
    assert found["distance"] == pytest.approx(apart, rel=1e-5)
    assert equal(of_part(found["one"], "second"), of_part(found["both"], "second"))
    assert not equal(of_part(found["one"], "first"), of_part(found["both"], "first"))
    assert equal(found["both_again"], found["one"])
    both, one = (blocks(folder / name) for name in ("both", "one"))
    assert any(one.values())
    assert all(equal(state, both[pieces]) for pieces, state in one.items())  # 8-bit moments go on bit by bit
    assert of_part(joined(folder / "one", "param"), "second").keys() == {"second.weight", "second.bias"}
    # What has been frozen starts anew, and what went on still counts its steps.
    again = [fragments for state in states(folder / "both again") for fragments in state["fragments"].items()]
    steps = {name: f["step"] for name, fragments in again for f in fragments if "step" in f}
    assert steps == dict.fromkeys(of_part(found["one"], "first"), 6)


@pytest.mark.parametrize("strategy", WORLD)
def test_another_optimizer_of_the_kind_takes_the_moments_over(results: Results, strategy: str) -> None:
    found = results[strategy]
    same = found["same"]
    assert equal(found["paged"]["end"], same["end"])
    for name, end in same["end"].items():
        moved = (end - same["half"][name]).norm()
        # Without quantisation the moments differ by about one part in a hundred.
        assert (found["wide"]["end"][name] - end).norm() <= 0.03 * moved
        assert moved == 0.0 or (found["other"]["end"][name] - end).norm() > 0.3 * moved


@pytest.mark.parametrize("strategy", WORLD)
def test_another_kind_of_optimizer_starts_anew(results: Results, folders: dict[str, Path], strategy: str) -> None:
    assert equal(results[strategy]["other"]["half"], results[strategy]["same"]["half"])
    for state in states(folders[strategy] / "to lion"):
        assert state["groups"] == []
        assert all(f.keys() == {"start", "param"} for fs in state["fragments"].values() for f in fs)


@pytest.mark.parametrize("strategy", WORLD)
def test_a_larger_micro_batch_trains_the_same(results: Results, strategy: str) -> None:
    larger, same = results[strategy]["larger"], results[strategy]["same"]
    assert larger["accumulation"] * 2 == same["accumulation"]
    for name, end in same["end"].items():  # 8-bit codes may fall on the other side of a border
        assert (larger["end"][name] - end).norm() <= 1e-3 * (end - same["half"][name]).norm()


@pytest.mark.parametrize("strategy", WORLD)
def test_schedule_free_weights_are_averaged_and_put_back(
    results: Results, folders: dict[str, Path], strategy: str
) -> None:
    found = results[strategy]["schedule_free"]
    assert equal(found["y_again"], found["y"])
    z = joined(folders[strategy] / "schedule_free", "z")
    for name in z:  # y = 0.1 z + 0.9 x, by 2405.15682, equation 3
        x = (found["y"][name].double() - 0.1 * z[name].view_as(found["y"][name]).double()) / 0.9
        assert torch.allclose(found["x"][name].double(), x, rtol=0.0, atol=1e-6)
        assert not torch.allclose(found["y"][name].double(), x, rtol=0.0, atol=1e-4)


@pytest.mark.parametrize("strategy", WORLD)
def test_rebuilding_leaves_nothing_behind(results: Results, strategy: str) -> None:
    first, *later = results[strategy]["alive"]["sizes"]
    share = 4 * 64 * 192 / WORLD[strategy]  # a rank's part of one layer's weights
    assert all(size - first < share for size in later)
    assert results[strategy]["alive"]["own"] == 4 * 64 * 192
    attributes = results[strategy]["alive"]["attributes"]
    assert "noted" in attributes  # transformers notes on modules where it has put its hooks
    assert strategy != "zero3" or not any("ds_" in name or "bwd" in name for name in attributes)


@pytest.mark.parametrize("strategy", WORLD)
def test_fp16_trains_like_fp32_and_passes_over_overflows(results: Results, strategy: str) -> None:
    found, exact = results[strategy]["fp16"], results[strategy]["optimizers"]["adamw"]["losses"]
    assert found["losses"] == pytest.approx(exact[: len(found["losses"])], rel=5e-3)
    assert 0.5 < min(found["norms"]) < max(found["norms"]) < 5.0  # not those of the scaled loss
    assert equal(found["after"], found["before"])
    assert found["scale"] == {"factor": 2.0**99, "steady_steps": 0}
    assert not torch.tensor(found["norm"]).isfinite()
