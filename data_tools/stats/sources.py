"""A recipe's sources as a run that begins now would have them: with their samples in their buckets."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from finetune.config import Config, plan_settings
from finetune.data.buckets import I64, NONE, assign_buckets
from finetune.data.config import BucketsConfig, SourceConfig
from finetune.data.journal import Journal
from finetune.data.layout import SourceSamples
from finetune.data.prepare import DataSet
from finetune.data.samples import place_of
from finetune.data.sources import Source

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class OpenSource:
    """A source with its samples in their buckets, as in the first epoch."""

    stored: Source
    config: SourceConfig
    samples: SourceSamples
    excluded: I64
    """Rows that `data.exclude` names."""
    sizes: BucketsConfig
    """What the buckets follow from."""

    def trained(self) -> I64:
        """Rows of the samples that are trained: int64 [samples]."""
        trained = self.samples.buckets != NONE
        trained[self.excluded] = False
        return np.flatnonzero(trained)

    def left_out(self, rows: I64) -> dict[str, Bools]:
        """Which of some rows are left out, by the reason, of which several may hold: bool [rows]."""
        index, overlay, held = self.stored.index, self.stored.overlay(0), self.samples.held_out
        limits, none = self.sizes, np.zeros(len(rows), dtype=bool)
        width, height = index.width[rows], index.height[rows]
        return {
            f"shorter side below min_image_px ({limits.min_image_px})": np.minimum(width, height) < limits.min_image_px,
            "left out by the overlay": np.isin(rows, overlay.left_out) if overlay else none,
            "held out for validation": np.isin(rows, held.rows) if held else none,
            "named in data.exclude": np.isin(rows, self.excluded),
            "too small for every bucket without upscaling": assign_buckets(width, height, limits) == NONE,
            "in a rare bucket, and too small for those that are kept": self.samples.buckets[rows] == NONE,
        }


def open_sources(config: Config, kept: Path) -> list[OpenSource]:
    """All sources of a recipe.

    Args:
        kept: folder for copies of overlays, which has to stay as long as the sources are used.

    Raises:
        UserError: the data cannot be opened, or are fewer than a micro-batch.
    """
    dataset = DataSet(config.data, plan_settings(config), kept)
    return sources_of(dataset, dataset.began())


def sources_of(dataset: DataSet, journal: Journal) -> list[OpenSource]:
    """The sources of a data set as its journal begins."""
    excluded = [place_of(sample) for sample in journal.excluded(0)]
    described = dataset.data.all_sources.values()
    shape = dataset.settings.shapes[0]
    bucketed = dataset.bucketed(journal.editions[0], shape)
    opened = []
    for source, asked, samples in zip(dataset.sources(journal).all, described, bucketed, strict=True):
        shards = source.index.shards
        own = [place for place in excluded if place.source == samples.number and place.shard < len(shards)]
        rows = [source.row(place) for place in own if place.ordinal < shards[place.shard].samples]
        opened.append(OpenSource(source, asked, samples, np.array(rows, dtype=np.int64), shape.buckets))
    return opened
