"""What a recipe says about its data and its prompts. Imports nothing heavy, so that tools start fast."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from finetune.errors import UserError

TEXT_KINDS = ("auto", "tags", "caption")


@dataclass
class BucketsConfig:
    """Aspect buckets: the sizes to which pictures are scaled and cropped."""

    resolution_px: int = 512
    """Side of the square bucket; every bucket has at most this area."""
    max_side_px: int = 768
    """Longest side that a bucket may have."""
    step_px: int = 64
    """Both sides are multiples of this; a multiple of 8, the factor by which SD's VAE shrinks a picture."""

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


@dataclass
class DataConfig:
    """Where the samples come from and how pictures are cut."""

    shards: str = MISSING
    """Folder of webdataset shards with their `index.arrow`."""
    text: str = "auto"
    """What `.txt` members hold: auto, tags or caption."""
    buckets: BucketsConfig = field(default_factory=BucketsConfig)
    window_shards: int = 16
    """Samples are shuffled within windows of this many shards; more mixes better, fewer keeps reads closer together."""
    flip: float = 0.0
    """Probability of a horizontal flip."""
    random_crop: bool = False
    """Cut the bucket's window at a random place rather than at the centre."""
    background: list[int] = field(default_factory=lambda: [255, 255, 255])
    """RGB colour (0 to 255) on which transparent pictures are laid."""
    max_bad_share: float = 0.01
    """The run stops when more than this share of the samples drawn so far could not be used."""
    workers: int = 4
    """Loader processes per rank; 0 loads in the training process."""
    prefetch: int = 4
    """Micro-batches that every worker prepares ahead."""

    def __post_init__(self) -> None:
        if self.text not in TEXT_KINDS:
            raise UserError(f"data.text is {self.text!r}: use one of {', '.join(TEXT_KINDS)}")
        if len(self.background) != 3 or not all(0 <= c <= 255 for c in self.background):
            raise UserError(f"data.background is {list(self.background)}: give three numbers from 0 to 255")
        check_share("data.flip", self.flip)
        check_share("data.max_bad_share", self.max_bad_share)
        for name in ("window_shards", "prefetch"):
            if getattr(self, name) < 1:
                raise UserError(f"data.{name} is {getattr(self, name)}: use at least 1")
        if self.workers < 0:
            raise UserError(f"data.workers is {self.workers}: use 0 or more")


@dataclass
class CaptionsConfig:
    """How a sample's tags and captions become its prompt."""

    tags_weight: float = 1.0
    """Relative weight with which the tags are the prompt, where a sample has tags."""
    caption_weight: float = 1.0
    """Relative weight with which a caption is the prompt, where a sample has one."""
    shuffle_tags: bool = True
    """Draw the order of the tags anew each time."""
    tag_drop: float = 0.0
    """Probability with which each tag is left out."""
    drop: float = 0.1
    """Probability with which the whole prompt is emptied (for classifier-free guidance)."""
    separator: str = ", "
    """What stands between two tags."""

    def __post_init__(self) -> None:
        check_share("captions.tag_drop", self.tag_drop)
        check_share("captions.drop", self.drop)
        if min(self.tags_weight, self.caption_weight) < 0 or self.tags_weight + self.caption_weight == 0:
            raise UserError(
                f"captions.tags_weight is {self.tags_weight} and captions.caption_weight {self.caption_weight}: "
                "neither may be negative and one must be above 0"
            )


def check_share(name: str, value: float) -> None:
    """Raise UserError unless `value` lies in [0, 1]."""
    if not 0.0 <= value <= 1.0:
        raise UserError(f"{name} is {value}: use a number from 0 to 1")
