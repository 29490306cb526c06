"""Mistakes that are found once the data is looked at, through the real command."""

import shutil
from pathlib import Path

import pytest

from tests.forks import ended

pytestmark = pytest.mark.slow


def start(shards: Path, runs: Path, model: Path, *overrides: str) -> tuple[int, str]:
    """Run the demo's recipe on a folder of shards; the run is two steps long. The exit code, and what was said."""
    paths = ["conf=demo", f"data.shards={shards}", f"run.folder={runs}", f"model.path={model}"]
    sizes = ["data.buckets.step_px=32", "data.buckets.resolution_px=64", "data.buckets.max_side_px=96"]
    batch = ["train.micro_batch=4", "train.global_batch=8", "phases=[{until: 2 steps}]", "strategy.threads=1"]
    watch = ["monitor.samples.every_steps=0", "monitor.wandb.mode=disabled", "monitor.tensorboard=false"]
    log = runs.with_suffix(".log")
    log.unlink(missing_ok=True)
    return ended(log, "finetune", *paths, *sizes, *batch, *watch, *overrides), log.read_text()


def sentence(ended: tuple[int, str]) -> str:
    """What was said of the mistake, which has to be one line without a traceback."""
    code, said = ended
    assert code == 2, said
    assert "Traceback" not in said
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    return line


def test_a_missing_shard(shards: Path, tmp_path: Path, tiny_model: Path) -> None:
    (shards / "shard-00001.tar").unlink()
    said = sentence(start(shards, tmp_path / "runs", tiny_model))
    assert "shard-00001.tar is missing: put it back, or index the folder again" in said
    assert not (tmp_path / "runs" / "demo" / "status.json").exists()


def test_an_index_that_does_not_match_its_shards(shards: Path, tmp_path: Path, tiny_model: Path) -> None:
    path = shards / "shard-00000.tar"
    path.write_bytes(path.read_bytes() + bytes(10240))
    said = sentence(start(shards, tmp_path / "runs", tiny_model))
    assert "does not match its shard shard-00000.tar: put back the shard that was indexed" in said


def test_a_folder_without_index(tmp_path: Path, tiny_model: Path) -> None:
    assert "make it with `python -m data_tools index" in sentence(start(tmp_path, tmp_path / "runs", tiny_model))


def test_mistakes_in_the_policy_of_prompts(shards: Path, tmp_path: Path) -> None:
    """All are found before the model, which is not there."""
    broken = tmp_path / "implications.csv"
    broken.write_text("id,antecedent_name,consequent_name,created_at,status\n1,fox,canine,,active\n2,fox\n")
    for override, expected in (
        ("captions.tags.shufle=false", "there is no setting captions.tags.shufle: did you mean captions.tags.shuffle"),
        ("captions.tags.drop=1.5", "captions.tags.drop is 1.5: use a number from 0 to 1"),
        (f"captions.tags.implications.files=[{broken}]", "implications.csv line 3"),
        (f"captions.tags.aliases.files=[{tmp_path / 'none.csv'}]", "none.csv"),
    ):
        said = sentence(start(shards, tmp_path / "runs", Path("no/such/model"), override))
        assert expected in said
    assert not (tmp_path / "runs").exists()


def test_a_prefix_that_is_too_long_is_found_before_the_model(shards: Path, tmp_path: Path, tiny_model: Path) -> None:
    """Of the model there is nothing but its tokenizer."""
    shutil.copytree(tiny_model / "tokenizer", tmp_path / "model" / "tokenizer")
    said = sentence(start(shards, tmp_path / "runs", tmp_path / "model", f"captions.prefix='{'word ' * 300}'"))
    assert "tokens, but model.max_tokens is 225: shorten them" in said


def test_a_model_that_is_not_there(shards: Path, tmp_path: Path) -> None:
    said = sentence(start(shards, tmp_path / "runs", Path("no/such/model")))
    assert "model.path no/such/model is neither a folder nor a hub id" in said


def test_what_may_not_change_over_a_resume(shards: Path, tmp_path: Path, tiny_model: Path) -> None:
    runs = tmp_path / "runs"
    code, said = start(shards, runs, tiny_model)
    assert code == 0, said
    for accepted in ("false", "true"):
        told = sentence(start(shards, runs, tiny_model, "run.seed=1", f"run.accept_changes={accepted}"))
        assert "run.seed was 0" in told
    assert "exists but resume=never" in sentence(start(shards, runs, tiny_model, "resume=never"))
    # A finished run that is started again has nothing to train and says so by ending well.
    code, said = start(shards, runs, tiny_model)
    assert code == 0, said


def test_more_bad_samples_than_allowed_stop_the_run_with_its_list(
    shards: Path, tmp_path: Path, tiny_model: Path
) -> None:
    from finetune.data.index import Index
    from finetune.monitor.files import read_lines
    from finetune.monitor.status import read_status

    index = Index.load(shards)
    for row in range(1, len(index), 3):
        span = index.spans(row)["image"]
        with Path(span.location).open("r+b") as file:
            file.seek(span.offset)
            file.write(bytes(span.size))
    said = sentence(start(shards, tmp_path / "runs", tiny_model, "monitor.flush_every_steps=1"))
    assert "samples could not be used" in said
    assert "raise data.max_bad_share" in said
    run = tmp_path / "runs" / "demo"
    assert read_status(run)["state"] == "failed"
    bad = [event for event in read_lines(run / "events.jsonl") if event["kind"] == "bad sample"]
    assert bad
    assert {"key", "shard", "reason", "substitute", "step", "slot"} <= set(bad[0])
