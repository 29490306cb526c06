"""What a step of each strategy sends, against what it has to send."""

from typing import Any

import pytest
import torch

from tests.forks import ended

pytestmark = pytest.mark.slow
WORLD, ACCUMULATED = 2, 16
SMALL = 64
"""Bytes up to which a collective is of single numbers: the norm, the loss."""
BYTES = {"fp32": 4, "bf16": 2}
"""Of a weight or gradient of a linear layer that DeepSpeed sends."""

Found = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    folder = tmp_path_factory.mktemp("traffic")
    ended(folder / "log", "tests.distributed.sent", str(ACCUMULATED), str(folder / "results"), processes=WORLD)
    assert (folder / "results").exists(), (folder / "log").read_text()[-4000:]
    results: Found = torch.load(folder / "results", weights_only=True)
    return results


def sent(found: Found, name: str) -> tuple[list[str], int]:
    """The collectives of whole tensors, and the bytes of them that a rank sends."""
    large = [one for one in found[name]["sent"] if one[1] > SMALL]
    return [kind for kind, _, _ in large], round(sum(each for _, _, each in large))


def about(size: float) -> Any:
    """A size but for what the ranks' shares are filled up with."""
    return pytest.approx(size, abs=8 * WORLD * 4)


def test_ddp_sends_all_gradients_once_a_step(found: Found) -> None:
    kinds, size = sent(found, "ddp fp32")
    assert kinds == ["allreduce_"]
    assert size == 4 * found["ddp fp32"]["parameters"] * 2 * (WORLD - 1) / WORLD


def test_ddp_adds_gradients_up_in_the_buckets_that_it_sends(found: Found) -> None:
    assert list(found["ddp fp32"]["buckets"].values()) == [4 * found["ddp fp32"]["parameters"]]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("strategy", "reductions"), [("zero1", 1), ("zero2", ACCUMULATED)])
def test_zero_sends_gradients_and_then_weights(found: Found, strategy: str, reductions: int, precision: str) -> None:
    kinds, size = sent(found, f"{strategy} {precision}")
    parameters = found[f"{strategy} {precision}"]["parameters"]
    assert kinds == ["allreduce_"] * reductions + ["_allgather_base_"] * 2  # a group of parameters each
    reduced = BYTES[precision] * parameters * 2 * (WORLD - 1) / WORLD
    gathered = 4 * parameters * (WORLD - 1) / WORLD
    assert size == about(reductions * reduced + gathered)


def test_zero3_gathers_for_every_micro_batch(found: Found) -> None:
    kinds, size = sent(found, "zero3 bf16")
    assert kinds.count("_reduce_scatter_base_") == ACCUMULATED
    assert kinds.count("_allgather_base_") >= ACCUMULATED
    parameters = found["zero3 bf16"]["parameters"]
    assert size >= ACCUMULATED * 2 * BYTES["bf16"] * parameters * (WORLD - 1) / WORLD


@pytest.mark.parametrize("strategy", ["zero1", "zero2"])
def test_small_buckets_change_nothing_but_the_number_of_reductions(found: Found, strategy: str) -> None:
    one, several = found[f"{strategy} bf16"], found[f"{strategy} small buckets"]
    assert all(torch.equal(value, several["weights"][name]) for name, value in one["weights"].items())
    assert sent(found, f"{strategy} small buckets")[1] == about(sent(found, f"{strategy} bf16")[1])
    assert len(several["sent"]) > len(one["sent"]) or strategy == "zero2"  # whose buckets hold the largest matrix


@pytest.mark.parametrize("strategy", ["zero1", "zero2"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_second_copy_of_the_weights_is_kept(found: Found, strategy: str, precision: str) -> None:
    one = found[f"{strategy} {precision}"]
    assert one["wrapping"] < 0.1 * 4 * one["parameters"] / WORLD


def test_strategies_agree(found: Found) -> None:
    whole = found["ddp fp32"]["weights"]
    for strategy in ("zero1", "zero2"):
        weights = found[f"{strategy} fp32"]["weights"]
        assert all(torch.allclose(value, weights[name], rtol=0.0, atol=1e-6) for name, value in whole.items())
