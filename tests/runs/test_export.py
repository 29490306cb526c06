"""Exporting what a run has trained so far."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import Result
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

from finetune.checkpoint.export import build_pipeline, export
from finetune.errors import UserError
from finetune.model.assemble import Trainee
from finetune.model.config import ModelConfig
from finetune.model.families import load_components
from finetune.runs.__main__ import app
from tests.helpers import own_memory
from tests.runs.saved import first_weights, recipe, shared_out, write_checkpoint, write_recipe
from tests.twins import TWINS

WEIGHTS, AVERAGE = 1.5, 3.0
"""Factors on the model's first weights: what was trained, and its moving average."""
TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@pytest.fixture(scope="module", params=list(TWINS))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / request.param
    TWINS[request.param](folder)
    return folder


def write_run(
    run: Path, model: Path | ModelConfig, *, averaged: bool, world: int = 2, step: int = 7, **diffusion: Any
) -> dict[str, Tensor]:
    """A run that has trained the UNet alone; the weights that it began with."""
    config = recipe(model, **diffusion)
    write_recipe(run, config)
    weights = first_weights(config)
    trained = {name: weight * WEIGHTS for name, weight in weights.items() if name.startswith("unet.")}
    averages = {name: weights[name] * AVERAGE for name in trained} if averaged else {}
    write_checkpoint(run, step, shared_out(trained, averages, world))
    return weights


def invoked(run: Path, *arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["export", str(run), *map(str, arguments)])


def exported(run: Path, *arguments: str | Path) -> str:
    done = invoked(run, *arguments)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("out", ["folder", "model.safetensors"])
@pytest.mark.parametrize(
    ("averaged", "options", "factor", "dtype"),
    [
        (False, [], WEIGHTS, "fp32"),
        (True, [], AVERAGE, "fp32"),
        (True, ["--raw"], WEIGHTS, "fp32"),
        (True, ["--ema"], AVERAGE, "fp16"),
        (False, [], WEIGHTS, "bf16"),
    ],
    ids=["weights", "average", "raw", "fp16", "bf16"],
)
def test_a_checkpoint_is_exported_by_its_fragments(
    model: Path, tmp_path: Path, out: str, averaged: bool, options: list[str], factor: float, dtype: str
) -> None:
    began = write_run(tmp_path / "run", model, averaged=averaged)
    said = exported(tmp_path / "run", tmp_path / out, "--dtype", dtype, *options)
    which = "the average of the weights" if factor == AVERAGE else "the weights"
    assert f"{out} holds the model after 7 steps ({which}, {dtype})" in said
    for path in [tmp_path / out, *(tmp_path / out).rglob("*")]:
        if path.suffix == ".safetensors":
            assert {tensor.dtype for tensor in load_file(path).values()} == {TYPES[dtype]}
        elif path.parent.name == "text_encoder" and path.name == "config.json":
            assert json.loads(path.read_text())["dtype"] == str(TYPES[dtype]).removeprefix("torch.")
    single = {"config": str(model)} if out.endswith(".safetensors") else {}
    components = load_components(ModelConfig(path=str(tmp_path / out), **single))
    for name, parameter in Trainee(components).named_parameters():
        expected = began[name] * (factor if name.startswith("unet.") else 1.0)
        assert torch.equal(parameter, expected.to(TYPES[dtype]).float()), name
    vae = load_components(ModelConfig(path=str(model))).vae.state_dict()
    assert all(torch.equal(components.vae.state_dict()[name], vae[name].to(TYPES[dtype]).float()) for name in vae)


def test_folders_are_fp32_and_files_fp16_unless_told(tiny_sd15: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "run", tiny_sd15, averaged=False)
    assert "fp32" in exported(tmp_path / "run", tmp_path / "folder")
    assert "fp16" in exported(tmp_path / "run", tmp_path / "model.safetensors")


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_any_number_of_ranks_exports_the_same_bytes(model: Path, tmp_path: Path) -> None:
    worlds = (1, 2, 7)
    for world in worlds:
        folder = tmp_path / str(world)
        write_run(folder / "run", model, averaged=True, world=world)
        manifest = folder / "run" / "checkpoints" / "step-00000007" / "manifest.json"
        os.utime(manifest, (1e9, 1e9))
        exported(folder / "run", folder / "out" / "folder")
        exported(folder / "run", folder / "out" / "model.safetensors")
    one, *others = (content(tmp_path / str(world) / "out") for world in worlds)
    assert len(one) > 10
    assert all(other == one for other in others)


def test_the_end_of_a_run_and_the_command_write_the_same_bytes(model: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "run", model, averaged=True)
    exported(tmp_path / "run", tmp_path / "folder")
    config = recipe(model)
    components = load_components(config.model)
    with torch.no_grad():
        for parameter in components.unet.parameters():
            parameter *= AVERAGE
    export(build_pipeline(components, config.diffusion), tmp_path / "end", model=config.model, steps=7)
    assert content(tmp_path / "folder") == content(tmp_path / "end")


def sampled(pipeline: Any) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 2, "height": 64, "width": 64, "output_type": "np", "guidance_rescale": 0.7}
    picture: np.ndarray = pipeline("picture 7", generator=torch.Generator().manual_seed(0), **options).images[0]
    return picture


def test_diffusers_samples_the_same_from_the_folder_and_from_the_file(model: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "run", model, averaged=True)
    exported(tmp_path / "run", tmp_path / "folder")
    exported(tmp_path / "run", tmp_path / "model.safetensors", "--dtype", "fp32")
    folder = DiffusionPipeline.from_pretrained(tmp_path / "folder")
    sdxl = {"force_zeros_for_empty_prompt": False} if (model / "text_encoder_2").exists() else {}
    kind = StableDiffusionXLPipeline if sdxl else StableDiffusionPipeline
    file = kind.from_single_file(
        str(tmp_path / "model.safetensors"), config=str(model), scheduler=folder.scheduler, **sdxl
    )
    for pipeline in (folder, file):
        own_memory(*(part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)))
    pictures = [sampled(pipeline) for pipeline in (folder, file)]
    assert pictures[0].std() > 0.01
    assert np.allclose(*pictures, atol=1e-5)


def test_parameters_behind_the_clip_skip_and_frozen_parts_are_the_base_model_s(tiny_sd15: Path, tmp_path: Path) -> None:
    config = recipe(ModelConfig(path=str(tiny_sd15), clip_skip=2))
    write_recipe(tmp_path / "run", config)
    weights = first_weights(config)
    last = "text_encoder.encoder.layers.2."
    trained = {name: weight + 1.0 for name, weight in weights.items() if not name.startswith(last)}
    write_checkpoint(tmp_path / "run", 7, shared_out(trained, {}, 3))
    exported(tmp_path / "run", tmp_path / "model.safetensors", "--dtype", "fp32")
    found = Trainee(load_components(ModelConfig(path=str(tmp_path / "model.safetensors"), config=str(tiny_sd15))))
    assert sum(name.startswith(last) for name in weights) == 16
    for name, parameter in found.named_parameters():
        assert torch.equal(parameter, trained.get(name, weights[name])), name


def test_a_run_that_began_with_a_single_file(model: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "first", model, averaged=False)
    exported(tmp_path / "first", tmp_path / "base.safetensors", "--dtype", "fp32")
    base = ModelConfig(path=str(tmp_path / "base.safetensors"), config=str(model))
    began = write_run(tmp_path / "run", base, averaged=False)
    exported(tmp_path / "run", tmp_path / "model.safetensors", "--dtype", "fp32")
    found = Trainee(load_components(ModelConfig(path=str(tmp_path / "model.safetensors"), config=str(model))))
    for name, parameter in found.named_parameters():
        assert torch.equal(parameter, began[name] * (WEIGHTS if name.startswith("unet.") else 1.0)), name


# Where it goes


def test_a_step_can_be_chosen_and_goes_to_the_run_s_folder(tiny_sd15: Path, tmp_path: Path) -> None:
    run = tmp_path / "my.run"
    write_run(run, tiny_sd15, averaged=False, step=7)
    shutil.copytree(run / "checkpoints" / "step-00000007", run / "checkpoints" / "step-00000003")
    manifest = run / "checkpoints" / "step-00000003" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "step": 3}))
    assert "after 3 steps" in exported(run, "--step", "3", "--format", "single_file")
    assert "after 7 steps" in exported(run)
    names = {path.name for path in (run / "export").iterdir()}
    assert names == {"my.run-step-00000003.safetensors", "my.run-step-00000007"}
    with safe_open(run / "export" / "my.run-step-00000003.safetensors", "pt") as file:
        assert file.metadata()["longhaul.steps"] == "3"


def test_an_earlier_export_is_replaced(tiny_sd15: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "run", tiny_sd15, averaged=True)
    for out in ("folder", "model.safetensors"):
        exported(tmp_path / "run", tmp_path / out, "--raw")
        before = content(tmp_path)
        exported(tmp_path / "run", tmp_path / out)
        after = content(tmp_path)
        assert before.keys() == after.keys()
        assert before != after


def test_others_may_read_the_files(tiny_sd15: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "run", tiny_sd15, averaged=False)
    before = os.umask(0o022)
    try:
        exported(tmp_path / "run", tmp_path / "model.safetensors")
        exported(tmp_path / "run", tmp_path / "folder")
    finally:
        os.umask(before)
    for path in [tmp_path / "model.safetensors", *(tmp_path / "folder").rglob("*.safetensors")]:
        assert path.stat().st_mode & 0o777 == 0o644, path


def folder_of_the_user_s(out: Path) -> None:
    out.mkdir()
    (out / "thesis.txt").write_text("ten years of work")


def export_with_something_beside_it(out: Path) -> None:
    out.mkdir()
    (out / "model_index.json").write_text("{}")
    (out / "thesis.txt").write_text("ten years of work")


def text(out: Path) -> None:
    out.write_text("ten years of work")


@pytest.mark.parametrize(
    ("out", "make"),
    [
        ("out", folder_of_the_user_s),
        ("out", export_with_something_beside_it),
        ("out", text),
        ("out.safetensors", text),
        ("out.safetensors", folder_of_the_user_s),
    ],
)
def test_what_is_not_an_export_is_left_alone(
    tiny_sd15: Path, tmp_path: Path, out: str, make: Callable[[Path], None]
) -> None:
    write_run(tmp_path / "run", tiny_sd15, averaged=False)
    make(tmp_path / out)
    before = content(tmp_path)
    done = invoked(tmp_path / "run", tmp_path / out)
    assert isinstance(done.exception, UserError)
    assert str(done.exception).endswith(
        f"{out} exists and is not an earlier export: give another name, or move it away"
    )
    assert content(tmp_path) == before


def test_a_base_model_is_not_written_over(tiny_sd15: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "run", tiny_sd15, averaged=False)
    shutil.copy(tiny_sd15 / "unet" / "diffusion_pytorch_model.safetensors", tmp_path / "base.safetensors")
    done = invoked(tmp_path / "run", tmp_path / "base.safetensors")
    assert "is not an earlier export" in str(done.exception)


def test_an_export_that_fails_leaves_nothing(tiny_sd15: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "run", tiny_sd15, averaged=False)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    write_checkpoint(
        tmp_path / "run", 7, [{"fragments": {"unet.conv_in.bias": [{"start": 1, "param": torch.ones(7)}]}}]
    )
    for out in ("folder", "model.safetensors"):
        done = invoked(tmp_path / "run", tmp_path / "out" / out)
        assert "the checkpoint holds 7 of the 8 values of unet.conv_in.bias" in str(done.exception)
        assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


# What is refused


def test_a_run_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    done = invoked(tmp_path / "run", tmp_path / "out")
    assert isinstance(done.exception, UserError)
    assert "holds no finished checkpoint" in str(done.exception)


def test_a_step_that_is_not_there_is_refused_with_those_that_are(tiny_sd15: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "run", tiny_sd15, averaged=False)
    later = shutil.copytree(tmp_path / "run/checkpoints/step-00000007", tmp_path / "run/checkpoints/step-00001500")
    manifest = json.loads((later / "manifest.json").read_text())
    (later / "manifest.json").write_text(json.dumps({**manifest, "step": 1500}))
    done = invoked(tmp_path / "run", "--step", "8")
    assert str(done.exception).endswith("holds no checkpoint of step 8: there are those of 7, 1,500")


def test_a_run_of_another_version_is_refused(tiny_sd15: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "run", tiny_sd15, averaged=False)
    path = tmp_path / "run" / "config.yaml"
    path.write_text(path.read_text() + "flux_capacitor: true\n")
    done = invoked(tmp_path / "run", tmp_path / "out")
    assert isinstance(done.exception, UserError)
    assert "is not of this version: there is no setting flux_capacitor" in str(done.exception)


def test_a_checkpoint_of_another_model_is_refused(tiny_sd15: Path, tiny_sdxl: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "run", tiny_sdxl, averaged=False)
    write_recipe(tmp_path / "run", recipe(tiny_sd15))
    done = invoked(tmp_path / "run", tmp_path / "out")
    assert isinstance(done.exception, UserError)
    assert "put back the model that the run began with" in str(done.exception)


def test_an_average_that_is_not_kept_is_refused(tiny_sd15: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "run", tiny_sd15, averaged=False)
    done = invoked(tmp_path / "run", tmp_path / "out", "--ema")
    assert str(done.exception) == "the run keeps no average of its weights: leave out --ema"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--format", "ckpt"], "--format is 'ckpt': use one of diffusers, single_file, webui"),
        (["--dtype", "fp8"], "--dtype is 'fp8': use one of fp32, fp16, bf16"),
        (["out", "--format", "webui"], "out cannot be --format webui: files end in .safetensors, and folders do not"),
        (["out.safetensors", "--format", "diffusers"], "out.safetensors cannot be --format diffusers"),
    ],
)
def test_wrong_arguments_are_refused(tiny_sd15: Path, tmp_path: Path, arguments: list[str], complaint: str) -> None:
    write_run(tmp_path / "run", tiny_sd15, averaged=False)
    done = invoked(tmp_path / "run", *arguments)
    assert isinstance(done.exception, UserError)
    assert str(done.exception).startswith(complaint)


def test_what_fp16_cannot_hold_is_refused(tiny_sd15: Path, tmp_path: Path) -> None:
    config = recipe(tiny_sd15)
    write_recipe(tmp_path / "run", config)
    weights = {"unet.conv_in.bias": first_weights(config)["unet.conv_in.bias"] + 7e4}
    write_checkpoint(tmp_path / "run", 7, shared_out(weights, {}, 1))
    done = invoked(tmp_path / "run", tmp_path / "out.safetensors")
    assert str(done.exception).startswith(
        "unet.conv_in.bias has values that fp16 cannot hold: export with --dtype bf16"
    )
    exported(tmp_path / "run", tmp_path / "out.safetensors", "--dtype", "bf16")


# What the file says


def metadata(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as opened:
        told: dict[str, str] = opened.metadata()
        return told


def test_the_header_follows_the_model_spec(model: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "run", model, averaged=True)
    manifest = tmp_path / "run" / "checkpoints" / "step-00000007" / "manifest.json"
    os.utime(manifest, (1.7e9, 1.7e9))
    exported(tmp_path / "run", tmp_path / "out.safetensors")
    told = metadata(tmp_path / "out.safetensors")
    architecture = {
        "sd15": "stable-diffusion-v1",
        "sd2": "stable-diffusion-v2-768-v",
        "sdxl": "stable-diffusion-xl-v1-base",
    }[model.name]
    expected = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": architecture,
        "modelspec.title": "run, step 7",
        "modelspec.resolution": "768x768",
        "modelspec.prediction_type": "v",
        "modelspec.date": "2023-11-14T22:13:20+00:00",
        "modelspec.encoder_layer": "2" if model.name == "sdxl" else "1",
        "longhaul.zero_terminal_snr": "true",
        "longhaul.weights": "average",
        "longhaul.steps": "7",
    }
    assert {key: told[key] for key in expected} == expected


def test_the_resolution_is_that_of_the_last_phase_that_was_trained(tiny_sd15: Path, tmp_path: Path) -> None:
    config = recipe(tiny_sd15)
    write_recipe(tmp_path / "run", config)
    weights = {"unet.conv_in.bias": first_weights(config)["unet.conv_in.bias"]}
    shapes = [{"epoch": 2, "micro_batch": 1, "buckets": {"resolution_px": 1024}}]
    identity = {"data.buckets": {"resolution_px": 768}, "phases that change the data's shape": shapes}
    write_checkpoint(tmp_path / "run", 7, shared_out(weights, {}, 1), {"identity": identity})
    exported(tmp_path / "run", tmp_path / "out.safetensors")
    assert metadata(tmp_path / "out.safetensors")["modelspec.resolution"] == "1024x1024"


def test_the_recipe_is_the_one_with_which_the_run_came_to_the_step(tiny_sd15: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_run(run, tiny_sd15, averaged=False, step=7)
    (run / "recipes").mkdir()
    (run / "config.yaml").rename(run / "recipes" / "step-00000000.yaml")
    write_recipe(run, recipe(tiny_sd15, prediction="epsilon", zero_terminal_snr=False))
    shutil.copy(run / "config.yaml", run / "recipes" / "step-00000007.yaml")  # holds from step 7 on
    exported(run, tmp_path / "out.safetensors")
    assert metadata(tmp_path / "out.safetensors")["modelspec.prediction_type"] == "v"


def test_webui_gets_its_configuration_and_its_user_is_told_what_to_set(tiny_sd15: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "run", tiny_sd15, averaged=False)
    said = exported(tmp_path / "run", tmp_path / "out.safetensors", "--format", "webui")
    params = yaml.safe_load((tmp_path / "out.yaml").read_text())["model"]["params"]
    assert params["parameterization"] == "v"
    assert "out.yaml belongs beside it" in said
    assert "webui: set Noise schedule for sampling to Zero Terminal SNR" in said
    assert "webui: set Clip skip to 1" in said


def test_a_configuration_that_is_not_needed_any_more_is_removed(tiny_sd15: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "run", tiny_sd15, averaged=False)
    exported(tmp_path / "run", tmp_path / "out.safetensors", "--format", "webui")
    write_recipe(tmp_path / "run", recipe(tiny_sd15, prediction="epsilon", zero_terminal_snr=False))
    said = exported(tmp_path / "run", tmp_path / "out.safetensors", "--format", "webui")
    assert not (tmp_path / "out.yaml").exists()
    assert "Zero Terminal" not in said
