"""The loss on samples that are never trained: always the same ones, at the same timesteps and with the same noise, so
that two numbers differ by what the model has learned and by nothing else."""

from collections.abc import Callable, Iterator
from statistics import fmean
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from finetune.data.batch import Batch
from finetune.data.buckets import I64
from finetune.data.hashing import U64, hash_counters, purpose_key, to_unit
from finetune.data.held_out import hash_keys
from finetune.data.loader import MicroBatches
from finetune.data.plan import MicroBatch, Plan
from finetune.data.samples import rows_of_ids, sources_of_ids
from finetune.data.sources import Sources
from finetune.diffusion.objective import DECILES
from finetune.errors import UserError

REPEAT = 1 << 40
"""The repeat by which choices are made for a sample that is validated, which no draw of training has."""
WARMED_UP = 1 << 40
"""The step for which prompts are drawn: one after every warm-up."""
TIMESTEP_KEY = purpose_key(0, "validation timestep")
ASPECTS = ("tall", "square", "wide")


class Ranks(Protocol):
    """What has to be known of the processes."""

    rank: int
    world: int

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, on every rank."""


class Fixed(NamedTuple):
    """A micro-batch to be validated."""

    micro_batch: MicroBatch
    deciles: I64
    """Of the timesteps, of every sample: int64 [m]."""
    timesteps: I64
    """int64 [m]"""


class Outcome(NamedTuple):
    """A sample's error."""

    sample: int
    decile: int
    aspect: str
    error: float


def choose(plan: Plan, sources: Sources, epoch: int, count: int, timesteps: int) -> list[Fixed]:
    """At most `count` of the samples held out, those with the lowest hashes of their keys, in micro-batches of the
    epoch's buckets. Sample i has a timestep of its own in the decile i modulo 10.

    Args:
        timesteps: number of diffusion timesteps.

    Raises:
        UserError: none is held out, or none in a bucket that is trained.
    """
    chapter = plan.chapter(epoch)
    ids, buckets = chapter.layout.held_out()
    lowest = np.lexsort((ids, _hashes(sources, ids)))[:count]
    ids, buckets = ids[lowest], buckets[lowest] + chapter.first_bucket
    deciles = np.arange(len(ids)) % DECILES
    drawn = (deciles + to_unit(hash_counters(TIMESTEP_KEY, ids))) / DECILES * timesteps
    if not len(ids):
        raise UserError(
            f"data.held_out holds out no sample that epoch {epoch} could validate: raise it, or set it to 0"
        )
    chosen: list[Fixed] = []
    for bucket in np.unique(buckets).tolist():
        members = np.flatnonzero(buckets == bucket)
        for first in range(0, len(members), chapter.micro_batch):
            part = members[first : first + chapter.micro_batch]
            same = np.zeros(len(part), dtype=np.int64)
            micro_batch = MicroBatch(bucket, ids[part], same, same + REPEAT, 0, (epoch, 0))
            chosen.append(Fixed(micro_batch, deciles[part], drawn[part].astype(np.int64)))
    return chosen


def _hashes(sources: Sources, ids: U64) -> U64:
    """The hash of every sample's key: uint64 [samples]."""
    hashes = np.zeros(len(ids), dtype=np.uint64)
    for number, source in enumerate(sources.all):
        own = np.flatnonzero(sources_of_ids(ids) == number)
        hashes[own] = hash_keys(source.index.keys.take(rows_of_ids(ids[own], source.index.first_rows)))
    return hashes


def validate(
    chosen: list[Fixed], batches: MicroBatches, errors: Callable[[Batch], Tensor], ranks: Ranks
) -> dict[str, Any]:
    """The loss on the samples chosen; every rank takes its share of the micro-batches, and all get the same.

    Args:
        batches: prepares them.
        errors: gives the error of every sample of a batch: float32 [m].

    Raises:
        UserError: none can be read.
    """
    own = list(outcomes(chosen[ranks.rank :: ranks.world], batches, errors))
    found = [outcome for outcomes in ranks.gather(own) for outcome in outcomes]
    if not found:
        raise UserError("none of the samples held out can be read: check the shards, or set data.held_out to 0")
    return summary(found)


def outcomes(chosen: list[Fixed], batches: MicroBatches, errors: Callable[[Batch], Tensor]) -> Iterator[Outcome]:
    """The errors of some micro-batches' samples, but of those that cannot be read."""
    for fixed in chosen:
        batch = batches.prepare(WARMED_UP, fixed.micro_batch, fixed.timesteps)
        with torch.no_grad():
            found = errors(batch).tolist()
        unread = {bad.sample for bad in batch.bad}
        aspect = _aspect(batch)
        for sample, decile, error in zip(
            fixed.micro_batch.samples.tolist(), fixed.deciles.tolist(), found, strict=True
        ):
            if sample not in unread:
                yield Outcome(sample, decile, aspect, error)


def summary(found: list[Outcome]) -> dict[str, Any]:
    """What outcomes come to, whoever found them in which order: their mean loss, by decile of the timesteps (the first
    the least noisy) and by aspect."""
    ordered = sorted(found)
    deciles = [[one.error for one in ordered if one.decile == decile] for decile in range(DECILES)]
    aspects = {aspect: [one.error for one in ordered if one.aspect == aspect] for aspect in ASPECTS}
    return {
        "loss": _mean([one.error for one in ordered]),
        "by_decile": [_mean(errors) for errors in deciles],
        "by_aspect": {aspect: _mean(errors) for aspect, errors in aspects.items()},
        "samples": len(ordered),
    }


def _mean(errors: list[float]) -> float | None:
    return fmean(errors) if errors else None


def _aspect(batch: Batch) -> str:
    width, height = batch.size
    return "square" if height == width else "tall" if height > width else "wide"
