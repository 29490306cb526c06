"""Safetensors files written tensor by tensor."""

import hashlib
import os
import struct
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from finetune.model.stream import write_tensors

TYPES = (torch.float32, torch.float16, torch.bfloat16)


def some(dtype: torch.dtype) -> dict[str, Tensor]:
    """Tensors of odd shapes, not all contiguous, with values that no rounding may touch."""
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**15), 2**15, (3, 5, 7), generator=generator, dtype=torch.int16)
    values = torch.randn(3, 5, 7, generator=generator) if dtype == torch.float32 else bits.view(dtype)
    return {
        "empty": torch.empty(0, dtype=dtype),
        "scalar": torch.tensor(1.5, dtype=dtype),
        "transposed": values.transpose(0, 2),
        "z": values,
        "a": values[:, ::2],
    }


def write(path: Path, tensors: dict[str, Tensor], dtype: torch.dtype, **options: str) -> None:
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    write_tensors(path, shapes, tensors.__getitem__, dtype, {"title": "träume"}, **options)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_safetensors_reads_it_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = some(dtype)
    write(tmp_path / "file.safetensors", tensors, dtype)
    found = load_file(tmp_path / "file.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].shape == tensor.shape
        assert found[name].dtype == dtype
        integers = torch.int32 if dtype == torch.float32 else torch.int16
        assert torch.equal(found[name].view(integers), tensor.contiguous().view(integers))  # NaN is as it was
    with safe_open(tmp_path / "file.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "title": "träume"}


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_the_tensors_lie_as_safetensors_itself_lays_them(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {name: tensor.contiguous().clone() for name, tensor in sorted(some(dtype).items())}
    write(tmp_path / "ours.safetensors", tensors, dtype)
    save_file(tensors, tmp_path / "theirs.safetensors")
    contents = [(tmp_path / name).read_bytes() for name in ("ours.safetensors", "theirs.safetensors")]
    ours, theirs = (content[8 + struct.unpack("<Q", content[:8])[0] :] for content in contents)
    assert ours == theirs
    assert struct.unpack("<Q", contents[0][:8])[0] % 8 == 0


def test_the_hash_is_of_all_that_stands_behind_the_header(tmp_path: Path) -> None:
    write(tmp_path / "file.safetensors", some(torch.float16), torch.float16, hash_key="hash")
    content = (tmp_path / "file.safetensors").read_bytes()
    with safe_open(tmp_path / "file.safetensors", "pt") as file:
        told = file.metadata()["hash"]
    assert told == "0x" + hashlib.sha256(content[8 + struct.unpack("<Q", content[:8])[0] :]).hexdigest()


def test_a_write_that_breaks_off_leaves_what_was_there(tmp_path: Path) -> None:
    def read(name: str) -> Tensor:
        raise OSError("disk full")

    path = tmp_path / "file.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="disk full"):
        write_tensors(path, {"a": (1,)}, read, torch.float32, {})
    assert [each.name for each in tmp_path.iterdir()] == ["file.safetensors"]
    assert path.read_bytes() == b"old"


def test_it_is_under_another_name_until_it_is_whole(tmp_path: Path) -> None:
    seen = []

    def read(name: str) -> Tensor:
        seen.append([path.suffix for path in tmp_path.iterdir()])
        return torch.zeros(1)

    write_tensors(tmp_path / "file.safetensors", {"a": (1,), "b": (1,)}, read, torch.float32, {})
    assert seen == [[".tmp"], [".tmp"]]
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


def test_others_may_read_it(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write(tmp_path / "file.safetensors", some(torch.float32), torch.float32)
    finally:
        os.umask(before)
    assert (tmp_path / "file.safetensors").stat().st_mode & 0o777 == 0o640


def test_a_tensor_of_another_shape_or_type_is_never_written(tmp_path: Path) -> None:
    for wrong in (torch.zeros(2), torch.zeros(1, dtype=torch.float16)):
        with pytest.raises(AssertionError, match=r"^a"):
            write_tensors(tmp_path / "x", {"a": (1,)}, lambda _, given=wrong: given, torch.float32, {})
    assert not list(tmp_path.iterdir())
