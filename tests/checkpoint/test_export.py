"""Exports: what others load, and how they sample it."""

import json
import re
import warnings
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors import safe_open
from torch import Tensor

from finetune.checkpoint.export import build_pipeline, export, export_file, sampling_scheduler
from finetune.checkpoint.model_spec import About
from finetune.diffusion.config import DiffusionConfig
from finetune.diffusion.schedule import Schedule
from finetune.model.config import ModelConfig
from finetune.model.families import Components, load_components
from finetune.model.text import PromptTokenizer

DOCS = Path(__file__).resolve().parents[2] / "docs" / "export.md"
ABOUT = About("tiny, step 7", 7, resolution_px=512, average=False, saved=datetime(2026, 1, 1, tzinfo=UTC))
OBJECTIVES = [
    {"prediction": "v"},
    {"prediction": "v", "zero_terminal_snr": False, "beta_schedule": "linear"},
    {"prediction": "epsilon", "zero_terminal_snr": False},
    {"prediction": "epsilon", "zero_terminal_snr": False, "beta_schedule": "cosine"},
    {"prediction": "epsilon", "zero_terminal_snr": False, "beta_start": 0.0001, "beta_end": 0.02},
    {"prediction": "x0"},
]
PREDICTION_TYPES = {"v": "v_prediction", "epsilon": "epsilon", "x0": "sample"}


def loaded(folder: Path, **settings: Any) -> Components:
    return load_components(ModelConfig(path=str(folder), **settings))


def exported(folder: Path, out: Path, clip_skip: int | None = None, **diffusion: Any) -> Path:
    pipeline = build_pipeline(loaded(folder), DiffusionConfig(**diffusion))
    return export(pipeline, out, model=ModelConfig(path="x", clip_skip=clip_skip), steps=1234)


def opened(folder: Path) -> DiffusionPipeline:
    """An export as diffusers opens it without being told what it is."""
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda given: "-".join(map(str, given.values())))
def test_diffusers_loads_and_samples_it(twin: Path, tiny_sdxl: Path, tmp_path: Path, objective: dict[str, Any]) -> None:
    pipeline = opened(exported(twin, tmp_path, **objective))
    assert type(pipeline) is (StableDiffusionXLPipeline if twin == tiny_sdxl else StableDiffusionPipeline)
    assert type(pipeline.scheduler) is DDIMScheduler
    assert pipeline.scheduler.config.prediction_type == PREDICTION_TYPES[objective["prediction"]]
    options = {"num_inference_steps": 3, "height": 64, "width": 64, "output_type": "np"}
    generator = torch.Generator().manual_seed(0)
    picture = pipeline("a picture", guidance_rescale=0.7, generator=generator, **options).images[0]
    assert picture.shape == (64, 64, 3)
    assert np.isfinite(picture).all()


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda given: "-".join(map(str, given.values())))
def test_the_scheduler_has_the_schedule_that_was_trained(objective: dict[str, Any]) -> None:
    config = DiffusionConfig(**objective)
    scheduler = sampling_scheduler(config)
    trained = Schedule(config).signal.float() ** 2
    assert torch.allclose(scheduler.alphas_cumprod, trained, atol=1e-5)
    scheduler.set_timesteps(25)
    assert scheduler.timesteps.tolist() == list(range(999, 0, -40))  # trailing: from the last timestep in equal steps


def test_the_number_of_timesteps_is_the_one_that_was_trained() -> None:
    scheduler = sampling_scheduler(DiffusionConfig(timesteps=500))
    assert len(scheduler.alphas_cumprod) == 500
    scheduler.set_timesteps(5)
    assert scheduler.timesteps.tolist() == [499, 399, 299, 199, 99]


def test_diffusers_finds_nothing_outdated_in_the_scheduler(tiny_sd15: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        build_pipeline(loaded(tiny_sd15), DiffusionConfig())


@pytest.mark.parametrize("prediction", ["v", "x0"])
def test_the_last_step_ends_at_the_noise_of_the_first_timestep(prediction: str) -> None:
    config = DiffusionConfig(prediction=prediction)
    scheduler, schedule = sampling_scheduler(config), Schedule(config)
    scheduler.set_timesteps(25)
    timestep = int(scheduler.timesteps[-1])
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    signal, deviation = float(schedule.signal[timestep]), float(schedule.noise[timestep])
    exact = signal * noise - deviation * latents if prediction == "v" else latents
    found = scheduler.step(exact, timestep, signal * latents + deviation * noise).prev_sample
    expected = float(schedule.signal[0]) * latents + float(schedule.noise[0]) * noise  # noise[0] is 0.029
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda given: "-".join(map(str, given.values())))
@pytest.mark.parametrize("timestep", [999, 500])
def test_one_exact_step_of_the_sampler_finds_the_latents(objective: dict[str, Any], timestep: int) -> None:
    scheduler = sampling_scheduler(DiffusionConfig(**objective))
    scheduler.set_timesteps(2)
    signal = float(scheduler.alphas_cumprod[timestep]) ** 0.5
    deviation = (1.0 - signal**2) ** 0.5
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    exact = {"v": signal * noise - deviation * latents, "epsilon": noise, "x0": latents}[objective["prediction"]]
    found = scheduler.step(exact, timestep, signal * latents + deviation * noise).pred_original_sample
    # Where next to nothing but noise is left, epsilon is divided by a signal of a few thousandths.
    assert torch.allclose(found, latents, atol=1e-5 if objective["prediction"] != "epsilon" else 1e-6 / signal + 1e-5)


def test_every_tensor_comes_back(twin: Path, tmp_path: Path) -> None:
    components = loaded(twin)
    with torch.no_grad():
        for module in components.modules.values():
            for parameter in module.parameters():
                parameter.add_(0.01)
    pipeline = build_pipeline(components, DiffusionConfig())
    again = loaded(export(pipeline, tmp_path, model=ModelConfig(path="x"), steps=1))
    assert again.modules.keys() == components.modules.keys()
    for name, module in components.modules.items():
        before, after = module.state_dict(), again.modules[name].state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(after[key], value) for key, value in before.items()), name


@torch.no_grad()
@pytest.mark.parametrize("clip_skip", [None, 1, 2, 3])
def test_the_pipeline_reads_prompts_as_they_were_trained(
    twin: Path, tiny_sdxl: Path, tmp_path: Path, clip_skip: int | None
) -> None:
    trained = loaded(twin, clip_skip=clip_skip)
    prompts = ["picture number 3", "", "tag 7, tag 12"]
    chunks = PromptTokenizer(trained.tokenizers, 75)(prompts)
    states, pooled = trained.prompt_encoder(*chunks)
    sdxl = twin == tiny_sdxl
    given = {"clip_skip": clip_skip - 2} if sdxl and clip_skip else {}
    pipeline = opened(exported(twin, tmp_path, clip_skip))
    found = pipeline.encode_prompt(
        prompts, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True, **given
    )
    assert torch.allclose(found[0], states, atol=1e-5)
    if sdxl:
        assert torch.allclose(found[2], pooled, atol=1e-5)
        # What leads away is read from the penultimate layer always, and nothing given is an empty prompt.
        penultimate = loaded(twin).prompt_encoder(*chunks)
        assert torch.allclose(found[1], penultimate.states[1].expand_as(found[1]), atol=1e-5)
        assert torch.allclose(found[3], penultimate.pooled[1].expand_as(found[3]), atol=1e-5)
    else:
        assert torch.allclose(found[1], states[1].expand_as(found[1]), atol=1e-5)


def layers(folder: Path, part: str) -> int:
    return int(json.loads((folder / part / "config.json").read_text())["num_hidden_layers"])


def test_the_layers_that_clip_skip_leaves_out_stay_in_sdxl_alone(
    tiny_sd15: Path, tiny_sdxl: Path, tmp_path: Path
) -> None:
    assert layers(exported(tiny_sd15, tmp_path / "sd15", 2), "text_encoder") == 2
    folder = exported(tiny_sdxl, tmp_path / "sdxl", 3)
    assert (layers(folder, "text_encoder"), layers(folder, "text_encoder_2")) == (3, 4)


def test_text_encoders_have_the_names_that_other_programs_expect(twin: Path, tmp_path: Path) -> None:
    folder = exported(twin, tmp_path)
    for path in folder.glob("text_encoder*/model.safetensors"):
        with safe_open(path, "pt") as file:
            assert "text_model.encoder.layers.0.self_attn.q_proj.weight" in file.keys()  # noqa: SIM118


def test_no_path_of_this_machine_is_told(twin: Path, tmp_path: Path) -> None:
    folder = exported(twin, tmp_path)
    assert [path for path in folder.rglob("*.json") if str(twin.parent) in path.read_text()] == []


def test_nothing_is_pickled(twin: Path, tmp_path: Path) -> None:
    folder = exported(twin, tmp_path)
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} <= {".json", ".safetensors", ".md", ".txt"}


def card(folder: Path) -> str:
    return (folder / "README.md").read_text()


def test_the_card_of_sd15_says_how_to_sample(tiny_sd15: Path, tmp_path: Path) -> None:
    text = card(exported(tiny_sd15, tmp_path / "v", 2))
    assert "1,234 optimizer steps" in text
    assert "v-prediction with zero terminal SNR" in text
    assert "pipeline(prompt, guidance_scale=7.0, guidance_rescale=0.7)" in text
    assert "Trained with clip skip 2. The text encoder in this folder ends at the layer that was trained" in text
    text = card(exported(tiny_sd15, tmp_path / "epsilon", prediction="epsilon", zero_terminal_snr=False))
    assert "(epsilon, trailing spacing)" in text
    assert "pipeline(prompt, guidance_scale=7.0)" in text


@pytest.mark.parametrize(("clip_skip", "theirs"), [(None, None), (2, None), (1, -1), (3, 1)])
def test_the_card_of_sdxl_says_what_clip_skip_diffusers_needs(
    tiny_sdxl: Path, tmp_path: Path, clip_skip: int | None, theirs: int | None
) -> None:
    text = card(exported(tiny_sdxl, tmp_path, clip_skip))
    assert f"Trained with clip skip {clip_skip or 2}." in text
    call = next(line for line in text.splitlines() if line.startswith("pipeline("))
    assert call.endswith("guidance_rescale=0.7)" if theirs is None else f", clip_skip={theirs})")


def test_what_lies_beside_the_folder_stays_and_disturbs_nobody(tiny_sd15: Path, tmp_path: Path) -> None:
    """Exports during the run are written to the same place."""
    export_file(loaded(tiny_sd15), DiffusionConfig(), tmp_path / "run-step-00000500.safetensors", about=ABOUT)
    (tmp_path / "run-step-00000500.yaml").write_text("model: {}")
    for _ in range(2):
        exported(tiny_sd15, tmp_path)
        assert isinstance(opened(tmp_path), StableDiffusionPipeline)
    assert len(list(tmp_path.glob("run-step-*"))) == 2


@torch.no_grad()
def test_the_single_file_loads_by_diffusers(twin: Path, tmp_path: Path) -> None:
    components = loaded(twin)
    file = export_file(components, DiffusionConfig(), tmp_path / "model.safetensors", about=ABOUT)
    kind = StableDiffusionPipeline if len(components.tokenizers) == 1 else StableDiffusionXLPipeline
    pipeline = kind.from_single_file(str(file), config=str(twin))
    for name in ("unet", "vae"):
        after: dict[str, Tensor] = getattr(pipeline, name).state_dict()
        before = components.modules[name].state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(after[key], value) for key, value in before.items()), name


def header(file: Path) -> tuple[dict[str, str], set[str]]:
    """Metadata and names of a file's tensors."""
    with safe_open(file, "pt") as opened_file:
        return opened_file.metadata(), set(opened_file.keys())


@pytest.mark.parametrize(
    ("objective", "markers"),
    [
        ({"prediction": "v"}, {"v_pred", "ztsnr"}),
        ({"prediction": "v", "zero_terminal_snr": False}, {"v_pred"}),
        ({"prediction": "epsilon", "zero_terminal_snr": False}, set()),
        ({"prediction": "x0"}, set()),
    ],
)
def test_the_single_file_says_what_is_predicted(
    twin: Path, tiny_sdxl: Path, tmp_path: Path, objective: dict[str, Any], markers: set[str]
) -> None:
    file = export_file(loaded(twin), DiffusionConfig(**objective), tmp_path / "model.safetensors", about=ABOUT)
    metadata, names = header(file)
    known = {"v": "v", "epsilon": "epsilon", "x0": None}  # to the SAI model spec
    assert metadata.get("modelspec.prediction_type") == known[objective["prediction"]]
    assert metadata["longhaul.steps"] == "7"
    assert {"v_pred", "ztsnr"} & names == (markers if twin == tiny_sdxl else set())


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda given: "-".join(map(str, given.values())))
def test_the_single_file_says_with_which_schedule_it_is_sampled(
    tiny_sd15: Path, tmp_path: Path, objective: dict[str, Any]
) -> None:
    config = DiffusionConfig(**objective)
    file = export_file(loaded(tiny_sd15), config, tmp_path / "model.safetensors", about=ABOUT)
    told = json.loads(header(file)[0]["longhaul.scheduler"])
    scheduler = DDIMScheduler.from_config(told)
    assert torch.allclose(scheduler.alphas_cumprod, Schedule(config).signal.float() ** 2, atol=1e-5)
    assert told["prediction_type"] == PREDICTION_TYPES[config.prediction]
    assert (told["num_train_timesteps"], told["timestep_spacing"]) == (1000, "trailing")
    assert told["rescale_betas_zero_snr"] == config.zero_terminal_snr


def test_the_single_file_says_its_clip_skip(twin: Path, tiny_sdxl: Path, tmp_path: Path) -> None:
    for clip_skip, told in ((None, "2" if twin == tiny_sdxl else "1"), (3, "3")):
        trained = loaded(twin, clip_skip=clip_skip)
        file = export_file(trained, DiffusionConfig(), tmp_path / "model.safetensors", about=ABOUT)
        assert header(file)[0]["longhaul.clip_skip"] == told


@torch.no_grad()
@pytest.mark.parametrize("clip_skip", [1, 2, 3])
def test_the_single_file_of_sdxl_needs_the_clip_skip_that_the_docs_say(
    tiny_sdxl: Path, tmp_path: Path, clip_skip: int
) -> None:
    trained = loaded(tiny_sdxl, clip_skip=clip_skip)
    file = export_file(trained, DiffusionConfig(), tmp_path / "model.safetensors", about=ABOUT)
    pipeline = StableDiffusionXLPipeline.from_single_file(str(file), config=str(tiny_sdxl))
    found = pipeline.encode_prompt("picture 3", do_classifier_free_guidance=False, clip_skip=clip_skip - 2)
    chunks = PromptTokenizer(trained.tokenizers, 75)(["picture 3"])
    assert torch.allclose(found[0], trained.prompt_encoder(*chunks).states, atol=1e-5)


def test_what_the_docs_say_samples_the_single_file_as_it_was_trained(
    tiny_sdxl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    components = loaded(tiny_sdxl)
    expected = build_pipeline(components, DiffusionConfig())
    export_file(components, DiffusionConfig(), tmp_path / "OUT.safetensors", about=ABOUT)
    (snippet,) = re.findall(r"```python\n(.+?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    # Without a configuration diffusers would take the published one from the hub, which is not the twin's.
    read = partial(StableDiffusionXLPipeline.from_single_file, config=str(tiny_sdxl))
    monkeypatch.setattr(StableDiffusionXLPipeline, "from_single_file", read)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(snippet, names)  # noqa: S102
    options = {"num_inference_steps": 3, "height": 64, "width": 64, "guidance_rescale": 0.7, "output_type": "np"}
    pictures = [
        pipeline("picture 3", generator=torch.Generator().manual_seed(0), **options).images[0]
        for pipeline in (names["pipeline"], expected)
    ]
    assert pictures[1].std() > 0.01
    assert np.allclose(*pictures, atol=1e-4)
