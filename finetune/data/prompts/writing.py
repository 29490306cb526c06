"""How words are written: cleaned, spelled, drawn from wildcards, put in another order."""

import re

from finetune.data.hashing import CounterRng
from finetune.data.prompts.config import SpellingConfig

_UNREADABLE = dict.fromkeys([*range(0x20), *range(0x7F, 0xA0)], " ") | dict.fromkeys(range(0xD800, 0xE000), "\ufffd")
_EMOTICON_LETTERS = frozenset("0369ox")
_BARE_BRACKET = re.compile(r"(?<!\\)([()\[\]])")
_ESCAPED_BRACKET = re.compile(r"\\([()\[\]])")
WILDCARD_SIGNS = re.compile(r"([{|}])")
_SENTENCE_END = re.compile(r"(?<=[.!?。！？])\s+")


def clean(text: str) -> str:
    """Text without control characters (NUL among them) and halves of surrogate pairs, which no tokenizer stands; every
    run of white space is one space, and there is none at the ends."""
    if not text.isprintable():
        text = text.translate(_UNREADABLE)
    return " ".join(text.split())


def spell(tag: str, spelling: SpellingConfig) -> str:
    """A tag as the recipe wants it written."""
    if spelling.underscores == "spaces" and "_" in tag and not is_emoticon(tag):
        tag = " ".join(tag.replace("_", " ").split()) or tag
    if spelling.brackets == "escape":
        tag = _BARE_BRACKET.sub(r"\\\1", tag)
    elif spelling.brackets == "unescape":
        tag = _ESCAPED_BRACKET.sub(r"\1", tag)
    return tag.lower() if spelling.case == "lower" else tag


def is_emoticon(tag: str) -> bool:
    """Whether a tag is a face whose underscore is its mouth: two eyes with no letters in them (^_^, +_-), or alike and
    with a letter each at most (o_o, (o)_(o)), or of the round ones (6_9, o_x)."""
    eyes = tag.lower().split("_")
    if len(eyes) != 2 or not all(eyes):
        return False
    letters = ["".join(filter(str.isalnum, eye)) for eye in eyes]
    if max(map(len, letters)) > 1:
        return False
    return not all(letters) or eyes[0] == eyes[1] or _EMOTICON_LETTERS.issuperset(eyes)


def resolve_wildcards(text: str, rng: CounterRng) -> str:
    """Text in which every {a|b} is one of what it holds, innermost first; braces without a bar stay, and so do those
    without their counterpart."""
    # What is open, outermost first: of each brace its options so far; at the bottom the text itself.
    open_braces: list[list[str]] = [[""]]
    for part in WILDCARD_SIGNS.split(text):
        if part == "{":
            open_braces.append([""])
        elif part == "|" and len(open_braces) > 1:
            open_braces[-1].append("")
        elif part == "}" and len(open_braces) > 1:
            options = open_braces.pop()
            chosen = options[rng.integer(len(options))] if len(options) > 1 else f"{{{options[0]}}}"
            open_braces[-1][-1] += chosen
        else:
            open_braces[-1][-1] += part
    return "{".join("|".join(options) for options in open_braces)


def shuffle_sentences(text: str, rng: CounterRng) -> str:
    """The sentences of a text in a random order."""
    return " ".join(rng.shuffled(_SENTENCE_END.split(text)))
