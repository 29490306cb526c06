"""A recipe's data opened to be looked at: everything that is needed to compute again what a draw is."""

from dataclasses import dataclass
from pathlib import Path

from finetune.config import Config, plan_settings, policies
from finetune.data.journal import Journal
from finetune.data.plan import Plan
from finetune.data.prepare import DataSet
from finetune.data.preparer import Preparer
from finetune.data.prompts.prompter import Policy, checked_limit
from finetune.data.sources import Sources
from finetune.model.text import PromptTokenizer, load_tokenizers


@dataclass(frozen=True)
class Opened:
    """What training would read, cut and draw."""

    dataset: DataSet
    journal: Journal
    plan: Plan
    sources: Sources
    preparer: Preparer
    policies: list[Policy]
    """One per source."""


def open_recipe(config: Config, kept: Path, journal: Journal | None = None) -> Opened:
    """Open what a recipe trains with.

    Args:
        kept: folder for copies of overlays.
        journal: of a run; without one, the data is as a run that begins now would find it.

    Raises:
        UserError: something in the recipe, the data or the model's tokenizer has to be mended first.
    """
    drawn = policies(config)
    tokenizer = PromptTokenizer(load_tokenizers(config.model), config.model.max_tokens)
    limit = checked_limit(drawn, tokenizer.count, tokenizer.max_tokens)
    dataset = DataSet(config.data, plan_settings(config), kept)
    journal = journal or dataset.began()
    plan, sources = dataset.plan(journal), dataset.sources(journal)
    preparer = Preparer(plan, sources, config.data, drawn, limit, config.run.seed)
    return Opened(dataset, journal, plan, sources, preparer, drawn)
