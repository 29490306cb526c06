"""Draws weights.png: `python docs/make_objective_plot.py`; with --check it only compares what would be drawn."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from pictures import draw_or_check

from finetune.diffusion.config import WEIGHTINGS, DiffusionConfig
from finetune.diffusion.schedule import Schedule
from finetune.diffusion.weighting import timestep_weights

PICTURE = Path(__file__).with_name("weights.png")
PREDICTIONS = {"epsilon": "epsilon-prediction", "v": "v-prediction", "x0": "x0-prediction"}
LOWEST = 1e-4


def curves() -> dict[str, list[float]]:
    """The weight of every timestep by "prediction weighting"; epsilon without zero terminal SNR."""
    found = {}
    for prediction in PREDICTIONS:
        for weighting in WEIGHTINGS:
            config = DiffusionConfig(
                prediction=prediction,
                weighting=weighting,
                snr_gamma=5.0,
                zero_terminal_snr=prediction != "epsilon",
            )
            found[f"{prediction} {weighting}"] = timestep_weights(Schedule(config).snr, config).tolist()
    return found


def draw(found: Mapping[str, Sequence[float]]) -> Figure:
    """A panel for each prediction, a line for each weighting."""
    figure, panels = plt.subplots(1, 3, figsize=(12, 3.6), sharey=True, layout="constrained")
    for panel, (prediction, title) in zip(panels, PREDICTIONS.items(), strict=True):
        for weighting in WEIGHTINGS:
            weights = torch.tensor(found[f"{prediction} {weighting}"])
            panel.plot(weights.where(weights > 0, torch.nan), label=weighting, linewidth=1.5)
        panel.set(title=title, xlabel="timestep", yscale="log", ylim=(LOWEST, 100), xlim=(0, 999))
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("weight on the squared error")
    panels[1].legend(loc="lower left", fontsize="small")
    return figure


if __name__ == "__main__":
    draw_or_check(PICTURE, curves(), draw)
