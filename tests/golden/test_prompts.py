"""Prompts that conf/hyperfusion.yaml draws, and that a refactor has to draw again; a change that is meant to alter them
says why, and writes them anew with

LONGHAUL_WRITE_GOLDEN=1 .venv/bin/pytest tests/golden
"""

import json
import os
from pathlib import Path

from finetune.config import policies
from finetune.data.labels import Labels
from finetune.data.plan import Draw
from finetune.recipes import read_recipe
from tests.helpers import WORDS

GOLDEN = Path(__file__).with_name("prompts.json")
DRAWS = 20
SAMPLES = {
    "10_red fox/1.jpg": Labels(
        ("red_fox", "fox", "canine", "^_^", "snow", "outside", "tree", "sitting", "looking_at_viewer", "fox", "hi_res"),
        ("A red fox sits in the snow. It looks at us.", "a fox in winter"),
    ),
    "2.jpg": Labels(("1girl", "hat_(red)", "text_on_clothing", "smile", "solo", "long_hair", "simple_background")),
    "3.jpg": Labels((), ("A letter, written by hand.",)),
    "4.jpg": Labels(("landscape",), ("mountains",)),
    "5.jpg": Labels(),
}
IMPLICATIONS = "captions.tags.implications.pairs=[[red fox,fox],[fox,canine]]"


def test_prompts_are_those_of_before() -> None:
    (policy,) = policies(read_recipe(["conf=hyperfusion", "data.shards=x", "model.path=x", IMPLICATIONS]))
    found = {
        path: [policy.prompter.draw(labels, path, Draw(sample, epoch, 0), 0, WORDS).text for epoch in range(DRAWS)]
        for sample, (path, labels) in enumerate(SAMPLES.items())
    }
    if os.environ.get("LONGHAUL_WRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    assert found == json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert sum(map(len, found.values())) == 100


def test_the_recipe_mirrors_nothing_with_writing_in_it() -> None:
    (policy,) = policies(read_recipe(["conf=hyperfusion", "data.shards=x", "model.path=x"]))
    forbidden = [path for path, labels in SAMPLES.items() if policy.prompter.forbids_flip(labels)]
    assert forbidden == ["2.jpg", "3.jpg"]
