"""Draws schedules.png: `python docs/make_schedule_plot.py`; with --check it only compares what would be drawn."""

import hashlib
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from PIL import Image

from finetune.optim.config import ScheduleConfig
from finetune.optim.schedules import rate_factor

PICTURE = Path(__file__).with_name("schedules.png")
STEPS, LR = 1000, 1e-5
PANELS = {
    "constant, warmup_steps: 100": ScheduleConfig("constant", 100),
    "linear, warmup_steps: 100": ScheduleConfig("linear", 100),
    "cosine, cycles: 3, final_factor: 0.1": ScheduleConfig("cosine", cycles=3, final_factor=0.1),
    "polynomial, power: 2": ScheduleConfig("polynomial", power=2.0),
    "wsd, decay_share: 0.2, warmup_steps: 100": ScheduleConfig("wsd", 100),
    'steps: "1e-5:300, 5e-6:600, 1e-6"': ScheduleConfig("steps", steps="1e-5:300, 5e-6:600, 1e-6"),
}
STAMP = "Curves"
"""The text in the picture's file that tells what it was drawn from: pictures differ by matplotlib's version."""


def curves() -> dict[str, list[float]]:
    """The factor at every step, by panel."""
    return {
        title: [rate_factor(config, LR, step, STEPS) for step in range(STEPS + 1)] for title, config in PANELS.items()
    }


def stamp(found: dict[str, list[float]]) -> str:
    """A hash of the curves to six digits."""
    rows = [f"{title} {' '.join(f'{factor:.5e}' for factor in factors)}" for title, factors in found.items()]
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def draw(found: dict[str, list[float]]) -> None:
    """A panel for each schedule."""
    figure, grid = plt.subplots(2, 3, figsize=(12, 4.5), sharex=True, sharey=True, layout="constrained")
    for panel, (title, factors) in zip(grid.flat, found.items(), strict=True):
        panel.plot(factors, linewidth=1.5)
        panel.set_title(title, fontsize="medium")
        panel.set(ylim=(0, 1.05), xlim=(0, STEPS))
        panel.grid(alpha=0.3)
    for row in grid:
        row[0].set_ylabel("factor on the rate")
    for panel in grid[-1]:
        panel.set_xlabel(f"step of {STEPS:,}")
    figure.savefig(PICTURE, dpi=100, metadata={STAMP: stamp(found)})


def main() -> None:
    """Draw, or say that the picture is out of date."""
    found = curves()
    if "--check" in sys.argv:
        with Image.open(PICTURE) as picture:
            fresh = picture.info.get(STAMP) == stamp(found)
        sys.exit(0 if fresh else f"{PICTURE} is out of date: run python {Path(__file__).name}")
    draw(found)


if __name__ == "__main__":
    main()
