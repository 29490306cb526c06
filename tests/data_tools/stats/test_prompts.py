"""Figures from counts."""

import numpy as np
import pytest

from data_tools.stats.prompts import TagFigures, at_most, most_lost


def tag(name: str, kept: int, chances: int) -> TagFigures:
    share = kept / chances if chances else None
    return TagFigures(name, 0.1, 0.1, share, at_most(kept, chances), None)


def test_what_is_lost_most_is_sure_to_be_lost() -> None:
    tags = [
        tag("often", 100, 1000),
        tag("once", 0, 1),
        tag("never", 50, 50),
        tag("not drawn", 0, 0),
        tag("all", 0, 500),
    ]
    assert [lost.tag for lost in most_lost(tags)] == ["all", "often", "once"]


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
@pytest.mark.parametrize("trials", [20, 400])
def test_the_upper_end_holds_nearly_always(share: float, trials: int) -> None:
    hits = np.random.default_rng(0).binomial(trials, share, 4000)
    below = np.mean([at_most(int(count), trials) >= share for count in hits])
    assert below > 0.95
    assert at_most(0, 0) == 1.0
