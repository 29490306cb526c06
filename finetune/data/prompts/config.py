"""What a recipe says about prompts. Imports nothing heavy, so that tools start fast."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from finetune.checks import check_choice, check_share
from finetune.errors import UserError

UNDERSCORES = ("keep", "spaces")
BRACKETS = ("keep", "escape", "unescape")
CASES = ("keep", "lower")
LINES = ("all", "first", "random")
SITES = ("danbooru", "e621")
REGEX = "re:"
CATEGORY = "category:"
"""What a pattern that is a regular expression, or that names a category, begins with."""
FILEWORDS, NAME, FOLDER = "[filewords]", "[name]", "[folder]"
PLACEHOLDERS = (FILEWORDS, NAME, FOLDER)
"""Of templates."""


@dataclass
class MixConfig:
    """How often a prompt takes which form, as relative weights. Where a sample lacks a part, a form of both parts is
    made of the other one, and a form of nothing is left out."""

    tags: float = 1.0
    """The tags alone."""
    caption: float = 1.0
    """A caption alone."""
    tags_caption: float = 0.0
    """The tags, then a caption."""
    caption_tags: float = 0.0
    """A caption, then the tags."""

    def __post_init__(self) -> None:
        weights = (self.tags, self.caption, self.tags_caption, self.caption_tags)
        if not all(map(math.isfinite, weights)) or min(weights) < 0 or sum(weights) == 0:
            raise UserError(
                f"captions.mix has the weights {', '.join(f'{weight:g}' for weight in weights)}: "
                "all must be numbers, none negative and one above 0"
            )


@dataclass
class SpellingConfig:
    """How tags are written."""

    underscores: str = "keep"
    """keep, or spaces, which stand in place of underscores but in emoticons such as ^_^."""
    brackets: str = "keep"
    """keep; escape puts a backslash before ( ) [ ] where there is none, as webui's prompts need it; unescape takes such
    backslashes away."""
    case: str = "keep"
    """keep or lower."""

    def __post_init__(self) -> None:
        check_choice("captions.tags.spelling.underscores", self.underscores, UNDERSCORES)
        check_choice("captions.tags.spelling.brackets", self.brackets, BRACKETS)
        check_choice("captions.tags.spelling.case", self.case, CASES)


@dataclass
class AliasConfig:
    """Other names of tags, which are replaced before anything else looks at them."""

    files: list[str] = field(default_factory=list)
    """e621's or danbooru's exports of tag aliases (.csv or .csv.gz); what is active in them counts."""
    pairs: dict[str, str] = field(default_factory=dict)
    """More of them as {other name: name}; these come before the files'."""


@dataclass
class ImplicationConfig:
    """Tags that follow from others (big dog implies dog), left out at times where both are in a prompt."""

    files: list[str] = field(default_factory=list)
    """e621's or danbooru's exports of tag implications (.csv or .csv.gz); what is active in them counts."""
    pairs: list[list[str]] = field(default_factory=list)
    """More of them as [tag, what it implies]."""
    drop: list[float] = field(default_factory=lambda: [0.3, 0.5])
    """Lowest and highest probability with which the implied tag is left out; each pair has one of its own between
    them."""

    def __post_init__(self) -> None:
        for share in self.drop:
            check_share("captions.tags.implications.drop", share)
        if len(self.drop) != 2 or self.drop[0] > self.drop[1]:
            raise UserError(f"captions.tags.implications.drop is {list(self.drop)}: give [lowest, highest]")
        for pair in self.pairs:
            if len(pair) != 2:
                raise UserError(f"captions.tags.implications.pairs has {list(pair)}: give [tag, what it implies]")


@dataclass
class CategoryConfig:
    """Where the categories of tags (artist, character, meta, …) come from, beside what a sample's own JSON says."""

    file: str | None = None
    """Tag list (.csv or .csv.gz): an export of tags with the columns name and category, or lines of name, category, …
    without a header."""
    site: str = "danbooru"
    """Whose numbers the list's categories are: danbooru or e621."""

    def __post_init__(self) -> None:
        check_choice("captions.tags.categories.site", self.site, SITES)


@dataclass
class TagsConfig:
    """What becomes of a sample's tags. Patterns are globs (text on *) that match a whole tag, regular expressions
    (re:^text) that match anywhere in it, with spaces for underscores, or categories (category:artist). Case makes no
    difference, nor do underscores and escapes to globs."""

    aliases: AliasConfig = field(default_factory=AliasConfig)
    categories: CategoryConfig = field(default_factory=CategoryConfig)
    spelling: SpellingConfig = field(default_factory=SpellingConfig)
    unique: bool = True
    """A tag that comes twice counts once, where it comes first."""
    keep_first: int = 0
    """So many tags at the front stay there in their order and are never dropped."""
    keep_separator: str = ""
    """Tags in front of this marker (||| for instance) stay there in their order and are never dropped, and so do those
    behind a second one, at the end."""
    important: list[str] = field(default_factory=list)
    """Patterns of tags that come first, behind those that are kept, shuffled among themselves."""
    shuffle: bool = True
    """Draw the order of the tags anew each time."""
    drop: float = 0.0
    """Probability with which each tag is dropped. The last one left is not, unless its probability is 1."""
    sparse: float = 0.0
    """Probability of a sparse prompt, so that short ones work too."""
    sparse_drop: float = 0.75
    """Probability with which each tag of a sparse prompt is dropped."""
    category_drop: dict[str, float] = field(default_factory=dict)
    """Probability by category, in place of `drop` ({artist: 0.3, meta: 1.0}); in a sparse prompt the higher of the two
    holds."""
    never_drop: list[str] = field(default_factory=list)
    """Patterns of tags that are never dropped, whatever is said above."""
    remove: list[str] = field(default_factory=list)
    """Patterns of tags that no prompt has."""
    implications: ImplicationConfig = field(default_factory=ImplicationConfig)
    warmup_steps: int = 0
    """Over so many steps the number of tags grows from warmup_min to all; those at the end of the stored order are left
    out, unless they are never dropped. 0 is off."""
    warmup_min: int = 1
    """Tags that the first step of the warm-up may have, beside those that are kept."""
    split: str = ""
    """Tags are also cut at this (; for instance), which comes after commas and line breaks."""
    group_separator: str = ""
    """Tags joined by this (;;; for instance) are moved and dropped as one; it is written as `separator`."""
    separator: str = ", "
    """What stands between two tags, or between tags and a caption; it ends in a space."""

    def __post_init__(self) -> None:
        for name in ("drop", "sparse", "sparse_drop"):
            check_share(f"captions.tags.{name}", getattr(self, name))
        for category, share in self.category_drop.items():
            check_share(f"captions.tags.category_drop.{category}", share)
        for name in ("keep_first", "warmup_steps", "warmup_min"):
            if getattr(self, name) < 0:
                raise UserError(f"captions.tags.{name} is {getattr(self, name)}: use 0 or more")
        for name in ("important", "never_drop", "remove"):
            check_patterns(f"captions.tags.{name}", getattr(self, name))
        if not self.separator[-1:].isspace():
            raise UserError(f"captions.tags.separator is {self.separator!r}: end it in a space")
        for name in ("keep_separator", "group_separator"):
            if {",", "\n"}.intersection(getattr(self, name)):
                raise UserError(
                    f"captions.tags.{name} is {getattr(self, name)!r}, but tags are cut at commas and line breaks "
                    "before it is looked for: use another one, such as |||"
                )


@dataclass
class CaptionConfig:
    """What becomes of a sample's captions, of which one is drawn."""

    weights: dict[str, float] = field(default_factory=dict)
    """Relative weights by the captions' names ({human: 3, blip: 1}): their names in JSON, or their places in a list,
    from "1" on. One that is not named here has 1."""
    lines: str = "all"
    """all lines of a caption; the first; or a random one."""
    shuffle_sentences: bool = False
    """Draw the order of its sentences anew each time."""

    def __post_init__(self) -> None:
        check_choice("captions.caption.lines", self.lines, LINES)
        for name, weight in self.weights.items():
            if not 0 <= weight < math.inf:
                raise UserError(f"captions.caption.weights.{name} is {weight}: use a number of 0 or more")


@dataclass
class CaptionsConfig:
    """How a sample's tags and captions become its prompt."""

    drop: float = 0.1
    """Probability with which the whole prompt is emptied (for classifier-free guidance)."""
    drop_every_epochs: int = 0
    """All prompts of every n-th epoch are emptied; 0 is off."""
    mix: MixConfig = field(default_factory=MixConfig)
    tags: TagsConfig = field(default_factory=TagsConfig)
    caption: CaptionConfig = field(default_factory=CaptionConfig)
    missing: str = ""
    """Prompt of a sample that has nothing of what `mix` asks for; [folder] in it stands for the name of its folder,
    without kohya's number in front (10_red fox is red fox)."""
    wildcards: bool = False
    """In tags, captions and templates, {a|b} stands for one of what is in it, drawn each time."""
    name: str = ""
    """Activation tag or name of what is taught: [name] in templates. Without templates it comes first in every
    prompt."""
    templates: list[str] = field(default_factory=list)
    """Of these one is drawn each time; [filewords] in it stands for the prompt so far, [name] for the name and [folder]
    as in `missing`."""
    prefix: str = ""
    """Stands in front of every prompt that is not emptied, with a space between them."""
    suffix: str = ""
    """Stands behind it likewise."""
    no_flip: list[str] = field(default_factory=list)
    """Patterns, as for tags; a picture is never mirrored where one matches a stored tag, or words of a stored
    caption."""

    def __post_init__(self) -> None:
        check_share("captions.drop", self.drop)
        if self.drop_every_epochs < 0 or self.drop_every_epochs == 1:
            raise UserError(f"captions.drop_every_epochs is {self.drop_every_epochs}: use 0, or 2 or more")
        check_patterns("captions.no_flip", self.no_flip)
        check_placeholders("captions.missing", self.missing, [FOLDER])
        for template in self.templates:
            check_placeholders("captions.templates", template, PLACEHOLDERS)
            if not template.strip():
                raise UserError("captions.templates has an empty one: remove it")


def check_placeholders(name: str, text: str, known: Sequence[str]) -> None:
    """Raise UserError for what is no text, or has something else than a placeholder in brackets."""
    if not isinstance(text, str):
        raise UserError(f"{name} has {text}, which is no text: put it in quotes")
    for word in re.findall(r"\[[^\]]*\]", text):
        if word not in known:
            raise UserError(f"{name} has {word}: use {', '.join(known)}, or other brackets")


def check_patterns(name: str, patterns: list[str]) -> None:
    """Raise UserError for a regular expression that is none, or an empty pattern."""
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise UserError(f"{name} has {pattern}, which is no text: put it in quotes")
        if not pattern.removeprefix(REGEX).removeprefix(CATEGORY).strip():
            raise UserError(f"{name} has an empty pattern: remove it")
        if pattern.startswith(REGEX):
            try:
                re.compile(pattern[len(REGEX) :])
            except (re.error, OverflowError) as error:
                raise UserError(
                    f"{name} has {pattern!r}, which is no regular expression ({error}): correct it"
                ) from error
