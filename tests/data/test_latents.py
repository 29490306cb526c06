"""How a sample's latents are stored."""

from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.latents import DTYPES, area_sums, pack, pack_fault, unpack
from finetune.errors import DataFault


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=list(DTYPES))
@pytest.mark.parametrize("masked", [False, True])
def test_what_is_stored_comes_back_bit_by_bit(dtype: torch.dtype, masked: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    moments, mirrored = (torch.randn(8, 2, 3, generator=generator).to(dtype) for _ in range(2))
    mask = np.arange(6, dtype=np.uint16).reshape(2, 3) * 2720 if masked else None
    data = pack(moments, mirrored, None if mask is None else torch.from_numpy(mask))
    for flip, expected in ((False, moments), (True, mirrored)):
        found = unpack(data, mirrored=flip)
        assert found.moments.dtype == dtype
        assert torch.equal(found.moments, expected)
        assert np.array_equal(found.mask, np.fliplr(mask) if flip else mask) if masked else found.mask is None


def test_a_picture_that_cannot_be_used_is_told_as_it_was() -> None:
    with pytest.raises(DataFault, match=r"^not a picture of any known format: ü$"):
        unpack(pack_fault("not a picture of any known format: ü"), mirrored=False)


def test_what_is_not_there_is_a_fault() -> None:
    with pytest.raises(DataFault, match="latents: KeyError: 'mirrored'"):
        unpack(pack(torch.zeros(8, 2, 3), None, None), mirrored=True)


@given(st.data())
def test_damaged_latents_are_a_fault_and_no_crash(data: st.DataObject) -> None:
    whole = pack(torch.ones(8, 2, 3), None, None)
    end = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(DataFault, match=r"^latents: "):
        unpack(whole[:end], mirrored=False)
    spoilt = bytearray(whole)
    spoilt[data.draw(st.integers(0, 200))] ^= data.draw(st.integers(1, 255))
    with suppress(DataFault):
        assert unpack(bytes(spoilt), mirrored=False).moments.numel()


def test_the_sums_of_a_mask_are_exact() -> None:
    mask = np.random.default_rng(0).integers(0, 256, (32, 48), dtype=np.uint8)
    sums = area_sums(mask, 16)
    assert sums.dtype == np.uint16
    assert sums.tolist() == [[int(mask[y : y + 16, x : x + 16].sum()) for x in (0, 16, 32)] for y in (0, 16)]
    assert (area_sums(np.full((16, 16), 255, dtype=np.uint8), 16) == 65280).all()
