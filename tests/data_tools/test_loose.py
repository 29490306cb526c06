"""Indexing loose pictures in place."""

import json
import os
import shutil
from pathlib import Path

import pytest

from data_tools import loose
from data_tools.indexing import verify_index
from data_tools.loose import index_tree
from finetune.data.index import IMAGE, Index
from finetune.data.labels import Labels
from finetune.errors import UserError
from tests.data_tools.test_indexing import keys, picture
from tests.helpers import read_all


def put(path: Path, colour: int, **sides: str) -> Path:
    """A picture with side files by their suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture(colour))
    for suffix, text in sides.items():
        path.with_suffix(f".{suffix}").write_text(text)
    return path


def labels_by_key(folder: Path) -> dict[str, Labels]:
    return {key: record.labels for key, record in zip(keys(Index.load(folder)), read_all(folder), strict=True)}


def test_kohya_s_layout(tmp_path: Path) -> None:
    put(tmp_path / "10_fox" / "1.png", 1, txt="red fox, snow")
    put(tmp_path / "10_fox" / "sub" / "2.png", 2, caption="a fox in the snow")
    put(tmp_path / "0_none" / "3.png", 3, tags="big dog, grass", caption="a dog")
    put(tmp_path / "2024_summer" / "4.png", 4, json=json.dumps({"tags": ["sea"], "caption": "the sea"}))
    put(tmp_path / "5.png", 5)
    index, refused = index_tree(tmp_path, tmp_path, "auto", workers=1)
    assert refused == []
    repeats = dict(zip(keys(index), index.repeats.tolist(), strict=True))
    assert repeats == {"10_fox/1.png": 10, "10_fox/sub/2.png": 1, "0_none/3.png": 1, "2024_summer/4.png": 1, "5.png": 1}
    assert labels_by_key(tmp_path) == {
        "10_fox/1.png": Labels(("red fox", "snow")),
        "10_fox/sub/2.png": Labels((), ("a fox in the snow",)),
        "0_none/3.png": Labels(("big dog", "grass"), ("a dog",)),
        "2024_summer/4.png": Labels(("sea",), ("the sea",)),
        "5.png": Labels(),
    }


def test_files_are_read_as_they_lie(tmp_path: Path) -> None:
    names = [
        "a b/v1.0 a.png",
        "ünïcode/漢字 🦊.PNG",
        "new\nline.png",
        "back\\slash [x] {y}.png",
        "-dash.png",
        "%41.png",
    ]
    for colour, name in enumerate(names):
        put(tmp_path / name, colour, txt=f"tag_{colour}")
    (tmp_path / "link.png").symlink_to(tmp_path / "-dash.png")
    index, refused = index_tree(tmp_path, tmp_path, "auto", workers=1)
    assert refused == []
    assert sorted(keys(index)) == sorted([*names, "link.png"])
    for key, record in zip(keys(index), read_all(tmp_path), strict=True):
        colour = names.index(key) if key in names else names.index("-dash.png")
        assert record.image == picture(colour)
        assert record.labels.tags == (() if key == "link.png" else (f"tag_{colour}",))
    assert index_tree(tmp_path, tmp_path, "auto", workers=1)[0].fingerprint == index.fingerprint


def test_pictures_of_one_stem_share_their_side_file(tmp_path: Path) -> None:
    put(tmp_path / "a.png", 1, txt="dog")
    shutil.copy(tmp_path / "a.png", tmp_path / "a.JPG")
    index_tree(tmp_path, tmp_path, "auto", workers=1)
    assert labels_by_key(tmp_path) == {"a.png": Labels(("dog",)), "a.JPG": Labels(("dog",))}


def test_a_mask_is_no_picture_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "v1.0 a.jpg", 1)
    put(tmp_path / "b.png", 2)
    put(tmp_path / "v1.0 a.mask.png", 7)
    # Neither one whose picture is gone, nor one in a format that masks cannot have.
    put(tmp_path / "gone.mask.png", 8)
    put(tmp_path / "b.mask.jpg", 9)
    index, refused = index_tree(tmp_path, tmp_path, "auto", workers=1)
    assert (sorted(keys(index)), refused) == (["b.png", "v1.0 a.jpg"], [])
    masks = dict(zip(keys(index), [record.mask for record in read_all(tmp_path)], strict=True))
    assert masks == {"b.png": None, "v1.0 a.jpg": picture(7)}
    put(tmp_path / "b.mask.png", 100)
    again, _ = index_tree(tmp_path, tmp_path, "auto", workers=1)
    assert again.numbers("mask_size").all()
    (tmp_path / "b.mask.png").unlink()
    with pytest.raises(UserError, match="does not match"):
        verify_index(again, workers=1)


def test_what_is_hidden_is_passed_over_and_folders_that_are_linked_are_not(tmp_path: Path) -> None:
    tree = tmp_path / ".cache" / "tree"
    for name in ("a.png", ".hidden.png", "._a.png", ".thumbnails/a.png", ".index/a.png"):
        put(tree / name, 1)
    put(tmp_path / "elsewhere" / "b.png", 2)
    (tree / "linked").symlink_to(tmp_path / "elsewhere")
    (tree / "linked" / "round").symlink_to(tree)
    (tree / "gone.png").symlink_to(tmp_path / "nothing.png")
    index, refused = index_tree(tree, tree, "auto", workers=1)
    assert (sorted(keys(index)), refused) == (["a.png", "linked/b.png"], [])


def test_what_cannot_be_used_is_named(tmp_path: Path) -> None:
    put(tmp_path / "good.png", 1)
    put(tmp_path / "broken.png", 1).write_bytes(b"junk")
    put(tmp_path / "empty.png", 1).write_bytes(b"")
    put(tmp_path / "json.png", 1, json="[")
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(picture(1))
    index, refused = index_tree(tmp_path, tmp_path, "auto", workers=1)
    assert keys(index) == ["good.png"]
    assert {r.key for r in refused} == {"broken.png", "empty.png", "json.png", "caf\\xe9.png"}
    assert {r.key: r.reason for r in refused}["caf\\xe9.png"] == "its name is not UTF-8"
    again, refused_again = index_tree(tmp_path, tmp_path, "auto", workers=1)
    assert again.fingerprint == index.fingerprint
    assert sorted(refused_again) == sorted(refused)


@pytest.mark.parametrize("inside", [True, False])
def test_nothing_is_written_but_the_index(tmp_path: Path, inside: bool) -> None:
    tree = tmp_path / "tree"
    for i in range(3):
        put(tree / f"{i}.png", i, txt="dog")
    before = {path: path.stat().st_mtime_ns for path in tree.rglob("*")}
    out = tree if inside else tmp_path / "out"
    index, _ = index_tree(tree, out, "auto", workers=1)
    assert {path.name for path in out.iterdir()} - {path.name for path in before} == {"index.arrow", ".index"}
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert Path(index.root) == tree
    assert {record.image for record in read_all(out)} == {picture(i) for i in range(3)}


def test_new_pictures_form_groups_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loose, "GROUP", 4)
    read: list[int] = []
    original = loose._read_group
    monkeypatch.setattr(loose, "_read_group", lambda root, n, *rest: read.append(n) or original(root, n, *rest))
    for i in range(10):
        put(tmp_path / f"b{i}.png", i)
    index, _ = index_tree(tmp_path, tmp_path, "auto", workers=1)
    assert [shard.samples for shard in index.shards] == [4, 4, 2]
    assert keys(index) != sorted(keys(index))

    put(tmp_path / "a.png", 20)
    put(tmp_path / "c.png", 21)
    read.clear()
    grown, _ = index_tree(tmp_path, tmp_path, "auto", workers=1)
    assert read == [3]
    assert [shard.samples for shard in grown.shards] == [4, 4, 2, 2]
    assert grown.head(3).fingerprint == index.fingerprint
    assert keys(grown)[:10] == keys(index)
    assert set(keys(grown)[10:]) == {"a.png", "c.png"}

    read.clear()
    (tmp_path / keys(index)[5]).with_suffix(".txt").write_text("dog, cat")
    changed, _ = index_tree(tmp_path, tmp_path, "auto", workers=1)
    assert read == [1]
    assert keys(changed) == keys(grown)
    assert changed.numbers("has_tags").tolist() == [0] * 5 + [1] + [0] * 6

    gone = keys(index)[0]
    (tmp_path / gone).unlink()
    assert keys(index_tree(tmp_path, tmp_path, "auto", workers=1)[0]) == [key for key in keys(grown) if key != gone]


def test_several_processes_find_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loose, "GROUP", 3)
    for i in range(10):
        put(tmp_path / "tree" / f"{i}.png", i, txt="dog")
    one, _ = index_tree(tmp_path / "tree", tmp_path / "one", "auto", workers=1)
    two, _ = index_tree(tmp_path / "tree", tmp_path / "two", "auto", workers=2)
    assert one.fingerprint == two.fingerprint


def test_verifying_compares_the_size_of_every_file(tmp_path: Path) -> None:
    for i in range(5):
        put(tmp_path / f"{i}.png", i, txt="dog")
    index, _ = index_tree(tmp_path, tmp_path, "auto", workers=1)
    assert verify_index(index, workers=1) == 1
    middle = Path(index.spans(2)[IMAGE].location)
    middle.with_suffix(".txt").write_text("another dog")
    with pytest.raises(UserError, match="does not match"):
        verify_index(index, workers=1)
    middle.with_suffix(".txt").unlink()
    with pytest.raises(UserError, match="does not match"):
        verify_index(index, workers=1)


def test_an_empty_tree_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"neither \.tar files nor pictures below"):
        index_tree(tmp_path, tmp_path, "auto", workers=1)
