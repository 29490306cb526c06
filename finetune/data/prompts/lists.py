"""What tag sites export: aliases, implications and categories."""

import csv
import gzip
import hashlib
import io
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import chain
from pathlib import Path

from finetune.data.prompts.config import AliasConfig, ImplicationConfig
from finetune.errors import UserError

Pairs = tuple[tuple[str, str], ...]

CATEGORIES = {
    "danbooru": {"0": "general", "1": "artist", "3": "copyright", "4": "character", "5": "meta"},
    "e621": {
        "0": "general",
        "1": "artist",
        "2": "contributor",
        "3": "copyright",
        "4": "character",
        "5": "species",
        "6": "invalid",
        "7": "meta",
        "8": "lore",
    },
}
"""What a site's numbers of categories mean."""
PAIR = ("antecedent_name", "consequent_name")
"""The columns of an export that hold a pair."""
NO_TAG = re.compile(r"(^|_)invalid_(tag|color|background)|\(disambiguation\)$")
"""Names to which e621 leads what it does not want as tags."""
KEPT_FILES = 16
"""Files of a kind that a process remembers."""

_ESCAPES = re.compile(r"\\+(?=[()\[\]{}])")


def canonical(tag: str) -> str:
    r"""The form in which tags are compared: `Big Dog \(x\)` is `big_dog_(x)`. It is lower case, with one underscore in
    place of white space, none of that at the ends, and no backslashes before brackets."""
    name = "_".join(tag.lower().split())
    return _ESCAPES.sub("", name) if "\\" in name else name


def read_pairs(path: str) -> Pairs:
    """The pairs (antecedent, consequent) of an export of aliases or implications, in canonical names and in the file's
    order. A process reads a file once, and again when its size or time of change has become another.

    Args:
        path: a .csv or .csv.gz whose header names PAIR. Where it has `status` too, what is not active is left out.

    Raises:
        UserError: the file cannot be read, lacks these columns, or has a line that cannot be understood.
    """
    return _pairs(*_version(path))


def read_categories(path: str, site: str) -> Mapping[str, str]:
    """The category of every tag in a list, by canonical names. Of a name that comes twice the first counts. Files are
    remembered as `read_pairs` does.

    Args:
        path: a .csv or .csv.gz with `name` and `category` in its header, or without a header and with these two as its
            first columns. A category is a number, or a name of its own.
        site: whose numbers they are, one of CATEGORIES.

    Raises:
        UserError: the file cannot be read, lacks these columns, or has a line that cannot be understood.
    """
    return _categories(*_version(path), site)


class Aliases:
    """The names that stand for others."""

    def __init__(self, config: AliasConfig) -> None:
        """Take the recipe's pairs, then those of its files in their order; of several for one name the first counts.
        Pairs of files that lead to no tag (e621 marks names so that are invalid or have several meanings) do not count.

        A pair that closes a circle makes its name the one that all names of the circle become. So the recipe can turn a
        file's pair round ({dog: doggo} against doggo -> dog), and {cat: cat} keeps cat whatever the files say.

        Raises:
            UserError: a pair has an empty name, or a file cannot be read.
        """
        self._targets: dict[str, str] = {}
        # A dict takes the last of several spellings, which is the one that was laid over the others.
        own = dict(_own("aliases.pairs", config.pairs.items()))
        listed = (pair for file in config.files for pair in read_pairs(file) if not NO_TAG.search(pair[1]))
        for name, target in chain(own.items(), listed):
            if name not in self._targets:
                self._targets[name] = self.resolve(target)

    def resolve(self, name: str) -> str:
        """The canonical name for which a canonical name stands, at the end of any chain; itself where there is none."""
        walked = []
        while (target := self._targets.get(name, name)) != name:
            walked.append(name)
            name = target
        for passed in walked:  # shorten the way, so that long chains take linear time
            self._targets[passed] = name
        return name


class Implications:
    """Which tags follow from which, and how often to leave them out."""

    def __init__(self, config: ImplicationConfig, key: int, resolve: Callable[[str], str]) -> None:
        """Take the recipe's pairs and those of its files.

        Args:
            key: 64 bits from `purpose_key`, on which the probabilities depend.
            resolve: gives the name for which an alias stands; lists have old names in places.

        Raises:
            UserError: a pair has an empty name, or a file cannot be read.
        """
        self._lowest, self._highest = config.drop
        self._key = key.to_bytes(8, "little")
        self._direct: dict[str, list[str]] = {}
        self._implied: dict[str, frozenset[str]] = {}
        own = _own("implications.pairs", ((name, implied) for name, implied in config.pairs))
        for name, implied in chain(own, *map(read_pairs, config.files)):
            self._direct.setdefault(resolve(name), []).append(resolve(implied))

    def __bool__(self) -> bool:
        return bool(self._direct)

    def implied_by(self, name: str) -> frozenset[str]:
        """All that a canonical name implies, at any depth. Names that imply one another do not count for each other,
        as otherwise all of them could be left out; what follows from them does."""
        if name not in self._direct:
            return frozenset()
        if name not in self._implied:
            reached = _reachable(self._direct, name)
            if name in reached:
                reached -= _reachable(_reversed(self._direct, reached), name)
            self._implied[name] = frozenset(reached)
        return self._implied[name]

    def probability(self, antecedent: str, consequent: str) -> float:
        """How often to leave out `consequent` where `antecedent` is there: fixed for a key and two canonical names, and
        uniform between the recipe's bounds."""
        # Canonical names hold no space, so no two pairs are joined to the same text.
        pair = f"{antecedent} {consequent}".encode(errors="surrogatepass")
        bits = int.from_bytes(hashlib.blake2b(pair, digest_size=8, key=self._key).digest(), "little")
        return self._lowest + (self._highest - self._lowest) * (bits >> 11) * 2.0**-53


def _reachable(graph: Mapping[str, list[str]], start: str) -> set[str]:
    """What can be reached in one step or more, which includes `start` only on a circle."""
    reached: set[str] = set()
    waiting = [start]
    while waiting:
        for name in graph.get(waiting.pop(), ()):
            if name not in reached:
                reached.add(name)
                waiting.append(name)
    return reached


def _reversed(graph: Mapping[str, list[str]], names: Iterable[str]) -> dict[str, list[str]]:
    """The steps that lead away from some names, turned round."""
    backwards: dict[str, list[str]] = {}
    for name in names:
        for following in graph.get(name, ()):
            backwards.setdefault(following, []).append(name)
    return backwards


def _own(field: str, pairs: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """A recipe's own pairs in canonical names."""
    for pair in pairs:
        name, other = map(canonical, pair)
        if not (name and other):
            raise UserError(f"captions.tags.{field} has {pair[0]!r} with {pair[1]!r}: give two names")
        yield name, other


def _version(path: str) -> tuple[Path, int, int]:
    """Where a file is, its size and when it was changed."""
    try:
        file = Path(path).expanduser().absolute()
        stat = file.stat()
    except (OSError, RuntimeError) as error:  # RuntimeError: ~ has no home
        raise _unreadable(path, error) from error
    return file, stat.st_size, stat.st_mtime_ns


@lru_cache(KEPT_FILES)
def _pairs(path: Path, size: int, mtime_ns: int) -> Pairs:
    rows = _rows(path)
    _, header = next(rows, (0, []))
    if not set(PAIR) <= set(header):
        raise UserError(
            f"the list {path} lacks the columns {' and '.join(PAIR)} in its first line: "
            "give an export of tag aliases or implications"
        )
    first, second = map(header.index, PAIR)
    status = header.index("status") if "status" in header else None
    pairs = []
    for line, row in rows:
        if status is None or row[status] == "active":
            name, other = canonical(row[first]), canonical(row[second])
            if not (name and other):
                raise _wrong(path, line, "a name is empty")
            pairs.append((name, other))
    return tuple(pairs)


@lru_cache(KEPT_FILES)
def _categories(path: Path, size: int, mtime_ns: int, site: str) -> Mapping[str, str]:
    rows = _rows(path)
    line, first = next(rows, (0, []))
    if {"name", "category"} <= set(first):
        at_name, at_category = first.index("name"), first.index("category")
    elif len(first) >= 2 and not set(PAIR) & set(first):
        at_name, at_category = 0, 1
        rows = chain([(line, first)], rows)
    else:
        raise UserError(
            f"the list {path} has neither a first line with the columns name and category nor lines of name, "
            "category, …: give a list of tags"
        )
    categories: dict[str, str] = {}
    for line, row in rows:
        category = _category(path, line, row[at_category].strip().lower(), site)
        # Real lists have rows without a name, as pandas makes of a tag called null; they match no tag.
        if name := canonical(row[at_name]):
            categories.setdefault(name, category)
    return categories


def _category(path: Path, line: int, category: str, site: str) -> str:
    numbers = CATEGORIES[site]
    if category in numbers:
        return numbers[category]
    if not category[:1].isalpha():
        known = ", ".join(f"{number} {name}" for number, name in numbers.items())
        raise _wrong(path, line, f"{category!r} is no category of {site} ({known})")
    return category


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows of a table that are not blank, all as wide as the first, each with the number of its (last) line."""
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    columns = 0
    try:
        for row in filter(None, reader):
            columns = columns or len(row)
            if len(row) != columns:
                raise _wrong(path, reader.line_num, f"{len(row)} columns in place of {columns}")
            yield reader.line_num, row
    except csv.Error as error:
        raise _wrong(path, reader.line_num, f"not CSV ({error})") from error


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path} line {line}: not UTF-8; save the list as UTF-8") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"the list {path} is not gzip or is cut off ({error}): download it again") from error
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path | str, error: Exception) -> UserError:
    return UserError(f"the list {path} cannot be read ({error}): give a .csv or .csv.gz from e621 or danbooru")


def _wrong(path: Path, line: int, what: str) -> UserError:
    return UserError(f"{path} line {line}: {what}; mend the line, or download the list again")
