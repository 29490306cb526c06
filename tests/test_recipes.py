"""The command line: recipes, overrides, and one sentence for every mistake."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune.config import Config, phases
from finetune.errors import UserError
from finetune.recipes import compose_recipe, explain, packaged_folder, recipe_folder, recipes, split_arguments

RECIPE = ["data.shards=/nowhere"]


def compose(*overrides: str, name: str = "hyperfusion"):  # type: ignore[no-untyped-def]
    return compose_recipe(name, recipe_folder(name), [*RECIPE, *overrides])


@pytest.mark.parametrize("name", sorted(p.stem for p in packaged_folder().glob("*.yaml")))
def test_every_recipe_of_ours_composes(name: str) -> None:
    assert compose(name=name).run.name == name


def test_hyperfusion_says_what_was_published() -> None:
    config = compose()
    assert (config.train.micro_batch, config.train.global_batch) == (8, 256)
    first, second, last = phases(config)
    assert [str(phase.end) for phase in (first, second, last)] == ["10 epochs", "15 epochs", "16 epochs"]
    assert [phase.optim.name for phase in (first, second, last)] == ["adamw8bit", "adamw8bit", "adopt"]
    assert [phase.optim.text_encoder_lr for phase in (first, second, last)] == [1e-6, 1e-7, 1e-7]
    assert [phase.buckets.resolution_px for phase in (first, second, last)] == [768, 1024, 1024]
    assert {(phase.optim.lr, phase.optim.schedule.name) for phase in (first, second, last)} == {(4e-6, "linear")}
    assert (config.model.clip_skip, config.model.max_tokens) == (2, 525)
    buckets = config.data.buckets
    assert (buckets.resolution_px, buckets.max_side_px, buckets.step_px, config.data.flip) == (768, 1024, 32, 0.5)
    assert (config.captions.tags.drop, config.captions.drop, config.captions.tags.shuffle) == (0.15, 0.1, True)
    diffusion = config.diffusion
    assert (diffusion.weighting, diffusion.snr_gamma, diffusion.zero_terminal_snr) == ("soft_min_snr", 3.0, True)
    assert diffusion.noise.perturbation == 0.02
    assert config.strategy.name == "zero1"


def test_groups_and_values_are_overridden_as_hydra_does() -> None:
    config = compose("data=px1024", "strategy=single", "phases=[{until: 7 steps, optim: {lr: 1e-4}}]")
    assert config.data.buckets.max_side_px == 1536
    assert config.strategy.name == "single"
    assert (config.phases[0].until, config.phases[0].optim) == ("7 steps", {"lr": 1e-4})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("farfetched=1", "there is no setting farfetched: `--cfg job` shows all that there are"),
        ("optim.rl=1", "there is no setting optim.rl: did you mean optim.lr"),
        ("optim.lr=fast", "optim.lr is 'fast': give a value of type float"),
        ("optim.name=sdg", "optim.name is 'sdg': use one of adamw, adamw8bit"),
        ("train.micro_batch=half", "train.micro_batch is 'half': give a value of type integer"),
        ("train.global_batch=255", "train.global_batch is 255 and train.micro_batch 8"),
        (
            "optim.schedule=cosine",
            "optim.schedule holds settings by their names: write {name: value}, or give one alone",
        ),
        ("ema=0.9", "ema holds settings by their names"),
        ("phases=[3]", "phases[0] holds settings by their names"),
        ("phases=[{until: 3 steps, optim: adopt}]", "optim holds settings by their names"),
        ("phases=[]", "phases is empty: give the run a length"),
        ("phases=[{until: 3}]", "a phase's until is '3': give a place such as '10 epochs' or '5000 steps'"),
        ("phases=[{steps: 3}]", "there is no setting steps of a phase: use one of until, optim, buckets, micro_batch"),
        ("phases=[{optim: {lr: 1}}]", "phases[0].until is not set"),
        ("model.clip_skip=0", "model.clip_skip is 0: use 1"),
        ("data.buckets.step_px=12", "data.buckets.step_px is 12: use a positive multiple of 8"),
        ("resume=maybe", "resume is 'maybe': use one of auto, never"),
        ("run.name=../x", "run.name is '../x'"),
        ("run.max_crashes_at_step=-1", "run.max_crashes_at_step is -1"),
        ("strategy=zero9", "there is no strategy=zero9: use one of ddp, single, zero1, zero2, zero3"),
        ("captions.drop=2", "captions.drop is 2.0: use a number from 0 to 1"),
        ("monitor.wandb.mode=loud", "monitor.wandb.mode is 'loud'"),
        ("data.sources.x={path: a}", "data.sources.x cannot be set alone: give data.sources={NAME"),
        ("data.shards=???", "data.shards is not set: give it in the recipe or as data.shards="),
        ("monitor.tensorboard=maybe", "monitor.tensorboard is 'maybe': give a value of type bool"),
        (
            "monitor.alerts.to=[mailto://h?to=me]",
            "cannot be read: close all brackets, and put texts in quotes of their own",
        ),
        ("monitor.alerts.to=['${oc.env:NO_SUCH}']", "asks for the environment variable NO_SUCH, which is not set"),
    ],
)
def test_a_mistake_is_one_sentence_that_names_key_value_and_remedy(override: str, message: str) -> None:
    with pytest.raises(UserError) as raised:
        compose(override)
    sentence = str(raised.value).splitlines()[0]
    assert message in sentence


def test_the_user_s_own_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "conf").mkdir()
    mine = "defaults: [schema, {model: sd15}, _self_]\nrun: {name: mine}\nphases: [{until: 3 steps}]\n"
    (tmp_path / "conf" / "mine.yaml").write_text(mine)
    monkeypatch.chdir(tmp_path)
    assert {"mine", "demo", "hyperfusion"} <= set(recipes())
    config = compose(name="mine")
    assert config.run.name == "mine"
    assert config.model.path.startswith("stable-diffusion-v1-5/")


def test_an_unknown_recipe_lists_those_there_are() -> None:
    with pytest.raises(UserError, match=r"there is no recipe 'hyperfusio' .*use one of demo, hyperfusion"):
        recipe_folder("hyperfusio")


def test_a_recipe_has_to_be_given() -> None:
    with pytest.raises(UserError, match=r"conf=NAME, where NAME is one of demo"):
        split_arguments(["optim.lr=1"])
    assert split_arguments(["conf=demo.yaml", "a=1"]) == ("demo", ["a=1"])


def test_messages_without_a_key_are_kept_in_one_line() -> None:
    assert explain(ValueError("one\ntwo")) == "one two"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "finetune", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["conf=demo", "farfetched=1"], "there is no setting farfetched"),
        (["conf=demo", "optim.lr=fast"], "optim.lr is 'fast'"),
        (["conf=nope"], "there is no recipe 'nope'"),
    ],
)
def test_the_command_ends_with_one_sentence_and_code_2(arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_three_processes_cannot_share_a_global_batch_of_16() -> None:
    overrides = ["conf=hyperfusion", "data.shards=/nowhere", "train.micro_batch=4", "train.global_batch=16"]
    first = run(*overrides, WORLD_SIZE="3", RANK="0", LOCAL_RANK="0")
    assert first.returncode == 2
    expected = "a global batch of 16 in micro-batches of 4 cannot be shared by 3 processes: start one of 1, 2, 4\n"
    assert first.stderr == f"error: {expected}"
    second = run(*overrides, WORLD_SIZE="3", RANK="1", LOCAL_RANK="1")
    assert (second.returncode, second.stderr) == (2, "")


@pytest.mark.parametrize(
    "arguments",
    [
        ("conf=demo", "run.name=fox", "--cfg", "job"),
        ("--cfg", "job", "conf=demo", "run.name=fox"),
        ("run.name=fox", "conf=demo", "-c", "job", "train.micro_batch=4"),
    ],
)
def test_hydra_s_own_flags_work_wherever_they_stand(arguments: tuple[str, ...]) -> None:
    shown = run(*arguments)
    assert shown.returncode == 0, shown.stderr
    assert "weight_floor:" in shown.stdout
    assert "name: fox" in shown.stdout
    assert not (Path.cwd() / "outputs").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("captions: {drop: 0.1}", r"bad\.yaml has no defaults: begin it with `defaults: \[schema, _self_\]`"),
        ("defaults: [hyperfusion, _self_]\ncaptions: {tags: {shufle: 1}}", "no setting captions.tags.shufle: did you"),
        ("defaults: [hyperfusion, _self_]\ncaptions: {tags: {drop: often}}", "captions.tags.drop is 'often': give a"),
        ("defaults: [hyperfusion, _self_]\ncaptions: {tags: 0.7}", "0.7 stands where settings belong by their names"),
        ("defaults: [hyperfusion, _self_]\ncaptions: {caption: {weights: [3]}}", "a list stands where settings belong"),
        ("defaults: [hyperfusion, _self_]\ncaptions: {no_flip: text}", r"captions.no_flip has to be a list: write"),
        ("defaults: [hyperfusion, _self_]\ncaptions: {tags: {aliases: {pairs: {1: a}}}}", "name that is no text: put"),
        ("defaults: [hyperfusion, _self_]\ncaptions: null", "captions is empty: remove it"),
        ("defaults: [hyperfusion, _self_]\ncaptions:\n\ttags: 1", "a recipe is no YAML: .*line 3"),
    ],
)
def test_mistakes_in_a_recipe_s_file(text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "bad.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        compose(name="bad")


@pytest.mark.parametrize(
    ("override", "found"),
    [
        ("captions.tags.category_drop={artist: 0.9}", lambda c: c.captions.tags.category_drop == {"artist": 0.9}),
        ("captions.tags.category_drop.artist=0.9", lambda c: c.captions.tags.category_drop == {"artist": 0.9}),
        ("captions.tags.aliases.pairs={doggo: dog}", lambda c: c.captions.tags.aliases.pairs == {"doggo": "dog"}),
        ("captions.caption.weights.blip=2", lambda c: c.captions.caption.weights == {"blip": 2.0}),
    ],
)
def test_names_of_the_user_s_own_can_be_set(override: str, found: Callable[[Config], bool]) -> None:
    assert found(compose(override))
