"""Draw the prompts of some of a recipe's samples, with the code that training runs."""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from data_tools.progress import in_parallel
from data_tools.stats.forms import forms_of
from data_tools.stats.prompts import PromptFigures, Tally
from data_tools.stats.sources import OpenSource
from finetune.config import Config
from finetune.data.buckets import I64
from finetune.data.plan import Draw
from finetune.data.samples import ids_of_rows
from finetune.errors import DataFault
from finetune.recipe_data import Opened


def look(config: Config, opened: Opened, sources: Sequence[OpenSource], samples: int, draws: int) -> PromptFigures:
    """Draw the prompts of some samples, spread evenly over all that are trained, in the first epochs.

    Args:
        opened: the recipe's data.
        sources: those of `opened`.
        samples: how many, or all where there are fewer.
        draws: of each sample, one an epoch.

    Raises:
        UserError: a shard is missing, cannot be reached or is not the one that was indexed.
    """
    # What is missing later is waited for, as in training.
    opened.sources.verify()
    first_steps = [opened.plan.first_step(epoch) for epoch in range(draws)]
    tally = Tally(config.model.max_tokens)

    def draw(sample: int) -> None:
        try:
            record = opened.sources.read(sample, 0, whole_shard=False)
        except DataFault:
            tally.unreadable += 1
            return
        drawn = [opened.preparer.prompt(record, Draw(sample, epoch, 0), step) for epoch, step in enumerate(first_steps)]
        tally.add(opened.policies[record.source].prompter, record.labels, drawn)

    for _ in in_parallel(draw, [(sample,) for sample in spread(sources, samples)], 1, "prompts"):
        pass
    forms = [
        forms_of(source, policy.prompter.config.mix) for source, policy in zip(sources, opened.policies, strict=True)
    ]
    return tally.figures(forms, draws)


def spread(sources: Sequence[OpenSource], count: int) -> list[int]:
    """The ids of so many samples at even distances among all that are trained, or of all of them."""
    trained = [source.trained() for source in sources]
    total = sum(map(len, trained))
    count = min(count, total)
    places = (2 * np.arange(count) + 1) * total // (2 * max(count, 1))
    found: list[int] = []
    for source, rows, end in zip(sources, trained, accumulate(map(len, trained)), strict=True):
        own: I64 = rows[places[(places >= end - len(rows)) & (places < end)] - (end - len(rows))]
        found += ids_of_rows(own, source.samples.number, source.stored.index.first_rows).tolist()
    return found
