"""What the two axes of a table of pictures are, and so what stands in each of its cells."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from finetune.checkpoint.manifest import readable
from finetune.checks import check_choice
from finetune.config import Config
from finetune.errors import UserError
from finetune.monitor.samples.config import Picture
from finetune.runs.checkpoints import CHECKPOINTS, find

LABELS: dict[str, Callable[[Any], str]] = {
    "step": lambda step: f"step {step:,}",
    "prompt": lambda prompt: str(prompt.text),
    "guidance": lambda scale: f"guidance {scale:g}",
    "seed": lambda seed: f"seed {seed}",
    "steps": lambda steps: f"{steps} sampling steps",
}
"""The axes that there are, and what stands at a value of each."""
NUMBERS: dict[str, type[int] | type[float]] = {"step": int, "guidance": float, "seed": int, "steps": int}
SEEDS = 4
"""Of an axis of seeds that names none."""


class Axis(NamedTuple):
    """One side of a table."""

    name: str
    values: Sequence[Any]

    @property
    def labels(self) -> list[str]:
        """What stands at each value."""
        return [LABELS[self.name](value) for value in self.values]


@dataclass(frozen=True)
class Table:
    """What is to be sampled."""

    x: Axis
    y: Axis
    fixed: dict[str, Any]
    """What is neither axis, by its name, alike in all cells; a seed of None is each prompt's own."""
    size_px: tuple[int, int]
    """Width and height."""
    guidance_rescale: float

    @property
    def cells(self) -> list[tuple[int, Picture]]:
        """The checkpoint's step and the picture of every cell, row by row."""
        return [self._cell({self.x.name: x, self.y.name: y}) for y in self.y.values for x in self.x.values]

    @property
    def remark(self) -> str:
        """What all cells have in common."""
        told = [LABELS[name](value) for name, value in self.fixed.items() if value is not None]
        return ", ".join([*told, f"{self.size_px[0]}×{self.size_px[1]} px"])

    def _cell(self, given: dict[str, Any]) -> tuple[int, Picture]:
        what = self.fixed | given
        prompt = what["prompt"] if what["seed"] is None else what["prompt"]._replace(seed=what["seed"])
        return what["step"], Picture(prompt, *self.size_px, what["guidance"], self.guidance_rescale, what["steps"])


def read_table(run: Path, config: Config, x: str, y: str, at: Sequence[str], size: str | None) -> Table:
    """The table that the command line asks for; what it leaves open is as the recipe has it.

    Args:
        x: AXIS or AXIS=VALUES; likewise y.
        at: each AXIS=VALUE.
        size: as 512x768; None takes the recipe's first.

    Raises:
        UserError: an axis or a value is none, or there is no such checkpoint.
    """
    choices = _Choices(run, config)
    axes = [_split(text) for text in (x, y)]
    if axes[0][0] == axes[1][0]:
        raise UserError(f"--x and --y are both {axes[0][0]}: give two different ones of {', '.join(LABELS)}")
    x_axis, y_axis = (Axis(name, choices.read(name, text) if text else choices.every(name)) for name, text in axes)
    fixed = {}
    for name, text in map(_split, at):
        values = choices.read(name, text) if text else []
        if len(values) != 1:
            raise UserError(f"--at {name} has {len(values)} values: give one, as --at {name}=…")
        fixed[name] = values[0]
    if doubled := fixed.keys() & {x_axis.name, y_axis.name}:
        raise UserError(f"--at {min(doubled)}: it is an axis already; leave out one of the two")
    for name in LABELS.keys() - {x_axis.name, y_axis.name, *fixed}:
        fixed[name] = choices.usual(name)
    fixed = {name: fixed[name] for name in LABELS if name in fixed}
    return Table(x_axis, y_axis, fixed, choices.size(size), config.monitor.samples.guidance_rescale)


def _split(text: str) -> tuple[str, str]:
    """An axis's name and values."""
    name, _, values = text.partition("=")
    check_choice("an axis", name, tuple(LABELS))
    return name, values


class _Choices:
    """The values that an axis may have for a run."""

    def __init__(self, run: Path, config: Config) -> None:
        self._run = run
        self._samples = config.monitor.samples
        self._timesteps = config.diffusion.timesteps

    def read(self, name: str, text: str) -> list[Any]:
        """The values that a text names: prompts with | between them, numbers with commas."""
        if name == "prompt":
            prompts = [prompt.strip() for prompt in text.split("|")]
            return replace(self._samples, prompts=prompts, file=None).all_prompts()
        try:
            values = [NUMBERS[name](number) for number in text.split(",")]
        except ValueError as error:
            raise UserError(f"{name}={text}: give numbers with commas between them, as {name}=1,2") from error
        for value in values:
            self._check(name, value)
        return values

    def every(self, name: str) -> list[Any]:
        """The values of an axis that names none."""
        samples = self._samples
        match name:
            case "step":
                return [checkpoint.step for checkpoint in readable(self._run / CHECKPOINTS)] or [self.usual("step")]
            case "prompt":
                return samples.all_prompts() or [self.usual("prompt")]
            case "guidance":
                return samples.guidance
            case "seed":
                return [samples.seed + i for i in range(SEEDS)]
            case _:
                return sorted({max(1, samples.steps // 2), samples.steps, min(2 * samples.steps, self._timesteps)})

    def usual(self, name: str) -> Any:
        """The value of what is no axis."""
        match name:
            case "step":
                return find(self._run, None).step
            case "prompt":
                if not (prompts := self._samples.all_prompts()):
                    raise UserError("the run's recipe has no prompts: give some, as --y 'prompt=a fox|a cat'")
                return prompts[0]
            case "guidance":
                return self._samples.guidance[0]
            case "seed":
                return None
            case _:
                return self._samples.steps

    def size(self, text: str | None) -> tuple[int, int]:
        """Width and height."""
        try:
            sides = [int(side) for side in text.split("x")] if text else self._samples.sizes_px[0]
        except ValueError as error:
            raise UserError(f"--size {text}: give width and height, as 512x768") from error
        (size,) = replace(self._samples, sizes_px=[sides]).sizes_px
        return size[0], size[1]

    def _check(self, name: str, value: Any) -> None:
        match name:
            case "step":
                find(self._run, value)
            case "guidance":
                replace(self._samples, guidance=[value])
            case "seed":
                replace(self._samples, seed=value)
            case _:
                replace(self._samples, steps=value)
                if value > self._timesteps:
                    raise UserError(f"steps={value} is more than the {self._timesteps} timesteps there are: lower it")
