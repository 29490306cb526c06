"""Does the model paint the colour that it is asked for? A plain pixel check, before and after training."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw

from data_tools.demo.shapes import PALETTE, Scene, check_prompts
from finetune.monitor.samples.grid import Row, captioned_grid

SIDE_PX = 48
CENTRE_PX = 8
BORDER_PX = 3
GRID_PX = 112
GAP_PX = 24
TITLE_PX = 28
SAMPLING = {"num_inference_steps": 25, "guidance_scale": 4.0, "guidance_rescale": 0.7}


def sample_check_prompts(model: Path) -> list[Image.Image]:
    """Sample the 64 prompts with the model and the scheduler of a diffusers folder, each from a seed of its own."""
    pipeline = StableDiffusionPipeline.from_pretrained(str(model), safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    prompts = [prompt for prompt, _ in check_prompts()]
    generators = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
    sampled = pipeline(prompts, height=SIDE_PX, width=SIDE_PX, generator=generators, **SAMPLING)
    return list(sampled.images)


def nearest_colour(pixels: npt.NDArray[np.uint8]) -> str:
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


def side_by_side(grids: dict[str, Image.Image]) -> Image.Image:
    """Pictures of one size in a row, each under its name."""
    width, height = next(iter(grids.values())).size
    joined = Image.new("RGB", (len(grids) * (width + GAP_PX) - GAP_PX, height + TITLE_PX), "white")
    draw = ImageDraw.Draw(joined)
    for i, (name, grid) in enumerate(grids.items()):
        draw.text((i * (width + GAP_PX) + 4, 2), name, fill="black", font_size=TITLE_PX - 8)
        joined.paste(grid, (i * (width + GAP_PX), TITLE_PX))
    return joined


def compare(untrained: Path, trained: Path, run: Path) -> dict[str, dict[str, float]]:
    """Score both models, and write the scores and a picture of both models' samples into the run's folder."""
    prompts, scenes = zip(*check_prompts(), strict=True)
    scores: dict[str, dict[str, float]] = {}
    grids: dict[str, Image.Image] = {}
    for name, model in (("untrained", untrained), ("trained", trained)):
        pictures = sample_check_prompts(model)
        scores[name] = score(pictures, scenes)
        grids[name] = captioned_grid(
            [Row([p.resize((GRID_PX, GRID_PX))], prompt) for p, prompt in zip(pictures, prompts, strict=True)]
        )
    side_by_side(grids).save(run / "samples" / "demo.png")
    (run / "demo.json").write_text(json.dumps({**scores, "prompts": len(prompts)}, indent=1), encoding="utf-8")
    return scores
