"""Predicted memory against what CUDA allocates, and memory that is filled."""

from functools import partial

import pytest
import torch

from finetune.data.batch import Chunks, LatentShape
from finetune.diffusion.config import DiffusionConfig
from finetune.diffusion.objective import Objective
from finetune.distributed.runtime import autocast
from finetune.memory.activations import Activations, Size
from finetune.memory.filling import OutOfMemory, fill, within_memory
from finetune.model.assemble import Trainee
from finetune.model.checkpointing import blocks, checkpoint_blocks
from finetune.model.families import Components
from finetune.model.text import PromptEncoder
from finetune.step import TrainingStep, trial_batch
from finetune.stopwatch import take_memory_peak
from tests.integration.full_size import filled
from tests.model.published import full_size
from tests.ranks import OneRank

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DEVICE = torch.device("cuda")
SIZE = Size(2, 512, 512, 3)


def sd15(*, empty: bool) -> Components:
    parts = full_size("sd15")
    if not empty:
        parts = {name: filled(module) for name, module in parts.items()}
    encoder = PromptEncoder([parts["text_encoder"]], clip_skip=1, join_chunks="trim")  # type: ignore[list-item]
    return Components(parts["unet"], parts["vae"], encoder, ())  # type: ignore[arg-type]


class Passes:
    """SD1.5 in its real size, and its passes in bf16."""

    def __init__(self) -> None:
        components = sd15(empty=False)
        self.trainee = Trainee(components).to(DEVICE)
        vae = components.vae.to(DEVICE).requires_grad_(False).eval()
        self.step = TrainingStep(self.trainee, vae, Objective(DiffusionConfig()).to(DEVICE), autocast(DEVICE, "bf16"))
        samples, width, height, chunks = SIZE
        ids = torch.zeros(samples * chunks, 1, 77, dtype=torch.int64)
        rows = torch.arange(samples * chunks).view(samples, chunks)
        self.batch = trial_batch(Chunks(ids, rows), width, height, LatentShape(4, 8))

    def take(self) -> int:
        """Bytes of the passes beside the weights and the gradients that were there before."""
        prepared = self.step.prepare(self.batch)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        take_memory_peak(DEVICE)
        self.step.loss(prepared).weighted.backward()
        peak = take_memory_peak(DEVICE)
        assert peak is not None
        return peak - before


@pytest.fixture(scope="module")
def passes() -> Passes:
    made = Passes()
    made.take()  # gradients are there, and what is made once
    return made


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_passes_take_what_is_predicted(passes: Passes, share: float) -> None:
    """Within 10%."""
    names = list(blocks(passes.trainee))
    chosen = names[: int(share * len(names))]
    checkpoint_blocks(passes.trainee, chosen)
    activations = Activations(sd15(empty=True), list(passes.trainee.trainable), "bf16")
    assert passes.take() == pytest.approx(activations.training(SIZE, chosen), rel=0.1)


def test_memory_is_filled(passes: Passes) -> None:
    def fits() -> bool:
        try:
            within_memory(OneRank(), passes.take)
        except OutOfMemory:
            return False
        return True

    counted = Activations(sd15(empty=True), list(passes.trainee.trainable), "bf16").blocks(SIZE)
    found = fill(OneRank(), DEVICE, counted, checkpoint=partial(checkpoint_blocks, passes.trainee), fits=fits)
    assert [
        name for name, block in blocks(passes.trainee).items() if block.gradient_checkpointing
    ] == found.checkpointed
