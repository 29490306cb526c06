"""Strategies in real processes: they agree with one another, and go on exactly where they were."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.forks import ended

pytestmark = pytest.mark.slow
WORKER = Path(__file__).with_name("worker.py")
ROUNDING = {"rtol": 0.0, "atol": 1e-6}


@dataclass
class Launched:
    """What a launch left."""

    results: dict[str, Any]
    states: Path


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """Start worker.py, once for the same arguments: (strategy, world, optimizer, states) -> Launched."""
    done: dict[tuple[Any, ...], Launched] = {}

    def start(strategy: str, world: int, optimizer: str = "adamw", load: Path | None = None) -> Launched:
        key = (strategy, world, optimizer, load)
        if key not in done:
            folder = tmp_path_factory.mktemp(f"{strategy}-{world}-{optimizer}")
            results = folder / "results"
            given = (strategy, optimizer, str(results), str(folder), str(load or "-"))
            ended(folder / "log", "tests.distributed.worker", *given, processes=world)
            assert results.exists(), (folder / "log").read_text()[-4000:]
            done[key] = Launched(torch.load(results, weights_only=True), folder)
        return done[key]

    return start


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def close(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.allclose(a[name], b[name], **ROUNDING) for name in a)


EVERY = [
    ("single", 1, "adamw"),
    ("single", 1, "adamw8bit"),
    ("ddp", 2, "adamw"),
    ("ddp", 2, "adamw8bit"),
    ("zero1", 2, "adamw"),
    ("zero2", 2, "adamw"),
    ("zero2", 2, "adamw8bit"),
    ("zero3", 2, "adamw"),
    ("zero3", 2, "adamw8bit"),
]


@pytest.mark.parametrize(("strategy", "world", "optimizer"), EVERY)
def test_a_trial_step_leaves_no_trace(launch, strategy: str, world: int, optimizer: str) -> None:  # type: ignore[no-untyped-def]
    results = launch(strategy, world, optimizer).results
    assert equal(results["after_trial"], results["start"])
    assert results["gathered"] == list(range(world))


@pytest.mark.parametrize(("strategy", "world", "optimizer"), EVERY)
def test_a_restored_state_goes_on_bit_by_bit(launch, strategy: str, world: int, optimizer: str) -> None:  # type: ignore[no-untyped-def]
    results = launch(strategy, world, optimizer).results
    assert not close(results["half"], results["end"])
    assert equal(results["half_again"], results["half"])
    assert equal(results["end_again"], results["end"])


@pytest.mark.parametrize(
    ("strategy", "world", "optimizer"),
    [
        *(("single", 1, "adamw8bit"), ("ddp", 4, "adamw"), ("zero1", 2, "adamw")),
        *(("zero2", 4, "adamw8bit"), ("zero3", 4, "adamw8bit")),
    ],
)
def test_a_run_that_was_killed_goes_on_bit_by_bit(launch, strategy: str, world: int, optimizer: str) -> None:  # type: ignore[no-untyped-def]
    before = launch(strategy, world, optimizer)
    after = launch(strategy, world, optimizer, before.states)
    assert equal(after.results["half"], before.results["half"])
    assert equal(after.results["end"], before.results["end"])


@pytest.mark.parametrize(("strategy", "world", "optimizer"), EVERY)
def test_a_step_that_is_skipped_has_never_been(launch, strategy: str, world: int, optimizer: str) -> None:  # type: ignore[no-untyped-def]
    results = launch(strategy, world, optimizer).results
    for rank in results["vetoed"]:
        assert rank["untouched"]
        nan, inf, huge = rank["norms"]
        assert nan.dtype == torch.float32
        assert nan.isnan()
        assert not inf.isfinite()
        assert huge > 1e20  # finite or not, and the same on all ranks
        assert torch.equal(huge, results["vetoed"][0]["norms"][2])
    assert equal(results["end_vetoed"], results["end"])


@pytest.mark.parametrize(("strategy", "world", "optimizer"), EVERY)
def test_ranks_share_a_loss_and_flags(launch, strategy: str, world: int, optimizer: str) -> None:  # type: ignore[no-untyped-def]
    finite, nan = launch(strategy, world, optimizer).results["shared"]
    assert finite.tolist() == [(1 + world) / 2, 1.0, 0.0, world]
    assert nan[0].isnan()
    assert nan[1:].tolist() == [1.0, 0.0, world]
    added = launch(strategy, world, optimizer).results["added"]
    assert added[0].isnan()
    assert added[1:].tolist() == [1.0, 0.0, world, *[world * (world + 1) / 2] * 4]


@pytest.mark.parametrize(("strategy", "world"), [("ddp", 2), ("zero1", 2), ("zero2", 2), ("zero3", 2)])
def test_state_that_was_replaced_is_not_kept_alive(launch, strategy: str, world: int) -> None:  # type: ignore[no-untyped-def]
    results = launch(strategy, world).results
    copies = sum(p.numel() * p.element_size() for p in results["start"].values())  # those that `results` itself takes
    moments = copies  # two of half of the parameters each
    assert results["moments_alive"] - results["moments_before"] - copies < moments / 2


@pytest.mark.parametrize(("strategy", "world"), [("ddp", 2), ("zero1", 2), ("zero2", 2), ("zero3", 2)])
def test_strategies_train_the_same(launch, strategy: str, world: int) -> None:  # type: ignore[no-untyped-def]
    alone, shared = launch("single", 1).results, launch(strategy, world).results
    assert close(alone["end"], shared["end"])
    assert shared["norms"] == pytest.approx(alone["norms"], rel=1e-5)
    assert shared["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    assert min(alone["norms"]) > 0.5  # the clipping was at work


def test_single_is_what_torch_does_by_hand(launch) -> None:  # type: ignore[no-untyped-def]
    sys.path.insert(0, str(WORKER.parent))
    try:
        from worker import GLOBAL_BATCH, MICRO_BATCH, RATES, STEPS, Net, micro_batch
    finally:
        sys.path.pop(0)
    net = Net()
    groups = [
        {"params": list(part.parameters()), "lr": rate}
        for part, rate in zip((net.first, net.second), RATES, strict=True)
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.1)
    for step in range(STEPS):
        optimizer.zero_grad()
        for x, y in (micro_batch(step, i) for i in range(GLOBAL_BATCH // MICRO_BATCH)):
            ((net(x) - y).square().mean() * MICRO_BATCH / GLOBAL_BATCH).backward()
        torch.nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], 0.5)  # type: ignore[misc]
        optimizer.step()
    assert close(dict(net.named_parameters()), launch("single", 1).results["end"])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("saved", "loaded"), [(("zero1", 2), ("zero2", 1)), (("single", 1), ("zero1", 2)), (("zero2", 2), ("single", 1))]
)
def test_another_world_and_strategy_go_on_to_rounding(  # type: ignore[no-untyped-def]
    launch, saved: tuple[str, int], loaded: tuple[str, int]
) -> None:
    before = launch(*saved)
    after = launch(*loaded, load=before.states)
    assert equal(after.results["half"], before.results["half"])
    assert close(after.results["end"], before.results["end"])


def test_fragments_cover_every_trained_parameter_once(launch) -> None:  # type: ignore[no-untyped-def]
    launched = launch("zero2", 2)
    covered: dict[str, list[tuple[int, int]]] = {}
    for path in sorted(launched.states.glob("*.pt")):
        for name, pieces in torch.load(path, weights_only=True)["fragments"].items():
            for piece in pieces:
                assert {"start", "step", "param", "exp_avg", "exp_avg_sq"} == set(piece)
                assert piece["step"] == 3
                covered.setdefault(name, []).append((piece["start"], piece["param"].numel()))
    trained = {n: p for n, p in launched.results["start"].items() if not n.startswith("frozen")}
    assert covered.keys() == trained.keys()
    for name, spans in covered.items():
        ends = 0
        for start, count in sorted(spans):
            assert start == ends
            ends = start + count
        assert ends == trained[name].numel()


@pytest.mark.parametrize(
    ("saved", "loaded"),
    [
        (("zero2", 2, "adamw8bit"), ("zero1", 1, "adamw8bit")),
        (("single", 1, "adamw8bit"), ("zero2", 2, "adamw8bit")),
        (("zero2", 2, "adamw8bit"), ("single", 1, "adamw")),
        (("zero1", 2, "adamw"), ("zero2", 2, "adamw8bit")),
    ],
)
def test_8_bit_moments_are_divided_anew(  # type: ignore[no-untyped-def]
    launch, saved: tuple[str, int, str], loaded: tuple[str, int, str]
) -> None:
    before = launch(*saved)
    after = launch(*loaded, load=before.states)
    assert equal(after.results["half"], before.results["half"])
    # Quantising in other blocks, or not at all, changes moments by about one part in a hundred.
    moved = {name: before.results["end"][name] - p for name, p in before.results["half"].items()}
    for name, p in after.results["end"].items():
        error = (p - before.results["end"][name]).norm()
        assert error <= 0.03 * moved[name].norm() + 1e-12, name
    # Without any moments the steps that follow are others altogether.
    assert not close(after.results["end"], before.results["half"])


def test_8_bit_moments_take_a_byte_each_on_the_disk(launch) -> None:  # type: ignore[no-untyped-def]
    sizes = {
        optimizer: sum(path.stat().st_size for path in launch("zero2", 2, optimizer).states.glob("*.pt"))
        for optimizer in ("adamw", "adamw8bit")
    }
    assert sizes["adamw8bit"] < 0.65 * sizes["adamw"]  # 4 + 2 bytes of 4 + 8, and the file's own
