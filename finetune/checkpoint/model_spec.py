"""What the header of a single file says: the SAI model spec's keys (https://github.com/Stability-AI/ModelSpec), which
model managers and trainers read, and our own for what it has no name for."""

from dataclasses import dataclass
from datetime import datetime

from diffusers import DDIMScheduler

from finetune.diffusion.config import DiffusionConfig
from finetune.model.families import Components
from finetune.model.single_file import family

SPEC = "1.0.0"
LAYOUT = "https://github.com/Stability-AI/generative-models"
"""The implementation whose names of tensors the file has; so call it all who write these files, also for SD1.5."""
ARCHITECTURES = {"sd15": "stable-diffusion-v1", "sdxl": "stable-diffusion-xl-v1-base"}
PREDICTIONS = ("v", "epsilon")
"""Those that the spec has a name for."""
STEPS = "longhaul.steps"


@dataclass(frozen=True)
class About:
    """What a file's header says of where its model comes from."""

    title: str
    steps: int
    """Optimizer steps."""
    resolution_px: int
    """Side of the square with as many pixels as were trained."""
    average: bool
    """Whether the weights are the run's average of them."""
    saved: datetime
    """When the checkpoint was."""


def header(
    components: Components, diffusion: DiffusionConfig, scheduler: DDIMScheduler, about: About
) -> dict[str, str]:
    """The metadata of a single file, but for its hash."""
    kind, side = family(components.modules), about.resolution_px
    sd2 = "stable-diffusion-v2-768-v" if diffusion.prediction == "v" else "stable-diffusion-v2-512"
    told = {
        "modelspec.sai_model_spec": SPEC,
        "modelspec.architecture": ARCHITECTURES.get(kind, sd2),
        "modelspec.implementation": LAYOUT,
        "modelspec.title": about.title,
        "modelspec.resolution": f"{side}x{side}",
        "modelspec.date": about.saved.isoformat(timespec="seconds"),
        "modelspec.encoder_layer": str(components.prompt_encoder.clip_skip),
        STEPS: str(about.steps),
        "longhaul.weights": "average" if about.average else "raw",
        "longhaul.clip_skip": str(components.prompt_encoder.clip_skip),
        "longhaul.zero_terminal_snr": str(diffusion.zero_terminal_snr).lower(),
        "longhaul.scheduler": scheduler.to_json_string(),
    }
    if diffusion.prediction in PREDICTIONS:
        told["modelspec.prediction_type"] = diffusion.prediction
    return told


def markers(components: Components, diffusion: DiffusionConfig) -> list[str]:
    """Empty tensors by which ComfyUI, webui and its forks know how SDXL is sampled."""
    if family(components.modules) != "sdxl" or diffusion.prediction != "v":
        return []
    return ["v_pred", "ztsnr"] if diffusion.zero_terminal_snr else ["v_pred"]
