"""Does the model paint the colour that it is asked for? A plain pixel check, before and after training."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from data_tools.demo.shapes import PALETTE, Scene, test_prompts
from finetune.diffusion.config import DiffusionConfig
from finetune.checkpoint.export import sampling_scheduler
from finetune.monitor.samples import captioned_grid

SIDE_PX = 48
CENTRE_PX = 8
BORDER_PX = 3
SAMPLING = {"num_inference_steps": 25, "guidance_scale": 4.0, "guidance_rescale": 0.7, "height": SIDE_PX, "width": SIDE_PX}


def sample_test_prompts(model: Path) -> list[Image.Image]:
    """Sample the 64 prompts, each from the noise of its own seed, with the scheduler that the demo trains for."""
    pipeline = StableDiffusionPipeline.from_pretrained(str(model), safety_checker=None)
    pipeline.scheduler = sampling_scheduler(DiffusionConfig())
    pipeline.set_progress_bar_config(disable=True)
    prompts = [prompt for prompt, _ in test_prompts()]
    generators = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
    pictures: list[Image.Image] = pipeline(prompts, generator=generators, **SAMPLING).images
    return pictures


def nearest_colour(pixels: np.ndarray) -> str:
    """The palette colour nearest to the median of some pixels, uint8 [..., 3], in RGB."""
    median = np.median(pixels.reshape(-1, 3), axis=0)
    distances = {name: float(np.square(median - np.array(rgb)).sum()) for name, rgb in PALETTE.items()}
    return min(distances, key=distances.__getitem__)


def painted(picture: Image.Image) -> tuple[str, str]:
    """The colours at a picture's centre, where the shape is, and along its border."""
    pixels = np.asarray(picture.convert("RGB"))
    top, left = (pixels.shape[0] - CENTRE_PX) // 2, (pixels.shape[1] - CENTRE_PX) // 2
    border = np.ones(pixels.shape[:2], dtype=bool)
    border[BORDER_PX:-BORDER_PX, BORDER_PX:-BORDER_PX] = False
    return nearest_colour(pixels[top : top + CENTRE_PX, left : left + CENTRE_PX]), nearest_colour(pixels[border])


def score(pictures: Sequence[Image.Image], scenes: Sequence[Scene]) -> dict[str, float]:
    """Shares of pictures whose shape, and whose background, has the colour that was asked for."""
    found = [painted(picture) for picture in pictures]
    shape = [centre == scene.colour for (centre, _), scene in zip(found, scenes, strict=True)]
    background = [border == scene.background for (_, border), scene in zip(found, scenes, strict=True)]
    return {"shape_colour": float(np.mean(shape)), "background_colour": float(np.mean(background))}


def compare(untrained: Path, trained: Path, run: Path) -> dict[str, dict[str, float]]:
    """Score both models, and write the scores and a picture of both models' samples into the run's folder."""
    prompts, scenes = zip(*test_prompts(), strict=True)
    scores: dict[str, dict[str, float]] = {}
    for name, model in (("untrained", untrained), ("trained", trained)):
        pictures = sample_test_prompts(model)
        scores[name] = score(pictures, scenes)
        captioned_grid([p.resize((128, 128)) for p in pictures], list(prompts)).save(run / "samples" / f"{name}.png")
    (run / "demo.json").write_text(json.dumps({**scores, "prompts": len(prompts)}, indent=1), encoding="utf-8")
    return scores
