"""Every optimizer, phases, averages and fp16 in real processes, each strategy in one launch."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from finetune.distributed import load_parameters
from finetune.optim.config import UNSHARDABLE
from finetune.optim.optimizers import OPTIMIZERS

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).with_name("scenarios.py")
WORLD = {"single": 1, "zero2": 2}
LEARNS = [("single", name) for name in OPTIMIZERS]
LEARNS += [("zero2", name) for name in OPTIMIZERS if name not in UNSHARDABLE]

Results = dict[str, dict[str, Any]]
Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Where each strategy's launch has left its results and states; the second could load what the first saved."""
    made: dict[str, Path] = {}
    for strategy, before in (("zero2", None), ("single", "zero2")):
        folder = made[strategy] = tmp_path_factory.mktemp(strategy)
        world = ["--nproc_per_node", str(WORLD[strategy]), "--standalone"]
        launcher = ["-m", "torch.distributed.run", *world] if WORLD[strategy] > 1 else []
        arguments = [strategy, str(folder / "results"), str(folder), str(made[before] if before else "-")]
        command = [sys.executable, *launcher, str(SCRIPT), *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        ended = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment, check=False)
        assert (folder / "results").exists(), ended.stderr[-3000:]
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


def equal(a: Weights, b: Weights) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def of_part(weights: Weights, part: str) -> Weights:
    return {name: p for name, p in weights.items() if name.startswith(part)}


@pytest.mark.parametrize(("strategy", "optimizer"), LEARNS)
def test_an_optimizer_learns_and_goes_on_bit_by_bit(results: Results, strategy: str, optimizer: str) -> None:
    found = results[strategy]["optimizers"][optimizer]
    first, last = sum(found["losses"][:3]), sum(found["losses"][-3:])
    assert last < 0.6 * first
    assert not equal(found["half"], found["end"])
    assert equal(found["half_again"], found["half"])
    assert equal(found["end_again"], found["end"])
    assert not equal(found["average"], found["end"])
    assert equal(found["average_again"], found["average"])


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


def test_an_average_goes_on_in_another_world(results: Results, folders: dict[str, Path]) -> None:
    before, after = results["zero2"]["seldom"], results["single"]["elastic"]
    assert equal(after["weights"], before["after"])
    assert equal(after["average"], before["average"])
    assert after["ema_steps"] == len(before["weights"]) - 1


@pytest.mark.parametrize("strategy", WORLD)
@pytest.mark.parametrize("ema", [False, True])
def test_tools_read_weights_or_their_average(
    results: Results, folders: dict[str, Path], strategy: str, ema: bool
) -> None:
    net = nn.ModuleDict({"first": nn.Linear(64, 192), "frozen": nn.Linear(192, 192), "second": nn.Linear(192, 64)})
    frozen = net["frozen"].weight.clone()
    saved = states(folders[strategy] / "average")
    load_parameters(net, lambda rank: saved[rank], len(saved), ema=ema)
    wanted = results[strategy]["seldom"]["average" if ema else "after"]
    assert torch.equal(net["frozen"].weight, frozen)
    for part in ("first", "second"):
        assert equal(of_part({n: p.detach() for n, p in net.named_parameters()}, part), of_part(wanted, part))


@pytest.mark.parametrize("strategy", WORLD)
def test_phases_keep_what_rests_and_what_goes_on(results: Results, folders: dict[str, Path], strategy: str) -> None:
    found, folder = results[strategy]["phases"], folders[strategy]
    assert equal(found["kept"], found["both"])  # a rebuild changes no weights
    assert equal(found["one_average"], found["both_average"])
    assert equal(of_part(found["one"], "second"), of_part(found["both"], "second"))
    assert not equal(of_part(found["one"], "first"), of_part(found["both"], "first"))
    assert equal(found["both_again"], found["one"])
    both, one, again = (states(folder / name) for name in ("both", "one", "both again"))
    for rank, state in enumerate(one):
        # The first part's 8-bit moments are those of before, bit by bit; the second is kept by rank 0 alone.
        kept = both[rank]["blocks"][: len(state["blocks"])]
        assert [b["pieces"] for b in state["blocks"]] == [b["pieces"] for b in kept]
        assert all(equal(a["state"], b["state"]) for a, b in zip(state["blocks"], kept, strict=True))
        assert any(b["state"] for b in kept)
        assert ("second.weight" in state["fragments"]) == (rank == 0)
    # What has been frozen starts anew, and what went on still counts its steps.
    steps = {n: f["step"] for s in again for n, fs in s["fragments"].items() for f in fs if "step" in f}
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


@pytest.mark.parametrize("strategy", WORLD)
def test_fp16_trains_like_fp32_and_passes_over_overflows(results: Results, strategy: str) -> None:
    found, exact = results[strategy]["fp16"], results[strategy]["optimizers"]["adamw"]["losses"]
    assert found["losses"] == pytest.approx(exact[: len(found["losses"])], rel=5e-3)
    assert 0.5 < min(found["norms"]) < max(found["norms"]) < 5.0  # not those of the scaled loss
    assert equal(found["after"], found["before"])
    assert found["scale"] == {"factor": 2.0**99, "steady_steps": 0}
    assert not torch.tensor(found["norm"]).isfinite()
