"""From trained parts to a diffusers folder that `StableDiffusionPipeline.from_pretrained` loads and samples rightly."""

import copy
import re
from pathlib import Path

from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTokenizer

from finetune.diffusion.config import DiffusionConfig
from finetune.model.config import ModelConfig

CARD = """---
library_name: diffusers
pipeline_tag: text-to-image
---
Finetuned with Longhaul; {steps:,} optimizer steps. The scheduler in this folder is the one that was trained for
(v-prediction{zero_snr}, trailing spacing). Sample with

```python
pipeline(prompt, guidance_scale=7.0, guidance_rescale=0.7)
```

Trained with clip skip {clip_skip}. The text encoder in this folder ends at the layer that was trained, so give no
`clip_skip` to diffusers, and set `model.clip_skip=1` to finetune it further.
"""
LAYER = re.compile(r"encoder\.layers\.(\d+)\.")
TEXT_ENCODER_PREFIX = "text_model."
"""With which every program but transformers 5 names the text encoder's weights; transformers 5 reads either."""


def sampling_scheduler(config: DiffusionConfig) -> DDIMScheduler:
    """The scheduler that samples what was trained: v-prediction, the same betas, trailing spacing, so that sampling
    starts at the last timestep (section 3.3 of Lin et al., arXiv 2305.08891)."""
    return DDIMScheduler(
        num_train_timesteps=config.timesteps,
        beta_schedule="scaled_linear",
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=config.zero_terminal_snr,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def build_pipeline(
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    diffusion: DiffusionConfig,
) -> StableDiffusionPipeline:
    """The parts as a diffusers pipeline with the scheduler that they were trained for."""
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=sampling_scheduler(diffusion),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def export(pipeline: StableDiffusionPipeline, folder: Path, *, model: ModelConfig, steps: int) -> Path:
    """Write a pipeline as a diffusers folder with safetensors weights and a card that says how to sample.

    The layers that clip skip passes over are left out, so that the folder samples as it was trained without being told.
    """
    pipeline.save_pretrained(folder, safe_serialization=True)
    _save_text_encoder(pipeline.text_encoder, folder / "text_encoder", model.clip_skip)
    zero_snr = " with zero terminal SNR" if pipeline.scheduler.config.rescale_betas_zero_snr else ""
    card = CARD.format(steps=steps, zero_snr=zero_snr, clip_skip=model.clip_skip)
    (folder / "README.md").write_text(card, encoding="utf-8")
    return folder


def _save_text_encoder(text_encoder: CLIPTextModel, folder: Path, clip_skip: int) -> None:
    layers = text_encoder.config.num_hidden_layers - (clip_skip - 1)
    config = copy.deepcopy(text_encoder.config)
    config.num_hidden_layers = layers
    config.save_pretrained(folder)
    weights = {
        TEXT_ENCODER_PREFIX + name: weight.detach().cpu().contiguous()
        for name, weight in text_encoder.state_dict().items()
        if not (part := LAYER.match(name)) or int(part[1]) < layers
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
