"""Indexing shards that were made elsewhere."""

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from data_tools import indexing
from data_tools.indexing import expand, files_below, index_folder, index_shards, verify_index
from finetune.data import outage
from finetune.data.index import Index
from finetune.data.labels import Labels
from finetune.errors import UserError
from tests.helpers import open_sources, read_all
from tests.servers import FaultyServer, faulty_http


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


def keys(index: Index) -> list[str]:
    return [index.key(row) for row in range(len(index))]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The shards that are read rather than remembered, in their order."""
    names: list[str] = []
    original = indexing._read_shard
    monkeypatch.setattr(indexing, "_read_shard", lambda name, *rest: names.append(name) or original(name, *rest))
    return names


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


def test_masks_are_members_and_no_pictures(tmp_path: Path) -> None:
    """Before their picture or behind it; what they show is looked at when they are used."""
    members = [("a.MASK.png", picture(7)), ("a.jpg", picture(1)), ("b.png", picture(2)), ("c.mask.png", picture(3))]
    write_tar(tmp_path / "a.tar", [*members, ("b.mask.png", b"junk"), ("d.png", picture(4)), ("d.mask.jpg", b"")])
    index, refused = index_folder(tmp_path, "auto", workers=1)
    assert keys(index) == ["a", "b", "d"]
    assert refused == [("a.tar: c", "no picture")]
    assert index.numbers("mask_size").tolist() == [len(picture(7)), len(b"junk"), 0]
    assert [record.mask for record in read_all(tmp_path)] == [picture(7), b"junk", None]
    assert index.sizes().tolist() == [len(picture(1) + picture(7)), len(picture(2)) + 4, len(picture(4))]


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


@pytest.mark.parametrize("cut", [0, 700, 1536, -10240])
def test_an_unfinished_tar_is_known_by_its_end(tmp_path: Path, cut: int) -> None:
    write_tar(tmp_path / "good.tar", [("a.png", picture(1))])
    write_tar(tmp_path / "cut.tar", [("a.png", picture(1)), ("b.png", picture(2))])
    data = (tmp_path / "cut.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(data[:cut] if cut >= 0 else data.rstrip(b"\0"))
    index, refused = index_folder(tmp_path, "auto", workers=1)
    assert [shard.name for shard in index.shards] == ["good.tar"]
    assert [r.key for r in refused] == ["cut.tar"]


def test_what_img2dataset_writes(tmp_path: Path) -> None:
    members = []
    for i, caption in enumerate((None, "A fox in the snow, seen from above.")):
        meta = {
            "caption": caption,
            "url": "https://example.org/1.jpg",
            "key": f"{i:09d}",
            "status": "success",
            "exif": "{}",
        }
        sides = [("txt", b"A dog that runs over wet grass")] if i == 0 else [("txt", (caption or "").encode())]
        files = [("jpg", picture(i)), *sides, ("json", json.dumps(meta).encode())]
        members += [(f"{i:09d}.{suffix}", data) for suffix, data in files]
    write_tar(tmp_path / "00000.tar", members)
    (tmp_path / "00000_stats.json").write_text("{}")
    (tmp_path / "00000.parquet").write_bytes(b"PAR1")
    index, refused = index_folder(tmp_path, "auto", workers=1)
    assert (keys(index), refused) == (["000000000", "000000001"], [])
    captions = [record.labels for record in read_all(tmp_path)]
    assert captions[0] == Labels((), ("A dog that runs over wet grass",))
    assert captions[1] == Labels((), ("A fox in the snow, seen from above.",))


def test_members_of_a_key_need_not_lie_together_and_a_suffix_that_comes_again_is_another_sample(tmp_path: Path) -> None:
    members = [("a.png", picture(1)), ("b.png", picture(2)), ("a.txt", b"first"), ("a.png", picture(3))]
    write_tar(tmp_path / "a.tar", [*members, ("b.txt", b"second"), ("a.txt", b"third"), ("a.PNG", picture(4))])
    index, _ = index_folder(tmp_path, "auto", workers=1)
    assert keys(index) == ["a", "b", "a", "a"]
    records = read_all(tmp_path)
    assert [record.image for record in records] == [picture(i) for i in (1, 2, 3, 4)]
    assert [record.labels.tags for record in records] == [("first",), ("second",), ("third",), ()]


def test_links_sparse_files_and_hidden_members_are_passed_over(tmp_path: Path) -> None:
    with (tmp_path / "sparse.png").open("wb") as file:
        file.write(picture(3))
        file.truncate(1 << 20)
    (tmp_path / "a.png").write_bytes(picture(1))
    os.link(tmp_path / "a.png", tmp_path / "hard.png")
    (tmp_path / "soft.png").symlink_to("a.png")
    (tmp_path / "._a.png").write_bytes(b"junk")
    (tmp_path / "z.png").write_bytes(picture(2))
    names = ["a.png", "hard.png", "soft.png", "sparse.png", "._a.png", "z.png"]
    command = ["tar", "--sparse", "--create", "--file", "shards/a.tar", *names]
    for number, form in enumerate(("gnu", "pax")):
        (tmp_path / "shards").mkdir(exist_ok=True)
        command[4] = f"shards/{number}.tar"
        subprocess.run([*command, f"--format={form}"], cwd=tmp_path, check=True)
    index, refused = index_folder(tmp_path / "shards", "auto", workers=1)
    assert (keys(index), refused) == (["a", "z"] * 2, [])
    assert [record.image for record in read_all(tmp_path / "shards")] == [picture(1), picture(2)] * 2


def test_names_that_are_not_utf8_are_told_by_their_bytes(tmp_path: Path) -> None:
    members = [("caf\udce9.png", picture(1)), ("caf\udce8.png", picture(2)), ("caf\udce9.txt", b"dog")]
    write_tar(tmp_path / "a.tar", [*members, ("\udcff.txt", b"no picture")], tarfile.GNU_FORMAT)
    index, refused = index_folder(tmp_path, "auto", workers=1)
    assert keys(index) == ["caf\\xe9", "caf\\xe8"]
    assert [record.labels.tags for record in read_all(tmp_path)] == [("dog",), ()]
    assert [r.key for r in refused] == ["a.tar: \\xff"]


def test_a_second_run_reads_new_and_changed_shards_only(tmp_path: Path, read: list[str]) -> None:
    write_tar(tmp_path / "sub" / "a.tar", [("a.png", picture(1))])
    index_folder(tmp_path, "auto", workers=1)
    write_tar(tmp_path / "b.tar", [("b.png", picture(2))])
    read.clear()
    index, _ = index_folder(tmp_path, "auto", workers=1)
    assert read == ["b.tar"]
    assert [shard.name for shard in index.shards] == ["sub/a.tar", "b.tar"]
    write_tar(tmp_path / "sub" / "a.tar", [("a.png", picture(1)), ("c.png", picture(3))])
    read.clear()
    changed, _ = index_folder(tmp_path, "auto", workers=1)
    assert read == ["sub/a.tar"]
    assert keys(changed) == ["a", "c", "b"]
    assert changed.fingerprint != index.fingerprint
    read.clear()
    index_folder(tmp_path, "caption", workers=1)
    assert read == ["sub/a.tar", "b.tar"]


def test_a_damaged_part_is_read_again(tmp_path: Path, read: list[str]) -> None:
    write_tar(tmp_path / "a.tar", [("a.png", picture(1))])
    before, _ = index_folder(tmp_path, "auto", workers=1)
    for junk in (b"", b"junk"):
        next((tmp_path / ".index").glob("*.arrow")).write_bytes(junk)
        assert index_folder(tmp_path, "auto", workers=1)[0].fingerprint == before.fingerprint
    assert read == ["a.tar"] * 3


def test_what_was_refused_is_read_again_with_another_plugin(
    tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tar(tmp_path / "a.tar", [("a.png", b"junk"), ("b.png", picture(1))])
    write_tar(tmp_path / "b.tar", [("c.png", picture(2))])
    for plugins in ([], [], ["pillow-heif"]):
        monkeypatch.setattr(indexing, "_plugins", lambda plugins=plugins: plugins)
        index_folder(tmp_path, "auto", workers=1)
    assert read == ["a.tar", "b.tar", "a.tar"]


def test_shards_are_found_anywhere_but_in_hidden_folders(tmp_path: Path) -> None:
    root = tmp_path / ".index" / "data"
    for name in ("b.tar", "sub/a.tar", ".hidden/c.tar", ".d.tar"):
        write_tar(root / name, [("a.png", picture(1))])
    (root / "folder.tar").mkdir()
    (root / "round").symlink_to(root)
    (root / "linked.tar").symlink_to(root / "b.tar")
    write_tar(tmp_path / "elsewhere" / "e.tar", [("a.png", picture(1))])
    (root / "link").symlink_to(tmp_path / "elsewhere")
    assert files_below(root, {"tar"}) == ["b.tar", "link/e.tar", "linked.tar", "sub/a.tar"]


def test_shards_are_named_in_many_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for i in range(12):
        write_tar(tmp_path / "in" / f"{i:03d}.tar", [(f"{i}.png", picture(i))])
    write_tar(tmp_path / "odd {x [y.tar", [("odd.png", picture(1))])
    (tmp_path / "list.txt").write_text(
        "# three of them, and a comment\n\n in/{001..002}.tar \nodd {x [y.tar\n#no.tar\n"
    )

    def names(*patterns: str) -> list[str]:
        return [Path(name).stem for name in expand(patterns)]

    assert names("in/{000..003}.tar") == ["000", "001", "002", "003"]
    assert names(f"{tmp_path}/in/{{002,001}}.tar") == ["002", "001"]
    assert names("in/01*.tar", "in/00[12].tar", "in/01?.tar") == ["010", "011", "001", "002"]
    assert names("list.txt") == ["001", "002", "odd {x [y"]
    assert names("in") == [f"{i:03d}" for i in range(12)]
    assert expand(["https://a/{08..09}.tar?token=1"]) == [f"https://a/{i}.tar?token=1" for i in ("08", "09")]
    assert all(Path(name).is_absolute() for name in expand(["in/000.tar", "in/0*.tar", "in", "list.txt"]))


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("in/{000..001}.tar", "there is no shard in/000.tar"),
        ("in/*.tar", "names no shard"),
        ("in/{a.tar", "has braces without their counterpart"),
        ("empty.txt", "names no shard"),
        ("missing.txt", "there is no shard missing.txt"),
    ],
)
def test_what_names_no_shard_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("# nothing\n")
    with pytest.raises(UserError) as error:
        expand([pattern])
    assert message in str(error.value)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """Two shards over HTTP; a fault is tried again three times, at once."""
    monkeypatch.setattr(outage, "ATTEMPTS", 4)
    monkeypatch.setattr(outage, "wait_random_exponential", lambda *_, **__: lambda _: 0.05)
    for i in range(2):
        write_tar(tmp_path / "served" / f"{i}.tar", [(f"{i}-{k}.png", picture(k)) for k in range(3)])
    with faulty_http(tmp_path / "served") as serving:
        yield serving


def index_remote(server: FaultyServer, out: Path, last: int = 1) -> Index:
    return index_shards(expand([f"{server.url}/{{0..{last}}}.tar"]), out, "auto", workers=1)[0]


def test_remote_shards_are_indexed_and_only_new_ones_read_again(
    server: FaultyServer, tmp_path: Path, read: list[str]
) -> None:
    out = tmp_path / "out"
    index = index_remote(server, out)
    local, _ = index_folder(tmp_path / "served", "auto", workers=1)
    assert keys(index) == keys(local)
    assert [shard.sha256 for shard in index.shards] == [shard.sha256 for shard in local.shards]
    assert sorted(path.suffix for path in (out / ".index").iterdir()) == [".arrow", ".arrow"]

    read.clear()
    write_tar(tmp_path / "served" / "2.tar", [("new.png", picture(9))])
    grown = index_remote(server, out, last=2)
    assert read == [f"{server.url}/2.tar"]
    assert grown.head(2).fingerprint == index.fingerprint

    read.clear()
    write_tar(tmp_path / "served" / "0.tar", [("other.png", picture(9))])
    assert keys(index_remote(server, out, last=2))[0] == "other"
    assert read == [f"{server.url}/0.tar"]


def test_a_server_s_fault_is_tried_again(server: FaultyServer, tmp_path: Path) -> None:
    server.fail(seconds=0.12)
    server.cut_next(1)
    assert len(index_remote(server, tmp_path / "out")) == 6


def test_what_cannot_be_had_is_said_and_leaves_nothing_behind(server: FaultyServer, tmp_path: Path) -> None:
    server.vanish("1.tar")
    with pytest.raises(UserError, match=r"1\.tar cannot be read .*: check the address and your credentials"):
        index_remote(server, tmp_path / "out")
    assert sum(request.path == "/1.tar" for request in server.requests) < 4  # what is missing is not asked for again
    server.heal()
    server.fail()
    with pytest.raises(UserError, match=r"0\.tar cannot be read"):
        index_remote(server, tmp_path / "new")
    with pytest.raises(UserError, match=r"127\.0\.0\.1:1/a\.tar cannot be read"):
        index_shards(["http://127.0.0.1:1/a.tar"], tmp_path / "new", "auto", workers=1)
    assert not list((tmp_path / "new").rglob("*.part"))


def test_verifying_leaves_out_what_lies_elsewhere(server: FaultyServer, tmp_path: Path) -> None:
    write_tar(tmp_path / "near.tar", [("a.png", picture(1))])
    index, _ = index_shards([str(tmp_path / "near.tar"), f"{server.url}/0.tar"], tmp_path / "out", "auto", workers=1)
    assert verify_index(index, workers=1) == 1


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
        (["index", "{}/*.tar"], "or say with --out FOLDER"),
        (["index", "{}/a.tar", "--out", "{}/out"], "there is no shard"),
        (["index", "{}", "--verify"], "there is no index"),
    ],
)
def test_a_mistake_ends_with_one_sentence_and_code_2(tmp_path: Path, arguments: list[str], message: str) -> None:
    command = [sys.executable, "-m", "data_tools", *(a.format(tmp_path) for a in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
