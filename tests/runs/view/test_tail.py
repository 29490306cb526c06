"""Long files of JSON lines, read in part."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.runs.view.curves import PLACES
from finetune.runs.view.overview import overview
from finetune.runs.view.tail import CHUNK, last_lines, spread_lines
from tests.runs.pretend import pretend_run

MONTHS = 200_000
"""Lines of a run of months."""


def read_bytes() -> int:
    """Bytes that this process has asked the system for so far."""
    text = Path("/proc/self/io").read_text()
    return int(text.split("rchar: ")[1].split()[0])


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("long") / "metrics.jsonl"
    padding = "x" * 400
    with path.open("w") as file:
        file.writelines(f'{{"step": {step}, "loss": 0.1, "more": "{padding}"}}\n' for step in range(1, MONTHS + 1))
    return path


def test_the_end_of_a_long_file_costs_no_more_than_a_few_pages(long: Path) -> None:
    before = read_bytes()
    lines = last_lines(long, 50)
    assert read_bytes() - before < 256 * 1024
    assert [line["step"] for line in lines] == list(range(MONTHS - 49, MONTHS + 1))


def test_a_curve_of_a_long_file_costs_so_many_pages_as_it_has_places(long: Path) -> None:
    before = read_bytes()
    groups = spread_lines(long, PLACES)
    assert read_bytes() - before < PLACES * (CHUNK + 1) + 16 * 1024
    firsts = [group[0]["step"] for group in groups]
    assert len(groups) == PLACES
    assert firsts == sorted(firsts)
    assert groups[0][0]["step"] == 1
    assert groups[-1][-1]["step"] == MONTHS
    gaps = [b - a for a, b in pairwise(firsts)]
    assert max(gaps) < 1.1 * MONTHS / PLACES
    for group in groups:
        steps = [line["step"] for line in group]
        assert steps == list(range(steps[0], steps[0] + len(steps)))


def test_an_overview_of_a_long_run_reads_little(long: Path, tmp_path: Path) -> None:
    run = pretend_run(tmp_path / "run", 100)
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").symlink_to(long)
    before = read_bytes()
    assert overview(run).step == MONTHS
    assert read_bytes() - before < 512 * 1024


@given(
    steps=st.integers(0, 400),
    count=st.integers(1, 60),
    tail=st.sampled_from([b"", b'{"step": 9', b"\xff\xfe", b"\x00" * 70]),
    width=st.integers(0, 300),
)
def test_the_last_lines_are_those_of_the_whole_file(
    tmp_path_factory: pytest.TempPathFactory, steps: int, count: int, tail: bytes, width: int
) -> None:
    path = tmp_path_factory.mktemp("short") / "lines.jsonl"
    lines = [{"step": step, "more": "é" * width} for step in range(steps)]
    path.write_bytes("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode() + tail)
    assert last_lines(path, count) == lines[-count:]


@given(steps=st.integers(0, 300), places=st.integers(2, 40))
def test_all_lines_of_a_short_file_are_in_its_curve(
    tmp_path_factory: pytest.TempPathFactory, steps: int, places: int
) -> None:
    path = tmp_path_factory.mktemp("short") / "lines.jsonl"
    lines = [{"step": step} for step in range(steps)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    groups = spread_lines(path, places)
    assert [line for group in groups for line in group] == lines
    assert len(groups) == min(places, steps)


def test_lines_that_are_no_objects_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"step": 1}\n\x00\x00\x00\n[3]\n"x"\n{"step": 2}\n{"step"')
    assert last_lines(path, 10) == [{"step": 1}, {"step": 2}]
    assert last_lines(tmp_path / "none", 10) == []
