"""`python -m finetune.runs`: look at a run, and export what it has trained, from its folder alone."""

import json
import time
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from finetune.checkpoint.store import finished, newest_checkpoint
from finetune.config import Config, typed
from finetune.entry import enter
from finetune.errors import UserError
from finetune.monitor.files import read_lines
from finetune.monitor.status import health, read_status

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)
RunFolder = Annotated[Path, typer.Argument(help="The run's folder, runs/NAME.")]
EXIT_CODES = {"healthy": 0, "finished": 0, "stale": 3, "failed": 4, "stopped": 5}


@app.command()
def status(
    run: RunFolder, as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False
) -> None:
    """Show how a run is, also after its death. Exit code: 0 healthy or finished, 3 stale, 4 failed, 5 stopped."""
    facts = read_status(run)
    facts["health"] = health(facts, time.time())
    facts["checkpoints"] = [path.name for path in finished(run / "checkpoints")]
    if as_json:
        print(json.dumps(facts, indent=1))
    else:
        Console().print(_status_table(run, facts))
    raise typer.Exit(EXIT_CODES[facts["health"]])


@app.command()
def export(
    run: RunFolder,
    out: Annotated[Path, typer.Argument(help="Folder for the diffusers model.")],
) -> None:
    """Export the newest checkpoint of a run, which may go on meanwhile, as a diffusers folder."""
    checkpoint = newest_checkpoint(run / "checkpoints")
    # Only this command needs torch and the model, whose imports take seconds.
    from finetune.checkpoint.export import build_pipeline
    from finetune.checkpoint.export import export as write
    from finetune.distributed.fragments import load_parameters
    from finetune.model.assemble import Trainee
    from finetune.model.families import load_components
    from finetune.phases import trains_text_encoder

    config = read_config(run)
    components = load_components(config.model)
    trainee = Trainee(components, config.model.clip_skip, trains_text_encoder(config.phases, config.optim))
    load_parameters(trainee, checkpoint.read, checkpoint.world)
    pipeline = build_pipeline(
        trainee.unet, components.vae, trainee.text_encoder, components.tokenizer, config.diffusion
    )
    write(pipeline, out, model=config.model, steps=checkpoint.step)
    Console().print(f"{out} holds the model after {checkpoint.step:,} steps")


def read_config(run: Path) -> Config:
    """The recipe that a run was last started with. Raises UserError where the folder holds none."""
    path = run / "config.yaml"
    if not path.is_file():
        raise UserError(f"{run} is not a run's folder (it has no config.yaml): give runs/NAME")
    merged = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.load(path))
    return typed(merged)  # type: ignore[arg-type]


def _status_table(run: Path, facts: dict[str, object]) -> Table:
    lines = read_lines(run / "metrics.jsonl")
    last = lines[-1] if lines else {}
    table = Table(title=f"{facts['name']}: {facts['health']}", show_header=False, title_justify="left")
    table.add_row("step", f"{facts['step']:,} of {facts['total_steps']:,}")
    for name, form in (("epoch", ".3f"), ("loss", ".5f"), ("grad_norm", ".4f"), ("images_per_s", ".1f")):
        if name in last:
            table.add_row(name, format(last[name], form))
    if "eta_s" in facts:
        table.add_row("ETA", str(timedelta(seconds=round(float(str(facts["eta_s"]))))))
    table.add_row("heartbeat", f"{time.time() - float(str(facts['heartbeat'])):.0f} s ago")
    table.add_row("checkpoints", ", ".join(facts["checkpoints"]) or "none yet")  # type: ignore[arg-type]
    table.add_row("machine", f"{facts['host']}, pid {facts['pid']}")
    return table


if __name__ == "__main__":
    enter(app)
