"""What a sample's side files say: its tags and its captions."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune.errors import DataFault

TAG_WORDS = 5
"""A comma-separated part of more words than this reads as prose."""
CONCEPT = re.compile(r"(\d{1,3})_(.+)", re.DOTALL)
"""kohya's folders, whose pictures are drawn as often an epoch as the number says; of four digits it is a year."""


@dataclass(frozen=True)
class Labels:
    """Tags in their order, and the captions there are."""

    tags: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    """Of every tag, where they are told."""
    caption_names: tuple[str, ...] = ()
    """Of every caption, where they have names."""
    source: str = ""
    """Path of the picture in the tree from which its shard was built."""

    def fields(self) -> dict[str, Any]:
        """As `parse_labels` reads them from JSON."""
        tags = grouped(self.categories, self.tags) if self.categories else list(self.tags)
        captions = grouped(self.caption_names, self.captions) if self.caption_names else list(self.captions)
        return {"tags": tags, "caption": captions, "source": self.source}


def parse_labels(members: Mapping[str, bytes], text_as: str) -> Labels:
    """Read a sample's side files, by SIDE_FILES of the index: "json", "tags", "caption" and "text". What one of them
    holds comes before what those after it hold.

    JSON: `tags` is a list, a string, or an object of these by category; `caption` or `captions` a string, a list of
    strings, or an object of these by name; `source` the path that the sample once had.

    Args:
        members: the bytes of those that there are.
        text_as: whether the text is "tags", a "caption", or to be told by its looks ("auto").

    Raises:
        DataFault: bytes that are not UTF-8, or JSON that is not an object of these types.
    """
    fields = parse_json(members["json"]) if "json" in members else {}
    tags, categories = _by_name(fields.get("tags"), "json: tags", split=True)
    captions, names = _by_name(fields.get("caption", fields.get("captions")), "json: caption", split=False)
    if not tags and "tags" in members:
        tags = split_tags(_decoded(members["tags"], "tags"))
    if not captions and "caption" in members:
        captions = as_strings(_decoded(members["caption"], "caption"), "caption", split=False)
    if "text" in members:
        words = _decoded(members["text"], "txt")
        if text_as == "tags" or (text_as == "auto" and looks_like_tags(words)):
            tags = tags or split_tags(words)
        else:
            captions = captions or as_strings(words, "txt", split=False)
    return Labels(tags, captions, categories, names, _path(fields.get("source")))


def concept(path: str) -> tuple[int, str]:
    """What the folder of a picture says: how often it is to be drawn an epoch, and the folder's name. Of kohya's
    `10_fox/1.jpg` it is (10, "fox"), of others (1, its name), which is empty where there is no folder."""
    folder = path.rpartition("/")[0].rpartition("/")[2]
    named = CONCEPT.fullmatch(folder)
    return (max(int(named[1]), 1), named[2]) if named else (1, folder)


def grouped(names: tuple[str, ...], values: tuple[str, ...]) -> dict[str, list[str]]:
    """Values by their names."""
    found: dict[str, list[str]] = {}
    for name, value in zip(names, values, strict=True):
        found.setdefault(name, []).append(value)
    return found


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


def _path(source: Any) -> str:
    """Where a picture lay in its tree; sites have the address of a page under the same name."""
    return source if isinstance(source, str) and "://" not in source else ""


def _by_name(value: Any, name: str, *, split: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Strings, and the name of each where they come in an object by name. Raises DataFault as `as_strings` does."""
    if not isinstance(value, dict):
        texts = as_strings(value, name, split=split)
        if split or not isinstance(value, list) or len(texts) == len(value):
            return texts, ()
        # Empty ones among them are left out, but the others keep their places for names.
        return texts, tuple(str(place) for place, text in enumerate(value, 1) if text.strip())
    named = [(key, text) for key, texts in value.items() for text in as_strings(texts, f"{name}: {key}", split=split)]
    return tuple(text for _, text in named), tuple(key for key, _ in named)


def _decoded(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataFault(f"{name}: not UTF-8 at byte {error.start}") from error
