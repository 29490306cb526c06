"""How a step scales on paper: docs/make_scaling.py."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"


@pytest.fixture(scope="module")
def scaling() -> ModuleType:
    name = "make_scaling"
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DOCS)
        patch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
    return module


def test_a_ring_sends_each_byte_twice_but_for_a_rank_s_own_share(scaling: ModuleType) -> None:
    assert scaling.ring_s(1e9, 1, 1e9, 1.0) == 0.0
    assert scaling.ring_s(1e9, 2, 1e9, 0.0) == pytest.approx(1.0)
    assert scaling.ring_s(1e9, 8, 1e9, 0.0) == pytest.approx(2 * 7 / 8)
    assert scaling.ring_s(0.0, 8, 1e9, 1e-3) == pytest.approx(14e-3)


def test_nodes_share_what_their_gpus_have_added_up(scaling: ModuleType) -> None:
    machine = scaling.Machine(8, 1.0, 1.0, 1e9, 1e8, 0.0, 512)
    within = 2 * 7 / 8
    assert scaling.reduction_s(machine, 8, 1e9) == pytest.approx(within)
    assert scaling.reduction_s(machine, 16, 1e9) == pytest.approx(within + 2 * 1 / 2 * 1e9 / 8 / 1e8)
    assert scaling.reduction_s(machine, 1, 1e9) == 0.0


def test_one_gpu_communicates_nothing(scaling: ModuleType) -> None:
    for machine in scaling.MACHINES.values():
        alone = scaling.step(machine, 1, 16)
        assert (alone.exposed, alone.unequal) == (0.0, 0.0)
        assert alone.work == pytest.approx(16 * 8 * scaling.IMAGE_FLOPS / machine.flops)
        assert alone.total == pytest.approx(alone.work + alone.optimizer + alone.wait)


def test_what_a_backward_pass_is_long_enough_for_is_hidden_but_for_the_last_bucket(scaling: ModuleType) -> None:
    machine = scaling.MACHINES["RTX 4090, PCIe 4.0 ×16 without P2P"]
    reduced = scaling.reduction_s(machine, 2, 4 * scaling.PARAMETERS)
    last_bucket = reduced * scaling.FIRST_BUCKET / (4 * scaling.PARAMETERS)
    assert scaling.step(machine, 2, 16).exposed == pytest.approx(last_bucket)
    slow = replace(machine, near=machine.near / 100)
    backward = 2 / 3 * 8 * scaling.IMAGE_FLOPS / machine.flops
    assert scaling.step(slow, 2, 16).exposed == pytest.approx(100 * reduced - backward, rel=1e-3)


def test_nothing_is_gained_by_a_slower_link_or_more_gpus(scaling: ModuleType) -> None:
    for machine in scaling.MACHINES.values():
        for kind in ("strong", "weak"):
            gpus = [world for world in (1, *scaling.WORLDS) if world <= machine.most]
            steps = [scaling.step(machine, world, scaling.accumulations(world)[kind]) for world in gpus]
            assert all(0.0 < one.efficiency <= 1.0 for one in steps)
            reductions = [scaling.reduction_s(machine, world, 1e9) for world in gpus]
            assert reductions == sorted(reductions)
            if kind == "strong":
                assert [one.total for one in steps] == sorted((one.total for one in steps), reverse=True)
                assert [one.efficiency for one in steps] == sorted((one.efficiency for one in steps), reverse=True)
            slower = replace(machine, near=machine.near / 2, far=machine.far / 2)
            for world, one in zip(gpus, steps, strict=True):
                assert scaling.step(slower, world, scaling.accumulations(world)[kind]).total >= one.total


def test_the_page_has_the_table_that_comes_out(scaling: ModuleType) -> None:
    page = (DOCS / "performance.md").read_text(encoding="utf-8").splitlines()
    assert [row for row in scaling.rows() if row not in page] == []
