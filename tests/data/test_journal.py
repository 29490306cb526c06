"""The journal: append-only history, and what may change."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.journal import Edition, Exclusion, Journal, SourceState, check_growth
from finetune.errors import UserError

STATE = SourceState("abc", 2, None, None)
FIRST = Edition(0, {"main": STATE})


def test_it_survives_json() -> None:
    journal = Journal((FIRST, Edition(3, {"main": SourceState("abd", 4, "e1", "kept")})), (Exclusion(7, (1, 2**60)),))
    assert Journal.from_plain(journal.to_plain()) == journal


@given(st.lists(st.tuples(st.integers(0, 20), st.frozensets(st.integers(0, 5))), max_size=6))
def test_the_exclusion_in_force_is_the_last_that_was_set(settings: list[tuple[int, frozenset[int]]]) -> None:
    journal = Journal((FIRST,))
    settings = sorted(settings, key=lambda setting: setting[0])
    for step, samples in settings:
        journal = journal.with_exclusion(Exclusion(step, tuple(samples)))
    for step in range(21):
        begun = [samples for first, samples in settings if first <= step]
        assert journal.excluded(step) == (begun[-1] if begun else frozenset())


def test_an_exclusion_that_changes_nothing_is_not_written() -> None:
    journal = Journal((FIRST,)).with_exclusion(Exclusion(3, (1, 2)))
    assert journal.with_exclusion(Exclusion(9, (2, 1))) == journal
    assert Journal((FIRST,)).with_exclusion(Exclusion(3, ())) == Journal((FIRST,))


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
