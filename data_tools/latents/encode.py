"""Encoding: loader processes decode the pictures, this one encodes them, and other processes may do the same beside
it."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from data_tools.indexing import Part
from data_tools.latents.decode import Decoded, Job, Pictures
from data_tools.latents.sets import LatentSet, sets_of
from data_tools.latents.shard import ShardWriter
from data_tools.progress import progress
from finetune.config import Config, plan_settings
from finetune.data.buckets import NONE
from finetune.data.index import IMAGE
from finetune.data.latent_sets import Making
from finetune.data.latents import DTYPES, pack, pack_fault
from finetune.data.loader import open_loader
from finetune.data.prepare import DataSet
from finetune.distributed.runtime import autocast
from finetune.errors import UserError
from finetune.model.families import load_one
from finetune.model.vae import encoder_hash, encoding_precision, pixel_moments, vae_factor


@dataclass(frozen=True)
class Outcome:
    """What has come of a set."""

    folder: Path
    shards: int
    left: int
    """Shards that are not encoded yet, as other processes do that."""
    samples: int
    faults: int
    """Samples whose pictures cannot be used."""
    size: int
    """Bytes."""


class Work:
    """The jobs of this process: a shard that no other has is claimed when one is wanted."""

    def __init__(self, sets: Sequence[LatentSet]) -> None:
        self._sets = sets
        self.claimed: dict[tuple[int, int], ShardWriter] = {}
        """By (set, shard)."""
        self.total = sum(int(np.count_nonzero(of.buckets != NONE)) for of in sets)
        """Pictures that there are to encode."""
        self.done = 0
        """Those that are encoded, as far as this process knows."""

    def __iter__(self) -> Iterator[Job]:
        waiting = [(number, shard) for number, of in enumerate(self._sets) for shard in range(len(of.index.shards))]
        while waiting:
            left = []
            for number, shard in waiting:
                if part := self._sets[number].part(shard):
                    self.done += stored_samples(part)
                elif writer := self._sets[number].claim(shard):
                    self.claimed[number, shard] = writer
                    yield from self._jobs(number, shard)
                else:
                    left.append((number, shard))
            # What others had may be free again, if they were killed; when nothing is, they are at work.
            waiting = left if len(left) < len(waiting) else []

    def _jobs(self, number: int, shard: int) -> Iterator[Job]:
        batches = list(self._sets[number].batches(shard)) or [[]]
        for i, ordinals in enumerate(batches, 1):
            yield Job(number, shard, ordinals, last=i == len(batches))


class Encoder:
    """A VAE on a device, in the precision in which training would encode."""

    def __init__(self, vae: AutoencoderKL, device: torch.device, precision: str, dtype: str) -> None:
        self._vae = vae.to(device).eval().requires_grad_(False)
        self._device = device
        self._precision = encoding_precision(autocast(device, precision))
        self._dtype = DTYPES[dtype]

    def __call__(self, pixels: Tensor) -> Tensor:
        """The moments of pictures (uint8 [n, 3, H, W]), on the CPU. Raises UserError where the type that is stored
        cannot hold them."""
        with self._precision:
            moments = pixel_moments(self._vae, pixels.to(self._device, non_blocking=True)).to(self._dtype).cpu()
        if not torch.isfinite(moments).all():
            raise UserError(
                f"the VAE gives moments that {self._dtype} cannot hold: use --dtype bf16 or strategy.precision=fp32, "
                "and check model.path"
            )
        return moments


def encode(config: Config, kept: Path, dtype: str) -> list[Outcome]:
    """Encode what other processes do not.

    Args:
        kept: folder for copies of overlays.
        dtype: of the moments that are stored.

    Raises:
        UserError: the data cannot be used, or the folder holds latents that were made otherwise.
    """
    data = replace(config.data, latents=None)
    dataset = DataSet(data, plan_settings(config), kept)
    journal = dataset.began()
    sources = dataset.sources(journal)
    sources.verify()
    vae = load_one(config.model, "vae", torch.float32)
    assert isinstance(vae, AutoencoderKL)
    precision = "fp32" if config.strategy.precision == "fp16" else config.strategy.precision
    making = Making(encoder_hash(vae), dtype, precision, mirrored=data.flip > 0)
    sets = sets_of(config, dataset.plan(journal), sources, making)
    for latents in sets:
        latents.begin()
    work = Work(sets)
    pictures, device = Pictures(data, sources, sets, vae_factor(vae)), own_device()
    # Processes are forked before the GPU is used.
    batches = open_loader(pictures, data, pin=device.type == "cuda", order=work)
    encoder = Encoder(vae, device, precision, dtype)
    with progress("encoding pictures", work.total) as tell:
        for decoded in batches:
            number, shard = decoded.job.set, decoded.job.shard
            write(decoded, sets[number], encoder, work.claimed[number, shard])
            if decoded.job.last:
                work.claimed.pop((number, shard)).finish()
            work.done += len(decoded.job.ordinals)
            tell(work.done)
        tell(work.done)
    return [finished(latents) for latents in sets]


def write(decoded: Decoded, latents: LatentSet, encoder: Encoder, writer: ShardWriter) -> None:
    """Encode the samples of a job, and write them to their shard."""
    moments = mirrored = iter(())
    if decoded.pixels is not None:
        moments = iter(encoder(decoded.pixels))
        mirrored = iter(encoder(decoded.pixels.flip(-1))) if latents.making.mirrored else mirrored
    masks = iter(decoded.masks)
    for ordinal, labels, fault in zip(decoded.job.ordinals, decoded.labels, decoded.faults, strict=True):
        stored = pack(next(moments), next(mirrored, None), next(masks)) if fault is None else pack_fault(fault)
        size = latents.size(decoded.job.shard, ordinal)
        writer.add(ordinal, size, {IMAGE: stored, **labels}, fault)


def finished(latents: LatentSet) -> Outcome:
    """What has come of a set; its index is written where nothing is left to do."""
    found = [latents.part(shard) for shard in range(len(latents.index.shards))]
    parts = [part for part in found if part is not None]
    if len(parts) == len(found):
        latents.write_index(parts)
    return Outcome(
        latents.folder,
        shards=len(parts),
        left=len(found) - len(parts),
        samples=sum(stored_samples(part) for part in parts),
        faults=sum(len(part.refused) for part in parts),
        size=sum(part.shard.size for part in parts),
    )


def stored_samples(part: Part) -> int:
    """Samples of a shard that are in some bucket."""
    return int(np.count_nonzero(part.table["width"].to_numpy()))


def own_device() -> torch.device:
    """The GPU that a launcher means for this process, or the first, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    torch.cuda.set_device(device)  # or what pins memory would take some of the first
    return device
