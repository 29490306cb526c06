"""What a sample's side files say: its tags and its captions."""

import json
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


def parse_labels(text: bytes | None, json_bytes: bytes | None, text_as: str) -> Labels:
    """Read a sample's `.txt` and `.json` members; what the JSON holds comes before what the text holds.

    JSON: `tags` is a list or a string; `caption` or `captions` a string or a list of strings.

    Args:
        text: the text member; None where there is none.
        json_bytes: the JSON member; None where there is none.
        text_as: whether the text is "tags", a "caption", or to be told by its looks ("auto").

    Raises:
        DataFault: bytes that are not UTF-8, or JSON that is not an object of these types.
    """
    fields = parse_json(json_bytes) if json_bytes is not None else {}
    tags = _strings(fields.get("tags"), "tags", split=True)
    captions = _strings(fields.get("caption", fields.get("captions")), "caption", split=False)
    if text is None:
        return Labels(tags, captions)
    words = _decoded(text, "txt")
    are_tags = text_as == "tags" or (text_as == "auto" and looks_like_tags(words))
    if are_tags:
        return Labels(tags or split_tags(words), captions)
    return Labels(tags, captions or _strings(words, "txt", split=False))


def parse_json(data: bytes) -> dict[str, Any]:
    """The JSON member as an object. Raises DataFault where it is none."""
    try:
        fields = json.loads(_decoded(data, "json"))
    except (json.JSONDecodeError, RecursionError) as error:
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


def _strings(value: Any, name: str, *, split: bool) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        return split_tags(value) if split else tuple(filter(None, [value.strip()]))
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(stripped for item in value if (stripped := item.strip()))
    raise DataFault(f"json: {name} is neither a string nor a list of strings")


def _decoded(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataFault(f"{name}: not UTF-8 at byte {error.start}") from error
