"""How checkpoints on the disk are named, and which there are."""

import re
from pathlib import Path

LATEST = "latest"
MANIFEST = "manifest.json"
NAME = re.compile(r"step-(\d{8,})")
ASIDE = re.compile(r"step-\d{8,}\.damaged-\d+")


def step_name(step: int) -> str:
    """The name of a step's checkpoint."""
    return f"step-{step:08d}"


def rank_file(rank: int) -> str:
    """The name of a rank's file."""
    return f"rank-{rank:05d}.pt"


def finished(folder: Path) -> list[Path]:
    """The checkpoints that have their final name, oldest first."""
    found = {path: NAME.fullmatch(path.name) for path in folder.glob("step-*")}
    steps = {path: int(name[1]) for path, name in found.items() if name and path.is_dir()}
    return sorted(steps, key=steps.__getitem__)
