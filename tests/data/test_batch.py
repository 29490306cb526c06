"""Micro-batches on their way from workers."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from finetune.data.batch import Batch, packed

OTHERS = {
    "input_ids": torch.zeros(3, 1, 77, dtype=torch.int64),
    "chunk_rows": torch.arange(3)[:, None],
    "size_and_crop": torch.ones(3, 6, dtype=torch.int64),
    "loss_weights": torch.tensor([1.0, 0.5, 2.0]),
    "mask": torch.ones(3, 1, 1, 1),
    "timesteps": torch.tensor([1, 500, 999]),
}
REST = {"size": (24, 16), "bad": [], "facts": []}


def numbers(*shape: int) -> list[Tensor]:
    return [torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i in range(3)]


def noises(channels: int, height: int, width: int) -> dict[str, list[Tensor]]:
    shape = (channels, height, width)
    return {
        "noise": numbers(*shape),
        "offset": numbers(channels, 1, 1),
        "perturbation": numbers(1, 1, 1),
        "posterior_noise": numbers(*shape),
    }


@given(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9))
def test_what_is_packed_comes_out_as_it_went_in(channels: int, height: int, width: int) -> None:
    pixels = [torch.full((height, width, 3), i, dtype=torch.uint8) for i in range(3)]
    parts = noises(channels, height, width)
    one = packed({"pixels": pixels, "moments": [], **OTHERS, **parts}, REST)
    batch = one.unpacked()
    assert batch.pixels.shape == (3, 3, height, width)
    assert torch.equal(batch.pixels, torch.stack(pixels).permute(0, 3, 1, 2))
    assert batch.moments is None
    assert all(torch.equal(getattr(batch, name), value) for name, value in OTHERS.items())
    assert all(torch.equal(getattr(batch, name), torch.stack(value)) for name, value in parts.items())
    assert (batch.size, batch.bad, batch.facts) == ((24, 16), [], [])


def test_moments_keep_their_type_and_there_is_one_tensor_to_hand_over() -> None:
    moments = [one.bfloat16() for one in numbers(8, 2, 3)]
    one = packed({"pixels": [], "moments": moments, **OTHERS, **noises(4, 2, 3)}, REST)
    assert [value for value in one if isinstance(value, Tensor)] == [one.whole]
    batch = one.unpacked()
    assert isinstance(batch, Batch)
    assert batch.pixels is None
    assert torch.equal(batch.moments, torch.stack(moments))
    memory = one.whole.untyped_storage().data_ptr()
    assert all(value.untyped_storage().data_ptr() == memory for value in batch if isinstance(value, Tensor))
