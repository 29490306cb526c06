"""A GPU's memory under the allocator's setting that every command makes."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from finetune.data.buckets import bucket_sizes
from finetune.data.config import BucketsConfig
from finetune.entry import SEGMENTS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
BUCKETS = BucketsConfig(resolution_px=768, max_side_px=1536, step_px=32)
MICRO_BATCH, WIDTH = 8, 256
GROWTH = 1.02


@pytest.fixture
def segments() -> Iterator[None]:
    torch.cuda.empty_cache()
    torch.cuda.memory._set_allocator_settings(SEGMENTS)
    yield
    torch.cuda.empty_cache()
    torch.cuda.memory._set_allocator_settings("expandable_segments:False")


def test_forty_shapes_take_no_more_than_the_largest(segments: None) -> None:
    """What is reserved grows by less than 2% once the largest bucket has been through."""
    sizes = sorted(bucket_sizes(BUCKETS).tolist(), key=lambda size: -size[0] * size[1])
    assert len(sizes) >= 40
    layers = [nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(8)]
    net = nn.Sequential(*(layer for conv in layers for layer in (conv, nn.SiLU()))).cuda()

    def trained(width: int, height: int) -> int:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            net(
                torch.randn(MICRO_BATCH, WIDTH, height // 8, width // 8, device="cuda")
            ).float().square().mean().backward()
        net.zero_grad()
        return torch.cuda.memory_reserved()

    first = max(trained(*sizes[0]) for _ in range(2))
    assert max(trained(*size) for size in (*sizes[::-1], *sizes)) <= GROWTH * first
