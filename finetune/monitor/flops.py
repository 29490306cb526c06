"""The arithmetic that a model needs, and how much of what its GPUs could do that is: model FLOPs utilisation (MFU) as
Chowdhery et al. define it (PaLM, arXiv 2204.02311, appendix B)."""

from collections.abc import Collection, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.flop_counter import FlopCounterMode

from finetune.data.batch import LatentShape
from finetune.model.assemble import Trainee
from finetune.model.config import CHUNK_TOKENS, ModelConfig
from finetune.model.families import load_skeleton
from finetune.monitor.intervals import Interval, Shape

TERA = 1e12
PEAK_TFLOPS = {
    "Tesla V100-SXM2-16GB": 125.0,
    "Tesla V100-SXM2-32GB": 125.0,
    "Tesla T4": 65.0,
    "NVIDIA A100-PCIE-40GB": 312.0,
    "NVIDIA A100-SXM4-40GB": 312.0,
    "NVIDIA A100 80GB PCIe": 312.0,
    "NVIDIA A100-SXM4-80GB": 312.0,
    "NVIDIA A10": 125.0,
    "NVIDIA A40": 149.7,
    "NVIDIA RTX A5000": 111.1,
    "NVIDIA RTX A6000": 154.8,
    "NVIDIA GeForce RTX 3080": 59.5,
    "NVIDIA GeForce RTX 3090": 71.0,
    "NVIDIA GeForce RTX 3090 Ti": 80.0,
    "NVIDIA L4": 121.0,
    "NVIDIA L40": 181.0,
    "NVIDIA L40S": 362.0,
    "NVIDIA RTX 6000 Ada Generation": 364.2,
    "NVIDIA GeForce RTX 4080": 97.5,
    "NVIDIA GeForce RTX 4090": 165.2,
    "NVIDIA H100 PCIe": 756.0,
    "NVIDIA H100 NVL": 835.0,
    "NVIDIA H100 80GB HBM3": 989.4,
    "NVIDIA H200": 989.4,
    "NVIDIA B200": 2250.0,
    "NVIDIA GeForce RTX 5080": 112.6,
    "NVIDIA GeForce RTX 5090": 209.5,
}
"""Dense matrix products of bf16 or fp16 added up in fp32, by the names that drivers give. From NVIDIA's data sheets of
these cards, half of the number where only one with sparsity is published, and for GeForce from the appendices of the
architectures' white papers (Ampere GA102, Ada, RTX Blackwell)."""


def peak_flops(device: torch.device, precision: str) -> float | None:
    """What a device could do in a second in bf16 or fp16; None where that is not known, and in fp32."""
    if device.type != "cuda" or precision == "fp32":
        return None
    tera = PEAK_TFLOPS.get(torch.cuda.get_device_name(device))
    return tera * TERA if tera else None


class ModelFlops:
    """Multiplications and additions of matrix products, convolutions and attention in a sample's forward and backward
    pass. Those of the VAE, and what gradient checkpointing computes again, do not count."""

    def __init__(self, config: ModelConfig, trained: Collection[str], latents: LatentShape) -> None:
        """Nothing is counted before it is asked for.

        Args:
            trained: names of the parameters that get a gradient. Without them the backward pass has less to do: it is
                counted, not taken as twice the forward pass.
        """
        self._config = config
        self._trained = trained
        self._latents = latents

    def __call__(self, shape: Shape) -> float:
        """Of a sample. Exact where its latents' sides can be halved on all levels of the UNet."""
        height, width = shape.height // self._latents.factor, shape.width // self._latents.factor
        return float(_terms(height * width, shape.chunks, shape.encoded) @ self._coefficients)

    @cached_property
    def _coefficients(self) -> npt.NDArray[np.float64]:
        """The work is a polynomial of the latents' area and the prompt's chunks, which six counts determine:
        convolutions and projections grow with the area, self-attention with its square, cross-attention with area times
        chunks, what it reads of the prompt with the chunks, and the text encoders with those that are encoded."""
        skeleton = load_skeleton(self._config)
        trainee = Trainee(skeleton)
        trainee.train_only(self._trained)
        side = 2 ** len(skeleton.unet.config.block_out_channels)
        tried = [(side, 1, 1), (side, 2, 1), (side, 2, 2), (2 * side, 1, 1), (2 * side, 2, 1), (3 * side, 1, 1)]
        encoders = len(skeleton.text_encoders)
        counts = [counted(trainee, self._latents.channels, each, encoders, *chunks) for each, *chunks in tried]
        return np.linalg.solve(np.stack([_terms(each * each, *chunks) for each, *chunks in tried]), counts)


def counted(trainee: Trainee, channels: int, side: int, encoders: int, chunks: int, encoded: int) -> int:
    """FLOPs of a sample with square latents, counted where the model lies.

    Args:
        encoded: how many of the prompt's chunks differ from others.
    """
    device = next(trainee.parameters()).device
    with FlopCounterMode(display=False) as counter:
        prediction = trainee(
            torch.zeros(1, channels, side, side, device=device),
            torch.zeros(1, dtype=torch.int64, device=device),
            torch.zeros(encoded, encoders, CHUNK_TOKENS + 2, dtype=torch.int64, device=device),
            torch.arange(chunks, device=device).clamp(max=encoded - 1)[None],
            torch.zeros(1, 6, dtype=torch.int64, device=device),
        )
        prediction.sum().backward()
    return int(counter.get_total_flops())


def utilisation(intervals: Sequence[Interval], flops: ModelFlops, peak: float | None) -> float | None:
    """MFU of all ranks' steps, from their beginning to their end, waiting included.

    Args:
        peak: of each rank, FLOPs a second; None where it is not known.
    """
    if peak is None:
        return None
    work = sum(flops(shape) * count for one in intervals for shape, count in one.samples.items())
    return work / (sum(sum(one.step_s) for one in intervals) * peak)


def _terms(area: int, chunks: int, encoded: float) -> npt.NDArray[np.float64]:
    return np.array([1.0, area, area**2, area * chunks, chunks, encoded], dtype=np.float64)
