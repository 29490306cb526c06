"""Patterns of a recipe, held against tags and captions."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from finetune.data.prompts.config import CATEGORY, REGEX
from finetune.data.prompts.lists import canonical


class _Pattern(NamedTuple):
    given: str
    """As it stands in the recipe."""
    literal: str
    """What a text must hold in any case, which is found faster than the pattern."""
    of_tag: re.Pattern[str]
    of_words: re.Pattern[str]


class Patterns:
    """Globs, in which * stands for anything, regular expressions, which begin with `re:`, and categories, which begin
    with `category:`."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._globs = [_glob(pattern) for pattern in patterns if not pattern.startswith((REGEX, CATEGORY))]
        self._regexes = [
            (pattern, re.compile(pattern[len(REGEX) :], re.IGNORECASE))
            for pattern in patterns
            if pattern.startswith(REGEX)
        ]
        self._categories = {
            pattern.removeprefix(CATEGORY).strip().lower(): pattern
            for pattern in patterns
            if pattern.startswith(CATEGORY)
        }

    def tag(self, name: str, category: str) -> str | None:
        """A pattern that matches a tag, given its canonical name and its category, which may be empty."""
        if category in self._categories:
            return self._categories[category]
        for glob in self._globs:
            if glob.literal in name and glob.of_tag.search(name):
                return glob.given
        return self._regex(name.replace("_", " "))

    def words(self, caption: str) -> str | None:
        """A pattern that matches words of a caption."""
        if self._globs:
            name = canonical(caption)
            for glob in self._globs:
                if glob.literal in name and glob.of_words.search(name):
                    return glob.given
        return self._regex(caption)

    def _regex(self, text: str) -> str | None:
        return next((pattern for pattern, regex in self._regexes if regex.search(text)), None)


def _glob(pattern: str) -> _Pattern:
    pieces = canonical(pattern).split("*")
    glob = ".*".join(map(re.escape, pieces))
    return _Pattern(
        given=pattern,
        literal=max(pieces, key=len),
        of_tag=re.compile(rf"\A{glob}\Z", re.DOTALL),
        # A letter next to it would make it part of another word; an underscore stands for a space here.
        of_words=re.compile(rf"(?<![^\W_]){glob}(?![^\W_])", re.DOTALL),
    )
