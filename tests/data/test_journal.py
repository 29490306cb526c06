"""The journal: append-only history, and what may change."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.journal import (
    EXCLUDED,
    QUARANTINED,
    Edition,
    Exclusion,
    Journal,
    Jump,
    Quarantine,
    Setting,
    Skip,
    SourceState,
    check_growth,
)
from finetune.errors import UserError

STATE = SourceState("abc", 2, None, None)
FIRST = Edition(0, {"main": STATE})


def test_it_survives_json() -> None:
    journal = Journal((FIRST, Edition(3, {"main": SourceState("abd", 4, "e1", "kept")})), (Exclusion(7, (1, 2**60)),))
    journal = journal.with_skip(Skip(8, "loss is nan")).with_skip(Skip(9, "loss is nan")).with_jump(Jump(5, 20, 8))
    journal = journal.with_quarantine(Quarantine(21, (3, 2**60))).with_setting(Setting(22, "optim.lr", 1e-6))
    assert Journal.from_plain(json.loads(json.dumps(journal.to_plain()))) == journal


@given(st.lists(st.tuples(st.integers(0, 20), st.frozensets(st.integers(0, 5))), max_size=6))
def test_the_exclusion_in_force_is_the_last_that_was_set(settings: list[tuple[int, frozenset[int]]]) -> None:
    journal = Journal((FIRST,))
    settings = sorted(settings, key=lambda setting: setting[0])
    for step, samples in settings:
        journal = journal.with_exclusion(Exclusion(step, tuple(samples)))
    for step in range(21):
        begun = [samples for first, samples in settings if first <= step]
        assert journal.excluded(step) == dict.fromkeys(begun[-1] if begun else (), EXCLUDED)


def test_an_exclusion_that_changes_nothing_is_not_written() -> None:
    journal = Journal((FIRST,)).with_exclusion(Exclusion(3, (1, 2)))
    assert journal.with_exclusion(Exclusion(9, (2, 1))) == journal
    assert Journal((FIRST,)).with_exclusion(Exclusion(3, ())) == Journal((FIRST,))


def test_what_is_set_earlier_takes_the_place_of_what_would_have_come_later() -> None:
    journal = Journal((FIRST,)).with_setting(Setting(3, "a", 1)).with_setting(Setting(9, "a", 2))
    journal = journal.with_setting(Setting(9, "b", 3)).with_setting(Setting(5, "a", 4))
    assert journal.settings == (Setting(3, "a", 1), Setting(9, "b", 3), Setting(5, "a", 4))


@given(st.permutations(["excluded", "excluded otherwise", "quarantined", "quarantined too"]))
def test_what_is_quarantined_stays_so_whatever_is_excluded(order: list[str]) -> None:
    journal = Journal((FIRST,))
    quarantined: set[int] = set()
    excluded: tuple[int, ...] = ()
    for step, change in enumerate(order):
        if change.startswith("excluded"):
            excluded = (1, 2) if change == "excluded" else (2, 3)
            journal = journal.with_exclusion(Exclusion(step, excluded))
        else:
            quarantined |= {2, 7} if change == "quarantined" else {8}
            journal = journal.with_quarantine(Quarantine(step, (2, 7) if change == "quarantined" else (8,)))
        assert journal.excluded(step) == dict.fromkeys(quarantined, QUARANTINED) | dict.fromkeys(excluded, EXCLUDED)
    assert journal.excluded(0).keys() <= {1, 2, 3, 7, 8}
    assert journal.with_exclusion(Exclusion(4, ())).excluded(4) == dict.fromkeys({2, 7, 8}, QUARANTINED)


def test_an_edition_takes_the_place_of_one_that_has_not_begun() -> None:
    later, earlier = (Edition(epoch, {"main": SourceState(f"e{epoch}", 3, None, None)}) for epoch in (4, 2))
    journal = Journal((FIRST,)).with_edition(later).with_edition(earlier)
    assert journal.editions == (FIRST, earlier)
    assert journal.current == earlier.sources


def test_what_may_become_of_an_index() -> None:
    same, grown, other = STATE, SourceState("abd", 5, None, None), SourceState("xyz", 2, None, None)
    chain = ["a", "abc", "abd"]
    check_growth("main", STATE, same, chain, "refuse")
    check_growth("main", STATE, grown, chain, "next_epoch")
    with pytest.raises(UserError, match=r"has grown by 3 shards since the run began: set data\.on_change=next_epoch"):
        check_growth("main", STATE, grown, chain, "refuse")
    for on_change in ("refuse", "next_epoch"):
        with pytest.raises(UserError, match="'main' is not the one that the run began with"):
            check_growth("main", STATE, other, ["xyz"], on_change)
