"""What is asked of a run, as all of its ranks see to it."""

import json
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import yaml

from finetune.control.requests import ANSWERED, FOLDER, Inbox, answer_to, ask
from finetune.data.journal import Edition, Journal
from finetune.live import Live
from finetune.recipes import read_recipe
from finetune.steering import Orders, Steering
from tests.ranks import ThreadRank, on_threads

CONFIG = read_recipe(["conf=demo", "strategy=ddp", "train.micro_batch=16"])


class Told:
    """What a run is told."""

    def __init__(self) -> None:
        self.outcomes: list[str] = []

    def event(self, kind: str, **fields: Any) -> None:
        self.outcomes.append(fields["outcome"])

    def say(self, text: str) -> None:
        pass

    def keep_journal(self, journal: Journal) -> None:
        pass


def steering(run: Path, rank: ThreadRank, prompts: Path) -> Steering:
    """Of a rank whose samples have prompts in a file."""
    recipe = deepcopy(CONFIG)
    recipe.monitor.samples.file = str(prompts)
    journal, live = Journal((Edition(0, {}),)), Live(recipe)
    parts = SimpleNamespace(
        config=SimpleNamespace(run_folder=run),
        distributed=rank,
        feed=SimpleNamespace(journal=journal),
        live=lambda done: live.at(journal.settings, done),
        steered=lambda journal: None,
        steer=lambda journal, phases: None,
    )
    return Steering(cast(Any, SimpleNamespace(parts=parts, watch=Told() if rank.is_main else None)))


def test_all_ranks_set_what_the_first_one_can(tmp_path: Path) -> None:
    """Where a file of prompts is not on all machines, and where it is on others than that of the first rank."""
    (tmp_path / "there.yaml").write_text(yaml.dump(["a fox"]))
    for number, (has, refused) in enumerate(((0, None), (1, "cannot be read"))):
        run = tmp_path / str(number)
        Inbox(run)
        request = ask(run, "set", "monitor.samples.steps=3")
        saved = ask(run, "save")

        def act(rank: ThreadRank, run: Path = run, has: int = has) -> Orders:
            return steering(run, rank, tmp_path / ("there.yaml" if rank.rank == has else "gone.yaml")).take(7)

        assert on_threads(2, act) == [Orders(save=True)] * 2
        answer, after = answer_to(run, request), answer_to(run, saved)
        assert answer is not None
        assert after is not None
        assert (answer.refused is None) == (refused is None)
        assert (refused or "") in (answer.refused or "")
        assert after.refused is None


def test_a_stop_of_nobody_is_a_stop(tmp_path: Path) -> None:
    Inbox(tmp_path)
    plain = {"action": "stop", "assignment": "", "asked_by": ""}
    (tmp_path / FOLDER / "1.json").write_text(json.dumps(plain))
    (orders,) = on_threads(1, lambda rank: steering(tmp_path, rank, tmp_path / "none").take(7))
    assert orders != Orders()
    assert json.loads((tmp_path / FOLDER / ANSWERED / "1.json").read_text())["refused"] is None
