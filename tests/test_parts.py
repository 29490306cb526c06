"""When what was built has to be built anew."""

from types import SimpleNamespace
from typing import Any

import pytest

from finetune.memory.filling import Filling
from finetune.parts import Parts
from tests.test_engine import phases


@pytest.mark.parametrize("filled", [False, True])
@pytest.mark.parametrize("engine_fits", [False, True])
def test_blocks_are_chosen_anew_for_pictures_of_another_size(filled: bool, engine_fits: bool) -> None:
    small, large = phases({"buckets": {"resolution_px": 1024, "max_side_px": 1536}})
    engine = SimpleNamespace(fits=lambda phase: engine_fits)
    parts: Any = SimpleNamespace(engine=engine, filling=Filling([], 0, 1.0) if filled else None, _buckets=small.buckets)
    assert Parts.fits(parts, small) == engine_fits
    assert Parts.fits(parts, large) == (engine_fits and not filled)
