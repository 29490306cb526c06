"""How a sample's latents are stored in place of its picture: the moments of the VAE's posterior, from which training
draws as often as it likes. One safetensors file per sample, or in it the reason why there are none."""

import json
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from finetune.errors import DataFault

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
MOMENTS, MIRRORED, MASK, FAULT = "moments", "mirrored", "mask", "fault"


class Latents(NamedTuple):
    """What is read of a sample."""

    moments: Tensor
    """Mean and logarithm of the variance of the posterior, of the picture or of its mirror image: fp16 or bf16
    [2C, h, w], before the VAE's scaling factor."""
    mask: npt.NDArray[np.uint16] | None
    """How much the pixels of every latent count, summed up, each from 0 to 255, mirrored like the moments: [h, w]; None
    where all count."""


def pack(moments: Tensor, mirrored: Tensor | None, mask: Tensor | None) -> bytes:
    """What is stored of a sample; the fields of `Latents` as they are without mirroring, and the moments of its mirror
    image."""
    given = {MOMENTS: moments, MIRRORED: mirrored, MASK: mask}
    return save({name: tensor.contiguous() for name, tensor in given.items() if tensor is not None})


def pack_fault(reason: str) -> bytes:
    """What is stored of a sample whose picture cannot be used."""
    return save({}, {FAULT: reason})


def unpack(data: bytes, *, mirrored: bool) -> Latents:
    """The latents of a picture or of its mirror image. Raises DataFault where there are none."""
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        if reason := header.get("__metadata__", {}).get(FAULT):
            raise DataFault(reason)
        tensors = load(data)
        mask = tensors[MASK].numpy() if MASK in tensors else None
        if not mirrored:
            return Latents(tensors[MOMENTS], mask)
        return Latents(tensors[MIRRORED], None if mask is None else mask[:, ::-1])
    except (SafetensorError, ValueError, KeyError) as error:
        raise DataFault(f"latents: {type(error).__name__}: {error}") from error


def area_sums(mask: npt.NDArray[np.uint8], factor: int) -> npt.NDArray[np.uint16]:
    """The sums over squares of `factor` pixels a side, at most 16: uint16 [H/factor, W/factor]."""
    height, width = mask.shape
    squares = mask.reshape(height // factor, factor, width // factor, factor)
    sums: npt.NDArray[np.uint16] = squares.sum(axis=(1, 3), dtype=np.uint16)
    return sums
