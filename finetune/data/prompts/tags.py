"""What becomes of a sample's tags, draw by draw: dropped, put in order."""

from collections.abc import Sequence
from itertools import repeat
from typing import NamedTuple

import numpy as np

from finetune.data.hashing import CounterRng
from finetune.data.labels import Labels
from finetune.data.prompts.choices import Choice
from finetune.data.prompts.config import TagsConfig
from finetune.data.prompts.patterns import Patterns
from finetune.data.prompts.vocabulary import Tag, Vocabulary
from finetune.data.prompts.writing import WILDCARD_SIGNS, resolve_wildcards


class Gone(NamedTuple):
    """What a draw left out."""

    text: str
    reason: str


TWICE, REMOVED, IN_TEMPLATE = "twice", "removed", "in the template"
"""Why a tag goes before any draw: it is there already, the recipe removes it, or the prompt has it elsewhere."""
MARK = Tag("", "", 0, 0.0, 0.0, "", True, False, True, {}, None)
"""Stands between tags where the recipe's marker does."""


class Stored(NamedTuple):
    """A sample's tags in their order."""

    head: list[Tag]
    """Those kept in front."""
    body: list[Tag]
    tail: list[Tag]
    """Those kept at the end."""


class TagPolicy:
    """What one recipe makes of tags."""

    def __init__(self, config: TagsConfig, no_flip: Patterns, *, wildcards: bool, seed: int) -> None:
        """Read the lists that the recipe names.

        Raises:
            UserError: one of them is missing or broken.
        """
        self._config = config
        self._wildcards = wildcards
        self._no_flip = no_flip
        self._marks = [mark for mark in (config.keep_separator, config.split, "{" if wildcards else "") if mark]
        self.vocabulary = Vocabulary(config, no_flip, seed)

    def stored(self, labels: Labels, rng: CounterRng, gone: list[Gone], said: str = "") -> Stored:
        """A sample's tags as the recipe writes them, each once; those that it removes, and those that come again, are
        added to `gone`.

        Args:
            rng: of the draw; wildcards are resolved with it.
            said: canonical name of a tag that the prompt has in another place.
        """
        tags = self._each_once(self._read(labels, rng), gone, said)
        if not self._config.keep_separator or MARK not in tags:
            first = self._config.keep_first
            return Stored(tags[:first], tags[first:], [])
        first = tags.index(MARK)
        rest = tags[first + 1 :]
        second = rest.index(MARK) if MARK in rest else len(rest)
        return Stored(tags[:first], rest[:second], [tag for tag in rest[second:] if tag is not MARK])

    def draw(self, stored: Stored, rng: CounterRng, step: int, gone: list[Gone]) -> Stored:
        """Those of a sample's tags that one draw has, in its order; what it leaves out is added to `gone`.

        Args:
            rng: of the draw.
            step: optimizer step of the draw, counted from 0.
        """
        body = self._warmed_up(stored.body, step, gone)
        # A tag's chances are its own, whatever stands beside it and whatever else the recipe asks for.
        numbers = np.array([tag.number for tag in body], dtype=np.int64).view(np.uint64)
        drop, implied, rank = rng.fork(Choice.TAGS).uniforms_of(numbers, 3).tolist()
        sparse = rng.at(Choice.SPARSE) < self._config.sparse
        stays = _staying(body, drop, gone, sparse=sparse, all_may_go=bool(stored.head or stored.tail))
        if self.vocabulary.implications:
            there = [*stored.head, *[body[place] for place in stays], *stored.tail]
            stays = self._without_implied(body, stays, there, implied, gone)
        if self._config.shuffle:
            stays.sort(key=rank.__getitem__)
        if self._config.important:
            later = [not tag.important for tag in body]
            stays.sort(key=later.__getitem__)
        return Stored(stored.head, [body[place] for place in stays], stored.tail)

    def forbids_flip(self, labels: Labels) -> str | None:
        """The pattern because of which a sample's tags, all that are stored, forbid to mirror its picture."""
        for tag in self._read(labels, None):
            if tag.no_flip:
                return tag.no_flip
        wild = [tag for tag in labels.tags if "{" in tag] if self._wildcards else []  # of which any choice may come
        return next(filter(None, (self._no_flip.words(WILDCARD_SIGNS.sub(" ", tag)) for tag in wild)), None)

    def implied_pairs(self, tags: Sequence[Tag]) -> list[tuple[Tag, Tag]]:
        """All (tag, other that it implies) among some tags."""
        by_name = {tag.name: tag for tag in tags}
        return [(tag, by_name[name]) for tag in tags for name in sorted(by_name.keys() & tag.implies.keys())]

    def _read(self, labels: Labels, rng: CounterRng | None) -> list[Tag]:
        """All of a sample's tags: cut at `split`, with MARK where the recipe's marker stands, and with wildcards
        resolved where a draw's `rng` is given."""
        tag, marker, split = self.vocabulary.tag, self._config.keep_separator, self._config.split
        written = "\n".join(labels.tags) if self._marks else ""
        if not any(mark in written for mark in self._marks):
            return list(map(tag, labels.tags, labels.categories) if labels.categories else map(tag, labels.tags))
        tags: list[Tag] = []
        rng = rng.fork(Choice.TAG_WILDCARDS) if rng and self._wildcards else None
        for stored, category in zip(labels.tags, labels.categories or repeat(""), strict=False):
            text = resolve_wildcards(stored, rng) if rng else stored
            for number, part in enumerate(text.split(marker) if marker else [text]):
                tags += [MARK] if number else []
                tags += [tag(name, category) for name in (part.split(split) if split else [part])]
        return tags

    def _each_once(self, tags: list[Tag], gone: list[Gone], said: str) -> list[Tag]:
        """Those that a prompt may have, without those that come again."""
        names = {tag.name for tag in tags if tag.usable}
        if len(names) == len(tags) and said not in names:
            return tags
        seen: set[str] = set()
        kept = []
        for tag in tags:
            if not tag.usable:
                gone += [Gone(tag.text, REMOVED)] if tag.text else []
            elif tag.name == said and tag is not MARK:
                gone.append(Gone(tag.text, IN_TEMPLATE))
            elif tag.name in seen and self._config.unique and tag is not MARK:
                gone.append(Gone(tag.text, TWICE))
            else:
                kept.append(tag)
                seen.add(tag.name)
        return kept

    def _warmed_up(self, body: list[Tag], step: int, gone: list[Gone]) -> list[Tag]:
        over, least = self._config.warmup_steps, self._config.warmup_min
        if step >= over or len(body) <= least:
            return body
        count = least + (len(body) - least) * step // over
        gone += [Gone(tag.text, "warm-up") for tag in body[count:] if not tag.protected]
        return body[:count] + [tag for tag in body[count:] if tag.protected]

    def _without_implied(
        self, body: list[Tag], stays: list[int], there: list[Tag], chances: list[float], gone: list[Gone]
    ) -> list[int]:
        """Places of the body but of tags that others still there imply, each dropped by the likeliest of its pairs."""
        most = self._config.implications.drop[1]
        may_go = {body[place].name: place for place in stays if chances[place] < most and not body[place].protected}
        likeliest: dict[str, tuple[float, str]] = {}
        names = set(may_go)
        for tag in there:
            if names.isdisjoint(tag.implies):
                continue
            for implied in names.intersection(tag.implies):
                if implied not in likeliest or tag.implies[implied] > likeliest[implied][0]:
                    likeliest[implied] = (tag.implies[implied], tag.text)
        goes = {name: by for name, (share, by) in likeliest.items() if chances[may_go[name]] < share}
        if not goes:
            return stays
        gone += [Gone(body[p].text, f"implied by {goes[body[p].name]}") for p in stays if body[p].name in goes]
        return [place for place in stays if body[place].name not in goes]


def _staying(body: list[Tag], chances: list[float], gone: list[Gone], *, sparse: bool, all_may_go: bool) -> list[int]:
    """Places of the tags that chance does not drop. Where it would drop all, the one nearest to staying does."""
    shares = [tag.sparse_drop for tag in body] if sparse else [tag.drop for tag in body]
    stays: list[int] = []
    goes: list[int] = []
    for place, share in enumerate(shares):
        (stays if chances[place] >= share else goes).append(place)
    if not (stays or all_may_go):
        may_stay = [place for place in goes if body[place].drop < 1.0]
        stays = [max(may_stay, key=chances.__getitem__)] if may_stay else []
        goes = [place for place in goes if place not in stays]
    for place in goes:
        tag = body[place]
        gone.append(Gone(tag.text, "sparse prompt" if sparse and tag.drop < 1.0 else tag.reason))
    return stays


def tags_of(tags: Stored) -> list[Tag]:
    """All of them in their order."""
    return [*tags.head, *tags.body, *tags.tail]
