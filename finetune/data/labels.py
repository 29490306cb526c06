"""What a sample's side files say: its tags and its captions."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune.errors import DataFault

TAG_WORDS = 5
"""A comma-separated part of more words than this reads as prose."""


@dataclass(frozen=True)
class Labels:
    """Tags in their order, and the captions there are."""

    tags: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()


def parse_labels(members: Mapping[str, bytes], text_as: str) -> Labels:
    """Read a sample's side files, by SIDE_FILES of the index: "json", "tags", "caption" and "text". What one of them
    holds comes before what those after it hold.

    JSON: `tags` is a list or a string; `caption` or `captions` a string or a list of strings.

    Args:
        members: the bytes of those that there are.
        text_as: whether the text is "tags", a "caption", or to be told by its looks ("auto").

    Raises:
        DataFault: bytes that are not UTF-8, or JSON that is not an object of these types.
    """
    fields = parse_json(members["json"]) if "json" in members else {}
    tags = as_strings(fields.get("tags"), "json: tags", split=True)
    captions = as_strings(fields.get("caption", fields.get("captions")), "json: caption", split=False)
    if "tags" in members:
        tags = tags or split_tags(_decoded(members["tags"], "tags"))
    if "caption" in members:
        captions = captions or as_strings(_decoded(members["caption"], "caption"), "caption", split=False)
    if "text" not in members:
        return Labels(tags, captions)
    words = _decoded(members["text"], "txt")
    are_tags = text_as == "tags" or (text_as == "auto" and looks_like_tags(words))
    if are_tags:
        return Labels(tags or split_tags(words), captions)
    return Labels(tags, captions or as_strings(words, "txt", split=False))


def parse_json(data: bytes) -> dict[str, Any]:
    """The JSON member as an object. Raises DataFault where it is none."""
    try:
        fields = json.loads(_decoded(data, "json"))
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits is a ValueError too
        raise DataFault(f"json: {error}") from error
    if not isinstance(fields, dict):
        raise DataFault("json: not an object")
    return fields


def looks_like_tags(text: str) -> bool:
    """Whether text reads as a list of tags rather than as prose: it has commas and no part of more than 5 words and no
    full stop, or it is all words_with_underscores or a single word."""
    text = text.strip()
    if "," in text:
        return not text.endswith(".") and all(len(part.split()) <= TAG_WORDS for part in text.split(","))
    words = text.split()
    return len(words) == 1 or (len(words) > 1 and sum("_" in word for word in words) * 2 >= len(words))


def split_tags(text: str) -> tuple[str, ...]:
    """Tags separated by commas or line breaks; by spaces where there is neither comma nor line break but an
    underscore, as in booru exports."""
    text = text.strip()
    if not any(separator in text for separator in ",\n") and "_" in text:
        return tuple(text.split())
    parts = text.replace("\n", ",").split(",")
    return tuple(tag for part in parts if (tag := part.strip()))


def as_strings(value: Any, name: str, *, split: bool) -> tuple[str, ...]:
    """A string or a list of strings as a tuple, without empty ones; None is none.

    Args:
        name: what to call it in a fault.
        split: whether a string is a list of tags.

    Raises:
        DataFault: it is neither.
    """
    if value is None:
        return ()
    if isinstance(value, str):
        return split_tags(value) if split else tuple(filter(None, [value.strip()]))
    if isinstance(value, list) and {type(item) for item in value} <= {str}:
        return tuple([stripped for item in value if (stripped := item.strip())])
    raise DataFault(f"{name} is neither a string nor a list of strings")


def _decoded(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataFault(f"{name}: not UTF-8 at byte {error.start}") from error
