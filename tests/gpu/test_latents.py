"""Encoding on a GPU, with loader processes beside it."""

from pathlib import Path

import pytest
import torch

from finetune.data.index import IMAGE, Index
from finetune.data.latents import unpack
from tests.encoded import encoded, recipe

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def moments_of(folder: Path) -> list[torch.Tensor]:
    """Of all samples, in the order of the index."""
    index, found = Index.load(folder), []
    for row in range(len(index)):
        span = index.spans(row)[IMAGE]
        data = Path(span.location).read_bytes()[span.offset : span.offset + span.size]
        found += [unpack(data, mirrored=mirrored).moments for mirrored in (False, True)]
    return found


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 5e-3), ("bf16", 5e-2)])
def test_a_gpu_encodes_as_the_cpu_does(
    shards: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, tolerance: float
) -> None:
    found = []
    for device in ("cuda", "cpu"):
        settings = {"latents": str(tmp_path / device), "flip": 0.5, "workers": 2}
        if device == "cpu":
            monkeypatch.setattr("data_tools.latents.encode.own_device", lambda: torch.device("cpu"))
        (outcome,) = encoded(recipe(shards, tiny_model, precision=precision, **settings), tmp_path)
        found.append(moments_of(outcome.folder))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one.float(), other.float(), rtol=tolerance, atol=tolerance)
