"""Patterns of a recipe, held against tags and captions."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from finetune.data.prompts.config import CATEGORY, REGEX
from finetune.data.prompts.lists import canonical


class _Glob(NamedTuple):
    given: str
    """As it stands in the recipe."""
    of_tag: re.Pattern[str]
    literal: str
    """What words must hold in any case, which is found faster than the pieces."""
    pieces: list[re.Pattern[str]]
    """What words must hold one after the other: what stands between its stars."""

    def in_words(self, name: str) -> bool:
        """Whether words match, given as a canonical name. Takes linear time, whatever they are."""
        if self.literal not in name:
            return False
        at = 0
        for piece in self.pieces:
            if not (found := piece.search(name, at)):
                return False
            at = found.end()
        return True


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
        self.categories = {
            pattern.removeprefix(CATEGORY).strip().lower(): pattern
            for pattern in patterns
            if pattern.startswith(CATEGORY)
        }
        """The patterns that name a category, by its name."""

    def tag(self, names: Iterable[str], category: str) -> str | None:
        """A pattern that matches a tag, given the canonical names that it goes by, and its category, which may be
        empty."""
        if category in self.categories:
            return self.categories[category]
        for name in names:
            found = next((glob.given for glob in self._globs if glob.of_tag.search(name)), None)
            if found := found or self._regex(name.replace("_", " ")):
                return found
        return None

    def words(self, caption: str) -> str | None:
        """A pattern that matches words of a caption."""
        if self._globs:
            name = canonical(caption)
            if found := next((glob.given for glob in self._globs if glob.in_words(name)), None):
                return found
        return self._regex(caption)

    def _regex(self, text: str) -> str | None:
        return next((pattern for pattern, regex in self._regexes if regex.search(text)), None)


def _glob(pattern: str) -> _Glob:
    literals = canonical(pattern).split("*")
    pieces = [re.escape(literal) for literal in literals]
    of_tag = re.compile(rf"\A{'.*'.join(pieces)}\Z", re.DOTALL)
    # A letter next to it would make it part of another word; an underscore stands for a space here.
    pieces[0] = pieces[0] and rf"(?<![^\W_]){pieces[0]}"
    pieces[-1] = pieces[-1] and rf"{pieces[-1]}(?![^\W_])"
    return _Glob(pattern, of_tag, max(literals, key=len), [re.compile(piece) for piece in pieces if piece])
