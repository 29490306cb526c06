"""The model that a run has trained so far."""

import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import yaml  # type: ignore[import-untyped]
from rich.console import Console
from safetensors import SafetensorError, safe_open

from finetune.checkpoint.export_config import DTYPES, TYPES, export_name
from finetune.checkpoint.names import MANIFEST
from finetune.checkpoint.store import Checkpoint
from finetune.checks import check_choice
from finetune.config import Config
from finetune.errors import UserError
from finetune.monitor.files import replace_text
from finetune.runs.checkpoints import find, recipe_at
from finetune.runs.folder import RunFolder

if TYPE_CHECKING:
    from finetune.checkpoint.model_spec import About
    from finetune.checkpoint.trained import Trained
    from finetune.model.families import Components

FILE = ".safetensors"
INDEX = "model_index.json"
PARTS_OF_A_FOLDER = {
    *(INDEX, "README.md", "unet", "vae", "text_encoder", "text_encoder_2"),
    *("tokenizer", "tokenizer_2", "scheduler"),
}
OURS = "longhaul.steps"
"""Name in a file's header by which it is known that this command has written it."""


def export(
    run: RunFolder,
    out: Annotated[
        Path | None,
        typer.Argument(help="Folder or .safetensors file; RUN/export/NAME-step-N unless given.", show_default=False),
    ] = None,
    step: Annotated[int | None, typer.Option(help="Step of the checkpoint; the newest unless given.")] = None,
    average: Annotated[
        bool | None,
        typer.Option(
            "--ema/--raw", help="The average of the weights, or the weights themselves; the average where there is one."
        ),
    ] = None,
    format_: Annotated[
        str | None,
        typer.Option("--format", help=f"{', '.join(DTYPES)}; by OUT: a .safetensors file is single_file."),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help=f"{', '.join(TYPES)}; fp32 for folders and fp16 for files unless given.")
    ] = None,
) -> None:
    """Export a checkpoint of a run, which may go on meanwhile, within little memory."""
    form = format_ or ("single_file" if out and out.suffix == FILE else "diffusers")
    check_choice("--format", form, tuple(DTYPES))
    check_choice("--dtype", dtype := dtype or DTYPES[form], TYPES)
    checkpoint = find(run, step)
    out = out or run / "export" / export_name(run.resolve().name, checkpoint.step, form)
    check_out(out, form)
    for sentence in write(run, checkpoint, out, form=form, dtype=dtype, average=average):
        Console().print(sentence, soft_wrap=True)


def check_out(out: Path, form: str) -> None:
    """Raise UserError unless an export of a format can be written to a path: there is nothing, or an earlier one."""
    if (out.suffix == FILE) != (form != "diffusers"):
        raise UserError(f"{out} cannot be --format {form}: files end in {FILE}, and folders do not")
    if not out.exists():
        return
    if form == "diffusers":
        names = {path.name for path in out.iterdir()} if out.is_dir() else {out.name}
        earlier = not names or (INDEX in names and names <= PARTS_OF_A_FOLDER)
    else:
        earlier = _is_ours(out)
    if not earlier:
        raise UserError(f"{out} exists and is not an earlier export: give another name, or move it away")


def write(run: Path, checkpoint: Checkpoint, out: Path, *, form: str, dtype: str, average: bool | None) -> list[str]:
    """Write a checkpoint's model; what the user has to know of it, as sentences.

    Args:
        form: diffusers, single_file or webui.
        dtype: fp32, fp16 or bf16.
        average: take the averages of the weights; None takes them where the run keeps them.

    Raises:
        UserError: the run is of another version, or its model is not there any more, or does not fit the format.
    """
    config = recipe_at(run, checkpoint.step)
    # Only this command needs torch and the model, whose imports take seconds.
    import torch

    from finetune.checkpoint.model_spec import About
    from finetune.checkpoint.trained import Trained
    from finetune.model.families import load_skeleton

    types = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    skeleton = load_skeleton(config.model)
    weights = Trained(config.model, skeleton.modules, checkpoint.ranks, average=average, dtype=types[dtype])
    about = About(
        title=f"{config.run.name}, step {checkpoint.step:,}",
        steps=checkpoint.step,
        resolution_px=resolution_px(checkpoint, config),
        average=weights.average,
        saved=datetime.fromtimestamp((checkpoint.folder / MANIFEST).stat().st_mtime, UTC),
    )
    which = "the average of the weights" if weights.average else "the weights"
    sentences = [f"{out} holds the model after {checkpoint.step:,} steps ({which}, {dtype})"]
    if form == "diffusers":
        _write_folder(out, skeleton, config, weights, about)
        return sentences
    return sentences + _write_file(out, skeleton, config, weights, about, form)


def resolution_px(checkpoint: Checkpoint, config: Config) -> int:
    """The resolution that the last phase up to a checkpoint has trained."""
    identity = checkpoint.meta.get("identity", {})
    shapes = identity.get("phases that change the data's shape", [])
    buckets = shapes[-1]["buckets"] if shapes else identity.get("data.buckets", {})
    return int(buckets.get("resolution_px", config.data.buckets.resolution_px))


def _write_folder(out: Path, skeleton: "Components", config: Config, weights: "Trained", about: "About") -> None:
    from finetune.checkpoint.export import build_pipeline
    from finetune.checkpoint.export import export as export_folder

    temporary, old = (out.with_name(f".{out.name}.{end}") for end in ("tmp", "old"))
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        pipeline = build_pipeline(skeleton, config.diffusion)
        export_folder(pipeline, temporary, model=config.model, steps=about.steps, weights=weights)
        if out.exists():
            out.rename(old)
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def _write_file(
    out: Path, skeleton: "Components", config: Config, weights: "Trained", about: "About", form: str
) -> list[str]:
    from finetune.checkpoint.export import export_file
    from finetune.checkpoint.webui import webui_config, webui_settings

    if form == "single_file":
        export_file(skeleton, config.diffusion, out, about=about, weights=weights)
        return []
    beside, found = out.with_suffix(".yaml"), webui_config(skeleton, config.diffusion)
    if found is None:
        beside.unlink(missing_ok=True)
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        replace_text(beside, yaml.safe_dump(found, sort_keys=False))
    export_file(skeleton, config.diffusion, out, about=about, weights=weights)
    notes = [f"{beside} belongs beside it"] if found else []
    return notes + [f"webui: {setting}" for setting in webui_settings(skeleton, config.diffusion)]


def _is_ours(out: Path) -> bool:
    try:
        with safe_open(out, "pt") as file:
            return OURS in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False
