"""What a recipe says about its samples: which pictures, and when."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import yaml  # type: ignore[import-untyped]

from finetune.errors import UserError

MAX_SEED = 2**32
ENTRY = "a text, or {prompt: …, seed: …, negative_prompt: …}"


class Prompt(NamedTuple):
    """What is asked for."""

    text: str
    seed: int
    """Of the noise that its pictures start from."""
    negative: str
    """What guidance leads away from."""


class Picture(NamedTuple):
    """All that a picture depends on beside the model."""

    prompt: Prompt
    width_px: int
    height_px: int
    guidance: float
    guidance_rescale: float
    steps: int


@dataclass
class SamplesConfig:
    """Grids of fixed prompts and seeds, one for each size: every prompt at every scale of guidance."""

    every_steps: int = 500
    """Optimizer steps between grids, beside one before the first step and one after the last; 0 counts no steps."""
    every_epochs: int = 0
    """Epochs between grids, which come at their end, beside those of `every_steps`; 0 counts no epochs. Where both are
    0 grids are drawn only when somebody asks for them (`runs ask RUN sample`)."""
    prompts: list[Any] = field(default_factory=list)
    """Each a text, or `{prompt: …, seed: …, negative_prompt: …}` where it has its own seed or negative prompt."""
    file: str | None = None
    """A YAML list of further prompts of the same kind, read anew for every grid; None has no others. Without any
    prompt nothing is drawn."""
    negative_prompt: str = ""
    """What guidance leads away from where a prompt has none of its own."""
    seed: int = 0
    """Prompt i, counted from 0, starts from the noise of seed + i, the same for every scale of guidance, unless it has
    a seed of its own."""
    steps: int = 30
    """Sampling steps."""
    sizes_px: list[list[int]] = field(default_factory=lambda: [[512, 512]])
    """Width and height of the pictures, for each grid; multiples of 8."""
    guidance: list[float] = field(default_factory=lambda: [7.0])
    """Scales of classifier-free guidance, each a column; 1 is none."""
    guidance_rescale: float = 0.7
    """How far the guided prediction is scaled back to its own deviation (arXiv 2305.08891, section 3.4)."""
    batch: int = 4
    """Pictures that a rank samples at a time, at most."""

    def __post_init__(self) -> None:
        if min(self.every_steps, self.every_epochs) < 0 or self.steps < 1 or self.batch < 1:
            raise UserError(
                "monitor.samples.every_steps and every_epochs must not be negative, monitor.samples.steps and batch at "
                "least 1"
            )
        if not 0 <= self.seed < MAX_SEED:
            raise UserError(f"monitor.samples.seed is {self.seed}: use a number from 0 to {MAX_SEED - 1}")
        self._check_sizes()
        if not self.guidance or not all(1 <= scale < math.inf for scale in self.guidance):
            raise UserError(f"monitor.samples.guidance is {self.guidance}: use one scale or more, each at least 1")
        parse_prompts(self.prompts, self, "monitor.samples.prompts")

    @property
    def draws(self) -> bool:
        """Whether any grid is asked for."""
        return bool(self.every_steps or self.every_epochs) and self.has_prompts

    @property
    def has_prompts(self) -> bool:
        """Whether there is anything that can be drawn."""
        return bool(self.prompts or self.file)

    def all_prompts(self) -> list[Prompt]:
        """The recipe's prompts, and those of its file as it is now.

        Raises:
            UserError: the file cannot be read, or holds something else.
        """
        own = parse_prompts(self.prompts, self, "monitor.samples.prompts")
        return own + parse_prompts(self._in_file(), self, f"monitor.samples.file {self.file}", first=len(own))

    def pictures(self, prompts: Sequence[Prompt]) -> list[Picture]:
        """What is drawn of some prompts: size by size, in each prompt by prompt, of each every scale of guidance."""
        return [
            Picture(prompt, width, height, scale, self.guidance_rescale, self.steps)
            for (width, height), prompt, scale in product(self.sizes_px, prompts, self.guidance)
        ]

    def _check_sizes(self) -> None:
        for i, size in enumerate(self.sizes_px):
            if len(size) != 2 or any(side < 8 or side % 8 for side in size):
                raise UserError(
                    f"monitor.samples.sizes_px asks for {size}: use [width, height], both positive multiples of 8"
                )
            if size in self.sizes_px[:i]:
                raise UserError(f"monitor.samples.sizes_px has {size} twice: name every size once")
        if not self.sizes_px:
            raise UserError("monitor.samples.sizes_px is empty: give [[width, height]]")

    def _in_file(self) -> list[Any]:
        if self.file is None:
            return []
        try:
            found = yaml.safe_load(Path(self.file).expanduser().read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is no text"
            raise UserError(f"monitor.samples.file {self.file} cannot be read ({why}): give a YAML file") from error
        except yaml.YAMLError as error:
            told = " ".join(str(error).split())
            raise UserError(f"monitor.samples.file {self.file} is no YAML: {told}") from error
        if not isinstance(found, list) or not found:
            raise UserError(f"monitor.samples.file {self.file} holds no list: begin every prompt with a dash")
        return found


def parse_prompts(entries: Sequence[Any], config: SamplesConfig, where: str, first: int = 0) -> list[Prompt]:
    """A list of prompts as it stands in a recipe or a file.

    Args:
        config: what holds where an entry says nothing else.
        where: of the list, for messages.
        first: place of the first entry among all prompts of the recipe.

    Raises:
        UserError: an entry is something else.
    """
    return [_parsed(entry, config, f"{where}[{i}]", config.seed + first + i) for i, entry in enumerate(entries)]


def _parsed(entry: Any, config: SamplesConfig, where: str, seed: int) -> Prompt:
    given = {"prompt": entry} if isinstance(entry, str) else entry
    if not isinstance(given, Mapping) or "prompt" not in given:
        raise UserError(f"{where} is {entry!r}: give {ENTRY}, and quotes around a text that looks like a number")
    settings = {"seed": None, "negative_prompt": config.negative_prompt, **given}
    if unknown := settings.keys() - {"prompt", "seed", "negative_prompt"}:
        raise UserError(f"{where} has no setting {min(unknown, key=str)}: give {ENTRY}")
    text, own_seed, negative = settings["prompt"], settings["seed"], settings["negative_prompt"]
    if not (isinstance(text, str) and isinstance(negative, str)):
        raise UserError(f"{where}: prompt and negative_prompt have to be texts: put them in quotes")
    if own_seed is None:
        own_seed = seed
    elif type(own_seed) is not int or not 0 <= own_seed < MAX_SEED:
        raise UserError(f"{where}.seed is {own_seed!r}: use a number from 0 to {MAX_SEED - 1}")
    return Prompt(text, own_seed, negative)
