"""Telling somebody how a run goes, also when it can't any more."""

import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from finetune.errors import UserError
from finetune.monitor.alerts.config import AlertsConfig
from finetune.monitor.alerts.places import places
from finetune.monitor.alerts.watcher import ADDRESSES
from finetune.monitor.alerts.watcher import watch as watch_run
from finetune.monitor.status import read_status

DEFAULTS = AlertsConfig()
LOWEST_PRIORITY = 19


def watch(
    run: Annotated[Path, typer.Argument(help="The run's folder, runs/NAME.")],
    to: Annotated[list[str], typer.Option(help=f"Apprise URL; else those in {ADDRESSES}, which hides them.")] = [],  # noqa: B006
    mute: Annotated[list[str], typer.Option(help="A kind of alerts that is not sent.")] = [],  # noqa: B006
    again_after_s: Annotated[
        float, typer.Option(help="Seconds until what goes on is told again.")
    ] = DEFAULTS.again_after_s,
    per_hour: Annotated[int, typer.Option(help="At most so many alerts an hour.")] = DEFAULTS.per_hour,
    pid: Annotated[
        int | None, typer.Option(help="Watch only this process's start, as every start does itself.")
    ] = None,
) -> None:
    """Send alerts of a run until it is finished, from any machine that sees its folder. While another watcher of the
    run lives, this one waits, and takes over when that one is gone."""
    config = AlertsConfig(to or [os.environ.get(ADDRESSES, "")], mute, again_after_s, per_hour)
    logging.getLogger().addHandler(logging.NullHandler())  # messages of libraries that send hold addresses
    to_places = places(config.to)
    if not to_places:
        raise UserError(f"nobody is told: give an Apprise URL with --to, or several in {ADDRESSES}")
    if pid is None:
        read_status(run)
    print(f"alerts of {run} go to {', '.join(place.name for place in to_places)}", file=sys.stderr)
    os.nice(LOWEST_PRIORITY)
    watch_run(run, to_places, config, pid)
