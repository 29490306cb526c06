"""What tag sites export."""

import csv
import gzip
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.hashing import purpose_key
from finetune.data.prompts import lists
from finetune.data.prompts.config import AliasConfig, ImplicationConfig
from finetune.data.prompts.lists import Aliases, Implications, canonical, read_categories, read_pairs
from finetune.errors import UserError

HEADER = "id,antecedent_name,consequent_name,created_at,status\n"
KEY = purpose_key(7, "implications")
REAL_PAIRS = {
    "danbooru_tag_aliases-2025-05-01.csv.gz": 30_677,
    "danbooru_tag_implications-2025-05-01.csv.gz": 29_938,
    "e621_tag_aliases-2025-05-01.csv.gz": 64_085,
    "e621_tag_implications-2025-05-01.csv.gz": 52_868,
}

Write = Callable[..., str]
names = st.sampled_from("abcdefgh")
graphs = st.lists(st.tuples(names, names), max_size=20)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a list: (content, name) -> path."""

    def to(content: str | bytes, name: str = "list.csv") -> str:
        data = content.encode() if isinstance(content, str) else content
        path = tmp_path / name
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return str(path)

    return to


def implications(pairs: list[tuple[str, str]], key: int = KEY, drop: tuple[float, float] = (0.3, 0.5)) -> Implications:
    return Implications(ImplicationConfig(pairs=[list(pair) for pair in pairs], drop=list(drop)), key, str)


def pair_file(folder: Path, name: str, pairs: list[tuple[str, str]]) -> str:
    path = folder / name
    lines = [f"{i},{first},{second},,active\n" for i, (first, second) in enumerate(pairs)]
    path.write_text(HEADER + "".join(lines), encoding="utf-8")
    return str(path)


# Canonical names


@pytest.mark.parametrize(
    ("tag", "name"),
    [
        (r"Big Dog \(x\)", "big_dog_(x)"),
        ("  long \t\n hair ", "long_hair"),
        ("黒臣\u3000一七", "黒臣_一七"),
        (r"\[a\] \{b\}", "[a]_{b}"),
        (r"\\(x\\)", "(x)"),
        (r"\o/", r"\o/"),
        ("^_^", "^_^"),
        ("ÁSTRÍÐR", "ástríðr"),
        ("", ""),
        (" \n", ""),
    ],
)  # fmt: skip
def test_canonical_names(tag: str, name: str) -> None:
    assert canonical(tag) == name


@given(st.text(st.one_of(st.characters(), st.sampled_from("\\()[]{} _\u3000"))))
def test_a_canonical_name_is_its_own_and_has_no_space(tag: str) -> None:
    name = canonical(tag)
    assert canonical(name) == name
    assert not any(character.isspace() for character in name)


# Reading pairs


@pytest.mark.parametrize("name", ["list.csv", "list.csv.gz"])
def test_active_pairs_in_the_files_order(write: Write, name: str) -> None:
    path = write(
        HEADER
        + "1,Fox,canine,,active\n"
        + "2,cat,animal,,deleted\n"
        + '3,"a,b","""c""",,active\n'
        + "\n"
        + "4,big dog,dog,,pending\n"
        + "5,ant,insect,2020-01-01,active\n",
        name,
    )
    assert read_pairs(path) == (("fox", "canine"), ("a,b", '"c"'), ("ant", "insect"))


def test_columns_come_in_any_order_and_without_a_status_all_rows_count(write: Write) -> None:
    assert read_pairs(write("consequent_name,antecedent_name\ndog,poodle\ndog,pug\n")) == (
        ("poodle", "dog"),
        ("pug", "dog"),
    )
    assert read_pairs(write("status,consequent_name,antecedent_name\nactive,dog,poodle\n,dog,pug\n", "b.csv")) == (
        ("poodle", "dog"),
    )


def test_a_byte_order_mark_and_windows_line_ends(write: Write) -> None:
    text = "antecedent_name,consequent_name\r\nfüchs,fox\r\n"
    assert read_pairs(write(b"\xef\xbb\xbf" + text.encode())) == (("füchs", "fox"),)


def test_a_header_alone_holds_no_pairs(write: Write) -> None:
    assert read_pairs(write(HEADER)) == ()


def test_the_home_folder(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(HEADER + "1,fox,canine,,active\n")
    monkeypatch.setenv("HOME", str(Path(path).parent))
    assert read_pairs("~/list.csv") == (("fox", "canine"),)


def test_a_name_that_no_row_needs_may_be_empty(write: Write) -> None:
    assert read_pairs(write(HEADER + "1,,canine,,deleted\n")) == ()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", r"list\.csv lacks the columns antecedent_name and consequent_name in its first line: give an export"),
        ("id,antecedent_name\n1,fox\n", r"list\.csv lacks the columns antecedent_name and consequent_name"),
        ("fox,canine\n", r"list\.csv lacks the columns"),
        (HEADER + "1,fox,canine,,active\n2,fox,canine,active\n", r"list\.csv line 3: 4 columns in place of 5; mend"),
        (HEADER + "\n1,fox,canine,,active,\n", r"list\.csv line 3: 6 columns in place of 5"),
        (HEADER + '1,"fo\nx",canine,,active\n2,fox\n', r"list\.csv line 4: 2 columns in place of 5"),
        (HEADER + "1,fox,canine,,active\n2, ,canine,,active\n", r"list\.csv line 3: a name is empty; mend"),
        (HEADER + "1,fox,,,active\n", r"list\.csv line 2: a name is empty"),
        (HEADER + '1,"red" fox,canine,,active\n', r"list\.csv line 2: not CSV \(.*\); mend"),
        (HEADER + '1,fox,"canine,,active\n', r"list\.csv line 2: not CSV \(.*\); mend"),
        (HEADER.encode() + b"1,fox,canine,,active\n2,f\xfcchs,fox,,active\n", r"list\.csv line 3: not UTF-8; save"),
        (b"\xef\xbb\xbf" + HEADER.encode() + b"\xfc,fox,canine,,active\n", r"list\.csv line 2: not UTF-8"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_list_of_pairs(write: Write, content: str | bytes, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        read_pairs(write(content))


def test_lines_of_a_compressed_list_are_numbered_too(write: Write) -> None:
    with pytest.raises(UserError, match=r"list\.csv\.gz line 2: 2 columns in place of 5"):
        read_pairs(write(HEADER + "1,fox\n", "list.csv.gz"))


def test_files_that_cannot_be_read(write: Write, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.csv cannot be read \(.*No such file.*\): give a \.csv or \.csv\.gz"):
        read_pairs(str(tmp_path / "none.csv"))
    with pytest.raises(UserError, match=r"cannot be read \(.*directory.*\): give"):
        read_pairs(str(tmp_path))
    with pytest.raises(UserError, match=r"cannot be read \(.*home.*\): give"):
        read_pairs("~no-such-user-anywhere/list.csv")
    plain = tmp_path / "plain.csv.gz"
    plain.write_text(HEADER)
    with pytest.raises(UserError, match=r"plain\.csv\.gz is not gzip or is cut off \(.*\): download it again"):
        read_pairs(str(plain))


def test_compressed_files_that_are_damaged(write: Write) -> None:
    path = Path(write(HEADER + "1,fox,canine,,active\n" * 100, "cut.csv.gz"))
    whole = path.read_bytes()
    damaged = bytes([*whole[:12], *(byte ^ 255 for byte in whole[12:20]), *whole[20:]])
    for data in (whole[:-20], whole[:-4], damaged):
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"is not gzip or is cut off"):
            read_pairs(str(path))


def test_a_file_is_read_once_until_it_changes(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    text_of = lists._text

    def counted(path: Path) -> str:
        read.append(path)
        return text_of(path)

    monkeypatch.setattr(lists, "_text", counted)
    path = write(HEADER + "1,fox,canine,,active\n")
    first = read_pairs(path)
    assert read_pairs(path) is first
    assert len(read) == 1
    os.utime(path, ns=(0, 10**18))  # the same size, another time
    assert read_pairs(path) == first
    assert len(read) == 2
    changed = Path(path).stat()
    write(HEADER + "1,fox,canines,,active\n")
    os.utime(path, ns=(changed.st_atime_ns, changed.st_mtime_ns))  # another size, the same time
    assert read_pairs(path) == (("fox", "canines"),)
    assert len(read) == 3


def test_a_list_that_was_wrong_is_read_again(write: Write) -> None:
    with pytest.raises(UserError):
        read_pairs(write(HEADER + "1,fox\n"))
    assert read_pairs(write(HEADER + "1,fox,canine,,active\n")) == (("fox", "canine"),)


# Reading categories


@pytest.mark.parametrize("name", ["list.csv", "list.csv.gz"])
def test_a_list_without_a_header(write: Write, name: str) -> None:
    path = write('1girl,0,6008644,"1girls,sole_female"\nReimu,4,5,\nhighres,5,4,"high_res,hires"\n', name)
    assert read_categories(path, "danbooru") == {"1girl": "general", "reimu": "character", "highres": "meta"}
    assert read_categories(path, "e621") == {"1girl": "general", "reimu": "character", "highres": "species"}


def test_a_list_with_a_header(write: Write) -> None:
    text = "\ufeffid,category,post_count,name\n1,8,5,lore tag\n2,Artist,5,someone\n3,my own,1,thing\n"
    assert read_categories(write(text), "e621") == {"lore_tag": "lore", "someone": "artist", "thing": "my own"}


def test_names_that_look_like_a_header_do_not_make_one(write: Write) -> None:
    assert read_categories(write("name,4,59,\ncategory,0,1,\n"), "e621") == {"name": "character", "category": "general"}


def test_of_a_name_that_comes_twice_the_first_counts_and_one_without_a_name_is_nothing(write: Write) -> None:
    assert read_categories(write("Fox,5\nfox,0\n,0\n"), "e621") == {"fox": "species"}


def test_every_number_of_the_sites(write: Write) -> None:
    for site, numbers in lists.CATEGORIES.items():
        path = write("".join(f"tag {number},{number}\n" for number in numbers), f"{site}.csv")
        assert list(read_categories(path, site).values()) == list(numbers.values())


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", r"list\.csv has neither a first line with the columns name and category nor lines of name, category, …: "),
        ("fox\n", r"list\.csv has neither"),
        (HEADER + "1,fox,canine,,active\n", r"list\.csv has neither .*: give a list of tags"),
        ("fox,2\ncat,0\n", r"list\.csv line 1: '2' is no category of danbooru \(0 general, 1 artist, 3 .*\); mend"),
        ("id,name,category\n1,fox,0\n\n2,cat,9\n", r"list\.csv line 4: '9' is no category of danbooru"),
        ("fox,0\ncat,-1\n", r"list\.csv line 2: '-1' is no category"),
        ("fox,0\ncat,4.0\n", r"list\.csv line 2: '4.0' is no category"),
        ("fox,0\ncat,\n", r"list\.csv line 2: '' is no category"),
        ("fox,0,1,\ncat,0,1\n", r"list\.csv line 2: 3 columns in place of 4"),
        (b"f\xfcchs,0\n", r"list\.csv line 1: not UTF-8"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_list_of_tags(write: Write, content: str | bytes, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        read_categories(write(content), "danbooru")


def test_a_list_of_tags_is_read_once_until_it_changes(write: Write) -> None:
    path = write("fox,0\n")
    first = read_categories(path, "e621")
    assert read_categories(path, "e621") is first
    write("fox,0\ncat,0\n")
    assert read_categories(path, "e621") == {"fox": "general", "cat": "general"}


# Aliases


def test_chains_are_followed_to_their_end() -> None:
    aliases = Aliases(AliasConfig(pairs={"Doggo": "dog", "puppy dog": "doggo", "x": r"y \(z\)"}))
    assert [aliases.resolve(name) for name in ("puppy_dog", "doggo", "dog", "x", "cat")] == [
        "dog", "dog", "dog", "y_(z)", "cat"
    ]  # fmt: skip


def test_what_a_site_does_not_want_as_a_tag_is_no_name(tmp_path: Path) -> None:
    pairs = [("no_humans", "invalid_tag"), ("small", "small_(disambiguation)"), ("doggo", "dog")]
    aliases = Aliases(AliasConfig(files=[pair_file(tmp_path, "list.csv", pairs)]))
    assert [aliases.resolve(name) for name, _ in pairs] == ["no_humans", "small", "dog"]


def test_the_recipe_comes_before_files_and_a_file_before_later_ones(tmp_path: Path) -> None:
    first = pair_file(tmp_path, "first.csv", [("a", "first"), ("b", "first"), ("b", "twice"), ("cat", "feline")])
    second = pair_file(tmp_path, "second.csv", [("a", "second"), ("b", "second"), ("c", "second"), ("first", "end")])
    aliases = Aliases(AliasConfig(files=[first, second], pairs={"a": "own", "cat": "cat"}))
    assert [aliases.resolve(name) for name in ("a", "b", "c", "cat")] == ["own", "end", "second", "cat"]


def test_the_recipe_can_turn_a_files_pair_round(tmp_path: Path) -> None:
    file = pair_file(tmp_path, "list.csv", [("doggo", "dog"), ("pup", "dog")])
    aliases = Aliases(AliasConfig(files=[file], pairs={"dog": "doggo"}))
    assert {aliases.resolve(name) for name in ("dog", "doggo", "pup")} == {"doggo"}


def test_two_spellings_of_one_name_in_the_recipe() -> None:
    assert Aliases(AliasConfig(pairs={"big dog": "x", "big_dog": "y"})).resolve("big_dog") == "y"


def test_long_chains_of_aliases() -> None:
    links = [(f"t{i}", f"t{i + 1}") for i in range(10_000)]
    for pairs in (links, links[::-1]):
        aliases = Aliases(AliasConfig(pairs=dict(pairs)))
        assert {aliases.resolve(name) for name, _ in pairs} == {"t10000"}


@pytest.mark.parametrize("pair", [("", "dog"), ("dog", " ")])
def test_own_pairs_need_two_names(pair: tuple[str, str]) -> None:
    with pytest.raises(UserError, match=r"captions\.tags\.aliases\.pairs has .*: give two names"):
        Aliases(AliasConfig(pairs=dict([pair])))
    with pytest.raises(UserError, match=r"captions\.tags\.implications\.pairs has .*: give two names"):
        implications([pair])


@given(graphs)
def test_aliases_against_walking(pairs: list[tuple[str, str]]) -> None:
    targets = dict(pairs)
    order = list(targets)
    aliases = Aliases(AliasConfig(pairs=targets))
    for name in "abcdefgh":
        walked = [name]
        while (following := targets.get(walked[-1])) and following not in walked:
            walked.append(following)
        end = walked[-1]
        if following:  # a circle: the one whose pair came last, and so closed it
            end = max(walked[walked.index(following) :], key=order.index)
        assert aliases.resolve(name) == end
        assert aliases.resolve(end) == end


# Implications


def reaches(pairs: list[tuple[str, str]]) -> set[tuple[str, str]]:
    """All pairs of names of which the first leads to the second (Warshall's algorithm)."""
    reached = set(pairs)
    for middle in "abcdefgh":
        into = {first for first, second in reached if second == middle}
        onward = {second for first, second in reached if first == middle}
        reached |= {(first, second) for first in into for second in onward}
    return reached


@given(graphs)
def test_implications_against_reachability(pairs: list[tuple[str, str]]) -> None:
    reached, found = reaches(pairs), implications(pairs)
    for name in "abcdefgh":
        expected = {other for first, other in reached if first == name and (other, name) not in reached}
        assert found.implied_by(name) == expected - {name}
        assert found.implied_by(name) == found.implied_by(name)


def test_names_that_imply_one_another_do_not_count_but_what_lies_beyond_does() -> None:
    found = implications([("x", "a"), ("a", "b"), ("b", "c"), ("c", "a"), ("b", "end"), ("end", "end")])
    assert found.implied_by("x") == {"a", "b", "c", "end"}
    assert [found.implied_by(name) for name in "abc"] == [{"end"}] * 3
    assert found.implied_by("end") == set()


def test_implications_of_the_recipe_and_of_files_add_up(tmp_path: Path) -> None:
    files = [
        pair_file(tmp_path, "a.csv", [("poodle", "dog"), ("dog", "canine")]),
        pair_file(tmp_path, "b.csv", [("canine", "mammal"), ("poodle", "dog")]),
    ]
    found = Implications(ImplicationConfig(files=files, pairs=[["Poodle", "Curly Hair"]]), KEY, str)
    assert found.implied_by("poodle") == {"dog", "canine", "mammal", "curly_hair"}
    assert found.implied_by("mammal") == found.implied_by("unheard_of") == frozenset()
    assert found
    assert not Implications(ImplicationConfig(), KEY, str)


def test_long_chains_and_circles_of_implications() -> None:
    names = [f"t{i}" for i in range(10_001)]
    chain = implications(list(pairwise(names)))
    assert chain.implied_by("t0") == set(names[1:])
    assert chain.implied_by("t9999") == {"t10000"}
    circle = implications([*pairwise(names), (names[-1], names[0]), ("t5", "end")])
    assert circle.implied_by("t0") == {"end"}


# Probabilities


def test_a_pairs_probability_is_a_hash_of_the_key_and_both_names() -> None:
    digest = hashlib.blake2b(b"big_dog dog", digest_size=8, key=KEY.to_bytes(8, "little")).digest()
    share = (int.from_bytes(digest, "little") >> 11) / 2**53
    found = implications([("big_dog", "dog")])
    assert found.probability("big_dog", "dog") == pytest.approx(0.3 + 0.2 * share, abs=1e-15)
    assert found.probability("big_dog", "dog") != found.probability("dog", "big_dog")
    assert found.probability("big_dog", "dog") != implications([], KEY + 1).probability("big_dog", "dog")


def test_another_process_has_the_same_probabilities() -> None:
    code = (
        "from finetune.data.prompts.lists import Implications\n"
        "from finetune.data.prompts.config import ImplicationConfig\n"
        f"print(repr(Implications(ImplicationConfig(), {KEY}, str).probability('füchs', 'dog')))"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=Path(lists.__file__).parents[3],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert printed == {repr(implications([]).probability("füchs", "dog"))}


def test_probabilities_fill_the_range_evenly() -> None:
    found = implications([])
    drawn = [found.probability(f"a{i}", f"b{i % 7}") for i in range(20_000)]
    assert 0.3 <= min(drawn) < 0.3001
    assert 0.4999 < max(drawn) < 0.5
    assert sum(drawn) / len(drawn) == pytest.approx(0.4, abs=0.002)
    quarters = [sum(0.3 + 0.05 * i <= p < 0.35 + 0.05 * i for p in drawn) for i in range(4)]
    assert quarters == pytest.approx([5000] * 4, rel=0.06)


@given(st.text(), st.text(), st.integers(0, 2**64 - 1), st.floats(0, 1), st.floats(0, 1))
def test_probabilities_stay_within_bounds(first: str, second: str, key: int, a: float, b: float) -> None:
    low, high = sorted((a, b))
    assert low <= implications([], key, (low, high)).probability(first, second) <= high


def test_broken_text_has_a_probability_too() -> None:
    assert 0.3 <= implications([]).probability("\ud800", "dog") < 0.5


# Real files


def rows_of(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", REAL_PAIRS)
def test_real_exports_are_read_whole(shared_data: Path, name: str) -> None:
    pairs = read_pairs(str(shared_data / "tags" / name))
    active = [row for row in rows_of(shared_data / "tags" / name) if row["status"] == "active"]
    assert len(pairs) == len(active) == REAL_PAIRS[name]
    assert pairs == tuple((canonical(row["antecedent_name"]), canonical(row["consequent_name"])) for row in active)


def test_real_implications(shared_data: Path) -> None:
    file = str(shared_data / "tags" / "e621_tag_implications-2025-05-01.csv.gz")
    found = Implications(ImplicationConfig(files=[file]), KEY, str)
    dogs = {"collie", "sheepdog", "herding_dog", "pastoral_dog", "domestic_dog"}
    assert found.implied_by("border_collie") == dogs | {"canis", "canine", "canid", "mammal"}
    for name in {name for pair in read_pairs(file) for name in pair}:
        assert name not in found.implied_by(name)


@pytest.mark.parametrize("site", ["danbooru", "e621"])
def test_real_aliases_end_where_no_other_begins(shared_data: Path, site: str) -> None:
    file = str(shared_data / "tags" / f"{site}_tag_aliases-2025-05-01.csv.gz")
    aliases, targets = Aliases(AliasConfig(files=[file])), dict(read_pairs(file))
    for name in targets:
        end = aliases.resolve(name)
        assert targets.get(end, end) == end or lists.NO_TAG.search(targets[end])
        assert not lists.NO_TAG.search(end) or end == name


def test_of_sites_that_alias_two_names_to_each_other_the_first_counts(shared_data: Path) -> None:
    danbooru, e621 = (str(shared_data / "tags" / f"{s}_tag_aliases-2025-05-01.csv.gz") for s in ("danbooru", "e621"))
    for files, name in (([danbooru, e621], "kiss"), ([e621, danbooru], "kissing")):
        aliases = Aliases(AliasConfig(files=files))
        assert aliases.resolve("kiss") == aliases.resolve("kissing") == name


def test_real_lists_of_tags(shared_data: Path) -> None:
    danbooru = read_categories(str(shared_data / "tags" / "danbooru.csv"), "danbooru")
    e621 = read_categories(str(shared_data / "tags" / "e621.csv"), "e621")
    assert (len(danbooru), len(e621)) == (140_782, 101_667)
    assert [danbooru[name] for name in ("1girl", "highres", "(^o^)/")] == ["general", "meta", "general"]
    assert [e621[name] for name in ("mammal", "hi_res", "anthro", "name")] == [
        "species",
        "meta",
        "general",
        "character",
    ]
