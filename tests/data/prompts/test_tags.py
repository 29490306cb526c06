"""What becomes of tags, policy by policy."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from finetune.data.hashing import CounterRng
from finetune.data.labels import Labels
from finetune.data.prompts.config import AliasConfig, CategoryConfig, ImplicationConfig, SpellingConfig, TagsConfig
from finetune.data.prompts.patterns import Patterns
from finetune.data.prompts.tags import Gone, TagPolicy, tags_of
from finetune.errors import UserError

DRAWS = 4000
IMPLIES = ImplicationConfig(pairs=[["big dog", "dog"], ["dog", "animal"]], drop=[1.0, 1.0])


def policy(*, wildcards: bool = False, seed: int = 3, **settings: object) -> TagPolicy:
    return TagPolicy(TagsConfig(**settings), Patterns([]), wildcards=wildcards, seed=seed)  # type: ignore[arg-type]


def draw(tags: Sequence[str], i: int = 0, step: int = 0, **settings: object) -> tuple[list[str], list[Gone]]:
    return drawn(policy(**settings), Labels(tuple(tags)), i, step)


def drawn(made: TagPolicy, labels: Labels, i: int = 0, step: int = 0) -> tuple[list[str], list[Gone]]:
    gone: list[Gone] = []
    rng = CounterRng(3, i)
    found = made.draw(made.stored(labels, rng, gone), rng, step, gone)
    return [tag.text for tag in tags_of(found)], gone


def near(count: int, share: float, draws: int = DRAWS) -> bool:
    return abs(count - draws * share) <= 4 * (draws * share * (1 - share)) ** 0.5


def test_nothing_asked_for_is_nothing_done() -> None:
    assert draw(["b", "a_b", "C (d)"], shuffle=False) == (["b", "a_b", "C (d)"], [])
    assert draw([]) == ([], [])


def test_shuffling_moves_all_but_the_first() -> None:
    made = policy(keep_first=2)
    orders = {tuple(drawn(made, Labels(("a", "b", "c", "d", "e")), i)[0]) for i in range(200)}
    assert {order[:2] for order in orders} == {("a", "b")}
    assert {frozenset(order[2:]) for order in orders} == {frozenset("cde")}
    assert len(orders) == 6


@pytest.mark.parametrize(
    ("tags", "head", "tail"),
    [
        (("a", "b ||| c", "d"), ["a", "b"], []),
        (("a|||c", "d|||e"), ["a"], ["e"]),
        (("|||", "c", "d", "|||", "e", "f"), [], ["e", "f"]),
        (("a", "|||", "c", "|||", "d", "|||", "e"), ["a"], ["d", "e"]),
    ],
)
def test_marked_tags_are_kept_in_place(tags: tuple[str, ...], head: list[str], tail: list[str]) -> None:
    made = policy(keep_separator="|||", drop=0.9)
    for i in range(100):
        found, _ = drawn(made, Labels(tags), i)
        assert found[: len(head)] == head
        assert found[len(found) - len(tail) :] == tail


def test_without_its_marker_the_first_are_kept() -> None:
    assert draw(["a", "b", "c"], keep_separator="|||", keep_first=1, drop=1.0)[0] == ["a"]


def test_important_tags_come_first_and_are_shuffled_among_themselves() -> None:
    made = policy(important=["solo", "1*"], keep_first=1)
    orders = {tuple(drawn(made, Labels(("kept", "a", "solo", "b", "1girl")), i)[0]) for i in range(300)}
    assert {order[0] for order in orders} == {"kept"}
    assert {order[1:3] for order in orders} == {("solo", "1girl"), ("1girl", "solo")}
    assert {order[3:] for order in orders} == {("a", "b"), ("b", "a")}
    assert draw(["a", "solo", "b"], important=["solo"], shuffle=False)[0] == ["solo", "a", "b"]


def test_a_category_can_be_important_or_safe() -> None:
    labels = Labels(("sky", "someone"), categories=("general", "Artist"))
    assert drawn(policy(important=["category:artist"], shuffle=False), labels)[0] == ["someone", "sky"]
    assert drawn(policy(never_drop=["category:artist"], drop=1.0), labels)[0] == ["someone"]


def test_what_is_never_dropped_stays_whatever_else_is_said() -> None:
    made = policy(
        never_drop=["dog"], drop=0.9, sparse=0.5, sparse_drop=1.0, implications=IMPLIES, category_drop={"species": 1.0}
    )
    for i in range(200):
        assert "dog" in drawn(made, Labels(("big dog", "dog", "sky"), categories=("", "species", "")), i)[0]


def test_the_last_tag_is_never_dropped_by_chance() -> None:
    made = policy(drop=0.9, sparse=0.5)
    counts = dict.fromkeys(("a", "b", "c"), 0)
    for i in range(DRAWS):
        found, gone = drawn(made, Labels(tuple(counts)), i)
        assert found
        assert len(found) + len(gone) == 3
        if len(found) == 1:
            counts[found[0]] += 1
    assert all(near(count, 1 / 3, sum(counts.values())) for count in counts.values())


def test_a_category_that_is_always_dropped_may_leave_nothing() -> None:
    labels = Labels(("highres", "absurdres"), categories=("meta", "meta"))
    assert drawn(policy(category_drop={"meta": 1.0}, sparse=1.0), labels) == (
        [],
        [Gone("highres", "category meta"), Gone("absurdres", "category meta")],
    )


def test_categories_have_rates_of_their_own() -> None:
    labels = Labels(("a", "b", "c"), categories=("artist", "general", ""))
    made = policy(drop=0.1, category_drop={"artist": 0.5})
    found = [set(drawn(made, labels, i)[0]) for i in range(DRAWS)]
    assert near(sum("a" not in tags for tags in found), 0.5)
    assert near(sum("b" not in tags for tags in found), 0.1)


def test_categories_come_from_a_list(tmp_path: Path) -> None:
    path = tmp_path / "tags.csv"
    path.write_text("someone_(artist),1,9,\nsky,0,9,\n")
    made = policy(category_drop={"artist": 1.0}, categories=CategoryConfig(str(path)))
    assert drawn(made, Labels(("Someone (artist)", "sky", "unknown")))[1] == [
        Gone("Someone (artist)", "category artist")
    ]
    with pytest.raises(
        UserError, match=r"category_drop has 'artsit': use one of artist, character, copyright, general"
    ):
        policy(category_drop={"artsit": 1.0}, categories=CategoryConfig(str(path)))


def test_what_a_sample_says_of_its_categories_comes_before_the_list(tmp_path: Path) -> None:
    path = tmp_path / "tags.csv"
    path.write_text("sky,0,9,\n")
    made = policy(category_drop={"artist": 1.0}, categories=CategoryConfig(str(path)))
    assert drawn(made, Labels(("sky", "sea"), categories=("artist", "")))[0] == ["sea"]


def test_implied_tags_go_only_where_what_implies_them_stays() -> None:
    assert set(draw(["dog", "big dog", "animal", "sky"], implications=IMPLIES)[0]) == {"big dog", "sky"}
    assert draw(["dog", "sky"], implications=IMPLIES, shuffle=False) == (["dog", "sky"], [])
    made = policy(implications=IMPLIES, drop=0.5)
    for i in range(300):
        found, gone = drawn(made, Labels(("dog", "big dog", "sky")), i)
        implied = [each for each in gone if each.reason == "implied by big dog"]
        assert "big dog" in found or not implied
        assert not {"dog", "big dog"} <= set(found)


def test_a_chain_is_followed_past_what_is_not_there() -> None:
    found, gone = draw(["animal", "big dog"], implications=IMPLIES)
    assert (found, gone) == (["big dog"], [Gone("animal", "implied by big dog")])


def test_tags_that_imply_each_other_are_not_both_lost() -> None:
    circle = ImplicationConfig(pairs=[["a", "b"], ["b", "a"], ["a", "a"]], drop=[1.0, 1.0])
    assert draw(["a", "b"], implications=circle, shuffle=False) == (["a", "b"], [])


def test_of_several_reasons_the_likeliest_counts() -> None:
    pairs = [[f"kind {number}", "dog"] for number in range(20)]
    implications = ImplicationConfig(pairs=pairs, drop=[0.3, 0.5])
    made = policy(implications=implications)
    labels = Labels(("dog", *(pair[0] for pair in pairs)))
    lost = sum("dog" not in drawn(made, labels, i)[0] for i in range(DRAWS))
    likeliest = max(made.vocabulary.implications.probability(pair[0].replace(" ", "_"), "dog") for pair in pairs)
    assert 0.4 < likeliest < 0.5
    assert near(lost, likeliest)


def test_implied_pairs_of_a_sample() -> None:
    made = policy(implications=IMPLIES, spelling=SpellingConfig("spaces"))
    tags = tags_of(made.stored(Labels(("big_dog", "dog", "animal", "sky")), CounterRng(0), []))
    pairs = [(first.text, second.text) for first, second in made.implied_pairs(tags)]
    assert sorted(pairs) == [("big dog", "animal"), ("big dog", "dog"), ("dog", "animal")]


def test_aliases_come_before_everything_else() -> None:
    settings = {
        "aliases": AliasConfig(pairs={"doggo": "dog", "big doggo": "big_dog"}),
        "implications": IMPLIES,
        "important": ["dog"],
        "spelling": SpellingConfig("spaces"),
        "shuffle": False,
    }
    assert draw(["sky", "Doggo", "dog"], **settings) == (["dog", "sky"], [Gone("dog", "twice")])
    assert draw(["doggo", "Big Doggo"], **settings) == (["big dog"], [Gone("dog", "implied by big dog")])


def test_a_tag_that_comes_twice_counts_where_it_comes_first() -> None:
    found, gone = draw(["Big_Dog", "sky", "big dog", r"fox \(x\)", "fox (x)"], shuffle=False)
    assert found == ["Big_Dog", "sky", r"fox \(x\)"]
    assert gone == [Gone("big dog", "twice"), Gone("fox (x)", "twice")]
    assert draw(["a", "a"], unique=False)[0] == ["a", "a"]


def test_removed_tags_never_come() -> None:
    assert draw(["rating:safe", "a", "a"], remove=["rating:*"]) == (
        ["a"],
        [Gone("rating:safe", "removed"), Gone("a", "twice")],
    )
    assert draw(["rating:safe", "a", "b"], remove=["rating:*"], keep_first=1, drop=1.0)[0] == ["a"]


def test_warming_up_takes_more_and_more_tags_in_their_order() -> None:
    tags = [f"t{number}" for number in range(12)]
    made = policy(warmup_steps=100, warmup_min=2, shuffle=False)
    counts = [len(drawn(made, Labels(tuple(tags)), step=step)[0]) for step in (0, 10, 50, 99, 100, 10**6)]
    assert counts == [2, 3, 7, 11, 12, 12]
    assert drawn(made, Labels(tuple(tags)), step=50)[0] == tags[:7]
    assert drawn(made, Labels(("a",)), step=0)[0] == ["a"]
    assert Gone("t2", "warm-up") in drawn(made, Labels(tuple(tags)), step=0)[1]


def test_the_warm_up_leaves_what_is_never_dropped() -> None:
    found, gone = draw(["a", "b", "c", "z"], warmup_steps=10, never_drop=["z"], shuffle=False)
    assert found == ["a", "z"]
    assert gone == [Gone("b", "warm-up"), Gone("c", "warm-up")]


def test_what_becomes_of_a_tag_does_not_depend_on_what_stands_beside_it() -> None:
    """Neither on other tags nor on policies that are not about it."""
    tags = [f"t{number}" for number in range(20)]
    plain, others = policy(drop=0.5), policy(drop=0.5, keep_first=3, remove=["t19"], warmup_steps=0, important=["t7"])
    for i in range(40):
        one = [tag for tag in drawn(plain, Labels(tuple(tags)), i)[0] if tag not in {"t0", "t1", "t2", "t7", "t19"}]
        more = drawn(others, Labels(("new", "x", *tags[3:])), i)[0]
        assert [tag for tag in more if tag in tags and tag not in {"t3", "t7"}] == [tag for tag in one if tag != "t3"]


def test_aliases_reach_implications_and_patterns() -> None:
    turned = AliasConfig(pairs={"dog": "doggo", "text_on_clothes": "clothes_writing"})
    made = policy(aliases=turned, implications=ImplicationConfig(pairs=[["big dog", "dog"]], drop=[1.0, 1.0]))
    assert set(drawn(made, Labels(("big dog", "dog")))[0]) == {"big dog"}
    assert draw(["dog", "sky"], aliases=turned, remove=["dog"])[0] == ["sky"]
    assert draw(["dog", "sky"], aliases=turned, remove=["doggo"])[0] == ["sky"]


def test_categories_are_found_by_either_name(tmp_path: Path) -> None:
    path = tmp_path / "tags.csv"
    path.write_text("dog,5,9,\n")
    made = policy(
        aliases=AliasConfig(pairs={"dog": "doggo"}),
        categories=CategoryConfig(str(path), "e621"),
        category_drop={"species": 1.0},
    )
    assert drawn(made, Labels(("dog", "sky")))[1] == [Gone("doggo", "category species")]
    with pytest.raises(UserError, match=r"captions\.tags\.important has 'specis': use one of"):
        policy(categories=CategoryConfig(str(path), "e621"), important=["category:specis"])


@pytest.mark.parametrize(
    ("tag", "expected"),
    [(";;;", []), ("a;;;", ["a"]), (";;;a;;; ;;;b", ["a, b"]), ("sky;;;sea", ["sea"]), ("sky;;;sky", [])],
)
def test_groups_have_no_empty_parts_and_none_that_are_removed(tag: str, expected: list[str]) -> None:
    assert draw([tag], group_separator=";;;", remove=["sky"])[0] == expected


def test_groups_move_and_go_as_one() -> None:
    made = policy(group_separator=";;;", drop=0.5)
    for i in range(100):
        text = ", ".join(drawn(made, Labels(("a;;;b", "c", "d")), i)[0])
        assert ("a" in text) == ("b" in text) == ("a, b" in text)


def test_a_further_separator_and_wildcards() -> None:
    assert draw(["a; b ;c", "d"], split=";", shuffle=False)[0] == ["a", "b", "c", "d"]
    made = policy(wildcards=True)
    hats = [drawn(made, Labels(("{red|blue} hat",)), i)[0] for i in range(DRAWS)]
    assert near(hats.count(["red hat"]), 0.5)
    assert near(hats.count(["blue hat"]), 0.5)


@pytest.mark.parametrize("tags", [["", " "], ["\0"], ["\x1b\x00", "\n"]])
def test_tags_of_nothing_are_none(tags: list[str]) -> None:
    assert draw(tags)[0] == []


def test_emoji_and_scripts_that_run_the_other_way_stay_as_they_are() -> None:
    tags = ["🦊", "👩‍🚀 astronaut", "כלב גדול", "كلب", "é"]
    assert draw(tags, shuffle=False, spelling=SpellingConfig("spaces", "escape", "lower"))[0] == tags


def test_a_policy_more_leaves_the_choices_of_the_others() -> None:
    tags = [f"t{number}" for number in range(20)]
    plain = policy(drop=0.3, shuffle=False)
    shuffled = policy(drop=0.3, sparse=0.0, important=["t1"], implications=IMPLIES)
    for i in range(50):
        assert set(drawn(plain, Labels(tuple(tags)), i)[0]) == set(drawn(shuffled, Labels(tuple(tags)), i)[0])
