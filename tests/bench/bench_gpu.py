"""Training speed on a GPU: whole steps of runs of the published sizes with random weights, next to what the card can
multiply and to a plain loop."""

import gc
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch

from finetune.config import Config
from finetune.data.loader import Batch
from finetune.errors import UserError
from finetune.model.config import ModelConfig
from finetune.model.families import load_components
from finetune.stopwatch import take_memory_peak
from finetune.train import Run
from tests.bench.bare import BareLoop
from tests.bench.figure import Figure, Skipped
from tests.bench.full_size import Counter, Work, save_random
from tests.bench.kernels import IDLE, OTHERS, Profile, profiled
from tests.bench.running import FromMemory, first_batches, recipe, running, small_shards
from tests.bench.timing import waited_s

ACCUMULATION = 4
STEPS, WARM_UP, PROFILED = 6, 3, 3
SAMPLES = 64
"""In each of two shards."""
BUDGET_S = 420.0
"""What has not begun by then is left out."""
GIB = 2**30
TERA = 1e12
COMPILED = ("model.compile=true",)
CHECKPOINTED = ("model.gradient_checkpointing=true",)
SDXL = ("optim=adamw8bit", *CHECKPOINTED)
"""What makes it fit, with the moments of all its weights."""


@dataclass(frozen=True)
class Sizes:
    """How large the models and the pictures are; tests have smaller ones."""

    save: Callable[[str, Path, torch.device], None] = save_random
    sides: tuple[int, int, int] = (512, 768, 1024)
    micro_batches: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]] = ((8, 16, 32), (8, 16), (4, 8))
    """That are tried for SD1.5, by side."""
    sdxl_micro_batch: int = 4
    product: int = 8192
    """Side of the matrices whose product is the measure."""
    precision: str = "bf16"


class Speed(NamedTuple):
    """What steps of a run have shown."""

    images_per_s: float
    utilisation: float
    """FLOPs of what trains / those of matrix products in the same time."""
    peak_gib: float | None
    """Of tensors on the GPU."""
    micro_batch: int
    profile: Profile | None
    batches: list[Batch]

    def __str__(self) -> str:
        memory = "" if self.peak_gib is None else f", {self.peak_gib:.1f} GiB at the peak"
        return f"{self.images_per_s:.1f} images/s ({self.utilisation:.0%} MFU{memory})"


def figures(work: Path, shared: Path | None) -> Iterator[Figure]:
    """Images per second through the whole step of a run, from micro-batches in pinned memory.

    Args:
        work: folder for the models, the shards and the runs: 30 GiB.
        shared: not needed.

    Raises:
        Skipped: there is no GPU.
    """
    if not torch.cuda.is_available():
        raise Skipped("there is no CUDA device")
    yield from Card(work, torch.device("cuda"), Sizes()).figures()
