"""What a micro-batch takes of a GPU beside weights, gradients and the optimizer's state, counted without a GPU: the
model computes on torch's meta device, where it takes a second."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from finetune.memory.live import LiveBytes
from finetune.memory.on_cuda import Autocast, FlashAttention
from finetune.model.assemble import Trainee
from finetune.model.checkpointing import FUNCTION, blocks, checkpoint_blocks
from finetune.model.config import CHUNK_TOKENS
from finetune.model.families import Components
from finetune.model.vae import encode_pixels

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Size(NamedTuple):
    """Of a micro-batch of which no chunk of a prompt is another's."""

    samples: int
    width: int
    """Pixels, like the height."""
    height: int
    chunks: int
    """Of 75 tokens, in every prompt."""


class Block(NamedTuple):
    """What comes of not checkpointing a block."""

    name: str
    bytes: int
    """Kept from the forward to the backward pass."""
    flops: int
    """Not computed again."""


class Activations:
    """Counts what micro-batches of a model take, of what torch does on CUDA op by op; `torch.compile` keeps less."""

    def __init__(self, skeleton: Components, trained: Collection[str], precision: str) -> None:
        """Nothing is counted before it is asked for.

        Args:
            skeleton: the model on the meta device, for this alone: its modules are changed.
            trained: names of the parameters that get a gradient.
            precision: of forward passes, as in the recipe.
        """
        self._encoders, self._vae = len(skeleton.text_encoders), skeleton.vae.requires_grad_(False)
        self._channels, self._factor = skeleton.latent_channels, skeleton.vae_factor
        self._trainee = Trainee(skeleton)
        self._trainee.train_only(trained)
        for parameter in self._trainee.parameters():
            parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
        self._autocast = Autocast(self._trainee, PRECISIONS[precision])
        # In fp16 the VAE's activations would overflow: it computes in fp32.
        self._lower_vae = Autocast(self._vae, torch.float32 if precision == "fp16" else PRECISIONS[precision])
        self.block_names = list(blocks(self._trainee))
        """Of all that can be checkpointed."""
        self.encoding = cache(self._encoding_peak)
        self._peak = cache(self._training_peak)

    def training(self, size: Size, checkpointed: Collection[str] = ()) -> int:
        """The most bytes at a time in the forward and backward pass, whose gradients are added to others."""
        return self._peak(size, frozenset(checkpointed))

    def _training_peak(self, size: Size, checkpointed: frozenset[str]) -> int:
        checkpoint_blocks(self._trainee, checkpointed, _checkpoint)
        with self._counting() as live:
            torch.autograd.backward([self._forward(size).float().square().mean()])
        return live.peak

    def _encoding_peak(self, size: Size) -> int:
        """The most bytes at a time while the VAE encodes."""
        with self._counting() as live, self._lower_vae:
            pixels = torch.empty(size.samples, 3, size.height, size.width, dtype=torch.uint8)
            encode_pixels(self._vae, pixels, torch.empty(self._latents(size)))
        return live.peak

    def blocks(self, size: Size) -> list[Block]:
        """All that can be checkpointed, with what comes of not doing it."""
        found = {name: Block(name, 0, 0) for name in self.block_names}
        checkpoint_blocks(self._trainee, self.block_names)
        with self._counting() as live, FlopCounterMode(display=False) as flops:
            for name, block in blocks(self._trainee).items():
                setattr(block, FUNCTION, partial(_measured, found, name, live, flops))
            self._forward(size)
        return list(found.values())

    @contextmanager
    def _counting(self) -> Iterator[LiveBytes]:
        modules = (self._trainee, self._vae)
        known = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
        gradients = [parameter.grad for parameter in self._trainee.parameters() if parameter.grad is not None]
        with LiveBytes("meta", [*known, *gradients]) as live, FlashAttention(), torch.device("meta"):
            yield live

    def _forward(self, size: Size) -> Tensor:
        samples, chunks = size.samples, size.chunks
        told = [(samples,), (samples * chunks, self._encoders, CHUNK_TOKENS + 2), (samples, chunks), (samples, 6)]
        inputs = [torch.empty(each, dtype=torch.int64) for each in told]
        with self._autocast:
            prediction: Tensor = self._trainee(torch.empty(self._latents(size)), *inputs)
        return prediction

    def _latents(self, size: Size) -> tuple[int, int, int, int]:
        return size.samples, self._channels, size.height // self._factor, size.width // self._factor


def _checkpoint(function: Callable[..., Any], *inputs: Any) -> Any:
    """Torch's, without the state of random numbers, which the meta device has not, and with flash attention when it
    computes again, where modes do not reach."""
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=_modes)


def _modes() -> tuple[nullcontext[None], FlashAttention]:
    return nullcontext(), FlashAttention()


def _measured(
    found: dict[str, Block],
    name: str,
    live: LiveBytes,
    flops: FlopCounterMode,
    function: Callable[..., Any],
    *inputs: Any,
) -> Any:
    """Call a block's function, and add to the block what it keeps, its result aside, and computes."""
    bytes_before, flops_before = live.now, flops.get_total_flops()
    made = function(*inputs)
    kept = live.now - bytes_before - sum(one.nbytes for one in tree_leaves(made) if isinstance(one, Tensor))
    block = found[name]
    found[name] = Block(name, block.bytes + kept, block.flops + flops.get_total_flops() - flops_before)
    return made
