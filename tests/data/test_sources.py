"""Reading members, wherever their shards lie."""

import pickle
import tarfile
from pathlib import Path

import pytest

from finetune.data import sources as sources_module
from finetune.data.index import Index
from finetune.data.samples import place_of
from tests.helpers import open_sources, sample_ids


def test_every_sample_is_read_as_tar_itself_reads_it(shards: Path) -> None:
    index, sources = Index.load(shards), open_sources(shards)
    for row, sample in enumerate(sample_ids(index)):
        with tarfile.open(index.location(place_of(sample).shard)) as tar:
            picture = tar.extractfile(f"{index.key(row)}.png").read()  # type: ignore[union-attr]
        record = sources.read(sample, 0, whole_shard=False)
        assert record.image == picture
        number = record.labels.captions[0].split()[-1]
        assert record.labels.tags == ("tag", f"tag {number}")
        assert sources.key(sample) == index.key(row)


def test_few_files_are_open_at_a_time(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources_module, "OPEN_FILES", 1)
    every, sources = sample_ids(Index.load(shards)), open_sources(shards)
    records = [sources.read(sample, 0, whole_shard=False) for sample in (every[0], every[-1], every[0], every[-1])]
    assert records[:2] == records[2:]
    assert len(sources._files) == 1


def test_pickled_sources_open_their_own_files(shards: Path) -> None:
    sources = open_sources(shards)
    record = sources.read(0, 0, whole_shard=False)
    again = pickle.loads(pickle.dumps(sources))  # noqa: S301 (its own bytes)
    assert again._files == {}
    assert again.read(0, 0, whole_shard=False) == record


def test_ids_by_key(shards: Path) -> None:
    index, sources = Index.load(shards), open_sources(shards)
    last = sample_ids(index)[-1]
    assert sources.find([index.key(len(index) - 1), "nothing", "id:3"]) == [3, last]
