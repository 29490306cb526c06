"""Indexing shards that were made elsewhere."""

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from data_tools import indexing
from data_tools.indexing import index_folder, verify_index
from finetune.data.index import Index
from finetune.errors import UserError
from tests.helpers import open_sources


def picture(colour: int, size: tuple[int, int] = (40, 20)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (colour, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]], form: int = tarfile.USTAR_FORMAT) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_any_header_format_is_read(tmp_path: Path, form: int) -> None:
    name = "folder/" + "x" * 80
    long_name = name if form == tarfile.USTAR_FORMAT else name * 3
    write_tar(tmp_path / "a.tar", [(f"{long_name}.png", picture(9)), (f"{long_name}.txt", b"dog, cat")], form)
    index, refused = index_folder(tmp_path, "auto", workers=1)
    assert refused == []
    assert index.key(0) == long_name
    record = open_sources(tmp_path).read(0, 0, whole_shard=True)
    assert record.image == picture(9)
    assert record.labels.tags == ("dog", "cat")
    assert (index.width[0], index.height[0]) == (40, 20)
    verify_index(index, workers=1)


def test_the_key_ends_at_the_first_dot_of_the_name(tmp_path: Path) -> None:
    members = [("v1.0/a.png", picture(1)), ("v1.0/a.caption.txt", b"ignored"), ("v1.0/b.JPG", picture(2))]
    write_tar(tmp_path / "a.tar", members)
    index, _ = index_folder(tmp_path, "auto", workers=1)
    assert [index.key(row) for row in range(len(index))] == ["v1.0/a", "v1.0/b"]
    assert index.numbers("text_size").tolist() == [0, 0]


def test_what_cannot_be_used_is_named_and_the_rest_is_indexed(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "a.tar",
        [
            ("good.png", picture(1)),
            ("alone.txt", b"no picture"),
            ("broken.png", b"junk"),
            ("two.png", picture(2)),
            ("two.jpg", picture(2)),
            ("json.png", picture(3)),
            ("json.json", b"["),
            ("last.png", picture(4)),
            ("last.json", json.dumps({"caption": "x"}).encode()),
        ],
    )
    index, refused = index_folder(tmp_path, "auto", workers=1)
    assert [index.key(row) for row in range(len(index))] == ["good", "last"]
    assert index.numbers("has_caption").tolist() == [0, 1]
    assert [r.key for r in refused] == ["a.tar: alone", "a.tar: broken", "a.tar: two", "a.tar: json"]
    assert refused[2].reason == "2 pictures of one key"


def test_an_unfinished_tar_is_left_out_and_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "good.tar", [("a.png", picture(1))])
    write_tar(tmp_path / "cut.tar", [(f"{i}.png", picture(i)) for i in range(9)])
    data = (tmp_path / "cut.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(data[:1200])
    index, refused = index_folder(tmp_path, "auto", workers=1)
    assert [shard.name for shard in index.shards] == ["good.tar"]
    assert len(refused) == 1
    assert refused[0].key == "cut.tar"
    assert "unfinished or damaged tar" in refused[0].reason


def test_a_second_run_reads_new_shards_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tar(tmp_path / "sub" / "a.tar", [("a.png", picture(1))])
    index_folder(tmp_path, "auto", workers=1)
    write_tar(tmp_path / "b.tar", [("b.png", picture(2))])
    read: list[str] = []
    original = indexing._read_shard
    monkeypatch.setattr(indexing, "_read_shard", lambda name, *rest: read.append(name) or original(name, *rest))
    index, _ = index_folder(tmp_path, "auto", workers=1)
    assert read == ["b.tar"]
    assert [shard.name for shard in index.shards] == ["sub/a.tar", "b.tar"]


def test_several_processes_find_the_same(tmp_path: Path) -> None:
    for i in range(5):
        write_tar(tmp_path / "one" / f"{i}.tar", [(f"{i}-{k}.png", picture(k)) for k in range(4)])
        write_tar(tmp_path / "two" / f"{i}.tar", [(f"{i}-{k}.png", picture(k)) for k in range(4)])
    one, _ = index_folder(tmp_path / "one", "auto", workers=1)
    two, _ = index_folder(tmp_path / "two", "auto", workers=2)
    assert one.fingerprint == two.fingerprint


def test_verifying_finds_a_flipped_bit(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("a.png", picture(1)), ("b.png", picture(2))])
    index_folder(tmp_path, "auto", workers=1)
    verify_index(Index.load(tmp_path), workers=1)
    data = bytearray((tmp_path / "a.tar").read_bytes())
    data[600] ^= 1
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(UserError, match=r"does not match its shard a\.tar"):
        verify_index(Index.load(tmp_path), workers=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["index", "{}"], "there are neither .tar files nor pictures below"),
        (["index", "{}", "--text", "x"], "--text is 'x': use one of auto"),
    ],
)
def test_a_mistake_ends_with_one_sentence_and_code_2(tmp_path: Path, arguments: list[str], message: str) -> None:
    command = [sys.executable, "-m", "data_tools", *(a.format(tmp_path) for a in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
