"""Runs' folders with checkpoints, as training would have left them."""

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from finetune.config import BatchConfig, Config, RunConfig, resolved
from finetune.data.config import DataConfig
from finetune.data.index import file_sha256
from finetune.diffusion.config import DiffusionConfig
from finetune.distributed.fragments import Flat, Fragment, Piece, RankState, cut
from finetune.model.assemble import Trainee
from finetune.model.config import ModelConfig
from finetune.model.families import load_components
from finetune.phases import PhaseConfig

META = {"identity": {"train.global_batch": 16, "data.buckets": {"resolution_px": 768}}}


def recipe(model: Path, name: str = "run", **diffusion: Any) -> Config:
    """The least that a recipe has to say."""
    return Config(
        run=RunConfig(name=name),
        train=BatchConfig(micro_batch=1, global_batch=1),
        phases=[PhaseConfig("1 steps")],
        model=model if isinstance(model, ModelConfig) else ModelConfig(path=str(model)),
        data=DataConfig(shards="x"),
        diffusion=DiffusionConfig(**diffusion),
    )


def write_recipe(run: Path, config: Config) -> None:
    """A run's folder with its recipe."""
    run.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.create(resolved(config)), run / "config.yaml")


def first_weights(config: Config) -> dict[str, Tensor]:
    """The parameters that a run begins with."""
    trainee = Trainee(load_components(config.model))
    return {name: parameter.detach() for name, parameter in trainee.named_parameters()}


def shared_out(weights: Mapping[str, Tensor], averages: Mapping[str, Tensor], world: int) -> list[RankState]:
    """What each rank saves where parameters lie one behind the other and are cut into shares of about one size, as ZeRO
    does: anywhere within a parameter."""
    total = sum(weight.numel() for weight in weights.values())
    borders = [total * rank // world for rank in range(world + 1)]
    states: list[RankState] = [{"kind": "adam", "fragments": {}} for _ in range(world)]
    begin = 0
    for name, weight in weights.items():
        for rank, (first, end) in enumerate(pairwise(borders)):
            start, stop = (min(max(border - begin, 0), weight.numel()) for border in (first, end))
            if start < stop:
                rows = {"param": weight} | ({"ema": averages[name]} if name in averages else {})
                rows = {key: row.reshape(-1)[start:stop] for key, row in rows.items()}
                pieces = cut(Flat(rows["param"], [Piece(name, start, 0, stop - start)]), rows, {})
                fragments: list[tuple[str, Fragment]] = list(pieces)
                states[rank]["fragments"][name] = [fragment for _, fragment in fragments]
        begin += weight.numel()
    return states


def write_checkpoint(run: Path, step: int, states: list[RankState], meta: Mapping[str, Any] = META) -> Path:
    """A checkpoint of as many ranks as there are states, the newest of its run."""
    folder = run / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    files = {}
    for rank, state in enumerate(states):
        path = folder / f"rank-{rank:05d}.pt"
        torch.save(state, path)
        files[path.name] = {"size": path.stat().st_size, "sha256": file_sha256(path)}
    manifest = {"step": step, "world": len(states), "files": files, "meta": meta}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    (folder.parent / "latest").write_text(folder.name, encoding="utf-8")
    return folder
