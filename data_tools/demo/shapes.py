"""Pictures of coloured shapes on coloured backgrounds, with tags and captions that name the colours."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from PIL import Image, ImageDraw

from finetune.data.hashing import CounterRng, purpose_key

PALETTE = {
    "red": (215, 35, 35),
    "green": (30, 160, 50),
    "blue": (35, 60, 215),
    "yellow": (240, 220, 40),
    "pink": (245, 130, 200),
    "cyan": (60, 210, 225),
    "black": (15, 15, 15),
    "white": (245, 245, 245),
}
SHAPES = ("circle", "square", "triangle")
SIZES_PX = ((96, 96), (120, 80), (80, 120), (128, 72), (72, 128))
HELD_OUT = 64
OVERSAMPLING = 3


@dataclass(frozen=True)
class Scene:
    """What a picture shows."""

    shape: str
    colour: str
    background: str

    @property
    def caption(self) -> str:
        """A sentence."""
        return f"a {self.colour} {self.shape} on a {self.background} background"

    @property
    def tags(self) -> list[str]:
        """The same in tags."""
        return [f"{self.colour} {self.shape}", f"{self.background} background"]


def scenes() -> tuple[list[Scene], list[Scene]]:
    """All combinations, shuffled: those that are drawn, and 64 that are only asked for afterwards."""
    every = [Scene(s, c, b) for s, c, b in product(SHAPES, PALETTE, PALETTE) if c != b]
    shuffled = CounterRng(purpose_key(0, "scenes")).shuffled(every)
    return shuffled[HELD_OUT:], shuffled[:HELD_OUT]


def check_prompts() -> Iterator[tuple[str, Scene]]:
    """One prompt for every scene that was held out, in turn as a caption and as tags."""
    for i, scene in enumerate(scenes()[1]):
        yield (scene.caption if i % 2 == 0 else ", ".join(scene.tags)), scene


def draw(scene: Scene, width: int, height: int, rng: CounterRng) -> Image.Image:
    """Draw a scene: the shape covers the picture's centre, its place, size and the shades vary a little."""
    big = Image.new("RGB", (width * OVERSAMPLING, height * OVERSAMPLING), _shade(scene.background, rng))
    short = min(big.size)
    radius = short * (0.3 + 0.12 * rng.uniform())
    x = big.width / 2 + short * 0.1 * (rng.uniform() - 0.5)
    y = big.height / 2 + short * 0.1 * (rng.uniform() - 0.5)
    ink, box = _shade(scene.colour, rng), (x - radius, y - radius, x + radius, y + radius)
    pen = ImageDraw.Draw(big)
    if scene.shape == "circle":
        pen.ellipse(box, fill=ink)
    elif scene.shape == "square":
        pen.rectangle(box, fill=ink)
    else:
        pen.polygon(
            [(x, y - 1.2 * radius), (x - 1.1 * radius, y + 0.8 * radius), (x + 1.1 * radius, y + 0.8 * radius)], ink
        )
    return big.resize((width, height), Image.Resampling.BOX)


def write_pictures(folder: Path, count: int) -> None:
    """Draw `count` pictures of the scenes that are not held out, each with a JSON side file of tags and caption."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn, _ = scenes()
    for i in range(count):
        rng = CounterRng(purpose_key(0, "pictures"), i)
        scene = drawn[rng.integer(len(drawn))]
        width, height = SIZES_PX[rng.integer(len(SIZES_PX))]
        draw(scene, width, height, rng).save(folder / f"{i:05d}.png")
        labels = {"tags": scene.tags, "caption": scene.caption}
        (folder / f"{i:05d}.json").write_text(json.dumps(labels), encoding="utf-8")


def _shade(colour: str, rng: CounterRng) -> tuple[int, int, int]:
    red, green, blue = (min(255, max(0, round(c + 20 * (rng.uniform() - 0.5)))) for c in PALETTE[colour])
    return red, green, blue
