"""Blocks that are compiled for some shapes, by a compiler that counts its graphs and leaves them as they are."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.fx import GraphModule

from finetune.model.graphs import BLOCKS, Graphs

WIDE, TALL, OTHER = (8, 12), (12, 8), (16, 8)
"""(height, width) of latents; the first two have the same area."""


class Counter:
    """A compiler."""

    def __init__(self) -> None:
        self.graphs = 0
        self.calls = 0

    def __call__(self, graph: GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        self.graphs += 1

        def call(*args: Any) -> Any:
            self.calls += 1
            return graph.forward(*args)

        return call


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter]:
    counter = Counter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    yield counter
    torch.compiler.set_stance("default")
    torch._dynamo.reset()


@pytest.fixture
def unet() -> UNet2DConditionModel:
    """Two blocks of each kind on the way down, and more on the way up."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        down_block_types=["CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D"],
        block_out_channels=[8],
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=16,
        mid_block_scale_factor=1.0,  # or it would be an integer, and the middle's blocks of another kind
    ).train()


def predict(unet: UNet2DConditionModel, size: tuple[int, int], chunks: int = 1) -> Tensor:
    noise = torch.Generator().manual_seed(1)
    states = torch.randn(2, 75 * chunks + 2, 16, generator=noise)
    latents = torch.randn(2, 4, *size, generator=noise)
    prediction: Tensor = unet(latents, torch.tensor([3, 500]), encoder_hidden_states=states).sample
    return prediction


def passes(unet: UNet2DConditionModel, size: tuple[int, int], chunks: int = 1) -> list[Tensor]:
    """A loss, and the gradients of all parameters."""
    unet.zero_grad()
    loss = predict(unet, size, chunks).square().mean()
    loss.backward()
    return [loss.detach(), *(p.grad for p in unet.parameters())]


def kinds(unet: UNet2DConditionModel, *sizes: tuple[int, int]) -> set[tuple[Any, ...]]:
    """What differs between the calls of blocks at some sizes: their kind, the shapes of their weights and of what they
    are given."""
    found = set()

    def note(block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        found.add((type(block), tuple(p.shape for p in block.parameters()), args[0].shape))

    hooks = [block.register_forward_hook(note) for block in unet.modules() if isinstance(block, BLOCKS)]
    for size in sizes:
        predict(unet, size)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("checkpointing", [False, True])
def test_shapes_that_are_chosen_are_compiled_and_no_others(
    unet: UNet2DConditionModel, compiler: Counter, checkpointing: bool
) -> None:
    """And nothing changes by that, to the last bit: not under gradient checkpointing, and for no length of prompts."""
    if checkpointing:
        unet.enable_gradient_checkpointing()
    expected = {(size, chunks): passes(unet, size, chunks) for size in (WIDE, TALL, OTHER) for chunks in (1, 3)}
    number, names = len(kinds(unet, WIDE, TALL)), list(unet.state_dict())
    blocks = sum(isinstance(module, BLOCKS) for module in unet.modules())
    graphs = Graphs(unet)
    assert list(unet.state_dict()) == names
    passes(unet, WIDE)
    assert compiler.graphs == 0
    with graphs.compiling():
        for size in (WIDE, TALL):
            passes(unet, size, chunks=4)
    assert compiler.graphs == number < 2 * blocks
    for (size, chunks), values in expected.items():
        compiler.calls = 0
        found = passes(unet, size, chunks)
        assert all(torch.equal(a, b) for a, b in zip(found, values, strict=True))
        again = blocks - 1 if checkpointing else 0  # all but the first in the middle
        assert compiler.calls == (0 if size == OTHER else blocks + again)
    with torch.no_grad():
        predict(unet.eval(), WIDE)
    assert compiler.graphs == number


def test_what_is_not_chosen_again_is_left_as_it_is(unet: UNet2DConditionModel, compiler: Counter) -> None:
    graphs = Graphs(unet)
    with graphs.compiling():
        passes(unet, WIDE)
        passes(unet, OTHER)
    before = compiler.graphs
    with graphs.compiling():
        passes(unet, OTHER)
    assert compiler.graphs == before
    compiler.calls = 0
    passes(unet, WIDE)
    assert compiler.calls == 0
    passes(unet, OTHER)
    assert compiler.calls > 0


def test_what_no_graph_fits_runs_as_it_is(unet: UNet2DConditionModel, compiler: Counter) -> None:
    """Another phase may train less; it is compiled for once it begins."""
    graphs = Graphs(unet)
    with graphs.compiling():
        passes(unet, WIDE)
    before = compiler.graphs
    unet.down_blocks[0].requires_grad_(False)
    compiler.calls, blocks = 0, sum(isinstance(module, BLOCKS) for module in unet.modules())
    expected = predict(unet, WIDE)
    assert compiler.graphs == before
    assert 0 < compiler.calls < blocks
    with graphs.compiling():
        predict(unet, WIDE).sum().backward()
    assert compiler.graphs > before
    compiler.calls = 0
    assert torch.equal(predict(unet, WIDE), expected)
    assert compiler.calls == blocks


def test_more_is_compiled_than_dynamo_allows_by_itself(unet: UNet2DConditionModel, compiler: Counter) -> None:
    sizes = [WIDE, TALL]
    number, graphs = len(kinds(unet, *sizes)), Graphs(unet)
    limits = {"recompile_limit": 1, "accumulated_recompile_limit": 1}
    with torch._dynamo.config.patch(limits), graphs.compiling():
        for size in sizes:
            predict(unet, size)
    assert compiler.graphs == number
