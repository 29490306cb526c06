"""Reading a run's ledger."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from omegaconf import OmegaConf
from typer.testing import CliRunner

from finetune.config import BatchConfig, Config, RunConfig, resolved
from finetune.data.index import Index
from finetune.data.plan import FILL
from finetune.data.prepare import DataSet
from finetune.data.prompts.config import CaptionsConfig, TagsConfig
from finetune.data.shapes import PlanSettings, Shape
from finetune.errors import UserError
from finetune.model.config import ModelConfig
from finetune.monitor.ledger import SCHEMA, Ledger
from finetune.phases import PhaseConfig
from finetune.recipe_data import open_recipe
from finetune.runs.__main__ import app
from finetune.runs.ledger import epochs, sightings
from tests.helpers import SMALL, data_config, sample_ids

SETTINGS = PlanSettings((Shape(0, SMALL, 4),), global_batch=16, seed=3)
STEPS = 4


def write_run(folder: Path, shards: Path, model: Path) -> Config:
    """A run of four steps in which one draw was replaced."""
    data = data_config(shards, flip=0.5, random_crop=True)
    config = Config(
        RunConfig("run", str(folder.parent), 3),
        BatchConfig(4, 16),
        [PhaseConfig(f"{STEPS} steps")],
        ModelConfig(path=str(model)),
        data,
        CaptionsConfig(tags=TagsConfig(drop=0.3)),
    )
    folder.mkdir()
    OmegaConf.save(OmegaConf.create(resolved(config)), folder / "config.yaml")
    dataset = DataSet(data, SETTINGS, folder / "data")
    journal = dataset.began()
    (folder / "journal.json").write_text(json.dumps(journal.to_plain()))
    plan, ledger = dataset.plan(journal), Ledger(folder / "ledger")
    for step in range(STEPS):
        ledger.record(step + 1, plan.step(step))
    ledger.substitute(2, 5, sample_ids(Index.load(shards))[0])
    ledger.flush()
    return config


def test_a_sample_s_draws_are_those_that_were_trained(shards: Path, tiny_model: Path, tmp_path: Path) -> None:
    config = write_run(tmp_path / "run", shards, tiny_model)
    opened = open_recipe(config, tmp_path / "again")
    micro_batch = opened.plan.step(2)[1]
    trained = opened.preparer.prepare(2, micro_batch, {}, [])
    for i, (draw, sample) in enumerate(zip(micro_batch.draws, trained, strict=True)):
        seen = {(row["step"], row["slot"]): row for row in sightings(tmp_path / "run", f"id:{draw.sample}")}
        row = seen[3, micro_batch.first_slot + i]
        assert row["prompt"] == sample.prompt
        width, height = opened.plan.sizes[micro_batch.bucket]
        assert row["bucket"] == f"{width}×{height}"
        left = int(row["crop"].partition("(")[2].partition(",")[0])
        assert row["mirrored"] or left == sample.size_and_crop[3]
        assert row["epoch"] == draw.epoch


def test_replaced_draws_name_each_other(shards: Path, tiny_model: Path, tmp_path: Path) -> None:
    config = write_run(tmp_path / "run", shards, tiny_model)
    dataset = DataSet(config.data, SETTINGS, tmp_path / "again")
    replaced = dataset.plan(dataset.began()).step(1)[1].draws[1].sample
    stand_in = sample_ids(Index.load(shards))[0]
    by_key = CliRunner().invoke(app, ["ledger", str(tmp_path / "run"), "--sample", f"id:{replaced}", "--json"])
    assert f"replaced by id:{stand_in}" in [row["note"] for row in json.loads(by_key.output) if row["step"] == 2]
    other = {row["step"]: row["note"] for row in sightings(tmp_path / "run", f"id:{stand_in}")}
    assert other[2] == f"in place of id:{replaced}"


def test_a_key_that_is_not_there(shards: Path, tiny_model: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "run", shards, tiny_model)
    with pytest.raises(UserError, match=r"no sample of .* has the key 'nothing'"):
        list(sightings(tmp_path / "run", "nothing"))


def test_epochs_are_summed_up() -> None:
    rows = {
        "step": [1, 1, 1, 2, 2],
        "slot": [0, 1, 2, 0, 1],
        "epoch": [0, 0, 0, 0, 1],
        "sample": [1, 1, 9, 4, 1],
        "repeat": [0, 1, 0, FILL, 0],
        "bucket": [0] * 5,
        "substituted_for": [None, None, 2, None, None],
    }
    table = pa.Table.from_pydict(rows, SCHEMA)
    first, second = epochs(table)
    assert first == {"epoch": 0, "draws": 3, "samples": 2, "fewest": 1, "most": 2, "replaced": 1, "filled_up": 1}
    assert second["draws"] == second["samples"] == 1


def test_the_command_shows_a_table(shards: Path, tiny_model: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "run", shards, tiny_model)
    done = CliRunner().invoke(app, ["ledger", str(tmp_path / "run")])
    assert done.exit_code == 0
    assert "filled" in done.output


def test_a_draw_is_told_by_the_recipe_of_its_step(shards: Path, tiny_model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = write_run(run, shards, tiny_model)
    (run / "recipes").mkdir()
    OmegaConf.save(OmegaConf.create(resolved(config)), run / "recipes" / "step-00000000.yaml")
    config.captions.drop = 1.0
    for path in (run / "config.yaml", run / "recipes" / "step-00000002.yaml"):
        OmegaConf.save(OmegaConf.create(resolved(config)), path)
    rows = [row for sample in sample_ids(Index.load(shards)) for row in sightings(run, f"id:{sample}")]
    assert {row["prompt"] for row in rows if row["step"] > 2 and not row["note"]} == {""}
    assert len({row["prompt"] for row in rows if row["step"] <= 2}) > 10
