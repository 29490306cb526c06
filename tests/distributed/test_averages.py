"""The weights by which a schedule-free optimizer is judged, in one process."""

import torch
from torch import nn

from finetune.checkpoint.rows import SavedRows
from finetune.distributed import Distributed
from finetune.optim.config import EmaConfig, OptimConfig, ScheduleConfig, state_kind
from finetune.optim.optimizers import build_optimizer
from finetune.strategy import StrategyConfig

OPTIM = OptimConfig(name="schedule_free_adamw", schedule=ScheduleConfig("constant"))
BETA_1 = 0.9


def test_a_checkpoint_holds_the_average_beside_the_weights_that_train() -> None:
    """y = (1 − β₁)·z + β₁·x (Defazio et al., 2405.15682, equation (3)) trains, and x is judged."""
    distributed = Distributed(StrategyConfig(name="single", precision="fp32"))
    net = nn.Linear(8, 8, bias=False)
    distributed.prepare(
        net,
        build_optimizer(OPTIM, {"unet": [net.weight]}),
        kind=state_kind(OPTIM),
        micro_batch=1,
        global_batch=1,
        max_grad_norm=1.0,
        resting={},
        ema=EmaConfig(),
    )
    for _ in range(5):
        distributed.backward((net(torch.eye(8)) - 1.0).square().mean(), last=True)
        distributed.step([1e-2])
    trained = net.weight.detach().clone()
    state = distributed.state()
    assert torch.equal(net.weight, trained)
    (fragment,) = state["fragments"]["weight"]
    torch.testing.assert_close(fragment["param"], (1 - BETA_1) * fragment["z"] + BETA_1 * fragment["ema"])
    with distributed.evaluation_weights():
        assert torch.equal(net.weight.view(-1), fragment["ema"])
        assert not torch.equal(net.weight, trained)
    assert torch.equal(net.weight, trained)
    for ema, key in ((True, "ema"), (False, "param")):
        assert torch.equal(SavedRows(lambda rank: state, 1).row("weight", average=ema), fragment[key])
