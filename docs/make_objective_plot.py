"""Draws weights.png: `python docs/make_objective_plot.py`; with --check it only compares what would be drawn."""

import hashlib
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from PIL import Image

from finetune.diffusion.config import WEIGHTINGS, DiffusionConfig
from finetune.diffusion.schedule import Schedule
from finetune.diffusion.weighting import timestep_weights

PICTURE = Path(__file__).with_name("weights.png")
PREDICTIONS = {"epsilon": "epsilon-prediction", "v": "v-prediction", "x0": "x0-prediction"}
LOWEST = 1e-4
STAMP = "Curves"
"""The text in the picture's file that tells what it was drawn from: pictures differ by matplotlib's version."""


def curves() -> dict[str, dict[str, torch.Tensor]]:
    """The weight of every timestep by prediction and weighting; epsilon without zero terminal SNR."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for prediction in PREDICTIONS:
        for weighting in WEIGHTINGS:
            config = DiffusionConfig(
                prediction=prediction,
                weighting=weighting,
                snr_gamma=5.0,
                zero_terminal_snr=prediction != "epsilon",
            )
            weights = timestep_weights(Schedule(config).snr, config)
            found.setdefault(prediction, {})[weighting] = weights
    return found


def stamp(found: dict[str, dict[str, torch.Tensor]]) -> str:
    """A hash of the curves to five digits."""
    rows = [f"{p} {w} {' '.join(f'{x:.4e}' for x in values)}" for p, own in found.items() for w, values in own.items()]
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def draw(found: dict[str, dict[str, torch.Tensor]]) -> None:
    """A panel for each prediction, a line for each weighting."""
    figure, panels = plt.subplots(1, 3, figsize=(12, 3.6), sharey=True, layout="constrained")
    for panel, (prediction, title) in zip(panels, PREDICTIONS.items(), strict=True):
        for weighting, weights in found[prediction].items():
            panel.plot(weights.where(weights > 0, torch.nan), label=weighting, linewidth=1.5)
        panel.set(title=title, xlabel="timestep", yscale="log", ylim=(LOWEST, 100), xlim=(0, 999))
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("weight on the squared error")
    panels[1].legend(loc="lower left", fontsize="small")
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
