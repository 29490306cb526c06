"""How long a prompt may be, and what is left out where it is longer."""

import re
from bisect import bisect_left
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from finetune.data.prompts.tags import Gone, Stored, tags_of

WORDS_KEPT = 1 << 16
"""So many words are remembered with their tokens."""
TOO_LONG, CAPTION_TOO_LONG = "too long", "end of a caption that is too long"
"""Why tags are left out, and the words of a caption, which come as one text."""

_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff"
"""Scripts that put no spaces between words: Thai and Lao, Burmese, Khmer, Chinese and Japanese."""
_WORD = re.compile(rf"[{_UNSPACED}] *|[^ {_UNSPACED}]+ *")
"""A word with the space behind it, or a sign of such a script."""

Write = Callable[[list[str], str], str]


class TokenLimit:
    """The most tokens of a prompt, and a count of them that remembers words.

    CLIP's tokenizer never joins characters across white space, so a prompt has as many tokens as its words together.
    """

    def __init__(self, count: Callable[[str], int], most: int) -> None:
        """Keep the limit.

        Args:
            count: tokens of a text, without those that begin and end it.
        """
        self._of_word = lru_cache(maxsize=WORDS_KEPT)(count)
        self.most = most

    def tokens(self, prompt: str) -> int:
        """Tokens of a prompt."""
        return sum(map(self._of_word, prompt.split()))


class Parts(NamedTuple):
    """What a prompt is made of."""

    tags: Stored
    caption: str
    caption_first: bool


class Fitting(NamedTuple):
    """A prompt that fits, and the tags in it."""

    text: str
    tags: list[str]
    tokens: int


def fit(parts: Parts, write: Write, limit: TokenLimit, gone: list[Gone]) -> Fitting:
    """The whole prompt; where it has too many tokens, without as few tags and words from its end as need be, which are
    added to `gone`. Never half a tag or half a word; tags that are kept in place go after all others.

    Args:
        write: the prompt of some tags and a caption.
    """
    tags = [tag.text for tag in tags_of(parts.tags)]
    text = write(tags, parts.caption)
    if (tokens := limit.tokens(text)) <= limit.most:
        return Fitting(text, tags, tokens)

    # Numbers stand for tags, and those after them for words.
    units = [*tags, *_WORD.findall(parts.caption)]
    going = _in_order_of_going(parts, len(tags), len(units))

    def left(count: int) -> tuple[list[str], str]:
        stays = sorted(going[count:])
        words = (units[number] for number in stays if number >= len(tags))
        return [tags[number] for number in stays if number < len(tags)], "".join(words).rstrip()

    count = bisect_left(range(len(going)), True, key=lambda count: limit.tokens(write(*left(count))) <= limit.most)
    kept_tags, caption = left(count)
    lost = sorted(going[:count])
    gone += [Gone(units[number], TOO_LONG) for number in lost if number < len(tags)]
    if words := "".join(units[number] for number in lost if number >= len(tags)):
        gone.append(Gone(words.rstrip(), CAPTION_TOO_LONG))
    text = write(kept_tags, caption)
    return Fitting(text, kept_tags, limit.tokens(text))


def _in_order_of_going(parts: Parts, tags: int, units: int) -> list[int]:
    """All tags and words, the first to go first: from the end of the prompt, but for tags kept in place."""
    in_prompt = [*range(tags, units), *range(tags)] if parts.caption_first else list(range(units))
    kept = {*range(len(parts.tags.head)), *range(tags - len(parts.tags.tail), tags)}
    in_prompt.reverse()
    return sorted(in_prompt, key=kept.__contains__)
