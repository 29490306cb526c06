"""Reading members, wherever their shards lie and whatever happens to them."""

import io
import os
import pickle
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from data_tools.indexing import expand, index_folder, index_shards
from finetune.data import outage
from finetune.data import sources as sources_module
from finetune.data.config import CacheConfig
from finetune.data.index import IMAGE, TAR_BLOCK, Index
from finetune.data.outage import read_notes
from finetune.data.prepare import DataSet
from finetune.data.samples import place_of
from finetune.data.sources import Record, Sources
from finetune.data.spans import GAP_BYTES
from finetune.errors import UserError
from tests.data_tools.test_indexing import write_tar
from tests.helpers import data_config, open_data, open_sources, read_all, sample_ids
from tests.servers import FaultyServer, faulty_http, s3_server


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(outage, "LONGEST_WAIT_S", 0.05)


@pytest.fixture
def server(shards: Path) -> Iterator[FaultyServer]:
    """The shards and their index, far away."""
    with faulty_http(shards) as server:
        yield server


def far_data(location: str | Path, tmp_path: Path) -> DataSet:
    """A data set with a cache of its own and little patience."""
    cache = CacheConfig(folder=str(tmp_path / "cache"), timeout_s=0.5, alert_after_s=0.3)
    return open_data(data_config(location, cache=cache), tmp_path / "kept", notes=tmp_path / "notes")


def far_sources(location: str | Path, tmp_path: Path) -> Sources:
    """What a run would read from shards at a URL."""
    dataset = far_data(location, tmp_path)
    return dataset.sources(dataset.began())


@pytest.fixture
def far(server: FaultyServer, tmp_path: Path) -> Sources:
    return far_sources(server.url, tmp_path)


def every(sources: Sources, *, whole_shard: bool) -> list[Record]:
    """All samples; whether they lay in the cache is forgotten."""
    read = (sources.read(sample, 0, whole_shard=whole_shard) for sample in sample_ids(sources.all[0].index))
    return [record._replace(cached=None) for record in read]


def later(act: Callable[[], object], seconds: float = 0.3) -> None:
    threading.Timer(seconds, act).start()


def tar_requests(server: FaultyServer) -> list[str | None]:
    """The ranges of shards that were asked for."""
    return [request.range for request in server.requests if request.path.endswith(".tar")]


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


def test_a_sample_is_cached_where_its_shard_is_at_hand(far: Sources, shards: Path) -> None:
    first, second, *_, last = sample_ids(far.all[0].index)
    assert place_of(first).shard == place_of(second).shard != place_of(last).shard
    found = [far.read(sample, 0, whole_shard=whole).cached for sample, whole in ((first, True), (second, False))]
    assert found == [False, True]
    assert far.read(second, 0, whole_shard=True).cached is True
    assert [far.read(last, 0, whole_shard=False).cached for _ in range(2)] == [False, False]
    assert open_sources(shards).read(first, 0, whole_shard=True).cached is None


def test_ids_by_key(shards: Path) -> None:
    index, sources = Index.load(shards), open_sources(shards)
    last = sample_ids(index)[-1]
    assert sources.find([index.key(len(index) - 1), "nothing", "id:3"]) == [3, last]


def test_a_local_shard_that_is_away_for_a_while(shards: Path, tmp_path: Path) -> None:
    wanted = read_all(shards)
    sources = far_sources(shards, tmp_path)
    path = Path(sources.all[0].index.location(0))
    path.rename(tmp_path / "away")
    told: list[object] = []

    def back() -> None:
        told.extend(read_notes(tmp_path / "notes"))
        (tmp_path / "away").rename(path)

    later(back, 0.8)
    assert every(sources, whole_shard=True) == wanted
    assert [(note["what"], "No such file" in str(note["reason"])) for note in told] == [(str(path), True)]  # type: ignore[index]
    assert read_notes(tmp_path / "notes") == []


def test_a_local_shard_that_is_cut_short_for_a_while(shards: Path, tmp_path: Path) -> None:
    wanted = read_all(shards)
    sources = far_sources(shards, tmp_path)
    path = Path(sources.all[0].index.location(0))
    sources.read(0, 0, whole_shard=True)
    shutil.copy(path, tmp_path / "whole")
    os.truncate(path, 3000)
    later(lambda: (tmp_path / "whole").replace(path))
    assert every(sources, whole_shard=True) == wanted


@pytest.mark.parametrize("whole_shard", [True, False])
def test_far_samples_are_those_at_hand(server: FaultyServer, far: Sources, shards: Path, whole_shard: bool) -> None:
    assert every(far, whole_shard=whole_shard) == read_all(shards)
    asked = tar_requests(server)
    samples = len(sample_ids(far.all[0].index))
    assert len(asked) == (len(far.all[0].index.shards) if whole_shard else samples)  # picture and labels at once


def test_a_single_member_costs_little(server: FaultyServer, far: Sources) -> None:
    far.read(5, 0, whole_shard=False)
    spans = far.all[0].index.spans(5)
    first, end = min(s.offset for s in spans.values()) - TAR_BLOCK, max(s.offset + s.size for s in spans.values())
    assert tar_requests(server) == [f"bytes={first}-{end - 1}"]
    server.requests.clear()
    far.fetch(0, 0, 0)
    server.requests.clear()
    far.read(6, 0, whole_shard=False)  # the shard is at hand now
    assert tar_requests(server) == []


@pytest.mark.parametrize("between", [b"", bytes(GAP_BYTES)])
def test_masks_are_read_with_their_pictures(tmp_path: Path, between: bytes) -> None:
    """From shards at hand and far away; a mask that lies far behind its picture takes a request of its own."""
    members = [("a.png", png("red")), ("a.txt", b"dog"), ("gap.bin", between), ("a.mask.png", png("white"))]
    write_tar(tmp_path / "near" / "0.tar", [*members, ("b.png", png("blue"))])
    index_folder(tmp_path / "near", "auto", 1)
    wanted = [(png("red"), png("white"), ("dog",)), (png("blue"), None, ())]

    def read(sources: Sources, whole_shard: bool) -> list[object]:
        return [(record.image, record.mask, record.labels.tags) for record in every(sources, whole_shard=whole_shard)]

    assert read(open_sources(tmp_path / "near"), False) == wanted
    with faulty_http(tmp_path / "near") as server:
        far = far_sources(server.url, tmp_path)
        assert read(far, False) == wanted
        assert len(tar_requests(server)) == (3 if between else 2)
        assert read(far, True) == wanted


@pytest.mark.parametrize("whole_shard", [True, False])
@pytest.mark.parametrize("fault", ["fails", "is missing", "hangs", "cuts", "ignores ranges"])
def test_faults_of_the_server_lose_no_sample(
    server: FaultyServer, far: Sources, shards: Path, fault: str, whole_shard: bool, tmp_path: Path
) -> None:
    if fault == "fails":
        server.fail(500)
    elif fault == "is missing":
        server.vanish("shard-00000.tar")
    elif fault == "hangs":
        server.hang_next(1, 1000.0)
    elif fault == "cuts":
        server.cut_next(3)
    else:
        server.ignore_range = True
    later(server.heal)
    assert every(far, whole_shard=whole_shard) == read_all(shards)
    assert read_notes(tmp_path / "notes") == []


def test_an_outage_is_told_and_passes(server: FaultyServer, far: Sources, shards: Path, tmp_path: Path) -> None:
    told: list[dict[str, object]] = []

    def heal() -> None:
        told.extend(read_notes(tmp_path / "notes"))
        server.heal()

    server.fail(500)
    later(heal, 1.0)
    assert every(far, whole_shard=False) == read_all(shards)
    assert "500" in str(told[0]["reason"])


@pytest.mark.parametrize("whole_shard", [True, False])
def test_the_right_content_under_another_etag(server: FaultyServer, far: Sources, whole_shard: bool) -> None:
    server.etag = "of something else"
    assert far.read(5, 0, whole_shard=whole_shard).image


@pytest.mark.parametrize("whole_shard", [True, False])
@pytest.mark.parametrize("size", ["the same", "smaller", "larger"])
def test_a_far_shard_that_has_changed_stops_the_run(
    server: FaultyServer, far: Sources, whole_shard: bool, size: str
) -> None:
    path = server.folder / "shard-00000.tar"
    data = path.read_bytes()
    path.write_bytes(
        {"the same": data[TAR_BLOCK:] + bytes(TAR_BLOCK), "smaller": data[:1000], "larger": bytes(2 * len(data))}[size]
    )
    with pytest.raises(UserError, match=r"does not match its shard shard-00000\.tar: put back"):
        far.read(5, 0, whole_shard=whole_shard)


def test_a_file_dropped_between_finding_and_opening_it(
    server: FaultyServer, far: Sources, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far.fetch(0, 0, 0).unlink()
    fetch, dropped = far.fetch, [0]

    def unlucky(source: int, shard: int, epoch: int) -> Path:
        path = fetch(source, shard, epoch)
        if dropped[0] < 3:
            dropped[0] += 1
            path.unlink()
        return path

    monkeypatch.setattr(far, "fetch", unlucky)
    assert far.read(0, 0, whole_shard=True)._replace(cached=None) == read_all(shards)[0]
    assert dropped == [3]


def test_the_right_far_shards_pass(server: FaultyServer, far: Sources) -> None:
    server.fail(503, seconds=0.1)
    far.verify()


@pytest.mark.parametrize("fault", ["is missing", "is denied", "fails", "is another"])
def test_far_shards_that_cannot_be_had_are_told_at_the_start(server: FaultyServer, far: Sources, fault: str) -> None:
    path = server.folder / "shard-00000.tar"
    if fault == "is missing":
        server.vanish(path.name)
    elif fault == "is another":
        path.write_bytes(b"short")
    else:
        server.fail(403 if fault == "is denied" else 500)
    cannot_be_read = r"shard .*shard-00000\.tar cannot be read .*: check the address and your credentials"
    with pytest.raises(UserError, match="does not match its shard" if fault == "is another" else cannot_be_read):
        far.verify()


def test_of_many_far_shards_a_few_are_asked_for(
    server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources_module, "SHARDS_PROBED", 1)
    local = tmp_path / "index"
    index_shards([f"{server.url}/shard-0000{i}.tar" for i in range(2)], local, "auto", 1)
    for location in (server.url, local):
        server.requests.clear()
        far_sources(location, tmp_path).verify()
        assert len(tar_requests(server)) == 1


def test_near_and_far_shards_of_one_index(
    server: FaultyServer, shards: Path, tmp_path: Path, make_shards: Callable[..., Path]
) -> None:
    near = make_shards("near", count=10) / "shard-00000.tar"
    index_shards([str(near), f"{server.url}/shard-00000.tar"], tmp_path / "index", "auto", 1)
    sources = far_sources(tmp_path / "index", tmp_path)
    assert [sources.is_remote(0, number, 0) for number in range(2)] == [False, True]
    sources.verify()
    wanted = read_all(near.parent)
    assert every(sources, whole_shard=True)[: len(wanted)] == wanted
    assert (
        every(sources, whole_shard=True)[len(wanted) :]
        == read_all(shards)[: len(sample_ids(sources.all[0].index)) - 10]
    )
    near.unlink()
    with pytest.raises(UserError, match="is missing"):
        sources.verify()


def test_a_cache_that_cannot_be_written_is_told_at_the_start(server: FaultyServer, tmp_path: Path) -> None:
    sources = far_sources(server.url, tmp_path)
    (tmp_path / "cache" / "shards").write_text("in the way")
    with pytest.raises(UserError, match=r"data\.cache\.folder cannot be written"):
        sources.verify()


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (96, 96), colour).save(buffer, "PNG")
    return buffer.getvalue()


def test_keys_that_climb_write_nothing_anywhere(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "evil"
    folder.mkdir(parents=True)
    keys = ("../../evil", "/tmp/evil-absolute", "a/../../../evil")
    with tarfile.open(folder / "evil.tar", "w") as tar:
        for key, colour in zip(keys, ("red", "green", "blue"), strict=True):
            for suffix, data in (("png", png(colour)), ("txt", b"evil")):
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    index_folder(folder, "auto", 1)
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    with faulty_http(folder) as server:
        sources = far_sources(server.url, tmp_path)
        for whole_shard in (False, True):
            records = every(sources, whole_shard=whole_shard)
            assert [record.image for record in records] == [png("red"), png("green"), png("blue")]
        assert [sources.key(sample) for sample in range(3)] == list(keys)
    written = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert written
    assert {path.relative_to(tmp_path).parts[0] for path in written} <= {"cache", "kept", "notes"}
    assert not Path("/tmp/evil-absolute.png").exists()
    assert not any("evil" in path.name for path in written)


def test_a_far_index_that_is_damaged(server: FaultyServer, tmp_path: Path) -> None:
    path = server.folder / "index.arrow"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="is damaged"):
        far_data(server.url, tmp_path)
    path.write_bytes(whole)
    os.utime(path, (1, 1))
    far_sources(server.url, tmp_path).verify()


def test_a_far_index_of_other_shards(server: FaultyServer, tmp_path: Path, make_shards: Callable[..., Path]) -> None:
    shutil.copy(make_shards("other", count=57) / "index.arrow", server.folder / "index.arrow")
    sources = far_sources(server.url, tmp_path)
    with pytest.raises(UserError, match="does not match its shard"):
        sources.verify()
    with pytest.raises(UserError, match="does not match its shard"):
        sources.read(sample_ids(sources.all[0].index)[-1], 0, whole_shard=True)


def test_a_far_index_that_changes_is_fetched_again(
    server: FaultyServer, tmp_path: Path, make_shards: Callable[..., Path]
) -> None:
    before = far_data(server.url, tmp_path).indexes["shards"].fingerprint
    server.requests.clear()
    assert far_data(server.url, tmp_path).indexes["shards"].fingerprint == before
    assert [request.range for request in server.requests] == ["bytes=0-0"]
    other = make_shards("other", count=57)
    shutil.copy(other / "index.arrow", server.folder / "index.arrow")
    assert far_data(server.url, tmp_path).indexes["shards"].fingerprint == Index.load(other).fingerprint


class Reads(Dataset[bytes]):
    """The pictures of some sources."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._ids = sample_ids(sources.all[0].index)

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, item: int) -> bytes:
        return self._sources.read(self._ids[item], 0, whole_shard=item % 2 == 0).image


def test_forked_workers_read_while_their_parent_fetches(server: FaultyServer, far: Sources, shards: Path) -> None:
    ended = threading.Event()
    sample = sample_ids(far.all[0].index)[-1]

    def read() -> None:
        while not ended.is_set():
            far.read(sample, 0, whole_shard=False)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        loader = DataLoader(Reads(far), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60)
        found = list(loader)
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert found == [record.image for record in read_all(shards)]
    whole = {f"bytes=0-{shard.size - 1}" for shard in far.all[0].index.shards}
    assert sorted(asked for asked in tar_requests(server) if asked in whole) == sorted(whole)  # each once


@pytest.mark.parametrize("pattern", ["shard-{00000..00001}.tar", "shard-*.tar"])
def test_s3(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str) -> None:
    with s3_server() as s3:
        for name, value in s3.environment.items():
            monkeypatch.setenv(name, value)
        url = s3.upload(shards)
        names = expand([f"{url}/{pattern}"])
        assert names == [f"{url}/shard-00000.tar", f"{url}/shard-00001.tar"]
        index, refused = index_shards(names, tmp_path / "index", "auto", 1)
        assert not refused
        assert [shard.sha256 for shard in index.shards] == [shard.sha256 for shard in Index.load(shards).shards]
        for location in (tmp_path / "index", url):
            sources = far_sources(location, tmp_path / location_name(location))
            sources.verify()
            for whole_shard in (False, True):
                assert every(sources, whole_shard=whole_shard) == read_all(shards)
        assert index.spans(0)[IMAGE].location.startswith("s3://")


def location_name(location: str | Path) -> str:
    return "far" if isinstance(location, str) else "near"
