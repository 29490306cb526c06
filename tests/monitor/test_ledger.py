"""The ledger: what trained, when, in a few bytes."""

from pathlib import Path

import numpy as np
import pytest

from finetune.data.plan import MicroBatch
from finetune.monitor.ledger import Ledger, read_ledger
from tests.helpers import draws_of


def micro_batches(step: int) -> list[MicroBatch]:
    """Two of four draws."""
    samples = np.arange(4, dtype=np.uint64) + np.uint64(100 * step)
    return [draws_of(samples + np.uint64(10 * b), bucket=b, epoch=step // 3, first_slot=4 * b) for b in range(2)]


def write(folder: Path, steps: range, flush_every: int = 4) -> Ledger:
    ledger = Ledger(folder)
    for step in steps:
        ledger.record(step, micro_batches(step))
        if step % flush_every == 0:
            ledger.flush()
    ledger.flush()
    return ledger


def test_rows_are_those_of_the_plan(tmp_path: Path) -> None:
    write(tmp_path / "ledger", range(1, 10))
    table = read_ledger(tmp_path / "ledger")
    assert table["step"].to_pylist() == [s for s in range(1, 10) for _ in range(8)]
    assert table["slot"].to_pylist() == list(range(8)) * 9
    assert table["sample"].to_pylist()[:8] == [100, 101, 102, 103, 110, 111, 112, 113]
    assert table["bucket"].to_pylist()[:8] == [0] * 4 + [1] * 4
    assert table["epoch"].to_pylist()[-1] == 3
    assert set(table["substituted_for"].to_pylist()) == {None}


def test_a_substitute_is_what_trained(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    ledger.record(1, micro_batches(1))
    ledger.substitute(1, 5, 777)
    ledger.flush()
    rows = read_ledger(tmp_path / "ledger").to_pylist()
    assert (rows[5]["sample"], rows[5]["substituted_for"]) == (777, 111)
    assert [row["substituted_for"] for row in rows].count(None) == 7


@pytest.mark.parametrize("resumed", [0, 3, 4, 6, 9])
def test_a_resume_writes_the_same_ledger(tmp_path: Path, resumed: int) -> None:
    write(tmp_path / "whole", range(1, 10))
    write(tmp_path / "killed", range(1, 10), flush_every=5)
    Ledger(tmp_path / "killed").supersede(resumed)
    assert set(read_ledger(tmp_path / "killed")["step"].to_pylist()) == set(range(1, resumed + 1))
    write(tmp_path / "killed", range(resumed + 1, 10))
    assert read_ledger(tmp_path / "killed").equals(read_ledger(tmp_path / "whole"))


def test_a_row_takes_a_few_bytes(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).permutation(500 * 256).astype(np.uint64)
    ledger = Ledger(tmp_path / "ledger")
    for step in range(500):
        rows = ids[step * 256 : (step + 1) * 256]
        batches = [draws_of(rows[8 * i : 8 * i + 8], bucket=i % 17, first_slot=8 * i) for i in range(32)]
        ledger.record(step, batches)
    ledger.flush()
    size = sum(path.stat().st_size for path in (tmp_path / "ledger").iterdir())
    assert size / len(ids) < 6
