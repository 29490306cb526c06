"""Decoding in loader processes: pictures cut as training would cut them, with their labels and masks."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from data_tools.latents.sets import LatentSet
from finetune.data.batch import shared
from finetune.data.buckets import fit
from finetune.data.config import DataConfig
from finetune.data.images import probe
from finetune.data.index import IMAGE, MASK
from finetune.data.latents import area_sums
from finetune.data.preparer import load_picture
from finetune.data.samples import Place, sample_id
from finetune.data.sources import Sources
from finetune.errors import DataFault, UserError


class Job(NamedTuple):
    """Samples of one shard and one bucket, which are encoded together."""

    set: int
    """Number of the set."""
    shard: int
    ordinals: list[int]
    """Places of the samples in their shard; none where none of the shard is needed."""
    last: bool
    """Whether it is the shard's last."""


class Decoded(NamedTuple):
    """The samples of a job."""

    job: Job
    pixels: Tensor | None
    """uint8 [n, 3, H, W] of those whose pictures can be used; None where there are none."""
    masks: list[Tensor | None]
    """Of these, as `Latents` has them."""
    labels: list[dict[str, bytes]]
    """Of all samples, as they are stored."""
    faults: list[str | None]
    """Of all samples, why a picture cannot be used, where that is so."""


class Pictures(Dataset[Decoded | UserError]):
    """Decodes the samples of a job, cut at the centre."""

    def __init__(self, data: DataConfig, sources: Sources, sets: Sequence[LatentSet], factor: int) -> None:
        """Keep what is decoded.

        Args:
            data: what the recipe says about backgrounds and masks.
            factor: pixels that a latent spans on each side.
        """
        self._data = data
        self._sources = sources
        self._sets = sets
        self._factor = factor

    def __getitem__(self, job: Job) -> Decoded | UserError:
        try:
            return self._decoded(job)
        except UserError as error:
            # Raised in a worker it would come out wrapped in that worker's traceback.
            return error

    def _decoded(self, job: Job) -> Decoded:
        pixels: list[Tensor] = []
        decoded = Decoded(job, None, [], [], [])
        for ordinal in job.ordinals:
            sample = sample_id(Place(self._sets[job.set].source, job.shard, ordinal))
            members = self._sources.members(sample, 0, whole_shard=True).data
            image, mask = members.pop(IMAGE), members.pop(MASK, None)
            decoded.labels.append(members)
            try:
                picture, counts = self._decode(image, mask, self._sets[job.set].size(job.shard, ordinal))
            except DataFault as fault:
                decoded.faults.append(str(fault))
                continue
            pixels.append(torch.from_numpy(picture))
            decoded.masks.append(None if counts is None else torch.from_numpy(area_sums(counts, self._factor)))
            decoded.faults.append(None)
        return decoded._replace(pixels=shared(pixels).permute(0, 3, 1, 2) if pixels else None)

    def _decode(
        self, image: bytes, mask: bytes | None, size: tuple[int, int]
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8] | None]:
        info = probe(image)
        crop = fit(info.width, info.height, *size, 0.5, 0.5)
        return load_picture(self._data, image, mask, info, crop, mirrored=False)
