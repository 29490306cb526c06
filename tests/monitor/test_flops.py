"""FLOPs against closed forms, and what a GPU could do."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from finetune.data.batch import LatentShape
from finetune.model.assemble import Trainee
from finetune.model.config import ModelConfig
from finetune.model.families import load_components, load_skeleton
from finetune.monitor.flops import PEAK_TFLOPS, TERA, ModelFlops, counted, peak_flops, utilisation
from finetune.monitor.intervals import Interval, Shape

LATENTS = LatentShape(4, 8)


class Layers(nn.Module):
    """Of each kind that is counted, one, called as a `Trainee` is."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, padding=1)
        self.linear = nn.Linear(8, 16)

    def forward(self, latents: Tensor, *told: Tensor) -> Tensor:
        rows = self.linear(self.conv(latents).flatten(2).transpose(1, 2))
        attended: Tensor = scaled_dot_product_attention(rows, rows, rows)
        return attended


@pytest.mark.parametrize("side", [4, 6])
def test_counts_are_those_of_the_closed_forms(side: int) -> None:
    """Two for each multiplication with its addition. Backward, a product needs one product for each of its factors, and
    the convolution none for its input, which nobody asks for."""
    area = side * side
    conv, linear, attention = 2 * area * 9 * 4 * 8, 2 * area * 8 * 16, 2 * 2 * area * area * 16
    with torch.device("meta"):
        layers = Layers()
    assert counted(layers, 4, side, 1, 1, 1) == 2 * conv + 3 * linear + 3 * attention  # type: ignore[arg-type]
    layers.conv.requires_grad_(False)
    assert counted(layers, 4, side, 1, 1, 1) == conv + (3 - 1) * linear + 3 * attention  # type: ignore[arg-type]


def test_an_empty_model_counts_as_one_with_weights(twin: Path) -> None:
    config = ModelConfig(path=str(twin))
    components, skeleton = load_components(config), load_skeleton(config)
    encoders = len(components.text_encoders)
    with sdpa_kernel(SDPBackend.MATH):  # torch counts no other one of the CPU's
        real = counted(Trainee(components), 4, 16, encoders, 2, 2)
    assert counted(Trainee(skeleton), 4, 16, encoders, 2, 2) == real > 0


def test_any_shape_s_work_follows_from_five_counts(twin: Path) -> None:
    config = ModelConfig(path=str(twin))
    skeleton = load_skeleton(config)
    trainee = Trainee(skeleton)
    flops = ModelFlops(config, list(trainee.trainable), LATENTS)
    for side, chunks, encoded in ((1, 7, 2), (5, 3, 3)):
        expected = counted(trainee, 4, 8 * side, len(skeleton.text_encoders), chunks, encoded)
        assert flops(Shape(64 * side, 64 * side, chunks, encoded)) == pytest.approx(expected, rel=1e-9)
    assert flops(Shape(128, 192, 3, 1.5)) == flops(Shape(192, 128, 3, 1.5))


def test_what_rests_has_no_backward_pass(tiny_sd15: Path) -> None:
    config = ModelConfig(path=str(tiny_sd15))
    trainee = Trainee(load_skeleton(config))
    names = [name for name in trainee.trainable if name.startswith("unet.")]
    trainee.train_only(names)
    expected = counted(trainee, 4, 16, 1, 2, 2)
    found = ModelFlops(config, names, LATENTS)(Shape(128, 128, 2, 2))
    assert found == pytest.approx(expected, rel=1e-9)
    trainee.train_only(trainee.trainable)
    assert found < counted(trainee, 4, 16, 1, 2, 2)


def test_utilisation_is_work_over_what_could_have_been_done() -> None:
    ranks = [Interval(), Interval()]
    ranks[0].samples[Shape(512, 512, 1, 1)] = 3
    ranks[1].samples[Shape(512, 768, 1, 1)] = 1
    for rank, seconds in zip(ranks, (1.5, 2.5), strict=True):
        rank.step(seconds, 0.0, seconds)
    work = {Shape(512, 512, 1, 1): 10.0, Shape(512, 768, 1, 1): 20.0}
    assert utilisation(ranks, work.__getitem__, 100.0) == 50.0 / (4.0 * 100.0)  # type: ignore[arg-type]
    assert utilisation(ranks, work.__getitem__, None) is None  # type: ignore[arg-type]


def test_the_peak_is_that_of_the_card_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"cuda:0": "NVIDIA GeForce RTX 3090", "cuda:1": "NVIDIA GeForce RTX 3090 Laptop GPU"}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: names[str(device)])
    assert peak_flops(torch.device("cuda:0"), "bf16") == 71.0 * TERA
    assert peak_flops(torch.device("cuda:0"), "fp32") is None
    assert peak_flops(torch.device("cuda:1"), "bf16") is None
    assert peak_flops(torch.device("cpu"), "bf16") is None


CORES = {
    "Tesla V100-SXM2-16GB": (80, 512, 1.530),
    "Tesla T4": (40, 512, 1.590),
    "NVIDIA A100-SXM4-80GB": (108, 1024, 1.410),
    "NVIDIA A10": (72, 512, 1.695),
    "NVIDIA A40": (84, 512, 1.740),
    "NVIDIA RTX A5000": (64, 512, 1.695),
    "NVIDIA RTX A6000": (84, 512, 1.800),
    "NVIDIA GeForce RTX 3080": (68, 256, 1.710),
    "NVIDIA GeForce RTX 3090": (82, 256, 1.695),
    "NVIDIA GeForce RTX 3090 Ti": (84, 256, 1.860),
    "NVIDIA L4": (58, 512, 2.040),
    "NVIDIA RTX 6000 Ada Generation": (142, 512, 2.505),
    "NVIDIA GeForce RTX 4080": (76, 256, 2.505),
    "NVIDIA GeForce RTX 4090": (128, 256, 2.520),
    "NVIDIA H100 PCIe": (114, 2048, 1.620),
    "NVIDIA H100 80GB HBM3": (132, 2048, 1.830),
    "NVIDIA GeForce RTX 5080": (84, 256, 2.617),
    "NVIDIA GeForce RTX 5090": (170, 256, 2.407),
}
"""By card: multiprocessors, what the tensor cores of each add up in a clock, and the boost clock in GHz."""


@pytest.mark.parametrize("name", CORES)
def test_peaks_are_what_the_cores_can_do_at_the_boost_clock(name: str) -> None:
    multiprocessors, products, clock = CORES[name]
    assert PEAK_TFLOPS[name] == pytest.approx(2 * multiprocessors * products * clock / 1000, rel=0.01)
