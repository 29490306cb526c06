"""What becomes of a sample's tags: named, spelled, dropped, put in order."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import repeat
from typing import NamedTuple

from finetune.data.hashing import CounterRng, purpose_key
from finetune.data.labels import Labels
from finetune.data.prompts.choices import Choice
from finetune.data.prompts.config import TagsConfig
from finetune.data.prompts.lists import CATEGORIES, Aliases, Implications, canonical, read_categories
from finetune.data.prompts.patterns import Patterns
from finetune.data.prompts.writing import clean, resolve_wildcards, spell
from finetune.errors import UserError

TAGS_KEPT = 1 << 16
"""As many different tags are remembered with what the recipe says of them."""


class Tag(NamedTuple):
    """A tag, and what the recipe says of it."""

    name: str
    """Canonical, and no alias."""
    text: str
    """As it is written in a prompt."""
    drop: float
    sparse_drop: float
    reason: str
    """Why it is dropped where it is."""
    protected: bool
    important: bool
    implies: frozenset[str]
    """Canonical names."""
    usable: bool
    """Whether a prompt may have it: there is something to write, and the recipe does not remove it."""
    no_flip: str | None
    """The pattern because of which a picture that has it must not be mirrored."""


class Gone(NamedTuple):
    """What a draw left out."""

    text: str
    reason: str


MARK = Tag("", "", 0.0, 0.0, "", protected=True, important=False, implies=frozenset(), usable=True, no_flip=None)
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
        self._aliases = Aliases(config.aliases)
        self._categories = _categories(config)
        self._implications = Implications(config.implications, purpose_key(seed, "implications"))
        self._important = Patterns(config.important)
        self._never_drop = Patterns(config.never_drop)
        self._remove = Patterns(config.remove)
        self._no_flip = no_flip
        self._marks = [mark for mark in (config.keep_separator, config.split, "{" if wildcards else "") if mark]
        self._category_drop = {category.lower(): share for category, share in config.category_drop.items()}
        self._likelihood = lru_cache(maxsize=TAGS_KEPT)(self._implications.probability)
        self.tag = lru_cache(maxsize=TAGS_KEPT)(self._tag)

    def _tag(self, stored: str, category: str = "") -> Tag:
        """What the recipe says of a stored tag, given its category where the sample tells it."""
        text = clean(stored)
        own_name = canonical(text)
        name = self._aliases.resolve(own_name)
        category = category.lower() or self._categories.get(name, "")
        drop, sparse_drop, reason = self._config.drop, self._config.sparse_drop, "by chance"
        if category in self._category_drop:
            drop, reason = self._category_drop[category], f"category {category}"
            sparse_drop = max(sparse_drop, drop)
        if protected := self._never_drop.tag(name, category) is not None:
            drop = sparse_drop = 0.0
        text = spell(text if name == own_name else name, self._config.spelling)
        if self._config.group_separator:
            text = self._config.separator.join(clean(part) for part in text.split(self._config.group_separator))
        return Tag(
            name,
            text,
            drop,
            sparse_drop,
            reason,
            protected,
            important=self._important.tag(name, category) is not None,
            implies=self._implications.implied_by(name),
            usable=bool(text) and self._remove.tag(name, category) is None,
            no_flip=self._no_flip.tag(name, category),
        )

    def tags(self, labels: Labels) -> list[Tag]:
        """A sample's tags, one for one."""
        return list(map(self.tag, labels.tags, labels.categories) if labels.categories else map(self.tag, labels.tags))

    def has_any(self, labels: Labels) -> bool:
        """Whether there is a tag that a prompt may have."""
        categories = labels.categories or repeat("")
        return any(self.tag(stored, category).usable for stored, category in zip(labels.tags, categories, strict=False))

    def stored(self, labels: Labels, rng: CounterRng, gone: list[Gone]) -> Stored:
        """A sample's tags as the recipe writes them, each once; those that come again are added to `gone`.

        Args:
            rng: of the draw; wildcards are resolved with it.
        """
        written = "\n".join(labels.tags) if self._marks else ""
        if any(mark in written for mark in self._marks):
            tags = self._marked(labels, rng.fork(Choice.TAG_WILDCARDS))
        else:
            tags = self.tags(labels)
        tags = self._each_once(tags, gone)
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
        # Every tag has its own chances, so that no policy's choices depend on what the others are.
        drop, implied, rank = rng.fork(Choice.TAGS).uniforms(3 * len(body)).reshape(3, len(body)).tolist()
        sparse = rng.at(Choice.SPARSE) < self._config.sparse
        stays = _staying(body, drop, gone, sparse=sparse, all_may_go=bool(stored.head or stored.tail))
        if self._implications:
            there = [*stored.head, *[body[place] for place in stays], *stored.tail]
            stays = self._without_implied(body, stays, there, implied, gone)
        if self._config.shuffle:
            stays.sort(key=rank.__getitem__)
        if self._config.important:
            later = [not tag.important for tag in body]
            stays.sort(key=later.__getitem__)
        return Stored(stored.head, [body[place] for place in stays], stored.tail)

    def implied_pairs(self, tags: Sequence[Tag]) -> list[tuple[Tag, Tag]]:
        """All (tag, other that it implies) among some tags."""
        by_name = {tag.name: tag for tag in tags}
        return [(tag, by_name[name]) for tag in tags for name in sorted(tag.implies.intersection(by_name))]

    def _marked(self, labels: Labels, rng: CounterRng) -> list[Tag]:
        """Tags with wildcards resolved, cut at `split`, and MARK where the recipe's marker stands."""
        tags: list[Tag] = []
        marker = self._config.keep_separator
        for stored, category in zip(labels.tags, labels.categories or repeat(""), strict=False):
            text = resolve_wildcards(stored, rng) if self._wildcards else stored
            for number, part in enumerate(text.split(marker) if marker else [text]):
                tags += [MARK] if number else []
                names = part.split(self._config.split) if self._config.split else [part]
                tags += [self.tag(name, category) for name in names]
        return tags

    def _each_once(self, tags: list[Tag], gone: list[Gone]) -> list[Tag]:
        """Those that a prompt may have, without those that come again."""
        if len({tag.name for tag in tags if tag.usable}) == len(tags):
            return tags
        seen: set[str] = set()
        kept = []
        for tag in tags:
            if not tag.usable:
                gone.append(Gone(tag.text, "removed"))
            elif tag.name in seen and self._config.unique and tag is not MARK:
                gone.append(Gone(tag.text, "twice"))
            else:
                kept.append(tag)
                seen.add(tag.name)
        return kept

    def _warmed_up(self, body: list[Tag], step: int, gone: list[Gone]) -> list[Tag]:
        over, least = self._config.warmup_steps, self._config.warmup_min
        if step >= over or len(body) <= least:
            return body
        count = least + (len(body) - least) * step // over
        gone += [Gone(tag.text, "warm-up") for tag in body[count:]]
        return body[:count]

    def _without_implied(
        self, body: list[Tag], stays: list[int], there: list[Tag], chances: list[float], gone: list[Gone]
    ) -> list[int]:
        """Places of the body but of tags that others still there imply, each dropped by the likeliest of its pairs."""
        likeliest: dict[str, tuple[float, str]] = {}
        most = self._config.implications.drop[1]
        names = {body[place].name for place in stays if chances[place] < most and not body[place].protected}
        for tag in there:
            if names.isdisjoint(tag.implies):
                continue
            for implied in tag.implies & names:
                pair = (self._likelihood(tag.name, implied), tag.text)
                likeliest[implied] = max(pair, likeliest.get(implied, pair))
        kept = []
        for place in stays:
            tag = body[place]
            if tag.name in likeliest and chances[place] < likeliest[tag.name][0]:
                gone.append(Gone(tag.text, f"implied by {likeliest[tag.name][1]}"))
            else:
                kept.append(place)
        return kept


def _staying(body: list[Tag], chances: list[float], gone: list[Gone], *, sparse: bool, all_may_go: bool) -> list[int]:
    """Places of the tags that chance does not drop. Where it would drop all, the one nearest to staying does."""
    shares = [tag.sparse_drop for tag in body] if sparse else [tag.drop for tag in body]
    stays = [place for place, share in enumerate(shares) if chances[place] >= share]
    if not (stays or all_may_go):
        may_stay = [place for place, tag in enumerate(body) if tag.drop < 1.0]
        stays = [max(may_stay, key=chances.__getitem__)] if may_stay else []
    for place in sorted({*range(len(body))}.difference(stays)):
        tag = body[place]
        gone.append(Gone(tag.text, "sparse prompt" if sparse and tag.drop < 1.0 else tag.reason))
    return stays


def _categories(config: TagsConfig) -> Mapping[str, str]:
    """Category by canonical name. Raises UserError where the recipe speaks of one that there is not."""
    if config.categories.file is None:
        return {}
    categories = read_categories(config.categories.file, config.categories.site)
    known = {*CATEGORIES[config.categories.site].values(), *categories.values()}
    for category in config.category_drop:
        if category.lower() not in known:
            raise UserError(f"captions.tags.category_drop has {category!r}: use one of {', '.join(sorted(known))}")
    return categories


def tags_of(tags: Stored) -> list[Tag]:
    """All of them in their order."""
    return [*tags.head, *tags.body, *tags.tail]
