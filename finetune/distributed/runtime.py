"""One object that knows the ranks: starting them, wrapping the model, stepping it, and what a rank saves."""

import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from finetune.distributed.ema import Ema
from finetune.distributed.fragments import Flat, RankState, Saved, cut, whole
from finetune.distributed.scaling import LossScale
from finetune.distributed.single import Single
from finetune.distributed.states import OptimizerState
from finetune.distributed.zero import Zero, check_version, skip_shared_memory_build
from finetune.optim.config import EmaConfig
from finetune.strategy import StrategyConfig

AUTOCAST = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Distributed:
    """The processes of a run under a strategy. Every rank makes one, then calls the same methods in the same order."""

    def __init__(self, config: StrategyConfig) -> None:
        """Start the process group.

        Raises:
            UserError: the DeepSpeed that is installed is not the one that checkpoints need.
        """
        self._config = config
        if config.name != "single":
            check_version()
            skip_shared_memory_build()
            set_missing_rank_variables()
        timeout = timedelta(seconds=config.timeout_s)
        processes = PartialState(cpu=not torch.cuda.is_available(), timeout=timeout, **meeting_place(timeout))
        if config.threads:
            torch.set_num_threads(config.threads)
        self.rank: int = processes.process_index
        self.world: int = processes.num_processes
        self.is_main = self.rank == 0
        self.device: torch.device = processes.device
        self.accumulation = 0
        """Micro-batches of each rank in an optimizer step."""
        self._scale = LossScale() if config.precision == "fp16" else None
        self._engine: Single | Zero | None = None
        self._ema: Ema | None = None
        self._flats: list[Flat] = []

    def prepare(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        kind: str,
        micro_batch: int,
        global_batch: int,
        max_grad_norm: float,
        resting: Mapping[str, nn.Parameter],
        ema: EmaConfig,
    ) -> nn.Module:
        """Wrap a model of fp32 weights and its optimizer; the model to call. May be called again with the same model.

        The weights stay as they are. The optimizer's state, the moving average and the loss scale begin anew: what
        they were has to be taken over with `state` and `load_state`.

        Args:
            optimizer: new, with one parameter group for each learning rate.
            kind: what the optimizer's state means; that of another kind is not restored.
            micro_batch: samples of a forward pass.
            global_batch: samples of an optimizer step, over all ranks.
            max_grad_norm: gradients are scaled down to this global norm.
            resting: by name, the parameters that do not train now but do in another phase of the run.
            ema: the moving average that is kept of all of these.
        """
        self._release()
        module.to(self.device)
        names = {parameter: name for name, parameter in module.named_parameters()}
        members = [[names[p] for p in group["params"]] for group in optimizer.param_groups]
        self.accumulation = global_batch // (micro_batch * self.world)
        self._scale = LossScale() if self._config.precision == "fp16" else None
        sharded = partial(Zero, config=self._config, micro_batch=micro_batch)
        engine: Callable[..., Single | Zero] = Single if self._config.name == "single" else sharded
        self._engine = engine(
            module,
            optimizer,
            names,
            accumulation=self.accumulation,
            max_grad_norm=max_grad_norm,
            scale=self._scale,
        )
        self._state = OptimizerState(self._engine.optimizer, kind, self._engine.flats, members)
        self._resting = [whole(name, parameter) for name, parameter in resting.items()]
        self._flats = [*self._engine.flats, *self._resting]
        self._ema = Ema(ema, self._flats) if ema.decay else None
        return self._engine.model

    def autocast(self) -> torch.autocast:
        """The precision of forward passes; a context that can be entered again and again."""
        precision = self._config.precision
        return torch.autocast(self.device.type, dtype=AUTOCAST[precision], enabled=precision != "fp32")

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add a micro-batch's gradients; `last` marks the step's last one.

        After it the gradients are those of the mean over all micro-batches of all ranks.
        """
        self._prepared.backward(loss, last=last)

    def step(self, rates: Sequence[float]) -> Tensor:
        """Clip, update each parameter group at its rate, clear the gradients, and take the weights into their average.

        Under fp16 a step whose gradients overflow changes no weights, and the loss scale is halved.

        Returns:
            The global gradient norm before clipping, a scalar on the device.
        """
        engine = self._prepared
        for group, rate in zip(engine.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        norm = engine.step()
        if self._ema:
            self._ema.update()
        return norm

    def rehearse(self, loss: Tensor) -> None:
        """Take the step of a loss at rate 0, whatever the optimizer makes of that, and leave no trace of it."""
        engine = self._prepared
        kept = [flat.values.to("cpu", copy=True) for flat in engine.flats]
        engine.backward(loss, last=True)
        self.step([0.0] * len(engine.optimizer.param_groups))
        for flat, values in zip(engine.flats, kept, strict=True):
            flat.values.copy_(values)
        engine.publish()
        self.discard_optimizer_state()

    def discard_optimizer_state(self) -> None:
        """Forget all that steps leave behind beside the weights, as if none had been taken."""
        self._state.discard()
        self._prepared.forget()
        if self._scale:
            self._scale.restart()
        if self._ema:
            self._ema.restart()

    @contextmanager
    def evaluation_weights(self) -> Iterator[None]:
        """Within it the model has the weights to be judged by, which are not always those that train. All ranks
        enter."""
        averages = self._averages()
        if averages is None:
            yield
            return
        kept = [flat.values.clone() for flat in self._flats]
        try:
            self._fill(averages)
            self._prepared.publish()
            yield
        finally:
            self._fill(kept)
            self._prepared.publish()

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a tensor over all ranks."""
        value = value.detach().clone()
        if self.world > 1:
            dist.all_reduce(value)
        return value / self.world

    def gather(self, value: Any) -> list[Any]:
        """Every rank's picklable value, in the order of ranks, on every rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world > 1:
            dist.barrier()

    def state(self) -> RankState:
        """This rank's share of parameters, averages and optimizer state, free of topology; on the CPU."""
        judged = self._averages()
        averages = [{"ema": average} for average in judged] if judged else [{}] * len(self._flats)
        trained = len(self._flats) - len(self._resting)
        state = self._state.save(averages[:trained])
        for flat, average in zip(self._resting, averages[trained:], strict=True):
            if self.is_main:
                state["fragments"] |= {name: [f] for name, f in cut(flat, {"param": flat.values, **average}, {})}
        scale = asdict(self._scale) if self._scale else None
        return {**state, "ema_steps": self._ema.steps if self._ema else 0, "loss_scale": scale}

    def load_state(self, read: Callable[[int], RankState], world: int) -> None:
        """Restore from what `world` ranks saved; `read(rank)` gives a rank's state.

        Raises:
            UserError: the state is of another model, or its optimizer's cannot be divided as it would have to be.
        """
        saved = Saved(read, world, self.rank)
        self.discard_optimizer_state()
        resting = (saved.paste(flat, ["ema"])[0].get("ema") for flat in self._resting)
        for i, average in enumerate(chain(self._state.load(saved), resting)):
            if self._ema:
                self._ema.set(i, average)
        if self._ema:
            self._ema.steps = saved["ema_steps"]
        if self._scale and saved["loss_scale"]:
            self._scale.restart(**saved["loss_scale"])
        self._prepared.publish()

    def close(self) -> None:
        """Leave the process group."""
        if self._ema:
            self._ema.close()
        if dist.is_initialized():
            dist.destroy_process_group()

    @property
    def _prepared(self) -> Single | Zero:
        if self._engine is None:
            raise RuntimeError("prepare has to be called first")
        return self._engine

    def _release(self) -> None:
        """Let go of the engine and of all that it holds."""
        if self._ema:
            self._ema.close()
            self._ema = None
        if self._engine:
            self._flats.clear()
            self._resting.clear()
            del self._state
            self._engine.close()
            self._engine = None

    def _averages(self) -> list[Tensor] | None:
        """A row for each flat tensor of the weights to be judged by: their moving average, or the optimizer's own
        (Defazio et al., 2405.15682, x in place of y); None where there is neither."""
        if self._ema:
            return self._ema.values
        optimizer: Any = self._prepared.optimizer
        if not hasattr(optimizer, "eval"):
            return None
        kept = [flat.values.clone() for flat in self._flats]
        optimizer.eval()
        averages = [flat.values.clone() for flat in self._flats]
        optimizer.train()
        self._fill(kept)
        return averages

    def _fill(self, rows: Sequence[Tensor]) -> None:
        """Write a row of values to each flat tensor."""
        for flat, row in zip(self._flats, rows, strict=True):
            flat.values.copy_(row)


def set_missing_rank_variables() -> None:
    """Make a process that was started without a launcher the only rank of a world of one."""
    if "RANK" in os.environ:
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))


def meeting_place(timeout: timedelta) -> dict[str, Any]:
    """Where a process group has to meet that is started again by a launcher for one machine, which keeps its store with
    the addresses of those that have died; as arguments to start it. Empty where nothing is in the way."""
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if attempt == "0" or os.environ["GROUP_WORLD_SIZE"] != "1":
        return {}
    store, rank, world = next(rendezvous("env://", timeout=timeout))
    return {"store": PrefixStore(f"attempt-{attempt}", store), "rank": rank, "world_size": world}
