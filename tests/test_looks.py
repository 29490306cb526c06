"""When samples are drawn, and how the ranks share them."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from finetune.data.plan import Plan
from finetune.errors import UserError
from finetune.looks import draw, drawn_by_all, due, due_in_epochs
from finetune.monitor.samples.config import SamplesConfig
from finetune.monitor.samples.sampling import Sampler
from tests.monitor.samples.tiny import opened, pixels, wanted
from tests.ranks import OneRank, ThreadRank, on_threads

PICTURES = [wanted(), wanted("picture number 3", 5), wanted(height=64), wanted(guidance=4.0), wanted("tag 7", 9)]


def drawn(model: Path, world: int, at_most: int) -> tuple[list[list[Image.Image]], Counter[int]]:
    """What every rank of a world has of PICTURES, and how many of them each has sampled."""
    counts: Counter[int] = Counter()
    samplers = [opened(model) for _ in range(world)]  # not in threads: transformers loads one model at a time

    def act(rank: ThreadRank) -> list[Image.Image]:
        sampler = samplers[rank.rank]
        sampler.pipeline.vae.decoder.register_forward_hook(
            lambda module, given, found: counts.update({rank.rank: len(found)})
        )
        return drawn_by_all(sampler, PICTURES, at_most, rank)

    return on_threads(world, act), counts


def test_every_world_draws_the_same_pictures_in_the_same_order(tiny_model: Path) -> None:
    (alone,), _ = drawn(tiny_model, 1, 1)
    assert [picture.height for picture in alone] == [picture.height_px for picture in PICTURES]
    for world, shares in ((2, [2, 3]), (7, [0, 0, 1, 1, 1, 1, 1])):
        found, counts = drawn(tiny_model, world, 1)
        assert sorted(counts[rank] for rank in range(world)) == shares
        for pictures in found:
            assert all(np.array_equal(a, b) for a, b in zip(pictures, alone, strict=True))
    (together,), _ = drawn(tiny_model, 1, 4)
    found, _ = drawn(tiny_model, 2, 4)
    for pictures in (together, *found):  # batches of other sizes add up in another order
        assert max(np.abs(pixels(a) - pixels(b)).max() for a, b in zip(pictures, alone, strict=True)) <= 2


class Lacking(Sampler):
    """A GPU without memory left for pictures of a prompt."""

    def sample(self, pictures: Any) -> list[Image.Image]:
        if any(picture.prompt.text == "tag 7" for picture in pictures):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return super().sample(pictures)


def test_where_one_rank_lacks_memory_all_ranks_know(tiny_model: Path) -> None:
    samplers = [Lacking(**vars(opened(tiny_model))) for _ in range(2)]

    def act(rank: ThreadRank) -> str:
        sampler = samplers[rank.rank]
        sampler.pipeline.unet.train()
        with pytest.raises(UserError) as raised:
            drawn_by_all(sampler, PICTURES, 1, rank)
        assert sampler.pipeline.unet.training
        return str(raised.value)

    assert set(on_threads(2, act)) == {"the GPU's memory does not suffice: lower monitor.samples.batch or sizes_px"}


class Notes:
    """What a run is told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.said: list[str] = []
        self.grids: list[tuple[int, str]] = []

    def event(self, kind: str, **fields: Any) -> None:
        self.events.append((kind, fields))

    def say(self, text: str) -> None:
        self.said.append(text)

    def grid(self, step: int, size: str, grid: Image.Image) -> None:
        self.grids.append((step, size))


def noted(sampler: Sampler, **samples: Any) -> Notes:
    """What comes of drawing a recipe's samples after 500 steps."""
    notes = Notes()
    distributed = OneRank()
    distributed.autocast = lambda: sampler.autocast  # type: ignore[attr-defined]
    parts = SimpleNamespace(
        distributed=distributed,
        pipeline=sampler.pipeline,
        tokenizer=sampler.tokenizer,
        prompt_encoder=sampler.encoder,
    )
    draw(cast(Any, parts), cast(Any, notes), 500, SamplesConfig(steps=2, **samples))
    return notes


def test_a_grid_of_each_size_is_kept(tiny_model: Path) -> None:
    notes = noted(opened(tiny_model), prompts=["tag", "tag 7"], sizes_px=[[64, 64], [64, 96]], guidance=[4.0, 7.0])
    assert notes.grids == [(500, "64x64"), (500, "64x96")]
    assert notes.events == []


def test_samples_that_cannot_be_drawn_stop_nothing(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune.looks.Sampler", Lacking)
    for settings, reason in (
        ({"prompts": ["tag 7"], "sizes_px": [[64, 64]]}, "the GPU's memory does not suffice"),
        ({"file": str(tmp_path / "gone.yaml")}, "gone.yaml cannot be read"),
    ):
        notes = noted(opened(tiny_model), **settings)
        ((kind, fields),) = notes.events
        assert (kind, fields["step"]) == ("samples failed", 500)
        assert reason in fields["reason"]
        assert notes.said == [f"no samples after step 500: {fields['reason']}"]
        assert notes.grids == []


@given(st.integers(1, 300), st.integers(1, 40))
def test_in_steps_it_is_due_at_both_ends_and_at_multiples(total: int, every: int) -> None:
    found = [done for done in range(total + 1) if due(done, every, last=done == total)]
    assert found == sorted({*range(0, total + 1, every), total})
    assert not any(due(done, 0, last=done == total) for done in range(total + 1))


@given(st.integers(1, 300), st.integers(1, 9), st.integers(1, 50))
def test_in_epochs_it_is_due_at_both_ends_and_with_the_step_in_which_one_ends(
    total: int, every: int, epoch_steps: int
) -> None:
    """Of epochs that end in the middle of a step."""
    length = epoch_steps + 0.5
    plan = cast(Plan, SimpleNamespace(epoch=lambda step: step / length))
    found = [done for done in range(total + 1) if due_in_epochs(plan, done, every, last=done == total)]
    ends = {int(-(-number * every * length // 1)) for number in range(1, 1 + int(total / length / every))}
    assert found == sorted({0, *ends, total})
    assert not any(due_in_epochs(plan, done, 0, last=done == total) for done in range(total + 1))
