"""What micro-batches take, against what torch allocates for real, and against closed forms."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.profiler import ProfilerActivity, profile

from finetune.memory.activations import Activations, Size
from finetune.memory.live import LiveBytes
from finetune.memory.on_cuda import Autocast, FlashAttention
from finetune.model.assemble import Trainee
from finetune.model.checkpointing import blocks, checkpoint_blocks
from finetune.model.config import ModelConfig
from finetune.model.families import Components, load_components, load_skeleton
from finetune.model.vae import encode_pixels

SIZE = Size(3, 256, 192, 2)


def counted(folder: Path, precision: str = "fp32") -> Activations:
    config = ModelConfig(path=str(folder))
    return Activations(load_skeleton(config), list(Trainee(load_skeleton(config)).trainable), precision)


CONVOLUTIONS = ("aten::mkldnn_convolution", "aten::convolution_backward")


def allocated(profiled: profile) -> int:
    """The most bytes that torch had allocated on the CPU at a time, more than at the beginning. What a convolution lays
    out for itself and gives back does not count: it is the CPU's way."""
    assert profiled.profiler
    events = sorted(profiled.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    now = peak = within = 0
    for event in events:
        if event.name() in CONVOLUTIONS:
            within = max(within, event.end_ns())
        elif event.name() == "[memory]":
            peak = max(peak, now if event.start_ns() > within else 0)
            now += event.nbytes()
    return peak


def real_step(components: Components, trainee: Trainee) -> None:
    encoders = len(components.text_encoders)
    samples, width, height, chunks = SIZE
    ids = torch.zeros(samples * chunks, encoders, 77, dtype=torch.int64)
    rows, told = torch.arange(samples * chunks).view(samples, chunks), torch.zeros(samples, 6, dtype=torch.int64)
    timesteps = torch.zeros(samples, dtype=torch.int64)
    latents = torch.zeros(samples, 4, height // 8, width // 8)
    trainee(latents, timesteps, ids, rows, told).square().mean().backward()


@pytest.mark.parametrize("checkpointing", ["none", "all"])
@pytest.mark.parametrize("family", ["tiny_sd15", "tiny_sdxl"])
def test_the_peak_is_what_torch_allocates(request: pytest.FixtureRequest, family: str, checkpointing: str) -> None:
    """In fp32 on the CPU, whose attention keeps as little; within 5%."""
    twin: Path = request.getfixturevalue(family)
    components = load_components(ModelConfig(path=str(twin), gradient_checkpointing=checkpointing))
    trainee = Trainee(components)
    for parameter in trainee.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    real_step(components, trainee)  # what is made once and kept
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        real_step(components, trainee)
    activations = counted(twin)
    chosen = activations.block_names if checkpointing == "all" else ()
    assert activations.training(SIZE, chosen) == pytest.approx(allocated(profiled), rel=0.05)


def test_encoding_takes_what_torch_allocates(tiny_sd15: Path) -> None:
    vae = load_components(ModelConfig(path=str(tiny_sd15))).vae
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        samples, width, height, _ = SIZE
        pixels = torch.zeros(samples, 3, height, width, dtype=torch.uint8)
        encode_pixels(vae, pixels, torch.zeros(samples, 4, height // 8, width // 8))
    assert counted(tiny_sd15).encoding(SIZE) == pytest.approx(allocated(profiled), rel=0.05)


def test_checkpointing_of_single_blocks_lies_between(tiny_sd15: Path) -> None:
    activations = counted(tiny_sd15, "bf16")
    names = activations.block_names
    none, some, every = (activations.training(SIZE, chosen) for chosen in ((), names[:4], names))
    assert every < some < none
    assert activations.training(SIZE) == none  # what was asked before changes nothing


def test_what_blocks_keep_is_what_checkpointing_them_saves(tiny_sd15: Path) -> None:
    """Until the backward pass reaches the block that was computed last, all that others keep is there."""
    activations = counted(tiny_sd15)
    kept = {block.name: block for block in activations.blocks(SIZE)}
    assert kept.keys() == set(activations.block_names)
    assert all(block.bytes > 0 and block.flops > 0 for block in kept.values() if block.name != "text_encoder.encoder")
    saved = activations.training(SIZE) - activations.training(SIZE, ["unet.down_blocks.0"])
    assert saved == pytest.approx(kept["unet.down_blocks.0"].bytes, rel=0.1)


def test_more_samples_take_in_proportion_more(tiny_sd15: Path) -> None:
    activations = counted(tiny_sd15, "bf16")
    two, four, six = (activations.training(SIZE._replace(samples=m)) for m in (2, 4, 6))
    assert six - four == pytest.approx(four - two, rel=0.01)
    assert activations.encoding(SIZE._replace(samples=6)) == 2 * activations.encoding(SIZE)


class Layers(nn.Module):
    """A norm, then a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(8), nn.Linear(8, 16)

    def forward(self, values: Tensor) -> Tensor:
        return self.linear(self.norm(values))


def test_autocast_keeps_what_cuda_s_does() -> None:
    """Of a norm its fp32 input and two numbers a row, of a layer its rounded input and weight."""
    with torch.device("meta"):
        layers, values = Layers(), torch.empty(10, 8, dtype=torch.bfloat16)
        autocast = Autocast(layers, torch.bfloat16)
        with LiveBytes("meta", [*layers.parameters(), values]) as live, autocast:
            made = layers(values)
        assert made.dtype == torch.bfloat16
        assert live.now == 10 * (4 * 8 + 2 * 4 + 2 * 8 + 2 * 16) + 2 * 16 * 8


def test_autocast_s_copies_of_weights_last_as_long_as_the_pass() -> None:
    with torch.device("meta"):
        layer = nn.Linear(8, 16, bias=False)
        autocast = Autocast(layer, torch.bfloat16)
        with LiveBytes("meta", [layer.weight]) as live:
            with autocast, torch.utils.checkpoint.set_checkpoint_early_stop(False):
                with torch.autograd.graph.saved_tensors_hooks(lambda _: None, lambda _: torch.empty(0)):
                    made = layer(torch.empty(1, 8))
                held = live.now
            assert held - live.now == 2 * 16 * 8
            assert live.now == made.nbytes


def test_attention_keeps_no_matrix() -> None:
    heads, queries, keys, width = 2, 64, 48, 8
    with torch.device("meta"):
        given = [torch.empty(1, heads, n, width, requires_grad=True) for n in (queries, keys, keys)]
        with LiveBytes("meta", given) as live, FlashAttention():
            made = scaled_dot_product_attention(*given)
        assert made.shape == (1, heads, queries, width)
        assert live.now < made.nbytes + 4 * heads * queries + 200


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precisions_take_less_than_fp32_and_sdxl_s_vae_stays_in_fp32(tiny_sdxl: Path, precision: str) -> None:
    exact, lower = counted(tiny_sdxl), counted(tiny_sdxl, precision)
    assert lower.training(SIZE) < exact.training(SIZE)
    assert (lower.encoding(SIZE) == exact.encoding(SIZE)) == (precision == "fp16")


def test_blocks_of_a_model_are_found_by_the_names_of_its_skeleton(twin: Path) -> None:
    trainee = Trainee(load_components(ModelConfig(path=str(twin))))
    assert counted(twin).block_names == list(blocks(trainee))
    checkpoint_blocks(trainee, ["unet.mid_block"])
    assert [name for name, block in blocks(trainee).items() if block.gradient_checkpointing] == ["unet.mid_block"]
