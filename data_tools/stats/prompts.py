"""Figures of the prompts that a recipe makes."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from data_tools.stats.forms import FormFigures
from finetune.data.labels import Labels
from finetune.data.prompts.forms import EMPTIED, FORMS
from finetune.data.prompts.length import CAPTION_TOO_LONG, TOO_LONG
from finetune.data.prompts.prompter import Prompt, Prompter
from finetune.data.prompts.tags import TWICE

CLASS_TOKENS = 5
"""Width of a class of lengths."""
IMPLIED = "implied"
"""Reasons that begin so differ in the tag that implies another only, and count as one."""


@dataclass(frozen=True)
class TagFigures:
    """What became of one tag."""

    tag: str
    """As prompts have it."""
    samples: float
    """Share of the samples that store it."""
    prompts: float
    """Share of all prompts that have it."""
    kept: float | None
    """Share of the prompts made of tags, from samples that store it, that have it."""
    kept_at_most: float
    """Upper end of its 95% interval: how much is sure to be lost, however few samples there are."""
    mostly: str | None
    """The most frequent reason why it is not there."""


@dataclass(frozen=True)
class PairFigures:
    """What became of a tag and another that it implies."""

    tag: str
    implied: str
    samples: float
    """Share of the samples that store both."""
    together: float | None
    """Share of the prompts made of tags, from those samples, that have both."""


@dataclass(frozen=True)
class LengthFigures:
    """Tokens of the prompts that are not empty."""

    limit: int
    """`model.max_tokens`."""
    median: int
    p95: int
    longest: int
    cut: float
    """Share of all prompts that would have been longer than the limit."""
    class_tokens: int
    classes: list[int]
    """Prompts by their tokens: from 1 to `class_tokens`, as many further, and so on."""


@dataclass(frozen=True)
class PromptFigures:
    """All figures of the prompts that were drawn for a look."""

    samples: int
    draws: int
    """Of each sample."""
    unreadable: int
    """Further samples, whose labels cannot be read."""
    sources: list[FormFigures]
    """The forms by what the index knows of all samples."""
    forms: dict[str, float]
    """Share of all prompts by form, with those of samples that have nothing and those that were emptied."""
    empty: float
    """Share of all prompts, whatever emptied them."""
    emptied: float
    """Share of all prompts that the recipe empties on purpose."""
    no_flip: float
    """Share of the samples that are never mirrored because of their labels."""
    stored_tags: float
    """Of a sample, on average."""
    drawn_tags: float
    """Of a prompt made of tags, on average."""
    lost_tags: dict[str, float]
    """Of the stored tags of prompts made of tags, the shares that are not there, by the reason."""
    tags: list[TagFigures]
    """Those stored by most samples first."""
    implied_pairs: list[PairFigures]
    """Likewise."""
    lengths: LengthFigures

    def to_plain(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)


class Tally:
    """Counts over samples and their prompts."""

    def __init__(self, limit: int) -> None:
        """Begin with nothing.

        Args:
            limit: the most tokens of a prompt.
        """
        self.limit = limit
        self.samples = self.unreadable = self.no_flip = self.empty = self.cut = 0
        self.forms, self.tokens = Counter[str](), Counter[int]()
        self.tags_stored = self.tags_drawn = self.of_tags = 0
        self.stored, self.chances, self.kept, self.drawn = (Counter[str]() for _ in range(4))
        self.pairs, self.pair_chances, self.together = (Counter[tuple[str, str]]() for _ in range(3))
        self.reasons: dict[str, Counter[str]] = defaultdict(Counter)

    def add(self, prompter: Prompter, labels: Labels, prompts: Sequence[Prompt]) -> None:
        """Count a sample and the prompts that were drawn for it."""
        stored = prompter.stored(labels)
        tags = {tag.text for tag in stored}
        pairs = {(tag.text, implied.text) for tag, implied in prompter.implied_pairs(stored)}
        self.samples += 1
        self.no_flip += prompter.forbids_flip(labels) is not None
        self.tags_stored += len(stored)
        self.stored.update(tags)
        self.pairs.update(pairs)
        for prompt in prompts:
            self.forms[prompt.form] += 1
            self.tokens[prompt.tokens] += 1
            self.empty += not prompt.text
            self.cut += prompt.tokens > self.limit or any(
                gone.reason in (TOO_LONG, CAPTION_TOO_LONG) for gone in prompt.gone
            )
            if "tags" in FORMS.get(prompt.form, ()):
                self._add_tags(prompt, tags, pairs)

    def _add_tags(self, prompt: Prompt, stored: set[str], pairs: set[tuple[str, str]]) -> None:
        there = set(prompt.tags)
        self.of_tags += 1
        self.tags_drawn += len(prompt.tags)
        self.chances.update(stored)
        self.kept.update(stored & there)
        self.drawn.update(there)
        self.pair_chances.update(pairs)
        self.together.update(pair for pair in pairs if there.issuperset(pair))
        for text, reason in prompt.gone:
            if text in stored and text not in there and reason != TWICE:
                self.reasons[text][IMPLIED if reason.startswith(IMPLIED) else reason] += 1

    def figures(self, sources: list[FormFigures], draws: int) -> PromptFigures:
        """What has been counted.

        Args:
            sources: what is known of forms beside it.
            draws: prompts of every sample.
        """
        prompts = max(self.samples * draws, 1)
        return PromptFigures(
            samples=self.samples,
            draws=draws,
            unreadable=self.unreadable,
            sources=sources,
            forms={form: count / prompts for form, count in self.forms.most_common()},
            empty=self.empty / prompts,
            emptied=self.forms[EMPTIED] / prompts,
            no_flip=self.no_flip / max(self.samples, 1),
            stored_tags=self.tags_stored / max(self.samples, 1),
            drawn_tags=self.tags_drawn / max(self.of_tags, 1),
            lost_tags=self._lost(),
            tags=list(self._tags(prompts)),
            implied_pairs=list(self._pairs()),
            lengths=_lengths(self.tokens, self.limit, self.cut / prompts),
        )

    def _lost(self) -> dict[str, float]:
        reasons = sum(self.reasons.values(), Counter[str]())
        chances = max(self.chances.total(), 1)
        return {reason: count / chances for reason, count in _commonest(reasons)}

    def _tags(self, prompts: int) -> Iterator[TagFigures]:
        for tag, samples in _commonest(self.stored):
            kept, chances, reasons = self.kept[tag], self.chances[tag], self.reasons.get(tag)
            yield TagFigures(
                tag=tag,
                samples=samples / self.samples,
                prompts=self.drawn[tag] / prompts,
                kept=kept / chances if chances else None,
                kept_at_most=at_most(kept, chances),
                mostly=reasons.most_common(1)[0][0] if reasons else None,
            )

    def _pairs(self) -> Iterator[PairFigures]:
        for (tag, implied), samples in _commonest(self.pairs):
            chances = self.pair_chances[tag, implied]
            together = self.together[tag, implied] / chances if chances else None
            yield PairFigures(tag, implied, samples / self.samples, together)


def most_lost(tags: Sequence[TagFigures]) -> list[TagFigures]:
    """Of tags that prompts have left out, first those that are lost most; a few samples are no proof."""
    lost = (tag for tag in tags if tag.kept is not None and tag.kept < 1)
    return sorted(lost, key=lambda tag: (tag.kept_at_most, tag.tag))


def at_most(hits: int, trials: int) -> float:
    """Upper end of the 95% interval of a share (Agresti and Coull, The American Statistician 52, 1998); at most 1."""
    middle = (hits + 2) / (trials + 4)
    return min(1.0, middle + 2 * math.sqrt(middle * (1 - middle) / (trials + 4)))


def _commonest(counts: Counter[Any]) -> list[tuple[Any, int]]:
    """The highest counts first; equal ones in alphabetical order."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _lengths(tokens: Counter[int], limit: int, cut: float) -> LengthFigures:
    """Of prompts by their tokens, the figures of those that have any."""
    lengths = sorted(length for length, count in tokens.items() for _ in range(count) if length)
    known = np.array(lengths or [0])
    classes = np.bincount((np.array(lengths, dtype=np.int64) - 1) // CLASS_TOKENS)
    return LengthFigures(
        limit=limit,
        median=int(np.percentile(known, 50, method="inverted_cdf")),
        p95=int(np.percentile(known, 95, method="inverted_cdf")),
        longest=int(known[-1]),
        cut=cut,
        class_tokens=CLASS_TOKENS,
        classes=classes.tolist(),
    )
