"""From trained parts to what others load: a diffusers folder that diffusers' own pipeline samples rightly, or one
`.safetensors` file in the original layout. Weights are written one tensor at a time."""

import copy
import json
import re
from pathlib import Path
from typing import TypeAlias

from diffusers import DDIMScheduler, ModelMixin, StableDiffusionPipeline, StableDiffusionXLPipeline
from transformers import PreTrainedModel

from finetune.checkpoint.model_spec import About, header, markers
from finetune.diffusion.config import DiffusionConfig
from finetune.model.config import ModelConfig
from finetune.model.families import PARTS, Components
from finetune.model.single_file import save_single_file
from finetune.model.stream import write_tensors
from finetune.model.weights import InMemory, Weights

Pipeline: TypeAlias = StableDiffusionPipeline | StableDiffusionXLPipeline

CARD = """---
library_name: diffusers
pipeline_tag: text-to-image
---
Finetuned with Longhaul; {steps:,} optimizer steps. The scheduler in this folder is the one that was trained for
({prediction}{zero_snr}, trailing spacing). Sample with

```python
pipeline(prompt, {arguments})
```

Trained with clip skip {clip_skip}. {remark}
"""
CUT = """The text encoder in this folder ends at the layer that was trained, so give no
`clip_skip` to diffusers, and set `model.clip_skip=1` to finetune it further."""
PENULTIMATE = "It is what diffusers reads of SDXL, so give it no `clip_skip`."
OTHER = """Diffusers counts SDXL's from the penultimate layer, hence the `clip_skip={theirs}`. It takes it for
the prompt alone: what leads away, give as `negative_prompt_embeds` of the same layer. Set `model.clip_skip={ours}` to
finetune this model further."""
PREDICTIONS = {"v": "v_prediction", "epsilon": "epsilon", "x0": "sample"}
BETA_SCHEDULES = {"scaled_linear": "scaled_linear", "linear": "linear", "cosine": "squaredcos_cap_v2"}
LAYER = re.compile(r"encoder\.layers\.(\d+)\.")
TEXT_ENCODER_PREFIX = "text_model."
"""With which every program but transformers 5 names the text encoder's weights; transformers 5 reads either."""


def sampling_scheduler(config: DiffusionConfig) -> DDIMScheduler:
    """The scheduler that samples what was trained: the same prediction and betas, trailing spacing, so that sampling
    starts at the last timestep (section 3.3 of Lin et al., arXiv 2305.08891)."""
    return DDIMScheduler(
        num_train_timesteps=config.timesteps,
        beta_schedule=BETA_SCHEDULES[config.beta_schedule],
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        prediction_type=PREDICTIONS[config.prediction],
        rescale_betas_zero_snr=config.zero_terminal_snr,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def build_pipeline(components: Components, diffusion: DiffusionConfig) -> Pipeline:
    """The parts as a diffusers pipeline with the scheduler that they were trained for."""
    parts = {**components.modules, "tokenizer": components.tokenizers[0], "scheduler": sampling_scheduler(diffusion)}
    if len(components.tokenizers) == 1:
        no_checker = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipeline = StableDiffusionPipeline(**parts, **no_checker)
    else:
        # An empty prompt is trained as its text encoders' states and not as zeros.
        pipeline = StableDiffusionXLPipeline(
            **parts, tokenizer_2=components.tokenizers[1], force_zeros_for_empty_prompt=False, add_watermarker=False
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def export(pipeline: Pipeline, folder: Path, *, model: ModelConfig, steps: int, weights: Weights | None = None) -> Path:
    """Write a pipeline as a diffusers folder with safetensors weights and a card that says how to sample.

    The layers that clip skip passes over are left out, so that the folder samples as it was trained without being told;
    of SDXL they stay, since its pooled output needs them, and the card tells the clip skip. The index comes last, and
    without it nobody takes a folder for a pipeline.

    Args:
        steps: optimizer steps.
        weights: None takes the pipeline's own in fp32.

    Raises:
        UserError: a weight cannot be had, or does not fit into its type.
    """
    parts = {name: part for name, part in pipeline.components.items() if name in PARTS}
    weights = weights or InMemory(parts)
    sdxl = isinstance(pipeline, StableDiffusionXLPipeline)
    clip_skip = model.clip_skip_of(1 + sdxl)
    for name, part in pipeline.components.items():
        if isinstance(part, ModelMixin):
            _save_config(part, folder / name)
            _save_weights(weights, name, folder / name / "diffusion_pytorch_model.safetensors")
        elif name in PARTS:
            _save_text_encoder(weights, name, folder / name, skipped=0 if sdxl else clip_skip - 1)
        elif part is not None:
            part.save_pretrained(folder / name)
    (folder / "README.md").write_text(_card(pipeline, sdxl, clip_skip, steps), encoding="utf-8")
    pipeline.save_config(folder)
    return folder


def export_file(
    components: Components, diffusion: DiffusionConfig, path: Path, *, about: About, weights: Weights | None = None
) -> Path:
    """Write the parts as one `.safetensors` file; text encoders keep all layers, since other programs skip the last
    ones by themselves.

    The header says how to sample (model_spec): `longhaul.scheduler` is the configuration of diffusers' DDIMScheduler as
    JSON, `longhaul.clip_skip` the layer counted from the last. SDXL's file has the markers by which others know.

    Args:
        about: where the model comes from.
        weights: None takes the components' own in fp32.

    Raises:
        UserError: a weight cannot be had, or does not fit into its type.
    """
    metadata = header(components, diffusion, sampling_scheduler(diffusion), about)
    weights = weights or InMemory(components.modules)
    save_single_file(weights, path, metadata, markers(components, diffusion))
    return path


def _card(pipeline: Pipeline, sdxl: bool, clip_skip: int, steps: int) -> str:
    scheduler = pipeline.scheduler.config
    arguments, remark = "guidance_scale=7.0", CUT
    if scheduler.rescale_betas_zero_snr:
        arguments += ", guidance_rescale=0.7"
    if sdxl:
        remark = PENULTIMATE if clip_skip == 2 else OTHER.format(ours=clip_skip, theirs=clip_skip - 2)
        arguments += "" if clip_skip == 2 else f", clip_skip={clip_skip - 2}"
    return CARD.format(
        steps=steps,
        prediction=scheduler.prediction_type.replace("_", "-"),
        zero_snr=" with zero terminal SNR" if scheduler.rescale_betas_zero_snr else "",
        arguments=arguments,
        clip_skip=clip_skip,
        remark=remark,
    )


def _save_config(part: ModelMixin, folder: Path) -> None:
    """Write a part's configuration as diffusers does, but for the path on this machine that it was loaded from."""
    config = json.loads(part.to_json_string())
    config.pop("_name_or_path", None)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")


def _save_text_encoder(weights: Weights, key: str, folder: Path, skipped: int) -> None:
    encoder = weights.parts[key]
    assert isinstance(encoder, PreTrainedModel)
    config = copy.deepcopy(encoder.config)
    config.num_hidden_layers -= skipped
    config.architectures = [type(encoder).__name__]
    config.dtype = weights.dtype
    config.save_pretrained(folder)
    _save_weights(weights, key, folder / "model.safetensors", TEXT_ENCODER_PREFIX, config.num_hidden_layers)


def _save_weights(weights: Weights, key: str, path: Path, prefix: str = "", layers: int | None = None) -> None:
    """Write a part's weights.

    Args:
        prefix: with which names begin in the file.
        layers: of a text encoder, how many are written.
    """
    tensors = weights.parts[key].state_dict()
    names = {
        name if name.startswith((prefix, "text_projection.")) else prefix + name: name
        for name in tensors
        if not (part := LAYER.search(name)) or layers is None or int(part[1]) < layers
    }
    shapes = {stored: tensors[name].shape for stored, name in names.items()}
    write_tensors(path, shapes, lambda stored: weights.read(key, names[stored]), weights.dtype, {})
