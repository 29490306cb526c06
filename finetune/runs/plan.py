"""What a recipe will do with its data, told without a GPU and without the model."""

import json
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from finetune.config import Config, phases, plan_settings
from finetune.data.ahead import cache_needed
from finetune.data.plan import Plan
from finetune.data.prepare import DataSet
from finetune.data.remote import is_remote
from finetune.data.sources import Sources
from finetune.phases import Phase, Phases
from finetune.recipes import read_recipe
from finetune.runs.folder import AsJson

GIB = 2**30
EPOCHS_SHOWN = 20


def plan(
    arguments: Annotated[list[str], typer.Argument(help="conf=NAME key=value …, as for training.")],
    images_per_s: Annotated[float, typer.Option(min=0.001, help="Speed for which time and volume are told.")] = 10.0,
    memory: Annotated[bool, typer.Option("--memory", help="Tell what it takes of a GPU's memory instead.")] = False,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs, for --memory.")] = 1,
    gpu_gib: Annotated[float | None, typer.Option(min=1, help="Memory of each, for --memory.")] = None,
    as_json: AsJson = False,
) -> None:
    """Tell what a recipe will do with its data: samples, buckets, steps, repeats, cache and data volume; or what it
    takes of a GPU's memory."""
    config = read_recipe(arguments)
    if memory:  # which needs torch, and that takes seconds
        import_module("finetune.runs.memory").tell_memory(config, gpus, gpu_gib, as_json=as_json)
        return
    facts = predicted(config, images_per_s)
    if as_json:
        print(json.dumps(facts, indent=1))
        return
    console = Console()
    for table in (_summary(facts), _sources(facts), _phases(facts), *_buckets(facts), _epochs(facts)):
        console.print(table)


def predicted(config: Config, images_per_s: float) -> dict[str, Any]:
    """The whole prediction as plain values; sizes in bytes, times in hours.

    Raises:
        UserError: the data cannot be used.
    """
    with tempfile.TemporaryDirectory() as kept:
        dataset = DataSet(config.data, plan_settings(config), Path(kept))
        journal = dataset.began()
        plan, sources = dataset.plan(journal), dataset.sources(journal)
        unfolded = phases(config)
        laid = Phases(unfolded, plan)
        steps = laid.total_steps
        epochs = [_epoch(plan, epoch) for epoch in range(plan.epoch_of_step(steps - 1) + 1)]
        per_epoch = epochs[0]["draws"]
        told = _told(dataset, sources)
        bytes_per_epoch = sum(source["bytes_per_epoch"] for source in told)
        return {
            "recipe": config.run.name,
            "sources": told,
            "samples": sum(source["samples"] for source in told),
            "draws_per_epoch": per_epoch,
            "global_batch": config.train.global_batch,
            "phases": [_phase(number, phase, laid, plan) for number, phase in enumerate(unfolded, 1)],
            "steps": steps,
            "steps_per_epoch": per_epoch / config.train.global_batch,
            "epochs": epochs,
            "held_out": len(plan.chapter(0).layout.held_out()[0]),
            "excluded": len(journal.excluded(0)),
            "cache_bytes": round(config.data.cache.size_gib * GIB),
            "cache_needed_bytes": cache_needed(plan, sources, config.data.cache.windows_ahead),
            "bytes_per_epoch": bytes_per_epoch,
            "images_per_s": images_per_s,
            "bytes_per_hour": bytes_per_epoch / max(per_epoch, 1) * images_per_s * 3600,
            "hours": steps * config.train.global_batch / images_per_s / 3600,
        }


def _told(dataset: DataSet, sources: Sources) -> list[dict[str, Any]]:
    facts = []
    for (name, source), opened in zip(dataset.data.all_sources.items(), sources.all, strict=True):
        index, stored = opened.index, opened.all_stored
        repeats = source.repeats * index.repeats.astype(float)
        shards = [shard for each in stored for shard in each.shards]
        first = stored[0]
        facts.append(
            {
                "name": name,
                "path": ", ".join(each.root for each in stored) if opened.latents else source.path,
                "kind": "latents" if opened.latents else index.kind,
                "remote": is_remote(first.location(0)) or is_remote(first.root),
                "shards": len(shards),
                "samples": len(index),
                "repeats": source.repeats,
                "loss_weight": source.loss_weight,
                "bytes": sum(shard.size for shard in shards),
                # of the phase that reads most
                "bytes_per_epoch": max(float((each.sizes() * repeats).sum()) for each in stored),
            }
        )
    return facts


def _epoch(plan: Plan, epoch: int) -> dict[str, Any]:
    emitted, waiting = plan.emitted(epoch), plan.waiting(epoch)
    return {
        "epoch": epoch,
        "draws": plan.draws(epoch + 1) - plan.draws(epoch),
        "windows": plan.window_count(epoch),
        "micro_batches": int(emitted.sum()),
        "first_step": plan.first_step(epoch),
        "draws_left_over": int(waiting.sum()),
    }


def _phase(number: int, phase: Phase, phases: Phases, plan: Plan) -> dict[str, Any]:
    steps = phases.span(number)
    return {
        "phase": number,
        "first_step": steps.start,
        "steps": len(steps),
        **phase.facts,
        "buckets": _bucket_facts(plan, plan.epoch_of_step(steps.start), phase.micro_batch),
    }


def _bucket_facts(plan: Plan, epoch: int, micro_batch: int) -> list[dict[str, Any]]:
    emitted, waiting = plan.emitted(epoch), plan.waiting(epoch)
    facts = []
    for bucket in plan.chapter(epoch).buckets.tolist():
        width, height = (int(side) for side in plan.sizes[bucket])
        draws = int(emitted[bucket]) * micro_batch + int(waiting[bucket])
        facts.append(
            {
                "bucket": bucket,
                "width_px": width,
                "height_px": height,
                "draws": draws,
                "micro_batches": int(emitted[bucket]),
                "draws_left_over": int(waiting[bucket]),
            }
        )
    return facts


def _summary(facts: dict[str, Any]) -> Table:
    table = Table(title=f"{facts['recipe']}", show_header=False, title_justify="left")
    table.add_row("samples", f"{facts['samples']:,}; {facts['draws_per_epoch']:,} draws an epoch")
    table.add_row("held out for validation", f"{facts['held_out']:,}")
    table.add_row("excluded", f"{facts['excluded']:,}")
    table.add_row(
        "steps", f"{facts['steps']:,} of {facts['global_batch']} samples; {facts['steps_per_epoch']:,.1f} an epoch"
    )
    speed = f"at {facts['images_per_s']:g} images/s"
    table.add_row(f"time {speed}", f"{facts['hours']:,.1f} h ({facts['hours'] / 24:,.1f} days)")
    table.add_row("data an epoch", f"{facts['bytes_per_epoch'] / GIB:,.2f} GiB")
    table.add_row(f"data an hour {speed}", f"{facts['bytes_per_hour'] / GIB:,.2f} GiB")
    too_small = facts["cache_needed_bytes"] > facts["cache_bytes"]
    remedy = f": raise data.cache.size_gib, which is {facts['cache_bytes'] / GIB:g}" if too_small else ""
    table.add_row("cache needed", f"{facts['cache_needed_bytes'] / GIB:,.2f} GiB{remedy}")
    return table


def _sources(facts: dict[str, Any]) -> Table:
    table = Table("source", "samples", "repeats", "shards", "GiB", "where", title="sources", title_justify="left")
    for source in facts["sources"]:
        where = f"{'remote' if source['remote'] else 'local'} {source['kind']}: {source['path']}"
        numbers = (f"{source['samples']:,}", f"{source['repeats']:g}", f"{source['shards']:,}")
        table.add_row(source["name"], *numbers, f"{source['bytes'] / GIB:,.2f}", where)
    return table


def _phases(facts: dict[str, Any]) -> Table:
    names = (
        "phase",
        "until",
        "first_step",
        "steps",
        "micro_batch",
        "resolution_px",
        "optimizer",
        "lr",
        "text_encoder_lr",
    )
    table = Table(*(name.replace("_", " ") for name in names), title="phases", title_justify="left")
    for phase in facts["phases"]:
        table.add_row(*(f"{phase[name]:,}" if isinstance(phase[name], int) else str(phase[name]) for name in names))
    return table


def _buckets(facts: dict[str, Any]) -> Iterator[Table]:
    """A table for every phase whose buckets are not those of the one before."""
    before = None
    for phase in facts["phases"]:
        shape = (phase["micro_batch"], [(bucket["width_px"], bucket["height_px"]) for bucket in phase["buckets"]])
        if shape != before:
            title = f"first epoch of phase {phase['phase']}"
            table = Table("bucket", "draws", "micro-batches", "left over", title=title, title_justify="left")
            for bucket in phase["buckets"]:
                size = f"{bucket['width_px']}×{bucket['height_px']}"
                table.add_row(size, *(f"{bucket[name]:,}" for name in ("draws", "micro_batches", "draws_left_over")))
            yield table
        before = shape


def _epochs(facts: dict[str, Any]) -> Table:
    names = ("epoch", "first_step", "draws", "windows", "micro_batches", "draws_left_over")
    table = Table(*(name.replace("_", " ") for name in names), title="epochs", title_justify="left")
    for epoch in facts["epochs"][:EPOCHS_SHOWN]:
        table.add_row(*(f"{epoch[name]:,}" for name in names))
    if len(facts["epochs"]) > EPOCHS_SHOWN:
        table.add_row("…")
    return table
