"""Draws schedules.png: `python docs/make_schedule_plot.py`; with --check it only compares what would be drawn."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from pictures import draw_or_check

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


def curves() -> dict[str, list[float]]:
    """The factor at every step, by panel."""
    return {
        title: [rate_factor(config, LR, step, STEPS) for step in range(STEPS + 1)] for title, config in PANELS.items()
    }


def draw(found: Mapping[str, Sequence[float]]) -> Figure:
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
    return figure


if __name__ == "__main__":
    draw_or_check(PICTURE, curves(), draw)
