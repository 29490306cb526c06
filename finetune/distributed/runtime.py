"""One object that knows the ranks: starting them, wrapping the model, stepping it, and what a rank saves."""

import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.utils import get_total_norm

from finetune.distributed.channel import SideChannel
from finetune.distributed.ddp import Ddp
from finetune.distributed.ema import Ema
from finetune.distributed.fragments import Flat, Ranks, RankState, Saved, cut
from finetune.distributed.scaling import LossScale
from finetune.distributed.single import Single
from finetune.distributed.states import OptimizerState
from finetune.distributed.zero import Zero, check_version, skip_shared_memory_build
from finetune.distributed.zero3 import Zero3
from finetune.optim.config import EmaConfig
from finetune.strategy import StrategyConfig

WHOLE = {"single": Single, "ddp": Ddp}
"""Strategies under which every rank holds all."""
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
        self._norm: Tensor | None = None

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
        self._max_grad_norm = max_grad_norm
        self._engine = self._wrapped(module, optimizer, names)
        self._state = OptimizerState(self._engine.optimizer, kind, self._engine.flats, members)
        self._resting = self._engine.resting(resting)
        self._flats = [*self._engine.flats, *self._resting]
        self._ema = Ema(ema, self._flats) if ema.decay else None
        wrapped: nn.Module = self._engine.model
        return wrapped

    def autocast(self) -> torch.autocast:
        """The precision of forward passes; a context that can be entered again and again."""
        return autocast(self.device, self._config.precision)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add a micro-batch's gradients; `last` marks the step's last one.

        After it the gradients are those of the mean over all micro-batches of all ranks.
        """
        self._prepared.backward(loss * self._factor, last=last)

    def gradient_norm(self) -> Tensor:
        """After a step's last `backward`: the global norm of its gradients before clipping, a float32 scalar on the
        device, the same on all ranks; NaN or infinite where a gradient is. Queued without waiting for the device."""
        if self._norm is None:
            engine = self._prepared
            norm = get_total_norm([part for flat in engine.flats for part in flat.gradients]).to(self.device)
            if engine.divided:
                squares = norm.square()
                dist.all_reduce(squares)
                norm = squares.sqrt()
            self._norm = norm / self._factor
        return self._norm

    def step(self, rates: Sequence[float]) -> None:
        """Clip the gradients by their norm, update each parameter group at its rate, take the weights into their
        average, and clear the gradients.

        Under fp16 gradients that are not finite halve the loss scale and change nothing else (`scales_loss`), which
        waits for the device. In other precisions they would destroy the weights: `skip` such a step.
        """
        engine, norm, factor = self._prepared, self.gradient_norm(), self._factor
        finite = self._scale is None or bool(norm.isfinite())
        if self._scale:
            self._scale.update(finite=finite)
        if not finite:
            self.skip()
            return
        self._clip((self._max_grad_norm / (norm + 1e-6)).clamp(max=1.0) / factor)
        for group, rate in zip(engine.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        engine.optimizer.step()
        engine.publish()
        if self._ema:
            self._ema.update()
        self.skip()

    def skip(self) -> None:
        """Drop the gradients of this step's micro-batches so far, as if these had never been: weights, their average,
        the optimizer's state and the loss scale stay as they are."""
        self._norm = None
        self._prepared.clear()

    @property
    def scales_loss(self) -> bool:
        """Whether gradients may be infinite though nothing is wrong (fp16), and `step` is to learn of it."""
        return self._scale is not None

    def rehearse(self, loss: Tensor) -> RankState:
        """Take the step of a loss at rate 0, whatever the optimizer makes of that, and leave no trace of it. Returns
        what would be saved after it. Where it is cut short, as memory runs out, `prepare` has to be called anew before
        anything else: the weights are then what they were."""
        engine = self._prepared
        kept = [flat.values.to("cpu", copy=True) for flat in engine.flats]
        try:
            engine.backward(loss, last=True)
            self.step([0.0] * len(engine.optimizer.param_groups))
            state = self.state()
        finally:
            for flat, values in zip(engine.flats, kept, strict=True):
                flat.values.copy_(values)
        engine.publish()
        self.discard_optimizer_state()
        return state

    def discard_optimizer_state(self) -> None:
        """Forget all that steps leave behind beside the weights, as if none had been taken."""
        self._state.discard()
        if self._scale:
            self._scale.restart()
        if self._ema:
            self._ema.restart()

    @contextmanager
    def evaluation_weights(self) -> Iterator[None]:
        """Within it the model has the weights to be judged by, which are not always those that train, all of them on
        every rank, and can be called on some ranks alone. All ranks enter and leave."""
        with self._averaged(), self._prepared.gathered():
            yield

    def share(self, loss: Tensor, flags: Sequence[bool] = (), sums: Tensor | None = None) -> Tensor:
        """What all ranks have to know of a step, in one reduction: its mean loss over all ranks, how many of them
        raised each flag, and the sums over all of what else they have to add up; float32 [1 + flags + sums] on the
        device, queued without waiting for it. A loss that is NaN on one rank is NaN on all.

        Args:
            sums: float32, of one shape on all ranks.
        """
        loss = loss.detach().float() / self.world
        shared = torch.stack([loss, *(loss.new_full((), float(flag)) for flag in flags)])
        if sums is not None:
            shared = torch.cat((shared, sums.flatten()))
        if self.world > 1:
            dist.all_reduce(shared)
        return shared

    def ema_distance(self) -> float | None:
        """How far the weights that train in the run are from their moving average: ‖w − ema‖ / ‖w‖ over all of them;
        None where there is no average. Waits for the device. All ranks call it."""
        if self._ema is None:
            return None
        squares = self._ema.squares().to(self.device)
        if self.world > 1:
            dist.all_reduce(squares)
        apart, length = squares.sqrt().tolist()
        return float(apart / length)

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

    def side_channel(self) -> SideChannel:
        """All ranks once more, for a thread whose collectives must not mix with the training's. All ranks call this."""
        return SideChannel(self.rank, self.world)

    def state(self) -> RankState:
        """This rank's share of parameters, averages and optimizer state, free of topology; on the CPU."""
        judged = self._averages()
        averages = [{"ema": average} for average in judged] if judged else [{}] * len(self._flats)
        trained = len(self._flats) - len(self._resting)
        state = self._state.save(averages[:trained])
        for flat, average in zip(self._resting, averages[trained:], strict=True):
            if flat.saved:
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
        if self._engine:
            self._engine.leave()
        if dist.is_initialized():
            dist.destroy_process_group()

    def _wrapped(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, names: Mapping[nn.Parameter, str]
    ) -> Single | Zero:
        ranks, accumulation = Ranks(self.rank, self.world), self.accumulation
        if self._config.name in WHOLE:
            return WHOLE[self._config.name](module, optimizer, names, ranks=ranks, accumulation=accumulation)
        sharded = Zero3 if self._config.name == "zero3" else Zero
        return sharded(module, optimizer, names, ranks=ranks, accumulation=accumulation, config=self._config)

    @property
    def _prepared(self) -> Single | Zero:
        if self._engine is None:
            raise RuntimeError("prepare has to be called first")
        return self._engine

    @property
    def _factor(self) -> float:
        """By which gradients are larger than they should be."""
        return self._scale.factor if self._scale else 1.0

    def _clip(self, factor: Tensor) -> None:
        """Multiply all gradients."""
        torch._foreach_mul_([f.tensor.grad for f in self._prepared.flats if f.tensor.grad is not None], factor)

    def _release(self) -> None:
        """Let go of the engine and of all that it holds."""
        self._norm = None
        if self._ema:
            self._ema.close()
            self._ema = None
        if self._engine:
            self._flats.clear()
            self._resting.clear()
            del self._state
            self._engine.close()
            self._engine = None

    @contextmanager
    def _averaged(self) -> Iterator[None]:
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


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The precision of forward passes, by its name in the recipe; a context that can be entered again and again."""
    return torch.autocast(device.type, dtype=AUTOCAST[precision], enabled=precision != "fp32")


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
