"""Reading by offset."""

import pickle
import tarfile
from pathlib import Path

import pytest

from finetune.data import source as source_module
from finetune.data.index import Index
from finetune.data.source import ShardSource


def test_every_sample_is_read_as_tar_itself_reads_it(shards: Path) -> None:
    index = Index.load(shards)
    source = ShardSource(index, "auto")
    for row in range(len(index)):
        with tarfile.open(index.shard_path(int(index.shard[row]))) as tar:
            picture = tar.extractfile(f"{index.key(row)}.png").read()  # type: ignore[union-attr]
        assert source.image(row) == picture
        labels = source.labels(row)
        number = labels.captions[0].split()[-1]
        assert labels.tags == ("tag", f"tag {number}")


def test_few_files_are_open_at_a_time(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "OPEN_FILES", 1)
    index = Index.load(shards)
    source = ShardSource(index, "auto")
    last = len(index) - 1
    pictures = [source.image(row) for row in (0, last, 0, last)]
    assert pictures[:2] == pictures[2:]
    assert len(source._files) == 1


def test_a_pickled_source_opens_its_own_files(shards: Path) -> None:
    source = ShardSource(Index.load(shards), "auto")
    picture = source.image(0)
    again = pickle.loads(pickle.dumps(source))  # noqa: S301 (its own bytes)
    assert again._files == {}
    assert again.image(0) == picture


def test_a_short_read_is_a_fault_of_the_disk(shards: Path) -> None:
    index = Index.load(shards)
    path = index.shard_path(0)
    path.write_bytes(path.read_bytes()[: int(index.image_offset[0]) + 10])
    with pytest.raises(OSError, match=rf"10 of {index.image_size[0]} bytes.*{index.key(0)}"):
        ShardSource(index, "auto").image(0)
