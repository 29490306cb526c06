"""Spans of bytes, and how a shard is told from another."""

import io
import shutil
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.index import IMAGE, TAR_BLOCK, Index, Span
from finetune.data.spans import GAP_BYTES, coalesced, header_size, verify_local
from finetune.errors import UserError

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


@given(st.lists(st.tuples(st.integers(0, 3 * GAP_BYTES), st.integers(1, 2000)), min_size=1, max_size=6))
def test_members_come_out_of_their_readings(gaps: list[tuple[int, int]]) -> None:
    spans, end = {}, 0
    for number, (gap, size) in enumerate(gaps):
        spans[f"m{number}"] = Span("a.tar", end + gap, size)
        end += gap + size
    file = bytes(range(251)) * (end // 251 + 1)
    readings = coalesced(dict(reversed(spans.items())))
    members = {name: data for r in readings for name, data in r.cut(file[r.span.offset :][: r.span.size]).items()}
    assert members == {name: file[span.offset : span.offset + span.size] for name, span in spans.items()}
    assert len(readings) == 1 + sum(gap > GAP_BYTES for gap, _ in gaps[1:])


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", ["a.jpg", "é" * 40 + ".jpg", "long/" * 40 + "a.jpg", "../../evil.jpg"])
def test_the_header_before_a_member_tells_its_size(kind: str, name: str) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=FORMATS[kind]) as tar:
        info = tarfile.TarInfo(name)
        info.size = 1234
        tar.addfile(info, io.BytesIO(bytes(1234)))
    buffer.seek(0)
    with tarfile.open(fileobj=buffer) as tar:
        offset = tar.getmembers()[0].offset_data
    assert header_size(buffer.getvalue()[offset - TAR_BLOCK : offset]) == 1234


def test_headers_of_old_and_of_large_members() -> None:
    large = tarfile.TarInfo("a.jpg")
    large.size = 20 * 2**30
    header = large.tobuf(tarfile.GNU_FORMAT)
    assert header_size(header) == large.size
    old = bytearray(tarfile.TarInfo("a.jpg").tobuf(tarfile.USTAR_FORMAT))
    old[257:] = bytes(TAR_BLOCK - 257)
    old[148:156] = b" " * 8
    old[148:156] = b"%06o\0 " % sum(old)
    assert header_size(bytes(old)) == 0


@given(st.binary(max_size=2 * TAR_BLOCK) | st.binary(min_size=TAR_BLOCK, max_size=TAR_BLOCK))
def test_other_bytes_are_no_header(data: bytes) -> None:
    assert header_size(data) is None
    broken = bytearray(tarfile.TarInfo("a").tobuf(tarfile.USTAR_FORMAT))
    broken[124:136] = b"ustar 89abc\0"
    assert header_size(bytes(broken)) is None


def test_the_right_shards_pass(shards: Path) -> None:
    index = Index.load(shards)
    for number in range(len(index.shards)):
        verify_local(index, number)


def test_a_missing_shard(shards: Path) -> None:
    index = Index.load(shards)
    Path(index.location(0)).unlink()
    with pytest.raises(UserError, match=r".*shard-00000\.tar is missing: put it back"):
        verify_local(index, 0)


def test_a_truncated_shard(shards: Path) -> None:
    index = Index.load(shards)
    path = Path(index.location(0))
    path.write_bytes(path.read_bytes()[:-1024])
    with pytest.raises(UserError, match=r"does not match its shard shard-00000\.tar"):
        verify_local(index, 0)


def test_another_shard_of_the_same_size(shards: Path) -> None:
    index = Index.load(shards)
    path, span = Path(index.location(0)), index.spans(0)[IMAGE]
    data = path.read_bytes()
    path.write_bytes(data[TAR_BLOCK:] + bytes(TAR_BLOCK))
    with pytest.raises(UserError, match="does not match its shard"):
        verify_local(index, 0)
    path.write_bytes(bytes(len(data)))
    with pytest.raises(UserError, match="does not match its shard"):
        verify_local(index, 0)
    path.write_bytes(data)
    verify_local(index, 0)
    assert header_size(data[span.offset - TAR_BLOCK : span.offset]) == span.size


def test_an_index_of_other_shards(shards: Path, tmp_path: Path) -> None:
    """The index of a folder whose shards have changed places."""
    first, second = sorted(shards.glob("*.tar"))
    shutil.move(first, tmp_path / "first")
    shutil.move(second, first)
    shutil.move(tmp_path / "first", second)
    with pytest.raises(UserError, match="does not match its shard"):
        verify_local(Index.load(shards), 0)
