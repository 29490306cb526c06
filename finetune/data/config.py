"""What a recipe says about its data and its prompts. Imports nothing heavy, so that tools start fast."""

import re
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from finetune.checks import check_choice, check_not_negative, check_share
from finetune.errors import UserError

TEXT_KINDS = ("auto", "tags", "caption")
MASK_KINDS = ("none", "alpha", "member")
OVERLAY_MODES = ("replace", "add")
ON_CHANGE = ("refuse", "next_epoch")
SOURCE_NAME = re.compile(r"[\w-]+")
MAX_SOURCES = 256
MAX_REPEATS = 1000


@dataclass
class BucketsConfig:
    """Aspect buckets: the sizes to which pictures are scaled and cropped."""

    resolution_px: int = 512
    """Side of the square bucket; every bucket has at most this area."""
    max_side_px: int = 768
    """Longest side that a bucket may have."""
    step_px: int = 64
    """Both sides are multiples of this; a multiple of 8, the factor by which SD's VAE shrinks a picture."""
    sizes_px: list[list[int]] = field(default_factory=list)
    """Explicit buckets as [width, height] in place of those that follow from the three settings above."""
    no_upscale: bool = False
    """A picture too small for the bucket of its aspect goes into a smaller one of its own size, in steps of step_px."""
    min_image_px: int = 0
    """Pictures whose shorter side is below this are left out."""

    def __post_init__(self) -> None:
        if self.step_px <= 0 or self.step_px % 8:
            raise UserError(f"data.buckets.step_px is {self.step_px}: use a positive multiple of 8")
        if self.resolution_px < self.step_px:
            raise UserError(
                f"data.buckets.resolution_px is {self.resolution_px}, below step_px ({self.step_px}): "
                "raise the resolution or lower the step"
            )
        if self.max_side_px < self.resolution_px:
            raise UserError(
                f"data.buckets.max_side_px is {self.max_side_px}, below resolution_px ({self.resolution_px}): "
                "raise it to at least the resolution"
            )
        for size in self.sizes_px:
            if len(size) != 2 or min(size) <= 0 or any(side % 8 for side in size):
                raise UserError(f"data.buckets.sizes_px has {list(size)}: give [width, height] in multiples of 8")
        if self.min_image_px < 0:
            raise UserError(f"data.buckets.min_image_px is {self.min_image_px}: use 0 or more")


@dataclass
class OverlayConfig:
    """A table of labels that stands over what a source holds, so that a data set improves without being rewritten."""

    path: str | None = None
    """Parquet or JSONL file with a column `key` or `id` and any of tags, caption, score and exclude; a changed file is
    taken in at the next epoch's border."""
    mode: str = "replace"
    """replace puts its tags and captions in place of the stored ones wherever it has any; add appends them."""
    min_score: float | None = None
    """Samples whose score is below this are left out."""

    def __post_init__(self) -> None:
        check_choice("overlay.mode", self.mode, OVERLAY_MODES)


@dataclass
class SourceConfig:
    """One set of samples among several."""

    path: str = MISSING
    """Folder, or URL of a folder, that holds an `index.arrow`."""
    repeats: float = 1.0
    """How often each sample is drawn per epoch; 0.5 draws every other one, the rest the epoch after."""
    captions: dict[str, Any] = field(default_factory=dict)
    """What differs from the recipe's `captions` for this source."""
    loss_weight: float = 1.0
    """Weight of these samples in the loss, for regularisation images (prior preservation)."""
    overlay: OverlayConfig = field(default_factory=OverlayConfig)

    def __post_init__(self) -> None:
        if not 1 / MAX_REPEATS <= self.repeats <= MAX_REPEATS:
            raise UserError(f"a source's repeats is {self.repeats}: use {1 / MAX_REPEATS} to {MAX_REPEATS}")
        check_not_negative("a source's loss_weight", self.loss_weight)


@dataclass
class CacheConfig:
    """Where shards that lie elsewhere (http, S3, …) are kept while they are needed."""

    folder: str = "~/.cache/longhaul"
    """Local folder, shared by all ranks and runs of a node."""
    size_gib: float = 100.0
    """At most this much is kept; what was used longest ago goes first."""
    windows_ahead: int = 1
    """Shuffling windows that are fetched ahead of the one being trained."""
    downloads: int = 4
    """Shards that a node fetches at the same time."""
    timeout_s: float = 30.0
    """A request that has been silent for this long is given up and tried again."""
    alert_after_s: float = 60.0
    """When data cannot be read for this long, the run counts as paused and says so."""

    def __post_init__(self) -> None:
        for name in ("size_gib", "timeout_s", "alert_after_s"):
            if getattr(self, name) <= 0:
                raise UserError(f"data.cache.{name} is {getattr(self, name)}: use a number above 0")
        if self.windows_ahead < 0 or self.downloads < 1:
            raise UserError("data.cache.windows_ahead must not be negative and data.cache.downloads at least 1")


@dataclass
class DataConfig:
    """Where the samples come from and how pictures are cut."""

    shards: str | None = None
    """Folder, or URL of a folder, that holds an `index.arrow`: short for a single entry in `sources`."""
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    """Several sets of samples by name, mixed in proportion."""
    text: str = "auto"
    """What `.txt` members hold: auto, tags or caption."""
    buckets: BucketsConfig = field(default_factory=BucketsConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    latents: str | None = None
    """Folder, or URL of one, that holds what `python -m data_tools latents` has made of the pictures, to be read in
    their place; see latents.md."""
    window_shards: int = 16
    """Samples are shuffled within windows of this many shards; more mixes better, fewer keeps reads closer together."""
    exclude: str | None = None
    """File of keys, one a line, of samples that are replaced from the next start on; `id:N` means sample id N."""
    on_change: str = "refuse"
    """What happens when an index has grown since the run began: refuse, or next_epoch, which takes it in then."""
    flip: float = 0.0
    """Probability of a horizontal flip."""
    random_crop: bool = False
    """Cut the bucket's window at a random place rather than at the centre."""
    background: list[int] = field(default_factory=lambda: [255, 255, 255])
    """RGB colour (0 to 255) on which transparent pictures are laid."""
    mask: str = "none"
    """How much each pixel counts in the loss: none (all alike), alpha (as much as it is opaque) or member (as a grey
    picture `KEY.mask.png` beside it says: white fully, black not at all). Where a sample has no mask, all counts."""
    held_out: float = 0.0
    """Share of the samples that is never trained, for validation; a hash of its key decides for each."""
    max_bad_share: float = 0.01
    """The run stops when more than this share of the samples drawn so far could not be used."""
    workers: int = 4
    """Loader processes per rank; 0 loads in the training process."""
    prefetch: int = 4
    """Micro-batches that every worker prepares ahead."""

    def __post_init__(self) -> None:
        check_choice("data.text", self.text, TEXT_KINDS)
        check_choice("data.on_change", self.on_change, ON_CHANGE)
        check_choice("data.mask", self.mask, MASK_KINDS)
        if len(self.background) != 3 or not all(0 <= c <= 255 for c in self.background):
            raise UserError(f"data.background is {list(self.background)}: give three numbers from 0 to 255")
        check_share("data.flip", self.flip)
        check_share("data.max_bad_share", self.max_bad_share)
        if self.latents and self.random_crop:
            raise UserError(
                "data.latents is given, and data.random_crop=true cuts pictures anew at every draw, which cannot be "
                "encoded beforehand: set data.random_crop=false, or leave data.latents out"
            )
        if not 0.0 <= self.held_out <= 0.5:
            raise UserError(f"data.held_out is {self.held_out}: use a share from 0 to 0.5")
        for name in ("window_shards", "prefetch"):
            if getattr(self, name) < 1:
                raise UserError(f"data.{name} is {getattr(self, name)}: use at least 1")
        if self.workers < 0:
            raise UserError(f"data.workers is {self.workers}: use 0 or more")
        if self.shards and self.sources:
            raise UserError("data.shards and data.sources are both given: move the first into the second")
        for name in self.sources:
            if not SOURCE_NAME.fullmatch(name):
                raise UserError(f"data.sources has the name {name!r}: use letters, digits, '-' and '_' only")
        if len(self.sources) > MAX_SOURCES:
            raise UserError(f"data.sources has {len(self.sources)} entries: use at most {MAX_SOURCES}")

    @property
    def all_sources(self) -> dict[str, SourceConfig]:
        """The sources by name, where `shards` stands for one of them. Raises UserError where there is none."""
        if not self.shards and not self.sources:
            raise UserError("data.shards is not set: give it in the recipe or as data.shards=… on the command line")
        return self.sources or {"shards": SourceConfig(path=str(self.shards))}
