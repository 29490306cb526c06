"""Grids of fixed prompts and seeds, sampled with the schedule and the text encoding that are being trained."""

import textwrap
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from finetune.checkpoint.export import Pipeline
from finetune.model.text import Conditioning, PromptEncoder, PromptTokenizer
from finetune.monitor.config import SamplesConfig

CAPTION_PX = 28
GAP_PX = 4


@torch.no_grad()
def sample_images(
    pipeline: Pipeline, tokenizer: PromptTokenizer, encoder: PromptEncoder, config: SamplesConfig
) -> list[Image.Image]:
    """One picture for each of the recipe's prompts; picture i starts from the noise of seed + i whatever the batch."""
    pictures: list[Image.Image] = []
    for first in range(0, len(config.prompts), config.batch):
        prompts = list(config.prompts[first : first + config.batch])
        ids = torch.from_numpy(tokenizer([*prompts, *[config.negative_prompt] * len(prompts)])).to(pipeline.device)
        generators = [torch.Generator().manual_seed(config.seed + first + i) for i in range(len(prompts))]
        latents = pipeline(
            **_embeddings(encoder(ids), len(prompts)),
            num_inference_steps=config.steps,
            guidance_scale=config.guidance,
            guidance_rescale=config.guidance_rescale,
            width=config.width_px,
            height=config.height_px,
            generator=generators,
            output_type="latent",
        ).images
        pictures += _decoded(pipeline, latents)
    return pictures


def _embeddings(conditioning: Conditioning, prompts: int) -> dict[str, Tensor]:
    """The pipeline's arguments for this many prompts, which negative ones follow."""
    states, pooled = conditioning
    embeddings = {"prompt_embeds": states[:prompts], "negative_prompt_embeds": states[prompts:]}
    if pooled is not None:
        embeddings |= {"pooled_prompt_embeds": pooled[:prompts], "negative_pooled_prompt_embeds": pooled[prompts:]}
    return embeddings


def _decoded(pipeline: Pipeline, latents: Tensor) -> list[Image.Image]:
    """Pictures of scaled latents [B, C, h, w], decoded in the VAE's own precision: SDXL's overflows in fp16."""
    vae = pipeline.vae
    with torch.autocast(latents.device.type, enabled=False):
        decoded = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor).sample
    pictures: list[Image.Image] = pipeline.image_processor.postprocess(decoded)
    return pictures


def sample_grid(
    pipeline: Pipeline,
    tokenizer: PromptTokenizer,
    encoder: PromptEncoder,
    config: SamplesConfig,
    autocast: torch.autocast,
) -> Image.Image:
    """Sample the recipe's prompts with the live model, in evaluation mode meanwhile, as one captioned picture."""
    parts = [pipeline.unet, *encoder.encoders]
    training = [part.training for part in parts]
    try:
        for part in parts:
            part.eval()
        with autocast:
            pictures = sample_images(pipeline, tokenizer, encoder, config)
    finally:
        for part, was_training in zip(parts, training, strict=True):
            part.train(was_training)
    return captioned_grid(pictures, list(config.prompts))


def captioned_grid(pictures: list[Image.Image], captions: list[str]) -> Image.Image:
    """Pictures of one size in a near-square grid, each above its caption."""
    columns = max(1, round(len(pictures) ** 0.5))
    rows = -(-len(pictures) // columns)
    width, height = pictures[0].width, pictures[0].height
    cell = (width + GAP_PX, height + CAPTION_PX)
    grid = Image.new("RGB", (columns * cell[0] + GAP_PX, rows * cell[1] + GAP_PX), "white")
    draw = ImageDraw.Draw(grid)
    for i, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        left, top = GAP_PX + i % columns * cell[0], GAP_PX + i // columns * cell[1]
        grid.paste(picture, (left, top))
        draw.text((left, top + height + 2), _shortened(draw, caption, width), fill="black")
    return grid


def _shortened(draw: ImageDraw.ImageDraw, caption: str, width: int) -> str:
    """The caption in at most two lines of about `width` pixels, with an ellipsis where it goes on."""
    columns = max(8, int(width / draw.textlength("etaoin") * 6))
    return "\n".join(textwrap.wrap(caption, columns, max_lines=2, placeholder="…"))


def save_grid(grid: Image.Image, folder: Path, step: int) -> Path:
    """Write a grid as `step-00000500.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}.png"
    grid.save(path)
    return path
