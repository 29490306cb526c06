"""Safetensors files written tensor by tensor, so that writing one takes the memory of its largest tensor.

The layout is eight bytes of the header's length, the header as JSON, then the tensors' bytes one behind the other
(https://huggingface.co/docs/safetensors#format). The library's own `save_file` wants all tensors at once.
"""

import hashlib
import json
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path

import torch
from torch import Tensor

TYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
NO_HASH = f"0x{0:064x}"
"""What stands in the header for a hash that is not known yet, of the same length."""


def write_tensors(
    path: Path,
    shapes: Mapping[str, Sequence[int]],
    read: Callable[[str], Tensor],
    dtype: torch.dtype,
    metadata: Mapping[str, str],
    *,
    hash_key: str | None = None,
) -> None:
    """Write tensors of one type in the order of `shapes`. The file comes into its place when it is whole and on the
    disk; it is as readable for others as the umask lets it be.

    Args:
        read: gives a tensor by its name, on the CPU, of the shape that was told and of `dtype`.
        metadata: for the header.
        hash_key: name in the header for the SHA-256 of all tensors' bytes, as 0x….
    """
    told = {"format": "pt", **metadata}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(_header(shapes, dtype, told | ({hash_key: NO_HASH} if hash_key else {})))
            digest = hashlib.sha256()
            for name, shape in shapes.items():
                tensor = read(name)
                assert tuple(tensor.shape) == tuple(shape), name
                assert tensor.dtype == dtype, name
                data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
                file.write(data)
                if hash_key:
                    digest.update(data)
            if hash_key:
                file.seek(0)
                file.write(_header(shapes, dtype, told | {hash_key: f"0x{digest.hexdigest()}"}))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _header(shapes: Mapping[str, Sequence[int]], dtype: torch.dtype, metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    begin = 0
    for name, shape in shapes.items():
        end = begin + prod(shape) * dtype.itemsize
        entries[name] = {"dtype": TYPES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors begin at a multiple of eight
    return struct.pack("<Q", len(text)) + text
