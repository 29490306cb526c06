"""What a recipe will do with its data."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from finetune.data.index import Index
from finetune.errors import UserError
from finetune.phases import PhaseConfig
from finetune.runs.__main__ import app
from finetune.runs.plan import predicted
from tests.encoded import encoded, recipe

SMALL = ["data.buckets.resolution_px=64", "data.buckets.max_side_px=96", "data.buckets.step_px=16"]
BATCH = ["train.micro_batch=4", "train.global_batch=8", "phases=[{until: 2.5 epochs}]", "data.window_shards=1"]


def told(shards: Path, *more: str) -> dict[str, Any]:
    arguments = ["plan", "conf=demo", f"data.shards={shards}", *SMALL, *BATCH, *more]
    done = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    facts: dict[str, Any] = json.loads(done.output)
    return facts


def test_counts_follow_from_the_index(shards: Path) -> None:
    index, facts = Index.load(shards), told(shards)
    assert facts["samples"] == facts["draws_per_epoch"] == len(index) == 60
    assert facts["steps_per_epoch"] == 7.5
    assert facts["steps"] == 19
    assert [epoch["windows"] for epoch in facts["epochs"]] == [2] * len(facts["epochs"])
    (phase,) = facts["phases"]
    buckets = phase.pop("buckets")
    assert phase == {
        "phase": 1,
        "until": "2.5 epochs",
        "first_step": 0,
        "steps": 19,
        "micro_batch": 4,
        "resolution_px": 64,
        "optimizer": "adamw",
        "lr": 1e-3,
        "text_encoder_lr": 1e-3,
    }
    assert sum(bucket["draws"] for bucket in buckets) == 60
    assert all(b["draws"] == 4 * b["micro_batches"] + b["draws_left_over"] for b in buckets)
    assert sum(e["micro_batches"] for e in facts["epochs"][:1]) == sum(b["micro_batches"] for b in buckets)
    assert facts["cache_needed_bytes"] == 0
    assert facts["bytes_per_epoch"] == index.sizes().sum()


def test_every_phase_is_told_with_its_own_buckets(shards: Path) -> None:
    later = "{until: 4 epochs, buckets: {resolution_px: 96}, micro_batch: 2, optim: {name: adopt, lr: 1e-4}}"
    first, second = told(shards, f"phases=[{{until: 2 epochs}}, {later}]")["phases"]
    assert [(phase["first_step"], phase["steps"]) for phase in (first, second)] == [(0, 15), (15, 15)]
    assert (second["optimizer"], second["lr"], second["micro_batch"]) == ("adopt", 1e-4, 2)
    areas = [max(b["width_px"] * b["height_px"] for b in phase["buckets"]) for phase in (first, second)]
    assert areas == [64 * 64, 96 * 96]
    assert [sum(b["draws"] for b in phase["buckets"]) for phase in (first, second)] == [60, 60]


def test_what_is_held_out_is_no_draw(shards: Path) -> None:
    facts = told(shards, "data.held_out=0.3")
    assert 0 < facts["held_out"] < 60
    assert facts["draws_per_epoch"] == 60 - facts["held_out"]


def test_volume_and_time_follow_from_the_speed(shards: Path) -> None:
    slow, fast = told(shards, "--images-per-s", "2"), told(shards, "--images-per-s", "8")
    assert fast["bytes_per_hour"] == pytest.approx(4 * slow["bytes_per_hour"])
    assert slow["hours"] == pytest.approx(19 * 8 / 2 / 3600)
    assert slow["bytes_per_hour"] == pytest.approx(slow["bytes_per_epoch"] / 60 * 2 * 3600)


def test_it_shows_tables(shards: Path) -> None:
    done = CliRunner().invoke(app, ["plan", "conf=demo", f"data.shards={shards}", *SMALL, *BATCH])
    assert done.exit_code == 0
    for words in ("19 of 8 samples", "60; 60 draws an epoch", "64×64", "cache needed"):
        assert words in done.output


def test_a_mistake_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no index"):
        CliRunner().invoke(app, ["plan", "conf=demo", f"data.shards={tmp_path}"], catch_exceptions=False)


def test_the_volume_is_that_of_latents_where_they_are_read(shards: Path, tiny_model: Path, tmp_path: Path) -> None:
    config = recipe(shards, tiny_model, latents=str(tmp_path / "latents"))
    (outcome,) = encoded(config, tmp_path)
    facts, index = predicted(config, 10.0), Index.load(outcome.folder)
    assert facts["bytes_per_epoch"] == index.sizes().sum() < outcome.size
    (source,) = facts["sources"]
    assert (source["kind"], source["path"], source["bytes"]) == ("latents", str(outcome.folder), outcome.size)
    assert facts["draws_per_epoch"] == source["samples"] == 60


def test_the_volume_is_that_of_the_phase_that_reads_most(shards: Path, tiny_model: Path, tmp_path: Path) -> None:
    config = recipe(shards, tiny_model, latents=str(tmp_path / "latents"))
    larger = PhaseConfig("2 epochs", buckets={"resolution_px": 96})
    config = replace(config, phases=[PhaseConfig("1 epochs"), larger])
    outcomes = encoded(config, tmp_path)
    (source,) = predicted(config, 10.0)["sources"]
    assert source["bytes_per_epoch"] == max(Index.load(outcome.folder).sizes().sum() for outcome in outcomes)
    assert source["bytes"] == sum(outcome.size for outcome in outcomes)
    assert source["path"] == ", ".join(str(outcome.folder) for outcome in outcomes)
