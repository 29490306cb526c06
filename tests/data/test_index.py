"""The index: written once, mapped by all, and never trusted beyond its shards."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from data_tools.indexing import index_folder
from finetune.data.index import VERSION, Index
from finetune.errors import UserError


def test_columns_are_mapped_and_not_copied(shards: Path) -> None:
    index = Index.load(shards)
    for column in (index.shard, index.numbers("image_offset"), index.width, index.numbers("has_tags")):
        assert not column.flags.owndata
        assert not column.flags.writeable


def test_it_pickles_as_its_path(shards: Path) -> None:
    index = Index.load(shards)
    assert len(pickle.dumps(index)) < 1000
    again = pickle.loads(pickle.dumps(index))  # noqa: S301 (its own bytes)
    assert again.fingerprint == index.fingerprint
    assert np.array_equal(again.numbers("image_offset"), index.numbers("image_offset"))


def test_the_fingerprint_follows_the_content(shards: Path, make_shards: Callable[..., Path]) -> None:
    assert make_shards("same").joinpath("index.arrow").read_bytes() == (shards / "index.arrow").read_bytes()
    other = make_shards("other", count=13)
    assert Index.load(other).fingerprint != Index.load(shards).fingerprint


def test_a_folder_without_index_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no index .*index\.arrow: make it with `python -m data_tools index"):
        Index.load(tmp_path)


def test_a_damaged_index_is_refused(shards: Path) -> None:
    path = shards / "index.arrow"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="is damaged"):
        Index.load(shards)


def test_an_index_of_another_version_is_refused(shards: Path) -> None:
    path = shards / "index.arrow"
    table = pa.ipc.open_file(path).read_all()
    metadata = json.loads(table.schema.metadata[b"longhaul"])
    older = table.replace_schema_metadata({"longhaul": json.dumps({**metadata, "version": VERSION - 1})})
    with pa.ipc.new_file(path, older.schema) as writer:
        writer.write_table(older)
    with pytest.raises(UserError, match=r"is of another version: make it with `python -m data_tools index"):
        Index.load(shards)
    assert np.array_equal(index_folder(shards, "auto", workers=1)[0].width, table["width"])


def test_what_an_index_has_grown_out_of(shards: Path, make_shards: Callable[..., Path]) -> None:
    before = Index.load(shards)
    shutil.copy(make_shards("other", count=13) / "shard-00000.tar", shards / "aaa.tar")
    index_folder(shards, "auto", workers=1)
    grown = Index.load(shards)
    # New shards come behind those that were there, whatever their names.
    assert [shard.name for shard in grown.shards] == [*(shard.name for shard in before.shards), "aaa.tar"]
    assert grown.fingerprint != before.fingerprint
    head = grown.head(len(before.shards))
    assert head.fingerprint == before.fingerprint
    assert len(head) == len(before)
    assert np.array_equal(head.numbers("image_offset"), before.numbers("image_offset"))
    assert pickle.loads(pickle.dumps(head)).fingerprint == before.fingerprint  # noqa: S301 (its own bytes)


def test_rows_by_key(shards: Path) -> None:
    index = Index.load(shards)
    assert index.rows([index.key(7), index.key(3), "nothing"]).tolist() == [3, 7]


def test_an_empty_index_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.tar").write_bytes(b"\0" * 10240)
    with pytest.raises(UserError, match="holds no samples"):
        index_folder(tmp_path, "auto", workers=1)
