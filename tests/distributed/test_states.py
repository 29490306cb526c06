"""Optimizer state between layouts of flat tensors, without any processes."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from finetune.distributed.fragments import Flat, Piece, RankState, Saved, whole
from finetune.distributed.states import OptimizerState
from finetune.errors import UserError
from finetune.optim.config import OptimConfig, ScheduleConfig, state_kind
from finetune.optim.optimizers import build_optimizer

SIZE = 3 * 4096
Spans = Sequence[Sequence[tuple[str, int, int]]]
"""For each flat tensor the parameters that it holds: name, first element, elements."""
WHOLE: Spans = [[("a", 0, SIZE)], [("b", 0, SIZE)]]
TWO_RANKS: Sequence[Spans] = [
    [[("a", 0, SIZE), ("b", 0, 100)]],
    [[("b", 100, SIZE - 100)]],
]


class Rank:
    """Flat tensors of parameters `a` and `b`, each a group or (`joint`) both one, and an optimizer that steps them."""

    def __init__(
        self, optimizer: str, spans: Spans, *, joint: bool = False, matrix: bool = False, **options: Any
    ) -> None:
        self.flats = []
        for i, pieces in enumerate(spans):
            offset, made = 0, []
            for name, start, numel in pieces:
                made.append(Piece(name, start, offset, numel))
                offset += numel
            tensor = torch.zeros(64, offset // 64) if matrix else torch.zeros(offset)
            self.flats.append(Flat(torch.nn.Parameter(tensor), made, 0 if joint else i))
        names = [["a", "b"]] if joint else [["a"], ["b"]][: len(spans)]
        groups: dict[str, list[Any]] = {}
        for flat in self.flats:
            groups.setdefault(str(flat.group), []).append(flat.tensor)
        config = OptimConfig(
            name=optimizer, lr=0.1, text_encoder_lr=0.1, schedule=ScheduleConfig(name="constant"), options=options
        )
        self.optimizer = build_optimizer(config, groups)
        self.state = OptimizerState(self.optimizer, state_kind(config), self.flats, names)

    def step(self, gradients: dict[str, Tensor]) -> None:
        for flat in self.flats:
            row = torch.cat([gradients[p.name][p.start : p.start + p.numel] for p in flat.pieces])
            flat.tensor.grad = row.view_as(flat.tensor)
        self.optimizer.step()

    def save(self) -> RankState:
        return self.state.save([{}] * len(self.flats))

    def load(self, saved: Saved) -> None:
        assert list(self.state.load(saved)) == [None] * len(self.flats)  # no averages

    def kept(self, key: str) -> Tensor:
        """A row of the state of all flat tensors."""
        return torch.cat([self.optimizer.state[flat.tensor][key].view(-1) for flat in self.flats])


def reader(ranks: Sequence[Rank]) -> Saved:
    states = [rank.save() for rank in ranks]
    return Saved(lambda rank: states[rank], len(states))


def gradients(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(SIZE, generator=generator) for name in "ab"}


def dequantised(rank: Rank) -> Tensor:
    """bitsandbytes' first states, by hand: the code's value times the largest magnitude of its block of 256."""
    rows = []
    for flat in rank.flats:
        state = rank.optimizer.state[flat.tensor]
        scales = state["absmax1"].repeat_interleave(256)[: flat.tensor.numel()]
        rows.append(state["qmap1"][state["state1"].long()] * scales)
    return torch.cat(rows)


def test_sgd_s_momentum_is_quantised_and_used() -> None:
    before, after = Rank("sgd", WHOLE), Rank("sgd8bit", WHOLE)
    first, second = gradients(0), gradients(1)
    before.step(first)
    after.load(reader([before]))
    gradient = torch.cat([first["a"], first["b"]])  # which is the first momentum
    assert (dequantised(after) - gradient).norm() < 0.02 * gradient.norm()
    weights = after.flats[0].values.clone()
    after.step(second)
    momentum = (weights - after.flats[0].values) / 0.1
    assert (momentum - (0.9 * first["a"] + second["a"])).norm() < 0.03 * momentum.norm()


@pytest.mark.parametrize(
    ("eight_bit", "exact", "row"), [("lion8bit", "lion", "exp_avg"), ("sgd8bit", "sgd", "momentum_buffer")]
)
def test_8_bit_moments_come_back_as_rows_however_divided(eight_bit: str, exact: str, row: str) -> None:
    whole = Rank(eight_bit, WHOLE)
    whole.step(gradients(0))
    wanted = dequantised(whole)
    saved = reader([whole])
    ranks = [Rank(exact, spans, joint=True) for spans in TWO_RANKS]
    for rank in ranks:
        rank.load(saved)
    assert torch.equal(torch.cat([rank.kept(row) for rank in ranks]), wanted)


def test_8_bit_moments_of_shards_come_back_whole() -> None:
    ranks = [Rank("lion8bit", spans, joint=True) for spans in TWO_RANKS]
    for rank in ranks:
        rank.step(gradients(0))
    # Blocks of 256 are those of the shards, which `b` does not begin with.
    wanted = torch.cat([dequantised(rank) for rank in ranks])
    alone = Rank("lion", WHOLE)
    alone.load(reader(ranks))
    assert torch.equal(alone.kept("exp_avg"), wanted)


def test_what_belongs_to_whole_tensors_is_restored_whole_or_not_at_all() -> None:
    before = Rank("adafactor", WHOLE, matrix=True)
    before.step(gradients(0))
    same = Rank("adafactor", WHOLE, matrix=True)
    same.load(reader([before]))
    for old, new in zip(before.flats, same.flats, strict=True):
        was, now = before.optimizer.state[old.tensor], same.optimizer.state[new.tensor]
        assert was.keys() == now.keys() == {"step", "row_var", "col_var"}
        assert all(torch.equal(was[key], now[key]) for key in was)
    divided = Rank("adafactor", [[("a", 0, SIZE // 2)], [("b", 0, SIZE)]])
    with pytest.raises(UserError, match=r"row_var of a cannot be divided"):
        divided.load(reader([before]))


def test_counters_go_with_the_parameters_and_settings_do_not() -> None:
    before = Rank("schedule_free_adamw", WHOLE)
    for step in range(3):
        before.step(gradients(step))
    after = Rank("schedule_free_adamw", [[("a", 0, SIZE)]], r=2.0)  # another setting than before
    after.optimizer.param_groups[0]["lr"] = 0.7
    after.load(reader([before]))
    group = after.optimizer.param_groups[0]
    assert group["step"] == 3
    assert group["weight_sum"] == pytest.approx(3 * 0.1**2)  # the sum of the squared rates
    assert (group["r"], group["lr"]) == (2.0, 0.7)
    after.state.discard()
    assert "step" not in group
    assert group["weight_sum"] == 0.0
    assert not after.optimizer.state


def test_a_group_with_a_parameter_that_never_stepped_starts_anew() -> None:
    before = Rank("adopt", [[("a", 0, SIZE)]])
    before.step(gradients(0))
    rest = {"b": [{"start": 0, "param": torch.ones(SIZE)}]}
    state = before.save()
    state["fragments"] |= rest
    after = Rank("adopt", WHOLE, joint=True)
    after.load(Saved(lambda rank: state, 1))
    assert torch.equal(after.flats[1].values, torch.ones(SIZE))
    assert not after.optimizer.state
    assert "step" not in after.optimizer.param_groups[0]
    apart = Rank("adopt", WHOLE)
    apart.load(Saved(lambda rank: state, 1))
    assert [group.get("step") for group in apart.optimizer.param_groups] == [1, None]


def test_steps_that_were_saved_as_one_number_are_counted_apart() -> None:
    shard = Rank("adamw", [[("a", 0, SIZE), ("b", 0, SIZE)]], joint=True)
    shard.step(gradients(0))
    alone = Rank("adamw", WHOLE)
    alone.load(reader([shard]))
    alone.step(gradients(1))
    assert [alone.optimizer.state[flat.tensor]["step"] for flat in alone.flats] == [2.0, 2.0]


def test_a_parameter_of_which_a_part_was_not_saved_is_refused() -> None:
    saved = reader([Rank("adamw", [[("a", 0, SIZE)], [("b", 0, SIZE - 1)]])])
    with pytest.raises(UserError, match=r"of the 12288 values that b needs: it is of another model"):
        Rank("adamw", WHOLE).load(saved)


def test_a_parameter_that_has_not_trained_so_far_stays_as_it_is() -> None:
    before, after = Rank("adamw", [[("a", 0, SIZE)]]), Rank("adamw", WHOLE)
    before.step(gradients(0))
    kept = after.flats[1].values.clone()
    after.load(reader([before]))
    assert torch.equal(after.flats[0].values, before.flats[0].values)
    assert torch.equal(after.flats[1].values, kept)
    assert after.flats[1].tensor not in after.optimizer.state


@pytest.mark.parametrize("fused", [True, False])
def test_steps_are_counted_where_torch_looks_for_them(fused: bool) -> None:
    parameter = torch.nn.Parameter(torch.zeros(4, device="meta"))
    optimizer = torch.optim.AdamW([parameter], fused=fused)
    state = OptimizerState(optimizer, "adam", [whole("a", parameter)], [["a"]])
    moment = {"start": 0, "param": torch.zeros(4), "exp_avg": torch.zeros(4), "step": torch.tensor(3.0)}
    saved = {"fragments": {"a": [moment]}, "blocks": [], "kind": "adam", "groups": [{"names": ["a"], "counted": {}}]}
    assert list(state.load(Saved(lambda rank: saved, 1))) == [None]
    assert optimizer.state[parameter]["exp_avg"].device.type == "meta"
    assert optimizer.state[parameter]["step"].device.type == ("meta" if fused else "cpu")
