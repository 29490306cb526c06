"""From a sample's labels to the prompt of a draw. The order of the policies is that of `Prompter.draw`."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import NamedTuple

from finetune.data.hashing import CounterRng, purpose_key, weighted
from finetune.data.labels import Labels, concept
from finetune.data.plan import Draw
from finetune.data.prompts.captions import CaptionPolicy
from finetune.data.prompts.choices import Choice
from finetune.data.prompts.config import FILEWORDS, FOLDER, NAME, CaptionsConfig
from finetune.data.prompts.forms import EMPTIED, FORMS, MISSING, effective_mix
from finetune.data.prompts.length import CAPTION_TOO_LONG, TOO_LONG, Parts, TokenLimit, fit
from finetune.data.prompts.patterns import Patterns
from finetune.data.prompts.tags import IN_TEMPLATE, REMOVED, TWICE, Gone, Stored, TagPolicy, tags_of
from finetune.data.prompts.vocabulary import Tag
from finetune.data.prompts.writing import clean, resolve_wildcards
from finetune.errors import UserError

SENTENCE_ENDS = (".", "!", "?", "。")
NOT_DROPPED = {TWICE, REMOVED, IN_TEMPLATE, CAPTION_TOO_LONG}
"""Reasons why something is not in a prompt that do not make it a dropped tag."""


class Prompt(NamedTuple):
    """The prompt of a draw, and how it came about."""

    text: str
    form: str
    """One of FORMS, or EMPTIED."""
    tags: tuple[str, ...]
    """The tags in it, in order."""
    tokens: int
    gone: tuple[Gone, ...]

    @property
    def dropped(self) -> int:
        """How many of the tags that the prompt could have had it has not, whatever the reason."""
        return sum(one.reason not in NOT_DROPPED for one in self.gone)

    @property
    def truncated(self) -> bool:
        """Whether tags or words are left out because the prompt would be too long."""
        return any(one.reason in (TOO_LONG, CAPTION_TOO_LONG) for one in self.gone)


class Policy(NamedTuple):
    """What one source asks for."""

    prompter: "Prompter"
    loss_weight: float


class Prompter:
    """Draws prompts as one recipe wants them. Every choice is a function of (seed, draw), and none depends on whether
    others are made, so that a policy more or less leaves them as they were."""

    def __init__(self, config: CaptionsConfig, seed: int) -> None:
        """Read the lists that the recipe names.

        Raises:
            UserError: one of them is missing or broken.
        """
        self.config = config
        self._key = purpose_key(seed, "prompt")
        no_flip = Patterns(config.no_flip)
        self._tags = TagPolicy(config.tags, no_flip, wildcards=config.wildcards, seed=seed)
        self._captions = CaptionPolicy(config.caption, wildcards=config.wildcards)
        self._no_flip = no_flip
        self._mixes = {has: effective_mix(config.mix, *has) for has in product((False, True), repeat=2)}
        self._name = clean(config.name)
        self._tag_of_name = self._tags.vocabulary.name(self._name)
        templates = config.templates or ([f"{NAME}{config.tags.separator}{FILEWORDS}"] if self._name else [FILEWORDS])
        self._frames = [clean(f"{config.prefix} {template} {config.suffix}") for template in templates]
        if not self._name and any(NAME in frame for frame in self._frames):
            raise UserError(f"captions.templates ask for {NAME}, but captions.name is empty: give it")
        if self._name and not any(NAME in frame for frame in self._frames):
            raise UserError(f"captions.name is {self._name!r}, but no template has {NAME}: put it into some of them")

    def draw(self, labels: Labels, path: str, draw: Draw, step: int, limit: TokenLimit) -> Prompt:
        """The prompt of a draw.

        Args:
            path: where the sample lies in its tree, or its key; its folder may give the prompt.
            step: optimizer step of the draw, counted from 0; only the warm-up of tags asks for it.
        """
        rng = CounterRng(self._key, draw.epoch, draw.sample, draw.repeat)
        if self._is_emptied(draw.epoch, rng):
            return Prompt("", EMPTIED, (), 0, ())
        gone: list[Gone] = []
        frame, caption = self._frame(rng), ""
        tags = self._tags.stored(labels, rng, gone, said=self._tag_of_name if NAME in frame else "")
        weights = self._captions.weights(labels)
        form = self._form(any(tags), any(weights), rng)
        if "tags" in FORMS[form] and FILEWORDS in frame:
            tags = self._tags.draw(tags, rng, step, gone)
        else:
            tags, gone = Stored([], [], []), []
        if form == MISSING:
            caption = clean(self.config.missing.replace(FOLDER, folder_of(path)))
        elif "caption" in FORMS[form] and FILEWORDS in frame:
            caption = self._captions.draw(labels, weights, rng)
        frame = frame.replace(NAME, self._name)
        if FOLDER in frame:
            frame = clean(frame.replace(FOLDER, folder_of(path)))
        write = partial(self._write, form, frame)
        fitting = fit(Parts(tags, caption, caption_first=form == "caption_tags"), write, limit, gone)
        return Prompt(fitting.text, form, tuple(fitting.tags), fitting.tokens, tuple(gone))

    def check(self, limit: TokenLimit) -> None:
        """Raise UserError where what stands around every prompt is longer than a prompt may be."""
        for frame in self._frames:
            tokens = limit.tokens(frame.replace(NAME, self._name).replace(FILEWORDS, ""))
            if tokens > limit.most:
                raise UserError(
                    f"captions.prefix, suffix, name and the template {frame!r} have {tokens} tokens, but "
                    f"model.max_tokens is {limit.most}: shorten them"
                )

    def stored(self, labels: Labels) -> list[Tag]:
        """All of a sample's tags as they are before a draw, each once; a wildcard among them is resolved in one of its
        ways."""
        return tags_of(self._tags.stored(labels, CounterRng(self._key), []))

    def implied_pairs(self, tags: list[Tag]) -> list[tuple[Tag, Tag]]:
        """All (tag, other that it implies) among some tags."""
        return self._tags.implied_pairs(tags)

    def forms(self, labels: Labels) -> dict[str, float]:
        """The share of each form among a sample's prompts, before any are emptied."""
        return self._mixes[bool(self.stored(labels)), any(self._captions.weights(labels))]

    def forbids_flip(self, labels: Labels) -> str | None:
        """The pattern because of which a sample must not be mirrored; None where it may be."""
        if not self.config.no_flip:
            return None
        by_caption = (self._no_flip.words(caption) for caption in labels.captions)
        return self._tags.forbids_flip(labels) or next(filter(None, by_caption), None)

    def _is_emptied(self, epoch: int, rng: CounterRng) -> bool:
        every = self.config.drop_every_epochs
        return bool(every and (epoch + 1) % every == 0) or rng.at(Choice.EMPTY) < self.config.drop

    def _form(self, has_tags: bool, has_caption: bool, rng: CounterRng) -> str:
        mix = self._mixes[has_tags, has_caption]
        return list(mix)[weighted(rng.at(Choice.FORM), list(mix.values()))]

    def _frame(self, rng: CounterRng) -> str:
        """Prefix, template and suffix of a draw."""
        frame = self._frames[int(rng.at(Choice.TEMPLATE) * len(self._frames))]
        if self.config.wildcards and "{" in frame:
            frame = clean(resolve_wildcards(frame, rng.fork(Choice.TEMPLATE_WILDCARDS)))
        return frame

    def _write(self, form: str, frame: str, tags: list[str], caption: str) -> str:
        """The prompt of some tags and a caption."""
        separator = self.config.tags.separator
        parts = {"tags": separator.join(tags), "caption": caption}
        first, *second = [parts[name] for name in FORMS[form] if parts[name]] or [""]
        ends = form == "caption_tags" and first.endswith(SENTENCE_ENDS)
        words = (" " if ends else separator).join((first, *second))
        if frame == FILEWORDS:
            return words
        if words:
            return frame.replace(FILEWORDS, words)
        # What stood between the words and the rest of the frame would be left over.
        pieces = (clean(piece.replace(FILEWORDS, "")) for piece in frame.split(separator.strip() or None))
        return separator.join(filter(None, pieces))


def checked_limit(policies: Sequence[Policy], count: Callable[[str], int], most: int) -> TokenLimit:
    """The limit of prompts, as `TokenLimit` takes it. Raises UserError where a policy alone goes beyond it."""
    limit = TokenLimit(count, most)
    for policy in policies:
        policy.prompter.check(limit)
    return limit


def folder_of(path: str) -> str:
    """The name of a sample's folder, for a prompt."""
    return clean(concept(path)[1])
