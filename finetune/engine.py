"""What trains in a phase: the wrapped model, the groups of its parameters and their optimizer."""

from collections.abc import Mapping, Sequence

from torch import nn

from finetune.distributed import Distributed
from finetune.model.assemble import Trainee
from finetune.optim.config import EmaConfig, state_kind
from finetune.optim.groups import parameter_groups, rates
from finetune.optim.optimizers import build_optimizer
from finetune.phases import Phase


class Engine:
    """The model under the optimizer of a phase; another phase may need another one."""

    def __init__(
        self,
        trainee: Trainee,
        phases: Sequence[Phase],
        distributed: Distributed,
        ema: EmaConfig,
        *,
        global_batch: int,
        saved: Mapping[str, nn.Parameter],
    ) -> None:
        """Find out what each phase trains.

        Args:
            global_batch: samples of an optimizer step, over all ranks.
            saved: what the checkpoint holds that the run goes on from, whether or not a phase still trains it.

        Raises:
            UserError: a phase trains nothing, or names parts that the model does not have.
        """
        self._trainee = trainee
        self._distributed = distributed
        self._ema = ema
        self._global_batch = global_batch
        self._phase: Phase | None = None
        self._ever = dict(saved)
        for phase in phases:
            for names in self.groups(phase).values():
                self._ever |= {name: trainee.trainable[name] for name in names}

    def fits(self, phase: Phase) -> bool:
        """Whether a phase can go on with what is there."""
        before = self._phase
        return before is not None and (
            (before.optimizer, before.optim.max_grad_norm, before.micro_batch, self._named)
            == (phase.optimizer, phase.optim.max_grad_norm, phase.micro_batch, self.groups(phase))
        )

    def build(self, phase: Phase) -> nn.Module:
        """Make the optimizer of a phase, without any state, and wrap the model anew; the model to call."""
        self._phase, self._named = phase, self.groups(phase)
        trained = {label: [self._ever[name] for name in names] for label, names in self._named.items()}
        now = {name for names in self._named.values() for name in names}
        self._trainee.train_only(now)
        return self._distributed.prepare(
            self._trainee,
            build_optimizer(phase.optim, trained),
            kind=state_kind(phase.optim),
            micro_batch=phase.micro_batch,
            global_batch=self._global_batch,
            max_grad_norm=phase.optim.max_grad_norm,
            resting={name: parameter for name, parameter in self._ever.items() if name not in now},
            ema=self._ema,
        )

    def rates(self, phase: Phase, step: int, total_steps: int) -> dict[str, float]:
        """The learning rate of every group at a step counted from 0, in the order of the optimizer's."""
        return rates(self._named, phase.optim, step, total_steps)

    def groups(self, phase: Phase) -> dict[str, list[str]]:
        """The names of the parameters that a phase trains by the labels of their groups. Raises UserError where it
        trains nothing, or names parts that the model does not have."""
        return parameter_groups(self._trainee.trainable, phase.optim)
