"""One object that knows the ranks: starting them, wrapping the model, stepping it, and what a rank saves."""

import ctypes
import os
import signal
import socket
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, DeepSpeedPlugin, InitProcessGroupKwargs
from torch import Tensor, nn

from finetune.distributed import zero
from finetune.distributed.fragments import Flat, Piece, RankState, load_fragments, save_fragments
from finetune.strategy import StrategyConfig

PR_SET_PDEATHSIG = 1


class Distributed:
    """The processes of a run under a strategy. Every rank makes one, then calls the same methods in the same order."""

    def __init__(self, config: StrategyConfig, *, micro_batch: int, global_batch: int, max_grad_norm: float) -> None:
        """Start the process group.

        Args:
            micro_batch: samples of a forward pass.
            global_batch: samples of an optimizer step, over all ranks.
            max_grad_norm: gradients are scaled down to this global norm.

        Raises:
            UserError: the DeepSpeed that is installed is not the one that checkpoints need.
        """
        if config.threads:
            torch.set_num_threads(config.threads)
        die_with_the_launcher()
        self._config = config
        self.accumulation = global_batch // (micro_batch * launched_world())
        self._max_grad_norm = max_grad_norm
        on_cpu = not torch.cuda.is_available()
        if config.name == "single":
            self._accelerator = Accelerator(cpu=on_cpu, mixed_precision="no")
        else:
            zero.check_version()
            zero.skip_shared_memory_build()
            set_missing_rank_variables()
            settings = zero.engine_config(
                config, micro_batch=micro_batch, accumulation=self.accumulation, max_grad_norm=max_grad_norm
            )
            backend = {"backend": "gloo"} if on_cpu else {}
            timeout = timedelta(seconds=config.timeout_s)
            self._accelerator = Accelerator(
                mixed_precision="no",
                gradient_accumulation_steps=self.accumulation,
                deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=settings),
                kwargs_handlers=[InitProcessGroupKwargs(timeout=timeout, **backend)],
            )
        self.rank: int = self._accelerator.process_index
        self.world: int = self._accelerator.num_processes
        self.is_main = self.rank == 0
        self.device: torch.device = self._accelerator.device
        self._module: Any = None
        self._optimizer: Any = None
        self._flats: list[Flat] = []

    def prepare(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """Wrap a model of fp32 weights and its optimizer, one group per learning rate; the model to call."""
        names = {parameter: name for name, parameter in module.named_parameters()}
        wrapped, wrapped_optimizer = self._accelerator.prepare(module, optimizer)
        self._module, self._optimizer = wrapped, wrapped_optimizer.optimizer
        if self._config.name == "single":
            steppable = [p for group in optimizer.param_groups for p in group["params"]]
            self._flats = [Flat(p, [Piece(names[p], 0, 0, p.numel())]) for p in steppable]
        else:
            self._flats = zero.partitions(self._optimizer, names)
        return wrapped  # type: ignore[no-any-return]

    def autocast(self) -> torch.autocast:
        """The precision of forward passes; a context that can be entered again and again."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._config.precision == "bf16")

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add a micro-batch's gradients; `last` marks the step's last one.

        After it the gradients are those of the mean over all micro-batches of all ranks.
        """
        if self._config.name == "single":
            (loss / self.accumulation).backward()  # type: ignore[no-untyped-call]
        else:
            self._module.set_gradient_accumulation_boundary(last)
            self._module.backward(loss)

    def step(self, learning_rates: Sequence[float]) -> Tensor:
        """Clip, update each parameter group at its rate, and clear the gradients.

        Returns:
            The global gradient norm before clipping, a scalar on the device.
        """
        for group, rate in zip(self._optimizer.param_groups, learning_rates, strict=True):
            group["lr"] = rate
        if self._config.name == "single":
            norm = nn.utils.clip_grad_norm_([flat.tensor for flat in self._flats], self._max_grad_norm)
            self._optimizer.step()
            self._optimizer.zero_grad()
            return norm
        self._module.step()
        return torch.as_tensor(self._module.get_global_grad_norm(), dtype=torch.float32, device=self.device)

    def discard_optimizer_state(self) -> None:
        """Forget moments and step counts, as if no step had been taken."""
        self._inner_optimizer.state.clear()
        if self._config.name != "single":
            zero.unlink_optimizer_state(self._optimizer)

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
        """This rank's share of parameters and optimizer state, free of topology; on the CPU."""
        return save_fragments(self._flats, self._inner_optimizer, self._layout)

    def load_state(self, read: Callable[[int], RankState], world: int) -> None:
        """Restore from what `world` ranks saved; `read(rank)` gives a rank's state.

        Raises:
            UserError: the state is of another model.
        """
        self.discard_optimizer_state()
        load_fragments(self._flats, self._inner_optimizer, self._layout, read, world)
        if self._config.name != "single":
            self._optimizer.update_lp_params()

    def close(self) -> None:
        """Leave the process group."""
        if dist.is_initialized():
            dist.destroy_process_group()

    @property
    def _inner_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer that steps the flat tensors."""
        inner: torch.optim.Optimizer = self._optimizer if self._config.name == "single" else self._optimizer.optimizer
        return inner

    @property
    def _layout(self) -> dict[str, Any]:
        optimizer = type(self._inner_optimizer).__name__
        return {"strategy": self._config.name, "world": self.world, "rank": self.rank, "optimizer": optimizer}


def launched_world() -> int:
    """The number of processes that the launcher has started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def die_with_the_launcher() -> None:
    """Let the kernel kill this worker when torchrun dies, which orphans its workers when it is killed itself."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def set_missing_rank_variables() -> None:
    """Make a process that was started without a launcher the only rank of a world of one."""
    if "RANK" in os.environ:
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
