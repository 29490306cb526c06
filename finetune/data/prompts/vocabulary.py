"""What a recipe says of each tag, whichever sample it stands in: its name, its spelling, how often it is dropped."""

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from finetune.data.hashing import purpose_key
from finetune.data.prompts.config import TagsConfig
from finetune.data.prompts.lists import CATEGORIES, Aliases, Implications, canonical, read_categories
from finetune.data.prompts.patterns import Patterns
from finetune.data.prompts.writing import clean, spell
from finetune.errors import UserError

TAGS_KEPT = 1 << 16
"""As many different tags are remembered."""
NOTHING: Mapping[str, float] = {}
"""What most tags imply: one for all, which stays in the processor's cache."""


class Tag(NamedTuple):
    """A tag, and what the recipe says of it."""

    name: str
    """Canonical, and no alias; of a group all names together."""
    text: str
    """As it is written in a prompt."""
    number: int
    """Of its own, from the name: a signed integer of 64 bits."""
    drop: float
    sparse_drop: float
    reason: str
    """Why it is dropped where it is."""
    protected: bool
    """Whether it is never dropped."""
    important: bool
    usable: bool
    """Whether a prompt may have it: there is something to write, and the recipe does not remove it."""
    implies: Mapping[str, float]
    """Canonical names of what follows from it, and how often each is left out for that."""
    no_flip: str | None
    """The pattern because of which a picture that has it must not be mirrored."""


class Vocabulary:
    """Tags by what is stored of them."""

    def __init__(self, config: TagsConfig, no_flip: Patterns, seed: int) -> None:
        """Read the lists that the recipe names.

        Raises:
            UserError: one of them is missing or broken.
        """
        self._config = config
        self._aliases = Aliases(config.aliases)
        self._categories: Mapping[str, str] = {}
        self._category_drop = {category.lower(): share for category, share in config.category_drop.items()}
        self.implications = Implications(config.implications, purpose_key(seed, "implications"), self._aliases.resolve)
        self._important, self._never_drop = Patterns(config.important), Patterns(config.never_drop)
        self._remove, self._no_flip = Patterns(config.remove), no_flip
        if config.categories.file:
            self._categories = read_categories(config.categories.file, config.categories.site)
            self._check_categories()
        self.tag = lru_cache(maxsize=TAGS_KEPT)(self._tag)

    def name(self, tag: str) -> str:
        """The canonical name of a tag, which is no alias."""
        return self._aliases.resolve(canonical(tag))

    def _tag(self, stored: str, category: str = "") -> Tag:
        """What the recipe says of a stored tag, given its category where the sample tells it."""
        group = stored.split(self._config.group_separator) if self._config.group_separator else [stored]
        parts = [part for part in map(clean, group) if part]
        names = [self.name(part) for part in parts]
        aliases = [canonical(part) for part in parts]
        category = category.lower() or self._category((*names, *aliases))
        drop, sparse_drop, reason = self._config.drop, self._config.sparse_drop, "by chance"
        if category in self._category_drop:
            drop, reason = self._category_drop[category], f"category {category}"
            sparse_drop = max(sparse_drop, drop)
        known_as = (*names, *aliases)
        if protected := self._never_drop.tag(known_as, category) is not None:
            drop = sparse_drop = 0.0
        texts = [
            spell(part if name == alias else name, self._config.spelling)
            for part, name, alias in zip(parts, names, aliases, strict=True)
            if self._remove.tag((name, alias), category) is None
        ]
        whole_name = " ".join(names)
        return Tag(
            name=whole_name,
            text=self._config.separator.join(texts) or " ".join(parts),
            number=int.from_bytes(hashlib.blake2b(whole_name.encode(), digest_size=8).digest(), "little", signed=True),
            drop=drop,
            sparse_drop=sparse_drop,
            reason=reason,
            protected=protected,
            important=self._important.tag(known_as, category) is not None,
            usable=bool(texts),
            implies=self._implied_by(names),
            no_flip=self._no_flip.tag(known_as, category),
        )

    def _implied_by(self, names: list[str]) -> Mapping[str, float]:
        """What some names imply, each with the highest of their probabilities."""
        implied = frozenset[str]().union(*map(self.implications.implied_by, names))
        probability = self.implications.probability
        return {other: max(probability(name, other) for name in names) for other in implied} if implied else NOTHING

    def _category(self, names: tuple[str, ...]) -> str:
        return next((self._categories[name] for name in names if name in self._categories), "")

    def _check_categories(self) -> None:
        """Raise UserError where the recipe speaks of a category that there is not."""
        known = {*CATEGORIES[self._config.categories.site].values(), *self._categories.values()}
        for setting, categories in (
            ("tags.category_drop", self._category_drop),
            ("tags.important", self._important.categories),
            ("tags.never_drop", self._never_drop.categories),
            ("tags.remove", self._remove.categories),
            ("no_flip", self._no_flip.categories),
        ):
            for category in sorted(set(categories) - known):
                raise UserError(f"captions.{setting} has {category!r}: use one of {', '.join(sorted(known))}")
