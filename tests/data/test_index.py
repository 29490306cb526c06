"""The index: written once, mapped by all, and never trusted beyond its shards."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from data_tools.indexing import index_folder
from finetune.data.index import Index
from finetune.errors import UserError


def test_columns_are_mapped_and_not_copied(shards: Path) -> None:
    index = Index.load(shards)
    for column in (index.shard, index.image_offset, index.width, index.has_tags):
        assert not column.flags.owndata
        assert not column.flags.writeable


def test_sample_ids_name_shard_and_ordinal(shards: Path) -> None:
    index = Index.load(shards)
    assert len(index.shards) > 1
    expected = [(i, k) for i, shard in enumerate(index.shards) for k in range(shard.samples)]
    assert [(int(s) >> 32, int(s) & 0xFFFFFFFF) for s in index.sample_ids] == expected


def test_it_pickles_as_its_path(shards: Path) -> None:
    index = Index.load(shards)
    assert len(pickle.dumps(index)) < 1000
    again = pickle.loads(pickle.dumps(index))  # noqa: S301 (its own bytes)
    assert again.fingerprint == index.fingerprint
    assert np.array_equal(again.image_offset, index.image_offset)


def test_the_fingerprint_follows_the_content(shards: Path, make_shards) -> None:  # type: ignore[no-untyped-def]
    assert make_shards("same").joinpath("index.arrow").read_bytes() == (shards / "index.arrow").read_bytes()
    other = make_shards("other", count=13)
    assert Index.load(other).fingerprint != Index.load(shards).fingerprint


def test_intact_shards_pass(shards: Path) -> None:
    Index.load(shards).verify()


def test_a_folder_without_index_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no index .*index\.arrow: make it with `python -m data_tools index"):
        Index.load(tmp_path)


def test_a_damaged_index_is_refused(shards: Path) -> None:
    path = shards / "index.arrow"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="is damaged"):
        Index.load(shards)


def test_a_missing_shard_is_named(shards: Path) -> None:
    (shards / "shard-00001.tar").unlink()
    with pytest.raises(UserError, match=r"shard .*shard-00001\.tar is missing: put it back"):
        Index.load(shards).verify()


def test_another_shard_of_the_same_size_is_noticed(shards: Path) -> None:
    path = shards / "shard-00000.tar"
    data = path.read_bytes()
    path.write_bytes(data[512:] + data[:512])
    with pytest.raises(UserError, match=r"does not match its shard shard-00000\.tar"):
        Index.load(shards).verify()


def test_a_flipped_bit_is_noticed_by_its_hash(shards: Path) -> None:
    index = Index.load(shards)
    path = shards / index.shards[1].name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    index.verify_hashes(0)
    with pytest.raises(UserError, match="does not match its shard"):
        index.verify_hashes(1)


def test_an_empty_index_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.tar").write_bytes(b"\0" * 10240)
    with pytest.raises(UserError, match="holds no samples"):
        index_folder(tmp_path, "auto", workers=1)
